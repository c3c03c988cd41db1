"""align: an inverse of the shift that register measures, and scipy's other ways to interpolate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from direct import scene
from jax.test_util import check_grads

import jaxchi2
from jaxchi2 import Affine, Boundary, Rigid, Shift, Similarity, align, fit
from jaxchi2.align import ORDERS
from jaxchi2.coadd import INTERPOLATIONS
from jaxchi2.fourier import shiftnd

register = partial(jaxchi2.register, boundary="wrap")

SHAPES = {(15,): (2.3,), (12, 13): (-3.4, 1.7), (5, 6, 7): (0.6, -1.3, 2.2)}
# scipy interpolates towards the pixels outside the frame in these two modes only under other names.
SCIPY_MODES = {
    "wrap": "grid-wrap",
    "constant": "grid-constant",
    "nearest": "nearest",
    "reflect": "reflect",
}


def scipy_align(image, shift, order, mode):
    points = np.meshgrid(*(np.arange(n) + s for n, s in zip(image.shape, shift, strict=True)), indexing="ij")
    return scipy.ndimage.map_coordinates(image, points, order=order, mode=SCIPY_MODES[mode], cval=0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_fourier_undoes_shift(shape, dtype):
    image = scene(shape, slope=1, smooth=True).astype(dtype)
    aligned = align(shiftnd(image, SHAPES[shape]), SHAPES[shape], boundary="wrap")
    assert aligned.dtype == dtype
    np.testing.assert_allclose(aligned, image, rtol=0, atol=20 * np.finfo(dtype).eps * abs(image).max())


def test_whole_pixels_roll(x64):
    image = np.random.default_rng(0).normal(size=(8, 9))
    expected = np.roll(image, (-2, 3), (0, 1))
    np.testing.assert_allclose(align(image, (2, -3), boundary="wrap"), expected, rtol=0, atol=1e-13)
    found = align(image, (2, -3), interpolation="nearest", boundary="wrap")
    np.testing.assert_array_equal(found, expected)
    expected[-2:], expected[:, :3] = np.nan, np.nan
    for name in INTERPOLATIONS:
        np.testing.assert_allclose(align(image, (2, -3), interpolation=name), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(15,), (14, 17), (7, 8, 9)])
def test_what_lies_outside_is_unknown(name, shape, dtype):
    """By default, whatever interpolates: NaN where a pixel beside the position lies outside."""
    image = scene(shape, slope=2, smooth=True).astype(dtype)
    shift = np.array([-2.3, 3.6, 1.2])[: len(shape)]
    found = np.asarray(align(image, shift, interpolation=name))
    positions = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) + shift
    low, high = (np.rint(positions),) * 2 if name == "nearest" else (np.floor(positions), np.ceil(positions))
    known = np.all((low >= 0) & (high < np.array(shape)), -1)
    np.testing.assert_array_equal(np.isfinite(found), known)
    if name in ("linear", "nearest"):
        continued = align(image, shift, interpolation=name, boundary="nearest")
        tolerance = 20 * np.finfo(dtype).eps * abs(image).max()
        np.testing.assert_allclose(found[known], np.asarray(continued)[known], rtol=0, atol=tolerance)
    assert found.dtype == dtype
    assert np.isnan(align(image, np.full(len(shape), np.nan))).all()


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_grid_of_a_reference_of_another_shape(name, x64):
    """A small image that lies far from the reference's corner, and a large one."""
    big = scene((60, 70), slope=3, smooth=True)
    small = big[21:41, 33:51]
    onto = np.asarray(align(small, (-21.0, -33.0), interpolation=name, shape=big.shape))
    expected = np.full(big.shape, np.nan)
    expected[21:41, 33:51] = small
    np.testing.assert_allclose(onto, expected, rtol=0, atol=1e-10)
    back = align(big, (21.0, 33.0), interpolation=name, shape=small.shape)
    np.testing.assert_allclose(back, small, rtol=0, atol=1e-10)


def test_whole_results_are_named(x64):
    """What to pass of a result instead of the result, for each kind that there is."""
    image = scene((12, 13), slope=2, smooth=True)
    found = register(image, image, 1.0, verdict=False)
    with pytest.raises(TypeError, match=r"of this Registration pass its \.shift"):
        align(image, found)
    with pytest.raises(TypeError, match=r"of this Registration pass its \.shift"):
        jaxchi2.align_stack(image[None], found)
    fitted = jaxchi2.Fit(*[None] * len(jaxchi2.Fit._fields))
    with pytest.raises(TypeError, match=r"of this Fit pass its \.motion"):
        align(image, fitted)


def test_aligns_what_register_measured(x64):
    reference = scene((17, 18), slope=2, smooth=True)
    noise = 1e-3 * np.random.default_rng(1).normal(size=(17, 18))
    image = shiftnd(reference, (2.4, -3.7)) + noise
    result = register(reference, image, 1e-3)
    np.testing.assert_allclose(result.shift, (2.4, -3.7), rtol=0, atol=1e-2)
    np.testing.assert_allclose(align(image, result.shift, boundary="wrap"), reference, rtol=0, atol=0.01)


@pytest.mark.parametrize("mode", SCIPY_MODES)
@pytest.mark.parametrize("name", ["nearest", "linear"])
def test_equals_scipy(name, mode, x64):
    image = np.random.default_rng(2).normal(size=(7, 9))
    # Up to more than the frame, so that what lies outside is seen more than once.
    for shift in [(0.3, -0.2), (-2.6, 3.9), (8.2, -20.7)]:
        expected = scipy_align(image, shift, ORDERS[name], mode)
        np.testing.assert_allclose(
            align(image, shift, interpolation=name, boundary=mode), expected, rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("mode", ["wrap", "constant", "nearest", "reflect"])
def test_cubic_equals_scipy(mode, x64):
    image = np.random.default_rng(2).normal(size=(41, 37))
    points = np.indices(image.shape) + np.array([-2.6, 3.9])[:, None, None]
    expected = scipy.ndimage.map_coordinates(image, points, mode={"wrap": "grid-wrap"}.get(mode, mode))
    np.testing.assert_allclose(
        align(image, (-2.6, 3.9), interpolation="cubic", boundary=mode), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(
    "motion",
    [
        Shift(np.array([0.7, -1.2])),
        Rigid(np.array([0.7, -1.2]), np.array(0.3)),
        Similarity(np.array([0.7, -1.2]), np.array(0.3), np.array(1.1)),
        Affine(np.array([0.7, -1.2]), np.array([[1.07, 0.21], [-0.33, 0.93]])),
    ],
)
@pytest.mark.parametrize("name", ORDERS)
def test_motions_are_undone(motion, name, x64):
    """scipy's affine transformation about the centre, given the matrix in full."""
    image = np.random.default_rng(7).normal(size=(31, 34))
    angle, scale = getattr(motion, "angle", 0.0), getattr(motion, "scale", 1.0)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = getattr(motion, "matrix", turn)
    center = (np.array(image.shape) - 1) / 2
    offset = center + motion.shift - matrix @ center
    expected = scipy.ndimage.affine_transform(image, matrix, offset, order=ORDERS[name], mode="reflect")
    # Beyond half of its own length scipy's reflection of a spline is cut off.
    found = align(image, motion, interpolation=name, boundary="reflect")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_undoes_the_rotation_that_fit_found():
    y, x = np.indices((40, 44)) - np.array([19.5, 21.5])[:, None, None]

    def spots(y, x):
        return np.exp(-(y**2 + (x / 3) ** 2) / 20) + np.exp(-((y - 9) ** 2 + (x - 5) ** 2) / 9)

    rng = np.random.default_rng(0)
    cos, sin = np.cos(0.1), np.sin(0.1)
    reference = spots(y, x).astype(np.float32)
    turned = spots(y * cos + x * sin, x * cos - y * sin) + rng.normal(scale=0.01, size=y.shape)
    found = fit(reference, turned.astype(np.float32), 0.01, model="rigid")
    back = align(turned.astype(np.float32), found.motion, interpolation="cubic", boundary="nearest")
    assert np.std(back - reference) < 0.012 < 0.03 < np.std(turned - reference)


@pytest.mark.parametrize("shape", [(15,), (5, 6, 7)])
@pytest.mark.parametrize("name", ["nearest", "linear"])
def test_equals_scipy_in_other_dimensions(name, shape, x64):
    image = np.random.default_rng(3).normal(size=shape)
    for mode in ("wrap", "nearest"):
        expected = scipy_align(image, SHAPES[shape], ORDERS[name], mode)
        found = align(image, SHAPES[shape], interpolation=name, boundary=mode)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_bad_pixels(x64):
    image = np.random.default_rng(4).normal(size=(9, 10))
    broken = image.copy()
    broken[4, 5] = np.nan
    shift = (1.3, -2.4)
    # image(4, 5) is read at i = 4 − 1.3 and 5 + 2.4: the two pixels beside each.
    for name in ("linear", "cubic", "fourier"):
        found = align(broken, shift, interpolation=name, boundary="wrap")
        bad = np.isnan(found)
        assert np.array_equal(np.argwhere(bad), [[2, 7], [2, 8], [3, 7], [3, 8]])
        if name == "linear":
            expected = np.asarray(align(image, shift, interpolation=name, boundary="wrap"))
            np.testing.assert_allclose(found[~bad], expected[~bad], rtol=0, atol=1e-13)
    found = align(broken, shift, interpolation="nearest", boundary="wrap")
    assert np.array_equal(np.argwhere(np.isnan(found)), [[3, 7]])
    # Where what is outside is known, to what a bad pixel is interpolated to.
    bad = np.isnan(align(broken, shift, interpolation="linear", boundary="nearest"))
    assert np.array_equal(np.argwhere(bad), [[2, 7], [2, 8], [3, 7], [3, 8]])


@pytest.mark.parametrize("name", INTERPOLATIONS)
@pytest.mark.parametrize("boundary", ["overlap", "wrap"])
def test_is_align_stack_of_one_frame(name, boundary, dtype):
    image = np.random.default_rng(4).normal(size=(9, 10)).astype(dtype)
    image[4, 5] = np.nan
    options = {"interpolation": name, "boundary": boundary}
    stacked = jaxchi2.align_stack(image[None], [(1.3, -2.4)], **options).image[0]
    atol = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(align(image, (1.3, -2.4), **options), stacked, rtol=0, atol=atol)


def test_a_constant_outside(x64):
    image = np.random.default_rng(4).normal(size=(9, 10))
    for name in ORDERS:
        found = align(image, (20.0, 0.0), interpolation=name, boundary=Boundary("constant", value=2.5))
        np.testing.assert_array_equal(found, np.full(image.shape, 2.5))


def test_bad_pixels_stay_bad(x64):
    """By Fourier interpolation, where what lies outside is unknown or the image periodic."""
    image = scene((32, 40), slope=3, smooth=True)
    broken = image.copy()
    broken[10:12, 20:23] = np.nan
    away = np.ones(image.shape, bool)
    away[5:13, 20:29] = False
    for boundary in ("overlap", "wrap"):
        found = np.asarray(align(broken, [2.0, -3.0], boundary=boundary))
        expected = np.roll(broken, (-2, 3), (0, 1))
        if boundary == "overlap":
            expected[-2:], expected[:, :3] = np.nan, np.nan
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
        np.testing.assert_allclose(found[away], expected[away], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["fourier", "nearest", "linear"])
def test_dtypes(name, dtype):
    image = np.arange(12).reshape(3, 4)
    assert align(image.astype(dtype), (0.5, 0.5), interpolation=name).dtype == dtype
    # Integers become the default float, which the fixture sets.
    assert align(image.astype(np.uint8), (0.4, 0.4), interpolation=name).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((np.ones((3, 4)), [1.0]), {}, ValueError, ("shift", r"\(2,\)", r"\(1,\)")),
        ((np.ones((3, 4)), 1.0), {}, ValueError, ("shift", r"\(2,\)")),
        ((1.0, []), {}, ValueError, ("shift|image",)),
        ((np.ones((3, 4), complex), [1, 1]), {}, TypeError, ("image", "complex")),
        ((np.ones((3, 4)), [1, 1]), {"interpolation": 2}, TypeError, ("interpolation", "2", "fourier")),
        ((np.ones((3, 4)), [1, 1]), {"interpolation": "sinc"}, ValueError, ("interpolation", "sinc")),
        ((np.ones((3, 4)), Rigid(np.ones(2), 0.1)), {}, ValueError, ("shift alone", "Rigid", "cubic")),
        ((np.ones(4), Rigid(np.ones(1), 0.1)), {"interpolation": "cubic"}, ValueError, ("Rigid", "2 axes")),
        (
            (np.ones((3, 4)), Affine(np.ones(2), np.ones(2))),
            {"interpolation": "cubic"},
            ValueError,
            ("fields of shapes",),
        ),
        ((np.ones((3, 4)), [1, 1]), {"boundary": "torus"}, ValueError, ("boundary", "torus", "nearest")),
        ((np.ones((3, 4)), [1, 1]), {"boundary": "nearest"}, ValueError, ("boundary", "nearest", "wrap")),
        ((np.ones((3, 4)), [1, 1]), {"shape": (3,)}, ValueError, ("shape must be 2 static integers",)),
        ((np.ones((3, 4)), [1, 1]), {"shape": (3, 0)}, ValueError, ("shape must be 2 static integers",)),
        ((np.ones((3, 4)), [1, 1]), {"shape": (3, 5), "boundary": "wrap"}, ValueError, ("keeps the shape",)),
    ],
)
def test_bad_inputs_are_named(arguments, options, error, words):
    with pytest.raises(error) as caught:
        align(*arguments, **options)
    for word in words:
        assert caught.match(word)


@pytest.mark.parametrize("name", ["fourier", "nearest", "linear"])
def test_jit_and_vmap(name, x64):
    images = jnp.asarray(np.random.default_rng(5).normal(size=(3, 7, 9)))
    shifts = jnp.asarray([(0.3, -1.2), (2.2, 0.7), (-4.6, 3.4)])
    function = partial(align, interpolation=name)
    expected = jnp.stack([function(i, s) for i, s in zip(images, shifts, strict=True)])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(images, shifts), expected, rtol=0, atol=1e-13)
    expected = jnp.stack([function(images[0], s) for s in shifts])
    found = jax.jit(jax.vmap(function, in_axes=(None, 0)))(images[0], shifts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["fourier", "linear", "cubic"])
def test_gradients(name, x64):
    # Odd axes: an even one's Nyquist frequency is a cosine of the shift, no less differentiable.
    image = np.random.default_rng(6).normal(size=(5, 6))
    shift = np.array([0.3, -1.2])
    check_grads(partial(align, interpolation=name, boundary="wrap"), (image, shift), 1, ["fwd", "rev"])
    known = np.isfinite(align(image, shift, interpolation=name))
    assert known.any()
    assert not known.all()

    def inside(image, shift):
        return jnp.where(known, align(image, shift, interpolation=name), 0.0)

    check_grads(inside, (image, shift), 1, ["fwd", "rev"])
