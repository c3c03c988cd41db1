"""CPU time of the first call and of every new shape, against compiling the bare FFTs; and of a fresh process.

    python benchmarks/first_call.py [--cutouts 50] [--size 96]

The floor is tracing, compiling and running ``argmin(irfft2(rfft2(r) · conj(rfft2(i))))`` for the same shape
in the same process. Every number is the CPU time of the process, all threads, as compilers use several, and a
median over three shapes that were not seen before. Primitives are counted in the jaxpr of `register` under
``jit``, those in the branches and bodies of its control flow too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxchi2

FRESH = """
import numpy as np, jaxchi2
scene = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
print(jaxchi2.register(scene, np.roll(scene, 3, 0), np.float32(0.1), boundary={boundary!r}).shift)
"""


def pair(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    scene = rng.normal(size=shape).astype(np.float32)
    noise = 0.1 * rng.normal(size=shape)
    return scene, (np.roll(scene, (2, -3), (0, 1)) + noise).astype(np.float32)


def cpu_time(call: Callable[[], Any]) -> float:
    start = time.process_time()
    jax.block_until_ready(call())
    return time.process_time() - start


def floor(a: np.ndarray, b: np.ndarray) -> float:
    def peak(r: jax.Array, i: jax.Array) -> jax.Array:
        return jnp.argmin(jnp.fft.irfft2(jnp.fft.rfft2(r) * jnp.conj(jnp.fft.rfft2(i)), r.shape))

    return cpu_time(lambda: jax.jit(peak)(a, b))


def primitives(jaxpr: Any) -> int:
    count = 0
    for equation in jaxpr.eqns:
        count += 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            count += primitives(inner) if hasattr(inner, "eqns") else 0
    return count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cutouts", type=int, default=50, help="cutouts of different shapes")
    parser.add_argument("--size", type=int, default=96, help="pixels along each axis of the first shape")
    options = parser.parse_args()
    print(f"JAX {jax.__version__}, {jax.default_backend()}, {jax.device_count()} device(s)\n")
    err = np.float32(0.1)
    calls = {
        "register, wrap": lambda a, b: jaxchi2.register(a, b, err, boundary="wrap"),
        "register, overlap": lambda a, b: jaxchi2.register(a, b, err),
        "chi2_shift": lambda a, b: jaxchi2.chi2_shift(a, b, err),
        "chi2_surface(…).contour(1.0, 32)": lambda a, b: jaxchi2.chi2_surface(a, b, err).contour(1.0, 32),
    }
    floor(*pair((options.size - 2, options.size - 2)))
    print("| call | CPU s, first | CPU s, a new shape | new shape / floor |\n|---|---|---|---|")
    for number, (name, call) in enumerate(calls.items()):
        shapes = [(options.size + number, options.size + 4 * k) for k in range(4)]
        floors = [floor(*pair(shape)) for shape in shapes]
        took = [cpu_time(partial(call, *pair(shape))) for shape in shapes]
        ratio = np.median(took[1:]) / np.median(floors)
        print(f"| {name} | {took[0]:.2f} | {np.median(took[1:]):.2f} | {ratio:.0f} |", flush=True)
    for boundary in ("wrap", "overlap"):
        a = jax.ShapeDtypeStruct((128, 128), np.float32)
        jaxpr = jax.make_jaxpr(partial(jaxchi2.register, err=err, boundary=boundary))(a, a)
        print(f"\nprimitives under jit, {boundary}: {primitives(jaxpr.jaxpr)}")
    for boundary in ("wrap", "overlap"):
        walls = []
        for _ in range(3):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", FRESH.format(boundary=boundary)], check=True, capture_output=True
            )
            walls.append(time.perf_counter() - start)
        print(f"fresh process, 256², {boundary}: {np.median(walls):.1f} s of wall time")
    rng = np.random.default_rng(1)
    pairs = [pair(tuple(rng.integers(60, 141, 2).tolist())) for _ in range(options.cutouts)]
    start = time.perf_counter()
    took = [cpu_time(partial(jaxchi2.register, a, b, err)) for a, b in pairs]
    wall = time.perf_counter() - start
    print(f"{len(pairs)} cutouts of different shapes: {sum(took):.0f} CPU s, {wall:.0f} s of wall time")


if __name__ == "__main__":
    main()
