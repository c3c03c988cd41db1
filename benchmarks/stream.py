"""Memory and time of a stream of any length, against the number of frames.

    python benchmarks/stream.py [--size 128] [--dtype uint16] [--counts 100 1000 10000 100000] [--folder /tmp]

For each number of frames an NPY file of a drifting scene is written piece by piece, registered to its mean
with a table on disk in a process of its own, and deleted. Peak memory is that process's largest resident set
(getrusage), the JAX runtime, compiled programs and libraries in it: the row of 0 frames is what is there
before the first frame is read. Time is that of `register_file`, both passes, the compilation left out. The
exponent is that of a power law through the times from 1000 frames on.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Frames written at once: few, for a process is charged with what the one that started it held.
PIECE = 50


def write(path: Path, count: int, size: int, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    places, heights = rng.uniform(0, size, (40, 2)), rng.uniform(100, 2000, 40)
    scene = sum(
        h * np.exp(-((y - p) ** 2 + (x - q) ** 2) / 6) for h, (p, q) in zip(heights, places, strict=True)
    )
    noise = 20 * rng.normal(size=(PIECE, size, size)) + 300
    with open(path, "wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": (count, size, size)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, PIECE):
            shifts = rng.integers(-3, 4, (min(PIECE, count - start), 2))
            frames = np.stack([np.roll(scene, s, (0, 1)) for s in shifts]) + noise[: len(shifts)]
            file.write(frames.astype(dtype).data)


def measure(path: str) -> None:
    """In a process of its own: print peak bytes before, peak bytes after, seconds."""
    import resource

    import jax.numpy as jnp

    from jaxchi2.stream import register_file

    def peak() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    jnp.zeros(3).block_until_ready()
    before = peak()
    stack = np.load(path, mmap_mode="r")
    size = stack.shape[1]
    chunk = min(len(stack), 1024, max(1, 2**26 // (4 * size**2)))
    options = {"err": 20.0, "boundary": "wrap", "max_shift": 16.0, "chunk": chunk, "progress": False}
    register_file(np.array(stack[:chunk]), "mean", **options)
    del stack
    start = time.perf_counter()
    table = Path(path).with_suffix(".csv")
    result = register_file(path, "mean", table=table, **options)
    seconds = time.perf_counter() - start
    assert not len(result.failed)
    print(before, peak(), seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--dtype", type=np.dtype, default=np.dtype("uint16"))
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--folder", help="where to put the files; the system's temporary folder if not given")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(arguments.measure)
    print(
        f"frames of {arguments.size}², {arguments.dtype}, float32 arithmetic, reference the mean, table .csv"
    )
    print(f"{'frames':>8}  {'file (GB)':>9}  {'peak memory (MB)':>16}  {'seconds':>8}  {'frames/s':>8}")
    times = []
    for count in sorted(arguments.counts):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "stack.npy"
            write(path, count, arguments.size, arguments.dtype)
            weight = path.stat().st_size / 1e9
            command = [sys.executable, __file__, "--measure", str(path)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        before, peak, seconds = (float(word) for word in done.stdout.split())
        if not times:
            print(f"{0:>8}  {'':>9}  {before / 1e6:>16.0f}")
        times.append((count, seconds))
        print(
            f"{count:>8}  {weight:>9.2f}  {peak / 1e6:>16.0f}  {seconds:>8.2f}  {count / seconds:>8.0f}",
            flush=True,
        )
    long = np.log([pair for pair in times if pair[0] >= 1000])
    if len(long) > 1:
        print(f"time grows as frames^{np.polyfit(*long.T, 1)[0]:.3f}")
    return None


if __name__ == "__main__":
    main()
