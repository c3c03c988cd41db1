"""Correlated noise: spectra and filters by hand, pulls and χ² where noise has been smoothed, what is lost."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene
from scipy import ndimage, stats

from jaxchi2 import Noise, Status, align, register, register_stack
from jaxchi2.engine import correlated as module

SHAPE = (48, 46)
SCENE = 10 * scene(SHAPE, 2.5, seed=1, smooth=True)
POINT = np.zeros((21, 21))
POINT[10, 10] = 1.0
BLUR = ndimage.gaussian_filter(POINT, 0.7, truncate=8)
HALFWAY = np.full((2, 2), 0.25)
SIGMA = 2.0


def smoothed(x, kernel):
    """The last axes convolved with a kernel, periodic, as it is: not centred."""
    axes = tuple(range(-kernel.ndim, 0))
    response = np.fft.fftn(kernel, x.shape[-kernel.ndim :], range(kernel.ndim))
    return np.fft.ifftn(np.fft.fftn(x, axes=axes) * response, axes=axes).real


def draws(count, kernel, shape=SHAPE, seed=0, reference_sigma=0.0):
    """References, images and shifts: a scene and white noise behind a kernel."""
    rng = np.random.default_rng(seed)
    clean = SCENE if shape == SHAPE else 10 * scene(shape, 2.5, seed=1, smooth=True)
    shifts = rng.uniform(-2, 2, (count, len(shape)))
    images = np.stack([moved(clean, s) for s in shifts]) + SIGMA * rng.normal(size=(count, *shape))
    references = clean[None] + reference_sigma * rng.normal(size=(count, *shape))
    references, images = (smoothed(x, kernel).astype(np.float32) for x in (references, images))
    return references, images, shifts


def registered(references, images, **options):
    @jax.jit
    def run(references, images):
        def one(pair):
            return register(*pair, verdict=False, **options)

        return jax.lax.map(one, (references, images), batch_size=20)

    return jax.tree.map(np.asarray, run(jnp.asarray(references), jnp.asarray(images)))


def check_scatter(values, sigma=5.0):
    """Values of unit scatter, all independent, to so many of its own standard deviations."""
    values = np.asarray(values).ravel()
    assert abs(np.sqrt(np.mean(values**2)) - 1) < sigma / np.sqrt(2 * values.size), np.sqrt(
        np.mean(values**2)
    )


def test_spectra_by_hand(x64):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 4))
    noise = Noise.from_kernel(kernel, SIGMA)
    for shape in ((8, 9), (5, 4), (3, 16)):
        # On a small frame the noise is that of an endless one, sampled at its frequencies.
        ky, kx = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
        y, x = np.indices(kernel.shape)
        waves = np.exp(-2j * np.pi * (ky[..., None, None] * y + kx[..., None, None] * x))
        power = SIGMA**2 * np.abs(np.sum(kernel * waves, (-2, -1))) ** 2
        np.testing.assert_allclose(noise.power(shape), power, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(noise.sigma, SIGMA * np.sqrt(np.sum(kernel**2)))
    for shape in ((8, 9), (7, 6)):
        power = np.array(noise.power(shape))
        again = Noise.from_power(power)
        np.testing.assert_allclose(again.power(shape), power, atol=1e-9)
        half = Noise.from_power(power[:, : shape[1] // 2 + 1], shape)
        np.testing.assert_allclose(half.covariance, again.covariance, atol=1e-9)
        np.testing.assert_allclose(again.sigma, np.sqrt(np.mean(power)))
        assert all(n % 2 for n in again.covariance.shape)


def test_periodic_pair_is_that_of_images_made_white_before(x64):
    (reference,), (image,), _ = draws(1, BLUR)
    noise = Noise.from_kernel(BLUR, SIGMA)
    power = np.array(noise.power(SHAPE))
    response = (power + module.FLOOR * power.mean()) ** -0.5
    white = [np.fft.ifft2(np.fft.fft2(x.astype(float)) * response).real for x in (reference, image)]
    found = register(reference.astype(float), image.astype(float), noise=noise, boundary="wrap")
    expected = register(*white, 1.0, boundary="wrap")
    np.testing.assert_allclose(found.shift, expected.shift, atol=1e-9)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-7)
    np.testing.assert_allclose(found.chi2, expected.chi2, rtol=1e-7)
    share = np.mean(response**2 * power)
    assert found.dof == round(np.prod(SHAPE) * share) - 2


@pytest.mark.parametrize("periodic", [True, False])
def test_filter_by_hand(periodic, x64):
    """A sum over the kernel for every pixel, and NaN where that reaches what is not known."""
    rng = np.random.default_rng(3)
    image = 100 + rng.normal(size=(24, 25))
    image[7:9, 12:15] = np.nan
    noise = module.covariances(Noise.from_kernel(HALFWAY, SIGMA), None, 2, np.float64)
    by = module.whitener(noise, (48, 48))
    kernel, reach = np.asarray(by.kernel) / float(by.sigma), np.asarray(by.reach)
    exact = jnp.asarray(False) if periodic else None
    found = np.asarray(module.whitened(jnp.asarray(image), by, periodic, exact))
    around = {"mode": "wrap"} if periodic else {"mode": "constant", "constant_values": np.nan}
    padded = np.pad(image, 10, **around)
    middle = np.array(kernel.shape) // 2
    expected = np.full(image.shape, np.nan)
    for at in np.ndindex(image.shape):
        expected[at] = sum(
            kernel[tuple(middle + lag)] * padded[tuple(np.array(at) + 10 - lag)]
            for lag in np.array(list(np.ndindex(*(2 * reach + 1)))) - reach
        )
    assert 0 < np.sum(np.isfinite(expected)) < image.size
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_white_noise_loses_nothing(boundary):
    """No pixel is lost; a thousandth of the variance is taken for more noise."""
    references, images, _ = draws(4, np.ones((1, 1)))
    plain = registered(references, images, err=SIGMA, boundary=boundary)
    noise = Noise.from_kernel(np.ones((1, 1), np.float32), SIGMA)
    found = registered(references, images, noise=noise, boundary=boundary)
    np.testing.assert_allclose(found.shift, plain.shift, atol=2e-3 * plain.stderr.max())
    np.testing.assert_allclose(found.stderr, plain.stderr, rtol=1e-3)
    np.testing.assert_allclose(found.dof, plain.dof, rtol=2e-3)


@pytest.mark.parametrize("boundary", [pytest.param("wrap", marks=pytest.mark.long), "overlap"])
def test_pulls_and_p_values(boundary):
    noise = Noise.from_kernel(BLUR.astype(np.float32), SIGMA)
    references, images, shifts = draws(200, BLUR)
    found = registered(references, images, noise=noise, boundary=boundary)
    check_scatter((found.shift - shifts) / found.stderr)
    assert not np.any(found.status)
    assert stats.kstest(found.p_value, "uniform").pvalue > 1e-6
    plain = registered(references, images, err=noise.sigma, boundary=boundary)
    assert np.std((plain.shift - shifts) / plain.stderr) > 1.5


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.2])
def test_pulls_of_other_noise(boundary, sigma):
    kernel = ndimage.gaussian_filter(POINT, sigma, truncate=8) if sigma else HALFWAY
    noise = Noise.from_kernel(kernel.astype(np.float32), SIGMA)
    references, images, shifts = draws(400, kernel, seed=5)
    found = registered(references, images, noise=noise, boundary=boundary)
    check_scatter((found.shift - shifts) / found.stderr)
    assert stats.kstest(found.p_value, "uniform").pvalue > 1e-6


@pytest.mark.parametrize("boundary", ["wrap", pytest.param("overlap", marks=pytest.mark.long)])
def test_gain_and_background_are_those_of_the_images(boundary):
    references, images, shifts = draws(200, BLUR, seed=2)
    noise = Noise.from_kernel(BLUR.astype(np.float32), 1.3 * SIGMA)
    options = {"noise": noise, "boundary": boundary, "fit_gain": True, "fit_background": True}
    found = registered(references, np.float32(1.3) * images + np.float32(50), **options)
    check_scatter((found.gain - 1.3) / found.gain_err)
    check_scatter((found.background - 50) / found.background_err)
    check_scatter((found.shift - shifts) / found.stderr)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_noise_in_both(boundary):
    references, images, shifts = draws(300, BLUR, seed=3, reference_sigma=3.0)
    noise, other = (Noise.from_kernel(BLUR.astype(np.float32), s) for s in (SIGMA, 3.0))
    found = registered(references, images, noise=noise, reference_noise=other, boundary=boundary)
    check_scatter((found.shift - shifts) / found.stderr, 6.0)
    alone = registered(references, images, noise=noise, boundary=boundary)
    assert np.std((alone.shift - shifts) / alone.stderr) > 1.3


@pytest.mark.parametrize("boundary", [pytest.param("wrap", marks=pytest.mark.long), "overlap"])
def test_holes_and_patches(boundary):
    """Holes take few pixels with them, a patch what the kernel reaches; pulls stay."""
    references, images, shifts = draws(200, BLUR, seed=4)
    rng = np.random.default_rng(4)
    noise = Noise.from_kernel(BLUR.astype(np.float32), SIGMA)
    bad = rng.uniform(size=SHAPE) < 0.01
    bad[20:24, 30:33] = True
    whole = registered(references, images, noise=noise, boundary=boundary)
    found = registered(references, np.where(bad, np.float32(np.nan), images), noise=noise, boundary=boundary)
    check_scatter((found.shift - shifts) / found.stderr)
    assert np.all(found.dof > 0.6 * whole.dof)


@pytest.mark.parametrize("shape", [(200,), pytest.param((24, 25, 26), marks=pytest.mark.long)])
def test_other_dimensions(shape):
    kernel = np.full((2,) * len(shape), 0.5 ** len(shape))
    references, images, shifts = draws(40, kernel, shape)
    noise = Noise.from_kernel(kernel.astype(np.float32), SIGMA)
    for boundary in ("wrap", "overlap"):
        found = registered(references, images, noise=noise, boundary=boundary)
        check_scatter((found.shift - shifts) / found.stderr)


@pytest.mark.parametrize("boundary", ["wrap", pytest.param("overlap", marks=pytest.mark.long)])
def test_transforms(boundary, x64):
    """Under jit, vmap and grad; derivatives by images and by the noise itself against differences."""
    (reference,), (image,), _ = draws(1, BLUR)
    reference, image = reference.astype(float), image.astype(float)

    def found(image, sigma):
        noise = Noise.from_kernel(BLUR, sigma)
        result = register(reference, image, noise=noise, boundary=boundary, verdict=False)
        return jnp.stack([result.shift[0], result.covariance[1, 1], result.chi2])

    direction = np.random.default_rng(1).normal(size=SHAPE)
    run = jax.jit(found)
    # Outside jit frames are made larger for "overlap", and continued less far.
    tolerance = 1e-9 if boundary == "wrap" else 1e-3
    np.testing.assert_allclose(run(image, SIGMA), found(image, SIGMA), rtol=tolerance)
    batch = jax.jit(jax.vmap(found))(np.stack([image, image + direction]), np.array([SIGMA, 3.0]))
    np.testing.assert_allclose(batch[1], run(image + direction, 3.0), rtol=1e-8)
    step = 1e-4
    ahead, behind = (run(image + h * direction, SIGMA + h * 0.5) for h in (step, -step))
    change = (ahead - behind) / (2 * step)
    _, tangent = jax.jit(partial(jax.jvp, found))((image, SIGMA), (direction, 0.5))
    np.testing.assert_allclose(tangent, change, rtol=1e-5)
    by_image, by_sigma = jax.jit(jax.grad(lambda x, s: found(x, s)[0], (0, 1)))(image, SIGMA)
    np.testing.assert_allclose(np.sum(by_image * direction) + 0.5 * by_sigma, change[0], rtol=1e-5)


def test_stack_is_its_frames():
    references, images, _ = draws(4, BLUR)
    noise = Noise.from_kernel(BLUR.astype(np.float32), SIGMA)
    options = {"noise": noise, "fit_background": True}
    for boundary in ("wrap", "overlap"):
        found = register_stack(images, references[0], boundary=boundary, verdict=False, **options)
        each = registered(references, images, boundary=boundary, **options)
        np.testing.assert_allclose(found.shift, each.shift, atol=1e-4)
        for name in ("covariance", "chi2", "background", "nuisance_covariance"):
            np.testing.assert_allclose(getattr(found, name), getattr(each, name), rtol=2e-3, atol=1e-4)
        np.testing.assert_array_equal(found.dof, each.dof)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_references_made_of_the_frames(boundary):
    _, images, shifts = draws(60, BLUR, seed=6)
    noise = Noise.from_kernel(BLUR.astype(np.float32), SIGMA)
    mean = register_stack(images, "mean", noise=noise, boundary=boundary)
    check_scatter((mean.shift - (shifts - shifts.mean(0))) / mean.stderr)
    steps = register_stack(images, "previous", noise=noise, reference_noise=noise, boundary=boundary)
    pulls = (steps.shift[1:] - np.diff(shifts, axis=0)) / steps.stderr[1:]
    # Steps that follow each other share a frame.
    check_scatter(pulls, 8.0)
    first = register_stack(images, "first", noise=noise, reference_noise=noise, boundary=boundary)
    np.testing.assert_allclose(first.shift[1], steps.shift[1], atol=3 * first.stderr.max())


@pytest.mark.parametrize("kernel", [np.ones((1, 1)), HALFWAY, BLUR])
def test_spectrum_of_an_image(kernel):
    """Of a blank one of 96²; a few faint stars and bad pixels make no difference."""
    rng = np.random.default_rng(7)
    image = SIGMA * smoothed(rng.normal(size=(96, 96)), kernel)
    truth = Noise.from_kernel(kernel, SIGMA)
    power = np.asarray(truth.power((32, 32)))
    found = Noise.from_image(image.astype(np.float32) + 7)
    ratio = np.asarray(found.power((32, 32))) / (power + 1e-3 * power.mean())
    # Where half of the power and more is; the scatter of a mean over so many modes is 15 per cent.
    strong = power > 0.1 * power.max()
    assert np.std(ratio[strong]) < 0.25
    np.testing.assert_allclose(np.mean(ratio[strong]), 1, atol=0.1)
    np.testing.assert_allclose(found.sigma, truth.sigma, rtol=0.1)
    image[rng.uniform(size=image.shape) < 0.01] = np.nan
    image[40, 50] += 50 * SIGMA
    again = Noise.from_image(image.astype(np.float32))
    np.testing.assert_allclose(again.sigma, found.sigma, rtol=0.05)


@pytest.mark.long
@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.2])
def test_pulls_by_an_estimated_spectrum(sigma):
    kernel = ndimage.gaussian_filter(POINT, sigma, truncate=8) if sigma else HALFWAY
    rng = np.random.default_rng(8)
    blank = SIGMA * smoothed(rng.normal(size=(128, 128)), kernel)
    noise = Noise.from_image(blank.astype(np.float32))
    references, images, shifts = draws(400, kernel, seed=9)
    for boundary in ("wrap", "overlap"):
        found = registered(references, images, noise=noise, boundary=boundary)
        assert abs(np.std((found.shift - shifts) / found.stderr) - 1) < 0.12


def test_spectrum_of_residuals():
    """Those of a registration with white weights are noise alone."""
    (reference,), (image,), _ = draws(1, BLUR, (96, 96))
    truth = Noise.from_kernel(BLUR, SIGMA)
    shift = register(reference, image, boundary="wrap").shift
    found = Noise.from_image(image - np.asarray(align(reference, -shift, boundary="wrap")))
    np.testing.assert_allclose(found.sigma, truth.sigma, rtol=0.05)
    power, expected = (np.asarray(x.power((32, 32))) for x in (found, truth))
    np.testing.assert_allclose(np.mean(power[:4, :4]), np.mean(expected[:4, :4]), rtol=0.3)


def test_frames_too_small_and_noise_that_is_none():
    noise = Noise.from_kernel(BLUR.astype(np.float32), 0.1)
    image = SCENE[:10, :9].astype(np.float32)
    found = register(image, image, noise=noise)
    assert found.shift.shape == (2,)
    nothing = Noise(jnp.zeros((3, 3)))
    found = register(SCENE.astype(np.float32), SCENE.astype(np.float32), noise=nothing)
    assert found.status & (Status.NO_DATA | Status.FLAT | Status.LITTLE_OVERLAP)
    assert np.all(np.isnan(found.shift))


def test_bad_arguments_are_named():
    noise = Noise.from_kernel(HALFWAY, 1.0)
    stack = np.stack([SCENE] * 2)
    with pytest.raises(TypeError, match="noise must be a Noise"):
        register(SCENE, SCENE, noise=1.0)
    with pytest.raises(ValueError, match="err must not be given beside noise"):
        register(SCENE, SCENE, 1.0, noise=noise)
    with pytest.raises(ValueError, match="weights must not be given beside noise"):
        register(SCENE, SCENE, weights=1.0, noise=noise)
    with pytest.raises(ValueError, match="reference_err must not be given beside noise"):
        register_stack(stack, "first", noise=noise, reference_err=1.0)
    with pytest.raises(ValueError, match="reference_noise needs noise"):
        register(SCENE, SCENE, 1.0, reference_noise=noise)
    with pytest.raises(ValueError, match="boundary must be 'overlap' or 'wrap'"):
        register(SCENE, SCENE, noise=noise, boundary="reflect")
    with pytest.raises(ValueError, match="covariance of 1 axes"):
        register(SCENE[0], SCENE[0], noise=noise)
    with pytest.raises(ValueError, match="reference_noise must not be given for the mean"):
        register_stack(stack, "mean", noise=noise, reference_noise=noise)
    with pytest.raises(ValueError, match="reference_mask needs one image"):
        register_stack(stack, "first", noise=noise, reference_mask=SCENE > 0)
    with pytest.raises(ValueError, match="power must be nowhere negative"):
        Noise.from_power(-np.ones((4, 4)))
    with pytest.raises(ValueError, match="half plane"):
        Noise.from_power(np.ones((4, 4)), (4, 4))
    with pytest.raises(ValueError, match="sigma must be a positive scalar"):
        Noise.from_kernel(HALFWAY, -1.0)
    with pytest.raises(ValueError, match="16 pixels"):
        Noise.from_image(np.ones((8, 20)))
