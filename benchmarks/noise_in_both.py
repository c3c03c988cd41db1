"""Noise in both images: scatter against the coherence bound, beside DIPlib's iterative `FindShift`.

    python benchmarks/noise_in_both.py [--frames 600] [--size 64]

Periodic scenes of unit contrast, power falling as k^−slope or blobs with a Gaussian point spread, white noise
of one size in both images. The bound is ``[Σ k kᵀ γ²/(1 − γ²)]⁻¹`` with the scene's own spectrum, the power
of every mode known; both methods have to do without. Columns are root mean squares over frames and axes.
"""

from __future__ import annotations

import argparse
from functools import partial

import diplib
import jax
import jax.numpy as jnp
import numpy as np
from accuracy import moved, new_scene
from scenes import rms

import jaxchi2

SCENES = [("blobs", s) for s in (0.3, 1.0, 3.0)] + [
    (slope, s) for slope in (1, 2, 3) for s in (0.3, 1.0, 2.0)
]


def make_scene(kind: str | int, n: int, rng: np.random.Generator) -> np.ndarray:
    if kind == "blobs":
        return new_scene(n, rng)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :])
    k[0, 0] = np.inf
    scene = np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, n))) * k ** (-float(kind) / 2)).real
    return scene / scene.std()


def bound(scene: np.ndarray, noise: float) -> np.ndarray:
    n = len(scene)
    signal = np.abs(np.fft.fft2(scene)) ** 2 / n**2
    k = 2 * np.pi * np.stack(np.broadcast_arrays(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :]))
    ratio = signal**2 / (2 * signal * noise**2 + noise**4)
    return np.diag(np.linalg.inv(np.einsum("aij,bij,ij->ab", k, k, ratio)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    print(
        f"{args.frames} frames of {args.size}², jax {jax.__version__}, float32, DIPlib {diplib.__version__}\n"
    )
    print("| scene | noise | bound (px) | here, rms / bound | pull | DIPlib ITER, rms / bound |")
    print("|---|---|---|---|---|---|")
    find = jax.jit(
        lambda a, b, noise: jax.lax.map(
            lambda pair: jaxchi2.register(*pair, noise, reference_err=noise, boundary="wrap", max_shift=8.0),
            (a, b),
        )
    )
    for kind, noise in SCENES:
        rng = np.random.default_rng(1)
        scenes = [make_scene(kind, args.size, rng) for _ in range(args.frames)]
        shifts = rng.uniform(-3, 3, (args.frames, 2))
        size = partial(rng.normal, 0, noise, (args.size, args.size))
        first = np.stack([scene + size() for scene in scenes])
        second = np.stack([moved(scene, s) + size() for scene, s in zip(scenes, shifts, strict=True)])
        least = np.sqrt([bound(scene, noise) for scene in scenes])
        found = find(jnp.asarray(first, jnp.float32), jnp.asarray(second, jnp.float32), noise)
        error = np.asarray(found.shift, float) - shifts
        # DIPlib counts axes from the last, and the shift is what brings the second back.
        there = [-np.array(diplib.FindShift(a, b, "ITER"))[::-1] for a, b in zip(first, second, strict=True)]
        other = np.stack(there) - shifts
        other = other if rms(other) < rms(np.stack(there) + shifts) else -np.stack(there) - shifts
        name = kind if kind == "blobs" else f"k^−{kind}"
        print(
            f"| {name} | {noise} | {rms(least):.4f} | {rms(error / least):.2f} | "
            f"{rms(error / np.asarray(found.stderr)):.2f} | {rms(other / least):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
