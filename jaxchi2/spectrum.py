"""Real Fourier series on half-plane spectra: what χ² between the pixels is made of.

A real array of shape ``(n_0, …, n_{D-1})`` has the half-plane spectrum that ``rfftn`` returns. It defines
the interpolant ``M(x) = Re Σ_k M̂_k exp(2πi k·x/n) / N`` over the frequencies of ``fftfreq``, so the Nyquist
term of an even axis sits at −1/2 cycles per pixel before the real part is taken. On one even axis that is
the familiar ``cos(πx)``; where several axes are at Nyquist together it is the cosine of the summed phase.
This is the convention of `jaxchi2.fourier.shiftnd`, and everything here is exact for it.

A `FourierSeries` has no Nyquist term left: its grid is odd, and the two halves of what was one are stored
at both signs. It is therefore differentiated and translated without special cases.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Shape = tuple[int, ...]


def harmonics(length: int) -> np.ndarray:
    """Signed integer frequencies of a discrete Fourier transform, in the order of ``fftfreq``."""
    return (np.arange(length) + length // 2) % length - length // 2


def half_weights(length: int) -> np.ndarray:
    """How often each column of a half-plane spectrum of ``length`` samples occurs in the full plane."""
    weights = np.full(length // 2 + 1, 2.0)
    weights[0] = 1.0
    if length % 2 == 0:
        weights[-1] = 1.0
    return weights


def along(vector: Array | np.ndarray, axis: int, ndim: int) -> Array:
    """Reshape a vector so that it broadcasts along one axis of an ``ndim``-dimensional array."""
    return jnp.reshape(vector, [-1 if a == axis else 1 for a in range(ndim)])


def contract(tensor: Array, columns: list[Array]) -> Array:
    """Sum ``tensor`` against one matrix per axis, ``Σ_k tensor[k] Π_a columns[a][k_a, r_a]``."""
    for axis in reversed(range(len(columns))):
        tensor = jnp.tensordot(tensor, columns[axis], axes=((axis,), (0,)), precision=lax.Precision.HIGHEST)
    return jnp.transpose(tensor)


def scaled(z: Array, factor: Array | float) -> Array:
    """``z · factor`` for a real factor, which XLA would first make complex."""
    return lax.complex(z.real * factor, z.imag * factor)


def conj_product(a: Array, b: Array) -> Array:
    """``conj(a) · b`` in real arithmetic; XLA's complex product is several times slower on a CPU."""
    return lax.complex(a.real * b.real + a.imag * b.imag, a.real * b.imag - a.imag * b.real)


def cycle_phase(indices: np.ndarray, period: int, whole: Array, fraction: Array) -> Array:
    """``2π k (whole + fraction) / period`` modulo 2π, the whole pixels reduced in exact integers.

    A float32 phase ``k·s`` at ``s`` of a thousand pixels has lost four digits; only the fraction meets it.
    """
    turns = (jnp.asarray(indices, whole.dtype) * (whole % period)) % period
    slope = np.asarray(2 * np.pi * indices / period, fraction.dtype)
    return turns.astype(fraction.dtype) * np.asarray(2 * np.pi / period, fraction.dtype) + slope * fraction


@partial(jax.tree_util.register_dataclass, data_fields=["coefficients"], meta_fields=["period"])
@dataclass(frozen=True)
class FourierSeries:
    """A real trigonometric polynomial ``f(s) = Re Σ_k h_k c_k exp(2πi k·s / period)``.

    The coefficients lie on the half plane ``k_{D-1} ≥ 0`` of an odd grid; ``h`` is 1 on the column
    ``k_{D-1} = 0`` and 2 elsewhere. Only that real part is used, so columns need not be Hermitian.
    """

    coefficients: Array
    """Complex, shape ``(m_0, …, m_{D-2}, (m_{D-1} + 1) / 2)`` with every ``m`` odd."""
    period: Shape = field(metadata={"static": True})
    """Period along each axis in pixels."""

    def _indices(self) -> list[np.ndarray]:
        shape = self.coefficients.shape
        return [*map(harmonics, shape[:-1]), np.arange(shape[-1])]

    def _waves(self, whole: Array, fraction: Array, order: int) -> list[Array]:
        """``(iκ)^r exp(iκs)`` for r = 0 … order, one matrix per axis, half-plane weights included."""
        waves = []
        for axis, (indices, period) in enumerate(zip(self._indices(), self.period, strict=True)):
            phase = cycle_phase(indices, period, whole[axis], fraction[axis])
            wave = lax.complex(jnp.cos(phase), jnp.sin(phase))
            factor = (2j * np.pi * indices[:, None] / period) ** np.arange(order + 1)
            if axis == len(self.period) - 1:
                factor = factor * np.where(indices[:, None] == 0, 1.0, 2.0)
            waves.append(wave[:, None] * factor.astype(wave.dtype))
        return waves

    def derivatives(self, whole: Array, fraction: Array, order: int) -> Array:
        """All partial derivatives at ``whole + fraction`` up to ``order`` per axis, shape ``(order+1,)*D``.

        Entry ``[a, b]`` is ``∂^a_0 ∂^b_1 f``. One pass over the coefficients.
        """
        return contract(self.coefficients, self._waves(whole, fraction, order)).real

    def differences(self, whole: Array, fraction: Array, displacements: list[Array]) -> Array:
        """``f(s + d) − f(s)`` at ``s = whole + fraction``, for d on the grid spanned by one vector per axis.

        The waves enter as ``exp(iκd) − 1`` without cancellation, axis after axis, so a small difference
        has full relative precision: the difference of two values would have none left in float32.
        """
        columns = []
        for wave, indices, period, d in zip(
            self._waves(whole, fraction, 0), self._indices(), self.period, displacements, strict=True
        ):
            phase = along(np.asarray(2 * np.pi * indices / period, d.dtype), 0, 2) * along(d, 1, 2)
            change = lax.complex(-2 * jnp.sin(phase / 2) ** 2, jnp.sin(phase))
            columns.append((wave * jnp.ones_like(change), wave * change, wave * (1 + change)))
        total = jnp.zeros([len(d) for d in displacements], self.coefficients.real.dtype)
        for axis in range(len(columns)):
            chosen = [c[2] if a < axis else c[1] if a == axis else c[0] for a, c in enumerate(columns)]
            total = total + contract(self.coefficients, chosen).real
        return total

    def sampled(self, oversample: int) -> Array:
        """Values at every ``1/oversample`` pixel over one period, shift zero at index zero.

        The sampling grid may be one point coarser than the series' own: what is then at ±Nyquist is summed.
        """
        lengths = [oversample * n for n in self.period]
        spectrum = self.coefficients
        for axis, length in enumerate(lengths[:-1]):
            odd = spectrum.shape[axis]
            if length > odd:
                spectrum = _insert_zeros(spectrum, axis, (odd + 1) // 2, length - odd)
            elif length == odd - 1:
                head, positive, negative, tail = jnp.split(
                    spectrum, [length // 2, length // 2 + 1, length // 2 + 2], axis
                )
                spectrum = jnp.concatenate([head, positive + negative, tail], axis)
        missing = lengths[-1] // 2 + 1 - spectrum.shape[-1]
        if missing:
            spectrum = _insert_zeros(spectrum, spectrum.ndim - 1, spectrum.shape[-1], missing)
        elif lengths[-1] % 2 == 0:
            edge = spectrum[..., -1]
            spectrum = spectrum.at[..., -1].set(edge + jnp.conj(_reverse(edge)))
        return jnp.fft.irfftn(spectrum, lengths) * prod(lengths)


def _nyquist_signs(shape: Shape) -> list[np.ndarray]:
    """Per axis of a half-plane spectrum that holds both Nyquist terms: +1 or −1 at these, else 0."""
    signs = []
    for axis, n in enumerate(shape):
        last = axis == len(shape) - 1
        sign = np.zeros(n // 2 + 1 if last else n + (n % 2 == 0), np.int32)
        if n % 2 == 0:
            sign[n // 2] = 1
            if not last:
                sign[n // 2 + 1] = -1
        signs.append(sign)
    return signs


def split_nyquist(spectrum: Array, shape: Shape) -> FourierSeries:
    """Turn a half-plane spectrum on an n-grid into the series of the same function, Nyquist terms split.

    Each mode with one or more axes at Nyquist becomes half of itself at either common sign.
    """
    ndim = len(shape)
    for axis, n in enumerate(shape[:-1]):
        if n % 2 == 0:
            positive = lax.slice_in_dim(spectrum, 0, n // 2 + 1, axis=axis)
            negative = lax.slice_in_dim(spectrum, n // 2, n, axis=axis)
            spectrum = jnp.concatenate([positive, negative], axis)
    signs = [along(sign, a, ndim) for a, sign in enumerate(_nyquist_signs(shape))]
    original = spectrum
    for axis in range(ndim):
        for position in np.flatnonzero(_nyquist_signs(shape)[axis]).tolist():
            # On the planes alone: a factor for every element would cost a pass of its own.
            plane = [
                s if s.shape[axis] == 1 else s[(slice(None),) * axis + (slice(position, position + 1),)]
                for s in signs
            ]
            count = reduce(jnp.add, map(jnp.abs, plane))
            aligned = jnp.abs(reduce(jnp.add, plane)) == count
            part = lax.slice_in_dim(original, position, position + 1, axis=axis)
            halved = scaled(part, jnp.where(aligned, 0.5, 0.0).astype(part.real.dtype))
            spectrum = lax.dynamic_update_slice_in_dim(spectrum, halved, position, axis)
    return FourierSeries(spectrum, shape)


def shift_spectrum(spectrum: Array, shape: Shape, whole: Array, fraction: Array) -> Array:
    """Half-plane spectrum of ``M(x − whole − fraction)``, the Nyquist terms by the convention above."""
    ndim = len(shape)
    re, nyquist_re = jnp.ones_like(fraction[0]), jnp.ones_like(fraction[0])
    im, nyquist_im = jnp.zeros_like(fraction[0]), jnp.zeros_like(fraction[0])
    for axis, n in enumerate(shape):
        indices = harmonics(n)[: spectrum.shape[axis]]
        phase = -cycle_phase(indices, n, whole[axis], fraction[axis])
        cos, sin, at_nyquist = jnp.cos(phase), jnp.sin(phase), 2 * indices == -n
        vectors = (
            jnp.where(at_nyquist, 1.0, cos),
            jnp.where(at_nyquist, 0.0, sin),
            jnp.where(at_nyquist, cos, 1.0),
            jnp.where(at_nyquist, sin, 0.0),
        )
        # The barrier keeps XLA from computing the sine anew for every element of the products below.
        c, s, cn, sn = (along(x, axis, ndim) for x in lax.optimization_barrier(vectors))
        re, im = re * c - im * s, re * s + im * c
        nyquist_re, nyquist_im = nyquist_re * cn - nyquist_im * sn, nyquist_re * sn + nyquist_im * cn
    re, im = re * nyquist_re, im * nyquist_re
    return lax.complex(spectrum.real * re - spectrum.imag * im, spectrum.real * im + spectrum.imag * re)


def nyquist_power(spectrum: Array, shape: Shape) -> FourierSeries:
    """How ``Σ_i M(i − s)²`` varies with s: only the Nyquist terms of even axes lose power between pixels.

    A mode with the axes U at Nyquist keeps ``cos²(π Σ_U s)`` of its power, so with P_U their summed power
    the sum changes by ``−Σ_U P_U sin²(π Σ_U s) / N``: a series of period one pixel, zero at whole shifts.
    """
    even = [n % 2 == 0 for n in shape]
    subsets = [u for u in product(*((False, True) if e else (False,) for e in even)) if any(u)]
    total = {u: _hyperplane_power(spectrum, shape, u) for u in subsets}
    coefficients = jnp.zeros_like(spectrum, shape=(*(3 if e else 1 for e in even[:-1]), 1 + even[-1]))
    for u in subsets:
        # Inclusion and exclusion: the modes with exactly the axes u at Nyquist.
        larger = [v for v in subsets if all(b >= a for a, b in zip(u, v, strict=True))]
        lost = sum(total[v] * (-1) ** (sum(v) - sum(u)) for v in larger) / 2
        # cos(2π Σ_U s) has weight 2 on the half plane, except on its edge column.
        coefficients = coefficients.at[tuple(map(int, u))].add(lost / (2 if u[-1] else 1))
        coefficients = coefficients.at[(0,) * len(shape)].add(-lost)
    return FourierSeries(coefficients, (1,) * len(shape))


def _hyperplane_power(spectrum: Array, shape: Shape, at_nyquist: tuple[bool, ...]) -> Array:
    """``Σ |M̂|² / N`` over the full plane's modes that have at least the given axes at Nyquist."""
    plane = spectrum[tuple(n // 2 if u else slice(None) for n, u in zip(shape, at_nyquist, strict=True))]
    power = plane.real**2 + plane.imag**2
    if not at_nyquist[-1]:
        power = power * along(half_weights(shape[-1]).astype(power.dtype), power.ndim - 1, power.ndim)
    return jnp.sum(power) / prod(shape)


def square(series: FourierSeries, spectrum: Array, shape: Shape) -> FourierSeries:
    """The series of ``M(x)²``, which has twice the bandwidth, from ``M``'s series and half-plane spectrum.

    Squared on a grid of half pixels, where only the outermost harmonics ±n of even axes are ambiguous.
    They come from the Nyquist terms alone and are put in exactly: with ``Z`` the sum over the one-sided
    band, ``M² = Re(Z²)/2 + |Z|²/2``, and ``Z²`` at −n is the square of the Nyquist plane.
    """
    doubled = tuple(2 * n for n in shape)
    squared = jnp.fft.rfftn(series.sampled(2) ** 2) / prod(doubled)
    coefficients = split_nyquist(squared, doubled).coefficients
    everything = (slice(None),) * len(shape)
    for axis, n in enumerate(shape):
        if n % 2:
            continue
        negative = _squared_nyquist_plane(spectrum, shape, axis)
        positive = jnp.conj(_reverse(negative))
        if axis < len(shape) - 1:
            half = (*everything[:-2], slice(0, shape[-1] + 1))
            coefficients = coefficients.at[(*everything[:axis], n + 1)].set(negative[half])
            positive = positive[half]
        coefficients = coefficients.at[(*everything[:axis], n)].set(positive)
    return FourierSeries(coefficients, shape)


def _squared_nyquist_plane(spectrum: Array, shape: Shape, axis: int) -> Array:
    """Coefficients of ``M²`` at harmonic −n of an even axis, over the other axes' odd grids of 2n + 1."""
    plane = jnp.take(spectrum, shape[axis] // 2, axis)
    rest = shape[:axis] + shape[axis + 1 :]
    if axis < len(shape) - 1:
        plane = jnp.fft.fftn(jnp.fft.irfftn(plane, rest))
    if not rest:
        return plane**2 / (4 * prod(shape) ** 2)
    for a, n in enumerate(rest):
        plane = _insert_zeros(plane, a, (n + 1) // 2, n)
    fine = jnp.fft.ifftn(plane) * (prod(plane.shape) / prod(shape))
    plane = jnp.fft.fftn(fine**2) / (4 * prod(plane.shape))
    for a, n in enumerate(rest):
        plane = _insert_zeros(plane, a, n, 1)
    return plane


def _insert_zeros(array: Array, axis: int, position: int, count: int) -> Array:
    before, after = jnp.split(array, [position], axis)
    zeros = jnp.zeros_like(array, shape=(*array.shape[:axis], count, *array.shape[axis + 1 :]))
    return jnp.concatenate([before, zeros, after], axis)


def _reverse(array: Array) -> Array:
    """``f(k) → f(−k)`` on every axis of a full spectrum."""
    return jnp.roll(jnp.flip(array), 1, tuple(range(array.ndim)))


def tiled(weights: Array) -> Array:
    """Spectrum of pixel weights on the half plane of harmonics up to ±n, where it repeats with period n."""
    spectrum = jnp.fft.fftn(weights)
    for axis in range(weights.ndim):
        first = lax.slice_in_dim(spectrum, 0, 1, axis=axis)
        again = [] if axis == weights.ndim - 1 else [spectrum]
        spectrum = jnp.concatenate([spectrum, first, *again], axis)
    return spectrum
