"""When not to believe an answer: other minima, chance, the posterior."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import chi2, moved, scene

import jaxchi2
from jaxchi2 import Search, Status, chi2_surface, register

SHAPE = (24, 25)
WRAP = "wrap"


def lattice(n=32, period=8):
    y, x = np.indices((n, n))
    return 5 * (np.cos(2 * np.pi * x / period) + np.cos(2 * np.pi * y / period))


def noisy(reference, shift, err=0.5, seed=0):
    return moved(reference, shift) + np.random.default_rng(seed + 100).normal(scale=err, size=reference.shape)


@pytest.mark.long
@pytest.mark.parametrize(("boundary", "err"), [("wrap", 1.0), ("overlap", None), ("reflect", 1.0)])
def test_unrelated_noise_is_not_believed(boundary, err):
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(20, 2, 40, 40)).astype(np.float32)
    find = jax.jit(jax.vmap(partial(register, err=err, boundary=boundary)))
    found = find(pairs[:, 0], pairs[:, 1])
    # One chance in a thousand each is what the flag stands for; two of 20 have one of 5000.
    assert np.sum(np.asarray(found.status) & Status.UNRELATED == 0) <= 2
    assert np.all(np.asarray(found.status) != 0)


@pytest.mark.parametrize("slope", [0.0, 2.0, 4.0])
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_related_images_are_believed(slope, boundary):
    for seed in range(5):
        reference = 5 * scene((48, 48), slope, seed=seed)
        found = register(reference, noisy(reference, (2.3, -1.6), 1.0, seed), 1.0, boundary=boundary)
        if boundary == "wrap":
            assert found.status == Status.OK
        # Full bandwidth cannot be interpolated at the edge of a frame; that does not make images unrelated.
        assert not Status(int(found.status)) & Status.UNRELATED
        assert found.chance < 1e-3


@pytest.mark.parametrize(
    ("boundary", "err", "gain"),
    [("wrap", 0.5, False), ("overlap", 0.5, False), ("overlap", 0.5, True), ("overlap", 0.005, True)],
)
def test_lattice_is_ambiguous(boundary, err, gain):
    found = register(lattice(), noisy(lattice(), (3.0, 0.0), err), err, boundary=boundary, fit_gain=gain)
    assert Status(int(found.status)) & Status.AMBIGUOUS
    difference = np.asarray(found.runner_up.shift - found.shift)
    np.testing.assert_allclose(difference / 8, np.round(difference / 8), atol=0.15)
    assert np.any(np.abs(difference) > 4)
    assert 0.4 < found.runner_up.probability < 0.99


@pytest.mark.long
def test_a_sharp_match_is_not_ambiguous(dtype):
    """At S/N 1000 rounding is larger than the noise in float32."""
    reference = 1000 * scene((48, 48), 3.0, seed=3)
    image = noisy(reference, (2.3, -1.4), 1.0)
    found = register(reference.astype(dtype), image.astype(dtype), dtype.type(1.0), fit_gain=True)
    assert not Status(int(found.status)) & Status.AMBIGUOUS
    assert found.runner_up.delta_chi2 > 5e3
    assert found.runner_up.probability > 0.999


def test_units_do_not_change_the_runner_up():
    for scale in (1.0, 1e3):
        reference, image = np.float32(scale * scene((32, 32), 2.0)), None
        image = np.float32(scale * noisy(scene((32, 32), 2.0), (1.3, -0.6), 1.5))
        unknown = register(reference, image, fit_gain=True)
        known = register(reference, image, np.sqrt(unknown.reduced_chi2), fit_gain=True)
        np.testing.assert_allclose(unknown.runner_up.probability, known.runner_up.probability, rtol=1e-3)
        np.testing.assert_allclose(unknown.runner_up.delta_chi2, known.runner_up.delta_chi2, rtol=1e-2)
        assert unknown.runner_up.delta_chi2 > 0


def test_a_wrong_match_is_a_bad_fit():
    reference = scene((20, 21), 4.0, 2, smooth=True)
    found = register(reference, -reference, 0.01)
    assert Status(int(found.status)) & Status.BAD_FIT
    assert jnp.all(jnp.isfinite(found.shift))
    # Without errors there is nothing to compare χ² with, and errors off by a tenth are no bad fit.
    assert not Status(int(register(reference, -reference).status)) & Status.BAD_FIT
    image = noisy(reference, (1.0, 0.5), 0.11)
    assert not Status(int(register(reference, image, 0.1).status)) & Status.BAD_FIT


def test_prior_settles_a_lattice():
    prior = (np.array([3.0, 0.0]), np.diag([1.0, 1.0]))
    found = register(lattice(), noisy(lattice(), (3.0, 0.0)), 0.5, boundary=WRAP, search=Search(prior=prior))
    assert not Status(int(found.status)) & Status.AMBIGUOUS
    assert np.all(np.abs(np.asarray(found.shift) - [3.0, 0.0]) < 0.2)
    assert found.runner_up.delta_chi2 > 40


def test_two_peaks_are_found_with_their_difference(x64):
    """A reference with an echo: the second minimum, against the brute-force χ² minimised around it."""
    base = scene(SHAPE, 2.0, seed=3)
    reference = base + 0.9 * np.roll(base, (7, 6), (0, 1))
    image = noisy(reference, (1.3, -2.4), 0.3)
    surface = chi2_surface(reference, image, 0.3, boundary=WRAP)
    found = surface.peaks(3)
    result = register(reference, image, 0.3, boundary=WRAP)
    np.testing.assert_allclose(found.shift[0], result.shift, atol=1e-12)
    # The runner-up is the next best on the grid, which refinement may put behind another.
    others, second = np.asarray(found.shift[1:]), np.asarray(result.runner_up.shift)
    assert np.min(np.abs(others - second).max(1)) < 1e-12
    assert found.delta_chi2[0] == 0
    assert 0 < found.delta_chi2[1] < found.delta_chi2[2]
    values = [chi2(reference, image, 0.3, np.asarray(s)) for s in found.shift]
    np.testing.assert_allclose(found.delta_chi2, np.array(values) - values[0], rtol=1e-8, atol=1e-7)
    for s, value in zip(np.asarray(found.shift), values, strict=True):
        for step in ([1e-3, 0], [-1e-3, 0], [0, 1e-3], [0, -1e-3]):
            assert chi2(reference, image, 0.3, s + step) > value


def test_missing_peaks_are_nan():
    reference = 100 * scene((8, 8), 4.0, seed=1)
    found = chi2_surface(reference, reference, 1.0, boundary=WRAP).peaks(20)
    assert jnp.all(jnp.isnan(found.shift[-1]))
    assert jnp.isinf(found.delta_chi2[-1])
    for n in (1, 0, 2.5, True):
        with pytest.raises((ValueError, TypeError), match="n must be"):
            chi2_surface(reference, reference, 1.0).peaks(n)


def test_p_value_is_that_of_the_distribution():
    from scipy.stats import chi2 as distribution

    reference = scene(SHAPE, 1.0)
    for scale in (0.9, 1.0, 1.1):
        found = register(reference, noisy(reference, (1.0, 2.0), 0.5), 0.5 * scale, boundary=WRAP)
        expected = distribution.sf(float(found.chi2), int(found.dof))
        np.testing.assert_allclose(found.p_value, expected, atol=1e-3)
    assert jnp.isnan(register(reference, noisy(reference, (1.0, 2.0)), boundary=WRAP).p_value)
    assert not register(reference, noisy(reference, (1.0, 2.0)), boundary=WRAP).noise_known


def posterior_by_hand(reference, image, err, temperature, limit):
    shifts = np.arange(-limit, limit + 1)
    values = np.array([[chi2(reference, image, err, (y, x)) for x in shifts] for y in shifts])
    weight = np.exp(-(values - values.min()) / 2 / temperature)
    weight /= weight.sum()
    y, x = np.meshgrid(shifts, shifts, indexing="ij")
    mean = np.array([np.sum(weight * y), np.sum(weight * x)])
    offset = np.stack([y - mean[0], x - mean[1]])
    return mean, np.einsum("ayx,byx,yx->ab", offset, offset, weight), weight


@pytest.mark.parametrize("temperature", [1.0, 30.0])
def test_posterior_is_the_sum_over_shifts(temperature, dtype):
    reference = scene(SHAPE, 2.0, seed=2)
    image = noisy(reference, (2.4, -1.2), 2.0)
    mean, covariance, weight = posterior_by_hand(reference, image, 2.0, temperature, 5)
    surface = chi2_surface(reference.astype(dtype), image.astype(dtype), 2.0, boundary=WRAP, max_shift=5)
    found = surface.posterior(temperature)
    tolerance = 1e-9 if dtype == np.float64 else 2e-3
    np.testing.assert_allclose(found.mean, mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(found.covariance, covariance, rtol=10 * tolerance, atol=tolerance)
    np.testing.assert_allclose(found.probability.sum(), 1.0, rtol=1e-5)
    y, x = (np.flatnonzero(np.abs(s) <= 5) for s in surface.shifts())
    np.testing.assert_allclose(found.probability[np.ix_(y, x)], weight, atol=tolerance)
    np.testing.assert_allclose(surface.posterior_mean(temperature), found.mean, rtol=1e-6, atol=1e-6)


def test_posterior_mean_is_differentiable(x64):
    reference, err = scene(SHAPE, 2.0, seed=2), 2.0
    image = noisy(reference, (2.4, -1.2), err)

    def mean(image):
        return jnp.sum(chi2_surface(reference, image, err, boundary=WRAP).posterior_mean(5.0))

    direction = np.random.default_rng(0).normal(size=SHAPE)
    slope = np.sum(np.asarray(jax.grad(mean)(jnp.asarray(image))) * direction)
    step = 1e-5
    expected = (mean(image + step * direction) - mean(image - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.long
def test_identical_images_are_at_zero():
    for boundary in ("wrap", "overlap", "reflect", "nearest"):
        for slope in (0.0, 2.0):
            array = scene((31, 32), slope).astype(np.float32)
            np.testing.assert_array_equal(jaxchi2.register(array, array, 0.1, boundary=boundary).shift, 0.0)


def test_a_noisy_reference_and_a_small_background_are_no_brightness():
    """A background of 0.6 errors takes a few per cent of χ²; residuals behind a filter made it more."""
    rng = np.random.default_rng(5)
    clean = scene((48, 48), 8.0, smooth=True)
    reference, image = (clean + s * rng.normal(size=clean.shape) for s in (3.0, 1.0))
    found = register(reference, image + 0.6, 1.0, reference_err=3.0, boundary="wrap")
    assert not found.status & Status.BRIGHTNESS
    assert (
        register(reference, image + 9.0, 1.0, reference_err=3.0, boundary="wrap").status & Status.BRIGHTNESS
    )
