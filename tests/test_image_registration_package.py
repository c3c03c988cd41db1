"""The package that stands for image_registration: its module paths, and its functions around the χ² ones."""

import importlib
import sys
import types
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from direct import hessian, moved, scene
from scipy.optimize import minimize

import jaxchi2.image_registration as image_registration
from jaxchi2 import chi2_shift, chi2_shift_iterzoom
from jaxchi2.image_registration import cross_correlation_shifts, register_images

# What image_registration 0.2.10 has, by module, less what the comparison page says is left out.
PATHS = {
    "": "chi2_shift chi2n_map chi2_shift_iterzoom cross_correlation_shifts register_images fft_tools",
    "chi2_shifts": (
        "chi2_shift chi2map_to_errors chi2_shift_iterzoom chi2n_map chi2_shift_leastsq per_iteration"
    ),
    "iterative_zoom": "iterative_zoom iterative_zoom_1d centers_to_edges",
    "cross_correlation_shifts": "cross_correlation_shifts",
    "register_images": "register_images",
    "fft_tools": "shift shift2d shiftnd correlate2d get_ffts dftups upsample_image zoom scale upsample",
    "fft_tools.shift": "shift2d shiftnd",
    "fft_tools.correlate2d": "correlate2d",
    "fft_tools.fast_ffts": "get_ffts",
    "fft_tools.upsample": "dftups dftups1d upsample_image odddftups",
    "fft_tools.zoom": "zoom1d zoom_on_pixel zoomnd",
    "fft_tools.scale": "fourier_interp1d fourier_interp2d fourier_interpnd",
}


@pytest.fixture
def installed():
    assert "image_registration" not in sys.modules
    image_registration.install()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "image_registration"]:
        del sys.modules[name]


@pytest.mark.parametrize("path", PATHS)
def test_every_name_is_in_its_module(path):
    module = importlib.import_module(f"jaxchi2.image_registration.{path}".rstrip("."))
    assert set(PATHS[path].split()) <= set(dir(module))


def test_alias_has_the_attributes_of_the_package():
    tools = image_registration.fft_tools
    assert tools.shift.shift2d is tools.shift2d
    assert tools.upsample.dftups is tools.dftups
    assert tools.correlate2d(np.eye(3), np.eye(3)).shape == (3, 3)
    assert image_registration.chi2_shifts.chi2_shift is image_registration.chi2_shift is chi2_shift
    assert callable(image_registration.iterative_zoom.iterative_zoom)


def test_import_lines_of_scripts(installed):
    import image_registration as found
    import image_registration.fft_tools.zoom as zoom
    from image_registration.chi2_shifts import chi2_shift as same
    from image_registration.fft_tools import dftups, shift, upsample_image
    from image_registration.fft_tools.shift import shift2d

    assert found is image_registration
    assert same is chi2_shift
    assert shift.shift2d is shift2d is image_registration.fft_tools.shift2d
    assert {f.__module__ for f in (dftups, upsample_image, zoom.zoomnd)} == {"jaxchi2.fourier"}
    image_registration.install()  # once more does no harm


def test_install_does_not_replace_the_package_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "image_registration", types.ModuleType("image_registration"))
    with pytest.raises(RuntimeError, match="imported already"):
        image_registration.install()


# Cross-correlation


def coefficient(reference, image, shift):
    """Correlation coefficient of an image with the reference moved, by the FFT in NumPy."""
    return np.corrcoef(moved(reference, shift).ravel(), image.ravel())[0, 1]


def best(reference, image, start):
    return minimize(lambda s: -coefficient(reference, image, s), start, method="Nelder-Mead", tol=1e-10).x


@pytest.fixture(scope="module")
def pair_of_planes():
    """Odd and even sides, unlike brightness and background."""
    reference = scene((15, 18), smooth=True, seed=1)
    noise = np.random.default_rng(2).normal(scale=0.2, size=reference.shape)
    return reference, 3 * (moved(reference, (2.3, -3.6)) + noise) + 10


def test_cross_correlation_is_at_its_maximum(pair_of_planes, x64):
    reference, image = pair_of_planes
    dx, dy, errx, erry = cross_correlation_shifts(reference, image, return_error=True)
    expected = best(reference, image, (2.3, -3.6))
    np.testing.assert_allclose([dy, dx], expected, atol=1e-6)
    # Zucker (2003, MNRAS 342, 1291): −½ N log(1 − C²) is the likelihood, here with N less two shifts, gain
    # and background.
    curvature = hessian(lambda s: np.log1p(-(coefficient(reference, image, s) ** 2)) / 2, expected, 1e-3)
    errors = np.sqrt(np.diag(np.linalg.inv(curvature * (reference.size - 4))))
    np.testing.assert_allclose([erry, errx], errors, rtol=1e-5)


def test_register_images_in_either_precision(pair_of_planes, dtype):
    reference, image = (x.astype(dtype) for x in pair_of_planes)
    dx, dy, errx, erry, registered = register_images(
        reference, image, 100, return_registered=True, return_error=True
    )
    found = cross_correlation_shifts(reference, image, return_error=True)
    np.testing.assert_array_equal([dx, dy, errx, erry], found)
    assert {x.dtype for x in (dx, erry, registered)} == {dtype}
    back = moved(pair_of_planes[1], (-float(dy), -float(dx)))
    np.testing.assert_allclose(registered, back, atol=1e-4)
    assert abs((dy - 2.3) / erry) < 5
    assert abs((dx + 3.6) / errx) < 5
    np.testing.assert_array_equal(register_images(reference, image), (dx, dy))


def test_old_calls_of_the_correlations(pair_of_planes, x64):
    """With every argument in the order of image_registration 0.2.10."""
    expected = cross_correlation_shifts(*pair_of_planes, return_error=True)
    with pytest.warns(DeprecationWarning, match="cross_correlation_shifts: gaussfit given"):
        found = cross_correlation_shifts(*pair_of_planes, None, None, None, False, False, True, True)
    np.testing.assert_array_equal(found, expected)
    with pytest.warns(DeprecationWarning, match="register_images: DEBUG, nthreads, use_numpy_fft given"):
        found = register_images(*pair_of_planes, 10, False, True, True, False, None, 1, False)
    np.testing.assert_array_equal(found, expected)


def test_correlations_under_jit_and_vmap(pair_of_planes, x64):
    reference, image = pair_of_planes
    images = np.stack([image, np.full_like(image, 7.0)])
    run = jax.jit(jax.vmap(partial(register_images, return_registered=True), in_axes=(None, 0)))
    dx, dy, registered = run(reference, images)
    alone = register_images(reference, image, return_registered=True)
    np.testing.assert_allclose((dx[0], dy[0]), alone[:2], rtol=1e-9)
    np.testing.assert_allclose(registered[0], alone[2], rtol=1e-9)
    assert np.isnan([dx[1], dy[1]]).all()  # a constant image has no maximum


def test_errors_of_both_images_count(x64):
    """Known errors are taken as they are, those of the two images as independent, a sign ignored."""
    reference = scene((15, 18), smooth=True, seed=1)
    rng = np.random.default_rng(3)
    one, two = (
        x + rng.normal(scale=s, size=x.shape)
        for x, s in ((reference, 0.1), (moved(reference, (1.2, -2)), 0.2))
    )
    dx, dy, errx, erry = cross_correlation_shifts(one, two, 0.1, -0.2, return_error=True)
    # The bound for noise of √(0.1² + 0.2²) in one image; what the noise hides of the scene adds a little.
    curvature = hessian(
        lambda s: ((reference - moved(reference, s)) ** 2).sum() / 2 / 0.05, np.zeros(2), 1e-3
    )
    bound = np.sqrt(np.diag(np.linalg.inv(curvature)))
    np.testing.assert_allclose([erry, errx], bound, rtol=0.15)
    assert abs((dx + 2) / errx) < 5
    assert abs((dy - 1.2) / erry) < 5


def test_maxoff_bounds_the_correlation(pair_of_planes, x64):
    """Of two maxima the lower, which is nearer."""
    reference, _ = pair_of_planes
    image = moved(reference, (1.2, -1.6)) + 2 * moved(reference, (6.0, 7.0))
    dx, dy = cross_correlation_shifts(reference, image, maxoff=3)
    np.testing.assert_allclose([dy, dx], best(reference, image, (1.2, -1.6)), atol=1e-6)


def test_bad_arguments_of_the_correlations(pair_of_planes):
    reference, image = pair_of_planes
    for bad, words in [
        ((reference, image[1:]), "image2 must have the shape of image1"),
        ((reference[0], image[0]), "image1 must be 2-dimensional"),
    ]:
        with pytest.raises(ValueError, match=words):
            register_images(*bad)


# The rest


@pytest.mark.parametrize("arr", [np.arange(3.0, 7.0), np.array([2.5, 2.0, 1.5])])
def test_edges_lie_between_centers(arr):
    edges = np.asarray(image_registration.iterative_zoom.centers_to_edges(arr))
    np.testing.assert_array_equal((edges[1:] + edges[:-1]) / 2, arr)
    np.testing.assert_array_equal(np.diff(edges), np.full(arr.shape, arr[1] - arr[0]))


def test_edges_need_two_centers():
    with pytest.raises(ValueError, match="arr must have one axis of at least 2"):
        image_registration.iterative_zoom.centers_to_edges([1.0])


def test_per_iteration_prints_a_step(capsys):
    parameters = {
        "x": SimpleNamespace(name="xshift", value=0.25),
        "y": SimpleNamespace(name="yshift", value=-1),
    }
    for i in (0, 99, 101, 110):
        image_registration.chi2_shifts.per_iteration(parameters, i, np.array([3.0, 4.0]), "more", key="word")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"step {i}: xshift = 0.25, yshift = -1, chi2 = 25" for i in (0, 99, 110)]


def test_sizes_are_not_cut_to_whole_numbers():
    with pytest.raises(ValueError, match="zoom_shape must be 2 static whole numbers of at least 2, got"):
        chi2_shift_iterzoom(np.eye(4), np.eye(4), zoom_shape=(10.7, 10))
    with pytest.raises(ValueError, match="zoomshape must be 2 static whole numbers"):
        image_registration.iterative_zoom.iterative_zoom(np.eye(4), zoomshape=(10, 10, 10))
