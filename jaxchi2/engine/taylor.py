"""Products, quotients and translations of truncated Taylor series, held as tensors of partial derivatives.

Entry ``[a, b]`` of a tensor of shape ``(order + 1,) * D`` is ``∂^a_0 ∂^b_1 f`` at one point. What is not
linear in several Fourier series, such as χ² at the best gain, gets its derivatives from theirs here.
"""

from __future__ import annotations

from math import comb, factorial, prod

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .spectrum import contract


def multiply(f: Array, g: Array) -> Array:
    """Derivatives of ``f g`` by the rule of Leibniz, up to the order of the tensors."""
    ndim, size = f.ndim, f.shape[0]
    rule = np.zeros((size, size, size))
    for k in range(size):
        for i in range(k + 1):
            rule[i, k - i, k] = comb(k, i)
    letters = "abcdefghi"
    first, second, result = (letters[a * ndim : (a + 1) * ndim] for a in range(3))
    rules = ",".join(first[a] + second[a] + result[a] for a in range(ndim))
    factors = [jnp.asarray(rule, f.dtype)] * ndim
    return jnp.einsum(f"{first},{second},{rules}->{result}", f, g, *factors, precision=lax.Precision.HIGHEST)


def reciprocal(f: Array) -> Array:
    """Derivatives of ``1 / f`` by Newton's iteration, which doubles the number of right orders."""
    constant = jnp.zeros_like(f).at[(0,) * f.ndim].set(1.0)
    result = constant / f[(0,) * f.ndim]
    highest, right = prod([f.ndim, f.shape[0] - 1]), 0
    while right < highest:
        result = multiply(result, 2 * constant - multiply(f, result))
        right = 2 * right + 1
    return result


def powers(x: Array, highest: int) -> Array:
    """``x⁰ … x^highest``, the powers first."""
    found = [jnp.ones_like(x)]
    for _ in range(highest):
        found.append(found[-1] * x)
    return jnp.stack(found)


def translate(f: Array, displacement: Array, order: int) -> Array:
    """Derivatives at a displaced point, up to ``order``, of the polynomial with derivatives ``f`` at zero."""
    number = f.shape[0]
    rule = np.zeros((number, number, order + 1))
    for k in range(order + 1):
        for i in range(k, number):
            rule[i - k, i, k] = 1 / factorial(i - k)
    columns = jnp.einsum(
        "pa,pik->aik",
        powers(displacement, number - 1),
        jnp.asarray(rule, f.dtype),
        precision=lax.Precision.HIGHEST,
    )
    return contract(f, list(columns))
