"""The Fourier tools: those of `jaxchi2.fourier`, by the module paths of ``image_registration.fft_tools``."""

# The modules first: where a function has a module's name, the name is the function.
from . import fast_ffts, scale, shift, upsample, zoom
from .correlate2d import correlate2d
from .fast_ffts import get_ffts
from .shift import shift2d, shiftnd
from .upsample import dftups, upsample_image

__all__ = [
    "correlate2d",
    "dftups",
    "fast_ffts",
    "get_ffts",
    "scale",
    "shift",
    "shift2d",
    "shiftnd",
    "upsample",
    "upsample_image",
    "zoom",
]
