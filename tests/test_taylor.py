"""Truncated Taylor series against products of polynomials."""

from functools import reduce
from math import factorial

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import convolve

from jaxchi2.taylor import multiply, reciprocal


def polynomial(ndim, order, seed):
    return np.random.default_rng(seed).normal(size=(order + 1,) * ndim)


def derivatives(coefficients):
    """Partial derivatives at zero: each coefficient times the factorials of its powers."""
    factors = [[float(factorial(k)) for k in range(n)] for n in coefficients.shape]
    return jnp.asarray(coefficients * reduce(np.multiply.outer, factors))


CASES = pytest.mark.parametrize(("ndim", "order"), [(1, 5), (2, 3), (2, 5), (3, 1), (3, 2)])


@CASES
def test_product(ndim, order, x64):
    f, g = polynomial(ndim, order, 1), polynomial(ndim, order, 2)
    product = convolve(f, g, method="direct")[(slice(order + 1),) * ndim]
    np.testing.assert_allclose(multiply(derivatives(f), derivatives(g)), derivatives(product), rtol=1e-12)


@CASES
def test_reciprocal(ndim, order, x64):
    f = polynomial(ndim, order, 3)
    f.flat[0] = 2.0
    one = np.zeros(f.shape)
    one.flat[0] = 1.0
    inverse = np.asarray(reciprocal(derivatives(f))) / np.asarray(derivatives(np.ones(f.shape)))
    product = convolve(f, inverse, method="direct")[(slice(order + 1),) * ndim]
    np.testing.assert_allclose(product, one, atol=1e-11)
