"""Frames registered to their own mean: each to that of the others, made anew of the shifts found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh

from .batch import frame_axis, on_mesh
from .chunks import Frame, Options, given, in_its_unit, register_chunks, without_bad_pixels
from .coadd import Aligned, align_stack
from .engine.choices import boundary_for_align
from .engine.ways import Way
from .pattern import Pattern, beside_scene, best_start, first_patterns, improved_pattern, with_doubt
from .registration import range_of
from .results import MAX_REDUCED_CHI2, Registration
from .template import (
    Others,
    frame_of,
    has_answer,
    mean_of_others,
    median,
    most_usual,
    noise_between,
    number_of_shifts,
    total_of,
    with_chance,
)

MEAN_FRAMES = 64
"""Most frames that a mean is made of. Their noise adds a hundredth to the error of a shift where the signal
is as strong as the noise, a tenth at a third of that."""
LEAST_MEAN_FRAMES = 16
MEAN_BYTES = 2**31
"""Of the workspace that these may take, where they are more than the least."""
MEAN_ROUNDS = 3
"""How often the mean is made anew: at first of shifts against a single frame, then of those against the last
mean. From a signal as strong as the noise on, the second moves nothing; at a third of it the third does."""

STATIC_ROUNDS = 8
"""With a pattern, which takes its time where shifts are of a pixel: then each round leaves two thirds of what
the shifts have too much or too little in common. For shifts of some pixels four do."""


class MeanTemplate(NamedTuple):
    """A mean of aligned frames, as a reference for frames that are not among them."""

    image: Array
    """The mean, at the mean position of its frames; NaN where none has a value."""
    err: Array
    """Standard deviation of its noise, a scalar."""
    noise: Array
    """Standard deviation of a frame's pixels, if no errors were given; else one."""
    pattern: Array | None = None
    """What does not move with the scene, taken from all frames that are registered to this; None unless asked
    for by ``static_pattern``."""
    pattern_variance: Array | None = None
    """Variance of the error of each of its pixels; NaN where shifts do not tell it from the scene."""


def most_of_mean(shape: tuple[int, ...], itemsize: int, memory_limit: int | None = None) -> int:
    """How many frames a mean may be made of."""
    limit = MEAN_BYTES if memory_limit is None else memory_limit
    # Eight arrays of the size of these frames are needed at once.
    return min(max(limit // (8 * itemsize * prod(shape)), LEAST_MEAN_FRAMES), MEAN_FRAMES)


@partial(jax.jit, static_argnames=("options", "most", "batch_size", "mesh", "way"))
def register_to_mean(
    frames: Frame,
    common: Frame,
    extra: tuple,
    options: Options,
    most: int,
    batch_size: int,
    mesh: Mesh | None,
    way: Way,
) -> tuple[Registration, MeanTemplate]:
    """Frames against a mean of ``most`` of them at most, each of these against the mean of the others."""
    axis = None if mesh is None else frame_axis(mesh)

    def run(frames: Frame, rest: tuple) -> tuple[Registration, MeanTemplate]:
        count = len(frames.image) * (1 if mesh is None else mesh.shape[axis])
        every = -(-count // most)
        part = jax.tree.map(lambda x: x[::every], frames)
        common, extra = rest
        register = partial(register_chunks, extra=extra, way=way, batch_size=batch_size)
        # If nothing is known about the pixels, these few frames take the general way: half the program.
        rounds = partial(register, way=Way.ANY if way is Way.BY_VALUES else way)
        found, template = _mean_rounds(part, common, options, rounds, batch_size, axis)
        if every == 1:
            return found, template
        if template.pattern is not None:
            frames = frames._replace(image=frames.image - template.pattern[None])
        common = common._replace(reference=template.image, reference_err=template.err)
        if not options.known_err:
            common = common._replace(err=template.noise)
        others = register(frames, common, options=options)
        if not options.known_err:
            others = in_its_unit(others, template.noise)
        if template.pattern_variance is not None:
            others = with_doubt(others, ~jnp.any(jnp.isnan(template.pattern_variance)))
        return jax.tree.map(lambda x, own: x.at[::every].set(own), others, found), template

    return on_mesh(run, mesh, reduces=(False, True))(frames, (common, extra))


def _mean_rounds(
    frames: Frame,
    common: Frame,
    options: Options,
    register: Callable[..., Registration],
    batch_size: int,
    axis: str | None,
) -> tuple[Registration, MeanTemplate]:
    """Each frame against the mean of the others, made anew of the shifts that are found.

    Shifts are relative to the mean position of the frames that the mean is made of. A frame's own is the
    difference found, times the share of the others: it has itself moved that position. Of frames that do not
    answer, or fit much worse than is usual here, the mean is not made.
    """
    images, variance = without_bad_pixels(frames, common)
    frames, common = frames._replace(image=images, mask=None), common._replace(mask=None)
    ndim = frames.image.ndim - 1
    free = np.array([held is None for held in common.search.fixed or (None,) * ndim])
    eps = jnp.finfo(frames.image.dtype).eps
    shifts, _ = number_of_shifts(frames.image.shape[1:], options.choices)
    moving = options.choices.boundary.periodic, batch_size

    def aligned_at(images: Array, place: Array) -> Aligned:
        boundary = boundary_for_align(options.choices.boundary)
        return align_stack(images, place, variance, boundary=boundary, batch_size=batch_size)

    def pattern_at(place: Array, accepted: Array, pattern: Array) -> Pattern:
        """The pattern from the last one."""
        aligned = aligned_at(frames.image - pattern[None], place)
        others = mean_of_others(aligned, accepted, axis)
        scale = jnp.ones_like(variance, shape=())
        if not options.known_err:
            scale = noise_between(aligned, others, accepted, options.choices, axis) ** 2
        return improved_pattern(
            frames.image, pattern, place, others, accepted, variance * scale, *moving, axis
        )

    def begun(pattern: Array) -> tuple[tuple, Array]:
        """First places of frames less a first pattern, the one that follows, and how well both fit."""
        those = frames._replace(image=frames.image - pattern[None])
        place, accepted = _start(those, common, options, register, axis, free)
        found = lax.stop_gradient(pattern_at(place, accepted, pattern))
        images = frames.image - found.image[None]
        latent = mean_of_others(aligned_at(images, place), accepted, axis).mean
        *_, squares = beside_scene(images, latent, place, accepted, variance, *moving)
        return (place, accepted, found), median(jnp.where(accepted, squares, jnp.nan), axis)

    def one_round(state: tuple, _: None) -> tuple:
        # Near the solution a round's result does not depend on where it began: a Newton step.
        place, accepted, pattern = lax.stop_gradient(state[0]), *state[1:]
        these = frames
        if pattern is not None:
            pattern = lax.stop_gradient(pattern_at(place, accepted, pattern.image))
            these = frames._replace(image=frames.image - pattern.image[None])
        aligned = aligned_at(these.image, place)
        others = mean_of_others(aligned, accepted, axis)
        noise = jnp.ones_like(variance, shape=())
        those = common
        if not options.known_err:
            noise = noise_between(aligned, others, accepted, options.choices, axis)
            noise = lax.stop_gradient(jnp.maximum(noise, 16 * eps * range_of(others.mean)))
            those = common._replace(err=noise)
        these = these._replace(reference=others.image, reference_err=others.err * noise)
        found = with_chance(register(these, those, options=options), shifts)
        answered = has_answer(found)[:, None]
        part = (1 - others.share)[:, None]
        moved = place + jnp.where(answered, found.shift - place, 0.0) * part
        accepted = _fit_as_usual(found, axis)
        moved = jnp.where(free, moved - _mean_of(moved, accepted, axis), 0.0)
        shift = jnp.where(answered, jnp.where(free, moved, found.shift), jnp.nan)
        if not options.known_err:
            found = in_its_unit(found, noise)
        found = _moved_to(found, shift, part)
        if pattern is not None:
            found = with_doubt(found, pattern.separated)
        return (moved, accepted, pattern), (found, _template(others, noise, pattern))

    if options.static:
        state = best_start(begun, first_patterns(frames.image, axis))
    else:
        state = (*_start(frames, common, options, register, axis, free), None)
    rounds: tuple[Registration, MeanTemplate]
    _, rounds = lax.scan(one_round, state, None, length=STATIC_ROUNDS if options.static else MEAN_ROUNDS)
    return jax.tree.map(lambda x: x[-1], rounds)


def _start(
    frames: Frame,
    common: Frame,
    options: Options,
    register: Callable[..., Registration],
    axis: str | None,
    free: np.ndarray,
) -> tuple[Array, Array]:
    """First places of the frames, and which of them make the first mean."""
    images, ndim = frames.image, len(free)
    search = replace(common.search, **given(frames.search))
    expected = search.initial if search.initial is not None else (search.prior or (None,))[0]
    if expected is not None:
        place = jnp.broadcast_to(jnp.asarray(expected, images.dtype), (len(images), ndim))
        return jnp.where(free, place, 0.0), jnp.ones_like(images, shape=(len(images),), dtype=bool)
    number = most_usual(images, axis)
    err = common.err if frames.err is None else frame_of(frames.err, number, axis)
    first = common._replace(reference=frame_of(images, number, axis), reference_err=err)
    # Two frames may be twice as far apart as each is from the mean.
    limits = options.choices.max_shift
    choices = replace(options.choices, max_shift=None if limits is None else tuple(2 * x for x in limits))
    found = register(frames, first, options=options._replace(choices=choices, verdict=False, robust=False))
    accepted = _fit_as_usual(found, axis)
    place = jnp.where(has_answer(found)[:, None], found.shift, 0.0)
    return jnp.where(free, place - _mean_of(place, accepted, axis), 0.0), accepted


def _fit_as_usual(found: Registration, axis: str | None) -> Array:
    """Whether χ² is not far above that of most frames; where it is for all, the errors are wrong."""
    answered = has_answer(found)
    reduced = jnp.where(answered, found.reduced_chi2, jnp.nan)
    return answered & ~(reduced > MAX_REDUCED_CHI2 * median(reduced, axis))


def _mean_of(place: Array, accepted: Array, axis: str | None) -> Array:
    number = total_of(jnp.sum(accepted, dtype=place.dtype), axis)
    return total_of(jnp.sum(place, 0, where=accepted[:, None]), axis)[None] / jnp.maximum(number, 1.0)


def _template(others: Others, noise: Array, pattern: Pattern | None) -> MeanTemplate:
    there = jnp.isfinite(others.variance)
    number = jnp.maximum(jnp.sum(there), 1)
    variance = jnp.sum(jnp.where(there, others.variance, 0.0)) / number
    made = () if pattern is None else (pattern.image, pattern.known_variance)
    return MeanTemplate(others.mean, jnp.sqrt(variance) * noise, noise, *made)


def _moved_to(found: Registration, shift: Array, part: Array) -> Registration:
    """Registrations to the mean of the others as shifts from that of all frames."""
    # No derivative goes through a frame without an answer.
    part = jnp.where(has_answer(found)[:, None], part, 1.0)
    runner_up = found.runner_up._replace(shift=found.runner_up.shift + (shift - found.shift))
    return found._replace(
        shift=shift,
        covariance=found.covariance * part[..., None] ** 2,
        interval=shift[..., None] + (found.interval - found.shift[..., None]) * part[..., None],
        runner_up=runner_up,
    )
