"""The shift at the maximum of the cross-correlation."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from ..fourier import accept_obsolete, as_real_array
from ..registration import register
from .chi2_shifts import check_planes

__all__ = ["cross_correlation_shifts"]


@accept_obsolete(gaussfit=6, nthreads=None, use_numpy_fft=None, allow_huge=None)
def cross_correlation_shifts(
    image1: ArrayLike,
    image2: ArrayLike,
    errim1: ArrayLike | None = None,
    errim2: ArrayLike | None = None,
    maxoff: float | None = None,
    verbose: bool = False,
    return_error: bool = False,
    zeromean: bool = True,
    *,
    boundary: str = "wrap",
) -> tuple[Array, ...]:
    """Measure the shift of ``image2`` from ``image1`` where their correlation is largest, with `register`.

    The maximum of the cross-correlation is the minimum of χ² over shift and brightness ratio: so the two
    images may differ in brightness, and, with ``zeromean``, by a constant.

    Parameters
    ----------
    image1, image2 : array_like, shape (ny, nx)
        The reference and the image. A pixel that is not finite has weight zero.
    errim1, errim2 : array_like, scalar or shape (ny, nx), optional
        Standard deviation of each pixel of either image; one alone is taken for that of ``image2``. Both
        None: equal and unknown, and the errors are scaled by the reduced χ².
    maxoff : float, optional
        Largest shift along each axis; half the frame by default. Static under jit.
    verbose : bool
        Print the result (outside ``jit`` only).
    return_error : bool
        Whether to return the errors; static under jit.
    zeromean : bool
        Fit a constant between the images; static under jit.
    boundary : str
        What ``image1`` is outside its frame, as for `register`; static under jit.

    Returns
    -------
    dx, dy : Array
        Shift in pixels, positive towards larger indices. NaN where there is no maximum.
    errx, erry : Array
        Marginal standard errors. Only with ``return_error``.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options.

    Notes
    -----
    Unlike `image_registration`: the shift is the maximum itself and not half a pixel off on odd axes; errors
    given count, and those returned are of the size of the scatter; ``maxoff`` works; images without a signal
    give NaN, not zero.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> dx, dy = cross_correlation_shifts(scene, image)
    >>> print(f"{dx:.3f}, {dy:.3f}")
    -2.997, 1.998
    """
    pair = check_planes(image1, image2, names=("image1", "image2"))
    given = {"errim1": errim1, "errim2": errim2}
    errors = [jnp.abs(as_real_array(err, name)) for name, err in given.items() if err is not None]
    found = register(
        pair.reference,
        pair.image,
        errors[-1] if errors else None,
        reference_err=errors[0] if len(errors) == 2 else None,
        boundary=boundary,
        fit_gain=True,
        fit_background=zeromean,
        max_shift=maxoff,
        verdict=False,
    )
    if verbose and not isinstance(found.shift, Tracer):
        print(found)
    (dy, dx), (erry, errx) = found.shift, found.stderr
    return (dx, dy, errx, erry) if return_error else (dx, dy)
