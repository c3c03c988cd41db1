"""All frames of a stack registered to each other, without a reference that is one of them.

The frames are ``D_t(i) = L(i − s_t) + noise``, the latent image L and all shifts unknown. Each frame is
registered to the weighted mean of all *others*, a reference with noise of its own, and the mean is made anew
from the shifts found, until they rest. With L a Gaussian process of spectrum S and w_t the inverse noise
variance, the likelihood with L integrated out has the second derivatives

    H_tu = −2 w_t w_u G,   H_tt = 2 w_t (W − w_t) G,   G = Σ_k k kᵀ S² / (1 + W S),   W = Σ_t w_t

in the shifts, a Laplacian: a generalised inverse is diagonal, ``1 / (2 w_t W G)``. So the errors of different
frames *against the latent image* are independent; a frame's own is what registration to the mean of the
others says, times ``1 − w_t / W``; and a move by that share of the difference found there is a Newton step.
For two frames all this is registration with noise in both images.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from .arrays import unit_of
from .batch import default_batch_size
from .checks import (
    as_real_array,
    boolean_array,
    choice,
    flag,
    integer,
    numbers,
    per_axis,
    positive,
    refuse,
    refuse_unless,
    scalar,
    stack_of,
)
from .coadd import align_stack
from .engine.choices import Boundary, Choices, boundary_for_align
from .engine.constraints import Search
from .engine.noise import estimate_noise
from .pattern import Pattern, beside_scene, best_start, doubted, first_patterns, improved_pattern
from .registration import ERRORS, MIN_PROBABILITY, range_of, register
from .results import MAX_REDUCED_CHI2, Registration
from .sharding import any_sharding
from .stack import register_stack
from .status import Status
from .template import Others, has_answer, mean_of_others, most_usual, number_of_shifts, with_chance


class JointRegistration(NamedTuple):
    """Where each frame of a stack lies, relative to the mean of the accepted ones."""

    shift: Array
    """Shape ``(N, D)``, in pixels; the accepted ones have mean zero. NaN for a rejected frame, unless a drift
    prior tells where it was."""
    covariance: Array
    """Of each frame's shift, shape ``(N, D, D)``; between frames see `covariance_with`."""
    accepted: Array
    """Whether each frame has a part in the image, shape ``(N,)``."""
    registration: Registration
    """Of each frame against the mean of the others: p-value, χ², runner-up, and the shift without a prior.
    Its ``chance`` counts that the others were free to move."""
    image: Array
    """The latent image: the weighted mean of the accepted frames, at their mean position."""
    variance: Array
    """Variance of the noise of ``image``."""
    information: Array
    """Inverse covariance of each measurement, shape ``(N, D, D)``, zero for rejected frames."""
    stiffness: Array
    """Inverse variance of the steps of the drift prior, shape ``(D,)``; zero without."""
    rounds: Array
    """Rounds that were needed."""
    moved: Array
    """Largest move of the last round in standard errors; above the tolerance if rounds did not suffice."""
    status: Array
    """`Status` flags of each frame, shape ``(N,)``; every rejected frame has one. Those of ``registration``;
    BAD_FIT where its χ² is far above that of the others; NOT_CONVERGED on every frame if the rounds did not
    suffice, whose shifts are then those of the last."""
    pattern: Array | None = None
    """What does not move with the scene, of mean zero, shape of a frame; None unless asked for by
    ``static_pattern``."""
    pattern_variance: Array | None = None
    """Variance of the error of each of its pixels; NaN where the frames lie too near each other to tell."""

    @property
    def stderr(self) -> Array:
        """Standard error of each shift, shape ``(N, D)``."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    def covariance_with(self, frame: int) -> Array:
        """Covariance of every frame's shift with that of one frame, shape ``(N, D, D)``."""
        count = self.information.shape[0]
        frame = integer(frame, "frame", -count)
        if frame >= count:
            refuse("frame", f"below {count}", frame)
        return _covariance_with(self.information, self.stiffness, self.accepted, frame)


@any_sharding()
def register_jointly(
    stack: ArrayLike,
    err: ArrayLike | None = None,
    *,
    reference: str | ArrayLike = "first",
    mask: ArrayLike | None = None,
    boundary: str | Boundary = "overlap",
    max_shift: float | tuple[float, ...] | None = None,
    drift: ArrayLike | None = None,
    static_pattern: bool = False,
    errors: str = "model",
    min_p_value: float = 1e-6,
    tolerance: float = 0.1,
    max_rounds: int = 12,
    batch_size: int | None = None,
) -> JointRegistration:
    """Register all frames of a stack to each other: latent image and shifts together.

    The scatter of the shifts reaches the Cramér–Rao bound of N frames, which registration to one noisy frame
    does not: its noise and the frame's are multiplied there. Meant for low signal-to-noise; at high, one good
    reference does as well for a fraction of the cost.

    Parameters
    ----------
    stack : array_like, shape (N, ny, nx) or (N, nz, ny, nx)
        The frames, three or more.
    err : array_like, optional
        Standard deviation of the pixels: a scalar, one per frame, shape ``(N,)``, a map for all or one each.
        None: `estimate_noise` of each frame.
    reference : {"first", "mean"} or array_like
        What the frames are registered to before the first round: one of them, that which is most like the
        others by level and scatter; the mean of `register_stack`; or an image. With a drift prior a frame or
        an image.
    mask : array_like of bool, optional
        True where a pixel is to be ignored; of a frame's shape or the stack's.
    boundary, max_shift
        As of `register`.
    drift : array_like, optional
        Standard deviation of the step from one frame to the next, in pixels, a scalar or one per axis: a
        random walk as the prior of the shifts. It bridges frames that say little or nothing, and says which
        of several minima is meant: from the first frame on each is looked for around the one before it.
        None: no prior.
    static_pattern : bool
        Whether the frames may have something in common that does not move with the scene: what the camera
        adds, as hot pixels, columns, a fixed pattern. It is found together with scene and shifts, see the
        notes; static under jit. Without it such a pattern draws all shifts to zero.
    errors : {"model", "sandwich"}
        Where the covariance of each frame comes from, as of `register`; static under jit. "sandwich": from
        its residuals against the mean of the others, and ``information``, ``covariance``,
        ``covariance_with`` follow. Right also where ``err`` is a guess or the noise of neighbouring pixels
        is correlated. The weights of the frames, ``variance`` and ``pattern_variance`` are those of ``err``,
        and so is the p-value by which frames are rejected.
    min_p_value : float
        A frame whose χ² against the others has a smaller p-value is rejected, as is one without an answer.
        Where more than half the frames have too large a χ², as with errors that are too small for all, it is
        compared with their median. So is, once the shifts rest, a frame that matches the others no better
        than unrelated ones do that are free to move. Rejected frames are registered like the others and may
        come back; they are only not averaged.
    tolerance : float
        The rounds end when no shift moves by more than this many standard errors.
    max_rounds : int
        Most rounds. Three to five are usual.
    batch_size : int, optional
        Frames done at once, as of `register_stack`.

    Returns
    -------
    JointRegistration
        Shifts relative to their mean, their covariances, the latent image.

    Raises
    ------
    ValueError, TypeError
        For unfit shapes and options.

    Notes
    -----
    A round costs one `align_stack` and one `register_stack` with noise in both images, and the errors are as
    good as those. With holes, or an overlap that changes from frame to frame, the share of a frame in the
    mean is taken as the same in all pixels.

    *A static pattern* P makes the frames ``L(i − s_t) + P(i) + noise``. In each round it is made anew: the
    mean of what the frames have beside the latent image moved to each of them, over what of a pattern is left
    in that, for each wave ``1 − |m|²`` with m the mean of ``exp(−i k s_t)``. A wave that hardly moves may
    belong to either, and the scene gets it: the pattern is a Gaussian process, white and with lines along the
    axes, whose power follows from the waves that move; single pixels that stand out have no prior. So what is
    smooth in a pattern stays in the scene, and its mean is zero: the constant is the scene's. If the shifts
    scatter by less than a third of a pixel, nothing tells scene and pattern apart: every frame has
    STATIC_PATTERN as a doubt, and ``pattern_variance`` is NaN. It takes four to six rounds of twice the cost
    for shifts of some pixels, ten where they are of one pixel. Errors of the shifts do not count that of the
    pattern, a few per cent of theirs.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(3)
    >>> scene = rng.normal(size=(24, 24))
    >>> stack = np.stack([np.roll(scene, k, axis=1) for k in range(4)])
    >>> stack += 0.5 * rng.normal(size=stack.shape)
    >>> found = register_jointly(stack, 0.5, boundary="wrap")
    >>> print(np.round(found.shift[:, 1], 1), int(found.accepted.sum()))
    [-1.5 -0.5  0.5  1.5] 4
    """
    unit = unit_of(stack, reference)
    stack = stack_of(stack, unit=unit)
    if len(stack) < 3:
        raise ValueError(f"stack must have three or more frames, not shape {stack.shape}")
    ndim = stack.ndim - 1
    rounds = integer(max_rounds, "max_rounds")
    step = None
    if drift is not None:
        step = per_axis(drift, "drift", ndim, stack.dtype, or_scalar=True)
        refuse_unless(lambda value: value > 0, drift, "drift", "positive")
    least = scalar(min_p_value, "min_p_value", stack.dtype)
    refuse_unless(lambda p: (p >= 0) & (p < 1), min_p_value, "min_p_value", "a number in [0, 1)")
    limits = (jnp.asarray(rounds, jnp.int32), least, positive(tolerance, "tolerance", stack.dtype))
    batch_size = None if batch_size is None else integer(batch_size, "batch_size")
    static = flag(static_pattern, "static_pattern")
    alike = _Alike(
        Choices.of(boundary, max_shift=max_shift), batch_size, choice(errors, "errors", ERRORS), static
    )
    frame = stack.shape[1:]
    if mask is not None:
        words = "the shape of a frame or of stack"
        mask = boolean_array(mask, "mask", (frame, stack.shape), words)
    if err is None:
        err = _estimated(stack, mask)
    words = "be a scalar, one per frame, or have the shape of a frame or of stack"
    err = numbers(err, "err", ((), (len(stack),), frame, stack.shape), words, stack.dtype, unit)
    if err.shape == ():
        err = jnp.broadcast_to(err, (len(stack),))
    if isinstance(reference, str):
        choice(reference, "reference", ("first", "mean"), " or an image")
        if reference == "mean" and step is not None:
            raise ValueError("reference must be 'first' or an image with a drift prior, not 'mean'")
        kind, image = reference, None
    else:
        kind, image = "image", as_real_array(reference, "reference", unit).astype(stack.dtype)
    return _solution(
        stack,
        err,
        image,
        step,
        limits,
        mask,
        kind=kind,
        alike=alike,
    )


def _masked(stack: Array, mask: Array | None) -> Array:
    """The stack with NaN for masked pixels."""
    return stack if mask is None else jnp.where(jnp.broadcast_to(mask, stack.shape), jnp.nan, stack)


def _estimated(stack: Array, mask: Array | None) -> Array:
    """Standard deviation of each frame's pixels; of a frame that does not tell, that of the others."""
    found = jax.vmap(estimate_noise)(_masked(stack, mask))
    told = found > 0
    usual = jnp.nanmedian(jnp.where(told, found, jnp.nan))
    # Of frames without noise, rounding.
    least = 16 * jnp.finfo(stack.dtype).eps * range_of(stack)
    return jnp.where(told, found, jnp.where(jnp.isnan(usual), least, usual))


class _Alike(NamedTuple):
    """Choices that hold in all rounds, hashable."""

    choices: Choices
    batch_size: int | None
    errors: str
    static: bool
    """Whether the frames may have a pattern that stays in place."""


@partial(jax.jit, static_argnames=("kind", "alike"))
def _solution(
    stack: Array,
    err: Array,
    reference: Array | None,
    step: Array | None,
    limits: tuple[Array, Array, Array],
    mask: Array | None,
    *,
    kind: str,
    alike: _Alike,
) -> JointRegistration:
    ndim = stack.ndim - 1
    max_rounds, min_p_value, tolerance = limits
    if step is not None:
        step = jnp.broadcast_to(step, (ndim,))
    stiffness = jnp.zeros_like(stack, shape=(ndim,)) if step is None else 1 / step**2
    shifts, free_shifts = number_of_shifts(stack.shape[1:], alike.choices, step)
    options: dict[str, Any] = {
        "boundary": alike.choices.boundary,
        "max_shift": alike.choices.max_shift,
        "batch_size": alike.batch_size,
        "mask": mask,
    }

    def others_of(stack: Array, shift: Array, accepted: Array) -> Others:
        aligned = align_stack(
            stack,
            shift,
            err**2,
            mask=mask,
            boundary=boundary_for_align(alike.choices.boundary),
            batch_size=alike.batch_size,
        )
        return mean_of_others(aligned, accepted)

    moving = (
        alike.choices.boundary.periodic,
        alike.batch_size or default_batch_size(stack.shape[1:], stack.dtype.itemsize, padded=True),
    )

    def pattern_at(shift: Array, accepted: Array, pattern: Array) -> Pattern:
        others = others_of(stack - pattern[None], shift, accepted)
        return improved_pattern(_masked(stack, mask), pattern, shift, others, accepted, err**2, *moving)

    def begun(pattern: Array) -> tuple[tuple[Array, Pattern], Array]:
        """First shifts of the frames less a first pattern, the one that follows, and how well both fit."""
        shift = _start(stack - pattern[None], err, reference, step, kind, options)
        accepted = jnp.all(jnp.isfinite(shift), 1)
        found = pattern_at(shift, accepted, pattern)
        images = stack - found.image[None]
        latent = others_of(images, shift, accepted).mean
        *_, squares = beside_scene(_masked(images, mask), latent, shift, accepted, err**2, *moving)
        return (shift, found), jnp.nanmedian(jnp.where(accepted, squares, jnp.nan))

    def measured(
        shift: Array, accepted: Array, pattern: Pattern | None
    ) -> tuple[Registration, Others, Pattern | None]:
        """Each frame against the others, all less their pattern."""
        images = stack
        if pattern is not None:
            pattern = pattern_at(shift, accepted, pattern.image)
            images = stack - pattern.image[None]
        others = others_of(images, shift, accepted)
        # With a prior the minimum near where it expects the frame, not the deepest anywhere.
        search = Search() if step is None else Search(initial=jnp.where(jnp.isfinite(shift), shift, 0.0))
        found = register_stack(
            images,
            others.image,
            err,
            reference_err=others.err,
            search=search,
            errors=alike.errors,
            **options,
        )
        found = with_chance(found, free_shifts**2 / shifts)
        return found if step is None else _with_prior(found, shift, step), others, pattern

    def one_round(state: tuple) -> tuple:
        shift, accepted, judged, number, said, pattern = state[:6]
        found, others, pattern = measured(shift, accepted, pattern)
        answered = has_answer(found)
        # What an odd frame does to the image, all others suffer from: it is the median that says what is odd.
        usual = jnp.nanmedian(jnp.where(answered & accepted, found.reduced_chi2, jnp.nan))
        relative = found._replace(chi2=found.chi2 / jnp.fmax(usual, 1.0))
        fits = ~(relative.p_value < min_p_value)
        unrelated = found.status & Status.UNRELATED > 0
        # Before a pattern is known, frames that moved most fit worst.
        usually = fits if pattern is None else fits | (relative.reduced_chi2 < MAX_REDUCED_CHI2)
        good = answered & jnp.where(judged, fits & ~unrelated, usually)
        part = (1 - others.share)[:, None]
        known = jnp.isfinite(shift)
        place = jnp.where(good[:, None], jnp.where(known, shift, found.shift), 0.0)
        place = place + jnp.where(good[:, None], (found.shift - place) * part, 0.0)
        covariance = found.covariance * part[..., None]
        information = jnp.where(good[:, None, None], _inverse(covariance), 0.0)
        rhs = jnp.matmul(information, place[..., None], precision=lax.Precision.HIGHEST)
        solution, _ = solve_chain(information, stiffness, rhs)
        new = solution[..., 0] - _mean_of(solution[..., 0], good)
        error = jnp.sqrt(jnp.diagonal(covariance, axis1=1, axis2=2))
        moved = jnp.max(jnp.abs(new - shift) / error, where=good[:, None] & known, initial=0.0)
        # A frame that came or went changes the image for all.
        moved = jnp.where(jnp.any(good != accepted), jnp.inf, moved)
        # Before the shifts rest, frames match the others no better than by chance that belong to them. If
        # they do not come to rest, the last two rounds are left for this.
        late = (moved <= tolerance) | (number + 3 >= max_rounds)
        moved = jnp.where(late & ~judged & jnp.any(good & (unrelated | ~fits)), jnp.inf, moved)
        status = jnp.where(answered & ~fits, found.status | Status.BAD_FIT, found.status)
        # Where no frame is left there is nothing to compare with, and the last word holds.
        status = jnp.where(jnp.any(accepted), status, said)
        image = others.mean, others.variance
        return new, good, judged | late, number + 1, status, pattern, found, information, image, moved

    if alike.static:
        start, pattern = best_start(begun, first_patterns(_masked(stack, mask)))
    else:
        start, pattern = _start(stack, err, reference, step, kind, options), None
    accepted = jnp.all(jnp.isfinite(start), 1)
    first = start - _mean_of(start, accepted)
    silent = jnp.full_like(accepted, Status.NO_DATA, dtype=jnp.int32)
    begin = (first, accepted, max_rounds < 3, jnp.zeros((), jnp.int32), silent, pattern)
    # The round is compiled once, for what it returns is made up before the first.
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one_round, begin)[6:-1])
    state = (*begin, *empty, jnp.full_like(first, jnp.inf, shape=()))

    def unsettled(state: tuple) -> Array:
        return ~(state[-1] <= tolerance) & (state[3] < max_rounds)

    shift, accepted, _, number, status, pattern, found, information, (image, variance), moved = (
        lax.while_loop(unsettled, one_round, state)
    )
    if step is None:
        shift = jnp.where(accepted[:, None], shift, jnp.nan)
    status = jnp.where(moved <= tolerance, status, status | Status.NOT_CONVERGED)
    if pattern is not None:
        status = doubted(status, has_answer(found), pattern.separated)
    return JointRegistration(
        shift=shift,
        covariance=_marginals(information, stiffness, accepted),
        accepted=accepted,
        registration=found,
        image=image,
        variance=variance,
        information=information,
        stiffness=stiffness,
        rounds=number,
        moved=moved,
        status=status,
        pattern=None if pattern is None else pattern.image,
        pattern_variance=None if pattern is None else pattern.known_variance,
    )


def _mean_of(shift: Array, accepted: Array) -> Array:
    """Mean position of the accepted frames, shape ``(1, D)``."""
    total = jnp.sum(shift, 0, where=accepted[:, None])
    return total[None] / jnp.maximum(jnp.sum(accepted, dtype=shift.dtype), 1.0)


def _with_prior(found: Registration, shift: Array, step: Array) -> Registration:
    """The odds of the runner-up with what the neighbours of a frame say about it."""
    away = found.runner_up.shift - shift
    # Between two neighbours a walk has half the variance of a step.
    variance = step[None] ** 2 / 2 + jnp.diagonal(found.covariance, axis1=1, axis2=2)
    penalty = jnp.sum(away**2 / variance, 1)
    odds = jax.scipy.special.logit(found.runner_up.probability) + penalty / 2
    probability = jax.nn.sigmoid(odds)
    flag = np.int32(Status.AMBIGUOUS)
    doubt = jnp.where(has_answer(found) & (probability < MIN_PROBABILITY), flag, 0)
    return found._replace(
        status=(found.status & ~flag) | doubt,
        runner_up=found.runner_up._replace(
            delta_chi2=found.runner_up.delta_chi2 + penalty, probability=probability
        ),
    )


def _start(
    stack: Array, err: Array, image: Array | None, step: Array | None, kind: str, options: dict[str, Any]
) -> Array:
    """Shifts before the first round."""
    if kind == "mean":
        return register_stack(stack, "mean", err, verdict=False, **options).shift
    number, reference_err = jnp.zeros((), jnp.int32), None
    if image is None:
        number = most_usual(_masked(stack, options["mask"]))
        image = _masked(stack, options["mask"])[number]
        reference_err = err[number] if err.shape[:1] == stack.shape[:1] and err.ndim != image.ndim else err
    if step is not None:
        return _walk(stack, err, image, reference_err, number, step, options)
    if options["max_shift"] is not None:
        # Two frames may be twice as far apart as each is from the mean.
        options = options | {"max_shift": tuple(2 * limit for limit in options["max_shift"])}
    return register_stack(stack, image, err, reference_err=reference_err, verdict=False, **options).shift


def _walk(
    stack: Array,
    err: Array,
    image: Array,
    reference_err: Array | None,
    number: Array,
    step: Array,
    options: dict[str, Any],
) -> Array:
    """Each frame against one image, near where the one before it was; from one frame on, both ways."""
    count = len(stack)
    # A step that may lead anywhere leads as far as a frame's width.
    step = jnp.minimum(step, float(max(stack.shape[1:])))
    index = jnp.arange(count)
    ahead = count - number
    order = jnp.where(index < ahead, number + index, count - 1 - index)
    each = err.ndim == 1 or err.shape == stack.shape
    own_mask = options["mask"] is not None and jnp.ndim(options["mask"]) == stack.ndim
    masks = jnp.asarray(options["mask"]) if own_mask else None

    def one(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple:
        i, begins = at
        # The image is at the place of the frame that it is, or near it.
        position = jnp.where(begins, 0.0, carry[0])
        variance = jnp.where(begins, 0.0, carry[1]) + step**2
        found = register(
            image,
            stack[i],
            err[i] if each else err,
            reference_err=reference_err,
            mask=options["mask"] if masks is None else masks[i],
            boundary=options["boundary"],
            search=Search(prior=(position, jnp.diag(variance))),
            verdict=False,
        )
        answered = has_answer(found)
        position = jnp.where(answered, found.shift, position)
        variance = jnp.where(answered, jnp.diagonal(found.covariance), variance)
        return (position, variance), jnp.where(answered, position, jnp.nan)

    zero = jnp.zeros_like(step)
    found: Array
    _, found = lax.scan(one, (zero, zero), (order, (index == 0) | (index == ahead)))
    return jnp.zeros_like(found).at[order].set(found)


def _inverse(matrices: Array) -> Array:
    usable = jnp.all(jnp.isfinite(matrices), (1, 2))[:, None, None]
    return jnp.linalg.inv(
        jnp.where(usable, matrices, jnp.eye(matrices.shape[-1], dtype=matrices.dtype)[None])
    )


def solve_chain(information: Array, stiffness: Array, rhs: Array) -> tuple[Array, Array]:
    """Solve ``(R + T) x = b`` along a chain of frames; also the diagonal blocks of the inverse.

    R is block diagonal, ``information``, shape ``(N, D, D)``. T is the inverse covariance of a random walk,
    tridiagonal, with ``stiffness`` the inverse variance of a step on each axis. ``rhs`` has shape
    ``(N, D, K)``. By elimination forwards and substitution backwards, the smoother of Rauch, Tung & Striebel
    (1965, doi:10.2514/3.3166). NaN where nothing is known.
    """
    count, ndim = information.shape[:2]
    eye = jnp.eye(ndim, dtype=information.dtype)
    link = stiffness[:, None] * eye
    links = np.full((count, 1, 1), 2.0)
    links[0], links[-1] = 1.0, 1.0
    diagonal = information + jnp.asarray(links, link.dtype) * link[None]
    # Without a drift prior a frame that says nothing is alone, and its block zero.
    dead = jnp.all(diagonal == 0, (1, 2))
    diagonal = jnp.where(dead[:, None, None], eye[None], diagonal)
    product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)

    def forwards(carry: Any, block: Any) -> Any:
        passed, value = carry
        inverse = jnp.linalg.inv(block[0] - product(product(link, passed), link))
        value = block[1] + product(link, product(passed, value))
        return (inverse, value), (inverse, value)

    zero = jnp.zeros_like(diagonal[0]), jnp.zeros_like(rhs[0])
    _, (inverses, values) = lax.scan(forwards, zero, (diagonal, rhs))

    def backwards(carry: Any, block: Any) -> Any:
        later, covariance = carry
        inverse, value = block
        x = product(inverse, value + product(link, later))
        gain = product(inverse, link)
        covariance = inverse + product(product(gain, covariance), gain.T)
        return (x, covariance), (x, covariance)

    zero = jnp.zeros_like(rhs[0]), jnp.zeros_like(diagonal[0])
    _, (solution, covariance) = lax.scan(backwards, zero, (inverses, values), reverse=True)
    return jnp.where(dead[:, None, None], jnp.nan, solution), jnp.where(
        dead[:, None, None], jnp.nan, covariance
    )


def _centred(information: Array, stiffness: Array, accepted: Array) -> tuple[Array, Array]:
    """Covariance of every shift with the mean of the accepted ones, and the variance of that mean."""
    share = jnp.where(accepted, 1 / jnp.maximum(jnp.sum(accepted), 1), 0.0).astype(information.dtype)
    eye = jnp.eye(information.shape[-1], dtype=information.dtype)
    with_mean, _ = solve_chain(information, stiffness, share[:, None, None] * eye[None])
    return with_mean, jnp.sum(jnp.where(accepted[:, None, None], share[:, None, None] * with_mean, 0.0), 0)


def _marginals(information: Array, stiffness: Array, accepted: Array) -> Array:
    _, covariance = solve_chain(information, stiffness, jnp.zeros_like(information))
    with_mean, of_mean = _centred(information, stiffness, accepted)
    return covariance - with_mean - jnp.swapaxes(with_mean, 1, 2) + of_mean[None]


@jax.jit
def _covariance_with(information: Array, stiffness: Array, accepted: Array, frame: ArrayLike) -> Array:
    eye = jnp.eye(information.shape[-1], dtype=information.dtype)
    rhs = jnp.zeros_like(information).at[frame].set(eye)
    column, _ = solve_chain(information, stiffness, rhs)
    with_mean, of_mean = _centred(information, stiffness, accepted)
    return column - with_mean - with_mean[frame].T[None] + of_mean[None]
