"""χ² of one image pair as an exact function of the shift.

    χ²(s) = Σ_i w_i (D_i − a M(i − s) − b)²

in the sums ``cross = −2 Σ w_i D_i M(i − s)``, ``power = Σ w_i M(i − s)²`` and, for a background that is a sum
``b = Σ c_k φ_k`` of orthonormal polynomials, ``total_k = Σ w_i φ_k M(i − s)``. All of them are Fourier series
in s. Gain and background are 1 and 0, or at their best for every s:

    χ² = constant + cross + power'         with a = 1
    χ² = constant − cross² / (4 power')    with a = −cross / (2 power'), where that is positive

Where b is fitted, D has had the background that fits it best subtracted, and ``power'`` is
``power − Σ_k total_k²``; else they are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .algebra import inverse_of_symmetric
from .choices import Plan
from .constraints import Prior
from .position import Position
from .spectrum import Differences, FourierSeries, along
from .taylor import multiply, reciprocal


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chi2Series:
    """χ² less its constant, with the prior, and its derivatives."""

    cross: FourierSeries
    """``−2 Σ w_i D_i M(i − s)``."""
    power: FourierSeries
    """``Σ w_i M(i − s)²``."""
    total: FourierSeries | None
    """``Σ w_i φ_k M(i − s)``, with a leading axis; None where they are not needed, or zero."""
    constant: Array
    """``Σ w_i D_i²``, a scalar."""
    origin: Array
    """Whole shift that the sums count from, shape ``(D,)``."""
    prior: Prior | None
    amplitude: Array
    """``√(Σ M² Σ w D²)``, what bounds the correlation: its rounding is a few ulp of this."""
    roughness: Array
    """The same for its second derivative along each axis, shape ``(D,)``."""
    plan: Plan = field(metadata={"static": True})
    bandwidth: int = field(metadata={"static": True})
    """How many times the image's band χ² has: twice where squares of Fourier series enter."""

    def derivatives(self, at: Position, order: int) -> Array:
        """Partial derivatives of χ² less its constant up to ``order`` per axis."""
        result = self._combined(*self._each(at, lambda series, at: series.derivatives(at, order)))
        return result if self.prior is None else result + self.prior.derivatives(at, order)

    def differences(self, at: Position, displacements: list[Array]) -> Array:
        """``χ²(s + d) − χ²(s)`` on the grid of displacements d spanned by one vector per axis."""
        each = self._each(at, lambda series, at: series.differences(at, displacements))
        return self._changed(*each, at, displacements)

    def rise(self, at: Position, displacement: Array, order: int) -> Array:
        """Derivatives of χ² at ``at + displacement``; in place of the value, the rise of χ² from ``at``."""
        steps = list(displacement[:, None])
        each = self._each(at, lambda series, at: series.differences(at, steps, order))
        cross, power, total = each
        result = self._combined(cross.there, power.there, None if total is None else total.there)
        if self.prior is not None:
            result = result + self.prior.derivatives(at.moved(displacement), order)
        change = self._changed(*each, at, steps)
        return result.at[(0,) * len(steps)].set(change.reshape(()))

    def _each(self, at: Position, function: Callable[[FourierSeries, Position], Any]) -> tuple[Any, Any, Any]:
        """A function of cross, power and the totals, with a leading axis; None where there is no total."""
        at = at.since(self.origin)
        total = None if self.total is None else jax.vmap(lambda series: function(series, at))(self.total)
        return function(self.cross, at), function(self.power, at), total

    def _combined(self, cross: Array, power: Array, total: Array | None) -> Array:
        """Derivatives of χ² from those of the series."""
        if total is not None:
            power = power - jnp.sum(jax.vmap(multiply)(total, total), 0)
        if self.plan.gain:
            return multiply(multiply(cross, cross), reciprocal(power)) / -4
        return cross + power

    def _changed(
        self,
        cross: Differences,
        power: Differences,
        total: Differences | None,
        at: Position,
        displacements: list[Array],
    ) -> Array:
        """Differences of χ² from those of the series."""
        change, start = power.change, power.start
        if total is not None:
            twice = 2 * along(total.start, 0, total.change.ndim) + total.change
            change = change - jnp.sum(twice * total.change, 0)
            start = start - jnp.sum(total.start**2)
        if self.plan.gain:
            # The difference of two quotients, without subtracting them.
            square = (2 * cross.start + cross.change) * cross.change - cross.start**2 / start * change
            result = -square / (4 * (start + change))
        else:
            result = cross.change + change
        if self.prior is None:
            return result
        return result + self.prior.differences(at, displacements)

    def nuisances(self, at: Position) -> tuple[Array, Array]:
        """Best gain, and coefficients of the background, at one shift, in the internal units.

        The gain is 1 where it is not fitted; there are as many coefficients as the background has.
        """
        one, none = jnp.ones_like(self.constant), jnp.zeros_like(self.constant, shape=(self.plan.terms,))
        if not (self.plan.gain or self.plan.background):
            return one, none
        cross, power, total = self._each(at, lambda series, at: series.derivatives(at, 0).reshape(()))
        total = none if total is None else total
        gain = -cross / (2 * (power - jnp.sum(total**2))) if self.plan.gain else one
        return gain, -gain * total

    def nuisance_covariance(self, at: Position, gain: Array) -> Array:
        """Covariance of gain and background, in internal units, the free shifts fitted with them.

        Zero for a gain that is not fitted. From the second derivatives of χ² in all parameters: those of gain
        and background less what the shifts take (Schur complement).
        """
        ndim, fitted = len(at.fraction), np.array([self.plan.gain, *[True] * self.plan.terms])
        second = 2 * self.curvature(at, gain)
        hessian, mixed, pure = second[:ndim, :ndim], second[:ndim, ndim:], second[ndim:, ndim:]
        taken = jnp.dot(mixed.T, jnp.linalg.solve(hessian, mixed), precision=lax.Precision.HIGHEST)
        covariance = 2 * inverse_of_symmetric(pure - taken)
        return jnp.where(fitted[:, None] & fitted[None, :], covariance, 0.0)

    def curvature(self, at: Position, gain: Array) -> Array:
        """Half the second derivatives of χ² in shift, gain and background, shape ``(D + 1 + K, D + 1 + K)``.

        A row of half the unit matrix for what is not fitted.
        """
        ndim = len(at.fraction)
        first = tuple(np.eye(ndim, dtype=int).T)
        cross, power, total = self._each(at, lambda series, at: series.derivatives(at, 2))
        size = self.plan.terms
        total = jnp.zeros_like(cross, shape=(size, *cross.shape)) if total is None else total
        zero = (0,) * ndim
        value, slopes = total[(slice(None), *zero)], total[(slice(None), *first)]
        background = -gain * value
        beside = jnp.tensordot(background, total, 1, precision=lax.Precision.HIGHEST)
        with_gain = cross[first] + 2 * gain * power[first] + 2 * beside[first]
        mixed = jnp.concatenate([with_gain[:, None], 2 * gain * slopes.T], 1)
        unit = jnp.eye(size, dtype=value.dtype)
        pure = jnp.concatenate([power[zero][None, None], value[None, :]], 1)
        pure = 2 * jnp.concatenate([pure, jnp.concatenate([value[:, None], unit], 1)], 0)
        tensor = gain * cross + gain**2 * power + 2 * gain * beside
        if self.prior is not None:
            tensor = tensor + self.prior.derivatives(at, 2)
        pairs = np.eye(ndim, dtype=int)[:, None] + np.eye(ndim, dtype=int)[None, :]
        hessian = tensor[tuple(np.moveaxis(pairs, -1, 0))]
        second = jnp.concatenate([jnp.concatenate([hessian, mixed], 1), jnp.concatenate([mixed.T, pure], 1)])
        fitted = np.array([*self.plan.free, self.plan.gain, *[True] * size])
        unit = jnp.eye(len(fitted), dtype=second.dtype)
        return jnp.where(fitted[:, None] & fitted[None, :], second, unit) / 2
