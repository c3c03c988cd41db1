"""Gain, background, prior and held axes: χ² at its best in them, against a direct fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import hessian, moved, scene, shifted
from scipy.optimize import minimize

from jaxchi2 import Search, Status, chi2_surface, register

SHAPE = (18, 17)
SHIFT = np.array([1.4, -2.3])
ERR = 0.2
FITS = [(True, False), (False, True), (True, True)]


def pair(gain=1.0, background=0.0, mapped=False, seed=0, slope=2.0):
    rng = np.random.default_rng(seed + 100)
    reference = 3 + scene(SHAPE, slope, seed=seed)
    err = ERR * rng.uniform(0.5, 2.0, SHAPE) if mapped else np.asarray(ERR)
    return reference, gain * moved(reference, SHIFT) + background + err * rng.normal(size=SHAPE), err


def best(reference, image, err, shift, gain, background):
    """Least χ² at a shift by linear least squares, with the coefficients and their design matrix."""
    model = shifted(reference, shift).ravel()
    columns = [model] if gain else []
    columns += [np.ones_like(model)] if background else []
    target = image.ravel() - (0 if gain else model)
    weight = 1 / np.broadcast_to(err, image.shape).ravel()
    design = np.stack(columns, 1) * weight[:, None]
    solution, *_ = np.linalg.lstsq(design, target * weight, rcond=None)
    return np.sum((target * weight - design @ solution) ** 2), solution


@pytest.mark.long
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("gain", "background"), FITS)
def test_profiled_chi2_is_the_least_in_gain_and_background(gain, background, mapped, x64):
    reference, image, err = pair(1.7 if gain else 1.0, 5.0 if background else 0.0, mapped)
    surface = chi2_surface(reference, image, err, boundary="wrap", fit_gain=gain, fit_background=background)

    def expected(shift):
        return best(reference, image, err, shift, gain, background)[0]

    for shift in (SHIFT, np.array([4.2, 3.1])):
        np.testing.assert_allclose(surface(shift), expected(shift), rtol=1e-9)
    grid = np.asarray(surface.zoom(SHIFT, 0.3, (3, 2)))
    points = [[SHIFT + 0.3 * np.array([a - 1, b - 0.5]) for b in range(2)] for a in range(3)]
    np.testing.assert_allclose(grid, [[expected(s) for s in row] for row in points], rtol=1e-9)
    values = np.asarray(surface.map())
    ys, xs = surface.shifts()
    # Whole shifts; where the gain would be negative the map has none.
    for a, b in [(9, 8), (10, 6), (11, 5)]:
        np.testing.assert_allclose(values[a, b], expected((ys[a], xs[b])), rtol=1e-9)
    found = register(reference, image, err, boundary="wrap", fit_gain=gain, fit_background=background)
    at = minimize(expected, SHIFT, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}).x
    np.testing.assert_allclose(found.shift, at, atol=1e-6)
    curvature = hessian(expected, np.asarray(found.shift), 1e-3)
    np.testing.assert_allclose(found.covariance, 2 * np.linalg.inv(curvature), rtol=1e-5)
    solution = best(reference, image, err, np.asarray(found.shift), gain, background)[1]
    values = [
        v for v, fitted in zip((found.gain, found.background), (gain, background), strict=True) if fitted
    ]
    np.testing.assert_allclose(values, solution, rtol=1e-8)
    assert found.dof == image.size - 2 - gain - background
    if not gain:
        assert found.gain == 1
        assert found.gain_err == 0
    if not background:
        assert found.background == 0


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(("gain", "background"), FITS)
def test_errors_of_gain_and_background(gain, background, mapped, x64):
    """The inverse of the Fisher matrix in all parameters at once, by central differences."""
    reference, image, err = pair(1.3 if gain else 1.0, 2.0 if background else 0.0, mapped)
    found = register(reference, image, err, boundary="wrap", fit_gain=gain, fit_background=background)
    start = np.array([*np.asarray(found.shift), float(found.gain), float(found.background)])
    free = np.array([True, True, gain, background])

    def chi2(parameters):
        full = start.copy()
        full[free] = parameters
        model = full[2] * shifted(reference, full[:2]) + full[3]
        return np.sum(((image - model) / err) ** 2)

    covariance = 2 * np.linalg.inv(hessian(chi2, start[free], 1e-3))
    np.testing.assert_allclose(found.covariance, covariance[:2, :2], rtol=1e-5)
    expected = np.zeros((2, 2))
    fitted = np.flatnonzero(free[2:])
    expected[np.ix_(fitted, fitted)] = covariance[2:, 2:]
    np.testing.assert_allclose(found.nuisance_covariance, expected, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.gain_err, np.sqrt(expected[0, 0]), rtol=1e-5)
    np.testing.assert_allclose(found.background_err, np.sqrt(expected[1, 1]), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
@pytest.mark.parametrize("gain", [0.3, 1.0, 3.0])
def test_gain_and_background_do_not_move_the_shift(gain, boundary, dtype):
    """Offsets of many σ: without the fit the answer is far off, with it right."""
    reference, image, err = (np.asarray(x, dtype) for x in pair(gain, 40.0, slope=3.0))
    found = register(reference, image, err, boundary=boundary, fit_gain=True, fit_background=True)
    assert found.status == Status.OK
    if boundary == "wrap":
        assert np.all(np.abs(found.shift - SHIFT) < 5 * np.asarray(found.stderr))
        assert abs(found.gain - gain) < 5 * found.gain_err
        assert abs(found.background - 40.0) < 5 * found.background_err
    if gain != 1.0:
        plain = register(reference, image, err, boundary="wrap")
        assert plain.reduced_chi2 > 5 * found.reduced_chi2


def test_negative_gain_is_no_match():
    reference, image, err = pair()
    found = register(reference, -image, err, boundary="wrap", fit_gain=True, fit_background=True)
    assert found.status != 0 or np.max(np.abs(found.shift - SHIFT)) > 1


@pytest.mark.long
def test_gradients_go_through_gain_and_background(x64):
    reference, image, err = pair(1.5, 2.0)
    find = partial(register, reference, err=err, boundary="wrap", fit_gain=True, fit_background=True)

    def outputs(image):
        found = find(image)
        return jnp.concatenate([found.shift, found.stderr, found.gain[None], found.background[None]])

    direction = np.random.default_rng(1).normal(size=SHAPE)
    _, slope = jax.jvp(outputs, (jnp.asarray(image),), (jnp.asarray(direction),))
    step = 1e-4
    expected = (outputs(image + step * direction) - outputs(image - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-9)


# --- prior, held axes, first guess -------------------------------------------------------------------------


def test_prior_is_added_to_chi2(x64):
    """Against a direct minimisation, and the covariance of the sum of both curvatures."""
    from direct import chi2

    reference, image, err = pair()
    mean, covariance = np.array([1.0, -2.0]), np.array([[2e-3, 5e-4], [5e-4, 1e-3]])
    found = register(reference, image, err, boundary="wrap", search=Search(prior=(mean, covariance)))

    def total(shift):
        offset = shift - mean
        return chi2(reference, image, err, shift) + offset @ np.linalg.solve(covariance, offset)

    at = minimize(total, mean, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9}).x
    np.testing.assert_allclose(found.shift, at, atol=1e-6)
    expected = 2 * np.linalg.inv(hessian(total, at, 1e-3))
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-5)
    # χ² itself is that of the images.
    np.testing.assert_allclose(found.chi2, chi2(reference, image, err, np.asarray(found.shift)), rtol=1e-9)
    surface = chi2_surface(reference, image, err, boundary="wrap", search=Search(prior=(mean, covariance)))
    zoomed = np.asarray(surface.zoom(at, 0.2, (2, 2)))
    steps = 0.2 * (np.indices((2, 2)) - 0.5)
    points = [[total(at + steps[:, a, b]) for b in range(2)] for a in range(2)]
    np.testing.assert_allclose(np.diff(zoomed.ravel()), np.diff(np.ravel(points)), rtol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize(
    ("boundary", "dtype"), [("wrap", "float32"), ("overlap", "float64")], indirect=["dtype"]
)
def test_held_axis_stays(boundary, dtype):
    reference, image, err = (np.asarray(x, dtype) for x in pair())
    found = register(reference, image, err, boundary=boundary, search=Search(fixed=(1.4, None)))
    np.testing.assert_allclose(found.shift[0], 1.4, rtol=1e-6)
    assert found.stderr[0] == 0
    np.testing.assert_allclose(found.interval[0], 1.4, rtol=1e-6)
    assert abs(found.shift[1] - SHIFT[1]) < 5 * found.stderr[1]
    assert found.interval[1, 0] < found.shift[1] < found.interval[1, 1]
    assert found.dof == register(reference, image, err, boundary=boundary).dof + 1


def test_held_axis_gives_the_conditional_error(x64):
    reference, image, err = pair()
    free = register(reference, image, err, boundary="wrap")
    held = register(reference, image, err, boundary="wrap", search=Search(fixed=(float(free.shift[0]), None)))
    np.testing.assert_allclose(held.shift, free.shift, atol=1e-9)
    expected = 1 / np.linalg.inv(np.asarray(free.covariance))[1, 1]
    np.testing.assert_allclose(held.covariance[1, 1], expected, rtol=1e-9)
    assert held.covariance[0, 0] == held.covariance[0, 1] == 0


@pytest.mark.long
def test_held_shift_may_be_traced():
    reference, image, err = pair()
    values = jnp.asarray([1.0, 1.4, 2.0])
    find = jax.vmap(
        lambda y: register(reference, image, err, boundary="wrap", search=Search(fixed=(y, None)))
    )
    found = find(values)
    np.testing.assert_allclose(found.shift[:, 0], values, rtol=1e-6)
    assert jnp.argmin(found.chi2) == 1


def test_initial_guess_picks_the_minimum():
    y, x = np.indices((32, 32))
    lattice = np.cos(2 * np.pi * x / 8) + np.cos(2 * np.pi * y / 8)
    for start in ([0.3, 8.2], [-8.1, 0.2], [0.0, -0.3]):
        found = register(lattice, lattice, 0.1, boundary="wrap", search=Search(initial=start))
        np.testing.assert_allclose(found.shift, np.round(start), atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_max_shift_holds_per_axis(boundary):
    large = scene((96, 96), 3.0, smooth=True)
    reference, image = large[24:72, 24:72], moved(large, (2.0, 9.0))[24:72, 24:72]
    options = {"err": 0.05, "boundary": boundary}
    found = register(reference, image, max_shift=(3, 12), **options)
    np.testing.assert_allclose(found.shift, (2, 9), atol=0.1 if boundary == "overlap" else 0.6)
    bound = register(reference, image, max_shift=(3, 4), **options)
    assert jnp.isnan(bound.shift[0]) or abs(bound.shift[1]) <= 4


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
@pytest.mark.parametrize("limit", [None, 5.0])
def test_an_axis_is_held_anywhere(boundary, limit):
    """Outside the window of the search, and half a period away, the free axis is found all the same."""
    rng = np.random.default_rng(3)
    big = scene((160, 64), 1.0, seed=4)
    images = [big[:64], np.roll(big, (40, 3), (0, 1))[:64]]
    if boundary == "wrap":
        images = [big[:64], np.roll(big[:64], (40, 3), (0, 1))]
    images = [(x + 0.1 * rng.normal(size=x.shape)).astype(np.float32) for x in images]
    found = register(*images, 0.14, boundary=boundary, max_shift=limit, search=Search(fixed=(40.0, None)))
    assert found.status == Status.OK
    # Shifts of periodic images are those of one period.
    assert found.shift[0] == (40 - 64 if boundary == "wrap" else 40)
    np.testing.assert_allclose(found.shift[1], 3.0, atol=0.02)


def test_a_sharp_prior_far_away_keeps_its_digits():
    """The prior's part of the interval, at a shift where float32 has lost what its width is."""
    noise = np.random.default_rng(0).normal(size=2500).astype(np.float32)
    search = Search(prior=([1000.00003], [[1e-8]]))
    found = register(noise, np.roll(noise, 1000), 1000.0, boundary="wrap", search=search)
    np.testing.assert_allclose(found.stderr, 1e-4, rtol=1e-2)
    surface = chi2_surface(noise, np.roll(noise, 1000), 1000.0, boundary="wrap", search=search)
    step, sigma = 1e-5, 1e-4
    zoomed = np.asarray(surface.zoom([1000.0], step, (3,)), float)
    offset = 1000.0 - float(np.float32(1000.00003))
    expected = [((offset + k * step) / sigma) ** 2 for k in (-1, 0, 1)]
    np.testing.assert_allclose(np.diff(zoomed), np.diff(expected), rtol=0.02)
