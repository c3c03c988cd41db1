"""What is known about the shift beforehand: a first guess, a prior, axes that are held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from ..checks import as_real_array, described, per_axis, refuse, scalar
from .position import Position
from .spectrum import along


@partial(jax.tree_util.register_dataclass, data_fields=["initial", "prior", "fixed"], meta_fields=[])
@dataclass(frozen=True)
class Search:
    """What is known about the shift beforehand, other than its largest size."""

    initial: ArrayLike | None = None
    """Shift to start from, shape ``(D,)``: the nearest minimum is found instead of the deepest."""
    prior: tuple[ArrayLike, ArrayLike] | None = None
    """Mean, shape ``(D,)``, and covariance, shape ``(D, D)``, of a Gaussian prior of the shift, whose χ² is
    added to that of the images. It needs their errors, which give χ² its scale."""
    fixed: tuple[ArrayLike | None, ...] | None = None
    """Per axis the shift it is held at, without an error, or None where it is fitted: ``(0.0, None)``. Which
    axes are held is static under jit, their shifts are not."""


ANYWHERE = Search()
"""Nothing is known beforehand."""


class Prior(NamedTuple):
    """A Gaussian prior of the shift, whose χ² is ``(s − μ)ᵀ P (s − μ)``."""

    mean: Array
    """μ, shape ``(D,)``."""
    precision: Array
    """P, shape ``(D, D)``."""

    def chi2(self, shifts: list[Array]) -> Array:
        """On the grid spanned by one vector of shifts per axis."""
        ndim = len(shifts)
        offset = [along(s - self.mean[a], a, ndim) for a, s in enumerate(shifts)]
        pairs = [self.precision[a, b] * offset[a] * offset[b] for a in range(ndim) for b in range(ndim)]
        return reduce(jnp.add, pairs)

    def differences(self, at: Position, displacements: list[Array]) -> Array:
        """``χ²(s + d) − χ²(s)`` on the grid of displacements, as ``dᵀ P (2 (s − μ) + d)``: none is lost."""
        ndim = len(displacements)
        offset = 2 * ((at.whole - self.mean) + at.fraction)
        steps = [along(d, a, ndim) for a, d in enumerate(displacements)]
        pairs = [
            self.precision[a, b] * steps[a] * (offset[b] + steps[b]) for a in range(ndim) for b in range(ndim)
        ]
        return reduce(jnp.add, pairs)

    def derivatives(self, at: Position, order: int) -> Array:
        """Partial derivatives up to ``order`` per axis, shape ``(order + 1,) * D``."""
        offset = (at.whole - self.mean) + at.fraction
        product = jnp.sum(self.precision * offset[None, :], axis=1)
        ndim = len(offset)
        tensor = jnp.zeros_like(offset, shape=(order + 1,) * ndim)
        tensor = tensor.at[(0,) * ndim].set(jnp.sum(product * offset))
        if order:
            units = np.eye(ndim, dtype=int)
            for a in range(ndim):
                tensor = tensor.at[tuple(units[a])].add(2 * product[a])
                for b in range(a + 1 if order > 1 else 0):
                    tensor = tensor.at[tuple(units[a] + units[b])].add(2 * self.precision[a, b])
        return tensor


class Constraints(NamedTuple):
    """A `Search`, checked, in arrays, and the window of frames that were made larger."""

    initial: Array | None = None
    """Shift to start from, shape ``(D,)``."""
    prior: Prior | None = None
    held: Array | None = None
    """Shift of the axes that are held, shape ``(D,)``; of no meaning for the others."""
    window: Array | None = None
    """Window of the frames before they were made larger, shape ``(D, 2)``; None: that of the plan holds."""

    def start(self, shift: Array, free: tuple[bool, ...]) -> Array:
        """A shift to start from: the axes that are not free where they are held."""
        shift = shift if self.held is None else jnp.where(np.array(free), shift, self.held)
        return lax.stop_gradient(shift)


def free_axes(fixed: Sequence | None, ndim: int) -> tuple[bool, ...]:
    """Along which axes the shift is fitted, from a shift or None for each."""
    if fixed is None:
        return (True,) * ndim
    if not isinstance(fixed, list | tuple) or len(fixed) != ndim:
        raise ValueError(f"fixed must hold a shift or None for each of {ndim} axes, not {described(fixed)}")
    free = tuple(value is None for value in fixed)
    if not any(free):
        raise ValueError(f"fixed must leave an axis to fit, not hold all {ndim}")
    return free


def check_search(search: Search, ndim: int, dtype: jnp.dtype) -> tuple[Constraints, tuple[bool, ...]]:
    """What is known about a shift of so many axes, and which of them are free."""
    if not isinstance(search, Search):
        refuse("search", "a Search", search, TypeError)
    free = free_axes(search.fixed, ndim)
    initial = held = prior = None
    if search.initial is not None:
        initial = per_axis(search.initial, "initial", ndim, dtype)
    if search.fixed is not None:
        values = [scalar(0.0 if value is None else value, "fixed", dtype) for value in search.fixed]
        held = jnp.stack(values)
    if search.prior is not None:
        if not isinstance(search.prior, list | tuple) or len(search.prior) != 2:
            refuse("prior", "a mean and a covariance", search.prior, TypeError)
        mean, covariance = (as_real_array(x, "prior").astype(dtype) for x in search.prior)
        if mean.shape != (ndim,) or covariance.shape != (ndim, ndim):
            raise ValueError(
                f"prior must have a mean of shape ({ndim},) and a covariance of shape ({ndim}, {ndim}), "
                f"not {mean.shape} and {covariance.shape}"
            )
        prior = Prior(mean, jnp.linalg.inv((covariance + covariance.T) / 2))
    return Constraints(initial, prior, held), free
