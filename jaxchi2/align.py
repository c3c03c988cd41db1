"""Undo a shift: bring an image back onto its reference."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from .fourier import as_real_array, shiftnd

ORDERS = ("fourier", 0, 1)
MODES = ("wrap", "constant", "nearest", "reflect", "mirror")


def align(image: ArrayLike, shift: ArrayLike, *, order: str | int = "fourier", mode: str = "wrap") -> Array:
    """Move an image by minus a shift, so that it lies on its reference: ``out(i) = image(i + shift)``.

    Parameters
    ----------
    image : array_like, shape (n,), (ny, nx), …
        Real; integers become the default float, other dtypes are kept.
    shift : array_like, shape (D,)
        What `register` measured: displacement along each axis in pixels, in axis order.
    order : {"fourier", 0, 1}
        How to interpolate; static under jit. "fourier" is exact for band-limited periodic content, keeps
        white noise white and rings at sharp edges and at the frame's edge if opposite sides differ; a
        pixel that is not finite counts as zero there. 0 takes the nearest pixel, 1 interpolates linearly,
        which smooths noise by up to a factor 2 per axis in variance; a NaN spreads to its neighbours only.
    mode : {"wrap", "constant", "nearest", "reflect", "mirror"}
        What lies outside the frame, by scipy's names: "wrap" repeats the image with the period of its
        shape (scipy's "grid-wrap"), "constant" is zero and is interpolated towards (scipy's
        "grid-constant"); static under jit. "fourier" takes "wrap" alone.

    Returns
    -------
    Array
        The image on the reference's grid, of the image's shape.

    Raises
    ------
    ValueError, TypeError
        For a shift of another length than the image's axes, unknown options, complex images.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.arange(6.0)
    >>> print(np.round(np.asarray(align(np.roll(scene, 2), [2.0])), 3))
    [0. 1. 2. 3. 4. 5.]
    """
    image = as_real_array(image, "image")
    shift = jnp.asarray(shift, image.dtype)
    if image.ndim == 0 or shift.shape != (image.ndim,):
        raise ValueError(
            f"shift must hold one value per axis of image, shape ({image.ndim},), not {shift.shape}"
        )
    if order not in ORDERS or isinstance(order, bool):
        raise ValueError(f"order must be one of {ORDERS}, not {order!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
    if order == "fourier":
        if mode != "wrap":
            raise ValueError(f"order='fourier' is periodic and takes mode='wrap' alone, not {mode!r}")
        return shiftnd(image, -shift)
    return _interpolate(image, shift, int(order), mode)


@partial(jax.jit, static_argnums=(2, 3))
def _interpolate(image: Array, shift: Array, order: int, mode: str) -> Array:
    axes = [jnp.arange(n, dtype=image.dtype) + shift[a] for a, n in enumerate(image.shape)]
    return map_coordinates(image, jnp.meshgrid(*axes, indexing="ij"), order, mode=mode)
