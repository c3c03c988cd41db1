"""Linear algebra of small matrices: of up to three rows number by number.

A call of LAPACK costs more than a whole Newton step here, and a product of matrices is rounded to bfloat16 on
some devices. A sum over an axis is a kernel of its own to compile, while numbers are fused into one.
"""

from __future__ import annotations

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def numbers(array: Array) -> list[Array]:
    """The elements of a small array, as scalars."""
    flat = array.reshape(-1)
    return [lax.index_in_dim(flat, k, keepdims=False) for k in range(flat.size)]


def rows(matrix: Array) -> list[list[Array]]:
    """The elements of a small matrix, as scalars."""
    each, n = numbers(matrix), matrix.shape[1]
    return [each[k : k + n] for k in range(0, len(each), n)]


def total(vector: Array) -> Array:
    """Sum of a few numbers."""
    return reduce(jnp.add, numbers(vector))


def largest(array: Array) -> Array:
    """Largest absolute value of a few numbers; NaN where one of them is."""
    return reduce(jnp.maximum, numbers(jnp.abs(array)))


def norm(vector: Array) -> Array:
    """Root of the sum of the squares of a few numbers."""
    return jnp.sqrt(total(vector**2))


def inverse(matrix: Array) -> Array:
    """Inverse of a 1×1, 2×2 or 3×3 matrix in closed form; infinite or NaN where it is singular.

    Rows are scaled to unit size first: at high S/N the determinant itself would overflow float32.
    """
    n = len(matrix)
    units = [or_one(reduce(jnp.maximum, [jnp.abs(x) for x in row])) for row in rows(matrix)]
    m = [[x / unit for x in row] for row, unit in zip(rows(matrix), units, strict=True)]
    if n == 1:
        cofactors = [[jnp.ones_like(m[0][0])]]
    elif n == 2:
        cofactors = [[m[1][1], -m[1][0]], [-m[0][1], m[0][0]]]
    else:
        cofactors = [_cross(m[1], m[2]), _cross(m[2], m[0]), _cross(m[0], m[1])]
    determinant = _dot(m[0], cofactors[0])
    result = [cofactors[j][i] / determinant / units[j] for i in range(n) for j in range(n)]
    return jnp.stack(result).reshape(n, n)


def _dot(a: list[Array], b: list[Array]) -> Array:
    return reduce(jnp.add, [x * y for x, y in zip(a, b, strict=True)])


def _cross(a: list[Array], b: list[Array]) -> list[Array]:
    return [a[k - 2] * b[k - 1] - a[k - 1] * b[k - 2] for k in range(3)]


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
    n, m = len(matrix), rows(matrix)
    positive = reduce(jnp.logical_and, [m[k][k] > 0 for k in range(n)])
    scale = [1 / jnp.sqrt(or_one(m[k][k])) for k in range(n)]
    m = [[m[i][j] * scale[i] * scale[j] for j in range(n)] for i in range(n)]
    limit = 16 * jnp.finfo(matrix.dtype).eps
    if n > 1:
        positive &= m[0][0] * m[1][1] - m[0][1] * m[1][0] > limit
    if n > 2:
        positive &= _dot(m[0], _cross(m[1], m[2])) > limit
    return positive


def with_ridge(hessian: Array) -> tuple[Array, Array]:
    """A Hessian, where it is not convex with enough of the identity to be so, and how much that was."""
    ridge = jnp.where(is_positive_definite(hessian), 0.0, 1.5 * norm(hessian))
    return hessian + ridge * np.eye(len(hessian), dtype=hessian.dtype), ridge


def apply(matrix: Array, vector: Array) -> Array:
    """Product of a matrix and a vector."""
    if max(matrix.shape) > 3:
        return jnp.dot(matrix, vector, precision=lax.Precision.HIGHEST)
    return jnp.stack([_dot(row, numbers(vector)) for row in rows(matrix)])
