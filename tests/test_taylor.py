"""Truncated Taylor series against products of polynomials."""

from functools import reduce
from math import factorial

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.polynomial import polyder, polyval, polyval2d, polyval3d
from scipy.signal import convolve

from jaxchi2.engine.taylor import multiply, reciprocal, translate


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


@CASES
def test_translation_is_exact_for_a_polynomial(ndim, order, x64):
    f = polynomial(ndim, order, 4)
    displacement = np.linspace(-0.7, 0.4, ndim)
    found = translate(derivatives(f), jnp.asarray(displacement), order - 1)
    assert found.shape == (order,) * ndim
    value = {1: polyval, 2: polyval2d, 3: polyval3d}[ndim]
    for orders in np.ndindex(found.shape):
        derivative = reduce(lambda c, axis: polyder(c, orders[axis], axis=axis), range(ndim), f)
        np.testing.assert_allclose(found[orders], value(*displacement, derivative), rtol=1e-11, atol=1e-11)
