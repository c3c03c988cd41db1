"""Whether to believe a minimum: the next best one, the odds of chance, and the posterior of the shift."""

from __future__ import annotations

from functools import reduce
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import log_ndtr, ndtr

from .layout import grid_minimum, grid_shifts, in_window, shift_at
from .minimum import Candidates, Minimum, best_pixel, stationary, value_gradient_hessian
from .spectrum import along, harmonics, octaves
from .terms import Chi2Terms


class Peaks(NamedTuple):
    """Separate minima of χ², the deepest first.

    With a gain, where each shift has pixels of its own, in the order of ``n ln(1 − r²)``, of n pixels that
    correlate by r.
    """

    shift: Array
    """Their shifts in pixels, shape ``(n, D)``; NaN where there are fewer."""
    delta_chi2: Array
    """χ² above the deepest, shape ``(n,)``; infinite where there are fewer."""
    deviations: Array
    """Where each shift has pixels of its own, by how many standard deviations its χ² per pixel is above that
    of the best, shape ``(n,)``; NaN elsewhere."""


class RunnerUp(NamedTuple):
    """The next best separate minimum of χ²: the deepest on the search grid, then refined."""

    shift: Array
    """Its shift in pixels, shape ``(D,)``; NaN where there is none."""
    delta_chi2: Array
    """Its χ² above that of the best, in units of the noise; infinite where there is none."""
    probability: Array
    """Probability of the best of the two, the prior included: ``1 / (1 + exp(−Δχ²/2))``. Where each shift has
    pixels of its own, that of the difference in χ² per pixel being more than its scatter."""


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

    A sample is one if it lies below all its neighbours, diagonal ones too. Samples next to the starting
    point of the search belong to it.
    """
    grid = lax.stop_gradient(terms.grid)
    ndim, over = grid.ndim, terms.oversample
    # Behind a barrier, or every comparison would work its neighbours out anew.
    grid, padded = lax.optimization_barrier((grid, jnp.pad(grid, 1, mode="wrap")))
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
    near = jnp.ones((1,) * ndim, bool)
    for axis, length in enumerate(grid.shape):
        shift = jnp.asarray(grid_shifts(length, terms.model.window[axis], over)[0], jnp.int32)
        start = jnp.round((start_whole[axis] + start_fraction[axis]) * over).astype(jnp.int32)
        distance = (shift - start + length // 2) % length - length // 2
        near = near & along(jnp.abs(distance) <= over, axis, ndim)
    values = jnp.where(lowest & ~near, in_window(grid, over, terms.pair, terms.model), jnp.inf)
    lowest_values, indices = smallest(values, n)
    picked = shift_at(indices, grid.shape, over, terms.model)
    whole = picked // over
    start, exist = (picked - whole * over).astype(grid.dtype) / over, jnp.isfinite(lowest_values)
    return Candidates(whole, start, exist, fraction=start, converged=jnp.zeros_like(exist))


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
    shifts, and their Δχ² is that of ``surface.map()``.
    """
    whole, start, exist, fraction, use = others

    def refined_at(whole: Array, fraction: Array) -> tuple[Array, Array]:
        value, _, hessian = value_gradient_hessian(terms.derivatives(whole, fraction, 2), terms.model.free)
        return stationary(terms, whole, *lax.stop_gradient((fraction, value, hessian)))[:2]

    fraction, refined = lax.map(lambda at: refined_at(*at), (whole, fraction))
    refined = refined - minimum.value
    over, shape = terms.oversample, np.array(terms.grid.shape)
    start_index = jnp.round((whole + start) * over).astype(jnp.int32) % shape[None, :]
    best_index = jnp.round((minimum.whole + minimum.fraction) * over).astype(jnp.int32) % shape
    best, other = terms.grid[tuple(best_index)], terms.grid[tuple(start_index.T)]
    score = coarse = other - best
    deviations = jnp.full_like(score, jnp.nan)
    if terms.overlap is not None:
        n_best = jnp.maximum(terms.overlap[tuple(best_index // over)], 1.0)
        n_other = jnp.maximum(terms.overlap[tuple((start_index // over).T)], 1.0)
        noise = _rounding(terms)
        if terms.model.gain:
            # The logarithm of χ² per pixel scatters by √(2/n).
            apart = other / n_other - best / n_best
            spread = jnp.sqrt(2 / n_best + 2 / n_other)
            share = terms.constant * (jnp.exp(other / n_other) - jnp.exp(best / n_best))
            coarse = jnp.where(terms.settled, share, coarse)
        else:
            # χ² per pixel in units of the best's, which scatters by √(2/n) like the other.
            apart = coarse / jnp.maximum(best + terms.constant, noise)
            spread = jnp.sqrt(2 / n_best + 2 / n_other * (1 + apart) ** 2)
        apart = jnp.where(jnp.abs(coarse) < noise, 0.0, apart)
        deviations = jnp.where(terms.settled & exist, apart / spread, jnp.nan)
    shift = jnp.where(exist[:, None], whole + jnp.where(use[:, None], fraction, start), jnp.nan)
    delta = jnp.where(exist, jnp.where(use, refined, coarse), jnp.inf)
    order = jnp.argsort(jnp.where(terms.settled & exist, score, delta))
    shift, delta, deviations = shift[order], delta[order], deviations[order]
    first = jnp.zeros_like(delta, shape=(1,))
    return Peaks(
        jnp.concatenate([(minimum.whole + minimum.fraction)[None, :], shift]),
        jnp.concatenate([first, delta]),
        jnp.concatenate([first, deviations]),
    )


def runner_up(terms: Chi2Terms, minimum: Minimum, others: Candidates, scale: Array) -> RunnerUp:
    """The second best minimum, with χ² in units of ``scale``."""
    found = peaks(terms, minimum, others)
    delta = found.delta_chi2[1]
    delta = jnp.where(jnp.abs(delta) < _rounding(terms), 0.0, delta) / scale
    deviation = found.deviations[1]
    probability = jnp.where(jnp.isnan(deviation), jax.nn.sigmoid(delta / 2), ndtr(deviation))
    return RunnerUp(found.shift[1], delta, probability)


def _rounding(terms: Chi2Terms) -> Array:
    """Differences of χ² that rounding could make; with a gain, χ² and its parts are below the constant."""
    largest = terms.constant if terms.model.gain else terms.amplitude
    return 16 * jnp.finfo(largest.dtype).eps * largest


def log_chance(terms: Chi2Terms, minimum: Minimum) -> Array:
    """Logarithm of the probability that unrelated images of these spectra match as well somewhere.

    Two tests, the better one counts, twice. The correlation coefficient r of the images: for unrelated ones
    it has variance 1/ν over the shifts, ν the number of independent pixels that their spectra leave, and
    exceeds r with a probability of at most ``(1 − r²)^((ν − 1)/2) / 2``; about ν shifts are independent. And
    the coherence in bands of frequency, which sees fine detail agree where the coarse is brighter.
    """
    cross, power, _ = terms.sums(minimum.whole, minimum.fraction)
    eps, tiny = jnp.finfo(cross.dtype).eps, jnp.finfo(cross.dtype).tiny
    size = jnp.sqrt(jnp.maximum(power, tiny)) * jnp.sqrt(jnp.maximum(terms.contrast, tiny))
    coefficient = jnp.clip(-cross / 2 / size, 0.0, 1 - 4 * eps)
    # The energy that the reference has on average where the image has weight, against what it correlates to.
    expected = jnp.sum(terms.bands[0]) * (terms.mass / prod(terms.shape))
    independent = terms.contrast / jnp.maximum(terms.scatter, tiny) * expected
    independent = jnp.clip(independent, 1.0, jnp.maximum(terms.n_valid, 1))
    shifts, share = 1.0, 1.0
    for axis, length in enumerate(terms.grid.shape):
        inside = grid_shifts(length, terms.model.window[axis], terms.oversample)[1]
        number = inside.sum() if terms.model.free[axis] else 1
        shifts *= number
        share *= min(number / (terms.oversample * terms.shape[axis]), 1.0)
    single = np.log(0.5) + (independent - 1) / 2 * jnp.log1p(-(coefficient**2))
    overall = jnp.log(jnp.maximum(independent * share, 1.0)) + single
    in_bands = np.log(shifts) + _log_chance_in_bands(terms, minimum)
    return jnp.minimum(np.log(2.0) + jnp.minimum(overall, in_bands), 0.0)


def _log_chance_in_bands(terms: Chi2Terms, minimum: Minimum) -> Array:
    """Log probability of the coherence of unrelated images at one shift.

    In a band of n modes −(n − 1) ln(1 − γ²) is about the square of a normal deviate if the coherence γ is
    positive, which it is half the time: R bands have a sum of mean R/2 and variance 5R/4. Its tail is
    taken as a gamma distribution's, by Wilson & Hilferty's approximation.
    """
    reference, image = terms.bands
    modes = [octaves(harmonics(n), n).sum(0) for n in terms.shape]
    number = reduce(np.multiply.outer, modes)
    number = np.maximum(number * 1.0, 1.0) * (terms.n_valid / prod(terms.shape))
    found = -terms.cross.by_band(minimum.whole - terms.origin, minimum.fraction) / 2
    eps = jnp.finfo(found.dtype).eps
    # A band without energy beyond rounding says nothing.
    size = jnp.sqrt(reference) * jnp.sqrt(image)
    seen = size > eps * jnp.sum(size)
    coherence = jnp.clip(jnp.where(seen, found / jnp.where(seen, size, 1.0), 0.0), 0.0, 1 - 4 * eps)
    total = -jnp.sum(jnp.maximum(number - 1, 0.0) * jnp.log1p(-(coherence**2)))
    bands = found.size
    mean, variance = bands / 2, 5 * bands / 4
    shape = mean**2 / variance
    deviation = (jnp.cbrt(total / mean) - (1 - 1 / (9 * shape))) * np.sqrt(9 * shape)
    return log_ndtr(-deviation)


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
