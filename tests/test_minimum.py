"""The search by expansions: from anywhere within a pixel to the minimum, exactly."""

import jax.numpy as jnp
import numpy as np
import pytest
from direct import shifted

import jaxchi2
from jaxchi2 import Search, chi2_surface
from jaxchi2.engine.position import Position
from jaxchi2.engine.searchgrid import STARTS

SHAPE = (31, 33)
rng = np.random.default_rng(7)
# Of full bandwidth: the hardest case for an expansion.
SCENE = rng.normal(size=SHAPE)
ERR = rng.uniform(0.5, 2.0, SHAPE)
SHIFT = np.array([3.31, -5.27])
CASES = {
    "one error": (1.0, {}),
    "error map": (ERR, {}),
    "gain and background": (1.0, {"fit_gain": True, "fit_background": True}),
    "error map, gain": (ERR, {"fit_gain": True}),
}


@pytest.mark.parametrize("away", [(0.0, 0.0), (0.3, -0.2), (-0.5, 0.5), (0.65, 0.6)])
@pytest.mark.parametrize("name", CASES)
def test_any_start_within_the_peak_leads_to_the_minimum(name, away, dtype):
    err, options = CASES[name]
    reference, image = SCENE.astype(dtype), (2 * shifted(SCENE, SHIFT)).astype(dtype)
    if "fit_gain" not in options:
        reference = 2 * reference
    search = Search(initial=SHIFT + away)
    found = chi2_surface(reference, image, err, boundary="wrap", search=search, **options).minimum()
    np.testing.assert_allclose(found, SHIFT, rtol=0, atol=1e-11 if dtype == np.float64 else 1e-6)


def test_start_is_near_the_minimum_and_exact_between_equal_images(dtype):
    # The parabola through three samples of a sinc errs by up to 0.11, and 1/32 more.
    for shift, nearest in ((0.0, 0.0), (0.25, 0.14), (0.5, 0.04), (-0.4, 0.14)):
        image = shifted(SCENE, (shift, 0.0)).astype(dtype)
        grid = chi2_surface(SCENE.astype(dtype), image, 1.0, boundary="wrap").terms.grid
        whole = jnp.round(jnp.asarray([shift, 0.0])).astype(jnp.int32)
        start = grid.between_samples(Position(whole, jnp.zeros(2, dtype))).fraction
        assert abs(whole[0] + start[0] - shift) <= nearest
        assert start[1] == 0
        assert start[0] * STARTS % 1 == 0


def test_a_valley_without_end_is_not_converged():
    """Along the second axis nothing changes but by rounding."""
    ramp = np.tile(rng.normal(size=(31, 1)), (1, 33))
    found = jaxchi2.register(ramp, ramp + 1e-9 * SCENE, 1.0, boundary="wrap")
    assert found.status != 0
