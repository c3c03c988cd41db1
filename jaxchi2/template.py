"""A template made of the frames that are compared with it.

A frame that is part of a mean finds its own noise there, at no shift, and is drawn to where it was. So each
frame is compared with the mean of the *others*: one sum over all, less its own share. Frames may lie on many
devices, along the axis of a mesh; sums and a few numbers per frame are all that these exchange.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .coadd import Aligned
from .engine.choices import Choices
from .engine.polynomial import flattened
from .engine.spectrum import Shape
from .registration import MAX_CHANCE
from .results import Registration
from .status import Status

FATAL = Status.NO_DATA | Status.LITTLE_OVERLAP | Status.FLAT | Status.NOT_CONVERGED | Status.OUT_OF_WINDOW
"""Flags of a frame without an answer."""


class Others(NamedTuple):
    """For each of a stack's aligned frames the mean of the others."""

    image: Array
    """Shape of the stack, NaN where no other frame has a value."""
    err: Array
    """Standard deviation of its noise, the same for all pixels, shape ``(N,)``."""
    share: Array
    """What the frame itself has of the weight of all, shape ``(N,)``."""
    mean: Array
    """Mean of all frames, shape of one; NaN where none has a value."""
    variance: Array
    """Variance of its noise, NaN at the same places."""


def mean_of_others(aligned: Aligned, accepted: Array, axis: str | None = None) -> Others:
    """Means weighted by inverse variance of the accepted frames, ``accepted`` of shape ``(N,)``.

    The share of a frame is taken as the same in all pixels, and so is the noise.
    """
    pixels = tuple(range(1, aligned.image.ndim))
    counted = accepted.reshape(-1, *[1] * len(pixels)) & jnp.isfinite(aligned.variance)
    counted &= jnp.isfinite(aligned.image)
    weight = jnp.where(counted, 1 / jnp.where(counted, aligned.variance, 1.0), 0.0)
    own = weight * jnp.where(counted, aligned.image, 0.0)
    total, number = total_of(jnp.sum(own, 0), axis), total_of(jnp.sum(weight, 0), axis)
    rest = number[None] - weight
    # A pixel that this frame alone has seen is unknown without it.
    seen = (rest > 1e-4 * number[None]) & (number > 0)[None]
    rest = jnp.where(seen, rest, 1.0)
    there = number > 0
    return Others(
        image=jnp.where(seen, (total[None] - own) / rest, jnp.nan),
        err=jnp.sqrt(jnp.sum(1 / rest, pixels, where=seen) / jnp.maximum(jnp.sum(seen, pixels), 1)),
        share=jnp.sum(weight, pixels) / jnp.maximum(jnp.sum(number), jnp.finfo(number.dtype).tiny),
        mean=jnp.where(there, total / jnp.where(there, number, 1.0), jnp.nan),
        variance=jnp.where(there, 1 / jnp.where(there, number, 1.0), jnp.nan),
    )


def noise_between(
    aligned: Aligned, others: Others, accepted: Array, choices: Choices, axis: str | None
) -> Array:
    """Standard deviation of the pixels from what frames and the mean of the others differ by, a scalar.

    The median over the frames; after a gain and a background of each, where one of them is fitted.
    """
    pixels = tuple(range(1, aligned.image.ndim))
    known = jnp.isfinite(aligned.image) & jnp.isfinite(others.image)

    def mean(x: Array) -> Array:
        return jnp.mean(x, pixels, where=known, keepdims=True)

    frame = jnp.where(known, aligned.image, 0.0)
    model = jnp.where(known, others.image, 0.0)
    if choices.gain or choices.background:
        level = jax.vmap(partial(flattened, degree=max(choices.degree, 0)))
        frame, model = (jnp.where(known, level(x, known.astype(x.dtype)), 0.0) for x in (frame, model))
        power = mean(model**2)
        model = model * (mean(frame * model) / jnp.where(power > 0, power, 1.0))
    square = mean((frame - model) ** 2).reshape(-1)
    number = total_of(jnp.sum(accepted, dtype=square.dtype), axis)
    # The mean of n − 1 others has noise too.
    left = jnp.maximum(number - accepted, 1.0)
    return jnp.sqrt(median(square * left / (left + 1), axis))


def most_usual(images: Array, axis: str | None = None) -> Array:
    """Number of the frame that is most like the others by level, scatter and pixels that have a value.

    Unknown pixels are NaN. Of frames that are alike, the first.
    """
    pixels = tuple(range(1, images.ndim))
    known = jnp.isfinite(images)
    level = jnp.mean(images, pixels, where=known)
    scatter = jnp.std(images, pixels, where=known)
    eps = jnp.finfo(images.dtype).eps
    varied = scatter > 8 * eps * jnp.abs(level)
    level = jnp.where(varied, level, jnp.nan)
    scatter = jnp.log(jnp.where(varied, scatter, jnp.nan))
    unknown = 1 - jnp.mean(known, pixels, dtype=images.dtype)
    oddness = jnp.zeros_like(level)
    for value in (level, scatter, unknown):
        distance = jnp.abs(value - median(value, axis))
        usual = median(distance, axis)
        # Rounding is no difference.
        oddness += distance / (usual + 100 * eps * (1 + jnp.abs(value)))
    return jnp.argmin(everyones(jnp.where(jnp.isfinite(oddness), oddness, jnp.inf), axis))


def frame_of(frames: Array, number: Array | int, axis: str | None = None) -> Array:
    """One frame, of all devices' frames."""
    if axis is None:
        return frames[number]
    place = number - lax.axis_index(axis) * len(frames)
    mine = (place >= 0) & (place < len(frames))
    own = frames[jnp.clip(place, 0, len(frames) - 1)]
    return lax.psum(jnp.where(mine, own, jnp.zeros_like(own)), axis)


def has_answer(found: Registration) -> Array:
    """Whether there is a shift."""
    return found.status & FATAL == 0


def number_of_shifts(shape: Shape, choices: Choices, step: Array | None = None) -> tuple[int, Array | float]:
    """Whole shifts that a frame is looked for at, and how many of them a random walk leaves likely."""
    window = choices.plan(shape, shape).whole_window
    sizes = [high - low + 1 for low, high in window]
    if step is None:
        return prod(sizes), float(prod(sizes))
    return prod(sizes), jnp.prod(jnp.minimum(1 + 6 * step, jnp.asarray(sizes, step.dtype)))


def with_chance(found: Registration, factor: Array | float) -> Registration:
    """The probability of a chance match times a factor, and the flag that follows from it.

    The others, whose mean a frame is compared with, have been moved to where they match it: each of noise
    alone finds its place among as many shifts as the frame itself.
    """
    chance = jnp.minimum(found.chance * jnp.asarray(factor, found.chance.dtype), 1.0)
    flag = np.int32(Status.UNRELATED)
    doubt = jnp.where(has_answer(found) & (chance > MAX_CHANCE), flag, 0)
    return found._replace(chance=chance, status=(found.status & ~flag) | doubt)


def total_of(x: Array, axis: str | None) -> Array:
    """The sum over all devices."""
    return x if axis is None else lax.psum(x, axis)


def everyones(x: Array, axis: str | None) -> Array:
    """One number per frame, of all devices' frames."""
    if axis is None:
        return x
    whole = jnp.zeros_like(x, shape=(lax.axis_size(axis), len(x)))
    # A sum: no device sends a frame to another, and the compiled program shows it.
    return lax.psum(whole.at[lax.axis_index(axis)].set(x), axis).reshape(-1)


def median(x: Array, axis: str | None) -> Array:
    """Median of what is finite in one number per frame; zero where nothing is."""
    middle = jnp.nanmedian(everyones(jnp.where(jnp.isfinite(x), x, jnp.nan), axis))
    return jnp.where(jnp.isnan(middle), 0.0, middle)
