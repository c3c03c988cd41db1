"""Least squares on the pixels, by gradients: robust losses, motions beyond a shift, any optax optimiser.

    cost(θ) = ½ Σ_i C² ρ((r_i / C)²),    r_i = (D_i − a M(T_θ⁻¹(i)) − b) / err_i

θ holds the parameters of the motion T, and gain and background where they are fitted. Four things are kept
apart: the residuals (`Scene`), the way to a minimum (`GaussNewton`, `Descent`), its derivative, which is that
of the stationary point whatever found it (`_stationary`), and the errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from .checks import choice, described, integer, per_axis, positive, refuse
from .engine.builders import weighted_terms
from .engine.choices import ERRORS, Boundary, Choices, Plan
from .engine.continuation import MARGIN, eroded, fill_smoothly
from .engine.layout import Prepared, lay_out, prepare
from .engine.noise import noise_of
from .engine.pair import Pair, check
from .engine.position import Position
from .engine.sandwich import FURTHEST, between, covariance_of_scores
from .engine.spectrum import Shape, shift_spectrum
from .motion import MOTIONS, Motion, check_motion, sources
from .registration import judged, range_of
from .results import in_units, is_bad_fit, root
from .sampling import Interpolant, interpolant
from .status import Status

INTERPOLATIONS = {"fourier": None, "linear": 1, "cubic": 3}
CLIP_AT_START = 6.0
"""Standard deviations from which a pixel is left out of the search for a start, if the loss is robust."""
SETTLING_ROUNDS = 3
"""Fits, each with the pixels that count and the unit of a robust loss as of the one before."""


# Losses: ρ(z) and its first two derivatives.


def _linear(z: Array) -> tuple[Array, Array, Array]:
    return z, jnp.ones_like(z), jnp.zeros_like(z)


def _huber(z: Array) -> tuple[Array, Array, Array]:
    inside = z <= 1
    root = jnp.sqrt(jnp.where(inside, 1.0, z))
    value = jnp.where(inside, z, 2 * root - 1)
    return value, jnp.where(inside, 1.0, 1 / root), jnp.where(inside, 0.0, -0.5 / root**3)


def _soft_l1(z: Array) -> tuple[Array, Array, Array]:
    root = jnp.sqrt(1 + z)
    return 2 * z / (1 + root), 1 / root, -0.5 / root**3


def _cauchy(z: Array) -> tuple[Array, Array, Array]:
    return jnp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2


LOSSES: dict[str, Callable[[Array], tuple[Array, Array, Array]]] = {
    "linear": _linear,
    "huber": _huber,
    "soft_l1": _soft_l1,
    "cauchy": _cauchy,
}


# Residuals.


class Scene(NamedTuple):
    """What a fit compares: a reference that can be moved, and an image with weights."""

    reference: Array | Interpolant
    """Half-plane spectrum, moved by ``origin``, for Fourier interpolation; else a spline."""
    image: Array
    weights: Array
    origin: Array
    """Whole shift that the spectrum has been moved by, shape ``(D,)``."""


@dataclass(frozen=True)
class Problem:
    """The static choices of a fit."""

    motion: str
    interpolation: str
    loss: str
    gain: bool
    background: bool
    shape: Shape
    """Of the image's frame."""

    def residuals(self, vector: Array, scene: Scene) -> Array:
        """``r_i`` for a vector of parameters, one per pixel, zero for a pixel that does not count."""
        motion, gain, background = self.parts(vector)
        if isinstance(scene.reference, Interpolant):
            model = scene.reference(sources(motion, self.shape))
        else:
            at = Position.of(motion.shift).since(scene.origin)
            moved = shift_spectrum(scene.reference, scene.image.shape, at)
            model = jnp.fft.irfftn(moved, scene.image.shape)
        # The root of a zero weight has no derivative.
        root = jnp.sqrt(jnp.where(scene.weights > 0, scene.weights, 1.0))
        return jnp.where(scene.weights > 0, root * (scene.image - gain * model - background), 0.0)

    def cost(self, vector: Array, scene: Scene, scale: Array) -> Array:
        """Half the sum of losses."""
        z = (self.residuals(vector, scene) / scale) ** 2
        return 0.5 * scale**2 * jnp.sum(LOSSES[self.loss](z)[0])

    def parts(self, vector: Array) -> tuple[Motion, Array, Array]:
        """Motion, gain and background in a vector of parameters."""
        motion, rest = self.motion_in(vector)
        one = jnp.ones_like(vector[0])
        return motion, rest[0] if self.gain else one, rest[-1] if self.background else 0 * one

    def motion_in(self, vector: Array) -> tuple[Motion, Array]:
        """The motion at the head of a vector, and what follows it."""
        ndim = len(self.shape)
        flat, unravel = ravel_pytree(MOTIONS[self.motion].by(jnp.zeros(ndim, vector.dtype)))
        return unravel(vector[: len(flat)]), vector[len(flat) :]

    def unit(self) -> np.ndarray:
        """Change of each parameter that counts as much as a shift by one pixel."""
        radius = float(np.sqrt(np.sum(np.square(self.shape)) / 12))
        ndim = len(self.shape)
        size = len(ravel_pytree(MOTIONS[self.motion].by(jnp.zeros(ndim)))[0])
        return np.array(
            [1.0] * ndim + [1 / radius] * (size - ndim) + [0.1] * self.gain + [1.0] * self.background
        )


class Expansion(NamedTuple):
    """The cost around a vector of parameters."""

    cost: Array
    gradient: Array
    curvature: Array
    """Gauss–Newton matrix, of each pixel's loss no negative curvature."""
    spread: Array
    """Sum of the squared gradients of the pixels' losses."""


def expand(problem: Problem, vector: Array, scene: Scene, scale: Array) -> Expansion:
    """Cost, gradient and Gauss–Newton matrix, by one forward derivative per parameter."""
    residuals, push = jax.linearize(partial(problem.residuals, scene=scene), vector)
    columns = jax.vmap(push)(jnp.eye(len(vector), dtype=vector.dtype)).reshape(len(vector), -1)
    flat = residuals.reshape(-1)
    z = (flat / scale) ** 2
    rho, slope, bend = LOSSES[problem.loss](z)
    score = slope * flat
    matrix = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    return Expansion(
        0.5 * scale**2 * jnp.sum(rho),
        matrix(columns, score),
        matrix(columns * jnp.maximum(slope + 2 * bend * z, 0.0)[None], columns.T),
        matrix(columns * (score**2)[None], columns.T),
    )


# Optimisers.


class History(NamedTuple):
    """What the optimiser saw, one entry per step, the start first; the last one fills the rest."""

    cost: Array
    """Shape ``(steps + 1,)``."""
    parameters: Array
    """Shape ``(steps + 1, P)``: the motion's, then gain and background where they are fitted."""


class Path(NamedTuple):
    """Where an optimiser came from and got to."""

    vector: Array
    converged: Array
    costs: Array
    vectors: Array


Bounds = tuple[Array, Array]
Cost = Callable[[Array], Array]
Expand = Callable[[Array], Expansion]


def _free(vector: Array, gradient: Array, bounds: Bounds) -> Array:
    """Which parameters are not held at a bound by the cost."""
    low, high = bounds
    return ~(((vector <= low) & (gradient > 0)) | ((vector >= high) & (gradient < 0)))


def _only(free: Array, matrix: Array) -> Array:
    """A matrix of the free parameters, unity for the others."""
    both = free[:, None] & free[None, :]
    return jnp.where(both, matrix, jnp.eye(len(free), dtype=matrix.dtype))


@dataclass(frozen=True)
class GaussNewton:
    """Gauss–Newton steps, damped as by Levenberg and Marquardt where a full one does not lower the cost."""

    max_steps: int = 100

    def __post_init__(self) -> None:
        integer(self.max_steps, "max_steps")

    def __call__(self, cost: Cost, expand: Expand, start: Array, unit: Array, bounds: Bounds) -> Path:
        """Minimise from ``start``; ``unit`` is the size of a step of one pixel."""
        del cost
        eps = jnp.finfo(start.dtype).eps

        def step(state: tuple) -> tuple:
            best, at, candidate, damping, count, _, costs, vectors = state
            new = expand(candidate)
            accept = (count == 0) | (new.cost <= at.cost * (1 + 16 * eps))
            best = jnp.where(accept, candidate, best)
            at = jax.tree.map(partial(jnp.where, accept), new, at)
            damping = jnp.where(accept, jnp.where(damping > 1e-2, damping / 3, 0.0), 4 * damping + 1e-2)
            free = _free(best, at.gradient, bounds)
            matrix, gradient = _only(free, at.curvature), jnp.where(free, at.gradient, 0.0)
            full = jnp.linalg.solve(matrix, gradient)
            gain = 0.5 * jnp.sum(gradient * full)
            damped = jnp.linalg.solve(matrix + jnp.diag(damping * jnp.diagonal(matrix)), gradient)
            # A step of more than a pixel is out of sight of the minimum that it aims at.
            damped = damped / jnp.maximum(1.0, jnp.max(jnp.abs(damped / unit)))
            candidate = jnp.clip(best - damped, *bounds)
            done = (jnp.max(jnp.abs(full / unit)) < eps**0.75) | (gain <= eps**1.25 * at.cost)
            # Rounding, or the kink of a linear interpolation: nothing lower is in sight.
            done |= ~accept & (gain <= 16 * eps * at.cost)
            done |= ~accept & (jnp.max(jnp.abs(damped / unit)) < jnp.sqrt(eps))
            candidate = jnp.where(done & ~accept, best, candidate)
            costs, vectors = costs.at[count].set(at.cost), vectors.at[count].set(best)
            return best, at, candidate, damping, count + 1, done, costs, vectors

        def goes_on(state: tuple) -> Array:
            _, at, _, _, count, done, *_ = state
            return ~done & (count <= self.max_steps) & jnp.isfinite(at.cost)

        at = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(expand, start))
        zero = jnp.zeros_like(start[0])
        state = (
            start,
            at,
            start,
            zero,
            zero.astype(jnp.int32),
            zero > 0,
            *_no_history(self.max_steps, start),
        )
        best, _, last, _, _, done, costs, vectors = lax.while_loop(goes_on, step, state)
        # The last step is small, and takes the error to its square.
        return Path(jnp.where(done, last, best), done, costs, vectors)


@dataclass(frozen=True)
class Descent:
    """Any gradient transformation of optax, in units in which every parameter moves the pixels by about one.

    It has converged where the gradient is worth less than 1 % of the standard errors.
    """

    transformation: optax.GradientTransformation
    max_steps: int = 300

    def __post_init__(self) -> None:
        if not isinstance(self.transformation, optax.GradientTransformation):
            refuse("transformation", "one of optax, such as optax.lbfgs()", self.transformation, TypeError)
        integer(self.max_steps, "max_steps")

    def __call__(self, cost: Cost, expand: Expand, start: Array, unit: Array, bounds: Bounds) -> Path:
        """Minimise from ``start``; ``unit`` is the size of a step of one pixel."""
        optimizer = optax.with_extra_args_support(self.transformation)
        eps = jnp.finfo(start.dtype).eps

        def scaled_cost(scaled: Array) -> Array:
            return cost(start + scaled * unit)

        def step(state: tuple) -> tuple:
            at, best, lowest, inner, count, _, costs, vectors = state
            vector = start + at * unit
            around = expand(vector)
            value, gradient = around.cost, around.gradient * unit
            free = _free(vector, around.gradient, bounds)
            slope = jnp.where(free, around.gradient, 0.0)
            full = jnp.linalg.solve(_only(free, around.curvature), slope)
            done = (jnp.sum(slope * full) < 1e-4) | (jnp.max(jnp.abs(full / unit)) < eps**0.75)
            better = (value <= lowest) | (count == 0) | done
            best, lowest = jnp.where(better, at, best), jnp.where(better, value, lowest)
            costs, vectors = costs.at[count].set(value), vectors.at[count].set(vector)
            updates, inner = optimizer.update(
                gradient, inner, at, value=value, grad=gradient, value_fn=scaled_cost
            )
            moved = jnp.clip(start + optax.apply_updates(at, updates) * unit, *bounds)
            return (moved - start) / unit, best, lowest, inner, count + 1, done, costs, vectors

        def goes_on(state: tuple) -> Array:
            _, _, lowest, _, count, done, *_ = state
            return ~done & (count <= self.max_steps) & jnp.isfinite(lowest)

        at = jnp.zeros_like(start)
        zero = at[0]
        history = _no_history(self.max_steps, start)
        state = (at, at, zero, optimizer.init(at), zero.astype(jnp.int32), zero > 0, *history)
        _, best, _, _, _, done, costs, vectors = lax.while_loop(goes_on, step, state)
        return Path(start + best * unit, done, costs, vectors)


def _no_history(max_steps: int, start: Array) -> tuple[Array, Array]:
    nothing = jnp.full_like(start, jnp.nan, shape=(max_steps + 1, len(start)))
    return nothing[:, 0], nothing


# From a pair to a result.


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _stationary(
    problem: Problem,
    optimizer: GaussNewton | Descent,
    scene: Scene,
    start: Array,
    scale: Array,
    bounds: Bounds,
) -> Path:
    """The minimum of the cost that is found from ``start``."""
    return optimizer(
        lambda vector: problem.cost(vector, scene, scale),
        lambda vector: expand(problem, vector, scene, scale),
        start,
        jnp.asarray(problem.unit(), start.dtype),
        bounds,
    )


@_stationary.defjvp
def _stationary_jvp(
    problem: Problem, optimizer: GaussNewton | Descent, primals: tuple, tangents: tuple
) -> tuple[Path, Path]:
    scene, start, scale, bounds = primals
    path = _stationary(problem, optimizer, scene, start, scale, bounds)
    gradient, change = jax.jvp(
        lambda scene, scale: jax.grad(problem.cost)(path.vector, scene, scale),
        (scene, scale),
        (tangents[0], tangents[2]),
    )
    free = _free(path.vector, gradient, bounds)
    matrix = _hessian(problem, path.vector, scene, scale, free)[0]
    tangent = -jnp.linalg.solve(matrix, jnp.where(free, change, 0.0))
    none = jax.tree.map(
        lambda x: jnp.zeros_like(x) if x.dtype == start.dtype else np.zeros(x.shape, jax.dtypes.float0), path
    )
    return path, none._replace(vector=tangent)


def _hessian(problem: Problem, vector: Array, scene: Scene, scale: Array, free: Array) -> tuple[Array, Array]:
    """Second derivatives of the cost in the free parameters, and whether there is a minimum.

    Where there is none, the unit matrix, so that no derivative is NaN.
    """
    matrix = _only(free, jax.hessian(problem.cost)(vector, scene, scale))
    definite = jnp.all(jnp.isfinite(jnp.linalg.cholesky(lax.stop_gradient(matrix))))
    return jnp.where(definite, matrix, jnp.eye(len(vector), dtype=vector.dtype)), definite


class Fit(NamedTuple):
    """A motion, how well it is known, and how it was found; batched when it comes out of ``vmap``."""

    motion: Motion
    """`Shift`, `Rigid`, `Similarity` or `Affine`: what takes the reference to the image."""
    covariance: Array
    """Covariance of the motion's parameters, shape ``(P, P)``, in the order of its fields, row by row."""
    chi2: Array
    """Σ r², a scalar, wild pixels too; with ``err=None`` the sum of squared residuals."""
    dof: Array
    """Degrees of freedom: pixels with a weight less the number of parameters."""
    status: Array
    """`Status` flags; zero means nothing is wrong."""
    gain: Array
    """Factor of the reference in the image, 1 if not fitted."""
    background: Array
    """What the image has beside the reference times ``gain``; 0 if not fitted."""
    nuisance_covariance: Array
    """Covariance of gain and background, shape ``(2, 2)``; 0 for what is not fitted."""
    cost: Array
    """Half the sum of losses at the minimum."""
    steps: Array
    """Steps that the optimiser took, an integer: the entries of ``history`` but one."""
    history: History
    """The way there. It has no derivative."""
    inflation: Array
    """Errors from the residuals over those of the model, shape ``(P,)``; 1 with ``errors="model"``."""

    @property
    def shift(self) -> Array:
        """Displacement of the frame's centre in pixels, shape ``(D,)``."""
        return self.motion.shift

    @property
    def stderr(self) -> Motion:
        """Standard error of every parameter, as a motion."""
        errors = root(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))
        batch = self.shift.ndim - 1
        sizes = [int(np.prod(x.shape[batch:])) for x in self.motion]
        parts = jnp.split(errors, np.cumsum(sizes)[:-1], axis=-1)
        return type(self.motion)(*(p.reshape(x.shape) for p, x in zip(parts, self.motion, strict=True)))

    @property
    def gain_err(self) -> Array:
        """Standard error of ``gain``."""
        return root(self.nuisance_covariance[..., 0, 0])

    @property
    def background_err(self) -> Array:
        """Standard error of ``background``."""
        return root(self.nuisance_covariance[..., 1, 1])


def fit(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None = None,
    *,
    model: str = "shift",
    interpolation: str | None = None,
    optimizer: GaussNewton | Descent | optax.GradientTransformation = GaussNewton(),
    loss: str = "linear",
    loss_scale: ArrayLike = 1.0,
    initial: Motion | ArrayLike | None = None,
    bounds: tuple[Motion, Motion] | None = None,
    max_shift: float | tuple[float, ...] | None = None,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    boundary: str | Boundary = "overlap",
    fit_gain: bool = False,
    fit_background: bool | str = False,
    errors: str = "model",
) -> Fit:
    """Fit a motion to an image pair by least squares on the pixels, also robustly.

        cost = ½ Σ_i C² ρ((r_i / C)²),    r_i = (D_i − a M(T⁻¹(i)) − b) / err_i

    D is the image, M the interpolated reference, T the motion; a = 1 and b = 0 unless fitted. For a shift
    with Fourier interpolation and the linear loss it is the χ² of `register`, which is faster, and alone
    gives the odds of chance and of another minimum: a `Fit` never has ``Status.UNRELATED`` or
    ``Status.AMBIGUOUS``. See the notes on what it has.

    Parameters
    ----------
    reference, image, err, weights, mask, reference_mask, boundary, fit_gain, fit_background
        As for `register`; a background is a constant. With "linear" and "cubic" the boundaries are those of
        ``scipy.ndimage.map_coordinates``, "wrap" being its "grid-wrap". Where pixels of the reference are
        unknown, those of the image that count are chosen for the start, and again after each of a few fits.
    model : {"shift", "rigid", "similarity", "affine"}
        What moves the image: a displacement; with a rotation; with a scale too (both in two dimensions
        only); any linear map and a displacement. Static under jit.
    interpolation : {"fourier", "linear", "cubic"}, optional
        Of the reference between its pixels; static under jit. None: "fourier" for a shift, which alone it
        takes, else "cubic". Splines smooth the reference at high frequencies: at half a pixel a
        cubic one loses 3 % of a wave of 4 pixels, a linear one 29 %.
    optimizer : GaussNewton, Descent or optax.GradientTransformation
        The way to the minimum; static under jit. A transformation of optax stands for
        ``Descent(transformation)``. Make it once: two equal calls of ``optax.adam`` are two programs.
    loss : {"linear", "huber", "soft_l1", "cauchy"}
        ρ(z), as ``scipy.optimize.least_squares`` defines them; static under jit. With 5 % of the pixels off
        by 30 standard deviations, "cauchy" stays within 0.3 of the standard error of the fit without them
        (root mean square; to lose so many pixels is worth 0.22), "huber" within 0.5, "soft_l1" within 0.6:
        take "cauchy".
    loss_scale : array_like
        C, the residual in standard deviations from which a pixel counts less. Without ``err`` a standard
        deviation is 1.4826 times the median absolute residual of a fit before.
    initial : Motion or array_like, shape (D,), optional
        Where to start: a motion of the model, or a shift. None: at the best whole shift.
    bounds : tuple of Motion, optional
        Lowest and highest motion; infinite where there is no bound.
    max_shift : float or tuple of float, optional
        Largest absolute shift along all axes or each; static under jit.
    errors : {"model", "sandwich"}
        As for `register`: where the covariance comes from; static under jit. ``inflation`` is one of every
        parameter of the motion.

    Returns
    -------
    Fit
        The motion, its covariance and what else is known. The covariance is the inverse of the Hessian of
        the cost, scaled by the reduced χ² without ``err``; with a robust loss it is ``H⁻¹ V H⁻¹``, V the sum
        over pixels of their squared gradients (Huber 1967); with ``errors="sandwich"`` V has the correlation
        of the residuals too. Everything but ``history`` is differentiable,
        to any order, by the implicit function theorem.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options; while tracing, under jit.

    Notes
    -----
    The way leads downhill, and a turn of more than some ten degrees may be out of its reach. Two doubts tell.
    ``Status.BAD_FIT``: the residuals are more than twice the noise in variance, which without ``err`` their
    own finest detail tells; a robust loss goes by the median residual. It is set as well where noise is
    correlated between pixels, or a spline too coarse for the S/N: errors are too small by 1.4 and more then.
    ``Status.WRONG_BASIN``: less than half of the reference is in the image where it was put; not looked at
    with a gain to fit or a robust loss. Right fits of rigid motions, S/N 1 to 50, were not flagged, but for
    near-white scenes at S/N 50, too fine for a cubic spline. Of wrong ones 4 % and less were missed at S/N 10
    and more, 9 % and less at S/N 3, and up to 83 % at S/N 1, where noise hides what is left.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> y, x = np.indices((32, 32)) - 15.5
    >>> def scene(y, x): return np.exp(-(y**2 + (x / 3) ** 2) / 20) + np.exp(-((y - 6) ** 2 + x**2) / 9)
    >>> turned = scene(y * np.cos(0.1) + x * np.sin(0.1), x * np.cos(0.1) - y * np.sin(0.1))
    >>> found = fit(scene(y, x), turned + 0.01 * rng.normal(size=x.shape), 0.01, model="rigid")
    >>> print(f"{found.motion.angle:.3f} ± {found.stderr.angle:.3f}")
    0.098 ± 0.001
    """
    choices = Choices.of(boundary, fit_gain, fit_background, max_shift)
    if choices.degree > 0:
        refuse("fit_background", "True, 'constant' or False in a fit on the pixels", fit_background)
    pair, plan = check(
        reference,
        image,
        err,
        choices,
        weights=weights,
        mask=mask,
        reference_mask=reference_mask,
    )
    problem = _problem(pair, plan, model, interpolation, loss)
    if isinstance(optimizer, optax.GradientTransformation):
        optimizer = Descent(optimizer)
    if not isinstance(optimizer, GaussNewton | Descent):
        wanted = "a GaussNewton, a Descent or a transformation of optax"
        refuse("optimizer", wanted, optimizer, TypeError)
    dtype = pair.image.dtype
    start = None if initial is None else _as_motion(initial, problem, dtype, "initial")
    limits = _limits(bounds, problem, plan, dtype)
    loss_scale = positive(loss_scale, "loss_scale", dtype)
    known_err = err is not None or weights is not None
    robust = choice(errors, "errors", ERRORS) == "sandwich"
    return _fit(pair, start, limits, loss_scale, problem, plan, optimizer, known_err, robust)


def _problem(pair: Pair, plan: Plan, model: str, interpolation: str | None, loss: str) -> Problem:
    model, loss = choice(model, "model", tuple(MOTIONS)), choice(loss, "loss", tuple(LOSSES))
    if model in ("rigid", "similarity") and pair.ndim != 2:
        raise ValueError(f"model {model!r} is for images with 2 axes, not {pair.ndim}")
    if interpolation is None:
        interpolation = "fourier" if model == "shift" else "cubic"
    interpolation = choice(interpolation, "interpolation", tuple(INTERPOLATIONS))
    if interpolation == "fourier" and model != "shift":
        raise ValueError(f"interpolation 'fourier' is for the model 'shift', not {model!r}; take 'cubic'")
    return Problem(model, interpolation, loss, plan.gain, plan.background, pair.image.shape)


def _as_motion(value: Motion | ArrayLike, problem: Problem, dtype: jnp.dtype, name: str) -> Array:
    """The parameters of a motion, or of a shift, as a vector."""
    kind, ndim = MOTIONS[problem.motion], len(problem.shape)
    if not isinstance(value, tuple(MOTIONS.values())):
        value = kind.by(per_axis(value, name, ndim, dtype))
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, not {type(value).__name__}")
    return ravel_pytree(check_motion(value, ndim, name, dtype))[0]


def _limits(bounds: tuple[Motion, Motion] | None, problem: Problem, plan: Plan, dtype: jnp.dtype) -> Bounds:
    """Lowest and highest value of every parameter."""
    size, nuisances = len(problem.unit()), problem.gain + problem.background
    low, high = jnp.full(size, -jnp.inf, dtype), jnp.full(size, jnp.inf, dtype)
    if plan.limited:
        edges = np.asarray(plan.window, dtype).T
        low, high = (x.at[: len(e)].set(e) for x, e in zip((low, high), edges, strict=True))
    if bounds is not None:
        if not isinstance(bounds, list | tuple) or len(bounds) != 2:
            raise TypeError(f"bounds must be a lowest and a highest motion, not {described(bounds)}")
        given = [_as_motion(b, problem, dtype, "bounds") for b in bounds]
        given = [
            jnp.concatenate([g, jnp.full(nuisances, s, dtype)])
            for g, s in zip(given, (-jnp.inf, jnp.inf), strict=True)
        ]
        low, high = jnp.maximum(low, given[0]), jnp.minimum(high, given[1])
    return low, high


@partial(jax.jit, static_argnames=("problem", "plan", "optimizer", "known_err", "robust"))
def _fit(
    pair: Pair,
    start: Array | None,
    bounds: Bounds,
    loss_scale: Array,
    problem: Problem,
    plan: Plan,
    optimizer: GaussNewton | Descent,
    known_err: bool,
    robust: bool,
) -> Fit:
    if not known_err:
        pair = pair._replace(err=range_of(pair.reference))
    vector, fatal = _start(pair, start, problem, plan, known_err)
    prepared = prepare(pair, plan)

    def search(vector: Array) -> tuple[Path, Scene, Array, Array]:
        vector = lax.stop_gradient(jnp.clip(vector, *bounds))
        scene = _scene(prepared, pair, plan, problem, vector)
        scale = jnp.ones_like(loss_scale)
        if problem.loss != "linear":
            unit = 1.0 if known_err else _spread(problem.residuals(vector, scene), scene)
            scale = loss_scale * unit
        begin = lax.stop_gradient(_with_nuisances(problem, vector, scene, scale, bounds))
        if problem.interpolation != "fourier" and plan.boundary.constant:
            begin = lax.stop_gradient(_off_the_jump(problem, begin, scene, scale, bounds))
        return _stationary(problem, optimizer, scene, begin, scale, bounds), scene, scale, vector

    def settle(vector: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        path = search(vector)[0]
        return path.vector, (path.costs, path.vectors)

    # At the best whole shift the pixels that count are those at the minimum already; its residuals are not.
    settling = plan.boundary.overlap and (start is not None or problem.motion != "shift")
    settling |= problem.loss != "linear" and not known_err
    costs, vectors = _no_history(-1, vector)
    if settling:
        vector, (costs, vectors) = lax.stop_gradient(lax.scan(settle, vector, None, SETTLING_ROUNDS - 1))
    path, scene, scale, begin = search(vector)
    path = path._replace(
        costs=jnp.concatenate([costs.reshape(-1), path.costs]),
        vectors=jnp.concatenate([vectors.reshape(-1, len(vector)), path.vectors]),
    )
    if plan.boundary.overlap:
        strayed = jnp.abs(path.vector - begin)[: pair.ndim] > MARGIN
        path = path._replace(converged=path.converged & ~jnp.any(strayed))
    return _result(problem, prepared, scene, scale, bounds, path, known_err, robust, fatal)


def _start(
    pair: Pair, start: Array | None, problem: Problem, plan: Plan, known_err: bool
) -> tuple[Array, Array]:
    """Parameters to start from, and what is fatally wrong already."""
    dtype = pair.image.dtype
    fatal = jnp.zeros((), jnp.int32)
    if start is None:
        pair = lax.stop_gradient(pair)
        if problem.loss != "linear":
            pair, *_ = judged(pair, known_err, plan, CLIP_AT_START)
        terms = weighted_terms(pair, plan)
        missing = terms.grid.settled & ~jnp.isfinite(jnp.min(terms.grid.values))
        fatal = jnp.where(missing, np.int32(Status.LITTLE_OVERLAP), np.int32(Status.OK))
        start = ravel_pytree(MOTIONS[problem.motion].by(terms.grid.start().shift))[0]
    nuisances = [1.0] * problem.gain + [0.0] * problem.background
    return jnp.concatenate([lax.stop_gradient(start), jnp.asarray(nuisances, dtype)]), fatal


def _scene(prepared: Prepared, pair: Pair, plan: Plan, problem: Problem, vector: Array) -> Scene:
    """What is compared, the pixels that count chosen for the motion of ``vector``."""
    motion, _ = problem.motion_in(vector)
    order = INTERPOLATIONS[problem.interpolation]
    if order is None:
        constraints = pair.constraints._replace(initial=motion.shift)
        layout = lay_out(prepared, pair._replace(constraints=constraints), plan)
        return Scene(jnp.fft.rfftn(layout.reference), layout.image, layout.weights, layout.grid.origin)
    boundary = plan.boundary
    mode = "nearest" if boundary.overlap else boundary.name
    outside = (boundary.value - prepared.pedestal) / prepared.unit
    filled = fill_smoothly(prepared.reference, prepared.known)
    # What continues the frame elsewhere are pixels near its edge, which are judged by themselves.
    beyond = "wrap" if boundary.periodic else "constant" if boundary.overlap else "edge"
    safe = eroded(prepared.known, MARGIN, beyond).astype(filled.dtype)
    counts = interpolant(safe, 1, *(("constant", 0.0) if boundary.overlap else (mode, 1.0)))
    if problem.motion == "shift":
        motion = jax.tree.map(jnp.round, motion)
    seen = counts(lax.stop_gradient(sources(motion, problem.shape))) > 1 - 1e-4
    return Scene(
        interpolant(filled, order, mode, outside),
        prepared.image,
        jnp.where(seen, prepared.weights, 0.0),
        jnp.zeros(len(problem.shape), jnp.int32),
    )


def _spread(residuals: Array, scene: Scene) -> Array:
    """Standard deviation of the residuals from their median size."""
    counted = jnp.where(scene.weights > 0, jnp.abs(residuals), jnp.nan)
    spread = lax.stop_gradient(1.4826 * jnp.nanmedian(counted))
    return jnp.where(spread > 0, spread, 1.0)


def _with_nuisances(problem: Problem, vector: Array, scene: Scene, scale: Array, bounds: Bounds) -> Array:
    """The parameters with gain and background at their best for the motion."""
    nuisances = problem.gain + problem.background
    if not nuisances:
        return vector
    around = expand(problem, vector, scene, scale)
    held = np.arange(len(problem.unit())) < len(problem.unit()) - nuisances
    step = jnp.linalg.solve(
        _only(jnp.asarray(~held), around.curvature), jnp.where(held, 0.0, around.gradient)
    )
    return jnp.clip(jnp.where(jnp.isfinite(step), vector - step, vector), *bounds)


def _off_the_jump(problem: Problem, vector: Array, scene: Scene, scale: Array, bounds: Bounds) -> Array:
    """The start, a little nearer to the minimum.

    At a whole shift the outermost pixels fall on the frame, a little further on they fall outside: χ² jumps
    there, and a descent that starts on the jump stays.
    """
    around = expand(problem, vector, scene, scale)
    towards = jnp.sign(jnp.linalg.solve(around.curvature, around.gradient))
    step = jnp.asarray(0.01 * problem.unit(), vector.dtype)
    return jnp.clip(jnp.where(jnp.isfinite(towards), vector - step * towards, vector), *bounds)


def _result(
    problem: Problem,
    prepared: Prepared,
    scene: Scene,
    scale: Array,
    bounds: Bounds,
    path: Path,
    known_err: bool,
    robust: bool,
    fatal: Array,
) -> Fit:
    vector = path.vector
    around = expand(problem, vector, scene, scale)
    free = _free(vector, lax.stop_gradient(around.gradient), bounds)
    hessian, definite = _hessian(problem, vector, scene, scale, free)
    residuals = problem.residuals(vector, scene)
    chi2 = jnp.sum(residuals**2)
    dof = jnp.sum(scene.weights > 0, dtype=jnp.int32) - len(vector)
    covariance = jnp.linalg.inv(hessian)
    matrix = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    if problem.loss != "linear":
        covariance = matrix(matrix(covariance, around.spread), covariance)
    elif not known_err:
        covariance = covariance * chi2 / jnp.maximum(dof, 1)
    inflation = jnp.ones_like(vector)
    if robust:
        model = covariance
        covariance = _from_residuals(problem, vector, scene, scale, free, covariance)
        inflation = root(jnp.diagonal(covariance) / jnp.diagonal(model))

    change, offset = _to_units(problem, prepared)
    motion, gain, background = problem.parts(matrix(change, vector) + offset)
    covariance = matrix(matrix(change, covariance), change.T)
    covariance = jnp.where(free[:, None] & free[None, :], covariance, jnp.nan)
    size = len(vector) - problem.gain - problem.background
    fitted = np.flatnonzero([problem.gain, problem.background])
    nuisances = jnp.zeros_like(covariance, shape=(2, 2))
    nuisances = nuisances.at[fitted[:, None], fitted].set(covariance[size:, size:])

    cause: list[tuple[Array, Array | np.int32]] = [
        (fatal != 0, fatal),
        (dof <= 0, np.int32(Status.NO_DATA)),
        (prepared.flat | ~definite | ~(gain > 0), np.int32(Status.FLAT)),
        (~path.converged, np.int32(Status.NOT_CONVERGED)),
    ]
    fatal = jnp.select([c for c, _ in cause], [flag for _, flag in cause], np.int32(Status.OK))
    failed = fatal != Status.OK

    def unless_failed(x: Array) -> Array:
        return jnp.where(failed, jnp.nan, x)

    # The history is in order already where there was one round; NaN is what follows the end of one.
    order = jnp.argsort(jnp.isnan(path.costs), stable=True)
    steps = jnp.sum(~jnp.isnan(path.costs), dtype=jnp.int32) - 1
    order = order[jnp.clip(jnp.arange(len(order)), 0, jnp.maximum(steps, 0))]
    chi2_in_units, doubt = in_units(chi2, prepared.unit if not known_err else jnp.ones_like(prepared.unit))
    doubt |= jnp.where(jnp.all(free), 0, np.int32(Status.AT_BOUND))
    doubt |= _doubts(problem, lax.stop_gradient(residuals), lax.stop_gradient(scene), dof, known_err)
    unit = prepared.unit if not known_err else 1.0
    return Fit(
        motion=jax.tree.map(unless_failed, motion),
        covariance=unless_failed(covariance[:size, :size]),
        chi2=unless_failed(chi2_in_units),
        dof=dof,
        status=jnp.where(failed, fatal, doubt),
        gain=unless_failed(gain),
        background=unless_failed(background),
        nuisance_covariance=unless_failed(nuisances),
        cost=unless_failed(around.cost * unit**2),
        steps=steps,
        inflation=unless_failed(inflation[:size]),
        history=History(path.costs[order] * unit**2, (matrix(path.vectors, change.T) + offset[None])[order]),
    )


def _from_residuals(
    problem: Problem, vector: Array, scene: Scene, scale: Array, free: Array, model: Array
) -> Array:
    """The covariance that the residuals say; derivatives are those of the model's, times the inflation."""
    constants = lax.stop_gradient((vector, scene, scale, free))
    residuals, push = jax.linearize(partial(problem.residuals, scene=constants[1]), constants[0])
    slopes = jax.vmap(push)(jnp.eye(len(vector), dtype=vector.dtype))
    z = (residuals / constants[2]) ** 2
    residuals = LOSSES[problem.loss](z)[1] * residuals
    valid = constants[1].weights > 0
    if not isinstance(scene.reference, Array):
        # The image's own frame is not periodic.
        margins = [(0, FURTHEST)] * residuals.ndim
        residuals, valid = jnp.pad(residuals, margins), jnp.pad(valid, margins)
        slopes = jnp.pad(slopes, [(0, 0), *margins])
    kept = jnp.where(constants[3], 1.0, 0.0)
    scores, _ = covariance_of_scores(slopes * kept.reshape(-1, *[1] * residuals.ndim), residuals, valid)
    hessian, _ = _hessian(problem, *constants)
    found = between(jnp.linalg.inv(hessian), scores * kept[:, None] * kept[None, :])
    ratio = root(jnp.diagonal(found) / jnp.diagonal(lax.stop_gradient(model)))
    scaled = model * ratio[:, None] * ratio[None, :]
    return scaled + lax.stop_gradient(found - scaled)


def _doubts(problem: Problem, residuals: Array, scene: Scene, dof: Array, known_err: bool) -> Array:
    """Flags of a fit whose residuals are not noise, or that has not found the reference in the image.

    If the errors are not known, the finest detail of the residuals says how large the noise is.
    """
    counted = scene.weights > 0
    number = jnp.maximum(dof, 1).astype(residuals.dtype)
    # What a median tells has the scatter of 0.37 times as many pixels' squares, of differences a third of it.
    informative = number * (1.0 if problem.loss == "linear" else 0.37)
    if problem.loss == "linear":
        spread = jnp.sum(residuals**2) / number
    else:
        spread = (1.4826 * jnp.nanmedian(jnp.where(counted, jnp.abs(residuals), jnp.nan))) ** 2
    noise = jnp.ones_like(spread)
    if not known_err:
        noise = noise_of(jnp.where(counted, residuals, jnp.nan)) ** 2
        informative = 1 / (1 / informative + 9 / number)
    image = jnp.where(counted, scene.image * jnp.sqrt(scene.weights), 0.0)
    rounding = 1e3 * jnp.finfo(spread.dtype).eps * jnp.max(jnp.abs(image))
    seen = (noise > 0) & (spread > rounding**2)
    ratio = spread / jnp.where(seen, noise, 1.0)
    bad = seen & is_bad_fit(ratio * informative, informative)
    flags = jnp.where(bad, np.int32(Status.BAD_FIT), np.int32(0))
    if problem.gain or problem.loss != "linear":
        return flags
    # The model in the image's frame, times the root of the weights, and without the weighted mean.
    weight = jnp.where(counted, jnp.sqrt(scene.weights), 0.0)
    total = jnp.maximum(jnp.sum(weight**2), jnp.finfo(weight.dtype).tiny)
    model = image - residuals
    model = model - weight * jnp.sum(weight * model) / total
    energy = jnp.sum(model**2)
    found = jnp.sum(model * image)
    scatter = 5 * jnp.sqrt(spread * energy)
    lost = (energy > 0) & (found + scatter < 0.5 * energy)
    return flags | jnp.where(lost, np.int32(Status.WRONG_BASIN), np.int32(0))


def _to_units(problem: Problem, prepared: Prepared) -> tuple[Array, Array]:
    """What turns the parameters that are fitted into those in units of the images: a matrix and an offset."""
    change = jnp.eye(len(problem.unit()), dtype=prepared.unit.dtype)
    offset = jnp.zeros_like(prepared.unit, shape=(len(change),))
    if problem.background:
        # ``(D − p)/u = a (M − p)/u + b'`` with p the pedestal that both have lost, u their unit.
        change = change.at[-1, -1].set(prepared.unit)
        if problem.gain:
            change = change.at[-1, -2].set(-prepared.pedestal)
            offset = offset.at[-1].set(prepared.pedestal)
    return change, offset
