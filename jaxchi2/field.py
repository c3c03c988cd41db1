"""Local shifts: many windows of an image, each registered to the reference by itself.

A window sees the whole reference, so it has no edges of its own; see `engine.windows`. Larger windows may
come first, whose field tells where the smaller ones have to look.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.ndimage import map_coordinates
from jax.typing import ArrayLike

from .batch import in_chunks
from .checks import as_real_array, choice, flag, integer, refuse, sizes
from .engine.choices import ERRORS, Choices, Plan
from .engine.continuation import average_nearby
from .engine.layout import Filled, Prepared, fill, lay_out, prepare
from .engine.pair import Pair, check
from .engine.passes import mean_over
from .engine.spectrum import Shape, along
from .engine.verdict import RunnerUp
from .engine.wiener import filtered_layout
from .engine.windowgrid import TAPERS, WindowGrid
from .engine.windows import Found, Image, Task, measure_window, scene_of
from .registration import MIN_PROBABILITY, with_unit
from .results import all_of, first_of, in_units, is_bad_fit, is_too_good, root
from .sharding import any_sharding
from .smoothfield import SmoothField, smooth
from .status import Status

CHUNK = 2**18
"""Pixels of the windows that are done at once."""
MAX_CHANCE = 1e-5
"""Chance of so good a match between unrelated images from which `Status.UNRELATED` is set: smaller than that
of a pair, for there are many windows."""
FINER = 2
"""Whole pixels that windows look to on either side of what larger ones have found, at least."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "shift",
        "covariance",
        "status",
        "chi2",
        "dof",
        "gain",
        "background",
        "nuisance_covariance",
        "runner_up",
        "chance",
        "inflation",
        "noise_known",
    ],
    meta_fields=["windows"],
)
@dataclass(frozen=True)
class Field:
    """Local shifts of an image on a grid of windows, ``(gy, gx)`` or ``(gz, gy, gx)``, here G.

    A pytree; of a batch of pairs with leading axes on every array.
    """

    shift: Array
    """Displacement of what each window shows from the reference in pixels, in axis order, shape ``(*G, D)``;
    NaN where there is no answer."""
    covariance: Array
    """Shape ``(*G, D, D)``, in square pixels."""
    status: Array
    """`Status` flags of each window, shape G; zero means nothing is wrong."""
    chi2: Array
    """χ² of each window."""
    dof: Array
    """Its degrees of freedom; with a taper as many as independent pixels of one weight would have."""
    gain: Array
    """Factor of the reference in each window; 1 if not fitted."""
    background: Array
    """What the window has beside that, in units of the image; 0 if not fitted."""
    nuisance_covariance: Array
    """Of gain and background, shape ``(*G, 2, 2)``."""
    runner_up: RunnerUp
    """The next best whole shift of each window."""
    chance: Array
    """Probability that unrelated images match as well within ``max_shift``."""
    inflation: Array
    """Errors quoted over those of the model, shape ``(*G, D)``."""
    noise_known: Array
    """Whether errors were given, shape G; if not, every error has been scaled by the window's reduced χ²."""
    windows: WindowGrid
    """Where the windows lie; static."""

    @property
    def centers(self) -> np.ndarray:
        """Centres of the windows in pixels of the image, shape ``(*G, D)``."""
        return self.windows.centers

    @property
    def stderr(self) -> Array:
        """Standard errors of the shifts, shape ``(*G, D)``."""
        return root(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def valid(self) -> Array:
        """Which windows have an answer without a doubt but for the size of χ², shape G."""
        doubts = Status.BAD_FIT | Status.LARGE_ERRORS
        return (self.status & ~np.int32(doubts)) == 0

    def predict(self, places: ArrayLike) -> Array:
        """The shift at places, shape ``(..., D)``, between the windows and beside those without an answer.

        Linear between the centres of the windows, the nearest beyond them; where a window has a status, an
        average of those around. For a field with errors see `smooth`.
        """
        places = jnp.asarray(places, self.shift.dtype)
        corner = self.centers[(0,) * self.shift.shape[-1]].astype(places.dtype)
        last = places.ndim - 1, places.ndim
        index = (places - along(corner, *last)) / along(np.array(self.windows.spacing, places.dtype), *last)
        where, columns = list(jnp.moveaxis(index, -1, 0)), []
        # What lies on the other side of a periodic grid is not near.
        sides = [(0, n) for n in self.windows.shape]
        valid = jnp.pad(self.valid, sides)
        for column in jnp.moveaxis(jnp.where(self.valid[..., None], self.shift, 0.0), -1, 0):
            filled = average_nearby(jnp.pad(column, sides), valid)
            filled = filled[tuple(slice(0, n) for n in self.windows.shape)]
            full = jnp.where(self.valid, column, filled)
            columns.append(map_coordinates(full, where, order=1, mode="nearest"))
        return jnp.stack(columns, -1)

    def smooth(self, scale: float | None = None, stiffness: ArrayLike | None = None) -> SmoothField:
        """The smooth field that the shifts support, with its covariance everywhere.

        Windows that are not `valid` have no part in it; there it is carried on from those around, with errors
        that grow.

        Parameters
        ----------
        scale : float, optional
            Distance of the splines' centres in pixels; static under jit. None: half a window, or more where
            that would be more than 900 splines.
        stiffness : array_like, optional
            λ, by which the prior weighs the mean square of the second derivatives of the displacement. None:
            that of the largest marginal likelihood.

        Returns
        -------
        SmoothField
            Displacement, strain, divergence and vorticity anywhere, each with its covariance. See the module
            `jaxchi2.smoothfield` for how.

        Raises
        ------
        ValueError, TypeError
            For a scale or a stiffness that is not positive.
        """
        return smooth(self.windows, self.shift, self.covariance, self.valid, scale, stiffness)

    def __repr__(self) -> str:
        if isinstance(self.status, jax.core.Tracer) or not hasattr(self.status, "shape"):
            return f"Field(shift={self.shift!r}, …)"
        bad = int(np.sum(np.asarray(self.status) != 0))
        return f"Field({self.status.shape} windows of {self.windows.window}, {bad} with a status)"


@any_sharding()
def register_field(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None = None,
    *,
    window: int | tuple[int, ...] = 32,
    spacing: int | tuple[int, ...] | None = None,
    reference_err: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    max_shift: int | tuple[int, ...] = 4,
    initial: ArrayLike | Field | None = None,
    levels: int = 1,
    taper: str = "box",
    fit_gain: bool = False,
    fit_background: bool = False,
    verdict: bool = True,
    errors: str = "model",
    batch_size: int | None = None,
) -> Field:
    """Measure local shifts of an image: those of many windows, each with its covariance and a verdict.

    The shift of a window b is that with the least

        χ²_b(s) = Σ_i t_b(i) (D_i − a M(i − s) − b)² / err_i²

    t_b its taper, D the image and M the interpolant of the whole reference, which is not cut to the window.

    Parameters
    ----------
    reference, image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        As of `register`, of one shape.
    err, reference_err, mask, reference_mask
        As of `register`. A noisy reference is filtered as a whole. Without ``err`` each window's errors are
        scaled by its own reduced χ².
    window : int or tuple of int
        Pixels of a window along each axis, 4 or more, at most those of the image; static under jit.
    spacing : int or tuple of int, optional
        Pixels from one window to the next; None: half a window. Static. The grid has as many windows as lie
        in the frame as a whole.
    max_shift : int or tuple of int
        Whole pixels that are looked at on either side of what is predicted; static. With ``levels`` for the
        largest windows; each level less halves it, to no less than two.
    initial : array_like, shape (D,) or (*grid, D), or Field, optional
        What is predicted. A field's shifts without a status count, the rest is filled in from those nearby.
        None: no shift.
    levels : int
        How many sizes of windows there are, each twice as large as the next, at most the frame: the field of
        one predicts where the next looks. Static.
    taper : {"box", "hann"}
        Weight of the pixels of a window: all alike, or falling towards its edges. Static. The error of a
        tapered window is 1.5 times that of the whole one in two dimensions, and it resolves more.
    fit_gain, fit_background : bool
        Fit a factor, a constant, for every window. Static.
    verdict : bool
        Whether to look for the runner-up and the odds of chance; static.
    errors : {"model", "sandwich"}
        As of `register`; static. The sandwich of a window has only its own residuals.
    batch_size : int, optional
        Windows done at once; static. None: what a processor's cache holds.

    Returns
    -------
    Field
        On a grid of windows: shifts, their covariance, statuses. What is wrong with values never raises.
        Differentiable in the images and errors, but for the verdict, as the result of `register`.

    Raises
    ------
    ValueError, TypeError
        For unfit shapes and options.

    Notes
    -----
    *What a window measures* where the motion varies within it: about its mean, weighted by the information
    that each pixel has. What the window cannot follow is left in the residuals, and errors of the model are
    too small then; those of the sandwich see it.

    *Overlapping windows* share pixels, and with them noise: neighbours at half a window have a correlation of
    about a half. `Field.smooth` takes that into account.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> scene = rng.normal(size=(64, 64))
    >>> image = np.roll(scene, (1, -2), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> field = register_field(scene, image, 0.1, window=24, spacing=16)
    >>> field
    Field((3, 3) windows of (24, 24), 0 with a status)
    >>> print(np.round(np.mean(field.shift, (0, 1)), 2))
    [ 1. -2.]
    """
    choices = Choices.of("overlap", fit_gain, flag(fit_background, "fit_background"), None)
    pair, plan = check(
        reference,
        image,
        err,
        choices,
        reference_err=reference_err,
        mask=mask,
        reference_mask=reference_mask,
    )
    frame = pair.image.shape
    if pair.reference.shape != frame:
        raise ValueError(f"image must have the shape of reference, {pair.reference.shape}, not {frame}")
    ndim = len(frame)
    window = _each(window, "window", ndim, 4)
    if any(n > m for n, m in zip(window, frame, strict=True)):
        refuse("window", f"at most the image's shape, {frame}", window)
    spacing = tuple(max(n // 2, 1) for n in window) if spacing is None else _each(spacing, "spacing", ndim, 1)
    windows = WindowGrid(frame, window, spacing, choice(taper, "taper", TAPERS))
    task = Task(
        window=window,
        max_shift=_each(max_shift, "max_shift", ndim, 1),
        gain=plan.gain,
        background=plan.background,
        known_err=err is not None,
        verdict=flag(verdict, "verdict"),
        robust=choice(errors, "errors", ERRORS) == "sandwich",
        even=pair.err.ndim == 0 and taper == "box",
    )
    levels = integer(levels, "levels", 1)
    batch_size = None if batch_size is None else integer(batch_size, "batch_size", 1)
    predicted: Any = jnp.zeros(ndim, pair.image.dtype)
    if isinstance(initial, Field):
        predicted = initial
    elif initial is not None:
        predicted = as_real_array(initial, "initial").astype(pair.image.dtype)
        shape = (*windows.shape, ndim)
        if predicted.shape not in ((ndim,), shape) or (predicted.ndim > 1 and levels > 1):
            allowed = f"({ndim},)" if levels > 1 else f"({ndim},) or {shape}"
            refuse("initial", f"a Field or of shape {allowed}", predicted.shape)
    return _fields(pair, predicted, plan, task, windows, levels, batch_size)


def _each(value: Any, name: str, ndim: int, least: int) -> Shape:
    """One size for each axis, or for all."""
    several = isinstance(value, list | tuple | np.ndarray)
    return sizes(value, name, ndim, least) if several else (integer(value, name, least),) * ndim


@partial(jax.jit, static_argnames=("plan", "task", "windows", "levels", "batch_size"))
def _fields(
    pair: Pair,
    predicted: Array | Field,
    plan: Plan,
    task: Task,
    windows: WindowGrid,
    levels: int,
    batch_size: int | None,
) -> Field:
    """The field of the smallest windows, after those of larger ones."""
    pair, unit = with_unit(pair, task.known_err)
    prepared = prepare(pair, plan)
    filled = fill(prepared, plan)
    if prepared.variance is not None:
        filled = _filtered(filled, prepared, pair, plan)
    for level in reversed(range(levels)):
        size = tuple(min(n << level, m) for n, m in zip(task.window, pair.image.shape, strict=True))
        halved = tuple(-(-m // 2 ** (levels - 1 - level)) for m in task.max_shift)
        here = replace(
            task,
            window=size,
            max_shift=halved if level == levels - 1 else tuple(max(m, FINER) for m in halved),
            verdict=task.verdict or level > 0,
            robust=task.robust and level == 0,
        )
        larger = replace(windows, window=size, spacing=tuple(s << level for s in windows.spacing))
        predicted = _field(prepared, filled, predicted, plan, here, larger, batch_size)
    assert isinstance(predicted, Field)
    chi2, doubt = in_units(predicted.chi2, unit)
    # The background meant by the user is that at zero of the images, not at their pedestal.
    pedestal = jnp.where(plan.background, prepared.pedestal, 0.0)
    one, zero = jnp.ones_like(pedestal), jnp.zeros_like(pedestal)
    change = jnp.stack([one, zero, -pedestal, prepared.unit]).reshape(2, 2)
    product = partial(jnp.einsum, "ij,...jk,lk->...il", precision=lax.Precision.HIGHEST)
    return replace(
        predicted,
        chi2=chi2,
        status=predicted.status | doubt,
        background=predicted.background * prepared.unit + (1 - predicted.gain) * pedestal,
        nuisance_covariance=product(change, predicted.nuisance_covariance, change),
    )


def _filtered(filled: Filled, prepared: Prepared, pair: Pair, plan: Plan) -> Filled:
    """A noisy reference behind its filter; what is left of the noise is a variance of its pixels."""
    layout = lay_out(prepared, pair, plan, filled)
    behind = filtered_layout(layout, plan)
    counted = (layout.weights > 0) & (behind.weights > 0)
    before, after = (jnp.where(counted, x.weights, 1.0) for x in (layout, behind))
    left = jnp.where(counted, 1 / after - 1 / before, 0.0)
    left = jnp.where(counted, left, mean_over(left, counted))
    return filled._replace(reference=behind.reference, missing=jnp.maximum(left, 0.0), variance=None)


def _field(
    prepared: Prepared,
    filled: Filled,
    predicted: Array | Field,
    plan: Plan,
    task: Task,
    windows: WindowGrid,
    batch_size: int | None,
) -> Field:
    """The field of windows of one size."""
    frame, ndim, dtype = windows.frame, len(windows.frame), prepared.image.dtype
    first = np.stack(np.meshgrid(*windows.starts, indexing="ij"), -1).astype(np.int32)
    shape, count = windows.shape, prod(windows.shape)
    if isinstance(predicted, Field):
        predicted = predicted.predict(windows.centers)
    near = jnp.broadcast_to(lax.stop_gradient(predicted), first.shape).astype(dtype).reshape(count, ndim)
    near = jnp.round(jnp.where(jnp.isfinite(near), near, 0.0))
    # As far beyond the frame as a window may be taken.
    border = tuple(m + n for n, m in zip(task.window, task.max_shift, strict=True))
    limit = jnp.asarray([[n + b for n, b in zip(frame, border, strict=True)]], dtype)
    near = jnp.clip(near, -limit, limit).astype(jnp.int32)
    scene = scene_of(filled, border)
    taper = reduce(np.multiply.outer, windows.weights)
    image = Image(prepared.image, prepared.weights, jnp.asarray(taper, dtype))
    measure = jax.vmap(partial(measure_window, scene, image, task=task, plan=plan))
    size = batch_size or max(CHUNK // prod(task.window), 1)
    found = in_chunks(lambda x: measure(*x), (jnp.asarray(first.reshape(count, ndim)), near), size)
    found = jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)
    return _as_field(found, task, windows)


def _as_field(found: Found, task: Task, windows: WindowGrid) -> Field:
    """What windows tell, with their statuses; NaN where that is no answer."""
    cause = [
        (~found.overlaps, Status.LITTLE_OVERLAP),
        (~found.usable, Status.NO_DATA),
        (~found.curved, Status.FLAT),
        (~found.converged, Status.NOT_CONVERGED),
        (~found.inside, Status.OUT_OF_WINDOW),
    ]
    fatal = first_of(cause)
    failed = fatal != 0
    doubts = [
        (found.chance > MAX_CHANCE, Status.UNRELATED),
        (found.probability < MIN_PROBABILITY, Status.AMBIGUOUS),
    ]
    if task.known_err:
        doubts.append((is_bad_fit(found.chi2, found.dof), Status.BAD_FIT))
        doubts.append((is_too_good(found.chi2, found.dof), Status.LARGE_ERRORS))

    def unless_failed(x: Array) -> Array:
        where = failed.reshape(failed.shape + (1,) * (x.ndim - failed.ndim))
        return jnp.where(where, jnp.nan, x)

    second = RunnerUp(found.runner_up, found.delta, found.probability)
    return Field(
        shift=unless_failed(found.shift),
        covariance=unless_failed(found.covariance),
        status=jnp.where(failed, fatal, all_of(doubts)),
        chi2=unless_failed(found.chi2),
        dof=found.dof,
        gain=unless_failed(found.gain),
        background=unless_failed(found.background),
        nuisance_covariance=unless_failed(found.nuisance_covariance),
        runner_up=jax.tree.map(unless_failed, second),
        chance=unless_failed(found.chance),
        inflation=unless_failed(found.inflation),
        noise_known=jnp.full(failed.shape, task.known_err),
        windows=windows,
    )
