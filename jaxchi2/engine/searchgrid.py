"""The grid of whole shifts that a minimum is searched on.

Shift zero is its first sample, negative shifts come last, as in a discrete Fourier transform.
"""

from __future__ import annotations

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.fft import next_fast_len

from .pair import Model, Pair
from .spectrum import Shape, along


def search_shape(reference: Shape, image: Shape, model: Model) -> Shape:
    """Periodic grid on which no shift of the window makes the frames meet around the edge."""
    if model.boundary.name != "overlap":
        return reference
    pairs = zip(reference, image, model.whole_window, strict=True)
    return tuple(next_fast_len(max(m + high, n - low), real=True) for m, n, (low, high) in pairs)


def grid_shifts(length: int, window: tuple[float, float], over: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Shift of each sample of a search grid in units of 1/``over`` pixel, and whether it is in the window."""
    low, high = int(np.ceil(window[0] * over)), int(np.floor(window[1] * over))
    if high - low >= length:
        low, high = -(length // 2), (length - 1) // 2
    index = np.arange(length)
    shift = np.where(index <= high, index, index - length)
    return shift, (low <= shift) & (shift <= high)


def inside_window(axis: int, length: int, over: int, pair: Pair, model: Model) -> Array:
    """Which samples of a search grid are in the window along an axis."""
    shift, inside = grid_shifts(length, model.window[axis], over)
    if pair.window is None:
        return jnp.asarray(inside)
    low, high = pair.window[axis] * over
    return inside & (shift >= low) & (shift <= high)


def in_window(grid: Array, over: int, pair: Pair, model: Model) -> Array:
    """A search grid with infinities where the minimum may not be."""
    for axis, length in enumerate(grid.shape):
        inside = inside_window(axis, length, over, pair, model)
        if pair.held is not None and not model.free[axis]:
            inside = grid_shifts(length, model.window[axis], over)[0] == jnp.round(pair.held[axis]) * over
        grid = jnp.where(along(inside, axis, grid.ndim), grid, jnp.inf)
    return grid


def shift_at(index: Array, shape: Shape, over: int, model: Model) -> Array:
    """Shift of samples of a search grid in units of 1/``over`` pixel, int32; the axes are last in both."""
    vectors = [grid_shifts(n, w, over)[0] for n, w in zip(shape, model.window, strict=True)]
    return jnp.stack([jnp.asarray(v, jnp.int32)[index[..., a]] for a, v in enumerate(vectors)], axis=-1)


def started(shift: Array, pair: Pair, model: Model) -> Array:
    """A shift with the held axes where they are held."""
    return shift if pair.held is None else jnp.where(np.array(model.free), shift, pair.held)


def prior_chi2(prior: tuple[Array, Array], shifts: list[Array]) -> Array:
    """``(s − μ)ᵀ P (s − μ)`` on the grid spanned by one vector of shifts per axis."""
    ndim = len(shifts)
    mean, precision = prior
    offset = [along(s - mean[a], a, ndim) for a, s in enumerate(shifts)]
    pairs = [precision[a, b] * offset[a] * offset[b] for a in range(ndim) for b in range(ndim)]
    return reduce(jnp.add, pairs)


def with_prior(grid: Array, over: int, pair: Pair, model: Model) -> Array:
    """A search grid with the χ² of the prior added."""
    if pair.prior is None:
        return grid
    shifts = [grid_shifts(n, w, over)[0] / over for n, w in zip(grid.shape, model.window, strict=True)]
    return grid + prior_chi2(pair.prior, [jnp.asarray(s, grid.dtype) for s in shifts])


def grid_minimum(values: Array) -> Array:
    """Index of the smallest element, shape ``(ndim,)``; one vectorised pass, unlike ``argmin``."""
    rows = values.reshape(-1, values.shape[-1])
    column = jnp.argmin(jnp.min(rows, axis=0))
    row = jnp.argmin(rows[:, column])
    return jnp.stack([*jnp.unravel_index(row, values.shape[:-1]), column]).astype(jnp.int32)
