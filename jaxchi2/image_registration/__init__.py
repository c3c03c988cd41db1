"""The functions of the package ``image_registration``, by their names, in their modules.

Arguments, units, signs and return order are that package's: x before y, errors as half the extent of the
joint Δχ² region, χ² grids in its coordinates. Everything runs under ``jit`` and ``vmap`` with the options
static. Where that package goes wrong, these functions do not; each docstring says what differs.

A script needs one line changed, ``import image_registration`` to

    import jaxchi2.image_registration as image_registration

or, where it has ``from image_registration.fft_tools import ...`` and the like, one line before all others:

    import jaxchi2.image_registration; jaxchi2.image_registration.install()
"""

import sys

# The modules first: where a function has a module's name, the name is the function, as in that package.
from . import chi2_shifts, fft_tools, iterative_zoom
from .chi2_shifts import chi2_shift, chi2_shift_iterzoom, chi2_shift_leastsq, chi2map_to_errors, chi2n_map
from .cross_correlation_shifts import cross_correlation_shifts
from .register_images import register_images

__all__ = [
    "chi2_shift",
    "chi2_shift_iterzoom",
    "chi2_shift_leastsq",
    "chi2_shifts",
    "chi2map_to_errors",
    "chi2n_map",
    "cross_correlation_shifts",
    "fft_tools",
    "install",
    "iterative_zoom",
    "register_images",
]


def install() -> None:
    """Let ``import image_registration``, in this process from now on, mean this package.

    Raises
    ------
    RuntimeError
        If the package of that name is imported already.
    """
    name = "image_registration"
    if sys.modules.get(name, sys.modules[__name__]) is not sys.modules[__name__]:
        raise RuntimeError(f"{name} is imported already: call install() before anything imports it")
    for own, module in list(sys.modules.items()):
        if own == __name__ or own.startswith(f"{__name__}."):
            sys.modules[name + own.removeprefix(__name__)] = module
