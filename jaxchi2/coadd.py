"""Frames brought onto one grid, with their noise, and averaged.

A shift that is no whole number of pixels makes every new pixel a sum of old ones, ``Σ_j K(i + s − j) D_j``.
Its variance is the same sum with K squared, ``Σ_j K(i + s − j)² v_j``, whatever the noise of each pixel;
moving the map of standard deviations like an image gives another number, negative ones among them. Here K is
a product of one kernel per axis, and both sums are products in Fourier space.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .arrays import unit_of
from .batch import default_batch_size, in_chunks
from .checks import array_of, boolean_array, choice, integer, numbers, positive, refuse, stack_of
from .engine.choices import Boundary, as_boundary
from .engine.continuation import fill_smoothly
from .engine.layout import guarded
from .engine.spectrum import Shape, along, conj_product, harmonics
from .motion import plain_shift
from .sharding import any_sharding

INTERPOLATIONS = ("fourier", "cubic", "linear", "nearest")
METHODS = ("mean", "median", "clipped")


class Aligned(NamedTuple):
    """Frames on the grid of their reference."""

    image: Array
    """Shape ``(N, ny, nx)`` or ``(N, nz, ny, nx)``; NaN where a frame has nothing to say."""
    variance: Array
    """Variance of each pixel's noise, of the same shape, NaN at the same places."""


class Combined(NamedTuple):
    """One image from many frames."""

    image: Array
    """Shape of a frame; NaN where no frame has a value."""
    variance: Array
    """Variance of its noise, of the same shape, NaN at the same places."""
    number: Array
    """Frames that each pixel is made of, integers."""


@any_sharding(by_frame=True)
def align_stack(
    stack: ArrayLike,
    shift: ArrayLike,
    variance: ArrayLike = 1.0,
    *,
    mask: ArrayLike | None = None,
    interpolation: str = "fourier",
    boundary: str | Boundary = "overlap",
    batch_size: int | None = None,
) -> Aligned:
    """Undo the shift of every frame, and carry the variance of its noise along.

    Parameters
    ----------
    stack : array_like, shape (N, ny, nx) or (N, nz, ny, nx)
        The frames. Pixels that are not finite are unknown.
    shift : array_like, shape (N, D)
        What `register_stack` measured, in pixels and axis order. A frame whose shift is NaN becomes NaN.
    variance : array_like
        Variance of the noise of the pixels: a scalar, one per frame, shape ``(N,)``, a map for all frames or
        one each. The noise of different pixels is taken as independent.
    mask : array_like of bool, shape of a frame or of the stack, optional
        True where a pixel is unknown.
    interpolation : {"fourier", "cubic", "linear", "nearest"}
        Static under jit. See the notes.
    boundary : {"overlap", "wrap"}
        Whether what lies outside a frame is unknown, or what leaves it on one side comes back on the other;
        static under jit.
    batch_size : int, optional
        Frames done at once; static under jit.

    Returns
    -------
    Aligned
        Frames and variances. A pixel is NaN where it falls between pixels that are not all known.

    Raises
    ------
    ValueError, TypeError
        For unfit shapes and options.

    Notes
    -----
    All keep the flux: what a pixel gives to its neighbours adds up to what it had. They differ in what they
    do to noise and to detail; for white noise at half a pixel from the grid, per axis:

    ========= ======== =============================================================================
    by        variance detail
    ========= ======== =============================================================================
    fourier   1        exact up to the Nyquist frequency; rings at jumps, cosmic rays and saturation
    cubic     0.76     reaches four pixels; loses the highest third of the frequencies
    linear    0.50     blurs
    nearest   1        exact, but displaced by up to half a pixel
    ========= ======== =============================================================================

    A variance below one is not information gained: the noise is spread to neighbours, whose errors are then
    correlated, and a sum over many pixels has the variance that it had. Unknown pixels and a margin around
    the frame are filled smoothly from the known ones first, so that neither edges nor holes ring.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.random.default_rng(0).normal(size=(16, 16)).cumsum(0).cumsum(1)
    >>> found = align_stack([np.roll(scene, 2, axis=0)], [[2.0, 0.0]])
    >>> print(np.allclose(found.image[0, :14], scene[:14], atol=1e-4), np.isnan(found.image[0, 14:]).all())
    True True
    """
    unit = unit_of(stack)
    stack = stack_of(stack, unit=unit)
    count, frame = len(stack), stack.shape[1:]
    rows = (count, len(frame))
    shift = numbers(
        plain_shift(shift), "shift", (rows,), f"have one row per frame, shape {rows}", stack.dtype
    )
    interpolation = choice(interpolation, "interpolation", INTERPOLATIONS)
    name = as_boundary(boundary).name
    if name not in ("overlap", "wrap"):
        refuse("boundary", "'overlap' or 'wrap'", name)
    periodic = name == "wrap"
    words = "be a scalar, one per frame, or have the shape of a frame or of stack"
    variance = numbers(
        variance, "variance", ((), (count,), frame, stack.shape), words, stack.dtype, _squared(unit)
    )
    per_frame = variance.shape in ((count,), stack.shape)
    if mask is not None:
        mask = boolean_array(mask, "mask", (frame, stack.shape), "the shape of a frame or of stack")
        stack = jnp.where(mask if mask.shape == stack.shape else mask[None], jnp.nan, stack)
    if batch_size is None:
        batch_size = default_batch_size(frame, stack.dtype.itemsize, padded=True)
    batch_size = integer(batch_size, "batch_size")
    return _align_stack(stack, shift, variance, per_frame, interpolation, periodic, batch_size)


@partial(jax.jit, static_argnames=("per_frame", "interpolation", "periodic", "batch_size"))
def _align_stack(
    stack: Array,
    shift: Array,
    variance: Array,
    per_frame: bool,
    interpolation: str,
    periodic: bool,
    batch_size: int,
) -> Aligned:
    def of_chunk(chunk: tuple) -> Aligned:
        function = partial(align_frame, interpolation=interpolation, periodic=periodic)
        return jax.vmap(function, in_axes=(0, 0, 0 if per_frame else None))(
            chunk[0], chunk[1], chunk[2] if per_frame else variance
        )

    return in_chunks(of_chunk, (stack, shift, variance) if per_frame else (stack, shift), batch_size)


def align_frame(
    image: Array, shift: Array, variance: Array, interpolation: str, periodic: bool = False
) -> Aligned:
    """`align_stack` of one frame; what is not finite is unknown."""
    frame, ndim = image.shape, image.ndim
    variance = jnp.broadcast_to(variance, frame)
    known = jnp.isfinite(image) & jnp.isfinite(variance)
    usable = jnp.all(jnp.isfinite(shift))
    shift = jnp.where(usable, shift, 0.0)
    whole = jnp.round(jax.lax.stop_gradient(shift))
    fraction = shift - whole if interpolation != "nearest" else jnp.zeros_like(shift)
    whole = whole.astype(jnp.int32)
    shape, guard = guarded(frame, periodic)
    sides = [(guard, m - n - guard) for m, n in zip(shape, frame, strict=True)]

    def filled(x: Array) -> Array:
        return fill_smoothly(jnp.pad(jnp.where(known, x, 0.0), sides), jnp.pad(known, sides))

    def back(x: Array) -> Array:
        return jnp.roll(x, -whole, range(ndim))[tuple(slice(guard, guard + n) for n in frame)]

    # What fills unknown pixels is made of the known ones: noise of their own would be a tenth too much there.
    values, noise = filled(image), jnp.pad(jnp.where(known, variance, 0.0), sides)
    if interpolation != "nearest":
        responses = [_response(n, f, interpolation) for n, f in zip(shape, fraction, strict=True)]
        values = _filtered(values, responses)
        noise = _filtered(noise, [jnp.fft.fft(jnp.fft.ifft(r).real ** 2) for r in responses])
    moved, moved_variance = back(values), back(noise)
    # The new pixel lies between two old ones on every axis; both are wanted, or the one that it lies on.
    counted = jnp.pad(known, sides)
    inside = jnp.ones((1,) * ndim, bool)
    for axis, n in enumerate(frame):
        beside = jnp.sign(fraction[axis]).astype(jnp.int32)
        counted = counted & jnp.roll(counted, -beside, axis)
        if periodic:
            continue
        at = np.arange(n) + whole[axis]
        inside = inside & along((at >= 0) & (at < n) & (at + beside >= 0) & (at + beside < n), axis, ndim)
    valid = back(counted) & inside & usable
    return Aligned(
        jnp.where(valid, moved, jnp.nan), jnp.where(valid, jnp.maximum(moved_variance, 0.0), jnp.nan)
    )


def _response(length: int, fraction: Array, interpolation: str) -> Array:
    """Discrete Fourier transform of the kernel that gives the values ``fraction`` further on."""
    angle = np.asarray(2 * np.pi * harmonics(length) / length, fraction.dtype)
    if interpolation == "fourier":
        # The Nyquist wave of an even length has no sense of direction.
        directed = np.asarray(2 * harmonics(length) != -length, fraction.dtype)
        return jax.lax.complex(jnp.cos(angle * fraction), directed * jnp.sin(angle * fraction))
    size = jnp.abs(fraction)
    rest = 1 - size
    if interpolation == "linear":
        taps, first = [rest, size], 0
    else:
        outer, inner = rest**3 / 6, size**3 / 6
        taps, first = [outer, 2 / 3 - size**2 * (1 - size / 2), 2 / 3 - rest**2 * (1 - rest / 2), inner], -1
    direction = jnp.where(fraction < 0, -1.0, 1.0).astype(fraction.dtype)
    phases = [angle * (direction * (first + k)) for k in range(len(taps))]
    real = reduce(jnp.add, [tap * jnp.cos(p) for tap, p in zip(taps, phases, strict=True)])
    imag = reduce(jnp.add, [tap * jnp.sin(p) for tap, p in zip(taps, phases, strict=True)])
    through = 1.0 if interpolation == "linear" else np.asarray((2 + np.cos(angle)) / 3, fraction.dtype)
    return jax.lax.complex(real / through, imag / through)


def _filtered(image: Array, responses: list[Array]) -> Array:
    """An image with the spectrum multiplied by one response per axis."""
    shape: Shape = image.shape
    spectrum = jnp.fft.rfftn(image)
    for axis, (response, m) in enumerate(zip(responses, spectrum.shape, strict=True)):
        spectrum = conj_product(along(jnp.conj(response[:m]), axis, image.ndim), spectrum)
    return jnp.fft.irfftn(spectrum, shape)


@any_sharding()
def combine(
    images: ArrayLike,
    variance: ArrayLike = 1.0,
    *,
    method: str = "mean",
    clip: float = 4.0,
) -> Combined:
    """Average aligned frames pixel by pixel.

    Parameters
    ----------
    images : array_like, shape (N, …)
        Frames on one grid, as `align_stack` returns them; what is not finite does not count.
    variance : array_like
        Variance of their noise: a scalar, one per frame, shape ``(N,)``, or of the shape of ``images``. The
        weights are its inverse.
    method : {"mean", "median", "clipped"}
        Static under jit. "mean": weighted by inverse variance, the least variance, ``1 / Σ 1/v``. "median":
        unweighted; nearly half the frames may be wild; its variance is π/2 times that of the mean of equal
        frames. "clipped": the mean of the values within ``clip`` standard deviations of the median.
    clip : float
        For "clipped", in standard deviations of each value from ``variance``. At 4, one good value in
        16 000 is lost.

    Returns
    -------
    Combined
        Image, variance and number of frames per pixel.

    Raises
    ------
    ValueError, TypeError
        For unfit shapes and options.

    Examples
    --------
    >>> import numpy as np
    >>> frames = np.stack([np.full((4, 4), 1.0), np.full((4, 4), 2.0), np.full((4, 4), np.nan)])
    >>> found = combine(frames, [1.0, 3.0, 1.0])
    >>> print(found.image[0, 0], found.variance[0, 0], found.number[0, 0])
    1.25 0.75 2
    """
    unit = unit_of(images)
    images = array_of(images, "images", 2)
    words = f"be a scalar, one per frame, or of images' shape {images.shape}"
    shapes = ((), (len(images),), images.shape)
    variance = numbers(variance, "variance", shapes, words, images.dtype, _squared(unit))
    if variance.shape == (len(images),):
        variance = variance.reshape(-1, *[1] * (images.ndim - 1))
    method = choice(method, "method", METHODS)
    limit = positive(clip, "clip", images.dtype, wanted="a positive number of standard deviations")
    return _combine(images, jnp.broadcast_to(variance, images.shape), limit, method)


def _squared(unit: Any) -> Any:
    """The unit of a variance."""
    return None if unit is None else unit**2


@partial(jax.jit, static_argnames="method")
def _combine(images: Array, variance: Array, clip: ArrayLike, method: str) -> Combined:
    good = jnp.isfinite(images) & jnp.isfinite(variance) & (variance > 0)
    variance = jnp.where(good, variance, 1.0)
    if method != "mean":
        middle = jnp.nanmedian(jnp.where(good, images, jnp.nan), axis=0)
    if method == "clipped":
        good = good & (jnp.abs(images - middle[None]) <= clip * jnp.sqrt(variance))
    weights = jnp.where(good, 1 / variance, 0.0)
    count, total = jnp.sum(good, 0, dtype=jnp.int32), jnp.sum(weights, 0)
    some = count > 0
    mean = jnp.sum(weights * jnp.where(good, images, 0.0), 0) / jnp.where(some, total, 1.0)
    spread = 1 / jnp.where(some, total, 1.0)
    if method == "median":
        number = jnp.maximum(count, 1).astype(spread.dtype)
        # Of one or two frames the median is the mean.
        factor = jnp.where(count > 2, np.pi / 2, 1.0).astype(spread.dtype)
        mean, spread = middle, factor * jnp.sum(jnp.where(good, variance, 0.0), 0) / number**2
    return Combined(jnp.where(some, mean, jnp.nan), jnp.where(some, spread, jnp.nan), count)
