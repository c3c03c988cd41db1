"""Which sample of the search grid is which shift, and which of them may be the minimum."""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2.engine.choices import Choices
from jaxchi2.engine.constraints import Constraints, Prior
from jaxchi2.engine.searchgrid import SearchGrid, grid_minimum, grid_shifts, search_shape


def grid_of(shape, boundary="wrap", max_shift=None, free=None, **constraints):
    """Zeros at every shift that is searched."""
    model = Choices.of(boundary, max_shift=max_shift).plan(shape, shape, free)
    origin = jnp.zeros(len(shape), jnp.int32)
    return SearchGrid(jnp.zeros(shape), origin, jnp.array(False), None, Constraints(**constraints), model)


@pytest.mark.parametrize("length", [2, 7, 16])
def test_samples_are_the_shifts_of_one_period(length):
    """Each is its own index modulo the period, zero first, and all shifts of a full window are there once."""
    low, high = -(length // 2), (length - 1) // 2
    shifts, inside = grid_shifts(length, (low, high))
    np.testing.assert_array_equal(shifts % length, np.arange(length))
    assert sorted(shifts[inside]) == list(range(low, high + 1))


@pytest.mark.parametrize("limit", [0.5, 2.0, 3.4])
def test_window(limit):
    grid = grid_of((9, 8), max_shift=limit)
    inside = np.isfinite(grid.in_window(grid.values))
    for index in itertools.product(range(9), range(8)):
        shift = grid.shift_at(jnp.asarray(index))
        assert inside[index] == bool(np.all(np.abs(shift) <= limit))
        np.testing.assert_array_equal(grid.index_of(shift), index)
    assert grid.number_of_shifts() == np.sum(inside)


def test_a_window_of_values_narrows_that_of_the_model():
    shape = (16, 12)
    grid = grid_of(shape, window=jnp.asarray([[-3.0, 2.5], [-6.0, 0.0]]))
    for axis, expected in enumerate(([-3, 2], [-6, 0])):
        inside = np.asarray(grid.inside(axis, shape[axis]))
        shifts = grid.shifts()[axis][inside]
        assert [shifts.min(), shifts.max(), len(shifts)] == [*expected, expected[1] - expected[0] + 1]


def test_held_axes_have_one_shift():
    grid = grid_of((6, 8), free=(True, False), held=jnp.asarray([0.0, 2.2]))
    inside = np.isfinite(grid.in_window(grid.values))
    np.testing.assert_array_equal(inside, np.arange(8)[None, :] == np.full((6, 1), 2))
    whole, fraction = grid.start()
    np.testing.assert_allclose(whole + fraction, [0.0, 2.2], rtol=1e-6)


@pytest.mark.parametrize("frames", [((30,), (30,)), ((21, 9), (8, 19)), ((5, 6, 7), (7, 6, 5))])
@pytest.mark.parametrize("limit", [None, 3.0, np.inf])
def test_frames_do_not_meet_around_the_edge(frames, limit):
    reference, image = frames
    model = Choices.of("overlap", max_shift=limit).plan(reference, image)
    for m, n, period, (low, high) in zip(
        reference, image, search_shape(reference, image, model), model.whole_window, strict=True
    ):
        for shift in range(low, high + 1):
            moved = np.arange(m) + shift
            there = moved[(moved >= 0) & (moved < n)]
            # On the periodic grid as many pixels of the reference fall on the image.
            assert len(there) == np.sum(moved % period < n)


def test_prior_is_added_where_the_shifts_are():
    mean, precision = np.array([1.0, -2.0]), np.array([[2.0, 0.3], [0.3, 1.0]])
    grid = grid_of((7, 6), prior=Prior(jnp.asarray(mean), jnp.asarray(precision)))
    values = grid.with_prior().values
    for index in itertools.product(range(7), range(6)):
        offset = np.asarray(grid.shift_at(jnp.asarray(index))) - mean
        np.testing.assert_allclose(values[index], offset @ precision @ offset, rtol=1e-5)


def test_minima_lie_below_all_neighbours_and_not_at_the_start():
    values = np.random.default_rng(3).normal(size=(16, 15)).astype(np.float32)
    grid = replace(grid_of((16, 15)), values=jnp.asarray(values))
    best = np.unravel_index(values.argmin(), values.shape)

    def apart(index):
        steps = [abs(a - b) for a, b in zip(index, best, strict=True)]
        return max(min(step, n - step) for step, n in zip(steps, values.shape, strict=True)) > 1

    around = [np.roll(values, step, (0, 1)) for step in itertools.product((-1, 0, 1), repeat=2) if any(step)]
    lowest = np.all(values < around, axis=0)
    places = sorted((i for i in np.ndindex(values.shape) if lowest[i] and apart(i)), key=values.__getitem__)
    shifts, exist = grid.minima(3)
    assert np.all(exist)
    np.testing.assert_array_equal(grid.index_of(shifts), places[:3])


@pytest.mark.parametrize("shape", [(9,), (5, 6), (3, 4, 5)])
def test_grid_minimum(shape, dtype):
    values = np.random.default_rng(0).normal(size=shape).astype(dtype)
    expected = np.unravel_index(values.argmin(), shape)
    np.testing.assert_array_equal(grid_minimum(jnp.asarray(values)), expected)
