"""Whether to believe a minimum: the next best one, the odds of chance, and the posterior of the shift."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .chance import Evidence
from .continuation import MARGIN
from .minimum import Candidates, Minimum, best_pixel, stationary
from .overlap import BESIDE, Correlation, log_left, score
from .passes import sum_all, wrapped
from .searchgrid import grid_minimum, grid_shifts, in_window, shift_at
from .spectrum import along, contract
from .terms import Chi2Terms, Matched

BETWEEN = 9
"""Places per pixel where it is."""
OPPOSITE = 50.0
"""Score by which an inverted image has to match better than the image itself."""


class Peaks(NamedTuple):
    """Separate minima of χ², the deepest first."""

    shift: Array
    """Their shifts in pixels, shape ``(n, D)``; NaN where there are fewer."""
    delta_chi2: Array
    """χ² above the deepest, shape ``(n,)``; infinite where there are fewer. Where each shift has pixels of
    its own, the difference of their scores, ``n ln(1 − r²)`` of n pixels that correlate by r: −2 times the
    logarithm of a likelihood ratio too."""


class RunnerUp(NamedTuple):
    """The next best separate minimum of χ²: the deepest on the search grid, then refined."""

    shift: Array
    """Its shift in pixels, shape ``(D,)``; NaN where there is none."""
    delta_chi2: Array
    """Its χ² above that of the best, in units of the noise; infinite where there is none."""
    probability: Array
    """Probability of the best of the two, the prior included: ``1 / (1 + exp(−Δχ²/2))``, Δχ² by the share of
    the residuals that are independent of each other."""


class Posterior(NamedTuple):
    """The probability of each shift of the search grid."""

    mean: Array
    """Shape ``(D,)``, in pixels."""
    covariance: Array
    """Shape ``(D, D)``."""
    probability: Array
    """On the grid of ``surface.map()``, sums to one."""


def separate_minima(terms: Chi2Terms, n: int) -> Candidates:
    """The n deepest local minima of the search grid besides the best, not yet refined.

    A sample is one if it lies below all its neighbours, diagonal ones too. Samples near the starting point of
    the search belong to it.
    """
    grid = lax.stop_gradient(terms.grid)
    ndim, over = grid.ndim, terms.oversample
    padded = wrapped(grid, 1)
    lowest = jnp.ones(grid.shape, bool)
    steps = list(np.ndindex((3,) * ndim))
    middle = len(steps) // 2
    for number, step in enumerate(steps):
        neighbour = padded[tuple(slice(k, k + m) for k, m in zip(step, grid.shape, strict=True))]
        if number != middle:
            # Of equal neighbours the first is the minimum.
            below = grid < neighbour if number < middle else grid <= neighbour
            lowest &= below & jnp.isfinite(neighbour)
    start_whole, start_fraction = best_pixel(terms)
    start = jnp.round((start_whole + start_fraction) * over).astype(jnp.int32)
    # What lies between the best score and where χ² led from there belongs to the start too.
    led = jnp.where(terms.settled, shift_at(_best_score(terms), grid.shape, over, terms.model), start)
    # A settled minimum may lie as far as `MARGIN` from the whole shift that it is looked for at.
    own = jnp.where(terms.settled, MARGIN, 1) * over
    near = jnp.ones((1,) * ndim, bool)
    for axis, length in enumerate(grid.shape):
        shift = jnp.asarray(grid_shifts(length, terms.model.window[axis], over)[0], jnp.int32)
        distance = shift - start[axis]
        if terms.period is not None:
            distance = (distance + length // 2) % length - length // 2
        near = near & along(jnp.abs(distance) <= own + jnp.abs(led - start)[axis], axis, ndim)
    values = jnp.where(lowest & ~near, in_window(grid, over, terms.pair, terms.model), jnp.inf)
    lowest_values, indices = smallest(values, n)
    picked = shift_at(indices, grid.shape, over, terms.model)
    whole = picked // over
    start, exist = (picked - whole * over).astype(grid.dtype) / over, jnp.isfinite(lowest_values)
    unknown = jnp.full_like(start, jnp.nan, shape=(n, ndim, ndim))
    return Candidates(whole, start, exist, start, unknown[:, 0, 0], unknown, jnp.zeros_like(exist))


def smallest(values: Array, n: int) -> tuple[Array, Array]:
    """The n smallest elements and their indices, shape ``(n, D)``; a sort takes longer than one minimum."""
    if n > 1:
        found, indices = lax.top_k(-values.reshape(-1), n)
        return -found, jnp.stack(jnp.unravel_index(indices, values.shape), axis=1)
    index = grid_minimum(values)
    return values[tuple(index)][None], index[None]


def peaks(terms: Chi2Terms, minimum: Minimum, others: Candidates) -> Peaks:
    """The minimum and the next best separate minima in order, refined where one χ² holds for all shifts.

    Where pixels of the reference are unknown, each shift has weights of its own. Then these are whole
    shifts, and their Δχ² is that of their scores between the pixels.
    """
    whole, start, exist, *point, use = others
    fraction, refined, _ = jax.vmap(partial(stationary, terms))(whole, *lax.stop_gradient(point))
    over, shape = terms.oversample, np.array(terms.grid.shape)
    index = jnp.round((whole + start) * over).astype(jnp.int32) % shape[None, :]
    best = jnp.round((minimum.whole + minimum.fraction) * over).astype(jnp.int32) % shape
    coarse = terms.grid[tuple(index.T)] - terms.grid[tuple(best)]
    if terms.correlation is not None:
        left, number, prior = _matches(terms, index)
        scores = terms.correlation.independent * number * left + prior
        coarse = jnp.where(terms.settled, scores[1:] - scores[0], coarse)
    shift = jnp.where(exist[:, None], whole + jnp.where(use[:, None], fraction, start), jnp.nan)
    delta = jnp.where(exist, jnp.where(use, refined - minimum.value, coarse), jnp.inf)
    order = jnp.argsort(delta)
    return Peaks(
        jnp.concatenate([(minimum.whole + minimum.fraction)[None, :], shift[order]]),
        jnp.concatenate([jnp.zeros_like(delta, shape=(1,)), delta[order]]),
    )


def _best_score(terms: Chi2Terms) -> Array:
    """Sample of the search grid that the search began with, which went downhill from there."""
    best = grid_minimum(in_window(terms.grid, terms.oversample, terms.pair, terms.model))
    origin = terms.origin * terms.oversample % np.array(terms.grid.shape)
    return best if terms.pair.initial is None else origin.astype(best.dtype)


class _Match(NamedTuple):
    """What a whole shift explains of its own pixels."""

    left: Array
    """``ln(1 − r²)`` at the best place within half a pixel."""
    number: Array
    """Pixels of the overlap."""
    prior: Array
    """χ² of the prior."""


def _matches(terms: Chi2Terms, index: Array) -> _Match:
    """Of the best shift and of other samples of the search grid, shape ``(n, D)`` in, ``(n + 1,)`` out."""
    return lax.map(partial(_match, terms), jnp.concatenate([_best_score(terms)[None], index]))


def _match(terms: Chi2Terms, index: Array) -> _Match:
    """The correlation is interpolated by a windowed sinc; pixels and prior are those of the sample."""
    assert terms.correlation is not None
    coefficient, number, *scalars = terms.correlation
    whole = index // terms.oversample
    steps = np.arange(-BESIDE, BESIDE + 1)
    around = [(whole[a] + steps) % n for a, n in enumerate(coefficient.shape)]
    patch = coefficient[jnp.ix_(*around)]
    distance = np.linspace(-0.5, 0.5, BETWEEN)[None, :] - steps[:, None]
    lanczos = np.where(np.abs(distance) < BESIDE, np.sinc(distance) * np.sinc(distance / BESIDE), 0.0)
    # Where all correlate, 1 − r² is the small difference that matters.
    lanczos /= lanczos.sum(axis=0)
    values = contract(patch, [jnp.asarray(lanczos, patch.dtype)] * patch.ndim)
    there = Correlation(coefficient[tuple(whole)], number[tuple(whole)], *scalars)
    best = there._replace(coefficient=jnp.max(values))
    return _Match(log_left(best), there.number, terms.grid[tuple(index)] - score(there))


def runner_up(
    terms: Chi2Terms, minimum: Minimum, others: Candidates, scale: Array, evidence: Evidence
) -> RunnerUp:
    """The second best minimum, with χ² in units of ``scale``."""
    found = peaks(terms, minimum, others)
    delta = found.delta_chi2[1]
    delta = jnp.where(jnp.abs(delta) < _rounding(terms), 0.0, delta) / jnp.where(terms.settled, 1.0, scale)
    weighed = evidence.share * delta
    if terms.correlation is not None:
        index = jnp.round((others.whole + others.start) * terms.oversample).astype(jnp.int32)
        best, other = _pairwise(_matches(terms, index[:1] % np.array(terms.grid.shape)[None, :]))
        weighed = jnp.where(terms.settled & others.exist[0], _weighed(terms, best, other, evidence), weighed)
    return RunnerUp(found.shift[1], delta, jax.nn.sigmoid(weighed / 2))


def _pairwise(matches: _Match) -> list[_Match]:
    return [jax.tree.map(lambda x, k=k: x[k], matches) for k in range(len(matches.left))]


def _weighed(terms: Chi2Terms, best: _Match, other: _Match, evidence: Evidence) -> Array:
    """Difference of two scores as −2 times the logarithm of the odds of the matches.

    Pixels of the one alone are no news where those that both have foretell them, as in a lattice. And the
    noise of those that are not common, of size √(2n), says nothing of which is better: the mean of the
    logistic function over a normal distribution is close to one of a smaller slope.
    """
    assert terms.frames is not None
    fewer, most = jnp.minimum(best.number, other.number), jnp.maximum(best.number, other.number)
    more = (best.number - other.number) / jnp.maximum(most, 1.0)
    difference = fewer * evidence.share * (other.left - best.left) + other.prior - best.prior
    difference += more * jnp.minimum(evidence.news, -best.number * best.left)
    every = jnp.minimum(*(f.number for f in terms.frames))
    both = best.number + other.number
    apart = both - 2 * jnp.maximum(both - every, 0.0)
    variance = 2 * apart * evidence.share * (1 - jnp.exp(best.left)) ** 2
    return difference / jnp.sqrt(1 + np.pi / 8 * variance / 4)


def _rounding(terms: Chi2Terms) -> Array:
    """Differences of χ² that rounding could make; with a gain, χ² and its parts are below the constant."""
    largest = terms.constant if terms.model.gain else terms.amplitude
    largest = jnp.where(terms.settled, terms.n_valid.astype(largest.dtype), largest)
    return 16 * jnp.finfo(largest.dtype).eps * largest


def is_unequal(terms: Chi2Terms, matched: Matched, least: float) -> Array:
    """Whether a gain or a background that is held makes χ² ``least`` times larger, or a gain is negative.

    Noise of the reference draws the best gain below one: only a larger one tells of other brightness.
    """
    model, residual, data, *_ = matched
    tiny = jnp.finfo(data.dtype).tiny
    power, energy, held = (sum_all(x**2) for x in (model, data, residual))
    cross = sum_all(model * data)
    free = energy - cross**2 / jnp.maximum(power, tiny)
    root = jnp.ones_like(data) if terms.weights is None else jnp.sqrt(terms.weights)
    offset = sum_all(root * residual) ** 2 / terms.mass
    rounding = 16 * jnp.finfo(data.dtype).eps * energy
    result = jnp.zeros_like(terms.flat)
    if not terms.model.gain:
        result |= (cross > least * power) & (held - offset > least * free + rounding)
    if not terms.model.background:
        result |= held > least * (held - offset) + rounding
    if terms.correlation is not None:
        r = in_window(terms.correlation.coefficient, 1, terms.pair, replace(terms.model, oversample=1))
        r = jnp.where(jnp.isfinite(r), r, 0.0)
        # Of those alike the scores are negative, of opposite ones here positive. Two reductions: `extremes`
        # would compute their logarithms one by one.
        scores = jnp.sign(r) * score(terms.correlation._replace(coefficient=jnp.abs(r)))
        opposite, alike = -jnp.max(scores), jnp.minimum(jnp.min(scores), 0.0)
        result |= terms.settled & (opposite < least * alike) & (opposite < alike - OPPOSITE)
    return result


def posterior(terms: Chi2Terms, temperature: Array) -> Posterior:
    """``exp(−χ² / (2 temperature))`` over the search grid, normalised, with its mean and covariance."""
    ndim, over = terms.grid.ndim, terms.oversample
    inside = jnp.isfinite(in_window(terms.grid, over, terms.pair, terms.model))
    values = jnp.where(inside, jnp.where(inside, terms.grid, 0.0) / (-2 * temperature), -jnp.inf)
    probability = jax.nn.softmax(values.reshape(-1)).reshape(values.shape)
    marginals, positions = [], []
    for axis, length in enumerate(terms.grid.shape):
        shift = grid_shifts(length, terms.model.window[axis], over)[0] / over
        positions.append(jnp.asarray(shift, values.dtype))
        marginals.append(jnp.sum(probability, tuple(a for a in range(ndim) if a != axis)))
    mean = jnp.stack([jnp.sum(m * p) for m, p in zip(marginals, positions, strict=True)])
    offset = [p - mean[a] for a, p in enumerate(positions)]
    covariance = [[jnp.zeros_like(mean[0])] * ndim for _ in range(ndim)]
    for a in range(ndim):
        covariance[a][a] = jnp.sum(marginals[a] * offset[a] ** 2)
        for b in range(a):
            joint = jnp.sum(probability, tuple(c for c in range(ndim) if c not in (a, b)))
            moment = jnp.dot(
                offset[b],
                jnp.dot(joint, offset[a], precision=lax.Precision.HIGHEST),
                precision=lax.Precision.HIGHEST,
            )
            covariance[a][b] = covariance[b][a] = moment
    return Posterior(mean, jnp.stack([jnp.stack(row) for row in covariance]), probability)
