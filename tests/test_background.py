"""Backgrounds that are planes and quadratics: χ² against a direct fit, errors by Monte Carlo."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64
from direct import hessian, interpolate, moved, scene

from jaxchi2 import Boundary, Status, chi2_surface, fit, register, register_stack
from jaxchi2.cli.common import Parser, add_registration_options
from jaxchi2.engine.choices import Choices
from jaxchi2.engine.polynomial import monomials, number_of_terms, orthonormal, pixel_coordinates

DEGREES = {"constant": 0, "plane": 1, "quadratic": 2}


def offsets(shape):
    return np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")


def columns(shape, form):
    """1, y, x, y², yx, x² … on a frame, about its centre."""
    places, degree = offsets(shape), DEGREES[form]
    result = [np.ones(shape), *(places if degree else [])]
    if degree > 1:
        result += [places[a] * places[b] for a in range(len(shape)) for b in range(a, len(shape))]
    return result


def background(shape, coefficients, form):
    return sum(c * x for c, x in zip(coefficients, columns(shape, form), strict=True))


def on_grid(x, terms, outside):
    """Pixels of the image where they lie on the grid of the terms."""
    corner, shape = np.asarray(terms.pixels.corner), terms.pixels.shape
    result = np.full(shape, outside)
    places = np.indices(x.shape).reshape(x.ndim, -1) + corner[:, None]
    if not terms.plan.boundary.overlap:
        places %= np.array(shape)[:, None]
    inside = np.all((places >= 0) & (places < np.array(shape)[:, None]), axis=0)
    result[tuple(places[:, inside])] = x.ravel()[inside]
    return result


def best(terms, image, shift, form, gain):
    """Least χ² at a shift over gain and background, and these, by linear least squares on the pixels."""
    pixels, units = terms.pixels, terms.units
    weight = np.sqrt(np.asarray(pixels.weights)) / float(units.scale)
    reference = np.fft.irfftn(np.asarray(pixels.reference), pixels.shape, range(image.ndim))
    reference = reference * float(units.scale) + float(units.reference_offset)
    since = np.asarray(shift) - np.asarray(terms.series.origin)
    model = interpolate(reference, [np.arange(n) - s for n, s in zip(pixels.shape, since, strict=True)])
    design = [on_grid(x, terms, 0.0) for x in columns(image.shape, form)]
    target = on_grid(np.where(np.isfinite(image), image, 0.0), terms, 0.0)
    design, target = ([model, *design], target) if gain else (design, target - model)
    design = np.stack([(x * weight).ravel() for x in design], 1)
    target = (target * weight).ravel()
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    return np.sum((target - design @ solution) ** 2), solution


def pair(shape, form, gain=1.0, noise=0.2, seed=0, steepness=1.0, periodic=True):
    """A scene and an image of it with a background."""
    rng = np.random.default_rng(seed)
    shift = np.array([1.4, -2.3, 0.7])[: len(shape)]
    reference = 3 + scene(shape, 2.0, seed=seed, smooth=not periodic)
    coefficients = steepness * rng.normal(size=len(columns(shape, form)))
    coefficients /= np.max(np.abs(columns(shape, form)), axis=tuple(range(1, len(shape) + 1)))
    image = gain * moved(reference, shift) + background(shape, coefficients, form)
    # Of the seed of the scene it would have the spectrum of the scene.
    return (
        reference,
        image + noise * np.random.default_rng(seed + 1000).normal(size=shape),
        shift,
        coefficients,
    )


CASES = [
    ((41,), "quadratic", "wrap", True, False),
    ((41,), "plane", "overlap", False, True),
    ((18, 17), "plane", "wrap", False, False),
    ((18, 17), "plane", "overlap", True, True),
    ((18, 17), "quadratic", "overlap", False, False),
    ((17, 18), "constant", "overlap", True, True),
    ((12, 11, 10), "plane", "overlap", True, False),
    *(
        pytest.param(*case, marks=pytest.mark.long)
        for case in (
            ((18, 17), "quadratic", "nearest", True, True),
            ((17, 16), "plane", Boundary("constant", value=2.0), True, False),
            ((9, 8, 10), "quadratic", "wrap", True, True),
        )
    ),
]


@pytest.mark.parametrize(("shape", "form", "boundary", "gain", "masked"), CASES)
def test_profiled_chi2_is_the_least_in_gain_and_polynomial(shape, form, boundary, gain, masked, x64):
    reference, image, shift, _ = pair(shape, form, 1.7 if gain else 1.0, steepness=20.0)
    rng = np.random.default_rng(1)
    err = 0.2 * rng.uniform(0.5, 2.0, shape) if masked else 0.2
    if masked:
        image[rng.random(shape) < 0.1] = np.nan
        if boundary == "overlap":
            reference[rng.random(shape) < 0.02] = np.nan
    options = {"boundary": boundary, "fit_gain": gain, "fit_background": form}
    surface = chi2_surface(reference, image, err, **options)
    expected = partial(best, surface.terms, image, form=form, gain=gain)
    here = np.round(shift) if surface.terms.plan.boundary.overlap else np.zeros(len(shape))
    np.testing.assert_array_equal(surface.terms.series.origin, here)
    for place in (shift, shift + 0.4):
        np.testing.assert_allclose(surface(place), expected(place)[0], rtol=1e-9)
    found = jax.jit(partial(register, **options))(reference, image, err)
    at = np.asarray(found.shift)
    least, solution = expected(at)
    np.testing.assert_allclose(found.chi2, least, rtol=1e-9)
    if gain:
        np.testing.assert_allclose(found.gain, solution[0], rtol=1e-8)
    np.testing.assert_allclose(found.background_coefficients, solution[int(gain) :], rtol=1e-6, atol=1e-9)
    assert found.background == found.background_coefficients[0]
    assert found.dof == np.sum(np.asarray(surface.terms.pixels.weights) > 0) - len(shape) - len(solution)
    # The minimum is where a step of Newton's method, by differences, leads nowhere.
    step = 1e-3
    for d in step * np.eye(len(shape)):
        up, down = (expected(at + side * d)[0] - least for side in (1, -1))
        assert up + down > 0
        assert abs(up - down) * step / (2 * (up + down)) < 1e-6


def of_weights(weights, degree):
    weights = jnp.asarray(weights)
    corner = jnp.zeros(weights.ndim, jnp.int32)
    return orthonormal(weights, degree, pixel_coordinates(weights.shape, corner, False, weights.dtype))


@pytest.mark.parametrize("shape", [(300,), (40, 50), (9, 11, 10)])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_polynomials_are_orthonormal(shape, degree, dtype):
    """Also where a corner of the frame is all that counts."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 1.0, shape) * (rng.random(shape) < 0.8)
    weights *= np.add.reduce(np.meshgrid(*(np.arange(n) / n for n in shape), indexing="ij")) < len(shape) / 2
    found = of_weights(weights.astype(dtype), degree)
    functions = np.asarray(found.functions(), float)
    assert len(functions) == number_of_terms(len(shape), degree) == found.number
    flat = functions.reshape(len(functions), -1)
    products = (flat * weights.ravel()) @ flat.T
    np.testing.assert_allclose(products, np.eye(len(products)), atol=300 * np.finfo(dtype).eps)
    coefficients = rng.normal(size=len(functions)).astype(dtype)
    values = np.broadcast_to(found.values(coefficients), shape)
    expected = np.tensordot(coefficients, functions, 1)
    np.testing.assert_allclose(values, expected, atol=1e3 * np.finfo(dtype).eps)
    # The same polynomial in plain pixel coordinates.
    places, powers = np.indices(shape), monomials(len(shape), degree)
    plain = [np.prod([x**p for x, p in zip(places, row, strict=True)], axis=0) for row in powers]
    again = np.tensordot(np.asarray(found.in_pixels(coefficients), float), plain, 1)
    np.testing.assert_allclose(again, values, atol=1e4 * np.finfo(dtype).eps)
    image = np.tensordot(rng.normal(size=len(plain)), plain, 1).astype(dtype)
    left = np.asarray(found.rest(image, weights.astype(dtype))) * (weights > 0)
    assert np.abs(left).max() < 100 * np.finfo(dtype).eps * np.abs(image).max()


def a_line(x, y):
    return y == 5


def two_lines(x, y):
    return (y == 5) | (y == 9)


@pytest.mark.parametrize(
    ("counts", "numbers"),
    [
        (a_line, (1, 2, 3)),
        (two_lines, (1, 3, 5)),
        (lambda x, y: x == y, (1, 2, 3)),
        (lambda x, y: (x == 3) & (y == 4), (1, 1, 1)),
        (lambda x, y: x < 0, (0, 0, 0)),
    ],
)
def test_what_few_pixels_cannot_tell_is_left_out(counts, numbers, dtype):
    y, x = np.indices((30, 40))
    weights = counts(x, y).astype(dtype)
    image = np.random.default_rng(0).normal(size=weights.shape).astype(dtype)
    for degree, number in enumerate(numbers):
        found = of_weights(weights, degree)
        assert found.number == number
        left = np.asarray(found.rest(image, weights))
        assert np.isfinite(left).all()
        design = np.stack([np.sqrt(weights) * x**p * y**q for q, p in monomials(2, degree)], -1).astype(float)
        best = np.linalg.lstsq(design.reshape(-1, design.shape[-1]), (image * weights).ravel(), rcond=None)[0]
        expected = np.sum((image * weights - design @ best) ** 2)
        np.testing.assert_allclose(np.sum(weights * left**2), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("form", "boundary"),
    [
        ("quadratic", "overlap"),
        pytest.param("quadratic", "wrap", marks=pytest.mark.long),
        ("plane", "wrap"),
        pytest.param("plane", "overlap", marks=pytest.mark.long),
    ],
)
def test_errors_are_those_of_all_parameters_together(form, boundary, x64):
    """The inverse of the Fisher matrix, by central differences; of the background at the image's centre."""
    shape = (18, 17)
    reference, image, _, _ = pair(shape, form, 1.3, steepness=5.0)
    options = {"boundary": boundary, "fit_gain": True, "fit_background": form}
    found = jax.jit(partial(register, **options))(reference, image, 0.2)
    terms = chi2_surface(reference, image, 0.2, **options).terms
    pixels, units = terms.pixels, terms.units
    grid = np.fft.irfftn(np.asarray(pixels.reference), pixels.shape, (0, 1))
    grid = grid * float(units.scale) + float(units.reference_offset)
    weights = np.asarray(pixels.weights) / float(units.scale) ** 2
    design = np.stack([on_grid(x, terms, 0.0) for x in columns(shape, form)])
    data = on_grid(image, terms, 0.0)

    def chi2(parameters):
        since = parameters[:2] - np.asarray(terms.series.origin)
        model = interpolate(grid, [np.arange(n) - s for n, s in zip(pixels.shape, since, strict=True)])
        return np.sum(weights * (data - parameters[2] * model - np.tensordot(parameters[3:], design, 1)) ** 2)

    at = np.concatenate([found.shift, found.gain[None], found.background_coefficients])
    covariance = 2 * np.linalg.inv(hessian(chi2, at, 1e-3))
    np.testing.assert_allclose(found.covariance, covariance[:2, :2], rtol=1e-5)
    np.testing.assert_allclose(found.nuisance_covariance, covariance[2:4, 2:4], rtol=1e-5)


@pytest.mark.parametrize(
    ("boundary", "mapped"), [("wrap", False), ("overlap", True)], ids=["wrap", "overlap, error map"]
)
def test_derivatives(boundary, mapped, x64):
    """Of shift, errors and background in image and error, by finite differences."""
    shape = (16, 15)
    reference, image, _, _ = pair(shape, "quadratic", 1.2, steepness=10.0)
    err = 0.2 * np.random.default_rng(3).uniform(0.5, 2, shape) if mapped else np.asarray(0.2)

    @jax.jit
    def values(reference, image, err):
        options = {"boundary": boundary, "fit_gain": True, "fit_background": "quadratic"}
        found = register(reference, image, err, verdict=False, **options)
        return jnp.concatenate(
            [
                found.shift,
                jnp.diagonal(found.covariance),
                found.chi2[None],
                found.gain[None],
                found.background_coefficients,
                jnp.diagonal(found.nuisance_covariance),
            ]
        )

    rng = np.random.default_rng(4)
    arguments = tuple(map(jnp.asarray, (reference, image, err)))
    towards = tuple(0.01 * jnp.asarray(rng.normal(size=x.shape)) for x in arguments)
    _, derivative = jax.jvp(values, arguments, towards)
    step = 1e-3
    up, down = (
        values(*(x + side * step * t for x, t in zip(arguments, towards, strict=True))) for side in (1, -1)
    )
    expected = (up - down) / (2 * step)
    np.testing.assert_allclose(derivative, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("boundary", ["wrap", "overlap"])
def test_float32_is_enough_for_a_steep_sky(boundary):
    """A background of ten thousand times the noise across the frame, of the image alone."""
    reference, image, shift, coefficients = pair((48, 48), "quadratic", noise=0.1, steepness=1000.0)
    options = {"boundary": boundary, "fit_gain": True, "fit_background": "quadratic"}
    with enable_x64(True):
        exact = jax.tree.map(np.asarray, register(reference, image, 0.1, **options))
    found = register(*(np.float32(x) for x in (reference, image, 0.1)), **options)
    assert exact.status == found.status == Status.OK
    np.testing.assert_allclose(found.shift, exact.shift, atol=0.02 * exact.stderr.min())
    np.testing.assert_allclose(found.stderr, exact.stderr, rtol=1e-3)
    np.testing.assert_allclose(found.chi2, exact.chi2, rtol=1e-3)
    np.testing.assert_allclose(found.background, exact.background, atol=0.05 * exact.background_err)
    assert np.all(np.abs(exact.shift - shift) < 5 * exact.stderr)
    frame = background(image.shape, coefficients, "quadratic")
    np.testing.assert_allclose(found.background_image(image.shape), frame, atol=0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"boundary": "overlap"},
        pytest.param({"boundary": "wrap"}, marks=pytest.mark.long),
        pytest.param({"errors": "sandwich"}, marks=pytest.mark.long),
    ],
)
def test_frames_of_a_stack_have_backgrounds_of_their_own(options, x64):
    reference, first, _, _ = pair((30, 28), "plane", 1.1, steepness=30.0, periodic=False)
    second = moved(reference, (-1.2, 0.4)) + np.random.default_rng(5).normal(size=first.shape)
    frames = np.stack([first, second])
    options = options | {"fit_gain": True, "fit_background": "plane"}
    found = register_stack(frames, reference, 0.2, **options)
    for k, frame in enumerate(frames):
        alone = jax.jit(partial(register, **options))(reference, frame, 0.2)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-6, atol=1e-8)
    images = found.background_image(first.shape)
    np.testing.assert_allclose(images[1], alone.background_image(first.shape), rtol=1e-5, atol=1e-7)


def test_larger_frames_have_the_centre_of_the_image(x64):
    """Outside jit cutouts are put into frames of few shapes; the background is about their own centre."""
    reference, image, _, coefficients = pair((41, 45), "plane", steepness=20.0, periodic=False)
    found = register(reference, image, 0.2, fit_background="plane")
    assert np.abs(found.background - coefficients[0]) < 5 * found.background_err
    np.testing.assert_allclose(found.background_coefficients[1:], coefficients[1:], rtol=0.01)
    constant = register(reference, image, 0.2, fit_background="constant")
    assert constant.background_coefficients.shape == (1,)


def blobs(rng, count, shifts, size=64):
    """Gaussians of sigma 1.5 to 4 pixels in frames that are displaced."""
    y, x = np.indices((size, size)).astype(float)
    parameters = rng.uniform(0, 1, (count, 4))
    return [
        sum(
            (0.3 + 0.7 * a)
            * np.exp(-((y - size * u - s[0]) ** 2 + (x - size * v - s[1]) ** 2) / (2 * (1.5 + 2.5 * r) ** 2))
            for u, v, r, a in parameters
        )
        for s in shifts
    ]


@pytest.mark.long
def test_a_gradient_of_one_image_neither_moves_the_shift_nor_hides_it():
    """Cells on a sky that rises by as much as they do, and by fifty times that; no errors given."""
    rng = np.random.default_rng(0)
    draws, true = 20, rng.uniform(-12, 12, (20, 2))
    pairs = np.array([blobs(rng, 40, ((0, 0), s)) for s in true])
    level = pairs[:, :1].std(axis=(2, 3), keepdims=True)
    pairs[:, 1:] += 0.1 * level * rng.normal(size=pairs[:, 1:].shape)
    rise = level * np.linspace(-1, 1, 64)[:, None]
    solve = jax.jit(jax.vmap(partial(register, fit_background="plane")))
    for height in (0.5, 25.0):
        frames = pairs + height * rise * np.array([0, 1])[None, :, None, None]
        found = jax.tree.map(np.asarray, solve(*np.float32(frames).swapaxes(0, 1)))
        pulls = (found.shift - true) / found.stderr
        assert (found.status == Status.OK).all()
        assert np.abs(pulls).max() < 5
        slope = found.background_coefficients[:, 1] * 31.5 / (height * level.reshape(draws))
        np.testing.assert_allclose(slope, 1.0, atol=0.1 / height)


@pytest.mark.long
@pytest.mark.parametrize(
    ("boundary", "errors"), [("wrap", "model"), ("overlap", "model"), ("wrap", "sandwich")]
)
@pytest.mark.parametrize("form", ["plane", "quadratic"])
def test_pulls(form, boundary, errors):
    """400 draws of a scene with a sky of fifty σ: of shift, gain and background; and χ²."""
    rng = np.random.default_rng(6)
    draws, shape = 400, (32, 32)
    reference = 10 * scene(shape, 3.0, seed=1, smooth=True)
    shifts = rng.uniform(-2, 2, (draws, 2))
    frames = np.array([1.2 * moved(reference, s) for s in shifts]) + rng.normal(size=(draws, *shape))
    coefficients = 25 * rng.normal(size=len(columns(shape, form)))
    coefficients /= np.max(np.abs(columns(shape, form)), axis=(1, 2))
    frames += background(shape, coefficients, form)
    options = {"boundary": boundary, "errors": errors, "fit_gain": True, "fit_background": form}
    solve = partial(register, np.float32(reference), err=np.float32(1.0), verdict=False, **options)
    found = jax.jit(lambda x: jax.lax.map(solve, x, batch_size=20))(np.float32(frames))
    found = jax.tree.map(np.asarray, found)
    ok = found.status & ~int(Status.CONTRADICTED) == 0
    assert ok.all()
    pulls = [*((found.shift - shifts) / found.stderr).T, (found.gain - 1.2) / found.gain_err]
    pulls.append((found.background - coefficients[0]) / found.background_err)
    # The scatter of a root mean square of 400 is 0.035; errors from residuals have some of their own.
    slack = 5 * np.sqrt(0.5 / draws) + (0.05 if errors == "sandwich" else 0.0)
    for pull in pulls:
        assert abs(np.sqrt(np.mean(pull**2)) - 1) < slack
        assert abs(np.mean(pull)) < 5 / np.sqrt(draws)
    reduced = found.reduced_chi2
    assert abs(np.mean(reduced) - 1) < 5 * np.sqrt(2 / found.dof.mean() / draws) + 0.002


def test_there_is_no_price_beyond_the_information(x64):
    """Errors are those of an image without a gradient, less what planes say of the shift."""
    reference, image, _, _ = pair((40, 38), "constant", seed=2)
    find = partial(register, reference, err=0.2, boundary="wrap")
    constant, plane = (find(image, fit_background=form) for form in (True, "plane"))
    steeper = image + background(image.shape, [5.0, 0.3, -0.2], "plane")
    again = find(steeper, fit_background="plane")
    np.testing.assert_allclose(again.shift, plane.shift, atol=1e-9)
    np.testing.assert_allclose(again.stderr, plane.stderr, rtol=1e-9)
    np.testing.assert_allclose(again.chi2, plane.chi2, rtol=1e-9)
    assert np.all(plane.stderr >= constant.stderr * (1 - 1e-9))
    assert np.all(plane.stderr < 1.05 * constant.stderr)
    assert constant.chi2 - 30 < plane.chi2 < constant.chi2


@pytest.mark.parametrize(("which", "boundary"), [(0, "overlap"), (1, "overlap"), (1, "wrap")])
def test_nothing_but_a_plane_is_flat(which, boundary):
    frames = list(pair((32, 32), "constant", periodic=False)[:2])
    frames[which] = background((32, 32), [3.0, 0.5, -0.2], "plane")
    found = register(*map(np.float32, frames), 0.2, boundary=boundary, fit_background="plane")
    assert found.status & Status.FLAT
    assert np.isnan(found.shift).all()


def test_words_for_a_background():
    frame = scene((16, 16))
    assert Choices.of(fit_background=True) == Choices.of(fit_background="constant")
    for wrong, error in (("planes", ValueError), ("", ValueError), (1, TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"fit_background must be True or False, or one of \('constant', "):
            register(frame, frame, fit_background=wrong)
    with pytest.raises(ValueError, match="fit_background must be True, 'constant' or False in a fit"):
        fit(frame, frame, fit_background="plane")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((), False), (("--fit-background",), True), (("--background", "quadratic"), "quadratic")],
)
def test_command_line(given, wanted):
    parser = Parser()
    add_registration_options(parser, "the image", "the reference")
    assert parser.parse_args(given).fit_background == wanted
    with pytest.raises(SystemExit):
        parser.parse_args([*given, "--fit-background", "--background", "plane"])
