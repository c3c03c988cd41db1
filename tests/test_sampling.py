"""Spline interpolation against scipy.ndimage.map_coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.ndimage import map_coordinates

from jaxchi2.sampling import MODES, PADDING, interpolant

SCIPY = {"wrap": "grid-wrap"}


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(40,), (33, 40), (31, 34, 33)])
def test_equals_scipy(shape, mode, order, dtype):
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(dtype)
    # scipy cuts off the sum that starts its recursion for "reflect": no matter on frames this wide. Of
    # "nearest" it knows `PADDING` pixels, and is off by 1e-7 beyond them.
    far = PADDING if mode == "nearest" else 50
    positions = np.stack([rng.uniform(-far, n - 1 + far, 500) for n in shape]).astype(dtype)
    positions[:, :20] = np.round(positions[:, :20])
    expected = map_coordinates(
        image.astype(float), positions, order=order, mode=SCIPY.get(mode, mode), cval=2.5
    )
    found = jax.jit(lambda image, at: interpolant(image, order, mode, 2.5)(at))(image, positions)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 if dtype == np.float64 else 2e-4)


@pytest.mark.parametrize("mode", MODES)
def test_samples_are_met(mode, x64):
    image = np.random.default_rng(1).normal(size=(2, 9))
    for order in (1, 3):
        at = np.indices(image.shape).astype(float)
        values = jax.jit(lambda image, at, order=order: interpolant(image, order, mode)(at))(image, at)
        np.testing.assert_allclose(values, image, atol=1e-14)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["constant", "nearest"])
def test_derivatives(mode, x64):
    rng = np.random.default_rng(2)
    image, positions = jnp.asarray(rng.normal(size=(7, 8))), jnp.asarray(rng.uniform(0.1, 6.9, (2, 12)))

    def values(image, positions):
        return interpolant(image, 3, mode)(positions)

    check_grads(jax.jit(values), (image, positions), order=2, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5)
