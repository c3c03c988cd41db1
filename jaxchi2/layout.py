"""From images with bad pixels and edges to arrays without: weights, on the periodic grid of the boundary.

A boundary that says what the reference is outside its frame is a matter of padding. Where pixels of the
reference are *unknown* (masked, not finite, or outside the frame for "overlap"), which image pixels count
depends on the shift. Two steps settle that:

1. For every whole shift the correlation over the pixels known in both images; the shift with the best score,
   see `overlap`, is the origin of the second step.
2. The reference, moved there, is continued smoothly where it is unknown (`fill_smoothly`), the flanks of a
   peak that a mask hides counting as unknown too (`without_peaks`). Image pixels that
   fall on an unknown one, or lie within `MARGIN` of an edge or a patch of them, get weight zero; all others
   are given the variance of what the continuation cannot know and the interpolant carries to them
   (`unknown_variance`). From there on χ² is that of fixed weights: smooth, exact, differentiable.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import product
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.fft import next_fast_len

from . import overlap
from .noise import smoothed, smoothing_gain
from .overlap import Correlation, Frames, correlate, lowest_step
from .pair import Boundary, Model, Pair
from .passes import (
    any_in_batch,
    block_sums,
    count,
    every,
    extremes,
    mean_over,
    neighbours,
    some,
    sum_all,
    wrapped,
)
from .spectrum import Shape, along, half_weights, harmonics, scaled

MARGIN = 2
"""Pixels around patches of unknown ones that do not count: there the reference is extrapolated, while a hole
of one pixel is interpolated. Also how far a shift may stray from the whole shift its weights belong to."""
PEAK = 15.0
"""Errors by which the continuation in a mask must rise above all around it to be a hidden peak."""
GUARD = 8
"""Pixels around the image's frame where the reference fades out, so that its edges do not meet."""
PLATE_STEPS = 12
"""Conjugate-gradient steps of the continuation. What matters is next to known pixels and settles first: on
crops of smooth scenes four steps leave 1.5 to 3 times the error of any number, twelve 1.1 to 1.5 times."""
BLOCK = 4
"""Pixels along each axis of the blocks whose differences tell how large those of the scene are."""
DETAIL, RIM_SLOPE, HOLE_SLOPE = 4.6, 0.2, 0.005
"""Variance of the error of an unknown pixel, as far as it rings, in units of the mean square of fourth
differences nearby, and of first differences: at the rim of a patch, and in a hole. Both kinds have gain one
at the Nyquist frequency. Measured on 64² crops and with 10 % of holes: the first holds to 20 % for scenes of
amplitude k⁰ to k⁻², the others within a factor of three for what is smoother."""


def is_valid_error(err: Array) -> Array:
    """Whether an error is a positive finite number whose square is one too."""
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


class Layout(NamedTuple):
    """A pair on the periodic grid that its χ² is a Fourier series on."""

    reference: Array
    image: Array
    weights: Array
    variance: Array | None
    known: Array
    """Whether a pixel of the reference has a value, or was filled in."""
    origin: Array
    """Whole shift at which the reference has been put: that of the series is counted from here."""
    settled: Array
    """Whether the weights belong to this origin alone, so that ``score`` must guide the search."""
    score: Array
    """What the search minimises over whole shifts: that of `overlap`, infinite where too little overlaps and
    outside the window."""
    correlation: Correlation
    """What the score is made of."""
    frames: tuple[Spread, Spread]
    """Reference and image as they were before pixels were left out."""
    common: tuple[Spread, Spread]
    """The same over the pixels that count at this origin."""
    noise_share: Array
    """Mean share of the errors as given in the variance of the pixels that count."""


def prepare(pair: Pair, model: Model) -> Prepared:
    """Turn bad pixels into weights, for any error map; take a common pedestal and unit out."""
    reference, image, err = pair.reference, pair.image, pair.err
    known = jnp.isfinite(reference)
    valid = jnp.isfinite(image) & is_valid_error(err)
    err = jnp.where(valid, err, 1.0)
    unit = extremes(jnp.where(valid, err, jnp.inf))[1]
    unit = jnp.where(jnp.isfinite(unit), unit, 1.0)
    variance = None
    if pair.reference_err is not None:
        good = jnp.isfinite(pair.reference_err) & (pair.reference_err >= 0)
        known &= good
        variance = jnp.where(good, pair.reference_err / unit, 0.0) ** 2
    # A reference of which nothing is known says nothing about any pixel.
    weights = jnp.where(valid & some(known), (unit / err) ** 2, 0.0)
    flat = is_flat(reference, known, model) | is_flat(image, valid, model)
    reference = jnp.where(known, reference, 0.0)
    if model.gain and not model.background:
        pedestal = jnp.zeros_like(unit)
    elif model.boundary.name in ("fill", "constant"):
        pedestal = jnp.full_like(unit, model.boundary.value)
    else:
        pedestal = lax.stop_gradient(mean_over(reference, known))
        pedestal = jnp.where(jnp.isfinite(pedestal), pedestal, 0.0)
    reference = jnp.where(known, (reference - pedestal) / unit, 0.0)
    image = jnp.where(valid, (jnp.where(valid, image, 0.0) - pedestal) / unit, 0.0)
    return Prepared(reference, image, weights, known, variance, unit, pedestal, flat)


def is_flat(image: Array, valid: Array, model: Model) -> Array:
    """Whether valid pixels are equal to rounding, all of them or those of every line along a free axis."""
    seen = jnp.where(valid, image, jnp.nan)
    highest, lowest = extremes(seen)
    rounding = 8 * jnp.finfo(image.dtype).eps * jnp.maximum(jnp.abs(highest), jnp.abs(lowest))
    flat = highest - lowest <= rounding
    if model.boundary.name in ("fill", "constant"):
        # An outside of a given value is seen.
        return flat
    # Weights that end at an edge give χ² a minimum even so.
    for axis in np.flatnonzero(model.free).tolist():
        largest, smallest = extremes(seen, (axis,))
        # Lines of one valid pixel each say nothing about it.
        ones = jnp.ones_like(image, shape=(image.shape[axis],))
        number = jnp.tensordot(valid.astype(image.dtype), ones, ((axis,), (0,)))
        flat |= some(number > 1) & every(largest - smallest <= rounding)
    return flat


def lay_out(prepared: Prepared, pair: Pair, model: Model) -> Layout:
    """Put a prepared pair on the grid of its boundary; see the module's text for unknown pixels."""
    name = model.boundary.name
    if name == "overlap":
        return _settle(prepared, pair, model)
    if name != "wrap":
        prepared = _extend(prepared, model.boundary)
    return lax.cond(
        any_in_batch(~every(prepared.known)),
        lambda p: _settle(p, pair, model),
        as_it_is,
        prepared,
    )


def as_it_is(prepared: Prepared) -> Layout:
    """The layout of a periodic pair whose reference is known everywhere."""
    ndim = prepared.image.ndim
    frames = spread_of(prepared.reference, prepared.known), spread_of(prepared.image, prepared.weights)
    return Layout(
        prepared.reference,
        prepared.image,
        prepared.weights,
        prepared.variance,
        known=prepared.known,
        origin=jnp.zeros_like(prepared.unit, shape=(ndim,), dtype=jnp.int32),
        settled=jnp.zeros_like(prepared.flat),
        score=jnp.zeros_like(prepared.reference),
        correlation=Correlation(
            coefficient=jnp.zeros_like(prepared.reference),
            number=jnp.zeros_like(prepared.reference),
            rounding=jnp.ones_like(prepared.unit),
            independent=jnp.ones_like(prepared.unit),
        ),
        frames=frames,
        common=frames,
        noise_share=jnp.ones_like(prepared.unit),
    )


def _extend(prepared: Prepared, boundary: Boundary) -> Prepared:
    """Continue the reference over twice its frame, half on either side; the image has no weight there."""
    shape = prepared.reference.shape
    modes = {"fill": "constant", "constant": "constant", "reflect": "symmetric", "nearest": "edge"}
    mode = modes[boundary.name]
    sides = [(n // 2, n - n // 2) for n in shape]

    def around(x: Array, outside: Array | float) -> Array:
        options = {"constant_values": outside} if mode == "constant" else {}
        return jnp.roll(jnp.pad(x, sides, mode=mode, **options), [-left for left, _ in sides], range(x.ndim))

    def beside(x: Array) -> Array:
        return jnp.pad(x, [(0, n) for n in shape])

    variance = prepared.variance
    return prepared._replace(
        reference=around(prepared.reference, (boundary.value - prepared.pedestal) / prepared.unit),
        known=around(prepared.known.astype(jnp.int8), 1) > 0,
        variance=variance if variance is None or not variance.ndim else around(variance, 0.0),
        image=beside(prepared.image),
        weights=beside(prepared.weights),
    )


def search_shape(reference: Shape, image: Shape, model: Model) -> Shape:
    """Periodic grid on which no shift of the window makes the frames meet around the edge."""
    if model.boundary.name != "overlap":
        return reference
    pairs = zip(reference, image, model.whole_window, strict=True)
    return tuple(next_fast_len(max(m + high, n - low), real=True) for m, n, (low, high) in pairs)


def odd_fast_len(length: int) -> int:
    """The next odd length with small factors: without a Nyquist term, whose convention is not symmetric."""
    length |= 1
    while next_fast_len(length) != length:
        length += 2
    return length


def grid_shifts(length: int, window: tuple[float, float], over: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Shift of each sample of a search grid in units of 1/``over`` pixel, and whether it is in the window."""
    low, high = int(np.ceil(window[0] * over)), int(np.floor(window[1] * over))
    if high - low >= length:
        low, high = -(length // 2), (length - 1) // 2
    index = np.arange(length)
    shift = np.where(index <= high, index, index - length)
    return shift, (low <= shift) & (shift <= high)


def inside_window(axis: int, length: int, over: int, pair: Pair, model: Model) -> Array:
    """Which samples of a search grid are in the window along an axis."""
    shift, inside = grid_shifts(length, model.window[axis], over)
    if pair.window is None:
        return jnp.asarray(inside)
    low, high = pair.window[axis] * over
    return inside & (shift >= low) & (shift <= high)


def in_window(grid: Array, over: int, pair: Pair, model: Model) -> Array:
    """A search grid with infinities where the minimum may not be."""
    for axis, length in enumerate(grid.shape):
        inside = inside_window(axis, length, over, pair, model)
        if pair.held is not None and not model.free[axis]:
            inside = grid_shifts(length, model.window[axis], over)[0] == jnp.round(pair.held[axis]) * over
        grid = jnp.where(along(inside, axis, grid.ndim), grid, jnp.inf)
    return grid


def shift_at(index: Array, shape: Shape, over: int, model: Model) -> Array:
    """Shift of samples of a search grid in units of 1/``over`` pixel, int32; the axes are last in both."""
    vectors = [grid_shifts(n, w, over)[0] for n, w in zip(shape, model.window, strict=True)]
    return jnp.stack([jnp.asarray(v, jnp.int32)[index[..., a]] for a, v in enumerate(vectors)], axis=-1)


def started(shift: Array, pair: Pair, model: Model) -> Array:
    """A shift with the held axes where they are held."""
    return shift if pair.held is None else jnp.where(np.array(model.free), shift, pair.held)


def prior_chi2(prior: tuple[Array, Array], shifts: list[Array]) -> Array:
    """``(s − μ)ᵀ P (s − μ)`` on the grid spanned by one vector of shifts per axis."""
    ndim = len(shifts)
    mean, precision = prior
    offset = [along(s - mean[a], a, ndim) for a, s in enumerate(shifts)]
    pairs = [precision[a, b] * offset[a] * offset[b] for a in range(ndim) for b in range(ndim)]
    return reduce(jnp.add, pairs)


def with_prior(grid: Array, over: int, pair: Pair, model: Model) -> Array:
    """A search grid with the χ² of the prior added."""
    if pair.prior is None:
        return grid
    shifts = [grid_shifts(n, w, over)[0] / over for n, w in zip(grid.shape, model.window, strict=True)]
    return grid + prior_chi2(pair.prior, [jnp.asarray(s, grid.dtype) for s in shifts])


def _settle(prepared: Prepared, pair: Pair, model: Model) -> Layout:
    frame = prepared.image.shape
    shape = search_shape(prepared.reference.shape, frame, model)
    searched, independent = _without_noise(prepared, shape)
    overlapping = model.boundary.name == "overlap"
    correlation = correlate(
        searched.frames, shape, pair.err.ndim == 0, model.whole_window if overlapping else None
    )
    correlation = correlation._replace(independent=independent)
    enough = correlation.number >= _least_overlap(prepared, model)
    score = in_window(jnp.where(enough, overlap.score(correlation), jnp.inf), 1, pair, model)
    if pair.initial is not None:
        origin = jnp.round(lax.stop_gradient(started(pair.initial, pair, model))).astype(jnp.int32)
    else:
        start = shift_at(grid_minimum(with_prior(score, 1, pair, model)), score.shape, 1, model)
        origin = _downhill(start, searched, score, pair, model)

    guard = GUARD if overlapping else 0
    local = tuple(odd_fast_len(n + 2 * guard) for n in frame) if overlapping else frame
    here = partial(moved_to, shift=origin + guard, frame=local, periodic=not overlapping)

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(guard, m - n - guard) for m, n in zip(local, frame, strict=True)])

    # Behind a barrier, or what depends on a pixel would move it anew.
    unknown = jnp.where(prepared.known, prepared.reference, jnp.nan)
    moved = lax.optimization_barrier(here(unknown, outside=jnp.nan))
    known = jnp.isfinite(moved)
    variance = prepared.variance
    framed = here(jnp.ones_like(prepared.reference), outside=0.0) > 0
    reference, known = without_peaks(jnp.where(known, moved, 0.0), known, framed)
    inner = eroded(~in_patches(known), margins(frame))
    given = jnp.where(known & inner, padded(prepared.weights), 0.0)
    counted = given > 0
    weights, image = given, jnp.where(counted, padded(prepared.image), 0.0)
    if variance is None:
        missing = unknown_variance(reference, known)
        weights = with_variance(given, missing * brightness(reference, image, given, model))
    elif variance.ndim:
        variance = here(variance, outside=0.0)
    share = jnp.where(counted, weights / jnp.where(counted, given, 1.0), 0.0)
    return Layout(
        reference=reference,
        image=image,
        weights=weights,
        variance=variance,
        known=known,
        origin=origin,
        settled=jnp.ones_like(prepared.flat),
        score=score,
        correlation=correlation,
        frames=(spread_of(prepared.reference, prepared.known), spread_of(prepared.image, prepared.weights)),
        common=(spread_of(reference, counted), spread_of(image, given)),
        noise_share=mean_over(share, counted),
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
    """Pixels of a reference moved by whole pixels, in a frame that begins at zero."""
    for axis, (n, length) in enumerate(zip(x.shape, frame, strict=True)):
        index = jnp.arange(length, dtype=jnp.int32) - shift[axis]
        if periodic:
            index %= n
        x = jnp.take(
            x, jnp.where((index >= 0) & (index < n), index, n), axis, mode="fill", fill_value=outside
        )
    return x


def _downhill(start: Array, prepared: Prepared, score: Array, pair: Pair, model: Model) -> Array:
    """Whole shift at which χ² has its minimum next to that with the best score.

    The score knows no brightness and no background. Where these are held χ² knows more: the level of a smooth
    scene alone may tell its shift.
    """
    prepared, score, pair = lax.stop_gradient((prepared, score, pair))
    shape, ndim = score.shape, score.ndim
    steps = np.indices((3,) * ndim).reshape(ndim, -1).T - 1
    reference = jnp.where(prepared.known, prepared.reference, jnp.nan)
    around = tuple(n + 2 for n in prepared.image.shape)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        at, _, count = state
        places = at[None, :] + steps
        offered = jnp.isfinite(score[tuple((places % np.array(shape)[None, :]).T)])
        extra = jnp.zeros_like(prepared.unit, shape=(len(steps),))
        if pair.prior is not None:
            at_places = jax.vmap(partial(prior_chi2, pair.prior))
            extra = at_places(list(places.astype(extra.dtype).T[..., None])).reshape(-1)
        moved = moved_to(reference, at + 1, around, model.boundary.name != "overlap", outside=jnp.nan)
        best = lowest_step(
            moved, prepared.frames, gain=model.gain, background=model.background, offered=offered, extra=extra
        )
        change = jnp.asarray(steps, at.dtype)[best]
        return at + change, jnp.any(change != 0), count + 1

    state = start, jnp.ones_like(prepared.flat), jnp.zeros_like(start, shape=())
    return lax.while_loop(lambda s: s[1] & (s[2] < max(shape)), step, state)[0]


def spread_of(values: Array, weights: Array) -> Spread:
    """How the values of a frame differ, and how many there are."""
    weights = weights.astype(values.dtype)
    mass = sum_all(weights)
    mean = sum_all(weights * values) / jnp.where(mass > 0, mass, 1.0)
    return Spread(sum_all(weights * (values - mean) ** 2), count(weights > 0).astype(values.dtype))


def _least_overlap(prepared: Prepared, model: Model) -> Array:
    """Pixels that have to overlap, of the frame with fewer valid ones."""
    assert model.boundary.min_overlap is not None
    counted = jnp.minimum(count(prepared.known), count(prepared.weights > 0))
    return jnp.maximum(model.boundary.min_overlap * counted.astype(prepared.weights.dtype), 1.0)


def with_variance(weights: Array, variance: Array) -> Array:
    """Weights of pixels that have more variance than the inverse of these."""
    counted = weights > 0
    return jnp.where(counted, 1 / (1 / jnp.where(counted, weights, 1.0) + variance), 0.0)


def brightness(reference: Array, image: Array, weights: Array, model: Model) -> Array:
    """Square of the gain, roughly: the power of the image without its noise over that of the reference."""
    if not model.gain:
        return jnp.ones_like(weights, shape=())

    def power(x: Array) -> Array:
        if model.background:
            x = x - sum_all(weights * x) / jnp.maximum(sum_all(weights), jnp.finfo(x.dtype).tiny)
        return sum_all(weights * x**2)

    here, there = power(image) - count(weights > 0).astype(weights.dtype), power(reference)
    return jnp.maximum(here, 0.0) / jnp.where(there > 0, there, 1.0)


def without_peaks(reference: Array, known: Array, framed: Array) -> tuple[Array, Array]:
    """A reference continued without the flanks of peaks that are hidden by a mask, and what is known then.

    A saturated star is steepest where its mask ends: no continuation from there is near enough to what is
    hidden. Without its flanks the whole star is missing, which is smooth, as all that passed the same optics.
    """

    def bare(filled: Array, known: Array) -> tuple[Array, Array]:
        peaks = framed & ~known & (rise(filled, known) > PEAK)
        return known & eroded(~peaks, MARGIN), some(peaks)

    def fill(state: tuple, first: Array) -> tuple:
        _, known, _ = state
        filled = fill_smoothly(jnp.where(known, reference, 0.0), known)
        hidden = first & some(framed & ~known)
        none = jnp.zeros_like(hidden)
        known, again = lax.cond(any_in_batch(hidden), bare, lambda _, known: (known, none), filled, known)
        return filled, known, again

    def step(state: tuple, first: Array) -> tuple[tuple, None]:
        wanted = any_in_batch(first | state[2])
        return lax.cond(wanted, fill, lambda state, _: state, state, first), None

    # One program for the first time and the second.
    state = reference, known, jnp.zeros_like(known, shape=())
    filled, known, _ = lax.scan(step, state, jnp.asarray([True, False]))[0]
    return filled, known


def in_patches(known: Array) -> Array:
    """Unknown pixels that fill a block of two along every axis: edges and patches, not holes or lines."""
    block = ~known
    for axis in range(known.ndim):
        block = reduce(jnp.logical_and, neighbours(block, 0, 1, axis))
    for axis in range(known.ndim):
        block = reduce(jnp.logical_or, neighbours(block, -1, 0, axis))
    return block


def margins(frame: Shape) -> tuple[int, ...]:
    """`MARGIN` along each axis, less where it would leave nothing."""
    return tuple(MARGIN if n > 2 * MARGIN else 1 for n in frame)


def eroded(known: Array, margin: int | tuple[int, ...], outside: str = "wrap") -> Array:
    """Whether all pixels within ``margin`` along every axis are known; ``outside`` as in ``jnp.pad``.

    With "constant" nothing is known there.
    """
    sizes = (margin,) * known.ndim if isinstance(margin, int) else margin
    for axis, size in enumerate(sizes):
        known = reduce(jnp.logical_and, neighbours(known, -size, size, axis, outside))
    return known


def fill_smoothly(reference: Array, known: Array) -> Array:
    """Continue an array into its unknown pixels with the least curvature, ``Σ (∇² M)²``, near known ones.

    A jump or a kink anywhere would ring through the whole frame. From `average_nearby` on, conjugate
    gradients work on the thin plate through the known pixels, for so many steps that value and slope are
    those next to them; farther off the average stays, and the sides of the periodic grid blend.
    """
    unknown = ~known
    filled = jnp.where(known, reference, average_nearby(reference, known))

    def curvature(x: Array) -> Array:
        return jnp.where(unknown, _thin_plate(x), 0.0)

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        x, residual, direction, size = state
        product = curvature(direction)
        # At the solution, where one of a few pixels is after a step, there is no direction.
        going = size > solved
        length = jnp.where(going, size / jnp.where(going, sum_all(direction * product), 1.0), 0.0)
        x, residual = x + length * direction, residual - length * product
        new = sum_all(residual**2)
        turn = jnp.where(going, new / jnp.where(going, size, 1.0), 0.0)
        return (x, residual, residual + turn * direction, new), None

    # In units of their size, whose squares cannot underflow.
    unit = extremes(jnp.abs(filled))[0]
    unit = jnp.where(unit > 0, unit, 1.0)
    start = filled / unit
    residual = -curvature(start)
    size = sum_all(residual**2)
    solved = lax.stop_gradient(jnp.finfo(size.dtype).eps ** 2 * size)
    state = start, residual, residual, size
    return jnp.where(known, reference, lax.scan(step, state, None, PLATE_STEPS)[0][0] * unit)


def _thin_plate(x: Array) -> Array:
    """``∇² ∇² x`` by differences, periodic."""
    units = np.eye(x.ndim, dtype=int)
    laplacian = [(0 * units[0], 2 * x.ndim), *((side * unit, -1) for unit in units for side in (1, -1))]
    weights: dict[tuple[int, ...], int] = {}
    for (first, one), (second, two) in product(laplacian, repeat=2):
        at = tuple((2 + first + second).tolist())
        weights[at] = weights.get(at, 0) + one * two
    around = wrapped(x, 2)

    def moved(at: tuple[int, ...]) -> Array:
        return around[tuple(slice(k, k + n) for k, n in zip(at, x.shape, strict=True))]

    return reduce(jnp.add, [weight * moved(at) for at, weight in weights.items()])


def average_nearby(values: Array, known: Array) -> Array:
    """An average of the known values around every pixel, with weights that fall as a power of distance.

    The kernel ``exp(−2π · 0.7 |k|)`` in frequency is the half-space Poisson kernel: the nearest pixels decide
    at an edge, and far from any the sides blend.
    """
    return _ratio(*_blurred(jnp.stack([jnp.where(known, values, 0.0), known.astype(values.dtype)])))


def _blurred(arrays: Array) -> Array:
    """Arrays with a leading axis, folded with the kernel of `average_nearby`."""
    _, *shape = arrays.shape
    ndim = len(shape)
    squares = [
        along(jnp.asarray((harmonics(n)[:m] / n) ** 2, arrays.dtype), a + 1, ndim + 1)
        for a, (n, m) in enumerate(zip(shape, [*shape[:-1], shape[-1] // 2 + 1], strict=True))
    ]
    smooth = jnp.exp(-2 * jnp.pi * 0.7 * jnp.sqrt(reduce(jnp.add, squares)))
    axes = tuple(range(1, ndim + 1))
    return jnp.fft.irfftn(scaled(jnp.fft.rfftn(arrays, axes=axes), smooth), shape, axes)


def _ratio(total: Array, share: Array) -> Array:
    """Averages from folded sums and counts, zero where no value is near."""
    reached = share > 10 * jnp.finfo(share.dtype).eps
    return jnp.where(reached, total / jnp.where(reached, share, 1.0), 0.0)


def unknown_variance(
    reference: Array,
    known: Array,
    ringing: Array | None = None,
    noise: Array | float = 0.0,
) -> Array:
    """Variance that unknown pixels, filled in, bring to the others when the reference moves by a fraction.

    The continuation is wrong by what the scene does there by chance, of which differences between known
    pixels nearby tell the size: detail adds up over all unknown pixels, a wrong slope only tells at the rim.
    The square of the interpolant's kernel, ``ringing`` in frequency, carries both over. ``noise`` is the
    variance of the white noise in the reference, whose differences say nothing about the scene.
    """
    ndim, zero = reference.ndim, jnp.zeros_like(reference)
    # Sums of squares over the axes: of details, of slopes, and of details with filled pixels in them.
    totals, counts = [zero, zero, zero], [zero, zero]
    values, there = wrapped(reference, 2), wrapped(known, 2)
    for axis in range(ndim):

        def line(array: Array, axis: int = axis) -> list[Array]:
            """The array at two pixels before to two behind along the axis."""
            places = [[2 + k * (a == axis) for a in range(ndim)] for k in range(-2, 3)]
            return [
                array[tuple(slice(k, k + n) for k, n in zip(at, reference.shape, strict=True))]
                for at in places
            ]

        x, here = line(values), line(there)
        fourth = ((x[0] + x[4] - 4 * (x[1] + x[3]) + 6 * x[2]) / 16) ** 2
        whole = reduce(jnp.logical_and, here)
        totals[0], totals[2] = totals[0] + jnp.where(whole, fourth, 0.0), totals[2] + fourth
        counts[0] = counts[0] + whole
        # Half of a difference belongs to either pixel, so that no direction is another.
        for k in (1, 2):
            pair = here[k] & here[k + 1]
            totals[1] = totals[1] + jnp.where(pair, ((x[k + 1] - x[k]) / 2) ** 2, 0.0)
            counts[1] = counts[1] + pair
    blocks = jnp.stack([block_sums(x, BLOCK) for x in (*totals, *counts, jnp.full_like(zero, ndim))])
    folded = _blurred(blocks)
    means = _ratio(folded[:3], folded[3:])
    for axis, n in enumerate(reference.shape, 1):
        means = jnp.take(means, np.arange(n) // BLOCK, axis, mode="clip")
    # Where a peak is hidden, its flanks have less detail than what has been put in its place.
    detail = jnp.maximum(jnp.maximum(means[0], means[2]) - 70 / 256 * noise, 0.0)
    slope = jnp.maximum(means[1] - 1 / 2 * noise, 0.0)
    patches = in_patches(known)
    rim = patches & ~eroded(~known, 1)
    source = DETAIL * detail + jnp.where(patches, jnp.where(rim, RIM_SLOPE, 0.0), HOLE_SLOPE) * slope
    source = jnp.fft.rfftn(jnp.where(known, 0.0, source))
    if ringing is None:
        ringing = reduce(jnp.multiply, _kernel_power(reference))
    return jnp.maximum(jnp.fft.irfftn(scaled(source, ringing), reference.shape), 0.0)


def rise(filled: Array, known: Array) -> Array:
    """How far values lie outside the range of the known pixels within `MARGIN` of them."""
    highest, lowest = jnp.where(known, filled, -jnp.inf), jnp.where(known, filled, jnp.inf)
    for axis in range(filled.ndim):
        highest = reduce(jnp.maximum, neighbours(highest, -MARGIN, MARGIN, axis))
        lowest = reduce(jnp.minimum, neighbours(lowest, -MARGIN, MARGIN, axis))
    seen = jnp.isfinite(highest)
    above = jnp.maximum(filled - jnp.where(seen, highest, 0.0), jnp.where(seen, lowest, 0.0) - filled)
    return jnp.where(seen, jnp.maximum(above, 0.0), 0.0)


def _kernel_power(like: Array) -> list[Array]:
    """Transform of the interpolant's squared kernel along every axis, on average up to half a pixel."""
    vectors = []
    for axis, n in enumerate(like.shape):
        phases = np.exp(-2j * np.pi * np.outer(np.linspace(-0.5, 0.5, 65), np.fft.fftfreq(n)))
        power = np.mean(np.fft.ifft(phases).real ** 2, axis=0)
        spectrum = np.fft.fft(power).real[: n // 2 + 1 if axis == like.ndim - 1 else n]
        vectors.append(along(jnp.asarray(spectrum, like.dtype), axis, like.ndim))
    return vectors


def grid_minimum(values: Array) -> Array:
    """Index of the smallest element, shape ``(ndim,)``; one vectorised pass, unlike ``argmin``."""
    rows = values.reshape(-1, values.shape[-1])
    column = jnp.argmin(jnp.min(rows, axis=0))
    row = jnp.argmin(rows[:, column])
    return jnp.stack([*jnp.unravel_index(row, values.shape[:-1]), column]).astype(jnp.int32)
