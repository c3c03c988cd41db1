"""Undo a shift or another motion: bring an image back onto its reference."""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from .checks import array_of, choice, per_axis, sizes
from .coadd import INTERPOLATIONS, align_frame
from .engine.choices import Boundary, as_boundary
from .engine.spectrum import Shape
from .motion import MOTIONS, Motion, Shift, check_motion, plain_shift, targets
from .sampling import interpolant

ORDERS = {"cubic": 3, "linear": 1, "nearest": 0}


def align(
    image: ArrayLike,
    shift: ArrayLike | Motion,
    *,
    interpolation: str = "fourier",
    boundary: str | Boundary = "overlap",
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
    interpolation : {"fourier", "cubic", "linear", "nearest"}
        Static under jit. "fourier" is exact for band-limited content and keeps white noise white; it takes a
        shift alone. "linear" smooths noise by up to a factor 2 per axis in variance, "cubic", a B-spline, is
        between the two, and "nearest" takes the nearest pixel; see the table of `align_stack`.
    boundary : str or Boundary
        What the image is outside its frame, as for `register`; static under jit. "overlap": unknown, and so
        is a pixel that is not finite; a new pixel between positions of which one is unknown is NaN. "wrap":
        periodic, the rest the same. "constant" (zero, or the ``value`` of a `Boundary`), "reflect" and
        "nearest" say what lies outside; they need "cubic", "linear" or "nearest" as interpolation. With them
        every pixel that is interpolated from a NaN is NaN: with "cubic" that is the whole image.
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
    interpolation, boundary = choice(interpolation, "interpolation", INTERPOLATIONS), as_boundary(boundary)
    frame = image.shape if shape is None else sizes(shape, "shape", image.ndim)
    periodic = boundary.periodic
    if periodic and frame != image.shape:
        raise ValueError(
            f"boundary='wrap' keeps the shape of image, {image.shape}, and takes no other, {frame}"
        )
    if isinstance(motion, Shift) and (periodic or boundary.overlap):
        return _undo_shift(image, motion.shift, frame, interpolation, periodic)
    if interpolation == "fourier":
        if not isinstance(motion, Shift):
            kind = type(motion).__name__
            raise ValueError(f"interpolation='fourier' undoes a shift alone, not {kind}; take 'cubic'")
        raise ValueError(
            f"interpolation='fourier' takes boundary='overlap' or 'wrap', not {boundary.name!r}; take 'cubic'"
        )
    return _interpolate(image, motion, frame, ORDERS[interpolation], boundary)


@partial(jax.jit, static_argnames=("shape", "interpolation", "periodic"))
def _undo_shift(image: Array, shift: Array, shape: Shape, interpolation: str, periodic: bool) -> Array:
    """By the filters of `align_stack`."""
    sides = [(0, max(0, n - m)) for m, n in zip(image.shape, shape, strict=True)]
    wide = jnp.pad(image, sides, constant_values=jnp.nan)
    aligned = align_frame(wide, shift, jnp.ones_like(image, shape=()), interpolation, periodic).image
    return aligned[tuple(slice(n) for n in shape)]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _interpolate(image: Array, motion: Motion, shape: Shape, order: int, boundary: Boundary) -> Array:
    positions = targets(motion, shape)
    # What is unknown is masked below; till then the outermost pixels stand for it.
    mode = "nearest" if boundary.overlap else boundary.name
    if order == 3:
        values = interpolant(image, order, mode, boundary.value)(positions)
    else:
        values = map_coordinates(image, list(positions), order, mode=mode, cval=boundary.value)
    if not boundary.overlap:
        return values
    axes = zip(positions, image.shape, strict=True)
    # Order 0 has pixels of a width, the others points between which they interpolate.
    inside = [(p > -0.5) & (p < n - 0.5) if order == 0 else (p >= 0) & (p <= n - 1) for p, n in axes]
    return jnp.where(reduce(jnp.logical_and, inside), values, jnp.nan)
