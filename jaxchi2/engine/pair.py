"""What a registration is given: two images with their errors and masks, checked.

Everything that is wrong about shapes or dtypes raises here. Masks and weights are turned into NaN and errors
at once, so that further on a pixel is left out for one reason only: it is not finite.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ..arrays import unit_of
from ..checks import as_real_array, boolean_array, is_traced, numbers
from .choices import Choices, Plan
from .constraints import ANYWHERE, Constraints, Search, check_search
from .counts import Camera, Counts, as_counts, check_counts
from .spectrum import Shape

SMALLEST_PADDED, LARGEST_PADDED = 16, 2**16
"""Least length of an axis, and most pixels, of frames that are made larger; see `larger_frames`."""


class Pair(NamedTuple):
    """Checked inputs: floating point of one dtype, bad and masked pixels NaN."""

    reference: Array
    image: Array
    err: Array
    reference_err: Array | None = None
    constraints: Constraints = Constraints()
    """What is known about the shift beforehand."""
    frame: Array | None = None
    """Shape of the image before its frame was made larger; None where it is as it was."""
    counts: Camera | None = None
    """How the image counts, where ``err`` is to follow from that; until then it is one."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.image.ndim

    @property
    def uniform(self) -> bool:
        """Whether one error holds for all pixels of an image."""
        return self.err.ndim == 0 and (self.reference_err is None or self.reference_err.ndim == 0)

    @property
    def traced(self) -> bool:
        """Whether the values are unknown now, because they are traced."""
        return is_traced(self)

    @property
    def addressable(self) -> bool:
        """Whether this process has all of every array."""
        return all(x.is_fully_addressable for x in jax.tree.leaves(self))


def check_images(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None,
    *,
    unlike: bool = False,
    names: tuple[str, str] = ("reference", "image"),
) -> Pair:
    """Convert and check a pair of images; ``unlike`` says whether their shapes may differ."""
    first, second = names
    unit = unit_of(reference, image)
    reference, image = as_real_array(reference, first, unit), as_real_array(image, second, unit)
    for name, shape in ((first, reference.shape), (second, image.shape)):
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"{name} must have 1, 2 or 3 axes, not {len(shape)}")
        if min(shape) < 2:
            raise ValueError(f"{name} must have two or more pixels on every axis, not shape {shape}")
    if unlike and reference.ndim != image.ndim:
        raise ValueError(f"{second} must have as many axes as {first}, {reference.ndim}, not {image.ndim}")
    if not unlike and reference.shape != image.shape:
        raise ValueError(
            f"{second} must have the shape of {first}, {reference.shape}, not {image.shape}, "
            "unless the boundary is 'overlap'"
        )
    err = _per_pixel(1.0 if err is None else err, image.shape, "err", unit)
    dtype = jnp.result_type(reference, image)
    return Pair(reference.astype(dtype), image.astype(dtype), err.astype(dtype))


def check_pair(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None,
    *,
    unlike: bool = False,
    weights: ArrayLike | None = None,
    reference_err: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
) -> Pair:
    """`check_images` with everything that `register` takes for the pixels."""
    unit = unit_of(reference, image)
    if weights is not None:
        if err is not None:
            raise ValueError("give err or weights, not both: weights are 1 / err²")
        image = as_real_array(image, "image", unit)
        weights = _per_pixel(weights, image.shape, "weights", None if unit is None else unit**-2)
        err = 1 / jnp.sqrt(jnp.where(weights > 0, weights, 0.0))
    pair = check_images(reference, image, err, unlike=unlike)
    if reference_err is not None:
        if err is None:
            raise ValueError("reference_err needs err or weights: how noise is shared must be known")
        reference_err = _per_pixel(reference_err, pair.reference.shape, "reference_err", unit)
        reference_err = _with_nan(reference_err < 0, reference_err.astype(pair.image.dtype))
    return pair._replace(
        reference=_masked(pair.reference, reference_mask, "reference_mask"),
        image=_masked(pair.image, mask, "mask"),
        reference_err=reference_err,
    )


def _per_pixel(x: ArrayLike, shape: Shape, name: str, unit: Any) -> Array:
    words = f"be a scalar or have the shape of its image, {shape}"
    return numbers(x, name, ((), shape), words, unit=unit)


def _masked(image: Array, mask: ArrayLike | None, name: str) -> Array:
    if mask is None:
        return image
    words = f"the shape of its image, {image.shape}"
    return _with_nan(boolean_array(mask, name, (image.shape,), words), image)


def _with_nan(bad: Array, values: Array) -> Array:
    """The values, NaN where they are bad, which is no mistake that ``jax.debug_nans`` is to find."""
    with jax.debug_nans(False):
        return jnp.where(bad, jnp.nan, values)


def check(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | Counts | str | None,
    choices: Choices,
    *,
    search: Search = ANYWHERE,
    reference_err: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    compact: bool = False,
    padded: bool = False,
    counting: bool = False,
) -> tuple[Pair, Plan]:
    """Check all that `register` is given: the pair, and the plan for its shapes.

    ``compact`` as for `Choices.plan`; ``padded`` says that the pair may come back in `larger_frames`;
    ``counting`` that errors may be those of counts.
    """
    overlapping = choices.boundary.overlap
    counts = as_counts(err) if counting else None
    pair = check_pair(
        reference,
        image,
        1.0 if counts is not None else err,  # type: ignore[arg-type]
        unlike=overlapping,
        weights=weights,
        reference_err=reference_err,
        mask=mask,
        reference_mask=reference_mask,
    )
    if counts is not None:
        unit = unit_of(reference, image)
        pair = pair._replace(counts=check_counts(counts, pair.image.shape, pair.image.dtype, unit))
    constraints, free = check_search(search, pair.ndim, pair.image.dtype)
    if overlapping and search.initial is not None and choices.max_shift is None:
        # A first guess may be further off than where a search without one would look.
        choices = replace(choices, max_shift=(inf,))
    pair = pair._replace(constraints=constraints)
    if search.prior is not None and err is None and weights is None:
        raise ValueError("prior needs err or weights: without them χ² has no scale to weigh it by")
    checked = partial(choices.plan, free=free, compact=compact)
    plan = checked(pair.reference.shape, pair.image.shape)
    if not padded or not overlapping or pair.traced or not pair.addressable:
        return pair, plan
    shape = larger_frames(pair.reference.shape, pair.image.shape)
    if shape is None:
        return pair, plan
    window = jnp.asarray(np.array(plan.window), pair.image.dtype)
    constraints = constraints._replace(window=window)
    frame = jnp.asarray(np.array(pair.image.shape), pair.image.dtype)
    return _in_frames(pair, shape)._replace(constraints=constraints, frame=frame), checked(shape, shape)


def larger_frames(reference: Shape, image: Shape) -> Shape | None:
    """One of few shapes that holds both frames, if these are small and alike.

    A power of two along every axis, or 3/2 of one; the same for all if none is more than twice another. A
    program for every shape would take seconds to compile, and takes milliseconds to run.
    """
    if reference != image or min(image) < SMALLEST_PADDED:
        return None
    lengths = [
        next(m for k in range(n.bit_length() + 1) for m in (2**k, 3 * 2**k // 2) if m >= n) for n in image
    ]
    if max(lengths) <= 2 * min(lengths) and max(lengths) ** len(lengths) <= LARGEST_PADDED:
        return (max(lengths),) * len(lengths)
    return tuple(lengths) if prod(lengths) <= LARGEST_PADDED else None


def _in_frames(pair: Pair, shape: Shape) -> Pair:
    """The pair with unknown pixels behind its own along every axis."""

    def beside(x: Array) -> Array:
        if not x.ndim:
            return x
        # Not by JAX, which would compile a program for every shape.
        larger = np.full(shape, np.nan, x.dtype)
        larger[tuple(slice(0, n) for n in x.shape)] = x
        alone = x.committed and len(x.sharding.device_set) == 1
        return jax.device_put(larger, x.sharding if alone else None)

    noise = None if pair.reference_err is None else beside(pair.reference_err)
    with jax.debug_nans(False):
        return pair._replace(
            reference=beside(pair.reference),
            image=beside(pair.image),
            err=beside(pair.err),
            reference_err=noise,
            counts=jax.tree.map(beside, pair.counts),
        )
