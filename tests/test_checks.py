"""Every argument of every public function, replaced in turn by what it cannot be: an error that names it.

The table has one good call of each function and the kind of each of its arguments; a kind has a list of bad
values. A bad one raises at the door, before anything is compiled, so thousands of calls take seconds.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxchi2
from jaxchi2 import Boundary, Descent, GaussNewton, Rigid, Search, Shift, fourier

IMAGE = np.random.default_rng(0).normal(size=(8, 8))
STACK = np.random.default_rng(1).normal(size=(3, 8, 8))
LINE = IMAGE[0]
SURFACE = jaxchi2.chi2_surface(IMAGE, IMAGE, 0.1, boundary="wrap")

# What is no number, no array, no word, no function and no switch.
RAGGED = [[1.0], [1.0, 2.0]]
JUNK = [{}, object(), b"x", {1.0}, ["a", "b"], [None], RAGGED, np.array([{}]), iter(())]
TEXT, FUNCTION, NOTHING = ["far"], [len], [None]
NOT_REAL = [*JUNK, *TEXT, *FUNCTION, 1j, np.ones((8, 8)) + 1j, np.array(["a"]), np.datetime64("2020-01-01")]
NUMBERS = [7, 0.5, np.nan, np.ones(2), jnp.ones(())]
EMPTY, MANY_AXES = [np.zeros(0), np.zeros((8, 0))], [np.ones((2, 2, 2, 2, 2))]
LISTS = [[1.0, 2.0, 3.0], np.ones((2, 2, 2))]

SCALAR = [*NOT_REAL, *NOTHING, *LISTS, *EMPTY, True]
POSITIVE = [*SCALAR, 0.0, -1.0, np.nan]
LIMIT = [*NOT_REAL, *LISTS, *EMPTY, True, 0, -1.0, np.nan, [1.0, -1.0]]
IMAGES = [*NOT_REAL, *NOTHING, *EMPTY, *MANY_AXES, 1.0]
ANY_IMAGE = [*NOT_REAL, *NOTHING, *EMPTY, 1.0]
PIXELS = [*NOT_REAL, *EMPTY, *MANY_AXES, np.ones(5), np.ones((3, 8)), np.ones((1, 8, 8))]
MASK = [*NOT_REAL, *EMPTY, *MANY_AXES, IMAGE, np.ones((8, 8), int), np.ones((8, 7), bool), 1, True]
FLAG = [*JUNK, *TEXT, *FUNCTION, *NOTHING, *NUMBERS, 1, 0, 1j, np.array([True, False])]
CHOICE = [*JUNK, *TEXT, *FUNCTION, *NOTHING, *NUMBERS, 1j, True, ["wrap"], ("mean",)]
COUNT = [*NOT_REAL, *LISTS, *EMPTY, True, 0, -1, 1.5, np.nan, np.inf, 2.5]
PER_AXIS = [
    *NOT_REAL,
    *NOTHING,
    *EMPTY,
    *MANY_AXES,
    True,
    [True, False],
    [1.0, 2.0, 3.0],
    np.ones((2, 2)),
    1.0,
]
SIZES = [*NOT_REAL, *EMPTY, *LISTS, True, [1.5, 2.5], [0, 3], [-1, 2], 0, [True, True]]
SEARCH = [*NOT_REAL, *NOTHING, *NUMBERS, IMAGE, True, Search]
BOUNDARY = [*CHOICE, Boundary]

REGISTER = {
    "reference": IMAGES,
    "image": IMAGES,
    "err": PIXELS,
    "reference_err": PIXELS,
    "weights": PIXELS,
    "mask": MASK,
    "reference_mask": MASK,
    "boundary": BOUNDARY,
    "fit_gain": FLAG,
    "fit_background": FLAG,
    "max_shift": LIMIT,
    "search": SEARCH,
    "clip": [*NOT_REAL, *LISTS, *EMPTY, True, 0.5, 1, -3, np.nan],
    "nsigma": POSITIVE,
    "verdict": FLAG,
}
PAIR = {"reference": IMAGE, "image": IMAGE, "err": 0.1, "boundary": "wrap"}
SEED = {"im1": IMAGE, "im2": IMAGE, "err": 0.1}
SEED_KINDS = {
    "im1": [*IMAGES, LINE, STACK],
    "im2": [*IMAGES, LINE, STACK],
    "err": PIXELS,
    "boundary": [x for x in CHOICE if x is not None],
    "zeromean": FLAG,
    "verbose": FLAG,
    "return_error": FLAG,
    "return_chi2array": FLAG,
}
WITHOUT_WEIGHTS = {k: v for k, v in REGISTER.items() if k != "weights"}
BOTH = (*PAIR, "max_shift", "mask", "reference_mask", "fit_gain", "fit_background")
RIGID = Rigid(jnp.zeros(2), jnp.zeros(()))
MOTION = [
    *NOT_REAL,
    *EMPTY,
    *MANY_AXES,
    True,
    [1.0, 2.0, 3.0],
    1.0,
    RIGID,
    Shift(jnp.zeros(3)),
    Shift("a"),
    Shift,
]
FRAMES = [*ANY_IMAGE, IMAGE, np.ones((2, 2, 2, 2, 2)), np.zeros((0, 8, 8))]
GRIDS = [*(x for x in NOT_REAL if x is not RAGGED), *NOTHING, *EMPTY, 1.0, True]

# Name: the function, a good call, and the bad values of each argument.
CALLS = {
    "register": (jaxchi2.register, PAIR, WITHOUT_WEIGHTS),
    "register weights": (jaxchi2.register, {**PAIR, "err": None}, {"weights": PIXELS}),
    "register overlap": (jaxchi2.register, {**PAIR, "boundary": "overlap"}, WITHOUT_WEIGHTS),
    "chi2_surface": (
        jaxchi2.chi2_surface,
        PAIR,
        {k: REGISTER[k] for k in (*BOTH, "search", "reference_err")},
    ),
    "chi2_surface weights": (jaxchi2.chi2_surface, {**PAIR, "err": None}, {"weights": PIXELS}),
    "Chi2Surface()": (SURFACE, {"shift": [0.0, 0.0]}, {"shift": PER_AXIS}),
    "Chi2Surface.zoom": (
        SURFACE.zoom,
        {"center": [0.0, 0.0], "spacing": 0.1, "shape": (3, 3)},
        {
            "center": PER_AXIS,
            "spacing": [*NOT_REAL, *NOTHING, *EMPTY, *LISTS, True],
            "shape": [*SIZES, *NOTHING, 3, (3, 3, 3), (3,)],
        },
    ),
    "Chi2Surface.interval": (SURFACE.interval, {}, {"nsigma": POSITIVE, "nfitted": [*COUNT, *NOTHING]}),
    "Chi2Surface.contour": (
        SURFACE.contour,
        {},
        {"nsigma": POSITIVE, "n": [*COUNT, *NOTHING, 2], "nfitted": [*COUNT, *NOTHING]},
    ),
    "Chi2Surface.profile": (
        SURFACE.profile,
        {"axis": 0, "positions": [0.0]},
        {
            "axis": [*NOT_REAL, *NOTHING, *EMPTY, *LISTS, True, 2, -3, 0.5, np.nan],
            "positions": [*NOT_REAL, *NOTHING, *MANY_AXES, IMAGE, True],
        },
    ),
    "Chi2Surface.peaks": (SURFACE.peaks, {}, {"n": [*COUNT, *NOTHING, 1]}),
    "Chi2Surface.posterior": (SURFACE.posterior, {}, {"temperature": POSITIVE}),
    "Chi2Surface.posterior_mean": (SURFACE.posterior_mean, {}, {"temperature": POSITIVE}),
    "align": (
        jaxchi2.align,
        {"image": IMAGE, "shift": [1.0, 0.0]},
        {
            "image": ANY_IMAGE,
            "shift": [*PER_AXIS, RIGID._replace(angle=jnp.zeros(2)), Shift("a"), Shift],
            "interpolation": CHOICE,
            "boundary": BOUNDARY,
        },
    ),
    "align_stack": (
        jaxchi2.align_stack,
        {"stack": STACK, "shift": np.zeros((3, 2))},
        {
            "stack": FRAMES,
            "shift": [*NOT_REAL, *NOTHING, *EMPTY, np.zeros(2), np.zeros((2, 2)), True, 1.0],
            "variance": [*NOT_REAL, *NOTHING, *EMPTY, *MANY_AXES, np.ones(4), np.ones((3, 7, 8)), True],
            "mask": MASK,
            "interpolation": CHOICE,
            "boundary": BOUNDARY,
            "batch_size": COUNT,
        },
    ),
    "combine": (
        jaxchi2.combine,
        {"images": STACK},
        {
            "images": [*ANY_IMAGE, LINE],
            "variance": [*NOT_REAL, *NOTHING, *EMPTY, *MANY_AXES, np.ones(4), np.ones((3, 7, 8)), True],
            "method": CHOICE,
            "clip": POSITIVE,
        },
    ),
    "fit": (
        jaxchi2.fit,
        PAIR,
        {k: REGISTER[k] for k in BOTH}
        | {
            "model": CHOICE,
            "interpolation": [x for x in CHOICE if x is not None],
            "optimizer": [*NOT_REAL, *NOTHING, *NUMBERS, True, GaussNewton, optax.adam],
            "loss": CHOICE,
            "loss_scale": POSITIVE,
            "initial": MOTION,
            "bounds": [
                *NOT_REAL,
                *NUMBERS,
                (Shift(jnp.zeros(2)),),
                (Shift(jnp.zeros(2)), RIGID),
                ("a", "b"),
                (None, None),
            ],
        },
    ),
    "fit rigid": (
        jaxchi2.fit,
        {**PAIR, "model": "rigid"},
        {"initial": [*NOT_REAL, Shift(jnp.zeros(2)), RIGID._replace(angle="a"), RIGID._replace(shift=None)]},
    ),
    "fit weights": (jaxchi2.fit, {**PAIR, "err": None}, {"weights": PIXELS}),
    "register_stack": (
        jaxchi2.register_stack,
        {"stack": STACK, "reference": "first", "err": 0.1, "boundary": "wrap"},
        {k: v for k, v in WITHOUT_WEIGHTS.items() if k not in ("reference", "image")}
        | {
            "stack": FRAMES,
            "reference": [*IMAGES, LINE, np.ones((2, 8, 8))],
            "static_pattern": FLAG,
            "batch_size": COUNT,
            "memory_limit": COUNT,
            "mesh": [*NOT_REAL, *NUMBERS, True],
        },
    ),
    "register_jointly": (
        jaxchi2.register_jointly,
        {"stack": STACK, "err": 0.1, "boundary": "wrap"},
        {
            "stack": [*FRAMES, STACK[:2]],
            "err": PIXELS,
            "reference": [*IMAGES, LINE, "previous"],
            "mask": MASK,
            "boundary": BOUNDARY,
            "max_shift": LIMIT,
            "drift": [*NOT_REAL, *EMPTY, *LISTS, True],
            "static_pattern": FLAG,
            "errors": CHOICE,
            "min_p_value": [*SCALAR, -0.1, 2.0, np.nan],
            "tolerance": POSITIVE,
            "max_rounds": [*COUNT, *NOTHING],
            "batch_size": COUNT,
        },
    ),
    "register_and_align": (
        jaxchi2.register_and_align,
        {"reference": IMAGE, "images": STACK, "err": 0.1, "boundary": "wrap"},
        {k: v for k, v in WITHOUT_WEIGHTS.items() if k != "image"}
        | {
            "images": [*NOT_REAL, *NOTHING, *EMPTY, LINE, 1.0],
            "interpolation": CHOICE,
            "outside": [x for x in BOUNDARY if x is not None],
            "fill": SCALAR,
        },
    ),
    "estimate_noise": (jaxchi2.estimate_noise, {"image": IMAGE}, {"image": ANY_IMAGE}),
    "delta_chi2": (
        jaxchi2.delta_chi2,
        {"nsigma": 1.0},
        {
            "nsigma": [*NOT_REAL, *NOTHING, True, 0.0, -1.0, np.nan, [1.0, -1.0]],
            "nfitted": [*COUNT, *NOTHING],
        },
    ),
    "Boundary": (
        Boundary,
        {"name": "fill"},
        {
            "name": CHOICE,
            "value": [*SCALAR, np.nan, np.inf],
            "min_overlap": [*(x for x in POSITIVE if x is not None), 1.5],
        },
    ),
    "GaussNewton": (GaussNewton, {}, {"max_steps": [*COUNT, *NOTHING]}),
    "Descent": (
        Descent,
        {"transformation": optax.adam(0.1)},
        {"transformation": [*NOT_REAL, *NOTHING, *NUMBERS, optax.adam], "max_steps": [*COUNT, *NOTHING]},
    ),
    "correlate2d": (
        fourier.correlate2d,
        {"im1": IMAGE, "im2": IMAGE},
        {"im1": ANY_IMAGE, "im2": ANY_IMAGE, "boundary": CHOICE},
    ),
    "shiftnd": (
        fourier.shiftnd,
        {"data": IMAGE, "offset": [1.0, 2.0]},
        {"data": ANY_IMAGE, "offset": PER_AXIS, "phase": SCALAR, "return_abs": FLAG, "return_real": FLAG},
    ),
    "shift2d": (
        fourier.shift2d,
        {"data": IMAGE, "deltax": 1.0, "deltay": 2.0},
        {
            "data": [*ANY_IMAGE, LINE, STACK],
            "deltax": SCALAR,
            "deltay": SCALAR,
            "phase": SCALAR,
            "return_abs": FLAG,
            "return_real": FLAG,
        },
    ),
    "zoomnd": (
        fourier.zoomnd,
        {"inp": IMAGE},
        {
            "inp": ANY_IMAGE,
            "offsets": PER_AXIS,
            "middle_convention": [*JUNK, *TEXT, *NOTHING, *NUMBERS, len, lambda x: "a", lambda x: np.nan],
            "usfac": POSITIVE,
            "outshape": SIZES,
            "return_xouts": FLAG,
            "return_real": FLAG,
        },
    ),
    "zoom_on_pixel": (
        fourier.zoom_on_pixel,
        {"inp": IMAGE, "coordinates": [1.0, 2.0]},
        {
            "inp": ANY_IMAGE,
            "coordinates": PER_AXIS,
            "usfac": POSITIVE,
            "outshape": SIZES,
            "return_xouts": FLAG,
            "return_real": FLAG,
        },
    ),
    "zoom1d": (
        fourier.zoom1d,
        {"inp": LINE},
        {
            "inp": [*ANY_IMAGE, IMAGE],
            "usfac": POSITIVE,
            "outsize": [*COUNT, [2, 2]],
            "offset": SCALAR,
            "return_xouts": FLAG,
            "return_real": FLAG,
        },
    ),
    "dftups": (
        fourier.dftups,
        {"inp": IMAGE},
        {
            "inp": [*JUNK, *TEXT, *NOTHING, *FUNCTION, *EMPTY, LINE, STACK, np.array(["a"])],
            "nor": COUNT,
            "noc": COUNT,
            "usfac": POSITIVE,
            "roff": SCALAR,
            "coff": SCALAR,
        },
    ),
    "upsample_image": (
        fourier.upsample_image,
        {"image": IMAGE},
        {
            "image": [*ANY_IMAGE, LINE, STACK],
            "upsample_factor": POSITIVE,
            "output_size": SIZES,
            "xshift": SCALAR,
            "yshift": SCALAR,
        },
    ),
    "fourier_interp1d": (
        fourier.fourier_interp1d,
        {"data": LINE, "out_x": [1.0]},
        {
            "data": [*ANY_IMAGE, IMAGE],
            "out_x": [*ANY_IMAGE, IMAGE],
            "data_x": [*NOT_REAL, *EMPTY, *MANY_AXES, 1.0, np.ones(3)],
            "return_real": FLAG,
        },
    ),
    "fourier_interp2d": (
        fourier.fourier_interp2d,
        {"data": IMAGE, "outinds": np.ones((2, 3))},
        {"data": [*ANY_IMAGE, LINE, STACK], "outinds": [*GRIDS, np.ones((3, 2)), LINE], "return_real": FLAG},
    ),
    "fourier_interpnd": (
        fourier.fourier_interpnd,
        {"data": IMAGE, "outinds": np.ones((2, 3))},
        {"data": ANY_IMAGE, "outinds": [*GRIDS, np.ones((3, 2)), LINE], "return_real": FLAG},
    ),
    "chi2n_map": (
        jaxchi2.chi2n_map,
        SEED,
        {k: SEED_KINDS[k] for k in ("im1", "im2", "err", "boundary", "zeromean")}
        | {"return_all": FLAG, "reduced": FLAG},
    ),
    "chi2_shift": (
        jaxchi2.chi2_shift,
        SEED,
        SEED_KINDS
        | {
            "upsample_factor": POSITIVE,
            "nfitted": [*COUNT, *NOTHING],
            "max_auto_size": [*COUNT, *NOTHING],
            "max_nsig": POSITIVE,
        },
    ),
    "chi2_shift_iterzoom": (
        jaxchi2.chi2_shift_iterzoom,
        SEED,
        SEED_KINDS
        | {
            "zoom_shape": [*SIZES, *NOTHING, 1, (3, 3, 3), (1, 3)],
            "rezoom_shape": [*SIZES, *NOTHING, 1, (3, 3, 3), (1, 3)],
            "rezoom_factor": POSITIVE,
            "mindiff": POSITIVE,
            "zoomstep": [*POSITIVE, 1.0],
        },
    ),
    "chi2_shift_leastsq": (
        jaxchi2.chi2_shift_leastsq,
        SEED,
        {k: SEED_KINDS[k] for k in ("im1", "im2", "err", "verbose", "return_error")}
        | {
            "mode": CHOICE,
            "maxoff": [*(x for x in POSITIVE if x is not None), 4.0],
            "guessx": SCALAR,
            "guessy": SCALAR,
            "use_fft": FLAG,
            "ignore_outside": FLAG,
        },
    ),
    "chi2map_to_errors": (
        jaxchi2.chi2map_to_errors,
        {"chi2map": IMAGE},
        {
            "chi2map": [*IMAGES, LINE, STACK],
            "zoomfactor": POSITIVE,
            "nsigma": POSITIVE,
            "nfitted": [*COUNT, *NOTHING],
        },
    ),
    "iterative_zoom": (
        jaxchi2.iterative_zoom,
        {"image": IMAGE},
        {
            "image": IMAGES,
            "mindiff": POSITIVE,
            "zoomshape": [*SIZES, *NOTHING, (3,), (1, 3)],
            "return_zoomed": FLAG,
            "zoomstep": [*POSITIVE, 1.0],
            "verbose": FLAG,
            "minmax": CHOICE,
            "return_center": FLAG,
        },
    ),
    "iterative_zoom_1d": (
        jaxchi2.iterative_zoom_1d,
        {"data": LINE},
        {
            "data": [*IMAGES, IMAGE],
            "mindiff": POSITIVE,
            "zoomshape": [*SIZES, *NOTHING, (3, 3), (1,)],
            "return_zoomed": FLAG,
            "zoomstep": [*POSITIVE, 1.0],
            "verbose": FLAG,
            "minmax": CHOICE,
            "return_center": FLAG,
        },
    ),
}


def described(value):
    text = repr(value).replace("\n", " ")
    return text if len(text) < 60 else f"{text[:50]}… {getattr(value, 'shape', '')}"


def faults(name):
    """Bad arguments of a function that raise nothing, or something that does not name the argument."""
    function, good, kinds = CALLS[name]
    for argument, values in kinds.items():
        for value in values:
            try:
                function(**{**good, argument: value})
            except (TypeError, ValueError) as error:
                if not re.match(rf"{argument}\b", str(error)):
                    yield f"{argument}={described(value)}: {type(error).__name__}: {str(error)[:150]}"
            except Exception as error:
                yield f"{argument}={described(value)}: {type(error).__name__}: {str(error)[:150]}"
            else:
                yield f"{argument}={described(value)}: no error"


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_argument_is_named(name):
    found = list(faults(name))
    assert not found, "\n".join(found)


def test_what_is_computed_inside_a_trace_is_traced():
    """Whatever is closed over: nothing may be asked of a result, be it of arrays or of a traced option."""
    image, one = jnp.asarray(IMAGE), jnp.ones(())
    pair = {"reference": image, "image": image, "err": one, "boundary": "wrap"}
    for function in [
        lambda n: jaxchi2.register(**pair, nsigma=n, verdict=False).interval,
        lambda n: jaxchi2.chi2_surface(**pair)([n, 0.0]),
        lambda n: jaxchi2.delta_chi2(one, 3) + n,
        lambda n: jnp.stack(jaxchi2.chi2map_to_errors(image, one, one)) + n,
        lambda n: fourier.upsample_image(image, one) + n,
    ]:
        assert jax.eval_shape(function, jnp.float32(1.0)).dtype == np.float32


def test_masks_may_be_lists():
    mask = (IMAGE > 1).tolist()
    options = {"mask": mask, "reference_mask": mask, "boundary": "wrap", "verdict": False}
    found = jax.eval_shape(lambda x: jaxchi2.register_stack(x, "first", 0.1, **options), jnp.asarray(STACK))
    assert found.shift.shape == (3, 2)
