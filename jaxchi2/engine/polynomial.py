"""Polynomials in the pixel coordinates of an image: what a background may look like.

A background that is fitted at every shift is a sum of polynomials φ_k of low degree. Made orthonormal under
the weights of the pixels, ``Σ w φ_k φ_l = δ_kl``, each has its best coefficient whatever the others have,
``Σ w φ_k x``. Where so few pixels have a weight that a polynomial is a sum of those before it, it is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from math import comb

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .algebra import apply
from .passes import sum_all
from .spectrum import Shape, contract

NARROWEST = 0.25
"""Least unit of a coordinate, in pixels: of pixels in one line the spread is zero."""
DEPENDENT = 1e3
"""Share of a polynomial, in roundings, below which what the others leave of it is not told from none."""


def number_of_terms(ndim: int, degree: int) -> int:
    """How many monomials there are up to a degree; none for a degree of −1."""
    return comb(ndim + degree, ndim)


def monomials(ndim: int, degree: int) -> np.ndarray:
    """Powers of the coordinates, shape ``(K, D)``: by degree, then in the order of the axes.

    In two dimensions 1, y, x, y², yx, x².
    """
    axes = [a for n in range(degree + 1) for a in combinations_with_replacement(range(ndim), n)]
    return np.array([np.bincount(a, minlength=ndim) for a in axes], int).reshape(len(axes), ndim)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Polynomials:
    """K polynomials, orthonormal under the weights of the pixels of a grid."""

    matrix: Array
    """Their coefficients of the monomials, one in each row, shape ``(K, K)``."""
    places: tuple[Array, ...]
    """Coordinate of every line along each axis, less ``centre`` and in units of ``scale``."""
    centre: Array
    """Mean of the coordinates of the pixels in pixels, shape ``(D,)``."""
    scale: Array
    """Their standard deviation, shape ``(D,)``."""
    degree: int = field(metadata={"static": True})

    @property
    def number(self) -> Array:
        """How many are not zero, an integer scalar."""
        return jnp.sum(jnp.diagonal(self.matrix) > 0, dtype=jnp.int32)

    def coefficients(self, weighted: Array) -> Array:
        """``Σ w φ_k x`` of ``w x``, shape ``(K,)``."""
        if self.degree < 1:
            return self.matrix[:, 0] * sum_all(weighted) if len(self.matrix) else self.matrix.reshape(0)
        return apply(self.matrix, self._of(contract(weighted, _powers(self.places, self.degree))))

    def values(self, coefficients: Array) -> Array:
        """``Σ c_k φ_k`` on the grid; a scalar where that is a constant."""
        if self.degree < 1:
            return jnp.sum(coefficients * self.matrix[:, 0]) if len(self.matrix) else 0 * self.scale[0]
        columns = [x.T for x in _powers(self.places, self.degree)]
        return contract(self._tensor(apply(self.matrix.T, coefficients)), columns)

    def rest(self, x: Array, weights: Array) -> Array:
        """What is left of an array."""
        return x - self.values(self.coefficients(weights * x))

    def functions(self) -> Array:
        """The polynomials on the grid, shape ``(K, …)``."""
        shape = tuple(len(x) for x in self.places)
        unit = jnp.eye(len(self.matrix), dtype=self.matrix.dtype)
        values = [jnp.broadcast_to(self.values(c), shape) for c in unit]
        return jnp.stack(values) if values else jnp.zeros_like(self.scale, shape=(0, *shape))

    def in_pixels(self, coefficients: Array) -> Array:
        """Coefficients of the `monomials` in plain pixel coordinates, of ``Σ c_k φ_k``."""
        top = self.degree + 1
        expanded = []
        for centre, scale in zip(self.centre, self.scale, strict=True):
            rows = [
                [comb(p, q) * (-centre) ** (p - q) / scale**p if q <= p else 0.0 * scale for q in range(top)]
                for p in range(top)
            ]
            expanded.append(jnp.stack([jnp.stack(row) for row in rows]))
        return self._of(contract(self._tensor(apply(self.matrix.T, coefficients)), expanded))

    def _of(self, tensor: Array) -> Array:
        """Those entries of a tensor of powers that belong to the monomials."""
        return tensor[tuple(monomials(len(self.places), self.degree).T)]

    def _tensor(self, values: Array) -> Array:
        ndim = len(self.places)
        at = tuple(monomials(ndim, self.degree).T)
        return jnp.zeros_like(values, shape=(self.degree + 1,) * ndim).at[at].set(values)


def orthonormal(weights: Array, degree: int, coordinates: Sequence[Array]) -> Polynomials:
    """All polynomials up to a degree in coordinates that are given, in pixels, for the lines of each axis."""
    if degree < 1:
        mass = sum_all(weights) if degree == 0 else jnp.zeros_like(weights, shape=())
        return constant_polynomial(mass, weights.shape, degree)
    centre, scale = lax.stop_gradient(_extent(weights, coordinates))
    places = tuple((x - m) / s for x, m, s in zip(coordinates, centre, scale, strict=True))
    powers = monomials(weights.ndim, degree)
    moments = contract(weights, _powers(places, 2 * degree))
    gram = moments[tuple(np.moveaxis(powers[:, None] + powers[None, :], -1, 0))]
    return Polynomials(_orthonormalised(gram), places, centre, scale, degree)


def constant_polynomial(mass: Array, shape: Shape, degree: int = 0) -> Polynomials:
    """The one polynomial of degree zero, by the sum of the weights; or none, of degree −1."""
    matrix = jnp.where(mass > 0, 1 / jnp.sqrt(jnp.where(mass > 0, mass, 1.0)), 0.0)
    matrix = jnp.broadcast_to(matrix, (degree + 1,) * 2)
    places = tuple(jnp.zeros_like(mass, shape=(n,)) for n in shape)
    zero = jnp.zeros_like(mass, shape=(len(shape),))
    return Polynomials(matrix, places, zero, zero + 1, degree)


def pixel_coordinates(shape: Shape, corner: Array, periodic: bool, dtype: jnp.dtype) -> list[Array]:
    """Pixel coordinate along each axis of a frame whose first pixel lies at ``corner`` of a grid."""
    places = []
    for axis, n in enumerate(shape):
        index = jnp.arange(n, dtype=corner.dtype) - corner[axis]
        places.append((index % n if periodic else index).astype(dtype))
    return places


def flattened(x: Array, weights: Array, degree: int) -> Array:
    """An array less the polynomial that fits it best; any value where the weight is zero."""
    corner = jnp.zeros(x.ndim, jnp.int32)
    return orthonormal(weights, degree, pixel_coordinates(x.shape, corner, False, x.dtype)).rest(x, weights)


def _powers(places: Sequence[Array], top: int) -> list[Array]:
    """``x⁰ … x^top`` of every line in columns, along each axis."""
    return [jnp.stack([x**p for p in range(top + 1)], 1) for x in places]


def _extent(weights: Array, coordinates: Sequence[Array]) -> tuple[Array, Array]:
    """Mean and standard deviation of the coordinates, shape ``(D,)`` each."""
    ndim, units = weights.ndim, [max(n / 2, 1.0) for n in weights.shape]
    moments = contract(weights, _powers([x / u for x, u in zip(coordinates, units, strict=True)], 2))
    mass = moments[(0,) * ndim]
    first, second = (
        moments[tuple(k * np.eye(ndim, dtype=int))] / jnp.where(mass > 0, mass, 1.0) for k in (1, 2)
    )
    unit = np.asarray(units, weights.dtype)
    variance = jnp.maximum(second - first**2, (NARROWEST / unit) ** 2)
    return first * unit, jnp.sqrt(variance) * unit


def _orthonormalised(gram: Array) -> Array:
    """Rows R that make ``R G Rᵀ`` the unit matrix, one after the other; zero where nothing is left of one."""
    least = DEPENDENT * jnp.finfo(gram.dtype).eps * gram[0, 0]

    def step(matrix: Array, start: tuple[Array, Array]) -> tuple[Array, None]:
        place, row = start
        for _ in range(2):
            row = row - apply(matrix.T, apply(matrix, apply(gram, row)))
        square = jnp.sum(row * apply(gram, row))
        good = square > least
        row = jnp.where(good, row / jnp.sqrt(jnp.where(good, square, 1.0)), 0.0)
        return jnp.where(place[:, None], row[None, :], matrix), None

    unit = np.eye(len(gram))
    starts = jnp.asarray(unit, bool), jnp.asarray(unit, gram.dtype)
    return lax.scan(step, jnp.zeros_like(gram), starts)[0]
