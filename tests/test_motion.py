"""Motions: where the pixels come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxchi2.motion import MOTIONS, Affine, Rigid, Shift, Similarity, sources

SHAPE = (7, 10)
CENTER = np.array([3.0, 4.5])


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize(
    ("motion", "matrix"),
    [
        (Shift(jnp.array([1.5, -2.0])), np.eye(2)),
        (Rigid(jnp.array([1.5, -2.0]), jnp.array(0.3)), rotation(0.3)),
        (Similarity(jnp.array([1.5, -2.0]), jnp.array(0.3), jnp.array(1.2)), 1.2 * rotation(0.3)),
        (Affine(jnp.array([1.5, -2.0]), jnp.array([[1.1, 0.2], [-0.3, 0.9]])), [[1.1, 0.2], [-0.3, 0.9]]),
    ],
)
def test_sources_are_what_the_motion_takes_to_the_pixels(motion, matrix):
    found = np.asarray(sources(motion, SHAPE)).reshape(2, -1) - CENTER[:, None]
    there = np.asarray(matrix) @ found + np.array([[1.5], [-2.0]]) + CENTER[:, None]
    np.testing.assert_allclose(there, np.indices(SHAPE).reshape(2, -1), atol=3e-6)


@pytest.mark.parametrize("name", MOTIONS)
def test_a_shift_is_a_motion_of_every_kind(name):
    shift = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(
        sources(MOTIONS[name].by(shift), SHAPE), np.indices(SHAPE) - np.array([[[0.5]], [[2.0]]]), atol=1e-6
    )


def test_rotation_turns_counter_clockwise_where_y_is_drawn_downwards():
    # The end of the first axis, below the centre, moves to where the second axis grows, to the right.
    motion = Rigid(jnp.zeros(2), jnp.array(np.pi / 2))
    came_from = np.asarray(sources(motion, (5, 5)))[:, 2, 4]
    np.testing.assert_allclose(came_from, [4, 2], atol=1e-6)


def test_a_motion_is_a_pytree_of_its_parameters():
    sizes = {name: len(ravel_pytree(kind.by(jnp.zeros(2)))[0]) for name, kind in MOTIONS.items()}
    assert sizes == {"shift": 2, "rigid": 3, "similarity": 4, "affine": 6}
    doubled = jax.tree.map(lambda x: 2 * x, Similarity.by(jnp.ones(2)))
    assert isinstance(doubled, Similarity)
    assert doubled.scale == 2
