"""Stacks: every frame as by itself, whatever the chunk, the reference and the options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene

import jaxchi2
import jaxchi2.stack
from jaxchi2 import Search
from jaxchi2.batch import default_batch_size, in_chunks
from jaxchi2.engine.ways import Way
from jaxchi2.status import Status

SHAPE = (16, 18)
COUNT = 7
rng = np.random.default_rng(5)
SCENE = scene(SHAPE, 2.0, seed=3, smooth=True)
SHIFTS = rng.uniform(-2.5, 2.5, (COUNT, 2))
STACK = np.stack([moved(SCENE, s) for s in SHIFTS]) + 0.1 * rng.normal(size=(COUNT, *SHAPE))
ERR_MAP = rng.uniform(0.08, 0.15, SHAPE)
HOLES = STACK.copy()
HOLES[2, 3, 4] = np.nan
HOLES[4] = np.nan
BAD_MAP = np.where(rng.random(SHAPE) < 0.1, np.nan, ERR_MAP)
COMMON_MASK = rng.random(SHAPE) < 0.1

CASES = {
    "one error": (STACK, 0.1, {}),
    "window": (STACK, 0.1, {"max_shift": [2.9, 2.8]}),
    "unknown error": (STACK, None, {}),
    "error map": (STACK, ERR_MAP, {"max_shift": 2.9}),
    "gain and background": (STACK, BAD_MAP, {"fit_gain": True, "fit_background": True, "max_shift": 2.9}),
    "mask": (STACK, None, {"mask": COMMON_MASK}),
    "holes": (HOLES, 0.1, {}),
    "mask of the reference": (STACK, 0.1, {"reference_mask": COMMON_MASK}),
    "noise in both": (STACK, 0.1, {"reference_err": 0.1}),
    "overlap": (HOLES, ERR_MAP, {"boundary": "overlap"}),
}


def same(found, expected, rtol):
    """All fields equal to rounding; χ² differences, small ones of large numbers, to that of their size."""
    for name, a, b in zip(found._fields, found, expected, strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            atol = 300 * rtol if name == "runner_up" else rtol
            np.testing.assert_allclose(x, y, rtol, atol, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_frame_of_a_stack_is_as_by_itself(name, x64):
    stack, err, options = CASES[name]
    options = {"boundary": "wrap"} | options
    found = jaxchi2.register_stack(stack, SCENE, err, batch_size=3, **options)
    alone = jax.jit(lambda image: jaxchi2.register(SCENE, image, err, **options))
    expected = jax.tree.map(lambda *x: np.stack(x), *[alone(image) for image in stack])
    same(found, expected, 1e-9)
    assert np.all(found.status[~np.isfinite(stack).any((1, 2))] & Status.NO_DATA)


def test_a_blank_frame_does_not_make_the_stack_run_twice(monkeypatch):
    """It has no answer either way; a frame with a bad pixel may have one that the quick way does not find."""
    runs = []

    def counted(*args):
        runs.append(args[-1])
        return register(*args[:-1], Way.QUICK)

    register = jaxchi2.stack._register_stack
    monkeypatch.setattr(jaxchi2.stack, "_register_stack", counted)

    def run(stack, reference=SCENE, err=0.1):
        runs.clear()
        options = {"boundary": "wrap", "max_shift": 2.9, "verdict": False}
        return jaxchi2.register_stack(stack.astype(np.float32), reference.astype(np.float32), err, **options)

    blank = STACK.copy()
    blank[1], blank[5] = 0.0, 7.25
    found = run(blank)
    assert runs == [Way.QUICK]
    assert np.all((found.status == Status.FLAT) == np.isin(np.arange(COUNT), [1, 5]))
    assert np.all(np.isnan(np.asarray(found.shift)[[1, 5]]))
    for stack, reference, err in [
        (np.where(blank == blank[3, 2, 2], np.nan, blank), SCENE, 0.1),
        (np.full_like(blank, np.inf), SCENE, 0.1),
        (blank, np.where(SCENE[0, 0] == SCENE, np.nan, SCENE), 0.1),
        (np.zeros_like(blank), SCENE, np.nan),
    ]:
        run(stack, reference, err)
        assert runs == [Way.QUICK, Way.BY_VALUES]


def test_float32(dtype):
    found = jaxchi2.register_stack(STACK.astype(dtype), SCENE.astype(dtype), 0.1, boundary="wrap")
    assert found.shift.dtype == dtype
    pulls = (found.shift - SHIFTS) / found.stderr
    # 14 normal deviates: the root mean square above 1.9 once in a million.
    assert np.sqrt(np.mean(np.square(pulls))) < 1.9


@pytest.mark.long
def test_each_frame_its_own(x64):
    """Errors, masks, references and first guesses for every frame."""
    errs = rng.uniform(0.08, 0.15, COUNT)
    masks = rng.random(STACK.shape) < 0.05
    guesses = np.round(SHIFTS)
    options = {"boundary": "wrap", "verdict": False}
    found = jaxchi2.register_stack(
        STACK, STACK[::-1], errs, mask=masks, search=Search(initial=SHIFTS - SHIFTS[::-1]), **options
    )
    expected = jax.vmap(
        lambda reference, image, err, mask, initial: jaxchi2.register(
            reference, image, err, mask=mask, search=Search(initial=initial), **options
        )
    )(STACK[::-1], STACK, errs, masks, SHIFTS - SHIFTS[::-1])
    same(found, expected, 1e-9)
    prior = (guesses, np.tile(0.1 * np.eye(2), (COUNT, 1, 1)))
    found = jaxchi2.register_stack(STACK, SCENE, 0.1, search=Search(prior=prior), **options)
    expected = jax.vmap(
        lambda image, *prior: jaxchi2.register(SCENE, image, 0.1, search=Search(prior=prior), **options)
    )(STACK, *prior)
    same(found, expected, 1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 7, 100])
def test_chunks_cover_every_frame_once(batch_size):
    frames = {"a": jnp.arange(7.0), "b": jnp.arange(14).reshape(7, 2)}
    found = in_chunks(lambda x: x["a"] * 2 + x["b"].sum(1), frames, batch_size)
    np.testing.assert_array_equal(found, 2 * np.arange(7.0) + frames["b"].sum(1))


@pytest.mark.long
def test_chunked_is_unchunked(x64):
    whole = jaxchi2.register_stack(HOLES, "first", 0.1, boundary="wrap", verdict=False, batch_size=COUNT)
    chunked = jaxchi2.register_stack(HOLES, "first", 0.1, boundary="wrap", verdict=False, batch_size=2)
    same(whole, chunked, 1e-10)


def test_references(x64):
    options = {"boundary": "wrap", "verdict": False}
    first = jaxchi2.register_stack(HOLES, "first", 0.1, **options)
    same(first, jaxchi2.register_stack(HOLES, HOLES[0], 0.1, **options), 1e-10)
    assert np.all(first.shift[0] == 0)
    steps = jaxchi2.register_stack(STACK, "previous", 0.1, **options)
    expected = np.diff(SHIFTS, axis=0)
    # Noise in both: √2 of the quoted error; 12 deviates above 5.5 of those once in a million.
    assert np.all(np.abs(steps.shift[1:] - expected) < 5.5 * np.sqrt(2) * steps.stderr[1:])
    assert np.all(steps.shift[0] == 0)


def noisy_stacks(count, sigma, stacks, seed):
    """Frames of one scene on paths of ±2.5 pixels, and their positions."""
    draw = np.random.default_rng(seed)
    for _ in range(stacks):
        shifts = draw.uniform(-2.5, 2.5, (count, 2))
        frames = np.stack([moved(SCENE, s) for s in shifts]) + sigma * draw.normal(size=(count, *SHAPE))
        yield frames.astype(np.float32), shifts


MEAN = {"reference": "mean", "boundary": "wrap", "verdict": False}


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False])
def test_a_mean_does_not_hold_the_frames_own_noise(known):
    """Eight frames at S/N 2, errors given and not: pulls of one, on the mean's own position.

    14 degrees of freedom a stack: the root mean square of 280 pulls is known to 4.2 %, of which 30 % are 7.
    """
    pulls = []
    for frames, shifts in noisy_stacks(8, 0.5, 20, 1):
        found = jaxchi2.register_stack(frames, err=0.5 if known else None, **MEAN)
        assert np.all(found.noise_known == known)
        assert np.all(found.status == 0)
        np.testing.assert_allclose(np.mean(found.shift, 0), 0, atol=1e-5)
        pulls.append((found.shift - (shifts - shifts.mean(0))) / found.stderr)
        if not known:
            # A sum of squares, in units of the images; the median of 8 of 286 ± 24 degrees of freedom.
            np.testing.assert_allclose(np.median(found.reduced_chi2), 0.25, rtol=0.35)
    assert 0.7 < np.sqrt(np.mean(np.square(pulls)) * 8 / 7) < 1.3


@pytest.mark.long
def test_odd_frames_and_masked_pixels_have_no_part_in_the_mean():
    """One of NaN, one bright, one saturated, at the beginning; a scatter of wild pixels, which are masked."""
    frames, shifts = next(noisy_stacks(8, 0.1, 1, 2))
    mask = np.random.default_rng(5).random(frames.shape) < 0.02
    frames[0], frames[1], frames[2] = np.nan, 5e4 * (1 + SCENE), 4095.0
    found = jaxchi2.register_stack(np.where(mask, 1e4, frames), err=0.1, mask=mask, **MEAN)
    assert np.all(found.status[:3] != 0)
    assert np.all(found.status[3:] == 0)
    truth = shifts - shifts[3:].mean(0)
    assert np.all(np.abs(found.shift - truth)[3:] < 6 * found.stderr[3:])
    assert np.max(found.stderr[3:]) < 0.05


def test_a_mean_of_some_frames_serves_the_others(monkeypatch):
    """Every third of 12 frames makes it, and their mean position is zero."""
    monkeypatch.setattr("jaxchi2.mean.MEAN_FRAMES", 4)
    monkeypatch.setattr("jaxchi2.mean.LEAST_MEAN_FRAMES", 4)
    pulls = []
    for frames, shifts in noisy_stacks(12, 0.1, 8, 3):
        found = jaxchi2.register_stack(frames, err=0.1, **MEAN)
        np.testing.assert_allclose(np.mean(found.shift[::3], 0), 0, atol=1e-5)
        pulls.append((found.shift - (shifts - shifts[::3].mean(0))) / found.stderr)
    # Frames that the mean is not made of have the noise of its position in common, which is not quoted:
    # 16 numbers for 4 frames, a fifth of the variance.
    assert 0.7 < np.sqrt(np.mean(np.square(pulls))) < 1.45


def test_a_first_guess_is_where_the_mean_begins():
    """Paths of half the frame, where one frame may be found anywhere in another."""
    frames, shifts = next(noisy_stacks(8, 0.5, 1, 6))
    guess = np.round(shifts - shifts.mean(0))
    found = jaxchi2.register_stack(frames, err=0.5, search=Search(initial=guess), **MEAN)
    assert np.all(np.abs(found.shift - (shifts - shifts.mean(0))) < 6 * found.stderr)


def test_jit_and_gradient(x64):
    """In a program of the user's, differentiable through chunks and reference."""

    @jax.jit
    def loss(stack):
        return jnp.sum(jaxchi2.register_stack(stack, "first", 0.1, boundary="wrap", batch_size=2).shift ** 2)

    direction = rng.normal(size=STACK.shape)
    found = jnp.vdot(jax.jit(jax.grad(loss))(STACK), direction)
    step = 1e-4
    expected = (loss(STACK + step * direction) - loss(STACK - step * direction)) / (2 * step)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_volumes(x64):
    volume = scene((6, 8, 7), 2.0, seed=2, smooth=True)
    shifts = np.array([[0.4, -1.2, 0.7], [-0.3, 0.8, 1.1]])
    stack = np.stack([moved(volume, s) for s in shifts])
    found = jaxchi2.register_stack(stack, volume, 0.1, boundary="wrap", verdict=False)
    np.testing.assert_allclose(found.shift, shifts, atol=1e-9)


def test_inputs_stay_as_they_are():
    stack = np.asfortranarray(STACK.astype(">f4"))
    before = stack.copy()
    jaxchi2.register_stack(stack, "first", 0.1, boundary="wrap", verdict=False)
    np.testing.assert_array_equal(stack, before)


def test_batch_size_follows_memory(monkeypatch):
    small = default_batch_size((32, 32), 4)
    assert small > default_batch_size((512, 512), 4) >= 1
    assert default_batch_size((32, 32), 4, memory_limit=24 * 4096 * 3) == 3
    assert default_batch_size((32, 32), 4, memory_limit=40 * 4096 * 3, padded=True) == 3
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    many = default_batch_size((64, 64), 4, memory_limit=2**45)
    assert many * 5 * 64 * 64 * 4 <= 2**32
    with pytest.raises(ValueError, match=r"memory_limit must leave room for one frame, \d+ bytes, not 5"):
        default_batch_size((32, 32), 4, memory_limit=5)


REFUSED = [
    (ValueError, "stack must have shape", {"stack": SCENE}),
    (ValueError, "stack must have shape", {"stack": STACK[:0]}),
    (TypeError, "stack must be an array of real", {"stack": STACK.astype(complex)}),
    (ValueError, "reference must be one of", {"reference": "median"}),
    (ValueError, "reference must have the 2 axes", {"reference": STACK[:3]}),
    (
        ValueError,
        r"err must be a scalar, one per frame, \(7,\), or have the shape of a frame",
        {"err": np.ones(3)},
    ),
    (ValueError, r"reference_err must be a scalar, one per frame", {"reference_err": np.ones((2, 2))}),
    (TypeError, "mask must be boolean", {"mask": np.ones(SHAPE)}),
    (
        ValueError,
        r"mask must have the shape of a frame, \(16, 18\), or of stack, \(7, 16, 18\), not",
        {"mask": np.ones(3, bool)},
    ),
    (ValueError, r"initial must have shape \(2,\) or \(7, 2\)", {"search": Search(initial=np.zeros((3, 2)))}),
    (TypeError, "search must be a Search", {"search": None}),
    (ValueError, "batch_size must be a positive integer", {"batch_size": 0}),
    (TypeError, "batch_size must be a positive integer", {"batch_size": True}),
    (ValueError, "memory_limit must leave room", {"memory_limit": 10}),
    (TypeError, "mesh must be a jax.sharding.Mesh", {"mesh": 8}),
    (TypeError, "verdict must be True or False", {"verdict": "no"}),
    (ValueError, "boundary must be one of", {"boundary": "periodic"}),
    (ValueError, "clip must be a number", {"clip": 0.5}),
    (TypeError, "clip must be a number", {"clip": [5]}),
    (TypeError, "verdict must be True or False", {"verdict": {}}),
    (TypeError, "nsigma must be an array of real", {"nsigma": "a"}),
    (ValueError, "nsigma must be a positive scalar", {"nsigma": -1}),
    (ValueError, "nsigma must be a positive scalar", {"nsigma": 0}),
    (ValueError, "nsigma must be a positive scalar", {"nsigma": np.nan}),
    (ValueError, "nsigma must be a positive scalar", {"nsigma": [1.0, 2.0]}),
    (TypeError, "fit_gain must be True or False", {"fit_gain": []}),
    (TypeError, "fit_background must be True or False", {"fit_background": {}}),
    (TypeError, "max_shift must be static real", {"max_shift": "a"}),
    (TypeError, "memory_limit must be a positive integer", {"memory_limit": "a"}),
    (ValueError, "reference_err must not be given for the mean", {"reference": "mean", "reference_err": 0.1}),
]


@pytest.mark.parametrize(("error", "message", "given"), REFUSED)
def test_bad_input_raises_at_once(error, message, given):
    arguments = {"stack": STACK, "reference": "first", "err": 0.1, "boundary": "wrap"} | given
    with pytest.raises(error, match=message):
        jaxchi2.register_stack(**arguments)


@pytest.mark.parametrize("kind", ["first", "previous"])
def test_masked_pixels_of_a_frame_have_no_part_in_it_as_a_reference(kind):
    """A bad column and a star that is in one frame alone, masked there: as with a mask of the reference."""
    frames = STACK[:3].astype(np.float32).copy()
    masks = np.zeros(frames.shape, bool)
    masks[0, 6:10, 6:10], masks[1, :, 5] = True, True
    frames[masks] += 50.0
    found = jaxchi2.register_stack(frames, kind, 0.1, mask=masks, verdict=False)
    for k in (1, 2):
        of = 0 if kind == "first" else k - 1
        masked = {"mask": masks[k], "reference_mask": masks[of]}
        # Inside jit, where frames are not put into larger ones.
        expected = jax.jit(partial(jaxchi2.register, verdict=False))(frames[of], frames[k], 0.1, **masked)
        np.testing.assert_allclose(found.shift[k], expected.shift, atol=2e-5)
        assert found.status[k] == expected.status == 0
