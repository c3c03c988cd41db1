"""Passes over arrays against NumPy, in any dtype and in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2.engine.passes import (
    block_sums,
    count,
    every,
    extremes,
    mean_over,
    neighbours,
    some,
    sum_all,
    sum_each,
)

SHAPES = [(1,), (70,), (33, 40), (7, 1, 65)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@shapes
def test_sums_and_counts(shape, dtype):
    values = np.random.default_rng(0).normal(3.0, 1.0, shape).astype(dtype)
    mask = values > 3.5
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(sum_all(jnp.asarray(values)), values.sum(dtype=float), rtol=tolerance)
    assert sum_all(jnp.asarray(values)).dtype == dtype
    each = sum_each(jnp.asarray(np.stack([values, 2 * values])))
    np.testing.assert_allclose(each, values.sum(dtype=float) * np.array([1, 2]), rtol=tolerance)
    assert count(jnp.asarray(mask)) == mask.sum()
    assert count(jnp.asarray(mask)).dtype == np.int32
    if mask.any():
        expected = values[mask].mean(dtype=float)
        np.testing.assert_allclose(mean_over(jnp.asarray(values), mask), expected, rtol=tolerance)


@pytest.mark.parametrize("marked", ["none", "one", "all but one", "all"])
@shapes
def test_some_and_every(shape, marked):
    mask = np.full(shape, marked in ("all", "all but one"))
    if "one" in marked and marked != "none":
        mask.flat[-1] = ~mask.flat[-1]
    assert some(jnp.asarray(mask)) == mask.any()
    assert every(jnp.asarray(mask)) == mask.all()


def test_extremes_leave_out_what_is_no_number(dtype):
    values = np.random.default_rng(1).normal(size=(5, 4, 6)).astype(dtype)
    values[1, 2] = np.nan
    for axes in (None, (0,), (1, 2)):
        largest, smallest = extremes(jnp.asarray(values), axes)
        np.testing.assert_array_equal(largest, np.nanmax(values, axes))
        np.testing.assert_array_equal(smallest, np.nanmin(values, axes))
    largest, smallest = extremes(jnp.full(3, jnp.nan, dtype))
    assert largest == -np.inf
    assert smallest == np.inf


@pytest.mark.long
@pytest.mark.parametrize("outside", ["wrap", "constant", "edge"])
@shapes
def test_neighbours(shape, outside, dtype):
    values = np.random.default_rng(2).normal(size=shape).astype(dtype)
    for axis in range(len(shape)):
        for first, last in ((-2, 1), (0, 3), (-3, -1), (-shape[axis] - 2, 0)):
            margin = np.zeros((len(shape), 2), int)
            margin[axis] = max(-first, 0), max(last, 0)
            padded = np.pad(values, margin, mode=outside)
            found = neighbours(jnp.asarray(values), first, last, axis, outside)
            assert len(found) == last - first + 1
            for k, shifted in zip(range(first, last + 1), found, strict=True):
                index = np.arange(shape[axis]) + k + margin[axis, 0]
                np.testing.assert_array_equal(shifted, np.take(padded, index, axis))


@pytest.mark.parametrize("size", [1, 3, 4])
@shapes
def test_sums_of_blocks(shape, size, dtype):
    values = np.random.default_rng(4).normal(size=shape).astype(dtype)
    found = block_sums(jnp.asarray(values), size)
    assert found.shape == tuple(-(-n // size) for n in shape)
    for index in np.ndindex(found.shape):
        block = values[tuple(slice(size * k, size * (k + 1)) for k in index)]
        np.testing.assert_allclose(found[index], block.sum(), rtol=0, atol=64 * np.finfo(dtype).eps)


def test_in_batches_and_backwards():
    values = jnp.asarray(np.random.default_rng(3).normal(size=(3, 5, 4)), jnp.float32)
    np.testing.assert_allclose(jax.vmap(sum_all)(values), values.sum((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(jax.vmap(count)(values > 0), (values > 0).sum((1, 2)))
    largest, smallest = jax.vmap(extremes)(values)
    np.testing.assert_array_equal(largest, values.max((1, 2)))
    np.testing.assert_array_equal(smallest, values.min((1, 2)))
    slope = jax.grad(lambda x: sum_all(neighbours(x, -1, -1, 0)[0] * values[1]))(values[0])
    np.testing.assert_allclose(slope, np.roll(values[1], -1, 0), rtol=1e-6)
