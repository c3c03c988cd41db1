"""What each bad argument gets: an error that names it, or a status."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import jaxchi2
from jaxchi2 import Boundary, Search, Status, chi2_surface, register
from jaxchi2.engine.choices import Choices

GOOD = np.random.default_rng(0).normal(size=(9, 10))
EYE = np.eye(2)


def call(reference=GOOD, image=GOOD, err=0.1, **options):
    return register(reference, image, err, **options)


# Arguments that raise: what is changed, the error, and what it must say.
REFUSED = [
    ({"reference": GOOD[:-1], "boundary": "wrap"}, ValueError, "image must have the shape of reference"),
    ({"image": GOOD[0]}, ValueError, "image must have as many axes"),
    ({"image": GOOD[0], "boundary": "wrap"}, ValueError, "image must have the shape of reference"),
    ({"reference": np.ones((2, 2, 2, 2)), "image": np.ones((2, 2, 2, 2))}, ValueError, "1, 2 or 3 axes"),
    ({"reference": 1.0, "image": 1.0}, ValueError, "1, 2 or 3 axes"),
    ({"reference": np.ones((0, 3)), "image": np.ones((0, 3))}, ValueError, "two or more pixels"),
    ({"reference": np.ones((1, 9)), "image": np.ones((1, 9))}, ValueError, "two or more pixels"),
    ({"reference": GOOD + 1j}, TypeError, "reference must be an array of real numbers"),
    ({"image": np.array([["a"] * 10] * 9)}, TypeError, "image must be an array of real numbers"),
    ({"err": np.ones(10)}, ValueError, "err must be a scalar or have the shape"),
    ({"err": 1j}, TypeError, "err must be an array of real numbers"),
    ({"weights": np.ones((9, 10))}, ValueError, "give err or weights, not both"),
    ({"err": None, "weights": np.ones(3)}, ValueError, "must be a scalar or have the shape"),
    ({"err": None, "reference_err": 0.1}, ValueError, "reference_err needs err"),
    ({"reference_err": np.ones(3)}, ValueError, "reference_err must be a scalar"),
    ({"mask": np.zeros((9, 9), bool)}, ValueError, "mask must have the shape"),
    ({"mask": np.zeros((9, 10))}, TypeError, "mask must be boolean"),
    ({"reference_mask": np.zeros(9, bool)}, ValueError, "reference_mask must have the shape"),
    ({"reference_mask": np.ones((9, 10), int)}, TypeError, "reference_mask must be boolean"),
    ({"boundary": "torus"}, ValueError, "boundary must be one of"),
    ({"boundary": None}, TypeError, "boundary must be a name or a Boundary"),
    ({"fit_gain": "yes"}, TypeError, "fit_gain must be True or False"),
    ({"fit_background": 1}, TypeError, "fit_background must be True or False"),
    ({"max_shift": 0}, ValueError, "max_shift must be positive"),
    ({"max_shift": -3.0}, ValueError, "max_shift must be positive"),
    ({"max_shift": (1.0, 2.0, 3.0)}, ValueError, "max_shift must be a scalar or hold 2"),
    ({"max_shift": "far"}, TypeError, "max_shift must be static real numbers"),
    ({"max_shift": np.nan}, ValueError, "max_shift must be positive"),
    ({"max_shift": True}, TypeError, "max_shift must be static real numbers, not True"),
    ({"max_shift": (True, 3)}, TypeError, "max_shift must be static real numbers"),
    ({"nsigma": 0.0}, ValueError, "nsigma must be a positive scalar"),
    ({"nsigma": np.ones(2)}, ValueError, "nsigma must be a positive scalar"),
    ({"clip": 0.5}, ValueError, "clip must be a number of standard deviations above 1"),
    ({"clip": True}, TypeError, "clip must be"),
    ({"clip": "5"}, TypeError, "clip must be"),
    ({"search": 3.0}, TypeError, "search must be a Search"),
    ({"search": Search(initial=[1.0])}, ValueError, "initial must hold one value per axis"),
    ({"search": Search(fixed=(1.0, 2.0))}, ValueError, "fixed must leave an axis"),
    ({"search": Search(fixed=(1.0,))}, ValueError, "fixed must hold a shift or None for each of 2"),
    ({"search": Search(fixed=0)}, ValueError, "fixed must hold a shift or None"),
    ({"err": None, "search": Search(prior=([0.0, 0.0], EYE))}, ValueError, "prior needs err or weights"),
    ({"search": Search(prior=[1.0, 2.0, 3.0])}, TypeError, "prior must be a mean and a covariance"),
    ({"search": Search(prior=([0.0], EYE))}, ValueError, "prior must have a mean of shape (2,)"),
    ({"search": Search(prior=([0.0, 0.0], [1.0, 1.0]))}, ValueError, "covariance of shape (2, 2)"),
]


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_refused(changes, error, words):
    with pytest.raises(error, match=re.escape(words)):
        call(**changes)


@pytest.mark.parametrize(("changes", "error", "words"), REFUSED)
def test_refused_by_the_surface(changes, error, words):
    if not {"clip", "nsigma"} & set(changes):
        with pytest.raises(error, match=re.escape(words)):
            chi2_surface(**{"reference": GOOD, "image": GOOD, "err": 0.1, **changes})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "torus"}, "boundary must be one of"),
        ({"name": "fill", "value": np.nan}, "must be a finite number"),
        ({"name": "overlap", "min_overlap": 0.0}, "min_overlap must be a number in (0, 1]"),
        ({"name": "overlap", "min_overlap": 1.5}, "min_overlap must be a number in (0, 1]"),
    ],
)
def test_bad_boundaries_are_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Boundary(**options)


# Values that do not raise: what is changed, and the status flag.
FLAGGED = [
    ({"image": np.full_like(GOOD, 2.0)}, Status.FLAT),
    ({"reference": np.full_like(GOOD, 2.0)}, Status.FLAT),
    ({"image": np.full_like(GOOD, np.nan)}, Status.NO_DATA),
    ({"err": 0.0}, Status.NO_DATA),
    ({"err": -1.0}, Status.NO_DATA),
    ({"err": np.nan}, Status.NO_DATA),
    ({"reference_err": -0.1}, Status.NO_DATA),
    ({"reference_err": np.nan}, Status.NO_DATA),
    ({"err": None, "weights": 0.0}, Status.NO_DATA),
    ({"err": None, "weights": np.full_like(GOOD, np.nan)}, Status.NO_DATA),
    ({"mask": np.ones_like(GOOD, bool)}, Status.NO_DATA),
    ({"image": np.random.default_rng(5).normal(size=GOOD.shape)}, Status.UNRELATED),
    ({"image": np.roll(GOOD, 1, 0) + 5, "reference": GOOD}, Status.BAD_FIT),
]


@pytest.mark.long
@pytest.mark.parametrize(("changes", "flag"), FLAGGED)
def test_flagged(changes, flag):
    found = call(**{"boundary": "wrap", **changes})
    assert Status(int(found.status)) & flag
    if flag not in (Status.UNRELATED, Status.BAD_FIT):
        assert jnp.all(jnp.isnan(found.shift))
        assert jnp.all(jnp.isnan(found.stderr))


@pytest.mark.parametrize("limit", [np.inf, 1e9])
def test_a_limit_beyond_the_frames_is_none(limit):
    window = {b: Choices.of(b, max_shift=limit).plan((9, 10), (8, 12)).window for b in ("overlap", "fill")}
    # Whatever lies further away has no pixel in common.
    assert window["overlap"] == ((-8, 7), (-9, 11))
    assert window["fill"] == ((-8, 8), (-12, 12))
    found = call(np.roll(GOOD, 1, 0), max_shift=(limit, 2), boundary="wrap")
    np.testing.assert_allclose(found.shift, (-1, 0), atol=1e-5)


def test_every_flag_has_a_message():
    for flag in Status:
        if flag:
            assert flag.message
    assert Status.OK.message == "ok"
    assert Status(jaxchi2.Status.UNRELATED | Status.AMBIGUOUS).message.count(";") == 1


@pytest.mark.long
def test_inputs_are_not_modified():
    reference, image, mask = GOOD.copy(), np.roll(GOOD, 1, 0), GOOD > 2
    err, weights = np.full_like(GOOD, 0.1), np.full_like(GOOD, 9.0)
    kept = [x.copy() for x in (reference, image, mask, err, weights)]
    register(reference, image, err, mask=mask, reference_mask=mask, reference_err=err, clip=5.0)
    register(reference, image, weights=weights, fit_gain=True)
    for before, after in zip(kept, (reference, image, mask, err, weights), strict=True):
        np.testing.assert_array_equal(before, after)
