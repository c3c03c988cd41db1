"""Frames moved and averaged: flux, noise, holes."""

import numpy as np
import pytest
from direct import moved, scene
from scipy import ndimage

import jaxchi2
from jaxchi2.coadd import INTERPOLATIONS

SHAPE = (20, 23)
rng = np.random.default_rng(11)


def test_undoes_the_shift(dtype):
    """A smooth scene comes back, as well as its kernel can, and the rest is NaN."""
    y, x = np.indices((40, 41))
    big = np.exp(-((y - 19.0) ** 2 + (x - 21.0) ** 2) / 50)
    shifts = np.array([[1.4, -2.7], [0.0, 3.0], [-0.5, 0.25], [np.nan, 0.0]])
    stack = np.stack([moved(big, np.nan_to_num(s)) for s in shifts]).astype(dtype)
    # At the frame's edge, where the scene is 2e-3, what lies beyond is guessed.
    for kernel, tolerance in {"fourier": 2e-3, "cubic": 2e-3, "linear": 0.02, "nearest": 0.1}.items():
        found = jaxchi2.align_stack(stack, shifts, interpolation=kernel, batch_size=3)
        assert found.image.dtype == found.variance.dtype == dtype
        valid = np.isfinite(found.image)
        np.testing.assert_array_equal(valid, np.isfinite(found.variance))
        assert not valid[3].any()
        np.testing.assert_allclose(
            found.image[valid], np.broadcast_to(big, stack.shape)[valid], atol=tolerance
        )
        # Whole shifts lose what left the frame, others a pixel more.
        assert valid[0].sum() == (39 if kernel == "nearest" else 38) * 38
        assert valid[1].sum() == 40 * 38
        np.testing.assert_allclose(found.image[1, :, :38], stack[1, :, 3:], atol=100 * np.finfo(dtype).eps)


def test_cubic_and_linear_are_those_of_scipy(x64):
    image = scene(SHAPE, 3.0, seed=1)
    for kernel, order in {"cubic": 3, "linear": 1}.items():
        for shift in ([0.3, -0.4], [2.8, 1.5]):
            found = jaxchi2.align_stack(image[None], [shift], interpolation=kernel).image[0]
            expected = ndimage.shift(image, [-s for s in shift], order=order, mode="mirror")
            inside = (slice(5, -8), slice(6, -8))
            # The spline feels a frame's edge by a factor 0.27 less for every pixel.
            np.testing.assert_allclose(found[inside], expected[inside], atol=2e-2 if order == 3 else 1e-12)


@pytest.mark.long
@pytest.mark.parametrize("kernel", INTERPOLATIONS)
def test_variance_is_that_of_the_moved_noise(kernel):
    """Monte Carlo with a variance that differs from pixel to pixel, by a factor of 250 at one."""
    count, shift = 3000, [1.4, -0.7]
    variance = rng.uniform(0.2, 3.0, (30, 31))
    variance[15, 15] = 50.0
    noise = rng.normal(size=(count, 30, 31)) * np.sqrt(variance)
    found = jaxchi2.align_stack(noise, np.tile(shift, (count, 1)), variance, interpolation=kernel)
    inside = (slice(9, -9), slice(9, -9))
    ratio = np.var(np.asarray(found.image), 0)[inside] / found.variance[0][inside]
    # Each ratio scatters by √(2/3000) = 0.026; 156 of them within 0.15, 5.8 σ, but once in a million.
    assert np.all(np.abs(ratio - 1) < 0.15)
    # Near the edge, where what lies outside is filled from inside, it is at most a third too large.
    valid = np.isfinite(found.variance[0])
    ratio = np.var(np.asarray(found.image)[:, valid], 0) / found.variance[0][valid]
    assert 0.6 < ratio.min() < ratio.max() < 1.15


def test_kernels_keep_the_flux_and_change_the_noise_as_documented(x64):
    point = np.zeros((1, 41, 41))
    point[0, 20, 20] = 1.0
    factors = {"fourier": 1.0, "cubic": 0.7561, "linear": 0.5, "nearest": 1.0}
    for kernel, factor in factors.items():
        found = jaxchi2.align_stack(point, [[0.5, 0.0]], 1.0, interpolation=kernel)
        # A Fourier kernel falls as the inverse distance, a spline's is fitted beyond the frame too.
        tolerance = {"fourier": 3e-2, "cubic": 1e-3}.get(kernel, 1e-12)
        np.testing.assert_allclose(np.nansum(found.image), 1.0, atol=tolerance)
        np.testing.assert_allclose(found.variance[0, 20, 20], factor, atol=1e-2)


@pytest.mark.parametrize("shape", [(16, 18), (15, 17), (5, 6, 8)])
def test_periodic_frames_lose_nothing(shape, x64):
    image = scene(shape, 2.0, seed=4, smooth=True)
    shift = np.array([1.4, -7.8, 0.3][: len(shape)])
    variance = rng.uniform(0.5, 2.0, shape)
    found = jaxchi2.align_stack(moved(image, shift)[None], shift[None], variance, boundary="wrap")
    np.testing.assert_allclose(found.image[0], image, atol=1e-10)
    # By the definition: every pixel moved by itself, squared.
    expected = sum(
        variance[i] * np.asarray(jaxchi2.align(pixel.reshape(shape), shift, boundary="wrap")) ** 2
        for i, pixel in zip(np.ndindex(shape), np.eye(image.size), strict=True)
    )
    # Where two axes are at the Nyquist frequency together the two interpolants differ.
    np.testing.assert_allclose(found.variance[0], expected, atol=1e-10 if all(n % 2 for n in shape) else 3e-2)


def test_unknown_pixels_do_not_spread(x64):
    image = scene(SHAPE, 4.0, seed=4)[None]
    mask = np.zeros(SHAPE, bool)
    mask[9, 10] = True
    wild = image.copy()
    wild[0, 9, 10] = 1e9
    nan = image.copy()
    nan[0, 9, 10] = np.nan
    variance = np.ones((1, *SHAPE))
    variance[0, 9, 10] = np.inf
    ways = [(wild, 1.0, mask), (wild, 1.0, mask[None]), (nan, 1.0, None), (wild, variance, None)]
    results = [np.asarray(jaxchi2.align_stack(i, [[0.4, -0.3]], v, mask=m).image) for i, v, m in ways]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-12)
    plain = np.asarray(jaxchi2.align_stack(image, [[0.4, -0.3]]).image)
    lost = np.isnan(results[0]) & ~np.isnan(plain)
    assert lost.sum() == 4
    kept = ~np.isnan(results[0])
    assert np.max(np.abs(results[0] - plain)[kept]) < 0.2


def test_averages(dtype):
    images = rng.normal(size=(9, *SHAPE)).astype(dtype)
    variance = rng.uniform(0.5, 2.0, images.shape).astype(dtype)
    images[rng.random(images.shape) < 0.2] = np.nan
    images[:, 0, 0] = np.nan
    good = np.isfinite(images)
    weights = np.where(good, 1 / variance, 0.0)
    mean = jaxchi2.combine(images, variance)
    assert mean.image.dtype == dtype
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.nansum(weights * images, 0) / weights.sum(0)
        np.testing.assert_allclose(mean.image, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            mean.variance, np.where(good.any(0), 1 / weights.sum(0), np.nan), rtol=1e-5
        )
    np.testing.assert_array_equal(mean.number, good.sum(0))
    assert np.isnan(mean.image[0, 0])
    middle = jaxchi2.combine(images, variance, method="median")
    rest = (slice(1, None), slice(None))
    np.testing.assert_allclose(middle.image[rest], np.nanmedian(images[(slice(None), *rest)], 0), rtol=1e-6)
    wild = images.copy()
    wild[3, 5:9, 5:9] = 1e4
    clipped = jaxchi2.combine(wild, variance, method="clipped")
    without = images.copy()
    without[3, 5:9, 5:9] = np.nan
    np.testing.assert_allclose(
        clipped.image[5:9, 5:9], jaxchi2.combine(without, variance).image[5:9, 5:9], rtol=1e-5
    )


def test_variances_of_averages_are_right():
    """Monte Carlo over the pixels: 2 % of the variance is six deviations of 200 000."""
    variance = np.array([0.5, 1.0, 2.0, 1.0, 1.5, 0.7, 1.0, 3.0, 1.0, 1.0, 0.9])
    images = rng.normal(size=(11, 400, 500)) * np.sqrt(variance)[:, None, None]
    for method in ("mean", "clipped"):
        found = jaxchi2.combine(images, variance, method=method, clip=6.0)
        np.testing.assert_allclose(np.var(found.image), found.variance[0, 0], rtol=0.02)
    found = jaxchi2.combine(images / np.sqrt(variance)[:, None, None], method="median")
    # Of eleven values the asymptotic π/2 is 5 % too large.
    np.testing.assert_allclose(np.var(found.image), found.variance[0, 0], rtol=0.07)


def test_bad_input_raises():
    stack = np.zeros((3, 8, 9))
    for given, message in [
        ({"stack": stack[0]}, "stack must have shape"),
        ({"shift": np.zeros((2, 2))}, r"shift must have one row per frame, shape \(3, 2\), not \(2, 2\)"),
        ({"interpolation": "sinc"}, "interpolation must be one of"),
        ({"boundary": "nearest"}, "boundary must be 'overlap' or 'wrap'"),
        ({"variance": np.ones(5)}, "variance must be a scalar"),
        ({"mask": np.zeros((8, 8), bool)}, "mask must have the shape of a frame"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxchi2.align_stack(**({"stack": stack, "shift": np.zeros((3, 2))} | given))
    for given, message in [
        ({"images": np.zeros(3)}, "images must be at least 2-dimensional"),
        ({"variance": np.ones(5)}, "variance must be a scalar, one per frame"),
        ({"method": "mode"}, "method must be one of"),
        ({"clip": 0}, "clip must be a positive number"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxchi2.combine(**({"images": stack} | given))
