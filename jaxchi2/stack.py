"""Many frames registered to one reference: what it takes from the reference is computed once.

Frames come with their axis first. They are done in chunks, so that memory does not grow with their number,
and on as many devices as a mesh has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from .arrays import unit_of
from .batch import (
    as_mesh,
    default_batch_size,
    first_frame,
    frame_axis,
    gathered,
    in_chunks,
    mean_frame,
    on_mesh,
    previous_frames,
    spread,
)
from .checks import as_real_array, boolean_array, choice, integer, is_traced, numbers, refuse, stack_of
from .pair import (
    ANYWHERE,
    Boundary,
    Model,
    Pair,
    Search,
    as_boundary,
    check,
    check_max_shift,
    check_switches,
)
from .registration import Registration, Status, check_measure, in_units, measure, solve, with_unit
from .terms import is_shareable, shared_reference, shared_terms

REFERENCES = ("mean", "first", "previous")


class Frame(NamedTuple):
    """What belongs to one frame, with a leading axis to each of a stack; None where all have it in common."""

    image: Array
    err: Array | None
    mask: Array | None
    reference: Array | None
    reference_err: Array | None
    search: Search


class Options(NamedTuple):
    """The choices of a registration, hashable."""

    boundary: Boundary
    fit_gain: bool
    fit_background: bool
    max_shift: tuple[float, ...] | None
    oversample: int
    clip: float | None
    verdict: bool
    known_err: bool


def register_stack(
    stack: ArrayLike,
    reference: str | ArrayLike = "mean",
    err: ArrayLike | None = None,
    *,
    reference_err: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    boundary: str | Boundary = "overlap",
    fit_gain: bool = False,
    fit_background: bool = False,
    max_shift: float | tuple[float, ...] | None = None,
    search: Search = ANYWHERE,
    oversample: int = 1,
    clip: float | None = None,
    nsigma: ArrayLike = 1.0,
    verdict: bool = True,
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
        What the frames are displaced from: the mean of their finite values, which is blurred by the
        displacements that it is to measure (`register_jointly` is not); the first; or for every frame the
        one before it, for the first itself. With "previous" the shifts are those steps, and their running
        sum is the position; a step that failed leaves a gap in that. An array of the stack's shape holds
        one reference for each frame. A frame as reference has a frame's noise: say so by ``reference_err``,
        or errors are too small and χ² twice what it should be.
    err : array_like, optional
        Standard deviation of the pixels: a scalar, one for each frame, shape ``(N,)``, a map for all frames
        or one for each, of the stack's shape. None: unknown, each frame's errors are scaled by its reduced
        χ².
    reference_err : array_like, optional
        Noise of the reference, of the shapes that ``err`` may have; see `register`.
    mask : array_like of bool, shape of a frame or of the stack, optional
        True where a pixel is to be ignored.
    search : Search
        As of `register`, its arrays for all frames or with a leading axis for each: ``initial`` of shape
        ``(N, D)``, a prior's mean and covariance of shapes ``(N, D)`` and ``(N, D, D)``.
    batch_size : int, optional
        Frames done at once; static under jit. The result is that of any other to rounding. None: what the
        cache of a CPU or a quarter of an accelerator's memory holds.
    memory_limit : int, optional
        Bytes that the computation may take beside the stack itself, in place of that quarter; static.
    mesh : jax.sharding.Mesh, optional
        Devices to spread the frames over, along its first axis. No device needs another's frames. Under
        ``jax.distributed`` every process calls with its own frames and gets their results, as NumPy arrays.
    reference_mask, boundary, fit_gain, fit_background, max_shift, oversample, clip, nsigma, verdict
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
    *Cost.* Where one error or one map holds for all frames and ``boundary="wrap"``, the reference's FFTs and
    the error map's term are computed once, and a frame takes one FFT, one inverse FFT and a few passes. With
    a ``max_shift`` of a few pixels the inverse FFT becomes two small matrix products. ``verdict=False``
    saves a third to a half. A chunk with a bad pixel takes the longer way of `register`.

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
    unit = unit_of(stack, reference)
    stack = stack_of(stack, unit=unit)
    mesh = None if mesh is None else as_mesh(mesh)
    clip, nsigma, verdict = check_measure(stack.dtype, clip, nsigma, verdict)
    fit_gain, fit_background, oversample = check_switches(fit_gain, fit_background, oversample)
    options = Options(
        as_boundary(boundary),
        fit_gain,
        fit_background,
        check_max_shift(max_shift, stack.ndim - 1),
        oversample,
        clip,
        verdict,
        err is not None,
    )
    frames, common = _sorted(stack, reference, err, reference_err, mask, search, unit)
    padded = options.boundary.name != "wrap"
    if batch_size is None:
        limit = None if memory_limit is None else integer(memory_limit, "memory_limit")
        batch_size = default_batch_size(stack.shape[1:], stack.dtype.itemsize, limit, padded)
    batch_size = integer(batch_size, "batch_size")
    count = len(stack)
    if mesh is not None:
        frames, count = spread(frames, mesh)
    if isinstance(reference, str) and reference != "previous":
        common = common._replace(reference=_made_reference(frames.image, reference, mesh))
    if reference_mask is not None:
        words = f"the shape of a frame, {stack.shape[1:]}"
        reference_mask = boolean_array(reference_mask, "reference_mask", (stack.shape[1:],), words)
    extra = (reference_mask, nsigma)
    run = partial(_register_stack, frames, common, extra, options, batch_size=batch_size, mesh=mesh)
    traced = is_traced(frames, common, nsigma)
    if mesh is not None:
        return gathered(run(clean=False), count)
    if traced or not _is_shareable(frames, common, reference_mask, options):
        return run(clean=False)
    # A bad pixel, if it is taken that there is none, leaves its frame without an answer. That says whether it
    # was right to try, and asks for no pass over the stack.
    result = run(clean=True)
    flat = result.status == Status.FLAT
    return result if not jnp.any(flat) or _are_blank(flat, frames, common) else run(clean=False)


@jax.jit
def _are_blank(flat: Array, frames: Frame, common: Frame) -> Array:
    """Whether frames without an answer are constant and finite, and nothing else is wrong with them.

    Such a frame has no answer whichever way it is asked for.
    """
    assert common.reference is not None
    images, axes = frames.image, tuple(range(1, frames.image.ndim))
    largest, smallest = jnp.max(images, axes), jnp.min(images, axes)
    blank = (largest == smallest) & jnp.isfinite(largest)
    good = jnp.all(blank | ~flat) & jnp.all(jnp.isfinite(common.reference))
    for err in (common.err, common.reference_err):
        if err is not None and not err.ndim:
            good &= jnp.isfinite(err) & (err > 0)
    return good


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
        if reference == "previous":
            frames = frames._replace(reference=previous_frames(stack))
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
            array = numbers(value, name, ((), (count,), shape, stack.shape), words)
        if array.shape in ((count,), stack.shape):
            frames = Frame(**(frames._asdict() | {name: array}))
        else:
            common = Frame(**(common._asdict() | {name: array}))
    return frames, common


def _is_shareable(frames: Frame, common: Frame, reference_mask: ArrayLike | None, options: Options) -> bool:
    """Whether frames without bad pixels take all but their own FFT from what they have in common."""
    maps = [x for x in (common.err, common.reference_err, common.mask) if x is not None and x.ndim]
    return (
        options.boundary.name == "wrap"
        and options.clip is None
        and reference_mask is None
        and (common.reference_err is None or not maps)
        and all(x is None for x in frames[1:5])
        and frames.search == Search()
    )


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


@partial(jax.jit, static_argnames=("kind", "mesh"))
def _made_reference(images: Array, kind: str, mesh: Mesh | None) -> Array:
    make = {"mean": mean_frame, "first": first_frame}[kind]
    axis = None if mesh is None else frame_axis(mesh)

    def reduce(images: Array, _: None) -> Array:
        return make(images, axis)

    return on_mesh(reduce, mesh, reduces=True)(images, None)


@partial(jax.jit, static_argnames=("options", "clean", "batch_size", "mesh"))
def _register_stack(
    frames: Frame,
    common: Frame,
    extra: tuple,
    options: Options,
    clean: bool,
    batch_size: int,
    mesh: Mesh | None,
) -> Registration:
    def run(frames: Frame, rest: tuple) -> Registration:
        common, extra = rest
        return in_chunks(_chunk_function(frames, common, extra, options, clean), frames, batch_size)

    return on_mesh(run, mesh)(frames, (common, extra))


def _chunk_function(
    frames: Frame, common: Frame, extra: tuple, options: Options, clean: bool
) -> Callable[[Frame], Registration]:
    """What registers a few frames: by what they share, or where they do not share it one by one.

    ``clean`` says that nothing about their pixels keeps them from sharing.
    """
    reference_mask, nsigma = extra
    known_err = options.known_err
    shareable = _is_shareable(frames, common, reference_mask, options)
    # A mask common to all frames is an error map, which costs less than bad pixels in every frame.
    if common.mask is not None and frames.err is None:
        err = 1.0 if common.err is None else common.err
        common = common._replace(err=jnp.where(common.mask, jnp.nan, err), mask=None)

    def pair_of(frame: Frame) -> tuple[Pair, Model]:
        err, mask, reference, reference_err = (
            a if b is None else b for a, b in zip(common[1:5], frame[1:5], strict=True)
        )
        assert reference is not None
        known = {name: x for name, x in vars(frame.search).items() if x is not None}
        search = replace(common.search, **known)
        return check(
            reference,
            frame.image,
            err,
            reference_err=reference_err,
            weights=None,
            mask=mask,
            reference_mask=reference_mask,
            boundary=options.boundary,
            fit_gain=options.fit_gain,
            fit_background=options.fit_background,
            max_shift=options.max_shift,
            search=search,
            oversample=options.oversample,
            compact=True,
        )

    example = jax.tree.map(lambda x: x[0], frames)
    pair, model = pair_of(example)

    def one_by_one(frame: Frame) -> Registration:
        pair, model = pair_of(frame)
        clean = False if shareable else None
        return measure(pair, nsigma, clean, known_err, model, options.clip, options.verdict)

    if not shareable:
        return jax.vmap(one_by_one)
    pair, unit = with_unit(pair, known_err)
    shared = shared_reference(pair, model)

    def shared_measure(frame: Frame) -> Registration:
        terms = shared_terms(shared, pair._replace(image=frame.image), model)
        result, _ = solve(terms, nsigma, known_err, options.verdict)
        chi2, doubt = in_units(result.chi2, unit)
        return result._replace(chi2=chi2, status=result.status | doubt)

    if clean:
        return jax.vmap(shared_measure)

    def of_chunk(chunk: Frame) -> Registration:
        good = jax.vmap(lambda image: is_shareable(shared, pair._replace(image=image)))(chunk.image)
        return lax.cond(jnp.all(good), jax.vmap(shared_measure), jax.vmap(one_by_one), chunk)

    return of_chunk
