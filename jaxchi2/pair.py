"""What a registration is given: two images, their errors and masks, and the choices of model and search.

Everything that is wrong about shapes, dtypes or options raises here. Masks and weights are turned into
NaN and errors at once, so that further on a pixel is left out for one reason only: it is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log2
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from .arrays import unit_of
from .fourier import as_real_array
from .spectrum import Shape

SMALL_OVERLAP = 0.02
"""Least overlap where ``max_shift`` is given: enough pixels to tell chance from a match."""
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
    0.25, or `SMALL_OVERLAP` where ``max_shift`` says how far to look."""

    def __post_init__(self) -> None:
        if self.name not in BOUNDARIES:
            raise ValueError(f"boundary must be one of {BOUNDARIES}, not {self.name!r}")
        if not np.isfinite(self.value):
            raise ValueError(f"value of a boundary must be finite, not {self.value!r}")
        if self.min_overlap is not None and not 0 < self.min_overlap <= 1:
            raise ValueError(f"min_overlap must lie in (0, 1], not {self.min_overlap!r}")


@partial(jax.tree_util.register_dataclass, data_fields=["initial", "prior", "fixed"], meta_fields=[])
@dataclass(frozen=True)
class Search:
    """What is known about the shift beforehand, other than its largest size."""

    initial: ArrayLike | None = None
    """Shift to start from, shape ``(D,)``: the nearest minimum is found instead of the deepest."""
    prior: tuple[ArrayLike, ArrayLike] | None = None
    """Mean, shape ``(D,)``, and covariance, shape ``(D, D)``, of a Gaussian prior of the shift, whose χ² is
    added to that of the images."""
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
        return any(isinstance(x, Tracer) for x in jax.tree.leaves(self))


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
    if unlike and reference.ndim != image.ndim:
        raise ValueError(f"{second} must have as many axes as {first}, {reference.ndim}, not {image.ndim}")
    if not unlike and reference.shape != image.shape:
        raise ValueError(
            f"{second} must have the shape of {first}, {reference.shape}, not {image.shape}, "
            "unless the boundary is 'overlap'"
        )
    if not 1 <= image.ndim <= 3:
        raise ValueError(f"{first} and {second} must have 1, 2 or 3 axes, not {image.ndim}")
    for name, shape in ((first, reference.shape), (second, image.shape)):
        if min(shape) < 2:
            raise ValueError(f"{name} must have two or more pixels on every axis, not shape {shape}")
    err = _error(1.0 if err is None else err, image.shape, "err", unit)
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
        weights = as_real_array(weights, "weights", None if unit is None else unit**-2)
        err = 1 / jnp.sqrt(jnp.where(weights > 0, weights, 0.0))
    pair = check_images(reference, image, err, unlike=unlike)
    if reference_err is not None:
        if err is None:
            raise ValueError("reference_err needs err or weights: how noise is shared must be known")
        reference_err = _error(reference_err, pair.reference.shape, "reference_err", unit)
        reference_err = reference_err.astype(pair.image.dtype)
    return pair._replace(
        reference=_masked(pair.reference, reference_mask, "reference_mask"),
        image=_masked(pair.image, mask, "mask"),
        reference_err=reference_err,
    )


def _error(err: ArrayLike, shape: Shape, name: str, unit: Any) -> Array:
    array = as_real_array(err, name, unit)
    if array.shape not in ((), shape):
        raise ValueError(
            f"{name} must be a scalar or have the shape of its image, {shape}, not {array.shape}"
        )
    return array


def _masked(image: Array, mask: ArrayLike | None, name: str) -> Array:
    if mask is None:
        return image
    masked = mask if isinstance(mask, Array) else np.asarray(mask)
    if masked.dtype != bool:
        raise TypeError(f"{name} must be boolean, True where a pixel is to be ignored, not {masked.dtype}")
    if masked.shape != image.shape:
        raise ValueError(f"{name} must have the shape of its image, {image.shape}, not {masked.shape}")
    return jnp.where(jnp.asarray(masked), jnp.nan, image)


def as_boundary(boundary: str | Boundary) -> Boundary:
    """A name or a `Boundary` as the latter."""
    if isinstance(boundary, Boundary):
        return boundary
    if not isinstance(boundary, str):
        raise TypeError(f"boundary must be a name or a Boundary, not {boundary!r}")
    return Boundary(boundary)


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
    if (
        not isinstance(oversample, int | np.integer)
        or isinstance(oversample, bool)
        or oversample not in (1, 2)
    ):
        raise ValueError(f"oversample must be 1 or 2, not {oversample!r}")
    for name, flag in (("fit_gain", gain), ("fit_background", background)):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, not {flag!r}")
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
        boundary = replace(boundary, min_overlap=0.25 if limits is None else SMALL_OVERLAP)
    return Model(
        boundary=boundary,
        gain=bool(gain),
        background=bool(background),
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
    try:
        if any(isinstance(limit, bool | np.bool_) for limit in np.ravel(np.asarray(max_shift, object))):
            raise TypeError("a boolean is no length")
        limits = np.atleast_1d(np.asarray(max_shift, float))
    except (TypeError, ValueError) as error:
        raise TypeError(f"max_shift must be static real numbers, not {max_shift!r}") from error
    if limits.shape not in ((1,), (ndim,)):
        raise ValueError(f"max_shift must be a scalar or hold {ndim} values, not {max_shift!r}")
    if not np.all(limits > 0):
        raise ValueError(f"max_shift must be positive, not {max_shift!r}")
    return tuple(np.broadcast_to(limits, (ndim,)).tolist())


def _free(fixed: Sequence | None, ndim: int) -> tuple[bool, ...]:
    if fixed is None:
        return (True,) * ndim
    if not isinstance(fixed, list | tuple) or len(fixed) != ndim:
        raise ValueError(f"fixed must hold a shift or None for each of {ndim} axes, not {fixed!r}")
    free = tuple(value is None for value in fixed)
    if not any(free):
        raise ValueError(f"fixed must leave an axis to fit, not hold all {ndim}")
    return free


def _with_search(pair: Pair, search: Search) -> Pair:
    """Add what is known about the shift."""
    ndim, dtype = pair.ndim, pair.image.dtype
    if search.initial is not None:
        initial = jnp.asarray(search.initial, dtype)
        if initial.shape != (ndim,):
            raise ValueError(f"initial must hold one value per axis, shape ({ndim},), not {initial.shape}")
        pair = pair._replace(initial=initial)
    if search.fixed is not None:
        held = jnp.stack([jnp.asarray(0.0 if value is None else value, dtype) for value in search.fixed])
        if held.shape != (ndim,):
            raise ValueError("fixed must hold scalars")
        pair = pair._replace(held=held)
    if search.prior is not None:
        if not isinstance(search.prior, list | tuple) or len(search.prior) != 2:
            raise TypeError("prior must be a mean and a covariance")
        mean, covariance = (jnp.asarray(x, dtype) for x in search.prior)
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
) -> tuple[Pair, Model]:
    """Everything that `register` and `chi2_surface` are given, checked and sorted."""
    if not isinstance(search, Search):
        raise TypeError(f"search must be a Search, not {search!r}")
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
    model = check_model(
        pair.reference.shape,
        pair.image.shape,
        boundary,
        gain=fit_gain,
        background=fit_background,
        oversample=oversample,
        max_shift=max_shift,
        fixed=search.fixed,
        compact=compact,
    )
    return _with_search(pair, search), model
