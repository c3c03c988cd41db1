"""Which sample of the search grid is which shift, and which of them may be the minimum."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2.engine.pair import Pair, check_model
from jaxchi2.engine.searchgrid import (
    grid_minimum,
    grid_shifts,
    in_window,
    inside_window,
    search_shape,
    shift_at,
    with_prior,
)


def model_of(shape, boundary="wrap", **options):
    return check_model(shape, shape, boundary, **options)


@pytest.mark.parametrize("length", [2, 7, 16])
@pytest.mark.parametrize("over", [1, 2])
def test_samples_are_the_shifts_of_one_period(length, over):
    """Each is its own index modulo the period, zero first, and all shifts of a full window are there once."""
    shifts, inside = grid_shifts(length * over, (-(length // 2), (length - 1) // 2), over)
    np.testing.assert_array_equal(shifts % (length * over), np.arange(length * over))
    expected = [
        s for s in range(-length * over, length * over) if -(length // 2) <= s / over <= (length - 1) // 2
    ]
    assert sorted(shifts[inside]) == expected


@pytest.mark.parametrize("limit", [0.5, 2.0, 3.4])
def test_window(limit):
    shape, pair = (9, 8), Pair(jnp.zeros((9, 8)), jnp.zeros((9, 8)), jnp.ones(()))
    model = model_of(shape, max_shift=limit)
    grid = np.asarray(in_window(jnp.zeros(shape), 1, pair, model))
    for index in itertools.product(range(9), range(8)):
        shift = shift_at(jnp.asarray(index), shape, 1, model)
        assert np.isfinite(grid[index]) == bool(np.all(np.abs(shift) <= limit))


def test_a_window_of_values_narrows_that_of_the_model():
    shape, model = (16, 12), model_of((16, 12))
    window = jnp.asarray([[-3.0, 2.5], [-6.0, 0.0]])
    pair = Pair(jnp.zeros(shape), jnp.zeros(shape), jnp.ones(()), window=window)
    for axis, (length, expected) in enumerate(zip(shape, ([-3, 2], [-6, 0]), strict=True)):
        inside = np.asarray(inside_window(axis, length, 1, pair, model))
        shifts = grid_shifts(length, model.window[axis])[0][inside]
        assert [shifts.min(), shifts.max(), len(shifts)] == [*expected, expected[1] - expected[0] + 1]


def test_held_axes_have_one_shift():
    shape, model = (6, 8), model_of((6, 8), fixed=(None, 2.0))
    pair = Pair(jnp.zeros(shape), jnp.zeros(shape), jnp.ones(()), held=jnp.asarray([0.0, 2.2]))
    grid = np.isfinite(in_window(jnp.zeros(shape), 1, pair, model))
    np.testing.assert_array_equal(grid, np.arange(8)[None, :] == np.full((6, 1), 2))


@pytest.mark.parametrize("frames", [((30,), (30,)), ((21, 9), (8, 19)), ((5, 6, 7), (7, 6, 5))])
@pytest.mark.parametrize("limit", [None, 3.0, np.inf])
def test_frames_do_not_meet_around_the_edge(frames, limit):
    reference, image = frames
    model = check_model(reference, image, "overlap", max_shift=limit)
    for m, n, period, (low, high) in zip(
        reference, image, search_shape(reference, image, model), model.whole_window, strict=True
    ):
        for shift in range(low, high + 1):
            moved = np.arange(m) + shift
            there = moved[(moved >= 0) & (moved < n)]
            # On the periodic grid as many pixels of the reference fall on the image.
            assert len(there) == np.sum(moved % period < n)


def test_prior_is_added_where_the_shifts_are():
    shape, model = (7, 6), model_of((7, 6))
    mean, precision = np.array([1.0, -2.0]), np.array([[2.0, 0.3], [0.3, 1.0]])
    prior = jnp.asarray(mean), jnp.asarray(precision)
    pair = Pair(jnp.zeros(shape), jnp.zeros(shape), jnp.ones(()), prior=prior)
    grid = with_prior(jnp.zeros(shape), 1, pair, model)
    for index in itertools.product(range(7), range(6)):
        offset = np.asarray(shift_at(jnp.asarray(index), shape, 1, model)) - mean
        np.testing.assert_allclose(grid[index], offset @ precision @ offset, rtol=1e-5)


@pytest.mark.parametrize("shape", [(9,), (5, 6), (3, 4, 5)])
def test_grid_minimum(shape, dtype):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = np.unravel_index(values.argmin(), shape)
    np.testing.assert_array_equal(grid_minimum(jnp.asarray(values)), expected)
