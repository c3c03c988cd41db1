"""The Fourier primitives against their defining sums and against image_registration."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxchi2 import fourier
from jaxchi2.fourier import (
    accept_obsolete,
    as_real_array,
    correlate2d,
    dftups,
    dftups1d,
    fourier_interp1d,
    fourier_interp2d,
    fourier_interpnd,
    odddftups,
    product_modulo,
    shift2d,
    shiftnd,
    upsample_image,
    zoom1d,
    zoom_on_pixel,
    zoomnd,
)

SHAPES = [(9,), (8,), (7, 9), (6, 8), (8, 5), (3, 4, 6)]
# Compiling is what takes the time here, so float32 sees a selection.
CASES = [("float64", shape) for shape in SHAPES] + [("float32", shape) for shape in SHAPES[1:4]]
# Rounding in units of the largest value: a few eps per FFT pass and matrix product.
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def close(actual, expected, dtype, factor=1.0):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype in (dtype, np.result_type(dtype, np.complex64))
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=factor * TOLERANCE[dtype.name] * abs(expected).max()
    )


def interpolant(f, points):
    """Sum the complex interpolant at each of the points (P, ndim), term by term, Nyquist at -1/2."""
    transform = np.fft.fftn(f) / f.size
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in f.shape), indexing="ij")
    phase = sum(np.multiply.outer(x, k) for x, k in zip(np.transpose(points), frequencies, strict=True))
    return (np.exp(2j * np.pi * phase) * transform).sum(axis=tuple(range(1, f.ndim + 1)))


def on_grid(f, *vectors):
    points = np.stack(np.meshgrid(*vectors, indexing="ij"), axis=-1)
    return interpolant(f, points.reshape(-1, f.ndim)).reshape(points.shape[:-1])


def displaced(f, offset, phase=0.0):
    """Shift as a complex sum over the frequencies."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in f.shape), indexing="ij")
    angle = sum(2 * np.pi * k * s for k, s in zip(frequencies, offset, strict=True)) + phase
    return np.fft.ifftn(np.fft.fftn(f) * np.exp(-1j * angle))


def correlation(a, b, boundary):
    """Sum the products for every shift, one at a time."""
    mode = {"wrap": "wrap", "fill": "constant"}[boundary]
    continued = np.pad(a, [(n, n) for n in a.shape], mode=mode)
    out = np.empty(a.shape)
    for index in np.ndindex(a.shape):
        shift = [(n - 1) // 2 - k for n, k in zip(a.shape, index, strict=True)]
        moved = continued[tuple(slice(n - s, 2 * n - s) for n, s in zip(a.shape, shift, strict=True))]
        out[index] = (moved * b).sum()
    return out


# The arrays of image_registration.


@pytest.mark.parametrize("boundary", ["wrap", "fill"])
def test_correlate2d_reference(reference, dtype, boundary):
    im1, im2 = (reference[f"correlate2d/{name}"].astype(dtype) for name in ("im1", "im2"))
    close(correlate2d(im1, im2, boundary=boundary), reference[f"correlate2d/{boundary}"], dtype)


@pytest.mark.parametrize("case", ["odd", "even", "mixed"])
def test_shift_reference(reference, dtype, case):
    im = reference[f"shift_{case}/im"].astype(dtype)
    dx, dy = reference[f"shift_{case}/dx_dy"]
    expected = reference[f"shift_{case}/shifted"]
    close(shift2d(im, dx, dy), expected, dtype)
    close(shiftnd(im, (dy, dx)), expected, dtype)
    close(shift2d(im, dx, dy, phase=0.4), reference[f"shift_{case}/shifted_phase0.4"], dtype)
    close(
        shift2d(im, dx, dy, return_real=False, return_abs=True), reference[f"shift_{case}/shifted_abs"], dtype
    )


@pytest.mark.parametrize(("case", "offset"), [("1d", (1.3,)), ("3d", (1, -0.4, 2.2))])
def test_shift_reference_other_ranks(reference, dtype, case, offset):
    close(
        shiftnd(reference[f"shift_{case}/x"].astype(dtype), offset), reference[f"shift_{case}/shifted"], dtype
    )


ZOOMS = {
    "a": {},
    "b": {"usfac": 4, "outshape": (9, 11), "offsets": (0.3, -0.2)},
    "c": {"usfac": 2.5, "outshape": (8, 8), "offsets": (1.5, -2.25)},
    "d": {"usfac": 8, "outshape": (10, 10), "offsets": (-1.0, 2.0), "middle_convention": np.floor},
    "e": {"usfac": 3, "outshape": (7, 6), "offsets": (0.0, 0.0), "middle_convention": math.ceil},
    "f": {"usfac": 2, "outshape": (24, 26)},
}


@pytest.mark.parametrize("case", ["odd", "even", "mixed"])
def test_zoomnd_reference(reference, dtype, case):
    # Each zoom is compiled for itself; in float32 two are enough.
    for zoom in "bd" if dtype == np.float32 else ZOOMS:
        (y, x), z = zoomnd(reference[f"zoomnd_{case}/im"].astype(dtype), return_xouts=True, **ZOOMS[zoom])
        expected = {name: reference[f"zoomnd_{case}/{zoom}_{name}"] for name in "yxz"}
        close(z, expected["z"], dtype)
        close(y, np.broadcast_to(expected["y"][:, None], y.shape), dtype)
        close(x, np.broadcast_to(expected["x"][None, :], x.shape), dtype)


def test_zoom_on_pixel_reference(reference, dtype):
    im = reference["zoomnd_mixed/im"].astype(dtype)
    (y, x), z = zoom_on_pixel(im, (3.25, 9.5), usfac=6, outshape=(5, 8), return_xouts=True)
    close(z, reference["zoom_on_pixel/z"], dtype)
    close(y[:, 0], reference["zoom_on_pixel/y"], dtype)
    close(x[0], reference["zoom_on_pixel/x"], dtype)


def test_zoom1d_reference(reference, dtype):
    x, z = zoom1d(reference["zoom1d/s"].astype(dtype), usfac=3, outsize=7, offset=1.5, return_xouts=True)
    close(x, reference["zoom1d/x"], dtype)
    close(z, reference["zoom1d/z"], dtype)


def test_upsample_reference(reference, dtype):
    im = reference["upsample/im"].astype(dtype)
    close(upsample_image(im, 3), reference["upsample/us3_real"], dtype)
    window = upsample_image(im, 10, output_size=(6, 8), yshift=-25, xshift=13)
    close(window, reference["upsample/us10_win_real"], dtype)
    spectrum = np.fft.fft2(im).astype(np.result_type(dtype, np.complex64))
    expected = reference["upsample/dftups_re"] + 1j * reference["upsample/dftups_im"]
    for function in (dftups, odddftups):
        close(function(spectrum, 5, 6, 4, roff=2, coff=-1), expected, dtype)


# The defining sums.


@pytest.mark.parametrize("boundary", ["wrap", "fill"])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 6), (5, 2, 4)])
def test_correlate2d_sums(dtype, shape, boundary):
    a, b = noise(shape, 1), noise(shape, 2)
    expected = correlation(a, b, boundary)
    close(correlate2d(a.astype(dtype), b.astype(dtype), boundary), expected, dtype)


@pytest.mark.parametrize(("dtype", "shape"), CASES, indirect=["dtype"])
def test_shiftnd_sums(dtype, shape):
    f = noise(shape)
    offset = np.array([1.375, -2.75, 40.5])[: f.ndim]
    expected = displaced(f, offset, 0.25)
    close(shiftnd(f.astype(dtype), offset, 0.25), expected.real, dtype)
    close(shiftnd(f.astype(dtype), offset, 0.25, return_real=False), expected, dtype)


@pytest.mark.parametrize(("dtype", "shape"), CASES, indirect=["dtype"])
def test_zoomnd_sums(dtype, shape):
    f = noise(shape)
    offsets = np.array([0.5, -7.25, 20.0])[: f.ndim]
    outshape = (4, 3, 5)[: f.ndim]
    x, z = zoomnd(f.astype(dtype), offsets, usfac=4, outshape=outshape, return_xouts=True)
    vectors = [
        (n - 1) / 2 + s + (np.arange(m) - (m - 1) / 2) / 4
        for n, s, m in zip(shape, offsets, outshape, strict=True)
    ]
    close(x, np.stack(np.meshgrid(*vectors, indexing="ij")), dtype)
    expected = on_grid(f, *vectors)
    close(z, expected.real, dtype)


@pytest.mark.parametrize(("dtype", "shape"), [*CASES[1::2], ("float32", (6, 8))], indirect=["dtype"])
def test_interpnd_at_points(dtype, shape):
    f = noise(shape)
    points = np.random.default_rng(3).uniform(-5, 20, size=(f.ndim, 20, 15)).astype(np.float32)
    expected = interpolant(f, points.reshape(f.ndim, -1).T.astype(float)).reshape(20, 15)
    # image_registration has the complex form with Nyquist at +1/2.
    close(fourier_interpnd(f.astype(dtype), points, return_real=False), expected.conj(), dtype, factor=3)


def test_interp2d_on_a_grid(dtype):
    f = noise((6, 7))
    vectors = np.linspace(-3, 11, 4), np.linspace(2, 9, 5)
    close(fourier_interp2d(f.astype(dtype), vectors), on_grid(f, *vectors).real, dtype, factor=3)
    close(fourier_interp2d(f.astype(dtype), (np.arange(6), np.arange(7))), f, dtype)


def test_zoom1d_complex_form(dtype):
    f = noise(6)
    z = zoom1d(f.astype(dtype), usfac=4, outsize=7, offset=1.5, return_real=False)
    close(z, on_grid(f, 4 + np.arange(-3, 4) / 4).conj(), dtype)


def test_interp1d_support(dtype):
    f = noise(10)
    x = np.array([3.25, 4.0, 7.4375, 9.5])  # the last beyond the support, which ends at 7.5
    expected = on_grid(f, 2 * (x - 3)).real
    close(fourier_interp1d(f.astype(dtype), x, 3 + np.arange(10) / 2), expected, dtype)
    close(
        fourier_interp1d(f[::-1].astype(dtype), x, 3 + np.arange(10)[::-1] / 2),
        on_grid(f[::-1], 9 - 2 * (x - 3)).real,
        dtype,
    )
    support = np.array([0, 1, 2, 4, 5, 6, 7, 8, 9, 10])
    uneven = fourier_interp1d(f.astype(dtype), np.array([0.5, 3, 4, 9.5]), support)
    close(uneven, on_grid(f, np.array([0.5, 2.5, 3, 8.5])).real, dtype)


@pytest.mark.parametrize("n", [7, 8])
def test_dftups1d_sums(dtype, n):
    spectrum = np.fft.ifft(noise(n))
    x = (np.arange(5) + 1.5) / 4
    expected = np.exp(-2j * np.pi * np.outer(x, np.fft.fftfreq(n))) @ spectrum
    given = spectrum.astype(np.result_type(dtype, np.complex64))
    positions, found = dftups1d(given, 4, np.ceil(4.5), 1.5, return_xouts=True)
    close(found, expected, dtype)
    np.testing.assert_array_equal(positions, x)
    close(dftups1d(given), np.fft.fft(spectrum), dtype)
    close(dftups1d(given.real), np.fft.fft(spectrum.real), dtype)


def test_sizes_may_be_whole_floats():
    """Old scripts compute them: ``dftups(F, np.ceil(7.5), ...)``."""
    spectrum = np.fft.ifft2(IM)
    np.testing.assert_array_equal(dftups(spectrum, np.ceil(2.5), 4.0, 2), dftups(spectrum, 3, 4, 2))
    np.testing.assert_array_equal(zoomnd(IM, outshape=np.array([3.0, 4.0])), zoomnd(IM, outshape=(3, 4)))
    np.testing.assert_array_equal(zoom1d(IM[0], outsize=2.0), zoom1d(IM[0], outsize=2))
    np.testing.assert_array_equal(upsample_image(IM, 2, np.float32(5)), upsample_image(IM, 2, 5))


def test_upsample_keeps_samples_and_rounds_size_up(dtype):
    f = noise((6, 8)).astype(dtype)
    close(upsample_image(f, 4)[::4, ::4], f, dtype)
    assert jax.eval_shape(lambda im: upsample_image(im, 2.3), f).shape == (14, 19)
    assert jax.eval_shape(lambda im: upsample_image(im, 2, output_size=5), f).shape == (5, 5)


def test_shift_is_roll_and_inverse(dtype):
    odd, even = noise((7, 9)).astype(dtype), noise((8, 6)).astype(dtype)
    close(shiftnd(odd, (3, -2)), np.roll(odd, (3, -2), (0, 1)), dtype)
    close(shiftnd(even, (3, -2)), np.roll(even, (3, -2), (0, 1)), dtype)
    close(shiftnd(shiftnd(odd, (0.5, 0.3)), (-0.5, -0.3)), odd, dtype)
    checkers = (-1.0) ** np.indices((8, 6)).sum(axis=0)  # both axes at Nyquist: cos(π(x + y))
    close(shiftnd(checkers.astype(dtype), (0.5, -0.5)), checkers, dtype)
    assert abs(np.asarray(shiftnd(checkers.astype(dtype), (0.5, 0.0)))).max() < 10 * TOLERANCE[dtype.name]


# Precision.


def test_float32_phase_does_not_lose_digits_with_size():
    n, shift = 2048, float(np.float32(1000.37))
    f = noise(n).astype(np.float32)
    error = np.asarray(shiftnd(f, (shift,))) - displaced(f.astype(float), (shift,)).real
    assert abs(error).max() < 3e-6  # of values up to 3.5; phases formed as k * shift give 3e-4
    x = 1500 + np.arange(64) / 64  # exact in float32
    zoomed = zoomnd(f, (1500 - 1023.5,), usfac=64, outshape=(127,))[63:]
    assert abs(np.asarray(zoomed) - on_grid(f.astype(float), x).real).max() < 3e-6
    # A step of 1/100 is not: the grid keeps its digits because no position is ever formed.
    x = 1500 + (np.arange(101) - 50) / 100
    zoomed = zoom_on_pixel(f, (1500,), usfac=100, outshape=(101,))
    assert abs(np.asarray(zoomed) - on_grid(f.astype(float), x).real).max() < 3e-6


def test_axes_beyond_16_bits(x64):
    n = 100_003
    f = np.cos(2 * np.pi * 40_000 * np.arange(n) / n)
    expected = np.cos(2 * np.pi * 40_000 * ((np.arange(n) - 76_543.25) % n) / n)
    np.testing.assert_allclose(shiftnd(f, (76_543.25,)), expected, atol=1e-8)


@pytest.mark.parametrize(
    "n", [2, 7, 46_340, 46_341, 65_537, 1_000_000, 2**20 + 7, 2**24 - 3, 2**30 - 35, 2**30]
)
def test_products_modulo_stay_in_32_bits(n):
    rng = np.random.default_rng(n)
    a, b = (np.append(rng.integers(0, n, 200), [0, n - 1]) for _ in range(2))
    found = product_modulo(jnp.asarray(a, np.int32), jnp.asarray(b, np.int32), n)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, [int(x) * int(y) % n for x, y in zip(a, b, strict=True)])


# Transformations.

CALLS = {
    "correlate2d": lambda f, s: correlate2d(f, f[::-1]),
    "shiftnd": lambda f, s: shiftnd(f, s),
    "shift2d": lambda f, s: shift2d(f, s[0], s[1], phase=s[1]),
    "zoomnd": lambda f, s: zoomnd(f, s, usfac=1 + s[0] ** 2, outshape=(3, 4)),
    "zoomnd tuple": lambda f, s: zoomnd(f, (s[0], s[1]), usfac=3, outshape=(3, 4)),
    "zoom1d": lambda f, s: zoom1d(f[0], 2.5, 4, s[0]),
    "zoom_on_pixel": lambda f, s: zoom_on_pixel(f, s, 3, (3, 4)),
    "dftups": lambda f, s: jnp.abs(dftups(jnp.fft.ifft2(f), 3, 4, 2, s[0], s[1])),
    "upsample_image": lambda f, s: upsample_image(f, 1 + s[0] ** 2, (3, 4), xshift=s[1]),
    "fourier_interp1d": lambda f, s: fourier_interp1d(f[0], s),
    "fourier_interp2d": lambda f, s: fourier_interp2d(f, (s, s[:1])),
    "fourier_interpnd": lambda f, s: fourier_interpnd(f, jnp.stack([s[None], 2 * s[None]])),
}


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
@pytest.mark.parametrize("name", CALLS)
def test_jit_and_vmap(dtype, name):
    call = CALLS[name]
    frames = jnp.asarray(noise((3, 6, 7)), dtype)
    shifts = jnp.asarray([[0.3, -1.4], [2.7, 0.9], [-0.6, 5.2]], dtype)
    loop = np.stack([call(f, s) for f, s in zip(frames, shifts, strict=True)])
    close(jax.vmap(call)(frames, shifts), loop, dtype)
    close(jax.jit(call)(frames[0], shifts[0]), loop[0], dtype)
    if name in ("shiftnd", "zoomnd"):
        fixed = np.stack([call(frames[0], s) for s in shifts])
        close(jax.jit(jax.vmap(call, in_axes=(None, 0)))(frames[0], shifts), fixed, dtype)


@pytest.mark.parametrize("name", ["shiftnd", "zoomnd", "dftups"])
def test_gradients(x64, name):
    f, s = jnp.asarray(noise((4, 5))), jnp.asarray([0.3, -1.4])
    check_grads(jax.jit(CALLS[name]), (f, s), order=1, modes=("fwd", "rev"))


def test_second_derivative_in_the_shift(x64):
    f, shift = noise((4, 5)), np.array([0.3, -1.4])
    hessian = jax.jit(jax.hessian(lambda s: shiftnd(f, s)))(shift)
    transform, k = (
        np.fft.fft2(f),
        2 * np.pi * np.stack(np.meshgrid(np.fft.fftfreq(4), np.fft.fftfreq(5), indexing="ij")),
    )
    terms = -transform * np.exp(-1j * np.tensordot(shift, k, 1)) * k[:, None] * k[None, :]
    expected = np.moveaxis(np.fft.ifft2(terms).real, (0, 1), (2, 3))
    np.testing.assert_allclose(hessian, expected, atol=1e-12)


# Inputs.


def test_not_finite_counts_as_zero_in_shift_and_correlation(dtype):
    f = noise((6, 7)).astype(dtype)
    bad, zero = f.copy(), f.copy()
    bad[2, 3], bad[4, 1] = np.nan, np.inf
    zero[2, 3] = zero[4, 1] = 0
    close(shiftnd(bad, (0.3, 1.2)), np.asarray(shiftnd(zero, (0.3, 1.2))), dtype)
    close(correlate2d(bad, f), np.asarray(correlate2d(zero, f)), dtype)
    assert np.isnan(zoomnd(bad)).all()


@pytest.mark.parametrize(
    "given", ["bool", "uint16", ">i4", "int64", "float16", "bfloat16", ">f4", ">f8", "f8"]
)
def test_as_real_array(dtype, given):
    given = np.dtype(jnp.bfloat16 if given == "bfloat16" else given)
    array = as_real_array(np.array([[0, 1], [1, 0]]).astype(given), "image")
    narrow = given.name in ("float16", "bfloat16", "float32")
    assert array.dtype == (np.float32 if narrow else dtype)
    np.testing.assert_array_equal(array, [[0, 1], [1, 0]])


def test_as_real_array_masks_and_sequences(dtype):
    masked = np.ma.MaskedArray([1, 2, 3], mask=[0, 1, 0])
    np.testing.assert_array_equal(as_real_array(masked, "image"), [1, np.nan, 3])
    np.testing.assert_array_equal(as_real_array([masked, masked], "image"), [[1, np.nan, 3]] * 2)
    np.testing.assert_array_equal(as_real_array([2**40, 1], "image"), [2**40, 1])
    assert as_real_array((jnp.asarray(1.0), 2), "image").dtype == dtype
    assert not as_real_array(1.0, "err").weak_type


@pytest.mark.parametrize(
    "bad", [np.ones(3, complex), jnp.ones(3, np.complex64), ["a"], [None], np.array("2000", "M8")]
)
def test_as_real_array_refuses(bad):
    with pytest.raises(TypeError, match="image must be an array of real numbers, not "):
        as_real_array(bad, "image")


IM = np.ones((4, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: correlate2d(IM, IM[1:]), ValueError, r"im1 and im2 .* \(4, 5\) and \(3, 5\)"),
        (
            lambda: correlate2d(IM, IM, "extend"),
            ValueError,
            r"boundary must be one of \('wrap', 'fill'\), not 'extend'",
        ),
        (lambda: correlate2d(IM * 1j, IM), TypeError, "im1"),
        (lambda: shiftnd(1.0, ()), ValueError, r"data must be at least 1-dimensional .* \(\)"),
        (lambda: shiftnd(IM[:0], (1, 1)), ValueError, r"data must be .* not empty, not of shape \(0, 5\)"),
        (
            lambda: shiftnd(IM, (1.0,)),
            ValueError,
            r"offset must hold one value per axis, shape \(2,\), not \(1,\)",
        ),
        (lambda: shiftnd(IM, (1.0, 1.0), phase=[1.0]), ValueError, "phase must be a scalar"),
        (lambda: shift2d(IM[0], 1, 1), ValueError, r"data must be 2-dimensional .* \(5,\)"),
        (lambda: shift2d(IM, (1, 2), 1), ValueError, "deltax must be a scalar"),
        (lambda: zoomnd(IM, (1, 2, 3)), ValueError, "offsets must hold one value per axis"),
        (lambda: zoomnd(IM, usfac=(2, 2)), ValueError, "usfac must be a positive scalar"),
        (lambda: zoom1d(IM), ValueError, "inp must be 1-dimensional"),
        (lambda: zoom_on_pixel(IM, 3.0), ValueError, "coordinates must hold one value per axis"),
        (lambda: dftups(IM[0]), ValueError, "inp must be 2-dimensional"),
        (lambda: zoomnd(IM, outshape=(3, 3, 3)), ValueError, "outshape must be 2 static whole numbers"),
        (lambda: zoomnd(IM, outshape=(3, 0)), ValueError, "outshape must be 2 static whole numbers"),
        (lambda: zoomnd(IM, outshape=(3, 2.5)), ValueError, "outshape must be 2 static whole numbers"),
        (lambda: zoom1d(IM[0], outsize=True), ValueError, "outsize must be a static whole number of at"),
        (lambda: dftups(IM, noc=0), ValueError, "noc must be a static whole number of at least 1, got 0"),
        (lambda: dftups(IM, np.inf), ValueError, "nor must be a static whole number of at least 1, got inf"),
        (lambda: dftups1d(IM), ValueError, "inp must be 1-dimensional"),
        (lambda: jax.jit(lambda u: upsample_image(IM, u))(2.0), ValueError, "output_size must be given"),
        (lambda: fourier_interp1d(IM[0], IM), ValueError, "out_x must be 1-dimensional"),
        (
            lambda: fourier_interp1d(IM[0], [1.0], [1.0]),
            ValueError,
            r"data_x must have the shape of data, \(5,\)",
        ),
        (
            lambda: fourier_interp2d(IM, np.ones((3, 4, 5))),
            ValueError,
            "outinds must be one array of positions per axis",
        ),
        (
            lambda: fourier_interp2d(IM, np.ogrid[:3, :4]),
            ValueError,
            "outinds must be vectors or arrays of one",
        ),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Arguments without effect.

OLD_CALLS = {
    "correlate2d": ((IM, IM, "fill", 2, True), lambda: correlate2d(IM, IM, "fill")),
    "shiftnd": (
        (IM, (1.0, 0.5), 0.1, 2, True, True, False),
        lambda: shiftnd(IM, (1.0, 0.5), 0.1, return_abs=True, return_real=False),
    ),
    "shift2d": (
        (IM, 1, 0.5, 0.1, 2, True, False, False),
        lambda: shift2d(IM, 1, 0.5, 0.1, return_real=False),
    ),
    "zoom1d": ((IM[0], 2, 3, 1, 2, True, True), lambda: zoom1d(IM[0], 2, 3, 1, return_xouts=True)),
    "zoom_on_pixel": (
        (IM, (1, 2), 2, (3, 3), 2, True, False),
        lambda: zoom_on_pixel(IM, (1, 2), 2, (3, 3), return_real=False),
    ),
    "upsample_image": (
        (IM, 2, (3, 4), 2, True, 5, 6),
        lambda: upsample_image(IM, 2, (3, 4), xshift=5, yshift=6),
    ),
    "fourier_interp1d": (
        (IM[0], [1.5], None, 2, True, False),
        lambda: fourier_interp1d(IM[0], [1.5], return_real=False),
    ),
    "fourier_interp2d": (
        (IM, ([1.5], [2]), 2, True, False),
        lambda: fourier_interp2d(IM, ([1.5], [2]), return_real=False),
    ),
    "fourier_interpnd": (
        (IM, ([1.5], [2]), 2, True, False),
        lambda: fourier_interpnd(IM, ([1.5], [2]), return_real=False),
    ),
}


@pytest.mark.parametrize("name", OLD_CALLS)
def test_old_positions(name):
    old, new = OLD_CALLS[name]
    with pytest.warns(
        DeprecationWarning, match=f"{name}: nthreads, use_numpy_fft given, which has no effect"
    ):
        result = getattr(fourier, name)(*old)
    jax.tree.map(np.testing.assert_array_equal, result, new())


@pytest.mark.parametrize("name", fourier.__all__)
def test_obsolete_keywords(name):
    function = getattr(fourier, name)
    arguments = {
        "correlate2d": (IM, IM),
        "shiftnd": (IM, (1, 1)),
        "shift2d": (IM, 1, 1),
        "zoom1d": (IM[0],),
        "dftups1d": (IM[0],),
        "zoom_on_pixel": (IM, (1, 1)),
        "fourier_interp1d": (IM[0], [1.0]),
        "fourier_interp2d": (IM, ([1.0], [1.0])),
        "fourier_interpnd": (IM, ([1.0], [1.0])),
    }.get(name, (IM,))
    expected = function(*arguments)
    for obsolete in ("nthreads", "use_numpy_fft", "allow_huge"):
        assert obsolete not in inspect.signature(function).parameters
        with pytest.warns(DeprecationWarning, match=f"{name}: {obsolete} given") as record:
            result = function(*arguments, **{obsolete: 1})
        assert record[0].filename == __file__
        np.testing.assert_array_equal(result, expected)


def test_accept_obsolete_refuses_what_python_would():
    @accept_obsolete(dead=1)
    def double(x, *, negative=False):
        """Docstring."""
        return -2 * x if negative else 2 * x

    assert double.__doc__ == "Docstring."
    assert str(inspect.signature(double)) == "(x, *, negative=False)"
    assert double(1, negative=True) == -2
    with pytest.warns(DeprecationWarning, match="double: dead given"):
        assert double(1, None, True) == -2
    with pytest.raises(TypeError, match="takes 3 arguments, got 4"):
        double(1, 2, 3, 4)
    with pytest.raises(TypeError, match="got dead twice"):
        double(1, 2, dead=3)
    with pytest.raises(TypeError, match="unexpected"):
        double(1, other=3)
