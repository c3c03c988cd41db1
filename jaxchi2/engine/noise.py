"""The noise: its size from one image, and what it does to registration when both images have it.

With scene spectrum S and white noise of variance N₁ in the reference and N₂ in the image, the image given
the reference is a Gaussian process: its mean is the reference filtered by ``G = S / (S + N₁)``, its spectrum
about that ``T = N₂ + S N₁ / (S + N₁)``. χ² of the whitened pair, ``Σ_k |D̂ − G M̂ e^(−ik·s)|² / T``, weights
the cross-spectrum by ``G / T = S / (S (N₁ + N₂) + N₁ N₂)``, the optimum (the coherence weight of time-delay
estimation: Knapp & Carter 1976, doi:10.1109/TASSP.1976.1162830), and its Δχ² is that of the likelihood.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from ..checks import array_of
from ..sharding import any_sharding
from .passes import block_sums, sum_all
from .spectrum import Shape, along, contract, half_weights, harmonics, squared

BINS = 64
LARGEST_BLOCK = 32
"""Pixels along each axis that are summed at most where single ones do not tell the noise."""
LEAST_BLOCKS = 6
"""Blocks along each axis of which the median is still one of many values."""
STEEPEST = 6
"""Power of frequency at which a filter's spectrum may fall where pixels are unknown."""
LEAST_SHARE = 0.1
"""Share of a filter's weight that has to be on pixels that count."""
DEGREE = 4
"""Of the trend that is taken out before a filter and put back behind it."""


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
    smoothed, by resampling or compression, is underestimated: `Noise.from_image` finds its spectrum, from a
    blank image or from residuals.

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
        whole = tuple(slice(0, n // block * block) for n in array.shape)
        median = jnp.nanmedian(_detail(block_sums(array[whole], block)))
        found = jnp.where(told, found, median / block ** (array.ndim / 2))
        told |= median >= least
        block *= 2
    return found / np.asarray(0.674489750196 * 6 ** (array.ndim / 2), array.dtype)


def _detail(array: Array) -> Array:
    """Absolute second difference along every axis; NaN where a pixel is not finite."""
    for axis in range(array.ndim):
        array = jnp.diff(array, 2, axis)
    return jnp.abs(jnp.where(jnp.isfinite(array), array, jnp.nan))


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
        there = sum_all(weight * (reference_power - reference_noise))
        here = sum_all(weight * (image_power - image_noise))
        bright = (there > 0) & (here > 0)
        brightness = jnp.where(bright, here, 1.0) / jnp.where(bright, there, 1.0)
        reference_power, reference_noise = reference_power * brightness, reference_noise * brightness
    observed = (reference_power + image_power) / 2
    noise = (reference_noise + image_noise) / 2
    signal = signal_power(observed, noise, shape)
    gain = wiener_gain(signal, reference_noise, shape)
    # S (1 − G) is N₁ G but at the Nyquist frequency; as it stands it would be rounding at high S/N.
    lost = jnp.where(directed(gain, shape), reference_noise * gain, signal)
    residual = image_noise + lost
    # Of the mean no spectrum is known: the reference's is the best guess.
    residual = residual.at[mean].set(image_noise + reference_noise)
    amplitude = lax.rsqrt(residual)
    return Whitening(gain * amplitude, amplitude, signal, brightness)


def wiener_gain(signal: Array, noise: Array, shape: Shape) -> Array:
    """``S / (S + N)`` on the half plane, one for the mean."""
    present = signal > 0
    gain = jnp.where(present, signal / jnp.where(present, signal + noise, 1.0), 0.0)
    gain = jnp.where(directed(gain, shape), gain, 0.0)
    return gain.at[(0,) * len(shape)].set(1.0)


def directed(like: Array, shape: Shape) -> Array:
    """Whether a wave has a sense of direction.

    At the Nyquist frequency it has none: it could only favour one of the images.
    """
    result = jnp.ones((1,) * len(shape), bool)
    for axis, (n, m) in enumerate(zip(shape, like.shape, strict=True)):
        result = result & along(2 * np.arange(m) != n, axis, len(shape))
    return result


def gentle(signal: Array, shape: Shape) -> Array:
    """The least spectrum above the given one that falls no faster than ``|k|^−STEEPEST``.

    A filter that cuts off more sharply rings through the frame from any pixel that is not known.
    """
    frequency = _frequency(shape, signal.shape)
    frequency.flat[0] = 1 / max(shape)
    order = np.argsort(frequency, axis=None)
    back = np.argsort(order)
    law = jnp.asarray((frequency / frequency.max()) ** -STEEPEST, signal.dtype)
    return lax.cummax((signal / law).ravel()[order])[back].reshape(signal.shape) * law


def box_coordinates(counted: Array, dtype: jnp.dtype) -> list[Array]:
    """Place along each axis in the smallest box around the pixels that count: −1 to 1 inside it."""
    places = []
    for axis, n in enumerate(counted.shape):
        line = jnp.any(counted, axis=tuple(a for a in range(counted.ndim) if a != axis))
        index = jnp.arange(n)
        low, high = jnp.min(jnp.where(line, index, n - 1)), jnp.max(jnp.where(line, index, 0))
        size = jnp.maximum(high - low + 1, 1)
        places.append((2 * index - low - high).astype(dtype) / size.astype(dtype))
    return places


def hann(places: list[Array]) -> Array:
    """Hann's taper over the box, zero outside, whose leakage falls as ``k⁻⁶`` in power."""
    tapers = [jnp.where(jnp.abs(x) < 1, jnp.cos(jnp.pi / 2 * x) ** 2, 0.0) for x in places]
    return reduce(jnp.multiply, [along(x, axis, len(places)) for axis, x in enumerate(tapers)])


def fitted_trend(values: Array, known: Array, places: list[Array]) -> Array:
    """The polynomial of `DEGREE`, in all coordinates together, that fits the known pixels best."""
    ndim, dtype = values.ndim, values.dtype
    columns = []
    for x in places:
        legendre = [jnp.ones_like(x), x]
        for n in range(1, DEGREE):
            legendre.append(((2 * n + 1) * x * legendre[n] - n * legendre[n - 1]) / (n + 1))
        columns.append(jnp.stack(legendre, axis=1))
    products = [(c[:, :, None] * c[:, None, :]).reshape(len(c), -1) for c in columns]
    powers = np.array([p for p in np.ndindex((DEGREE + 1,) * ndim) if sum(p) <= DEGREE])
    at = tuple(powers.T)
    pairs = tuple((DEGREE + 1) * powers.T[:, :, None] + powers.T[:, None, :])
    number = known.astype(dtype)
    gram = contract(number, products)[pairs]
    # With fewer pixels than coefficients the smallest of many solutions.
    ridge = 1e2 * jnp.finfo(dtype).eps * jnp.maximum(sum_all(number), 1.0)
    found = jnp.linalg.solve(
        gram + ridge * jnp.eye(len(powers), dtype=dtype), contract(number * values, columns)[at]
    )
    coefficients = jnp.zeros_like(found, shape=(DEGREE + 1,) * ndim).at[at].set(found)
    return contract(coefficients, [c.T for c in columns])


def smoothing_gain(images: list[Array], counted: list[Array], variances: list[Array], shape: Shape) -> Array:
    """``S / (S + N)`` on the half plane for two frames, on a grid that holds either, of one scene."""
    observed = jnp.zeros_like(images[0], shape=())
    for image, valid in zip(images, counted, strict=True):
        taper = hann(box_coordinates(valid, image.dtype)) * valid
        mass = jnp.maximum(sum_all(taper), jnp.finfo(image.dtype).tiny)
        tapered = taper * (image - sum_all(taper * image) / mass)
        spectrum = jnp.fft.rfftn(tapered, shape)
        power = squared(spectrum)
        observed = observed + power / jnp.maximum(sum_all(taper**2), jnp.finfo(image.dtype).tiny) / 2
    noise = reduce(jnp.add, variances) / 2
    return wiener_gain(signal_power(observed, noise, shape), noise, shape)


def smoothed(image: Array, counted: Array, gain: Array, shape: Shape) -> Array:
    """A frame behind a filter, as an average over the pixels that count."""
    frame = tuple(slice(0, n) for n in image.shape)

    def filtered(x: Array) -> Array:
        return jnp.fft.irfftn(jnp.fft.rfftn(x, shape) * gain, shape)[frame]

    number = counted.astype(image.dtype)
    share = filtered(number)
    # A filter that rings has no average where few of its pixels are there.
    return jnp.where(share > LEAST_SHARE, filtered(number * image) / jnp.maximum(share, LEAST_SHARE), 0.0)


def signal_power(observed: Array, noise: Array, shape: Shape) -> Array:
    """Power spectrum of the scene on the half plane, from an observed one with white noise in it.

    The mean over rings of equal spatial frequency, made to fall monotonically with frequency by isotonic
    regression, less the noise. The regression pools the rings where the scene is lost in the noise, so that
    what is left of the fluctuations there is small.
    """
    means, modes, ring = _ring_means(observed, shape)
    return jnp.maximum(falling(means, modes) - noise, 0.0)[ring]


def _ring_means(power: Array, shape: Shape) -> tuple[Array, np.ndarray, np.ndarray]:
    """Means over rings, the number of modes in each, and the ring of every mode."""
    frequency = _frequency(shape, power.shape)
    # Rings one harmonic of the longest axis wide, at most so many.
    count = min(BINS, int(np.ceil(frequency.max() * max(shape))) + 1)
    ring = np.minimum((frequency / frequency.max() * count).astype(int), count - 1)
    weight = np.broadcast_to(half_weights(shape[-1]), power.shape).copy()
    weight.flat[0] = 0.0  # The mean says nothing about the shift.
    modes = np.bincount(ring.ravel(), weight.ravel(), count)
    occupied = modes > 0
    ring = (np.cumsum(occupied) - 1)[ring]
    ring.flat[0] = 0
    modes = modes[occupied]
    total = jax.ops.segment_sum((power * jnp.asarray(weight, power.dtype)).ravel(), ring.ravel(), len(modes))
    return total / jnp.asarray(modes, power.dtype), modes, ring


def lower(first: Array, second: Array, shape: Shape) -> Array:
    """Of two observed spectra the one that is lower, ring by ring."""
    (one, _, ring), (two, _, _) = _ring_means(first, shape), _ring_means(second, shape)
    return jnp.where((one <= two)[ring], first, second)


def significant(signal: Array, noise: Array, freedom: Array, shape: Shape) -> Array:
    """A spectrum without what chance leaves of the noise in it, where the scene is lost.

    There `signal_power` has pooled about all modes of higher frequency; ``freedom`` is how many independent
    values each of the two images has.
    """
    frequency = _frequency(shape, signal.shape)
    order = np.argsort(-frequency, axis=None, kind="stable")
    share = np.empty(frequency.size)
    weight = np.broadcast_to(half_weights(shape[-1]), signal.shape).ravel()[order]
    share[order] = np.cumsum(weight) / np.sum(weight)
    chance = jnp.asarray(1.5 / np.sqrt(share).reshape(signal.shape), signal.dtype) * lax.rsqrt(freedom)
    return jnp.maximum(signal - noise * chance, 0.0)


def _frequency(shape: Shape, columns: Shape) -> np.ndarray:
    """Length of every wave vector of the half plane, in cycles per pixel."""
    squares = [np.square(harmonics(n)[:m] / n) for n, m in zip(shape, columns, strict=True)]
    return np.sqrt(reduce(np.add.outer, squares))


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
