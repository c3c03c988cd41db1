"""Small matrices: against LAPACK, at any scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2.engine.algebra import apply, inverse, is_positive_definite, largest, norm, with_ridge

sizes = pytest.mark.parametrize("n", [1, 2, 3])


def matrices(n, count=50):
    return np.random.default_rng(n).normal(size=(count, n, n))


@sizes
def test_inverse(n, dtype):
    given = matrices(n)
    found = jax.vmap(inverse)(jnp.asarray(given, dtype))
    for matrix, one in zip(given.astype(dtype).astype(float), np.asarray(found, float), strict=True):
        error = 64 * np.finfo(dtype).eps * np.linalg.cond(matrix) ** (2 if n == 3 else 1)
        np.testing.assert_allclose(one @ matrix, np.eye(n), atol=error)


@sizes
def test_inverse_at_any_scale(n, dtype):
    """The determinant of a Hessian at high S/N is beyond float32."""
    matrix = np.eye(n) + 0.1
    for scale in (1e-18, 1e18):
        found = np.asarray(inverse(jnp.asarray(matrix * scale, dtype)), float) * scale
        np.testing.assert_allclose(found, np.linalg.inv(matrix), rtol=64 * np.finfo(dtype).eps)


@sizes
def test_no_inverse_is_not_finite(n, dtype):
    assert not np.any(np.isfinite(np.diagonal(inverse(jnp.zeros((n, n), dtype)))))


@sizes
def test_definite_is_what_eigenvalues_say(n, dtype):
    given = matrices(n, 200)
    given = given + np.swapaxes(given, 1, 2) + np.linspace(-1, 4, 200)[:, None, None] * np.eye(n)
    lowest = np.linalg.eigvalsh(given)[:, 0]
    clear = np.abs(lowest) > 1e-3
    found = np.asarray(jax.vmap(is_positive_definite)(jnp.asarray(given, dtype)))
    np.testing.assert_array_equal(found[clear], (lowest > 0)[clear])
    assert 0.2 < np.mean(lowest > 0) < 0.95


def test_singular_to_rounding_is_not_definite(dtype):
    line = np.array([1.0, 2.0])
    assert not is_positive_definite(jnp.asarray(np.outer(line, line), dtype))
    assert not is_positive_definite(jnp.full((2, 2), jnp.nan, dtype))


@sizes
def test_apply(n, dtype):
    vector = np.arange(1.0, n + 1)
    for matrix in matrices(n, 5):
        found = apply(jnp.asarray(matrix, dtype), jnp.asarray(vector, dtype))
        np.testing.assert_allclose(found, matrix @ vector, rtol=0, atol=64 * np.finfo(dtype).eps)


def test_apply_of_many_rows(dtype):
    matrix, vector = np.random.default_rng(5).normal(size=(6, 6)), np.arange(1.0, 7.0)
    found = apply(jnp.asarray(matrix, dtype), jnp.asarray(vector, dtype))
    np.testing.assert_allclose(found, matrix @ vector, rtol=0, atol=256 * np.finfo(dtype).eps)


@sizes
def test_norm_and_largest(n, dtype):
    for vector in np.random.default_rng(6).normal(size=(5, n)):
        np.testing.assert_allclose(norm(jnp.asarray(vector, dtype)), np.linalg.norm(vector), rtol=1e-6)
        np.testing.assert_allclose(largest(jnp.asarray(vector, dtype)), np.max(np.abs(vector)), rtol=1e-6)
    assert np.isnan(largest(jnp.asarray([np.nan, *range(n - 1)], dtype)))


@sizes
def test_a_ridge_makes_definite_what_is_not(n, dtype):
    for given in matrices(n, 20):
        matrix = given + given.T
        found, ridge = with_ridge(jnp.asarray(matrix, dtype))
        assert np.linalg.eigvalsh(np.asarray(found, float))[0] > 0
        assert (ridge == 0) == (np.linalg.eigvalsh(matrix)[0] > 0)
