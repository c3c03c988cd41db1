"""A pattern of the camera, which stays where it is while the scene moves, found from a stack.

The frames are ``D_t(i) = L(i − s_t) + P(i) + noise``. With the shifts known, scene and pattern are a linear
problem: for each wave k, with the weights w_t and their sum W, two equations in ``L_k`` and ``P_k``. Without
``L_k``, one is left,

    W q_k P_k = W r_k,    q_k = 1 − |m_k|²,    m_k = Σ_t w_t exp(−i k s_t) / W,

r the weighted mean, pixel by pixel, of what the frames have beside the latent image moved to each of them. A
wave that the shifts leave in place, q near zero, may belong to either: as the power of a pattern is bounded
and that of scenes is not, the scene gets it. P is a Gaussian process of power S, its posterior mean
``P_k = S r_k / (S q_k + 1 / W)`` and its variance ``S / (1 + S W q_k)``. Of a constant nothing can be known:
it is the scene's, and the pattern has mean zero.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .batch import in_chunks
from .coadd import align_frame
from .engine.spectrum import Shape, along, half_weights, harmonics, scaled, squared
from .results import Registration
from .status import Status
from .template import Others, has_answer, total_of

LEAST_SEPARATION = 0.5
"""Mean of ``1 − |m|²`` over the waves, as a share of what unlike shifts make it, below which scene and
pattern are not told apart: shifts that scatter by a third of a pixel."""
SEPARATED = 0.5
"""Least ``1 − |m|²``, as a share of the largest, of waves that tell the power of the pattern."""
SMOOTH = 1.5
"""Standard deviation in pixels of the Gaussian that leaves the scene in the mean of all frames, as a first
guess, and what is finer to the pattern."""


HOT = 6.0
"""Standard deviations from the pixels beside it of one whose value is no matter of chance."""
SHARP = 0.5
"""And beside these standard deviations, of what the neighbours have themselves."""
LINES = 3
"""Pixels on either side that a line is compared with: two or three lines may be beside each other."""
HOT_STEPS = 5
"""Of the iteration for the values of these, each of which is in the mean of frames that move around it."""


class Pattern(NamedTuple):
    """What does not move with the scene."""

    image: Array
    """Shape of a frame, of mean zero."""
    variance: Array
    """Of each pixel, the same shape."""
    separated: Array
    """Whether the shifts tell pattern and scene apart, a scalar."""

    @property
    def known_variance(self) -> Array:
        """The variance, NaN if they do not."""
        return jnp.where(self.separated, self.variance, jnp.nan)


def first_patterns(stack: Array, axis: str | None = None) -> Array:
    """Two guesses from the mean of all frames, shape ``(2, …)``.

    Both have single pixels and lines that stand out. The second has all that is fine, of which weak scenes
    that move have little left in the mean; it is too much where a scene is strong.
    """
    known = jnp.isfinite(stack)
    number = total_of(jnp.sum(known, 0, dtype=stack.dtype), axis)
    mean = total_of(jnp.sum(jnp.where(known, stack, 0.0), 0), axis) / jnp.maximum(number, 1.0)
    mean = jnp.where(number > 0, mean, jnp.nan)
    lines = jnp.zeros_like(mean)
    for a in range(mean.ndim if mean.ndim > 1 else 0):
        profile = jnp.nanmedian(mean - lines, a, keepdims=True)
        lines = lines + _fine(profile, _median_nearby(profile, LINES))
    near = _median_nearby(mean - lines)
    first = jnp.where(_stands_out(mean - lines, near), mean - lines - near, 0.0) + lines
    guesses = jnp.stack([first, _fine(mean - lines, near) + lines])
    return jnp.where(jnp.isfinite(guesses), guesses, 0.0)


def _median_nearby(image: Array, reach: int = 1) -> Array:
    """Median of each pixel and those beside it, of the known ones; outside a frame nothing is known."""
    reaches = [min(reach, n - 1) for n in image.shape]
    padded = jnp.pad(image, [(n, n) for n in reaches], constant_values=np.nan)
    places = np.ndindex(*(2 * n + 1 for n in reaches))
    views = [padded[tuple(slice(i, i + n) for i, n in zip(at, image.shape, strict=True))] for at in places]
    return jnp.nanmedian(jnp.stack(views), axis=0)


def _stands_out(image: Array, near: Array) -> Array:
    """Whether a pixel is far from those beside it, which those of a source are not."""
    level = jnp.nanmedian(image)
    away = jnp.abs(image - near)
    return away > HOT * 1.4826 * jnp.nanmedian(away) + SHARP * jnp.abs(near - level)


def _fine(image: Array, scene: Array) -> Array:
    """What an image has beside the blurred scene."""
    seen = jnp.isfinite(scene)
    level = jnp.nanmean(image)
    level = jnp.where(jnp.isfinite(level), level, 0.0)
    smooth, share = _blurred(jnp.stack([jnp.where(seen, scene - level, 0.0), seen.astype(image.dtype)]))
    return image - level - smooth / jnp.maximum(share, 0.01)


def best_start(begin: Callable[[Array], tuple[Any, Array]], guesses: Array) -> Any:
    """What ``begin`` makes of the guess with the least misfit; it returns that second."""
    states, misfits = lax.map(begin, guesses)
    best = jnp.argmin(jnp.where(jnp.isnan(misfits), jnp.inf, misfits))
    return jax.tree.map(lambda x: x[best], states)


def with_doubt(found: Registration, separated: Array) -> Registration:
    """`Status.STATIC_PATTERN` for every frame with a shift, if these do not tell scene and pattern apart."""
    return found._replace(status=doubted(found.status, has_answer(found), separated))


def doubted(status: Array, answered: Array, separated: Array) -> Array:
    """The flags with that doubt."""
    return jnp.where(separated | ~answered, status, status | np.int32(Status.STATIC_PATTERN))


def _blurred(images: Array) -> Array:
    shape = images.shape[1:]
    padded = jnp.pad(images, [(0, 0), *[(0, 8 * (n > 1)) for n in shape]])
    axes = tuple(range(1, images.ndim))
    spectra = jnp.fft.rfftn(padded, axes=axes)
    for a, n in enumerate(padded.shape[1:]):
        frequency = np.fft.fftfreq(n)[: spectra.shape[a + 1]]
        response = jnp.asarray(np.exp(-2 * (np.pi * SMOOTH * frequency) ** 2), images.dtype)
        spectra = spectra * along(response, a + 1, images.ndim)
    return jnp.fft.irfftn(spectra, padded.shape[1:], axes)[(slice(None), *map(slice, shape))]


def improved_pattern(
    stack: Array,
    pattern: Array,
    place: Array,
    others: Others,
    accepted: Array,
    variance: Array,
    periodic: bool,
    batch_size: int,
    axis: str | None = None,
) -> Pattern:
    """The pattern of a stack, from the latent image that the frames less the last one make at ``place``.

    ``variance`` of each pixel as of `align_stack`. Exact after one step for periodic frames without bad
    pixels; else the fixed point is.
    """
    shape = stack.shape[1:]
    total, number, weight, _ = beside_scene(
        stack - pattern[None], others.mean, place, accepted, variance, periodic, batch_size
    )
    total, number, weight_sum = (total_of(x, axis) for x in (total, number, jnp.sum(weight)))
    tiny = jnp.finfo(stack.dtype).tiny
    seen = number > 0
    mean = jnp.where(seen, total / jnp.where(seen, number, 1.0), 0.0)
    weight_sum = jnp.maximum(weight_sum, tiny)
    together = squared(total_of(_phases(place, weight, shape), axis)) / weight_sum**2
    apart = jnp.clip(1 - together, 0.0, 1.0)
    # A few pixels at edges that hardly a frame has seen are not to set the noise of all.
    noise = jnp.sum(jnp.where(seen, 1 / jnp.where(seen, number, 1.0), 0.0)) / jnp.maximum(jnp.sum(seen), 1)
    noise = jnp.where(jnp.any(seen), noise, 1.0)
    spectrum = jnp.fft.rfftn(jnp.where(seen, mean, 0.0)) + scaled(jnp.fft.rfftn(pattern), apart)
    hot, single = _hot_pixels(spectrum, apart, shape)
    spectrum = spectrum - scaled(jnp.fft.rfftn(single), apart)
    power = _power(squared(spectrum) / pattern.size, apart, noise)
    image = single + jnp.fft.irfftn(scaled(spectrum, power / (power * apart + noise)), shape)
    unlike = 1 - total_of(jnp.sum(weight**2), axis) / weight_sum**2
    average = _mean(apart, shape)
    error = _posterior_variance(power, apart, number, shape)
    # Nothing is known of these but what the frames say.
    told = jnp.where(number > 0, number * average, tiny)
    error = jnp.where(hot, jnp.maximum(error, 1 / jnp.maximum(told, tiny)), error)
    return Pattern(image - jnp.mean(image), error, average > LEAST_SEPARATION * unlike)


def _hot_pixels(spectrum: Array, apart: Array, shape: Shape) -> tuple[Array, Array]:
    """Pixels that are far from those beside them, and the values that explain them."""
    image = jnp.fft.irfftn(spectrum, shape)
    hot = _stands_out(image, _median_nearby(image))
    average = jnp.maximum(_mean(apart, shape), 0.1)

    def step(single: Array, _: None) -> tuple[Array, None]:
        left = image - jnp.fft.irfftn(scaled(jnp.fft.rfftn(single), apart), shape)
        return single + jnp.where(hot, left, 0.0) / average, None

    single, _ = lax.scan(step, jnp.zeros_like(image), length=HOT_STEPS)
    return hot, single


def beside_scene(
    stack: Array,
    latent: Array,
    place: Array,
    accepted: Array,
    variance: Array,
    periodic: bool,
    batch_size: int,
) -> tuple[Array, Array, Array, Array]:
    """Weighted sum over the frames of what they have beside the scene, and sum of the weights.

    Also, of each frame, the mean weight and the mean square of what it has beside the scene, weighted.
    """
    pixels = (1,) * (stack.ndim - 1)
    own, tiny = tuple(range(1, stack.ndim)), jnp.finfo(stack.dtype).tiny
    each = variance.shape in (stack.shape, stack.shape[:1])

    def of_chunk(chunk: tuple) -> tuple[Array, ...]:
        images, places, good = chunk[:3]
        of_pixels = chunk[3] if each else variance
        of_pixels = of_pixels.reshape(-1, *pixels) if of_pixels.ndim < 2 else of_pixels
        move = partial(align_frame, interpolation="fourier", periodic=periodic)
        scene = jax.vmap(move, in_axes=(None, 0, None))(latent, -places, jnp.ones((), latent.dtype)).image
        there = jnp.isfinite(images) & jnp.isfinite(scene) & good.reshape(-1, *pixels) & (of_pixels > 0)
        weight = jnp.where(there, 1 / jnp.where(there, of_pixels, 1.0), 0.0)
        left = jnp.where(there, images - scene, 0.0)
        # The constant is not the pattern's, and frames may differ by it.
        level = jnp.sum(weight * left, own, keepdims=True) / jnp.maximum(
            jnp.sum(weight, own, keepdims=True), tiny
        )
        left = jnp.where(there, left - level, 0.0)
        squares = jnp.sum(weight * left**2, own) / jnp.maximum(jnp.sum(there, own), 1)
        return weight * left, weight, squares

    chunk = (stack, place, accepted, variance) if each else (stack, place, accepted)
    left, weight, squares = in_chunks(of_chunk, chunk, batch_size)
    return jnp.sum(left, 0), jnp.sum(weight, 0), jnp.mean(weight, own), squares


def _phases(place: Array, weight: Array, shape: Shape) -> Array:
    """``Σ_t w_t exp(−i k s_t)`` on half planes of waves."""
    factors, ndim = [], len(shape)
    for a, n in enumerate(shape):
        waves = harmonics(n) if a < ndim - 1 else np.arange(n // 2 + 1)
        angle = place[:, a, None] * jnp.asarray(2 * np.pi * waves / n, place.dtype)[None]
        factors.append(lax.complex(jnp.cos(angle), -jnp.sin(angle)))
    letters = "abc"[:ndim]
    terms = ",".join(["t", *(f"t{x}" for x in letters)])
    return jnp.einsum(
        f"{terms}->{letters}", weight.astype(factors[0].dtype), *factors, precision=lax.Precision.HIGHEST
    )


def _mean(values: Array, shape: Shape) -> Array:
    """Over all waves but the constant."""
    twice = jnp.asarray(half_weights(shape[-1]), values.dtype)
    weight = jnp.broadcast_to(along(twice, len(shape) - 1, len(shape)), values.shape)
    weight = weight.at[(0,) * len(shape)].set(0.0)
    return jnp.sum(values * weight) / jnp.sum(weight)


def _power(observed: Array, apart: Array, noise: Array) -> Array:
    """Power of the pattern: white, and more for what is constant along some axes, as columns are.

    From the median over the waves that are well separated, which sources do not reach.
    """
    told = apart > SEPARATED * jnp.max(apart)
    square = observed / jnp.where(told, apart, 1.0) ** 2
    ndim = observed.ndim
    still = sum(along(np.arange(m) == 0, a, ndim).astype(int) * 2**a for a, m in enumerate(observed.shape))
    still = np.broadcast_to(still, observed.shape)

    def of(kind: int) -> Array:
        here = told & jnp.asarray(still == kind)
        # The median of the square of a complex normal number is ln 2 of its mean.
        middle = jnp.nanmedian(jnp.where(here, square, jnp.nan)) / np.log(2)
        least = jnp.sum(jnp.where(here, 1 / jnp.where(told, apart, 1.0), 0.0)) / jnp.maximum(jnp.sum(here), 1)
        # Where none is seen, there may be as much as would not be seen.
        unseen = noise * least / jnp.sqrt(jnp.maximum(jnp.sum(here), 1) / 4)
        return jnp.where(jnp.any(here), jnp.maximum(middle - noise * least, unseen), 0.0)

    white = of(0)
    power = jnp.full_like(observed, white)
    for kind in range(1, 2**ndim - 1):
        power = jnp.where(jnp.asarray(still == kind), jnp.maximum(of(kind), white), power)
    return power.at[(0,) * ndim].set(0.0)


def _posterior_variance(power: Array, apart: Array, number: Array, shape: Shape) -> Array:
    """Of each pixel, by the weight that it has: that of an even frame of the same."""
    levels = jnp.linspace(0.0, 1.0, 17, dtype=power.dtype) ** 2 * jnp.max(number)
    values = lax.map(lambda weight: _mean(power / (1 + power * weight * apart), shape), levels)
    return jnp.interp(number, levels, values)
