"""Calibration by Monte Carlo: pulls, coverage, and the Cramér–Rao bound.

Each case has N frames, hence n = 2N pulls. The standard deviation of n unit normal pulls scatters by
1/√(2n), their coverage by √(p(1 − p)/n); N is such that 0.05 is five of the former: a right program fails
by chance once in 1e6. The scatter of the shifts is compared with that of the linear estimate
``F⁻¹ Σ w n ∂M`` on the same noise, whose covariance is the Cramér–Rao bound F⁻¹ exactly. Both share their
sampling noise, so the ratio of the two resolves 3 % with room to spare.
"""

from functools import partial

import jax
import numpy as np
import pytest
from direct import scene

import jaxchi2
from jaxchi2 import Status

register = partial(jaxchi2.register, boundary="wrap")

SHAPE = (16, 16)
FRAMES, CHUNK = 2600, 200
STEEP = 3.0

solve = jax.jit(jax.vmap(register, in_axes=(None, 0, None)))


def make_err(kind, rng):
    """Errors near one: equal, varying by a factor of five across the frame, or from pixel to pixel."""
    if kind == "scalar":
        return np.ones(SHAPE)
    if kind == "smooth":
        y, x = np.indices(SHAPE) / np.array(SHAPE).reshape(2, 1, 1)
        return np.exp(0.8 * np.sin(2 * np.pi * (x + 0.3)) * np.cos(2 * np.pi * y))
    return rng.lognormal(sigma=0.5, size=SHAPE)


def frames(reference, shifts):
    """The reference at each shift, ``(N, ny, nx)``, and its derivatives in the shift, ``(N, 2, ny, nx)``."""
    fy, fx = np.meshgrid(*map(np.fft.fftfreq, reference.shape), indexing="ij")
    phase = -2j * np.pi * (fy * shifts[:, 0, None, None] + fx * shifts[:, 1, None, None])
    spectra = np.fft.fft2(reference) * np.exp(phase)
    slopes = np.stack([np.fft.ifft2(-2j * np.pi * f * spectra).real for f in (fy, fx)], axis=1)
    return np.fft.ifft2(spectra).real, slopes


def measure(kind, slope, snr, seed):
    rng = np.random.default_rng(seed)
    reference = snr * scene(SHAPE, slope, seed)
    err = make_err(kind, rng)
    shifts = rng.uniform(-5, 5, (FRAMES, 2))
    clean, slopes = frames(reference, shifts)
    noise = rng.normal(size=clean.shape) * err
    weighted = -slopes / err**2
    fisher = np.einsum("naij,nbij->nab", weighted, -slopes)
    bound = np.linalg.inv(fisher)
    linear = np.einsum("nab,nbij,nij->na", bound, weighted, noise)

    images = (clean + noise).astype(np.float32)
    sent = np.float32(1.0) if kind == "scalar" else err.astype(np.float32)
    chunks = [
        solve(reference.astype(np.float32), images[i : i + CHUNK], sent) for i in range(0, FRAMES, CHUNK)
    ]
    found = jax.tree.map(lambda *x: np.concatenate(x), *chunks)
    error = found.shift - shifts
    whiten = np.linalg.inv(np.linalg.cholesky(bound))
    return {
        "status": found.status,
        "pull": error / found.stderr,
        "covered": (found.interval[..., 0] < shifts) & (shifts < found.interval[..., 1]),
        "scatter": np.sqrt(
            np.mean(np.einsum("nab,nb->na", whiten, error) ** 2)
            / np.mean(np.einsum("nab,nb->na", whiten, linear) ** 2)
        ),
        "linear": np.einsum("nab,nb->na", whiten, linear),
        "reduced": np.mean(found.chi2 / found.dof),
    }


@pytest.mark.parametrize("snr", ["high", "low"])
@pytest.mark.parametrize("spectrum", ["white", "steep"])
@pytest.mark.parametrize("kind", ["scalar", "smooth", "pixel"])
def test_calibration(kind, spectrum, snr, record_property):
    level = {("white", "high"): 50.0, ("steep", "high"): 50.0, ("white", "low"): 1.2, ("steep", "low"): 2.0}
    result = measure(kind, STEEP if spectrum == "steep" else 0.0, level[spectrum, snr], seed=7)
    n = result["pull"].size
    spread, covered = np.std(result["pull"]), np.mean(result["covered"])
    record_property("calibration", f"pull {spread:.3f} covered {covered:.3f} scatter {result['scatter']:.3f}")
    # Among thousands of frames there are neighbouring minima; they are doubts, not failures.
    assert np.all(result["status"] & ~Status.AMBIGUOUS == 0)
    assert np.mean(result["status"] != 0) < 0.02
    assert 5 / np.sqrt(2 * n) < 0.05
    assert abs(np.std(result["linear"]) - 1) < 5 / np.sqrt(2 * n)
    assert 0.95 < spread < 1.05
    assert abs(np.mean(result["pull"])) < 5 / np.sqrt(n)
    assert abs(covered - 0.6827) < 5 * np.sqrt(0.6827 * 0.3173 / n)
    assert abs(result["scatter"] - 1) < 0.03
    assert abs(result["reduced"] - 1) < 5 * np.sqrt(2 / (254 * FRAMES)) + 1e-3
