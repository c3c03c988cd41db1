"""The minimum of χ²: the best pixel, then Newton's method on Taylor expansions, and its derivative.

An expansion costs a pass over the spectra, a Newton step on it next to nothing. Of order seven it is good to
a thousandth of a pixel all over the pixel, and to rounding where the minimum is near its centre, so one or
two do. The search, an argmin over the pixel grid and these steps, has no gradient. What it finds is the root
of ``∇χ²(s) = 0``; by the implicit function theorem ``ds = −H⁻¹ d(∇χ²)`` at fixed s, whatever iteration found
it, so the derivative costs one linear evaluation and holds to any order.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .algebra import apply, inverse, is_positive_definite
from .searchgrid import grid_minimum, in_window, shift_at, started
from .taylor import translate
from .terms import Chi2Terms

MAX_EXPANSIONS = 30
MAX_STEPS = 50
EXPANSION_ORDER = 7
"""Per axis, of what the search goes by. If all waves up to Nyquist are alike, and χ² has no more than the
image's band, a minimum d pixels from the centre of an expansion is found with an error of 0.064 d⁷ pixels; in
smooth images with much less."""
TAYLOR_ORDER = 5
"""Per axis, of what is kept: an expansion moved to the minimum, where its last orders are worth little."""
REACH = 0.75
"""Largest step on one expansion, in pixels, along each axis."""
STARTS = 16
"""Places within a pixel where a search may start."""


class Minimum(NamedTuple):
    """A stationary point of χ² and the Taylor terms of χ² around it."""

    whole: Array
    """Whole pixels of the shift, int32, shape ``(D,)``."""
    fraction: Array
    """What is to be added to ``whole``, in pixels, shape ``(D,)``; a constant of size below about one."""
    taylor: Array
    """Partial derivatives of χ² there up to `TAYLOR_ORDER` per axis; these have no derivative themselves."""
    converged: Array
    """Whether what is left of the way is below rounding."""
    value: Array
    """χ² there less its constant, a scalar."""
    hessian: Array
    """Second derivatives of χ², shape ``(D, D)``; a row of the unit matrix for an axis that is held."""


class Candidates(NamedTuple):
    """Samples of the search grid that are minima besides the best one, and what became of them."""

    whole: Array
    """Whole pixels of their shifts, int32, shape ``(n, D)``."""
    start: Array
    """What is to be added on the grid, shape ``(n, D)``."""
    exist: Array
    """Which of them there are, shape ``(n,)``."""
    fraction: Array
    """What is to be added to ``whole`` after the refinement, which leaves ``start`` where there is none."""
    value: Array
    """χ² there less its constant, shape ``(n,)``."""
    hessian: Array
    """Its second derivatives, shape ``(n, D, D)``."""
    converged: Array
    """Which of them are refined, shape ``(n,)``."""


def value_gradient_hessian(
    derivatives: Array, free: tuple[bool, ...] | None = None
) -> tuple[Array, Array, Array]:
    """Pick value, gradient and Hessian from a tensor of partial derivatives ``[a, b, …]``.

    An axis that is not free gets the gradient and Hessian of a parameter that is where it belongs and has
    no part in the others.
    """
    ndim, shape = derivatives.ndim, derivatives.shape
    unit = np.eye(ndim, dtype=int)
    orders = [np.zeros(ndim, int), *unit, *(unit[:, None] + unit[None, :]).reshape(-1, ndim)]
    picked = derivatives.reshape(-1)[np.ravel_multi_index(np.transpose(orders), shape)]
    value, gradient, hessian = picked[0], picked[1 : ndim + 1], picked[ndim + 1 :].reshape(ndim, ndim)
    if free is not None and not all(free):
        kept = np.array(free)
        gradient = jnp.where(kept, gradient, 0.0)
        hessian = jnp.where(kept[:, None] & kept[None, :], hessian, jnp.eye(ndim, dtype=hessian.dtype))
    return value, gradient, hessian


def best_pixel(terms: Chi2Terms) -> tuple[Array, Array]:
    """Where the search starts: the smallest χ² on the grid and in the window, or what was given."""
    pair, grid, over = terms.pair, lax.stop_gradient(terms.grid), terms.oversample
    dtype = terms.constant.dtype
    if pair.initial is not None:
        return split(lax.stop_gradient(started(pair.initial, pair, terms.model)))
    index = grid_minimum(in_window(grid, over, pair, terms.model))
    shift = jnp.where(terms.settled, terms.origin * over, shift_at(index, grid.shape, over, terms.model))
    whole = shift // over
    fraction = (shift - whole * over).astype(dtype) / over
    if pair.held is None:
        return whole, fraction
    return split(lax.stop_gradient(started(whole + fraction, pair, terms.model)))


def split(shift: Array) -> tuple[Array, Array]:
    """Nearest whole shift, int32, and the remainder, which keeps the derivative."""
    whole = jnp.round(lax.stop_gradient(shift))
    return whole.astype(jnp.int32), shift - whole


def between_samples(terms: Chi2Terms, whole: Array, start: Array) -> Array:
    """``start`` moved from a sample of the search grid to the minimum of parabolas through its neighbours.

    To the nearest of `STARTS`: between equal images it stays exactly where it is. So it does where the grid
    is a score over other pixels than those that χ² is of.
    """
    ndim, over, grid = len(start), terms.oversample, lax.stop_gradient(terms.grid)
    index = jnp.round((whole + start) * over).astype(jnp.int32)
    around = np.concatenate([np.zeros((1, ndim), int), np.eye(ndim, dtype=int), -np.eye(ndim, dtype=int)])
    values = grid[tuple(((index[None, :] + around) % np.array(grid.shape)[None, :]).T)]
    after, before = (values[1:] - values[0]).reshape(2, ndim)
    bend = after + before
    good = (bend > 0) & jnp.isfinite(bend) & np.array(terms.model.free) & ~terms.settled
    offset = jnp.where(good, (before - after) / (2 * jnp.where(good, bend, 1.0)), 0.0)
    return start + jnp.round(jnp.clip(offset, -0.5, 0.5) * STARTS / over) / STARTS


def descend(
    terms: Chi2Terms, whole: Array, start: Array, wanted: Array | bool = True
) -> tuple[Array, Array, Array]:
    """The stationary point of χ² near ``whole + start``: its fraction, Taylor terms, whether it was found.

    Without a derivative: `stationary` gives it one. Where it is not ``wanted``, ``start``, in no steps.
    """
    terms = lax.stop_gradient(terms)
    eps, ndim, free = jnp.finfo(start.dtype).eps, len(start), terms.model.free
    # χ² differences below this are rounding of the series' largest terms.
    noise = 16 * eps * terms.constant
    last = np.indices((EXPANSION_ORDER + 1,) * ndim).max(0) == EXPANSION_ORDER

    def expand(state: _Descent) -> _Descent:
        taylor = terms.derivatives(whole, state.centre, EXPANSION_ORDER)
        step, hessian, found = _lowest(taylor, noise, REACH / terms.bandwidth, free)
        both = jnp.stack([taylor, jnp.where(last, taylor, 0.0)])
        moved, of_last = jax.vmap(lambda f: translate(f, step, TAYLOR_ORDER))(both)
        # How far the last order has moved the minimum: what is left out would move it less.
        change = apply(inverse(hessian), value_gradient_hessian(of_last, free)[1])
        exact = jnp.max(jnp.abs(change)) <= 2 * eps
        going = ~(found & exact) & (jnp.max(jnp.abs(step)) > jnp.sqrt(eps))
        return _Descent(state.centre + step, moved, found & exact, going, state.rounds + 1)

    state = _Descent(
        centre=start,
        taylor=jnp.zeros_like(start, shape=(TAYLOR_ORDER + 1,) * ndim),
        found=jnp.zeros_like(noise, dtype=bool),
        going=jnp.ones_like(noise, dtype=bool) & wanted,
        rounds=jnp.zeros_like(whole, shape=()),
    )
    state = lax.while_loop(lambda s: s.going & (s.rounds < MAX_EXPANSIONS), expand, state)
    return state.centre, state.taylor, state.found


class _Descent(NamedTuple):
    """Where `descend` is."""

    centre: Array
    """Of the last expansion, moved to the minimum on it."""
    taylor: Array
    """The expansion there."""
    found: Array
    going: Array
    rounds: Array


class _Newton(NamedTuple):
    """Where `_lowest` is."""

    best: Array
    """Lowest point so far, a displacement."""
    value: Array
    gradient: Array
    hessian: Array
    """The polynomial's there."""
    candidate: Array
    """Point to be tried next."""
    radius: Array
    """Longest step that is trusted."""
    rounds: Array
    going: Array
    found: Array


def _lowest(taylor: Array, noise: Array, reach: float, free: tuple[bool, ...]) -> tuple[Array, Array, Array]:
    """Displacement to the minimum of a polynomial within ``reach``, Hessian, and whether it has one there."""
    ndim, eps = taylor.ndim, jnp.finfo(taylor.dtype).eps
    # Differences from the centre, which are not rounded like the value there.
    taylor = taylor.at[(0,) * ndim].set(0.0)

    def body(state: _Newton) -> _Newton:
        new = value_gradient_hessian(translate(taylor, state.candidate, 2), free)
        accept = new[0] <= state.value + noise
        old = (state.value, state.gradient, state.hessian)
        value, gradient, hessian = (jnp.where(accept, a, b) for a, b in zip(new, old, strict=True))
        best = jnp.where(accept, state.candidate, state.best)
        radius = jnp.where(accept, state.radius, state.radius / 4)
        # Where χ² is not convex, enough of the identity makes the step a descent.
        ridge = jnp.where(is_positive_definite(hessian), 0.0, 1.5 * jnp.sqrt(jnp.sum(hessian**2)))
        step = -apply(inverse(hessian + ridge * jnp.eye(ndim, dtype=best.dtype)), gradient)
        length = jnp.sqrt(jnp.sum(step**2))
        step = step * jnp.minimum(1.0, radius / jnp.where(length > 0, length, 1.0))
        step = jnp.clip(best + step, -reach, reach) - best
        length = jnp.sqrt(jnp.sum(step**2))
        # Newton squares the error: after a step of √eps nothing is left to gain.
        settled = length < jnp.sqrt(eps)
        # A gradient of rounding errors is none: equal images are at zero, not at 1e-7.
        step = jnp.where(length < 8 * eps, 0.0, step)
        found = settled & (ridge == 0) & (jnp.max(jnp.abs(best)) < reach)
        going = ~settled & ~jnp.isnan(length)
        best = jnp.where(found, best + step, best)
        candidate = best + jnp.where(going, step, 0.0)
        return _Newton(best, value, gradient, hessian, candidate, radius, state.rounds + 1, going, found)

    zero = jnp.zeros_like(taylor, shape=(ndim,))
    state = _Newton(
        best=zero,
        value=jnp.full_like(noise, jnp.inf),
        gradient=zero,
        hessian=jnp.zeros_like(taylor, shape=(ndim, ndim)),
        candidate=zero,
        radius=jnp.full_like(noise, 0.5),
        rounds=jnp.zeros_like(noise, dtype=jnp.int32),
        going=jnp.ones_like(noise, dtype=bool),
        found=jnp.zeros_like(noise, dtype=bool),
    )
    state = lax.while_loop(lambda s: s.going & (s.rounds < MAX_STEPS), body, state)
    return state.best, state.hessian, state.found


@jax.custom_jvp
def stationary(
    terms: Chi2Terms, whole: Array, fraction: Array, value: Array, hessian: Array
) -> tuple[Array, Array, Array]:
    """Fraction, value and Hessian of a stationary point, with the derivatives that they have as such."""
    return fraction, value, hessian


@stationary.defjvp
def _stationary_jvp(primals: tuple, tangents: tuple) -> tuple:
    terms, whole, *_ = primals
    fraction, value, hessian = stationary(*primals)

    def expansion(terms: Chi2Terms, fraction: Array) -> tuple[Array, Array, Array]:
        return value_gradient_hessian(terms.derivatives(whole, fraction, 2), terms.model.free)

    _, changes = jax.jvp(lambda terms: expansion(terms, fraction), (terms,), (tangents[0],))
    d_value, d_gradient, d_hessian = changes
    d_fraction = -apply(inverse(hessian), d_gradient)
    _, (_, _, d_moved) = jax.jvp(lambda fraction: expansion(terms, fraction), (fraction,), (d_fraction,))
    return (fraction, value, hessian), (d_fraction, d_value, d_hessian + d_moved)


def find_minimum(terms: Chi2Terms) -> Minimum:
    """Search the grid, refine on the series."""
    whole, start = best_pixel(terms)
    if terms.pair.initial is None:
        start = between_samples(terms, whole, start)
    return _minimum(terms, whole, *descend(terms, whole, start))


def find_minima(terms: Chi2Terms, others: Candidates) -> tuple[Minimum, Candidates]:
    """The minimum, and other candidates refined like it where one χ² holds for all shifts."""
    whole, start = best_pixel(terms)
    wholes, starts = (
        jnp.concatenate([whole[None], others.whole]),
        jnp.concatenate([start[None], others.start]),
    )
    moved = jax.vmap(partial(between_samples, terms))(wholes, starts)
    wanted = jnp.concatenate([jnp.ones_like(others.exist[:1]), others.exist & ~terms.settled])
    if terms.pair.initial is not None:
        moved = moved.at[0].set(start)
    points = wholes, jnp.where(wanted[:, None], moved, starts), wanted
    # One loop after the other, and a program with one loop.
    fraction, taylor, found = lax.map(lambda point: descend(terms, *point), points)
    minimum = _minimum(terms, whole, fraction[0], taylor[0], found[0])
    value, _, hessian = jax.vmap(partial(value_gradient_hessian, free=terms.model.free))(taylor[1:])
    return minimum, others._replace(fraction=fraction[1:], value=value, hessian=hessian, converged=found[1:])


def with_derivative(terms: Chi2Terms, minimum: Minimum) -> Minimum:
    """A minimum that was found without one, with its derivative in the terms."""
    point = lax.stop_gradient((minimum.fraction, minimum.value, minimum.hessian))
    fraction, value, hessian = stationary(terms, minimum.whole, *point)
    return minimum._replace(fraction=fraction, value=value, hessian=hessian)


def _minimum(terms: Chi2Terms, whole: Array, fraction: Array, taylor: Array, found: Array) -> Minimum:
    value, _, hessian = value_gradient_hessian(taylor, terms.model.free)
    return with_derivative(terms, Minimum(whole, fraction, taylor, found, value, hessian))
