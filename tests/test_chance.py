"""How likely chance makes unrelated images match, counted on random scenes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2 import Status, register
from jaxchi2.engine.chance import by_octave

COUNT = 60
"""Pairs in a batch of random scenes, so that batches share their programs."""


def random_field(n, rng, slope):
    """A periodic Gaussian field of unit variance, amplitude ``k^−slope``, as its spectrum."""
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :])
    k[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(n, n))) * k**-slope
    return spectrum / np.fft.ifft2(spectrum).real.std()


def random_stars(n, rng):
    """About five stars per thousand pixels, of power-law brightness and a median peak of one."""
    k = np.fft.fftfreq(n)
    number = rng.poisson(0.005 * n**2)
    y, x, peak = rng.uniform(0, n, number), rng.uniform(0, n, number), 10 ** rng.uniform(-1, 1, number)
    waves = [np.exp(-2j * np.pi * k[None, :] * at[:, None]) for at in (y, x)]
    response = 2 * np.pi * 1.5**2 * np.exp(-2 * (1.5 * np.pi) ** 2 * (k[:, None] ** 2 + k[None, :] ** 2))
    return np.einsum("p,pi,pj->ij", peak, *waves) * response


def windows(make, noise, seed, *, n=64, crop=True, related=True, both=False):
    """`COUNT` pairs of windows of scenes, moved by up to six pixels; without ``crop`` whole periods."""
    rng = np.random.default_rng(seed)
    size, window = (2 * n, slice(n // 2, n // 2 + n)) if crop else (n, slice(0, n))
    y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    images = np.empty((2, COUNT, n, n), np.float32)
    shifts = rng.uniform(-6, 6, (COUNT, 2))
    for k, shift in enumerate(shifts):
        spectrum = make(size, rng)
        other = spectrum if related else make(size, rng)
        phase = np.exp(-2j * np.pi * (y * shift[0] + x * shift[1]))
        for image, hat in ((images[0, k], spectrum), (images[1, k], other * phase)):
            image[:] = np.fft.ifft2(hat).real[window, window]
    images[1] += noise * rng.normal(size=images[1].shape)
    images[0] += both * noise * rng.normal(size=images[0].shape)
    return images, shifts


@partial(jax.jit, static_argnames="boundary")
def register_windows(images, boundary):
    return jax.lax.map(lambda pair: register(*pair, boundary=boundary), tuple(images))


@pytest.mark.parametrize("slope", [2.0, 3.0])
def test_two_waves_match_by_chance(slope):
    """A shift aligns the two longest waves of any steep periodic scenes: 30 and 70 % were believed."""
    images, _ = windows(partial(random_field, slope=slope), 0.05, 1, crop=False, related=False)
    found = register_windows(images, "wrap")
    # One in a hundred at most by Monte Carlo: six of 60 in 4e-5.
    assert np.sum(np.asarray(found.status) == 0) <= 6
    images, _ = windows(partial(random_field, slope=slope), 1.0, 2, crop=False)
    assert np.sum(np.asarray(register_windows(images, "wrap").status) != 0) <= 6


@pytest.mark.long
@pytest.mark.parametrize(("boundary", "crop"), [("wrap", False), ("overlap", True)])
def test_chance_occurs_as_often_as_is_quoted(boundary, crop):
    """Of fields k⁻¹, which 6 to 12 % of unrelated pairs were quoted below a hundredth for."""
    chances = []
    for seed in range(3):
        images, _ = windows(partial(random_field, slope=1.0), 0.05, seed, crop=crop, related=False)
        chances.append(np.asarray(register_windows(images, boundary).chance))
    chances = np.concatenate(chances)
    # Of 180 pairs 1.8 are expected below 0.01, 18 below 0.1: more by chance in less than 1e-6.
    assert np.sum(chances < 0.01) <= 11
    assert np.sum(chances < 0.1) <= 41


def test_stars_little_above_the_noise_are_believed():
    """Only stars far above the noise of a pixel counted: 90 % of right answers were called unrelated."""
    images, shifts = windows(random_stars, 2.0, 4)
    found = register_windows(images, "overlap")
    right = np.all(np.abs(np.asarray(found.shift) - shifts) < 1, axis=1)
    assert np.mean(right) > 0.9
    # By Monte Carlo 30 %: 40 of 60 in less than 1e-7.
    assert np.sum(np.asarray(found.status)[right] & Status.UNRELATED > 0) < 40


def test_noisy_pairs_of_smooth_scenes_are_found():
    """Noise against noise led the search astray, and 55 % did not converge."""
    images, shifts = windows(partial(random_field, slope=2.0), 1.0, 5, both=True)
    found = jax.jit(lambda x: jax.lax.map(lambda pair: register(*pair, 1.0, reference_err=1.0), tuple(x)))(
        images
    )
    off = np.abs(np.asarray(found.shift) - shifts)
    # None of 400 by Monte Carlo.
    assert np.sum(~np.all(off < 1 + 5 * np.asarray(found.stderr), axis=1)) <= 2


@pytest.mark.parametrize("shape", [(16,), (12, 15), (6, 5, 8)])
def test_octaves_are_sums_of_modes(shape, x64):
    power = np.random.default_rng(0).exponential(size=shape)
    power = np.abs(np.fft.fftn(np.fft.ifftn(np.sqrt(power)).real)) ** 2
    half = power[..., : shape[-1] // 2 + 1]
    harmonic = [np.abs(np.fft.fftfreq(n)) * max(shape) for n in shape]
    largest = np.max(np.stack(np.meshgrid(*harmonic, indexing="ij")), axis=0)
    sums = by_octave(jnp.asarray(half), shape)
    edges = 2.0 ** np.arange(len(sums))
    upper = np.append(edges[1:], np.inf)
    wanted = [
        np.sum(power[(largest >= max(low, 1e-9)) & (largest < high)])
        for low, high in zip(edges, upper, strict=True)
    ]
    np.testing.assert_allclose(sums, wanted, rtol=1e-12)
