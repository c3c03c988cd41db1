"""Thresholds, covariance and intervals against SciPy, finite differences and iminuit's MINOS."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import chi2, hessian, moved, scene, shifted
from iminuit import Minuit
from scipy import stats

import jaxchi2
from jaxchi2 import Status, delta_chi2

register = partial(jaxchi2.register, boundary="wrap")


@pytest.mark.parametrize("nfitted", [1, 2, 3, 4, 5])
def test_delta_chi2_is_the_quantile(nfitted, dtype):
    nsigma = np.array([0.1, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 37], dtype)
    found = delta_chi2(nsigma, nfitted)
    assert found.dtype == dtype
    expected = stats.chi2.isf(2 * stats.norm.sf(nsigma.astype(float)), nfitted)
    np.testing.assert_allclose(found, expected, rtol=1e-9 if dtype == np.float64 else 5e-5)


def test_delta_chi2_beyond_what_a_probability_can_hold(dtype):
    nsigma = np.array([40, 100, 1000], dtype)
    rtol = 1e-12 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(delta_chi2(nsigma, 1), nsigma**2, rtol=rtol)
    # −2 ln 2Φ(−n) by the asymptotic series of Mills' ratio.
    n = nsigma.astype(float)
    expected = n**2 + 2 * np.log(n * np.sqrt(np.pi / 2)) - 2 * np.log1p(-1 / n**2 + 3 / n**4 - 15 / n**6)
    np.testing.assert_allclose(delta_chi2(nsigma, 2), expected, rtol=1e-9 if dtype == np.float64 else 1e-6)
    more = delta_chi2(nsigma, 3)
    assert jnp.all(jnp.isfinite(more))
    assert jnp.all(more > delta_chi2(nsigma, 2))


def test_delta_chi2_transforms(x64):
    for nfitted in (1, 2, 3):
        slope = jax.jit(jax.grad(lambda n, k=nfitted: delta_chi2(n, k)))(1.7)
        up, down = (float(delta_chi2(1.7 + h, nfitted)) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-8)
    np.testing.assert_allclose(delta_chi2(2), 4.0)


@pytest.mark.parametrize("nfitted", [0, -1, 1.5, True, "2"])
def test_delta_chi2_refuses(nfitted):
    with pytest.raises((ValueError, TypeError), match="nfitted"):
        delta_chi2(1.0, nfitted)


# name: shape, S/N per pixel, spectral slope, error map, nsigma. "low" is just detected, "asymmetric" has
# intervals whose two sides differ by tens of percent.
CASES = {
    "high": ((10, 11), 100.0, 0.0, False, 1.0),
    "high map": ((10, 11), 100.0, 0.0, True, 1.0),
    "steep map": ((10, 11), 10.0, 3.0, True, 2.0),
    "low": ((10, 11), 1.2, 0.0, False, 1.0),
    "low map": ((10, 11), 1.2, 0.0, True, 2.0),
    "asymmetric": ((10, 11), 0.5, 3.0, True, 1.0),
    "asymmetric 2": ((10, 11), 0.5, 3.0, True, 2.0),
    "line": ((31,), 2.0, 1.0, True, 2.0),
}


def make(name, seed=1):
    shape, snr, slope, mapped, nsigma = CASES[name]
    rng = np.random.default_rng(seed)
    reference = scene(shape, slope, seed + 10)
    err = np.full(shape, 1 / snr) * (rng.uniform(0.5, 2.0, shape) if mapped else 1.0)
    shift = np.array([2.3, -1.45])[: len(shape)]
    image = shifted(reference, shift) + rng.normal(size=shape) * err
    return reference, image, (err if mapped else 1 / snr), shift, nsigma


def minos(reference, image, err, start, sigma, nsigma):
    """Extremes of each axis over Δχ² < nsigma², shape ``(D, 2)``, and the minimum."""
    minuit = Minuit(lambda s: chi2(reference, image, err, s), np.array(start))
    minuit.errordef = 1.0
    minuit.strategy = 2
    minuit.tol = 1e-5
    minuit.errors = tuple(sigma)
    minuit.migrad()
    assert minuit.valid
    minuit.minos(cl=nsigma)
    bounds = [[m.lower, m.upper] for m in minuit.merrors.values()]
    assert all(m.is_valid for m in minuit.merrors.values())
    return np.array(minuit.values), np.array(minuit.values)[:, None] + np.array(bounds)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_intervals_are_those_of_minos(name, dtype):
    reference, image, err, _, nsigma = make(name)
    found = register(*(np.asarray(x, dtype) for x in (reference, image, err)), nsigma=nsigma)
    # Some are hard to tell from chance, which is not the question here.
    assert Status(int(found.status)) & ~Status.UNRELATED == Status.OK
    assert found.interval.dtype == dtype
    sigma = np.asarray(found.stderr, float)
    # MINOS starts where a search by hand would, so that both are in the same minimum.
    best, interval = minos(reference, image, err, found.shift, sigma, nsigma)
    rounding = 0.0 if dtype == np.float64 else 2e-6
    assert np.all(np.abs(found.shift - best) < 5e-3 * sigma + rounding)
    assert np.all(np.abs(found.interval - interval) < 5e-3 * sigma[:, None] + rounding)


def test_asymmetric_cases_are_asymmetric(x64):
    reference, image, err, _, nsigma = make("asymmetric")
    found = register(reference, image, err, nsigma=nsigma)
    sides = np.abs(found.interval - found.shift[:, None])
    assert np.max(np.abs(sides[:, 1] / sides[:, 0] - 1)) > 0.1


@pytest.mark.parametrize("name", CASES)
def test_covariance_is_twice_the_inverse_hessian(name, dtype):
    reference, image, err, *_ = make(name)
    found = register(*(np.asarray(x, dtype) for x in (reference, image, err)), nsigma=CASES[name][-1])
    expected = 2 * np.linalg.inv(
        hessian(lambda s: chi2(reference, image, err, s), np.asarray(found.shift, float), 2e-3)
    )
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    tolerance = 1e-5 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(found.covariance / scale, expected / scale, atol=tolerance)
    np.testing.assert_allclose(found.stderr, np.sqrt(np.diag(expected)), rtol=tolerance)
    residual = chi2(reference, image, err, np.asarray(found.shift, float))
    np.testing.assert_allclose(found.chi2, residual, rtol=1e-9 if dtype == np.float64 else 1e-3)


def test_interval_bounds_are_on_the_level(x64):
    """Each bound: Δχ² = nsigma² there, and no other point of the same abscissa is lower."""
    reference, image, err, _, nsigma = make("low map")
    found = register(reference, image, err, nsigma=nsigma)

    def lowest(axis, position):
        others = np.linspace(-0.4, 0.4, 201) + float(found.shift[1 - axis])
        points = [(position, o) if axis == 0 else (o, position) for o in others]
        return min(chi2(reference, image, err, p) for p in points)

    for axis in (0, 1):
        for bound in np.asarray(found.interval[axis]):
            np.testing.assert_allclose(lowest(axis, bound) - float(found.chi2), nsigma**2, rtol=0.01)


@pytest.mark.long
def test_a_faint_frame_leaves_the_intervals_of_the_others_alone():
    """Only faint frames need χ² itself, with a gain a quotient as large as the image's energy."""
    n, rng = 24, np.random.default_rng(0)
    base = scene((n, n), 2.0, 1)
    amplitude = np.array([100.0, 100.0, 100.0, 0.3])[:, None, None]
    pedestal = np.array([0.0, 0.0, 0.0, 30.0])[:, None, None]
    shifts = [(1.3, -0.6), (-2.2, 0.7), (0.4, 0.4), (1.3, -0.6)]
    images = amplitude * np.stack([moved(base, s) for s in shifts]) + pedestal + rng.normal(size=(4, n, n))
    images[2] = rng.normal(size=(n, n))
    find = jax.vmap(partial(register, err=1.0, fit_gain=True))
    found = find(np.float32(amplitude * base + pedestal), np.float32(images))
    assert np.all(np.asarray(found.status) & ~(Status.UNRELATED | Status.AMBIGUOUS) == 0)
    # To the spacing of float32 at shifts of two pixels, and a faint frame's own lopsidedness.
    sides = np.abs(found.interval - found.shift[..., None]) / found.stderr[..., None]
    np.testing.assert_allclose(sides[:2], 1.0, atol=3e-3)
    np.testing.assert_allclose(sides[3], 1.0, atol=0.05)
