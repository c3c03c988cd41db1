"""The Fourier series against explicit sums."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64
from direct import interpolate, shifted

from jaxchi2.engine.position import Position
from jaxchi2.engine.spectrum import (
    correlated_square,
    cycle_phase,
    gradient_power,
    gradients,
    harmonics,
    nyquist_power,
    series_of,
    shift_spectrum,
    square_of,
)

SHAPES = [(8,), (7,), (8, 6), (8, 7), (7, 8), (2, 3), (4, 5, 6), (3, 4, 5)]


class Case:
    """An array of full bandwidth, a shift, displacements from it, and all that is computed from them."""

    def __init__(self, shape):
        rng = np.random.default_rng(sum(shape))
        self.shape, self.ndim = shape, len(shape)
        self.array, self.weights = rng.normal(size=shape), rng.uniform(0.5, 2.0, shape)
        self.shift = rng.uniform(-9, 9, self.ndim)
        self.displacements = [np.linspace(-1.3, 0.7, 2 + a) for a in range(self.ndim)]
        whole = np.round(self.shift).astype(np.int32)
        self.split = whole, self.shift - whole
        with enable_x64(True):
            self.found = jax.tree.map(np.asarray, self.compute(self.array, self.weights, *self.split))

    @partial(jax.jit, static_argnums=0)
    def compute(self, array, weights, whole, fraction):
        at = Position(whole, fraction)
        shape, spectrum = self.shape, jnp.fft.rfftn(array)
        series = series_of(spectrum, shape)
        power = correlated_square(square_of(spectrum, shape), jnp.fft.rfftn(weights), shape)
        displacements = [jnp.asarray(d) for d in self.displacements]
        return {
            "derivatives": series.derivatives(at, 2),
            "differences": series.differences(at, displacements).change,
            "tiny": series.differences(at, [1e-9 * d for d in displacements]).change,
            "moved": series.differences(at, [d[1:2] for d in displacements], 2),
            "there": series.derivatives(at.moved(jnp.stack([d[1] for d in displacements])), 2),
            "shifted": jnp.fft.irfftn(shift_spectrum(spectrum, shape, at), shape),
            "power": power.derivatives(at, 2),
            "power differences": power.differences(at, displacements).change,
        }

    def value(self, position):
        return interpolate(self.array, [[p] for p in position]).item()


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def case(request):
    return Case(request.param)


def test_series_of_an_image_is_its_interpolant(case):
    expected = case.value(case.shift)
    np.testing.assert_allclose(case.found["derivatives"].flat[0], expected, atol=1e-12)


def central_difference(function, orders, position, step):
    """Partial derivative of the given order, at most two, on each axis."""
    for axis, order in enumerate(orders):
        if order:
            unit = step * np.eye(len(orders))[axis]
            left = [*orders[:axis], 0, *orders[axis + 1 :]]
            up, down = (central_difference(function, left, position + d, step) for d in (unit, -unit))
            if order == 1:
                return (up - down) / (2 * step)
            return (up - 2 * central_difference(function, left, position, step) + down) / step**2
    return function(position)


def test_derivatives_are_those_of_the_interpolant(case):
    assert case.found["derivatives"].shape == (3,) * case.ndim
    for orders in np.ndindex(case.found["derivatives"].shape):
        if sum(orders) <= 2:
            expected = central_difference(case.value, orders, case.shift, 1e-4)
            np.testing.assert_allclose(case.found["derivatives"][orders], expected, rtol=2e-6, atol=3e-6)


def test_differences(case):
    positions = [s + d for s, d in zip(case.shift, case.displacements, strict=True)]
    expected = interpolate(case.array, positions) - case.value(case.shift)
    np.testing.assert_allclose(case.found["differences"], expected, atol=1e-12)


def test_derivatives_at_a_displaced_point(case):
    start, change, there = case.found["moved"]
    np.testing.assert_allclose(there, case.found["there"], atol=1e-10)
    np.testing.assert_allclose(start, case.found["derivatives"].flat[0], atol=1e-12)
    np.testing.assert_allclose(start + change.item(), there.flat[0], atol=1e-12)


def test_differences_keep_their_precision_when_tiny(case):
    grid = np.meshgrid(*case.displacements, indexing="ij")
    slopes = [case.found["derivatives"][tuple(unit)] for unit in np.eye(case.ndim, dtype=int)]
    expected = 1e-9 * sum(slope * d for slope, d in zip(slopes, grid, strict=True))
    np.testing.assert_allclose(case.found["tiny"], expected, rtol=0, atol=1e-7 * np.max(np.abs(expected)))


def test_shift_spectrum(case):
    np.testing.assert_allclose(case.found["shifted"], shifted(case.array, case.shift), atol=1e-12)


def test_nyquist_power_is_what_a_shift_loses(case):
    with enable_x64(True):
        series = nyquist_power(jnp.fft.rfftn(case.array), case.shape)
        found = series.derivatives(Position(*map(jnp.asarray, case.split)), 0).item()
    lost = np.sum(shifted(case.array, case.shift) ** 2) - np.sum(case.array**2)
    np.testing.assert_allclose(found, lost, atol=1e-11)
    assert found < 0 or all(n % 2 for n in case.shape)


def test_power_of_the_shifted_image(case):
    def power(shift):
        return np.sum(case.weights * shifted(case.array, shift) ** 2)

    expected = power(case.shift)
    np.testing.assert_allclose(case.found["power"].flat[0], expected, rtol=1e-11)
    positions = np.meshgrid(
        *(s + d for s, d in zip(case.shift, case.displacements, strict=True)), indexing="ij"
    )
    there = np.reshape([power(s) for s in np.stack(positions, -1).reshape(-1, case.ndim)], positions[0].shape)
    np.testing.assert_allclose(case.found["power differences"], there - expected, atol=1e-10)
    for orders in np.ndindex(case.found["power"].shape):
        if sum(orders) <= 2:
            slope = central_difference(power, orders, case.shift, 1e-4)
            np.testing.assert_allclose(case.found["power"][orders], slope, rtol=1e-5, atol=1e-4)


def test_series_is_periodic(x64):
    array = np.random.default_rng(0).normal(size=(6, 5))
    series = series_of(jnp.fft.rfftn(array), array.shape)
    fraction = jnp.asarray([0.3, -0.2])
    here = series.derivatives(Position(jnp.asarray([1, 2]), fraction), 0)
    there = series.derivatives(Position(jnp.asarray([1 - 6, 2 + 15]), fraction), 0)
    np.testing.assert_allclose(there, here, rtol=1e-13)


def test_phase_is_exact_at_large_shifts_in_float32():
    whole, fraction = jnp.asarray(1_000_003, jnp.int32), jnp.asarray(0.25, jnp.float32)
    indices, period = harmonics(1024), 1024
    found = cycle_phase(indices, period, Position(whole, fraction))
    assert found.dtype == np.float32
    turns = indices * (1_000_003.25 % period) / period
    np.testing.assert_allclose(np.exp(1j * np.asarray(found, float)), np.exp(2j * np.pi * turns), atol=2e-6)


def test_harmonics_are_in_the_order_of_fftfreq():
    for n in range(1, 10):
        np.testing.assert_array_equal(harmonics(n), np.round(np.fft.fftfreq(n) * n))


@pytest.mark.parametrize("period", [50_000, 100_000, 1_000_000])
def test_phase_is_exact_on_long_axes(period):
    """A harmonic times a shift does not fit 32 bits; of power series the harmonics go to twice Nyquist."""
    rng = np.random.default_rng(period)
    indices = np.append(rng.integers(-period, period, 500), [-period, period, period // 2])
    whole, fraction = period - 3, 0.25
    at = Position(jnp.asarray(whole, jnp.int32), jnp.asarray(fraction, jnp.float32))
    found = cycle_phase(indices, period, at)
    turns = (indices * whole % period + indices * fraction) / period
    np.testing.assert_allclose(np.exp(1j * np.asarray(found, float)), np.exp(2j * np.pi * turns), atol=2e-6)


@pytest.mark.parametrize("shape", [(12,), (9, 14), (6, 5, 8)])
def test_power_of_gradients(shape, x64):
    spectrum = jnp.fft.rfftn(jnp.asarray(np.random.default_rng(9).normal(size=shape)))
    slopes = gradients(spectrum, shape)
    expected = np.abs(np.fft.rfftn(slopes, axes=range(1, len(shape) + 1))) ** 2
    np.testing.assert_allclose(gradient_power(spectrum, shape), expected, rtol=1e-9, atol=1e-9)
