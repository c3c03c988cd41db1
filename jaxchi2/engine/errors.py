"""Uncertainty of the shift: confidence levels, covariance, profile-likelihood intervals, contours.

Intervals and contours are points where Δχ² takes a given value: on the profile of one axis, or along a
ray. Both are solved by Newton's method, first on the Taylor polynomial of χ² at the minimum, in units of
the standard error, which is exact in float32 however sharp the minimum; and only where the polynomial is
not enough (a wide, low minimum) on the series itself.
"""

from __future__ import annotations

from functools import partial, reduce
from math import factorial, lgamma
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import log_ndtr
from jax.typing import ArrayLike

from ..checks import as_numbers, integer, refuse_unless
from .algebra import apply, inverse, largest, norm, or_one, with_ridge
from .chi2series import Chi2Series
from .minimum import TAYLOR_ORDER, Minimum, value_gradient_hessian
from .passes import any_in_batch, sum_all
from .position import Position
from .spectrum import along
from .taylor import powers, translate

MAX_STEPS = 40
COARSEST = 0.1
"""Largest last Newton step, in standard errors, of a level point that rounding keeps from coming to rest.
What is left to go is of the order of its square."""


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
        If ``nfitted`` is not a positive integer, or ``nsigma`` is known not to be positive.

    Examples
    --------
    >>> print(f"{delta_chi2(1.0):.4f} {delta_chi2(1.0, nfitted=2):.4f}")
    1.0000 2.2957
    """
    nfitted = integer(nfitted, "nfitted")
    given, nsigma = nsigma, as_numbers(nsigma, "nsigma", "positive numbers")
    refuse_unless(lambda value: value > 0, given, "nsigma", "positive")
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

    def newton(_: ArrayLike, x: Array) -> Array:
        log_pdf = (nfitted / 2 - 1) * jnp.log(x / 2) - x / 2 - lgamma(nfitted / 2) - np.log(2.0)
        value = log_sf(x)
        return jnp.maximum(x + (value - target) * jnp.exp(value - log_pdf), x / 4)

    return lax.fori_loop(0, 30, newton, jnp.asarray(nsigma**2 + nfitted))


def covariance_of(hessian: Array, free: tuple[bool, ...]) -> Array:
    """Covariance ``2 H⁻¹`` of the shift from the Hessian of χ²; zero for axes that are held."""
    kept = np.array(free)
    return jnp.where(kept[:, None] & kept[None, :], 2 * inverse(hessian), 0.0)


class LevelPoints(NamedTuple):
    """Displacements from the minimum at which Δχ² takes a given value."""

    displacement: Array
    """In pixels, shape ``(n, D)``."""
    found: Array
    """Whether each is one, shape ``(n,)``."""


def interval_points(series: Chi2Series, minimum: Minimum, threshold: Array) -> LevelPoints:
    """Extremes of each free axis over the region Δχ² < ``threshold``: the lower ones, then the upper."""
    free = np.flatnonzero(series.plan.free)
    covariance = covariance_of(minimum.hessian, series.plan.free)[free]
    sigma = jnp.sqrt(covariance[np.arange(len(free)), free])
    # The extremes of an ellipsoid along its axes are the columns of its covariance.
    towards = covariance / sigma[:, None]
    starts = jnp.concatenate([-towards, towards])
    return level_points("profile", series, minimum, starts, threshold)


def interval_bounds(points: LevelPoints, free: tuple[bool, ...]) -> Array:
    """Lower and upper extreme per axis, shape ``(D, 2)``, from `interval_points`; zero for an axis held."""
    axes = np.flatnonzero(free)
    own = points.displacement[np.arange(len(points.found)), np.resize(axes, len(points.found))]
    bounds = jnp.where(points.found, own, jnp.nan).reshape(2, len(axes)).T
    return jnp.zeros_like(own, shape=(len(free), 2)).at[axes].set(bounds)


def contour_points(series: Chi2Series, minimum: Minimum, threshold: Array, n: int) -> LevelPoints:
    """``n`` points of the curve Δχ² = ``threshold`` of a two-dimensional surface, one on each ray.

    The rays are even in angle once the ellipse of the covariance is made a circle.
    """
    covariance = covariance_of(minimum.hessian, series.plan.free)
    sigma = jnp.sqrt(jnp.diagonal(covariance))
    cosine = covariance[0, 1] / (sigma[0] * sigma[1])
    angle = np.asarray(2 * np.pi * np.arange(n) / n, covariance.dtype)
    first = jnp.sin(angle)
    second = cosine * first + jnp.sqrt(1 - cosine**2) * jnp.cos(angle)
    starts = jnp.stack([first, second], axis=1) * sigma[None, :]
    return level_points("ray", series, minimum, starts, threshold)


def _system(
    kind: str, start: Array, axis: Array, point: Array, delta: Array, gradient: Array, hessian: Array
) -> tuple[Array, Array]:
    """Residuals and Jacobian of the D equations that a level point solves.

    One is ``delta``, Δχ² less its target. The others single the point out; ``start`` is its place on the
    ellipsoid of unit level. "profile": the gradient vanishes along every axis but ``axis``, which
    ``start`` is the extreme of. "ray": the point lies on the ray through ``start``, in two dimensions.
    """
    if kind == "profile":
        residual, jacobian = gradient, hessian
    else:
        across = jnp.stack([-start[1], start[0]]) / jnp.sqrt(jnp.sum(start**2))
        residual, jacobian = jnp.sum(across * point)[None], across[None, :]
    level = jnp.arange(len(start)) == axis
    return jnp.where(level, delta, residual), jnp.where(level[:, None], gradient[None, :], jacobian)


def _level_axes(kind: str, starts: Array, free: tuple[bool, ...]) -> Array:
    """Which of its equations each point gives up for Δχ² = level."""
    count = len(starts)
    axes = np.resize(np.flatnonzero(free), count) if kind == "profile" else np.zeros(count, int)
    return jnp.asarray(axes, jnp.int32)


def _polynomial(minimum: Minimum, sigma: Array, threshold: Array) -> Array:
    """Derivatives of Δχ² / threshold by displacements in units of ``√threshold · sigma``.

    Without the terms of order zero and one, so there is no cancellation, and a threshold of zero (a
    perfect match) leaves the quadratic.
    """
    threshold = jnp.maximum(threshold, 1e-30)
    ndim = minimum.taylor.ndim
    order = np.indices(minimum.taylor.shape).sum(0)
    polynomial = jnp.where(order >= 2, minimum.taylor / threshold, 0.0)
    for axis in range(ndim):
        polynomial = polynomial * along(powers(jnp.sqrt(threshold) * sigma[axis], TAYLOR_ORDER), axis, ndim)
    return polynomial


@partial(jax.custom_jvp, nondiff_argnums=(0,))
@partial(jax.jit, static_argnums=(0,))
def level_points(
    kind: str, series: Chi2Series, minimum: Minimum, starts: Array, threshold: Array
) -> LevelPoints:
    """Solve for points with Δχ² = ``threshold``, displacements from the minimum.

    ``starts`` are their places for Δχ² = 1 if χ² were quadratic, shape ``(n, D)``; for "profile" lower
    extremes of axes 0 … D−1, then the upper ones.
    """
    ndim = starts.shape[1]
    free = series.plan.free
    axes = _level_axes(kind, starts, free)
    # Nothing moves along an axis that is held.
    sigma = jnp.where(np.array(free), jnp.max(jnp.abs(starts), axis=0), 0.0)
    scale = jnp.sqrt(threshold) * sigma
    units = starts / jnp.where(np.array(free), sigma, 1.0)[None, :]
    eps = jnp.finfo(units.dtype).eps

    polynomial = _polynomial(minimum, sigma, threshold)
    order = np.indices(polynomial.shape).sum(0)
    hopeless = ~jnp.all(jnp.isfinite(units), axis=1)
    # Terms of order 4 and 5 are x²/12 and less of the quadratic where those left out are x⁴/360: small
    # ones vouch for the polynomial.
    factorials = np.array([factorial(p) for p in range(TAYLOR_ORDER + 1)], polynomial.dtype)
    coefficients = polynomial / reduce(np.multiply.outer, [factorials] * ndim)
    tail = sum_all(jnp.abs(coefficients) * ((order == 4) | (order == 5)))
    needs_series = (tail > 4 * eps ** (1 / 3)) & ~jnp.any(hopeless)
    computes_series = any_in_batch(needs_series)
    # The series has no more digits than this where χ² hardly rises above its own rounding.
    rounding = eps * series.amplitude / jnp.maximum(threshold, 1e-30)
    rest = jnp.where(needs_series, jnp.clip(rounding, jnp.sqrt(eps), COARSEST), jnp.sqrt(eps))

    def on_series(u: Array) -> Array:
        displacement = u * scale
        # Not the difference of two values of χ², which with a gain are as large as the image's energy.
        tensor = series.rise(minimum.position, displacement, 2)
        for axis in range(ndim):
            tensor = tensor * along(powers(scale[axis], 2), axis, ndim)
        return tensor / threshold

    def improve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        us, done, count = state
        tensors = lax.cond(
            computes_series,
            lambda tensors: jnp.where(needs_series, jax.vmap(on_series)(us), tensors),
            lambda tensors: tensors,
            jax.vmap(lambda u: translate(polynomial, u, 2))(us),
        )

        def newton_step(start: Array, axis: Array, u: Array, tensor: Array) -> Array:
            value, gradient, hessian = value_gradient_hessian(tensor, free)
            residual, jacobian = _system(kind, start, axis, u, value - 1, gradient, hessian)
            step = apply(inverse(jacobian), residual)
            return step * jnp.minimum(1.0, 0.5 / largest(step))

        steps = jax.vmap(newton_step)(units, axes, us, tensors)
        us = jnp.where(done[:, None], us, us - steps)
        # On the right side of the minimum, or it is the way out of another one.
        settled = (jnp.max(jnp.abs(steps), axis=1) < rest) & (jnp.sum(us * units, axis=1) > 0)
        return us, done | settled, count + 1

    state = (units, hopeless, jnp.zeros((), jnp.int32))
    solution, found, _ = lax.while_loop(lambda s: ~jnp.all(s[1]) & (s[2] < MAX_STEPS), improve, state)
    return LevelPoints(solution * scale[None, :], found & ~hopeless)


@level_points.defjvp
def _level_points_jvp(kind: str, primals: tuple, tangents: tuple) -> tuple[LevelPoints, LevelPoints]:
    series, minimum, starts, threshold = primals
    d_series, d_minimum, d_starts, d_threshold = tangents
    whole, fraction = minimum.position
    d_fraction = d_minimum.position.fraction
    points, found = level_points(kind, series, minimum, starts, threshold)
    ndim = starts.shape[1]

    def expansion(series: Chi2Series, fraction: Array) -> tuple[Array, Array, Array]:
        tensor = series.derivatives(Position(whole, fraction), 2)
        return value_gradient_hessian(tensor, series.plan.free)

    # At the minimum χ² does not depend on where the minimum is, to first order.
    (_, _, _), (d_base, _, _) = jax.jvp(lambda s: expansion(s, fraction), (series,), (d_series,))

    def tangent(start: Array, d_start: Array, axis: Array, point: Array) -> Array:
        (_, gradient, hessian), (d_value, d_gradient, _) = jax.jvp(
            expansion, (series, fraction + point), (d_series, d_fraction)
        )
        change, jacobian = _system(
            kind, start, axis, point, d_value - d_base - d_threshold, gradient, hessian
        )
        if kind == "profile":
            others = d_gradient
        else:
            # The rays turn with the ellipse that spaces them.
            turned = jnp.stack([-d_start[1], d_start[0]]) / jnp.sqrt(jnp.sum(start**2))
            others = jnp.broadcast_to(jnp.sum(turned * point), (ndim,))
        change = jnp.where(jnp.arange(ndim) == axis, change, others)
        return -apply(inverse(jacobian), change)

    d_points = jax.vmap(tangent)(starts, d_starts, _level_axes(kind, starts, series.plan.free), points)
    d_found: Any = np.zeros(found.shape, jax.dtypes.float0)
    return LevelPoints(points, found), LevelPoints(d_points, d_found)


def profile_values(series: Chi2Series, minimum: Minimum, axis: int, displacements: Array) -> Array:
    """Δχ² minimised over all other axes at given displacements along one axis, shape of ``displacements``."""
    position = minimum.position
    ndim = len(position.fraction)
    free = np.array(series.plan.free) & (np.arange(ndim) != axis)
    slope = covariance_of(minimum.hessian, series.plan.free)[:, axis]
    slope = slope / slope[axis]

    def at(displacement: Array) -> Array:
        def improve(_: ArrayLike, d: Array) -> Array:
            _, gradient, hessian = value_gradient_hessian(series.derivatives(position.moved(d), 2))
            hessian, _ = with_ridge(hessian)
            hessian = jnp.where(free[:, None] & free[None, :], hessian, jnp.eye(ndim, dtype=d.dtype))
            step = -apply(inverse(hessian), jnp.where(free, gradient, 0.0))
            return d + step * jnp.minimum(1.0, 0.5 / or_one(norm(step)))

        d = lax.fori_loop(0, 12 if ndim > 1 else 0, improve, slope * displacement)
        return series.differences(position, [d[a : a + 1] for a in range(ndim)]).reshape(())

    return lax.map(at, displacements, batch_size=16)
