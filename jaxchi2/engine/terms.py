"""The terms of χ² as functions of the shift, built from an image pair.

    χ²(s) = Σ_i w_i (D_i − a M(i − s) − b)²

in the sums ``cross = −2 Σ w_i D_i M(i − s)``, ``power = Σ w_i M(i − s)²`` and ``total = Σ w_i M(i − s)``, all
of them exact Fourier series in s. Gain and background are 1 and 0, or at their best for every s:

    χ² = constant + cross + power'         with a = 1
    χ² = constant − cross² / (4 power')    with a = −cross / (2 power'), where that is positive

Where b is fitted, D has had its weighted mean subtracted and ``power' = power − total² / Σ w``; else they are
the same. `builders` makes them from an image pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .layout import (
    GUARD,
    Spread,
)
from .overlap import Correlation
from .pair import Model, Pair
from .passes import sum_all
from .searchgrid import prior_chi2
from .spectrum import (
    Differences,
    FourierSeries,
    Shape,
    energy,
    scaled,
    shift_spectrum,
    squared,
)
from .taylor import multiply, reciprocal


class Matched(NamedTuple):
    """Pixels of a match in units of the errors."""

    model: Array
    """About its mean."""
    residual: Array
    data: Array
    """About its mean."""
    model_power: Array
    """Power spectra of the three on the half plane; at frequency zero of no meaning."""
    residual_power: Array
    data_power: Array


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
        "image_spectrum",
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
    """The image's pixels."""
    image_spectrum: Array | None
    """Their half-plane spectrum when ``weights`` is None, else None."""
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
        if self.image_spectrum is not None:
            return energy(self.image_spectrum - scaled(model, gain), self.shape)
        assert self.weights is not None
        residual = self.image - gain * jnp.fft.irfftn(model, self.shape) - background
        return sum_all(self.weights * residual**2)

    def match(self, whole: Array, fraction: Array) -> Matched:
        """Model, residual and data at one shift."""
        gain, background = self.nuisances(whole, fraction)
        spectrum = shift_spectrum(self.reference, self.shape, whole - self.origin, fraction)
        model = jnp.fft.irfftn(spectrum, self.shape)
        if self.image_spectrum is not None:
            zero = (0,) * len(self.shape)
            mean, image_mean = (z[zero].real / prod(self.shape) for z in (spectrum, self.image_spectrum))
            residual = self.image_spectrum - scaled(spectrum, gain)
            return Matched(
                model - mean,
                self.image - gain * model - background,
                self.image - image_mean,
                *map(squared, (spectrum, residual, self.image_spectrum)),
            )
        assert self.weights is not None
        image, weights = self.image, self.weights
        mass, root = sum_all(weights), jnp.sqrt(weights)

        def centred(x: Array) -> Array:
            return root * (x - sum_all(weights * x) / jnp.where(mass > 0, mass, 1.0))

        parts = centred(model), root * (image - gain * model - background), centred(image)
        spectra = jnp.fft.rfftn(jnp.stack(parts), axes=tuple(range(1, model.ndim + 1)))
        return Matched(*parts, *squared(spectra))

    def expected_image(self, whole: Array, fraction: Array) -> tuple[Array, Array]:
        """The best model in the image's frame and units, and which pixels count; for weighted terms."""
        assert self.weights is not None
        gain, background = self.nuisances(whole, fraction)
        shifted = shift_spectrum(self.reference, self.shape, whole - self.origin, fraction)
        model = gain * jnp.fft.irfftn(shifted, self.shape) + background
        guard = GUARD if self.model.boundary.name == "overlap" else 0
        frame = tuple(slice(guard, guard + n) for n in self.frame)
        return model[frame] * self.scale + self.offsets[1], self.weights[frame] > 0
