"""Frames per second of `register_stack` against the FFTs that it needs and against other packages.

    python benchmarks/stack.py [--stacks 128x10000 512x1000] [--repeats 5] [--peers]

The floor is one ``rfft2`` and one ``irfft2`` for every frame, compiled, in chunks of the same size. All ways
are timed in turn, round after round, on the same stack and in float32; ratios are medians over the rounds of
time divided by the floor's time in the same round. Peers (extra ``bench``) register a part of the stack:
scikit-image to a hundredth of a pixel and OpenCV in a loop, and where it is installed suite2p's rigid phase
correlation, which takes the part as one batch and finds whole pixels. They give a shift and no error.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxchi2
from jaxchi2.batch import default_batch_size, in_chunks

PEER_FRAMES = 64
WINDOW = 16


def make_stack(n: int, count: int) -> tuple[jax.Array, jax.Array]:
    """A smooth periodic scene, and frames of it displaced by up to 8 pixels with unit noise."""
    key = jax.random.key(n)
    k = jnp.hypot(jnp.fft.fftfreq(n)[:, None], jnp.fft.rfftfreq(n)[None, :])
    spectrum = jnp.fft.rfft2(jax.random.normal(key, (n, n))) * jnp.exp(-0.5 * (k / 0.1) ** 2)
    scene = jnp.fft.irfft2(spectrum, (n, n))
    scene = scene * 10 / scene.std()

    def frame(key: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        shift = jax.random.uniform(first, (2,), minval=-8.0, maxval=8.0)
        return jaxchi2.fourier.shiftnd(scene, shift) + jax.random.normal(second, (n, n))

    return scene, lax.map(jax.jit(frame), jax.random.split(key, count))


def ours(scene: jax.Array, stack: jax.Array) -> dict[str, Callable]:
    shape = stack.shape[1:]
    size = default_batch_size(shape, stack.dtype.itemsize)

    @jax.jit
    def floor(stack: jax.Array) -> jax.Array:
        return in_chunks(lambda x: jnp.fft.irfft2(jnp.fft.rfft2(x), shape)[:, 0, 0], stack, size)

    err_map = jnp.asarray(np.random.default_rng(0).uniform(0.5, 2, shape), stack.dtype)
    run = partial(jaxchi2.register_stack, stack, scene, boundary="wrap")
    return {
        "floor": lambda: floor(stack),
        "shift, covariance": lambda: run(1.0, verdict=False),
        f"max_shift={WINDOW}": lambda: run(1.0, verdict=False, max_shift=float(WINDOW)),
        "verdict": lambda: run(1.0),
        "error map": lambda: run(err_map, verdict=False),
        "overlap": lambda: jaxchi2.register_stack(stack[:PEER_FRAMES], scene, 1.0, verdict=False),
    }


def peers(scene: jax.Array, stack: jax.Array) -> dict[str, Callable]:
    import cv2
    from skimage.registration import phase_cross_correlation

    reference, frames = np.asarray(scene), np.asarray(stack[:PEER_FRAMES])
    ways = {
        "scikit-image ×100": lambda: [
            phase_cross_correlation(reference, frame, upsample_factor=100) for frame in frames
        ],
        "OpenCV": lambda: [cv2.phaseCorrelate(reference, frame) for frame in frames],
    }
    try:
        import torch
        from suite2p.registration import rigid
    except ImportError:
        return ways
    tensor = torch.from_numpy(frames.copy())
    mask, offset, kernel = rigid.compute_masks_ref_smooth_fft(torch.from_numpy(reference.copy()), 3.0, 1.15)
    window = WINDOW / len(reference)
    return ways | {"suite2p": lambda: rigid.phasecorr(tensor, kernel, mask, offset, window, 0.0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stacks", nargs="+", default=["128x10000", "512x1000"], metavar="SIZExFRAMES")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="time the other packages too")
    args = parser.parse_args()
    device = jax.devices()[0]
    host = f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores"
    print(f"jax {jax.__version__} on {host}, float32")
    header = None
    for text in args.stacks:
        n, count = map(int, text.split("x"))
        scene, stack = make_stack(n, count)
        ways = ours(scene, stack)
        if args.peers:
            ways |= peers(scene, stack)
        parts = dict.fromkeys(ways, count) | dict.fromkeys(list(ways)[5:], PEER_FRAMES)
        if header is None:
            header = " | ".join(["stack", "floor (frames/s)", *list(ways)[1:]])
            print(f"\n| {header} |\n|{'---|' * (len(ways) + 1)}")
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            jax.block_until_ready(way())
        for _ in range(args.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                jax.block_until_ready(way())
                seconds[name].append((time.perf_counter() - start) / min(parts[name], count))
        base = np.array(seconds["floor"])
        ratios = [f"{np.median(np.array(seconds[name]) / base):.2f}" for name in list(ways)[1:]]
        print(f"| {count} × {n}² | {1 / np.median(base):.0f} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
