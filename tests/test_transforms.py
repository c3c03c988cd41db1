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


def value_and_derivative(function):
    """A function of one number and its forward derivative in one program, which costs less than two."""
    return jax.jit(lambda t: jax.jvp(function, (t,), (1.0,)))


def assert_derivative(found, expected):
    for name, part in PARTS.items():
        size = np.max(np.abs(expected[part]))
        np.testing.assert_allclose(found[part], expected[part], atol=1e-6 * size, err_msg=name)


@pytest.mark.long
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


@pytest.mark.long
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
    "noise in both": {"boundary": "wrap"},
    "noise in both, gain, background": {"boundary": "overlap", "fit_gain": True, "fit_background": True},
}


@pytest.mark.long
@pytest.mark.parametrize("kind", OPTIONS)
def test_derivatives_in_all_that_may_be_given(kind):
    """Images, errors or weights, and the prior change together; some pixels are masked and one is NaN."""
    # With neither, and one error for all pixels, for the cheap way of "wrap".
    quick = kind == "noise in both"
    reference, image, err = pair("scalar" if quick else "map")
    mask = np.zeros(SHAPE, bool)
    if not quick:
        image[4, 5], mask[9, 2:4] = np.nan, True
    rng = np.random.default_rng(8)
    by = [rng.normal(size=SHAPE) for _ in range(3)]
    mean, precision = np.array([2.0, -1.5]), np.array([[40.0, 11.0], [11.0, 60.0]])

    def found(t):
        arrays = (reference + t * by[0], image + t * by[1])
        if kind == "weights, prior":
            prior = (mean + t * np.array([0.3, -0.7]), jnp.linalg.inv(precision * (1 + t)))
            given = {"weights": err**-2 * (1 + 0.1 * t * by[2]), "search": jaxchi2.Search(prior=prior)}
        else:
            given = {"err": err * (1 + 0.1 * t * (1.0 if quick else by[2]))}
        if "noise" in kind:
            given["reference_err"] = 0.9 * given["err"][()] * (1 + 0.3 * t)
        result = jaxchi2.register(*arrays, mask=None if quick else mask, **given, **OPTIONS[kind])
        parts = (
            result.shift,
            result.covariance,
            result.interval,
            result.chi2,
            result.gain,
            result.background,
        )
        return jnp.concatenate([jnp.ravel(x) for x in parts])

    both = value_and_derivative(found)
    forward = both(0.0)[1]
    expected = central_difference(lambda t: both(t)[0], (0.0,), (1.0,))
    assert_derivative(forward, expected)
    np.testing.assert_allclose(forward[11:], expected[11:], rtol=1e-6, atol=1e-9)
    if quick:
        return  # A program of both ways, to compile once more.
    backward = jax.jit(jax.jacrev(found))(0.0)
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


@pytest.mark.long
@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_second_derivative_of_the_shift(boundary):
    args = pair("map")
    directions = tuple(np.random.default_rng(3).normal(size=SHAPE) * (1, 1, 0.1)[i] for i in range(3))

    def along(t):
        moved = (x + t * d for x, d in zip(args, directions, strict=True))
        return jaxchi2.register(*moved, boundary=boundary).shift

    both = value_and_derivative(jax.jacrev(along))
    found = both(0.0)[1]
    expected = central_difference(lambda t: both(t)[0], (0.0,), (1.0,))
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


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"boundary": "wrap"},
        {"boundary": "overlap", "reference_err": 0.8, "fit_gain": True, "fit_background": True},
    ],
    ids=lambda options: " ".join(options),
)
def test_failed_frames_leave_the_gradient_of_what_they_share_alone(options):
    """The gradient of every field, in what good and bad frames have in common and in the frames."""
    reference, image, _ = pair("scalar")
    one_pixel = np.where(np.arange(image.size).reshape(SHAPE) == 40, 1.0, np.nan)
    bad = [np.full(SHAPE, v) for v in (np.nan, np.inf, 0.0, 7.0)] + [one_pixel, 1e-30 * image]

    def total(reference, err, nsigma, images):
        def one(image):
            return jaxchi2.register(reference, image, err, nsigma=nsigma, **options)

        found = jax.vmap(one)(images)
        fields = (
            found.shift,
            found.covariance,
            found.interval,
            found.chi2,
            found.gain,
            found.background,
            found.nuisance_covariance,
        )
        first = np.arange(len(images)) == 0
        kept = [jnp.where(first.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0) for x in fields]
        return sum(map(jnp.sum, kept)), found.status

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    frames = np.stack([image, *bad]), np.stack([image] * (len(bad) + 1))
    (broken, status), (whole, _) = (gradient(reference, 0.8, 1.0, images) for images in frames)
    assert status[0] == 0
    assert np.all(status[1:] != 0)
    for found, expected in zip(broken, whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"boundary": "overlap"},
        {"boundary": "overlap", "fit_gain": True, "fit_background": True},
        {"boundary": "wrap", "reference_mask": np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) % 97 == 5},
    ],
    ids=lambda options: " ".join(options),
)
def test_derivatives_of_map_and_posterior(options):
    """Where the pixels that count change with the shift, the map is not the series that `register` solves."""
    reference, image, err = pair("map")
    rng = np.random.default_rng(9)
    by = [rng.normal(size=SHAPE) for _ in range(3)]

    def found(t):
        arrays = (reference + t * by[0], image + t * by[1], err * (1 + 0.1 * t * by[2]))
        surface = jaxchi2.chi2_surface(*arrays, **options)
        values = surface.map()
        mean = surface.posterior_mean(50.0)
        return jnp.concatenate([mean, jnp.where(jnp.isfinite(values), values, 0.0).ravel()])

    both = value_and_derivative(found)
    expected = central_difference(lambda t: both(t)[0], (0.0,), (1.0,))
    assert np.min(np.abs(expected[:2])) > 1e-3
    forward = both(0.0)[1]
    backward = jax.jit(jax.grad(lambda t: found(t)[0]))(0.0)
    for part in (slice(0, 2), slice(2, None)):
        size = np.max(np.abs(expected[part]))
        np.testing.assert_allclose(forward[part], expected[part], atol=1e-6 * size)
    np.testing.assert_allclose(backward, forward[0], rtol=1e-9)


@pytest.mark.long
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


@pytest.mark.long
def test_float32_stays_float32():
    args, weights = tuple(np.asarray(x, np.float32) for x in pair("map")), np.r_[np.ones(10), 0.0]
    single, double = backward(args, weights.astype(np.float32)), backward(pair("map"), weights)
    for one, two in zip(single, double, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, two, atol=2e-3 * np.max(np.abs(two)))


def fitted_shift(reference, image):
    return jaxchi2.fit(reference, image, 0.1, model="rigid").motion.shift


PROGRAMS = {
    "wrap": lambda a, b: register(a, b, 0.1),
    "overlap": lambda a, b: jaxchi2.register(a, b, 0.1, reference_err=0.1),
    "stack": lambda a, b: jaxchi2.register_stack(jnp.stack([b] * 3), a, 0.1),
    "joint": lambda a, b: jaxchi2.register_jointly(jnp.stack([a, b, b]), 0.1),
    "gradient": jax.grad(lambda a, b: jnp.sum(jaxchi2.register(a, b, 0.1).shift)),
    "fit": fitted_shift,
    "align": lambda a, b: jaxchi2.align(b, register(a, b, 0.1).shift),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_lower_for_every_kind_of_device(name):
    """What a device cannot do shows here, without one: nothing is compiled."""
    frame = jax.ShapeDtypeStruct((24, 32), jnp.float32)
    exported = jax.export.export(jax.jit(PROGRAMS[name]), platforms=["cuda", "rocm", "tpu"])(frame, frame)
    assert set(exported.platforms) == {"cuda", "rocm", "tpu"}
    # A call back to the host would be a custom call of Python's.
    assert "callback" not in str(exported.mlir_module())


@pytest.mark.long
def test_one_large_batch_is_its_parts():
    """Of 40 000 small frames JAX 0.10.2 added up thousands wrongly, without a word (JAX issue 39103)."""
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(6, 5)).astype(np.float32)
    frames = (np.roll(reference, 1, 0) + 0.05 * rng.normal(size=(40_000, 6, 5))).astype(np.float32)

    def find(frames):
        one = partial(register, reference, err=0.05, boundary="wrap", verdict=False)
        found = jax.vmap(lambda frame: one(frame))(frames)
        return found.shift, found.chi2

    whole = jax.jit(find)(frames)
    part = jax.jit(find)
    parts = [part(frames[k : k + 500]) for k in range(0, len(frames), 500)]
    for one, several in zip(whole, zip(*parts, strict=True), strict=True):
        several = np.concatenate(several)
        failed = np.isnan(several)
        np.testing.assert_array_equal(np.isnan(one), failed)
        assert failed.mean() < 0.01
        np.testing.assert_allclose(one, several, rtol=2e-4, atol=2e-6)
