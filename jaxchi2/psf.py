"""Point-spread functions: images brought to a common one, and images that sample theirs too coarsely.

A shift is found between images of the same scene. If these have other point-spread functions, of covariances
A and B, each is convolved with the Gaussian that it lacks to the smallest ellipse around both: with
``A = L Lᵀ`` and ``L⁻¹ B L⁻ᵀ = U diag(d) Uᵀ``, that is ``L U diag(max(d, 1)) Uᵀ Lᵀ``.

Where a point-spread function has power beyond the Nyquist frequency, pixels alias it, and the interpolant of
the reference is not the scene. With the transfer T, wave vectors m in whole cycles per pixel, and a weight W
of the frequencies k, the shift by a point source of flux f is then wrong along an axis by

    (f² / H) Σ_m (sin φ_m − sin φ'_m) ∫ W k T(k) T(k + m) dk,    H = f² ∫ W k² T² dk

with phases that depend on where in its pixel the source is in either image. Over sources these errors
average, weighted by f², and frequencies of different sources beat as noise does. A Gaussian that smooths both
images is such a weight, and takes the frequencies that alias first; its width is a compromise with the noise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from .checks import array_of, choice, known_values, positive, refuse
from .engine.correlated import Noise
from .engine.kernels import convolve, frequencies, nearest_kernels, response_of, trimmed
from .engine.passes import mean_over

FWHM = np.sqrt(8 * np.log(2))
"""Of a Gaussian, in units of its standard deviation."""
LACKING = 0.02
"""Standard deviation in pixels of a Gaussian that changes nothing."""
REACH = 3.5
"""Standard deviations that a kernel reaches, and three pixels at least."""
LEAST_POWER = 3e-5
"""Weight of frequencies that a point-spread function lets not pass, of which a kernel need not take care."""
STEPS = 100
"""Of conjugate gradients, with weights that range so far."""
WIDTHS = (0.0, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.65, 1.8, 2.0)
"""Standard deviations in pixels of the Gaussians that undersampled images may be smoothed with."""
WIDEST = 8
"""Pixels that these reach, four standard deviations."""
NARROWEST = 0.8
"""Full width in pixels below which twice aliased power counts too, and a Gaussian is no model of a pixel."""
BOUNDARIES = ("overlap", "wrap")


class MatchedPair(NamedTuple):
    """Two images and their noise, for ``register(reference, image, noise=…, reference_noise=…)``."""

    reference: Array
    """NaN where a kernel reached what is unknown."""
    image: Array
    """The same of the image."""
    noise: Noise
    """That of ``image``."""
    reference_noise: Noise | None
    """That of ``reference``; None if it has none, or if ``noise`` is that of both."""


def match_psf(
    reference: ArrayLike,
    image: ArrayLike,
    reference_psf: ArrayLike,
    psf: ArrayLike,
    err: ArrayLike,
    reference_err: ArrayLike | None = None,
    *,
    boundary: str = "overlap",
) -> MatchedPair:
    """Bring two images with Gaussian-like point-spread functions to a common one, and their noise with them.

    Each image is convolved with the Gaussian that it lacks to the smallest ellipse around both. An image
    that lacks nothing is left as it is.

    Parameters
    ----------
    reference, image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        Not modified. Pixels that are not finite stay so, with those that the kernel reaches from there; but
        single ones are filled in first, where that does not matter beside the noise.
    reference_psf, psf : float or array_like, shape (D,) or (D, D)
        That of the reference, and of the image, in pixels: the full width at half maximum, one for each axis,
        or a covariance matrix in square pixels. Known numbers, static under jit.
    err : float
        Standard deviation of the white noise of ``image``, before.
    reference_err : float, optional
        That of ``reference``, if it has noise.
    boundary : {"overlap", "wrap"}
        What is beyond the frames, as for `register`: unknown, so that a margin becomes NaN, as wide as the
        kernel reaches; or the other side.

    Returns
    -------
    MatchedPair

    Raises
    ------
    ValueError, TypeError
        For widths that are not positive, a matrix that is not symmetric and positive definite, an error
        that is not a positive scalar, images of unlike dimensions.

    Notes
    -----
    Errors hold for what a Gaussian can match: wings and rings of a point spread are left, symmetric, and
    show as `Status.BAD_FIT` at high signal. A difference that is not symmetric is a shift as far as any data
    tell, of the difference of both centroids, weighted by the slopes of the scene.

    Examples
    --------
    >>> import numpy as np
    >>> import jaxchi2
    >>> y, x = np.indices((48, 48)) - 20.0
    >>> def star(y0, x0, fwhm):
    ...     return 1000 / fwhm**2 * np.exp(-4 * np.log(2) * ((y - y0) ** 2 + (x - x0) ** 2) / fwhm**2)
    >>> image = star(0.4, -0.7, 3.5) + np.random.default_rng(0).normal(size=y.shape)
    >>> pair = match_psf(star(0, 0, 2.5), image, 2.5, 3.5, err=1.0)
    >>> print(jaxchi2.register(pair.reference, pair.image, noise=pair.noise))
    Registration(shift=(+0.3896 ± 0.0098, -0.7070 ± 0.0097) px, chi2=1428.8, dof=1441)
    """
    reference, image = _images(reference, image)
    ndim, periodic = image.ndim, choice(boundary, "boundary", BOUNDARIES) == "wrap"
    widths = covariance_of(reference_psf, "reference_psf", ndim), covariance_of(psf, "psf", ndim)
    common = common_covariance(*widths)
    sigma = positive(err, "err", image.dtype)
    reference_sigma = None if reference_err is None else positive(reference_err, "reference_err", image.dtype)
    sizes = sigma if reference_sigma is None else reference_sigma, sigma
    done = [
        _brought(x, width, common - width, size, periodic)
        for x, width, size in zip((reference, image), widths, sizes, strict=True)
    ]
    (reference, reference_noise), (image, noise) = done
    return MatchedPair(reference, image, noise, None if reference_err is None else reference_noise)


def smooth_undersampled(
    reference: ArrayLike,
    image: ArrayLike,
    psf: ArrayLike,
    err: ArrayLike,
    reference_err: ArrayLike | None = None,
    *,
    boundary: str = "overlap",
) -> MatchedPair:
    """Smooth two images that sample their point spread too coarsely, with noise that says what aliasing adds.

    Both are convolved with one Gaussian, whose width makes the error of the shift smallest, from noise and
    from aliasing together. That error is what the noise of the result stands for.

    Parameters
    ----------
    reference, image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        As for `match_psf`. The reference tells how bright and how many the sources are.
    psf : float or array_like, shape (D,) or (D, D)
        Point-spread function of both, pixels included, as for `match_psf`: a full width of 0.8 pixels or
        more along each axis.
    err : float
        Standard deviation of the white noise of ``image``.
    reference_err : float, optional
        That of ``reference``, if it has noise.
    boundary : {"overlap", "wrap"}
        As for `match_psf`.

    Returns
    -------
    MatchedPair
        With the noise of both images in ``noise``, whose ``effective`` covariance is that of white noise
        which would make the error of the shift as large.

    Raises
    ------
    ValueError, TypeError
        As `match_psf`, and for a point-spread function below 0.8 pixels.

    Notes
    -----
    Sources are taken to be points: their fluxes from the fourth moment of the reference's pixels about that
    of a Gaussian field, their number from the second. For scenes smoother than that, errors are too large.
    Aliasing is the same in both images, and does no harm, where the shift is a whole number of pixels; errors
    are those for any shift. Fluxes count as constants in derivatives.

    Examples
    --------
    >>> import numpy as np
    >>> import jaxchi2
    >>> rng = np.random.default_rng(0)
    >>> places = rng.uniform(0, 64, (2, 50))
    >>> def stars(shift):
    ...     y, x = (np.arange(64)[:, None] - p - s for p, s in zip(places, shift))
    ...     return 100 * np.exp(-2 * y**2) @ np.exp(-2 * x**2).T
    >>> reference, image = stars((0, 0)), stars((1.4, -2.3)) + rng.normal(size=(64, 64))
    >>> pair = smooth_undersampled(reference, image, 1.18, err=1.0)
    >>> print(jaxchi2.register(pair.reference, pair.image, noise=pair.noise))
    Registration(shift=(+1.3989 ± 0.0089, -2.3051 ± 0.0086) px, chi2=343.53, dof=277)
    """
    reference, image = _images(reference, image)
    ndim, periodic = image.ndim, choice(boundary, "boundary", BOUNDARIES) == "wrap"
    covariance = covariance_of(psf, "psf", ndim)
    if np.any(np.sqrt(np.diag(covariance)) * FWHM < NARROWEST * (1 - 1e-6)):
        refuse("psf", f"of a full width of {NARROWEST} pixels or more along each axis", psf)
    variance = positive(err, "err", image.dtype) ** 2
    own = jnp.zeros_like(variance)
    if reference_err is not None:
        own = positive(reference_err, "reference_err", image.dtype) ** 2
    power, fluxes = lax.stop_gradient(_sources(reference, own, covariance))
    best, effective = _compromise(variance + own, power, fluxes, covariance)
    lines = jnp.asarray(smoothing_lines(), image.dtype)[best]
    kernel = reduce(jnp.multiply.outer, [lines] * ndim)
    reach = jnp.full((ndim,), jnp.asarray([_reach(w) for w in WIDTHS])[best])
    noise = Noise.from_power(_smoothed_power(variance + own, power, covariance)[best])
    noise = replace(noise, effective=jnp.full((1,) * ndim, effective))
    smoothed = [_convolved(x, noise.sigma, kernel, reach, periodic) for x in (reference, image)]
    return MatchedPair(smoothed[0], smoothed[1], noise, None)


def _images(reference: ArrayLike, image: ArrayLike) -> tuple[Array, Array]:
    first, second = array_of(reference, "reference", 1, 3), array_of(image, "image", 1, 3)
    if first.ndim != second.ndim:
        raise ValueError(f"image must have as many axes as reference, {first.ndim}, not shape {second.shape}")
    dtype = jnp.promote_types(first.dtype, second.dtype)
    return first.astype(dtype), second.astype(dtype)


def covariance_of(psf: ArrayLike, name: str, ndim: int) -> np.ndarray:
    """Covariance of a point-spread function in square pixels, from its widths or itself."""
    wanted = f"a full width, {ndim} of them, or a covariance matrix of shape {(ndim, ndim)}"
    values = known_values(psf)
    if values is None:
        refuse(name, f"numbers known while tracing: {wanted}", psf, TypeError)
    if values.shape == (ndim, ndim):
        if not np.allclose(values, values.T) or np.any(np.linalg.eigvalsh(values) <= 0):
            refuse(name, "symmetric and positive definite", values)
        return values
    if values.shape not in ((), (ndim,)):
        refuse(name, wanted, psf)
    if not np.all((values > 0) & np.isfinite(values)):
        refuse(name, "positive", psf)
    return np.diag(np.broadcast_to(values / FWHM, ndim) ** 2)


def common_covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smallest ellipse around two."""
    root = np.linalg.cholesky(one)
    inverse = np.linalg.inv(root)
    lengths, axes = np.linalg.eigh(inverse @ other @ inverse.T)
    root = root @ axes
    return (root * np.maximum(lengths, 1.0)) @ root.T


def _brought(
    image: Array, own: np.ndarray, lacking: np.ndarray, sigma: Array, periodic: bool
) -> tuple[Array, Noise]:
    """An image convolved with the Gaussian of a covariance, and its noise."""
    ndim = image.ndim
    if np.max(np.linalg.eigvalsh(lacking)) < LACKING**2:
        return image, Noise.from_kernel(jnp.ones((1,) * ndim, image.dtype), sigma)
    kernel, reach = gaussian_kernel(lacking, own, image.dtype)
    noise = Noise.from_kernel(kernel, sigma)
    return _convolved(image, noise.sigma, kernel, reach, periodic), noise


def _convolved(image: Array, unit: Array, kernel: Array, reach: Array, periodic: bool) -> Array:
    return unit * convolve(image, unit, kernel, reach, periodic, response_of(kernel, image.shape))


def gaussian_kernel(lacking: np.ndarray, own: np.ndarray, dtype: jnp.dtype) -> tuple[Array, Array]:
    """The compact kernel of sum one that is nearest to a Gaussian, and its reach along each axis.

    At the frequencies that images of a point-spread function have.
    """
    ndim = len(lacking)
    most = max(3, int(np.ceil(REACH * np.sqrt(np.max(np.diag(lacking))))))
    n = max(32, 4 * most)
    waves = np.stack(np.meshgrid(*[np.fft.fftfreq(n)] * ndim, indexing="ij"))[..., : n // 2 + 1]
    target, power = (
        np.exp(-factor * np.pi**2 * np.einsum("a...,ab,b...->...", waves, c, waves))
        for factor, c in ((2, lacking), (4, own))
    )
    # A constant is to stay what it is.
    weight = (power + LEAST_POWER) * np.where(frequencies((n,) * ndim) > 0, 1.0, 100.0)
    target, weight = jnp.asarray(target, dtype), jnp.asarray(weight, dtype)
    kernel, reach = trimmed(nearest_kernels(target, weight, (n,) * ndim, [most], STEPS)[0], most)
    return kernel / jnp.sum(kernel), reach


def _sources(reference: Array, variance: Array, psf: np.ndarray) -> tuple[Array, Array]:
    """Power of the scene before its point spread, and the mean square flux of its sources weighted by square.

    By the second moment of the pixels, and by what of the fourth is beyond that of a Gaussian field.
    """
    ndim, size = len(psf), np.linalg.det(psf)
    known = jnp.isfinite(reference)
    values = jnp.where(known, reference - jnp.nanmedian(jnp.where(known, reference, jnp.nan)), 0.0)
    unit = jnp.maximum(jnp.max(jnp.abs(values)), jnp.finfo(values.dtype).tiny)
    values, noise = values / unit, variance / unit**2
    second = mean_over(values**2, known) - noise
    fourth = mean_over(values**4, known) - 6 * second * noise - 3 * noise**2
    found = second > 0
    second = jnp.where(found, second, 1.0)
    squares = (4 * np.pi) ** (-ndim / 2) * size**-0.5
    fourths = (2 * np.pi) ** (-2 * ndim) * (np.pi / 2) ** (ndim / 2) * size**-1.5
    fluxes = jnp.maximum(fourth - 3 * second**2, 0.0) / second * (squares / fourths)
    power, fluxes = (jnp.where(found, x, 0.0) * unit**2 for x in (second / squares, fluxes))
    return power, fluxes


def _compromise(variance: Array, power: Array, fluxes: Array, psf: np.ndarray) -> tuple[Array, Array]:
    """Which of `WIDTHS` makes the error of the shift smallest, and what white noise would make it that."""
    slope, noise, beats, sources = (jnp.asarray(x, variance.dtype) for x in _integrals(psf))
    total = variance * noise + 2 * power * beats + 2 * fluxes * sources
    best = jnp.argmin(jnp.sum(total / slope**2, axis=1))
    return best, jnp.max(total[best] / slope[best])


def _integrals(psf: np.ndarray) -> tuple[np.ndarray, ...]:
    """For every width and along every axis ∫ W k² T², ∫ W² k² T², ∫ W² k² T² Σ T_m² and Σ (∫ W k T T_m)²."""
    ndim = len(psf)
    n = 64 if ndim < 3 else 24
    waves = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5] * ndim, indexing="ij"))
    own, aliased = _transfers(psf, waves)
    pixels = tuple(range(1, ndim + 1))
    result = []
    for weight in smoothing_power(waves):
        slopes = weight * waves**2 * own**2
        sources = sum(np.mean(weight * waves * own * other, pixels) ** 2 for other in aliased)
        beats = np.mean(weight * slopes * np.sum(aliased**2, axis=0), pixels)
        result.append((np.mean(slopes, pixels), np.mean(weight * slopes, pixels), beats, sources))
    return tuple(np.stack(x) for x in zip(*result, strict=True))


def _smoothed_power(variance: Array, power: Array, psf: np.ndarray) -> Array:
    """Of what two smoothed images differ in, noise and aliasing, for every width."""
    ndim = len(psf)
    waves = np.stack(np.meshgrid(*[np.fft.fftfreq(4 * WIDEST)] * ndim, indexing="ij"))
    aliased = np.sum(_transfers(psf, waves)[1] ** 2, axis=0)
    weights = jnp.asarray(smoothing_power(waves), variance.dtype)
    return weights * (variance + 2 * power * jnp.asarray(aliased, variance.dtype))[None]


def _transfers(psf: np.ndarray, waves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transfer of a point-spread function at wave vectors, and at those that pixels take for them."""
    ndim = len(psf)

    def at(m: tuple[int, ...]) -> np.ndarray:
        k = waves + np.reshape(m, (ndim,) + (1,) * ndim)
        return np.exp(-2 * np.pi**2 * np.einsum("a...,ab,b...->...", k, psf, k))

    return at((0,) * ndim), np.stack([at(m) for m in product((-1, 0, 1), repeat=ndim) if any(m)])


def smoothing_power(waves: np.ndarray) -> np.ndarray:
    """Squared response of every Gaussian of `WIDTHS` at wave vectors."""
    return np.stack([np.prod(_response(line, waves), axis=0) ** 2 for line in smoothing_lines()])


def _reach(width: float) -> int:
    return int(np.ceil(4 * width))


def smoothing_lines() -> np.ndarray:
    """Gaussians of all `WIDTHS` along one axis, each of sum one within its reach."""
    lags = np.arange(-WIDEST, WIDEST + 1)
    lines = [np.exp(-0.5 * (lags / max(w, 0.1)) ** 2) * (np.abs(lags) <= _reach(w)) for w in WIDTHS]
    return np.stack([line / line.sum() for line in lines])


def _response(line: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """That of a symmetric line at wave numbers."""
    middle = len(line) // 2
    return line[middle] + 2 * sum(
        line[middle + j] * np.cos(2 * np.pi * j * waves) for j in range(1, middle + 1)
    )
