"""Sums, counts, extremes and shifts over whole arrays, each in few kernels.

XLA makes a tree of kernels of every sum to a scalar, each of which takes ten milliseconds to compile and one
more pass to run. Products with ones are two kernels, summed line by line, and several times faster on a CPU.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def sum_all(x: Array) -> Array:
    """Sum of all elements of a floating-point array, line by line; a scalar."""
    while x.ndim:
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


def rolled(x: Array, step: int, axis: int) -> Array:
    """``jnp.roll`` by a constant, by indices: part of the kernel that uses it."""
    index = (np.arange(x.shape[axis]) - step) % x.shape[axis]
    return jnp.take(x, index, axis, mode="clip")


def wrapped(x: Array, margin: int) -> Array:
    """A periodic array with so many pixels more on every side; its slices are shifted arrays."""
    for axis, n in enumerate(x.shape):
        x = jnp.take(x, np.arange(-margin, n + margin) % n, axis, mode="clip")
    # Behind a barrier, or every slice would look its pixels up anew.
    return lax.optimization_barrier(x)
