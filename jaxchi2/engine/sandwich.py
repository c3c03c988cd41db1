"""Errors from the residuals: right also where the noise is not what it was said to be.

With scores ``u_i = g_i r_i``, g the derivatives of the model by the parameters and r the residuals, both in
units of the errors as given, the covariance of the parameters is

    B⁻¹ V B⁻¹,    V = Σ_ij cov(u_i, u_j),    B half the Hessian of χ²

whatever the noise (White 1980; Newey & West 1987; in images Wieneke 2015). If the errors are right V is B,
and that is the usual covariance. Here V has two parts. Each pixel has the variance that its own residual
says, with what the fit took of it given back: ``Σ_i g_i g_iᵀ r_i² / (1 − h_i)``, h the leverage. Pairs of
pixels have the correlation that the residuals have at their distance anywhere in the image,
``Σ_{ℓ≠0} ρ(ℓ) Σ_i s_i s_{i+ℓ}ᵀ`` with ``s_i = g_i τ_i``, τ the size of the residuals nearby. All pixels tell
ρ, and so a single star is enough, where sums of products of neighbouring scores are too few.
"""

from __future__ import annotations

from math import prod

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .algebra import inverse_of_symmetric, or_one
from .passes import block_sums, count, extremes, sum_all, sum_each
from .position import Position
from .spectrum import Shape, along, gradient_power, gradients, half_weights, squared
from .terms import Chi2Terms, Matched

NEARBY = 2.0
"""Standard deviation, in pixels, of the Gaussian that the size of residuals is averaged with."""
FURTHEST = 20
"""Distance in pixels along an axis from which residuals are taken to be independent."""
MAX_LEVERAGE = 0.9
TRUSTED = 0.5
"""Share of the noise in the variance of a pixel whose residual tells of the noise, and share of what tells
the shift that such pixels have to have."""
LEAST = 0.1
"""Least variance of a score, as a share of what it is without correlations."""


def sandwich(terms: Chi2Terms, at: Position) -> tuple[Array, Array]:
    """Covariance of shift, gain and K background coefficients at a minimum, ``(D + 1 + K, D + 1 + K)``.

    In internal units; zero for what is not fitted. A constant, as far as derivatives are concerned. Also the
    scatter that the logarithm of each error has in white noise, shape ``(D + 1 + K,)``.
    """
    terms, at = lax.stop_gradient((terms, at))
    pixels, plan, ndim = terms.pixels, terms.plan, len(terms.pixels.shape)
    gain, coefficients = terms.series.nuisances(at)
    moved = terms.moved(at)
    model = jnp.fft.irfftn(moved, pixels.shape)
    weights = jnp.ones_like(model) if pixels.weights is None else pixels.weights
    valid, root = weights > 0, jnp.sqrt(weights)
    residual = root * (pixels.image - gain * model - pixels.background.values(coefficients))
    slopes = -gain * gradients(moved, pixels.shape)
    fitted = np.flatnonzero([*plan.free, plan.gain, *[True] * plan.terms])
    parameters = jnp.concatenate([slopes, model[None], pixels.background.functions()])[fitted] * root[None]

    scores, scatter = covariance_of_scores(parameters, residual, valid, max(plan.degree, 0))
    if terms.series.prior is not None:
        free = np.flatnonzero(plan.free)
        known = terms.series.prior.precision[np.ix_(free, free)]
        scores = scores.at[: len(free), : len(free)].add(known)
    information = terms.series.curvature(at, gain)[np.ix_(fitted, fitted)]
    covariance = between(inverse_of_symmetric(information), scores)
    nothing = jnp.zeros_like(covariance, shape=(ndim + 1 + plan.terms,) * 2)
    return nothing.at[np.ix_(fitted, fitted)].set(covariance), nothing[0].at[fitted].set(scatter)


def between(bread: Array, scores: Array) -> Array:
    """``Bᵀ V B`` of two matrices."""
    product = jnp.dot(scores, bread, precision=lax.Precision.HIGHEST)
    return jnp.dot(bread.T, product, precision=lax.Precision.HIGHEST)


def covariance_of_scores(
    parameters: Array, residual: Array, valid: Array, degree: int = 0
) -> tuple[Array, Array]:
    """V, shape ``(P, P)``, on a periodic grid, and the scatter of the logarithms of errors, shape ``(P,)``.

    ``parameters`` are the derivatives of the model, the parameters first; as ``residual`` they are in units
    of the errors, and zero where a pixel is not ``valid``. A fitted background of a ``degree`` takes what
    residuals have in common over the width of its waves, which is then no correlation to be seen.
    """
    shape = residual.shape
    square = residual**2 / (1 - jnp.minimum(_leverage(parameters), MAX_LEVERAGE))
    own = _products(parameters, parameters * square[None])
    size = jnp.sqrt(_nearby(square, valid, shape))
    scaled = parameters * size[None]
    spectra = jnp.fft.rfftn(scaled, axes=tuple(range(1, scaled.ndim)))
    window = _window(shape, residual.dtype, 2 if degree < 1 else 4 * (degree + 1))
    correlation = window * _correlation(residual, size, valid, shape)
    scores = own + _shared(spectra, correlation, shape)
    # A correlation that noise makes negative is not to leave nothing of a variance.
    least = LEAST * jnp.diagonal(own)
    grown = jnp.sqrt(jnp.maximum(least / jnp.maximum(jnp.diagonal(scores), 1e-30 + 1e-6 * least), 1.0))
    return scores * grown[:, None] * grown[None, :], _scatter(scaled, spectra, window, count(valid))


def likely_inflation(terms: Chi2Terms, at: Position, matched: Matched) -> tuple[Array, Array]:
    """Roughly the errors that the residuals say over those of the model, and the scatter of the logarithm.

    Along each axis, shape ``(D,)``, for residuals of unit variance. The mean of their squares where the scene
    has its slopes, times that of their power in the waves of these; both as if nothing had been fitted.
    Without pixels whose error of the continuation is larger than their noise, so that the scatter is infinite
    where these are most, and not for terms behind a filter. A constant, as far as derivatives are concerned.
    """
    terms, at, matched = lax.stop_gradient((terms, at, matched))
    pixels, plan, shape = terms.pixels, terms.plan, terms.pixels.shape
    model, residual = matched.model, matched.residual
    root = jnp.ones_like(model) if pixels.weights is None else jnp.sqrt(pixels.weights)
    assert terms.content.noise_share is not None
    moved = lax.optimization_barrier(terms.moved(at))
    slopes = gradients(moved, shape) * root[None]
    trusted = jnp.where(terms.content.noise_share > TRUSTED, slopes, 0.0)
    enough = sum_each(trusted**2) > TRUSTED * sum_each(slopes**2)
    slopes = _normalised(trusted)
    taken = jnp.sum(jnp.where(along(np.array(plan.free), 0, slopes.ndim), slopes**2, 0.0), axis=0)
    if plan.gain:
        taken = taken + _normalised(model[None])[0] ** 2
    if plan.background:
        taken = taken + jnp.sum(_normalised(pixels.background.functions() * root[None]) ** 2, axis=0)
    here = sum_each(slopes**2 * (residual**2 / (1 - jnp.minimum(taken, MAX_LEVERAGE)))[None])
    if pixels.weights is None:
        of_slopes = gradient_power(moved, shape)
    else:
        of_slopes = squared(jnp.fft.rfftn(slopes, axes=tuple(range(1, slopes.ndim))))
    waves, number = _blocks(of_slopes, shape)
    power, _ = _blocks(squared(matched.residual_spectrum)[None], shape)
    # The power of a block with some of what was fitted is less by its share.
    waves = waves / or_one(sum_each(waves)).reshape(-1, *[1] * len(shape))
    power = power / number / jnp.maximum(1 - jnp.sum(waves, axis=0, keepdims=True) / number, 1 - MAX_LEVERAGE)
    there = sum_each(waves * power) * prod(shape) / or_one(sum_each(power * number))
    scatter = jnp.sqrt((sum_each(slopes**4) + sum_each(waves**2 / number)) / 2)
    return jnp.sqrt(here * there), jnp.where(enough, scatter, jnp.inf)


def _normalised(arrays: Array) -> Array:
    """Arrays with a leading axis, each over the root of the sum of its squares."""
    unit = along(extremes(jnp.abs(arrays), tuple(range(1, arrays.ndim)))[0], 0, arrays.ndim)
    arrays = arrays / or_one(unit)
    return arrays / jnp.sqrt(or_one(sum_each(arrays**2))).reshape(unit.shape)


def _blocks(power: Array, shape: Shape) -> tuple[Array, Array]:
    """Power on half planes summed over blocks of waves, and the number of waves in each.

    A block is as narrow as what correlates over less than `FURTHEST` pixels has no structure in.
    """
    size = max(1, min(shape) // (2 * FURTHEST))
    twice = along(jnp.asarray(half_weights(shape[-1]), power.dtype), len(shape) - 1, len(shape))
    number = jnp.broadcast_to(twice, power.shape[1:])
    return jnp.stack([block_sums(x * number, size) for x in power]), block_sums(number, size)[None]


def _scatter(scores: Array, spectra: Array, window: Array, number: Array) -> Array:
    """Of the logarithms of errors: ``√((1/ν + Σ_{ℓ≠0} (K c(ℓ)/c(0))² / N) / 2)``.

    c is the covariance of the scores and K the window. ν is the number of pixels that carry the information,
    ``(Σ s²)² / Σ s⁴``, each with one residual; each correlation of N residuals has a variance of 1/N.
    """
    shape = window.shape
    shared = jnp.fft.irfftn(squared(spectra), shape, tuple(range(1, len(shape) + 1)))
    zero = (slice(None), *[0] * len(shape))
    power = jnp.where(shared[zero] > 0, shared[zero], 1.0)
    unit = along(jnp.sqrt(power), 0, len(shape) + 1)
    own = sum_each((scores / unit) ** 4)
    pairs = sum_each((window[None] * shared / unit**2) ** 2)
    return jnp.sqrt((own + pairs / jnp.maximum(number, 1)) / 2)


def _products(a: Array, b: Array) -> Array:
    """``Σ_i a_i b_iᵀ`` of arrays with the parameters first."""
    lines = tuple(range(1, a.ndim - 1))
    axes = ((a.ndim - 1,), (b.ndim - 1,)), (lines, lines)
    products = lax.dot_general(a, b, axes, precision=lax.Precision.HIGHEST)
    return jnp.sum(products, tuple(range(len(lines))))


def _leverage(parameters: Array) -> Array:
    """How much of the noise of each pixel the fit follows, ``h_i = g_iᵀ (Σ g gᵀ)⁻¹ g_i``."""
    information = _products(parameters, parameters)
    held = jnp.diagonal(information) == 0
    information = inverse_of_symmetric(information + jnp.diag(held.astype(information.dtype)))
    taken = jnp.tensordot(information, parameters, 1, precision=lax.Precision.HIGHEST)
    return jnp.sum(parameters * taken, axis=0)


def _nearby(square: Array, valid: Array, shape: Shape) -> Array:
    """Mean over the valid pixels nearby; one where there are none."""
    both = jnp.stack([jnp.where(valid, square, 0.0), valid.astype(square.dtype)])
    spectra = jnp.fft.rfftn(both, axes=tuple(range(1, both.ndim)))
    for axis, n in enumerate(shape):
        frequency = np.fft.fftfreq(n)[: spectra.shape[axis + 1]]
        damped = np.exp(-2 * (np.pi * NEARBY * frequency) ** 2)
        spectra = spectra * along(jnp.asarray(damped, square.dtype), axis + 1, both.ndim)
    total, number = jnp.fft.irfftn(spectra, shape, tuple(range(1, both.ndim)))
    mean = total / jnp.maximum(number, 1e-3)
    # Never below what rounding makes of a faint place beside a bright one.
    whole = sum_all(both[0]) / jnp.maximum(sum_all(both[1]), 1.0)
    return jnp.where(valid, jnp.maximum(mean, 1e-4 * whole), jnp.where(whole > 0, whole, 1.0))


def _correlation(residual: Array, size: Array, valid: Array, shape: Shape) -> Array:
    """Correlation of the residuals at every distance, shift zero first."""
    z = jnp.where(valid, residual / jnp.where(size > 0, size, 1.0), 0.0)
    z = jnp.where(valid, z - sum_all(z) / jnp.maximum(count(valid), 1), 0.0)
    spectra = jnp.fft.rfftn(jnp.stack([z, valid.astype(z.dtype)]), axes=tuple(range(1, z.ndim + 1)))
    products, pairs = jnp.fft.irfftn(squared(spectra), shape, tuple(range(1, z.ndim + 1)))
    here = products[(0,) * z.ndim]
    return products / jnp.maximum(pairs, 0.5) * pairs[(0,) * z.ndim] / jnp.where(here > 0, here, 1.0)


def _window(shape: Shape, dtype: jnp.dtype, part: int) -> Array:
    """Parzen's window, whose transform is positive, over all distances but zero.

    Zero from `FURTHEST`, or that part of an axis, on.
    """
    result = jnp.ones([1] * len(shape), dtype)
    for axis, n in enumerate(shape):
        distance = np.minimum(np.arange(n), n - np.arange(n)) / min(FURTHEST, n / part)
        near = 1 - 6 * distance**2 + 6 * distance**3
        taper = np.where(distance < 0.5, near, 2 * np.clip(1 - distance, 0, 1) ** 3)
        result = result * along(jnp.asarray(taper, dtype), axis, len(shape))
    return result.at[(0,) * len(shape)].set(0.0)


def _shared(spectra: Array, correlation: Array, shape: Shape) -> Array:
    """``Σ_ℓ ρ(ℓ) Σ_i s_i s_{i+ℓ}ᵀ`` of scores by their spectra."""
    response = jnp.fft.rfftn(correlation).real
    twice = jnp.asarray(half_weights(shape[-1]), response.dtype)
    response = response * along(twice, len(shape) - 1, len(shape))
    real, imag = (_products(x, x * response[None]) for x in (spectra.real, spectra.imag))
    return (real + imag) / prod(shape)
