"""An image between its pixels: linear and cubic B-spline interpolation at any positions.

The same numbers as ``scipy.ndimage.map_coordinates`` with ``order`` 1 and 3, and differentiable in the image
and in the positions. A cubic B-spline needs coefficients first: samples divided by the spline's response,
exactly, in the Fourier space of the image continued by its mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .checks import choice
from .engine.spectrum import along, scaled

MODES = ("wrap", "constant", "reflect", "nearest")
PADDING = 12
"""Pixels by which "nearest" is continued before the spline is fitted, as scipy does."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["coefficients", "outside"],
    meta_fields=["order", "mode", "shape"],
)
@dataclass(frozen=True)
class Interpolant:
    """An image that can be asked for its value anywhere."""

    coefficients: Array
    """Spline coefficients, for order 1 the pixels; with a margin for "nearest"."""
    outside: Array
    """Value outside the frame for "constant"."""
    order: int
    """1 or 3."""
    mode: str
    """One of `MODES`."""
    shape: tuple[int, ...]
    """Shape of the image."""

    def __call__(self, positions: Array) -> Array:
        """Values at positions of shape ``(D, …)``, in pixels."""
        ends = [n - 1 for n in self.shape]
        along_axes = list(positions)
        if self.mode == "nearest":
            margin = PADDING if self.order == 3 else 0
            pairs = zip(positions, ends, strict=True)
            along_axes = [jnp.clip(p, -margin, end + margin) + margin for p, end in pairs]
        axes = [self._weights(p, n) for p, n in zip(along_axes, self.coefficients.shape, strict=True)]
        values = jnp.zeros_like(positions[0])
        for neighbours in product(*axes):
            index = tuple(i for i, _ in neighbours)
            weight = neighbours[0][1]
            for _, factor in neighbours[1:]:
                weight = weight * factor
            values = values + weight * self.coefficients[index]
        if self.mode != "constant":
            return values
        inside = [(p >= 0) & (p <= end) for p, end in zip(positions, ends, strict=True)]
        return jnp.where(reduce(jnp.logical_and, inside), values, self.outside)

    def _weights(self, position: Array, n: int) -> list[tuple[Array, Array]]:
        """Index and weight of each neighbour along one axis."""
        below = jnp.floor(position)
        t = position - below
        first = below.astype(jnp.int32)
        if self.order == 1:
            weights = [1 - t, t]
        else:
            first = first - 1
            u = 1 - t
            weights = [
                u**3 / 6,
                2 / 3 - t**2 * (1 - t / 2),
                2 / 3 - u**2 * (1 - u / 2),
                t**3 / 6,
            ]
        return [(_folded(first + k, n, self.mode), w) for k, w in enumerate(weights)]


def interpolant(image: Array, order: int, mode: str, outside: Array | float = 0.0) -> Interpolant:
    """Fit a linear (``order`` 1) or cubic (3) spline to an image of finite values, continued by ``mode``.

    The modes are scipy's of the same names, except that "wrap" repeats with the period of the frame (scipy's
    "grid-wrap"): scipy's "wrap" makes the last pixel coincide with the first.
    """
    choice(mode, "mode", MODES)
    coefficients = image
    if order == 3:
        if mode == "nearest":
            coefficients = jnp.pad(coefficients, PADDING, mode="edge")
        for axis in range(image.ndim):
            coefficients = _prefiltered(coefficients, axis, mode)
    return Interpolant(coefficients, jnp.asarray(outside, image.dtype), order, mode, image.shape)


def _prefiltered(image: Array, axis: int, mode: str) -> Array:
    """Coefficients along one axis of the cubic spline through the samples."""
    n = image.shape[axis]
    mirrored = jnp.flip(image, axis)
    if mode == "wrap":
        period = image
    elif mode == "constant":
        # scipy continues by reflection about the outermost pixels, and looks at no position beyond them.
        period = jnp.concatenate([image, jax.lax.slice_in_dim(mirrored, 1, n - 1, axis=axis)], axis)
    else:
        period = jnp.concatenate([image, mirrored], axis)
    length = period.shape[axis]
    response = (2 + np.cos(2 * np.pi * np.fft.rfftfreq(length))) / 3
    spectrum = jnp.fft.rfft(period, axis=axis)
    filtered = scaled(spectrum, along(jnp.asarray(1 / response, image.dtype), axis, image.ndim))
    return jax.lax.slice_in_dim(jnp.fft.irfft(filtered, length, axis=axis), 0, n, axis=axis)


def _folded(index: Array, n: int, mode: str) -> Array:
    """The pixel of the frame that an index outside it stands for."""
    if mode == "wrap":
        return index % n
    if mode == "constant":
        index = index % (2 * n - 2)
        return jnp.where(index < n, index, 2 * n - 2 - index)
    index = index % (2 * n)
    return jnp.where(index < n, index, 2 * n - 1 - index)
