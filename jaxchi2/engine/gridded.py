"""The interpolant of an image near any point, from few samples: for windows that each lie somewhere else.

The exact interpolant of an image of n samples needs all of them at every point. On a grid twice as fine,
behind the inverse of a kernel's transform, it is a sum over the `WIDTH` nearest samples with the kernel as
weights, to 1e-6 of the amplitude of white noise: the gridding of a non-uniform FFT (Barnett, Magland & af
Klinteberg, SIAM J. Sci. Comput. 41, 2019). Derivatives are those of the kernel.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .spectrum import Shape, harmonics, on_grid, scaled, unfolded

WIDTH = 8
"""Samples of the fine grid that a point takes part of, along each axis."""
STEEPNESS = 2.3 * WIDTH
REACH = 4
"""Fine samples on either side of one that are needed within half a pixel of it."""


def kernel(x: Array | np.ndarray) -> Array:
    """``exp(β (√(1 − (2x/W)²) − 1))`` where that is real, else zero."""
    square = 1 - (2 * x / WIDTH) ** 2
    inside = square > 0
    return jnp.where(inside, jnp.exp(STEEPNESS * (jnp.sqrt(jnp.where(inside, square, 1.0)) - 1)), 0.0)


def _response(frequency: np.ndarray) -> np.ndarray:
    """Transform of the kernel at frequencies in cycles per sample, by Gauss's quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    x = nodes * WIDTH / 2
    values = np.exp(STEEPNESS * (np.sqrt(1 - nodes**2) - 1)) * weights * WIDTH / 2
    return np.cos(2 * np.pi * np.multiply.outer(frequency, x)) @ values


def gridded(array: Array) -> Array:
    """A periodic array on a grid twice as fine, to be summed with `kernel` as weights."""
    shape = array.shape
    fine = tuple(2 * n for n in shape)
    spectrum = on_grid(unfolded(jnp.fft.rfftn(array), shape), fine)
    for axis, (n, m) in enumerate(zip(fine, spectrum.shape, strict=True)):
        factor = 1 / _response(harmonics(n)[:m] / n)
        factor = np.where(np.abs(harmonics(n)[:m]) <= n // 4, factor, 0.0) * 2
        places = [1] * len(shape)
        places[axis] = m
        spectrum = scaled(spectrum, jnp.asarray(factor.reshape(places), array.dtype))
    return jnp.fft.irfftn(spectrum, fine)


def taps(offset: Array) -> tuple[Array, Array]:
    """Weights of the samples from −`REACH` to `REACH` for a point there, and their derivatives by it."""
    away = offset - np.arange(-REACH, REACH + 1)
    return jax.jvp(kernel, (away,), (jnp.ones_like(away),))


def at_pixels(patch: Array, offset: Array, frame: Shape) -> Array:
    """Values and slopes at every second sample, moved by an offset of up to two; shape ``(1 + D, *frame)``.

    ``patch`` is that of the fine grid which begins `REACH` samples before the first of them, shape
    ``2 (n + REACH)`` along each axis; the offset and the slopes are in its samples.
    """
    ndim = len(frame)
    x = patch.reshape([m for n in frame for m in (n + REACH, 2)])
    # Even and odd samples apart, so that the neighbours of all pixels lie side by side.
    x = jnp.transpose(x, [2 * a + 1 for a in range(ndim)] + [2 * a for a in range(ndim)])[None]
    for axis, n in enumerate(frame):
        value, slope = taps(offset[axis])
        place = ndim - axis, axis, n
        x = jnp.concatenate([_summed(x, value, *place), _summed(x[:1], slope, *place)])
    return x


def _summed(x: Array, weights: Array, phases: int, axis: int, n: int) -> Array:
    """Sums over the samples about each of n pixels along an axis; the second axis is that of even and odd."""
    parts = []
    for tap in range(2 * REACH + 1):
        first, phase = divmod(tap, 2)
        samples = lax.index_in_dim(x, phase, 1, keepdims=False)
        parts.append(weights[tap] * lax.slice_in_dim(samples, first, first + n, axis=phases + axis))
    return reduce(jnp.add, parts)
