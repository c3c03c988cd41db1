"""Stacks of few noisy frames: the mean, the first frame and the joint solution as reference.

    python benchmarks/low_signal.py [--movies 20] [--size 64]

Windows of one scene of unit contrast, blobs of 2.5 pixels or a field of amplitude 1/k, at random places up to
three pixels apart, with noise of 1 / (S/N). Shifts from the mean and from the joint solution are compared
about their own mean, as their zero is free; those from the first frame as they are. Pull: off / quoted error,
root mean square of unflagged frames; off by more than 5 σ: their share of all frames; flagged: the share with
a status.
"""

from __future__ import annotations

import argparse
from itertools import product

import jax
import numpy as np
from accuracy import moved, new_scene

import jaxchi2

METHODS = ("mean", "first", "joint")


def movie(
    slope: float | None, count: int, noise: float, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    scene = new_scene(2 * n + 1, rng, slope)
    path = rng.uniform(-3, 3, (count, 2))
    window = (slice(n // 2, n // 2 + n),) * 2
    frames = [moved(scene, shift)[window] + noise * rng.normal(size=(n, n)) for shift in path]
    return np.stack(frames).astype(np.float32), path


def registered(method: str, stack: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shifts, errors and status."""
    if method == "joint":
        joint = jaxchi2.register_jointly(stack, noise)
        return np.asarray(joint.shift), np.asarray(joint.stderr), np.asarray(joint.status)
    reference_err = noise if method == "first" else None
    found = jaxchi2.register_stack(stack, method, noise, reference_err=reference_err)
    return np.asarray(found.shift), np.asarray(found.stderr), np.asarray(found.status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--movies", type=int, default=20)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    print(f"{args.movies} stacks of frames of {args.size}², jax {jax.__version__}, float32\n")
    print("| scene | frames | S/N | reference | rms (px) | pull | off by more than 5 σ, no flag | flagged |")
    print("|---|---|---|---|---|---|---|---|")
    for slope, count, ratio, method in product((None, 1.0), (8, 30), (0.3, 1.0, 3.0, 10.0), METHODS):
        rng = np.random.default_rng(1)
        off, pull, flagged = [], [], []
        for _ in range(args.movies):
            stack, path = movie(slope, count, 1 / ratio, args.size, rng)
            shift, error, status = registered(method, stack, 1 / ratio)
            good = status == 0
            difference = shift - path
            if method == "first":
                # The first frame is its own reference.
                difference, good, error = (x[1:] for x in (difference + path[0], good, error))
            elif good.any():
                difference = difference - difference[good].mean(axis=0)
            off.append(difference[good])
            pull.append(difference[good] / error[good])
            flagged.append(~good)
        offs, pulls, flags = (np.concatenate(x) for x in (off, pull, flagged))
        wrong = np.sum(np.any(np.abs(pulls) > 5, axis=1)) / len(flags)
        values = np.sqrt(np.mean(offs**2)), np.sqrt(np.mean(pulls**2)), wrong, np.mean(flags)
        name = "blobs" if slope is None else "1/k"
        print(
            f"| {name} | {count} | {ratio} | {method} | " + " | ".join(f"{v:.3f}" for v in values) + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
