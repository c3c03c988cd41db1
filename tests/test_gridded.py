"""The interpolant from few samples against all of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import interpolate, scene

from jaxchi2.engine.gridded import REACH, at_pixels, gridded

CASES = [((40,), (9,), (13,)), ((31, 44), (8, 11), (6, 15)), ((12, 15, 14), (4, 5, 3), (3, 4, 5))]


def patch(array, first, frame):
    fine = gridded(array)
    return jax.lax.dynamic_slice(fine, [2 * k - REACH for k in first], [2 * (n + REACH) for n in frame])


@pytest.mark.parametrize("away", [0.0, 0.31, -0.5])
@pytest.mark.parametrize(("shape", "frame", "first"), CASES)
def test_values_are_those_of_the_whole_image(shape, frame, first, away, dtype):
    image = scene(shape)
    offset = away * np.linspace(1.0, 0.4, len(shape))
    found = at_pixels(patch(jnp.asarray(image, dtype), first, frame), jnp.asarray(2 * offset, dtype), frame)
    places = [k + np.arange(n) + d for k, n, d in zip(first, frame, offset, strict=True)]
    np.testing.assert_allclose(found[0], interpolate(image, places), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "frame", "first"), CASES)
def test_slopes_are_the_derivatives_of_the_values(shape, frame, first, x64):
    x = patch(jnp.asarray(scene(shape)), first, frame)
    offset = jnp.linspace(0.4, -0.9, len(shape))
    _, *slopes = at_pixels(x, offset, frame)
    for axis, slope in enumerate(slopes):
        step = np.eye(len(shape))[axis]
        _, expected = jax.jvp(lambda d: at_pixels(x, d, frame)[0], (offset,), (jnp.asarray(step),))
        np.testing.assert_allclose(slope, expected, rtol=0, atol=1e-10)


def test_many_at_once():
    x, frame = patch(jnp.asarray(scene((31, 44))), (6, 15), (8, 11)), (8, 11)
    offsets = jnp.asarray([[0.1, 0.3], [-0.8, 0.0]])
    found = jax.vmap(partial(at_pixels, x, frame=frame))(offsets)
    for one, offset in zip(found, offsets, strict=True):
        np.testing.assert_allclose(one, at_pixels(x, offset, frame), rtol=0, atol=1e-6)
