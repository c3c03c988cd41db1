"""Compact kernels, and convolution of images of which not every pixel is known.

What a kernel reaches from a pixel that is unknown, or from beyond the frame, is unknown too, so kernels have
to be compact. The best of its support for a wanted response G minimises ``Σ_k w (H − G)²``, a linear problem
for conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .continuation import average_nearby, in_patches
from .passes import any_in_batch, every, mean_over, neighbours
from .spectrum import Shape, along, harmonics, scaled

STEPS = 20
"""Of conjugate gradients, to convergence where the weight is as smooth as noise."""
LEAST = 1e-3
"""Of the largest value of a kernel, below which its outer lines are left out."""
MAX_HOLE = 0.05
"""Variance that a hole, filled in, may bring to a pixel beside it, in units of the noise."""


def frequencies(grid: Shape) -> np.ndarray:
    """Length of every wave vector of the half plane, in cycles per pixel."""
    half = (*grid[:-1], grid[-1] // 2 + 1)
    squares = [np.square(harmonics(n)[:m] / n) for n, m in zip(grid, half, strict=True)]
    return np.sqrt(reduce(np.add.outer, squares))


def folded(centred: Array, shape: Shape) -> Array:
    """What is given by its distance from the middle on a periodic grid, the middle first."""
    for axis, n in enumerate(shape):
        length = centred.shape[axis]
        pads = [(0, -length % n if a == axis else 0) for a in range(centred.ndim)]
        x = jnp.pad(centred, pads)
        x = jnp.sum(x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :]), axis)
        centred = jnp.roll(x, -(length // 2), axis)
    return centred


def response_of(centred: Array, shape: Shape) -> Array:
    """Transform of what is symmetric about its middle, on the half plane of a grid."""
    return jnp.fft.rfftn(folded(centred, shape)).real


def nearest_kernels(
    target: Array, weight: Array, grid: Shape, reaches: Sequence[int], steps: int = STEPS
) -> Array:
    """For every reach the kernel within it that minimises ``Σ_k w (H − G)²``, the middle first.

    Target G and weight w are on the half plane of the grid, of equal axes; the kernels' axis is the first.
    Preconditioned by what would solve it if all of the grid were within reach.
    """
    axes, dtype = tuple(range(1, len(grid) + 1)), target.dtype
    distance = np.abs(np.fft.fftfreq(grid[0], 1 / grid[0]))
    boxes = [reduce(np.multiply.outer, [(distance <= r).astype(float)] * len(grid)) for r in reaches]
    inside = jnp.asarray(np.stack(boxes), dtype)

    def convolved(x: Array, response: Array) -> Array:
        spectrum = scaled(jnp.fft.rfftn(x, axes=axes), response[None])
        return inside * jnp.fft.irfftn(spectrum, grid, axes)

    def products(x: Array, y: Array) -> Array:
        return jnp.sum(x * y, axes, keepdims=True)

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        x, residual, direction, size = state
        image = convolved(direction, weight)
        going = size > solved
        length = jnp.where(going, size / jnp.where(going, products(direction, image), 1.0), 0.0)
        x, residual = x + length * direction, residual - length * image
        nearly = convolved(residual, 1 / weight)
        new = products(residual, nearly)
        turn = jnp.where(going, new / jnp.where(going, size, 1.0), 0.0)
        return (x, residual, nearly + turn * direction, new), None

    right = inside * jnp.fft.irfftn(weight * target, grid)[None]
    nearly = convolved(right, 1 / weight)
    size = products(right, nearly)
    solved = lax.stop_gradient(jnp.finfo(dtype).eps ** 2 * size)
    return lax.scan(step, (jnp.zeros_like(right), right, nearly, size), None, steps)[0][0]


def trimmed(kernel: Array, most: int) -> tuple[Array, Array]:
    """A kernel of a periodic grid with its middle in the middle, and how far it reaches along each axis.

    Of ``most`` pixels to either side, with zero where its outer lines are next to nothing.
    """
    ndim, lags = kernel.ndim, np.arange(-most, most + 1)
    for axis, n in enumerate(kernel.shape):
        kernel = jnp.take(kernel, lags % n, axis)
    size, reach = jnp.abs(lax.stop_gradient(kernel)), []
    for axis in range(ndim):
        line = jnp.max(size, tuple(a for a in range(ndim) if a != axis))
        reach.append(jnp.max(jnp.where(line > LEAST * jnp.max(size), np.abs(lags), 0)))
        inside = along(np.abs(lags) <= reach[-1], axis, ndim)
        kernel = jnp.where(inside, kernel, 0.0)
    return kernel, jnp.stack(reach)


def convolve(
    image: Array, unit: Array, kernel: Array, reach: Array, periodic: bool, response: Array
) -> Array:
    """An image convolved with a compact kernel, in units of what the noise is then.

    What the kernel reaches from a pixel that is not finite, or from beyond the frame unless that is periodic,
    is NaN. A single pixel that is not finite is filled in where that does not matter beside the noise.
    ``response`` is that of the kernel on the frame.
    """
    known = jnp.isfinite(image)
    mean = lax.stop_gradient(mean_over(image, known))
    level = mean / unit
    values = jnp.where(known, (image - mean) / unit, 0.0)
    outside = "wrap" if periodic else "constant"

    def with_holes(values: Array) -> tuple[Array, Array]:
        patches = in_patches(known)
        holes = ~known & ~patches
        filled = jnp.where(holes, average_nearby(values, known), values)
        brought = _brought(values, known, holes, kernel)
        return filled, known & _within(~patches, kernel, reach, outside) & (brought < MAX_HOLE)

    def without(values: Array) -> tuple[Array, Array]:
        return values, _within(known, kernel, reach, outside)

    values, valid = lax.cond(any_in_batch(~every(known)), with_holes, without, values)
    result = jnp.fft.irfftn(scaled(jnp.fft.rfftn(values), response), image.shape)
    return jnp.where(valid, result + level * response.reshape(-1)[0], jnp.nan)


def _within(known: Array, kernel: Array, reach: Array, outside: str) -> Array:
    """Whether all pixels that a kernel reaches are known."""

    def step(k: Array, known: Array, axis: int) -> Array:
        return jnp.where(
            k < reach[axis], reduce(jnp.logical_and, neighbours(known, -1, 1, axis, outside)), known
        )

    for axis, n in enumerate(kernel.shape):
        known = lax.fori_loop(0, n // 2, partial(step, axis=axis), known)
    return known


def _brought(values: Array, known: Array, holes: Array, kernel: Array) -> Array:
    """Variance that holes bring to pixels beside them, filled in with averages nearby.

    Wrong by what pixels differ from the mean of their neighbours.
    """
    total, number = jnp.zeros_like(values), jnp.zeros_like(values)
    for axis in range(values.ndim):
        before, here, behind = neighbours(values, -1, 1, axis)
        whole = reduce(jnp.logical_and, neighbours(known, -1, 1, axis))
        total = total + jnp.where(whole, (here - (before + behind) / 2) ** 2, 0.0)
        number = number + whole
    square = average_nearby(total / jnp.maximum(number, 1.0), number > 0)
    carried = response_of(kernel**2, values.shape)
    source = jnp.where(holes, square, 0.0)
    return jnp.where(holes, jnp.inf, jnp.fft.irfftn(scaled(jnp.fft.rfftn(source), carried), values.shape))
