"""Whether to believe a minimum: the next best one, the odds of chance, and the posterior of the shift."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .algebra import or_one
from .chance import Evidence
from .minimum import Candidates, Minimum, stationary
from .overlap import score
from .passes import sum_all
from .position import Position
from .searchgrid import Explained, SearchGrid
from .spectrum import conj_product, scaled, series_of, squared
from .terms import Chi2Terms, Matched

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
    """The next best separate minimum of χ²; a whole shift where each has pixels of its own."""

    shift: Array
    """Its shift in pixels, shape ``(D,)``; NaN where there is none."""
    delta_chi2: Array
    """Its χ² above that of the best, in units of the noise, or the score of `Peaks`; infinite where there is
    none."""
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


def explained(grid: SearchGrid, others: Candidates) -> Explained | None:
    """What the best shift and others explain of their overlaps; None where these do not depend on it."""
    return None if grid.correlation is None else grid.explained(others.sample)


def peaks(terms: Chi2Terms, minimum: Minimum, others: Candidates, matches: Explained | None) -> Peaks:
    """The minimum and the next best separate minima in order, refined where one χ² holds for all shifts.

    Where pixels of the reference are unknown, each shift has weights of its own. Then these are whole
    shifts, and their Δχ² is that of their scores between the pixels. ``matches`` as by `explained`.
    """
    grid, here = terms.grid, minimum.position.shift
    samples, exist, *point, use = others
    position, refined, _ = jax.vmap(partial(stationary, terms.series))(*lax.stop_gradient(point))
    best = grid.index_of(jnp.round(here).astype(jnp.int32))
    coarse = grid.values[tuple(grid.index_of(samples).T)] - grid.values[tuple(best)]
    if matches is not None:
        assert grid.correlation is not None
        scores = grid.correlation.independent * matches.number * matches.left + matches.prior
        coarse = jnp.where(grid.settled, scores[1:] - scores[0], coarse)
    shift = jnp.where(use[:, None], position.shift, samples.astype(here.dtype))
    shift = jnp.where(exist[:, None], shift, jnp.nan)
    delta = jnp.where(exist, jnp.where(use, refined - minimum.value, coarse), jnp.inf)
    order = jnp.argsort(delta)
    return Peaks(
        jnp.concatenate([here[None, :], shift[order]]),
        jnp.concatenate([jnp.zeros_like(delta, shape=(1,)), delta[order]]),
    )


def runner_up(
    terms: Chi2Terms, minimum: Minimum, others: Candidates, scale: Array, evidence: Evidence
) -> RunnerUp:
    """The second best minimum, with χ² in units of ``scale``."""
    matches = explained(terms.grid, others)
    found = peaks(terms, minimum, others, matches)
    delta = found.delta_chi2[1]
    grid = terms.grid
    delta = jnp.where(jnp.abs(delta) < _rounding(terms), 0.0, delta) / jnp.where(grid.settled, 1.0, scale)
    weighed = evidence.share * delta
    if matches is not None:
        assert terms.content.frames is not None
        best, other = (jax.tree.map(lambda x, k=k: x[k], matches) for k in (0, 1))
        every = jnp.minimum(*(f.number for f in terms.content.frames))
        by_score = log_odds(best, other, evidence, every)
        weighed = jnp.where(grid.settled & others.exist[0], by_score, weighed)
    return RunnerUp(found.shift[1], delta, jax.nn.sigmoid(weighed / 2))


def log_odds(best: Explained, other: Explained, evidence: Evidence, every: Array) -> Array:
    """Difference of two scores as twice the logarithm of the odds of the matches.

    ``every`` is the number of pixels of the frame that has fewer.
    Pixels of the one alone are no news where those that both have foretell them, as in a lattice. And the
    noise of those that are not common, of size √(2n), says nothing of which is better: the mean of the
    logistic function over a normal distribution is close to one of a smaller slope.
    """
    fewer, most = jnp.minimum(best.number, other.number), jnp.maximum(best.number, other.number)
    more = (best.number - other.number) / jnp.maximum(most, 1.0)
    gained = other.left - best.left
    # Where both explain much, as in a lattice, one may do so of brighter pixels: that is no merit. And their
    # correlation between whole shifts is known as well as that of the best is, which χ² tells.
    brighter = jnp.clip(jnp.log(or_one(best.variance)) - jnp.log(or_one(other.variance)), 0.0, None)
    unsure = jnp.clip(1 - jnp.exp(evidence.log_left - best.left), 0.0, 1.0) / 2
    doubtful = jnp.where(other.left < best.left / 2, brighter + unsure, 0.0)
    gained = jnp.maximum(gained - doubtful, jnp.minimum(gained, 0.0))
    difference = fewer * evidence.share * gained + other.prior - best.prior
    difference += more * jnp.minimum(evidence.news, -best.number * best.left)
    both = best.number + other.number
    apart = both - 2 * jnp.maximum(both - every, 0.0)
    variance = 2 * apart * evidence.share * (1 - jnp.exp(best.left)) ** 2
    return difference / jnp.sqrt(1 + np.pi / 8 * variance / 4)


def _rounding(terms: Chi2Terms) -> Array:
    """Differences of χ² that rounding could make; with a gain, χ² and its parts are below the constant."""
    largest = terms.series.constant if terms.plan.gain else terms.series.amplitude
    largest = jnp.where(terms.grid.settled, terms.pixels.number.astype(largest.dtype), largest)
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
    weights, grid = terms.pixels.weights, terms.grid
    root = jnp.ones_like(data) if weights is None else jnp.sqrt(weights)
    # What a background at its best would take; residuals may be whitened, and root with them.
    offset = sum_all(root * residual) ** 2 / jnp.maximum(sum_all(root**2), tiny)
    rounding = 16 * jnp.finfo(data.dtype).eps * energy
    result = jnp.zeros_like(terms.content.flat)
    if not terms.plan.gain:
        result |= (cross > least * power) & (held - offset > least * free + rounding)
    if not terms.plan.background:
        result |= held > least * (held - offset) + rounding
    if grid.correlation is not None:
        r = grid.in_window(grid.correlation.coefficient)
        r = jnp.where(jnp.isfinite(r), r, 0.0)
        # Of those alike the scores are negative, of opposite ones here positive. Two reductions: `extremes`
        # would compute their logarithms one by one.
        scores = jnp.sign(r) * score(grid.correlation._replace(coefficient=jnp.abs(r)))
        opposite, alike = -jnp.max(scores), jnp.minimum(jnp.min(scores), 0.0)
        result |= grid.settled & (opposite < least * alike) & (opposite < alike - OPPOSITE)
    return result


def has_static_pattern(terms: Chi2Terms, at: Position, matched: Matched, least: float) -> Array:
    """Whether the residuals correlate with the reference where both were before any shift.

    What the camera adds to both images moves with the reference and stays in the image: it is left in the
    residuals. Of residuals and reference only the phases count, so that each wave tells as much, and their
    correlation is a sum of unit vectors, of standard deviation one if they have nothing in common. ``least``
    of these are asked for, beside what a wrong model of the scene leaves at the match and a cardinal sine
    carries here. Not where that is within a pixel.
    """
    shape, origin = terms.pixels.shape, terms.series.origin
    product = conj_product(matched.residual_spectrum, terms.pixels.reference)
    size = jnp.sqrt(squared(product))
    # Behind a barrier, or every part of the series would work it out anew.
    phases = lax.optimization_barrier(scaled(product, 1 / jnp.where(size > 0, size, 1.0)))
    series = series_of(phases, shape)
    still = jnp.zeros_like(at.fraction)
    here = series.derivatives(Position(origin, still), 0).reshape(())
    there = series.derivatives(Position(jnp.zeros_like(origin), -at.since(origin).shift), 0).reshape(())
    unit = jnp.sqrt(terms.pixels.number.astype(here.dtype))
    apart = jnp.maximum(jnp.max(jnp.abs(at.shift)), 1.0)
    return (apart > 1) & (here * unit > least + jnp.abs(there) * unit / (np.pi * apart))


def posterior(grid: SearchGrid, temperature: Array) -> Posterior:
    """``exp(−χ² / (2 temperature))`` over the search grid, normalised, with its mean and covariance."""
    ndim = len(grid.shape)
    inside = jnp.isfinite(grid.in_window(grid.values))
    values = jnp.where(inside, jnp.where(inside, grid.values, 0.0) / (-2 * temperature), -jnp.inf)
    probability = jax.nn.softmax(values.reshape(-1)).reshape(values.shape)
    marginals, positions = [], []
    for axis, shift in enumerate(grid.shifts()):
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
