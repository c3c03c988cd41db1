"""One of the processes that register a stack together: ``python two_processes.py PORT COUNT RANK FOLDER``.

Each holds its own part of the stack, of unlike lengths, and writes what it gets for it.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import jaxchi2


def main(port: str, count: int, rank: int, folder: Path) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, rank)
    jax.config.update("jax_enable_x64", True)
    stack = np.load(folder / "stack.npy")
    mine = stack[:4] if rank == 0 else stack[4:]
    mesh = jax.make_mesh((jax.device_count(),), ("frames",), axis_types=(jax.sharding.AxisType.Auto,))
    for reference in ("mean", "first", "previous"):
        found = jaxchi2.register_stack(mine, reference, 0.1, boundary="wrap", verdict=False, mesh=mesh)
        np.save(folder / f"{reference}-{rank}.npy", np.column_stack([found.shift, found.stderr, found.chi2]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
