"""Fourier interpolation at any position."""

from ...fourier import fourier_interp1d, fourier_interp2d, fourier_interpnd

__all__ = ["fourier_interp1d", "fourier_interp2d", "fourier_interpnd"]
