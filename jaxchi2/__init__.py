"""Sub-pixel image registration by χ²: exact, differentiable, with calibrated error bars, in JAX.

`register` measures the displacement of an image from a reference and its error. `chi2_surface` is χ² itself
as a function of the shift. `align` undoes a shift. The functions with the names of the package
``image_registration`` (`chi2_shift` and its kin) keep that package's arguments and return order.
"""

from .registration import Registration, Status, register
from .errors import delta_chi2
from .surface import Chi2Surface, chi2_surface

__version__ = "0.1.0"
