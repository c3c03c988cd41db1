"""What must hold for any pair: symmetries of the shift."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import enable_x64
from direct import moved, scene
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxchi2

SHAPE = (20, 18)
ERR = 0.3
EXAMPLES = settings(max_examples=25, deadline=None, derandomize=True)
MODELS = [
    {"boundary": "wrap"},
    {"boundary": "overlap"},
    {"boundary": "overlap", "fit_gain": True, "fit_background": True},
]
seeds = st.integers(0, 2**31)
shifts = st.tuples(st.floats(-3, 3), st.floats(-3, 3))
models = st.sampled_from(MODELS)
compiled = {tuple(options.items()): jax.jit(partial(jaxchi2.register, **options)) for options in MODELS}


def register(reference, image, err=ERR, **options):
    return values(compiled[tuple(options.items())], reference, image, err)


def values(function, *arguments, **options):
    """What a registration in double precision finds, as NumPy arrays."""
    with enable_x64(True):
        found = function(*arguments, **options)
        fields = found._asdict() | {"stderr": found.stderr}
        return SimpleNamespace(**{name: np.asarray(x) for name, x in fields.items() if name != "runner_up"})


def pair(seed, shift):
    reference = 2 * scene(SHAPE, 3.0, seed=seed, smooth=True)
    noise = np.random.default_rng(seed + 1).normal(scale=ERR, size=SHAPE)
    return reference, moved(reference, shift) + noise


def assert_same(first, second, atol=1e-9):
    np.testing.assert_allclose(first, second, rtol=0, atol=atol)


@pytest.mark.long
@EXAMPLES
@given(seeds, shifts, models, st.floats(1e-6, 1e6))
def test_common_scale_changes_nothing(seed, shift, model, factor):
    reference, image = pair(seed, shift)
    found = register(reference, image, **model)
    scaled = register(factor * reference, factor * image, factor * ERR, **model)
    assert scaled.status == found.status
    assert_same(scaled.shift, found.shift)
    assert_same(scaled.stderr, found.stderr)
    assert_same(scaled.gain, found.gain)
    np.testing.assert_allclose(scaled.background, factor * found.background, atol=1e-7 * factor)


@EXAMPLES
@given(seeds, shifts, models, st.floats(-1e3, 1e3))
def test_common_pedestal_changes_nothing(seed, shift, model, pedestal):
    reference, image = pair(seed, shift)
    found, lifted = (
        register(reference, image, **model),
        register(reference + pedestal, image + pedestal, **model),
    )
    assert_same(lifted.shift, found.shift, 1e-8)
    assert_same(lifted.covariance, found.covariance, 1e-8)


@EXAMPLES
@given(seeds, shifts, models, st.floats(0.2, 5), st.floats(-50, 50))
def test_fitted_gain_and_background_do_not_matter(seed, shift, model, gain, background):
    if "fit_gain" in model:
        reference, image = pair(seed, shift)
        found = register(reference, image, **model)
        other = register(reference, gain * image + background, gain * ERR, **model)
        assert_same(other.shift, found.shift, 1e-8)
        np.testing.assert_allclose(other.gain, gain * found.gain, rtol=1e-8)


@pytest.mark.long
@EXAMPLES
@given(seeds, shifts, models)
def test_axes_may_be_exchanged_and_reversed(seed, shift, model):
    reference, image = pair(seed, shift)
    found = register(reference, image, **model)
    exchanged = register(reference.T, image.T, **model)
    assert_same(exchanged.shift, found.shift[::-1])
    assert_same(exchanged.covariance, found.covariance[::-1, ::-1])
    mirrored = register(reference[::-1], image[::-1], **model)
    # With unknown pixels, detail is averaged over blocks, which begin at the first line of the frame.
    atol = 1e-9 if model["boundary"] == "wrap" else 1e-4 * found.stderr.min()
    assert_same(mirrored.shift, found.shift * np.array([-1, 1]), atol)


@EXAMPLES
@given(seeds, shifts, st.tuples(st.integers(-9, 9), st.integers(-8, 8)))
def test_whole_shifts_add(seed, shift, whole):
    """Rolling a periodic image by whole pixels moves the answer by as much, up to a period."""
    reference, image = pair(seed, shift)
    found = register(reference, image, boundary="wrap")
    rolled = register(reference, np.roll(image, whole, (0, 1)), boundary="wrap")
    difference = np.asarray(rolled.shift) - np.asarray(found.shift) - whole
    assert_same(difference - np.round(difference / SHAPE) * SHAPE, 0)
    np.testing.assert_allclose(rolled.chi2, found.chi2, rtol=1e-9)


@EXAMPLES
@given(seeds, shifts)
def test_exchanging_the_images_reverses_the_shift(seed, shift):
    """With noise in both, the two play the same part."""
    reference, image = pair(seed, shift)
    reference = reference + np.random.default_rng(seed + 2).normal(scale=ERR, size=SHAPE)
    there, back = values(both, reference, image), values(both, image, reference)
    assert_same(there.shift, -back.shift)
    np.testing.assert_allclose(there.covariance, back.covariance, rtol=1e-6)


both = jax.jit(partial(jaxchi2.register, err=ERR, reference_err=ERR, boundary="wrap"))


@EXAMPLES
@given(seeds, shifts, st.tuples(st.integers(-6, 6), st.integers(-6, 6)))
def test_moving_both_windows_over_a_scene_moves_the_shift(seed, shift, steps):
    """By whole steps where the window of the image moves alone, not at all where both do."""
    large = tuple(2 * n for n in SHAPE)
    clean = 2 * scene(large, 3.0, seed=seed, smooth=True)
    noisy = moved(clean, shift) + np.random.default_rng(seed + 1).normal(scale=ERR, size=large)

    def window(array, step=(0, 0)):
        return array[tuple(slice(n // 2 + k, n // 2 + k + n) for n, k in zip(SHAPE, step, strict=True))]

    here = register(window(clean), window(noisy), boundary="overlap")
    both = register(window(clean, steps), window(noisy, steps), boundary="overlap")
    apart = register(window(clean), window(noisy, steps), boundary="overlap")
    for found, step in ((here, (0, 0)), (both, (0, 0)), (apart, steps)):
        if found.status == 0:
            assert np.all(np.abs(found.shift - np.subtract(shift, step)) < 6 * found.stderr)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seeds, shifts, st.sampled_from((1, 4)))
def test_padding_with_masked_pixels_changes_nothing(seed, shift, width):
    reference, image = pair(seed, shift)
    found = values(jaxchi2.register, reference, image, ERR, max_shift=5.0)
    wide = [np.pad(x, width, constant_values=7.0) for x in (reference, image)]
    mask = np.pad(np.zeros(SHAPE, bool), width, constant_values=True)
    padded = values(jaxchi2.register, *wide, ERR, max_shift=5.0, mask=mask, reference_mask=mask)
    assert padded.dof == found.dof
    # The grid that the reference is continued on has another size: to a fraction of the error.
    np.testing.assert_allclose(padded.shift, found.shift, rtol=0, atol=0.05 * np.max(found.stderr))
    np.testing.assert_allclose(padded.stderr, found.stderr, rtol=0.01)


@pytest.mark.long
@pytest.mark.parametrize("shape", [(30,), (12, 13, 11)])
def test_axes_in_other_dimensions(shape, x64):
    reference = scene(shape, 2.0)
    shift = np.array([1.3, -2.2, 0.6])[: len(shape)]
    image = moved(reference, shift) + np.random.default_rng(5).normal(scale=0.1, size=shape)
    find = partial(jaxchi2.register, err=0.1, boundary="overlap")
    found, turned = find(reference, image), find(reference.T, image.T)
    assert_same(turned.shift, found.shift[::-1])
