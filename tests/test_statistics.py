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
from direct import moved, scene

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


@pytest.mark.long
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


# --- real images: edges, gain and background, noise in both -----------------------------------------------

PULLS = 2700  # Five standard deviations of the spread of so many are 0.068.


def pulls_on(pairs, shifts, **options):
    """Pulls of many pairs in float32, and how many have a status."""

    def one(pair):
        return jaxchi2.register(*pair, **options)

    found = jax.jit(lambda pairs: jax.lax.map(one, pairs))(tuple(x.astype(np.float32) for x in pairs))
    return (np.asarray(found.shift, float) - shifts) / np.asarray(found.stderr), np.asarray(found.status)


def windows(count, n, err, gain=1.0, background=0.0):
    """Windows of one smooth scene, half its size, and of the same moved: the content crosses the edge."""
    rng = np.random.default_rng(21)
    large = scene((2 * n, 2 * n), 3.0, seed=4, smooth=True)
    shifts = rng.uniform(-4, 4, (count, 2))
    inside = (slice(n // 2, n // 2 + n),) * 2
    images = np.stack([gain * moved(large, s)[inside] + background for s in shifts])
    images += err * rng.normal(size=images.shape)
    return (np.broadcast_to(large[inside], images.shape), images), shifts


@pytest.mark.long
@pytest.mark.parametrize("fitted", [False, True])
def test_errors_cover_on_windows_of_a_larger_scene(fitted):
    n, err = 36, 0.2
    pairs, shifts = windows(PULLS // 2, n, err, *((0.6, 8.0) if fitted else ()))
    options = {"err": err, "fit_gain": fitted, "fit_background": fitted}
    pull, status = pulls_on(pairs, shifts, boundary="overlap", **options)
    assert np.mean(status != 0) < 0.01
    assert 0.93 < np.sqrt(np.mean(pull**2)) < 1.07
    # Where the wrong rule gives an answer at all.
    assert np.sqrt(np.nanmean(pulls_on(pairs, shifts, boundary="wrap", **options)[0] ** 2)) > 5


@pytest.mark.long
@pytest.mark.parametrize(("gain", "background"), [(1.0, 0.0), (2.0, 40.0)])
def test_noise_in_both_images_is_calibrated_and_near_the_bound(gain, background):
    """Blobs; plain χ² with the sum of the variances quotes a third of its scatter."""
    n, err, rng = 48, 1.0, np.random.default_rng(9)
    y, x = np.indices((n, n))
    clean = np.zeros((n, n))
    for cy, cx in rng.uniform(0, n, (8, 2)):
        dy, dx = (y - cy + n / 2) % n - n / 2, (x - cx + n / 2) % n - n / 2
        clean += rng.uniform(3, 10) * np.exp(-(dy**2 + dx**2) / 8)
    count = PULLS // 2
    shifts = rng.uniform(-3, 3, (count, 2))
    images = gain * np.stack([moved(clean, s) for s in shifts]) + background
    images += err * rng.normal(size=images.shape)
    references = clean + err * rng.normal(size=images.shape)
    k = 2 * np.pi * np.stack(np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n), indexing="ij"))
    signal = gain**2 * np.abs(np.fft.fft2(clean)) ** 2 / clean.size
    first, second = (gain * err) ** 2, err**2
    weight = signal**2 / (signal * (first + second) + first * second)
    bound = np.sqrt(np.diag(np.linalg.inv(np.einsum("aij,bij,ij->ab", k, k, weight))))
    options = {"boundary": "wrap", "max_shift": 8.0}
    fitted = gain != 1

    def one(pair):
        nuisances = {"fit_gain": fitted, "fit_background": fitted}
        found = jaxchi2.register(*pair, err, reference_err=err, **nuisances, **options)
        return found.shift, found.stderr, found.gain, found.gain_err, found.background, found.background_err

    sent = tuple(a.astype(np.float32) for a in (references, images))
    found, quoted, *nuisances = (np.asarray(a, float) for a in jax.jit(lambda p: jax.lax.map(one, p))(sent))
    error = found - shifts
    assert np.sqrt(np.mean((error / bound) ** 2)) < 1.08
    assert 0.93 < np.sqrt(np.mean((error / quoted) ** 2)) < 1.07
    if fitted:
        for value, stderr, truth in zip(nuisances[::2], nuisances[1::2], (gain, background), strict=True):
            assert 0.9 < np.sqrt(np.mean(((value - truth) / stderr) ** 2)) < 1.13
        return
    plain, _ = pulls_on((references, images), shifts, err=2**0.5 * err, **options)
    assert np.sqrt(np.nanmean(plain**2)) > 2


@pytest.mark.long
def test_gain_and_background_are_calibrated_at_any_gain_on_a_background_of_many_errors():
    """Two thousand pulls of each scatter by 1.6 % in their spread, 2.2 % in their mean: five times that."""
    rng, err, background, count = np.random.default_rng(31), 1.0, 40.0, 2000
    reference = 10 * scene(SHAPE, 2.0, seed=3)
    solve = jax.jit(jax.vmap(partial(register, fit_gain=True, fit_background=True), (None, 0, None)))
    for gain in (0.3, 1.0, 3.0):
        shifts = rng.uniform(-3, 3, (count, 2))
        images = gain * frames(reference, shifts)[0] + background + err * rng.normal(size=(count, *SHAPE))
        found = solve(reference.astype(np.float32), images.astype(np.float32), np.float32(err))
        assert np.mean(found.status != 0) < 0.01
        pulls = (
            ((found.shift - shifts) / found.stderr)[:, 0],
            (found.gain - gain) / found.gain_err,
            (found.background - background) / found.background_err,
        )
        for pull in pulls:
            assert abs(np.std(pull) - 1) < 5 / np.sqrt(2 * count)
            assert abs(np.mean(pull)) < 5 / np.sqrt(count)


# --- what the interpolant cannot know: edges, masks, and both with noise in the reference -------------------

CROP = 36


def crops(slope, contrast, count, seed, *, holes=0.0, image_holes=0.0, both=False, gain=1.0, background=0.0):
    """Windows of random scenes of amplitude ``k^−slope``, full band, in units of the noise; and the bound.

    The bound is the Cramér–Rao bound of the pixels that both windows show, every mode of the scene weighted
    by its coherence where the reference is noisy, times the share of it that is known.
    """
    rng, n = np.random.default_rng(seed), CROP
    big = 2 * n + 5
    f = np.meshgrid(np.fft.fftfreq(big), np.fft.fftfreq(big), indexing="ij")
    k = np.hypot(*f)
    k[0, 0] = np.inf
    amplitude = np.where(np.isfinite(k), np.where(np.isfinite(k), k, 1.0) ** -float(slope), 0.0)
    amplitude *= contrast / np.sqrt(np.mean(amplitude**2))
    window = (slice(n // 2, n // 2 + n),) * 2
    at, rows = np.indices((n, n)), []
    first, second = (gain**2 if both else 0.0), 1.0
    power = (gain * amplitude) ** 2
    weight = np.sqrt(power / np.maximum(power * (first + second) + first * second, 1e-300))
    for _ in range(count):
        spectrum = np.fft.fft2(rng.normal(size=(big, big))) * amplitude
        shift = np.array([3.0, -2.0]) + rng.uniform(-0.5, 0.5, 2)
        there = spectrum * np.exp(-2j * np.pi * (f[0] * shift[0] + f[1] * shift[1]))
        reference = np.fft.ifft2(spectrum).real[window] + both * rng.normal(size=(n, n))
        image = gain * np.fft.ifft2(there).real[window] + background + rng.normal(size=(n, n))
        masks = rng.random((n, n)) < image_holes, rng.random((n, n)) < holes
        inside = [(a - s >= 0) & (a - s <= n - 1) for a, s in zip(at, shift, strict=True)]
        shown = inside[0] & inside[1] & ~masks[0]
        columns = [np.fft.ifft2(2j * np.pi * q * gain * there * weight).real[window][shown] for q in f]
        if gain != 1:
            columns += [np.fft.ifft2(gain * there * weight).real[window][shown], np.ones(np.sum(shown))]
        bound = np.linalg.inv(np.stack(columns) @ np.stack(columns).T) / np.mean(~masks[1])
        rows.append((reference, image, *masks, shift, np.sqrt(np.diag(bound)[:2])))
    return [np.stack(column) for column in zip(*rows, strict=True)]


@partial(jax.jit, static_argnames=("both", "fitted"))
def solve_crops(frames, both, fitted):
    def one(frame):
        reference, image, mask, reference_mask, start = frame
        found = jaxchi2.register(
            reference,
            image,
            1.0,
            reference_err=1.0 if both else None,
            mask=mask,
            reference_mask=reference_mask,
            fit_gain=fitted,
            fit_background=fitted,
            search=jaxchi2.Search(initial=start),
            verdict=False,
        )
        return found.shift, found.stderr, found.gain, found.gain_err, found.chi2 / found.dof

    return jax.lax.map(one, frames)


def judge_crops(slope, contrast, count, seed=3, fitted=False, **options):
    """Robust pull, rms over the bound, pull of the gain, reduced χ²."""
    gain, background = (1.5, 30.0) if fitted else (1.0, 0.0)
    *frames, shift, bound = crops(slope, contrast, count, seed, gain=gain, background=background, **options)
    sent = tuple(a if a.dtype == bool else a.astype(np.float32) for a in (*frames, np.round(shift)))
    found = solve_crops(sent, both=options.get("both", False), fitted=fitted)
    position, stderr, found_gain, gain_err, reduced = (np.asarray(a, float) for a in found)
    error = position - shift
    return (
        np.sqrt(np.mean((error / stderr) ** 2)),
        np.sqrt(np.mean((error / bound) ** 2)),
        # Nothing where it is not fitted.
        np.sqrt(np.mean(((found_gain - gain) / np.where(gain_err > 0, gain_err, 1.0)) ** 2)),
        np.mean(reduced),
    )


FEW = 400  # Five standard deviations of the spread of 800 pulls are 0.125.


@pytest.mark.long
@pytest.mark.parametrize(
    ("slope", "contrast", "worst"), [(1.0, 20.0, 1.45), (1.0, 100.0, 4.7), (2.0, 100.0, 1.2)]
)
def test_errors_cover_what_the_interpolant_cannot_know_at_edges(slope, contrast, worst):
    pull, rms, _, reduced = judge_crops(slope, contrast, FEW)
    assert 0.85 < pull < 1.15
    assert rms < worst
    # More may be counted than there is, by up to a third.
    assert 0.7 < reduced < 1.15


@pytest.mark.long
@pytest.mark.parametrize(("slope", "contrast", "worst"), [(1.0, 5.0, 1.35), (2.0, 30.0, 1.25)])
def test_holes_of_the_reference_cost_little_more_than_themselves(slope, contrast, worst):
    """Of every pixel within two of a hole, with one in ten, a fifth of the information would be left."""
    pull, rms, _, _ = judge_crops(slope, contrast, FEW, holes=0.1)
    assert 0.85 < pull < 1.15
    assert rms < worst


@pytest.mark.long
@pytest.mark.parametrize(
    ("slope", "contrast", "masks"),
    [
        (2.0, 5.0, {}),
        (2.0, 5.0, {"image_holes": 0.1}),
        (3.0, 30.0, {"holes": 0.005}),
        (2.0, 2.0, {"holes": 0.1}),
        (1.0, 5.0, {"holes": 0.1}),
    ],
)
def test_noise_in_both_images_is_calibrated_where_scenes_end_at_edges_and_holes(slope, contrast, masks):
    pull, rms, _, _ = judge_crops(slope, contrast, FEW, both=True, **masks)
    assert 0.85 < pull < 1.15
    assert rms < 1.3


@pytest.mark.long
@pytest.mark.parametrize(("slope", "contrast"), [(2.0, 5.0), (3.0, 30.0)])
def test_gain_and_background_are_calibrated_with_noise_in_both_images_at_edges(slope, contrast):
    pull, rms, gain_pull, _ = judge_crops(slope, contrast, FEW, both=True, fitted=True)
    assert 0.85 < pull < 1.2
    assert rms < 1.3
    assert 0.85 < gain_pull < 1.25


def stars(catalogue, shift, n=48):
    """Gaussian stars, full width at half maximum of three pixels."""
    y, x = np.indices((n, n))
    return sum(
        p * np.exp(-((y - a - shift[0]) ** 2 + (x - b - shift[1]) ** 2) / 3.2) for a, b, p in catalogue
    )


@pytest.mark.long
@pytest.mark.parametrize("case", ["edge", "cores"])
def test_steep_stars_at_edges_and_masks(case):
    """One cut by the frame at S/N 1000; and cores masked in both images, the slope a hundred errors."""
    rng, rows = np.random.default_rng(17), []
    err = 3.0 if case == "edge" else 10.0
    for _ in range(300):
        shift = rng.uniform(-2.5, 2.5, 2)
        if case == "edge":
            catalogue = [(*rng.uniform(8, 40, 2), 300.0) for _ in range(8)] + [(1.0, 20.0, 3000.0)]
        else:
            catalogue = [(*rng.uniform(6, 42, 2), 10 ** rng.uniform(2.5, 4.5)) for _ in range(10)]
        first, second = (stars(catalogue, s) for s in (np.zeros(2), shift))
        first, second = (
            first + (case == "cores") * rng.normal(0, err, first.shape),
            second + rng.normal(0, err, first.shape),
        )
        limit = np.inf if case == "edge" else 3000.0
        masks = second > limit, first > limit
        rows.append((np.minimum(first, limit), np.minimum(second, limit), *masks, shift))
    *frames, shift = [np.stack(column) for column in zip(*rows, strict=True)]

    @jax.jit
    def solve(frames):
        def one(frame):
            reference, image, mask, reference_mask, start = frame
            found = jaxchi2.register(
                reference,
                image,
                err,
                reference_err=err if case == "cores" else None,
                mask=mask,
                reference_mask=reference_mask,
                search=jaxchi2.Search(initial=start),
                verdict=False,
            )
            return found.shift, found.stderr, found.status

        return jax.lax.map(one, frames)

    sent = tuple(a if a.dtype == bool else a.astype(np.float32) for a in (*frames, np.round(shift)))
    found, stderr, status = (np.asarray(a, float) for a in solve(sent))
    pull = np.abs(found - shift) / stderr
    assert np.mean(status != 0) < 0.03
    assert 0.8 < np.median(pull) / 0.6745 < 1.25
    assert np.mean(pull > 5) < 0.01
