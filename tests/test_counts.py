"""Counted photons: Poisson's likelihood by hand, pulls, and the flag for too few."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene
from scipy.optimize import minimize

from jaxchi2 import Counts, Search, Status, chi2_surface, fit, register, register_stack
from jaxchi2.cli import main
from jaxchi2.engine.counts import check_counts, expected
from jaxchi2.stream import register_file

SHAPE = (32, 30)
FIELD = 1 + 0.25 * scene(SHAPE, 2.0, seed=1, smooth=True)
SHIFT = np.array([1.3, -2.6])


def star(shift=(0.0, 0.0), photons=1.0, sky=0.0):
    y, x = np.indices(SHAPE)
    profile = np.exp(-((y - 15.3 - shift[0]) ** 2 + (x - 14.6 - shift[1]) ** 2) / 3.25)
    return photons * profile / profile.sum() + sky


def counted(mean, seed=0, shift=SHIFT, field=FIELD):
    return np.random.default_rng(seed).poisson(mean * moved(field, shift))


@pytest.mark.parametrize("mean", [3.0, 30.0])
def test_is_the_maximum_of_the_likelihood(mean, x64):
    """Shift and error against Poisson's likelihood with a free background, minimised by scipy."""
    image = counted(mean) + 0.0

    def loss(parameters):
        model = mean * moved(FIELD, parameters[:2]) + parameters[2]
        return np.sum(model - image * np.log(np.maximum(model, 1e-9)))

    best = minimize(loss, [*SHIFT, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    found = register(mean * FIELD, image, "poisson", boundary="wrap", fit_background=True)
    assert found.status == 0
    assert found.noise_known
    assert np.all(abs(found.shift - best.x[:2]) < 2e-3 * found.stderr)
    assert abs(found.background - best.x[2]) < 2e-3 * found.background_err
    assert 0.8 < found.reduced_chi2 < 1.2


@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_is_the_fit_with_the_errors_of_its_model(boundary, dtype):
    """Of a camera, with a gain and a background to fit: errors by hand at the solution give the same."""
    camera = Counts(gain=2.0, read_noise=3.0, offset=100.0)
    electrons = counted(50.0) + 3.0 * np.random.default_rng(4).normal(size=SHAPE)
    image = (electrons / 2 + 100).astype(dtype)
    reference = (25 * FIELD).astype(dtype)
    options = {"boundary": boundary, "fit_gain": True, "fit_background": True}
    found = register(reference, image, camera, **options)
    model = found.gain * moved(reference, found.shift) + found.background
    err = np.sqrt(2 * (model - 100) + 9) / 2
    by_hand = register(reference, image, err, **options)
    np.testing.assert_allclose(found.shift, by_hand.shift, rtol=0, atol=5e-3 * float(found.stderr.max()))
    np.testing.assert_allclose(found.covariance, by_hand.covariance, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(found.background_err, by_hand.background_err, rtol=1e-2)
    assert abs(found.background - 100) < 5 * found.background_err
    assert found.status == 0


def pulls_of(reference, frames, shifts, err, **options):
    found = register_stack(frames.astype(np.float32), reference.astype(np.float32), err, **options)
    good = np.isfinite(found.shift).all(1)
    assert good.mean() > 0.99
    return found, (np.asarray(found.shift) - shifts)[good] / np.asarray(found.stderr)[good]


# The scatter of 800 pulls is known to 2.5 %, their mean on each axis to 5 %; 0.13 and 0.25 are five of that.
@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
@pytest.mark.parametrize("mean", [1.0, 10.0])
def test_pulls(mean, boundary):
    rng = np.random.default_rng(7)
    shifts = rng.uniform(-2, 2, (400, 2))
    frames = rng.poisson(np.stack([mean * moved(FIELD, s) for s in shifts]))
    for options in ({}, {"fit_gain": True, "fit_background": True}):
        found, pulls = pulls_of(mean * FIELD, frames, shifts, "poisson", boundary=boundary, **options)
        assert abs(np.sqrt(np.mean(pulls**2)) - 1) < 0.13
        assert np.all(abs(pulls.mean(0)) < 0.25)
        assert abs(np.mean(found.reduced_chi2) - 1) < 0.02
        doubts = Status.FEW_COUNTS | Status.BAD_FIT | Status.LARGE_ERRORS
        assert np.mean(found.status & int(doubts) > 0) < 0.02


@pytest.mark.long
def test_background_has_no_bias():
    """That of the root of the counts is one below the truth, of the mean of 400 frames 25 σ and more."""
    rng = np.random.default_rng(3)
    frames = rng.poisson(np.stack([10 * moved(FIELD, SHIFT)] * 400)).astype(np.float32)
    reference = (10 * FIELD).astype(np.float32)
    options = {"boundary": "wrap", "fit_background": True, "verdict": False}
    found = register_stack(frames, reference, "poisson", **options)
    biased = register_stack(frames, reference, np.sqrt(np.maximum(frames, 1)), **options)
    error = float(np.mean(found.background_err)) / 20
    assert abs(np.mean(found.background)) < 5 * error
    assert np.mean(biased.background) < -0.8


@pytest.mark.long
def test_too_few_photons_have_a_flag():
    """Errors of 10 photons are too small, and flagged; those of 300 are neither, dark as the sky may be."""
    rng = np.random.default_rng(5)
    shifts = rng.uniform(-2, 2, (200, 2))
    for photons, few in ((10, True), (300, False)):
        for sky in (0.0, 0.01, 0.1):
            frames = rng.poisson(np.stack([star(s, photons, sky) for s in shifts]))
            reference = star(photons=photons, sky=sky)
            found, pulls = pulls_of(reference, frames, shifts, "poisson", boundary="wrap", verdict=False)
            flagged = np.mean(found.status & Status.FEW_COUNTS > 0)
            assert flagged == float(few)
            assert (np.sqrt(np.mean(pulls**2)) < 1.2) != few
            if not few:
                # In the dark χ² is too small, by what is known: no sign of too large errors.
                assert np.mean(found.status != 0) < 0.03
    assert "photons" in Status.FEW_COUNTS.message


def test_expected_noise_by_hand():
    """Photons of like scores are as many as they are; the kurtosis of scores by sums over pixels."""
    camera = check_counts(Counts(), (8, 8), np.dtype(np.float32))
    model, everywhere = jnp.full((8, 8), 4.0), jnp.ones((8, 8), bool)
    slopes = jnp.stack([jnp.ones((8, 8)), jnp.zeros((8, 8)).at[2, 3].set(1.0)])
    both, first = (
        expected(camera, model, slopes, everywhere, free) for free in ((True, True), (True, False))
    )
    np.testing.assert_allclose(first.photons, 4 * 64)
    np.testing.assert_allclose(both.photons, 4)
    np.testing.assert_allclose(first.err, 2.0)
    np.testing.assert_allclose([first.share, first.scatter], [1, 1 + 1 / 8], rtol=1e-6)
    dark = expected(camera, model.at[:4].set(0.0), slopes, everywhere, (True, True))
    assert np.all(dark.err > 0)
    assert 0.5 <= dark.share < 0.95


@pytest.mark.long
def test_transforms_and_derivatives(x64):
    """The same under jit and vmap; derivatives are those of the last fit, its variances held."""
    image = counted(20.0) + 0.0
    options = {"boundary": "wrap", "verdict": False}
    run = jax.jit(lambda image, gain: register(20 * FIELD, image, Counts(gain), **options).shift)
    found = register(20 * FIELD, image, Counts(), **options)
    np.testing.assert_allclose(run(image, 1.0), found.shift, rtol=0, atol=1e-9)
    both = jax.vmap(run, (0, None))(np.stack([image, image[::-1]]), 1.0)
    np.testing.assert_allclose(both[0], found.shift, rtol=0, atol=1e-9)
    err = np.sqrt(20 * moved(FIELD, found.shift))
    with_err = jax.grad(lambda image: register(20 * FIELD, image, err, **options).shift[0])(image)
    gradient = jax.grad(lambda image: run(image, 1.0)[0])(image)
    np.testing.assert_allclose(gradient, with_err, rtol=0, atol=1e-3 * abs(with_err).max())


def test_masks_maps_and_first_guesses():
    """Outliers under masks, pixels of a camera that do not work, and clipped ones do not matter."""
    image = counted(20.0).astype(np.float32)
    mask = np.random.default_rng(2).uniform(size=SHAPE) < 0.02
    # Outliers where no overlap compares stay, and are part of what whole shifts are ranked by.
    mask &= np.pad(np.ones((20, 20), bool), [(6, SHAPE[0] - 26), (6, SHAPE[1] - 26)])
    wild = np.where(mask, 1e4, image).astype(np.float32)
    reference = (20 * FIELD).astype(np.float32)
    masked = register(reference, wild, "poisson", mask=mask)
    dead = register(reference, wild, Counts(gain=np.where(mask, 0.0, 1.0)))
    clipped = register(reference, wild, "poisson", clip=6.0, search=Search(initial=(1.0, -3.0)))
    for found in (masked, dead, clipped):
        assert np.all(abs(found.shift - SHIFT) < 5 * found.stderr)
        assert found.status == 0
        assert abs(int(found.dof) - int(masked.dof)) < 5
    np.testing.assert_allclose(dead.shift, masked.shift, rtol=0, atol=1e-5)


def test_stack_is_register_of_each():
    frames = np.stack([counted(20.0, k, SHIFT / (k + 1)) for k in range(3)]).astype(np.float32)
    reference = (20 * FIELD).astype(np.float32)
    for options in ({"boundary": "wrap"}, {"mask": FIELD > 1.4}):
        found = register_stack(frames, reference, "poisson", batch_size=2, **options)
        one = jax.jit(partial(register, err="poisson", **options))
        each = [one(reference, frame) for frame in frames]
        np.testing.assert_allclose(found.shift, np.stack([x.shift for x in each]), rtol=0, atol=1e-4)
        np.testing.assert_allclose(found.stderr, np.stack([x.stderr for x in each]), rtol=1e-3)
        assert np.all(found.noise_known)


def test_what_cannot_be_is_named():
    image = counted(20.0)
    with pytest.raises(ValueError, match="err must be numbers, 'poisson' or Counts, not 'gauss'"):
        register(FIELD, image, "gauss")
    with pytest.raises(ValueError, match="gain of Counts must be positive"):
        register(FIELD, image, Counts(gain=0.0))
    with pytest.raises(ValueError, match="read_noise must be a scalar or have the shape"):
        register(FIELD, image, Counts(read_noise=np.ones(3)))
    with pytest.raises(ValueError, match="not 'mean'"):
        register_stack(np.stack([image] * 2), "mean", "poisson")
    for function in (fit, chi2_surface):
        with pytest.raises(TypeError, match="err must be"):
            function(FIELD, image, Counts())
    nothing = register(FIELD, np.zeros(SHAPE), "poisson")
    assert nothing.status & (Status.NO_DATA | Status.FLAT)


def test_command_line_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    reference, image, path = (tmp_path / name for name in ("a.npy", "b.npy", "c.png"))
    np.save(reference, (20 * FIELD).astype(np.float32))
    np.save(image, counted(20.0))
    given = ["--err", "poisson", "--boundary", "wrap", "--json", "--plot", str(path)]
    assert main(["register", str(reference), str(image), *given]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["err"] == "poisson"
    assert np.all(abs(np.array(found["shift"]) - SHIFT) < 5 * np.array(found["stderr"]))
    assert path.stat().st_size > 10_000


@pytest.mark.long
def test_stream(tmp_path):
    frames = np.stack([counted(20.0, k, SHIFT / (k + 1)) for k in range(3)]).astype(np.float32)
    reference = (20 * FIELD).astype(np.float32)
    result = register_file(iter(frames), reference, Counts(read_noise=1.0), boundary="wrap", progress=False)
    found = register_stack(frames, reference, Counts(read_noise=1.0), boundary="wrap")
    np.testing.assert_allclose(result.shift, found.shift, rtol=0, atol=1e-5)
