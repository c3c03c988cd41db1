"""Masks, bad pixels and boundaries: what counts, and what has no influence."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import interpolate, moved, scene

from jaxchi2 import Boundary, Search, Status, chi2_surface, register
from jaxchi2.engine import continuation, layout, searchgrid
from jaxchi2.engine.choices import Choices
from jaxchi2.engine.continuation import MARGIN
from jaxchi2.engine.overlap import BESIDE, LEAST_SHARE, correlate, window_shape
from jaxchi2.engine.pair import Pair, larger_frames
from jaxchi2.registration import measure

SHAPE = (40, 37)
SHIFT = np.array([2.3, -1.6])


def pair(err=0.05, slope=3.0, seed=0, shift=SHIFT):
    reference = scene(SHAPE, slope, seed=seed)
    noise = np.random.default_rng(seed + 1).normal(scale=err, size=SHAPE)
    return reference, moved(reference, shift) + noise


def crops(shift, shape=(48, 50), err=0.05, seed=0):
    """Two windows of one larger scene, the second of which sees it moved by ``shift``."""
    large = scene((128, 128), 3.0, seed=seed, smooth=True)
    window = tuple(slice(40, 40 + n) for n in shape)
    noise = np.random.default_rng(seed + 1).normal(scale=err, size=shape)
    return large[window], moved(large, shift)[window] + noise


def assert_right(found, shift, sigmas=5.0):
    assert found.status == Status.OK
    assert np.all(np.abs(found.shift - shift) < sigmas * np.asarray(found.stderr))


def same(first, second, rtol):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


# --- masks -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap", "reflect", "nearest", "constant"])
@pytest.mark.parametrize("which", ["mask", "reference_mask"])
def test_values_of_masked_pixels_have_no_influence(boundary, which):
    reference, image = pair()
    mask = np.random.default_rng(3).random(SHAPE) < 0.06
    mask[10:14, 20:25] = True
    find = partial(register, err=0.05, boundary=boundary, **{which: mask})
    found = find(reference, image)
    for value in (0.0, 1e6, -1e30, np.nan, np.inf):
        arrays = [reference.copy(), image.copy()]
        arrays[which == "mask"][mask] = value
        changed = find(*arrays)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(changed), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_masks_keep_the_accuracy(boundary, dtype):
    reference, image = (x.astype(dtype) for x in pair())
    rng = np.random.default_rng(4)
    for masks in ({"mask": rng.random(SHAPE) < 0.2}, {"reference_mask": rng.random(SHAPE) < 0.02}):
        assert_right(register(reference, image, 0.05, boundary=boundary, **masks), SHIFT)


def test_a_bad_patch_ruins_the_answer_without_a_mask():
    reference, image = pair()
    patch = np.zeros(SHAPE, bool)
    patch[5:17, 8:20] = True
    reference[patch] += 20.0
    image[patch] += 20.0
    spoiled = register(reference, image, 0.05, boundary="wrap")
    assert np.max(np.abs(spoiled.shift - SHIFT)) > 1.0
    assert_right(register(reference, image, 0.05, boundary="wrap", mask=patch, reference_mask=patch), SHIFT)


def test_nan_numpy_masks_masks_and_weights_are_one(x64):
    reference, image = pair()
    mask = np.random.default_rng(5).random(SHAPE) < 0.1
    err = np.full(SHAPE, 0.05)
    expected = register(reference, image, err, mask=mask)
    nan = np.where(mask, np.nan, image)
    weights = np.where(mask, 0.0, 1 / 0.05**2)
    same(register(reference, nan, err), expected, 1e-12)
    same(register(reference, np.ma.array(image, mask=mask), err), expected, 1e-12)
    same(register(reference, image, np.where(mask, np.inf, err)), expected, 1e-12)
    same(register(reference, image, weights=weights), expected, 1e-10)
    assert expected.dof < np.sum(~mask)


def test_chi2_counts_the_unmasked_pixels(x64):
    """With a mask of the image alone, the surface is the sum over its other pixels."""
    reference, image = pair()
    mask = np.random.default_rng(6).random(SHAPE) < 0.3
    surface = chi2_surface(reference, image, 0.05, boundary="wrap", mask=mask)
    for shift in (SHIFT, np.array([-7.21, 11.5])):
        model = interpolate(reference, [np.arange(n) - s for n, s in zip(SHAPE, shift, strict=True)])
        expected = np.sum(((image - model)[~mask] / 0.05) ** 2)
        np.testing.assert_allclose(surface(shift), expected, rtol=1e-10)


def test_mask_of_the_reference_takes_out_what_it_covers():
    reference, image = pair()
    for size, taken in ((1, 1), (3, (3 + 2 * MARGIN) ** 2)):
        hole = np.zeros(SHAPE, bool)
        hole[20 : 20 + size, 18 : 18 + size] = True
        found = register(reference, image, 0.05, boundary="wrap", reference_mask=hole)
        assert found.dof == image.size - taken - 2
        spoiled = image.copy()
        spoiled[20 + 2, 18 - 2] = 100.0
        again = register(reference, spoiled, 0.05, boundary="wrap", reference_mask=hole)
        np.testing.assert_array_equal(again.shift, found.shift)
        np.testing.assert_array_equal(again.chi2, found.chi2)


def plate(shape):
    """Matrix of the squared Laplacian on a periodic grid."""
    n = int(np.prod(shape))
    laplacian = 2 * len(shape) * np.eye(n)
    index = np.arange(n).reshape(shape)
    for axis in range(len(shape)):
        for step in (1, -1):
            laplacian[index.ravel(), np.roll(index, step, axis).ravel()] -= 1
    return laplacian @ laplacian


@pytest.mark.parametrize("shape", [(40,), (16, 15), (8, 7, 9)])
def test_continuation_is_the_thin_plate(shape, dtype):
    """Against the dense solution, for holes; a slope goes on where a frame ends."""
    rng = np.random.default_rng(1)
    known = rng.random(shape) > 0.1
    values = 1e3 + 50 * scene(shape, 3.0, seed=2)
    matrix, inside = plate(shape), ~known.ravel()
    expected = values.ravel().copy()
    expected[inside] = np.linalg.solve(
        matrix[np.ix_(inside, inside)], -matrix[np.ix_(inside, ~inside)] @ expected[~inside]
    )
    given = jnp.asarray(np.where(known, values, -1e9), dtype)
    found = continuation.fill_smoothly(given, jnp.asarray(known))
    np.testing.assert_array_equal(np.asarray(found)[known], np.asarray(given)[known])
    error = (np.asarray(found, float).ravel() - expected)[inside]
    assert np.sqrt(np.mean(error**2)) < 0.01 * 50
    nearest = np.asarray(continuation.average_nearby(given, jnp.asarray(known)), float).ravel()
    assert np.sqrt(np.mean((nearest - expected)[inside] ** 2)) > 0.1 * 50


def test_continuation_goes_on_with_the_slope(dtype):
    """The kink at the edge of a ramp is half of that of an average; nothing known is nothing."""
    ramp = np.zeros((40, 40))
    ramp[10:30, 10:30] = 5.0 * np.arange(20)[:, None]
    known = np.zeros(ramp.shape, bool)
    known[10:30, 10:30] = True
    found, average = (
        np.asarray(f(jnp.asarray(ramp, dtype), jnp.asarray(known)))
        for f in (continuation.fill_smoothly, continuation.average_nearby)
    )
    for line, expected in ((30, 100.0), (9, -5.0)):
        kink, other = (np.abs(x[line, 12:28] - expected) for x in (found, average))
        assert np.all(kink < 0.55 * other)
    assert not np.any(continuation.fill_smoothly(jnp.zeros((8, 8), dtype), jnp.zeros((8, 8), bool)))


def test_a_peak_that_a_mask_hides_is_left_out_with_its_flanks(dtype):
    y, x = np.indices((30, 30))
    noise = np.random.default_rng(0).normal(size=y.shape)
    bright, faint = (
        p * np.exp(-((y - a) ** 2 + (x - b) ** 2) / 3.2) for p, a, b in ((3e4, 8, 9), (60.0, 20, 21))
    )
    values = bright + faint + noise
    known = values < 3000
    known[20, 21] = False
    framed = jnp.ones(known.shape, bool)
    given = jnp.asarray(np.where(known, values, 0.0), dtype)
    bare, left = continuation.without_peaks(given, jnp.asarray(known), framed)
    np.testing.assert_array_equal(left[14:], known[14:])
    filled = continuation.fill_smoothly(given, jnp.asarray(known))
    np.testing.assert_allclose(bare[14:], filled[14:], atol=0.1)
    assert np.max(np.asarray(bright)[np.asarray(left)]) < 300
    assert np.max(np.asarray(bare)[:14]) < 300
    # What is beyond the frame is no peak of it.
    _, kept = continuation.without_peaks(given, jnp.asarray(known), jnp.zeros(known.shape, bool))
    np.testing.assert_array_equal(kept, known)


@pytest.mark.parametrize(("slope", "high"), [(2.0, 1.6), (4.0, 2.0)])
@pytest.mark.parametrize("holes", [0.0, 0.1])
def test_variance_of_what_is_unknown_is_that_of_many_scenes(slope, high, holes):
    """Predicted from each scene alone; the truth is the mean square error of the moved continuation."""
    shape, n, count = (49, 49), 32, 60
    rng = np.random.default_rng(5)
    known = np.zeros(shape, bool)
    known[:n, :n] = rng.random((n, n)) >= holes
    shifts = rng.uniform(-0.5, 0.5, (count, 2))
    scenes = np.stack([scene((67, 67), slope, seed=k) for k in range(count)])
    truth = np.stack([moved(s, d)[:49, :49] for s, d in zip(scenes, shifts, strict=True)])

    def one(values):
        filled = continuation.fill_smoothly(jnp.where(known, values, 0.0), jnp.asarray(known))
        return filled, continuation.unknown_variance(filled, jnp.asarray(known))

    filled, predicted = jax.vmap(one)(jnp.asarray(scenes[:, :49, :49], np.float32))
    error = np.stack([moved(f, d) for f, d in zip(np.asarray(filled, float), shifts, strict=True)]) - truth
    judged = np.asarray(known & continuation.eroded(~continuation.in_patches(jnp.asarray(known)), MARGIN))
    ratio = np.mean(predicted[:, judged]) / np.mean(error[:, judged] ** 2)
    assert 0.75 < ratio < high
    # Next to what is unknown it is largest, as the error is.
    profile = [np.mean(error[:, 5:15, n - d] ** 2) / np.mean(predicted[:, 5:15, n - d]) for d in (3, 6, 9)]
    assert max(profile) < 3 * min(profile)


def test_masks_under_vmap_and_jit():
    reference, image = (x.astype(np.float32) for x in pair())
    masks = np.random.default_rng(7).random((3, *SHAPE)) < 0.1
    find = jax.jit(jax.vmap(lambda m: register(reference, image, 0.05, mask=m, boundary="overlap")))
    found = find(masks)
    one = jax.jit(lambda m: register(reference, image, 0.05, mask=m, boundary="overlap"))
    for i, mask in enumerate(masks):
        alone = one(mask)
        np.testing.assert_allclose(found.shift[i], alone.shift, atol=2e-6)
        assert found.dof[i] == alone.dof


def test_everything_masked_is_no_data():
    reference, image = pair()
    everything = np.ones(SHAPE, bool)
    for masks in ({"mask": everything}, {"reference_mask": everything}):
        for boundary in ("wrap", "overlap"):
            found = register(reference, image, 0.05, boundary=boundary, **masks)
            assert int(found.status) & (Status.NO_DATA | Status.LITTLE_OVERLAP)
            assert jnp.all(jnp.isnan(found.shift))


# --- boundaries --------------------------------------------------------------------------------------------


def rule_of(boundary, value):
    return Boundary(boundary, value=value if boundary == "constant" else 0.0)


def extended(reference, boundary, value):
    modes = {"constant": "constant", "reflect": "symmetric", "nearest": "edge"}
    options = {"constant_values": value} if boundary == "constant" else {}
    return np.pad(reference, [(n // 2, n - n // 2) for n in reference.shape], mode=modes[boundary], **options)


@pytest.mark.parametrize("boundary", ["constant", "reflect", "nearest"])
def test_chi2_is_that_of_the_continued_reference(boundary, x64):
    """Against explicit sums over the interpolant of the reference continued over twice the frame."""
    shape = (12, 11)
    reference, rng = scene(shape, 2.0), np.random.default_rng(0)
    image, err = rng.normal(size=shape), rng.uniform(0.5, 2.0, shape)
    surface = chi2_surface(reference, image, err, boundary=rule_of(boundary, 0.7))
    continued = extended(reference, boundary, 0.7)
    for shift in (np.array([1.3, -2.6]), np.array([-4.4, 0.0])):
        positions = [np.arange(n) + n // 2 - s for n, s in zip(shape, shift, strict=True)]
        expected = np.sum(((image - interpolate(continued, positions)) / err) ** 2)
        np.testing.assert_allclose(surface(shift), expected, rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["constant", "reflect", "nearest"])
def test_rules_hold_as_far_as_a_shift_may_go(boundary, x64):
    """Beyond half a frame: at whole shifts, by the indices that the rule says."""
    shape = (12, 11)
    reference, image = scene(shape, 2.0), np.random.default_rng(0).normal(size=shape)
    surface = chi2_surface(reference, image, 0.5, boundary=rule_of(boundary, 0.7), max_shift=np.inf)
    modes = {"constant": "constant", "reflect": "symmetric", "nearest": "edge"}
    options = {"constant_values": 0.7} if boundary == "constant" else {}
    continued = np.pad(reference, 12, mode=modes[boundary], **options)
    for y, x in ((9, -8), (-12, 11), (7, 3)):
        model = continued[12 - y : 24 - y, 12 - x : 23 - x]
        np.testing.assert_allclose(surface([y, x]), np.sum(((image - model) / 0.5) ** 2), rtol=1e-9)


def test_fill_is_constant_zero(x64):
    reference, image = pair()
    same(
        register(reference, image, 0.05, boundary="fill"),
        register(reference, image, 0.05, boundary=Boundary("constant", value=0.0)),
        1e-12,
    )


@pytest.mark.parametrize("boundary", ["constant", "reflect", "nearest"])
def test_boundaries_are_right_where_they_hold(boundary):
    """A reference continued by the rule, moved, and cropped: the rule recovers the shift, wrap does not."""
    reference = scene((40, 40), 4.0, seed=2)
    continued = extended(reference, boundary, 3.0)
    shift = np.array([5.0, -3.0])
    noise = np.random.default_rng(1).normal(scale=0.02, size=reference.shape)
    image = np.roll(continued, shift.astype(int), (0, 1))[20:60, 20:60] + noise
    found = register(reference, image, 0.02, boundary=rule_of(boundary, 3.0))
    assert_right(found, shift)
    assert 0.8 < found.reduced_chi2 < 1.2
    assert register(reference, image, 0.02, boundary="wrap").reduced_chi2 > 10


@pytest.mark.long
@pytest.mark.parametrize("shape", [(64,), (48, 50), (24, 22, 20)])
def test_overlap_is_right_on_crops(shape, dtype):
    if len(shape) == 2:
        reference, image = crops(SHIFT, shape)
    else:
        large = scene(tuple(2 * n for n in shape), 3.0, smooth=True)
        window = tuple(slice(n // 2, n // 2 + n) for n in shape)
        shift = np.array([2.3, -1.6, 0.7])[: len(shape)]
        noise = np.random.default_rng(1).normal(scale=0.05, size=shape)
        reference, image = large[window], moved(large, shift)[window] + noise
    shift = np.array([2.3, -1.6, 0.7])[: len(shape)]
    found = register(reference.astype(dtype), image.astype(dtype), 0.05, boundary="overlap")
    assert_right(found, shift)


def test_overlap_works_where_wrap_fails():
    reference, image = crops(np.array([9.4, -7.7]))
    assert_right(register(reference, image, 0.05, boundary="overlap"), np.array([9.4, -7.7]))
    wrong = register(reference, image, 0.05, boundary="wrap")
    assert np.max(np.abs(wrong.shift - np.array([9.4, -7.7])) / wrong.stderr) > 10


@pytest.mark.parametrize("small", ["reference", "image"])
def test_template_of_another_shape(small):
    large = scene((96, 90), 3.0, seed=3, smooth=True)
    rng = np.random.default_rng(0)
    corner, offset = np.array([50, 20]), np.array([0.4, -0.3])
    if small == "reference":
        reference = large[50:76, 20:52]
        image = moved(large, offset) + rng.normal(scale=0.05, size=large.shape)
        expected = corner + offset
    else:
        reference = large
        image = moved(large, offset)[50:76, 20:52] + rng.normal(scale=0.05, size=(26, 32))
        expected = -corner + offset
    assert_right(register(reference, image, 0.05, boundary="overlap"), expected)


def test_min_overlap_bounds_the_search():
    """A match that leaves a fifth of the frame is out of bounds for 0.4, and found for 0.1."""
    large = scene((128, 128), 3.0, smooth=True)
    reference, image = large[30:70, 30:70], large[54:94, 44:84]
    expected = np.array([-24.0, -14.0])
    options = {"err": 0.05, "max_shift": 30.0}
    found = register(reference, image, boundary=Boundary("overlap", min_overlap=0.1), **options)
    np.testing.assert_allclose(found.shift, expected, atol=1e-3)
    other = register(reference, image, boundary=Boundary("overlap", min_overlap=0.4), **options)
    assert np.max(np.abs(other.shift - expected)) > 1 or other.status != 0


def test_overlap_map_is_the_score_of_the_correlation(x64):
    """Against a loop over whole shifts and the pixels that both frames show."""
    reference, image = crops(np.array([2.0, -3.0]), (14, 15))
    surface = chi2_surface(reference, image, 0.05, boundary="overlap", max_shift=4)
    values = np.asarray(surface.map())
    ys, xs = surface.shifts()
    expected = np.empty((len(ys), len(xs)))
    for a, dy in enumerate(ys.astype(int)):
        for b, dx in enumerate(xs.astype(int)):
            d = image[max(dy, 0) : 14 + min(dy, 0), max(dx, 0) : 15 + min(dx, 0)]
            m = reference[max(-dy, 0) : 14 + min(-dy, 0), max(-dx, 0) : 15 + min(-dx, 0)]
            r = np.corrcoef(d.ravel(), m.ravel())[0, 1]
            expected[a, b] = d.size * np.log(1 - max(r, 0) ** 2)
    at = np.unravel_index(expected.argmin(), expected.shape)
    np.testing.assert_allclose(values - values[at], expected - expected[at], rtol=1e-6, atol=1e-6)
    # On the scale of χ², which it is where it is best.
    np.testing.assert_allclose(values[at], surface([ys[at[0]], xs[at[1]]]), rtol=1e-9)
    # Two shifts in a row are as likely as their difference says.
    probability = np.asarray(surface.posterior(20.0).probability)
    weights = np.exp(-(expected - expected.min()) / 40.0)
    np.testing.assert_allclose(probability, weights / weights.sum(), rtol=1e-6, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize(
    ("shape", "other"),
    [((30,), (30,)), ((31,), (24,)), ((16, 15), (16, 15)), ((12, 21), (19, 8)), ((8, 9, 10), (7, 9, 6))],
)
def test_frames_correlate_over_their_overlap(shape, other, dtype):
    """Number of pixels and correlation coefficient at every whole shift, one by one."""
    rng = np.random.default_rng(0)
    images = [(3 + rng.normal(size=n)).astype(dtype) for n in (shape, other)]
    model = Choices.of(max_shift=np.inf).plan(shape, other)
    prepared = layout.prepare(Pair(*map(jnp.asarray, images), jnp.asarray(0.5, dtype)), model)
    grid = searchgrid.search_shape(shape, other, model)
    part = tuple((-5, n // 4) for n in other)
    for uniform, window in ((True, None), (False, None), (True, part), (True, model.whole_window)):
        find = jax.jit(partial(correlate, shape=grid, uniform=uniform, window=window))
        found = find(prepared.frames)
        size = grid if window is None else window_shape(grid, window)
        assert found.number.shape == size
        for shift in np.ndindex(*(m + n - 1 for m, n in zip(shape, other, strict=True))):
            shift = np.array(shift) - np.array(shape) + 1
            ends = zip(shift, window or [], strict=False)
            if any(not low - BESIDE <= s <= high + BESIDE for s, (low, high) in ends):
                continue
            low, high = np.maximum(shift, 0), np.minimum(shift + shape, other)
            here = images[1][tuple(map(slice, low, high))].ravel().astype(float)
            there = images[0][tuple(map(slice, low - shift, high - shift))].ravel().astype(float)
            index = tuple(shift % size)
            assert found.number[index] == here.size
            if here.size > 3:
                expected = np.corrcoef(here, there)[0, 1]
                # The rounding of the frames' energy is added to that of the overlap.
                pairs = zip((there, here), images, strict=True)
                shares = [np.var(x) * x.size / (np.var(y) * y.size) for x, y in pairs]
                rounding = np.finfo(dtype).eps * (LEAST_SHARE + 2 * np.sqrt(images[0].size))
                atol = 4 * rounding * (1 + np.sum(1 / np.array(shares)))
                np.testing.assert_allclose(found.coefficient[index], expected, rtol=0, atol=atol)


@pytest.mark.long
def test_whole_frames_and_others_in_one_batch(dtype):
    # In float32 each of the two shifts is rounded by up to 2e-6.
    atol = 1e-10 if dtype == np.float64 else 4e-6
    # Of these sizes frames stay what they are outside jit.
    reference, image = (np.stack([x] * 3).astype(dtype) for x in crops(SHIFT, (32, 32)))
    for spoiled in ([], [1], [0, 1, 2]):
        image[spoiled, 5, 7] = np.nan
        found = jax.jit(jax.vmap(lambda a, b: register(a, b, 0.05)))(reference, image)
        for i in range(3):
            alone = register(reference[i], image[i], 0.05)
            np.testing.assert_allclose(found.shift[i], alone.shift, rtol=0, atol=atol)
            assert found.dof[i] == alone.dof
            np.testing.assert_allclose(found.runner_up.shift[i], alone.runner_up.shift, atol=2e-6)


def test_gradient_under_overlap(x64):
    # Of these sizes frames stay what they are outside jit.
    reference, image = crops(SHIFT, (32, 32))
    mask = np.random.default_rng(0).random(image.shape) < 0.05

    def position(image):
        return jnp.sum(register(reference, image, 0.05, mask=mask, boundary="overlap").shift)

    direction = np.random.default_rng(1).normal(size=image.shape)
    slope = np.sum(np.asarray(jax.grad(position)(jnp.asarray(image))) * direction)
    step = 1e-5
    expected = (position(image + step * direction) - position(image - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


# --- outliers ----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(("boundary", "err"), [("wrap", 0.05), ("overlap", None)])
def test_clip_leaves_out_cosmic_rays(boundary, err):
    reference, image = pair()
    rng = np.random.default_rng(2)
    hits = rng.random(SHAPE) < 0.03
    image[hits] += rng.uniform(2, 30, hits.sum())
    image[:, 11] = 50.0
    # Far off, or no answer at all.
    assert not np.max(np.abs(register(reference, image, err, boundary=boundary).shift - SHIFT)) < 0.1
    found = register(reference, image, err, boundary=boundary, clip=5.0)
    assert_right(found, SHIFT)
    assert found.dof <= image.size - hits.sum() - SHAPE[0]


@pytest.mark.long
def test_clip_leaves_gaussian_noise_alone(x64):
    reference, image = pair()
    err = np.full(SHAPE, 0.05)
    clipped = register(reference, image, err, boundary="wrap", clip=6.0)
    same(clipped, register(reference, image, err, boundary="wrap"), 1e-9)
    compiled = jax.jit(partial(register, boundary="wrap", clip=6.0))(reference, image, err)
    same(compiled, clipped, 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tight = register(reference, image, err, boundary="wrap", clip=1.5)
    assert tight.dof < 0.95 * clipped.dof


@pytest.mark.long
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_a_volume_of_few_planes_has_an_answer(depth, dtype):
    """The margin at the edges leaves something of the shortest axis."""
    big, rng = scene((36, 40, 16), 2.0, seed=depth), np.random.default_rng(depth)
    window = slice(8, 24), slice(8, 28), slice(5, 5 + depth)
    for shift in ((2.0, 4.0, 1.0), (1.3, -2.6, 0.4)):
        image = moved(big, shift)[window] + 0.1 * rng.normal(size=(16, 20, depth))
        found = register(big[window].astype(dtype), image.astype(dtype), 0.1)
        assert found.status == 0
        assert np.all(np.abs(found.shift - np.array(shift)) < 5 * found.stderr)


# --- frames of few shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "larger"),
    [
        ((96, 96), (96, 96)),
        ((100, 140), (192, 192)),
        ((30, 140), (32, 192)),
        ((256, 129), (256, 256)),
        ((16, 17, 33), (16, 24, 48)),
        ((33, 40, 36), None),
        ((30, 40, 25), (32, 48, 32)),
        ((65536,), (65536,)),
        ((257, 192), None),
        ((65537,), None),
        ((15, 40), None),
    ],
)
def test_larger_frames(frame, larger):
    assert larger_frames(frame, frame) == larger
    assert larger_frames(frame, (*frame[:-1], frame[-1] + 1)) is None


def test_many_shapes_have_one_program():
    shapes = [(33, 33), (34, 47), (41, 37), (48, 48)]
    measure.clear_cache()
    for shape in shapes:
        assert_right(register(*crops(SHIFT, shape), 0.05), SHIFT)
        assert_right(register(*crops(SHIFT, shape), 0.05, max_shift=5), SHIFT)
    assert measure._cache_size() == 2


def spoiled(reference, image):
    """The pair with a hole in either image."""
    reference, image = reference.copy(), image.copy()
    reference[10:12, 20], image[5, 7:9] = np.nan, np.nan
    return reference, image


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"err": 0.05},
        {"err": np.random.default_rng(5).uniform(0.04, 0.06, (41, 45))},
        {"err": 0.05, "reference_err": 0.01},
        {"fit_gain": True, "fit_background": True, "nsigma": 2.0},
        {"err": 0.05, "search": Search(fixed=(None, 0.0))},
    ],
    ids=["error", "error map", "noise in both", "unknown noise", "held axis"],
)
def test_larger_frames_hold_the_same(options, dtype):
    """Inside jit frames stay what they are; both ways differ in how far the continuation goes."""
    inside_jit = jax.jit(partial(register, **options))
    for shift in (SHIFT, np.array([14.3, -17.8])):
        if "search" in options:
            shift = shift * (1, 0)
        images = spoiled(*(x.astype(dtype) for x in crops(shift, (41, 45))))
        found, expected = register(*images, **options), inside_jit(*images)
        assert found.status == expected.status == Status.OK
        assert abs(int(found.dof) - int(expected.dof)) <= 2
        free = np.asarray(expected.stderr) > 0
        error = np.where(free, expected.stderr, 1.0)
        assert np.all(np.abs(found.shift - expected.shift) < 0.1 * error)
        np.testing.assert_allclose(found.stderr, expected.stderr, rtol=0.03)
        np.testing.assert_allclose(found.interval, expected.interval, rtol=0, atol=0.2 * error.max())
        np.testing.assert_allclose(found.chi2, expected.chi2, rtol=0.03)
        np.testing.assert_allclose(found.gain, expected.gain, rtol=0, atol=0.1 * found.gain_err)


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"max_shift": 9.5}])
def test_larger_frames_do_not_widen_the_window(options):
    """Of 41 pixels 20 may be looked at, of the 48 that they are put into 24."""
    edge = options.get("max_shift", 20.5)
    for shift, inside in ((edge - 0.7, True), (edge + 3.2, False)):
        images = crops(np.array([0.4, shift]), (48, 41), err=0.01)
        assert (register(*images, 0.01, **options).status == Status.OK) == inside


def test_clip_judges_what_was_compared():
    """What lies outside the overlap fits nothing, and is left in; so is all where nothing is wrong."""
    rng = np.random.default_rng(2)
    big = 30 * scene((96, 96), 2.0, smooth=True)
    reference, image = (big[k : k + 64, 8:72] + rng.normal(size=(64, 64)) for k in (24, 6))
    plain, clipped = (register(reference, image, 1.4, clip=clip) for clip in (None, 6.0))
    np.testing.assert_allclose(plain.shift, (18, 0), atol=0.05)
    same(clipped[:7], plain[:7], 1e-5)
    np.testing.assert_allclose(clipped.chance, plain.chance, rtol=1e-3)


def test_a_first_guess_may_be_far_off():
    """Further than half a frame, where no search would look without it; the verdict looks there too."""
    rng = np.random.default_rng(2)
    big = 5 * scene((120, 72), 2.0, seed=6, smooth=True)
    reference, image = (big[k : k + 64, 4:68] + 0.1 * rng.normal(size=(64, 64)) for k in (2, 45))
    found = register(reference, image, 0.14, search=Search(initial=(-43.4, 0.3)))
    assert found.status == Status.OK
    np.testing.assert_allclose(found.shift, (-43, 0), atol=0.05)
    assert found.runner_up.probability > 0.99
    assert np.isfinite(chi2_surface(reference, image, 0.14, search=Search(initial=(-43.0, 0.0))).map()).any()
