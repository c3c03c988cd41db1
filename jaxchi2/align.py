"""Undo a shift or another motion: bring an image back onto its reference."""

from __future__ import annotations

from functools import partial

import jax
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from .checks import array_of, choice, per_axis
from .fourier import shiftnd
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
    image = array_of(image, "image")
    if isinstance(shift, tuple(MOTIONS.values())):
        motion = check_motion(shift, image.ndim, "shift", image.dtype)  # type: ignore[arg-type]
    else:
        motion = Shift(per_axis(shift, "shift", image.ndim, image.dtype))
    order, mode = check_order(order, mode, type(motion))
    if order == "fourier":
        return shiftnd(image, -motion.shift)
    return _interpolate(image, motion, int(order), mode)


def check_order(order: str | int, mode: str, kind: type[Motion] = Shift) -> tuple[str | int, str]:
    """How to interpolate and what lies outside the frame, if that fits a kind of motion."""
    order, mode = choice(order, "order", ORDERS), choice(mode, "mode", MODES)
    if order == "fourier":
        if mode != "wrap":
            raise ValueError(f"order='fourier' is periodic and takes mode='wrap' alone, not {mode!r}")
        if kind is not Shift:
            raise ValueError(f"order='fourier' undoes a shift alone, not {kind.__name__}; take order=3")
    if order == 3 and mode == "mirror":
        raise ValueError("order=3 takes any mode but 'mirror'")
    return order, mode


@partial(jax.jit, static_argnums=(2, 3))
def _interpolate(image: Array, motion: Motion, order: int, mode: str) -> Array:
    positions = targets(motion, image.shape)
    if order == 3:
        return interpolant(image, order, mode)(positions)
    return map_coordinates(image, list(positions), order, mode=mode)
