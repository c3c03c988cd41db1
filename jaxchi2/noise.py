"""The noise: its size from one image, and what it does to registration when both images have it.

With scene spectrum S and white noise of variance N₁ in the reference and N₂ in the image, the image given
the reference is a Gaussian process: its mean is the reference filtered by ``G = S / (S + N₁)``, its spectrum
about that ``T = N₂ + S N₁ / (S + N₁)``. χ² of the whitened pair, ``Σ_k |D̂ − G M̂ e^(−ik·s)|² / T``, weights
the cross-spectrum by ``G / T = S / (S (N₁ + N₂) + N₁ N₂)``, the optimum (the coherence weight of time-delay
estimation: Knapp & Carter 1976, doi:10.1109/TASSP.1976.1162830), and its Δχ² is that of the likelihood.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from .checks import array_of
from .sharding import any_sharding
from .spectrum import Shape, along, half_weights, harmonics

BINS = 64
LARGEST_BLOCK = 32
"""Pixels along each axis that are summed at most where single ones do not tell the noise."""
LEAST_BLOCKS = 6
"""Blocks along each axis of which the median is still one of many values."""


@any_sharding()
def estimate_noise(image: ArrayLike) -> Array:
    """Standard deviation of the white noise of an image, from its finest detail.

    The second difference along every axis, ``[1, −2, 1]`` and the products of these, takes out what is
    linear between neighbours; the median absolute value of what is left, over ``0.6745 · 6^(D/2)``, is the
    standard deviation (Immerkær 1996, doi:10.1006/cviu.1996.0060, with the median of Donoho 1995).

    Parameters
    ----------
    image : array_like, shape (n,), (ny, nx), …
        Real. Pixels that are not finite, and their neighbours, are left out.

    Returns
    -------
    Array
        A scalar in the units of the image. NaN where no three by three finite pixels are together, or an
        axis has fewer than three.

    Raises
    ------
    ValueError, TypeError
        For an empty or complex image.

    Notes
    -----
    Right to 2 % at 64² for white Gaussian noise on scenes that are smooth over three pixels or empty in
    most places. Detail of the size of a pixel all over the image counts as noise; noise that has been
    smoothed, by resampling or compression, is underestimated.

    Where most differences are zero, as of counts below 0.1 per pixel, blocks of 2, 4, … 32 pixels along each
    axis are summed until they tell: right to some 20 % at 128² for 0.005 counts and more. Between 0.1 and 0.3
    counts the median takes few values, and is up to a third too small. Zero is what is left for an image
    that is constant, or without noise but in a few places.

    Examples
    --------
    >>> import numpy as np
    >>> y, x = np.indices((64, 64))
    >>> scene = 100 * np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / 50)
    >>> print(f"{estimate_noise(scene + np.random.default_rng(0).normal(0, 2.0, scene.shape)):.1f}")
    2.0
    """
    array = array_of(image, "image")
    return noise_of(array)


@jax.jit
def noise_of(array: Array) -> Array:
    """`estimate_noise` of an array that has been checked."""
    if min(array.shape) < 3:
        return jnp.full((), jnp.nan, array.dtype)
    array = array - lax.stop_gradient(jnp.nanmedian(array))
    detail = _detail(array)
    found = jnp.nanmedian(detail)
    told = ~(found == 0)
    # Counts differ by whole steps; a median of one step is coarse.
    least = 2 * jnp.nanmin(jnp.where(detail > 0, detail, jnp.nan))
    block = 2
    while block <= LARGEST_BLOCK and min(array.shape) >= LEAST_BLOCKS * block:
        median = jnp.nanmedian(_detail(_block_sums(array, block)))
        found = jnp.where(told, found, median / block ** (array.ndim / 2))
        told |= median >= least
        block *= 2
    return found / np.asarray(0.674489750196 * 6 ** (array.ndim / 2), array.dtype)


def _detail(array: Array) -> Array:
    """Absolute second difference along every axis; NaN where a pixel is not finite."""
    for axis in range(array.ndim):
        array = jnp.diff(array, 2, axis)
    return jnp.abs(jnp.where(jnp.isfinite(array), array, jnp.nan))


def _block_sums(array: Array, size: int) -> Array:
    number = [n // size for n in array.shape]
    array = array[tuple(slice(0, n * size) for n in number)]
    split = array.reshape([m for n in number for m in (n, size)])
    return jnp.sum(split, tuple(range(1, split.ndim, 2)))


class Whitening(NamedTuple):
    """Real factors on the half plane, what the reference and the image are multiplied with; and the scene."""

    reference: Array
    """``G / √T``."""
    image: Array
    """``1 / √T``."""
    signal: Array
    """S in the image, as estimated."""
    brightness: Array
    """Power of the scene in the image over that in the reference, a scalar."""


def whitening(
    reference_power: Array,
    image_power: Array,
    reference_noise: Array,
    image_noise: Array,
    shape: Shape,
    fit_gain: bool = False,
) -> Whitening:
    """Factors from the periodograms ``|F|² / N`` of both images and their noise variances.

    With a gain to fit, they are those for a reference made as bright as the image.
    """
    mean = (0,) * len(shape)
    brightness = jnp.ones_like(image_noise)
    if fit_gain:
        # Where the scene is bright the noise hardly counts.
        weight = signal_power(reference_power, reference_noise, shape)
        twice = along(jnp.asarray(half_weights(shape[-1]), weight.dtype), weight.ndim - 1, weight.ndim)
        weight = (weight * twice).at[mean].set(0.0)
        there = jnp.sum(weight * (reference_power - reference_noise))
        here = jnp.sum(weight * (image_power - image_noise))
        bright = (there > 0) & (here > 0)
        brightness = jnp.where(bright, here, 1.0) / jnp.where(bright, there, 1.0)
        reference_power, reference_noise = reference_power * brightness, reference_noise * brightness
    observed = (reference_power + image_power) / 2
    noise = (reference_noise + image_noise) / 2
    signal = signal_power(observed, noise, shape)
    present = signal > 0
    gain = jnp.where(present, signal / jnp.where(present, signal + reference_noise, 1.0), 0.0)
    # A wave at the Nyquist frequency has no sense of direction: it could only favour one of the images.
    for axis, n in enumerate(shape):
        if n % 2 == 0:
            keep = np.ones(signal.shape[axis])
            keep[n // 2] = 0.0
            gain = gain * along(jnp.asarray(keep, signal.dtype), axis, signal.ndim)
    residual = image_noise + signal * (1 - gain)
    # Of the mean no spectrum is known: the reference's is the best guess.
    gain, residual = gain.at[mean].set(1.0), residual.at[mean].set(image_noise + reference_noise)
    amplitude = lax.rsqrt(residual)
    return Whitening(gain * amplitude, amplitude, signal, brightness)


def signal_power(observed: Array, noise: Array, shape: Shape) -> Array:
    """Power spectrum of the scene on the half plane, from an observed one with white noise in it.

    The mean over rings of equal spatial frequency, made to fall monotonically with frequency by isotonic
    regression, less the noise. The regression pools the rings where the scene is lost in the noise, so that
    what is left of the fluctuations there is small.
    """
    frequency = np.sqrt(
        sum(
            np.square(harmonics(n)[:m] / n).reshape([-1 if a == b else 1 for b in range(len(shape))])
            for a, (n, m) in enumerate(zip(shape, observed.shape, strict=True))
        )
    )
    # Rings one harmonic of the longest axis wide, at most so many.
    count = min(BINS, int(np.ceil(frequency.max() * max(shape))) + 1)
    ring = np.minimum((frequency / frequency.max() * count).astype(int), count - 1)
    weight = np.broadcast_to(half_weights(shape[-1]), observed.shape).copy()
    weight.flat[0] = 0.0  # The mean says nothing about the shift.
    modes = np.bincount(ring.ravel(), weight.ravel(), count)
    occupied = modes > 0
    ring = (np.cumsum(occupied) - 1)[ring]
    ring.flat[0] = 0
    modes = modes[occupied]
    total = jax.ops.segment_sum(
        (observed * jnp.asarray(weight, observed.dtype)).ravel(), ring.ravel(), len(modes)
    )
    profile = falling(total / jnp.asarray(modes, observed.dtype), modes)
    return jnp.maximum(profile - noise, 0.0)[ring]


def falling(values: Array, weights: np.ndarray) -> Array:
    """Weighted least-squares fit that never rises, by ``min_{a≤i} max_{b≥i}`` of the means over a … b."""
    index = np.arange(len(weights))
    sums = np.concatenate([[0.0], np.cumsum(weights)])
    total = sums[None, 1:] - sums[:-1, None]
    upper = index[None, :] >= index[:, None]
    inside = (index[None, None, :] >= index[:, None, None]) & (index[None, None, :] <= index[None, :, None])
    share = np.where(inside, weights, 0.0) / np.where(upper, total, 1.0)[:, :, None]
    means = jnp.tensordot(jnp.asarray(share, values.dtype), values, 1, precision=lax.Precision.HIGHEST)
    means = jnp.where(upper, means, -jnp.inf)
    best = lax.cummax(means, axis=1, reverse=True)
    best = jnp.where(upper, best, jnp.inf)
    return jnp.diagonal(lax.cummin(best, axis=0))
