"""Time one registration against its own FFTs and against other packages, in one process and dtype.

    python benchmarks/register_pair.py [--sizes 64 128 …] [--dtype float32] [--repeats 15] [--peers]

The floor is what any Fourier method pays: two ``rfft2`` and one ``irfft2``, compiled. ``register`` returns
shift, covariance, profile-likelihood interval and verdict. The ways are timed in turn, round after round, and
every ratio is a median over the rounds of time divided by the floor's time in the same round, so that a drift
of the machine's speed falls out. Peers (extra ``bench``) work in float64 on the CPU, OpenCV in ``--dtype``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
import warnings
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxchi2


def scene(n: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A smooth periodic scene and the same moved by (2.3, −1.7) pixels, with unit noise."""
    rng = np.random.default_rng(n)
    k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
    spectrum = np.fft.rfft2(rng.normal(size=(n, n))) * np.exp(-0.5 * (k / 0.1) ** 2)
    clean = np.fft.irfft2(spectrum, (n, n))
    clean *= 10 / clean.std()
    moved = np.asarray(jaxchi2.fourier.shiftnd(clean, (2.3, -1.7)))
    return clean.astype(dtype), (moved + rng.normal(size=clean.shape)).astype(dtype)


@jax.jit
def floor(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.fft.irfft2(jnp.conj(jnp.fft.rfft2(a)) * jnp.fft.rfft2(b), a.shape)


def ours(a: jax.Array, b: jax.Array, err_map: jax.Array) -> dict[str, Callable]:
    periodic = partial(jaxchi2.register, boundary="wrap")
    compiled = jax.jit(periodic)
    fitted = jax.jit(partial(periodic, fit_gain=True, fit_background=True))
    overlap = jax.jit(partial(jaxchi2.register, boundary="overlap"))
    mask = err_map > 1.9
    masked = jax.jit(lambda a, b: periodic(a, b, 1.0, mask=mask, reference_mask=mask))
    return {
        "floor": lambda: floor(a, b),
        "wrap": lambda: periodic(a, b, 1.0),
        "wrap in jit": lambda: compiled(a, b, 1.0),
        "gain, background": lambda: fitted(a, b, 1.0),
        "error map": lambda: compiled(a, b, err_map),
        "masks": lambda: masked(a, b),
        "overlap": lambda: overlap(a, b, 1.0),
        "chi2_shift": lambda: jaxchi2.chi2_shift(a, b, 1.0),
    }


def peers(a: np.ndarray, b: np.ndarray) -> dict[str, Callable]:
    os.environ.setdefault("MPLBACKEND", "Agg")
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(None):
        import cv2
        from image_registration import chi2_shifts
        from skimage.registration import phase_cross_correlation
    a64, b64 = a.astype(float), b.astype(float)
    return {
        "image_registration": lambda: chi2_shifts.chi2_shift(a64, b64, 1.0),
        "scikit-image ×100": lambda: phase_cross_correlation(a64, b64, upsample_factor=100),
        "OpenCV": lambda: cv2.phaseCorrelate(a, b),
    }


def times(ways: dict[str, Callable], repeats: int, budget: float) -> dict[str, np.ndarray]:
    """Seconds of every way in each round; slow ways make the rounds fewer, at least three."""
    for way in ways.values():
        jax.block_until_ready(way())
    measured: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + budget
    for done in range(repeats):
        if done >= 3 and time.perf_counter() > end:
            break
        for name, way in ways.items():
            # Short calls are timed several at once, or the clock and the first touch of cold caches count.
            count = 1 if done == 0 else max(1, int(0.01 / measured[name][0]))
            start = time.perf_counter()
            for _ in range(count):
                jax.block_until_ready(way())
            measured[name].append((time.perf_counter() - start) / count)
    return {name: np.array(seconds[1:]) for name, seconds in measured.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peers", action="store_true", help="time the other packages too")
    args = parser.parse_args()
    if args.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    device = jax.devices()[0]
    host = f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores"
    print(f"jax {jax.__version__} on {host}, {args.dtype}")
    header = None
    for n in args.sizes:
        a, b = scene(n, args.dtype)
        err_map = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, (n, n)), args.dtype)
        ways = ours(jnp.asarray(a), jnp.asarray(b), err_map)
        if args.peers:
            ways |= peers(a, b)
        if header is None:
            header = " | ".join(["size", "floor (ms)", *list(ways)[1:]])
            print(f"\n| {header} |\n|{'---|' * (len(ways) + 1)}")
        seconds = times(ways, args.repeats, budget=60)
        base = seconds["floor"]
        ratios = [f"{np.median(seconds[name] / base):.2f}" for name in list(ways)[1:]]
        print(f"| {n}² | {1e3 * np.median(base):.3f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
