"""Scatter and quoted errors on crops of a larger scene: boundary × mask × gain × noise in both images.

    python benchmarks/accuracy.py [--frames 200] [--size 64] [--noise 0.2]

Each frame is a window of a random scene of unit contrast, blobs with a Gaussian point spread of 2.5 pixels,
and a window of the same scene moved by about (6, −5) pixels, with white noise. The bound is the Cramér–Rao
bound over the pixels that both windows show and no mask hides, gain and background unknown where they are
fitted; with noise in both images it is that of the coherence, 1 / Σ k² γ²/(1 − γ²), times the share of the
frame that overlaps. A pull is (found − true) / quoted error; the columns are root mean squares over frames
and axes.
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


def new_scene(n: int, rng: np.random.Generator) -> np.ndarray:
    points = rng.exponential(size=(n, n)) * (rng.random((n, n)) < 0.01)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :])
    scene = np.fft.ifft2(np.fft.fft2(points) * np.exp(-2 * (np.pi * k * SCENE) ** 2)).real
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


def frames(count: int, n: int, noise: float, masked: bool, fitted: bool, both: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    rows = []
    window = (slice(n // 2, n // 2 + n),) * 2
    y, x = np.indices((n, n))
    for _ in range(count):
        scene = new_scene(2 * n, rng)
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
    print(f"{args.frames} frames of {args.size}², noise {args.noise}, jax {jax.__version__}, float32\n")
    print(
        "| boundary | 10 % masked | gain, background | noise in | rms (px) | rms / bound | pull | flagged |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for both, fitted, masked in product((False, True), repeat=3):
        data = frames(args.frames, args.size, args.noise, masked, fitted, both)
        for boundary in ("wrap", "overlap"):
            find = partial(
                jaxchi2.register,
                err=args.noise,
                reference_err=args.noise if both else None,
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
            print(f"| {boundary} | {' | '.join(words)} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
