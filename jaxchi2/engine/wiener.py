"""A noisy reference behind a filter, and the variance of what is left of its noise."""

from __future__ import annotations

from functools import reduce

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .choices import Plan
from .continuation import average_nearby, fill_smoothly, unknown_variance
from .layout import Layout, polynomials_on, trendless, with_variance
from .noise import box_coordinates, fitted_trend, gentle, hann, lower, significant, whitening, wiener_gain
from .passes import any_in_batch, count, every, mean_over, some, sum_all
from .position import Position
from .spectrum import Shape, half_weights, mean_over_modes, scaled, shift_spectrum, squared


def filtered_layout(layout: Layout, plan: Plan) -> Layout:
    """Filter a noisy reference, and give every pixel the variance that is left of the reference's noise.

    What is left is taken as white, of the size that makes the curvature of χ² the inverse variance of the
    shift; see `noise` for the spectra. Where pixels of the reference are unknown, fewer take part in the
    filter's average and leave more; and what is not known of the scene there reaches as far as the filter.
    """
    shape, weights, periodic = layout.reference.shape, layout.weights, plan.boundary.periodic
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
            return squared(jnp.fft.rfftn(taper * x)) / mass

        def with_holes(x: Array) -> Array:
            # Empty, they scatter the scene's power into all frequencies; filled, with averages of the noise,
            # that of the noise into the low ones. Either is too much.
            filled = jnp.where(seen, x, average_nearby(x, seen))
            return lower(of(filled), of(jnp.where(seen, x, 0.0)), shape)

        return lax.cond(any_in_batch(~every(seen | (taper == 0))), with_holes, of, x)

    mean = mean_over(layout.reference, counted)
    reference, image = layout.reference - mean, layout.image - mean_over(layout.image, counted)
    first, second = reference, image
    if plan.degree > 0:
        first = trendless(reference, layout.known, plan)
        background = polynomials_on(counted.astype(image.dtype), layout.corner, 0.0, plan)
        second = background.rest(image, counted.astype(image.dtype))
    filters = whitening(
        power_of(first, layout.known),
        power_of(second, counted),
        noise,
        image_noise,
        shape,
        fit_gain=plan.gain,
    )
    signal, noise = filters.signal, noise * filters.brightness
    if plan.boundary.overlap:
        freedom = jnp.maximum(sum_all(taper**2) ** 2 / jnp.maximum(sum_all(taper**4), 1e-3), 1.0)
        signal = significant(signal, (noise + image_noise) / 2, freedom, shape)
        gain = wiener_gain(gentle(signal, shape), noise, shape)
        # A trend is no matter for a periodic filter, nor is the mean for any.
        trend = mean + fitted_trend(reference, layout.known, places)
        detail = fill_smoothly(layout.reference - trend, layout.known)
        filtered = trend + jnp.fft.irfftn(scaled(jnp.fft.rfftn(detail), gain), shape)
        filtered = fill_smoothly(jnp.where(layout.known, filtered, 0.0), layout.known)
        if plan.gain:
            # A background is one at zero of the images, wherever their pedestal is.
            level = mean if plan.background else jnp.zeros_like(mean)
            factor = _calibration(filtered, layout, noise / filters.brightness * gain, plan)
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
    slopes = [np.square(2 * np.pi * np.fft.fftfreq(n)[:m]) for n, m in zip(shape, gain.shape, strict=True)]
    rest = left(reduce(np.add.outer, slopes))
    if plan.gain and not periodic:
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


def _calibration(filtered: Array, layout: Layout, kept: Array, plan: Plan) -> Array:
    """Factor that makes a filtered reference as bright as the scene, for the gain's sake.

    Its product with the observed reference is that with the scene and, for every pixel, what is ``kept`` of
    the noise there, in frequency.
    """
    counted = layout.weights > 0
    number = count(counted).astype(filtered.dtype)

    ones = counted.astype(filtered.dtype)
    background = polynomials_on(ones, layout.corner, 0.0, plan)

    def centred(x: Array) -> Array:
        return jnp.where(counted, background.rest(x, ones), 0.0)

    noise = mean_over_modes(kept, filtered.shape)
    power, product = sum_all(centred(filtered) ** 2), sum_all(centred(filtered) * centred(layout.reference))
    factor = (product - number * noise) / jnp.where(power > 0, power, 1.0)
    return jnp.where((power > 0) & (factor > 0), factor, 1.0)


def _squared_kernel(gain: Array, shape: Shape) -> Array:
    """Transform of the square of what a filter and the interpolant make of one pixel.

    At a quarter of a pixel on every axis the squares are what they are on average over all fractions.
    """
    whole = jnp.zeros_like(gain, shape=(len(shape),), dtype=jnp.int32)
    quarter = jnp.full_like(gain, 0.25, shape=(len(shape),))
    kernel = shift_spectrum(lax.complex(gain, jnp.zeros_like(gain)), shape, Position(whole, quarter))
    return jnp.fft.rfftn(jnp.fft.irfftn(kernel, shape) ** 2).real
