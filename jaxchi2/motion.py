"""Motions of an image relative to its reference: a shift, with a rotation, a scale, or any affine map.

A motion takes the point ``c + p`` of the reference to ``c + A p + shift`` in the image, c the centre of the
image's frame, positions in pixels in axis order. Its parameters are a pytree, which an optimiser can train.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import jax.numpy as jnp
import numpy as np
from jax import Array

from .spectrum import Shape, along


class Shift(NamedTuple):
    """A displacement."""

    shift: Array
    """Displacement in pixels, shape ``(D,)``."""

    @classmethod
    def by(cls, shift: Array) -> Self:
        """The motion that is this shift and nothing else."""
        return cls(shift)

    def undo(self, offsets: list[Array]) -> list[Array]:
        """``A⁻¹ p`` for positions p relative to the centre, the shift taken off."""
        return offsets


class Rigid(NamedTuple):
    """A rotation in the plane, and a displacement."""

    shift: Array
    """Displacement of the centre in pixels, shape ``(2,)``."""
    angle: Array
    """Angle in radians that turns axis 0 towards axis 1: counter-clockwise where y is drawn downwards."""

    @classmethod
    def by(cls, shift: Array) -> Self:
        """The motion that is this shift and nothing else."""
        return cls(shift, jnp.zeros_like(shift[0]))

    def undo(self, offsets: list[Array]) -> list[Array]:
        """``A⁻¹ p`` for positions p relative to the centre, the shift taken off."""
        y, x = offsets
        cos, sin = jnp.cos(self.angle), jnp.sin(self.angle)
        return [cos * y + sin * x, cos * x - sin * y]


class Similarity(NamedTuple):
    """A rotation and a change of scale in the plane, and a displacement."""

    shift: Array
    """Displacement of the centre in pixels, shape ``(2,)``."""
    angle: Array
    """As of `Rigid`."""
    scale: Array
    """Magnification of the image over the reference."""

    @classmethod
    def by(cls, shift: Array) -> Self:
        """The motion that is this shift and nothing else."""
        return cls(shift, jnp.zeros_like(shift[0]), jnp.ones_like(shift[0]))

    def undo(self, offsets: list[Array]) -> list[Array]:
        """``A⁻¹ p`` for positions p relative to the centre, the shift taken off."""
        return [p / self.scale for p in Rigid(self.shift, self.angle).undo(offsets)]


class Affine(NamedTuple):
    """Any linear map, and a displacement."""

    shift: Array
    """Displacement of the centre in pixels, shape ``(D,)``."""
    matrix: Array
    """A, shape ``(D, D)``."""

    @classmethod
    def by(cls, shift: Array) -> Self:
        """The motion that is this shift and nothing else."""
        return cls(shift, jnp.eye(len(shift), dtype=shift.dtype))

    def undo(self, offsets: list[Array]) -> list[Array]:
        """``A⁻¹ p`` for positions p relative to the centre, the shift taken off."""
        inverse = jnp.linalg.inv(self.matrix)
        return [sum(inverse[a, b] * p for b, p in enumerate(offsets)) for a in range(len(offsets))]


Motion = Shift | Rigid | Similarity | Affine
MOTIONS: dict[str, type[Motion]] = {
    "shift": Shift,
    "rigid": Rigid,
    "similarity": Similarity,
    "affine": Affine,
}


def sources(motion: Motion, shape: Shape) -> Array:
    """Where in the reference each pixel of an image frame comes from, shape ``(D, *shape)``."""
    ndim, dtype = len(shape), motion.shift.dtype
    center = [(n - 1) / 2 for n in shape]
    offsets = [
        along(jnp.asarray(np.arange(n) - c, dtype) - motion.shift[a], a, ndim)
        for a, (n, c) in enumerate(zip(shape, center, strict=True))
    ]
    moved = motion.undo(list(jnp.broadcast_arrays(*offsets)))
    return jnp.stack([p + c for p, c in zip(moved, center, strict=True)])
