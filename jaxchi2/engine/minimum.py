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

from .algebra import apply, inverse, largest, norm, numbers, or_one, with_ridge
from .chi2series import Chi2Series
from .position import Position
from .searchgrid import SearchGrid
from .taylor import translate

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


class Minimum(NamedTuple):
    """A stationary point of χ² and the Taylor terms of χ² around it."""

    position: Position
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

    sample: Array
    """Whole shifts, int32, shape ``(n, D)``."""
    exist: Array
    """Which of them there are, shape ``(n,)``."""
    position: Position
    """After the refinement, which leaves the sample where there is none; shape ``(n, D)``."""
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
    flat = derivatives.reshape(-1)
    at = np.ravel_multi_index(np.transpose(orders), shape).tolist()
    value, *picked = (lax.index_in_dim(flat, k, keepdims=False) for k in at)
    gradient, hessian = jnp.stack(picked[:ndim]), jnp.stack(picked[ndim:]).reshape(ndim, ndim)
    if free is not None and not all(free):
        kept = np.array(free)
        gradient = jnp.where(kept, gradient, 0.0)
        hessian = jnp.where(kept[:, None] & kept[None, :], hessian, np.eye(ndim, dtype=hessian.dtype))
    return value, gradient, hessian


def descend(
    series: Chi2Series, start: Position, wanted: Array | bool = True
) -> tuple[Position, Array, Array]:
    """The stationary point of χ² near a start, the Taylor terms there, and whether it was found.

    Without a derivative: `stationary` gives it one. Where it is not ``wanted``, the start, in no steps.
    """
    series = lax.stop_gradient(series)
    whole, centre = start
    eps, ndim, free = jnp.finfo(centre.dtype).eps, len(centre), series.plan.free
    # χ² differences below this are rounding of the series' largest terms.
    noise = 16 * eps * series.constant
    last = np.indices((EXPANSION_ORDER + 1,) * ndim).max(0) == EXPANSION_ORDER

    def expand(state: _Descent) -> _Descent:
        taylor = series.derivatives(Position(whole, state.centre), EXPANSION_ORDER)
        step, found = _lowest(taylor, noise, REACH / series.bandwidth, free)
        both = jnp.stack([taylor, taylor * last])
        moved, of_last = jax.vmap(lambda f: translate(f, step, TAYLOR_ORDER))(both)
        # How far the last order has moved the minimum: what is left out would move it less.
        hessian = value_gradient_hessian(moved, free)[2]
        change = apply(inverse(hessian), value_gradient_hessian(of_last, free)[1])
        exact = largest(change) <= 2 * eps
        going = ~(found & exact) & (largest(step) > jnp.sqrt(eps))
        return _Descent(state.centre + step, moved, found & exact, going, state.rounds + 1)

    state = _Descent(
        centre=centre,
        taylor=jnp.zeros_like(centre, shape=(TAYLOR_ORDER + 1,) * ndim),
        found=jnp.zeros_like(noise, dtype=bool),
        going=jnp.ones_like(noise, dtype=bool) & wanted,
        rounds=jnp.zeros_like(whole, shape=()),
    )
    state = lax.while_loop(lambda s: s.going & (s.rounds < MAX_EXPANSIONS), expand, state)
    return Position(whole, state.centre), state.taylor, state.found


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
    """The polynomial's there."""
    candidate: Array
    """Point to be tried next."""
    radius: Array
    """Longest step that is trusted."""
    rounds: Array
    going: Array
    found: Array
    """These three are numbers too, so that all is one vector: each variable of a loop would be a kernel."""

    @classmethod
    def of(cls, vector: Array) -> _Newton:
        """The state in a vector."""
        ndim = (len(vector) - 5) // 2
        best, value, candidate, rest = jnp.split(vector, [ndim, ndim + 1, 2 * ndim + 1])
        return cls(best, value[0], candidate, *numbers(rest))

    def vector(self) -> Array:
        """The state as a vector."""
        rest = (self.radius, self.rounds, self.going, self.found)
        return jnp.stack([*numbers(self.best), self.value, *numbers(self.candidate), *rest])


def _lowest(taylor: Array, noise: Array, reach: float, free: tuple[bool, ...]) -> tuple[Array, Array]:
    """Displacement to the minimum of a polynomial within ``reach``, and whether it has one there."""
    ndim, eps, dtype = taylor.ndim, jnp.finfo(taylor.dtype).eps, taylor.dtype
    # Differences from the centre, which are not rounded like the value there.
    taylor = taylor * (np.indices(taylor.shape).sum(0) > 0)

    def body(vector: Array) -> Array:
        state = _Newton.of(vector)
        value, gradient, hessian = value_gradient_hessian(translate(taylor, state.candidate, 2), free)
        accept = value <= state.value + noise
        best = jnp.where(accept, state.candidate, state.best)
        radius = jnp.where(accept, state.radius, state.radius / 4)
        # Where χ² is not convex, enough of the identity makes the step a descent.
        hessian, ridge = with_ridge(hessian)
        # A step that was too long is tried again, shorter.
        step = jnp.where(accept, -apply(inverse(hessian), gradient), state.candidate - state.best)
        step = step * jnp.minimum(1.0, radius / or_one(norm(step)))
        step = jnp.clip(best + step, -reach, reach) - best
        length = norm(step)
        # Newton squares the error: after a step of √eps nothing is left to gain.
        settled = length < jnp.sqrt(eps)
        # A gradient of rounding errors is none: equal images are at zero, not at 1e-7.
        step = jnp.where(length < 8 * eps, 0.0, step)
        found = settled & accept & (ridge == 0) & (largest(best) < reach)
        going = ~settled & ~jnp.isnan(length)
        return _Newton(
            best=jnp.where(found, best + step, best),
            value=jnp.where(accept, value, state.value),
            candidate=best + jnp.where(going, step, 0.0),
            radius=radius,
            rounds=state.rounds + 1,
            going=going.astype(dtype),
            found=found.astype(dtype),
        ).vector()

    nothing = jnp.zeros_like(noise)
    zeros = jnp.zeros_like(noise, shape=(ndim,))
    start = _Newton(zeros, nothing + np.inf, zeros, nothing + 0.5, nothing, nothing + 1, nothing).vector()

    def unfinished(vector: Array) -> Array:
        state = _Newton.of(vector)
        return (state.going > 0) & (state.rounds < MAX_STEPS)

    state = _Newton.of(lax.while_loop(unfinished, body, start))
    return state.best, state.found > 0


@jax.custom_jvp
def stationary(
    series: Chi2Series, at: Position, value: Array, hessian: Array
) -> tuple[Position, Array, Array]:
    """Position, value and Hessian of a stationary point, with the derivatives that they have as such."""
    return at, value, hessian


@stationary.defjvp
def _stationary_jvp(primals: tuple, tangents: tuple) -> tuple:
    series = primals[0]
    # Through `stationary`, for derivatives of these.
    at, value, hessian = stationary(*primals)

    def expansion(series: Chi2Series, fraction: Array) -> tuple[Array, Array, Array]:
        tensor = series.derivatives(Position(at.whole, fraction), 2)
        return value_gradient_hessian(tensor, series.plan.free)

    _, changes = jax.jvp(lambda series: expansion(series, at.fraction), (series,), (tangents[0],))
    d_value, d_gradient, d_hessian = changes
    d_fraction = -apply(inverse(hessian), d_gradient)
    _, (_, _, d_moved) = jax.jvp(lambda x: expansion(series, x), (at.fraction,), (d_fraction,))
    d_at = Position(tangents[1].whole, d_fraction)
    return (at, value, hessian), (d_at, d_value, d_hessian + d_moved)


def find_minimum(grid: SearchGrid, series: Chi2Series) -> Minimum:
    """Search the grid, refine on the series."""
    start = grid.start()
    if grid.constraints.initial is None:
        start = grid.between_samples(start)
    return _minimum(series, *descend(series, start))


def find_minima(grid: SearchGrid, series: Chi2Series, n: int) -> tuple[Minimum, Candidates]:
    """The minimum, and the n deepest others, refined like it where one χ² holds for all shifts."""
    start = grid.start()
    samples, exist = grid.minima(n)
    others = Position(samples, jnp.zeros_like(start.fraction, shape=samples.shape))
    starts = _joined(start, others)
    moved = jax.vmap(grid.between_samples)(starts)
    wanted = jnp.concatenate([jnp.ones_like(exist[:1]), exist & ~grid.settled])
    if grid.constraints.initial is not None:
        moved = moved._replace(fraction=moved.fraction.at[0].set(start.fraction))
    moved = moved._replace(fraction=jnp.where(wanted[:, None], moved.fraction, starts.fraction))
    # One loop after the other, and a program with one loop.
    found = lax.map(lambda point: descend(series, *point), (moved, wanted))
    first, (at, taylor, converged) = (jax.tree.map(lambda x, k=k: x[k], found) for k in (0, slice(1, None)))
    value, _, hessian = jax.vmap(partial(value_gradient_hessian, free=series.plan.free))(taylor)
    return _minimum(series, *first), Candidates(samples, exist, at, value, hessian, converged)


def _joined(first: Position, others: Position) -> Position:
    return jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, others)


def with_derivative(series: Chi2Series, minimum: Minimum) -> Minimum:
    """A minimum that was found without one, with its derivative in the series."""
    point = lax.stop_gradient((minimum.position, minimum.value, minimum.hessian))
    position, value, hessian = stationary(series, *point)
    return minimum._replace(position=position, value=value, hessian=hessian)


def _minimum(series: Chi2Series, at: Position, taylor: Array, found: Array) -> Minimum:
    value, _, hessian = value_gradient_hessian(taylor, series.plan.free)
    return with_derivative(series, Minimum(at, taylor, found, value, hessian))
