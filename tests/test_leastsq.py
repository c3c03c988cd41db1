"""fit(): against register(), scipy's least squares, Monte Carlo, and finite differences."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import enable_x64
from direct import moved, scene, smoothed
from jax.flatten_util import ravel_pytree
from scipy import optimize
from scipy.ndimage import map_coordinates

from jaxchi2 import Affine, Descent, GaussNewton, Rigid, Shift, Similarity, Status, fit, register
from jaxchi2.leastsq import LOSSES
from jaxchi2.template import FATAL

SHAPE = (24, 22)
SHIFT = np.array([1.3, -2.6])
ERR = 0.1


def pair(dtype=float, seed=0, shape=SHAPE, shift=SHIFT, err=ERR):
    """A window of a larger smooth scene, and one of the scene moved, with noise."""
    larger = scene((2 * shape[0], 2 * shape[1]), 3.0, seed=seed, smooth=True)
    window = tuple(slice(n // 2, n // 2 + n) for n in shape)
    noise = np.random.default_rng(seed + 1000).normal(scale=err, size=shape)
    return larger[window].astype(dtype), (moved(larger, shift)[window] + noise).astype(dtype)


def turned(angle, scale=1.0, shift=(0.0, 0.0), shape=(40, 44), seed=3, err=0.02):
    """A sum of Gaussian blobs, and the same after a similarity, both from their formula."""
    rng = np.random.default_rng(seed)
    center = np.array([(n - 1) / 2 for n in shape])[:, None, None]
    spots = rng.uniform(-0.45, 0.45, (30, 2)) * shape
    heights = rng.uniform(0.5, 2, 30)

    def image(y, x):
        return sum(
            h * np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * 2.0**2))
            for h, (a, b) in zip(heights, spots, strict=True)
        )

    y, x = np.indices(shape) - center
    py, px = y - shift[0], x - shift[1]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    return image(y, x), image(cos * py + sin * px, cos * px - sin * py) + rng.normal(scale=err, size=shape)


# One minimum, whoever looks for it.


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "known", "dtype"),
    [
        ({"boundary": "wrap"}, True, "float32"),
        ({"boundary": "overlap"}, False, "float64"),
        ({"boundary": "reflect", "fit_background": True}, True, "float64"),
        ({"boundary": "overlap", "fit_gain": True, "fit_background": True}, True, "float64"),
        ({"boundary": "overlap", "fit_gain": True, "fit_background": True}, True, "float32"),
    ],
    indirect=["dtype"],
)
def test_fourier_fit_is_register(options, known, dtype):
    reference, image = pair(dtype)
    image = 1.3 * image + 0.7 if options.get("fit_background") else image
    err = np.random.default_rng(5).uniform(0.08, 0.12, SHAPE).astype(dtype) if known else None
    found, expected = (f(reference, image, err, **options) for f in (fit, register))
    atol = 1e-8 if dtype == np.float64 else 2e-3
    stderr = np.asarray(expected.stderr)
    np.testing.assert_allclose((found.shift - expected.shift) / stderr, 0, atol=10 * atol)
    np.testing.assert_allclose(
        found.covariance, expected.covariance, rtol=atol, atol=atol * stderr.max() ** 2
    )
    np.testing.assert_allclose(found.chi2, expected.chi2, rtol=atol)
    np.testing.assert_allclose(found.gain, expected.gain, rtol=atol)
    np.testing.assert_allclose(found.background, expected.background, atol=atol)
    np.testing.assert_allclose(
        found.nuisance_covariance, expected.nuisance_covariance, rtol=10 * atol, atol=1e-3 * atol
    )
    assert found.dof == expected.dof
    assert found.status == expected.status
    assert found.status & ~Status.BAD_FIT == Status.OK
    assert found.shift.dtype == found.chi2.dtype == dtype
    assert isinstance(found.motion, Shift)


@pytest.mark.long
@pytest.mark.parametrize(
    ("interpolation", "boundary", "loss"),
    [
        *product(["linear", "cubic"], ["wrap", "constant", "reflect", "nearest"], ["linear"]),
        ("linear", "nearest", "cauchy"),
        ("cubic", "wrap", "cauchy"),
    ],
)
def test_spline_fit_is_that_of_scipy(interpolation, boundary, loss, x64):
    reference, image = pair()
    order = {"linear": 1, "cubic": 3}[interpolation]
    mode = "grid-wrap" if boundary == "wrap" else boundary
    grid = np.indices(SHAPE)

    def residuals(shift):
        model = map_coordinates(reference, grid - shift[:, None, None], order=order, mode=mode)
        return ((image - model) / ERR).ravel()

    expected = optimize.least_squares(
        residuals, SHIFT, loss=loss, f_scale=1.2, xtol=1e-13, ftol=1e-15, gtol=1e-13
    )
    found = fit(
        reference,
        image,
        ERR,
        interpolation=interpolation,
        boundary=boundary,
        loss=loss,
        loss_scale=1.2,
        initial=SHIFT,
    )
    # Beyond its frame the scene is none of these.
    assert found.status & ~Status.BAD_FIT == Status.OK
    np.testing.assert_allclose(found.shift, expected.x, atol=2e-6)
    np.testing.assert_allclose(found.cost, expected.cost, rtol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize(
    ("optimizer", "atol", "dtype"),
    [
        (optax.lbfgs(), 2e-2, "float32"),
        (optax.lbfgs(), 2e-2, "float64"),
        (Descent(optax.adam(0.05), max_steps=500), 2e-2, "float32"),
        (Descent(optax.sgd(2e-4, momentum=0.5), max_steps=500), 2e-2, "float32"),
        (GaussNewton(max_steps=60), 1e-3, "float32"),
        (GaussNewton(max_steps=60), 1e-3, "float64"),
    ],
    ids=["lbfgs-32", "lbfgs-64", "adam", "sgd", "gauss-newton-32", "gauss-newton-64"],
    indirect=["dtype"],
)
def test_optimizers_meet_in_the_minimum(optimizer, atol, dtype):
    reference, image = pair(dtype)
    start = SHIFT + np.array([0.6, -0.5])
    found = fit(reference, image, ERR, optimizer=optimizer, initial=start, boundary="wrap")
    expected = fit(reference, image, ERR, boundary="wrap")
    assert found.status == expected.status
    assert found.status & ~Status.BAD_FIT == Status.OK
    np.testing.assert_allclose((found.shift - expected.shift) / expected.stderr[0], 0, atol=atol)
    costs = np.asarray(found.history.cost)
    steps = int(found.steps)
    assert costs.shape == found.history.parameters.shape[:1]
    assert np.all(np.isfinite(costs[: steps + 1]))
    assert np.all(costs[steps + 1 :] == costs[steps])
    assert costs[steps] < costs[0]
    np.testing.assert_allclose(found.history.parameters[0], start, rtol=1e-6)


def test_too_few_steps_are_a_status():
    reference, image = pair()
    found = fit(reference, image, ERR, optimizer=Descent(optax.sgd(1e-9), max_steps=3), initial=SHIFT + 0.5)
    assert found.status == Status.NOT_CONVERGED
    assert np.all(np.isnan(found.shift))


# Losses.


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_scipys(loss, x64):
    z = np.concatenate([np.linspace(0, 3, 31), [1e2, 1e4]])
    expected = optimize.least_squares(
        lambda x: np.sqrt(z[:1]) + x, 0.0, loss=loss
    ).cost  # The name is accepted.
    assert np.isfinite(expected)
    rho = np.asarray(LOSSES[loss](jnp.asarray(z)))
    formula = {
        "linear": z,
        "huber": np.where(z <= 1, z, 2 * np.sqrt(z) - 1),
        "soft_l1": 2 * (np.sqrt(1 + z) - 1),
        "cauchy": np.log(1 + z),
    }[loss]
    np.testing.assert_allclose(rho[0], formula, rtol=1e-12, atol=1e-15)
    first = jax.vmap(jax.grad(lambda z: LOSSES[loss](z)[0]))
    second = jax.vmap(jax.grad(lambda z: LOSSES[loss](z)[1]))
    away = np.abs(z - 1) > 1e-9
    np.testing.assert_allclose(rho[1][away], first(jnp.asarray(z))[away], rtol=1e-9)
    np.testing.assert_allclose(rho[2][away], second(jnp.asarray(z))[away], rtol=1e-9, atol=1e-15)


@pytest.mark.long
@pytest.mark.parametrize(
    ("loss", "scale", "known", "most"),
    [
        ("huber", 1.345, True, 0.5),
        ("soft_l1", 1.0, True, 0.6),
        ("cauchy", 1.0, True, 0.3),
        ("cauchy", 1.0, False, 0.3),
    ],
)
def test_wild_pixels_hardly_move_a_robust_fit(loss, scale, known, most):
    """Root mean square over frames, in standard errors: to lose 5 % of the pixels is worth 0.22 already."""
    frames = 200
    reference = scene(SHAPE, 3.0, smooth=True)
    rng = np.random.default_rng(7)
    images = moved(reference, SHIFT) + rng.normal(scale=ERR, size=(frames, *SHAPE))
    wild = np.where(rng.random(images.shape) < 0.05, rng.choice([-1, 1], images.shape) * 30 * ERR, 0)

    def solve(loss):
        one = partial(fit, err=ERR if known else None, loss=loss, loss_scale=scale, boundary="wrap")
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    clean, dirty = (solve(loss)(reference, x) for x in (images, images + wild))
    assert np.all(dirty.status == Status.OK)
    stderr = np.asarray(clean.stderr.shift)
    assert np.sqrt(np.mean(((dirty.shift - clean.shift) / stderr) ** 2)) < most
    pulls = (np.asarray(dirty.shift) - SHIFT) / np.asarray(dirty.stderr.shift)
    assert abs(np.std(pulls) - 1) < 5 / np.sqrt(2 * pulls.size)


# Motions.


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "kind", "dtype", "truth"),
    [
        ("rigid", Rigid, "float32", [0.7, -1.2, 0.05]),
        ("rigid", Rigid, "float64", [0.7, -1.2, 0.05]),
        ("similarity", Similarity, "float32", [0.7, -1.2, 0.05, 1.02]),
        (
            "affine",
            Affine,
            "float32",
            [0.7, -1.2, *(1.02 * np.array([np.cos(0.05), -np.sin(0.05), np.sin(0.05), np.cos(0.05)]))],
        ),
    ],
    indirect=["dtype"],
)
def test_motions_are_found(model, kind, truth, dtype):
    boundary = "nearest" if model == "similarity" else "overlap"
    scale = 1.0 if model == "rigid" else 1.02
    reference, image = (x.astype(dtype) for x in turned(0.05, scale, (0.7, -1.2)))
    found = fit(reference, image, 0.02, model=model, boundary=boundary)
    assert found.status == Status.OK
    assert isinstance(found.motion, kind)
    pulls = (ravel_pytree(found.motion)[0] - np.array(truth)) / ravel_pytree(found.stderr)[0]
    # Blobs of σ = 2 pixels: the spline is right to 0.1 of an error; a few pixels wander in from outside.
    assert np.max(np.abs(pulls)) < (4 if boundary == "overlap" else 6)


def test_a_motion_may_be_started_and_bounded():
    reference, image = turned(0.05)
    bounds = (Rigid(jnp.full(2, -jnp.inf), jnp.array(-0.02)), Rigid(jnp.full(2, jnp.inf), jnp.array(0.02)))
    found = fit(reference, image, 0.02, model="rigid", bounds=bounds)
    assert found.status & Status.AT_BOUND
    np.testing.assert_allclose(found.motion.angle, 0.02, rtol=1e-6)
    assert np.isnan(found.stderr.angle)
    assert np.all(np.isfinite(found.stderr.shift))
    started = fit(reference, image, 0.02, model="rigid", initial=Rigid(jnp.zeros(2), jnp.array(0.03)))
    free = fit(reference, image, 0.02, model="rigid")
    np.testing.assert_allclose(started.motion.angle, free.motion.angle, atol=1e-5)


def test_max_shift_bounds_the_shift():
    reference, image = pair()
    found = fit(reference, image, ERR, max_shift=(2.0, 1.5), initial=(1.0, -1.0), boundary="wrap")
    assert found.status & Status.AT_BOUND
    assert found.shift[1] == -1.5


@pytest.mark.long
@pytest.mark.parametrize("known", [True, False])
def test_a_turn_out_of_reach_is_doubted(known):
    """Steps of least squares from no turn at all end in another minimum, with an error bar of 0.01°."""
    turns = np.deg2rad([0.0, 2.0, 45.0, 60.0, 170.0])
    reference, images = turned(0.0)[0], np.stack([turned(turn, shift=(0.4, -0.7))[1] for turn in turns])
    found = jax.vmap(lambda image: fit(reference, image, 0.02 if known else None, model="rigid"))(images)
    right = np.abs(np.asarray(found.motion.angle) - turns) < 0.005
    np.testing.assert_array_equal(right, [True, True, False, False, False])
    status = np.asarray(found.status)
    np.testing.assert_array_equal(status[right], Status.OK)
    assert np.all(status[~right] & int(FATAL | Status.BAD_FIT | Status.WRONG_BASIN))


def test_a_minimum_where_the_reference_is_not_is_doubted():
    """In noise as large as the scene χ² hardly tells: the share of the reference that is there does."""
    shape, shifts = (40, 44), np.array([(1.3, -2.6), (0.2, 0.4), (9.0, -8.0), (-9.0, 10.0)])
    reference = scene(shape, 0.5, seed=2)
    noise = np.random.default_rng(3).normal(size=(len(shifts), *shape))
    images = np.stack([moved(reference, shift) for shift in shifts]) + noise * np.std(reference)

    def solve(image):
        return fit(reference, image, np.std(reference), boundary="wrap", initial=(0.5, -1.0))

    found = jax.vmap(solve)(images)
    status, near = np.asarray(found.status), np.max(np.abs(np.asarray(found.shift) - shifts), 1) < 0.5
    assert near[1]
    assert np.all(status[near] == Status.OK)
    assert np.all(status[~near] & int(FATAL | Status.BAD_FIT | Status.WRONG_BASIN))


@pytest.mark.parametrize("factor", [1e20, 1e-20])
@pytest.mark.parametrize("solve", [fit, register])
def test_a_chi2_that_is_no_number_is_a_status(solve, factor):
    reference, image = (np.float32(factor) * x for x in pair(np.float32))
    found = solve(reference, image)
    np.testing.assert_allclose(found.shift, SHIFT, atol=0.1)
    assert found.status == Status.OUT_OF_RANGE
    assert solve(*pair(np.float32)).status == Status.OK


@pytest.mark.long
@pytest.mark.parametrize("solve", [fit, register])
def test_errors_of_equal_images_have_a_derivative(solve):
    """Errors scaled by χ² are zero there; the root of zero has an infinite slope."""
    reference, _ = pair(np.float32)

    def total(image):
        return sum(jnp.sum(x) for x in jax.tree.leaves(solve(reference, image, boundary="wrap").stderr))

    assert np.all(np.isfinite(jax.jit(jax.grad(total))(jnp.asarray(reference))))


def test_nothing_is_nan_where_nothing_is_wrong():
    reference, image = pair(np.float32)
    mask = np.zeros(SHAPE, bool)
    mask[3, 4] = True
    with jax.debug_nans(True):
        found = fit(reference, image, ERR, mask=mask)
    assert found.status == Status.OK


# Statistics.

FRAMES = 700


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"interpolation": "fourier"},
        {"interpolation": "cubic"},
        {"loss": "huber", "loss_scale": 1.345},
        {"loss": "cauchy", "err": None},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_errors_are_calibrated(options):
    """1400 pulls scatter by 1.9 %: five times that is 0.095."""
    options = {"err": ERR} | options
    reference = scene(SHAPE, 3.0, smooth=True)
    rng = np.random.default_rng(11)
    shifts = rng.uniform(-2, 2, (FRAMES, 2))
    images = np.stack([moved(reference, s) for s in shifts]) + rng.normal(scale=ERR, size=(FRAMES, *SHAPE))
    solve = jax.jit(jax.vmap(lambda image: fit(reference, image, boundary="wrap", **options)))
    found = solve(images)
    assert np.all(found.status == Status.OK)
    pulls = (np.asarray(found.shift) - shifts) / np.asarray(found.stderr.shift)
    assert abs(np.std(pulls) - 1) < 0.095
    assert abs(np.mean(pulls)) < 5 / np.sqrt(pulls.size)


# Bad pixels, bad frames, bad arguments.


@pytest.mark.parametrize(
    "options", [{}, {"interpolation": "cubic"}, {"interpolation": "cubic", "loss": "cauchy"}]
)
def test_masked_pixels_have_no_influence(options):
    reference, image = pair(np.float32)
    rng = np.random.default_rng(2)
    mask, reference_mask = rng.random(SHAPE) < 0.1, np.zeros(SHAPE, bool)
    reference_mask[5:7, 8:10] = True

    def found(junk):
        return fit(
            np.where(reference_mask, junk, reference),
            np.where(mask, junk, image),
            ERR,
            mask=mask,
            reference_mask=reference_mask,
            **options,
        )

    first, second = found(np.float32(1e4)), found(np.float32(np.nan))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.status == Status.OK
    np.testing.assert_allclose((first.shift - SHIFT) / first.stderr.shift, 0, atol=4)


@pytest.mark.parametrize("interpolation", ["fourier", "cubic"])
def test_hopeless_frames_are_a_status_and_harm_no_other(interpolation):
    reference, image = pair(np.float32)
    images = np.stack([image, np.full(SHAPE, np.nan, np.float32), np.zeros(SHAPE, np.float32)])
    solve = partial(fit, err=ERR, interpolation=interpolation)
    found = jax.vmap(solve, in_axes=(None, 0))(reference, images)
    assert found.status[0] == Status.OK
    assert np.all(np.isin(found.status[1:], [Status.NO_DATA, Status.FLAT, Status.LITTLE_OVERLAP]))
    assert np.all(np.isnan(found.shift[1:]))
    np.testing.assert_allclose(found.shift[0], solve(reference, image).shift, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "warp"}, ValueError, "model must be one of"),
        ({"interpolation": "quintic"}, ValueError, "interpolation must be one of"),
        ({"model": "affine", "interpolation": "fourier"}, ValueError, "take 'cubic'"),
        ({"loss": "l1"}, ValueError, "loss must be one of"),
        ({"loss_scale": [1.0, 2.0]}, ValueError, "loss_scale must be a positive scalar"),
        ({"optimizer": "adam"}, TypeError, "optimizer must be"),
        ({"initial": [0.0]}, ValueError, "initial must hold one value per axis"),
        ({"initial": Rigid(jnp.zeros(2), jnp.zeros(()))}, TypeError, "initial must be a Shift"),
        ({"model": "rigid", "initial": Rigid(jnp.zeros(3), jnp.zeros(()))}, ValueError, "fields of shapes"),
        ({"bounds": (0, 1, 2)}, TypeError, "lowest and a highest"),
        ({"boundary": "torus"}, ValueError, "boundary must be one of"),
        ({"max_shift": -1}, ValueError, "max_shift must be positive"),
    ],
)
def test_bad_arguments(options, error, words):
    reference, image = pair()
    with pytest.raises(error, match=words):
        fit(reference, image, ERR, **options)


def test_rotation_is_for_two_axes():
    with pytest.raises(ValueError, match="2 axes"):
        fit(np.arange(9.0), np.arange(9.0), model="rigid")


@pytest.mark.long
@pytest.mark.parametrize("shape", [(40,), (9, 10, 11)])
@pytest.mark.parametrize("interpolation", ["fourier", "cubic"])
def test_other_dimensions(shape, interpolation, x64):
    shift = np.array([0.7, -1.2, 0.4])[: len(shape)]
    reference = scene(shape, 2.0, seed=1, smooth=True)
    noise = np.random.default_rng(8).normal(scale=0.01, size=shape)
    found = fit(
        reference, moved(reference, shift) + noise, 0.01, interpolation=interpolation, boundary="wrap"
    )
    assert found.status == Status.OK
    np.testing.assert_allclose(
        found.shift, shift, atol=5 * float(np.max(found.stderr.shift)) + (interpolation == "cubic") * 0.02
    )


# Derivatives.


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "cauchy", "fit_gain": True, "fit_background": True},
        {"model": "rigid", "boundary": "nearest"},
    ],
    ids=lambda options: " ".join(map(str, options.values()))[:30] or "plain",
)
def test_derivatives_are_those_of_the_minimum(options, x64):
    reference, image = (jnp.asarray(x) for x in pair())
    err = jnp.asarray(np.random.default_rng(4).uniform(0.08, 0.12, SHAPE))
    rng = np.random.default_rng(6)
    direction = tuple(jnp.asarray(s * rng.normal(size=SHAPE)) for s in (1.0, 1.0, 0.1))
    arguments = (reference, image, err)

    @jax.jit
    def found(t):
        moved = [a + t * d for a, d in zip(arguments, direction, strict=True)]
        result = fit(*moved, **options)
        return jnp.concatenate([ravel_pytree(result.motion)[0], result.covariance.ravel() * 100])

    step = 1e-4
    differences = (8 * (found(step) - found(-step)) - (found(2 * step) - found(-2 * step))) / (12 * step)
    forward = jax.jacfwd(found)(0.0)
    np.testing.assert_allclose(forward, differences, rtol=1e-6, atol=1e-7 * float(np.max(np.abs(forward))))
    if options:
        np.testing.assert_allclose(jax.jacrev(found)(0.0), forward, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_derivatives_are_those_of_the_minimum_whatever_found_it(x64):
    reference, image = pair()

    def gradient(**options):
        return jax.jit(
            jax.grad(lambda image: fit(reference, image, ERR, boundary="wrap", **options).shift[0])
        )(image)

    expected = gradient()
    found = gradient(optimizer=Descent(optax.lbfgs(), max_steps=100))
    # As far apart as the two minima, which agree to a hundredth of the error.
    np.testing.assert_allclose(found, expected, atol=2e-3 * float(np.max(np.abs(expected))))


@pytest.mark.long
def test_gradients_of_failed_frames_and_bad_pixels_are_zero():
    reference, image = pair(np.float32)
    image[3, 4] = np.nan
    images = jnp.asarray(np.stack([image, np.full(SHAPE, np.nan, np.float32)]))

    def total(images, interpolation):
        found = jax.vmap(lambda x: fit(reference, x, ERR, interpolation=interpolation).shift)(images)
        return jnp.nansum(found)

    for interpolation in ("fourier", "cubic"):
        gradient = np.asarray(jax.grad(total)(images, interpolation))
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[1] == 0)
        assert gradient[0, 3, 4] == 0
        assert np.any(gradient[0] != 0)


@pytest.mark.long
def test_a_fit_in_a_scan_and_rematerialised(x64):
    reference, image = pair()
    images = jnp.asarray(np.stack([image, image[::-1]]))

    def total(gain, image):
        return jnp.sum(fit(gain * reference, image, ERR, boundary="wrap", initial=SHIFT).shift)

    @jax.jit
    def looped(gain):
        step = jax.checkpoint(total)
        return jax.lax.scan(lambda so_far, image: (so_far + step(gain, image), None), 0.0, images)[0]

    plain = jax.jit(jax.value_and_grad(total))
    expected = np.sum([plain(1.1, image) for image in images], axis=0)
    np.testing.assert_allclose(jax.value_and_grad(looped)(1.1), expected, rtol=1e-9)


def test_equal_optimizers_are_one_program():
    reference, image = pair(np.float32)
    traces = []

    @partial(jax.jit, static_argnums=2)
    def solve(reference, image, optimizer):
        traces.append(optimizer)
        return fit(reference, image, ERR, optimizer=optimizer).shift

    for _ in range(3):
        solve(reference, image, GaussNewton(max_steps=20))
    assert len(traces) == 1
    with enable_x64(True):
        assert hash(GaussNewton()) == hash(GaussNewton())


@pytest.mark.long
def test_errors_from_the_residuals_hold_for_a_turn_too():
    """Noise after a Gaussian of 0.7 pixels, 200 frames: 0.25 is five times the scatter of their pulls."""
    rng = np.random.default_rng(1)
    shape = (32, 30)
    reference = 10 * scene(shape, 2.0, seed=1, smooth=True)
    shifts = rng.uniform(-2, 2, (200, 2))
    images = np.stack([moved(reference, s) for s in shifts]) + smoothed(rng.normal(size=(200, *shape)), 0.7)

    def one(image):
        return fit(reference.astype(np.float32), image, 1.0, model="rigid", errors="sandwich")

    found = jax.jit(lambda x: jax.lax.map(one, x, batch_size=20))(images.astype(np.float32))
    pulls = np.concatenate(
        [
            (found.shift - shifts) / found.stderr.shift,
            (found.motion.angle / found.stderr.angle)[:, None],
        ],
        axis=1,
    )
    size = np.sqrt(np.mean(np.square(pulls), axis=0))
    np.testing.assert_allclose(size, 1, rtol=0, atol=0.25)
    assert np.all(size * np.median(found.inflation, axis=0) > 1.4)


def test_inflation_is_one_with_the_errors_of_the_model():
    reference, image = pair(np.float32)
    found, other = (fit(reference, image, ERR, errors=errors) for errors in ("model", "sandwich"))
    assert np.all(found.inflation == 1)
    np.testing.assert_allclose(other.stderr.shift, found.stderr.shift * other.inflation, rtol=1e-4)
    assert np.all(abs(np.log(other.inflation)) < 0.5)
    with pytest.raises(ValueError, match="errors must be one of"):
        fit(reference, image, errors="robust")
