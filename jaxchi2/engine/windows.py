"""Shifts of many small windows of an image, each with its error and its verdict.

A window is a weight map t on the χ² of the pair, ``χ²(s) = Σ_i w_i t_i (D_i − a M(i − s) − b)²``. The
reference is not cut: it is known around the window, and its interpolant is that of the whole frame
(`gridded`). So every shift has the same pixels but where the reference has an edge or a bad pixel, which
settle the weights for the best whole shift as in `layout`. Whole shifts are ranked by what they explain
(`overlap`); from the best one Gauss and Newton's steps lead to the minimum, gain and background eliminated
from each. With B the sum of ``w t g gᵀ`` over the pixels, g the slopes of the model less what gain and
background take of them, the covariance of the shift is ``B⁻¹ (Σ w t² g gᵀ) B⁻¹``, which is B⁻¹ where t is
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.fft import next_fast_len

from .algebra import apply, inverse_of_symmetric, is_positive_definite, norm, or_one
from .chance import Trial, evidence
from .choices import Plan
from .constraints import Constraints
from .gridded import REACH, at_pixels, gridded
from .layout import Filled, spread_of, with_variance
from .overlap import Frames, correlate, score
from .passes import count, sum_all
from .sandwich import FURTHEST, between, covariance_of_scores
from .searchgrid import SearchGrid
from .spectrum import Shape
from .terms import Matched
from .verdict import log_odds

MAX_STEPS = 20
LONGEST = 0.5
"""Largest step along an axis, in pixels."""
RESTING = 1e-5
"""What is left to be gained of χ², in units of the noise, where the steps end."""
STRAYED = 2.0
"""Pixels from the best whole shift, whose weights hold, from which a minimum is another's."""
MIN_OVERLAP = 0.5
"""Share of a window's pixels whose counterparts in the reference have to be known."""


@dataclass(frozen=True)
class Task:
    """What is asked of every window; static."""

    window: Shape
    """Pixels along each axis."""
    max_shift: Shape
    """Whole pixels on either side of the predicted shift that are looked at."""
    gain: bool
    background: bool
    known_err: bool
    verdict: bool
    robust: bool
    """Whether errors come from the sandwich."""
    even: bool
    """Whether every pixel that counts weighs the same."""

    @property
    def nuisances(self) -> list[int]:
        """Which of gain and background are fitted."""
        return [k for k, fitted in enumerate((self.gain, self.background)) if fitted]

    @property
    def fitted(self) -> np.ndarray:
        """Which of shift, gain and background."""
        return np.flatnonzero([*[True] * len(self.window), self.gain, self.background])

    def plan(self, plan: Plan) -> Plan:
        """That of the search: the window's corner lies ``max_shift`` behind that of the reference's patch."""
        return Plan(
            boundary=plan.boundary,
            gain=self.gain,
            degree=self.background - 1,
            window=tuple((-2.0 * m, 0.0) for m in self.max_shift),
            limited=True,
            free=(True,) * len(self.window),
        )


class Scene(NamedTuple):
    """A reference with a border, wide enough for every window."""

    array: Array
    """Its pixels, continued where they are unknown."""
    fine: Array
    """The same by `gridded`."""
    counts: Array
    """Whether a pixel may be compared."""
    variance: Array
    """What a pixel adds to that of the image's."""
    corner: Array
    """Where its first pixel lies, shape ``(D,)``."""


class Image(NamedTuple):
    """The image with the weights of its pixels, zero where one is bad."""

    array: Array
    weights: Array
    taper: Array
    """That of every window, in its shape."""


class Found(NamedTuple):
    """What one window tells."""

    shift: Array
    covariance: Array
    gain: Array
    background: Array
    nuisance_covariance: Array
    chi2: Array
    dof: Array
    inflation: Array
    runner_up: Array
    """Shift of the second best match; NaN where there is none."""
    delta: Array
    """Its score above that of the best."""
    probability: Array
    """Of the best against it."""
    chance: Array
    usable: Array
    """Whether pixels are left to fit with."""
    overlaps: Array
    """Whether a shift leaves enough of them."""
    curved: Array
    """Whether χ² has a minimum."""
    inside: Array
    """Whether that is no further from the predicted shift than was asked."""
    converged: Array


class _Problem(NamedTuple):
    """What χ² is made of, near one shift."""

    fine: Array
    """Patch of the fine grid about the shift."""
    image: Array
    weights: Array
    taper: Array


class _State(NamedTuple):
    half: Array
    """The shift in whole halves of a pixel, int32, ``(D,)``."""
    offset: Array
    """What is to be taken from that, in halves of a pixel."""
    nuisances: Array
    """Gain and background, shape ``(2,)``."""
    going: Array
    rounds: Array
    lost: Array


def scene_of(filled: Filled, border: Shape) -> Scene:
    """A reference, continued, with so many pixels more on either side along each axis."""
    sides = [(b, b) for b in border]
    missing = jnp.zeros_like(filled.reference) if filled.missing is None else filled.missing
    return Scene(
        array=jnp.pad(filled.reference, sides),
        fine=jnp.pad(gridded(filled.reference), [(2 * b, 2 * b) for b in border]),
        counts=jnp.pad(filled.counts, sides),
        variance=jnp.pad(missing, sides),
        corner=filled.corner + np.asarray(border, np.int32),
    )


def measure_window(
    scene: Scene, image: Image, start: Array, predicted: Array, task: Task, plan: Plan
) -> Found:
    """The shift of the window that begins at the pixel ``start``, near a predicted whole one."""
    frame = task.window
    reach = np.asarray(task.max_shift, np.int32)
    here = scene.corner + start - predicted
    pixels, weights = (lax.dynamic_slice(x, start, frame) for x in (image.array, image.weights))
    wide = tuple(n + 2 * m for n, m in zip(frame, task.max_shift, strict=True))
    corner = here - reach
    # Beyond its border nothing of the reference is known.
    inside = jnp.all((corner >= 0) & (corner + np.asarray(wide) <= np.asarray(scene.array.shape)))
    around = lax.dynamic_slice(scene.array, corner, wide)
    known = lax.dynamic_slice(scene.counts, corner, wide) & inside
    grid = _ranked(around, known, pixels, weights * image.taper, task, plan)
    lag = grid.origin + reach
    settled = lax.dynamic_slice(known, reach - lag, frame)
    variance = lax.dynamic_slice(scene.variance, here - lag, frame)
    weights = with_variance(jnp.where(settled, weights, 0.0), variance)

    def problem(half: Array) -> _Problem:
        first = 2 * (scene.corner + start) - half - REACH
        size = tuple(2 * (n + REACH) for n in frame)
        return _Problem(lax.dynamic_slice(scene.fine, first, size), pixels, weights, image.taper)

    # In halves of a pixel.
    half = 2 * (predicted + lag) + jnp.round(2 * grid.parabolas(grid.origin)).astype(predicted.dtype)
    state = _descend(problem, half, task)
    there = problem(state.half)
    at = _resting(task, there, jnp.concatenate([state.offset, state.nuisances]))
    fit = _fit(there, at, task)
    shift = (state.half - at[: len(frame)]) / 2
    away = shift - predicted
    found = _measured(fit, shift, at[len(frame) :], task)
    found = found._replace(
        overlaps=jnp.isfinite(grid.values[tuple(grid.index_of(grid.origin))]),
        inside=jnp.all(jnp.abs(away) <= reach + 0.5),
        converged=~state.going & ~state.lost & jnp.all(jnp.abs(away - lag) < STRAYED),
    )
    if not task.verdict:
        return found
    return _judged(found, fit, grid, Frames(around, known, pixels, weights), predicted + reach, task)


def _ranked(
    reference: Array, known: Array, pixels: Array, weights: Array, task: Task, plan: Plan
) -> SearchGrid:
    """Whole shifts by what they explain of the window's pixels."""
    plan = task.plan(plan)
    shape = tuple(next_fast_len(n, real=True) for n in reference.shape)
    frames = Frames(jnp.where(known, reference, 0.0), known, pixels, weights)
    correlation = correlate(frames, shape, task.even, plan.whole_window)
    enough = correlation.number >= jnp.maximum(MIN_OVERLAP * count(weights > 0), 1.0)
    zero = jnp.zeros(len(shape), jnp.int32)
    scores = jnp.where(enough, score(correlation), jnp.inf)
    grid = SearchGrid(scores, zero, jnp.ones((), bool), correlation, Constraints(), plan)
    grid = replace(grid, values=grid.in_window(scores))
    return replace(grid, origin=grid.shift_at(grid.best()))


def _descend(problem: Callable[[Array], _Problem], half: Array, task: Task) -> _State:
    """Steps to the minimum of χ²; the patch of the reference follows."""
    ndim, fitted = len(task.window), task.fitted

    def step(state: _State) -> _State:
        at = jnp.concatenate([state.offset, state.nuisances])
        fit = _fit(problem(state.half), at, task)
        gram = _products(fit, fit.weights * fit.taper, task)
        slope, curvature = gram[1:, 0], gram[1:, 1:]
        change = apply(inverse_of_symmetric(curvature), slope)
        noise = jnp.ones_like(slope[0]) if task.known_err else gram[0, 0] / count(fit.weights > 0)
        full = jnp.zeros_like(at).at[fitted].set(change, unique_indices=True)
        move, nuisances = full[:ndim], state.nuisances + full[ndim:]
        size = norm(move)
        rests = (jnp.sum(slope * change) < RESTING * noise) | (size < 16 * jnp.finfo(size.dtype).eps)
        # In halves of a pixel; no further than the interpolant is near.
        offset = state.offset - 2 * move * jnp.minimum(1.0, LONGEST / or_one(size))
        whole = jnp.round(offset)
        lost = ~jnp.all(jnp.isfinite(change))
        return _State(
            half=state.half - jnp.where(lost, 0.0, whole).astype(state.half.dtype),
            offset=jnp.where(lost, state.offset, offset - whole),
            nuisances=jnp.where(lost, state.nuisances, nuisances),
            going=~rests & ~lost,
            rounds=state.rounds + 1,
            lost=lost,
        )

    dtype = jax.eval_shape(problem, half).image.dtype
    state = _State(
        half=half,
        offset=jnp.zeros(ndim, dtype),
        nuisances=jnp.asarray([1.0, 0.0], dtype),
        going=jnp.ones((), bool),
        rounds=jnp.zeros((), jnp.int32),
        lost=jnp.zeros((), bool),
    )
    return lax.while_loop(lambda s: s.going & (s.rounds < MAX_STEPS), step, state)


class _Fit(NamedTuple):
    """A window at one shift."""

    data: Array
    residual: Array
    model: Array
    """The moved reference."""
    slopes: Array
    """Derivatives of the model by the shift, the axes first."""
    weights: Array
    taper: Array


def _fit(problem: _Problem, at: Array, task: Task) -> _Fit:
    """Residuals and slopes at an offset, gain and background."""
    ndim = len(task.window)
    offset, gain, background = at[:ndim], at[ndim], at[ndim + 1]
    model, *slopes = at_pixels(problem.fine, offset, task.window)
    residual = problem.image - gain * model - background
    return _Fit(problem.image, residual, model, -2 * gain * jnp.stack(slopes), problem.weights, problem.taper)


def _parameters(fit: _Fit, task: Task) -> Array:
    """Derivatives of the model by what is fitted, the parameters first."""
    rows = [fit.slopes]
    if task.gain:
        rows.append(fit.model[None])
    if task.background:
        rows.append(jnp.ones_like(fit.model)[None])
    return jnp.concatenate(rows)


def _products(fit: _Fit, weights: Array, task: Task) -> Array:
    """``Σ w x xᵀ`` of the residual and the parameters."""
    rows = jnp.concatenate([fit.residual[None], _parameters(fit, task)])
    rows = rows.reshape(len(rows), -1)
    return jnp.dot(rows * weights.reshape(1, -1), rows.T, precision=lax.Precision.HIGHEST)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _resting(task: Task, problem: _Problem, at: Array) -> Array:
    """Where the steps ended, with the derivative that it has as the minimum of χ²."""
    return at


@_resting.defjvp
def _resting_jvp(task: Task, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    problem, at = primals
    moving = task.fitted

    def slope(problem: _Problem, at: Array) -> Array:
        fit = _fit(problem, at, task)
        return _products(fit, fit.weights * fit.taper, task)[1:, 0]

    at = _resting(task, problem, at)
    _, change = jax.jvp(lambda problem: slope(problem, at), (problem,), (tangents[0],))
    inverse = jnp.linalg.inv(jax.jacfwd(slope, 1)(problem, at)[:, moving])
    # Where there is no minimum there is no derivative, and none is to harm others.
    inverse = jnp.where(jnp.all(jnp.isfinite(inverse)), inverse, 0.0)
    moved = -jnp.dot(inverse, change, precision=lax.Precision.HIGHEST)
    return at, jnp.zeros_like(at).at[moving].set(moved, unique_indices=True)


def _measured(fit: _Fit, shift: Array, nuisances: Array, task: Task) -> Found:
    """Errors, χ² and what it says."""
    ndim, valid = len(task.window), fit.weights > 0
    taper = jnp.where(valid, fit.taper, 0.0)
    gram, scores = (_products(fit, fit.weights * t, task) for t in (taper, taper**2))
    bread = inverse_of_symmetric(gram[1:, 1:])
    covariance = between(bread, scores[1:, 1:])
    mass, square = sum_all(taper), sum_all(taper**2)
    # As many equal pixels would scatter as much.
    number = mass / or_one(square)
    chi2 = gram[0, 0] * number
    dof = (mass - jnp.sum(bread * scores[1:, 1:])) * number
    scale = jnp.ones_like(chi2) if task.known_err else chi2 / jnp.maximum(dof, 1.0)
    covariance = covariance * scale
    inflation = jnp.ones_like(shift)
    if task.robust:
        robust = between(bread, _scores(fit, taper, task))
        ratio = jnp.diagonal(robust)[:ndim] / or_one(jnp.diagonal(lax.stop_gradient(covariance))[:ndim])
        inflation, covariance = jnp.sqrt(ratio), robust
    own = gram[1 : ndim + 1, 1 : ndim + 1]
    if task.nuisances:
        mixed, other = gram[1 : ndim + 1, ndim + 1 :], gram[ndim + 1 :, ndim + 1 :]
        own = own - between(mixed.T, inverse_of_symmetric(other))
    least = (32 * jnp.finfo(chi2.dtype).eps) ** 2 * sum_all(fit.weights * taper * fit.model**2)
    nothing = jnp.full_like(chi2, jnp.nan)
    yes = jnp.ones((), bool)
    beside = np.array(task.nuisances, int)
    nuisance_covariance = jnp.zeros_like(covariance, shape=(2, 2))
    if task.nuisances:
        nuisance_covariance = nuisance_covariance.at[np.ix_(beside, beside)].set(
            covariance[ndim:, ndim:], unique_indices=True
        )
    return Found(
        shift=shift,
        covariance=covariance[:ndim, :ndim],
        gain=nuisances[0],
        background=nuisances[1],
        nuisance_covariance=nuisance_covariance,
        chi2=chi2,
        dof=dof,
        inflation=inflation,
        runner_up=jnp.full_like(shift, jnp.nan),
        delta=nothing,
        probability=nothing,
        chance=nothing,
        usable=dof > 0,
        overlaps=yes,
        curved=is_positive_definite(own) & (jnp.min(jnp.diagonal(own)) > least),
        inside=yes,
        converged=yes,
    )


def _scores(fit: _Fit, taper: Array, task: Task) -> Array:
    """Covariance of the scores as the residuals show it; nothing lies beyond the window."""
    root = jnp.sqrt(fit.weights)
    sides = [(0, min(FURTHEST, n)) for n in task.window]
    parameters = jnp.pad(_parameters(fit, task) * (root * taper)[None], [(0, 0), *sides])
    residual, valid = jnp.pad(fit.residual * root, sides), jnp.pad(fit.weights > 0, sides)
    return covariance_of_scores(lax.stop_gradient(parameters), lax.stop_gradient(residual), valid)[0]


def _judged(found: Found, fit: _Fit, grid: SearchGrid, frames: Frames, corner: Array, task: Task) -> Found:
    """The verdict on a match: the second best, and the odds of chance. It has no derivative."""
    fit, grid, frames, corner = lax.stop_gradient((fit, grid, frames, corner))
    weights = fit.weights * fit.taper
    counted = weights > 0
    root = jnp.sqrt(weights)

    def centred(x: Array) -> Array:
        mean = sum_all(weights * x) / or_one(sum_all(weights))
        return root * (x - mean)

    parts = centred(fit.model), root * fit.residual, centred(fit.data)
    moved = lax.dynamic_slice(frames.reference, -grid.origin, task.window)
    spreads = spread_of(frames.reference, frames.known), spread_of(frames.image, frames.weights)
    trial = Trial(
        settled=grid.settled,
        number_of_shifts=jnp.asarray(float(prod(2 * m + 1 for m in task.max_shift)), root.dtype),
        number=count(counted),
        weights=None if task.even else weights,
        frames=spreads,
        common=(spread_of(moved, counted), spread_of(fit.data, weights)),
        gain=task.gain,
    )
    seen = evidence(trial, Matched.of(*parts))
    samples, exist = grid.minima(1)
    best, other = (jax.tree.map(lambda x, k=k: x[k], grid.explained(samples)) for k in (0, 1))
    every = jnp.minimum(*(x.number for x in spreads))
    odds = jnp.where(exist[0], log_odds(best, other, seen, every), jnp.inf)
    return found._replace(
        runner_up=jnp.where(exist[0], samples[0] + corner, jnp.nan),
        delta=jnp.where(exist[0], best.number * (other.left - best.left), jnp.inf),
        probability=jax.nn.sigmoid(odds / 2),
        chance=jnp.exp(seen.log_chance),
    )
