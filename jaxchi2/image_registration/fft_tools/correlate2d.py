"""Cross-correlation."""

from ...fourier import correlate2d

__all__ = ["correlate2d"]
