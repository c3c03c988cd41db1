"""The minimum of χ²: the best pixel, then Newton's method on the exact series, and its derivative.

The search, an argmin over the pixel grid and Newton's steps, has no gradient. What it finds is the root of
``∇χ²(s) = 0``; by the implicit function theorem ``ds = −H⁻¹ d(∇χ²)`` at fixed s, whatever iteration found
it, so the derivative costs one linear evaluation and holds to any order.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .layout import grid_minimum, in_window, shift_at, started
from .terms import Chi2Terms

MAX_STEPS = 50
TAYLOR_ORDER = 5

Search = tuple[Array, Array, Array, Array, Array, Array, Array, Array]


class Minimum(NamedTuple):
    """A stationary point of χ² and the Taylor terms of χ² around it."""

    whole: Array
    """Whole pixels of the shift, int32, shape ``(D,)``."""
    fraction: Array
    """What is to be added to ``whole``, in pixels, shape ``(D,)``; a constant of size below about one."""
    taylor: Array
    """All partial derivatives of χ² there up to `TAYLOR_ORDER` per axis, the value itself left out of use."""
    converged: Array
    """Whether the last Newton step was below rounding."""
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


def inverse(matrix: Array) -> Array:
    """Inverse of a 1×1, 2×2 or 3×3 matrix in closed form; infinite or NaN where it is singular.

    A LAPACK call costs more than a whole Newton step here. Rows and columns are scaled to unit size first:
    at high S/N the determinant itself would overflow float32.
    """
    rows = jnp.max(jnp.abs(matrix), axis=1)
    rows = jnp.where(rows > 0, rows, 1.0)
    m = matrix / rows[:, None]
    if len(m) == 1:
        result = 1 / m
    elif len(m) == 2:
        result = jnp.stack([m[1, 1], -m[0, 1], -m[1, 0], m[0, 0]]).reshape(2, 2)
        result = result / (m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])
    else:
        cofactors = jnp.stack([jnp.cross(m[1], m[2]), jnp.cross(m[2], m[0]), jnp.cross(m[0], m[1])])
        result = cofactors.T / jnp.dot(m[0], cofactors[0], precision=lax.Precision.HIGHEST)
    return result / rows[None, :]


def is_positive_definite(matrix: Array) -> Array:
    """Whether a symmetric matrix of up to three rows is positive definite beyond rounding.

    The leading minors of the matrix scaled to unit diagonal: with them below a few ulp, it is singular.
    """
    diagonal = jnp.diagonal(matrix)
    positive = jnp.all(diagonal > 0)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    m = matrix * scale[:, None] * scale[None, :]
    limit = 16 * jnp.finfo(m.dtype).eps
    if len(m) > 1:
        positive &= m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0] > limit
    if len(m) > 2:
        positive &= jnp.dot(m[0], jnp.cross(m[1], m[2]), precision=lax.Precision.HIGHEST) > limit
    return positive


def apply(matrix: Array, vector: Array) -> Array:
    """Product of a small matrix and a vector, in plain arithmetic that no backend rounds to bfloat16."""
    return jnp.sum(matrix * vector[None, :], axis=1)


def best_pixel(terms: Chi2Terms) -> tuple[Array, Array]:
    """Where the search starts: the smallest χ² on the grid and in the window, or what was given."""
    pair, grid, over = terms.pair, lax.stop_gradient(terms.grid), terms.oversample
    dtype = terms.constant.dtype
    if pair.initial is not None:
        return split(lax.stop_gradient(started(pair.initial, pair, terms.model)))
    index = grid_minimum(in_window(grid, over, pair, terms.model))
    shift = shift_at(index, grid.shape, over, terms.model)
    whole = shift // over
    fraction = (shift - whole * over).astype(dtype) / over
    if pair.held is None:
        return whole, fraction
    return split(lax.stop_gradient(started(whole + fraction, pair, terms.model)))


def split(shift: Array) -> tuple[Array, Array]:
    """Nearest whole shift, int32, and the remainder, which keeps the derivative."""
    whole = jnp.round(lax.stop_gradient(shift))
    return whole.astype(jnp.int32), shift - whole


def descend(terms: Chi2Terms, whole: Array, start: Array, wanted: Array | bool = True) -> tuple[Array, Array]:
    """The stationary point of χ² near ``whole + start``: its fraction, and whether Newton converged.

    Without a derivative: `stationary` gives it one. Where it is not ``wanted``, ``start``, in no steps.
    """
    terms = lax.stop_gradient(terms)
    eps = jnp.finfo(start.dtype).eps
    # χ² differences below this are rounding of the series' largest terms.
    noise = 16 * eps * terms.constant

    def body(state: Search) -> Search:
        best, value, gradient, hessian, candidate, radius, count, _ = state
        new = value_gradient_hessian(terms.derivatives(whole, candidate, 2), terms.model.free)
        accept = new[0] <= value + noise
        best = jnp.where(accept, candidate, best)
        value, gradient, hessian = (
            jnp.where(accept, a, b) for a, b in zip(new, (value, gradient, hessian), strict=True)
        )
        radius = jnp.where(accept, radius, radius / 4)
        # Where χ² is not convex, enough of the identity makes the step a descent.
        ridge = jnp.where(is_positive_definite(hessian), 0.0, 1.5 * jnp.sqrt(jnp.sum(hessian**2)))
        step = -apply(inverse(hessian + ridge * jnp.eye(len(best), dtype=best.dtype)), gradient)
        length = jnp.sqrt(jnp.sum(step**2))
        step = step * jnp.minimum(1.0, radius / jnp.where(length > 0, length, 1.0))
        # Newton squares the error: after a step of √eps nothing is left to gain.
        done = (length < jnp.sqrt(eps)) & (ridge == 0)
        # A gradient of rounding errors is none: equal images are at zero, not at 1e-7.
        step = jnp.where(length < 8 * eps, 0.0, step)
        best = jnp.where(done, best + step, best)
        return best, value, gradient, hessian, best + jnp.where(done, 0.0, step), radius, count + 1, done

    ndim = len(start)
    state = (
        start,
        jnp.full_like(noise, jnp.inf),
        jnp.zeros_like(start),
        jnp.zeros_like(start, shape=(ndim, ndim)),
        start,
        jnp.full_like(noise, 0.5),
        jnp.zeros_like(whole, shape=()),
        jnp.zeros_like(noise, dtype=bool),
    )
    state = lax.while_loop(lambda s: wanted & ~s[-1] & (s[-2] < MAX_STEPS), body, state)
    return state[0], state[-1]


@jax.custom_jvp
def stationary(terms: Chi2Terms, whole: Array, fraction: Array) -> Array:
    """The fraction of a stationary point, with the derivative that it has as one."""
    return fraction


@stationary.defjvp
def _stationary_jvp(primals: tuple, tangents: tuple) -> tuple:
    terms, whole, fraction = primals
    fraction = stationary(terms, whole, fraction)

    def expansion(terms: Chi2Terms) -> tuple[Array, Array, Array]:
        return value_gradient_hessian(terms.derivatives(whole, fraction, 2), terms.model.free)

    (_, _, hessian), (_, change, _) = jax.jvp(expansion, (terms,), (tangents[0],))
    return fraction, -apply(inverse(hessian), change)


def find_minimum(terms: Chi2Terms) -> Minimum:
    """Search the grid, refine on the series."""
    whole, start = best_pixel(terms)
    return _expanded(terms, whole, *descend(terms, whole, start))


def find_minima(terms: Chi2Terms, others: Candidates) -> tuple[Minimum, Candidates]:
    """The minimum, and other candidates refined like it where one χ² holds for all shifts."""
    whole, start = best_pixel(terms)
    points = (
        jnp.concatenate([whole[None], others.whole]),
        jnp.concatenate([start[None], others.start]),
        jnp.concatenate([jnp.ones_like(others.exist[:1]), others.exist & ~terms.settled]),
    )
    # One loop after the other, and a program with one loop.
    fraction, converged = lax.map(lambda point: descend(terms, *point), points)
    minimum = _expanded(terms, whole, fraction[0], converged[0])
    return minimum, others._replace(fraction=fraction[1:], converged=converged[1:])


def with_derivative(terms: Chi2Terms, minimum: Minimum) -> Minimum:
    """A minimum that was found without one, with its derivative in the terms."""
    return _expanded(terms, minimum.whole, minimum.fraction, minimum.converged)


def _expanded(terms: Chi2Terms, whole: Array, fraction: Array, converged: Array) -> Minimum:
    fraction = stationary(terms, whole, lax.stop_gradient(fraction))
    taylor = terms.derivatives(whole, fraction, TAYLOR_ORDER)
    return Minimum(whole, fraction, taylor, converged, value_gradient_hessian(taylor, terms.model.free)[2])
