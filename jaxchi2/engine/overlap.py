"""How well two frames correlate over the pixels that they share, at every whole shift.

χ² over an overlap cannot be compared between shifts: each has pixels of its own, and those that it leaves
out are not explained at no cost. What a shift is worth is what it explains of its own pixels, the logarithm
of the likelihood of "the reference, there" against "something else", both of unknown brightness, background
and noise:

    score(s) = n(s) ln(1 − r(s)²)  where r(s) > 0, else 0

with r the weighted correlation coefficient, means taken out, and n the number of pixels of the overlap. It is
the −2 log-likelihood ratio of a Gaussian model, and so on the scale of χ².
"""

from __future__ import annotations

from functools import partial, reduce
from math import sqrt
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .passes import any_in_batch, every, sum_all
from .polynomial import orthonormal, pixel_coordinates
from .spectrum import Shape, conj_product

Window = tuple[tuple[int, int], ...]
"""First and last shift along every axis."""
Sides = tuple[np.ndarray, np.ndarray]
"""First pixel of a rectangle and that after its last, at every shift along an axis."""
BESIDE = 4
"""Samples beyond the window that are known on either side, to be interpolated from."""
LEAST_SHARE = 32
"""Share of a frame's energy, in roundings, below which that of an overlap is not told from none."""


class Frames(NamedTuple):
    """Two frames of finite values with their weights."""

    reference: Array
    known: Array
    """Whether a pixel of the reference has a value; where not, that is zero."""
    image: Array
    weights: Array
    """Of the image's pixels; where zero, the pixel's value is zero."""


class Correlation(NamedTuple):
    """Of two frames at every whole shift of a search grid, shift zero first."""

    coefficient: Array
    """r, between −1 and 1; zero where nothing can be said."""
    number: Array
    """Pixels of the overlap."""
    variance: Array
    """Of the image's values there, in units of the errors."""
    rounding: Array
    """Least ``1 − r²`` that is told from zero, a scalar."""
    independent: Array
    """Share of the pixels whose noise is independent of each other, a scalar."""


class _Sums(NamedTuple):
    """Over the overlap at every whole shift: M of the reference, D of the image, weights w."""

    number: Array
    mass: Array
    """``Σ w``."""
    cross: Array
    """``Σ w M D``."""
    model: Array
    """``Σ w M``."""
    data: Array
    """``Σ w D``."""
    power: Array
    """``Σ w M²``."""
    energy: Array
    """``Σ w D²``."""


def window_shape(shape: Shape, window: Window) -> Shape:
    """Of the part of a periodic grid that has the shifts from the first to the last along every axis."""
    return tuple(min(n, high - low + 1 + 2 * BESIDE) for n, (low, high) in zip(shape, window, strict=True))


def correlate(
    frames: Frames,
    shape: Shape,
    uniform: bool,
    window: Window | None = None,
    whole: WholeReference | None = None,
) -> Correlation:
    """Correlation of two frames on a periodic grid on which they meet nowhere but where they overlap.

    ``uniform`` says that every valid pixel weighs one. With a ``window`` of first and last shifts only that
    part of the grid is kept, see `window_shape`; its shifts may not wrap one frame onto the other.
    ``whole`` is what may have been done before.
    """
    known, weights = frames.known.astype(frames.weights.dtype), frames.weights
    # Ranking profiles the background whatever is fitted, so the means may go; kept, they would cost digits.
    reference = _centred(frames.reference, frames.known)
    image = jnp.where(weights > 0, frames.image - _mean(frames.image, weights), 0.0)
    frames = Frames(reference, known, image, weights)
    if window is None:
        sums = _by_transforms(frames, shape, tuple((-n, n) for n in shape), uniform)
    elif not uniform:
        sums = _by_transforms(frames, shape, window, uniform)
    else:
        sums = _by_values(frames, shape, window, whole)
    mass = jnp.where(sums.mass > 0, sums.mass, 1.0)
    cross = sums.cross - sums.model * sums.data / mass
    power, energy = sums.power - sums.model**2 / mass, sums.energy - sums.data**2 / mass
    # The sums of a blank overlap are the rounding of bright sources elsewhere: an energy below that is none.
    rounding = jnp.finfo(cross.dtype).eps * (LEAST_SHARE + 2 * sqrt(reference.size))
    # A frame of zeros has none; any number stands for it.
    power, energy = (
        jnp.maximum(x, 0.0) + rounding * jnp.where(whole_energy > 0, whole_energy, 1.0)
        for x, whole_energy in ((power, sum_all(reference**2)), (energy, sum_all(weights * image**2)))
    )
    coefficient = jnp.clip(cross / (jnp.sqrt(power) * jnp.sqrt(energy)), -1.0, 1.0)
    scalars = (jnp.full_like(power, x, shape=()) for x in (4 * rounding, 1.0))
    return Correlation(coefficient, sums.number, energy / jnp.maximum(sums.number, 1.0), *scalars)


def profiled(cross: Array, power: Array, gain: bool) -> Array:
    """``χ² − constant`` for gain one, or at the best gain that is positive."""
    if not gain:
        return cross + power
    good = (cross < 0) & (power > 0)
    return jnp.where(good, -(cross**2) / (4 * jnp.where(good, power, 1.0)), 0.0)


def score(correlation: Correlation) -> Array:
    """``n ln(1 − r²)``, zero where the frames do not correlate."""
    return correlation.independent * correlation.number * log_left(correlation)


def log_left(correlation: Correlation) -> Array:
    """``ln(1 − r²)``, the logarithm of the share that is not explained, where r > 0; else 0."""
    r = jnp.clip(correlation.coefficient, 0.0, 1.0)
    return jnp.log(jnp.maximum((1 - r) * (1 + r), correlation.rounding))


def lowest_step(
    reference: Array, frames: Frames, *, gain: bool, degree: int, offered: Array, extra: Array
) -> Array:
    """Index of the step, of up to one pixel along every axis, that lowers χ² most; the middle one for none.

    ``reference`` is that of the frames, NaN where it is unknown, moved to where the steps start and one pixel
    larger on every side than the image. χ² is over the pixels that all steps know, to be comparable.
    ``degree`` is that of the background. ``extra`` is added to that of each step; only those ``offered`` are
    considered.
    """
    ndim, shape = frames.image.ndim, frames.image.shape
    starts = 2 - np.indices((3,) * ndim).reshape(ndim, -1).T
    known = jnp.isfinite(reference)
    for axis in range(ndim):
        lines = [lax.slice_in_dim(known, k, k + shape[axis], axis=axis) for k in range(3)]
        known = reduce(jnp.logical_and, lines)
    weights = jnp.where(known, frames.weights, 0.0)
    corner = jnp.zeros(ndim, jnp.int32)
    background = orthonormal(weights, degree, pixel_coordinates(shape, corner, False, weights.dtype))
    rest = background.rest(frames.image, weights)
    image = weights * rest

    def chi2(start: Array) -> Array:
        model = jnp.where(known, lax.dynamic_slice(reference, start, shape), 0.0)
        cross, power = sum_all(image * model), sum_all(weights * model**2)
        return profiled(-2 * cross, power - jnp.sum(background.coefficients(weights * model) ** 2), gain)

    # One program for all steps.
    values = lax.map(chi2, jnp.asarray(starts, jnp.int32)) + extra
    middle = len(starts) // 2
    energy = sum_all(jnp.abs(image * rest)) + jnp.abs(values[middle])
    lower = values < values[middle] - LEAST_SHARE * jnp.finfo(energy.dtype).eps * energy
    best = jnp.argmin(jnp.where(offered & lower, values, jnp.inf))
    return jnp.where(jnp.any(offered & lower), best, middle)


def _mean(values: Array, weights: Array) -> Array:
    mass = sum_all(weights)
    return sum_all(values * weights) / jnp.where(mass > 0, mass, 1.0)


def _padded(x: Array, shape: Shape) -> Array:
    return jnp.pad(x, [(0, m - n) for m, n in zip(shape, x.shape, strict=True)])


def _centred(reference: Array, known: Array) -> Array:
    return jnp.where(known, reference - _mean(reference, known.astype(reference.dtype)), 0.0)


def _by_values(frames: Frames, shape: Shape, window: Window, whole: WholeReference | None) -> _Sums:
    return lax.cond(
        any_in_batch(~(every(frames.known > 0) & every(frames.weights == 1))),
        partial(_by_transforms, shape=shape, window=window, uniform=True),
        partial(_by_rectangles, shape=shape, window=window, whole=whole),
        frames,
    )


def _by_transforms(frames: Frames, shape: Shape, window: Window, uniform: bool) -> _Sums:
    """By correlations of the frames, their squares and their weights."""
    reference, known, image, weights = frames
    of_reference = _spectra([known, reference, reference**2], shape)
    valid = (weights > 0).astype(weights.dtype)
    of_image = _spectra([weights, weights * image, weights * image**2, *([] if uniform else [valid])], shape)
    # Mass, cross, model, data, power, energy; and the number, where that is another than the mass.
    pairs = np.array([(0, 0), (1, 1), (1, 0), (0, 1), (2, 0), (0, 2), (0, 3)][: 6 if uniform else 7])
    products = conj_product(of_reference[pairs[:, 0]], of_image[pairs[:, 1]])
    mass, *rest = _cropped(_arrays(products, shape), window)
    number = jnp.round(mass if uniform else rest.pop())
    return _Sums(number, number if uniform else mass, *rest)


def _by_rectangles(frames: Frames, shape: Shape, window: Window, whole: WholeReference | None) -> _Sums:
    """The same where all pixels are known and weigh one: an overlap is a rectangle of either frame."""
    image = frames.image
    if whole is None:
        whole = _whole(frames.reference, image.shape, shape, window)
    cross = _cropped(_arrays(conj_product(whole.spectrum, _spectra([image], shape)), shape), window)[0]
    _, sides = _sides(frames.reference.shape, image.shape, shape, window)
    number = jnp.asarray(reduce(np.multiply.outer, [end - start for start, end in sides]), cross.dtype)
    data, energy = _rectangles(jnp.stack([image, image**2]), sides)
    return _Sums(number, number, cross, whole.model, data, whole.power, energy)


class WholeReference(NamedTuple):
    """What `correlate` takes from a reference that is known everywhere, for images that are too."""

    spectrum: Array
    model: Array
    """Sum over the overlap at every whole shift."""
    power: Array
    """That of the square."""


def whole_reference(
    reference: Array, known: Array, image: Shape, shape: Shape, window: Window
) -> WholeReference:
    """Do once what `correlate` needs for every image; of no use where a pixel is not known."""
    return _whole(_centred(reference, known), image, shape, window)


def _whole(reference: Array, image: Shape, shape: Shape, window: Window) -> WholeReference:
    sides, _ = _sides(reference.shape, image, shape, window)
    sums = _rectangles(jnp.stack([reference, reference**2]), sides)
    return WholeReference(_spectra([reference], shape), *sums)


def _spectra(arrays: list[Array], shape: Shape) -> Array:
    axes = tuple(range(1, len(shape) + 1))
    return jnp.fft.rfftn(jnp.stack([_padded(x, shape) for x in arrays]), axes=axes)


def _arrays(spectra: Array, shape: Shape) -> Array:
    return jnp.fft.irfftn(spectra, shape, tuple(range(1, len(shape) + 1)))


def _sides(reference: Shape, image: Shape, shape: Shape, window: Window) -> tuple[list[Sides], list[Sides]]:
    """The overlap along each axis, in reference and image."""
    of_reference: list[Sides] = []
    of_image: list[Sides] = []
    frames = zip(reference, image, window, strict=True)
    for (m, n, (low, high)), length in zip(frames, window_shape(shape, window), strict=True):
        index = np.arange(length)
        shift = np.where((index <= high + BESIDE) & (index < length + low), index, index - length)
        for sides, first, last, size in (
            (of_reference, -shift, n - shift, m),
            (of_image, shift, m + shift, n),
        ):
            start = np.clip(first, 0, size)
            sides.append((start, np.maximum(np.clip(last, 0, size), start)))
    return of_reference, of_image


def _rectangles(arrays: Array, sides: list[Sides]) -> Array:
    """Sums of arrays with a leading axis over rectangles, by what has been summed up along each axis."""
    for axis, (start, end) in enumerate(sides, 1):
        lines = jnp.moveaxis(arrays, axis, 0)
        zero = jnp.zeros_like(lines[0])
        # A scan over lines: `jnp.cumsum` takes ten times as long.
        _, totals = lax.scan(lambda total, line: (total + line,) * 2, zero, lines)
        totals = jnp.concatenate([zero[None], totals])
        arrays = jnp.moveaxis(totals[end] - totals[start], 0, axis)
    return arrays


def _cropped(grids: Array, window: Window) -> Array:
    """The window's part of grids with a leading axis."""
    shape = grids.shape[1:]
    for axis, (n, m, (_, high)) in enumerate(zip(shape, window_shape(shape, window), window, strict=True), 1):
        if m < n:
            end = high + 1 + BESIDE
            parts = (lax.slice_in_dim(grids, a, b, axis=axis) for a, b in ((0, end), (n - m + end, n)))
            grids = jnp.concatenate(list(parts), axis)
    return grids
