"""χ² as a surface, against double sums in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import chi2, scene, shifted
from scipy.optimize import minimize_scalar

import jaxchi2

chi2_surface = partial(jaxchi2.chi2_surface, boundary="wrap")


def pair(shape, kind, noise=0.3, seed=0, amplitude=3.0):
    """A reference of full bandwidth, its image at a sub-pixel shift, the errors."""
    rng = np.random.default_rng(seed)
    reference = amplitude * rng.normal(size=shape) + 2.0
    err = np.full(shape, noise) if kind == "scalar" else noise * rng.uniform(0.5, 2.0, shape)
    shift = np.array([1.3, -0.6, 0.45])[: len(shape)]
    image = shifted(reference, shift) + rng.normal(size=shape) * err
    return reference, image, (noise if kind == "scalar" else err)


@pytest.mark.parametrize(
    ("shape", "kind", "boundary"),
    [
        ((9,), "map", "wrap"),
        ((8,), "scalar", "wrap"),
        ((8, 8), "scalar", "wrap"),
        ((8, 8), "map", "wrap"),
        ((8, 8), "map", "fill"),
        ((7, 9), "map", "wrap"),
        ((7, 9), "scalar", "fill"),
        ((6, 9), "map", "wrap"),
        ((6, 9), "scalar", "wrap"),
        ((9, 6), "scalar", "wrap"),
        ((9, 6), "map", "fill"),
        ((3, 4, 5), "scalar", "wrap"),
        ((3, 4, 5), "map", "wrap"),
        ((4, 3, 4), "map", "wrap"),
        ((4, 3, 4), "scalar", "fill"),
    ],
)
def test_surface_is_the_double_sum(shape, kind, boundary, x64):
    reference, image, err = pair(shape, kind)
    surface = chi2_surface(reference, image, err, boundary=boundary)

    def expected(shifts):
        return [chi2(reference, image, err, shift, boundary) for shift in shifts]

    rng = np.random.default_rng(1)
    shifts = np.array([np.zeros(len(shape)), *rng.uniform(-6, 6, (3, len(shape)))])
    np.testing.assert_allclose([surface(s) for s in shifts], expected(shifts), rtol=1e-9)

    center, spacing = shifts[1], np.array([0.4, 0.03, 0.7])[: len(shape)]
    size = (3, 4, 2)[: len(shape)]
    offsets = np.moveaxis(np.indices(size), 0, -1).reshape(-1, len(shape)) - (np.array(size) - 1) / 2
    zoomed = surface.zoom(center, spacing, size)
    assert zoomed.shape == size
    np.testing.assert_allclose(zoomed.ravel(), expected(center + offsets * spacing), rtol=1e-9)

    values, grid = surface.map(), surface.shifts()
    assert values.shape == shape
    assert [s[n // 2] for s, n in zip(grid, shape, strict=True)] == [0.0] * len(shape)
    grid = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, len(shape))
    np.testing.assert_allclose(values.ravel(), expected(grid), rtol=1e-9)


def test_map_of_a_roll_is_zero_at_its_shift(x64):
    reference = scene((8, 9))
    values = chi2_surface(reference, np.roll(reference, (2, -3), (0, 1)), 0.5).map()
    assert np.unravel_index(np.argmin(values), values.shape) == (8 // 2 + 2, 9 // 2 - 3)


@pytest.mark.parametrize("kind", ["scalar", "map"])
@pytest.mark.parametrize("boundary", ["wrap", "fill"])
def test_float32_surface(kind, boundary):
    reference, image, err = (np.asarray(x, np.float32) for x in pair((20, 23), kind, noise=0.1))
    surface = chi2_surface(reference, image, err, boundary=boundary)
    args = [np.asarray(x, float) for x in (reference, image, err)]
    for shift in [(1.3, -0.6), (1.31, -0.58), (-7.5, 4.4)]:
        expected = chi2(*args, np.float32(shift), boundary)
        assert surface(shift).dtype == np.float32
        np.testing.assert_allclose(surface(shift), expected, rtol=2e-5)
    zoomed = surface.zoom((1.3, -0.6), 1e-3, (3, 3))
    grid = np.float64(np.float32((1.3, -0.6))) + 1e-3 * (np.indices((3, 3)).reshape(2, -1).T - 1)
    expected = np.array([chi2(*args, at, boundary) for at in grid]).reshape(3, 3)
    # Differences within a zoom are far better than χ² itself.
    np.testing.assert_allclose(zoomed - zoomed[1, 1], expected - expected[1, 1], atol=2e-5 * expected[1, 1])
    values = surface.map()
    assert values.dtype == np.float32
    largest = chi2(*args, (0.0, 0.0), boundary)
    np.testing.assert_allclose(values[10, 11], largest, rtol=1e-5)


def test_float32_map_at_high_signal_to_noise_is_never_far_off():
    reference, image, _ = pair((20, 23), "scalar", noise=1e-3)
    surface = chi2_surface(np.float32(reference), np.float32(image), np.float32(1e-3))
    expected = chi2(np.float32(reference), np.float32(image), np.float32(1e-3), np.float32([1.3, -0.6]))
    np.testing.assert_allclose(surface([1.3, -0.6]), expected, rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["scalar", "map"])
def test_bad_image_pixels_have_no_influence(kind, bad, dtype):
    reference, image, err = (np.asarray(x, dtype) for x in pair((8, 9), kind))
    hole = np.zeros(image.shape, bool)
    hole[2, 3:5] = hole[7, 8] = True
    surface = chi2_surface(reference, np.where(hole, bad, image).astype(dtype), err)
    masked = chi2_surface(reference, np.ma.array(np.where(hole, 77.0, image).astype(dtype), mask=hole), err)
    weightless = np.where(hole, np.inf, err)
    for shift in [(0.0, 0.0), (1.3, -0.6), (-2.4, 3.7)]:
        expected = chi2(*(np.asarray(x, float) for x in (reference, image, weightless)), shift)
        np.testing.assert_allclose(surface(shift), expected, rtol=1e-9 if dtype == np.float64 else 1e-5)
        assert surface(shift) == masked(shift)
    assert jnp.all(jnp.isfinite(surface.map()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_pixels_of_bad_error_have_no_influence(bad, x64):
    reference, image, err = pair((8, 9), "map")
    hole = np.zeros(image.shape, bool)
    hole[2, 3:5] = hole[7, 8] = True
    bad_err = np.where(hole, bad, err)
    shifts = [(0.0, 0.0), (1.3, -0.6)]
    first = [chi2_surface(reference, image, bad_err)(s) for s in shifts]
    second = [chi2_surface(reference, np.where(hole, 1e6, image), bad_err)(s) for s in shifts]
    np.testing.assert_array_equal(first, second)
    expected = [chi2(reference, image, np.where(hole, np.inf, err), s) for s in shifts]
    np.testing.assert_allclose(first, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["scalar", "map"])
def test_bad_reference_pixels_have_no_influence(kind, x64):
    rng = np.random.default_rng(3)
    clean = 5 * scene((24, 25), 2, smooth=True)
    shift = np.array([2.4, -1.7])
    err = 0.2 if kind == "scalar" else 0.2 * rng.uniform(0.5, 2.0, clean.shape)
    image = shifted(clean, shift) + rng.normal(size=clean.shape) * err
    hole = np.zeros(clean.shape, bool)
    hole[5:7, 9] = hole[20, 3] = True
    nan = chi2_surface(np.where(hole, np.nan, clean), image, err)
    inf = chi2_surface(np.where(hole, np.inf, clean), image, err)
    masked = chi2_surface(np.ma.array(np.where(hole, 1e3, clean), mask=hole), image, err)
    for at in [shift, np.zeros(2)]:
        assert nan(at) == inf(at) == masked(at)
    # The image pixels that the holes cover are left out; of so small ones, no margin.
    pixels = int(nan.terms.pixels.number)
    assert pixels == clean.size - hole.sum()
    assert abs(nan(shift) - pixels) < 6 * np.sqrt(2 * pixels)
    assert np.all(np.abs(nan.minimum() - shift) < 0.02)


def test_profile_is_the_minimum_over_the_other_axis(x64):
    reference, image, err = pair((8, 9), "map", amplitude=0.5)
    surface = chi2_surface(reference, image, err)
    best = np.asarray(surface.minimum())
    floor = chi2(reference, image, err, best)
    for axis in (0, 1):
        positions = best[axis] + np.linspace(-0.3, 0.3, 5)
        found = surface.profile(axis, positions)

        def value(other, position, axis=axis):
            return chi2(reference, image, err, (position, other) if axis == 0 else (other, position))

        around = best[1 - axis] + np.array([-0.5, 0.5])
        for position, delta in zip(positions, found, strict=True):
            lowest = minimize_scalar(
                value, bounds=around, args=(position,), method="bounded", options={"xatol": 1e-9}
            )
            np.testing.assert_allclose(delta, lowest.fun - floor, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(surface.profile(axis - 2, positions), found, rtol=1e-12)


def test_profile_in_one_and_three_dimensions(x64):
    reference, image, err = pair((9,), "scalar")
    surface = chi2_surface(reference, image, err)
    positions = np.array([0.5, 1.3])
    floor = chi2(reference, image, err, surface.minimum())
    expected = [chi2(reference, image, err, [p]) - floor for p in positions]
    np.testing.assert_allclose(surface.profile(0, positions), expected, rtol=1e-8)
    surface = chi2_surface(*pair((3, 4, 5), "map"))
    best = surface.minimum()
    found = surface.profile(1, best[1:2] + jnp.array([0.0, 0.01]))
    covariance = 2 * np.linalg.inv(jax.hessian(surface)(best))
    np.testing.assert_allclose(found, [0.0, 1e-4 / covariance[1, 1]], rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize(("amplitude", "nsigma", "nfitted"), [(3.0, 1.0, 2), (0.6, 2.0, 1)])
def test_contour_lies_on_its_level_and_goes_once_round_the_minimum(amplitude, nsigma, nfitted, x64):
    reference, image, err = pair((12, 13), "map", amplitude=amplitude)
    surface = chi2_surface(reference, image, err)
    polygon, best = np.asarray(surface.contour(nsigma, 40, nfitted)), np.asarray(surface.minimum())
    assert polygon.shape == (40, 2)
    floor = chi2(reference, image, err, best)
    deltas = [chi2(reference, image, err, point) - floor for point in polygon]
    np.testing.assert_allclose(deltas, float(jaxchi2.delta_chi2(nsigma, nfitted)), rtol=1e-2)
    angle = np.unwrap(np.arctan2(*(polygon - best).T))
    turns = np.diff(angle, append=angle[0] + 2 * np.pi * np.sign(angle[-1] - angle[0]))
    assert np.all(turns > 0) or np.all(turns < 0)
    np.testing.assert_allclose(abs(turns.sum()), 2 * np.pi, rtol=1e-9)


def test_interval_is_the_extent_of_the_contour(x64):
    surface = chi2_surface(*pair((12, 13), "map"))
    polygon, interval = np.asarray(surface.contour(1.0, 400)), surface.interval(1.0, nfitted=2)
    extent = np.stack([polygon.min(0), polygon.max(0)], axis=1)
    np.testing.assert_allclose(interval, extent, atol=1e-4 * np.ptp(extent, axis=1).max())


def test_integer_images():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 255, (8, 9)).astype(np.uint8)
    image = np.roll(reference, (1, -2), (0, 1))
    surface = chi2_surface(reference, image, 3)
    expected = chi2(reference.astype(float), image.astype(float), 3.0, (0.5, 0.25))
    np.testing.assert_allclose(surface([0.5, 0.25]), expected, rtol=1e-5)
    np.testing.assert_allclose(surface([1, -2]), 0.0, atol=1e-3)
    assert surface.map().dtype == jnp.result_type(float)


def test_no_error_means_one(x64):
    reference, image, _ = pair((8, 9), "scalar")
    assert chi2_surface(reference, image)([0.3, 0.4]) == chi2_surface(reference, image, 1.0)([0.3, 0.4])


def test_surface_passes_through_transforms(x64):
    reference, image, err = pair((8, 9), "scalar")
    shifts = np.array([[0.0, 0.0], [1.3, -0.6], [2.0, 1.1]])

    @jax.jit
    def compute(reference, image, err, shifts):
        surface = chi2_surface(reference, image, err)
        return jax.vmap(surface)(shifts), jax.vmap(jax.grad(surface))(shifts), surface

    values, gradients, surface = compute(reference, image, err, shifts)
    np.testing.assert_allclose(values, [chi2(reference, image, err, s) for s in shifts], rtol=1e-9)
    np.testing.assert_allclose(surface(shifts[1]), values[1], rtol=1e-12)
    for shift, gradient in zip(shifts, gradients, strict=True):
        for axis, unit in enumerate(1e-5 * np.eye(2)):
            slope = chi2(reference, image, err, shift + unit) - chi2(reference, image, err, shift - unit)
            np.testing.assert_allclose(gradient[axis], slope / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda s: s([1.0]), "shift"),
        (lambda s: s(1.0), "shift"),
        (lambda s: s.zoom([0.0], 0.1, (3, 3)), "center"),
        (lambda s: s.zoom([0.0, 0.0], 0.1, (3,)), "shape"),
        (lambda s: s.zoom([0.0, 0.0], 0.1, (3, 0)), "shape"),
        (lambda s: s.zoom([0.0, 0.0], [0.1, 0.1, 0.1], (3, 3)), "spacing"),
        (lambda s: s.profile(2, [0.0]), "axis"),
        (lambda s: s.contour(n=2), "n must"),
        (lambda s: s.contour(n=5.5), "n must"),
        (lambda s: s.contour(nfitted=0), "nfitted"),
        (lambda s: s.interval(nfitted=1.5), "nfitted"),
        (lambda s: chi2_surface(np.ones((4, 4)), np.ones((4, 5))), "image"),
        (lambda s: chi2_surface(np.ones((4, 4)), np.ones((4, 4)), boundary="torus"), "boundary"),
    ],
)
def test_bad_arguments(call, name):
    surface = chi2_surface(scene((6, 6)), scene((6, 6)))
    with pytest.raises((ValueError, TypeError), match=name):
        call(surface)


def test_contour_needs_two_axes():
    with pytest.raises(ValueError, match="contour"):
        chi2_surface(scene((6,)), scene((6,))).contour()


def test_covariance_is_that_of_register(dtype):
    rng = np.random.default_rng(4)
    reference = 5 * scene((24, 22), 1.0, seed=2)
    image = (shifted(reference, (1.3, -2.6)) + rng.normal(size=reference.shape)).astype(dtype)
    reference = reference.astype(dtype)
    surface = chi2_surface(reference, image, 1.0)
    for errors in ("model", "sandwich"):
        expected = jaxchi2.register(reference, image, 1.0, boundary="wrap", errors=errors).covariance
        np.testing.assert_allclose(
            surface.covariance(errors), expected, rtol=1e-3, atol=1e-3 * np.max(np.abs(expected))
        )
    with pytest.raises(ValueError, match="errors must be one of"):
        surface.covariance("robust")
