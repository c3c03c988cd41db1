"""Truncated Taylor series against automatic differentiation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2.taylor import multiply, reciprocal


def first(x):
    return jnp.exp(x[0] - 0.3 * x[-1]) + x[-1] ** 2 * x[0] + 3


def second(x):
    return jnp.sin(x[0] * x[-1]) + x[0] + 2


def derivatives(function, at, order):
    """All partial derivatives up to ``order`` per axis, by nested differentiation."""
    ndim = len(at)

    def along_axes(*x):
        return function(jnp.stack(x))

    result = np.empty((order + 1,) * ndim)
    for orders in itertools.product(range(order + 1), repeat=ndim):
        partial_derivative = along_axes
        for axis, count in enumerate(orders):
            for _ in range(count):
                partial_derivative = jax.grad(partial_derivative, axis)
        result[orders] = partial_derivative(*at)
    return jnp.asarray(result)


@pytest.mark.parametrize(("ndim", "order"), [(1, 5), (2, 3), (3, 1), (3, 2)])
def test_products_and_reciprocals(ndim, order, x64):
    at = jnp.asarray([0.3, 0.7, -0.4][:ndim])
    f, g = (derivatives(h, at, order) for h in (first, second))
    product = derivatives(lambda x: first(x) * second(x), at, order)
    np.testing.assert_allclose(multiply(f, g), product, rtol=1e-12, atol=1e-11)
    inverse = derivatives(lambda x: 1 / first(x), at, order)
    np.testing.assert_allclose(reciprocal(f), inverse, rtol=1e-11, atol=1e-12)
