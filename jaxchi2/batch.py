"""A function of a few frames applied to any number of them: chunk by chunk, and on many devices.

Frames are pytrees of arrays with the frame axis first. Nothing here knows what a frame is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .checks import refuse

Frames = Any
MAX_BYTES = 2**32
"""Of the array that one FFT call transforms: beyond it and 2³¹ elements, cuFFT and XLA have open bugs."""
CACHE_BYTES = {False: 2**21, True: 2**19}
"""Of a chunk's pixels on a CPU, without and with a grid beyond the frame: with more, every pass over them
goes to memory; with less, small kernels take their time. At 128² chunks of 16 to 64 frames took the least
time, of 4 to 8 with a larger grid; at 512² 2 to 4, and 1 to 2."""
WORKSPACE = {False: 24, True: 40}
"""Arrays of a frame's size that a registration needs at once, without and with a grid beyond the frame."""


def default_batch_size(
    shape: tuple[int, ...], itemsize: int, memory_limit: int | None = None, padded: bool = False
) -> int:
    """Frames to do at once: what fits into the cache of a CPU, or into a share of an accelerator's memory."""
    size = prod(shape) * itemsize
    limit = memory_limit
    if limit is not None and (
        isinstance(limit, bool) or not isinstance(limit, int | np.integer) or limit < 1
    ):
        raise ValueError(f"memory_limit must be a positive integer of bytes, not {limit!r}")
    if limit is None:
        # What a device does not tell is taken as 8 GB.
        stats = {} if jax.default_backend() == "cpu" else jax.devices()[0].memory_stats() or {}
        limit = stats.get("bytes_limit", 2**33) // 4
    needed = WORKSPACE[padded] * size
    if memory_limit is not None and memory_limit < needed:
        raise ValueError(f"memory_limit must leave room for one frame, {needed} bytes, not {memory_limit}")
    fitting = limit // needed
    if jax.default_backend() == "cpu":
        fitting = min(fitting, CACHE_BYTES[padded] // size)
    # A grid of up to 2.3 times the frame, in complex numbers.
    largest = MAX_BYTES // (5 * size)
    return int(max(1, min(fitting, largest)))


def in_chunks(function: Callable[[Frames], Any], frames: Frames, batch_size: int) -> Any:
    """``function(frames)``, so many frames at a time.

    The last chunk begins early enough to be as long as the others, so that one program does them all.
    """
    count = len(jax.tree.leaves(frames)[0])
    size = min(batch_size, count)
    chunks = -(-count // size)
    if chunks == 1:
        return function(frames)

    def one(start: Array) -> Any:
        return function(jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), frames))

    starts = np.minimum(np.arange(chunks) * size, count - size)
    results = lax.map(one, jnp.asarray(starts, jnp.int32))
    rest = count - (chunks - 1) * size

    def joined(x: Array) -> Array:
        flat = x.reshape(-1, *x.shape[2:])
        return jnp.concatenate([flat[: count - rest], flat[len(flat) - rest :]])

    return jax.tree.map(joined, results)


def as_mesh(mesh: Mesh) -> Mesh:
    """The same devices, the sharding of what is computed on them left to the compiler."""
    if not isinstance(mesh, Mesh):
        refuse("mesh", "a jax.sharding.Mesh", mesh, TypeError)
    return Mesh(mesh.devices, mesh.axis_names)


def frame_axis(mesh: Mesh) -> str:
    """Name of the axis of a mesh that frames are spread over, its first."""
    return mesh.axis_names[0]


def on_mesh(function: Callable, mesh: Mesh | None, *, reduces: Any = False) -> Callable:
    """``function(frames, common)`` on each device's share of the frames; frames out, or a reduction.

    Of several results, ``reduces`` says that of each.
    """
    if mesh is None:
        return function
    axis = frame_axis(mesh)
    specs = jax.tree.map(lambda whole: P() if whole else P(axis), reduces)
    # JAX cannot yet check what varies over the devices through custom derivatives; the tests compare them.
    return jax.shard_map(function, mesh=mesh, in_specs=(P(axis), P()), out_specs=specs, check_vma=False)


class Spread(NamedTuple):
    """Frames on a mesh, each device's share of one length."""

    frames: Frames
    """Padded by frames of NaN, or of zeros where there is no NaN, to equal shares."""
    number: int
    """Frames that there were in this process."""


def spread(frames: Frames, mesh: Mesh) -> Spread:
    """Put frames on a mesh. Of several processes each gives its own, of which there may be unlike numbers."""
    count = len(jax.tree.leaves(frames)[0])
    sharding = NamedSharding(mesh, P(frame_axis(mesh)))
    local = mesh.local_mesh.shape[frame_axis(mesh)]
    longest = count
    if jax.process_count() > 1:
        longest = int(np.max(multihost_utils.process_allgather(np.int32(count))))
    missing = -(-longest // local) * local - count

    def put(x: Array) -> Array:
        value = np.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        padding = [(0, missing)] + [(0, 0)] * (x.ndim - 1)
        x = jnp.pad(x, padding, constant_values=value) if missing else x
        if jax.process_count() > 1:
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))
        place = lax.with_sharding_constraint if isinstance(x, Tracer) else jax.device_put
        return place(x, sharding)

    return Spread(jax.tree.map(put, frames), count)


def gathered(results: Any, count: int) -> Any:
    """The results of this process's own frames, the padding left out."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda x: x if len(x) == count else x[:count], results)

    def own(x: Array) -> np.ndarray:
        shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])[:count]

    return jax.tree.map(own, results)


def previous_frames(frames: Array) -> Array:
    """For each frame the one before it, for the first itself; over the processes in their order."""
    first = frames[:1]
    if jax.process_count() > 1:
        lasts = multihost_utils.process_allgather(np.asarray(frames[-1]))
        rank = jax.process_index()
        first = jnp.asarray(lasts[rank - 1])[None] if rank else first
    return jnp.concatenate([first, frames[:-1]])
