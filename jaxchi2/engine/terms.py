"""What is known of one image pair: χ² as a function of the shift, the pixels it is of, and what is in them.

`builders` makes it, of the parts that change together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .chi2series import Chi2Series
from .choices import Plan
from .layout import Spread, moved_to
from .passes import sum_all
from .polynomial import Polynomials, orthonormal
from .position import Position
from .searchgrid import SearchGrid
from .spectrum import Shape, energy, gradients, scaled, shift_spectrum


class Matched(NamedTuple):
    """Pixels of a match in units of the errors."""

    model: Array
    """About its mean, or less the background that fits it best."""
    residual: Array
    data: Array
    """The same."""
    model_spectrum: Array
    """Spectra of the three on the half plane; at frequency zero of no meaning."""
    residual_spectrum: Array
    data_spectrum: Array

    @classmethod
    def of(cls, model: Array, residual: Array, data: Array) -> Matched:
        """With the spectra of the pixels."""
        parts = model, residual, data
        return cls(*parts, *jnp.fft.rfftn(jnp.stack(parts), axes=tuple(range(1, model.ndim + 1))))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pixels:
    """The pair on its periodic grid."""

    reference: Array
    """Half-plane spectrum of the reference, upon which the image lies at the origin of the series."""
    image: Array
    """The image's pixels."""
    corner: Array
    """Where on the grid the first of these lies, shape ``(D,)``."""
    image_spectrum: Array | None
    """Their half-plane spectrum when ``weights`` is None, else None."""
    weights: Array | None
    """Weight of each pixel, None when they are all one."""
    number: Array
    """Number of pixels with a weight, a scalar integer."""
    background: Polynomials
    """What a background is made of."""
    shape: Shape = field(metadata={"static": True})
    """Of the grid."""
    frame: Shape = field(metadata={"static": True})
    """Of the image."""
    reference_frame: Shape = field(metadata={"static": True})


class Content(NamedTuple):
    """What there is in the images, to judge a match by."""

    flat: Array
    """Whether an image is constant to rounding, or along a free axis: weights that differ give χ² a minimum
    even so. False where they are equal, for there the curvature tells."""
    contrast: Array
    """``Σ w (D − D̄)²`` with the weighted mean D̄."""
    frames: tuple[Spread, Spread] | None
    """How the values of reference and image differ in all of their frames, where not all may count."""
    common: tuple[Spread, Spread] | None
    """The same over the pixels that count."""
    noise_share: Array | None
    """Of each pixel, or for all, the ratio of the variance as given to the one used, which has the error of
    the continuation; None where a filter for noise of the reference takes of χ² too."""


class Units(NamedTuple):
    """The way back to the units of the images."""

    scale: Array
    """The images have been divided by this."""
    reference_offset: Array
    """What was subtracted from the reference before."""
    image_offset: Array
    taken: Array
    """Coefficients of the background that was subtracted from the image after that, shape ``(K,)``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chi2Terms:
    """χ² of one image pair, and what goes with it."""

    series: Chi2Series
    pixels: Pixels
    grid: SearchGrid
    content: Content
    units: Units

    @property
    def plan(self) -> Plan:
        """What was asked for, for frames of these shapes."""
        return self.series.plan

    @property
    def period(self) -> Shape | None:
        """Size of the periodic grid: shifts that differ by it are the same to χ². None for "overlap"."""
        return None if self.plan.boundary.overlap else self.pixels.shape

    def moved(self, at: Position) -> Array:
        """Half-plane spectrum of the reference at a shift."""
        return shift_spectrum(self.pixels.reference, self.pixels.shape, at.since(self.series.origin))

    def grid_chi2(self) -> Array:
        """The search grid as χ²; a score, −2 times a log-likelihood like it, from χ² at the origin."""
        grid, constant = self.grid, self.series.constant
        if grid.correlation is None:
            return grid.values + constant
        here = Position(grid.origin, jnp.zeros_like(constant, shape=grid.origin.shape))
        there = self.series.derivatives(here, 0).reshape(())
        offset = jnp.where(grid.settled, there - grid.values[tuple(grid.index_of(grid.origin))], 0.0)
        return grid.values + offset + constant

    def residual_chi2(self, at: Position) -> Array:
        """χ² at one shift as a sum of squares, which float32 can resolve where the series cannot."""
        gain, coefficients = self.series.nuisances(at)
        pixels, model = self.pixels, self.moved(at)
        if pixels.image_spectrum is not None:
            return energy(pixels.image_spectrum - scaled(model, gain), pixels.shape)
        assert pixels.weights is not None
        background = pixels.background.values(coefficients)
        residual = pixels.image - gain * jnp.fft.irfftn(model, pixels.shape) - background
        return sum_all(pixels.weights * residual**2)

    def match(self, at: Position) -> Matched:
        """The moved reference, residual and data at one shift."""
        gain, coefficients = self.series.nuisances(at)
        # Behind a barrier, or its sines would be worked out anew for all that it is used for.
        pixels, spectrum = self.pixels, lax.optimization_barrier(self.moved(at))
        shape, image, background = pixels.shape, pixels.image, pixels.background.values(coefficients)
        model = jnp.fft.irfftn(spectrum, shape)
        if pixels.image_spectrum is not None:
            zero = (0,) * len(shape)
            mean, image_mean = (z[zero].real / prod(shape) for z in (spectrum, pixels.image_spectrum))
            residual = pixels.image_spectrum - scaled(spectrum, gain)
            return Matched(
                model - mean,
                image - gain * model - background,
                image - image_mean,
                spectrum,
                residual,
                pixels.image_spectrum,
            )
        assert pixels.weights is not None
        weights = pixels.weights
        root = jnp.sqrt(weights)
        level = orthonormal(weights, 0, []) if pixels.background.degree < 0 else pixels.background

        def centred(x: Array) -> Array:
            return root * level.rest(x, weights)

        parts = centred(model), root * (image - gain * model - background), centred(image)
        return Matched.of(*parts)

    def expected_image(self, at: Position) -> tuple[Array, Array]:
        """The best model in the image's frame and units, and which pixels count; for weighted terms.

        NaN beyond the grid.
        """
        pixels, units = self.pixels, self.units
        assert pixels.weights is not None
        gain, coefficients = self.series.nuisances(at)
        background = pixels.background.values(coefficients + units.taken)
        model = gain * jnp.fft.irfftn(self.moved(at), pixels.shape) + background
        expected = self._in_frame(model * units.scale + units.image_offset, outside=jnp.nan)
        return expected, self._in_frame(pixels.weights, outside=0.0) > 0

    def expected_slopes(self, at: Position) -> Array:
        """Derivatives of `expected_image` along each axis, shape ``(D, ...)``; zero beyond the grid."""
        pixels = self.pixels
        gain, _ = self.series.nuisances(at)
        slopes = gain * self.units.scale * gradients(self.moved(at), pixels.shape)
        return jnp.stack([self._in_frame(x, outside=0.0) for x in slopes])

    def _in_frame(self, x: Array, outside: float) -> Array:
        """Pixels of the grid in the image's frame."""
        pixels, periodic = self.pixels, not self.plan.boundary.overlap
        return moved_to(x, -pixels.corner, pixels.frame, periodic, outside)
