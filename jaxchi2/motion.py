"""Motions of an image relative to its reference: a shift, with a rotation, a scale, or any affine map.

A motion takes the point ``c + p`` of the reference to ``c + A p + shift`` in the image, c the centre of the
image's frame, positions in pixels in axis order. Its parameters are a pytree, which an optimiser can train.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .checks import as_numbers
from .engine.spectrum import Shape


class Shift(NamedTuple):
    """A displacement."""

    shift: Array
    """Displacement in pixels, shape ``(D,)``."""

    @classmethod
    def by(cls, shift: Array) -> Self:
        """The motion that is this shift and nothing else."""
        return cls(shift)

    def turn(self, offsets: list[Array]) -> list[Array]:
        """``A p`` for positions p relative to the centre, without the shift."""
        return offsets

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

    def turn(self, offsets: list[Array]) -> list[Array]:
        """``A p`` for positions p relative to the centre, without the shift."""
        y, x = offsets
        cos, sin = jnp.cos(self.angle), jnp.sin(self.angle)
        return [cos * y - sin * x, sin * y + cos * x]

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

    def turn(self, offsets: list[Array]) -> list[Array]:
        """``A p`` for positions p relative to the centre, without the shift."""
        return [p * self.scale for p in Rigid(self.shift, self.angle).turn(offsets)]

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

    def turn(self, offsets: list[Array]) -> list[Array]:
        """``A p`` for positions p relative to the centre, without the shift."""
        return _product(self.matrix, offsets)

    def undo(self, offsets: list[Array]) -> list[Array]:
        """``A⁻¹ p`` for positions p relative to the centre, the shift taken off."""
        return _product(jnp.linalg.inv(self.matrix), offsets)


def _product(matrix: Array, offsets: list[Array]) -> list[Array]:
    parts = [[matrix[a, b] * p for b, p in enumerate(offsets)] for a in range(len(offsets))]
    return [reduce(jnp.add, terms) for terms in parts]


Motion = Shift | Rigid | Similarity | Affine
MOTIONS: dict[str, type[Motion]] = {
    "shift": Shift,
    "rigid": Rigid,
    "similarity": Similarity,
    "affine": Affine,
}


def check_motion(motion: Motion, ndim: int, name: str, dtype: jnp.dtype) -> Motion:
    """Return a motion of arrays, or raise unless it has the fields of one in ``ndim`` dimensions."""
    kind = type(motion)
    if isinstance(motion, Rigid | Similarity) and ndim != 2:
        raise ValueError(f"{name} is a {kind.__name__}, for images with 2 axes, not {ndim}")
    fields = zip(kind._fields, motion, strict=True)
    arrays = kind(*(as_numbers(x, f"{name}.{field}", "real numbers", dtype) for field, x in fields))
    wanted = jax.tree.map(jnp.shape, kind.by(jnp.zeros(ndim)))
    given = jax.tree.map(jnp.shape, arrays)
    if given != wanted:
        raise ValueError(f"{name} must have fields of shapes {wanted}, not {given}")
    return arrays


def plain_shift(shift: Any) -> Any:
    """What was given, unless it is a whole result."""
    for name in ("motion", "shift"):
        if name in getattr(shift, "_fields", ()):
            raise TypeError(f"shift must be numbers: of this {type(shift).__name__} pass its .{name}")
    return shift


def sources(motion: Motion, shape: Shape) -> Array:
    """Where in the reference each pixel of an image frame comes from, shape ``(D, *shape)``."""
    offsets, center = _frame(shape, motion.shift)
    moved = motion.undo([p - s for p, s in zip(offsets, motion.shift, strict=True)])
    return jnp.stack([p + c for p, c in zip(moved, center, strict=True)])


def targets(motion: Motion, shape: Shape) -> Array:
    """Where in the image each pixel of a reference of its shape is to be found, shape ``(D, *shape)``."""
    offsets, center = _frame(shape, motion.shift)
    moved = motion.turn(offsets)
    return jnp.stack([p + (s + c) for p, s, c in zip(moved, motion.shift, center, strict=True)])


def _frame(shape: Shape, like: Array) -> tuple[list[Array], list[float]]:
    """Positions of the pixels of a frame relative to its centre, and the centre."""
    center = [(n - 1) / 2 for n in shape]
    axes = [jnp.asarray(np.arange(n) - c, like.dtype) for n, c in zip(shape, center, strict=True)]
    return list(jnp.meshgrid(*axes, indexing="ij")), center
