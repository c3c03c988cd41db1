"""Whether the verdict's probabilities are the ones that occur, and how often its flags are wrong.

    python benchmarks/reliability.py [--frames 300] [--size 64] [--plot docs/reliability.png]

Windows of random scenes: Gaussian fields of amplitude k^(−slope), and fields of a few stars; moved by up to a
tenth of the frame, with noise from far below to far above detection, and pairs that have nothing in common.
Printed are, per scene and noise, the share of right answers (within a pixel or five quoted errors), the share
of right ones that a flag casts doubt on, and of wrong ones that none does; then how often the best of two
minima was the right one, by the probability that was quoted; then how often unrelated images were given a
chance below one in ten, a hundred, a thousand.
"""

from __future__ import annotations

import argparse
from functools import partial

import jax
import numpy as np

import jaxchi2

SLOPES = (0.0, 0.5, 1.0, 2.0, 3.0)
NOISES = (0.2, 1.0, 4.0, 8.0)
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


def waves(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n), indexing="ij")


def field(n: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Spectrum of a Gaussian field of unit variance."""
    k = np.hypot(*waves(n))
    k[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=(n, n))) * k**-slope
    return spectrum / np.fft.ifft2(spectrum).real.std()


def sources(n: int, count: float, rng: np.random.Generator) -> np.ndarray:
    """Spectrum of Gaussian sources of σ 1.5 pixels and power-law brightness, the median peak one."""
    y, x = waves(n)
    number = rng.poisson(count)
    places, peaks = rng.uniform(0, n, (number, 2)), 10 ** rng.uniform(-1, 1, number)
    phases = np.exp(-2j * np.pi * (y[..., None] * places[:, 0] + x[..., None] * places[:, 1]))
    shape = 2 * np.pi * 1.5**2 * np.exp(-2 * (np.pi * 1.5) ** 2 * (y**2 + x**2))
    return (phases @ peaks) * shape


def scene(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Spectrum of twice the window: ``k 1.0`` a field, ``stars 8`` so many sources in the window."""
    name, number = kind.split()
    if name == "k":
        return field(2 * n, float(number), rng)
    return sources(2 * n, 4 * float(number), rng)


def pairs(
    kind: str, noise: float, reference_noise: float, count: int, n: int, *, wrap: bool, related: bool = True
) -> Pairs:
    """Windows of one scene, or of two; of a periodic scene all of it for ``wrap``."""
    rng = np.random.default_rng([count, n, int(10 * noise), *kind.encode()])
    size = n if wrap else 2 * n
    window = (slice(0, n) if wrap else slice(n // 2, n // 2 + n),) * 2
    y, x = waves(size)
    rows: list[list[np.ndarray]] = [[], [], []]
    for _ in range(count):
        spectrum = scene(kind, n // 2 if wrap else n, rng)
        shift = rng.uniform(-0.1, 0.1, 2) * n
        other = spectrum if related else scene(kind, n // 2 if wrap else n, rng)
        moved = np.fft.ifft2(other * np.exp(-2j * np.pi * (y * shift[0] + x * shift[1]))).real
        first = np.fft.ifft2(spectrum).real[window] + reference_noise * rng.normal(size=(n, n))
        for row, value in zip(
            rows, (first, moved[window] + noise * rng.normal(size=(n, n)), shift), strict=True
        ):
            row.append(value)
    return tuple(np.stack(row) for row in rows)  # type: ignore[return-value]


def found(data: Pairs, options: dict) -> jaxchi2.Registration:
    def one(pair: tuple) -> jaxchi2.Registration:
        return jaxchi2.register(*pair, **options)

    sent = tuple(np.asarray(x, np.float32) for x in data[:2])
    return jax.tree.map(np.asarray, run(one, sent, tuple(sorted(options.items()))))


@partial(jax.jit, static_argnums=(0, 2))
def _run(one, sent, _):
    return jax.lax.map(one, sent)


def run(one, sent, key):
    program = PROGRAMS.setdefault((key, sent[0].shape), jax.jit(partial(jax.lax.map, one)))
    return program(sent)


PROGRAMS: dict = {}


def is_right(result: jaxchi2.Registration, shift: np.ndarray, at: np.ndarray) -> np.ndarray:
    off = np.abs(at - shift)
    return np.all(off < np.maximum(1.0, 5 * np.asarray(result.stderr)), axis=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    F = jaxchi2.Status
    quoted, best_right = [], []
    for wrap in (False, True):
        for both in (False, True):
            for kind in ("k 0.0", "k 0.5", "k 1.0", "k 2.0", "k 3.0", "stars 1", "stars 4", "stars 20"):
                line = []
                for noise in NOISES:
                    options = {"boundary": "wrap" if wrap else "overlap"}
                    data = pairs(kind, noise, noise if both else 0.0, args.frames, args.size, wrap=wrap)
                    r = found(data, options)
                    right = is_right(r, data[2], r.shift)
                    st = r.status
                    second = is_right(r, data[2], r.runner_up.shift)
                    pick = right ^ second
                    quoted.append(r.runner_up.probability[pick])
                    best_right.append(right[pick])
                    line.append(
                        f"{noise}: right {right.mean():.2f} U {np.mean((st[right] & 64) > 0) if right.any() else np.nan:.2f}"
                        f" A {np.mean((st[right] & 128) > 0) if right.any() else np.nan:.2f} oth {np.mean((st[right] & ~192) > 0) if right.any() else np.nan:.2f} silent {np.mean(~right & (st == 0)):.3f}"
                    )
                print(
                    "wrap" if wrap else "overlap",
                    "both" if both else "one",
                    kind,
                    " | ".join(line),
                    flush=True,
                )
            q, b = np.concatenate(quoted), np.concatenate(best_right)
            edges = [0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999, 0.9999, 1.0]
            for lo, hi in zip(edges[:-1], edges[1:], strict=True):
                k = (q >= lo) & ((q < hi) | (hi == 1))
                if k.any():
                    print(f"   p {lo}-{hi}: {k.sum()} mean {q[k].mean():.4f} right {b[k].mean():.4f}")
            quoted, best_right = [], []
            for kind in ("k 0.0", "k 1.0", "k 2.0", "k 3.0", "stars 1", "stars 4", "stars 20"):
                line = []
                for noise in (0.05, 1.0):
                    options = {"boundary": "wrap" if wrap else "overlap"}
                    data = pairs(
                        kind, noise, noise if both else 0.0, args.frames, args.size, wrap=wrap, related=False
                    )
                    r = found(data, options)
                    c = r.chance
                    line.append(
                        f"{noise}: st0 {np.mean(r.status == 0):.3f} noU {np.mean((r.status & 64) == 0):.3f} c<.1 {np.nanmean(c < 0.1):.3f} c<.01 {np.nanmean(c < 0.01):.3f} c<.001 {np.nanmean(c < 0.001):.3f}"
                    )
                print(
                    "UNRELATED",
                    "wrap" if wrap else "overlap",
                    "both" if both else "one",
                    kind,
                    " | ".join(line),
                    flush=True,
                )
