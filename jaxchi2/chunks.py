"""Frames that are registered a few at a time: by what they have in common, or one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from .batch import in_chunks
from .engine.builders import is_shareable, known_reference, shared_reference, shared_terms
from .engine.choices import Choices, Plan
from .engine.constraints import Search
from .engine.counts import Camera, Counts
from .engine.layout import is_valid_error
from .engine.pair import Pair, check
from .engine.ways import Way
from .registration import measure, solve, with_unit
from .results import Registration, in_units


class Frame(NamedTuple):
    """What belongs to one frame, with a leading axis to each of a stack; None where all have it in common."""

    image: Array
    err: Array | None
    mask: Array | None
    reference: Array | None
    reference_err: Array | None
    search: Search
    counts: Camera | None = None
    """In place of errors, for all."""


class Options(NamedTuple):
    """What a stack is asked beside its images, hashable."""

    choices: Choices
    clip: float | None
    verdict: bool
    robust: bool
    """Whether errors come from the sandwich."""
    known_err: bool
    static: bool = False
    """Whether the frames may have a pattern that does not move with the scene."""

    @property
    def periodic(self) -> bool:
        """Whether frames are periodic."""
        return self.choices.boundary.periodic


def shares_reference(
    frames: Frame, common: Frame, reference_mask: ArrayLike | None, options: Options
) -> bool:
    """Whether frames without bad pixels take all but their own FFT from what they have in common."""
    maps = [x for x in (common.err, common.reference_err, common.mask) if x is not None and x.ndim]
    return (
        options.periodic
        and options.clip is None
        and common.counts is None
        and reference_mask is None
        and (common.reference_err is None or not (maps or options.choices.degree > 0))
        and all(x is None for x in frames[1:5])
        and frames.search == Search()
    )


def is_even(frames: Frame, common: Frame, extra: tuple, options: Options) -> bool:
    """Whether frames without bad pixels have one error each and no edges, which takes the least time."""
    maps = [frames.mask, common.mask, extra[0], None if common.err is None else common.err.ndim or None]
    return (
        options.periodic
        and options.clip is None
        and common.counts is None
        and all(x is None for x in maps)
        and (frames.err is None or frames.err.ndim == 1)
        and options.choices.degree < 1
    )


def without_bad_pixels(frames: Frame, common: Frame) -> tuple[Array, Array]:
    """The images as references, NaN where pixels are masked or have no error, and their variance."""
    images, pixels = frames.image, (1,) * (frames.image.ndim - 1)
    mask = common.mask if frames.mask is None else frames.mask
    if mask is not None:
        images = jnp.where(mask if mask.ndim == images.ndim else mask[None], jnp.nan, images)
    err = common.err if frames.err is None else frames.err
    variance = jnp.ones_like(images, shape=())
    if err is not None:
        good = is_valid_error(err)
        variance = jnp.where(good, err, 1.0).astype(images.dtype) ** 2
        if good.shape == images.shape[:1]:
            good = good.reshape(-1, *pixels)
        elif good.ndim < images.ndim:
            good = good[None] if good.ndim else good.reshape(1, *pixels)
        images = jnp.where(good, images, jnp.nan)
    return images, variance


def given(search: Search) -> dict[str, Any]:
    """What is known of a search, by name."""
    return {name: x for name, x in vars(search).items() if x is not None}


def in_its_unit(found: Registration, noise: Array | None) -> Registration:
    """χ² as a sum of squares, where it was computed with an estimate of the noise."""
    return found if noise is None else found._replace(chi2=found.chi2 * noise**2)


def register_chunks(
    frames: Frame, common: Frame, *, extra: tuple, options: Options, way: Way, batch_size: int
) -> Registration:
    """All frames, so many at once; ``extra`` is the mask of the reference, and the interval's ``nsigma``."""
    return in_chunks(_chunk_function(frames, common, extra, options, way), frames, batch_size)


def _chunk_function(
    frames: Frame, common: Frame, extra: tuple, options: Options, way: Way
) -> Callable[[Frame], Registration]:
    """What registers a few frames: by what they share, or where they do not share it one by one."""
    reference_mask, nsigma = extra
    known_err = options.known_err
    shareable = shares_reference(frames, common, reference_mask, options)
    # A mask common to all frames is an error map, which costs less than bad pixels in every frame.
    if common.mask is not None and frames.err is None and common.counts is None:
        err = 1.0 if common.err is None else common.err
        common = common._replace(err=jnp.where(common.mask, jnp.nan, err), mask=None)

    def pair_of(frame: Frame) -> tuple[Pair, Plan]:
        err, mask, reference, reference_err = (
            a if b is None else b for a, b in zip(common[1:5], frame[1:5], strict=True)
        )
        assert reference is not None
        search = replace(common.search, **given(frame.search))
        return check(
            reference,
            frame.image,
            err if common.counts is None else Counts(*common.counts),
            options.choices,
            search=search,
            reference_err=reference_err,
            mask=mask,
            reference_mask=reference_mask,
            compact=True,
            counting=True,
        )

    example = jax.tree.map(lambda x: x[0], frames)
    pair, plan = pair_of(example)
    # A chunk is registered one by one where pixels of it are bad.
    alone = Way.ANY if shareable and way is Way.BY_VALUES else way

    pair, unit = with_unit(pair, known_err)
    own = frames.reference, frames.reference_err, frames.err
    # Pixels that are judged in rounds have other weights in each.
    one_fit = options.clip is None and common.counts is None
    known = known_reference(pair, plan) if one_fit and all(x is None for x in own) else None

    def one_by_one(frame: Frame) -> Registration:
        pair, plan = pair_of(frame)
        return measure(
            pair, nsigma, alone, known_err, plan, options.clip, options.verdict, options.robust, known
        )

    if not shareable:
        return jax.vmap(one_by_one)
    shared = shared_reference(pair, plan)

    def shared_measure(frame: Frame) -> Registration:
        terms = shared_terms(shared, pair._replace(image=frame.image), plan)
        result, _ = solve(terms, nsigma, known_err, options.verdict, options.robust)
        chi2, doubt = in_units(result.chi2, unit)
        return result._replace(chi2=chi2, status=result.status | doubt)

    if way is Way.QUICK:
        return jax.vmap(shared_measure)

    def of_chunk(chunk: Frame) -> Registration:
        good = jax.vmap(lambda image: is_shareable(shared, pair._replace(image=image)))(chunk.image)
        return lax.cond(jnp.all(good), jax.vmap(shared_measure), jax.vmap(one_by_one), chunk)

    return of_chunk
