"""Shifts by the Fourier theorem."""

from ...fourier import shift2d, shiftnd

__all__ = ["shift2d", "shiftnd"]
