"""The terms of χ² as functions of the shift, built from an image pair.

    χ²(s) = Σ_i w_i (D_i − a M(i − s) − b)²

in the sums ``cross = −2 Σ w_i D_i M(i − s)``, ``power = Σ w_i M(i − s)²`` and ``total = Σ w_i M(i − s)``, all
of them exact Fourier series in s. Gain and background are 1 and 0, or at their best for every s:

    χ² = constant + cross + power'         with a = 1
    χ² = constant − cross² / (4 power')    with a = −cross / (2 power'), where that is positive

Where b is fitted, D has had its weighted mean subtracted and ``power' = power − total² / Σ w``; else they are
the same. There are two builders: `uniform_terms` for equal weights, where all but the Nyquist terms of the
power is constant, and `weighted_terms` for everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .layout import (
    GUARD,
    Layout,
    Prepared,
    Spread,
    as_it_is,
    average_nearby,
    fill_smoothly,
    is_flat,
    is_valid_error,
    lay_out,
    prepare,
    prior_chi2,
    unknown_variance,
    with_prior,
    with_variance,
)
from .noise import box_coordinates, fitted_trend, gentle, hann, lower, significant, whitening, wiener_gain
from .overlap import Correlation, profiled
from .pair import Model, Pair
from .passes import any_in_batch, count, every, mean_over, some, sum_all
from .spectrum import (
    Differences,
    FourierSeries,
    Shape,
    conj_product,
    contract,
    correlated_square,
    half_weights,
    harmonics,
    nyquist_power,
    scaled,
    series_of,
    shift_spectrum,
)
from .taylor import multiply, reciprocal


class Matched(NamedTuple):
    """Pixels of a match in units of the errors."""

    model: Array
    """About its mean."""
    residual: Array
    data: Array
    """About its mean."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "cross",
        "power",
        "total",
        "constant",
        "mass",
        "grid",
        "origin",
        "pair",
        "reference",
        "image",
        "weights",
        "n_valid",
        "amplitude",
        "roughness",
        "contrast",
        "flat",
        "settled",
        "correlation",
        "frames",
        "common",
        "noise_share",
        "scale",
        "offsets",
    ],
    meta_fields=["model", "shape", "frame"],
)
@dataclass(frozen=True)
class Chi2Terms:
    """χ² of one image pair as a function of the shift."""

    cross: FourierSeries
    """``−2 Σ w_i D_i M(i − s)``."""
    power: FourierSeries
    """``Σ w_i M(i − s)²``."""
    total: FourierSeries | None
    """``Σ w_i M(i − s)``; None where it is not needed, or zero."""
    constant: Array
    """``Σ w_i D_i²``, a scalar."""
    mass: Array
    """``Σ w_i``, a scalar."""
    grid: Array
    """χ² less its constant, with the prior, at every ``1/oversample`` pixel searched, shift zero first.
    Where ``settled`` the score of `overlap` instead of χ²."""
    origin: Array
    """Whole shift that the series count from, shape ``(D,)``."""
    pair: Pair
    """What is known about the shift beforehand, the images left out."""
    reference: Array
    """Half-plane spectrum of the reference, moved by ``origin``."""
    image: Array
    """The image's pixels, or its half-plane spectrum when ``weights`` is None."""
    weights: Array | None
    """Weight of each pixel, None when they are all one."""
    n_valid: Array
    """Number of pixels with a weight, a scalar integer."""
    amplitude: Array
    """``√(Σ M² Σ w D²)``, what bounds the correlation: its rounding is a few ulp of this."""
    roughness: Array
    """The same for its second derivative along each axis, shape ``(D,)``."""
    contrast: Array
    """``Σ w (D − D̄)²`` with the weighted mean D̄."""
    flat: Array
    """Whether an image is constant to rounding, or along a free axis. Weights that differ give χ² a minimum
    even so."""
    settled: Array
    """Whether the weights hold for shifts near ``origin`` alone, so that ``grid`` is a score."""
    correlation: Correlation | None
    """Of the frames at each whole shift of the search grid, where their overlap may depend on the shift."""
    frames: tuple[Spread, Spread] | None
    """How the values of reference and image differ in all of their frames, where not all may count."""
    common: tuple[Spread, Spread] | None
    """The same over the pixels that count."""
    noise_share: Array
    """Mean share of the errors as given in the variance of the pixels that count."""
    scale: Array
    """The images have been divided by this."""
    offsets: tuple[Array, Array]
    """What was subtracted from reference and image before, in units of the images."""
    model: Model = field(metadata={"static": True})
    shape: Shape = field(metadata={"static": True})
    """Shape of the periodic grid of the series."""
    frame: Shape = field(metadata={"static": True})
    """Shape of the image."""

    @property
    def oversample(self) -> int:
        """Samples per pixel of ``grid``."""
        return self.model.oversample

    @property
    def period(self) -> Shape | None:
        """Period of χ² in pixels; None where shifts are what they are."""
        return None if self.model.boundary.name == "overlap" else self.shape

    @property
    def bandwidth(self) -> int:
        """How many times the image's band χ² has: twice where squares of Fourier series enter."""
        return 1 if self.weights is None and not self.model.gain else 2

    def grid_chi2(self) -> Array:
        """``grid`` as χ²; a score, −2 times a log-likelihood like it, from χ² at the origin."""
        if self.correlation is None:
            return self.grid + self.constant
        zero = jnp.zeros_like(self.constant, shape=self.origin.shape)
        there = self.derivatives(self.origin, zero, 0).reshape(())
        index = tuple(self.origin * self.oversample % np.array(self.grid.shape))
        offset = jnp.where(self.settled, there - self.grid[index], 0.0)
        return self.grid + offset + self.constant

    def derivatives(self, whole: Array, fraction: Array, order: int) -> Array:
        """Partial derivatives of χ² less its constant up to ``order`` per axis at ``whole + fraction``."""
        at = whole - self.origin
        cross, power, total = self._each(lambda series: series.derivatives(at, fraction, order))
        result = self._combined(cross, power, total)
        return result if self.pair.prior is None else result + self._prior(whole, fraction, order)

    def differences(self, whole: Array, fraction: Array, displacements: list[Array]) -> Array:
        """``χ²(s + d) − χ²(s)`` on the grid of displacements d spanned by one vector per axis."""
        at = whole - self.origin
        return self._changed(
            *self._each(lambda series: series.differences(at, fraction, displacements)),
            whole + fraction,
            displacements,
        )

    def rise(self, whole: Array, fraction: Array, displacement: Array, order: int) -> Array:
        """Derivatives of χ² at ``whole + fraction + displacement``, for the first what χ² has risen by."""
        at, steps = whole - self.origin, list(displacement[:, None])
        each = self._each(lambda series: series.differences(at, fraction, steps, order))
        cross, power, total = each
        result = self._combined(cross.there, power.there, None if total is None else total.there)
        if self.pair.prior is not None:
            result = result + self._prior(whole, fraction + displacement, order)
        change = self._changed(*each, whole + fraction, steps)
        return result.at[(0,) * len(steps)].set(change.reshape(()))

    def _each(self, function: Callable[[FourierSeries], Any]) -> tuple[Any, Any, Any]:
        """A function of cross, power and total, None where there is no total."""
        total = None if self.total is None else function(self.total)
        return function(self.cross), function(self.power), total

    def _combined(self, cross: Array, power: Array, total: Array | None) -> Array:
        """Derivatives of χ² from those of the series."""
        if total is not None:
            power = power - multiply(total, total) / self.mass
        if self.model.gain:
            return multiply(multiply(cross, cross), reciprocal(power)) / -4
        return cross + power

    def _changed(
        self,
        cross: Differences,
        power: Differences,
        total: Differences | None,
        shift: Array,
        displacements: list[Array],
    ) -> Array:
        """Differences of χ² from those of the series."""
        change, start = power.change, power.start
        if total is not None:
            change = change - (2 * total.start + total.change) * total.change / self.mass
            start = start - total.start**2 / self.mass
        if self.model.gain:
            # The difference of two quotients, without subtracting them.
            square = (2 * cross.start + cross.change) * cross.change - cross.start**2 / start * change
            result = -square / (4 * (start + change))
        else:
            result = cross.change + change
        if self.pair.prior is None:
            return result
        here, there = (
            [s + d for s, d in zip(shift, x, strict=True)]
            for x in (jnp.zeros_like(shift)[:, None], displacements)
        )
        return result + prior_chi2(self.pair.prior, there) - prior_chi2(self.pair.prior, here)

    def _prior(self, whole: Array, fraction: Array, order: int) -> Array:
        assert self.pair.prior is not None
        mean, precision = self.pair.prior
        offset = (whole - mean) + fraction
        product = jnp.sum(precision * offset[None, :], axis=1)
        ndim = len(offset)
        tensor = (
            jnp.zeros_like(offset, shape=(order + 1,) * ndim).at[(0,) * ndim].set(jnp.sum(product * offset))
        )
        if order:
            units = np.eye(ndim, dtype=int)
            for a in range(ndim):
                tensor = tensor.at[tuple(units[a])].add(2 * product[a])
                for b in range(a + 1 if order > 1 else 0):
                    tensor = tensor.at[tuple(units[a] + units[b])].add(2 * precision[a, b])
        return tensor

    def sums(self, whole: Array, fraction: Array) -> tuple[Array, Array, Array]:
        """Cross, power' and total at one shift."""
        at = whole - self.origin
        cross, power = (x.derivatives(at, fraction, 0).reshape(()) for x in (self.cross, self.power))
        if self.total is None:
            return cross, power, jnp.zeros_like(cross)
        total = self.total.derivatives(at, fraction, 0).reshape(())
        return cross, power - total**2 / self.mass, total

    def nuisances(self, whole: Array, fraction: Array) -> tuple[Array, Array]:
        """Best gain and background at one shift, in the internal units; 1 and 0 where not fitted."""
        if not (self.model.gain or self.model.background):
            return jnp.ones_like(self.constant), jnp.zeros_like(self.constant)
        cross, power, total = self.sums(whole, fraction)
        gain = -cross / (2 * power) if self.model.gain else jnp.ones_like(cross)
        return gain, -gain * total / self.mass

    def nuisance_covariance(self, whole: Array, fraction: Array, gain: Array) -> Array:
        """Covariance of gain and background, in internal units, the free shifts fitted with them.

        Zero for what is not fitted. From the second derivatives of χ² in all parameters: those of gain
        and background less what the shifts take (Schur complement).
        """
        ndim, at = len(fraction), whole - self.origin
        first = tuple(np.eye(ndim, dtype=int).T)
        cross, power = (x.derivatives(at, fraction, 2) for x in (self.cross, self.power))
        total = jnp.zeros_like(cross) if self.total is None else self.total.derivatives(at, fraction, 2)
        zero = (0,) * ndim
        background = -gain * total[zero] / self.mass
        mixed = jnp.stack(
            [cross[first] + 2 * gain * power[first] + 2 * background * total[first], 2 * gain * total[first]],
            1,
        )
        pure = jnp.stack([power[zero], total[zero], total[zero], self.mass]).reshape(2, 2) * 2
        curvature = gain * cross + gain**2 * power + 2 * gain * background * total
        if self.pair.prior is not None:
            curvature = curvature + self._prior(whole, fraction, 2)
        pairs = np.eye(ndim, dtype=int)[:, None] + np.eye(ndim, dtype=int)[None, :]
        hessian = curvature[tuple(np.moveaxis(pairs, -1, 0))]
        held = ~np.array(self.model.free)
        hessian = jnp.where(held[:, None] | held[None, :], jnp.eye(ndim, dtype=hessian.dtype), hessian)
        mixed = jnp.where(held[:, None], 0.0, mixed)
        fitted = np.array([self.model.gain, self.model.background])
        pure = jnp.where(fitted[:, None] & fitted[None, :], pure, jnp.eye(2, dtype=pure.dtype))
        mixed = jnp.where(fitted[None, :], mixed, 0.0)
        taken = jnp.dot(mixed.T, jnp.linalg.solve(hessian, mixed), precision=lax.Precision.HIGHEST)
        information = pure - taken
        determinant = information[0, 0] * information[1, 1] - information[0, 1] * information[1, 0]
        swapped = jnp.stack(
            [information[1, 1], -information[0, 1], -information[1, 0], information[0, 0]]
        ).reshape(2, 2)
        return jnp.where(fitted[:, None] & fitted[None, :], 2 * swapped / determinant, 0.0)

    def residual_chi2(self, whole: Array, fraction: Array) -> Array:
        """χ² at one shift as a sum of squares, which float32 can resolve where the series cannot."""
        gain, background = self.nuisances(whole, fraction)
        model = shift_spectrum(self.reference, self.shape, whole - self.origin, fraction)
        if self.weights is None:
            real, imag = (self.image.real - gain * model.real), (self.image.imag - gain * model.imag)
            power = real**2 + imag**2
            # A product with the weights, not a sum over rows: XLA 0.10 compiled that one, fused with the
            # complex arithmetic before it, into a program that crashed where the columns fill its vectors.
            weights = half_weights(self.shape[-1]).astype(power.dtype)
            return sum_all(jnp.dot(power, weights, precision=lax.Precision.HIGHEST)) / prod(self.shape)
        residual = self.image - gain * jnp.fft.irfftn(model, self.shape) - background
        return sum_all(self.weights * residual**2)

    def match(self, whole: Array, fraction: Array) -> Matched:
        """Model, residual and data at one shift."""
        gain, background = self.nuisances(whole, fraction)
        spectrum = shift_spectrum(self.reference, self.shape, whole - self.origin, fraction)
        model = jnp.fft.irfftn(spectrum, self.shape)
        if self.weights is None:
            weights = jnp.ones_like(model)
            image = jnp.fft.irfftn(self.image, self.shape)
        else:
            weights, image = self.weights, self.image
        mass, root = sum_all(weights), jnp.sqrt(weights)

        def centred(x: Array) -> Array:
            return root * (x - sum_all(weights * x) / jnp.where(mass > 0, mass, 1.0))

        return Matched(centred(model), root * (image - gain * model - background), centred(image))

    def expected_image(self, whole: Array, fraction: Array) -> tuple[Array, Array]:
        """The best model in the image's frame and units, and which pixels count; for weighted terms."""
        assert self.weights is not None
        gain, background = self.nuisances(whole, fraction)
        shifted = shift_spectrum(self.reference, self.shape, whole - self.origin, fraction)
        model = gain * jnp.fft.irfftn(shifted, self.shape) + background
        guard = GUARD if self.model.boundary.name == "overlap" else 0
        frame = tuple(slice(guard, guard + n) for n in self.frame)
        return model[frame] * self.scale + self.offsets[1], self.weights[frame] > 0


def with_terms(function: Callable[[Chi2Terms], Any], pair: Pair, model: Model, clean: bool | None) -> Any:
    """Build the terms by the cheapest exact way and return ``function(terms)``.

    One error for all pixels and no bad pixel needs a third of the work. ``clean`` says whether to take it
    that this is so; with None the data decide at run time.
    """
    if not pair.uniform or model.boundary.name != "wrap" or clean is False:
        return function(weighted_terms(pair, model))
    if clean:
        return function(uniform_terms(pair, model))
    return lax.cond(
        any_in_batch(~is_clean(lax.stop_gradient(pair))),
        lambda pair: function(weighted_terms(pair, model)),
        lambda pair: function(uniform_terms(pair, model)),
        pair,
    )


def is_clean(pair: Pair) -> Array:
    """Whether no pixel is bad and the common error is valid: any NaN or infinity survives a sum.

    An overflow of the sum is taken for a bad pixel, which merely costs time.
    """
    clean = jnp.isfinite(sum_all(pair.reference)) & jnp.isfinite(sum_all(pair.image))
    if pair.reference_err is not None:
        clean &= jnp.isfinite(pair.reference_err)
    return clean & is_valid_error(pair.err)


def is_quick(pair: Pair, model: Model) -> bool:
    """Whether the cheap way is worth trying first: one error for all pixels, and values that are there.

    A bad pixel makes everything NaN in that way, so its result says whether it was right to try. That
    saves compiling and asking for both outside ``jit``; of traced values nothing can be asked.
    """
    return model.boundary.name == "wrap" and pair.uniform and not pair.traced


def _knowledge(pair: Pair) -> Pair:
    """The pair without its pixels."""
    none = jnp.zeros_like(pair.image, shape=())
    noise = None if pair.reference_err is None else none
    return pair._replace(reference=none, image=none, err=none, reference_err=noise)


class ReferenceSide(NamedTuple):
    """What χ² takes from the reference and the weights alone: the same for every image of a stack."""

    spectrum: Array
    """Half-plane spectrum of the reference."""
    energy: Array
    """``Σ M²``, a scalar."""
    power: FourierSeries
    """``Σ w_i M(i − s)²``."""
    power_on_pixels: Array | None
    """Half-plane spectrum of what that is at whole shifts; None where it is a constant or not needed."""
    total_spectrum: Array | None
    """Half-plane spectrum of ``Σ w_i M(i − s)``; None where it is not needed, or zero."""
    mass: Array
    """``Σ w_i``, a scalar."""
    roughness: Array
    """``Σ (∂²M)²`` along each axis, shape ``(D,)``."""
    unit: Array
    """The reference has been divided by this."""
    pedestal: Array
    """What was subtracted from it before."""


def uniform_side(pair: Pair, model: Model) -> ReferenceSide:
    """The reference's part of `uniform_terms`."""
    # A common pedestal cancels in χ²; kept, it would cost float32 its digits.
    # With a gain alone it does not cancel.
    pedestal = lax.stop_gradient(sum_all(pair.reference) / pair.reference.size)
    pedestal = jnp.zeros_like(pedestal) if model.gain and not model.background else pedestal
    unit = jnp.where(is_valid_error(pair.err), pair.err, jnp.nan)
    reference = (pair.reference - pedestal) / unit
    if model.background:
        # To rounding it is zero already; its derivative is not.
        reference = reference - sum_all(reference) / reference.size
    return _unweighted(jnp.fft.rfftn(reference), sum_all(reference**2), reference.shape, unit, pedestal)


def _unweighted(spectrum: Array, energy: Array, shape: Shape, unit: Array, pedestal: Array) -> ReferenceSide:
    power = nyquist_power(spectrum, shape)
    return ReferenceSide(
        spectrum=spectrum,
        energy=energy,
        power=replace(power, parts=power.parts.at[(0,) * power.parts.ndim].add(energy)),
        power_on_pixels=None,
        total_spectrum=None,
        mass=jnp.full_like(energy, prod(shape)),
        roughness=_energies(spectrum, shape)[1],
        unit=unit,
        pedestal=pedestal,
    )


def uniform_terms(pair: Pair, model: Model, side: ReferenceSide | None = None) -> Chi2Terms:
    """Terms for one error common to all pixels, every pixel valid, periodic boundary.

    ``side`` is what `uniform_side` made of this reference, error and model before.
    """
    side = uniform_side(pair, model) if side is None else side
    shape = pair.image.shape
    image, pedestal = (pair.image - side.pedestal) / side.unit, side.pedestal
    if model.background:
        mean = sum_all(image) / image.size
        image, pedestal = image - mean, pedestal + mean * side.unit
    image_spectrum = jnp.fft.rfftn(image)
    image_energy = sum_all(image**2)
    if pair.reference_err is not None:
        first, second = (_periodogram(x, prod(shape)) for x in (side.spectrum, image_spectrum))
        variance = (pair.reference_err / side.unit) ** 2
        filters = whitening(first, second, variance, jnp.ones_like(variance), shape, fit_gain=model.gain)
        spectrum, image_spectrum = (
            scaled(side.spectrum, filters.reference),
            scaled(image_spectrum, filters.image),
        )
        side = _unweighted(spectrum, _energy(spectrum, shape), shape, side.unit, side.pedestal)
        side = side._replace(mass=side.mass * filters.image.reshape(-1)[0] ** 2)
        image_energy = _energy(image_spectrum, shape)
    cross_spectrum = _cross(side.spectrum, image_spectrum)
    cross = series_of(cross_spectrum, shape)
    if model.oversample == 1:
        cross_grid, power_grid = _searched(cross_spectrum, shape, model), side.energy
    else:
        cross_grid, power_grid = cross.sampled(2), jnp.tile(_half_pixel_values(side.power), shape)
    return Chi2Terms(
        cross=cross,
        power=side.power,
        total=None,
        constant=image_energy,
        mass=side.mass,
        grid=with_prior(profiled(cross_grid, power_grid, model.gain), model.oversample, pair, model),
        origin=jnp.zeros_like(image_energy, shape=(len(shape),), dtype=jnp.int32),
        pair=_knowledge(pair),
        reference=side.spectrum,
        image=image_spectrum,
        weights=None,
        n_valid=jnp.full_like(image_energy, prod(shape), dtype=jnp.int32),
        amplitude=jnp.sqrt(side.energy) * jnp.sqrt(image_energy),
        contrast=image_energy - image_spectrum.reshape(-1)[0].real ** 2 / prod(shape),
        roughness=_bound(side, image_spectrum, shape, model),
        flat=jnp.zeros_like(image_energy, dtype=bool),
        settled=jnp.zeros_like(image_energy, dtype=bool),
        correlation=None,
        frames=None,
        common=None,
        noise_share=jnp.ones_like(image_energy),
        scale=side.unit,
        offsets=(side.pedestal, pedestal),
        model=model,
        shape=shape,
        frame=shape,
    )


def _cross(reference: Array, image: Array) -> Array:
    return conj_product(scaled(reference, -2.0), image)


def _searched(spectrum: Array, shape: Shape, model: Model) -> Array:
    """What a half-plane spectrum is at the whole shifts of the search grid.

    All of a period by an inverse FFT, or the window and a ring around it, by one matrix product per axis.
    """
    if not model.compact:
        return jnp.fft.irfftn(spectrum, shape)
    real, imag = spectrum.real, spectrum.imag
    for axis in reversed(range(len(shape))):
        n, (low, high) = shape[axis], model.whole_window[axis]
        # A shift and its opposite share cosine and sine.
        shifts = np.arange(max(high + 1, 1 - low) + 1)
        phase = 2 * np.pi * (np.outer(harmonics(n)[: spectrum.shape[axis]], shifts) % n) / n
        weight = half_weights(n)[:, None] / n if axis == len(shape) - 1 else 1 / n
        waves = jnp.asarray(np.concatenate([np.cos(phase), np.sin(phase)], 1) * weight, real.dtype)

        def products(x: Array, axis: int = axis, waves: Array = waves) -> list[Array]:
            return jnp.split(jnp.tensordot(x, waves, ((axis,), (0,)), precision=lax.Precision.HIGHEST), 2, -1)

        def joined(up: Array, down: Array, axis: int = axis, low: int = low, high: int = high) -> Array:
            values = jnp.concatenate([up[..., : high + 2], jnp.flip(down[..., 1 : 2 - low], -1)], -1)
            return jnp.moveaxis(values, -1, axis)

        (real_cos, real_sin), (imag_cos, imag_sin) = products(real), products(imag)
        real = joined(real_cos - imag_sin, real_cos + imag_sin)
        imag = joined(imag_cos + real_sin, imag_cos - real_sin)
    return real


def _periodogram(spectrum: Array, number: Array | int) -> Array:
    return (spectrum.real**2 + spectrum.imag**2) / number


def _energy(spectrum: Array, shape: Shape) -> Array:
    power = spectrum.real**2 + spectrum.imag**2
    weights = half_weights(shape[-1]).astype(power.dtype)
    return sum_all(jnp.dot(power, weights, precision=lax.Precision.HIGHEST)) / prod(shape)


def _energies(spectrum: Array, shape: Shape) -> tuple[Array, Array]:
    """`_energy`, and that of the second derivative along each axis, shape ``(D,)``."""
    power = spectrum.real**2 + spectrum.imag**2
    columns = [
        np.stack([np.ones(m), (2 * np.pi * harmonics(n)[:m] / n) ** 4], axis=1)
        for n, m in zip(shape, power.shape, strict=True)
    ]
    columns[-1] *= half_weights(shape[-1])[:, None]
    sums = contract(power, [jnp.asarray(c, power.dtype) for c in columns]) / prod(shape)
    return sums[(0,) * len(shape)], sums[tuple(np.eye(len(shape), dtype=int))]


def _bound(side: ReferenceSide, image_spectrum: Array, shape: Shape, model: Model) -> Array:
    """What bounds the second derivatives of χ² as far as rounding is concerned.

    That of a transform is a few ulp of the whole in every mode, and so enters by the roughness of the other.
    At the best gain the power of the reference is a factor, and has no part of its own.
    """
    energy, roughness = _energies(image_spectrum, shape)
    own = 0.0 if model.gain else jnp.sqrt(side.energy)
    # The root of a product would overflow.
    return (jnp.sqrt(energy) + own) * jnp.sqrt(side.roughness) + jnp.sqrt(side.energy) * jnp.sqrt(roughness)


def _half_pixel_values(power: FourierSeries) -> Array:
    """A series of period one pixel at 0 and ½ on every axis, shape ``(2,)*D``."""
    ndim, dtype = len(power.period), power.parts.dtype
    steps = [jnp.asarray([0.0, 0.5], dtype)] * ndim
    zero = jnp.zeros(ndim, jnp.int32), jnp.zeros(ndim, dtype)
    return power.differences(*zero, steps).there


def weighted_side(layout: Layout, prepared: Prepared, model: Model) -> ReferenceSide:
    """The reference's part of `weighted_terms`."""
    spectrum, weight_spectrum = jnp.fft.rfftn(layout.reference), jnp.fft.rfftn(layout.weights)
    on_pixels = None
    if model.boundary.name != "overlap":
        on_pixels = conj_product(jnp.fft.rfftn(layout.reference**2), weight_spectrum)
    return ReferenceSide(
        spectrum=spectrum,
        energy=sum_all(layout.reference**2),
        power=correlated_square(spectrum, weight_spectrum, layout.reference.shape),
        power_on_pixels=on_pixels,
        total_spectrum=conj_product(spectrum, weight_spectrum) if model.background else None,
        mass=sum_all(layout.weights),
        roughness=_energies(spectrum, layout.reference.shape)[1],
        unit=prepared.unit,
        pedestal=prepared.pedestal,
    )


def weighted_terms(pair: Pair, model: Model) -> Chi2Terms:
    """Terms for any error map, bad pixels and boundary."""
    prepared = prepare(pair, model)
    layout = lay_out(prepared, pair, model)
    if layout.variance is not None:
        layout = _wiener(layout, model)
    side = weighted_side(layout, prepared, model)
    # Where its weights may be settled for one shift, the search looks at the score of the whole period.
    return _weighted(layout, side, prepared.flat, pair, replace(model, compact=False))


class SharedReference(NamedTuple):
    """A reference, the pixels' errors and what follows from them, for any number of images."""

    side: ReferenceSide
    layout: Layout | None
    """Weights of the pixels; None where they are all one."""
    flat: Array
    """Whether the reference is constant; looked at only where weights differ."""


def shared_reference(pair: Pair, model: Model) -> SharedReference:
    """Do once what `shared_terms` needs for every image; of the pair's image only the shape counts."""
    if pair.uniform:
        side = uniform_side(pair, model)
        return SharedReference(side, None, jnp.zeros_like(side.energy, dtype=bool))
    prepared = prepare(pair._replace(image=jnp.zeros_like(pair.image)), model)
    layout = as_it_is(prepared)
    flat = is_flat(pair.reference, prepared.known, model)
    return SharedReference(weighted_side(layout, prepared, model), layout, flat)


def shared_terms(shared: SharedReference, pair: Pair, model: Model) -> Chi2Terms:
    """Terms of one image, the periodic boundary and a reference without bad pixels; see `is_shareable`."""
    side, layout, flat = shared
    if layout is None:
        return uniform_terms(pair, model, side)
    counted = layout.weights > 0
    image = jnp.where(counted, (pair.image - side.pedestal) / side.unit, 0.0)
    flat = flat | is_flat(image, counted, model)
    return _weighted(layout._replace(image=image), side, flat, pair, model)


def is_shareable(shared: SharedReference, pair: Pair) -> Array:
    """Whether every pixel of the reference, and every one of the image that has an error, is finite."""
    if shared.layout is None:
        return is_clean(pair)
    image = jnp.where(shared.layout.weights > 0, pair.image, 0.0)
    return jnp.isfinite(sum_all(pair.reference)) & jnp.isfinite(sum_all(image))


def _weighted(layout: Layout, side: ReferenceSide, flat: Array, pair: Pair, model: Model) -> Chi2Terms:
    image, weights = layout.image, layout.weights
    shape, frame = layout.reference.shape, pair.image.shape
    mass = side.mass
    shared = jnp.zeros_like(mass)
    if model.background:
        shared = sum_all(weights * image) / jnp.where(mass > 0, mass, 1.0)
        image = image - shared
    image_spectrum = jnp.fft.rfftn(weights * image)
    constant = sum_all(weights * image**2)
    cross = _cross(side.spectrum, image_spectrum)
    grid = _search_grid(layout, cross, side, model)
    return Chi2Terms(
        cross=series_of(cross, shape),
        power=side.power,
        total=None if side.total_spectrum is None else series_of(side.total_spectrum, shape),
        constant=constant,
        mass=jnp.where(mass > 0, mass, 1.0),
        grid=with_prior(grid, model.oversample, pair, model),
        origin=layout.origin,
        pair=_knowledge(pair),
        reference=side.spectrum,
        image=image,
        weights=weights,
        n_valid=count(weights > 0),
        amplitude=jnp.sqrt(side.energy) * jnp.sqrt(constant),
        contrast=constant - sum_all(weights * image) ** 2 / jnp.where(mass > 0, mass, 1.0),
        roughness=_bound(side, image_spectrum, shape, model),
        flat=flat,
        settled=layout.settled,
        correlation=layout.correlation,
        frames=layout.frames,
        common=layout.common,
        noise_share=layout.noise_share,
        scale=side.unit,
        offsets=(side.pedestal, side.pedestal + shared * side.unit),
        model=model,
        shape=shape,
        frame=frame,
    )


def _search_grid(layout: Layout, cross: Array, side: ReferenceSide, model: Model) -> Array:
    over, shape, mass = model.oversample, layout.reference.shape, side.mass

    def sampled(spectrum: Array) -> Array:
        return _searched(spectrum, shape, model) if over == 1 else series_of(spectrum, shape).sampled(over)

    def of_the_series() -> Array:
        assert side.power_on_pixels is not None
        if over == 1 and not (model.gain or model.background):
            return sampled(side.power_on_pixels + cross)
        power_grid = sampled(side.power_on_pixels) if over == 1 else side.power.sampled(over)
        if side.total_spectrum is not None:
            power_grid = power_grid - sampled(side.total_spectrum) ** 2 / jnp.where(mass > 0, mass, 1.0)
        return profiled(sampled(cross), power_grid, model.gain)

    if model.compact:
        return of_the_series()
    if model.boundary.name == "overlap":
        return layout.score
    return lax.cond(
        any_in_batch(~layout.settled),
        lambda score: jnp.where(layout.settled, score, of_the_series()),
        lambda score: score,
        halfway(layout.score) if over > 1 else layout.score,
    )


def halfway(grid: Array) -> Array:
    """A periodic grid with the means of neighbours between its samples along every axis."""
    for axis in range(grid.ndim):
        between = (grid + jnp.roll(grid, -1, axis)) / 2
        grid = jnp.stack([grid, between], axis + 1).reshape(
            *grid.shape[:axis], 2 * grid.shape[axis], *grid.shape[axis + 1 :]
        )
    return grid


def _wiener(layout: Layout, model: Model) -> Layout:
    """Filter a noisy reference, and give every pixel the variance that is left of the reference's noise.

    What is left is taken as white, of the size that makes the curvature of χ² the inverse variance of the
    shift; see `noise` for the spectra. Where pixels of the reference are unknown, fewer take part in the
    filter's average and leave more; and what is not known of the scene there reaches as far as the filter.
    """
    shape, weights, periodic = layout.reference.shape, layout.weights, model.boundary.name == "wrap"
    counted = weights > 0
    assert layout.variance is not None
    variance = jnp.broadcast_to(layout.variance, shape)
    noise = mean_over(variance, counted)
    image_noise = mean_over(1 / jnp.where(counted, weights, 1.0), counted)
    # A spectrum of nothing is not to be divided by.
    image_noise = jnp.where(some(counted), image_noise, 1.0)
    places = box_coordinates(counted, weights.dtype)
    taper = jnp.ones_like(weights) if periodic else hann(places)

    def power_of(x: Array, seen: Array) -> Array:
        mass = jnp.maximum(sum_all(jnp.where(seen, taper**2, 0.0)), 1e-3)

        def of(x: Array) -> Array:
            return _periodogram(jnp.fft.rfftn(taper * x), mass)

        def with_holes(x: Array) -> Array:
            # Empty, they scatter the scene's power into all frequencies; filled, with averages of the noise,
            # that of the noise into the low ones. Either is too much.
            filled = jnp.where(seen, x, average_nearby(x, seen))
            return lower(of(filled), of(jnp.where(seen, x, 0.0)), shape)

        return lax.cond(any_in_batch(~every(seen | (taper == 0))), with_holes, of, x)

    mean = mean_over(layout.reference, counted)
    reference, image = layout.reference - mean, layout.image - mean_over(layout.image, counted)
    filters = whitening(
        power_of(reference, layout.known),
        power_of(image, counted),
        noise,
        image_noise,
        shape,
        fit_gain=model.gain,
    )
    signal, noise = filters.signal, noise * filters.brightness
    if model.boundary.name == "overlap":
        freedom = jnp.maximum(sum_all(taper**2) ** 2 / jnp.maximum(sum_all(taper**4), 1e-3), 1.0)
        signal = significant(signal, (noise + image_noise) / 2, freedom, shape)
        gain = wiener_gain(gentle(signal, shape), noise, shape)
        # A trend is no matter for a periodic filter, nor is the mean for any.
        trend = mean + fitted_trend(reference, layout.known, places)
        detail = fill_smoothly(layout.reference - trend, layout.known)
        filtered = trend + jnp.fft.irfftn(scaled(jnp.fft.rfftn(detail), gain), shape)
        filtered = fill_smoothly(jnp.where(layout.known, filtered, 0.0), layout.known)
        if model.gain:
            # A background is one at zero of the images, wherever their pedestal is.
            level = mean if model.background else jnp.zeros_like(mean)
            factor = _calibration(filtered, layout, noise / filters.brightness * gain, model)
            filtered = level + (filtered - level) * factor
    else:
        gain = filters.reference / filters.image
        filtered = mean + jnp.fft.irfftn(scaled(jnp.fft.rfftn(reference), gain), shape)

    def left(weight: np.ndarray) -> Array:
        """Variance of the cross-spectrum over the signal, each with these weights, less the image's noise."""
        modes = jnp.asarray(weight * half_weights(shape[-1]), gain.dtype)
        spread = sum_all(modes * gain**2 * (signal * (noise + image_noise) + noise * image_noise))
        seen = sum_all(modes * gain * signal)
        return jnp.where(seen > 0, spread / jnp.where(seen > 0, seen, 1.0) - image_noise, 0.0)

    # A shift is seen in the slopes, a gain in the values.
    squared = [np.square(2 * np.pi * np.fft.fftfreq(n)[:m]) for n, m in zip(shape, gain.shape, strict=True)]
    rest = left(reduce(np.add.outer, squared))
    if model.gain and not periodic:
        rest = jnp.maximum(rest, left(np.ones(gain.shape)))
    share = jnp.clip(rest / jnp.where(noise > 0, noise, 1.0), 0.0, 1.0)

    def around_unknown(variance: Array) -> Array:
        ringing = _squared_kernel(gain, shape)
        whole = jnp.maximum(ringing.reshape(-1)[0], jnp.finfo(gain.dtype).tiny)
        taking_part = jnp.fft.rfftn(layout.known.astype(gain.dtype))
        part = jnp.fft.irfftn(scaled(taking_part, ringing / whole), shape)
        missing = unknown_variance(layout.reference, layout.known, ringing, noise / filters.brightness)
        return variance / jnp.clip(part, 0.05, 1.0) + filters.brightness * missing

    variance = lax.cond(
        any_in_batch(~every(layout.known)),
        around_unknown,
        lambda x: x,
        share * filters.brightness * variance,
    )
    return layout._replace(reference=filtered, weights=with_variance(weights, variance))


def _calibration(filtered: Array, layout: Layout, kept: Array, model: Model) -> Array:
    """Factor that makes a filtered reference as bright as the scene, for the gain's sake.

    Its product with the observed reference is that with the scene and, for every pixel, what is ``kept`` of
    the noise there, in frequency.
    """
    counted = layout.weights > 0
    number = count(counted).astype(filtered.dtype)

    def centred(x: Array) -> Array:
        mean = mean_over(x, counted) if model.background else 0.0
        return jnp.where(counted, x - mean, 0.0)

    weights = jnp.asarray(half_weights(filtered.shape[-1]), kept.dtype)
    noise = sum_all(jnp.dot(kept, weights, precision=lax.Precision.HIGHEST)) / filtered.size
    power, product = sum_all(centred(filtered) ** 2), sum_all(centred(filtered) * centred(layout.reference))
    factor = (product - number * noise) / jnp.where(power > 0, power, 1.0)
    return jnp.where((power > 0) & (factor > 0), factor, 1.0)


def _squared_kernel(gain: Array, shape: Shape) -> Array:
    """Transform of the square of what a filter and the interpolant make of one pixel.

    At a quarter of a pixel on every axis the squares are what they are on average over all fractions.
    """
    whole = jnp.zeros_like(gain, shape=(len(shape),), dtype=jnp.int32)
    quarter = jnp.full_like(gain, 0.25, shape=(len(shape),))
    kernel = shift_spectrum(lax.complex(gain, jnp.zeros_like(gain)), shape, whole, quarter)
    return jnp.fft.rfftn(jnp.fft.irfftn(kernel, shape) ** 2).real
