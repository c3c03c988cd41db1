"""From images with bad pixels and edges to arrays without: weights, on the periodic grid of the boundary.

A boundary that says what the reference is outside its frame is a matter of padding. Where pixels of the
reference are *unknown* (masked, not finite, or outside the frame for "overlap"), which image pixels count
depends on the shift. Two steps settle that:

1. For every whole shift the correlation over the pixels known in both images. From the shift with the best
   score, see `overlap`, χ² leads downhill to the origin of the second step; a first guess is that itself.
2. The reference is continued smoothly where it is unknown (`fill_smoothly`), the flanks of a peak that a mask
   hides counting as unknown too (`without_peaks`), and the image is moved upon it. Image pixels that
   fall on an unknown one, or lie within `MARGIN` of an edge or a patch of them, get weight zero; all others
   are given the variance of what the continuation cannot know and the interpolant carries to them
   (`unknown_variance`). From there on χ² is that of fixed weights: smooth, exact, differentiable.

The continuation is that of the reference alone, the same for all images of a stack (`stays`). Only a
reference larger than the image is cut to what the image sees of it, and so continued for each.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import ceil, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.fft import next_fast_len

from . import overlap
from .choices import Plan
from .continuation import MARGIN, eroded, in_patches, unknown_variance, without_peaks
from .noise import smoothed, smoothing_gain
from .overlap import Correlation, Frames, WholeReference, correlate, lowest_step
from .pair import Pair
from .passes import any_in_batch, count, every, extremes, mean_over, some, sum_all
from .polynomial import Polynomials, flattened, orthonormal, pixel_coordinates
from .searchgrid import SearchGrid, search_shape
from .spectrum import Shape, along, half_weights

GUARD = 8
"""Pixels around the image's frame where the reference fades out, so that opposite edges do not touch."""
MODES = {"constant": "constant", "reflect": "symmetric", "nearest": "edge"}
"""What boundaries are called by ``jnp.pad``, whose "reflect" is another."""


def is_valid_error(err: Array) -> Array:
    """Whether an error is a positive finite number."""
    return jnp.isfinite(err) & (err > 0)


class Prepared(NamedTuple):
    """A pair of finite values in their own frames, with weights and known pixels beside them."""

    reference: Array
    image: Array
    weights: Array
    """Of the image's pixels, zero where one says nothing."""
    known: Array
    """Whether a pixel of the reference has a value."""
    variance: Array | None
    """Noise variance of the reference, a scalar or one per pixel; None where it has no noise."""
    unit: Array
    """The images have been divided by this and ``weights`` are relative to its inverse square."""
    pedestal: Array
    """What was subtracted from both images before."""
    flat: Array
    """Whether either image is constant to rounding, all of it or along an axis where the shift is free."""

    @property
    def frames(self) -> Frames:
        """What the frames are compared by."""
        return Frames(self.reference, self.known, self.image, self.weights)


class Spread(NamedTuple):
    """How the values of a frame differ."""

    energy: Array
    """``Σ w (x − x̄)²``."""
    number: Array
    """Values with a weight."""


class Filled(NamedTuple):
    """A reference on a periodic grid, continued where it is unknown."""

    reference: Array
    known: Array
    """Whether a pixel has a value of its own."""
    counts: Array
    """Whether it may be compared: known, and not beside a patch of unknown ones."""
    missing: Array | None
    """Variance of what the continuation cannot know; None where the reference's noise is given."""
    variance: Array | None
    """Of the noise, as in `Prepared`."""
    corner: Array
    """Where on the grid the first pixel of the reference lies, shape ``(D,)``."""


class Layout(NamedTuple):
    """A pair on the periodic grid that its χ² is a Fourier series on."""

    reference: Array
    image: Array
    corner: Array
    """Where on the grid the first pixel of the image lies, shape ``(D,)``."""
    weights: Array
    variance: Array | None
    known: Array
    """Whether a pixel of the reference has a value, or was filled in."""
    grid: SearchGrid
    """What guides the search: the score of `overlap`, infinite where too little overlaps and outside the
    window. At its origin the images lie upon each other: shifts of the series are counted from there."""
    frames: tuple[Spread, Spread]
    """Reference and image as they were before pixels were left out; zeros where the grid is not settled."""
    common: tuple[Spread, Spread]
    """The same over the pixels that count at this origin."""
    noise_share: Array
    """Ratio of the variance as given to the one used, which has the error of the continuation; zero where
    nothing counts."""


def prepare(pair: Pair, plan: Plan) -> Prepared:
    """Turn bad pixels into weights, for any error map; take a common pedestal and unit out."""
    unit = least_error(pair.err, jnp.isfinite(pair.image))
    return with_image(prepare_reference(pair, plan, unit), pair, plan)


def least_error(err: Array, counted: Array) -> Array:
    """Least error of the pixels that count; one if there is none."""
    least = extremes(jnp.where(counted & is_valid_error(err), err, jnp.inf))[1]
    return jnp.where(jnp.isfinite(least), least, 1.0)


def prepare_reference(pair: Pair, plan: Plan, unit: Array) -> Prepared:
    """`prepare` without the image, all of whose pixels have no weight yet."""
    reference, known, variance = pair.reference, jnp.isfinite(pair.reference), None
    if pair.reference_err is not None:
        good = jnp.isfinite(pair.reference_err) & (pair.reference_err >= 0)
        known &= good
        variance = jnp.where(good, pair.reference_err / unit, 0.0) ** 2
    # Where something is known outside, the edges of the frame show the shift of a plane too.
    flat = is_flat(reference, known, plan if plan.boundary.overlap else replace(plan, degree=-1))
    reference = jnp.where(known, reference, 0.0)
    if plan.gain and not plan.background:
        pedestal = jnp.zeros_like(unit)
    elif plan.boundary.constant:
        pedestal = jnp.full_like(unit, plan.boundary.value)
    else:
        pedestal = lax.stop_gradient(mean_over(reference, known))
        pedestal = jnp.where(jnp.isfinite(pedestal), pedestal, 0.0)
    reference = jnp.where(known, (reference - pedestal) / unit, 0.0)
    nothing = jnp.zeros_like(pair.image)
    return Prepared(reference, nothing, nothing, known, variance, unit, pedestal, flat)


def with_image(prepared: Prepared, pair: Pair, plan: Plan) -> Prepared:
    """A prepared reference with the image of the pair."""
    image, unit = pair.image, prepared.unit
    valid = jnp.isfinite(image) & is_valid_error(pair.err)
    err = jnp.where(valid, pair.err, 1.0)
    # A reference of which nothing is known says nothing about any pixel.
    weights = jnp.where(valid & some(prepared.known), (unit / err) ** 2, 0.0)
    flat = prepared.flat | is_flat(image, valid, plan)
    image = jnp.where(valid, (jnp.where(valid, image, 0.0) - prepared.pedestal) / unit, 0.0)
    return prepared._replace(image=image, weights=weights, flat=flat)


def is_flat(image: Array, valid: Array, plan: Plan) -> Array:
    """Whether valid pixels are equal to rounding, all of them or those of every line along a free axis.

    Less a background, where that is more than a constant.
    """
    seen = jnp.where(valid, image, jnp.nan)
    free = np.flatnonzero(plan.free).tolist()
    lines = [extremes(seen, (axis,)) for axis in free]
    highest, lowest = extremes(lines[0][0])[0], extremes(lines[0][1])[1]
    rounding = 8 * jnp.finfo(image.dtype).eps * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))
    flat = highest - lowest <= rounding
    if plan.degree > 0:
        left = extremes(jnp.where(valid, trendless(jnp.where(valid, image, 0.0), valid, plan), jnp.nan))
        flat |= left[0] - left[1] <= 16 * rounding
    if plan.boundary.constant:
        # A given value outside makes a step at the frame's edge, and a step shows the shift.
        return flat
    # Along a flat line χ² has a minimum where the weights end, which says nothing about the shift.
    for axis, (largest, smallest) in zip(free, lines, strict=True):
        # A line of one valid pixel is equal to itself.
        ones = jnp.ones_like(image, shape=(image.shape[axis],))
        number = jnp.tensordot(valid.astype(image.dtype), ones, ((axis,), (0,)))
        flat |= some(number > 1) & every(largest - smallest <= rounding)
    return flat


def lay_out(
    prepared: Prepared,
    pair: Pair,
    plan: Plan,
    filled: Filled | None = None,
    whole: WholeReference | None = None,
) -> Layout:
    """Put a prepared pair on the grid of its boundary; see the module's text for unknown pixels.

    The reference by `fill` and `whole_reference` are what may have been done before.
    """
    if plan.boundary.overlap:
        return _settled(prepared, pair, plan, filled, whole)
    if not plan.boundary.periodic:
        prepared = _extend(prepared, plan)
    return lax.cond(
        any_in_batch(~every(prepared.known)),
        lambda p: _settled(p, pair, plan),
        partial(as_it_is, pair=pair, plan=plan),
        prepared,
    )


def as_it_is(prepared: Prepared, pair: Pair, plan: Plan) -> Layout:
    """The layout of a periodic pair whose reference is known everywhere."""
    nothing, none = jnp.zeros_like(prepared.reference), Spread(*[jnp.zeros_like(prepared.unit)] * 2)
    correlation = Correlation(
        coefficient=nothing,
        number=nothing,
        variance=nothing,
        rounding=jnp.ones_like(prepared.unit),
        independent=jnp.ones_like(prepared.unit),
    )
    zero = jnp.zeros_like(prepared.unit, shape=(nothing.ndim,), dtype=jnp.int32)
    return Layout(
        prepared.reference,
        prepared.image,
        corner=zero,
        weights=prepared.weights,
        variance=prepared.variance,
        known=prepared.known,
        grid=SearchGrid(
            values=nothing,
            origin=zero,
            settled=jnp.zeros_like(prepared.flat),
            correlation=correlation,
            constraints=pair.constraints,
            plan=plan,
        ),
        frames=(none, none),
        common=(none, none),
        noise_share=(prepared.weights > 0).astype(nothing.dtype),
    )


def _extend(prepared: Prepared, plan: Plan) -> Prepared:
    """Continue the reference over twice its frame, half on either side; the image has no weight there."""
    boundary, mode = plan.boundary, MODES[plan.boundary.name]
    sides = [(n // 2, n - n // 2) for n in prepared.reference.shape]
    if plan.limited and mode == "edge":
        # Of the others two frames are a period: a constant, or a frame and its mirror image.
        windows = zip(sides, plan.window, strict=True)
        sides = [(max(left, ceil(high)), max(right, ceil(-low))) for (left, right), (low, high) in windows]

    def around(x: Array, outside: Array | float) -> Array:
        options = {"constant_values": outside} if mode == "constant" else {}
        return jnp.roll(jnp.pad(x, sides, mode=mode, **options), [-left for left, _ in sides], range(x.ndim))

    def beside(x: Array) -> Array:
        return jnp.pad(x, [(0, left + right) for left, right in sides])

    variance = prepared.variance
    return prepared._replace(
        reference=around(prepared.reference, (boundary.value - prepared.pedestal) / prepared.unit),
        known=around(prepared.known.astype(jnp.int8), 1) > 0,
        variance=variance if variance is None or not variance.ndim else around(variance, 0.0),
        image=beside(prepared.image),
        weights=beside(prepared.weights),
    )


def odd_fast_len(length: int) -> int:
    """The next odd length with small factors: without a Nyquist term, whose convention is not symmetric."""
    length |= 1
    while next_fast_len(length) != length:
        length += 2
    return length


def guarded(frame: Shape, periodic: bool) -> tuple[Shape, int]:
    """Shape of a grid that holds a frame, and the pixels before that: a guard unless it is periodic."""
    if periodic:
        return frame, 0
    return tuple(odd_fast_len(n + 2 * GUARD) for n in frame), GUARD


def _ranked(prepared: Prepared, pair: Pair, plan: Plan, whole: WholeReference | None) -> SearchGrid:
    """Whole shifts by what they explain of the pixels that both frames know, and the best of them."""
    shape = search_shape(prepared.reference.shape, prepared.image.shape, plan)
    searched, independent = _without_noise(without_trend(prepared, plan), shape)
    window = plan.whole_window if plan.boundary.overlap else None
    correlation = correlate(searched.frames, shape, pair.err.ndim == 0, window, whole)
    correlation = correlation._replace(independent=independent)
    enough = correlation.number >= _least_overlap(prepared, plan)
    grid = SearchGrid(
        values=jnp.where(enough, overlap.score(correlation), jnp.inf),
        origin=jnp.zeros_like(prepared.unit, shape=(len(shape),), dtype=jnp.int32),
        settled=jnp.ones_like(prepared.flat),
        correlation=correlation,
        constraints=pair.constraints,
        plan=plan,
    )
    grid = replace(grid, values=grid.in_window(grid.values))
    return replace(grid, origin=_origin(grid, searched))


def without_trend(prepared: Prepared, plan: Plan) -> Prepared:
    """A pair less the background that fits each frame best, which would mislead what ranks whole shifts."""
    if plan.degree < 1:
        return prepared
    reference = trendless(prepared.reference, prepared.known, plan)
    return prepared._replace(
        reference=reference, image=trendless(prepared.image, prepared.weights > 0, plan, prepared.weights)
    )


def trendless(x: Array, valid: Array, plan: Plan, weights: Array | None = None) -> Array:
    """A frame less the background that fits it best, zero where it is not valid; for a search."""
    if plan.degree < 1:
        return x
    x, weights = lax.stop_gradient((x, valid.astype(x.dtype) if weights is None else weights))
    return jnp.where(valid, flattened(x, weights, plan.degree), 0.0)


def polynomials_on(
    weights: Array, corner: Array, centre: Array | np.ndarray | float, plan: Plan
) -> Polynomials:
    """What a background is made of, for an image on a grid; coordinates are counted from ``centre``."""
    places = pixel_coordinates(weights.shape, corner, not plan.boundary.overlap, weights.dtype)
    centre = jnp.broadcast_to(jnp.asarray(centre, weights.dtype), (weights.ndim,))
    return orthonormal(weights, plan.degree, [x - c for x, c in zip(places, centre, strict=True)])


def stays(reference: Shape, image: Shape) -> bool:
    """Whether a reference of this shape is continued in its own frame, for any image of the other."""
    return prod(reference) <= prod(image)


def fill(prepared: Prepared, plan: Plan, origin: Array | None = None) -> Filled:
    """Continue the reference of a pair where it is unknown; of the image only the shape counts.

    ``origin`` is needed where the reference does not stay: what an image sees of it at that shift.
    """
    frame, periodic = prepared.reference.shape, not plan.boundary.overlap
    if origin is not None:
        frame = prepared.image.shape
    grid, guard = guarded(frame, periodic)
    corner = jnp.full(len(grid), guard, jnp.int32)
    if origin is not None:
        corner = corner + origin
    here = partial(moved_to, shift=corner, frame=grid, periodic=periodic)
    # Behind a barrier, or XLA would move the array anew for every use of it.
    unknown = jnp.where(prepared.known, prepared.reference, jnp.nan)
    moved = lax.optimization_barrier(here(unknown, outside=jnp.nan))
    known = jnp.isfinite(moved)
    framed = here(jnp.ones_like(prepared.reference), outside=0.0) > 0
    reference, known = without_peaks(jnp.where(known, moved, 0.0), known, framed)
    variance, missing = prepared.variance, None
    if variance is None:
        missing = unknown_variance(reference, known)
    elif variance.ndim:
        variance = here(variance, outside=0.0)
    counts = known & eroded(~in_patches(known), margins(frame))
    return Filled(reference, known, counts, missing, variance, corner)


def _settled(
    prepared: Prepared,
    pair: Pair,
    plan: Plan,
    filled: Filled | None = None,
    whole: WholeReference | None = None,
) -> Layout:
    """A pair whose reference is not known everywhere, with the weights of its best whole shift."""
    grid = _ranked(prepared, pair, plan, whole)
    if filled is None:
        resting = stays(prepared.reference.shape, prepared.image.shape)
        filled = fill(prepared, plan, None if resting else grid.origin)
    reference, corner = filled.reference, filled.corner - grid.origin
    here = partial(
        moved_to, shift=corner, frame=reference.shape, periodic=not plan.boundary.overlap, outside=0.0
    )
    given = jnp.where(filled.counts, here(prepared.weights), 0.0)
    counted = given > 0
    weights, image = given, jnp.where(counted, here(prepared.image), 0.0)
    if filled.missing is not None:
        weights = with_variance(given, filled.missing * brightness(reference, image, given, corner, plan))
    share = jnp.where(counted, weights / jnp.where(counted, given, 1.0), 0.0)
    level = without_trend(prepared, plan)
    seen = image if level is prepared else jnp.where(counted, here(level.image), 0.0)
    return Layout(
        reference=reference,
        image=image,
        corner=corner,
        weights=weights,
        variance=filled.variance,
        known=filled.known,
        grid=grid,
        frames=(spread_of(prepared.reference, prepared.known), spread_of(level.image, prepared.weights)),
        common=(spread_of(reference, counted), spread_of(seen, given)),
        noise_share=share,
    )


def _without_noise(prepared: Prepared, shape: Shape) -> tuple[Prepared, Array]:
    """A pair of noisy frames behind a filter, to be searched, and the share of independent pixels.

    Noise correlates with noise at every shift of detail that the scene has not.
    """
    variance = prepared.variance
    if variance is None:
        return prepared, jnp.ones_like(prepared.unit)
    prepared, variance = lax.stop_gradient((prepared, variance))
    images, counted = [prepared.reference, prepared.image], [prepared.known, prepared.weights > 0]
    of_image = 1 / jnp.where(counted[1], prepared.weights, 1.0)
    variances = [mean_over(x, valid) for x, valid in zip((variance, of_image), counted, strict=True)]
    gain = smoothing_gain(images, counted, variances, shape)
    reference, image = (smoothed(x, y, gain, shape) for x, y in zip(images, counted, strict=True))
    twice = along(jnp.asarray(half_weights(shape[-1]), gain.dtype), gain.ndim - 1, gain.ndim)
    passed = sum_all(gain**2 * twice) ** 2 / sum_all(gain**4 * twice) / prod(shape)
    return prepared._replace(reference=reference, image=image), passed


def moved_to(x: Array, shift: Array, frame: Shape, periodic: bool, outside: float) -> Array:
    """Pixels of an array moved by whole pixels, in a frame that begins at zero."""
    for axis, (n, length) in enumerate(zip(x.shape, frame, strict=True)):
        index = jnp.arange(length, dtype=jnp.int32) - shift[axis]
        if periodic:
            index %= n
        x = jnp.take(
            x, jnp.where((index >= 0) & (index < n), index, n), axis, mode="fill", fill_value=outside
        )
    return x


def _origin(grid: SearchGrid, prepared: Prepared) -> Array:
    """Whole shift at which χ² has its minimum next to that with the best score, or that which is given.

    The score knows no brightness and no background. Where these are held χ² knows more: the level of a smooth
    scene alone may tell its shift.
    """
    grid, prepared = lax.stop_gradient((grid, prepared))
    plan, constraints, ndim = grid.plan, grid.constraints, len(grid.shape)
    if constraints.initial is not None:
        return grid.start().whole
    steps = np.indices((3,) * ndim).reshape(ndim, -1).T - 1
    reference = jnp.where(prepared.known, prepared.reference, jnp.nan)
    around = tuple(n + 2 for n in prepared.image.shape)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, _, count = state
        places = at[None, :] + steps
        offered = jnp.isfinite(grid.values[tuple(grid.index_of(places).T)])
        extra = jnp.zeros_like(prepared.unit, shape=(len(steps),))
        if constraints.prior is not None:
            at_places = jax.vmap(constraints.prior.chi2)
            extra = at_places(list(places.astype(extra.dtype).T[..., None])).reshape(-1)
        moved = moved_to(reference, at + 1, around, not plan.boundary.overlap, outside=jnp.nan)
        best = lowest_step(
            moved, prepared.frames, gain=plan.gain, degree=plan.degree, offered=offered, extra=extra
        )
        change = jnp.asarray(steps, at.dtype)[best]
        return at + change, jnp.any(change != 0), count + 1

    start = grid.shift_at(grid.with_prior().best())
    state = start, jnp.ones_like(prepared.flat), jnp.zeros_like(start, shape=())
    return lax.while_loop(lambda s: s[1] & (s[2] < max(grid.shape)), step, state)[0]


def spread_of(values: Array, weights: Array) -> Spread:
    """How the values of a frame differ, and how many there are."""
    weights = weights.astype(values.dtype)
    mass = sum_all(weights)
    mean = sum_all(weights * values) / jnp.where(mass > 0, mass, 1.0)
    return Spread(sum_all(weights * (values - mean) ** 2), count(weights > 0).astype(values.dtype))


def _least_overlap(prepared: Prepared, plan: Plan) -> Array:
    """Pixels that have to overlap, of the frame with fewer valid ones."""
    assert plan.boundary.min_overlap is not None
    counted = jnp.minimum(count(prepared.known), count(prepared.weights > 0))
    return jnp.maximum(plan.boundary.min_overlap * counted.astype(prepared.weights.dtype), 1.0)


def with_variance(weights: Array, variance: Array) -> Array:
    """Weights of pixels that have more variance than the inverse of these."""
    counted = weights > 0
    return jnp.where(counted, 1 / (1 / jnp.where(counted, weights, 1.0) + variance), 0.0)


def brightness(reference: Array, image: Array, weights: Array, corner: Array, plan: Plan) -> Array:
    """Square of the gain, roughly: the power of the image without its noise over that of the reference."""
    if not plan.gain:
        return jnp.ones_like(weights, shape=())

    background = polynomials_on(weights, corner, 0.0, plan)

    def power(x: Array) -> Array:
        return sum_all(weights * background.rest(x, weights) ** 2)

    here, there = power(image) - count(weights > 0).astype(weights.dtype), power(reference)
    return jnp.maximum(here, 0.0) / jnp.where(there > 0, there, 1.0)


def margins(frame: Shape) -> tuple[int, ...]:
    """`MARGIN` along each axis, less where it would leave nothing."""
    return tuple(MARGIN if n > 2 * MARGIN else 1 for n in frame)
