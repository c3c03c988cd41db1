"""The grid of whole shifts that a minimum is searched on.

Shift zero is its first sample, negative shifts come last, as in a discrete Fourier transform.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.fft import next_fast_len

from .choices import Plan
from .constraints import Constraints
from .continuation import MARGIN
from .overlap import BESIDE, Correlation, log_left
from .passes import count, wrapped
from .position import Position
from .spectrum import Shape, along, contract

STARTS = 16
"""A descent starts at a multiple of 1/STARTS pixel."""
BETWEEN = 9
"""Places per pixel where the correlation is looked at."""


def search_shape(reference: Shape, image: Shape, plan: Plan) -> Shape:
    """Size of the search grid. For "overlap" no shift of the window wraps one frame onto the other."""
    if not plan.boundary.overlap:
        return reference
    pairs = zip(reference, image, plan.whole_window, strict=True)
    return tuple(next_fast_len(max(m + high, n - low), real=True) for m, n, (low, high) in pairs)


def grid_shifts(length: int, window: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Shift of each sample of a search grid, and whether it is in the window."""
    low, high = int(np.ceil(window[0])), int(np.floor(window[1]))
    if high - low >= length:
        low, high = -(length // 2), (length - 1) // 2
    index = np.arange(length)
    shift = np.where(index <= high, index, index - length)
    return shift, (low <= shift) & (shift <= high)


def grid_minimum(values: Array) -> Array:
    """Index of the smallest element, shape ``(ndim,)``; one vectorised pass, unlike ``argmin``."""
    rows = values.reshape(-1, values.shape[-1])
    column = jnp.argmin(jnp.min(rows, axis=0))
    row = jnp.argmin(rows[:, column])
    return jnp.stack([*jnp.unravel_index(row, values.shape[:-1]), column]).astype(jnp.int32)


def smallest(values: Array, n: int) -> tuple[Array, Array]:
    """The n smallest elements and their indices, shape ``(n, D)``; a sort takes longer than one minimum."""
    if n > 1:
        found, indices = lax.top_k(-values.reshape(-1), n)
        return -found, jnp.stack(jnp.unravel_index(indices, values.shape), axis=1)
    index = grid_minimum(values)
    return values[tuple(index)][None], index[None]


class Explained(NamedTuple):
    """What a whole shift explains of its own pixels."""

    left: Array
    """``ln(1 − r²)`` at the best place within half a pixel."""
    number: Array
    """Pixels of the overlap."""
    variance: Array
    """Of the image's values there."""
    prior: Array
    """χ² of the prior."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SearchGrid:
    """What a shift is worth, for every whole one: the lower, the better."""

    values: Array
    """χ² less its constant or, where ``settled``, the score of `overlap`. `builders` adds the prior, once."""
    origin: Array
    """Whole shift that the weights are settled for and the search begins at; else zero."""
    settled: Array
    """Whether the weights hold for shifts near ``origin`` alone, and each whole shift has pixels of its
    own."""
    correlation: Correlation | None
    """What the score is made of; None where no overlap depends on the shift."""
    constraints: Constraints
    plan: Plan = field(metadata={"static": True})

    @property
    def shape(self) -> Shape:
        """Number of samples along each axis."""
        return self.values.shape

    def inside(self, axis: int, length: int) -> Array:
        """Which of so many samples along an axis are in the window."""
        shift, inside = grid_shifts(length, self.plan.window[axis])
        if self.constraints.window is None:
            return jnp.asarray(inside)
        low, high = self.constraints.window[axis]
        return inside & (shift >= low) & (shift <= high)

    def in_window(self, values: Array) -> Array:
        """Values at whole shifts, infinite where the minimum may not be."""
        held = self.constraints.held
        for axis, length in enumerate(values.shape):
            inside = self.inside(axis, length)
            if held is not None and not self.plan.free[axis]:
                # Where the grid is periodic, so is the shift.
                offset = self.shifts_along(axis, length) - jnp.round(held[axis]).astype(jnp.int32)
                inside = offset == 0 if self.plan.boundary.overlap else offset % length == 0
            values = jnp.where(along(inside, axis, values.ndim), values, jnp.inf)
        return values

    def shifts(self) -> list[np.ndarray]:
        """Whole shift of the samples along each axis."""
        return [self.shifts_along(axis, length) for axis, length in enumerate(self.shape)]

    def shifts_along(self, axis: int, length: int) -> np.ndarray:
        """Whole shift of each of so many samples along an axis."""
        return grid_shifts(length, self.plan.window[axis])[0]

    def shift_at(self, index: Array) -> Array:
        """Whole shift of samples, int32; the axes are last in both."""
        vectors = (jnp.asarray(v, jnp.int32) for v in self.shifts())
        return jnp.stack([v[index[..., a]] for a, v in enumerate(vectors)], axis=-1)

    def index_of(self, shift: Array) -> Array:
        """Sample of a whole shift; the axes are last in both."""
        return shift % along(np.array(self.shape, np.int32), shift.ndim - 1, shift.ndim)

    def with_prior(self) -> SearchGrid:
        """The grid with the χ² of the prior added."""
        if self.constraints.prior is None:
            return self
        shifts = [jnp.asarray(s, self.values.dtype) for s in self.shifts()]
        return replace(self, values=self.values + self.constraints.prior.chi2(shifts))

    def best(self) -> Array:
        """Sample that the search begins with."""
        if self.constraints.initial is None:
            return grid_minimum(lax.stop_gradient(self.in_window(self.values)))
        return self.index_of(self.start().whole)

    def start(self) -> Position:
        """Where a descent starts: the best shift, or what was given."""
        constraints, free = self.constraints, self.plan.free
        if constraints.initial is not None:
            return Position.of(constraints.start(constraints.initial, free))
        whole = jnp.where(self.settled, self.origin, self.shift_at(self.best()))
        if constraints.held is None:
            return Position(whole, jnp.zeros_like(self.values, shape=whole.shape))
        return Position.of(constraints.start(whole.astype(self.values.dtype), free))

    def between_samples(self, start: Position) -> Position:
        """A start moved from a sample of the grid to the minimum of parabolas through its neighbours.

        Rounded to 1/`STARTS` pixel, so that it stays exactly where it is between equal images; and not moved
        where weights are settled, for the grid is a score then, not χ².
        """
        offset = self.parabolas(jnp.round(start.shift).astype(jnp.int32))
        offset = jnp.where(np.array(self.plan.free) & ~self.settled, offset, 0.0)
        return start.moved(jnp.round(offset * STARTS) / STARTS)

    def parabolas(self, shift: Array) -> Array:
        """Where parabolas through a whole shift and its neighbours are lowest, at most half a pixel away.

        Zero along an axis without one.
        """
        ndim, values = len(self.shape), lax.stop_gradient(self.values)
        around = np.concatenate([np.zeros((1, ndim), int), np.eye(ndim, dtype=int), -np.eye(ndim, dtype=int)])
        values = values[tuple(self.index_of(shift[None, :] + around).T)]
        after, before = (values[1:] - values[0]).reshape(2, ndim)
        bend = after + before
        good = (bend > 0) & jnp.isfinite(bend)
        offset = jnp.where(good, (before - after) / (2 * jnp.where(good, bend, 1.0)), 0.0)
        return jnp.clip(offset, -0.5, 0.5)

    def minima(self, n: int) -> tuple[Array, Array]:
        """Whole shifts of the n deepest local minima besides the best, shape ``(n, D)``, and which exist.

        A sample is one if it lies below all its neighbours, diagonal ones too. Samples near the start of the
        search belong to it.
        """
        grid = lax.stop_gradient(self.values)
        ndim = grid.ndim
        padded = wrapped(grid, 1)
        lowest = jnp.ones(grid.shape, bool)
        steps = list(np.ndindex((3,) * ndim))
        middle = len(steps) // 2
        for number, step in enumerate(steps):
            neighbour = padded[tuple(slice(k, k + m) for k, m in zip(step, grid.shape, strict=True))]
            if number != middle:
                # Of equal neighbours the first is the minimum.
                below = grid < neighbour if number < middle else grid <= neighbour
                lowest &= below & jnp.isfinite(neighbour)
        values = jnp.where(lowest & ~self._near_start(), self.in_window(grid), jnp.inf)
        found, indices = smallest(values, n)
        return self.shift_at(indices), jnp.isfinite(found)

    def _near_start(self) -> Array:
        """Which samples belong to the start of the search."""
        ndim = len(self.shape)
        start = jnp.round(self.start().shift).astype(jnp.int32)
        # So do samples between the best score and where χ² led from there.
        led = jnp.where(self.settled, self.shift_at(self.best()), start)
        # A settled minimum may lie as far as `MARGIN` from the whole shift that it is looked for at.
        own = jnp.where(self.settled, MARGIN, 1)
        near = jnp.ones((1,) * ndim, bool)
        for axis, shift in enumerate(self.shifts()):
            distance, length = jnp.asarray(shift, jnp.int32) - start[axis], self.shape[axis]
            if not self.plan.boundary.overlap:
                distance = (distance + length // 2) % length - length // 2
            near = near & along(jnp.abs(distance) <= own + jnp.abs(led - start)[axis], axis, ndim)
        return near

    def explained(self, shifts: Array) -> Explained:
        """What the best shift and others, shape ``(n, D)``, explain of their overlaps, shape ``(n + 1,)``."""
        samples = jnp.concatenate([self.best()[None], self.index_of(shifts)])
        return lax.map(self._explained, samples)

    def _explained(self, index: Array) -> Explained:
        """The correlation is interpolated by a windowed sinc; pixels and prior are those of the sample."""
        assert self.correlation is not None
        coefficient, number, variance, *scalars = self.correlation
        steps = np.arange(-BESIDE, BESIDE + 1)
        around = [(index[a] + steps) % n for a, n in enumerate(coefficient.shape)]
        patch = coefficient[jnp.ix_(*around)]
        distance = np.linspace(-0.5, 0.5, BETWEEN)[None, :] - steps[:, None]
        lanczos = np.where(np.abs(distance) < BESIDE, np.sinc(distance) * np.sinc(distance / BESIDE), 0.0)
        # Where all correlate, 1 − r² is the small difference that matters.
        lanczos /= lanczos.sum(axis=0)
        values = contract(patch, [jnp.asarray(lanczos, patch.dtype)] * patch.ndim)
        at = tuple(index)
        there = Correlation(coefficient[at], number[at], variance[at], *scalars)
        best = there._replace(coefficient=jnp.max(values))
        prior = self.constraints.prior
        chi2 = jnp.zeros_like(there.number)
        if prior is not None:
            chi2 = prior.chi2(list(self.shift_at(index).astype(chi2.dtype)[:, None])).reshape(())
        return Explained(log_left(best), there.number, there.variance, chi2)

    def number_of_shifts(self) -> Array:
        """Whole shifts of the window."""
        number = jnp.ones_like(self.values, shape=())
        for axis in np.flatnonzero(self.plan.free).tolist():
            number *= count(self.inside(axis, self.shape[axis]))
        return number
