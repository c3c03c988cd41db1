"""All frames at once: the bound of N frames, covariances, rejection, drift."""

import jax
import numpy as np
import pytest
from direct import moved, scene

import jaxchi2
from jaxchi2.joint import solve_chain

N = 32
rng = np.random.default_rng(2)
SCENE = scene((N, N), 2.0, seed=1, smooth=True)


def frames(shifts, sigma, seed):
    noise = np.random.default_rng(seed).normal(size=(len(shifts), N, N))
    return np.stack([moved(SCENE, s) for s in shifts]) + sigma * noise


def bound(sigma, count):
    """Standard error of a shift against the mean of all: the module's formula with the scene's spectrum."""
    k = 2 * np.pi * np.fft.fftfreq(N)
    power = np.abs(np.fft.fft2(SCENE)) ** 2 / N**2
    total = count / sigma**2
    information = np.sum(k[:, None] ** 2 * power**2 / (1 + total * power)) * total / sigma**2
    return np.sqrt((1 - 1 / count) / information)


@pytest.mark.long
def test_reaches_the_bound_of_many_frames_which_pairs_do_not():
    """The scatter, the quoted errors, and the scatter of pairs, over 40 stacks of 10 frames at S/N ⅔."""
    sigma, count, stacks = 1.5, 10, 40
    joint, pulls, single, quoted = [], [], [], []
    for seed in range(stacks):
        shifts = np.random.default_rng(1000 + seed).uniform(-1.5, 1.5, (count, 2))
        stack = frames(shifts, sigma, seed).astype(np.float32)
        options = {"boundary": "wrap", "max_shift": 6.0}
        found = jaxchi2.register_jointly(stack, sigma, **options)
        error = np.asarray(found.shift) - (shifts - shifts.mean(0))
        joint.append(error[1:] - error[:1])
        pulls.append(error / found.stderr)
        quoted.append(found.stderr)
        pair = jaxchi2.register_stack(stack, "first", sigma, reference_err=sigma, verdict=False, **options)
        single.append(np.asarray(pair.shift)[1:] - (shifts[1:] - shifts[:1]))
        assert np.all(found.accepted)
    # 720 independent pulls: their root mean square is known to 2.6 %, five of which are 13 %.
    assert 0.87 < np.sqrt(np.mean(np.square(pulls))) < 1.13
    difference = np.sqrt(2 / (1 - 1 / count)) * bound(sigma, count)
    # Differences with one frame in common count for half as many numbers.
    assert np.sqrt(np.mean(np.square(joint))) < 1.3 * difference
    assert np.sqrt(np.mean(np.square(single))) > 1.1 * np.sqrt(np.mean(np.square(joint)))
    np.testing.assert_allclose(np.mean(quoted), bound(sigma, count), rtol=0.08)


def test_exact_without_noise(x64):
    shifts = rng.uniform(-2, 2, (5, 2))
    found = jaxchi2.register_jointly(frames(shifts, 0.0, 0), 0.01, boundary="wrap", tolerance=1e-6)
    np.testing.assert_allclose(found.shift, shifts - shifts.mean(0), atol=1e-7)
    np.testing.assert_allclose(np.mean(found.shift, 0), 0, atol=1e-12)
    assert found.moved <= 1e-6


@pytest.mark.long
def test_bad_frames_are_rejected_and_reported():
    """Another scene, a dead frame, and one that only has a few wild pixels too many."""
    shifts = np.linspace([-1.0, 0.5], [1.0, -0.5], 8)
    stack = frames(shifts, 0.3, 4)
    stack[2] = scene((N, N), 2.0, seed=77, smooth=True) + 0.3 * rng.normal(size=(N, N))
    stack[5] = np.nan
    stack[6, ::5, ::5] += 5.0
    found = jaxchi2.register_jointly(stack, 0.3, boundary="wrap")
    np.testing.assert_array_equal(found.accepted, [True, True, False, True, True, False, False, True])
    good = np.asarray(found.accepted)
    assert np.all(np.isnan(found.shift[~good]))
    assert np.all(found.registration.status[5] != 0)
    assert found.registration.p_value[2] < 1e-6
    truth = shifts - shifts[good].mean(0)
    assert np.all(np.abs(found.shift - truth)[good] < 6 * found.stderr[good])
    # The image is that of the accepted frames; the Nyquist waves of even axes lose some of their noise.
    np.testing.assert_allclose(found.variance, 0.3**2 / 5, rtol=0.05)


EIGHT = np.linspace([-1.0, 0.5], [1.0, -0.5], 8)


def test_any_frame_may_be_dead():
    """The first of NaN, or constant: the other seven are as they are, and it says why it is not."""
    for value, flag in ((np.nan, jaxchi2.Status.NO_DATA), (3.0, jaxchi2.Status.FLAT)):
        stack = frames(EIGHT, 0.3, 4)
        stack[0] = value
        found = jaxchi2.register_jointly(stack, 0.3, boundary="wrap")
        np.testing.assert_array_equal(found.accepted, np.arange(8) > 0)
        np.testing.assert_array_equal(found.status, np.where(np.arange(8) > 0, 0, flag))
        truth = EIGHT - EIGHT[1:].mean(0)
        assert np.all(np.abs(found.shift - truth)[1:] < 6 * found.stderr[1:])


def test_unrelated_frames_are_rejected_however_noisy():
    """Two in a stack below the noise, and all of a stack of noise."""
    for seed in (4, 5, 6):
        stack = frames(EIGHT, 1.5, seed)
        for i in (2, 5):
            other = scene((N, N), 2.0, seed=70 + i, smooth=True)
            stack[i] = other + 1.5 * np.random.default_rng((seed, i)).normal(size=(N, N))
        found = jaxchi2.register_jointly(stack, 1.5, boundary="wrap")
        related = ~np.isin(np.arange(8), (2, 5))
        np.testing.assert_array_equal(found.accepted, related)
        np.testing.assert_array_equal(found.status == 0, related)
        np.testing.assert_array_equal(found.status & jaxchi2.Status.UNRELATED == 0, related)
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(size=(8, N, N))
        found = jaxchi2.register_jointly(noise, 1.0, boundary="wrap")
        assert np.all(found.status != 0)
        assert not np.any(found.accepted)


def test_rounds_that_do_not_suffice_are_a_status_of_every_frame():
    stack = frames(4 * EIGHT, 1.5, 4)
    found = jaxchi2.register_jointly(stack, 1.5, boundary="wrap", max_rounds=1)
    assert found.rounds == 1
    assert np.all(found.status & jaxchi2.Status.NOT_CONVERGED)
    found = jaxchi2.register_jointly(stack, 1.5, boundary="wrap")
    assert np.all(found.status == 0)


def test_a_clean_solution_has_no_nan():
    """Not in any field: ``jax.debug_nans`` looks at all of them."""
    found = jaxchi2.register_jointly(frames(EIGHT, 0.3, 4), 0.3, boundary="wrap")
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))


@pytest.mark.long
def test_drift_prior_tells_the_minima_of_a_lattice_apart():
    """Waves of 8 pixels, a walk over more than that: without the prior every eighth pixel is as good."""
    count, sigma, step = 16, 0.3, 0.8
    shifts = np.cumsum(np.random.default_rng(2).normal((0.4, 0.0), step, (count, 2)), 0)
    assert np.max(np.ptp(shifts, 0)) > 8
    y, x = (2 * np.pi * g / 8 for g in np.indices((N, N)))
    stack = np.stack([np.cos(y - np.pi * a / 4) + np.cos(x - np.pi * b / 4) for a, b in shifts])
    stack = stack + sigma * np.random.default_rng(4).normal(size=stack.shape)
    found = jaxchi2.register_jointly(stack, sigma, boundary="wrap", drift=step, max_shift=np.inf)
    assert np.all(found.accepted)
    assert np.all(found.status == 0)
    assert np.all(np.abs(found.shift - (shifts - shifts.mean(0))) < 6 * found.stderr)


@pytest.mark.long
def test_drift_prior_bridges_a_gap_and_lowers_the_scatter():
    step, sigma, count = 0.05, 1.5, 24
    shifts = np.cumsum(np.random.default_rng(8).normal(0, step, (count, 2)), 0)
    stack = frames(shifts, sigma, 9)
    stack[11:13] = np.nan
    free = jaxchi2.register_jointly(stack, sigma, boundary="wrap", max_shift=5.0)
    held = jaxchi2.register_jointly(stack, sigma, boundary="wrap", max_shift=5.0, drift=step)
    good = np.asarray(held.accepted)
    assert not good[11:13].any()
    truth = shifts - shifts[good].mean(0)
    assert np.all(np.isfinite(held.shift))
    assert np.all(np.abs(held.shift - truth) < 6 * held.stderr)
    assert np.sqrt(np.mean((held.shift - truth)[good] ** 2)) < 0.7 * np.sqrt(
        np.nanmean((free.shift - (shifts - shifts[np.asarray(free.accepted)].mean(0))) ** 2)
    )
    assert np.all(held.stderr[12] > held.stderr[9])


def test_covariances_are_the_inverse_of_the_joint_hessian(x64):
    """The chain against one dense matrix, marginals and between frames, with and without a prior."""
    count, ndim = 6, 2
    blocks = rng.normal(size=(count, ndim, ndim))
    information = blocks @ np.swapaxes(blocks, 1, 2) + np.eye(ndim)
    information[3] = 0
    for stiffness in (np.zeros(2), np.array([3.0, 0.7])):
        dense = np.zeros((count, ndim, count, ndim))
        for t in range(count):
            dense[t, :, t, :] += information[t]
        for t in range(count - 1):
            for a, b, sign in ((t, t, 1), (t + 1, t + 1, 1), (t, t + 1, -1), (t + 1, t, -1)):
                dense[a, :, b, :] += sign * np.diag(stiffness)
        accepted = np.arange(count) != 3
        kept = np.arange(count) if stiffness.any() else np.flatnonzero(accepted)
        matrix = dense[np.ix_(kept, range(ndim), kept, range(ndim))].reshape(len(kept) * ndim, -1)
        inverse = np.linalg.inv(matrix)
        rhs = rng.normal(size=(count, ndim, 1))
        solution, marginal = solve_chain(information, stiffness, rhs)
        np.testing.assert_allclose(np.asarray(solution)[kept].ravel(), inverse @ rhs[kept].ravel(), rtol=1e-9)
        centre = np.eye(len(kept)) - np.where(accepted[kept], 1 / accepted.sum(), 0.0)[None, :]
        centre = np.kron(centre, np.eye(ndim))
        centred = (centre @ inverse @ centre.T).reshape(len(kept), ndim, len(kept), ndim)
        empty = jaxchi2.JointRegistration(*[None] * 11)
        found = empty._replace(information=information, stiffness=stiffness, accepted=accepted)
        for i, t in enumerate(kept):
            column = np.asarray(found.covariance_with(t))[kept]
            np.testing.assert_allclose(column, np.moveaxis(centred[:, :, i, :], 0, 0), rtol=1e-8, atol=1e-12)
        assert np.all(np.isfinite(np.asarray(marginal)[kept]))


@pytest.mark.long
def test_windows_of_a_scene(x64):
    """The default boundary, an error for each frame, float64."""
    big = scene((60, 60), 3.0, seed=6)
    offsets = np.array([[0, 0], [1, -2], [-1, 1], [2, 2], [0, -1]])
    stack = np.stack([big[10 - a : 34 - a, 12 - b : 36 - b] for a, b in offsets])
    sigma = np.array([0.05, 0.1, 0.05, 0.08, 0.05])
    stack = stack + sigma[:, None, None] * rng.normal(size=stack.shape)
    found = jaxchi2.register_jointly(stack, sigma, max_shift=6.0)
    assert np.all(found.accepted)
    assert np.all(np.abs(found.shift - (offsets - offsets.mean(0))) < 6 * found.stderr)


@pytest.mark.long
def test_jit():
    shifts = np.linspace([-1.0, 0.5], [1.0, -0.5], 4)
    stack = frames(shifts, 0.1, 4)
    found = jax.jit(lambda s: jaxchi2.register_jointly(s, boundary="wrap").shift)(stack)
    np.testing.assert_allclose(found, shifts - shifts.mean(0), atol=0.05)


def test_bad_input_raises():
    stack = np.zeros((4, 8, 8))
    for given, message in [
        ({"stack": stack[:2]}, "three or more frames"),
        ({"reference": "previous"}, r"reference must be one of \('first', 'mean'\) or an image"),
        ({"max_rounds": 0}, "max_rounds must be a positive integer"),
        ({"drift": np.ones(3)}, r"drift must hold one value per axis, shape \(2,\), or be a scalar"),
        ({"drift": 0.0}, "drift must be positive"),
        ({"drift": np.nan}, "drift must be positive"),
        ({"drift": [1.0, -1.0]}, "drift must be positive"),
        ({"tolerance": 0.0}, "tolerance must be a positive scalar"),
        ({"reference": "median"}, r"reference must be one of \('first', 'mean'\) or an image"),
        ({"reference": "mean", "drift": 1.0}, "reference must be 'first' or an image with a drift prior"),
        ({"err": np.ones(3)}, "err must be a scalar"),
        ({"mask": np.zeros(3, bool)}, "mask must have the shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            jaxchi2.register_jointly(**({"stack": stack, "err": 1.0} | given))


@pytest.mark.long
@pytest.mark.parametrize("width", [0.0, 0.7])
def test_errors_from_the_residuals_hold(width):
    """White noise, and noise that was smoothed, of eight frames in forty stacks."""
    k = np.meshgrid(*[2 * np.pi * np.fft.fftfreq(N)] * 2, indexing="ij")
    response = np.exp(-(width**2) * (k[0] ** 2 + k[1] ** 2) / 2)
    sigma = np.sqrt(np.mean(response**2))
    generator = np.random.default_rng(11)
    stacks, truth = [], []
    for _ in range(40):
        shifts = generator.uniform(-1.5, 1.5, (8, 2))
        noise = np.fft.ifft2(np.fft.fft2(generator.normal(size=(8, N, N))) * response).real / sigma
        stacks.append(np.stack([moved(SCENE, s) for s in shifts]) + 0.3 * noise)
        truth.append(shifts - shifts.mean(0))
    run = jax.jit(
        lambda x: jax.lax.map(
            lambda s: jaxchi2.register_jointly(
                s, 0.3, boundary="wrap", max_shift=6.0, errors="sandwich", min_p_value=0.0
            ),
            x,
        )
    )
    found = run(np.asarray(stacks, np.float32))
    assert np.all(found.accepted)
    pulls = (np.asarray(found.shift) - truth) / np.asarray(found.stderr)
    spread = np.sqrt(np.mean(pulls**2))
    # 560 independent pulls: known to 3 %, five of which are 15 %.
    assert 0.85 < spread < 1.15
    inflation = np.mean(np.asarray(found.registration.inflation))
    assert (0.93 < inflation < 1.07) if width == 0 else inflation > 1.3
