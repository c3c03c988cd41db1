"""Cost of a gradient through `register`: time and memory of the gradient in both images over the call alone.

    python benchmarks/gradient.py [--sizes 256 1024] [--repeats 11]

The call returns one component of the shift, so that what the other fields cost is left out of both. Times are
taken in turn and their ratio is a median over rounds. Memory is what the compiled program states: arguments,
results and temporaries, in units of one image.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from register_pair import scene

import jaxchi2


def seconds(program: jax.stages.Compiled, images: tuple[jax.Array, jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program(*images))
    return time.perf_counter() - start


def memory(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    return analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    device = jax.devices()[0]
    print(f"jax {jax.__version__} on {device.platform} ({device.device_kind}), float32\n")
    print("| size | boundary | time, gradient / call | memory of call | of gradient | ratio |")
    print(f"|{'---|' * 6}")
    for n in args.sizes:
        images = tuple(map(jnp.asarray, scene(n, "float32")))
        for boundary in ("wrap", "overlap"):

            def shift(a: jax.Array, b: jax.Array, boundary: str = boundary) -> jax.Array:
                return jaxchi2.register(a, b, 1.0, boundary=boundary).shift[0]

            call = jax.jit(shift).lower(*images).compile()
            gradient = jax.jit(jax.grad(shift, argnums=(0, 1))).lower(*images).compile()
            rounds = [seconds(gradient, images) / seconds(call, images) for _ in range(args.repeats + 1)][1:]
            used = [memory(program) / images[0].nbytes for program in (call, gradient)]
            print(
                f"| {n}² | {boundary} | {np.median(rounds):.2f} | {used[0]:.1f} | {used[1]:.1f} "
                f"| {used[1] / used[0]:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
