"""Many frames registered to one reference: what it takes from the reference is computed once.

Frames come with their axis first. They are done in chunks, so that memory does not grow with their number,
and on as many devices as a mesh has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh
from jax.typing import ArrayLike

from .arrays import unit_of
from .batch import (
    as_mesh,
    default_batch_size,
    frame_axis,
    gathered,
    on_mesh,
    previous_frames,
    spread,
)
from .checks import as_real_array, boolean_array, choice, flag, integer, is_traced, numbers, refuse, stack_of
from .chunks import (
    Frame,
    Options,
    in_its_unit,
    is_even,
    register_chunks,
    shares_reference,
    without_bad_pixels,
)
from .engine.choices import Boundary, Choices
from .engine.constraints import ANYWHERE, Search, free_axes
from .engine.correlated import Noise, Whiteness, covariances, refuse_errors, whiten
from .engine.counts import Counts, as_counts, check_counts
from .engine.layout import is_valid_error
from .engine.pair import Pair
from .engine.ways import Way, tried
from .mean import MeanTemplate, most_of_mean, register_to_mean
from .pattern import with_doubt
from .registration import check_measure, unwhitened
from .results import Registration
from .sharding import any_sharding
from .status import Status
from .template import frame_of

REFERENCES = ("mean", "first", "previous")


@any_sharding(by_frame=True)
def register_stack(
    stack: ArrayLike,
    reference: str | ArrayLike | MeanTemplate = "mean",
    err: ArrayLike | Counts | str | None = None,
    *,
    reference_err: ArrayLike | None = None,
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
    static_pattern: bool = False,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> Registration:
    """Measure the displacement of every frame of a stack from one reference, as `register` does of one.

    Parameters
    ----------
    stack : array_like, shape (N, ny, nx) or (N, nz, ny, nx)
        The frames; real, integers become the default float. A pixel that is not finite has weight zero, a
        frame without a finite pixel comes back with a status.
    reference : {"mean", "first", "previous"} or array_like, shape of a frame or of the stack
        What the frames are displaced from: the mean of them all, aligned; the first; or for every frame the
        one before it, for the first itself. See the notes on the mean. With "previous" the shifts are those
        steps, and their running sum is the position; a step that failed leaves a gap in that. An array of
        the stack's shape holds one reference for each frame. A frame as reference has a frame's noise: say
        so by ``reference_err``, or errors are too small and χ² twice what it should be.
    err : array_like, Counts or "poisson", optional
        Standard deviation of the pixels: a scalar, one for each frame, shape ``(N,)``, a map for all frames
        or one for each, of the stack's shape. None: unknown, each frame's errors are scaled by its reduced
        χ². Counts, and "poisson", are for all frames, and for references other than the mean; see `register`.
    reference_err : array_like, optional
        Noise of the reference, of the shapes that ``err`` may have; see `register`. Not for the mean, whose
        noise follows from ``err``.
    noise, reference_noise : Noise, optional
        Correlated noise of every frame and of the reference, in place of ``err`` and ``reference_err``; see
        `register`. The frames are made white first, in a copy of the stack. With bad pixels in any frame,
        "wrap" takes a compact kernel for all. ``reference_mask`` needs one image as reference then.
    mask : array_like of bool, shape of a frame or of the stack, optional
        True where a pixel is to be ignored.
    search : Search
        As of `register`, its arrays for all frames or with a leading axis for each: ``initial`` of shape
        ``(N, D)``, a prior's mean and covariance of shapes ``(N, D)`` and ``(N, D, D)``.
    static_pattern : bool
        Whether the frames may have something in common that does not move with the scene, as hot pixels,
        columns or the fixed pattern of a camera, which would draw all shifts to zero. It is found together
        with the mean, and taken from every frame, as `register_jointly` says in its notes; where shifts are
        too alike for that every frame has STATIC_PATTERN. For the mean as reference, or one that
        `mean_template` made, which holds the pattern and its variance; static under jit.
    batch_size : int, optional
        Frames done at once; static under jit. The result is that of any other to rounding. None: what the
        cache of a CPU or a quarter of an accelerator's memory holds.
    memory_limit : int, optional
        Bytes that the computation may take beside the stack itself, in place of that quarter; static.
    mesh : jax.sharding.Mesh, optional
        Devices to spread the frames over, along its first axis. No device needs another's frames. Under
        ``jax.distributed`` every process calls with its own frames and gets their results, as NumPy arrays.
    reference_mask, boundary, fit_gain, fit_background, max_shift, clip, nsigma, verdict, errors
        As of `register`, for all frames.

    Returns
    -------
    Registration
        With the frame axis first in every field, in the order of the frames: one row for each, whatever
        became of it.

    Raises
    ------
    ValueError, TypeError
        For unfit shapes and options, at once.

    Notes
    -----
    *The mean.* A plain mean of the frames is blurred by the displacements that it is to measure, and each
    frame finds its own noise in it, at no shift. So the frames are registered to one of them, the most usual
    by level and scatter; then three times each to the mean of the *others*, aligned by the last shifts and
    weighted by inverse variance, its noise counted as ``reference_err``; without ``err`` the noise is taken
    from what frames and mean differ by. A frame without an answer, or with a χ² per degree of freedom of more
    than twice the median, has no part in the mean; it is registered to it like the others. Shifts are
    relative to the mean position of those that have a part: the sum of theirs is zero. Of more than 64
    frames (fewer where they are larger than some two megapixels), as many, evenly spaced, make the mean:
    zero is the mean position of these. With a prior or first guesses the first mean is that of the frames
    placed there. `register_jointly` goes on until the shifts rest, and has covariances between frames.

    *Cost.* That of the mean is some five registrations for each of the frames that make it. For the rest, or
    another reference: where one error or one map holds for all frames and ``boundary="wrap"``, the
    reference's FFTs and the error map's term are computed once, and a frame takes one FFT, one inverse FFT
    and a few passes. With a ``max_shift`` of a few pixels the inverse FFT becomes two small matrix products.
    ``verdict=False`` saves a third to a half. A chunk with a bad pixel takes the longer way of `register`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> stack = np.stack([np.roll(scene, k, axis=1) for k in range(4)]) + 0.1 * rng.normal(size=(4, 32, 32))
    >>> found = register_stack(stack, "first", 0.1, reference_err=0.1, boundary="wrap")
    >>> print(np.round(found.dx), found)
    [0. 1. 2. 3.] Registration((4,) results, 0 with a status)
    """
    task = _checked(
        stack,
        reference,
        err,
        reference_err=reference_err,
        noise=noise,
        reference_noise=reference_noise,
        mask=mask,
        reference_mask=reference_mask,
        boundary=boundary,
        fit_gain=fit_gain,
        fit_background=fit_background,
        max_shift=max_shift,
        search=search,
        clip=clip,
        nsigma=nsigma,
        verdict=verdict,
        errors=errors,
        static_pattern=static_pattern,
        batch_size=batch_size,
        memory_limit=memory_limit,
        mesh=mesh,
    )
    found, _ = _registered(task)
    if task.separated is not None:
        found = with_doubt(found, task.separated)
    if task.whiteness is None:
        return found
    choices, fixed = task.options.choices, task.common.search.fixed
    free = free_axes(fixed, task.frames.image.ndim - 1)
    return unwhitened(found, task.whiteness, sum(free) + choices.gain + choices.background)


def mean_template(
    stack: ArrayLike, err: ArrayLike | Counts | str | None = None, **options: Any
) -> tuple[MeanTemplate, Registration]:
    """The mean that ``register_stack(stack, "mean", err, **options)`` uses, and what that returns.

    All frames have a part in it. As a reference of `register_stack` it stands with its noise for frames that
    are not among them; for these, what is returned here. With ``static_pattern=True`` the template has that
    pattern, and it is taken from all frames that are registered to it.
    """
    task = _checked(stack, "mean", err, **options)
    found, template = _registered(task._replace(most=sys.maxsize))
    assert template is not None
    return template, found


class _Task(NamedTuple):
    """A call of `register_stack`, checked and sorted."""

    frames: Frame
    common: Frame
    extra: tuple
    """Mask of the reference, and the standard deviations of the interval."""
    options: Options
    made: str | None
    """Reference that is to be made of the frames, "mean" or "first"."""
    most: int
    """Frames that a mean may be made of."""
    number: int
    """Frames of this process."""
    batch_size: int
    mesh: Mesh | None
    whiteness: Whiteness | None
    """Of correlated noise, where frames and reference have been made white."""
    separated: Array | None
    """Whether the pattern of a template was told from its scene; None without."""


def _checked(
    stack: ArrayLike,
    reference: str | ArrayLike | MeanTemplate,
    err: ArrayLike | Counts | str | None,
    *,
    reference_err: ArrayLike | None = None,
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
    static_pattern: bool = False,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> _Task:
    unit = unit_of(stack, reference)
    stack = stack_of(stack, unit=unit)
    shape = stack.shape[1:]
    clip, nsigma, verdict, robust = check_measure(stack.dtype, clip, nsigma, verdict, errors)
    choices = Choices.of(boundary, fit_gain, fit_background, max_shift)
    choices.limits(len(shape))  # raises for another number of axes
    noises = None
    if noise is not None or reference_noise is not None:
        noise = refuse_errors(noise, reference_noise, choices.boundary, err=err, reference_err=reference_err)
        noises, err = (noise, reference_noise), 1.0
    static = flag(static_pattern, "static_pattern")
    options = Options(choices, clip, verdict, robust, err is not None, static)
    made, counts, separated = None, as_counts(err), None
    if counts is not None and isinstance(reference, str) and reference == "mean":
        raise ValueError(
            "reference must be an image, 'first' or 'previous' with the err of counts, not 'mean'"
        )
    if isinstance(reference, MeanTemplate):
        if noises is not None:
            raise ValueError("noise must be None for a MeanTemplate, whose noise is white")
        template: MeanTemplate = reference
        if static and template.pattern is None:
            raise ValueError("static_pattern must be False for a MeanTemplate that was made without")
        err = template.noise if err is None else err
        pattern = template.pattern
        if pattern is not None:
            stack = stack - jnp.asarray(pattern, stack.dtype)[None]
            separated = ~jnp.any(jnp.isnan(jnp.asarray(template.pattern_variance)))
        reference, reference_err = template.image, template.err
    elif static and not (isinstance(reference, str) and reference == "mean"):
        raise ValueError("static_pattern must be False, or the reference the mean")
    elif isinstance(reference, str) and reference in ("mean", "first"):
        # Of a single frame there are no others.
        made = "first" if len(stack) == 1 and jax.process_count() == 1 else reference
        if reference == "mean":
            for name, value in (("reference_err", reference_err), ("reference_noise", reference_noise)):
                if value is not None:
                    raise ValueError(f"{name} must not be given for the mean, whose noise follows from that")
    sigma = None if counts is not None else cast("ArrayLike | None", err)
    frames, common = _sorted(stack, reference, sigma, reference_err, mask, search, unit)
    if counts is not None:
        common = common._replace(counts=check_counts(counts, shape, stack.dtype, unit))
    if reference_mask is not None:
        words = f"the shape of a frame, {shape}"
        reference_mask = boolean_array(reference_mask, "reference_mask", (shape,), words)
    whiteness = None
    if noises is not None:
        frames, common, whiteness = _whitened(frames, common, reference_mask, noises, made, choices)
        reference_mask = None
    limit = None if memory_limit is None else integer(memory_limit, "memory_limit")
    default = default_batch_size(shape, stack.dtype.itemsize, limit, not options.periodic)
    return _Task(
        frames,
        common,
        (reference_mask, nsigma),
        options,
        made,
        most_of_mean(shape, stack.dtype.itemsize, limit),
        len(stack),
        default if batch_size is None else integer(batch_size, "batch_size"),
        None if mesh is None else as_mesh(mesh),
        whiteness,
        separated,
    )


def _whitened(
    frames: Frame,
    common: Frame,
    reference_mask: Array | None,
    noises: tuple[Noise, Noise | None],
    made: str | None,
    choices: Choices,
) -> tuple[Frame, Frame, Whiteness]:
    """Frames and their reference with white noise; what is to be masked is NaN in them."""
    if jax.process_count() > 1:
        raise ValueError("noise must be None with several processes, which would have a filter each")
    images, _ = without_bad_pixels(frames, common)
    shape, dtype = images.shape[1:], images.dtype
    reference = common.reference if frames.reference is None else frames.reference
    if made is not None or reference is None:
        reference = jnp.zeros(shape, dtype)
    if reference_mask is not None:
        if made is not None or frames.reference is not None:
            raise ValueError("reference_mask needs one image as reference, beside noise")
        reference = jnp.where(reference_mask, jnp.nan, reference)
    pair = Pair(reference.astype(dtype), images, jnp.ones((), dtype))
    pair, whiteness = whiten(pair, covariances(*noises, len(shape), dtype), choices.boundary.periodic)
    frames = frames._replace(image=pair.image, mask=None)
    common = common._replace(mask=None, err=pair.err, reference_err=pair.reference_err)
    if frames.reference is not None:
        frames = frames._replace(reference=pair.reference)
    elif made is None:
        common = common._replace(reference=pair.reference)
    return frames, common, whiteness


def _registered(task: _Task) -> tuple[Registration, MeanTemplate | None]:
    """Rows of all frames, and the mean if there is one."""
    frames, common, extra, options, made, most, count, batch_size, mesh, *_ = task
    if mesh is not None:
        frames, count = spread(frames, mesh)
    if made == "first":
        common = common._replace(reference=_first(frames, common, mesh))
    run: Callable[..., tuple[Registration, MeanTemplate | None]]
    if made == "mean":
        run = partial(register_to_mean, frames, common, extra, options, most, batch_size, mesh)
        promising = is_even(frames, common, extra, options)
    else:
        run = partial(_register_stack, frames, common, extra, options, batch_size, mesh)
        promising = shares_reference(frames, common, extra[0], options)
    if mesh is not None:
        found, template = run(Way.BY_VALUES)
        return gathered(found, count), template

    def failed(found: tuple[Registration, MeanTemplate | None]) -> bool:
        # A frame without an answer may be a blank one: then one pass over the stack.
        return bool(jnp.any(found[0].status == Status.FLAT)) and not _all_known(frames, common)

    return tried(run, promising, is_traced(frames, common, extra), failed, Way.BY_VALUES)


@jax.jit
def _all_known(frames: Frame, common: Frame) -> Array:
    """Whether every pixel is finite, and every error that of one."""
    known = [jnp.all(jnp.isfinite(x)) for x in (frames.image, common.reference) if x is not None]
    return jnp.all(
        jnp.stack([*known, *(jnp.all(is_valid_error(x)) for x in (frames.err, common.err) if x is not None)])
    )


def _sorted(
    stack: Array,
    reference: str | ArrayLike,
    err: ArrayLike | None,
    reference_err: ArrayLike | None,
    mask: ArrayLike | None,
    search: Search,
    unit: Any,
) -> tuple[Frame, Frame]:
    """What each frame has of its own, and what they have in common; one is None where the other is not."""
    count, shape = len(stack), stack.shape[1:]
    if not isinstance(search, Search):
        refuse("search", "a Search", search, TypeError)
    own, shared = _sorted_search(search, count, len(shape))
    frames = Frame(stack, None, None, None, None, own)
    common = Frame(jnp.zeros_like(stack, shape=()), None, None, None, None, shared)
    if isinstance(reference, str):
        choice(reference, "reference", REFERENCES, " or an image")
    else:
        image = as_real_array(reference, "reference", unit)
        if image.ndim == len(shape):
            common = common._replace(reference=image)
        elif image.ndim == stack.ndim and len(image) == count:
            frames = frames._replace(reference=image)
        else:
            raise ValueError(
                f"reference must have the {len(shape)} axes of a frame, or be one for each of {count} "
                f"frames, not of shape {image.shape}"
            )
    for name, value in (("err", err), ("reference_err", reference_err), ("mask", mask)):
        if value is None:
            continue
        words = f"the shape of a frame, {shape}, or of stack, {stack.shape}"
        if name == "mask":
            array = boolean_array(value, name, (shape, stack.shape), words)
        else:
            words = f"be a scalar, one per frame, ({count},), or have {words}"
            array = numbers(value, name, ((), (count,), shape, stack.shape), words, unit=unit)
        if array.shape in ((count,), stack.shape):
            frames = Frame(**(frames._asdict() | {name: array}))
        else:
            common = Frame(**(common._asdict() | {name: array}))
    if isinstance(reference, str) and reference == "previous":
        images, _ = without_bad_pixels(frames, common)
        frames = frames._replace(reference=previous_frames(images))
    return frames, common


def _sorted_search(search: Search, count: int, ndim: int) -> tuple[Search, Search]:
    own: dict = {}
    shared: dict = {"fixed": search.fixed}
    if search.initial is not None:
        words = f"have shape ({ndim},) or ({count}, {ndim})"
        initial = numbers(search.initial, "initial", ((ndim,), (count, ndim)), words)
        (own if initial.ndim == 2 else shared)["initial"] = initial
    if search.prior is not None:
        mean, covariance = (jnp.asarray(x) for x in search.prior)
        each = mean.shape == (count, ndim) and covariance.shape == (count, ndim, ndim)
        (own if each else shared)["prior"] = (mean, covariance)
    return Search(**own), Search(**shared)


@partial(jax.jit, static_argnames="mesh")
def _first(frames: Frame, common: Frame, mesh: Mesh | None) -> Array:
    """The first frame, as a reference."""
    axis = None if mesh is None else frame_axis(mesh)

    def of(frames: Frame, common: Frame) -> Array:
        first = jax.tree.map(lambda x: frame_of(x, 0, axis)[None], frames)
        return without_bad_pixels(first, common)[0][0]

    return on_mesh(of, mesh, reduces=True)(frames, common)


@partial(jax.jit, static_argnames=("options", "way", "batch_size", "mesh"))
def _register_stack(
    frames: Frame,
    common: Frame,
    extra: tuple,
    options: Options,
    batch_size: int,
    mesh: Mesh | None,
    way: Way,
) -> tuple[Registration, None]:
    def run(frames: Frame, rest: tuple) -> Registration:
        common, extra = rest
        return register_chunks(frames, common, extra=extra, options=options, way=way, batch_size=batch_size)

    found = on_mesh(run, mesh)(frames, (common, extra))
    # Errors that were not given are those of a template of unknown noise.
    return found if options.known_err else in_its_unit(found, common.err), None
