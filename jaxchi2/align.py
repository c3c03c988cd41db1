"""Undo a shift or another motion: bring an image back onto its reference."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from .checks import array_of, choice, per_axis, sizes
from .coadd import align_frame
from .engine.spectrum import Shape
from .fourier import shiftnd
from .motion import MOTIONS, Motion, Shift, check_motion, plain_shift, targets
from .sampling import interpolant

ORDERS = ("fourier", 0, 1, 3)
MODES = ("nan", "wrap", "constant", "nearest", "reflect", "mirror")


def align(
    image: ArrayLike,
    shift: ArrayLike | Motion,
    *,
    order: str | int = "fourier",
    mode: str = "nan",
    shape: tuple[int, ...] | None = None,
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
        How to interpolate; static under jit. "fourier" is exact for band-limited content and keeps white
        noise white; it takes a shift alone. 0 takes the nearest pixel, 1 interpolates linearly, which smooths
        noise by up to a factor 2 per axis in variance; a NaN spreads to its neighbours only. 3 is a cubic
        spline, between the two; a NaN spreads over the image.
    mode : {"nan", "wrap", "constant", "nearest", "reflect", "mirror"}
        What lies outside the frame: "nan", nothing that is known, so that a pixel between positions of which
        one lies outside is NaN; the others by scipy's names: "wrap" repeats the image with the period of its
        shape (scipy's "grid-wrap"), "constant" is zero, interpolated towards with order 1 (scipy's
        "grid-constant"); static under jit. "fourier" takes "nan", with a pixel that is not finite unknown
        like those outside, and "wrap", with one that is zero and rings at the frame's edge if opposite sides
        differ; 3 takes all but "mirror".
    shape : tuple of int, optional
        Shape of the reference, where it is another than the image's; not for "wrap"; static under jit.

    Returns
    -------
    Array
        The image on the reference's grid.

    Raises
    ------
    ValueError, TypeError
        For a shift of another length than the image's axes, or a whole result instead of its shift; for
        unknown options, complex images.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.arange(1.0, 7.0)
    >>> print(np.round(np.asarray(align(np.roll(scene, 2), [2.0])), 3))
    [ 1.  2.  3.  4. nan nan]
    """
    image = array_of(image, "image")
    if isinstance(shift, tuple(MOTIONS.values())):
        motion = check_motion(shift, image.ndim, "shift", image.dtype)  # type: ignore[arg-type]
    else:
        motion = Shift(per_axis(plain_shift(shift), "shift", image.ndim, image.dtype))
    order, mode = check_order(order, mode, type(motion))
    frame = image.shape if shape is None else sizes(shape, "shape", image.ndim)
    if frame != image.shape and mode == "wrap":
        raise ValueError(f"mode='wrap' keeps the shape of image, {image.shape}, and takes no other, {frame}")
    if order != "fourier":
        return _interpolate(image, motion, frame, int(order), mode)
    if mode == "wrap":
        return shiftnd(image, -motion.shift)
    return undo_shift(image, motion.shift, frame)


def check_order(order: str | int, mode: str, kind: type[Motion] = Shift) -> tuple[str | int, str]:
    """How to interpolate and what lies outside the frame, if that fits a kind of motion."""
    order, mode = choice(order, "order", ORDERS), choice(mode, "mode", MODES)
    if order == "fourier":
        if mode not in ("nan", "wrap"):
            raise ValueError(f"order='fourier' takes mode='nan' or 'wrap', not {mode!r}")
        if kind is not Shift:
            raise ValueError(f"order='fourier' undoes a shift alone, not {kind.__name__}; take order=3")
    if order == 3 and mode == "mirror":
        raise ValueError("order=3 takes any mode but 'mirror'")
    return order, mode


@partial(jax.jit, static_argnames=("shape", "periodic"))
def undo_shift(image: Array, shift: Array, shape: Shape, periodic: bool = False) -> Array:
    """Undo a shift by Fourier interpolation, NaN where the image has nothing to say.

    Periodic images have the shape of their reference.
    """
    sides = [(0, max(0, n - m)) for m, n in zip(image.shape, shape, strict=True)]
    wide = jnp.pad(image, sides, constant_values=jnp.nan)
    aligned = align_frame(wide, shift, jnp.ones_like(image, shape=()), "fourier", periodic).image
    return aligned[tuple(slice(n) for n in shape)]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _interpolate(image: Array, motion: Motion, shape: Shape, order: int, mode: str) -> Array:
    positions = targets(motion, shape)
    continued = "nearest" if mode == "nan" else mode
    if order == 3:
        values = interpolant(image, order, continued)(positions)
    else:
        values = map_coordinates(image, list(positions), order, mode=continued)
    if mode != "nan":
        return values
    sizes = zip(positions, image.shape, strict=True)
    # Order 0 has pixels of a width, the others points between which they interpolate.
    inside = [(p > -0.5) & (p < n - 0.5) if order == 0 else (p >= 0) & (p <= n - 1) for p, n in sizes]
    return jnp.where(reduce(jnp.logical_and, inside), values, jnp.nan)
