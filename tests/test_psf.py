"""Point-spread functions: Gaussians by formula and by scipy, their noise, pulls, what aliasing does."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import scene
from scipy import ndimage

from jaxchi2 import MatchedPair, Noise, Status, match_psf, register, smooth_undersampled
from jaxchi2 import psf as module

FWHM = np.sqrt(8 * np.log(2))
TURNED = np.array([[9.25, 3.0], [3.0, 9.25]]) / FWHM**2


def gaussians(shape, places, fluxes, covariance):
    """Point sources behind a point spread, by its formula."""
    pixels = np.stack(np.indices(shape), -1).astype(float)
    inverse, size = np.linalg.inv(covariance), np.linalg.det(2 * np.pi * np.asarray(covariance))
    total = np.zeros(shape)
    for place, flux in zip(places, fluxes, strict=True):
        d = pixels - place
        total += flux * size**-0.5 * np.exp(-0.5 * np.einsum("...a,ab,...b", d, inverse, d))
    return total


def pairs_of(count, widths, number, fluxes, seed, noise=(0.0, 1.0), size=64):
    """Crops of stars, with noise, and shifts."""
    rng = np.random.default_rng(seed)
    shifts = rng.uniform(-2, 2, (count, 2))
    frames = []
    for shift in shifts:
        places = rng.uniform(-6, size + 6, (number, 2))
        light = np.exp(rng.uniform(*np.log(fluxes), number))
        frames.append(
            [gaussians((size, size), places + s, light, w) for s, w in zip((0, shift), widths, strict=True)]
        )
    frames = np.array(frames) + rng.normal(size=(count, 2, size, size)) * np.reshape(noise, (2, 1, 1))
    return frames.astype(np.float32), shifts


def registered(frames, prepare):
    @jax.jit
    def run(frames):
        def one(frames):
            pair = prepare(*frames)
            return register(*pair[:2], noise=pair.noise, reference_noise=pair.reference_noise)

        return jax.lax.map(one, frames, batch_size=20)

    return jax.tree.map(np.asarray, run(frames))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_smallest_ellipse(ndim):
    rng = np.random.default_rng(ndim)
    for _ in range(20):
        one, other = (x @ x.T + 0.1 * np.eye(ndim) for x in rng.normal(size=(2, ndim, ndim)))
        common = module.common_covariance(one, other)
        np.testing.assert_allclose(common, module.common_covariance(other, one), rtol=1e-9, atol=1e-12)
        lacking = [np.linalg.eigvalsh(common - x) for x in (one, other)]
        assert np.min(lacking) > -1e-10
        # It touches each, and along no axis is it outside both: their lacking ranks make up the axes.
        assert sum(np.sum(x > 1e-9) for x in lacking) == ndim
    np.testing.assert_allclose(module.common_covariance(np.eye(2), 4 * np.eye(2)), 4 * np.eye(2))


@pytest.mark.parametrize(
    ("reference_psf", "psf", "shape"),
    [
        (2.5, 3.5, (40, 44)),
        (3.0, 2.4, (40, 44)),
        (2.5, 2.6, (40, 44)),
        ((3.5, 2.5), TURNED, (40, 44)),
        (2.5, 3.5, (60,)),
        ((2.5, 3.0, 2.5), (3.0, 2.5, 3.0), (24, 25, 26)),
    ],
)
def test_sources_become_those_of_the_common_point_spread(reference_psf, psf, shape, dtype):
    rng = np.random.default_rng(0)
    ndim = len(shape)
    places = rng.uniform(np.array(shape) * 0.3, np.array(shape) * 0.7, (4, ndim))
    fluxes = rng.uniform(50, 100, 4)
    widths = [module.covariance_of(x, "psf", ndim) for x in (reference_psf, psf)]
    images = [gaussians(shape, places, fluxes, w).astype(dtype) for w in widths]
    kept = [x.copy() for x in images]
    found = match_psf(*images, reference_psf, psf, 1.0)
    assert isinstance(found, MatchedPair)
    assert found.reference_noise is None
    expected = gaussians(shape, places, fluxes, module.common_covariance(*widths))
    for x in found[:2]:
        assert x.dtype == dtype
        valid = np.isfinite(x)
        assert np.mean(valid) > 0.2
        np.testing.assert_allclose(np.asarray(x)[valid], expected[valid], atol=1e-3 * expected.max())
    for x, copy in zip(images, kept, strict=True):
        np.testing.assert_array_equal(x, copy)


def reach_of(fwhm, common):
    """Pixels that the kernel reaches, the same along both axes."""
    own, wide = (module.covariance_of(x, "psf", 2) for x in (fwhm, common))
    _, reach = module.gaussian_kernel(wide - own, own, np.float32)
    assert 3 <= reach[0] == reach[1] <= 5
    return int(reach[0])


@pytest.mark.parametrize("boundary", ["overlap", "wrap"])
def test_scene_is_that_of_scipy(boundary):
    image = 100 + scene((48, 46), 3.0, seed=2, smooth=True)
    sigma = np.sqrt(3.5**2 - 2.5**2) / FWHM
    found = match_psf(image, image, 2.5, 3.5, 0.01, boundary=boundary)
    expected = ndimage.gaussian_filter(image, sigma, mode="wrap", truncate=8)
    valid = np.isfinite(np.asarray(found.reference))
    np.testing.assert_allclose(np.asarray(found.reference)[valid], expected[valid], atol=2e-3)
    np.testing.assert_array_equal(found.image, image.astype(np.float32))
    inner = np.zeros(image.shape, bool)
    margin = reach_of(2.5, 3.5) if boundary == "overlap" else 0
    inner[margin : 48 - margin, margin : 46 - margin] = True
    np.testing.assert_array_equal(valid, inner)


def test_noise_follows():
    """Variance, and covariance of neighbours, of white noise behind what an image lacks."""
    white = 2 * np.random.default_rng(3).normal(size=(2, 256, 256))
    found = match_psf(*white, 2.5, 3.5, 5.0, 2.0, boundary="wrap")
    np.testing.assert_allclose(found.noise.power((8, 8)), 25.0, rtol=1e-5)
    image = np.asarray(found.reference)
    covariance = np.asarray(found.reference_noise.covariance)
    middle = np.array(covariance.shape) // 2
    # Some 256² / 14 pixels are independent; five of their standard deviations.
    for lag in ((0, 0), (1, 0), (1, 1), (0, 2)):
        shared = np.mean(image * np.roll(image, lag, (0, 1)))
        expected = covariance[tuple(middle + lag)]
        assert abs(shared - expected) < 5 * np.sqrt(2 * 14) / 256 * covariance.max()


def test_unknown_pixels():
    """A patch takes what the kernel reaches; a single pixel in a blank place is filled in."""
    image = np.random.default_rng(4).normal(size=(40, 40))
    image[10:14, 20:23] = np.nan
    image[30, 30] = np.nan
    found = np.asarray(match_psf(image, image, 2.5, 3.5, 1.0, 1.0).reference)
    reach = reach_of(2.5, 3.5)
    assert np.all(np.isnan(found[10 - reach : 14 + reach, 20 - reach : 23 + reach]))
    assert np.all(np.isfinite(found[10 - reach : 14 + reach, 23 + reach]))
    assert np.isnan(found[30, 30])
    assert np.isfinite(found[30, 31 + reach])
    again = np.asarray(match_psf(image, image, 2.5, 3.5, 1.0, 1.0).image)
    np.testing.assert_array_equal(np.isnan(again), np.isnan(image))


def test_same_under_jit_and_differentiable(x64):
    images, _ = pairs_of(1, [np.eye(2) * 1.1, np.eye(2) * 2.2], 30, (300, 600), 5, size=32)
    prepare = partial(match_psf, reference_psf=2.5, psf=3.5)

    def found(reference, err):
        pair = prepare(reference, images[0, 1].astype(float), err=err)
        return jnp.stack([jnp.nansum(pair.reference**2), pair.noise.sigma])

    reference = images[0, 0].astype(float)
    np.testing.assert_allclose(jax.jit(found)(reference, 1.0), found(reference, 1.0), rtol=1e-9)
    direction = np.random.default_rng(0).normal(size=reference.shape)
    ahead, behind = (found(reference + h * direction, 1.0) for h in (1e-4, -1e-4))
    _, tangent = jax.jvp(lambda x: found(x, 1.0), (reference,), (direction,))
    np.testing.assert_allclose(tangent[0], (ahead - behind)[0] / 2e-4, rtol=1e-6)


@pytest.mark.parametrize("both", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "widths",
    [(2.5, 3.5), *(pytest.param(x, marks=pytest.mark.long) for x in [(3.5, 2.5), ((3.5, 2.5), TURNED)])],
)
def test_pulls(widths, both):
    """0.9 to 1.15, with 5 σ of 200 pulls to either side; unmatched, pulls are above two."""
    covariances = [module.covariance_of(x, "psf", 2) for x in widths]
    frames, shifts = pairs_of(100, covariances, 50, (200, 3000), 6, (float(both), 1.0))
    err = 1.0 if both else None
    found = registered(frames, lambda a, b: match_psf(a, b, *widths, np.float32(1.0), err))
    pull = np.sqrt(np.mean(((found.shift - shifts) / found.stderr) ** 2))
    spread = 5 / np.sqrt(2 * shifts.size)
    assert 0.9 - spread < pull < 1.15 + spread
    # One false alarm in a hundred, by the Poisson distribution.
    assert np.sum(found.status != 0) <= 8
    if not both:
        plain = jax.jit(jax.vmap(lambda x: register(x[0], x[1], 1.0, verdict=False)))(frames)
        assert np.sqrt(np.mean(((plain.shift - shifts) / plain.stderr) ** 2)) > 2


def test_errors_for_more_than_noise():
    """Weights and errors are those of the effective covariance, degrees of freedom those of the noise."""
    image = np.random.default_rng(7).normal(size=(48, 48)).astype(np.float32)
    reference = 10 * scene(image.shape, 2.5, seed=1, smooth=True).astype(np.float32)
    image = reference + image
    noise = Noise(jnp.ones((1, 1)), 4 * jnp.ones((1, 1)))
    for boundary in ("wrap", "overlap"):
        plain = register(reference, image, 1.0, boundary=boundary)
        found = register(reference, image, noise=noise, boundary=boundary)
        np.testing.assert_allclose(found.stderr, 2 * plain.stderr, rtol=2e-3)
        np.testing.assert_allclose(found.chi2, plain.chi2 / 4, rtol=1e-2)
        np.testing.assert_allclose(found.dof + 2, (plain.dof + 2) / 4, rtol=2e-3)
        assert not found.status & Status.LARGE_ERRORS


def test_error_of_a_star_between_pixels():
    """∫ W k T T_m of the theory against stars at random places in a row of pixels, at random shifts."""
    rng = np.random.default_rng(8)
    n, sigma = 64, 1.2 / FWHM
    slope, _, _, sources = (x[:, 0] for x in module._integrals(np.array([[sigma**2]])))
    expected = np.sqrt(2 * sources) / slope / (2 * np.pi)
    waves = np.fft.fftfreq(n)
    errors = []
    for place, shift in rng.uniform(-0.5, 0.5, (4000, 2)):
        first, second = (
            np.exp(-0.5 * ((np.arange(n) - n // 2 - p) / sigma) ** 2) for p in (place, place + shift)
        )
        moved = np.fft.fft(first) * np.exp(-2j * np.pi * waves * shift)
        rest, model = np.fft.fft(second) - moved, -2j * np.pi * waves * moved
        model[n // 2] = 0.0
        weight = module.smoothing_power(waves[None])
        errors.append(np.sum(weight * (rest * model.conj()).real, 1) / np.sum(weight * np.abs(model) ** 2, 1))
    # To first order in aliasing; the reference that is moved has it too.
    found = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(found[3:], expected[3:], rtol=0.1)


@pytest.mark.parametrize("ndim", [1, 2])
def test_brightness_of_sources(ndim):
    """Their number and fluxes, from an image with noise."""
    rng = np.random.default_rng(9)
    shape, number = {1: ((4000,), 100), 2: ((128, 128), 200)}[ndim]
    covariance = np.eye(ndim) * (1.2 / FWHM) ** 2
    fluxes = np.exp(rng.uniform(4, 6, number))
    image = gaussians(shape, rng.uniform(8, shape[0] - 8, (number, ndim)), fluxes, covariance)
    image = jnp.asarray(image + 2 * rng.normal(size=shape), jnp.float32)
    power, square = module._sources(image, jnp.float32(4.0), covariance)
    np.testing.assert_allclose(power, np.sum(fluxes**2) / image.size, rtol=0.15)
    np.testing.assert_allclose(square, np.sum(fluxes**4) / np.sum(fluxes**2), rtol=0.2)


def test_noise_that_hides_the_sources_is_not_smoothed():
    noise = np.random.default_rng(10).normal(size=(2, 48, 48)).astype(np.float32)
    found = smooth_undersampled(*noise, 1.2, 3.0)
    np.testing.assert_allclose(found.image, noise[1], atol=1e-5)
    np.testing.assert_allclose(found.noise.sigma, 3.0, rtol=0.02)


@pytest.mark.parametrize(
    ("fwhm", "number"),
    [(1.2, 60), *(pytest.param(*x, marks=pytest.mark.long) for x in [(1.0, 60), (1.6, 60), (1.2, 8)])],
)
@pytest.mark.long
def test_pulls_of_undersampled_stars(fwhm, number):
    """At most 1.2, with 5 σ to spare; as they are, above four."""
    covariance = np.eye(2) * (fwhm / FWHM) ** 2
    area = 2 * np.pi * covariance[0, 0]
    frames, shifts = pairs_of(100, [covariance] * 2, number, (30 * area, 300 * area), 11)
    found = registered(frames, partial(smooth_undersampled, psf=fwhm, err=np.float32(1.0)))
    sure = (found.status & (Status.UNRELATED | Status.AMBIGUOUS)) == 0
    pull = np.sqrt(np.mean(((found.shift - shifts) / found.stderr)[sure] ** 2))
    spread = 5 / np.sqrt(4 * np.sum(sure))
    assert 0.8 - spread < pull < 1.2 + spread
    assert np.sum(found.status & (Status.BAD_FIT | Status.CONTRADICTED) > 0) <= 8
    if number == 60:
        assert np.all(sure)
        plain = jax.jit(jax.vmap(lambda x: register(x[0], x[1], 1.0, verdict=False)))(frames)
        assert np.sqrt(np.mean(((plain.shift - shifts) / plain.stderr) ** 2)) > 4


def test_bad_arguments_are_named():
    image = np.zeros((20, 20))
    with pytest.raises(ValueError, match="psf must be positive"):
        match_psf(image, image, 2.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="reference_psf must be symmetric and positive definite"):
        match_psf(image, image, np.array([[1.0, 2.0], [2.0, 1.0]]), 2.0, 1.0)
    with pytest.raises(ValueError, match="psf must be a full width, 2 of them, or a covariance matrix"):
        match_psf(image, image, 2.0, (1.0, 2.0, 3.0), 1.0)
    with pytest.raises(ValueError, match="err must be a positive scalar"):
        match_psf(image, image, 2.0, 3.0, np.ones((20, 20)))
    with pytest.raises(ValueError, match="reference_err must be a positive scalar"):
        match_psf(image, image, 2.0, 3.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="boundary must be one of"):
        match_psf(image, image, 2.0, 3.0, 1.0, boundary="reflect")
    with pytest.raises(ValueError, match="image must have as many axes as reference"):
        match_psf(image, image[0], 2.0, 3.0, 1.0)
    with pytest.raises(TypeError, match="psf must be numbers known while tracing"):
        jax.jit(lambda width: match_psf(image, image, 2.0, width, 1.0).image)(3.0)
    with pytest.raises(ValueError, match=r"full width of 0\.8 pixels or more"):
        smooth_undersampled(image, image, 0.5, 1.0)
    with pytest.raises(ValueError, match="noise must have a covariance of 2 axes"):
        register(image, image, noise=Noise(jnp.ones((1, 1)), jnp.ones((1,))))
