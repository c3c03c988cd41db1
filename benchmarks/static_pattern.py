"""Stacks whose frames share a pattern of the camera, with and without ``static_pattern=True``.

    python benchmarks/static_pattern.py [--draws 30] [--size 64] [--reach 3] [--boundary wrap overlap]

Twenty frames of sixty stars of full width 3 pixels and peaks of up to ten times the noise, at random places
up to ``--reach`` pixels from the middle along each axis. The pattern is white, of half the noise; hot pixels
are twenty of 20 to 100 σ, columns a fifth of them, of 2 σ. Periodic frames, or windows of a larger scene.
Errors are those relative to the mean place of the frames. Bound: Cramér and Rao's, of the scene with the
pattern known. Locked: a shift off by more than 5 quoted errors, of frames without a flag. The last columns
are of the pattern: root mean square of its error, of what is quoted, and the pull.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from accuracy import moved
from table import command_line, print_head

import jaxchi2
from jaxchi2.stack import mean_template

FRAMES = 20
KINDS = ("none", "white", "white, hot pixels", "white, columns", "all three")


def make_scene(n: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.indices((n, n))
    scene = np.zeros((n, n))
    for _ in range(60):
        a, b = rng.uniform(0, n, 2)
        dy, dx = (y - a + n / 2) % n - n / 2, (x - b + n / 2) % n - n / 2
        scene += rng.uniform(2, 10) * np.exp(-(dy**2 + dx**2) * 4 * np.log(2) / 9)
    return scene


def make_pattern(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    pattern = np.zeros((n, n)) if kind == "none" else 0.5 * rng.normal(size=(n, n))
    if kind in ("white, hot pixels", "all three"):
        pattern.flat[rng.choice(n * n, 20, replace=False)] += rng.uniform(20, 100, 20)
    if kind in ("white, columns", "all three"):
        pattern += 2 * rng.normal(size=n) * (rng.random(n) < 0.2)
    return pattern - pattern.mean()


def bound(scene: np.ndarray) -> np.ndarray:
    """Standard error per axis of a shift against the mean place, noise one."""
    n = len(scene)
    power = np.abs(np.fft.fft2(scene)) ** 2 / n**2
    k = 2 * np.pi * np.stack(np.broadcast_arrays(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :]))
    information = np.einsum("aij,bij,ij->ab", k, k, power)
    return np.sqrt((1 - 1 / FRAMES) * np.diag(np.linalg.inv(information)))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else np.nan


def joint(stack: jax.Array, static: bool, options: dict[str, Any]) -> tuple:
    found = jaxchi2.register_jointly(stack, 1.0, static_pattern=static, **options)
    return found.shift, found.stderr, found.status, (found.pattern, found.pattern_variance)


def mean(stack: jax.Array, static: bool, options: dict[str, Any]) -> tuple:
    template, found = mean_template(stack, 1.0, static_pattern=static, **options)
    return found.shift, found.stderr, found.status, (template.pattern, template.pattern_variance)


WAYS = {
    "jointly": partial(joint, static=False),
    "jointly, static_pattern": partial(joint, static=True),
    "mean, static_pattern": partial(mean, static=True),
}


def stacks(
    kind: str, reach: float, n: int, boundary: str, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames, shifts, patterns and bounds."""
    rng = np.random.default_rng(seed)
    whole = n if boundary == "wrap" else n + 32
    window = (slice((whole - n) // 2, (whole + n) // 2),) * 2
    parts = []
    for _ in range(draws):
        scene = make_scene(whole, rng)
        shifts = rng.uniform(-reach, reach, (FRAMES, 2))
        pattern = make_pattern(kind, n, rng)
        frames = np.stack([moved(scene, s)[window] for s in shifts]) + pattern
        frames += rng.normal(size=frames.shape)
        parts.append((frames.astype(np.float32), shifts - shifts.mean(0), pattern, bound(scene[window])))
    frames, shifts, patterns, bounds = (np.stack(x) for x in zip(*parts, strict=True))
    return frames, shifts, patterns, bounds


def row(found: tuple, truth: np.ndarray, patterns: np.ndarray, bounds: np.ndarray) -> list[float]:
    shift, stderr, status = (np.asarray(x) for x in found[:3])
    good = status == 0
    off = shift - truth
    off = off - np.nanmean(np.where(good[..., None], off, np.nan), axis=1, keepdims=True)
    pulls = off / stderr
    locked = good & np.any(np.abs(pulls) > 5, axis=2)
    least = np.broadcast_to(bounds[:, None], off.shape)
    values = [rms(off[good]), rms((off / least)[good]), rms(pulls[good]), locked.mean(), 1 - good.mean()]
    if found[3][0] is None:
        return [*values, np.nan, np.nan, np.nan]
    error = np.asarray(found[3][0]) - patterns
    quoted = np.sqrt(np.asarray(found[3][1]))
    return [*values, rms(error), rms(quoted), rms(error / quoted)]


def main() -> None:
    parser: argparse.ArgumentParser = command_line(__doc__)
    parser.add_argument("--reach", type=float, nargs="*", default=[3.0])
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.set_defaults(draws=30)
    args = parser.parse_args()
    names = ["boundary", "reach (px)", "pattern", "registered", "rms (px)", "rms / bound", "pull", "locked"]
    print_head(args, [*names, "flagged", "pattern rms", "quoted", "pull of pattern"])
    for boundary, (name, way) in product(args.boundary, WAYS.items()):
        options = {"boundary": boundary, "max_shift": 8.0}
        run = jax.jit(lambda x, way=way, options=options: jax.lax.map(partial(way, options=options), x))
        for reach, kind in product(args.reach, args.kinds):
            frames, truth, patterns, bounds = stacks(kind, reach, args.size, boundary, args.draws, args.seed)
            values = row(run(jnp.asarray(frames)), truth, patterns, bounds)
            words = " | ".join("" if np.isnan(v) else f"{v:.3f}" for v in values)
            print(f"| {boundary} | {reach:g} | {kind} | {name} | {words} |", flush=True)


if __name__ == "__main__":
    main()
