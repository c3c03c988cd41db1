"""image_registration's names: against its arrays, and where it goes wrong, against the definition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import enable_x64
from direct import chi2, interpolate, moved, scene, shifted
from scipy.ndimage import map_coordinates
from scipy.optimize import least_squares

from jaxchi2 import (
    chi2_shift,
    chi2_shift_iterzoom,
    chi2_shift_leastsq,
    chi2map_to_errors,
    chi2n_map,
    iterative_zoom,
    iterative_zoom_1d,
)

MAP_CASES = {
    "scalar_even": {},
    "errmap_oddxeven": {},
    "errmap_fill": {"boundary": "fill"},
    "mask_inf": {},
}
SHIFT_CASES = {
    "chi2_shift_auto_odd": {},
    "chi2_shift_auto_even": {},
    "chi2_shift_auto_lowsnr": {"max_auto_size": 128},
    "chi2_shift_auto_errmap": {},
    "chi2_shift_us10": {"upsample_factor": 10},
    "chi2_shift_us15_even": {"upsample_factor": 15},
    "chi2_shift_us100": {"upsample_factor": 100},
}
ITERZOOM_CASES = {
    "iterzoom_odd": {},
    "iterzoom_odd_mindiff.01": {"mindiff": 0.01},
    "iterzoom_odd_map": {"zoom_shape": [12, 14], "rezoom_shape": [90, 80], "rezoom_factor": 4},
}
ZOOM_CASES = {
    "default": {},
    "mindiff.01": {"mindiff": 0.01},
    "step3_shape12x9": {"zoomstep": 3, "zoomshape": [12, 9]},
}
ERROR_CASES = {
    "z1": {},
    "z10": {"zoomfactor": 10},
    "nsig2": {"nsigma": 2},
    "nfit1": {"nfitted": 1},
    "z4_nsig1.5_nfit3": {"zoomfactor": 4.0, "nsigma": 1.5, "nfitted": 3},
}
# Half-width of the joint region of two parameters over the marginal error: image_registration's error bar.
JOINT = np.sqrt(scipy.stats.chi2.ppf(2 * scipy.stats.norm.cdf(1) - 1, 2))
# Tests that need no options of their own share these and a 33×33 pair, which is compiled once.
SHARED = {"upsample_factor": 10, "return_chi2array": True}


def pair(reference, case):
    return tuple(reference[f"{case}/{name}"] for name in ("im1", "im2", "err"))


def exact_sum(im1, im2, err, weights, boundary="wrap"):
    """χ² over the pixels with a weight at every whole shift, in the layout of chi2n_map."""
    ny, nx = im1.shape
    if boundary == "fill":
        im1 = np.pad(im1, ((ny, ny), (nx, nx)))
    out = np.empty((ny, nx))
    for k, j in np.ndindex(ny, nx):
        model = np.roll(im1, ((ny - 1) // 2 - k, (nx - 1) // 2 - j), (0, 1))
        if boundary == "fill":
            model = model[ny : 2 * ny, nx : 2 * nx]
        out[k, j] = np.sum(np.where(weights, (im2 - model) ** 2 / np.where(weights, err, 1) ** 2, 0))
    return out


def same(results, expected, rtol=0.0, atol=0.0):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=atol), results, expected)


def chi2_on(images, y, x):
    """χ² at every pair of shifts along y and along x, by its definition."""
    im1, im2, err = images
    ny, nx = im1.shape
    positions = [np.subtract.outer(np.arange(n), s).ravel() for n, s in ((ny, y), (nx, x))]
    model = interpolate(im1, positions).reshape(ny, len(y), nx, len(x))
    weights = np.broadcast_to(1 / err**2, im2.shape)
    return np.sum(weights[:, None, :, None] * (im2[:, None, :, None] - model) ** 2, axis=(0, 2))


def check_grid(grid, images, sign):
    """A returned grid is regular and holds the defined χ²; ``sign`` turns its coordinates into shifts."""
    x, y, values = (np.asarray(a) for a in grid)
    assert x.shape == y.shape == values.shape
    assert np.ptp(x, axis=0).max() == np.ptp(y, axis=1).max() == 0
    for column in (x[0], y[:, 0]):
        np.testing.assert_allclose(np.diff(column), column[1] - column[0], rtol=1e-9)
    rows, columns = (np.unique(np.linspace(0, n - 1, 12, dtype=int)) for n in values.shape)
    expected = chi2_on(images, sign * y[rows, 0], sign * x[0, columns])
    np.testing.assert_allclose(values[np.ix_(rows, columns)], expected, rtol=1e-9)


# chi2n_map


@pytest.mark.parametrize("case", MAP_CASES)
def test_map_equals_stored(case, reference, dtype):
    images = [x.astype(dtype) for x in pair(reference, f"chi2n_map_{case}")]
    terms = chi2n_map(*images, return_all=True, **MAP_CASES[case])
    for name, term in zip(("chi2", "term1", "term2", "term3"), terms, strict=True):
        stored = reference[f"chi2n_map_{case}/{name}"]
        assert term.dtype == dtype
        assert term.shape == stored.shape
        # A few roundings of the largest sums; the inputs are rounded too in float32.
        atol = {"float64": 1e-13, "float32": 2e-6}[dtype.name] * abs(stored).max()
        np.testing.assert_allclose(term, stored, rtol=1e-10 if dtype == np.float64 else 1e-4, atol=atol)


@pytest.mark.parametrize("case", ["scalar_even", "errmap_fill"])
def test_map_reduced_leaves_terms(case, reference, x64):
    prefix = f"chi2n_map_{case}"
    reduced, *terms = chi2n_map(*pair(reference, prefix), return_all=True, reduced=True, **MAP_CASES[case])
    np.testing.assert_allclose(reduced, reference[f"{prefix}/chi2_reduced"], rtol=1e-10)
    for name, term in zip(("term1", "term2", "term3"), terms, strict=True):
        np.testing.assert_allclose(term, reference[f"{prefix}/{name}"], rtol=1e-10, atol=1e-9)


def test_map_zeromean(reference, x64):
    images = pair(reference, "chi2n_map_zeromean")
    stored = reference["chi2n_map_zeromean/chi2"]
    found = chi2n_map(*images, zeromean=True)
    np.testing.assert_allclose(found, stored, rtol=1e-10, atol=1e-13 * stored.max())
    assert abs(chi2n_map(*images) - stored).max() > 1e-3 * stored.max()


@pytest.mark.parametrize("boundary", ["wrap", "fill"])
def test_map_gives_bad_pixels_no_weight(boundary, x64):
    rng = np.random.default_rng(3)
    im1, im2 = rng.normal(size=(2, 9, 12))
    err = rng.uniform(0.5, 2, size=(9, 12))
    weights = np.ones((9, 12), bool)
    for row, (array, value) in enumerate(
        [(im2, np.nan), (im2, np.inf), (err, np.nan), (err, 0.0), (err, np.inf)]
    ):
        array[row, 2 * row] = value
        weights[row, 2 * row] = False
    expected = exact_sum(im1, im2, err, weights, boundary)
    np.testing.assert_allclose(chi2n_map(im1, im2, err, boundary), expected, rtol=1e-11)


def test_map_leaves_out_what_bad_model_pixels_cover(x64):
    model = scene((9, 12), smooth=True)
    data = np.roll(model, (2, -3), (0, 1)) + 0.1 * np.random.default_rng(1).normal(size=model.shape)
    broken = model.copy()
    broken[4, 5] = np.nan
    found = np.asarray(chi2n_map(broken, data, 0.1))
    assert np.all(np.isfinite(found))
    best = np.unravel_index(found.argmin(), found.shape)
    assert best == ((9 - 1) // 2 - 2, (12 - 1) // 2 + 3)
    # At the best shift no pixel of the model is made up: the bad one is lost, and those around it count less.
    residuals = ((data - np.roll(model, (2, -3), (0, 1))) / 0.1) ** 2
    around = (slice(4 + 2 - 2, 4 + 2 + 3), slice(5 - 3 - 2, 5 - 3 + 3))
    kept = residuals.sum() - residuals[4 + 2, 5 - 3]
    assert residuals.sum() - residuals[around].sum() < found[best] <= kept * (1 + 1e-9)


def test_map_fill_sums_the_overlap_alone(x64):
    im1, im2 = np.random.default_rng(4).normal(size=(2, 9, 12))
    expected = exact_sum(im1, im2, 0.5, True, "fill")
    for boundary in ("fill", None):
        np.testing.assert_allclose(chi2n_map(im1, im2, 0.5, boundary), expected, rtol=1e-11)


@pytest.mark.parametrize("kind", ["uint8", "int16", "bool"])
def test_map_of_integer_images(kind, x64):
    # image_registration squares in the integer type: 200² is 64 in uint8.
    limits = {"uint8": (0, 256), "int16": (-30000, 30001), "bool": (0, 2)}[kind]
    im1, im2 = np.random.default_rng(5).integers(*limits, size=(2, 9, 12)).astype(kind)
    expected = exact_sum(im1.astype(float), im2.astype(float), 2.0, True)
    np.testing.assert_allclose(chi2n_map(im1, im2, 2.0), expected, rtol=1e-10, atol=1e-9)


def test_map_of_masked_array(x64):
    im1, im2 = np.random.default_rng(6).normal(size=(2, 9, 12))
    mask = np.zeros((9, 12), bool)
    mask[2:4, 5:9] = True
    expected = exact_sum(im1, im2, 1.0, ~mask)
    np.testing.assert_allclose(chi2n_map(im1, np.ma.masked_array(im2, mask), 1.0), expected, rtol=1e-11)


# chi2_shift


@pytest.mark.long
@pytest.mark.parametrize("case", SHIFT_CASES)
def test_shift_equals_stored(case, reference, x64):
    images = pair(reference, case)
    dx, dy, ex, ey, grid = chi2_shift(*images, return_chi2array=True, **SHIFT_CASES[case])
    x, y, values = (np.asarray(a) for a in grid)
    true_dx, true_dy, sx, sy, _, lowest = reference[f"{case}/exact_dx_dy_sx_sy_corr_chi2min"]
    stored = reference[f"{case}/dx_dy_ex_ey"]
    even = np.array([n % 2 == 0 for n in images[0].shape])
    step = x[0, 1] - x[0, 0]

    np.testing.assert_allclose([dx, dy], [true_dx, true_dy], rtol=0, atol=1e-9)
    np.testing.assert_allclose([dx, dy], stored[:2], rtol=0, atol=step)
    # The low S/N region reaches where χ² is no parabola any more.
    np.testing.assert_allclose([ex, ey], JOINT * np.array([sx, sy]), rtol=0.06 if "lowsnr" in case else 0.03)
    assert np.all(np.abs([ex, ey] - stored[2:]) < step)

    # Coordinates: those stored, less the half pixel by which its window is off on even axes.
    assert step > 0
    np.testing.assert_allclose(x[0], reference[f"{case}/xvals"] - 0.5 * even[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(y[:, 0], reference[f"{case}/yvals"] - 0.5 * even[0], rtol=0, atol=1e-9)
    check_grid(grid, images, sign=-1)
    # Stored in part: every 2nd, 3rd or 8th sample of the larger grids.
    stored_grid = reference[f"{case}/chi2_zoom"]
    every = max(1, len(x) // 64)
    if not even.any():
        # With an error map, image_registration's χ² is aliased between the pixels.
        rtol = 1e-9 if images[2].ndim == 0 else 1e-6
        np.testing.assert_allclose(values[::every, ::every], stored_grid, rtol=rtol, atol=1e-8)
    elif "auto" in case:
        # Half a pixel is a whole number of samples; the rest is the Nyquist frequency.
        moved = round(0.5 / step) // every
        here, there = slice(moved, None), slice(None, -moved)
        ours = values[::every, ::every][here, here]
        np.testing.assert_allclose(ours, stored_grid[there, there], rtol=1e-5)

    best = np.unravel_index(values.argmin(), values.shape)
    np.testing.assert_allclose([x[best], y[best]], [-dx, -dy], rtol=0, atol=step)
    assert lowest - 1e-6 < values[best] < lowest + (step / min(sx, sy)) ** 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "factor", "stated"),
    [((200, 20), 100, (200, 200)), ((101, 31), 100, (200, 200)), ((32, 32), 31, (62, 62))],
)
def test_shift_window_holds_minimum(shape, factor, stated, x64):
    # Here image_registration is off by up to 0.9 px: its window ends before the minimum.
    model = scene(shape, slope=3, smooth=True)
    for shift in [(3.49, -2.49), (-7.51, 4.5), (0.02, 0.98)]:
        data = shifted(model, shift)
        dx, dy, (x, y, values) = chi2_shift(
            model, data, 0.1, factor, return_error=False, return_chi2array=True
        )
        np.testing.assert_allclose([dy, dx], shift, rtol=0, atol=1e-9)
        assert values.shape == stated
        row, column = np.unravel_index(np.argmin(values), values.shape)
        assert 0 < row < stated[0] - 1
        assert 0 < column < stated[1] - 1
        np.testing.assert_allclose([y[row, 0], x[0, column]], [-dy, -dx], rtol=0, atol=0.5001 / factor)
    assert chi2_shift(model, model, 0.1, factor, return_chi2array=True)[:2] == (0, 0)


def test_shift_options_of_auto_window_and_marginal_errors(reference, x64):
    case = "chi2_shift_auto_lowsnr"
    images = pair(reference, case)
    dx, dy, ex, ey, grid = chi2_shift(*images, nfitted=1, max_nsig=5, max_auto_size=96, return_chi2array=True)
    # The window: twice the larger extent, in whole pixels, of the region of the whole-pixel map.
    whole = exact_sum(*images, True)
    inside = np.argwhere(whole - whole.min() < 5**2)
    extent = np.ptp(inside, axis=0).max()
    x, y, values = grid
    assert extent > 1
    assert values.shape == (96, 96)
    np.testing.assert_allclose(np.diff(x[0]), 2 * extent / 96, rtol=1e-9)
    assert np.all(abs(x[0, [0, -1]] + dx) > 5 * ex)
    assert np.all(abs(y[[0, -1], 0] + dy) > 5 * ey)
    check_grid(grid, images, sign=-1)
    # The region of one parameter, read off the grid.
    within = np.argwhere(values - values.min() < 1)
    step = x[0, 1] - x[0, 0]
    beyond = 2 * np.array([ey, ex]) - np.ptp(within, axis=0) * step
    assert np.all((beyond >= 0) & (beyond < 2 * step))


def test_shift_returns_what_is_asked_for(reference, x64, capsys):
    images = pair(reference, "chi2_shift_us10")
    full = chi2_shift(*images, **SHARED)
    assert len(full) == 5
    same(chi2_shift(*images, return_error=False, **SHARED), (*full[:2], full[4]))
    assert not capsys.readouterr().out
    same(chi2_shift(*images, verbose=True, **SHARED), full)
    assert f"dx = {full[0]:.6g}" in capsys.readouterr().out


def test_shift_without_grid_is_the_same(reference, x64):
    images = pair(reference, "chi2_shift_us10")
    full = chi2_shift(*images, **SHARED)
    same(chi2_shift(*images), full[:4], rtol=1e-12)
    same(chi2_shift(*images, return_error=False), full[:2], rtol=1e-12)
    # Resolution does not quantise: nothing of the result depends on the factor.
    same(chi2_shift(*images, upsample_factor=3), full[:4], rtol=1e-12)


def test_shift_of_zero_is_zero(dtype):
    model = scene((33, 33), slope=2).astype(dtype)
    dx, dy, *_, (x, y, values) = chi2_shift(model, model, 0.1, **SHARED)
    assert dx == dy == 0
    best = np.unravel_index(np.argmin(values), values.shape)
    assert abs(x[best]) < 1e-6
    assert abs(y[best]) < 1e-6


def test_shift_in_single_precision(reference):
    images = pair(reference, "chi2_shift_us10")
    with enable_x64(False):
        *found, (x, y, values) = chi2_shift(*(a.astype(np.float32) for a in images), **SHARED)
    assert {a.dtype for a in (*found, x, y, values)} == {np.dtype(np.float32)}
    with enable_x64(True):
        *expected, (x64, y64, values64) = chi2_shift(*images, **SHARED)
    np.testing.assert_allclose(found[:2], expected[:2], rtol=0, atol=2e-6)
    np.testing.assert_allclose(found[2:], expected[2:], rtol=1e-4)
    np.testing.assert_allclose([x, y], [x64, y64], rtol=0, atol=2e-6)
    np.testing.assert_allclose(values, values64, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "int16"])
def test_shift_of_integer_images(kind, x64):
    top = {"uint8": 255, "int16": 30000}[kind]
    model = scene((33, 33), slope=3, smooth=True)
    model = np.rint((model - model.min()) / np.ptp(model) * top)
    data = np.roll(model, (4, -6), (0, 1))
    found = chi2_shift(model.astype(kind), data.astype(kind), 0.01 * top, **SHARED)
    same(found, chi2_shift(model, data, 0.01 * top, **SHARED))
    np.testing.assert_allclose(found[:2], (-6, 4), rtol=0, atol=1e-9)


@pytest.mark.parametrize("bad", ["err 0", "err nan", "image nan", "image inf", "masked"])
def test_shift_ignores_bad_pixels(bad, reference, x64):
    im1, im2, err = pair(reference, "chi2_shift_us10")
    lost = np.random.default_rng(8).random(im1.shape) < 0.1
    expected = chi2_shift(im1, im2, np.where(lost, np.inf, err), **SHARED)
    errors, images = np.full(im1.shape, err), im2 + 100.0 * lost
    where, _, value = bad.rpartition(" ")
    if where == "err":
        errors = np.where(lost, float(value), err)
    elif where == "image":
        images = np.where(lost, float(value), im2)
    else:
        images = np.ma.masked_array(images, lost)
    same(chi2_shift(im1, images, errors, **SHARED), expected, rtol=1e-9)
    true_dx, true_dy = reference["chi2_shift_us10/exact_dx_dy_sx_sy_corr_chi2min"][:2]
    np.testing.assert_allclose(expected[:2], (true_dx, true_dy), rtol=0, atol=0.05)


def test_shift_ignores_bad_pixels_of_model(reference, x64):
    im1, im2, err = pair(reference, "chi2_shift_us10")
    broken = np.where(np.random.default_rng(9).random(im1.shape) < 0.03, np.nan, im1)
    found = chi2_shift(broken, im2, err, **SHARED)
    exact = reference["chi2_shift_us10/exact_dx_dy_sx_sy_corr_chi2min"]
    # Three in a hundred pixels and their noise are left out, and others count a little less.
    np.testing.assert_allclose(found[:2], exact[:2], rtol=0, atol=3 * found[2])
    assert np.all(np.asarray(found[2:4]) > 0.98 * JOINT * exact[2:4])
    assert np.all(np.asarray(found[2:4]) < 1.3 * JOINT * exact[2:4])


def test_shift_zeromean_removes_a_background(reference, x64):
    im1, im2, _ = pair(reference, "chi2_shift_us10")
    err = np.full(im1.shape, 0.05)
    err[:, 20:] = 0.1
    centred = chi2_shift(im1 - im1.mean(), im2 - im2.mean(), err, **SHARED)
    same(chi2_shift(im1, im2 + 100, err, zeromean=True, **SHARED), centred, rtol=1e-6)
    plain = chi2_shift(im1, im2 + 100, err, **SHARED)
    assert not abs(plain[0] - centred[0]) < 0.1


def test_shift_boundary_fill(x64):
    field = scene((60, 60), slope=3, smooth=True, seed=2)
    rng = np.random.default_rng(10)
    model, data = field[10:30, 12:33], field[7:27, 17:38] + 0.02 * rng.normal(size=(20, 21))
    err = 0.5 + rng.random((20, 21))
    *found, grid = chi2_shift(model, data, err, 20, boundary="fill", return_chi2array=True)
    here = np.array(found[1::-1])
    same(chi2_shift(model, data, err, 20, boundary=None, return_chi2array=True), (*found, grid))
    # A Newton step on the definition, by differences of fourth order, leads nowhere.
    h = 1e-2
    for unit in h * np.eye(2):
        f = [chi2(model, data, err, here + k * unit, "fill") for k in (-2, -1, 0, 1, 2)]
        slope, curvature = np.dot(f, [1, -8, 0, 8, -1]) / 12, np.dot(f, [-1, 16, -30, 16, -1]) / 12
        assert abs(h * slope / curvature) < 1e-7
    at = [-float(a[3, -2]) for a in grid[1::-1]]
    np.testing.assert_allclose(grid[2][3, -2], chi2(model, data, err, at, "fill"), rtol=1e-9)


def hopeless_images(kind):
    """Pairs from which no shift can be read."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(33, 33))
    return {
        "constant": (np.ones((33, 33)), np.full((33, 33), 3.0)),
        "zero": (np.zeros((33, 33)), np.zeros((33, 33))),
        "flat model": (np.ones((33, 33)), noise),
        "nan": (np.full((33, 33), np.nan), noise),
        "infinite": (noise, np.full((33, 33), np.inf)),
    }[kind]


@pytest.mark.parametrize("kind", ["constant", "zero", "flat model", "nan", "infinite"])
def test_shift_of_hopeless_images_is_nan(kind, x64):
    found = chi2_shift(*hopeless_images(kind), 0.1, **SHARED)
    assert np.all(np.isnan(found[:4]))


def test_shift_of_perfect_match(dtype):
    # χ² between pixels of 1e18; without noise the error is that of err.
    model = scene((33, 33), slope=3, smooth=True)
    data = shifted(model, (2, -3))
    dx, dy, *_ = chi2_shift(model.astype(dtype), data.astype(dtype), 1e-9, **SHARED)
    np.testing.assert_allclose([dx, dy], [-3, 2], rtol=0, atol=1e-6 if dtype == np.float32 else 1e-12)


def test_errors_are_not_quantised_in_single_precision():
    # They are far below the spacing of float32 at the shift.
    model = scene((33, 33), slope=3, smooth=True)
    images = [a.astype(np.float32) for a in (model, shifted(model, (10.3, -13.6)))]
    results = {}
    for name in ("float32", "float64"):
        with enable_x64(name == "float64"):
            found = chi2_shift(*(a.astype(name) for a in images), 5e-6, **SHARED)
            results[name] = np.array(found[2:4])
    assert np.all(results["float64"] < np.spacing(np.float32(10)))
    np.testing.assert_allclose(results["float32"], results["float64"], rtol=0.01)


# chi2_shift_iterzoom


@pytest.mark.long
@pytest.mark.parametrize("case", ITERZOOM_CASES)
def test_iterzoom_equals_stored(case, reference, x64):
    images, options = pair(reference, case), ITERZOOM_CASES[case]
    dx, dy, ex, ey, grid = chi2_shift_iterzoom(*images, return_chi2array=True, **options)
    x, y, values = (np.asarray(a) for a in grid)
    true_dx, true_dy, sx, sy, _, lowest = reference[f"{case}/exact_dx_dy_sx_sy_corr_chi2min"]
    stored_x, stored_y = reference[f"{case}/xvals"], reference[f"{case}/yvals"]
    step = x[0, 0] - x[0, 1]

    np.testing.assert_allclose([dx, dy], [true_dx, true_dy], rtol=0, atol=1e-9)
    np.testing.assert_allclose([ex, ey], JOINT * np.array([sx, sy]), rtol=0.03)
    # What is stored is the minimum of the level before the last, in steps of two of the last level.
    stored = reference[f"{case}/dx_dy_ex_ey"]
    np.testing.assert_allclose([dx, dy], stored[:2], rtol=0, atol=options.get("rezoom_factor", 5) * step)
    if options.get("mindiff", 1) == 1:
        # Else its window is narrower than the error.
        assert np.all(np.abs([ex, ey] - stored[2:]) < step)

    # The same grid around the minimum instead of that point: plus the shift, falling.
    assert step > 0
    np.testing.assert_allclose(np.diff(x, axis=1), stored_x[1] - stored_x[0], rtol=1e-9)
    np.testing.assert_allclose(np.diff(y, axis=0), stored_y[1] - stored_y[0], rtol=1e-9)
    assert values.shape == reference[f"{case}/chi2_zoom"].shape
    np.testing.assert_allclose([x.mean(), y.mean()], [dx, dy], rtol=0, atol=1e-9)
    check_grid(grid, images, sign=1)
    assert lowest - 1e-6 < values.min() < lowest + (step / min(sx, sy)) ** 2


def zoom_factor(images, zoom_shape=(10, 10), zoomstep=2, mindiff=1):
    """Zoom by which the two lowest points of a grid around the minimum differ by less than ``mindiff``."""
    level = exact_sum(*images, True)
    axes = [(n - 1) // 2 - np.arange(n) for n in level.shape]
    factor = 1
    while np.diff(np.sort(level, axis=None)[:2]) > mindiff:
        best = [axis[k] for axis, k in zip(axes, np.unravel_index(level.argmin(), level.shape), strict=True)]
        factor *= zoomstep
        axes = [b + (np.arange(m) - (m - 1) / 2) / factor for b, m in zip(best, zoom_shape, strict=True)]
        level = chi2_on(images, *axes)
    return factor


def test_iterzoom_options_on_even_axes(x64):
    model = scene((16, 18), slope=2, smooth=True)
    data = shifted(model, (2.3, -4.6)) + 0.1 * np.random.default_rng(11).normal(size=model.shape)
    images = (model, data, np.array(0.1))
    options = {"zoom_shape": (3, 5), "zoomstep": 3, "mindiff": 0.05}
    factor = zoom_factor(images, **options)
    for left_out in options:
        assert zoom_factor(images, **{k: v for k, v in options.items() if k != left_out}) != factor
    dx, dy, ex, ey, grid = chi2_shift_iterzoom(
        *images, return_chi2array=True, rezoom_shape=(7, 9), rezoom_factor=2.5, **options
    )
    assert grid[2].shape == (7, 9)
    np.testing.assert_allclose(np.diff(grid[0][0]), -1 / (2.5 * factor), rtol=1e-9)
    assert np.argmin(grid[2]) == 7 * 9 // 2
    check_grid(grid, images, sign=1)
    assert abs(dx + 4.6) < 3 * ex
    assert abs(dy - 2.3) < 3 * ey


def test_iterzoom_where_image_registration_hangs_or_gives_up(reference, x64, capsys):
    shape, options = (33, 35), {"return_chi2array": True}
    model = scene(shape, slope=3, smooth=True)
    found = chi2_shift_iterzoom(model, model, 1e-9, **options)
    assert found[:2] == (0, 0)
    found = chi2_shift_iterzoom(model, shifted(model, (2, -3)), 1e-9, **options)
    np.testing.assert_allclose(found[:2], [-3, 2], rtol=0, atol=1e-9)
    # So noisy that a second pixel lies within mindiff of the best: it returns (0, 0) there.
    im1, im2, _ = pair(reference, "iterzoom_odd")
    *expected, _ = chi2_shift_iterzoom(im1, im2, verbose=True, **options)
    assert f"dx = {expected[0]:.6g}" in capsys.readouterr().out
    exact = reference["iterzoom_odd/exact_dx_dy_sx_sy_corr_chi2min"]
    np.testing.assert_allclose(expected[:2], exact[:2], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["match", "noise", "constant", "nan", "flat model"])
def test_iterzoom_returns_in_single_precision(kind):
    # mindiff is below every rounding error: no difference is that small but zero.
    model = scene((33, 33), slope=3, smooth=True)
    noise = np.random.default_rng(12).normal(size=(33, 33))
    images = {"match": (model, shifted(model, (2, -3))), "noise": (model, noise)}
    im1, im2 = images[kind] if kind in images else hopeless_images(kind)
    im1, im2 = np.float32(im1), np.float32(im2)
    with enable_x64(False):
        found = chi2_shift_iterzoom(im1, im2, 1e-9, mindiff=1e-30, return_chi2array=True)
    if kind == "match":
        np.testing.assert_allclose(found[:2], [-3, 2], rtol=0, atol=2e-6)
    elif kind != "noise":
        assert np.all(np.isnan(found[:4]))


# chi2map_to_errors


@pytest.mark.parametrize("case", ERROR_CASES)
def test_errors_equal_stored(case, reference, x64):
    options = ERROR_CASES[case]
    found = np.array(chi2map_to_errors(reference["chi2map_to_errors/map"], **options))
    zoom, nsigma = options.get("zoomfactor", 1), options.get("nsigma", 1)
    # Stored are the last whole samples inside.
    stored = reference[f"chi2map_to_errors/{case}"]
    assert np.all(found >= stored)
    assert np.all(found < stored + 1.001 / zoom)
    level = scipy.stats.chi2.ppf(2 * scipy.stats.norm.cdf(nsigma) - 1, options.get("nfitted", 2))
    np.testing.assert_allclose(found, np.sqrt(level) * np.array([9, 9, 6, 6]) / zoom, rtol=1e-2)


@pytest.mark.parametrize("nfitted", [1, 2, 3])
@pytest.mark.parametrize("nsigma", [1, 5, 10, 30])
def test_errors_at_any_confidence(nsigma, nfitted, dtype):
    # image_registration is 1 % low at 8 σ, 19 % at 30 σ.
    y, x = np.indices((81, 91)) - np.array([40.2, 44.7])[:, None, None]
    level = scipy.stats.chi2.isf(2 * scipy.stats.norm.sf(nsigma), nfitted)
    scale = np.sqrt(level) / 35
    values = ((y * scale) ** 2 + (x * scale) ** 2).astype(dtype)
    found = chi2map_to_errors(values, nsigma=nsigma, nfitted=nfitted)
    np.testing.assert_allclose(found, 35, rtol=1e-4)


def test_errors_of_lopsided_map(x64):
    y, x = np.indices((81, 91)) - np.array([40, 45])[:, None, None]
    values = 1000 + (x / (9 - 0.1 * x)) ** 2 + (y / (7 + 0.08 * y)) ** 2
    # |x| = 2 (9 ± 0.1 |x|) and so on.
    expected = [18 / 0.8, 18 / 1.2, 14 / 1.16, 14 / 0.84]
    np.testing.assert_allclose(chi2map_to_errors(values, nsigma=2, nfitted=1), expected, rtol=1e-2)


def test_errors_are_nan_at_the_edge(x64):
    y, x = np.indices((81, 91)) - np.array([20, 6])[:, None, None]
    found = chi2map_to_errors((x / 9) ** 2 + (y / 7) ** 2, nfitted=1)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], [9, 7, 7], rtol=1e-2)
    assert np.all(np.isnan(chi2map_to_errors(np.ones((81, 91)))))
    assert np.all(np.isnan(chi2map_to_errors(np.full((81, 91), np.nan))))


# iterative_zoom


@pytest.mark.parametrize("case", ZOOM_CASES)
@pytest.mark.parametrize("parity", ["odd", "even", "mixed"])
def test_zoom_equals_stored(parity, case, reference, x64):
    prefix, options = f"iterative_zoom_{parity}", ZOOM_CASES[case]
    zoomed, factor, position = iterative_zoom(reference[f"{prefix}/map"], return_zoomed=True, **options)
    stored = reference[f"{prefix}/{case}_zoomed"]
    stored_factor, center = np.split(reference[f"{prefix}/{case}_zf_cy_cx"], [1])
    np.testing.assert_allclose(zoomed, stored, rtol=1e-9, atol=1e-9)
    assert factor == stored_factor
    assert np.all(abs(position - reference[f"{prefix}/true_min_yx"]) < 1 / factor)
    # The stored centre is that of the grid; the position is the grid's lowest point.
    lowest = np.unravel_index(stored.argmin(), stored.shape)
    middle = (np.array(stored.shape) - 1) / 2
    np.testing.assert_allclose(position, center + (lowest - middle) / stored_factor, rtol=0, atol=1e-9)


def test_zoom_options(reference, x64, capsys):
    bowl = reference["iterative_zoom_mixed/map"]
    expected = zoomed, factor, position = iterative_zoom(bowl, 0.01, return_zoomed=True)
    np.testing.assert_array_equal(iterative_zoom(bowl, 0.01), position)
    for least in ("min", np.min):
        same(iterative_zoom(bowl, 0.01, return_zoomed=True, minmax=least), expected)
    for most in ("max", np.max):
        found = iterative_zoom(-bowl, 0.01, return_zoomed=True, minmax=most)
        same(found, (-zoomed, factor, position))
    offset = iterative_zoom(bowl, 0.01, return_center=False)
    np.testing.assert_allclose(offset, position - np.array([9, 11]), rtol=0, atol=1e-12)
    assert not capsys.readouterr().out
    iterative_zoom(bowl, 0.01, verbose=True)
    assert f"{factor:.6g}" in capsys.readouterr().out


def test_zoom_needs_none(reference, x64):
    # image_registration has no centre to return here.
    bowl = reference["iterative_zoom_odd/map"]
    _, factor, position = iterative_zoom(bowl, 1e9, return_zoomed=True)
    assert factor == 1
    np.testing.assert_array_equal(position, np.unravel_index(bowl.argmin(), bowl.shape))


def test_zoom_in_one_and_three_dimensions(x64):
    line = -100 * np.cos(2 * np.pi * (np.arange(20) - 8.34) / 20)
    zoomed, factor, position = iterative_zoom_1d(line, 1e-3, return_zoomed=True)
    assert position.shape == ()
    assert zoomed.shape == (10,)
    assert abs(position - 8.34) < 1 / factor < 0.1
    same(iterative_zoom(line, 1e-3, (10,), True), (zoomed, factor, position[None]))
    np.testing.assert_allclose(iterative_zoom_1d(line, 1e-3, return_center=False), position - 9, atol=1e-12)
    box = sum(
        -100 * np.cos(2 * np.pi * (axis - at) / n)
        for axis, at, n in zip(np.indices((8, 9, 10)), (3.2, 4.6, 7.1), (8, 9, 10), strict=True)
    )
    zoomed, factor, position = iterative_zoom(box, 0.1, (4, 5, 6), True)
    assert zoomed.shape == (4, 5, 6)
    assert np.all(abs(position - np.array([3.2, 4.6, 7.1])) < 1 / factor)


@pytest.mark.parametrize("kind", ["constant", "plateau", "nan", "bowl"])
def test_zoom_returns(kind, dtype):
    y, x = np.indices((12, 13)) - np.array([5, 7])[:, None, None]
    values = {
        "constant": np.ones((12, 13)),
        "plateau": np.where(abs(x) + abs(y) < 3, 0.0, 100.0),
        "nan": np.where((x == 2) & (y == 2), np.nan, x**2 + y**2),
        "bowl": x**2 + y**2,
    }[kind]
    zoomed, factor, position = iterative_zoom(values.astype(dtype), 1e-30, return_zoomed=True)
    assert zoomed.shape == (10, 10)
    assert position.shape == (2,)
    assert factor <= 2.0**60
    if kind == "constant":
        assert factor == 1


# What every function of the older package does the same.


SCRIPTS = [
    (chi2_shift, "chi2_shift_us10", SHARED, ("nthreads", "use_numpy_fft", "allow_huge")),
    (
        chi2_shift_iterzoom,
        "iterzoom_odd",
        {"return_chi2array": True},
        ("nthreads", "use_numpy_fft", "allow_huge"),
    ),
    (chi2n_map, "chi2n_map_scalar_even", {"return_all": True}, ("nthreads", "use_numpy_fft", "allow_huge")),
]


@pytest.mark.parametrize(("function", "case", "options", "dead"), SCRIPTS)
def test_obsolete_arguments_warn(function, case, options, dead, reference, x64):
    images = pair(reference, case)
    expected = function(*images, **options)
    for name in dead:
        with pytest.warns(DeprecationWarning, match=f"{function.__name__}.*{name}"):
            found = function(*images, **options, **{name: 1})
        same(found, expected)


def test_obsolete_arguments_keep_their_places(reference, x64):
    """Calls with every argument in the order of image_registration 0.2.10."""
    images = pair(reference, "chi2_shift_us10")
    expected = chi2_shift(*images, **SHARED)
    with pytest.warns(DeprecationWarning, match="nthreads, use_numpy_fft, allow_huge"):
        found = chi2_shift(*images, 10, "wrap", 1, False, False, 2, False, True, True, 512, 1.1, False)
    same(found, expected)
    images = pair(reference, "iterzoom_odd")
    expected = chi2_shift_iterzoom(*images, return_chi2array=True)
    with pytest.warns(DeprecationWarning, match="nthreads, use_numpy_fft"):
        found = chi2_shift_iterzoom(
            *images, "auto", "wrap", 1, False, False, False, True, True, [10, 10], [100, 100], 5, 1
        )
    same(found, expected)
    images = pair(reference, "chi2n_map_scalar_even")
    expected = chi2n_map(*images, return_all=True)
    with pytest.warns(DeprecationWarning, match="nthreads, use_numpy_fft, allow_huge"):
        found = chi2n_map(*images, "wrap", 1, False, False, True, False, False)
    same(found, expected)
    bowl = reference["iterative_zoom_odd/map"]
    expected = iterative_zoom(bowl, return_zoomed=True)
    with pytest.warns(DeprecationWarning, match="ploteach"):
        found = iterative_zoom(bowl, 1.0, [10, 10], True, 2, False, np.min, False, True)
    same(found, expected)
    with pytest.warns(DeprecationWarning, match="ploteach"):
        same(iterative_zoom(bowl, return_zoomed=True, ploteach=True), expected)
    line = bowl[8]
    expected = iterative_zoom_1d(line, return_zoomed=True)
    same(iterative_zoom_1d(line, 1.0, (10,), True, 2, False, np.min, True), expected)
    chi2map = reference["chi2map_to_errors/map"]
    same(chi2map_to_errors(chi2map, 1.0, 1, 2), chi2map_to_errors(chi2map))


@pytest.mark.parametrize(
    ("function", "shape", "options"),
    [
        (chi2_shift, (33, 33), SHARED),
        (chi2_shift_iterzoom, (35, 35), {**ITERZOOM_CASES["iterzoom_odd_map"], "return_chi2array": True}),
        (chi2n_map, (9, 12), {}),
    ],
)
def test_inputs_are_not_modified(function, shape, options, x64):
    rng = np.random.default_rng(13)
    arrays = [rng.normal(size=shape), rng.normal(size=shape), rng.uniform(1, 2, size=shape)]
    for array, value in zip(arrays, (np.nan, np.inf, 0.0), strict=True):
        array[3, 4] = value
    copies = [a.copy() for a in arrays]
    for array in arrays:
        array.flags.writeable = False
    jax.block_until_ready(function(*arrays, zeromean=True, **options))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("function", "case", "options", "dead"), SCRIPTS)
def test_sign_of_errors_is_ignored(function, case, options, dead, reference, x64):
    """As in image_registration, which squares them: of each pixel's error for itself."""
    *images, err = pair(reference, case)
    expected = function(*images, err, **options)
    same(function(*images, -err, **options), expected)


def test_sign_of_errors_is_ignored_pixel_by_pixel(reference, x64):
    *images, err = pair(reference, "chi2n_map_errmap_oddxeven")
    signed = np.where(np.indices(err.shape).sum(0) % 2, err, -err)
    same(chi2n_map(*images, signed), chi2n_map(*images, err))


def test_zoom_and_errors_do_not_modify(reference, x64):
    for function, name in [
        (iterative_zoom, "iterative_zoom_odd/map"),
        (chi2map_to_errors, "chi2map_to_errors/map"),
    ]:
        values = reference[name].copy()
        values.flags.writeable = False
        jax.block_until_ready(function(values))
        np.testing.assert_array_equal(values, reference[name])


@pytest.mark.parametrize("function", [chi2_shift, chi2_shift_iterzoom, chi2n_map])
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"im1": np.ones((8, 9))}, ValueError, ("im1", "im2", r"\(8, 9\)", r"\(8, 8\)")),
        ({"im1": np.ones(8), "im2": np.ones(8)}, ValueError, ("im1", "2-dimensional")),
        ({"im1": np.ones((2, 3, 4)), "im2": np.ones((2, 3, 4))}, ValueError, ("im1", "2-dimensional")),
        ({"im1": np.ones((1, 8)), "im2": np.ones((1, 8))}, ValueError, ("im1", r"\(1, 8\)")),
        ({"im1": np.ones((0, 8)), "im2": np.ones((0, 8))}, ValueError, ("im1", r"\(0, 8\)")),
        ({"im2": np.ones((8, 8), complex)}, TypeError, ("im2", "complex")),
        ({"im1": np.full((8, 8), "a")}, TypeError, ("im1",)),
        ({"err": np.ones((8, 7))}, ValueError, ("err", r"\(8, 7\)")),
        ({"err": 1j}, TypeError, ("err", "complex")),
        ({"boundary": "torus"}, ValueError, ("boundary", "torus", "wrap", "fill")),
    ],
)
def test_bad_inputs_are_named(function, changes, error, words, x64):
    arguments = {"im1": np.ones((8, 8)), "im2": np.ones((8, 8)), "err": 1.0, **changes}
    with pytest.raises(error) as caught:
        function(**arguments)
    for word in words:
        assert caught.match(word)


IMAGE = np.ones((8, 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (partial(chi2_shift, IMAGE, IMAGE, upsample_factor=0), ("upsample_factor", "0")),
        (partial(chi2_shift, IMAGE, IMAGE, upsample_factor=-2.5), ("upsample_factor", "-2.5")),
        (partial(chi2_shift, IMAGE, IMAGE, upsample_factor="best"), ("upsample_factor", "best")),
        (partial(chi2_shift, IMAGE, IMAGE, upsample_factor=True), ("upsample_factor", "True")),
        (partial(chi2_shift, IMAGE, IMAGE, nfitted=0), ("nfitted", "0")),
        (partial(chi2_shift, IMAGE, IMAGE, max_auto_size=0), ("max_auto_size", "0")),
        (partial(chi2_shift, IMAGE, IMAGE, max_auto_size=0.5), ("max_auto_size", "0.5")),
        (partial(chi2_shift, IMAGE, IMAGE, max_nsig=-1), ("max_nsig", "-1")),
        (partial(chi2_shift_iterzoom, IMAGE, IMAGE, mindiff=0), ("mindiff", "0")),
        (partial(chi2_shift_iterzoom, IMAGE, IMAGE, zoomstep=1), ("zoomstep", "1")),
        (partial(chi2_shift_iterzoom, IMAGE, IMAGE, zoom_shape=(10,)), ("zoom_shape",)),
        (partial(chi2_shift_iterzoom, IMAGE, IMAGE, rezoom_shape=(1, 9)), ("rezoom_shape",)),
        (partial(chi2_shift_iterzoom, IMAGE, IMAGE, rezoom_factor=0), ("rezoom_factor", "0")),
        (partial(iterative_zoom, IMAGE, mindiff=-1), ("mindiff", "-1")),
        (partial(iterative_zoom, IMAGE, zoomstep=0.5), ("zoomstep", "0.5")),
        (partial(iterative_zoom, IMAGE, zoomshape=(5,)), ("zoomshape",)),
        (partial(iterative_zoom, IMAGE, minmax="most"), ("minmax", "most")),
        (partial(iterative_zoom_1d, IMAGE), ("data",)),
        (partial(chi2map_to_errors, np.ones(8)), ("chi2map", r"\(8,\)")),
        (partial(chi2map_to_errors, np.ones((2, 8))), ("chi2map", r"\(2, 8\)")),
        (partial(chi2map_to_errors, IMAGE, nfitted=1.5), ("nfitted", "1.5")),
    ],
)
def test_bad_options_are_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words[0]) as caught:
        call()
    for word in words:
        assert caught.match(word)


# Transforms.


def three_pairs(shape):
    model = scene(shape, slope=3, smooth=True)
    rng = np.random.default_rng(14)
    data = np.stack([shifted(model, s) for s in [(1.3, -2.6), (-4.0, 0.2), (7.7, 5.1)]])
    return model, data + 0.1 * rng.normal(size=data.shape), rng.uniform(0.08, 0.12, size=data.shape)


@pytest.mark.long
@pytest.mark.parametrize(
    ("function", "shape", "options"),
    [
        (chi2n_map, (9, 12), {}),
        (chi2_shift, (33, 33), SHARED),
        (chi2_shift_iterzoom, (35, 35), {**ITERZOOM_CASES["iterzoom_odd_map"], "return_chi2array": True}),
    ],
)
def test_jit_and_vmap(function, shape, options, x64):
    model, data, err = three_pairs(shape)
    function = partial(function, **options)
    found = jax.jit(jax.vmap(function, in_axes=(None, 0, 0)))(model, data, err)
    for i in range(3):
        same(jax.tree.map(lambda a, i=i: a[i], found), function(model, data[i], err[i]), rtol=1e-9)


def test_jit_and_vmap_of_zoom_and_errors(reference, x64):
    bowl, chi2map = reference["iterative_zoom_odd/map"], reference["chi2map_to_errors/map"]
    both = jnp.stack([bowl, np.roll(bowl, 2, axis=0)])
    found = jax.jit(jax.vmap(partial(iterative_zoom, mindiff=0.01)))(both)
    same(found[1] - found[0], np.array([2.0, 0.0]), atol=1e-9)
    same(found[0], iterative_zoom(bowl, 0.01), atol=1e-9)
    found = jax.jit(jax.vmap(chi2map_to_errors, in_axes=(0, None)))(jnp.stack([chi2map, 2 * chi2map]), 2.0)
    same([a[0] for a in found], list(chi2map_to_errors(chi2map, 2.0)), rtol=1e-12)
    same([a[1] for a in found], [a[0] / np.sqrt(2) for a in found], rtol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("function", [partial(chi2_shift, max_auto_size=16), chi2_shift_iterzoom])
def test_derivatives_of_shift_errors_and_grid(function, x64):
    model, (data, *_), (err, *_) = three_pairs((9, 10))
    rng = np.random.default_rng(15)
    by = [rng.normal(size=model.shape) * s for s in (1, 1, 0.01)]

    @jax.jit
    def found(t):
        arrays = [a + t * d for a, d in zip((model, data, err), by, strict=True)]
        *numbers, (x, y, chi2) = function(*arrays, return_chi2array=True)
        # The grid of chi2_shift stays where it is, that of chi2_shift_iterzoom moves with the shift.
        return jnp.concatenate([jnp.stack(numbers), x[0, :2], y[:2, 0], chi2[::3, ::3].ravel()])

    forward, backward = (jax.jit(f(found))(0.0) for f in (jax.jacfwd, jax.jacrev))
    step = 1e-4
    values = {k: found(k * step) for k in (-2, -1, 1, 2)}
    expected = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    for part in (slice(0, 2), slice(2, 4), slice(4, 8), slice(8, None)):
        size = np.max(np.abs(expected[part]))
        np.testing.assert_allclose(forward[part], expected[part], rtol=1e-6, atol=1e-6 * size)
    np.testing.assert_allclose(backward, forward, rtol=1e-9, atol=1e-9)


# chi2_shift_leastsq


def windows(shift, shape=(40, 36), err=0.1, seed=21):
    """Two windows of a smooth scene, the second after a shift ``(dx, dy)``, with noise."""
    larger = scene((2 * shape[0], 2 * shape[1]), 3.0, seed=seed, smooth=True)
    window = tuple(slice(n // 2, n // 2 + n) for n in shape)
    noise = np.random.default_rng(seed + 1).normal(scale=err, size=shape)
    return larger[window], moved(larger, shift[::-1])[window] + noise


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, "float32"), ({"maxoff": 8.0, "use_fft": True}, "float32"), ({}, "float64")],
    indirect=["dtype"],
)
def test_leastsq_finds_the_shift_in_pixels_and_brightness(options, dtype):
    im1, im2 = (x.astype(dtype) for x in windows((-4.3, 2.6)))
    before = im1.copy(), im2.copy()
    dx, dy, errx, erry = chi2_shift_leastsq(im1, im2 + dtype.type(3), 0.1, **options)
    assert dx.dtype == dtype
    assert 0.001 < errx < 0.1
    assert 0.001 < erry < 0.1
    assert abs(dx + 4.3) < 4 * errx
    assert abs(dy - 2.6) < 4 * erry
    for kept, given in zip(before, (im1, im2), strict=True):
        np.testing.assert_array_equal(kept, given)


def test_leastsq_needs_no_good_guess():
    im1, im2 = windows((-4.3, 2.6))
    expected = chi2_shift_leastsq(im1, im2, 0.1)
    # Half the width at which the reference's correlation with itself has fallen to a half.
    spectrum = np.abs(np.fft.fft2(im1 - im1.mean())) ** 2
    correlation = np.fft.fftshift(np.fft.ifft2(spectrum).real)
    reach = np.sqrt(np.sum(correlation > correlation.max() / 2) / np.pi)
    assert reach > 1.5
    for guess in np.add((-4.3, 2.6), np.random.default_rng(4).uniform(-reach, reach, (20, 2))):
        found = chi2_shift_leastsq(im1, im2, 0.1, guessx=guess[0], guessy=guess[1])
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_leastsq_errors_are_calibrated():
    """800 pulls scatter by 2.5 % in their spread, 3.5 % in their mean: five times that."""
    shape, err, frames = (24, 22), 0.1, 400
    rng = np.random.default_rng(17)
    larger = scene((48, 44), 3.0, seed=3, smooth=True)
    window = (slice(12, 36), slice(11, 33))
    shifts = rng.uniform(-2, 2, (frames, 2))
    images = np.stack([moved(larger, shift)[window] for shift in shifts])
    images += 7.0 + err * rng.normal(size=images.shape)
    assert images.shape[1:] == shape
    solve = jax.jit(jax.vmap(lambda image: chi2_shift_leastsq(larger[window], image, err)))
    dx, dy, errx, erry = (np.asarray(x) for x in solve(images))
    pulls = np.concatenate([(dy - shifts[:, 0]) / erry, (dx - shifts[:, 1]) / errx])
    assert abs(np.std(pulls) - 1) < 5 / np.sqrt(2 * pulls.size)
    assert abs(np.mean(pulls)) < 5 / np.sqrt(pulls.size)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["wrap", "constant", "reflect", "nearest"])
def test_leastsq_modes_are_those_of_map_coordinates(mode, x64):
    im1, im2 = windows((-1.3, 0.6))
    mean = im1.mean()
    grid = np.indices(im1.shape)

    def residuals(p):
        model = map_coordinates(
            im1 - mean, grid - p[:2, None, None], mode={"wrap": "grid-wrap"}.get(mode, mode)
        )
        return ((im2 - mean - model - p[2]) / 0.1).ravel()

    found = chi2_shift_leastsq(im1 - mean, im2 - mean, 0.1, mode, ignore_outside=False)
    expected = least_squares(residuals, [*map(float, found[1::-1]), 0.0], xtol=1e-13, ftol=1e-15, gtol=1e-13)
    np.testing.assert_allclose(found[1::-1], expected.x[:2], atol=2e-6)


@pytest.mark.long
def test_leastsq_bounds_and_crops():
    im1, im2 = windows((-4.3, 2.6))
    bounded = chi2_shift_leastsq(im1, im2, 0.1, maxoff=3, return_error=False)
    assert bounded[0] == -3
    dirty = im2.copy()
    dirty[:6], dirty[:, -6:] = 1e3, -1e3
    clean, framed = (chi2_shift_leastsq(im1, x, 0.1, maxoff=6) for x in (im2, dirty))
    np.testing.assert_allclose(framed, clean, atol=1e-5)


def test_leastsq_prints_its_steps(capsys):
    im1, im2 = windows((-1.3, 0.6))
    chi2_shift_leastsq(im1, im2, -0.1, verbose=True, guessx=-1.0)  # of an error the sign is ignored
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert lines[0].startswith("  0  x = -1.0")
    assert float(lines[-1].split("chi2 = ")[1]) < float(lines[0].split("chi2 = ")[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "torus"}, "mode must be one of"),
        ({"maxoff": 20}, "maxoff must be below"),
        ({"maxoff": -1}, "maxoff"),
    ],
)
def test_leastsq_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        chi2_shift_leastsq(*windows((0, 0)), 0.1, **options)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["nearest", "overlap"])
def test_grids_hold_the_minimum_for_every_boundary(boundary):
    im1, im2 = (x.astype(np.float32) for x in windows((6.2, -5.4)))
    for function, options, sign in (
        (chi2_shift, {"upsample_factor": 4}, -1),
        (chi2_shift, {"max_auto_size": 64}, -1),
        (chi2_shift_iterzoom, {}, 1),
    ):
        *shift, (x, y, grid) = function(
            im1, im2, 0.1, boundary=boundary, return_error=False, return_chi2array=True, **options
        )
        lowest = np.unravel_index(np.argmin(grid), grid.shape)
        assert all(0 < i < n - 1 for i, n in zip(lowest, grid.shape, strict=True))
        step = abs(x[0, 1] - x[0, 0])
        # The axes of the ellipse may lie askew to the grid's.
        np.testing.assert_allclose([sign * x[lowest], sign * y[lowest]], shift, atol=0.75 * step)
