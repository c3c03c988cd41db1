"""Backgrounds that are planes and quadratics: χ² against a direct fit, errors by Monte Carlo."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import hessian, interpolate, moved, scene
from scipy.optimize import minimize

from jaxchi2 import Boundary, Status, chi2_surface, register
from jaxchi2.engine.polynomial import flattened, monomials, number_of_terms, orthonormal

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
    return reference, image + noise * rng.normal(size=shape), shift, coefficients


CASES = [
    ((41,), "quadratic", "wrap", True, False),
    ((41,), "plane", "overlap", False, True),
    ((18, 17), "plane", "wrap", False, False),
    ((18, 17), "plane", "overlap", True, True),
    ((18, 17), "quadratic", "overlap", False, False),
    ((18, 17), "quadratic", "nearest", True, True),
    ((17, 18), "constant", "overlap", True, True),
    ((17, 16), "plane", Boundary("constant", value=2.0), True, False),
    ((9, 8, 10), "quadratic", "wrap", True, True),
    ((12, 11, 10), "plane", "overlap", True, False),
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
