"""Zooms by Fourier interpolation."""

from ...fourier import zoom1d, zoom_on_pixel, zoomnd

__all__ = ["zoom1d", "zoom_on_pixel", "zoomnd"]
