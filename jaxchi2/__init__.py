"""Sub-pixel image registration by χ²: exact, differentiable, with calibrated error bars, in JAX.

`register` measures the displacement of an image from a reference and its error. `chi2_surface` is χ² itself
as a function of the shift. `align` undoes a shift. The functions with the names of the package
``image_registration`` (`chi2_shift` and its kin) keep that package's arguments and return order;
`jaxchi2.image_registration` stands for all of it.
"""

from . import fourier
from .align import align
from .coadd import Aligned, Combined, align_stack, combine
from .engine.choices import Boundary
from .engine.constraints import Search
from .engine.correlated import Noise
from .engine.counts import Counts
from .engine.errors import delta_chi2
from .engine.noise import estimate_noise
from .engine.verdict import Peaks, Posterior, RunnerUp
from .field import Field, register_field
from .image_registration.chi2_shifts import (
    chi2_shift,
    chi2_shift_iterzoom,
    chi2_shift_leastsq,
    chi2map_to_errors,
    chi2n_map,
)
from .image_registration.iterative_zoom import iterative_zoom, iterative_zoom_1d
from .joint import JointRegistration, register_jointly
from .leastsq import Descent, Fit, GaussNewton, fit
from .motion import Affine, Rigid, Shift, Similarity
from .pipeline import register_and_align
from .psf import MatchedPair, match_psf, smooth_undersampled
from .registration import register
from .results import Registration
from .smoothfield import SmoothField
from .stack import register_stack
from .status import Status
from .surface import Chi2Surface, chi2_surface

__version__ = "0.1.0"

__all__ = [
    "Affine",
    "Aligned",
    "Boundary",
    "Chi2Surface",
    "Combined",
    "Counts",
    "Descent",
    "Field",
    "Fit",
    "GaussNewton",
    "JointRegistration",
    "MatchedPair",
    "Noise",
    "Peaks",
    "Posterior",
    "Registration",
    "Rigid",
    "RunnerUp",
    "Search",
    "Shift",
    "Similarity",
    "SmoothField",
    "Status",
    "align",
    "align_stack",
    "chi2_shift",
    "chi2_shift_iterzoom",
    "chi2_shift_leastsq",
    "chi2_surface",
    "chi2map_to_errors",
    "chi2n_map",
    "combine",
    "delta_chi2",
    "estimate_noise",
    "fit",
    "fourier",
    "iterative_zoom",
    "iterative_zoom_1d",
    "match_psf",
    "register",
    "register_and_align",
    "register_field",
    "register_jointly",
    "register_stack",
    "smooth_undersampled",
]
