"""Undo a shift or another motion: bring an image back onto its reference."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from .arrays import unit_of
from .fourier import as_real_array, shiftnd
from .motion import MOTIONS, Motion, Shift, check_motion, targets
from .sampling import interpolant

ORDERS = ("fourier", 0, 1, 3)
MODES = ("wrap", "constant", "nearest", "reflect", "mirror")


def align(
    image: ArrayLike, shift: ArrayLike | Motion, *, order: str | int = "fourier", mode: str = "wrap"
) -> Array:
    """Undo a motion of an image, so that it lies on its reference: ``out(i) = image(i + shift)``.

    Parameters
    ----------
    image : array_like, shape (n,), (ny, nx), …
        Real; integers become the default float, other dtypes are kept.
    shift : array_like, shape (D,), or Shift, Rigid, Similarity, Affine
        What `register` measured, a displacement along each axis in pixels and in axis order, or the
        ``motion`` that `fit` found.
    order : {"fourier", 0, 1, 3}
        How to interpolate; static under jit. "fourier" is exact for band-limited periodic content, keeps
        white noise white and rings at sharp edges and at the frame's edge if opposite sides differ; a
        pixel that is not finite counts as zero there; it takes a shift alone. 0 takes the nearest pixel, 1
        interpolates linearly, which smooths noise by up to a factor 2 per axis in variance; a NaN spreads
        to its neighbours only. 3 is a cubic spline, between the two; a NaN spreads over the image.
    mode : {"wrap", "constant", "nearest", "reflect", "mirror"}
        What lies outside the frame, by scipy's names: "wrap" repeats the image with the period of its
        shape (scipy's "grid-wrap"), "constant" is zero, interpolated towards with order 1 (scipy's
        "grid-constant"); static under jit. "fourier" takes "wrap" alone, and 3 all but "mirror".

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
    image = as_real_array(image, "image", unit_of(image))
    kinds = tuple(MOTIONS.values())
    motion = shift if isinstance(shift, kinds) else Shift(jnp.asarray(shift))
    motion = jax.tree.map(lambda x: jnp.asarray(x, image.dtype), motion)
    if image.ndim == 0 or motion.shift.shape != (image.ndim,):
        raise ValueError(
            f"shift must hold one value per axis of image, shape ({image.ndim},), not {motion.shift.shape}"
        )
    check_motion(motion, image.ndim, "shift")
    if order not in ORDERS or isinstance(order, bool):
        raise ValueError(f"order must be one of {ORDERS}, not {order!r}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
    if order == "fourier":
        if mode != "wrap":
            raise ValueError(f"order='fourier' is periodic and takes mode='wrap' alone, not {mode!r}")
        if not isinstance(motion, Shift):
            raise ValueError(
                f"order='fourier' undoes a shift alone, not {type(motion).__name__}; take order=3"
            )
        return shiftnd(image, -motion.shift)
    if order == 3 and mode == "mirror":
        raise ValueError("order=3 takes any mode but 'mirror'")
    return _interpolate(image, motion, int(order), mode)


@partial(jax.jit, static_argnums=(2, 3))
def _interpolate(image: Array, motion: Motion, order: int, mode: str) -> Array:
    positions = targets(motion, image.shape)
    if order == 3:
        return interpolant(image, order, mode)(positions)
    return map_coordinates(image, list(positions), order, mode=mode)
