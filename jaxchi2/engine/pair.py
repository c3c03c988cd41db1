"""What a registration is given: two images, their errors and masks, and the choices of model and search.

Everything that is wrong about shapes, dtypes or options raises here. Masks and weights are turned into
NaN and errors at once, so that further on a pixel is left out for one reason only: it is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log2, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ..arrays import unit_of
from ..checks import (
    as_real_array,
    boolean_array,
    choice,
    described,
    flag,
    integer,
    is_traced,
    numbers,
    per_axis,
    real_number,
    refuse,
    scalar,
)
from .spectrum import Shape

MIN_OVERLAP, SMALL_OVERLAP = 0.25, 0.02
"""Least overlap, and that where ``max_shift`` is given: enough pixels to tell chance from a match."""
SMALLEST_PADDED, LARGEST_PADDED = 16, 2**16
"""Least length of an axis, and most pixels, of frames that are made larger; see `larger_frames`."""
BOUNDARIES = ("wrap", "fill", "constant", "reflect", "nearest", "overlap")
Window = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Boundary:
    """What the reference is outside its frame, with what goes with it; static under jit.

    A plain name stands for ``Boundary(name)`` wherever one is asked for.
    """

    name: str
    """"wrap": periodic. "constant" or "fill": ``value``. "reflect" and "nearest": the frame's own pixels
    mirrored at its edge (d c b a | a b c d) or the outermost ones repeated. "overlap": unknown, so only the
    image pixels that fall on the reference count."""
    value: float = 0.0
    """Value outside the frame for "constant" and "fill", in the units of the images."""
    min_overlap: float | None = None
    """Least overlap for "overlap" and masks, as a fraction of the valid pixels of the image with fewer. None:
    `MIN_OVERLAP`, or `SMALL_OVERLAP` where ``max_shift`` says how far to look."""

    def __post_init__(self) -> None:
        choice(self.name, "name of a boundary", BOUNDARIES)
        value = real_number(self.value, "value", "a finite number")
        share = self.min_overlap
        if share is not None:
            share = real_number(share, "min_overlap", "a number in (0, 1]", lambda x: 0 < x <= 1)
        # Plain numbers, which hash; an array of one does not.
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "min_overlap", share)


@partial(jax.tree_util.register_dataclass, data_fields=["initial", "prior", "fixed"], meta_fields=[])
@dataclass(frozen=True)
class Search:
    """What is known about the shift beforehand, other than its largest size."""

    initial: ArrayLike | None = None
    """Shift to start from, shape ``(D,)``: the nearest minimum is found instead of the deepest."""
    prior: tuple[ArrayLike, ArrayLike] | None = None
    """Mean, shape ``(D,)``, and covariance, shape ``(D, D)``, of a Gaussian prior of the shift, whose χ² is
    added to that of the images. It needs their errors, which give χ² its scale."""
    fixed: tuple[ArrayLike | None, ...] | None = None
    """Per axis the shift it is held at, without an error, or None where it is fitted: ``(0.0, None)``. Which
    axes are held is static under jit, their shifts are not."""


ANYWHERE = Search()
"""Nothing is known beforehand."""


@dataclass(frozen=True)
class Model:
    """The static choices, checked."""

    boundary: Boundary
    gain: bool
    background: bool
    oversample: int
    window: Window
    """Lowest and highest shift along each axis that is looked at."""
    limited: bool
    """Whether the window was asked for, so that a minimum outside it is none."""
    free: tuple[bool, ...]
    """Whether the shift is fitted along each axis."""
    compact: bool = False
    """Whether the search grid may be the window alone where one χ² holds for all shifts."""

    @property
    def whole_window(self) -> tuple[tuple[int, int], ...]:
        """First and last whole shift inside the window."""
        return tuple((ceil(low), int(np.floor(high))) for low, high in self.window)


class Pair(NamedTuple):
    """Checked inputs: floating point of one dtype, bad and masked pixels NaN."""

    reference: Array
    image: Array
    err: Array
    reference_err: Array | None = None
    initial: Array | None = None
    prior: tuple[Array, Array] | None = None
    """Mean and inverse covariance."""
    held: Array | None = None
    """Shift of the axes that are held, shape ``(D,)``; of no meaning for the others."""
    window: Array | None = None
    """Lowest and highest shift along each axis, shape ``(D, 2)``; None: those of the model."""

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
        """Whether nothing can be asked about the values now."""
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


def as_boundary(boundary: str | Boundary) -> Boundary:
    """A name or a `Boundary` as the latter."""
    if isinstance(boundary, Boundary):
        return boundary
    if not isinstance(boundary, str):
        refuse("boundary", "a name or a Boundary", boundary, TypeError)
    return Boundary(choice(boundary, "boundary", BOUNDARIES))


def check_switches(gain: bool, background: bool, oversample: int) -> tuple[bool, bool, int]:
    """Check the choices that do not depend on shapes."""
    oversample = integer(oversample, "oversample", wanted="1 or 2")
    if oversample > 2:
        refuse("oversample", "1 or 2", oversample)
    return flag(gain, "fit_gain"), flag(background, "fit_background"), oversample


def check_model(
    reference_shape: Shape,
    shape: Shape,
    boundary: str | Boundary,
    *,
    gain: bool = False,
    background: bool = False,
    oversample: int = 1,
    max_shift: float | Sequence[float] | None = None,
    fixed: Sequence | None = None,
    compact: bool = False,
) -> Model:
    """Check the static choices for images of the given shapes.

    ``compact`` says that nobody will look at the search grid outside the window.
    """
    gain, background, oversample = check_switches(gain, background, oversample)
    ndim = len(shape)
    boundary = as_boundary(boundary)
    limits = check_max_shift(max_shift, ndim)
    if limits is not None:
        # Beyond these shifts the frames have no pixel in common, and there is nothing to look at.
        ends = [
            (m - 1, n - 1) if boundary.name == "overlap" else (n, n)
            for m, n in zip(reference_shape, shape, strict=True)
        ]
        window: Window = tuple(
            (-min(limit, low), min(limit, high)) for limit, (low, high) in zip(limits, ends, strict=True)
        )
    elif boundary.name == "wrap":
        window = tuple((-(n // 2), (n - 1) // 2) for n in shape)
    elif boundary.name == "overlap":
        # Half the smaller frame stays covered along each axis: for equal shapes half the frame.
        pairs = zip(reference_shape, shape, strict=True)
        window = tuple((min(m, n) / 2 - m, n - min(m, n) / 2) for m, n in pairs)
    else:
        window = tuple((-n / 2, n / 2) for n in shape)
    if boundary.min_overlap is None:
        boundary = replace(boundary, min_overlap=MIN_OVERLAP if limits is None else SMALL_OVERLAP)
    return Model(
        boundary=boundary,
        gain=gain,
        background=background,
        # Between whole shifts frames have no overlap of their own.
        oversample=1 if boundary.name == "overlap" else oversample,
        window=window,
        limited=limits is not None,
        free=_free(fixed, ndim),
        compact=compact
        and limits is not None
        and boundary.name == "wrap"
        and oversample == 1
        # Matrix products for so few shifts take less time than the inverse FFT, on two cores.
        and all(2 * limit + 3 <= min(n / 2, 8 * log2(n)) for limit, n in zip(limits, shape, strict=True)),
    )


def check_max_shift(max_shift: float | Sequence[float] | None, ndim: int) -> tuple[float, ...] | None:
    """One positive limit per axis, infinite for none, or None."""
    if max_shift is None:
        return None
    several = isinstance(max_shift, list | tuple) or getattr(max_shift, "ndim", 0) > 0
    given: list = list(max_shift) if several else [max_shift]  # type: ignore[arg-type]
    words = "static real numbers"
    limits = [real_number(limit, "max_shift", words, lambda _: True) for limit in given]
    if len(limits) not in (1, ndim):
        refuse("max_shift", f"a scalar or hold {ndim} values", max_shift)
    if not all(limit > 0 for limit in limits):
        refuse("max_shift", "positive", max_shift)
    return tuple(limits if len(limits) == ndim else limits * ndim)


def _free(fixed: Sequence | None, ndim: int) -> tuple[bool, ...]:
    if fixed is None:
        return (True,) * ndim
    if not isinstance(fixed, list | tuple) or len(fixed) != ndim:
        raise ValueError(f"fixed must hold a shift or None for each of {ndim} axes, not {described(fixed)}")
    free = tuple(value is None for value in fixed)
    if not any(free):
        raise ValueError(f"fixed must leave an axis to fit, not hold all {ndim}")
    return free


def _with_search(pair: Pair, search: Search) -> Pair:
    """Add what is known about the shift."""
    ndim, dtype = pair.ndim, pair.image.dtype
    if search.initial is not None:
        pair = pair._replace(initial=per_axis(search.initial, "initial", ndim, dtype))
    if search.fixed is not None:
        held = [scalar(0.0 if value is None else value, "fixed", dtype) for value in search.fixed]
        pair = pair._replace(held=jnp.stack(held))
    if search.prior is not None:
        if not isinstance(search.prior, list | tuple) or len(search.prior) != 2:
            refuse("prior", "a mean and a covariance", search.prior, TypeError)
        mean, covariance = (as_real_array(x, "prior").astype(dtype) for x in search.prior)
        if mean.shape != (ndim,) or covariance.shape != (ndim, ndim):
            raise ValueError(
                f"prior must have a mean of shape ({ndim},) and a covariance of shape ({ndim}, {ndim}), "
                f"not {mean.shape} and {covariance.shape}"
            )
        pair = pair._replace(prior=(mean, jnp.linalg.inv(covariance)))
    return pair


def check(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None,
    *,
    reference_err: ArrayLike | None,
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    reference_mask: ArrayLike | None,
    boundary: str | Boundary,
    fit_gain: bool,
    fit_background: bool,
    max_shift: float | Sequence[float] | None,
    search: Search,
    oversample: int,
    compact: bool = False,
    padded: bool = False,
) -> tuple[Pair, Model]:
    """Everything that `register` and `chi2_surface` are given, checked and sorted.

    ``padded`` says that the pair may come back in `larger_frames`.
    """
    if not isinstance(search, Search):
        refuse("search", "a Search", search, TypeError)
    if search.prior is not None and err is None and weights is None:
        raise ValueError("prior needs err or weights: without them χ² has no scale to weigh it by")
    boundary = as_boundary(boundary)
    pair = check_pair(
        reference,
        image,
        err,
        unlike=boundary.name == "overlap",
        weights=weights,
        reference_err=reference_err,
        mask=mask,
        reference_mask=reference_mask,
    )
    checked = partial(
        check_model,
        boundary=boundary,
        gain=fit_gain,
        background=fit_background,
        oversample=oversample,
        max_shift=max_shift,
        fixed=search.fixed,
        compact=compact,
    )
    model = checked(pair.reference.shape, pair.image.shape)
    pair = _with_search(pair, search)
    if not padded or boundary.name != "overlap" or pair.traced or not pair.addressable:
        return pair, model
    shape = larger_frames(pair.reference.shape, pair.image.shape)
    if shape is None:
        return pair, model
    window = jnp.asarray(np.array(model.window), pair.image.dtype)
    return _in_frames(pair, shape)._replace(window=window), checked(shape, shape)


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
        )
