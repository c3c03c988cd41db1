"""Linear algebra of small matrices: of up to three rows in plain arithmetic.

A call of LAPACK costs more than a whole Newton step here, and a product of matrices is rounded to bfloat16 on
some devices.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def inverse(matrix: Array) -> Array:
    """Inverse of a 1×1, 2×2 or 3×3 matrix in closed form; infinite or NaN where it is singular.

    Rows are scaled to unit size first: at high S/N the determinant itself would overflow float32.
    """
    rows = jnp.max(jnp.abs(matrix), axis=1)
    rows = jnp.where(rows > 0, rows, 1.0)
    m = matrix / rows[:, None]
    if len(m) == 1:
        result = 1 / m
    elif len(m) == 2:
        result = jnp.stack([m[1, 1], -m[0, 1], -m[1, 0], m[0, 0]]).reshape(2, 2)
        result = result / (m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0])
    else:
        cofactors = jnp.stack([jnp.cross(m[1], m[2]), jnp.cross(m[2], m[0]), jnp.cross(m[0], m[1])])
        result = cofactors.T / jnp.dot(m[0], cofactors[0], precision=lax.Precision.HIGHEST)
    return result / rows[None, :]


def or_one(x: Array) -> Array:
    """What is positive, and one in place of the rest: to be divided by."""
    return jnp.where(x > 0, x, 1.0)


def inverse_of_symmetric(matrix: Array) -> Array:
    """Inverse of a symmetric matrix of any size, whose rows may have unlike units."""
    unit = or_one(jnp.sqrt(jnp.abs(jnp.diagonal(matrix))))
    scale = unit[:, None] * unit[None, :]
    matrix = matrix / scale
    return (inverse(matrix) if len(matrix) <= 3 else jnp.linalg.inv(matrix)) / scale


def is_positive_definite(matrix: Array) -> Array:
    """Whether a symmetric matrix of up to three rows is positive definite beyond rounding.

    The leading minors of the matrix scaled to unit diagonal: with them below a few ulp, it is singular.
    """
    diagonal = jnp.diagonal(matrix)
    positive = jnp.all(diagonal > 0)
    scale = 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    m = matrix * scale[:, None] * scale[None, :]
    limit = 16 * jnp.finfo(m.dtype).eps
    if len(m) > 1:
        positive &= m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0] > limit
    if len(m) > 2:
        positive &= jnp.dot(m[0], jnp.cross(m[1], m[2]), precision=lax.Precision.HIGHEST) > limit
    return positive


def apply(matrix: Array, vector: Array) -> Array:
    """Product of a matrix and a vector."""
    return jnp.sum(matrix * vector[None, :], axis=1)
