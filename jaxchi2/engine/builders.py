"""The terms of χ² built from an image pair, by the cheapest exact way.

There are two builders: `uniform_terms` for equal weights, where all but the Nyquist terms of the power is
constant, and `weighted_terms` for everything else.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .chi2series import Chi2Series
from .choices import Plan
from .layout import (
    Filled,
    Layout,
    Prepared,
    as_it_is,
    fill,
    is_flat,
    is_valid_error,
    lay_out,
    least_error,
    polynomials_on,
    prepare,
    prepare_reference,
    stays,
    trendless,
    with_image,
)
from .noise import whitening
from .overlap import WholeReference, profiled, whole_reference
from .pair import Pair
from .passes import any_in_batch, count, sum_all
from .polynomial import Polynomials, constant_polynomial
from .searchgrid import SearchGrid, search_shape
from .spectrum import (
    FourierSeries,
    Shape,
    conj_product,
    contract,
    correlated_square,
    energy,
    half_weights,
    harmonics,
    nyquist_power,
    scaled,
    series_of,
    square_of,
    squared,
)
from .terms import Chi2Terms, Content, Pixels, Units
from .wiener import filtered_layout


def is_clean(pair: Pair) -> Array:
    """Whether no pixel is bad and the common error is valid: any NaN or infinity survives a sum.

    An overflow of the sum is taken for a bad pixel, which merely costs time.
    """
    clean = jnp.isfinite(sum_all(pair.reference)) & jnp.isfinite(sum_all(pair.image))
    if pair.reference_err is not None:
        clean &= jnp.isfinite(pair.reference_err)
    return clean & is_valid_error(pair.err)


def is_even(pair: Pair, plan: Plan) -> bool:
    """Whether pixels differ in nothing: one error, and a background that is the same everywhere."""
    return pair.uniform and plan.degree < 1


class ReferenceSide(NamedTuple):
    """What χ² takes from the reference and the weights alone: the same for every image of a stack."""

    spectrum: Array
    """Half-plane spectrum of the reference."""
    energy: Array
    """``Σ M²``, a scalar."""
    power: FourierSeries
    """``Σ w_i M(i − s)²``."""
    power_on_pixels: Array | None
    """The same at whole shifts alone, as a half-plane spectrum; None where that is constant or not needed."""
    total_spectrum: Array | None
    """Half-plane spectra of ``Σ w_i φ_k M(i − s)``, with a leading axis; None where not needed, or zero."""
    mass: Array
    """``Σ w_i``, a scalar. Behind a filter it is that of the whitened pixels."""
    background: Polynomials
    """The φ_k."""
    roughness: Array
    """``Σ (∂²M)²`` along each axis, shape ``(D,)``."""
    unit: Array
    """The reference has been divided by this."""
    pedestal: Array
    """What was subtracted from it before."""


def uniform_side(pair: Pair, plan: Plan) -> ReferenceSide:
    """The reference's part of `uniform_terms`."""
    # A common pedestal cancels in χ²; kept, it would cost float32 its digits.
    # With a gain alone it does not cancel.
    pedestal = lax.stop_gradient(sum_all(pair.reference) / pair.reference.size)
    pedestal = jnp.zeros_like(pedestal) if plan.gain and not plan.background else pedestal
    unit = jnp.where(is_valid_error(pair.err), pair.err, jnp.nan)
    reference = (pair.reference - pedestal) / unit
    if plan.background:
        # To rounding it is zero already; its derivative is not.
        reference = reference - sum_all(reference) / reference.size
    return _unweighted(jnp.fft.rfftn(reference), sum_all(reference**2), reference.shape, unit, pedestal, plan)


def _unweighted(
    spectrum: Array, total: Array, shape: Shape, unit: Array, pedestal: Array, plan: Plan
) -> ReferenceSide:
    power = nyquist_power(spectrum, shape)
    mass = jnp.full_like(total, prod(shape))
    return ReferenceSide(
        spectrum=spectrum,
        energy=total,
        power=replace(power, parts=power.parts.at[(0,) * power.parts.ndim].add(total)),
        power_on_pixels=None,
        total_spectrum=None,
        mass=mass,
        background=constant_polynomial(mass, shape, plan.degree),
        roughness=_energies(spectrum, shape)[1],
        unit=unit,
        pedestal=pedestal,
    )


def uniform_terms(pair: Pair, plan: Plan, side: ReferenceSide | None = None) -> Chi2Terms:
    """Terms for one error common to all pixels, every pixel valid, periodic boundary.

    ``side`` is what `uniform_side` made of this reference, error and plan before.
    """
    side = uniform_side(pair, plan) if side is None else side
    shape = pair.image.shape
    image, pedestal = (pair.image - side.pedestal) / side.unit, side.pedestal
    if plan.background:
        mean = sum_all(image) / image.size
        image, pedestal = image - mean, pedestal + mean * side.unit
    image_spectrum = jnp.fft.rfftn(image)
    image_energy = sum_all(image**2)
    if pair.reference_err is not None:
        first, second = (squared(x) / prod(shape) for x in (side.spectrum, image_spectrum))
        variance = (pair.reference_err / side.unit) ** 2
        filters = whitening(first, second, variance, jnp.ones_like(variance), shape, fit_gain=plan.gain)
        spectrum, image_spectrum = (
            scaled(side.spectrum, filters.reference),
            scaled(image_spectrum, filters.image),
        )
        mass = side.mass * filters.image.reshape(-1)[0] ** 2
        side = _unweighted(spectrum, energy(spectrum, shape), shape, side.unit, side.pedestal, plan)
        side = side._replace(mass=mass, background=constant_polynomial(mass, shape, plan.degree))
        image_energy = energy(image_spectrum, shape)
        image = jnp.fft.irfftn(image_spectrum, shape)
    cross = _cross(side.spectrum, image_spectrum)
    origin = jnp.zeros_like(image_energy, shape=(len(shape),), dtype=jnp.int32)
    grid = SearchGrid(
        values=profiled(_at_whole_shifts(cross, shape, plan), side.energy, plan.gain),
        origin=origin,
        settled=jnp.zeros_like(image_energy, dtype=bool),
        correlation=None,
        constraints=pair.constraints,
        plan=plan,
    )
    series = Chi2Series(
        cross=series_of(cross, shape),
        power=side.power,
        total=None,
        constant=image_energy,
        origin=origin,
        prior=pair.constraints.prior,
        amplitude=jnp.sqrt(side.energy) * jnp.sqrt(image_energy),
        roughness=_roughness_bound(side, image_spectrum, shape, plan),
        plan=plan,
        bandwidth=2 if plan.gain else 1,
    )
    pixels = Pixels(
        reference=side.spectrum,
        image=image,
        corner=origin,
        image_spectrum=image_spectrum,
        weights=None,
        number=jnp.full_like(origin, prod(shape), shape=()),
        background=side.background,
        shape=shape,
        frame=shape,
        reference_frame=shape,
    )
    content = Content(
        flat=jnp.zeros_like(grid.settled),
        contrast=image_energy - image_spectrum.reshape(-1)[0].real ** 2 / prod(shape),
        frames=None,
        common=None,
        noise_share=jnp.ones_like(image_energy) if pair.reference_err is None else None,
    )
    units = Units(side.unit, side.pedestal, pedestal, jnp.zeros_like(image_energy, shape=(plan.terms,)))
    return Chi2Terms(series, pixels, grid.with_prior(), content, units)


def _cross(reference: Array, image: Array) -> Array:
    return conj_product(scaled(reference, -2.0), image)


def _at_whole_shifts(spectrum: Array, shape: Shape, plan: Plan) -> Array:
    """What a half-plane spectrum is at the whole shifts of the search grid.

    All of a period by an inverse FFT, or the window and a ring around it, by one matrix product per axis.
    """
    if not plan.compact:
        return jnp.fft.irfftn(spectrum, shape)
    real, imag = spectrum.real, spectrum.imag
    for axis in reversed(range(len(shape))):
        n, (low, high) = shape[axis], plan.whole_window[axis]
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


def _energies(spectrum: Array, shape: Shape) -> tuple[Array, Array]:
    """`energy`, and that of the second derivative along each axis, shape ``(D,)``."""
    power = squared(spectrum)
    columns = [
        np.stack([np.ones(m), (2 * np.pi * harmonics(n)[:m] / n) ** 4], axis=1)
        for n, m in zip(shape, power.shape, strict=True)
    ]
    columns[-1] *= half_weights(shape[-1])[:, None]
    sums = contract(power, [jnp.asarray(c, power.dtype) for c in columns]) / prod(shape)
    return sums[(0,) * len(shape)], sums[tuple(np.eye(len(shape), dtype=int))]


def _roughness_bound(side: ReferenceSide, image_spectrum: Array, shape: Shape, plan: Plan) -> Array:
    """What the rounding of χ²'s second derivatives is a few ulp of.

    The rounding of an FFT is a few ulp of the whole in every mode; in the product with the spectrum of the
    other image it is multiplied by that image's roughness. At the best gain the power of the reference is a
    factor, and has no part of its own.
    """
    total, roughness = _energies(image_spectrum, shape)
    own = 0.0 if plan.gain else jnp.sqrt(side.energy)
    # The root of a product would overflow.
    return (jnp.sqrt(total) + own) * jnp.sqrt(side.roughness) + jnp.sqrt(side.energy) * jnp.sqrt(roughness)


class Spectra(NamedTuple):
    """What χ² takes from the reference alone, whatever the weights."""

    reference: Array
    """Half-plane spectrum."""
    square: Array
    """By `square_of`."""
    energy: Array
    roughness: Array


def spectra_of(reference: Array) -> Spectra:
    """Spectra of a reference on its grid."""
    spectrum, shape = jnp.fft.rfftn(reference), reference.shape
    return Spectra(spectrum, square_of(spectrum, shape), sum_all(reference**2), _energies(spectrum, shape)[1])


def weighted_side(
    spectra: Spectra, layout: Layout, prepared: Prepared, pair: Pair, plan: Plan
) -> ReferenceSide:
    """The reference's part of `weighted_terms`; of the pair only the image's shape counts."""
    weights = layout.weights
    weight_spectrum = jnp.fft.rfftn(weights)
    frame = np.asarray(pair.image.shape) if pair.frame is None else pair.frame
    background = polynomials_on(weights, layout.corner, (frame - 1) / 2, plan)
    totals = None
    if plan.background:
        # The first polynomial is a constant.
        totals = scaled(weight_spectrum, background.matrix[0, 0])[None]
        if plan.terms > 1:
            others = weights[None] * background.functions()[1:]
            axes = tuple(range(1, others.ndim))
            totals = jnp.concatenate([totals, jnp.fft.rfftn(others, axes=axes)])
        totals = conj_product(spectra.reference[None], totals)
    on_pixels = None
    if not plan.boundary.overlap:
        on_pixels = conj_product(jnp.fft.rfftn(layout.reference**2), weight_spectrum)
    return ReferenceSide(
        spectrum=spectra.reference,
        energy=spectra.energy,
        power=correlated_square(spectra.square, weight_spectrum, layout.reference.shape),
        power_on_pixels=on_pixels,
        total_spectrum=totals,
        mass=sum_all(weights),
        background=background,
        roughness=spectra.roughness,
        unit=prepared.unit,
        pedestal=prepared.pedestal,
    )


class KnownReference(NamedTuple):
    """A reference whose neighbourhood is unknown, continued once for any number of images."""

    prepared: Prepared
    filled: Filled
    spectra: Spectra
    whole: WholeReference


def known_reference(pair: Pair, plan: Plan) -> KnownReference | None:
    """Do once what `weighted_terms` needs for every image; None where that depends on the image.

    Of the pair's image only the shape counts. A filter for the noise of a reference depends on what the image
    shows of the scene.
    """
    shapes = pair.reference.shape, pair.image.shape
    if not plan.boundary.overlap or not stays(*shapes) or pair.reference_err is not None:
        return None
    prepared = prepare_reference(pair, plan, least_error(pair.err, is_valid_error(pair.err)))
    filled = fill(prepared, plan)
    return KnownReference(
        prepared,
        filled,
        spectra_of(filled.reference),
        whole_reference(
            trendless(prepared.reference, prepared.known, plan),
            prepared.known,
            shapes[1],
            search_shape(*shapes, plan),
            plan.whole_window,
        ),
    )


def weighted_terms(pair: Pair, plan: Plan, known: KnownReference | None = None) -> Chi2Terms:
    """Terms for any error map, bad pixels and boundary.

    ``known`` is what `known_reference` made of this reference, error and plan before.
    """
    if known is None:
        prepared = prepare(pair, plan)
        layout = lay_out(prepared, pair, plan)
    else:
        prepared = with_image(known.prepared, pair, plan)
        layout = lay_out(prepared, pair, plan, known.filled, known.whole)
    if layout.variance is not None:
        layout = filtered_layout(layout, plan)
    spectra = spectra_of(layout.reference) if known is None else known.spectra
    side = weighted_side(spectra, layout, prepared, pair, plan)
    # The search may have to go by the score, which is known on the whole grid alone.
    return _weighted(layout, side, prepared.flat, pair, replace(plan, compact=False))


class SharedReference(NamedTuple):
    """A reference, the pixels' errors and what follows from them, for any number of images."""

    side: ReferenceSide
    layout: Layout | None
    """Weights of the pixels; None where they are all one."""
    flat: Array
    """Whether the reference is constant; looked at only where weights differ."""


def shared_reference(pair: Pair, plan: Plan) -> SharedReference:
    """Do once what `shared_terms` needs for every image; of the pair's image only the shape counts."""
    if is_even(pair, plan):
        side = uniform_side(pair, plan)
        return SharedReference(side, None, jnp.zeros_like(side.energy, dtype=bool))
    prepared = prepare(pair._replace(image=jnp.zeros_like(pair.image)), plan)
    layout = as_it_is(prepared, pair, plan)
    flat = is_flat(pair.reference, prepared.known, plan)
    side = weighted_side(spectra_of(layout.reference), layout, prepared, pair, plan)
    return SharedReference(side, layout, flat)


def shared_terms(shared: SharedReference, pair: Pair, plan: Plan) -> Chi2Terms:
    """Terms of one image, the periodic boundary and a reference without bad pixels; see `is_shareable`."""
    side, layout, flat = shared
    if layout is None:
        return uniform_terms(pair, plan, side)
    counted = layout.weights > 0
    image = jnp.where(counted, (pair.image - side.pedestal) / side.unit, 0.0)
    flat = flat | is_flat(image, counted, plan)
    return _weighted(layout._replace(image=image), side, flat, pair, plan)


def is_shareable(shared: SharedReference, pair: Pair) -> Array:
    """Whether every pixel of the reference, and every one of the image that has an error, is finite."""
    if shared.layout is None:
        return is_clean(pair)
    image = jnp.where(shared.layout.weights > 0, pair.image, 0.0)
    return jnp.isfinite(sum_all(pair.reference)) & jnp.isfinite(sum_all(image))


def _weighted(layout: Layout, side: ReferenceSide, flat: Array, pair: Pair, plan: Plan) -> Chi2Terms:
    image, weights = layout.image, layout.weights
    shape, frame = layout.reference.shape, pair.image.shape
    mass, totals = side.mass, side.total_spectrum
    taken = jnp.zeros_like(mass, shape=(plan.terms,))
    # Of a steep background the first time leaves its rounding, which is a background too.
    for _ in range(min(plan.terms, 2)):
        part = side.background.coefficients(weights * image)
        image, taken = image - side.background.values(part), taken + part
    image_spectrum = jnp.fft.rfftn(weights * image)
    constant = sum_all(weights * image**2)
    cross = _cross(side.spectrum, image_spectrum)
    grid = replace(
        layout.grid,
        values=_search_values(layout, cross, side, plan),
        constraints=pair.constraints,
        plan=plan,
    )
    positive_mass = jnp.where(mass > 0, mass, 1.0)
    series = Chi2Series(
        cross=series_of(cross, shape),
        power=side.power,
        total=None if totals is None else jax.vmap(partial(series_of, shape=shape))(totals),
        constant=constant,
        origin=grid.origin,
        prior=pair.constraints.prior,
        amplitude=jnp.sqrt(side.energy) * jnp.sqrt(constant),
        roughness=_roughness_bound(side, image_spectrum, shape, plan),
        plan=plan,
        bandwidth=2,
    )
    pixels = Pixels(
        reference=side.spectrum,
        image=image,
        corner=layout.corner,
        image_spectrum=None,
        weights=weights,
        number=count(weights > 0),
        background=side.background,
        shape=shape,
        frame=frame,
        reference_frame=pair.reference.shape,
    )
    content = Content(
        flat=flat,
        contrast=constant - sum_all(weights * image) ** 2 / positive_mass,
        frames=layout.frames,
        common=layout.common,
        noise_share=layout.noise_share if pair.reference_err is None else None,
    )
    units = Units(side.unit, side.pedestal, side.pedestal, taken)
    return Chi2Terms(series, pixels, grid.with_prior(), content, units)


def _search_values(layout: Layout, cross: Array, side: ReferenceSide, plan: Plan) -> Array:
    """What the search goes by: the score where weights are settled for one shift, else χ²."""
    shape, grid = layout.reference.shape, layout.grid

    def of_the_series() -> Array:
        assert side.power_on_pixels is not None
        if not (plan.gain or plan.background):
            return _at_whole_shifts(side.power_on_pixels + cross, shape, plan)
        power = _at_whole_shifts(side.power_on_pixels, shape, plan)
        if side.total_spectrum is not None:
            for total in side.total_spectrum:
                power = power - _at_whole_shifts(total, shape, plan) ** 2
        return profiled(_at_whole_shifts(cross, shape, plan), power, plan.gain)

    if plan.compact:
        return of_the_series()
    if plan.boundary.overlap:
        return grid.values
    return lax.cond(
        any_in_batch(~grid.settled),
        lambda score: jnp.where(grid.settled, score, of_the_series()),
        lambda score: score,
        grid.values,
    )
