"""The smooth field of local shifts: exact for what it can follow, with errors that are the scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from jaxchi2 import SmoothField
from jaxchi2.engine.windowgrid import WindowGrid
from jaxchi2.smoothfield import smooth

WINDOWS = WindowGrid((200, 240), (32, 32), (16, 16), "box")


def seen_by(motion, windows=WINDOWS):
    """Mean of a motion over the pixels of each window."""
    y, x = (np.add.outer(s, np.arange(n)) for s, n in zip(windows.starts, windows.window, strict=True))
    weights = np.multiply.outer(*windows.weights)
    values = motion(y[:, None, :, None], x[None, :, None, :])
    return np.stack([np.sum(v * weights, (-2, -1)) / weights.sum() for v in values], -1)


def shared_noise(rng, sigma, windows=WINDOWS):
    """Errors of windows that are means of white noise of pixels."""
    white = rng.normal(size=(2, *windows.frame))
    mean = seen_by(lambda y, x: white[:, y, x], windows)
    return sigma * np.sqrt(np.prod(windows.window)) * mean


def fitted(shift, sigma=0.02, valid=None, dtype=np.float32, **options):
    covariance = np.broadcast_to(sigma**2 * np.eye(2), (*WINDOWS.shape, 2, 2))
    valid = np.ones(WINDOWS.shape, bool) if valid is None else valid
    return smooth(
        WINDOWS, *(jnp.asarray(x, dtype) for x in (shift, covariance)), jnp.asarray(valid), **options
    )


def plane(y, x):
    return np.stack(np.broadcast_arrays(1.5 + 0.01 * y - 0.02 * x, -3.0 + 0.004 * x + 0 * y))


def waves(y, x):
    return np.stack(np.broadcast_arrays(np.sin(y / 30) + 0 * x, np.cos(x / 40) + 0 * y))


POINTS = np.random.default_rng(0).uniform(0, 199, (50, 2))


def test_planes_are_exact(dtype):
    found = fitted(seen_by(plane), dtype=dtype)
    assert isinstance(found, SmoothField)
    tolerance = 1e-9 if dtype == np.float64 else 2e-4
    np.testing.assert_allclose(found.at(POINTS).value, plane(*POINTS.T).T, rtol=0, atol=tolerance)
    gradient = np.broadcast_to([0.01, -0.02, 0.0, 0.004], (50, 4))
    np.testing.assert_allclose(found.gradient(POINTS).value, gradient, rtol=0, atol=tolerance / 10)
    strain = np.broadcast_to([0.01, -0.01, 0.004], (50, 3))
    np.testing.assert_allclose(found.strain(POINTS).value, strain, rtol=0, atol=tolerance / 10)
    np.testing.assert_allclose(found.divergence(POINTS).value, 0.014, rtol=0, atol=tolerance / 10)
    np.testing.assert_allclose(found.vorticity(POINTS).value, -0.02, rtol=0, atol=tolerance / 10)


def test_errors_are_those_of_linear_propagation(x64):
    """What is derived from the field has the covariance of the coefficients, by derivatives of its value."""
    found = fitted(seen_by(plane) + shared_noise(np.random.default_rng(1), 0.02), dtype=float)
    covariance = found.root.T @ found.root

    def quantity(coefficients):
        field = SmoothField(
            coefficients, *(getattr(found, n) for n in ("root", "stiffness", "windows", "axes", "frame"))
        )
        return field.strain(POINTS[0]).value

    jacobian = jax.jacobian(quantity)(found.coefficients).reshape(3, -1)
    np.testing.assert_allclose(
        found.strain(POINTS[0]).covariance, jacobian @ covariance @ jacobian.T, rtol=1e-6
    )
    step = 1e-4
    moved = [found.at(POINTS[0] + [0.0, d]).value for d in (step, -step)]
    np.testing.assert_allclose(
        found.gradient(POINTS[0]).value[1], (moved[0] - moved[1])[0] / (2 * step), rtol=1e-5
    )


@pytest.mark.parametrize("curved", [False, pytest.param(True, marks=pytest.mark.long)])
def test_errors_are_the_scatter(curved):
    """Of a plane they are those of its fit. Where splines bend, the prior allows for more than there is."""
    rng = np.random.default_rng(2)

    def motion(y, x):
        return plane(y, x) + curved * np.stack(
            np.broadcast_arrays(np.sin(y / 30) + 0 * x, np.cos(x / 40) + 0 * y)
        )

    true = motion(*POINTS.T).T
    pulls = []
    for _ in range(40):
        found = fitted(seen_by(motion) + shared_noise(rng, 0.02)).at(POINTS)
        pulls.append((np.asarray(found.value) - true) / np.asarray(found.stderr))
    spread = np.sqrt(np.mean(np.square(pulls), axis=(0, 1)))
    if curved:
        assert np.all((spread > 0.5) & (spread < 1.1))
    else:
        # Three numbers for each component and draw: a scatter of 1 / √(2 · 120), five times.
        assert np.all((spread > 0.7) & (spread < 1.33))


def test_windows_without_an_answer_are_carried_by_others():
    rng = np.random.default_rng(3)
    valid = np.ones(WINDOWS.shape, bool)
    valid[3:8, 4:9] = False

    shift = seen_by(waves) + shared_noise(rng, 0.02)
    whole, holed = fitted(shift), fitted(np.where(valid[..., None], shift, np.nan), valid=valid)
    inside = WINDOWS.centers[5, 6]
    assert holed.windows == valid.sum()
    assert np.all(holed.at(inside).stderr > 2 * whole.at(inside).stderr)
    away = np.asarray(holed.at(inside).value) - waves(*inside)
    assert np.all(np.abs(away) < 4 * np.asarray(holed.at(inside).stderr))
    nothing = fitted(np.full_like(shift, np.nan), valid=np.zeros(WINDOWS.shape, bool))
    assert np.all(nothing.at(inside).stderr > 10)


def test_given_stiffness_and_scale():
    shift = seen_by(plane) + shared_noise(np.random.default_rng(4), 0.02)
    soft, hard = (fitted(shift, scale=20.0, stiffness=x) for x in (1e3, 1e12))
    assert soft.axes[0].scale == 20
    assert soft.stiffness == pytest.approx(1e3)
    assert np.all(soft.at(POINTS).stderr > hard.at(POINTS).stderr)
    with pytest.raises(ValueError, match="scale must"):
        fitted(shift, scale=0.0)
    with pytest.raises(ValueError, match="stiffness must"):
        fitted(shift, stiffness=-1.0)
    with pytest.raises(ValueError, match="points must"):
        soft.at(np.zeros(3))


def test_warp_and_unwarp_are_opposite():
    rng = np.random.default_rng(5)
    y, x = np.indices(WINDOWS.frame).astype(float)
    reference = np.sin(y / 5) * np.cos(x / 6) + 0.1 * rng.normal(size=2)[0]

    field = fitted(2 * seen_by(waves))
    warped = np.asarray(field.warp(reference.astype(np.float32)))
    u = np.moveaxis(np.asarray(field.at(np.stack([y, x], -1)).value), -1, 0)
    expected = map_coordinates(reference, [y - u[0], x - u[1]], order=3, mode="nearest")
    inside = np.isfinite(warped)
    assert 0.95 < inside.mean() < 1
    np.testing.assert_allclose(warped[inside], expected[inside], atol=1e-3)
    back = np.asarray(field.unwarp(warped))
    known = np.isfinite(back)
    assert known.mean() > 0.9
    # The splines of the frame's outermost pixels are not those of the scene.
    known[:8], known[-8:], known[:, :8], known[:, -8:] = (False,) * 4
    np.testing.assert_allclose(back[known], reference[known], atol=5e-3)
    with pytest.raises(ValueError, match="shape of the field's"):
        field.warp(reference[1:])


def test_under_jit_and_backwards(x64):
    shift = jnp.asarray(seen_by(plane) + shared_noise(np.random.default_rng(6), 0.02))

    def middle(shift):
        return fitted(shift, stiffness=1e4, dtype=float).at(POINTS[:3]).value

    np.testing.assert_allclose(jax.jit(middle)(shift), middle(shift), atol=1e-9)
    weights = jax.jacobian(middle)(shift)
    change = jnp.asarray(np.random.default_rng(7).normal(size=shift.shape))
    linear = jnp.tensordot(weights, change, 3)
    np.testing.assert_allclose(linear, middle(shift + change) - middle(shift), atol=1e-9)
