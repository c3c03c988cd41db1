"""Uncertainty of the shift: confidence levels, covariance, profile-likelihood intervals, contours.

Intervals and contours are points where Δχ² takes a given value: on the profile of one axis, or along a
ray. Both are solved by Newton's method, first on the Taylor polynomial of χ² at the minimum, in units of
the standard error, which is exact in float32 however sharp the minimum; and only where the polynomial is
not enough (a wide, low minimum) on the series itself.
"""

from __future__ import annotations

from functools import partial
from math import factorial, lgamma
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from .minimum import TAYLOR_ORDER, Minimum, inverse, is_positive_definite, value_gradient_hessian
from .spectrum import along, contract
from .terms import Chi2Terms

MAX_STEPS = 40


def delta_chi2(nsigma: ArrayLike, nfitted: int = 1) -> Array:
    """Δχ² that bounds the region with the probability of ±``nsigma`` of a normal, for ``nfitted`` parameters.

    The solution x of ``Q(nfitted/2, x/2) = 2 Φ(−nsigma)``, in logarithms, so that it is right at any
    ``nsigma``: ``scipy.stats.chi2.isf(2 * norm.sf(nsigma), nfitted)``, also where that underflows.

    Parameters
    ----------
    nsigma : array_like
        Number of standard deviations, positive.
    nfitted : int
        Number of parameters fitted jointly; static under jit.

    Returns
    -------
    Array
        The threshold, in the shape and float dtype of ``nsigma``.

    Raises
    ------
    ValueError
        If ``nfitted`` is not a positive integer.

    Examples
    --------
    >>> print(f"{delta_chi2(1.0):.4f} {delta_chi2(1.0, nfitted=2):.4f}")
    1.0000 2.2957
    """
    if not isinstance(nfitted, int | np.integer) or isinstance(nfitted, bool) or nfitted < 1:
        raise ValueError(f"nfitted must be a positive integer, not {nfitted!r}")
    nsigma = jnp.asarray(nsigma)
    if not jnp.issubdtype(nsigma.dtype, jnp.floating):
        nsigma = nsigma.astype(float)
    if nfitted == 1:
        return nsigma**2
    target = np.log(2.0).astype(nsigma.dtype) + log_ndtr(-nsigma)
    if nfitted == 2:
        return -2 * target

    def log_sf(x: Array) -> Array:
        """Log Q(nfitted/2, x/2): a finite sum, by parts, down to ``exp`` or ``erfc``."""
        terms = [log_ndtr(-jnp.sqrt(x)) + np.log(2.0).astype(x.dtype)] if nfitted % 2 else []
        powers = np.arange(nfitted % 2 / 2, nfitted / 2)
        terms += [p * jnp.log(x / 2) - x / 2 - np.asarray(lgamma(p + 1), x.dtype) for p in powers.tolist()]
        return jax.scipy.special.logsumexp(jnp.stack(terms), axis=0)

    def newton(_: int, x: Array) -> Array:
        log_pdf = (nfitted / 2 - 1) * jnp.log(x / 2) - x / 2 - lgamma(nfitted / 2) - np.log(2.0)
        value = log_sf(x)
        return jnp.maximum(x + (value - target) * jnp.exp(value - log_pdf), x / 4)

    return lax.fori_loop(0, 30, newton, nsigma**2 + nfitted)


def covariance_of(hessian: Array) -> Array:
    """Covariance ``2 H⁻¹`` of the shift from the Hessian of χ²."""
    return 2 * inverse(hessian)


class LevelPoints(NamedTuple):
    """Displacements from the minimum at which Δχ² takes a given value."""

    displacement: Array
    """In pixels, shape ``(n, D)``."""
    found: Array
    """Whether each is one, shape ``(n,)``."""


def interval_points(terms: Chi2Terms, minimum: Minimum, threshold: Array) -> LevelPoints:
    """Extremes of each axis over the region Δχ² < ``threshold``: first the lower ones, then the upper."""
    covariance = covariance_of(minimum.hessian)
    sigma = jnp.sqrt(jnp.diagonal(covariance))
    # The extremes of an ellipsoid along its axes are the columns of its covariance.
    towards = covariance / sigma[:, None]
    starts = jnp.concatenate([-towards, towards])
    points, found = level_points("profile", terms, minimum, starts, threshold)
    return LevelPoints(points, found)


def contour_points(terms: Chi2Terms, minimum: Minimum, threshold: Array, n: int) -> LevelPoints:
    """``n`` points of the curve Δχ² = ``threshold`` of a two-dimensional surface, one on each ray.

    The rays are even in angle once the ellipse of the covariance is made a circle.
    """
    covariance = covariance_of(minimum.hessian)
    sigma = jnp.sqrt(jnp.diagonal(covariance))
    cosine = covariance[0, 1] / (sigma[0] * sigma[1])
    angle = np.asarray(2 * np.pi * np.arange(n) / n, covariance.dtype)
    first = jnp.sin(angle)
    second = cosine * first + jnp.sqrt(1 - cosine**2) * jnp.cos(angle)
    starts = jnp.stack([first, second], axis=1) * sigma
    points, found = level_points("ray", terms, minimum, starts, threshold)
    return LevelPoints(points, found)


def _powers(x: Array) -> Array:
    """``x⁰ … x^TAYLOR_ORDER``, a vector."""
    return jnp.stack([x**p for p in range(TAYLOR_ORDER + 1)])


def _conditions(
    kind: str, start: Array, point: Array, gradient: Array, hessian: Array
) -> tuple[Array, Array]:
    """The D − 1 conditions that single out a point of the level surface, and their derivatives.

    ``start`` is a unit-level point of the ellipsoid. "profile": the gradient vanishes along every axis but
    the one that ``start`` is the extreme of. "ray": the point lies on the ray through ``start``.
    Returned as D rows, of which `_solve_row` replaces one by Δχ² = level.
    """
    if kind == "profile":
        return gradient, hessian
    across = jnp.stack([-start[1], start[0]])
    across = across / jnp.sqrt(jnp.sum(across**2))
    rows = jnp.stack([across, across])
    return jnp.sum(rows * point, axis=1), rows


def _system(
    kind: str, start: Array, axis: Array, point: Array, delta: Array, gradient: Array, hessian: Array
) -> tuple[Array, Array]:
    """Residuals and Jacobian of the D equations for one point; ``delta`` is Δχ² less its target."""
    residual, jacobian = _conditions(kind, start, point, gradient, hessian)
    level = jnp.arange(len(start)) == axis
    return jnp.where(level, delta, residual), jnp.where(level[:, None], gradient, jacobian)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def level_points(
    kind: str, terms: Chi2Terms, minimum: Minimum, starts: Array, threshold: Array
) -> tuple[Array, Array]:
    """Solve for points with Δχ² = ``threshold``, displacements from the minimum.

    ``starts`` are their places for Δχ² = 1 if χ² were quadratic, shape ``(n, D)``; for "profile" lower
    extremes of axes 0 … D−1, then the upper ones. Returns displacements and whether each was found.
    """
    ndim = starts.shape[1]
    axes = jnp.arange(len(starts)) % ndim if kind == "profile" else jnp.zeros(len(starts), int)
    sigma = jnp.max(jnp.abs(starts), axis=0)
    scale = jnp.sqrt(threshold) * sigma
    # Δχ² / threshold in units of ``scale``. A threshold of zero (a perfect match) leaves the quadratic.
    positive = jnp.maximum(threshold, 1e-30)
    powers = np.arange(TAYLOR_ORDER + 1)
    order = np.indices(minimum.taylor.shape).sum(0)
    polynomial = jnp.where(order >= 2, minimum.taylor / positive, 0.0)
    for axis in range(ndim):
        column = _powers(jnp.sqrt(positive) * sigma[axis]) / np.array([factorial(p) for p in powers])
        polynomial = polynomial * along(column.astype(sigma.dtype), axis, ndim)

    def monomials(x: Array) -> Array:
        """Powers of x and their first and second derivatives, one column each."""
        p = _powers(x)
        zeros = jnp.zeros_like(p[:1])
        first = powers * jnp.concatenate([zeros, p[:-1]])
        return jnp.stack([p, first, powers * jnp.concatenate([zeros, first[:-1]])], axis=1)

    def on_polynomial(u: Array) -> tuple[Array, Array, Array]:
        return value_gradient_hessian(contract(polynomial, [monomials(u[a]) for a in range(ndim)]))

    def newton_step(start: Array, axis: Array, u: Array, expansion: tuple) -> Array:
        value, gradient, hessian = expansion
        residual, jacobian = _system(kind, start, axis, u, value - 1, gradient, hessian)
        step = -jnp.sum(inverse(jacobian) * residual, axis=-1)
        return step * jnp.minimum(1.0, 0.5 / jnp.max(jnp.abs(step)))

    units = starts / sigma

    def improve(_: int, us: Array) -> Array:
        return jax.vmap(lambda s, a, u: u + newton_step(s, a, u, on_polynomial(u)))(units, axes, us)

    solution = lax.fori_loop(0, 6, improve, units)

    # Terms of order 4 and 5 small at the solution means that those left out are negligible.
    last = jnp.where((order == 4) | (order == 5), jnp.abs(polynomial), 0.0)
    tail = jax.vmap(lambda u: contract(last, [_powers(jnp.abs(u[a]))[:, None] for a in range(ndim)]))(
        solution
    )
    tail = tail.reshape(len(starts))
    enough = (tail < 0.02) & jnp.all(jnp.isfinite(solution), axis=1)

    base = minimum.taylor[(0,) * ndim]

    def on_series(u: Array) -> tuple[Array, Array, Array]:
        value, gradient, hessian = value_gradient_hessian(
            terms.derivatives(minimum.whole, minimum.fraction + u * scale, 2)
        )
        outer = scale[:, None] * scale[None, :]
        return (value - base) / threshold, gradient * scale / threshold, hessian * outer / threshold

    def refine_all(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        us, done, count = state
        steps = jax.vmap(lambda s, a, u: newton_step(s, a, u, on_series(u)))(units, axes, us)
        us = jnp.where(done[:, None], us, us + steps)
        # On the right side of the minimum, or it is the way out of another one.
        settled = (jnp.max(jnp.abs(steps), axis=1) < 1e-3) & (jnp.sum(us * units, axis=1) > 0)
        return us, done | settled, count + 1

    hopeless = ~jnp.all(jnp.isfinite(units), axis=1)
    state = (jnp.where(enough[:, None], solution, units), enough | hopeless, jnp.zeros((), int))
    solution, found, _ = lax.while_loop(lambda s: ~jnp.all(s[1]) & (s[2] < MAX_STEPS), refine_all, state)
    return solution * scale, found & ~hopeless


@level_points.defjvp
def _level_points_jvp(kind: str, primals: tuple, tangents: tuple) -> tuple:
    terms, minimum, starts, threshold = primals
    d_terms, d_minimum, _, d_threshold = tangents
    whole, fraction, d_fraction = minimum.whole, minimum.fraction, d_minimum.fraction
    points, found = level_points(kind, terms, minimum, starts, threshold)
    ndim = starts.shape[1]
    axes = jnp.arange(len(starts)) % ndim if kind == "profile" else jnp.zeros(len(starts), int)

    def expansion(terms: Chi2Terms, fraction: Array) -> tuple[Array, Array, Array]:
        return value_gradient_hessian(terms.derivatives(whole, fraction, 2))

    # At the minimum χ² does not depend on where the minimum is, to first order.
    (_, _, _), (d_base, _, _) = jax.jvp(lambda t: expansion(t, fraction), (terms,), (d_terms,))

    def tangent(start: Array, axis: Array, point: Array) -> Array:
        (_, gradient, hessian), (d_value, d_gradient, _) = jax.jvp(
            expansion, (terms, fraction + point), (d_terms, d_fraction)
        )
        change, jacobian = _system(
            kind, start, axis, point, d_value - d_base - d_threshold, gradient, hessian
        )
        change = jnp.where(jnp.arange(ndim) == axis, change, d_gradient if kind == "profile" else 0.0)
        return -jnp.sum(inverse(jacobian) * change, axis=-1)

    return (points, found), (
        jax.vmap(tangent)(starts, axes, points),
        np.zeros(found.shape, jax.dtypes.float0),
    )


def profile_values(terms: Chi2Terms, minimum: Minimum, axis: int, displacements: Array) -> Array:
    """Δχ² minimised over all other axes at given displacements along one axis, shape of ``displacements``."""
    whole, fraction = minimum.whole, minimum.fraction
    ndim = len(fraction)
    free = np.arange(ndim) != axis
    slope = covariance_of(minimum.hessian)[:, axis]
    slope = slope / slope[axis]

    def at(displacement: Array) -> Array:
        def improve(_: int, d: Array) -> Array:
            _, gradient, hessian = value_gradient_hessian(terms.derivatives(whole, fraction + d, 2))
            ridge = jnp.where(is_positive_definite(hessian), 0.0, 1.5 * jnp.sqrt(jnp.sum(hessian**2)))
            hessian = hessian + ridge * jnp.eye(ndim, dtype=d.dtype)
            hessian = jnp.where(free[:, None] & free[None, :], hessian, jnp.eye(ndim, dtype=d.dtype))
            step = -jnp.sum(inverse(hessian) * jnp.where(free, gradient, 0.0), axis=-1)
            length = jnp.sqrt(jnp.sum(step**2))
            return d + step * jnp.minimum(1.0, 0.5 / jnp.where(length > 0, length, 1.0))

        d = lax.fori_loop(0, 12 if ndim > 1 else 0, improve, slope * displacement)
        return terms.differences(whole, fraction, [d[a : a + 1] for a in range(ndim)]).reshape(())

    return lax.map(at, displacements, batch_size=16)
