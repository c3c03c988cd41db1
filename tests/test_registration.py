"""register(): known answers, conventions, bad values, bad arguments, precision."""

from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene, shifted

import jaxchi2
from jaxchi2 import Registration, Status

register = partial(jaxchi2.register, boundary="wrap")
chi2_surface = partial(jaxchi2.chi2_surface, boundary="wrap")

# One shape for most tests, so that they share their compiled programs.
SHAPE = (20, 23)
SHIFT = np.array([2.3, -4.6])


def noisy(shape=SHAPE, shift=SHIFT, err=0.1, seed=0, slope=0.0):
    reference = scene(shape, slope, seed)
    noise = np.random.default_rng(seed + 1).normal(size=shape)
    return reference, shifted(reference, shift) + noise * err


def cast(dtype, *arrays):
    return [np.asarray(a, dtype) for a in arrays]


@pytest.mark.long
@pytest.mark.parametrize("mapped", [False, True])
def test_known_shift_without_noise(mapped, dtype):
    reference, image = cast(dtype, *noisy(err=0.0))
    err = np.full(SHAPE, 0.1, dtype) if mapped else 0.1
    found = register(reference, image, err)
    np.testing.assert_allclose(found.shift, SHIFT, atol=1e-10 if dtype == np.float64 else 3e-6)
    assert found.shift.dtype == found.covariance.dtype == found.interval.dtype == found.chi2.dtype == dtype
    assert found.status == Status.OK
    assert found.dof == reference.size - 2
    assert found.dx == found.shift[1]
    assert found.dy == found.shift[0]


def test_sign_and_axis_order():
    reference = scene(SHAPE)
    for axis, roll in [(0, 3), (0, -5), (1, 2), (1, -7)]:
        found = register(reference, np.roll(reference, roll, axis), 0.1)
        np.testing.assert_allclose(found.shift[axis], roll, atol=1e-6)
        np.testing.assert_allclose(found.shift[1 - axis], 0, atol=1e-6)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("slope", [0.0, 3.0])
def test_identical_images_have_exactly_no_shift(mapped, slope, dtype):
    (reference,) = cast(dtype, scene(SHAPE, slope) + 3.0)
    err = np.random.default_rng(0).uniform(0.1, 0.3, SHAPE).astype(dtype) if mapped else 0.1
    found = register(reference, reference, err)
    assert found.status == Status.OK
    np.testing.assert_array_equal(found.shift, 0.0)
    assert abs(found.chi2) < 1e-6


@pytest.mark.parametrize(
    ("shape", "boundary", "mapped"),
    [
        ((21,), "wrap", True),
        ((20,), "fill", False),
        ((20, 22), "wrap", False),
        ((6, 7, 8), "wrap", False),
        ((6, 7, 8), "wrap", True),
        ((6, 7, 8), "fill", False),
    ],
)
def test_dimensions(shape, boundary, mapped):
    shift = np.array([1.4, -0.7, 2.2])[: len(shape)]
    reference = scene(shape, 1.0, seed=4)
    err = np.full(shape, 0.05) if mapped else 0.05
    image = shifted(reference, shift, boundary) + err * np.random.default_rng(5).normal(size=shape)
    found = register(reference, image, err, boundary=boundary)
    assert found.status == Status.OK
    ndim = len(shape)
    assert found.shift.shape == found.stderr.shape == (ndim,)
    assert found.covariance.shape == (ndim, ndim)
    assert found.interval.shape == (ndim, 2)
    assert np.all(np.abs(found.shift - shift) < 5 * found.stderr)
    assert abs(found.reduced_chi2 - 1) < 6 * np.sqrt(2 / found.dof)
    np.testing.assert_array_less(found.interval[:, 0], found.shift)
    np.testing.assert_array_less(found.shift, found.interval[:, 1])
    if ndim == 1:
        with pytest.raises(AttributeError):
            found.dy  # noqa: B018


def test_swap_flips_the_sign(x64):
    # Odd axes: at a Nyquist frequency a shift loses power, which the two ways round weigh differently.
    rng = np.random.default_rng(0)
    reference = scene((21, 23), 1.0)
    image = moved(reference, SHIFT) + 0.2 * rng.normal(size=reference.shape)
    there, back = register(reference, image, 0.2), register(image, reference, 0.2)
    np.testing.assert_allclose(there.shift, -back.shift, atol=1e-10)
    np.testing.assert_allclose(there.chi2, back.chi2, rtol=1e-10)
    np.testing.assert_allclose(there.covariance, back.covariance, rtol=1e-9)
    np.testing.assert_allclose(there.interval, -back.interval[:, ::-1], atol=1e-10)


@pytest.mark.parametrize("mapped", [False, True])
def test_scaling_the_error(mapped, dtype):
    reference, image = cast(dtype, *noisy())
    err = np.random.default_rng(0).uniform(0.1, 0.3, SHAPE).astype(dtype) if mapped else dtype.type(0.1)
    one, two = register(reference, image, err), register(reference, image, 3 * err)
    rtol = 1e-9 if dtype == np.float64 else 1e-4
    np.testing.assert_allclose(two.shift, one.shift, atol=1e-9 if dtype == np.float64 else 3e-6)
    np.testing.assert_allclose(
        two.covariance, 9 * one.covariance, rtol=rtol, atol=rtol * one.covariance[0, 0]
    )
    np.testing.assert_allclose(two.chi2 * 9, one.chi2, rtol=rtol)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_unknown_error_is_scaled_by_the_reduced_chi2(scale, dtype):
    reference, image = cast(dtype, *(scale * x for x in noisy()))
    unknown = register(reference, image)
    known = register(reference, image, dtype.type(0.1 * scale))
    rms = 0.1 * scale * np.sqrt(known.reduced_chi2)
    rescaled = register(reference, image, rms.astype(dtype))
    rtol = 1e-8 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(
        unknown.covariance, rescaled.covariance, rtol=rtol, atol=rtol * known.covariance[0, 0]
    )
    np.testing.assert_allclose(
        unknown.interval, rescaled.interval, atol=1e-9 if dtype == np.float64 else 1e-5
    )
    np.testing.assert_allclose(unknown.shift, known.shift, atol=1e-9 if dtype == np.float64 else 5e-6)
    np.testing.assert_allclose(
        unknown.chi2 / scale**2, known.chi2 * 0.01, rtol=1e-9 if dtype == np.float64 else 1e-4
    )


def test_nsigma_widens_the_interval():
    reference, image = noisy()
    one, three = register(reference, image, 0.1), register(reference, image, 0.1, nsigma=3)
    np.testing.assert_allclose(np.diff(three.interval), 3 * np.diff(one.interval), rtol=0.01)


def test_max_shift_holds_the_answer_inside():
    reference = scene(SHAPE)
    image = np.roll(reference, (7, 1), (0, 1)) + 0.5 * np.roll(reference, (-1, 2), (0, 1))
    np.testing.assert_allclose(register(reference, image, 0.1).shift, (7, 1), atol=0.2)
    for limit in (3, 3.0, (3, 3), np.array([3.0, 3.0])):
        near = register(reference, image, 0.1, max_shift=limit)
        assert near.status == Status.BAD_FIT
        np.testing.assert_allclose(near.shift, (-1, 2), atol=0.2)
    far = register(reference, image, 0.1, max_shift=(9, 3))
    np.testing.assert_allclose(far.shift, (7, 1), atol=0.2)


def test_minimum_outside_the_window_is_a_status():
    reference = scene(SHAPE, 3.0)
    found = register(reference, moved(reference, (3.4, 0.2)), 0.1, max_shift=3)
    assert found.status & Status.OUT_OF_WINDOW
    assert jnp.all(jnp.isnan(found.shift))
    assert jnp.all(jnp.isnan(found.stderr))


def test_fill_does_not_wrap():
    """An object that leaves the frame is not expected back on the other side."""
    y, x = np.indices(SHAPE)

    def blobs(dy, dx):
        first = np.exp(-((y - 9 - dy) ** 2 + (x - 4 - dx) ** 2) / 8)
        return 10 * first + 8 * np.exp(-((y - 11 - dy) ** 2 + (x - 14 - dx) ** 2) / 10)

    shift = np.array([1.25, -5.5])
    reference = blobs(0, 0)
    image = blobs(*shift) + 0.05 * np.random.default_rng(0).normal(size=SHAPE)
    fill = register(reference, image, 0.05, boundary="fill")
    wrap = register(reference, image, 0.05)
    assert np.all(np.abs(fill.shift - shift) < 0.03)
    assert fill.chi2 < 0.1 * wrap.chi2


# --- values that no fit can be made of -------------------------------------------------------------------

ERR = np.random.default_rng(8).uniform(0.1, 0.3, SHAPE)
STRIPES = np.tile(np.sin(np.arange(SHAPE[1])), (SHAPE[0], 1))
FIRST_TWO = np.arange(ERR.size).reshape(SHAPE) < 2
FATAL = {
    "flat reference": (lambda m, d: (np.full_like(m, 3.0), d, 0.1), Status.FLAT),
    "flat image": (lambda m, d: (m, np.full_like(d, 3.0), 0.1), Status.FLAT),
    "flat image, error map": (lambda m, d: (m, np.full_like(d, 3.0), ERR), Status.FLAT),
    "flat image, two even axes": (lambda m, d: (m[:, 1:], np.full_like(d[:, 1:], 3.0), 0.1), Status.FLAT),
    "both flat": (lambda m, d: (np.zeros_like(m), np.zeros_like(d), 0.1), Status.FLAT),
    "both flat at 1e4": (lambda m, d: (np.full_like(m, 1e4), np.full_like(d, 1e4), 0.1), Status.FLAT),
    "stripes": (lambda m, d: (STRIPES, STRIPES, 0.1), Status.FLAT),
    "stripes, noisy": (lambda m, d: (STRIPES, STRIPES + 0.1 * m, 0.1), Status.FLAT),
    "NaN image": (lambda m, d: (m, np.full_like(d, np.nan), 0.1), Status.NO_DATA),
    "NaN reference": (lambda m, d: (np.full_like(m, np.nan), d, 0.1), Status.NO_DATA),
    "no weight": (lambda m, d: (m, d, np.inf), Status.NO_DATA),
    "error zero": (lambda m, d: (m, d, 0.0), Status.NO_DATA),
    "error negative": (lambda m, d: (m, d, -1.0), Status.NO_DATA),
    "error NaN": (lambda m, d: (m, d, np.nan), Status.NO_DATA),
    "error map NaN": (lambda m, d: (m, d, np.full_like(m, np.nan)), Status.NO_DATA),
    "two pixels": (lambda m, d: (m, d, np.where(FIRST_TWO, 0.1, 0.0)), Status.NO_DATA),
}


def assert_hopeless(found, flag):
    assert Status(int(found.status)) & flag
    for field in (found.shift, found.covariance, found.interval, found.stderr):
        assert jnp.all(jnp.isnan(field))
    assert Status(int(found.status)).message != "ok"
    assert "status" in repr(found)


@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
@pytest.mark.parametrize("name", FATAL)
def test_hopeless_values_are_a_status(name, boundary):
    make, flag = FATAL[name]
    assert_hopeless(register(*make(*noisy()), boundary=boundary), flag)


def test_stripes_are_nowhere_in_a_scene():
    """But one row of pixels, which are all that is not masked, can be found on both axes."""
    reference, image = noisy(slope=2.0)
    assert_hopeless(register(reference, STRIPES, 0.1, boundary="overlap"), Status.FLAT)
    row = np.where(np.arange(SHAPE[0])[:, None] == 9, image, np.nan)
    found = register(reference, row, 0.1, boundary="overlap")
    assert not Status(int(found.status)) & Status.FLAT
    np.testing.assert_allclose(found.shift, SHIFT, atol=0.2)


@pytest.mark.parametrize(
    "name", [k for k in FATAL if "err" not in k and k not in ("no weight", "two pixels")]
)
def test_hopeless_values_without_an_error_are_a_status(name):
    make, flag = FATAL[name]
    assert_hopeless(register(*make(*noisy())[:2]), flag)


@pytest.mark.parametrize(
    "name", [k for k in FATAL if k not in ("flat image, two even axes",) and "stripes" not in k]
)
def test_hopeless_values_in_an_empty_surrounding_are_a_status(name):
    make, flag = FATAL[name]
    assert_hopeless(register(*make(*noisy()), boundary="fill"), flag)


def test_open_interval_is_a_status_that_keeps_the_shift():
    reference, image = noisy(err=0.0)
    found = register(reference, image + 0.01 * scene(SHAPE, seed=9), 1.0, nsigma=1000.0)
    # An error a hundred times that of the images is another thing to say.
    assert found.status == Status.OPEN_INTERVAL | Status.LARGE_ERRORS
    assert jnp.all(jnp.isfinite(found.shift))
    assert jnp.all(jnp.isfinite(found.covariance))
    assert jnp.any(jnp.isnan(found.interval))


def test_noise_alone_gives_no_crash():
    rng = np.random.default_rng(0)
    found = register(rng.normal(size=SHAPE), rng.normal(size=SHAPE), 1.0)
    assert jnp.all(jnp.isfinite(found.shift)) or found.status != 0


def test_bad_pixels_have_weight_zero():
    reference, image = noisy(err=0.05, slope=2.0)
    hole = np.zeros(SHAPE, bool)
    hole[3, 4:7] = hole[15, 20] = True
    for broken in (
        (reference, np.where(hole, np.nan, image), 0.05),
        (reference, np.ma.array(np.where(hole, 1e5, image), mask=hole), 0.05),
        (reference, np.where(hole, 1e5, image), np.where(hole, np.inf, 0.05)),
        (reference, np.where(hole, 1e5, image), np.where(hole, 0.0, 0.05)),
    ):
        found = register(*broken)
        assert found.status == Status.OK
        assert found.dof == image.size - 4 - 2
        assert np.all(np.abs(found.shift - SHIFT) < 5 * found.stderr)
        assert abs(found.reduced_chi2 - 1) < 0.4


# --- arguments that are wrong ----------------------------------------------------------------------------

OK_PAIR = (np.ones((6, 7)), np.ones((6, 7)))
BAD = [
    ((np.ones((6, 7)), np.ones((6, 8))), {}, "image"),
    ((np.ones((6, 7)), np.ones(6)), {}, "image"),
    ((np.float64(1.0), np.float64(1.0)), {}, "reference"),
    ((np.ones((2, 2, 2, 2)), np.ones((2, 2, 2, 2))), {}, "reference"),
    ((np.ones((6, 7), complex), np.ones((6, 7))), {}, "reference"),
    ((np.ones((6, 7)), np.ones((6, 7), complex)), {}, "image"),
    ((np.ones((0, 7)), np.ones((0, 7))), {}, "reference"),
    ((np.ones((1, 7)), np.ones((1, 7))), {}, "reference"),
    ((np.ones((6, 1)), np.ones((6, 1))), {}, "reference"),
    ((np.ones(1), np.ones(1)), {}, "reference"),
    ((np.array([["a", "b"], ["c", "d"]]), np.ones((2, 2))), {}, "reference"),
    ((None, np.ones((2, 2))), {}, "reference"),
    ((np.ones((2, 2)), None), {}, "image"),
    ((*OK_PAIR, np.ones((7, 6))), {}, "err"),
    ((*OK_PAIR, np.ones(7)), {}, "err"),
    ((*OK_PAIR, np.ones((1, 1))), {}, "err"),
    ((*OK_PAIR, 1j), {}, "err"),
    ((*OK_PAIR, "0.1"), {}, "err"),
    (OK_PAIR, {"boundary": "torus"}, "boundary"),
    (OK_PAIR, {"boundary": None}, "boundary"),
    (OK_PAIR, {"boundary": 1}, "boundary"),
    (OK_PAIR, {"max_shift": 0}, "max_shift"),
    (OK_PAIR, {"max_shift": -1.0}, "max_shift"),
    (OK_PAIR, {"max_shift": (3, -1)}, "max_shift"),
    (OK_PAIR, {"max_shift": (3, 3, 3)}, "max_shift"),
    (OK_PAIR, {"max_shift": np.nan}, "max_shift"),
    (OK_PAIR, {"max_shift": "far"}, "max_shift"),
    (OK_PAIR, {"max_shift": 1j}, "max_shift"),
    (OK_PAIR, {"nsigma": 0.0}, "nsigma"),
    (OK_PAIR, {"nsigma": -1.0}, "nsigma"),
    (OK_PAIR, {"nsigma": np.nan}, "nsigma"),
    (OK_PAIR, {"nsigma": [1.0, 2.0]}, "nsigma"),
    (OK_PAIR, {"nsigma": "one"}, "nsigma"),
    (OK_PAIR, {"nsigma": 1j}, "nsigma"),
]


@pytest.mark.parametrize(("args", "options", "name"), BAD)
def test_bad_arguments_raise_and_are_named(args, options, name):
    with pytest.raises((ValueError, TypeError), match=name):
        register(*args, **options)


def test_bad_shapes_raise_while_tracing():
    with pytest.raises(ValueError, match="image"):
        jax.jit(register)(np.ones((6, 7)), np.ones((6, 8)))


def test_options_are_keywords():
    with pytest.raises(TypeError):
        register(*OK_PAIR, 1.0, "wrap")


# --- what may be passed ----------------------------------------------------------------------------------


def test_inputs_are_not_modified():
    reference, image = noisy()
    image[3, 4] = np.nan
    err = np.full(SHAPE, 0.1)
    err[5, 5] = 0.0
    before = [x.copy() for x in (reference, image, err)]
    register(reference, image, err)
    for old, new in zip(before, (reference, image, err), strict=True):
        np.testing.assert_array_equal(old, new)


def test_kinds_of_input(x64):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 200, SHAPE)
    moved_counts = np.roll(counts, (2, -3), (0, 1))
    expected = register(*cast(np.float64, counts, moved_counts), 2.0)
    np.testing.assert_allclose(expected.shift, (2, -3), atol=1e-6)
    for kind in ("uint8", "int16", ">i4", "uint64", ">f4", ">f8", "<f8"):
        found = register(counts.astype(kind), moved_counts.astype(kind), 2)
        assert found.shift.dtype == (np.float32 if kind == ">f4" else np.float64)
        np.testing.assert_allclose(found.shift, expected.shift, atol=1e-6)
    found = register(counts.tolist(), moved_counts.tolist(), 2)
    np.testing.assert_array_equal(found.shift, expected.shift)
    found = register(jnp.asarray(counts), jnp.asarray(moved_counts), jnp.asarray(2))
    np.testing.assert_array_equal(found.shift, expected.shift)
    mask = counts > 120
    found = register(mask, np.roll(mask, (2, -3), (0, 1)), 1)
    np.testing.assert_allclose(found.shift, (2, -3), atol=1e-6)
    masked = np.ma.array(moved_counts, mask=np.zeros(SHAPE, bool))
    masked[4, 4] = np.ma.masked
    found = register(np.ma.array(counts), masked, 2)
    assert found.dof == counts.size - 3
    np.testing.assert_allclose(found.shift, (2, -3), atol=1e-6)


def test_float32_in_double_mode_stays_float32(x64):
    reference, image = cast(np.float32, *noisy())
    for err in (None, 0.1, np.float64(0.1), np.full(SHAPE, 0.1)):
        found = register(reference, image, err)
        assert {found.shift.dtype, found.covariance.dtype, found.chi2.dtype} == {np.dtype(np.float32)}
        assert found.dof.dtype == found.status.dtype == np.int32


def test_repr():
    reference, image = noisy()
    text = repr(register(reference, image, 0.1))
    assert text.startswith("Registration(shift=(+2.3")
    assert "±" in text
    assert "status" not in text
    batch = jax.vmap(register, (None, 0, None))(reference, np.stack([image, image]), 0.1)
    assert repr(batch) == "Registration((2,) results, 0 with a status)"
    traced = []
    jax.jit(lambda r, d: traced.append(repr(register(r, d))))(reference, image)
    assert traced[0].startswith("Registration(")


# --- transforms ------------------------------------------------------------------------------------------


def assert_close(found: Registration, expected: Registration, rtol=2e-4, atol=3e-6):
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.dof, expected.dof)
    np.testing.assert_allclose(found.shift, expected.shift, atol=atol)
    np.testing.assert_allclose(found.interval, expected.interval, atol=atol)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=rtol, atol=rtol * 1e-4)
    np.testing.assert_allclose(found.chi2, expected.chi2, rtol=rtol)


def batch(n=6):
    rng = np.random.default_rng(0)
    reference = scene(SHAPE, 1.0)
    shifts = rng.uniform(-6, 6, (n, 2))
    errs = rng.uniform(0.05, 0.2, (n, *SHAPE))
    images = np.stack([moved(reference, s) for s in shifts]) + errs * rng.normal(size=errs.shape)
    return reference.astype(np.float32), images.astype(np.float32), errs.astype(np.float32)


def loop(reference, images, errs):
    results = [register(reference, image, err) for image, err in zip(images, errs, strict=True)]
    return jax.tree.map(lambda *x: np.stack(x), *results)


def test_jit():
    reference, images, errs = batch(1)
    for err in (np.float32(0.1), errs[0]):
        assert_close(jax.jit(register)(reference, images[0], err), register(reference, images[0], err))


solve = jax.jit(jax.vmap(register, (None, 0, 0)))


@pytest.mark.parametrize("mapped", [False, True])
def test_vmap_is_a_loop(mapped):
    reference, images, errs = batch()
    if not mapped:
        errs = np.linspace(0.05, 0.2, len(images)).astype(np.float32)
    assert_close(solve(reference, images, errs), loop(reference, images, errs))


def test_vmap_over_references():
    reference, images, errs = batch()
    references = np.stack([np.roll(reference, i, 0) for i in range(len(images))])
    found = jax.vmap(register, (0, 0, 0))(references, images, errs)
    expected = loop(reference, images, errs)
    rolled = expected.shift - np.stack([np.arange(len(images)), np.zeros(len(images))], axis=1)
    rolled = (rolled + 10) % 20 * (1, 0) + rolled * (0, 1) - (10, 0)
    np.testing.assert_allclose(found.shift, rolled, atol=5e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-3, atol=1e-8)


@pytest.mark.long
def test_lax_map_is_a_loop():
    reference, images, errs = batch()
    found = jax.lax.map(lambda x: register(reference, *x), (images, errs), batch_size=4)
    assert_close(found, loop(reference, images, errs))


@pytest.mark.parametrize("mapped", [False, True])
def test_one_bad_frame_leaves_the_others_alone(mapped):
    reference, images, errs = batch()
    if not mapped:
        errs = np.full(len(images), 0.12, np.float32)
    expected = loop(reference, images, errs)
    for bad, flag in [(np.nan, Status.NO_DATA), (7.0, Status.FLAT)]:
        broken = images.copy()
        broken[2] = bad
        broken[4, 3, 3] = np.nan
        found = solve(reference, broken, errs)
        assert found.status[2] & flag
        assert jnp.all(jnp.isnan(found.shift[2]))
        assert jnp.all(jnp.isnan(found.covariance[2]))
        good = np.array([0, 1, 3, 5])
        assert_close(*(jax.tree.map(itemgetter(good), result) for result in (found, expected)))
        assert found.status[4] == 0
        assert found.dof[4] == expected.dof[4] - 1
        assert np.all(np.abs(found.shift[4] - expected.shift[4]) < expected.stderr[4])


# --- float32 against float64 -----------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "mapped", "boundary"),
    [
        (64, False, "wrap"),
        (64, True, "wrap"),
        (256, False, "wrap"),
        (256, True, "wrap"),
        (64, False, "overlap"),
    ],
)
def test_float32_is_float64(size, mapped, boundary, x64):
    """Within 0.1 σ or 2e-6 pixels and the spacing of float32 at the shift; errors within 1 %."""
    rng = np.random.default_rng(size)
    shape, shift = (size, size - 1), np.array([size / 5 + 0.37, -2.61])
    clean = scene(shape, 2.0, seed=2)
    image, noise = moved(clean, shift), rng.normal(size=shape)
    err = rng.uniform(0.5, 2.0, shape) if mapped else np.asarray(1.0)
    for snr in (1.0, 30.0, 1000.0):
        for pedestal in (0.0, 1e4):
            pair = [
                (snr * clean + pedestal).astype(np.float32),
                (snr * image + noise * err + pedestal).astype(np.float32),
            ]
            single = register(*pair, err.astype(np.float32), boundary=boundary)
            double = register(
                *(x.astype(np.float64) for x in pair),
                err.astype(np.float32).astype(np.float64),
                boundary=boundary,
            )
            assert single.shift.dtype == np.float32
            assert double.shift.dtype == np.float64
            assert single.status == double.status == 0
            sigma = double.stderr
            limit = np.maximum(0.1 * sigma, 2e-6) + np.spacing(np.float32(np.abs(shift)))
            np.testing.assert_array_less(np.abs(single.shift - double.shift), limit)
            np.testing.assert_allclose(single.stderr, sigma, rtol=0.01)
            width = [np.diff(r.interval - r.shift[:, None])[:, 0] for r in (single, double)]
            np.testing.assert_allclose(*width, atol=0.02 * sigma.max() + np.spacing(np.float32(size)))
            np.testing.assert_allclose(single.chi2, double.chi2, rtol=0.01)


@pytest.mark.long
@pytest.mark.parametrize(("length", "mapped"), [(100_000, False), (1_000_000, False), (50_000, True)])
def test_long_axes(length, mapped):
    rng = np.random.default_rng(length)
    reference = rng.normal(size=length).astype(np.float32)
    err = rng.uniform(0.08, 0.12, length).astype(np.float32) if mapped else np.float32(0.1)
    image = np.roll(reference, -20_003) + err * rng.normal(size=length).astype(np.float32)
    found = register(reference, image, err, boundary="wrap", max_shift=np.inf, verdict=False)
    assert found.status == Status.OK
    # White noise has curvature π²/3 per pixel; half the spacing of float32 is 0.001 there.
    error = np.sqrt(3 / length / np.mean(err**-2.0)) / np.pi
    np.testing.assert_allclose(found.stderr, error, rtol=0.02)
    np.testing.assert_allclose(found.shift, -20_003, atol=5 * error + 0.001)
