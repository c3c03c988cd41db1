"""Scatter and quoted errors on crops of a larger scene: boundary × mask × gain × noise in both images.

    python benchmarks/accuracy.py [--frames 200] [--size 64] [--noise 0.2]

Each frame is a window of a random scene of unit contrast, blobs with a Gaussian point spread of 2.5 pixels or
a Gaussian field whose amplitude falls as a power of frequency up to Nyquist's, and a window of the same scene
moved by about (6, −5) pixels, with white noise. In the last rows what is unknown beyond the edge of a rough
field, not the noise, sets the error. The bound is the Cramér–Rao bound over the pixels that both windows show
and no mask hides, gain and background unknown where they are fitted; with noise in both images it is that of
the coherence, 1 / Σ k² γ²/(1 − γ²), times the share of the frame that overlaps. A pull is
(found − true) / quoted error; the columns are root mean squares over frames and axes.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np

import jaxchi2

SCENE = 2.5
MASKED = 0.1


def moved(scene: np.ndarray, shift: np.ndarray) -> np.ndarray:
    k = np.fft.fftfreq(len(scene))
    phase = np.exp(-2j * np.pi * (k[:, None] * shift[0] + k[None, :] * shift[1]))
    return np.fft.ifft2(np.fft.fft2(scene) * phase).real


def slopes(image: np.ndarray) -> np.ndarray:
    k = 2j * np.pi * np.fft.fftfreq(len(image))
    spectrum = np.fft.fft2(image)
    return np.stack([np.fft.ifft2(spectrum * k[:, None]).real, np.fft.ifft2(spectrum * k[None, :]).real])


def new_scene(n: int, rng: np.random.Generator, slope: float | None = None) -> np.ndarray:
    """Blobs, or a field of amplitude ``k^−slope``."""
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :])
    if slope is None:
        points = rng.exponential(size=(n, n)) * (rng.random((n, n)) < 0.01)
        response = np.exp(-2 * (np.pi * k * SCENE) ** 2)
    else:
        points, response = rng.normal(size=(n, n)), np.where(k > 0, np.maximum(k, 1 / n) ** -slope, 0.0)
    scene = np.fft.ifft2(np.fft.fft2(points) * response).real
    return (scene - scene.mean()) / scene.std()


def covariance_bound(columns: np.ndarray, counted: np.ndarray, noise: float) -> np.ndarray:
    weighted = columns[:, counted] / noise
    return np.diag(np.linalg.inv(weighted @ weighted.T))[:2]


def coherence_bound(window: np.ndarray, noise: float, gain: float, share: float) -> np.ndarray:
    """From the spectrum of the noiseless window, tapered so that its edges do not count."""
    n = len(window)
    taper = np.hanning(n)[:, None] * np.hanning(n)[None, :]
    signal = np.abs(np.fft.fft2(window * taper)) ** 2 / np.sum(taper**2)
    k = 2 * np.pi * np.stack(np.broadcast_arrays(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :]))
    ratio = (gain * signal) ** 2 / ((1 + gain**2) * signal * noise**2 + noise**4)
    return np.diag(np.linalg.inv(np.einsum("aij,bij,ij->ab", k, k, ratio) * share))


def frames(
    count: int, n: int, noise: float, masked: bool, fitted: bool, both: bool, slope: float | None
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    rows = []
    window = (slice(n // 2, n // 2 + n),) * 2
    y, x = np.indices((n, n))
    for _ in range(count):
        # An odd size has no Nyquist term, which has no sense of direction.
        scene = new_scene(2 * n + (slope is not None), rng, slope)
        shift = np.array([6.0, -5.0]) + rng.uniform(-0.5, 0.5, 2)
        target = moved(scene, shift)
        mask = rng.random((n, n)) < (MASKED if masked else 0)
        gain, background = (1.5, 3.0) if fitted else (1.0, 0.0)
        image = gain * target[window] + background + noise * rng.normal(size=(n, n))
        reference = scene[window] + (noise * rng.normal(size=(n, n)) if both else 0)
        at_y, at_x = y - shift[0], x - shift[1]
        shown = (at_y >= 0) & (at_y <= n - 1) & (at_x >= 0) & (at_x <= n - 1)
        if both:
            bound = coherence_bound(target[window], noise, gain, np.mean(shown & ~mask))
        else:
            columns = gain * np.stack([s[window] for s in slopes(target)])
            if fitted:
                columns = np.concatenate([columns, target[window][None], np.ones((1, n, n))])
            bound = covariance_bound(columns, shown & ~mask, noise)
        rows.append({"reference": reference, "image": image, "mask": mask, "shift": shift, "bound": bound})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--noise", type=float, default=0.2)
    args = parser.parse_args()
    print(f"{args.frames} frames of {args.size}², jax {jax.__version__}, float32\n")
    print(
        "| scene | noise | boundary | 10 % masked | gain, background | noise in "
        "| rms (px) | rms / bound | pull | flagged |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    cases = [(None, args.noise, *choice) for choice in product((False, True), repeat=3)]
    cases += [(2.0, args.noise, *choice) for choice in product((False, True), repeat=3)]
    cases += [(1.0, noise, False, False, False) for noise in (0.05, 0.02, 0.01)]
    for slope, noise, both, fitted, masked in cases:
        data = frames(args.frames, args.size, noise, masked, fitted, both, slope)
        for boundary in ("wrap", "overlap") if slope is None else ("overlap",):
            find = partial(
                jaxchi2.register,
                err=noise,
                reference_err=noise if both else None,
                boundary=boundary,
                fit_gain=fitted,
                fit_background=fitted,
            )

            def one(frame: tuple, find: partial = find, masked: bool = masked) -> jaxchi2.Registration:
                reference, image, mask = frame
                return find(reference, image, mask=mask if masked else None)

            sent = [jnp.asarray(data[name], jnp.float32) for name in ("reference", "image")]
            found = jax.jit(partial(jax.lax.map, one))((*sent, data["mask"]))
            error = np.asarray(found.shift, float) - data["shift"]
            good = np.all(np.isfinite(error), axis=1)
            rms, ratio, pull = (
                np.sqrt(np.mean(np.square(values[good])))
                for values in (error, error / np.sqrt(data["bound"]), error / np.asarray(found.stderr))
            )
            words = "yes" if masked else "no", "fitted" if fitted else "no", "both" if both else "the image"
            numbers = f"{rms:.4f} | {ratio:.2f} | {pull:.2f} | {np.mean(np.asarray(found.status) != 0):.2f}"
            name = "blobs" if slope is None else f"k^−{slope:.0f}"
            print(f"| {name} | {noise} | {boundary} | {' | '.join(words)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
