"""The terms of χ² as a function of the shift: from two images to an exact Fourier series.

    χ²(s) = Σ_i w_i (D_i − M(i − s))² = constant + cross(s) + power(s)

with ``constant = Σ w D² + Σ w M²`` at zero shift of the second sum where that is independent of the shift.
``cross`` is the correlation ``−2 Σ w_i D_i M(i − s)``, a series on the pixel grid. ``power`` is
``Σ w_i M(i − s)²``; it has twice the bandwidth and needs a grid of half pixels, unless the weights are
all equal: then only the Nyquist terms of even axes make it vary.

There are two builders for these two cases and `with_terms` picks one. A pixel without a finite value or a
positive finite error has weight zero and a finite value, so nothing further on knows about NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

from .spectrum import (
    FourierSeries,
    PolyphaseSeries,
    Shape,
    along,
    conj_product,
    correlated_square,
    half_weights,
    harmonics,
    nyquist_power,
    scaled,
    shift_spectrum,
    split_nyquist,
)

BOUNDARIES = ("wrap", "fill")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "cross",
        "power",
        "constant",
        "grid",
        "reference",
        "image",
        "weights",
        "n_valid",
        "amplitude",
        "flat",
    ],
    meta_fields=["shape", "frame"],
)
@dataclass(frozen=True)
class Chi2Terms:
    """χ² of one image pair as a function of the shift."""

    cross: FourierSeries
    """``−2 Σ w_i D_i M(i − s)``."""
    power: FourierSeries | PolyphaseSeries
    """``Σ w_i M(i − s)²``, less a constant when the weights are all equal."""
    constant: Array
    """What is left of χ², a scalar."""
    grid: Array
    """``cross + power`` at every ``1/oversample`` pixel over one period, shift zero first."""
    reference: Array
    """Half-plane spectrum of the reference."""
    image: Array
    """The image's pixels, or its half-plane spectrum when ``weights`` is None."""
    weights: Array | None
    """Weight of each pixel, None when they are all one."""
    n_valid: Array
    """Number of pixels with a weight, a scalar integer."""
    amplitude: Array
    """``√(Σ M² Σ w D²)``, what bounds the correlation: its rounding is a few ulp of this."""
    flat: Array
    """Whether an image is constant to rounding. Weights that differ give χ² a minimum even so."""
    shape: Shape = field(metadata={"static": True})
    """Shape of the periodic grid: the frame, or twice the frame for the boundary ``fill``."""
    frame: Shape = field(metadata={"static": True})
    """Shape of the images."""

    @property
    def oversample(self) -> int:
        """Samples per pixel of ``grid``."""
        return self.grid.shape[0] // self.shape[0]

    def derivatives(self, whole: Array, fraction: Array, order: int) -> Array:
        """Partial derivatives of ``cross + power`` up to ``order`` per axis at ``whole + fraction``."""
        return self.cross.derivatives(whole, fraction, order) + self.power.derivatives(whole, fraction, order)

    def differences(self, whole: Array, fraction: Array, displacements: list[Array]) -> Array:
        """``χ²(s + d) − χ²(s)`` on the grid of displacements d spanned by one vector per axis."""
        return self.cross.differences(whole, fraction, displacements) + self.power.differences(
            whole, fraction, displacements
        )

    def residual_chi2(self, whole: Array, fraction: Array) -> Array:
        """χ² at one shift as a sum of squares, which float32 can resolve where the series cannot."""
        model = shift_spectrum(self.reference, self.shape, whole, fraction)
        if self.weights is None:
            power = (self.image.real - model.real) ** 2 + (self.image.imag - model.imag) ** 2
            # A product with the weights, not a sum over rows: XLA 0.10 compiled that one, fused with the
            # complex arithmetic before it, into a program that crashed where the columns fill its vectors.
            weights = half_weights(self.shape[-1]).astype(power.dtype)
            return jnp.sum(jnp.dot(power, weights, precision=lax.Precision.HIGHEST)) / prod(self.shape)
        return jnp.sum(self.weights * (self.image - jnp.fft.irfftn(model, self.shape)) ** 2)


@custom_vmap
def any_in_batch(flag: Array) -> Array:
    """``flag``, and under ``vmap`` whether any of the batch has it: one answer, so ``cond`` stays a branch.

    A batched predicate would turn ``lax.cond`` into a select that computes both sides for every frame.
    """
    return flag


@any_in_batch.def_vmap
def _any_in_batch_rule(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return any_in_batch(jnp.any(flag, axis=0) if in_batched[0] else flag), False


def with_terms(
    function: Callable[[Chi2Terms], Any],
    reference: Array,
    image: Array,
    err: Array,
    boundary: str,
    oversample: int,
    clean: bool | None,
) -> Any:
    """Build the terms by the cheapest exact way and return ``function(terms)``.

    One error for all pixels and no bad pixel needs a third of the work. ``clean`` says whether to take it
    that this is so; with None the data decide at run time.
    """
    if err.ndim or boundary != "wrap" or clean is False:
        return function(weighted_terms(reference, image, err, boundary, oversample))
    if clean:
        return function(uniform_terms(reference, image, err, oversample))
    return lax.cond(
        any_in_batch(~is_clean(*lax.stop_gradient((reference, image, err)))),
        lambda r, i, e: function(weighted_terms(r, i, e, boundary, oversample)),
        lambda r, i, e: function(uniform_terms(r, i, e, oversample)),
        reference,
        image,
        err,
    )


def is_clean(reference: Array, image: Array, err: Array) -> Array:
    """Whether no pixel is bad and the common error is valid: any NaN or infinity survives a sum.

    An overflow of the sum is taken for a bad pixel, which merely costs time.
    """
    return jnp.isfinite(jnp.sum(reference)) & jnp.isfinite(jnp.sum(image)) & is_valid_error(err)


def is_quick(*arrays: Array, boundary: str) -> bool:
    """Whether the cheap way is worth trying first: one error for all pixels, and values that are there.

    A bad pixel makes everything NaN in that way, so its result says whether it was right to try. That
    saves compiling and asking for both outside ``jit``; of traced values nothing can be asked.
    """
    return boundary == "wrap" and arrays[-1].ndim == 0 and not any(isinstance(x, Tracer) for x in arrays)


def is_valid_error(err: Array) -> Array:
    """Whether an error is a positive finite number whose square is one too."""
    return jnp.isfinite(err) & (err > 0)


def uniform_terms(reference: Array, image: Array, err: Array, oversample: int) -> Chi2Terms:
    """Terms for one error common to all pixels, every pixel valid, periodic boundary."""
    shape = reference.shape
    # A common pedestal cancels in χ²; kept, it would cost float32 its digits.
    pedestal = lax.stop_gradient(jnp.mean(reference))
    scale = 1 / jnp.where(is_valid_error(err), err, jnp.nan)
    reference, image = (reference - pedestal) * scale, (image - pedestal) * scale
    spectrum, image_spectrum = jnp.fft.rfftn(reference), jnp.fft.rfftn(image)
    correlation = conj_product(spectrum, image_spectrum)
    energy, image_energy = jnp.sum(reference**2), jnp.sum(image**2)
    cross = split_nyquist(scaled(correlation, -2 / prod(shape)), shape)
    power = nyquist_power(spectrum, shape)
    if oversample == 1:
        grid = jnp.fft.irfftn(correlation, shape) * -2
    else:
        grid = cross.sampled(2) + jnp.tile(_half_pixel_values(power), shape)
    return Chi2Terms(
        cross=cross,
        power=power,
        constant=energy + image_energy,
        grid=grid,
        reference=spectrum,
        image=image_spectrum,
        weights=None,
        n_valid=jnp.asarray(prod(shape), jnp.int32),
        amplitude=jnp.sqrt(energy) * jnp.sqrt(image_energy),
        flat=jnp.zeros((), bool),
        shape=shape,
        frame=shape,
    )


def _half_pixel_values(power: FourierSeries) -> Array:
    """A series of period one pixel at 0 and ½ on every axis, shape ``(2,)*D``."""
    ndim, dtype = power.coefficients.ndim, power.coefficients.real.dtype
    steps = [jnp.asarray([0.0, 0.5], dtype)] * ndim
    return power.differences(jnp.zeros(ndim, jnp.int32), jnp.zeros(ndim, dtype), steps)


class Prepared(NamedTuple):
    """A pair without bad pixels: finite values, and weights that are zero where a pixel says nothing."""

    reference: Array
    image: Array
    weights: Array
    unit: Array
    """The images have been divided by this and ``weights`` are relative to its inverse square."""
    pedestal: Array
    """What was subtracted from both images before."""
    flat: Array
    """Whether either image is constant to rounding."""


def prepare(reference: Array, image: Array, err: Array, boundary: str) -> Prepared:
    """Turn bad pixels into weights, for any error map, and lay out the periodic grid of the boundary."""
    known = jnp.isfinite(reference)
    valid = jnp.isfinite(image) & is_valid_error(err)
    err = jnp.where(valid, err, 1.0)
    unit = lax.stop_gradient(jnp.min(err, where=valid, initial=jnp.inf))
    unit = jnp.where(jnp.isfinite(unit), unit, 1.0)
    # A reference of which nothing is known says nothing about any pixel.
    weights = jnp.where(valid & jnp.any(known), (unit / err) ** 2, 0.0)
    flat = _is_flat(reference, known) | _is_flat(image, valid)
    reference, image = jnp.where(known, reference, 0.0), jnp.where(valid, image, 0.0)
    pedestal = jnp.zeros_like(unit)
    if boundary == "wrap":
        # Outside the frame the model of "fill" is zero, so there a pedestal does not cancel.
        pedestal = lax.stop_gradient(jnp.mean(reference, where=known))
        pedestal = jnp.where(jnp.isfinite(pedestal), pedestal, 0.0)
    reference = jnp.where(known, (reference - pedestal) / unit, 0.0)
    image = jnp.where(valid, (image - pedestal) / unit, 0.0)
    if boundary == "fill":
        padding = [(0, n) for n in reference.shape]
        reference, image, weights = (jnp.pad(x, padding) for x in (reference, image, weights))
        known = jnp.pad(known, padding, constant_values=True)
    reference, weights = lax.cond(
        any_in_batch(~jnp.all(known)),
        _without_unknown,
        lambda reference, image, weights, known: (reference, weights),
        reference,
        image,
        weights,
        known,
    )
    return Prepared(reference, image, weights, unit, pedestal, flat)


def _is_flat(image: Array, valid: Array) -> Array:
    largest = jnp.max(image, where=valid, initial=-jnp.inf)
    smallest = jnp.min(image, where=valid, initial=jnp.inf)
    return largest - smallest <= 8 * jnp.finfo(image.dtype).eps * jnp.maximum(
        jnp.abs(largest), jnp.abs(smallest)
    )


def weighted_terms(reference: Array, image: Array, err: Array, boundary: str, oversample: int) -> Chi2Terms:
    """Terms for any error map, bad pixels and boundary."""
    frame = reference.shape
    reference, image, weights, _, _, flat = prepare(reference, image, err, boundary)
    shape, size = reference.shape, prod(reference.shape)
    spectrum = jnp.fft.rfftn(reference)
    correlation = conj_product(spectrum, jnp.fft.rfftn(weights * image))
    image_energy = jnp.sum(weights * image**2)
    cross = split_nyquist(scaled(correlation, -2 / size), shape)
    power = correlated_square(spectrum, shape, weights)
    if oversample == 1:
        grid = jnp.fft.irfftn(power.phases[0] - scaled(correlation, 2.0), shape)
    else:
        grid = cross.sampled(2) + power.sampled(2)
    return Chi2Terms(
        cross=cross,
        power=power,
        constant=image_energy,
        grid=grid,
        reference=spectrum,
        image=image,
        weights=weights,
        n_valid=jnp.sum(weights > 0, dtype=jnp.int32),
        amplitude=jnp.sqrt(jnp.sum(reference**2)) * jnp.sqrt(image_energy),
        flat=flat,
        shape=shape,
        frame=frame,
    )


def _without_unknown(reference: Array, image: Array, weights: Array, known: Array) -> tuple[Array, Array]:
    """Take the reference's bad pixels out: fill them smoothly and ignore the image pixels they cover.

    Which pixels those are depends on the shift. It is settled at the pixel that minimises χ² per unit of
    weight over the known pixels, an exact statement on the pixel grid, with a margin of one pixel.
    """
    shape, ndim = reference.shape, reference.ndim
    mask = known.astype(reference.dtype)
    mask_spectrum, weight_spectrum = jnp.fft.rfftn(mask), jnp.fft.rfftn(weights)
    overlap = jnp.fft.irfftn(jnp.conj(mask_spectrum) * weight_spectrum, shape)
    chi2 = jnp.fft.irfftn(
        jnp.conj(mask_spectrum) * jnp.fft.rfftn(weights * image**2)
        - 2 * jnp.conj(jnp.fft.rfftn(reference)) * jnp.fft.rfftn(weights * image)
        + jnp.conj(jnp.fft.rfftn(reference**2)) * weight_spectrum,
        shape,
    )
    enough = overlap > 0.5 * jnp.max(overlap)
    index = grid_minimum(jnp.where(enough, chi2 / jnp.where(enough, overlap, 1.0), jnp.inf))
    safe = mask
    for axis in range(ndim):
        safe = safe * jnp.roll(safe, 1, axis) * jnp.roll(safe, -1, axis)
    weights = weights * jnp.roll(safe, index, tuple(range(ndim)))
    return _fill_smoothly(reference, mask, mask_spectrum), weights


def _fill_smoothly(reference: Array, mask: Array, mask_spectrum: Array) -> Array:
    """Replace masked pixels by a Gaussian average (σ = 1.5 pixels) of the others; far from any, by zero."""
    shape, ndim = reference.shape, reference.ndim
    kernel = [
        jnp.exp(-0.5 * (2 * jnp.pi * 1.5 * along(harmonics(n)[:m] / n, a, ndim)) ** 2)
        for a, (n, m) in enumerate(zip(shape, mask_spectrum.shape, strict=True))
    ]
    smooth = prod(kernel[1:], start=kernel[0]).astype(reference.dtype)
    average = jnp.fft.irfftn(jnp.fft.rfftn(reference) * smooth, shape)
    share = jnp.fft.irfftn(mask_spectrum * smooth, shape)
    filled = jnp.where(share > 1e-3, average / jnp.where(share > 1e-3, share, 1.0), 0.0)
    return jnp.where(mask > 0, reference, filled)


def grid_minimum(values: Array) -> Array:
    """Index of the smallest element, shape ``(ndim,)``; one vectorised pass, unlike ``argmin``."""
    rows = values.reshape(-1, values.shape[-1])
    column = jnp.argmin(jnp.min(rows, axis=0))
    row = jnp.argmin(rows[:, column])
    return jnp.stack([*jnp.unravel_index(row, values.shape[:-1]), column]).astype(jnp.int32)
