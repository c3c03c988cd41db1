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
from .checks import (
    as_real_array,
    choice,
    integer,
    numbers,
    per_axis,
    positive,
    refuse,
    refuse_unless,
    scalar,
    stack_of,
)
from .coadd import align_stack, combine
from .noise import estimate_noise
from .pair import Boundary, Search, as_boundary, check_max_shift
from .registration import Registration, Status
from .stack import register_stack

FATAL = Status.NO_DATA | Status.LITTLE_OVERLAP | Status.FLAT | Status.NOT_CONVERGED | Status.OUT_OF_WINDOW
"""Flags of a frame without an answer."""


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
    """Of each frame against the mean of the others: status, p-value, χ², and the shift without a prior."""
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

    @property
    def stderr(self) -> Array:
        """Standard error of each shift, shape ``(N, D)``."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    def covariance_with(self, frame: int) -> Array:
        """Covariance of every frame's shift with that of one frame, shape ``(N, D, D)``."""
        frame = integer(frame, "frame", -self.shift.shape[0])
        if frame >= self.shift.shape[0]:
            refuse("frame", f"below {self.shift.shape[0]}", frame)
        return _covariance_with(self.information, self.stiffness, self.accepted, frame)


def register_jointly(
    stack: ArrayLike,
    err: ArrayLike | None = None,
    *,
    reference: str | ArrayLike = "first",
    mask: ArrayLike | None = None,
    boundary: str | Boundary = "overlap",
    max_shift: float | tuple[float, ...] | None = None,
    drift: ArrayLike | None = None,
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
        Where the first round starts.
    mask : array_like of bool, optional
        True where a pixel is to be ignored; of a frame's shape or the stack's.
    boundary, max_shift
        As of `register`.
    drift : array_like, optional
        Standard deviation of the step from one frame to the next, in pixels, a scalar or one per axis: a
        random walk as the prior of the shifts. It bridges frames that say little or nothing. None: no prior.
    min_p_value : float
        A frame whose χ² against the others has a smaller p-value is rejected, as is one without an answer.
        Where more than half the frames have too large a χ², as with errors that are too small for all, it is
        compared with their median. Rejected frames are registered like the others and may come back; they
        are only not averaged.
    tolerance : float
        The rounds end when no shift moves by more than this many standard errors.
    max_rounds : int
        Most rounds; static under jit. Three to five are usual.
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
    max_rounds = integer(max_rounds, "max_rounds")
    if isinstance(reference, str):
        choice(reference, "reference", ("first", "mean"), " or an image")
    else:
        reference = as_real_array(reference, "reference", unit)
    step = per_axis(jnp.inf if drift is None else drift, "drift", ndim, stack.dtype, or_scalar=True)
    if drift is not None:
        refuse_unless(lambda value: value > 0, drift, "drift", "positive")
    least = scalar(min_p_value, "min_p_value", stack.dtype)
    refuse_unless(lambda p: (p >= 0) & (p < 1), min_p_value, "min_p_value", "a number in [0, 1)")
    rest = positive(tolerance, "tolerance", stack.dtype)
    shapes = ((), (len(stack),), stack.shape[1:], stack.shape)
    if err is None:
        err = jax.vmap(estimate_noise)(stack)
    words = "be a scalar, one per frame, or have the shape of a frame or of stack"
    err = numbers(err, "err", shapes, words, stack.dtype, unit)
    if err.shape == ():
        err = jnp.broadcast_to(err, (len(stack),))
    alike: dict[str, Any] = {
        "mask": mask,
        "boundary": as_boundary(boundary),
        "max_shift": check_max_shift(max_shift, ndim),
        "batch_size": batch_size,
    }
    start = register_stack(stack, reference, err, verdict=False, **alike)
    stiffness = 1 / step**2
    return _rounds(
        stack,
        err,
        start.shift,
        stiffness,
        least,
        rest,
        prior=drift is not None,
        max_rounds=max_rounds,
        **alike,
    )


@partial(jax.jit, static_argnames=("boundary", "max_shift", "prior", "max_rounds", "batch_size"))
def _rounds(
    stack: Array,
    err: Array,
    start: Array,
    stiffness: Array,
    min_p_value: ArrayLike,
    tolerance: ArrayLike,
    *,
    mask: ArrayLike | None,
    boundary: Boundary,
    max_shift: tuple[float, ...] | None,
    prior: bool,
    max_rounds: int,
    batch_size: int | None,
) -> JointRegistration:
    ndim = start.shape[1]

    def measured(shift: Array, accepted: Array) -> tuple[Registration, Array, Array, Array]:
        """Each frame against the others; the share of its own weight; and the mean of all."""
        aligned = align_stack(
            stack, shift, err**2, mask=mask, periodic=boundary.name == "wrap", batch_size=batch_size
        )
        counted = accepted.reshape(-1, *[1] * ndim) & jnp.isfinite(aligned.variance)
        image = jnp.where(counted, aligned.image, jnp.nan)
        whole = combine(image, aligned.variance)
        weight = jnp.where(counted, 1 / jnp.where(counted, aligned.variance, 1.0), 0.0)
        total = jnp.sum(weight, 0)
        rest = total[None] - weight
        # A pixel that this frame alone has seen is unknown without it.
        left = rest > 1e-4 * total[None]
        sums = total[None] * jnp.where(total > 0, whole.image, 0.0)[None]
        others = (sums - weight * jnp.where(counted, image, 0.0)) / jnp.where(left, rest, 1.0)
        share = jnp.sum(weight, tuple(range(1, ndim + 1))) / jnp.sum(total)
        seen = left & (total > 0)[None]
        noise = jnp.mean(1 / jnp.where(left, rest, 1.0), tuple(range(1, ndim + 1)), where=seen)
        found = register_stack(
            stack,
            jnp.where(seen, others, jnp.nan),
            err,
            reference_err=jnp.sqrt(noise),
            mask=mask,
            boundary=boundary,
            max_shift=max_shift,
            # With a prior the minimum near where it expects the frame, not the deepest anywhere.
            search=Search(initial=jnp.where(jnp.isfinite(shift), shift, 0.0)) if prior else Search(),
            verdict=False,
            batch_size=batch_size,
        )
        return found, share, whole.image, whole.variance

    def one_round(state: tuple) -> tuple:
        shift, accepted, _, _, _, _, number = state
        found, share, image, variance = measured(shift, accepted)
        answered = found.status & FATAL == 0
        # What an odd frame does to the image, all others suffer from: it is the median that says what is odd.
        usual = jnp.nanmedian(jnp.where(answered & accepted, found.reduced_chi2, jnp.nan))
        relative = found._replace(chi2=found.chi2 / jnp.fmax(usual, 1.0))
        good = answered & ~(relative.p_value < min_p_value)
        part = (1 - share)[:, None]
        place = jnp.where(good[:, None], jnp.where(jnp.isfinite(shift), shift, found.shift), 0.0)
        place = place + jnp.where(good[:, None], (found.shift - place) * part, 0.0)
        covariance = found.covariance * part[..., None]
        information = jnp.where(good[:, None, None], _inverse(covariance), 0.0)
        rhs = jnp.matmul(information, place[..., None], precision=lax.Precision.HIGHEST)
        solution, _ = solve_chain(information, stiffness, rhs)
        new = jnp.where(jnp.isfinite(solution[..., 0]), solution[..., 0], jnp.nan)
        new = new - jnp.mean(new, 0, where=good[:, None])[None]
        error = jnp.sqrt(jnp.diagonal(covariance, axis1=1, axis2=2))
        moved = jnp.max(jnp.abs(new - shift) / error, where=good[:, None] & jnp.isfinite(shift), initial=0.0)
        # A frame that came or went changes the image for all.
        moved = jnp.where(jnp.any(good != accepted), jnp.inf, moved)
        return new, good, found, information, (image, variance), moved, number + 1

    accepted = jnp.all(jnp.isfinite(start), 1)
    first = start - jnp.mean(start, 0, where=accepted[:, None])[None]
    state = one_round((first, accepted, None, None, None, None, jnp.zeros((), jnp.int32)))

    def unsettled(state: tuple) -> Array:
        return (state[-2] > tolerance) & (state[-1] < max_rounds)

    shift, accepted, found, information, (image, variance), moved, number = lax.while_loop(
        unsettled, one_round, state
    )
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
    )


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
