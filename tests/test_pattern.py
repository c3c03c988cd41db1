"""A pattern that stays in the detector: found with its error; shifts that it does not draw to zero."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene

import jaxchi2
from jaxchi2 import Status
from jaxchi2.cli import main
from jaxchi2.pattern import first_patterns, improved_pattern
from jaxchi2.stack import mean_template
from jaxchi2.stream import register_file
from jaxchi2.template import Others

N, COUNT = 32, 16
SCENE = 2 * scene((N, N), 2.0, seed=1, smooth=True)
WRAP = {"boundary": "wrap", "max_shift": 6.0}


def draw(seed, strength=0.5, reach=2.5, shape=(N, N)):
    """Frames, their shifts about the mean, and the pattern."""
    rng = np.random.default_rng(seed)
    shifts = rng.uniform(-reach, reach, (COUNT, len(shape)))
    pattern = strength * rng.normal(size=shape)
    pattern -= pattern.mean()
    image = SCENE if shape == (N, N) else 2 * scene(shape, 2.0, seed=1, smooth=True)
    stack = np.stack([moved(image, s) for s in shifts]) + pattern + rng.normal(size=(COUNT, *shape))
    return stack.astype(np.float32), shifts - shifts.mean(0), pattern


def others_of(latent):
    return Others(None, None, None, latent, None)


def posterior(shifts, power, stack):
    """Scene and pattern of one-dimensional frames by one dense least-squares problem, for known shifts."""
    n = stack.shape[1]
    waves = np.fft.fftfreq(n)
    basis = np.exp(2j * np.pi * waves[:, None] * np.arange(n)) / n
    rows = []
    for s in shifts:
        # What moves an image: each column is where one of its pixels goes.
        moving = (np.fft.fft(np.eye(n), axis=0) * np.exp(-2j * np.pi * waves * s)[:, None]).T @ basis
        rows.append(np.concatenate([moving.T.real, np.eye(n)], axis=1))
    design = np.concatenate(rows)
    prior = np.zeros(2 * n)
    prior[n:] = 1 / power
    # The constant is the scene's.
    held = np.concatenate([np.zeros(n), np.ones(n)]) * 1e6
    matrix = design.T @ design + np.diag(prior) + np.outer(held, held)
    inverse = np.linalg.inv(matrix)
    return (inverse @ design.T @ stack.ravel())[n:], np.diag(inverse)[n:]


def test_one_step_is_the_posterior_of_scene_and_pattern(x64):
    """On periodic frames with known shifts: against a dense solution with the same prior."""
    rng = np.random.default_rng(0)
    n, count = 21, 9
    shifts = rng.uniform(-3, 3, count)
    pattern = 0.7 * rng.normal(size=n)
    image = 3 * scene((n,), 1.0, seed=2)
    stack = np.stack([moved(image, s[None]) for s in shifts]) + pattern + rng.normal(size=(count, n))
    first = 0.3 * rng.normal(size=n)
    first -= first.mean()
    latent = np.mean([moved(d - first, -s[None]) for d, s in zip(stack, shifts, strict=True)], axis=0)
    found = improved_pattern(
        jnp.asarray(stack),
        jnp.asarray(first),
        jnp.asarray(shifts)[:, None],
        others_of(jnp.asarray(latent)),
        jnp.ones(count, bool),
        jnp.ones(()),
        True,
        count,
    )
    # The power that it has taken follows from the variance of an even frame.
    waves = 2 * np.pi * np.fft.fftfreq(n)[1:]
    apart = 1 - np.abs(np.exp(-1j * waves * shifts[:, None]).mean(0)) ** 2
    powers = np.geomspace(1e-3, 1e2, 4001)
    variances = (powers[:, None] / (1 + powers[:, None] * count * apart)).sum(1) / (n - 1)
    power = np.interp(float(found.variance[0]), variances, powers)
    image, variance = posterior(shifts, power, stack)
    np.testing.assert_allclose(found.image, image, atol=2e-4)
    np.testing.assert_allclose(found.variance, variance * n / (n - 1), rtol=2e-3)
    assert bool(found.separated)


def test_first_guesses_have_hot_pixels_and_columns_and_leave_a_wide_star():
    y, x = np.indices((N, N))
    star = 50 * np.exp(-((y - 20) ** 2 + (x - 9) ** 2) / 6)
    rng = np.random.default_rng(3)
    stack = star + rng.normal(size=(COUNT, N, N))
    stack[:, 5, 7] += 40
    stack[:, :, 15] += 6
    first, second = np.asarray(first_patterns(jnp.asarray(stack, jnp.float32)))
    for guess in (first, second):
        assert 35 < guess[5, 7] < 42
        np.testing.assert_allclose(guess[:, 15].mean(), 6, atol=1)
    assert np.abs(first[18:23, 7:12]).max() < 2
    assert second[20, 9] > 5


@pytest.mark.long
def test_pattern_and_shifts_reach_their_errors():
    """Sixteen frames, a pattern of half the noise; without looking for it, shifts are locked."""
    run = jax.jit(
        lambda x: jax.lax.map(lambda s: jaxchi2.register_jointly(s, 1.0, static_pattern=True, **WRAP), x)
    )
    draws = [draw(seed) for seed in range(16)]
    stacks, shifts, patterns = (np.stack(x) for x in zip(*draws, strict=True))
    found = run(jnp.asarray(stacks))
    assert np.all(found.accepted)
    pulls = (np.asarray(found.shift) - shifts) / np.asarray(found.stderr)
    # 480 independent pulls, known to 3.2 %: five of these are 16 %. The error of the pattern is not in them.
    assert 0.86 < np.sqrt(np.mean(pulls**2)) < 1.2
    error = np.asarray(found.pattern) - patterns
    pull = error / np.sqrt(np.asarray(found.pattern_variance))
    # 16 × 1024 pixels, half a per cent.
    assert 0.96 < np.sqrt(np.mean(pull**2)) < 1.05
    # Half the noise over the root of sixteen would be the error if all frames told nothing but the pattern.
    assert np.sqrt(np.mean(error**2)) < 0.27
    np.testing.assert_allclose(found.pattern.mean((1, 2)), 0, atol=1e-5)


def test_joint_solution_of_one_stack(dtype):
    stack, shifts, pattern = draw(1)
    pattern[5, 6], pattern[20, 3] = pattern[5, 6] + 60, pattern[20, 3] - 40
    stack[:, 5, 6], stack[:, 20, 3] = stack[:, 5, 6] + 60, stack[:, 20, 3] - 40
    pattern -= pattern.mean()
    found = jaxchi2.register_jointly(stack.astype(dtype), 1.0, static_pattern=True, **WRAP)
    assert found.pattern.dtype == found.pattern_variance.dtype == found.shift.dtype == dtype
    assert np.all(found.status == 0)
    assert np.all(np.abs(found.shift - shifts) < 6 * found.stderr)
    pull = (np.asarray(found.pattern) - pattern) / np.sqrt(found.pattern_variance)
    # 1024 pixels: 2.2 %.
    assert 0.88 < np.std(pull) < 1.12
    assert abs(pull[5, 6]) < 5
    assert abs(pull[20, 3]) < 5
    # What it is for: without it hot pixels hold all frames at zero.
    locked = jaxchi2.register_stack(
        stack.astype(dtype), "first", 1.0, reference_err=1.0, verdict=False, **WRAP
    )
    assert np.all(np.abs(locked.shift) < 0.1)


def test_frames_without_a_pattern_are_as_without_looking_for_it():
    stack, _, _ = draw(2, strength=0.0)
    found = jaxchi2.register_jointly(stack, 1.0, static_pattern=True, **WRAP)
    plain = jaxchi2.register_jointly(stack, 1.0, **WRAP)
    assert plain.pattern is None
    assert plain.pattern_variance is None
    assert np.all(found.status == 0)
    # The rounds end within a tenth of an error.
    assert np.all(np.abs(found.shift - plain.shift) < 0.5 * plain.stderr)
    assert np.sqrt(np.mean(np.square(found.pattern))) < 0.05
    assert np.all(found.pattern_variance > 0)


def test_frames_that_do_not_move_are_named():
    stack, _, _ = draw(3, reach=0.0)
    found = jaxchi2.register_jointly(stack, 1.0, static_pattern=True, **WRAP)
    assert np.all(found.status & Status.STATIC_PATTERN)
    assert np.all(np.isfinite(found.pattern))
    assert np.all(np.isnan(found.pattern_variance))
    # The shifts are what they would be: the pattern is the scene's.
    assert np.all(np.abs(found.shift) < 6 * found.stderr)
    template, rows = mean_template(stack, 1.0, static_pattern=True, **WRAP)
    assert np.all(rows.status & Status.STATIC_PATTERN)
    assert np.all(np.isnan(template.pattern_variance))
    later = jaxchi2.register_stack(stack, template, **WRAP)
    assert np.all(later.status & Status.STATIC_PATTERN)


@pytest.mark.long
def test_masked_pixels_have_no_part():
    """Wild values in one frame and a dead corner in all: "overlap", errors of each frame."""
    stack, shifts, pattern = draw(4)
    mask = np.zeros(stack.shape, bool)
    mask[3, 10:14, 10:14] = True
    mask[:, 27:30, 3:6] = True
    stack[mask] = 1e4
    err = np.where(np.arange(COUNT) < 8, 1.0, 1.1).astype(np.float32)
    found = jaxchi2.register_jointly(stack, err, mask=mask, max_shift=6.0, static_pattern=True)
    assert np.all(found.accepted)
    # Frames that are periodic are not, for "overlap".
    assert np.all(np.abs(found.shift - shifts) < 8 * found.stderr)
    here = (slice(6, 26),) * 2
    pull = (np.asarray(found.pattern) - pattern)[here] / np.sqrt(np.asarray(found.pattern_variance)[here])
    assert 0.8 < np.std(pull) < 1.25
    # Where no frame has a value, the pattern is what it is anywhere.
    dead, usual = found.pattern_variance[28, 4], found.pattern_variance[here].mean()
    assert dead > 2 * usual
    assert abs(found.pattern[28, 4]) < 1


@pytest.mark.long
def test_volumes():
    stack, shifts, pattern = draw(5, shape=(12, 14, 16))
    found = jaxchi2.register_jointly(stack, 1.0, static_pattern=True, **WRAP)
    good = np.asarray(found.accepted)
    assert good.all()
    assert np.all(np.abs(found.shift - shifts) < 6 * found.stderr)
    pull = (np.asarray(found.pattern) - pattern) / np.sqrt(found.pattern_variance)
    assert 0.75 < np.std(pull) < 1.25


@pytest.mark.parametrize("err", [1.0, None])
def test_mean_of_a_stack(err):
    stack, shifts, pattern = draw(6)
    template, found = mean_template(stack, err, static_pattern=True, **WRAP)
    assert np.all(np.abs(found.shift - shifts) < 6 * found.stderr)
    pull = (np.asarray(template.pattern) - pattern) / np.sqrt(template.pattern_variance)
    assert 0.88 < np.std(pull) < 1.12
    rows = jaxchi2.register_stack(stack, err=err, static_pattern=True, **WRAP)
    np.testing.assert_allclose(rows.shift, found.shift, atol=1e-4)
    # A frame that is not among them: the pattern is taken from it too.
    later = jaxchi2.register_stack(stack[:2] + 0.0, template, err, **WRAP)
    assert np.all(np.abs(later.shift - shifts[:2]) < 6 * later.stderr)


def test_files_and_the_command_line(tmp_path, capsys):
    """The mean of a file and its pattern, without which the frames are aligned."""
    stack, _, _ = draw(6)
    np.save(tmp_path / "stack.npy", stack)
    template, found = mean_template(stack, 1.0, static_pattern=True, **WRAP)
    result = register_file(
        tmp_path / "stack.npy",
        "mean",
        1.0,
        aligned=tmp_path / "aligned.npy",
        static_pattern=True,
        progress=False,
        **WRAP,
    )
    np.testing.assert_allclose(result.shift, found.shift, atol=1e-5)
    expected = jaxchi2.align_stack(stack - template.pattern[None], found.shift, boundary="wrap").image
    np.testing.assert_allclose(np.load(tmp_path / "aligned.npy"), expected, atol=1e-3)
    files = [str(tmp_path / "stack.npy"), "--err", "1", "--boundary", "wrap", "--max-shift", "6"]
    main(["stack", *files, "--static-pattern", "--json"])
    shift = np.array(json.loads(capsys.readouterr().out)["shift"])
    np.testing.assert_allclose(shift, found.shift, atol=1e-5)


def test_options_that_do_not_go_together():
    stack = np.zeros((4, 8, 8))
    with pytest.raises(ValueError, match="static_pattern must be False, or the reference the mean"):
        jaxchi2.register_stack(stack, "first", 1.0, static_pattern=True)
    template, _ = mean_template(draw(7)[0][:4], 1.0, **WRAP)
    with pytest.raises(ValueError, match="static_pattern must be False for a MeanTemplate"):
        jaxchi2.register_stack(draw(7)[0], template, static_pattern=True, **WRAP)
