"""Correlated noise: stationary, of known power spectrum, and the filter that makes it white.

A shift commutes with a convolution. So an image and its reference, both convolved with one kernel h, are
displaced as before, and noise of power P becomes one of power ``|H|² P``. With ``H = 1/√P`` it is white, of
unit variance, and all that holds for white noise holds again: errors, χ², the optimal weights.

On a periodic frame that is exact. Where pixels are unknown, beyond the frame or bad, the kernel has to be
compact, for every pixel that it reaches from there is lost. It is the one of its support that minimises
``Σ_k (H √P − 1)²``, with more weight at low frequencies (`kernels`). Of several supports the smallest is
taken that is good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from scipy.fft import next_fast_len

from ..checks import array_of, as_real_array, positive, refuse, refuse_unless, sizes
from .choices import Boundary
from .kernels import convolve, folded, frequencies, nearest_kernels, response_of, trimmed
from .pair import Pair
from .passes import every, mean_over
from .spectrum import Shape, along, half_weights, mean_over_modes, squared

FLOOR = 1e-3
"""Power of a white part that is added to that of any noise, in units of the mean power: frequencies without
noise, which smoothing leaves, would otherwise have infinite weight. Three per cent of the standard deviation:
of images that were smoothed with their noise by up to two pixels, the rest tells less than 1 % more."""
REACHES = (0, 1, 2, 3, 4, 6, 8)
"""Pixels along each axis that a compact kernel may reach."""
GRID = 32
"""Pixels along each axis of the period on which a compact kernel is made."""
NEAR = 0.05
"""Frequency in cycles per pixel below which a compact kernel is to be equally right."""
TOLERANCE = 0.02
"""By which a compact kernel may make errors of shifts larger, or their estimates wrong."""
LAGS = 12
"""Distance in pixels from which noise is taken to be independent where its spectrum is estimated."""
ROUNDS = 3
"""In which an estimate of a spectrum is refined."""
LEAST_POWER = 1e-3
"""Of what is nearly white, in units of its variance, in such an estimate."""
OUTLIER = 5.0
"""Standard deviations from which a pixel of a blank image is not noise."""


@partial(jax.tree_util.register_dataclass, data_fields=["covariance", "effective"], meta_fields=[])
@dataclass(frozen=True)
class Noise:
    """Stationary noise, the same everywhere and correlated between pixels; for ``noise`` of `register`.

    Made by `from_image`, `from_kernel` or `from_power`. White noise of known size is what ``err`` is for.

    Examples
    --------
    An image that was shifted by half a pixel along both axes, by linear interpolation:

    >>> import numpy as np
    >>> noise = Noise.from_kernel(np.full((2, 2), 0.25), sigma=2.0)
    >>> print(noise.sigma)
    1.0
    >>> print(np.round(noise.covariance, 4))
    [[0.25 0.5  0.25]
     [0.5  1.   0.5 ]
     [0.25 0.5  0.25]]
    """

    covariance: Array
    """What two pixels share at every distance, in squared units of the images: odd lengths, no distance in
    the middle, zero beyond."""
    effective: Array | None = None
    """The same of what weights and errors are made for, where that is not the noise alone: images may differ
    in more, as those of `smooth_undersampled` do. Degrees of freedom are those of the noise."""

    @classmethod
    def from_image(cls, image: ArrayLike) -> Noise:
        """Estimate noise from an image with nothing else in it: a blank field, a simulation, residuals.

        Parameters
        ----------
        image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
            Of any size from 16 pixels along each axis; the larger the better. Its mean does not matter.
            Pixels that are not finite are left out, and those more than five standard deviations off, as
            faint stars are.

        Notes
        -----
        The image is whitened by the estimate so far, and what covariances are left, up to 12 pixels and
        tapered, refine it: three rounds. A taper widens what is flat by then, not the spectrum itself.
        """
        array = array_of(image, "image", 1, 3)
        if min(array.shape) < 16:
            raise ValueError(f"image must have 16 pixels or more along each axis, not shape {array.shape}")
        return cls(_estimated(array))

    @classmethod
    def from_kernel(cls, kernel: ArrayLike, sigma: ArrayLike = 1.0) -> Noise:
        """White noise of standard deviation ``sigma`` behind a convolution.

        Parameters
        ----------
        kernel : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
            What has become of a single pixel of one: by smoothing, a shift, drizzling on the same grid.
        sigma : array_like
            Before the convolution, a positive scalar.
        """
        kernel = array_of(kernel, "kernel", 1, 3)
        sigma = positive(sigma, "sigma", kernel.dtype)
        # By FFT sums would be wrong by the rounding of the largest.
        shape = tuple(2 * n - 1 for n in kernel.shape)
        power = jnp.abs(jnp.fft.rfftn(sigma * kernel, shape)) ** 2
        return cls(jnp.fft.fftshift(jnp.fft.irfftn(power, shape)))

    @classmethod
    def from_power(cls, power: ArrayLike, shape: Sequence[int] | None = None) -> Noise:
        """Noise of a given power spectrum.

        Parameters
        ----------
        power : array_like
            ``|F|² / N`` of the noise on average, F the discrete Fourier transform of N pixels: its mean is
            the variance. On the frequencies of ``np.fft.fftn`` for some frame, of any size.
        shape : tuple of int, optional
            That of the frame, if ``power`` is on the half plane of ``np.fft.rfftn``.
        """
        power = array_of(power, "power", 1, 3)
        refuse_unless(lambda x: x >= 0, power, "power", "nowhere negative")
        if shape is None:
            return cls(_centred(jnp.fft.ifftn(power).real))
        frame = sizes(shape, "shape", power.ndim)
        half = (*frame[:-1], frame[-1] // 2 + 1)
        if power.shape != half:
            raise ValueError(f"power must have the half plane of shape, {half}, not {power.shape}")
        return cls(_centred(jnp.fft.irfftn(power, frame)))

    @property
    def sigma(self) -> Array:
        """Standard deviation of a pixel."""
        return jnp.sqrt(self.covariance[tuple(n // 2 for n in self.covariance.shape)])

    def power(self, shape: Sequence[int]) -> Array:
        """Power spectrum on the frequencies of ``np.fft.fftn`` for a frame; its mean is the variance."""
        frame = sizes(shape, "shape", self.covariance.ndim)
        return jnp.maximum(jnp.fft.fftn(folded(self.covariance, frame)).real, 0.0)


def refuse_errors(
    noise: Noise | None, reference_noise: Noise | None, boundary: Boundary, **errors: object
) -> Noise:
    """The noise of the image; raises for what cannot be given beside it."""
    if noise is None:
        raise ValueError("reference_noise needs noise, that of the image")
    for name, value in errors.items():
        if value is not None:
            instead = "reference_noise" if name == "reference_err" else "noise alone, which has the size too"
            raise ValueError(f"{name} must not be given beside noise: give {instead}")
    if not (boundary.overlap or boundary.periodic):
        refuse("boundary", "'overlap' or 'wrap' with noise, which is made white by a filter", boundary.name)
    return noise


class Covariances(NamedTuple):
    """Those of a pair."""

    image: Array
    reference: Array | None
    present: Array | None
    """Of the noise that is in both together, if the others are not of that alone."""


def covariances(noise: Noise, reference_noise: Noise | None, ndim: int, dtype: jnp.dtype) -> Covariances:
    """Those of checked noise for images of so many axes."""
    present, image = _checked(noise, "noise", ndim, dtype)
    if reference_noise is None:
        return Covariances(image, None, None if noise.effective is None else present)
    other, reference = _checked(reference_noise, "reference_noise", ndim, dtype)
    alone = noise.effective is None and reference_noise.effective is None
    return Covariances(image, reference, None if alone else _sum(present, other))


def _checked(noise: Noise, name: str, ndim: int, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Covariance of noise, and that which weights and errors are made for."""
    if not isinstance(noise, Noise):
        refuse(name, "a Noise", noise, TypeError)
    covariance = as_real_array(noise.covariance, f"covariance of {name}").astype(dtype)
    effective = covariance
    if noise.effective is not None:
        effective = as_real_array(noise.effective, f"effective covariance of {name}").astype(dtype)
    for x in (covariance, effective):
        if x.ndim != ndim or any(n % 2 == 0 for n in x.shape):
            raise ValueError(
                f"{name} must have a covariance of {ndim} axes, of odd lengths, not of shape {x.shape}"
            )
    return covariance, effective


def _sum(one: Array, other: Array) -> Array:
    lengths = [max(m, n) for m, n in zip(one.shape, other.shape, strict=True)]
    return _widened(one, lengths) + _widened(other, lengths)


def _centred(periodic: Array) -> Array:
    """A covariance by its distance from the first pixel of a period as one from the middle."""
    for axis, n in enumerate(periodic.shape):
        lags = np.arange(-(n // 2), n // 2 + 1)
        # Half a period is as far in either direction.
        weight = np.where(2 * np.abs(lags) == n, 0.5, 1.0)
        periodic = jnp.take(periodic, lags % n, axis) * along(
            jnp.asarray(weight, periodic.dtype), axis, periodic.ndim
        )
    return periodic


def _power(covariance: Array, shape: Shape) -> Array:
    return jnp.maximum(response_of(covariance, shape), 0.0)


class Whitener(NamedTuple):
    """What makes the noise of a pair white."""

    covariance: Array
    """Of the difference of image and reference, in units of its variance."""
    image_covariance: Array
    """The part of the image, in the same units."""
    present: Array
    """That of the noise which is there, in the same units."""
    sigma: Array
    """Standard deviation of a pixel of the difference."""
    kernel: Array
    """Compact, with the middle in the middle."""
    reach: Array
    """Pixels along each axis that the kernel reaches, shape ``(D,)``."""


class Whiteness(NamedTuple):
    """What has become of the noise of a whitened pair."""

    share: Array
    """Mean power: what of all degrees of freedom has noise."""
    image_share: Array
    """Part of the image in the noise."""
    level: Array
    """What a constant of one has become."""


def whitener(of: Covariances, shape: Shape) -> Whitener:
    """The filter for noise of an image, and maybe of its reference, in frames not smaller than ``shape``.

    With noise in both it is their sum that becomes white. Of equal spectra so do both; of others each is
    taken for white after all, with its share, which counts only where the scene is lost in the noise.
    """
    covariance, total = of.image, of.image
    if of.reference is not None:
        total = _sum(covariance, of.reference)
        covariance = _widened(covariance, total.shape)
    variance = total[tuple(n // 2 for n in total.shape)]
    present = (total if of.present is None else of.present) / variance
    total, covariance = total / variance, covariance / variance
    kernel, reach = _compact(total, min(shape))
    return Whitener(total, covariance, present, jnp.sqrt(variance), kernel, reach)


def _widened(centred: Array, lengths: Sequence[int]) -> Array:
    return jnp.pad(centred, [((m - n) // 2,) * 2 for m, n in zip(lengths, centred.shape, strict=True)])


def _compact(covariance: Array, smallest: int) -> tuple[Array, Array]:
    """The smallest kernel that is good enough, and how far it reaches along each axis.

    Good enough says what it does to shifts by a scene that tells as much about them in every octave of
    frequency.
    """
    ndim, dtype = covariance.ndim, covariance.dtype
    grid = (GRID,) * ndim
    power = _power(covariance, grid) + FLOOR
    # An eighth of the frame on either side is all that may be lost.
    reaches = [r for r in REACHES if 8 * r <= smallest]
    weight = jnp.asarray((frequencies(grid) + NEAR) ** -2, dtype)
    kernels = nearest_kernels(lax.rsqrt(power), weight * power, grid, reaches)
    white = lax.stop_gradient(_transformed(kernels) ** 2 * power[None])
    length = frequencies(grid)
    length.flat[0] = np.inf
    octaves = length**-ndim * half_weights(GRID)
    first, second = (jnp.tensordot(x, jnp.asarray(octaves, dtype), ndim) for x in (white, white**2))
    misquoted, lost = jnp.sqrt(second / first) - 1, jnp.sqrt(second * octaves.sum()) / first - 1
    good = (jnp.abs(misquoted) < TOLERANCE) & (lost < TOLERANCE)
    best = jnp.where(jnp.any(good), jnp.argmax(good), len(reaches) - 1)
    kernel = lax.dynamic_index_in_dim(kernels, best, 0, keepdims=False)
    return trimmed(kernel, reaches[-1])


def _transformed(kernels: Array) -> Array:
    return jnp.fft.rfftn(kernels, axes=tuple(range(1, kernels.ndim))).real


def whitened(image: Array, by: Whitener, periodic: bool, exact: Array | None = None) -> Array:
    """An image whose noise is white, of unit variance where that of the whole pair is one.

    What the kernel reaches from a pixel that is not finite, or from beyond the frame unless that is periodic,
    is NaN; ``exact`` says that there is none, and that the kernel need not be compact.
    """
    return convolve(image, by.sigma, by.kernel, by.reach, periodic, _filter(by, image.shape, exact))


def _filter(by: Whitener, shape: Shape, exact: Array | None) -> Array:
    response = response_of(by.kernel, shape)
    if exact is None:
        return response
    return jnp.where(exact, lax.rsqrt(_power(by.covariance, shape) + FLOOR), response)


def whiteness(by: Whitener, shape: Shape, exact: Array | None) -> Whiteness:
    """What a filter makes of the noise, and of a constant."""

    def of(response: Array, shape: Shape) -> Whiteness:
        covariances = by.covariance, by.image_covariance, by.present
        total, image, share = (mean_over_modes(response**2 * _power(x, shape), shape) for x in covariances)
        return Whiteness(share, image / total, response.reshape(-1)[0] / by.sigma)

    grid = (GRID,) * len(shape)
    result = of(response_of(by.kernel, grid), grid)
    if exact is not None:
        other = of(lax.rsqrt(_power(by.covariance, shape) + FLOOR), shape)
        return Whiteness(*(jnp.where(exact, a, b) for a, b in zip(other, result, strict=True)))
    return result


@partial(jax.jit, static_argnames="periodic")
def whiten(pair: Pair, of: Covariances, periodic: bool) -> tuple[Pair, Whiteness]:
    """A pair of images, or of stacks of them, whose noise is white, with its errors."""
    ndim = of.image.ndim
    images = pair.reference, pair.image
    shapes = [x.shape[x.ndim - ndim :] for x in images]
    smallest = tuple(min(pair) for pair in zip(*shapes, strict=True))
    by = whitener(of, smallest)
    exact = every(jnp.isfinite(images[0])) & every(jnp.isfinite(images[1])) if periodic else None
    filtered = []
    for x in images:
        one = partial(whitened, by=by, periodic=periodic, exact=exact)
        filtered.append(one(x) if x.ndim == ndim else lax.map(one, x))
    result = whiteness(by, shapes[1], exact)
    share = result.image_share
    reference_err = None if of.reference is None else jnp.sqrt(1 - share)
    pair = pair._replace(
        reference=filtered[0], image=filtered[1], err=jnp.sqrt(share), reference_err=reference_err
    )
    return pair, result


@jax.jit
def _estimated(image: Array) -> Array:
    """Covariance of the noise of a blank image."""
    ndim = image.ndim
    grid, middle = (GRID,) * ndim, (GRID // 2,) * ndim
    known = jnp.isfinite(image)
    image = image - jnp.nanmedian(jnp.where(known, image, jnp.nan))
    unit = 1.4826 * jnp.nanmedian(jnp.where(known, jnp.abs(image), jnp.nan))
    image = jnp.where(known & (jnp.abs(image) < OUTLIER * unit), image / unit, jnp.nan)
    covariance = jnp.zeros_like(image, shape=tuple(n + 1 for n in grid)).at[middle].set(1.0)
    for _ in range(ROUNDS):
        by = whitener(Covariances(covariance, None, None), image.shape)
        white = whitened(image, by, periodic=False)
        response = response_of(by.kernel, grid) / by.sigma
        power = jnp.maximum(_power(_correlated(white), grid), LEAST_POWER) / response**2
        covariance = _centred(jnp.fft.irfftn(power, grid))
    return covariance * unit**2


def _correlated(white: Array) -> Array:
    """Covariances of what is nearly white at distances up to `LAGS`, tapered."""
    known = jnp.isfinite(white)
    typical = 1.4826 * jnp.nanmedian(jnp.where(known, jnp.abs(white), jnp.nan))
    known &= jnp.abs(white) < OUTLIER * typical
    values = jnp.where(known, white - mean_over(jnp.where(known, white, 0.0), known), 0.0)
    shape = tuple(next_fast_len(n + LAGS, True) for n in white.shape)
    both = jnp.stack([values, known.astype(values.dtype)])
    axes = tuple(range(1, both.ndim))
    products, pairs = jnp.fft.irfftn(squared(jnp.fft.rfftn(both, shape, axes)), shape, axes)
    result = products / jnp.maximum(pairs, 0.5)
    distance = np.abs(np.arange(-LAGS, LAGS + 1)) / (LAGS + 1)
    near = 1 - 6 * distance**2 + 6 * distance**3
    taper = np.where(distance < 0.5, near, 2 * (1 - distance) ** 3)
    for axis, n in enumerate(shape):
        result = jnp.take(result, np.arange(-LAGS, LAGS + 1) % n, axis)
        result = result * along(jnp.asarray(taper, result.dtype), axis, result.ndim)
    return result
