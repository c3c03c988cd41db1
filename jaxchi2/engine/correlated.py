"""Correlated noise: stationary, of known power spectrum, and the filter that makes it white.

A shift commutes with a convolution. So an image and its reference, both convolved with one kernel h, are
displaced as before, and noise of power P becomes one of power ``|H|² P``. With ``H = 1/√P`` it is white, of
unit variance, and all that holds for white noise holds again: errors, χ², the optimal weights.

On a periodic frame that is exact. Where pixels are unknown, beyond the frame or bad, the kernel has to be
compact, for every pixel that it reaches from there is lost. It is the one of its support that minimises
``Σ_k (H √P − 1)²``, with more weight at low frequencies: a linear problem for conjugate gradients. Of several
supports the smallest is taken that is good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from scipy.fft import next_fast_len

from ..checks import array_of, as_real_array, positive, refuse, refuse_unless, sizes
from .choices import Boundary
from .continuation import average_nearby, in_patches
from .pair import Pair
from .passes import any_in_batch, every, mean_over, neighbours
from .spectrum import Shape, along, half_weights, harmonics, mean_over_modes, scaled, squared

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
STEPS = 20
"""Of conjugate gradients, to convergence."""
TOLERANCE = 0.02
"""By which a compact kernel may make errors of shifts larger, or their estimates wrong."""
LEAST = 1e-3
"""Of the largest value of a kernel, below which its outer lines are left out."""
MAX_HOLE = 0.05
"""Variance that a hole, filled in, may bring to a pixel beside it, in units of the noise."""
LAGS = 12
"""Distance in pixels from which noise is taken to be independent where its spectrum is estimated."""
ROUNDS = 3
"""In which an estimate of a spectrum is refined."""
OUTLIER = 5.0
"""Standard deviations from which a pixel of a blank image is not noise."""


@partial(jax.tree_util.register_dataclass, data_fields=["covariance"], meta_fields=[])
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
        return jnp.maximum(jnp.fft.fftn(_folded(self.covariance, frame)).real, 0.0)


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


def covariances(
    noise: Noise, reference_noise: Noise | None, ndim: int, dtype: jnp.dtype
) -> tuple[Array, Array | None]:
    """Those of checked noise for images of so many axes."""
    one = _checked(noise, "noise", ndim, dtype)
    return one, None if reference_noise is None else _checked(reference_noise, "reference_noise", ndim, dtype)


def _checked(noise: Noise, name: str, ndim: int, dtype: jnp.dtype) -> Array:
    if not isinstance(noise, Noise):
        refuse(name, "a Noise", noise, TypeError)
    covariance = as_real_array(noise.covariance, f"covariance of {name}").astype(dtype)
    if covariance.ndim != ndim or any(n % 2 == 0 for n in covariance.shape):
        raise ValueError(
            f"{name} must have a covariance of {ndim} axes, of odd lengths, not of shape {covariance.shape}"
        )
    return covariance


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


def _folded(centred: Array, shape: Shape) -> Array:
    """What is given by its distance from the middle on a periodic grid, the middle first."""
    for axis, n in enumerate(shape):
        length = centred.shape[axis]
        pads = [(0, -length % n if a == axis else 0) for a in range(centred.ndim)]
        x = jnp.pad(centred, pads)
        x = jnp.sum(x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :]), axis)
        centred = jnp.roll(x, -(length // 2), axis)
    return centred


def _response(centred: Array, shape: Shape) -> Array:
    """Transform of what is symmetric about its middle, on the half plane of a grid."""
    return jnp.fft.rfftn(_folded(centred, shape)).real


def _power(covariance: Array, shape: Shape) -> Array:
    return jnp.maximum(_response(covariance, shape), 0.0)


class Whitener(NamedTuple):
    """What makes the noise of a pair white."""

    covariance: Array
    """Of the difference of image and reference, in units of its variance."""
    image_covariance: Array
    """The part of the image, in the same units."""
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


def whitener(covariance: Array, reference_covariance: Array | None, shape: Shape) -> Whitener:
    """The filter for noise of an image, and maybe of its reference, in frames not smaller than ``shape``.

    With noise in both it is their sum that becomes white. Of equal spectra so do both; of others each is
    taken for white after all, with its share, which counts only where the scene is lost in the noise.
    """
    total = covariance
    if reference_covariance is not None:
        lengths = [max(m, n) for m, n in zip(covariance.shape, reference_covariance.shape, strict=True)]
        covariance = _widened(covariance, lengths)
        total = covariance + _widened(reference_covariance, lengths)
    variance = total[tuple(n // 2 for n in total.shape)]
    total, covariance = total / variance, covariance / variance
    kernel, reach = _compact(total, min(shape))
    return Whitener(total, covariance, jnp.sqrt(variance), kernel, reach)


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
    kernels = _whitening_kernels(power, grid, reaches)
    white = lax.stop_gradient(_transformed(kernels) ** 2 * power[None])
    frequency = _frequency(grid)
    frequency.flat[0] = np.inf
    octaves = frequency**-ndim * half_weights(GRID)
    first, second = (jnp.tensordot(x, jnp.asarray(octaves, dtype), ndim) for x in (white, white**2))
    misquoted, lost = jnp.sqrt(second / first) - 1, jnp.sqrt(second * octaves.sum()) / first - 1
    good = (jnp.abs(misquoted) < TOLERANCE) & (lost < TOLERANCE)
    best = jnp.where(jnp.any(good), jnp.argmax(good), len(reaches) - 1)
    kernel = lax.dynamic_index_in_dim(kernels, best, 0, keepdims=False)

    lags = np.arange(-reaches[-1], reaches[-1] + 1)
    for axis in range(ndim):
        kernel = jnp.take(kernel, lags % GRID, axis)
    size, reach = jnp.abs(lax.stop_gradient(kernel)), []
    for axis in range(ndim):
        line = jnp.max(size, tuple(a for a in range(ndim) if a != axis))
        reach.append(jnp.max(jnp.where(line > LEAST * jnp.max(size), np.abs(lags), 0)))
        inside = along(np.abs(lags) <= reach[-1], axis, ndim)
        kernel = jnp.where(inside, kernel, 0.0)
    return kernel, jnp.stack(reach)


def _whitening_kernels(power: Array, grid: Shape, reaches: list[int]) -> Array:
    """For every reach the kernel within it that minimises ``Σ_k (H √P − 1)² / (k + NEAR)²``, the first axis.

    By conjugate gradients, preconditioned by what would solve it if all of the grid were within reach.
    """
    axes, dtype = tuple(range(1, len(grid) + 1)), power.dtype
    weight = jnp.asarray((_frequency(grid) + NEAR) ** -2, dtype)
    distance = np.abs(np.fft.fftfreq(GRID, 1 / GRID))
    boxes = [reduce(np.multiply.outer, [(distance <= r).astype(float)] * len(grid)) for r in reaches]
    inside = jnp.asarray(np.stack(boxes), dtype)

    def convolved(x: Array, response: Array) -> Array:
        spectrum = scaled(jnp.fft.rfftn(x, axes=axes), response[None])
        return inside * jnp.fft.irfftn(spectrum, grid, axes)

    def products(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, axes, keepdims=True)

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        x, residual, direction, size = state
        image = convolved(direction, weight * power)
        going = size > solved
        length = jnp.where(going, size / jnp.where(going, products(direction, image), 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        nearly = convolved(residual, 1 / (weight * power))
        new = products(residual, nearly)
        turn = jnp.where(going, new / jnp.where(going, size, 1.0), 0.0)
        return (x, residual, nearly + turn * direction, new), None

    right = inside * jnp.fft.irfftn(weight * jnp.sqrt(power), grid)[None]
    nearly = convolved(right, 1 / (weight * power))
    size = products(right, nearly)
    solved = lax.stop_gradient(jnp.finfo(dtype).eps ** 2 * size)
    return lax.scan(step, (jnp.zeros_like(right), right, nearly, size), None, STEPS)[0][0]


def _transformed(kernels: Array) -> Array:
    return jnp.fft.rfftn(kernels, axes=tuple(range(1, kernels.ndim))).real


def _frequency(grid: Shape) -> np.ndarray:
    """Length of every wave vector of the half plane, in cycles per pixel."""
    half = (*grid[:-1], grid[-1] // 2 + 1)
    squares = [np.square(harmonics(n)[:m] / n) for n, m in zip(grid, half, strict=True)]
    return np.sqrt(reduce(np.add.outer, squares))


def whitened(image: Array, by: Whitener, periodic: bool, exact: Array | None = None) -> Array:
    """An image whose noise is white, of unit variance where that of the whole pair is one.

    What the kernel reaches from a pixel that is not finite, or from beyond the frame unless that is periodic,
    is NaN; ``exact`` says that there is none, and that the kernel need not be compact.
    """
    shape, known = image.shape, jnp.isfinite(image)
    response = _filter(by, shape, exact)
    mean = lax.stop_gradient(mean_over(image, known))
    level = mean / by.sigma
    values = jnp.where(known, (image - mean) / by.sigma, 0.0)
    outside = "wrap" if periodic else "constant"

    def with_holes(values: Array) -> tuple[Array, Array]:
        patches = in_patches(known)
        holes = ~known & ~patches
        filled = jnp.where(holes, average_nearby(values, known), values)
        brought = _brought(values, known, holes, by.kernel)
        return filled, known & _within(~patches, by.reach, outside) & (brought < MAX_HOLE)

    def without(values: Array) -> tuple[Array, Array]:
        return values, _within(known, by.reach, outside)

    values, valid = lax.cond(any_in_batch(~every(known)), with_holes, without, values)
    result = jnp.fft.irfftn(scaled(jnp.fft.rfftn(values), response), shape)
    return jnp.where(valid, result + level * response.reshape(-1)[0], jnp.nan)


def _filter(by: Whitener, shape: Shape, exact: Array | None) -> Array:
    response = _response(by.kernel, shape)
    if exact is None:
        return response
    return jnp.where(exact, lax.rsqrt(_power(by.covariance, shape) + FLOOR), response)


def _within(known: Array, reach: Array, outside: str) -> Array:
    """Whether all pixels that a kernel reaches are known."""

    def step(k: Array, known: Array, axis: int) -> Array:
        return jnp.where(
            k < reach[axis], reduce(jnp.logical_and, neighbours(known, -1, 1, axis, outside)), known
        )

    for axis in range(known.ndim):
        known = lax.fori_loop(0, REACHES[-1], partial(step, axis=axis), known)
    return known


def _brought(values: Array, known: Array, holes: Array, kernel: Array) -> Array:
    """Variance that holes bring to pixels beside them, filled in with averages nearby.

    Wrong by what pixels differ from the mean of their neighbours.
    """
    total, number = jnp.zeros_like(values), jnp.zeros_like(values)
    for axis in range(values.ndim):
        before, here, behind = neighbours(values, -1, 1, axis)
        whole = reduce(jnp.logical_and, neighbours(known, -1, 1, axis))
        total = total + jnp.where(whole, (here - (before + behind) / 2) ** 2, 0.0)
        number = number + whole
    square = average_nearby(total / jnp.maximum(number, 1.0), number > 0)
    carried = _response(kernel**2, values.shape)
    source = jnp.where(holes, square, 0.0)
    return jnp.where(holes, jnp.inf, jnp.fft.irfftn(scaled(jnp.fft.rfftn(source), carried), values.shape))


def whiteness(by: Whitener, shape: Shape, exact: Array | None) -> Whiteness:
    """What a filter makes of the noise, and of a constant."""

    def of(power: Array, image: Array, response: Array, shape: Shape) -> tuple[Array, Array, Array]:
        total, part = (mean_over_modes(response**2 * x, shape) for x in (power, image))
        return total, part / total, response.reshape(-1)[0] / by.sigma

    grid = (GRID,) * len(shape)
    result = of(
        _power(by.covariance, grid), _power(by.image_covariance, grid), _response(by.kernel, grid), grid
    )
    if exact is not None:
        power = _power(by.covariance, shape)
        other = of(power, _power(by.image_covariance, shape), lax.rsqrt(power + FLOOR), shape)
        return Whiteness(*(jnp.where(exact, a, b) for a, b in zip(other, result, strict=True)))
    return Whiteness(*result)


@partial(jax.jit, static_argnames="periodic")
def whiten(
    pair: Pair, covariance: Array, reference_covariance: Array | None, periodic: bool
) -> tuple[Pair, Whiteness]:
    """A pair of images, or of stacks of them, whose noise is white, with its errors."""
    ndim = covariance.ndim
    images = pair.reference, pair.image
    shapes = [x.shape[x.ndim - ndim :] for x in images]
    smallest = tuple(min(pair) for pair in zip(*shapes, strict=True))
    by = whitener(covariance, reference_covariance, smallest)
    exact = every(jnp.isfinite(images[0])) & every(jnp.isfinite(images[1])) if periodic else None
    filtered = []
    for x in images:
        one = partial(whitened, by=by, periodic=periodic, exact=exact)
        filtered.append(one(x) if x.ndim == ndim else lax.map(one, x))
    result = whiteness(by, shapes[1], exact)
    share = result.image_share
    reference_err = None if reference_covariance is None else jnp.sqrt(1 - share)
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
        by = whitener(covariance, None, image.shape)
        white = whitened(image, by, periodic=False)
        response = _response(by.kernel, grid) / by.sigma
        power = jnp.maximum(_power(_correlated(white), grid), LEAST) / response**2
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
