"""Errors from the residuals: sums by hand, pulls where the noise is not as said, and the flag for that."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene, smoothed

from jaxchi2 import Boundary, Search, Status, chi2_surface, register, register_stack
from jaxchi2.engine import sandwich as module
from jaxchi2.engine.choices import ERRORS
from jaxchi2.engine.minimum import find_minimum

SHAPE = (32, 30)
SCENE = 10 * scene(SHAPE, 2.0, seed=1, smooth=True)
SHIFT = np.array([1.3, -2.6])
robust = partial(register, errors="sandwich")


def noisy(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def by_hand(reference, image, err, shift):
    """The sandwich by explicit loops over distances, one error for all pixels, periodic."""
    ndim, shape = image.ndim, image.shape
    waves = list(np.meshgrid(*(2j * np.pi * np.fft.fftfreq(n) for n in shape), indexing="ij"))
    spectrum = np.fft.fftn(moved(reference, shift))
    for axis, n in enumerate(shape):
        if n % 2 == 0:
            waves[axis] = np.where(np.abs(waves[axis]) == np.pi, 0.0, waves[axis])
    slopes = [-np.fft.ifftn(spectrum * wave).real / err for wave in waves]
    residual = (image - moved(reference, shift)) / err
    information = np.array([[np.sum(a * b) for b in slopes] for a in slopes])
    inverse = np.linalg.inv(information)
    leverage = sum(inverse[a, b] * slopes[a] * slopes[b] for a in range(ndim) for b in range(ndim))
    square = residual**2 / (1 - leverage)
    total = np.array([[np.sum(a * b * square) for b in slopes] for a in slopes])
    k2 = sum(f**2 for f in np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
    size = np.sqrt(np.fft.ifftn(np.fft.fftn(square) * np.exp(-2 * (np.pi * module.NEARBY) ** 2 * k2)).real)
    z = residual / size
    z = z - z.mean()
    for step in np.ndindex(shape):
        if not any(step):
            continue
        window = 1.0
        for k, n in zip(step, shape, strict=True):
            x = min(k, n - k) / min(module.FURTHEST, n / 2)
            window *= 1 - 6 * x**2 + 6 * x**3 if x < 0.5 else 2 * max(1 - x, 0.0) ** 3
        if window:
            axes = tuple(range(ndim))
            rho = np.mean(z * np.roll(z, step, axes)) / np.mean(z**2)
            for a in range(ndim):
                for b in range(ndim):
                    shared = np.sum(slopes[a] * size * np.roll(slopes[b] * size, step, axes))
                    total[a, b] += window * rho * shared
    return inverse @ total @ inverse


@pytest.mark.parametrize("shape", [(41,), (14, 13)])
def test_is_the_sum_over_pairs_of_pixels(shape, x64):
    rng = np.random.default_rng(3)
    reference = 8 * scene(shape, 1.0, seed=2)
    image = moved(reference, SHIFT[: len(shape)]) + rng.normal(size=shape)
    terms = chi2_surface(reference, image, 1.0, boundary="wrap").terms
    minimum = find_minimum(terms.grid, terms.series)
    found, _ = module.sandwich(terms, minimum.position)
    expected = by_hand(reference, image, 1.0, np.asarray(minimum.position.shift))
    ndim = len(shape)
    # The program has half the Hessian for the sum of products of slopes, from which it differs by what the
    # residuals make of the second derivatives.
    hessian = np.asarray(minimum.hessian) / 2
    slopes = module.gradients(terms.moved(minimum.position), shape)
    information = np.array([[np.sum(a * b) for b in slopes] for a in slopes])
    change = np.linalg.inv(hessian) @ information
    np.testing.assert_allclose(found[:ndim, :ndim], change @ expected @ change.T, rtol=1e-8)
    assert np.all(np.asarray(found)[ndim:] == 0)


NOISE = {
    "white": (lambda n, image: n, 1.0),
    "of half the errors": (lambda n, image: n, 2.0),
    "smoothed": (lambda n, image: smoothed(n, 0.7), 1.0),
    "larger on the scene": (lambda n, image: n * np.where(image > 5, 3.0, 1.0), 1.0),
}


def pulls_of(noise, err, **options):
    """Of 300 frames, and those that the model's errors would have had."""
    rng = np.random.default_rng(7)
    shifts = rng.uniform(-2, 2, (300, 2))
    images = np.stack([moved(SCENE, s) for s in shifts])
    images += np.stack([noise(rng.normal(size=SHAPE), image) for image in images])
    options = {"verdict": False, "errors": "sandwich"} | options
    found = register_stack(images.astype(np.float32), SCENE.astype(np.float32), err, **options)
    doubts = Status.CONTRADICTED | Status.BAD_FIT | Status.LARGE_ERRORS
    assert np.all(found.status & ~int(doubts) == 0)
    pulls = (found.shift - shifts) / found.stderr
    return (np.sqrt(np.mean(np.square(x))) for x in (pulls, pulls * found.inflation))


# Root mean squares of 600 pulls scatter by 3 %; 0.15 is five of that.
@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_pulls_are_one_whatever_the_noise(boundary):
    for name, (noise, err) in NOISE.items():
        found, model = pulls_of(noise, err, boundary=boundary)
        assert abs(found - 1) < 0.15
        assert (abs(model - 1) < 0.15) == (name == "white")


@pytest.mark.long
def test_pulls_without_errors_and_with_gain_and_background():
    found, model = pulls_of(NOISE["smoothed"][0], None, boundary="wrap")
    assert abs(found - 1) < 0.15 < abs(model - 1)
    options = {"boundary": "wrap", "fit_gain": True, "fit_background": True}
    found, model = pulls_of(NOISE["smoothed"][0], 1.0, **options)
    assert abs(found - 1) < 0.15 < abs(model - 1)


def test_inflation_is_what_the_errors_are_multiplied_by(dtype):
    image = (moved(SCENE, SHIFT) + 2 * noisy()).astype(dtype)
    reference = SCENE.astype(dtype)
    for boundary in ("wrap", "overlap"):
        model, found = (f(reference, image, 1.0, boundary=boundary) for f in (register, robust))
        assert np.all(model.inflation == 1)
        np.testing.assert_allclose(found.stderr, model.stderr * found.inflation, rtol=1e-4)
        np.testing.assert_allclose(
            np.diff(found.interval)[:, 0], np.diff(model.interval)[:, 0] * found.inflation, rtol=1e-3
        )
        np.testing.assert_allclose(found.shift, model.shift, rtol=0, atol=10 * np.finfo(dtype).eps)
        assert np.all(abs(np.log(found.inflation / 2)) < 0.3)
        assert np.all(np.linalg.eigvalsh(found.covariance) > 0)


def test_errors_of_any_size_give_the_same(x64):
    """The sandwich asks the residuals alone; `err` says which of them count."""
    image = moved(SCENE, SHIFT) + noisy()
    one, ten, none = (robust(SCENE, image, err, boundary="wrap") for err in (1.0, 10.0, None))
    for other in (ten, none):
        np.testing.assert_allclose(other.covariance, one.covariance, rtol=1e-6)
    np.testing.assert_allclose(one.inflation, 10 * ten.inflation, rtol=1e-6)
    assert ten.status & Status.CONTRADICTED
    assert not one.status & Status.CONTRADICTED
    assert "errors='sandwich'" in Status(int(ten.status)).message


@pytest.mark.long
@pytest.mark.parametrize(
    ("boundary", "options"),
    [
        ("wrap", {"reference_err": 1.0}),
        ("wrap", {"fit_gain": True, "fit_background": True}),
        ("overlap", {"reference_err": 1.0, "fit_gain": True, "fit_background": True}),
        ("reflect", {}),
        (Boundary("constant", value=1.0), {}),
    ],
)
def test_every_kind_of_pair_has_errors(boundary, options):
    """White noise as said: near those of the model, with masks and held axes too."""
    image = (moved(SCENE, SHIFT) + noisy()).astype(np.float32)
    reference = (SCENE + (noisy(seed=9) if options.get("reference_err") else 0.0)).astype(np.float32)
    mask = noisy(seed=4) > 1.5
    name = boundary if isinstance(boundary, str) else boundary.name
    found = robust(reference, image, 1.0, boundary=boundary, mask=mask, reference_mask=mask, **options)
    held = robust(reference, image, 1.0, boundary=boundary, search=Search(fixed=(1.3, None)), **options)
    assert np.all(np.isfinite(found.covariance))
    assert held.stderr[0] == 0
    assert held.inflation[0] == 1
    if name in ("wrap", "overlap"):
        assert np.all(abs(np.log(found.inflation)) < 0.4)
        assert abs(np.log(held.inflation[1])) < 0.4
        if options.get("fit_gain"):
            model = register(
                reference, image, 1.0, boundary=boundary, mask=mask, reference_mask=mask, **options
            )
            assert abs(np.log(found.gain_err / model.gain_err)) < 0.5
            assert abs(np.log(found.background_err / model.background_err)) < 0.5


@pytest.mark.long
def test_derivatives_are_those_of_the_model_times_the_inflation(x64):
    image = moved(SCENE, SHIFT) + noisy()

    def error(image, errors):
        return register(SCENE, image, 1.0, boundary="wrap", errors=errors, verdict=False).covariance[0, 0]

    (model, d_model), (found, d_found) = (
        jax.jit(jax.value_and_grad(partial(error, errors=errors)))(image) for errors in ERRORS
    )
    np.testing.assert_allclose(d_found / found, d_model / model, rtol=1e-9, atol=1e-12)


def test_equal_images_and_hopeless_ones():
    """No residuals, no errors, and nothing to contradict; a failed frame has NaN."""
    reference = SCENE.astype(np.float32)
    found = robust(reference, reference, 1.0, boundary="wrap")
    assert not found.status & Status.CONTRADICTED
    assert np.all(found.stderr < 1e-3)
    nothing = robust(reference, np.full_like(reference, np.nan), 1.0)
    assert np.all(np.isnan(nothing.inflation))
    assert np.all(np.isnan(nothing.covariance))


@pytest.mark.long
def test_scatter_of_the_logarithm(x64):
    """What the flag takes for certain, against Monte Carlo for a smooth field and for one star."""
    rng = np.random.default_rng(5)
    y, x = np.indices(SHAPE)
    star = 60 * np.exp(-((y - 15.2) ** 2 + (x - 14.3) ** 2) / 5)
    for reference in (SCENE, star):
        images = reference + rng.normal(size=(300, *SHAPE))

        @jax.jit
        def both(image, reference=reference):
            terms = chi2_surface(reference, image, 1.0, boundary="wrap").terms
            minimum = find_minimum(terms.grid, terms.series)
            covariance, scatter = module.sandwich(terms, minimum.position)
            return jnp.log(jnp.diagonal(covariance)[:2]) / 2, scatter[:2]

        errors, scatter = jax.lax.map(both, images)
        np.testing.assert_allclose(np.std(errors, 0), np.mean(scatter, 0), rtol=0.35)


@pytest.mark.long
def test_the_guess_is_near_the_sandwich_and_scatters_as_it_says(x64):
    """Means of the logarithms over 200 draws, whose own scatter is a fifteenth of that of one."""
    rng = np.random.default_rng(6)
    for name, (noise, _) in NOISE.items():
        images = moved(SCENE, SHIFT) + np.stack([noise(rng.normal(size=SHAPE), SCENE) for _ in range(200)])

        @jax.jit
        def both(image):
            terms = chi2_surface(SCENE, image, 1.0, boundary="wrap").terms
            at = find_minimum(terms.grid, terms.series).position
            covariance, _ = module.sandwich(terms, at)
            information = terms.series.curvature(at, jnp.ones(()))[:2, :2]
            errors = jnp.log(jnp.diagonal(covariance)[:2] / jnp.diagonal(jnp.linalg.inv(information))) / 2
            guess, scatter = module.likely_inflation(terms, at, terms.match(at))
            return errors, jnp.log(guess), scatter

        errors, guess, scatter = jax.lax.map(both, images)
        np.testing.assert_allclose(np.mean(guess, 0), np.mean(errors, 0), rtol=0, atol=0.12)
        if name == "white":
            np.testing.assert_allclose(np.mean(guess, 0), 0, rtol=0, atol=0.05)
            np.testing.assert_allclose(np.std(guess, 0), np.mean(scatter, 0), rtol=0.35)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_the_default_call_says_what_contradicts_its_errors(boundary):
    """At a rate of 0.005 more than 11 of 300 come up once in a million times."""
    rng = np.random.default_rng(8)
    shifts = rng.uniform(-2, 2, (300, 2))
    scenes = np.stack([moved(SCENE, s) for s in shifts])
    for name, (noise, err) in NOISE.items():
        images = scenes + np.stack([noise(rng.normal(size=SHAPE), image) for image in scenes])
        found = register_stack(images.astype(np.float32), SCENE.astype(np.float32), err, boundary=boundary)
        doubts = Status.CONTRADICTED | Status.BAD_FIT | Status.LARGE_ERRORS
        flagged = np.sum(found.status & int(doubts) > 0)
        assert flagged <= 11 if name == "white" else flagged >= 285
        assert np.all(found.inflation == 1)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_a_pattern_that_does_not_move_is_named(boundary):
    """Half of the noise, in both images, and shifts of more than a pixel: missed or invented once in 10⁴."""
    rng = np.random.default_rng(9)
    shape = (64, 60)
    reference = 10 * scene(shape, 2.0, seed=1, smooth=True)
    shifts = rng.uniform(1.2, 6, (300, 2)) * rng.choice([-1, 1], (300, 2))
    images = np.stack([moved(reference, s) for s in shifts]) + rng.normal(size=(300, *shape))
    for size, named in ((0.0, False), (0.5, True)):
        pattern = size * rng.normal(size=shape)
        found = register_stack(
            (images + pattern).astype(np.float32),
            (reference + pattern).astype(np.float32),
            1.0,
            boundary=boundary,
        )
        flagged = np.sum(found.status & Status.STATIC_PATTERN > 0)
        assert flagged >= 297 if named else flagged == 0
    # Where frames are unlike, none knows what was where before.
    inner = (reference + pattern)[8:56, 8:56].astype(np.float32)
    image = (images[0] + pattern).astype(np.float32)
    assert not register(inner, image, 1.0, boundary="overlap").status & Status.STATIC_PATTERN


@pytest.mark.long
def test_a_stack_and_its_mean():
    rng = np.random.default_rng(2)
    shifts = rng.uniform(-2, 2, (6, 2))
    stack = np.stack([moved(SCENE, s) for s in shifts]) + smoothed(rng.normal(size=(6, *SHAPE)), 0.8)
    found = register_stack(stack.astype(np.float32), SCENE.astype(np.float32), 1.0, errors="sandwich")
    assert found.inflation.shape == (6, 2)
    assert np.all(found.inflation > 1.4)
    assert np.all(found.status & Status.CONTRADICTED > 0)
    mean = register_stack(stack.astype(np.float32), "mean", 1.0, errors="sandwich")
    assert np.all(mean.inflation > 1.2)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="errors must be one of"):
        register(SCENE, SCENE, 1.0, errors="bootstrap")
    with pytest.raises(TypeError, match="errors must be one of"):
        register_stack(np.stack([SCENE] * 2), "first", 1.0, errors=1)
