"""Sums, counts, extremes and shifts over whole arrays, each in few kernels.

A kernel takes some ten milliseconds to compile. On CPUs JAX before 0.12 makes a tree of them of every sum to
a scalar, and one more pass. Products with ones are two kernels there, summed line by line, and several times
faster. Since then a plain sum is faster than that, and takes no time to compile.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_batching import custom_vmap

SUMS_WELL = jax.__version_info__ >= (0, 12)
"""Whether a plain sum is the quickest."""


def sum_all(x: Array) -> Array:
    """Sum of all elements, a scalar."""
    return sum_each(x[None])[0]


def sum_each(x: Array) -> Array:
    """Sums over all axes but the first."""
    if SUMS_WELL:
        return jnp.sum(x, tuple(range(1, x.ndim)), dtype=x.dtype)
    while x.ndim > 1:
        ones = jnp.ones_like(x, shape=x.shape[-1:])
        x = lax.dot_general(x, ones, (((x.ndim - 1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
    return x


def count(mask: Array) -> Array:
    """How often an array of bool is true; an int32 scalar."""
    return sum_all(mask.astype(jnp.int32))


def some(mask: Array) -> Array:
    """Whether any element is true."""
    return count(mask) > 0


def every(mask: Array) -> Array:
    """Whether all elements are true."""
    return ~some(~mask)


def mean_over(x: Array, mask: Array) -> Array:
    """Mean of the elements where ``mask`` is true; zero where none is."""
    return sum_all(jnp.where(mask, x, 0.0)) / jnp.maximum(count(mask), 1)


@custom_vmap
def any_in_batch(flag: Array) -> Array:
    """``flag``, and under ``vmap`` whether any of the batch has it: one answer, so ``cond`` stays a branch.

    A batched predicate would turn ``lax.cond`` into a select that computes both sides for every frame.
    """
    return flag


@any_in_batch.def_vmap
def _any_in_batch_rule(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return any_in_batch(jnp.any(flag, axis=0) if in_batched[0] else flag), False


def extremes(x: Array, axes: tuple[int, ...] | None = None) -> tuple[Array, Array]:
    """Largest and smallest element over some axes or all; without a derivative. A NaN is neither."""
    x = lax.stop_gradient(x)
    infinity = np.asarray(np.inf, x.dtype)

    def both(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.maximum(a[0], b[0]), jnp.minimum(a[1], b[1])

    present = ~jnp.isnan(x)
    operands = jnp.where(present, x, -infinity), jnp.where(present, x, infinity)
    axes = tuple(range(x.ndim)) if axes is None else axes
    largest, smallest = lax.reduce(operands, (-infinity, infinity), both, axes)
    return largest, smallest


def block_sums(x: Array, size: int) -> Array:
    """Sums over blocks of ``size`` along every axis, the last filled up with zeros."""
    x = jnp.pad(x, [(0, -n % size) for n in x.shape])
    split = x.reshape([m for n in x.shape for m in (n // size, size)])
    return jnp.sum(split, tuple(range(1, split.ndim, 2)))


def neighbours(x: Array, first: int, last: int, axis: int, outside: str = "wrap") -> list[Array]:
    """``x[i + k]`` along an axis for every k from ``first`` to ``last``; ``outside`` as in ``jnp.pad``.

    Slices, where an index would be looked up for every element.
    """
    pads = [(max(-first, 0), max(last, 0)) if a == axis else (0, 0) for a in range(x.ndim)]
    # Behind a barrier, or every slice would pad anew.
    padded, start = lax.optimization_barrier(jnp.pad(x, pads, mode=outside)), pads[axis][0]
    return [
        lax.slice_in_dim(padded, start + k, start + k + x.shape[axis], axis=axis)
        for k in range(first, last + 1)
    ]


def wrapped(x: Array, margin: int) -> Array:
    """A periodic array with so many pixels more on every side; its slices are shifted arrays."""
    # Behind a barrier, or every slice would pad anew.
    return lax.optimization_barrier(jnp.pad(x, margin, mode="wrap"))
