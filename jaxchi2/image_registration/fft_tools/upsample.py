"""Fourier transforms on upsampled windows."""

from ...fourier import dftups, dftups1d, odddftups, upsample_image

__all__ = ["dftups", "dftups1d", "odddftups", "upsample_image"]
