"""Registration by cross-correlation, and the registered image."""

from __future__ import annotations

from jax import Array
from jax.typing import ArrayLike

from ..fourier import accept_obsolete, shift2d
from .cross_correlation_shifts import cross_correlation_shifts

__all__ = ["register_images"]


@accept_obsolete(DEBUG=6, nthreads=8, use_numpy_fft=9)
def register_images(
    im1: ArrayLike,
    im2: ArrayLike,
    usfac: float = 1,
    return_registered: bool = False,
    return_error: bool = False,
    zeromean: bool = True,
    maxoff: float | None = None,
) -> tuple[Array, ...]:
    """Measure the shift of ``im2`` from ``im1`` as `cross_correlation_shifts` does, and undo it.

    Parameters
    ----------
    im1, im2 : array_like, shape (ny, nx)
        The reference and the image. A pixel that is not finite has weight zero.
    usfac : float
        Has no effect: the shift is that of the maximum, not of a grid of ``1/usfac`` pixels.
    return_registered : bool
        Also return the registered image; static under jit.
    return_error : bool
        Whether to return the errors; static under jit.
    zeromean : bool
        Fit a constant between the images; static under jit.
    maxoff : float, optional
        Largest shift along each axis; half the frame by default. Static under jit.

    Returns
    -------
    dx, dy : Array
        Shift in pixels, positive towards larger indices. NaN where there is no maximum.
    errx, erry : Array
        Marginal standard errors. Only with ``return_error``.
    registered : Array, shape (ny, nx)
        ``shift2d(im2, -dx, -dy)``, which looks like ``im1``. Only with ``return_registered``.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options.

    Notes
    -----
    Unlike `image_registration`: the errors are errors, not ``1/usfac``; the registered image is ``im2``
    itself, moved, not the modulus of its deviation from the mean with its quadrants exchanged.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> dx, dy, registered = register_images(scene, image, return_registered=True)
    >>> print(f"{dx:.3f}, {dy:.3f}, {np.std(registered - scene):.2f}")
    -2.997, 1.998, 0.10
    """
    del usfac
    found = cross_correlation_shifts(im1, im2, maxoff=maxoff, return_error=True, zeromean=zeromean)
    returned = found if return_error else found[:2]
    return (*returned, shift2d(im2, -found[0], -found[1])) if return_registered else returned
