"""One pair in, one `Registration` out: the shift, its error, and whether to believe it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from .checks import choice, flag, is_traced, positive, real_number
from .engine.algebra import is_positive_definite
from .engine.builders import KnownReference, weighted_terms
from .engine.chance import evidence, trial
from .engine.choices import ERRORS, Boundary, Choices, Plan
from .engine.constraints import ANYWHERE, Search
from .engine.continuation import MARGIN
from .engine.correlated import Noise, Whiteness, covariances, refuse_errors, whiten
from .engine.counts import Counts, Expected, expected, mean_err
from .engine.errors import covariance_of, interval_bounds, interval_points
from .engine.minimum import Minimum, find_minima, find_minimum, with_derivative
from .engine.pair import Pair, check
from .engine.passes import count, extremes, mean_over
from .engine.position import Position
from .engine.sandwich import likely_inflation, sandwich
from .engine.searchgrid import SearchGrid
from .engine.terms import Chi2Terms
from .engine.verdict import RunnerUp, has_static_pattern, is_unequal, runner_up
from .engine.ways import Way, has_quick_way, tried, with_terms
from .results import Registration, all_of, first_of, in_units, is_bad_fit, is_too_good
from .sharding import any_sharding
from .status import Status

ROUNDS = 3
"""Fits that judge pixels before the last one."""

MAX_CHANCE = 1e-3
"""Chance of so good a match between unrelated images from which `Status.UNRELATED` is set."""
MIN_PROBABILITY = 0.99
"""Probability against the runner-up below which `Status.AMBIGUOUS` is set."""
MAX_IMPROVEMENT = 1.5
"""Factor by which χ² may exceed its value at the best gain and background before `Status.BRIGHTNESS` is
set."""
MIN_INFLATION = 1.3
"""Inflation, or its inverse, from which `Status.CONTRADICTED` is set, if it is certain."""
MIN_INFLATION_OF_SCALED = 2.5
"""The same for errors that are scaled by the reduced χ²: photons that are counted make 1.5 of them."""
CERTAIN = 4.0
"""How many times its scatter the logarithm of an inflation has to be."""
MIN_PATTERN = 6.0
"""Standard deviations of a correlation at shift zero from which `Status.STATIC_PATTERN` is set."""
MIN_PHOTONS = 20.0
"""Photons that carry the information about the shift below which `Status.FEW_COUNTS` is set."""
MAX_CLIPPED = 0.1
"""Share of bright pixels clipped, beyond twice that of all pixels, from which `Status.CLIPPED` is set."""


@any_sharding()
def register(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | Counts | str | None = None,
    *,
    reference_err: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    noise: Noise | None = None,
    reference_noise: Noise | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    boundary: str | Boundary = "overlap",
    fit_gain: bool = False,
    fit_background: bool | str = False,
    max_shift: float | tuple[float, ...] | None = None,
    search: Search = ANYWHERE,
    clip: float | None = None,
    nsigma: ArrayLike = 1.0,
    verdict: bool = True,
    errors: str = "model",
) -> Registration:
    """Measure the displacement of an image from a reference, with its error, by minimising χ².

        χ²(s) = Σ_i (D_i − a M(i − s) − b)² / err_i²

    D is the image, M the Fourier interpolant of the reference, a = 1 and b = 0 unless fitted. The minimum is
    found on the pixel grid and refined by Newton's method on the exact series; the result is continuous, not
    quantised.

    Parameters
    ----------
    reference, image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        Real; integers become the default float, other dtypes are kept. Not modified. Of one shape, except
        for the boundary "overlap". A pixel that is not finite, or masked in a numpy masked array, has weight
        zero.
    err : array_like, scalar or shape of the image, Counts or "poisson", optional
        Standard deviation of each pixel of ``image``, in its units; a pixel whose error is not a positive
        finite number has weight zero. "poisson": the image counts photons, and `Counts` says how, with a
        gain, an offset and read noise; see the notes. None: equal and unknown; covariance and interval are
        then scaled by the reduced χ², as ``scipy.optimize.curve_fit`` does without ``absolute_sigma``, and
        ``noise_known`` is False. `estimate_noise` gives a number.
    reference_err : array_like, scalar or shape of the reference, optional
        Standard deviation of each pixel of ``reference``, where it has noise too. The cross-spectrum is then
        weighted by S / (S (N₁ + N₂) + N₁ N₂) with the scene's spectrum S estimated from the images, which
        are to be of one brightness unless the gain is fitted. Needs ``err``. Exchanging the images reverses
        the shift exactly for "wrap"; else the two ways differ by some 0.4 of the error, for the pixels that
        count, and the reference that is moved, are others. But for "wrap" the errors of gain and background
        are too small, by up to 1.6 and 1.2 where the reference has little fine detail.
    weights : array_like, scalar or shape of the image, optional
        1 / err², in place of ``err``. Zero, negative or NaN leaves a pixel out.
    noise, reference_noise : Noise, optional
        Noise that is correlated between pixels, the same everywhere and of known power spectrum, in place of
        ``err`` and ``reference_err``: as smoothing, resampling and drizzling leave it. See the notes; for
        "overlap" and "wrap".
    mask, reference_mask : array_like of bool, shape of the image, of the reference, optional
        True where a pixel is to be ignored, as in ``numpy.ma`` and astropy. What a masked pixel holds has no
        influence. For one of the reference, the image pixels that it covers at the best whole shift are left
        out, with a margin of two pixels.
    boundary : str or Boundary
        What the reference is outside its frame: "overlap" (unknown: only what both frames show counts),
        "wrap" (periodic), "constant" or "fill" (zero, or the value of a `Boundary`), "reflect", "nearest";
        static under jit. See the notes on the choice.
    fit_gain : bool
        Fit a, a positive factor, at every shift. Without a background it goes through zero. Static under jit.
    fit_background : bool or {"constant", "plane", "quadratic"}
        Fit b at every shift: a constant (True), or a polynomial of the first or second degree in the pixel
        coordinates of the image, where its sky has a gradient. What the reference has of that no longer tells
        the shift, and the errors say so. Static under jit.
    max_shift : float or tuple of float, optional
        Largest absolute shift allowed, for all axes or each, in pixels; static under jit. Infinity: as far
        as the frames have pixels in common. None: half the frame, for frames of unlike shape as far as half
        the smaller one is covered along each axis; with "overlap" and a first guess like infinity.
    search : Search
        A first guess, a prior, axes that are held.
    clip : float, optional
        Leave out pixels more than this many standard deviations from the best model, as cosmic rays or
        columns dead in the image alone: three rounds of fit and judgement, each of all pixels anew; static
        under jit. 5 leaves Gaussian noise alone. Without ``err`` a standard deviation is taken from the
        median residual. Defects of the camera (hot pixels, dead columns) are in both images and fit at shift
        zero, where it is the scene that does not: they want masks, and `Status.CLIPPED` warns.
    nsigma : array_like
        Confidence of ``interval`` in standard deviations, a scalar; Δχ² is ``nsigma²``.
    verdict : bool
        Whether to look for the runner-up and the odds of chance, half as much work again as all the rest;
        static under jit. If not, both are NaN and no status warns of unrelated or ambiguous images.

    errors : {"model", "sandwich"}
        Where covariance, interval and the errors of gain and background come from; static under jit. "model":
        from χ² and ``err``, right if the noise is white and as said. "sandwich": from the residuals, right
        also where ``err`` is wrong or none is given, where the noise is correlated (resampled, smoothed),
        larger on sources, or in the reference and not declared. ``inflation`` is what that makes of the
        model's errors. Costs some fifteen FFTs.

    Returns
    -------
    Registration
        ``shift`` in array-axis order: ``np.roll(reference, 3, axis=0)`` has ``(+3, 0)``. `align` undoes
        it. ``covariance`` is ``2 H⁻¹`` with H the Hessian of χ², ``stderr`` the marginal errors,
        ``interval`` the profile likelihood's (MINOS). ``background`` is the value of b at the centre of the
        image's frame, ``background_coefficients`` all of it, `Registration.background_image` its picture.
        ``status`` is a `Status`; what is wrong with the
        values never raises. At high S/N `Status.BAD_FIT` may mean detail finer than the pixels, which cannot
        be interpolated at edges: errors are then too small, by about the root of χ² per degree of freedom.
        Every field but the verdict's, ``runner_up`` and ``chance``, is differentiable in the images and
        errors, to any order, by the implicit function theorem; what was chosen (whole shift, pixels left
        out) is constant. A frame that failed has a gradient of zero, and takes nothing from that of a
        reference it shares with others.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options; while tracing, under jit.

    Notes
    -----
    *Boundary.* Crops of a larger scene, S/N 5 at 128²: "wrap" is wrong by 20 times the Cramér–Rao bound and
    more, with an error bar of one; "overlap" reaches 1.0 to 1.1 of it. On truly periodic images "overlap"
    costs the share of the frame that it cannot use. So it is the default, and "wrap", some six times
    faster, is for images that are periodic or fade to a constant at their edges.

    *Correlated noise.* With white weights errors of images that were resampled or smoothed are 1.3 to 3.8
    times too small, and shifts up to 1.3 times as uncertain as they need be. With ``noise`` both images are
    first convolved with one kernel that makes it white: errors, χ² and p-value hold again, and shifts reach
    the Cramér-Rao bound. All pixels count with "wrap"; else those are lost that the kernel, of 2 to 4 pixels
    for most noise and up to 8, reaches from beyond the frame, from patches of bad pixels, and from a hole if
    that matters. White noise loses none. Degrees of freedom are those that have noise. ``clip`` judges
    whitened pixels, which also show what is beside them. Unlike spectra of ``noise`` and ``reference_noise``
    leave errors right, but not χ²: the sum of both is made white, and each is taken for white.

    *Cost.* "wrap" with equal errors: 3 FFTs of the frame and a few passes; an error map or bad pixels:
    about 14; "overlap": 3 more of 2.25 times the frame, 12 with masks, an error map or bad pixels; a plane or
    a quadratic: one for each coefficient, and the way of an error map with "wrap". Accuracy in float32: about
    1e-6 pixels, at any S/N, plus the spacing of float32 at the shift itself (4e-6 pixels at 50).

    *Counts.* The variance of a pixel is what the model at the solution expects there. The root of the data
    instead favours pixels that came out low: at ten counts a background is then too low by one. The shift is
    that of Poisson's likelihood. Its error is right to a few per cent, down to 0.1 counts per pixel, where
    the match is not in doubt and some twenty photons tell the shift; `Status.FEW_COUNTS` warns of fewer. The
    odds of χ², ``p_value``, are too extreme below three counts per pixel, and in a dark sky, where no
    variance is taken to be below a hundredth of the mean, χ² is too small. Brightness and background must be
    those of the reference, or fitted, and the reference deep: with its own counts as noise, errors come out
    up to 1.3 times too small. To derivatives the variances are constants. Takes four fits in place of one.

    *Compiling.* A new shape takes seconds. Outside ``jit``, and with "overlap", equal frames of up to 2¹⁶
    pixels are therefore put into larger ones of few shapes (32, 48, 64, 96, 128, … along each axis; squares,
    if no axis is more than twice another), whose other pixels are unknown: cutouts of many shapes share few
    programs. Inside ``jit`` shapes are what they are. The reference is continued less far then, and the
    shifts of both ways differ by up to a tenth of the error.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> register(scene, image, 0.1, boundary="wrap")
    Registration(shift=(+1.9992 ± 0.0018, -2.9988 ± 0.0018) px, chi2=1066.6, dof=1022)
    """
    choices = Choices.of(boundary, fit_gain, fit_background, max_shift)
    if noise is not None or reference_noise is not None:
        noise = refuse_errors(
            noise, reference_noise, choices.boundary, err=err, weights=weights, reference_err=reference_err
        )
        err = 1.0
    pair, plan = check(
        reference,
        image,
        err,
        choices,
        search=search,
        reference_err=reference_err,
        weights=weights,
        mask=mask,
        reference_mask=reference_mask,
        compact=True,
        padded=True,
        counting=True,
    )
    clip, nsigma, verdict, robust = check_measure(pair.image.dtype, clip, nsigma, verdict, errors)
    known_err = err is not None or weights is not None
    whiteness = None
    if noise is not None:
        pair, whiteness = whiten(
            pair,
            covariances(noise, reference_noise, pair.ndim, pair.image.dtype),
            choices.boundary.periodic,
        )
    found = tried(
        partial(
            measure, pair, nsigma, known_err=known_err, plan=plan, clip=clip, verdict=verdict, robust=robust
        ),
        clip is None
        and pair.counts is None
        and mask is None
        and reference_mask is None
        and has_quick_way(pair, plan),
        is_traced((pair, nsigma)),
        lambda found: found.status == Status.FLAT,
    )
    return (
        found
        if whiteness is None
        else unwhitened(found, whiteness, sum(plan.free) + plan.gain + plan.background)
    )


def unwhitened(found: Registration, whiteness: Whiteness, fitted: int) -> Registration:
    """What was found of a pair made white in units of the images, with the degrees of freedom that had noise.

    ``fitted`` is the number of fitted parameters.
    """
    share, level = (lax.stop_gradient(x) for x in (whiteness.share, whiteness.level))
    dof = jnp.round((found.dof + fitted) * share).astype(found.dof.dtype) - fitted
    unit = jnp.stack([jnp.ones_like(level), 1 / level])
    units = jnp.broadcast_to(unit[:, None] * unit[None, :], found.nuisance_covariance.shape)
    status = found.status & ~np.int32(Status.BAD_FIT | Status.LARGE_ERRORS)
    bad, good = is_bad_fit(found.chi2, dof), is_too_good(found.chi2, dof)
    good &= (found.status & np.int32(Status.LARGE_ERRORS)) > 0
    answer = jnp.isfinite(found.chi2)
    status |= jnp.where(bad & answer, np.int32(Status.BAD_FIT), np.int32(0))
    status |= jnp.where(good & answer, np.int32(Status.LARGE_ERRORS), np.int32(0))
    return found._replace(
        dof=dof,
        status=status,
        background=found.background / level,
        nuisance_covariance=found.nuisance_covariance * units,
    )


def check_measure(
    dtype: jnp.dtype, clip: float | None, nsigma: ArrayLike, verdict: bool, errors: str
) -> tuple[float | None, Array, bool, bool]:
    """Check what `register` is asked beside the pair and the plan; ``nsigma`` as an array."""
    if clip is not None:
        clip = real_number(clip, "clip", "a number of standard deviations above 1", lambda x: x > 1)
    robust = choice(errors, "errors", ERRORS) == "sandwich"
    return clip, positive(nsigma, "nsigma", dtype), flag(verdict, "verdict"), robust


@partial(jax.jit, static_argnames=("way", "known_err", "plan", "clip", "verdict", "robust"))
def measure(
    pair: Pair,
    nsigma: Array,
    way: Way,
    known_err: bool,
    plan: Plan,
    clip: float | None,
    verdict: bool,
    robust: bool,
    known: KnownReference | None = None,
) -> Registration:
    """`register` of a checked pair, with errors from the sandwich if ``robust``; see `weighted_terms`."""
    pair, unit = with_unit(pair, known_err)
    run = partial(solve, nsigma=nsigma, known_err=known_err, verdict=verdict, robust=robust)
    if clip is None and pair.counts is None:
        result, _ = with_terms(run, pair, plan, way, known)
    else:
        counts = pair.counts
        pair, too_much, noise = judged(pair, known_err, plan, clip)
        if noise is not None:
            run = partial(run, noise=noise, alike=partial(_alike, pair._replace(counts=counts), plan))
        result, _ = with_terms(run, pair, plan, Way.ANY)
        too_much &= jnp.isfinite(result.chi2)
        result = result._replace(status=result.status | jnp.where(too_much, np.int32(Status.CLIPPED), 0))
    chi2, doubt = in_units(result.chi2, unit)
    return result._replace(chi2=chi2, status=result.status | doubt)


def with_unit(pair: Pair, known_err: bool) -> tuple[Pair, Array]:
    """The pair in which χ² can be computed, and the unit that its residuals are then in.

    Without errors, the reference's range is a unit in which no square under- or overflows.
    """
    if known_err or pair.reference_err is not None:
        return pair, jnp.ones_like(pair.image, shape=())
    unit = range_of(pair.reference)
    return pair._replace(err=pair.err * unit), unit


def judged(
    pair: Pair, known_err: bool, plan: Plan, clip: float | None
) -> tuple[Pair, Array, Expected | None]:
    """The pair with what only a fit can tell of its pixels, found in rounds: errors of counts, outliers.

    Counts have the variance that the last round's model expects. Outliers are pixels whose residual is above
    ``clip`` standard deviations; without known errors one of these is 1.4826 times the median absolute
    residual. Every round judges all pixels anew, so that one thrown out by a first, wrong shift can come
    back. Also whether what was left out is the scene: outliers fall on it as often as beside it. And what is
    expected of the noise of counts.
    """
    seen = lax.stop_gradient(pair)

    def judge(_: int, state: tuple[Array, Array, Expected | None]) -> tuple[Array, Array, Expected | None]:
        left, bright, noise = state
        err = seen.err if noise is None else noise.err
        terms = weighted_terms(seen._replace(image=left, err=err, counts=None), plan)
        minimum = find_minimum(terms.grid, terms.series)
        model, counted = terms.expected_image(minimum.position)
        if noise is not None and seen.counts is not None:
            slopes = terms.expected_slopes(minimum.position)
            noise = expected(seen.counts, model, slopes, counted, plan.free)
            err = noise.err
        if clip is None:
            return left, bright, noise
        residual, scale = jnp.abs(seen.image - model) / err, err
        if not known_err:
            usual = 1.4826 * jnp.nanmedian(jnp.where(counted, residual, jnp.nan))
            residual, scale = residual / usual, scale * usual
        bright = jnp.abs(model - jnp.nanmedian(model)) / scale > clip
        # What was not compared stays; what was thrown out before is judged by where it would be.
        out = (residual > clip) & (counted | ~jnp.isfinite(left))
        return jnp.where(out, jnp.nan, seen.image), bright & jnp.isfinite(model), noise

    valid = jnp.isfinite(seen.image)
    noise = None
    if seen.counts is not None:
        err = mean_err(seen.counts, seen.image)
        noise = Expected(err, *[jnp.ones_like(err, shape=())] * 3)
    state = seen.image, jnp.zeros_like(valid), noise
    left, bright, noise = lax.fori_loop(0, ROUNDS, judge, state)
    kept = jnp.isfinite(left)
    of_pixels = count(valid & ~kept) / count(valid)
    of_scene = count(bright & valid & ~kept) / jnp.maximum(count(bright & valid), 1)
    too_much = of_scene > MAX_CLIPPED + 2 * of_pixels
    if noise is not None:
        pair = pair._replace(err=noise.err, counts=None)
    return pair._replace(image=jnp.where(kept, pair.image, jnp.nan)), too_much, noise


def range_of(array: Array) -> Array:
    """Largest finite value less the smallest, or one where that is no unit; a constant."""
    largest, smallest = extremes(jnp.where(jnp.isfinite(array), array, jnp.nan))
    extent = largest - smallest
    return jnp.where(jnp.isfinite(extent) & (extent > 0), extent, 1.0)


def _alike(pair: Pair, plan: Plan, at: Position) -> Chi2Terms:
    """Terms of counts with weights that are alike, at a shift.

    Weights that follow a scene make match what they were made for.
    """
    assert pair.counts is not None
    constraints = pair.constraints._replace(initial=at.shift)
    err = mean_err(pair.counts, pair.image)
    return weighted_terms(pair._replace(err=err, counts=None, constraints=constraints), plan)


def solve(
    terms: Chi2Terms,
    nsigma: Array,
    known_err: bool,
    verdict: bool = True,
    robust: bool = False,
    noise: Expected | None = None,
    alike: Callable[[Position], Chi2Terms] | None = None,
) -> tuple[Registration, Array]:
    """Minimum, errors and verdict for one surface, whichever way its terms were built.

    Without the verdict, which takes more passes over the grid than all else, its fields are NaN. Of counts
    ``noise`` is what is expected of theirs, and the verdict is that of the terms which ``alike`` has for the
    minimum.
    Also the interval's bounds relative to the shift, ``(D, 2)``: as positions they are rounded to the
    spacing of the dtype at the shift, which at high S/N is more than their distance from it.
    """
    # The search and the verdict have no derivative.
    searched = lax.stop_gradient(terms)
    grid, series = searched.grid, searched.series
    witness, others = searched, None
    if alike is not None or not verdict:
        minimum = best = find_minimum(grid, series)
    if alike is not None and verdict:
        witness = lax.stop_gradient(alike(minimum.position))
    if verdict:
        best, others = find_minima(witness.grid, witness.series, 1)
        minimum = best if alike is None else minimum
    dof = _dof(terms)
    fatal = _fatal(searched, minimum, dof)
    failed = fatal != Status.OK
    found = _measured(known_err, failed, terms, nsigma, minimum)
    inflation, contradicted = jnp.ones_like(found.shift), jnp.zeros_like(failed)
    if robust:
        found, inflation, scatter = _from_residuals(searched, minimum.position, found)
        contradicted = _is_certain(searched, found.chi2, inflation, scatter, MIN_INFLATION)
    unequal = pattern = jnp.zeros_like(failed)
    if others is not None:
        matched = witness.match(_in_reach(witness, best))
        seen = evidence(trial(witness), matched)
        unequal = is_unequal(witness, matched, MAX_IMPROVEMENT)
        if witness.pixels.frame == witness.pixels.reference_frame:
            pattern = has_static_pattern(witness, best.position, matched, MIN_PATTERN)
        if not robust and noise is None and searched.content.noise_share is not None:
            ratio, scatter = likely_inflation(searched, minimum.position, matched)
            ratio = ratio / jnp.sqrt(lax.stop_gradient(found.scale))
            least = MIN_INFLATION if known_err else MIN_INFLATION_OF_SCALED
            contradicted = _is_certain(searched, found.chi2, ratio, scatter, least)
        second = runner_up(witness, best, others, lax.stop_gradient(found.scale), seen)
        chance = jnp.exp(seen.log_chance)
    else:
        unknown = jnp.full_like(found.scale, jnp.nan)
        second, chance = RunnerUp(jnp.full_like(found.shift, jnp.nan), unknown, unknown), unknown
    few, fit = jnp.zeros_like(failed), (found.chi2, dof)
    if noise is not None:
        few = noise.photons < MIN_PHOTONS
        fit = found.chi2 / (noise.share * noise.scatter), dof / noise.scatter
    bad_fit = is_bad_fit(*fit) & known_err
    large_errors = _has_large_errors(searched, *fit, known_err)
    if not robust:
        # χ² says it already.
        contradicted &= ~(bad_fit | large_errors)
    doubts = [
        (~jnp.all(found.closed), Status.OPEN_INTERVAL),
        (chance > MAX_CHANCE, Status.UNRELATED),
        (second.probability < MIN_PROBABILITY, Status.AMBIGUOUS),
        (bad_fit, Status.BAD_FIT),
        (large_errors, Status.LARGE_ERRORS),
        (few, Status.FEW_COUNTS),
        (unequal, Status.BRIGHTNESS),
        (contradicted, Status.CONTRADICTED),
        (pattern, Status.STATIC_PATTERN),
    ]
    doubt = all_of(doubts)
    content, eps = searched.content, jnp.finfo(series.constant.dtype).eps
    why = unequal & ~content.flat & (content.contrast > 64 * eps * series.constant)
    why &= (fatal == Status.NOT_CONVERGED) | (fatal == Status.FLAT) | (fatal == Status.OUT_OF_WINDOW)
    fatal |= jnp.where(why, np.int32(Status.BRIGHTNESS), np.int32(0))

    def unless_failed(x: Array) -> Array:
        return jnp.where(failed, jnp.nan, x)

    bounds = unless_failed(found.bounds)
    result = Registration(
        shift=unless_failed(found.shift),
        covariance=unless_failed(found.covariance),
        interval=found.shift[:, None] + bounds,
        chi2=unless_failed(found.chi2),
        dof=dof,
        status=jnp.where(failed, fatal, doubt),
        gain=unless_failed(found.gain),
        background=unless_failed(found.background[0]),
        background_coefficients=unless_failed(found.background),
        nuisance_covariance=unless_failed(found.nuisance_covariance),
        runner_up=jax.tree.map(unless_failed, second),
        chance=unless_failed(chance),
        noise_known=jnp.full_like(failed, known_err),
        inflation=unless_failed(inflation),
    )
    return result, bounds


class _Measured(NamedTuple):
    """What has a derivative."""

    shift: Array
    covariance: Array
    bounds: Array
    closed: Array
    chi2: Array
    scale: Array
    gain: Array
    background: Array
    nuisance_covariance: Array


def _at_minimum(known_err: bool, terms: Chi2Terms, nsigma: Array, minimum: Minimum) -> _Measured:
    series, plan = terms.series, terms.plan
    minimum = with_derivative(series, minimum)
    at = minimum.position
    chi2 = terms.residual_chi2(at)
    scale = jnp.ones_like(chi2) if known_err else chi2 / jnp.maximum(_dof(terms), 1)
    points = interval_points(series, minimum, nsigma**2 * scale)
    gain, coefficients = series.nuisances(at)
    return _Measured(
        shift=_reduced(terms, at),
        covariance=covariance_of(minimum.hessian, plan.free) * scale,
        bounds=interval_bounds(points, plan.free),
        closed=points.found,
        chi2=chi2,
        scale=scale,
        gain=gain,
        background=_background(terms, gain, coefficients),
        nuisance_covariance=_nuisance_covariance(terms, at, gain) * scale,
    )


def _is_certain(terms: Chi2Terms, chi2: Array, inflation: Array, scatter: Array, least: float) -> Array:
    """Whether the errors of the model are that much too small or too large, and not by chance."""
    factor = jnp.maximum(least, jnp.exp(CERTAIN * scatter))
    away = ((inflation > factor) | (inflation < 1 / factor)) & np.array(terms.plan.free)
    # Of equal images there are no residuals to tell.
    return jnp.any(away) & (lax.stop_gradient(chi2) > jnp.finfo(chi2.dtype).eps * terms.content.contrast)


def _from_residuals(terms: Chi2Terms, at: Position, found: _Measured) -> tuple[_Measured, Array, Array]:
    """Errors from the sandwich, what it makes of those of the model along each axis, and the scatter of that.

    Derivatives are those of the model's errors, times that.
    """
    ndim, model = len(found.shift), lax.stop_gradient(found.covariance)
    covariance, scatter = sandwich(terms, at)
    shift, nuisance = covariance[:ndim, :ndim], _in_image_units(terms, covariance[ndim:, ndim:])
    ratio = jnp.diagonal(shift) / jnp.where(jnp.diagonal(model) > 0, jnp.diagonal(model), 1.0)
    inflation = jnp.where(np.array(terms.plan.free), jnp.sqrt(ratio), 1.0)
    scaled = found.covariance * inflation[:, None] * inflation[None, :]
    return (
        found._replace(
            # The value of the sandwich, the derivative of the other.
            covariance=scaled + lax.stop_gradient(shift - scaled),
            bounds=found.bounds * inflation[:, None],
            nuisance_covariance=nuisance,
        ),
        inflation,
        scatter[:ndim],
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _measured(known_err: bool, failed: Array, terms: Chi2Terms, nsigma: Array, minimum: Minimum) -> _Measured:
    """`_at_minimum`, without a derivative where there is none.

    There it would be NaN, and with it that of a reference which other frames share.
    """
    return _at_minimum(known_err, terms, nsigma, minimum)


@_measured.defjvp
def _measured_jvp(known_err: bool, primals: tuple, tangents: tuple) -> tuple[_Measured, _Measured]:
    failed, *arguments = primals

    def unless_failed(x: Array) -> Array:
        return x if x.dtype == jax.dtypes.float0 else jnp.where(failed, 0.0, x)

    changes = jax.tree.map(unless_failed, tangents[1:])
    return jax.jvp(partial(_at_minimum, known_err), tuple(arguments), changes)


def _dof(terms: Chi2Terms) -> Array:
    return terms.pixels.number - (sum(terms.plan.free) + terms.plan.gain + terms.pixels.background.number)


def _has_large_errors(terms: Chi2Terms, chi2: Array, dof: Array, known_err: bool) -> Array:
    """Whether χ² is so low that the errors must be too large; not of an image that is its reference.

    Of a noisy reference a part is filtered, and takes of χ² with it. What is counted beside the errors, for
    what the interpolant cannot know, may be more than there is.
    """
    content = terms.content
    if not known_err or content.noise_share is None:
        return jnp.zeros_like(content.flat)
    other = lax.stop_gradient(chi2) > jnp.finfo(chi2.dtype).eps * content.contrast
    share = content.noise_share
    share = mean_over(share, share > 0)
    return is_too_good(chi2 / share, dof) & other


def _fatal(terms: Chi2Terms, minimum: Minimum, dof: Array) -> Array:
    """The first `Status` flag that leaves no answer, or zero."""
    at, plan, grid = minimum.position, terms.plan, terms.grid
    eps, free = jnp.finfo(at.fraction.dtype).eps, np.array(plan.free)
    # Curvature that rounding alone could make is none.
    least = 4 * eps * terms.series.roughness
    curved = (jnp.diagonal(minimum.hessian) > least) | ~free
    flat = terms.content.flat | ~(is_positive_definite(minimum.hessian) & jnp.all(curved))
    flat |= ~(terms.series.nuisances(at)[0] > 0)
    shift, window = _reduced(terms, at), grid.constraints.window
    low, high = (np.asarray(plan.window, shift.dtype) if window is None else window).T
    found = minimum.converged & ~_strayed(grid, at)
    outside = jnp.any(((shift < low) | (shift > high)) & free)
    # A minimum of one period is inside it, if only by a turn.
    outside &= plan.limited | (grid.settled & ~found)
    cause = [
        (dof <= 0, Status.NO_DATA),
        (grid.settled & ~jnp.isfinite(extremes(grid.values)[1]), Status.LITTLE_OVERLAP),
        (flat, Status.FLAT),
        (outside, Status.OUT_OF_WINDOW),
        (~found, Status.NOT_CONVERGED),
    ]
    return first_of(cause)


def _strayed(grid: SearchGrid, at: Position) -> Array:
    """Whether the minimum has left the shift that its weights were settled for."""
    return grid.settled & jnp.any(jnp.abs(at.since(grid.origin).shift) > MARGIN)


def _in_reach(terms: Chi2Terms, minimum: Minimum) -> Position:
    """Where to judge a match: the minimum, or the best whole shift where there is none near it."""
    whole, fraction = minimum.position
    lost = _strayed(terms.grid, minimum.position)
    whole = jnp.where(lost, terms.grid.origin.astype(whole.dtype), whole)
    return Position(whole, jnp.where(lost, 0.0, fraction))


def _reduced(terms: Chi2Terms, at: Position) -> Array:
    """The shift of one period around zero."""
    if terms.period is None:
        return at.shift
    period = np.asarray(terms.period)
    turns = jnp.floor(at.shift / period + 0.5).astype(at.whole.dtype)
    return at.since(turns * period.astype(np.int32)).shift


def _background(terms: Chi2Terms, gain: Array, coefficients: Array) -> Array:
    """Coefficients of the background in units of the images; one, which is zero, where none is fitted."""
    units, polynomials = terms.units, terms.pixels.background
    if not terms.plan.background:
        return jnp.zeros_like(gain, shape=(1,))
    found = polynomials.in_pixels(coefficients + units.taken) * units.scale
    return found.at[0].add(units.image_offset - gain * units.reference_offset)


def _nuisance_covariance(terms: Chi2Terms, at: Position, gain: Array) -> Array:
    """Covariance of gain and background, at the centre of the image, in units of the images."""
    if not (terms.plan.gain or terms.plan.background):
        return jnp.zeros_like(gain, shape=(2, 2))
    return _in_image_units(terms, terms.series.nuisance_covariance(at, gain))


def _in_image_units(terms: Chi2Terms, covariance: Array) -> Array:
    """That of gain and background from the internal ones."""
    units, polynomials = terms.units, terms.pixels.background
    size = terms.plan.terms
    change = jnp.zeros_like(covariance, shape=(2, 1 + size)).at[0, 0].set(1.0)
    if terms.plan.background:
        at_centre = jax.vmap(polynomials.in_pixels)(jnp.eye(size, dtype=covariance.dtype))[:, 0]
        change = change.at[1, 1:].set(units.scale * at_centre)
    if terms.plan.gain and terms.plan.background:
        # The background meant by the user is that at zero of the images, not at their pedestals.
        change = change.at[1, 0].set(-units.reference_offset)
    return change @ covariance @ change.T
