"""Registration as a step of a program: images in, images on the reference's grid and their shifts out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from .align import align
from .arrays import unit_of
from .checks import array_of, as_real_array, choice, numbers, scalar
from .coadd import INTERPOLATIONS
from .engine.choices import Boundary, as_boundary, boundary_for_align
from .registration import register
from .results import Registration


def register_and_align(
    reference: ArrayLike,
    images: ArrayLike,
    err: ArrayLike | None = None,
    *,
    interpolation: str = "fourier",
    outside: str | Boundary | None = None,
    fill: float = float("nan"),
    **options: Any,
) -> tuple[Array, Registration]:
    """Register images to one reference and bring each back onto it: `register`, then `align`.

    Differentiable in all arrays, through the shifts too. An image that cannot be registered comes out as
    ``fill`` and has no part in any gradient; so does what lies outside an image.

    Parameters
    ----------
    reference : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        What the images are registered to.
    images : array_like, shape (..., ny, nx)
        One image or a batch with any number of leading axes; pixels that are not finite have weight zero.
    err : array_like, optional
        A scalar, one map for all images, or one map per image, of the shape of ``images``; see `register`.
    interpolation : {"fourier", "cubic", "linear", "nearest"}
        Of `align`; static under jit.
    outside : str or Boundary, optional
        The ``boundary`` of `align`, what an aligned image is outside its frame; static under jit. None:
        unknown, whatever `register` takes it for, or periodic where that is the boundary.
    fill : float
        Value of pixels for which there are no data, and of all in an image that has no shift; see its
        ``status``. With NaN, take ``jax.numpy.nanmean`` and the like behind it.
    **options
        Of `register`, the same for all images.

    Returns
    -------
    aligned : Array
        The images on the reference's grid, shape ``(..., ny, nx)`` with the sizes of the reference.
    registration : Registration
        With the leading axes of ``images`` in every field.

    Raises
    ------
    ValueError, TypeError
        For unfit shapes and options, as of `register` and `align`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> frames = np.stack([np.roll(scene, k, axis=1) for k in (1, 2, 3)])
    >>> frames += 0.1 * rng.normal(size=frames.shape)
    >>> aligned, found = register_and_align(scene, frames, 0.1, boundary="wrap")
    >>> print(np.round(found.dx), f"noise left: {np.std(aligned - scene[None]):.2f}")
    [1. 2. 3.] noise left: 0.10
    """
    unit = unit_of(reference, images)
    reference, images = (
        as_real_array(x, name, unit) for x, name in ((reference, "reference"), (images, "images"))
    )
    array_of(images, "images")
    err = None if err is None else as_real_array(err, "err", unit)
    interpolation = choice(interpolation, "interpolation", INTERPOLATIONS)
    if outside is None:
        outside = boundary_for_align(options.get("boundary", "overlap"))
    outside = as_boundary(outside, "outside")
    if not 1 <= reference.ndim <= 3:
        raise ValueError(f"reference must have 1, 2 or 3 axes, not {reference.ndim}")
    empty = scalar(fill, "fill", images.dtype)
    batch = images.ndim - reference.ndim
    if batch < 0:
        raise ValueError(
            f"images must have the {reference.ndim} axes of reference, and may have more before them, "
            f"not shape {images.shape}"
        )
    per_image = False
    if err is not None:
        one_image = images.shape[batch:]
        words = f"be a scalar, of the shape of an image, {one_image}, or of images, {images.shape}"
        err = numbers(err, "err", ((), one_image, images.shape), words)
        per_image = bool(batch) and err.shape == images.shape

    def one(image: Array, err: ArrayLike | None) -> tuple[Array, Registration]:
        found = register(reference, image, err, **options)
        known = jnp.all(jnp.isfinite(found.shift))
        # The shift of a failed image is kept from the interpolation, where NaN would enter all gradients.
        shift = jnp.where(known, found.shift, 0.0)
        aligned = align(image, shift, interpolation=interpolation, boundary=outside, shape=reference.shape)
        return jnp.where(known & ~jnp.isnan(aligned), aligned, empty), found

    function = one
    for _ in range(batch):
        function = jax.vmap(function, in_axes=(0, 0 if per_image else None))
    return function(images, err)
