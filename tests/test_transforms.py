"""Derivatives of the shift and its errors: against central differences, forward against reverse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import scene, shifted

import jaxchi2

register = partial(jaxchi2.register, boundary="wrap")
chi2_surface = partial(jaxchi2.chi2_surface, boundary="wrap")

SHAPE = (15, 16)
ARGUMENTS = ["reference", "image", "err"]
pytestmark = pytest.mark.usefixtures("x64")


def pair(kind):
    """A noisy pair at low S/N, where intervals are asymmetric and derivatives are far from trivial."""
    rng = np.random.default_rng(0)
    reference = 3 * scene(SHAPE, 2.0)
    err = rng.uniform(0.5, 1.5, SHAPE) if kind == "map" else np.asarray(0.8)
    image = shifted(reference, (2.3, -1.6)) + rng.normal(size=SHAPE) * err
    return reference, image, err


def flat(*args):
    """Every real field of a registration, in one vector: shift, covariance, interval, χ²."""
    found = register(*args)
    return jnp.concatenate(
        [jnp.ravel(x) for x in (found.shift, found.covariance, found.interval, found.chi2)]
    )


PARTS = {"shift": slice(0, 2), "covariance": slice(2, 6), "interval": slice(6, 10), "chi2": slice(10, 11)}
forward = jax.jit(lambda args, directions: jax.jvp(flat, args, directions)[1])
backward = jax.jit(lambda args, weights: jax.vjp(flat, *args)[1](weights))
batched_backward = jax.jit(
    jax.vmap(lambda args, weights: jax.vjp(flat, *args)[1](weights), ((None, 0, 0), None))
)


def directions_of(args, which):
    """A random direction in one argument, none in the others; an error changes by a share of itself."""
    rng = np.random.default_rng(1)
    random = [rng.normal(size=np.shape(x)) for x in args]
    random[2:] = [r * x for r, x in zip(random[2:], args[2:], strict=True)]
    return tuple(r if i == which else np.zeros_like(r) for i, r in enumerate(random))


def central_difference(function, args, directions, step=2e-4):
    """Fourth order: the error of a second-order one would be the tolerance."""
    weights = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    moved = {k: function(*(x + k * step * d for x, d in zip(args, directions, strict=True))) for k in weights}
    return sum(w * np.asarray(moved[k]) for k, w in weights.items()) / step


def assert_derivative(found, expected):
    for name, part in PARTS.items():
        size = np.max(np.abs(expected[part]))
        np.testing.assert_allclose(found[part], expected[part], atol=1e-6 * size, err_msg=name)


@pytest.mark.parametrize("kind", ["scalar", "map"])
@pytest.mark.parametrize("which", range(3), ids=ARGUMENTS)
def test_forward_derivative_is_the_central_difference(kind, which):
    args = pair(kind)
    directions = directions_of(args, which)
    found = forward(args, directions)
    expected = central_difference(flat, args, directions)
    if which == 2 and kind == "scalar":
        # A common error moves nothing but the errors.
        np.testing.assert_allclose(found[PARTS["shift"]], 0.0, atol=1e-9)
        found, expected = found[2:], expected[2:]
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max(), rtol=1e-6)
    else:
        assert_derivative(found, expected)


def test_reverse_is_the_transpose_of_forward():
    args = pair("map")
    weights = np.random.default_rng(2).normal(size=11)
    gradient = backward(args, weights)
    for which in range(3):
        directions = directions_of(args, which)
        there = np.dot(weights, forward(args, directions))
        back = np.sum(np.asarray(gradient[which]) * directions[which])
        np.testing.assert_allclose(there, back, rtol=1e-9)


OPTIONS = {
    "weights, prior": {"boundary": "overlap"},
    "gain, background": {"boundary": "wrap", "fit_gain": True, "fit_background": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_derivatives_in_all_that_may_be_given(kind):
    """Images, errors or weights, and the prior change together; some pixels are masked and one is NaN."""
    reference, image, err = pair("map")
    image[4, 5] = np.nan
    mask = np.zeros(SHAPE, bool)
    mask[9, 2:4] = True
    rng = np.random.default_rng(8)
    by = [rng.normal(size=SHAPE) for _ in range(3)]
    mean, precision = np.array([2.0, -1.5]), np.array([[40.0, 11.0], [11.0, 60.0]])

    @jax.jit
    def found(t):
        arrays = (reference + t * by[0], image + t * by[1])
        if kind == "weights, prior":
            prior = (mean + t * np.array([0.3, -0.7]), jnp.linalg.inv(precision * (1 + t)))
            given = {"weights": err**-2 * (1 + 0.1 * t * by[2]), "search": jaxchi2.Search(prior=prior)}
        else:
            given = {"err": err * (1 + 0.1 * t * by[2])}
        result = jaxchi2.register(*arrays, mask=mask, **given, **OPTIONS[kind])
        parts = (
            result.shift,
            result.covariance,
            result.interval,
            result.chi2,
            result.gain,
            result.background,
        )
        return jnp.concatenate([jnp.ravel(x) for x in parts])

    forward, backward = (jax.jit(f(found))(0.0) for f in (jax.jacfwd, jax.jacrev))
    expected = central_difference(found, (0.0,), (1.0,))
    assert_derivative(forward, expected)
    np.testing.assert_allclose(forward[11:], expected[11:], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(backward, forward, rtol=1e-9, atol=1e-9 * np.max(np.abs(forward)))


def test_derivative_with_unknown_error():
    args = pair("scalar")[:2]
    directions = tuple(np.random.default_rng(1).normal(size=SHAPE) for _ in args)
    assert_derivative(forward(args, directions), central_difference(flat, args, directions))


def test_derivative_through_bad_pixels_is_finite():
    reference, image, err = pair("map")
    image, err = image.copy(), err.copy()
    image[3, 4], err[7, 7] = np.nan, 0.0
    gradient = backward((reference, image, err), np.ones(11))
    for array, at in [(gradient[0], None), (gradient[1], (3, 4)), (gradient[2], (7, 7))]:
        assert jnp.all(jnp.isfinite(array))
        assert at is None or array[at] == 0


def test_second_derivative_of_the_shift():
    args = pair("map")
    directions = tuple(np.random.default_rng(3).normal(size=SHAPE) * (1, 1, 0.1)[i] for i in range(3))

    def along(t):
        return register(*(x + t * d for x, d in zip(args, directions, strict=True))).shift

    found = jax.jit(jax.hessian(along))(0.0)
    expected = central_difference(
        lambda t: forward(tuple(x + t * d for x, d in zip(args, directions, strict=True)), directions)[:2],
        (0.0,),
        (1.0,),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.max(np.abs(expected)))


def test_gradient_under_vmap_with_a_frame_that_fails():
    reference, image, err = pair("map")
    images = np.stack([image, image + 0.1 * scene(SHAPE, 0.0, 5), np.full(SHAPE, np.nan)])
    errs = np.stack([err, 1.3 * err, err])
    weights = np.random.default_rng(2).normal(size=11)
    batched = batched_backward((reference, images, errs), weights)
    for i in range(2):
        alone = backward((reference, images[i], errs[i]), weights)
        for one, many in zip(alone, batched, strict=True):
            np.testing.assert_allclose(many[i], one, rtol=1e-9, atol=1e-9 * np.max(np.abs(one)))


def test_surface_derivatives_in_the_images():
    args = pair("map")
    shift = jnp.array([1.7, -0.4])

    def value(*args):
        surface = chi2_surface(*args)
        polygon = surface.contour(n=5)
        zoomed = surface.zoom(shift, 0.3, (2, 2))
        profile = surface.profile(0, shift[:1])
        second = surface.peaks(2)
        parts = [surface(shift), zoomed, polygon, surface.minimum(), profile, second.shift[1]]
        return jnp.concatenate([*map(jnp.ravel, parts), second.delta_chi2[1:]])

    evaluate = jax.jit(value)
    forward = jax.jit(lambda args, directions: jax.jvp(value, args, directions)[1])
    for which in range(3):
        directions = directions_of(args, which)
        found = forward(args, directions)
        expected = central_difference(evaluate, args, directions)
        for part in map(slice, (0, 5, 15, 17, 18, 20), (5, 15, 17, 18, 20, 21)):
            size = np.max(np.abs(expected[part]))
            np.testing.assert_allclose(found[part], expected[part], atol=1e-6 * size)


def test_derivative_in_the_threshold():
    args = pair("map")
    solve = jax.jit(lambda nsigma: register(*args, nsigma=nsigma).interval)
    found = jax.jit(jax.jacfwd(solve))(1.3)
    expected = (solve(1.3 + 1e-4) - solve(1.3 - 1e-4)) / 2e-4
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_float32_stays_float32():
    args, weights = tuple(np.asarray(x, np.float32) for x in pair("map")), np.r_[np.ones(10), 0.0]
    single, double = backward(args, weights.astype(np.float32)), backward(pair("map"), weights)
    for one, two in zip(single, double, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, two, atol=2e-3 * np.max(np.abs(two)))
