"""A shift in two parts: float32 has no digits left for a fraction of a pixel beside thousands of them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Position(NamedTuple):
    """A shift, the sum of its parts."""

    whole: Array
    """In whole pixels, int32, shape ``(D,)``; without a derivative."""
    fraction: Array
    """What is to be added, in pixels, shape ``(D,)``; small, for its phase has the precision of its dtype."""

    @classmethod
    def of(cls, shift: Array) -> Position:
        """The nearest whole shift and the remainder, which keeps the derivative."""
        whole = jnp.round(lax.stop_gradient(shift))
        return cls(whole.astype(jnp.int32), shift - whole)

    @property
    def shift(self) -> Array:
        """In one number per axis, rounded to the spacing of its dtype there."""
        return self.whole + self.fraction

    def moved(self, displacement: Array) -> Position:
        """The position with a displacement added to its fraction."""
        return self._replace(fraction=self.fraction + displacement)

    def since(self, origin: Array) -> Position:
        """The position counted from a whole shift."""
        return self._replace(whole=self.whole - origin)
