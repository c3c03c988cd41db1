"""The noise of one image, and its spectrum, against truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import scene
from scipy.optimize import isotonic_regression

from jaxchi2 import estimate_noise
from jaxchi2.engine.noise import (
    DEGREE,
    box_coordinates,
    falling,
    fitted_trend,
    gentle,
    hann,
    lower,
    signal_power,
    significant,
    whitening,
)
from jaxchi2.engine.spectrum import half_weights


def blobs(shape, seed=0):
    rng = np.random.default_rng(seed)
    grid = np.indices(shape)
    total = np.zeros(shape)
    for _ in range(12):
        centre = rng.uniform(0, shape)
        squares = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        total += rng.uniform(5, 50) * np.exp(-squares / (2 * 2.5**2))
    return total


@pytest.mark.parametrize("shape", [(4096,), (64, 64), (61, 70), (20, 22, 24)])
def test_noise_of_a_smooth_scene(shape, dtype):
    """The median of n values scatters by 0.79 σ/√n; neighbours share pixels: 5 % is far out for 4000."""
    noise = np.random.default_rng(1).normal(scale=2.0, size=shape)
    image = (1e4 + blobs(shape) + noise).astype(dtype)
    found = estimate_noise(image)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, 2.0, rtol=0.06 if len(shape) < 3 else 0.05)


def test_noise_scales_and_leaves_out_bad_pixels():
    image = np.random.default_rng(2).normal(size=(64, 64)).astype(np.float32)
    plain = estimate_noise(image)
    np.testing.assert_allclose(estimate_noise(7 * image - 3), 7 * plain, rtol=1e-5)
    image[5] = np.nan
    image[:, 9] = np.inf
    image[30, 30] = 1e9
    np.testing.assert_allclose(estimate_noise(image), plain, rtol=0.1)
    assert jnp.isnan(estimate_noise(np.full((8, 8), np.nan)))
    assert jnp.isnan(estimate_noise(np.ones((2, 50))))
    np.testing.assert_array_equal(jax.jit(estimate_noise)(image), estimate_noise(image))


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.09])
def test_noise_of_few_counts(rate, dtype):
    """Most pixels are zero, and so is the median of any difference of them."""
    counts = np.random.default_rng(7).poisson(rate, (128, 128)).astype(dtype)
    found = estimate_noise(counts)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, np.sqrt(rate), rtol=0.3)
    np.testing.assert_allclose(estimate_noise(3 * counts), 3 * found, rtol=1e-5)
    assert estimate_noise(np.full((64, 64), 5.0, dtype)) == 0


def test_falling_is_isotonic_regression(dtype):
    rng = np.random.default_rng(3)
    for n in (1, 2, 7, 40):
        values, weights = rng.normal(size=n) - 0.05 * np.arange(n), rng.uniform(0.5, 9, n)
        expected = isotonic_regression(values, weights=weights, increasing=False).x
        tolerance = 20 * np.finfo(dtype).eps
        np.testing.assert_allclose(falling(jnp.asarray(values, dtype), weights), expected, atol=tolerance)


def test_signal_power_of_noise_alone_is_nearly_nothing():
    shape = (96, 95)
    noise = np.random.default_rng(4).normal(size=shape).astype(np.float32)
    observed = jnp.abs(jnp.fft.rfftn(noise)) ** 2 / noise.size
    power = signal_power(observed, jnp.float32(1.0), shape)
    weight = half_weights(shape[-1])
    assert power.shape == observed.shape
    assert np.sum(np.asarray(power) * weight) / noise.size < 0.02


def test_signal_power_finds_a_steep_spectrum():
    """Averaged over the rings, whose 100 and more modes each scatter by 10 % and less."""
    shape = (128, 128)
    clean = 10 * scene(shape, 3.0, seed=5)
    noisy = clean + np.random.default_rng(50).normal(size=shape)
    observed = jnp.asarray(np.abs(np.fft.rfftn(noisy)) ** 2 / noisy.size)
    truth = np.abs(np.fft.rfftn(clean)) ** 2 / clean.size
    found = np.asarray(signal_power(observed, jnp.asarray(1.0), shape))
    k = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    for low, high in [(0.05, 0.1), (0.1, 0.15), (0.15, 0.25)]:
        ring = (k > low) & (k < high)
        np.testing.assert_allclose(found[ring].mean(), truth[ring].mean(), rtol=0.15)


def test_whitening_is_the_optimal_weight():
    shape = (32, 31)
    observed = jnp.asarray(np.abs(np.fft.rfftn(5 * scene(shape, 2.0))) ** 2 / 992 + 1.5, jnp.float32)
    first, second = jnp.float32(1.0), jnp.float32(2.0)
    found = whitening(observed, observed, first, second, shape)
    signal = signal_power(observed, (first + second) / 2, shape)
    expected = np.array(signal / (signal * (first + second) + first * second))
    expected[16] = 0.0
    # Of the mean no spectrum is known: the noise alone.
    expected[0, 0] = 1 / (first + second)
    np.testing.assert_allclose(found.reference * found.image, expected, rtol=1e-4, atol=1e-7)
    assert found.brightness == 1
    # Of a reference four times as faint in power, with its noise, the factors are those of a bright one.
    faint = whitening(observed / 4, observed + second - first, first / 4, second, shape, fit_gain=True)
    bright = whitening(observed, observed + second - first, first, second, shape)
    np.testing.assert_allclose(faint.brightness, 4, rtol=1e-5)
    for one, two in zip(faint[:3], bright[:3], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_whitening_in_single_precision_at_high_signal(x64):
    """What of the scene the noise hides is N₁ at every frequency, not a difference of large numbers."""
    shape = (32, 31)
    for amplitude in (3e2, 3e3, 1e5):
        observed = np.abs(np.fft.rfftn(amplitude * scene(shape, 4.0))) ** 2 / 992 + 1
        one = jnp.ones(())
        exact = whitening(jnp.asarray(observed), jnp.asarray(observed), one, one, shape)
        single = jnp.ones((), np.float32)
        observed = jnp.asarray(observed, np.float32)
        found = whitening(observed, observed, single, single, shape)
        assert found.image.dtype == np.float32
        np.testing.assert_allclose(found.image, exact.image, rtol=1e-3)


def test_box_and_taper_are_those_of_the_pixels_that_count(dtype):
    counted = np.zeros((20, 13), bool)
    counted[4:15, 2:12] = np.random.default_rng(0).random((11, 10)) < 0.8
    counted[[4, 14], [2, 11]] = True
    places = box_coordinates(jnp.asarray(counted), dtype)
    np.testing.assert_allclose(places[0][4:15], (2 * np.arange(11) - 10) / 11, rtol=1e-6)
    taper = np.asarray(hann(places))
    np.testing.assert_allclose(
        taper[4:15, 2:12],
        np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (11, 10))),
        atol=1e-6,
    )
    assert np.sum(taper) == pytest.approx(np.sum(taper[4:15, 2:12]))
    assert np.all(np.isfinite(hann(box_coordinates(jnp.zeros((5, 6), bool), dtype))))


@pytest.mark.long
@pytest.mark.parametrize("shape", [(30,), (17, 14), (9, 10, 11)])
def test_trend_is_the_least_squares_polynomial(shape, dtype):
    rng = np.random.default_rng(1)
    values, known = 100 * rng.normal(size=shape), rng.random(shape) < 0.8
    grid = [x / n for x, n in zip(np.indices(shape), shape, strict=True)]
    powers = [p for p in np.ndindex((DEGREE + 1,) * len(shape)) if sum(p) <= DEGREE]
    basis = np.stack([np.prod([g**k for g, k in zip(grid, p, strict=True)], axis=0) for p in powers])
    solution = np.linalg.lstsq(basis[:, known].T, values[known], rcond=None)[0]
    places = box_coordinates(jnp.asarray(known), dtype)
    found = fitted_trend(jnp.asarray(values, dtype), jnp.asarray(known), places)
    np.testing.assert_allclose(
        found, np.tensordot(solution, basis, 1), atol=0.3 if dtype == np.float32 else 0.1
    )


def test_spectra_are_bounded_and_cleaned_ring_by_ring():
    shape = (64, 63)
    k = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(63))
    k[0, 0] = 1 / 64
    sharp = jnp.asarray(1e6 * np.exp(-((k / 0.05) ** 2)), np.float32)
    soft = np.asarray(gentle(sharp, shape))
    assert np.all(soft >= np.asarray(sharp) * (1 - 1e-5))
    order = np.argsort(k, axis=None)
    law = (soft * k**6).ravel()[order]
    assert np.all(np.diff(law) >= -1e-4 * law[1:])
    power = jnp.asarray(k**-2.0, np.float32)
    np.testing.assert_allclose(gentle(power, shape), power, rtol=1e-5)
    # Of noise alone nothing is left, of a scene above it nearly all.
    noise = np.random.default_rng(2).normal(size=(40, *shape))
    observed = jnp.asarray(np.abs(np.fft.rfftn(noise, axes=(1, 2))) ** 2 / noise[0].size, np.float32)
    one, freedom = jnp.float32(1.0), jnp.float32(noise[0].size / 2)
    left = np.stack([significant(signal_power(x, one, shape), one, freedom, shape) for x in observed])
    assert np.mean(left[:, k > 0.2] > 0) < 0.2
    np.testing.assert_allclose(
        significant(100 * power, one, freedom, shape)[k < 0.2], 100 * power[k < 0.2], rtol=0.01
    )
    first, second = observed[0], jnp.where(jnp.asarray(k) < 0.2, 2.0, 0.5) * observed[0]
    np.testing.assert_array_equal(lower(first, second, shape)[k < 0.18], first[k < 0.18])
    np.testing.assert_array_equal(lower(first, second, shape)[k > 0.22], second[k > 0.22])
