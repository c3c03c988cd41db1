"""Real Fourier series on half-plane spectra: what χ² between the pixels is made of.

A real array of shape ``(n_0, …, n_{D-1})`` has the half-plane spectrum that ``rfftn`` returns. It defines
the interpolant ``M(x) = Re Σ_k M̂_k exp(2πi k·x/n) / N`` over the frequencies of ``fftfreq``, so the Nyquist
term of an even axis sits at −1/2 cycles per pixel before the real part is taken. On one even axis that is
the familiar ``cos(πx)``; where several axes are at Nyquist together it is the cosine of the summed phase.
This is the convention of `jaxchi2.fourier.shiftnd`, and everything here is exact for it.

A cosine is a pair of waves. So `unfolded` divides a Nyquist term between the frequencies ±1/2, and what is
left is a plain Fourier series of harmonics −h … h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import combinations, product
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.fft import next_fast_len

from ..fourier import product_modulo
from .passes import sum_all
from .position import Position

Shape = tuple[int, ...]
Waves = tuple[Array, Array]
"""Real and imaginary parts of waves in columns, shapes ``(harmonics, R)``."""


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
        tensor = jnp.tensordot(tensor, columns[axis], ((axis,), (0,)), precision=lax.Precision.HIGHEST)
    return jnp.transpose(tensor)


def scaled(z: Array, factor: Array | float) -> Array:
    """``z · factor`` for a real factor, which XLA would first make complex."""
    return lax.complex(z.real * factor, z.imag * factor)


def conj_product(a: Array, b: Array) -> Array:
    """``conj(a) · b`` in real arithmetic; XLA's complex product is several times slower on a CPU."""
    return lax.complex(a.real * b.real + a.imag * b.imag, a.real * b.imag - a.imag * b.real)


def squared(z: Array) -> Array:
    """``|z|²`` in real arithmetic."""
    return z.real**2 + z.imag**2


def energy(spectrum: Array, shape: Shape) -> Array:
    """``Σ x²`` of the real array that has a half-plane spectrum."""
    return mean_over_modes(squared(spectrum), shape)


def mean_over_modes(values: Array, shape: Shape) -> Array:
    """Mean over all frequencies of what is given on the half plane."""
    # A product with the weights, not a sum over rows: XLA 0.10 compiled that one, fused with the complex
    # arithmetic before it, into a program that crashed where the columns fill its vectors.
    weights = half_weights(shape[-1]).astype(values.dtype)
    return sum_all(jnp.dot(values, weights, precision=lax.Precision.HIGHEST)) / prod(shape)


def cycle_phase(indices: np.ndarray, period: int, at: Position) -> Array:
    """``2π k s / period`` modulo 2π at one axis of a position, the whole pixels reduced in exact integers.

    A float32 phase ``k·s`` at ``s`` of a thousand pixels has lost four digits; only the fraction meets it.
    """
    whole, fraction = at
    turns = product_modulo(jnp.asarray(indices % period, whole.dtype), whole % period, period)
    slope = np.asarray(2 * np.pi * indices / period, fraction.dtype)
    return turns.astype(fraction.dtype) * np.asarray(2 * np.pi / period, fraction.dtype) + slope * fraction


def _along(at: Position, axis: int) -> Position:
    return Position(at.whole[axis], at.fraction[axis])


def _waves(indices: np.ndarray, period: int, at: Position, order: int) -> Waves:
    """``(iκ)^r exp(iκs)`` for r = 0 … order in columns, κ = 2π k / period."""
    phase = cycle_phase(indices, period, at)
    wave = tuple(along(x, 0, 2) for x in (jnp.cos(phase), jnp.sin(phase)))
    return _times(wave, _powers(indices, period, order, at.fraction.dtype))


def _powers(indices: np.ndarray, period: int, order: int, dtype: jnp.dtype) -> tuple[np.ndarray, np.ndarray]:
    """``(iκ)^r`` for r = 0 … order in columns."""
    factor = (2j * np.pi * indices[:, None] / period) ** np.arange(order + 1)
    return factor.real.astype(dtype), factor.imag.astype(dtype)


def _times(a: tuple, b: tuple) -> tuple[Any, Any]:
    """Product of complex numbers that are pairs of real ones."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


class Differences(NamedTuple):
    """A function about a point s, at displacements d from it."""

    start: Array
    """``f(s)``, a scalar."""
    change: Array
    """``f(s + d) − f(s)`` on the grid of the displacements."""
    there: Array
    """``f(s + d)`` there; of a single displacement the derivatives, ``(order + 1,) * D``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FourierSeries:
    """A real trigonometric polynomial ``f(s) = Re Σ_k c_k exp(2πi k·s / period)``, summed axis by axis.

    Its functions are compiled by themselves, so that a program that needs them often is traced once.
    """

    parts: Array
    """Real and imaginary parts of the coefficients, shape ``(2h_0 + 1, …, 2, h_{D-1} + 1)``: harmonics in the
    order of ``fftfreq``, those of the last axis not negative."""
    period: Shape = field(metadata={"static": True})
    """Period along each axis in pixels."""

    def _sum(self, waves: Callable[[int, np.ndarray, int], Waves]) -> Array:
        """``Re Σ_k c_k Π_a waves(a, k_a, period_a)[r_a]``, shape ``(r_0, …, r_{D-1})``; real products."""
        x, last = self.parts, len(self.period) - 1
        for axis in range(last, -1, -1):
            indices = np.arange(x.shape[-1]) if axis == last else harmonics(x.shape[axis])
            re, im = waves(axis, indices, self.period[axis])
            # Of the last product the real part is enough.
            columns = [(re, -im)] if axis == 0 else [(re, -im), (im, re)]
            matrix = jnp.stack([jnp.stack(pair) for pair in columns], 2)
            if axis < last:
                x = jnp.moveaxis(x, -2, axis)
            axes = ((axis, axis + 1), (0, 1))
            x = jnp.tensordot(x, matrix, axes, precision=lax.Precision.HIGHEST)
        return jnp.transpose(x[..., 0, :])

    @partial(jax.jit, static_argnames=("order",))
    def derivatives(self, at: Position, order: int) -> Array:
        """All partial derivatives at a position up to ``order`` per axis, shape ``(order+1,)*D``.

        Entry ``[a, b]`` is ``∂^a_0 ∂^b_1 f``. One pass over the coefficients.
        """
        return self._sum(lambda axis, k, period: _waves(k, period, _along(at, axis), order))

    @partial(jax.jit, static_argnames=("order",))
    def differences(self, at: Position, displacements: list[Array], order: int = 0) -> Differences:
        """``f(s + d) − f(s)`` at a position s, for d on the grid spanned by one vector per axis.

        The waves enter as ``exp(iκd) − 1`` without cancellation, axis after axis, so a small difference
        has full relative precision: the difference of two values would have none left in float32.
        """

        def waves(axis: int, indices: np.ndarray, period: int) -> Waves:
            """At s, their changes, and at s + d with derivatives."""
            d = displacements[axis]
            wave = _waves(indices, period, _along(at, axis), 0)
            phase = along(np.asarray(2 * np.pi * indices / period, d.dtype), 0, 2) * along(d, 1, 2)
            change = _times(wave, (-2 * jnp.sin(phase / 2) ** 2, jnp.sin(phase)))
            moved = tuple(w + c for w, c in zip(wave, change, strict=True))
            powers = _powers(indices, period, order, d.dtype)
            there = [_times(moved, tuple(p[:, r : r + 1] for p in powers)) for r in range(order + 1)]
            re, im = zip(wave, change, *there, strict=True)
            return jnp.concatenate(re, 1), jnp.concatenate(im, 1)

        sums = self._sum(waves)
        still, ndim = slice(0, 1), len(displacements)
        changed = [slice(1, 1 + len(d)) for d in displacements]
        moved = [slice(1 + len(d), 1 + 2 * len(d)) for d in displacements]
        parts = [sums[(*moved[:a], changed[a], *[still] * (ndim - a - 1))] for a in range(ndim)]
        there = sums[tuple(slice(1 + len(d), None) for d in displacements)]
        return Differences(sums[(0,) * ndim], reduce(jnp.add, parts), there)


def on_grid(coefficients: Array, grid: Shape) -> Array:
    """Harmonics −h … h, 0 … h on the last axis, in the half plane of a grid of at least 2h samples."""
    for axis, n in enumerate(grid[:-1]):
        low, high = jnp.split(coefficients, [coefficients.shape[axis] // 2 + 1], axis)
        if low.shape[axis] + high.shape[axis] > n:
            # Of a wave of two samples both signs are the same.
            low, at = jnp.split(low, [n // 2], axis)
            same, high = jnp.split(high, [1], axis)
            high = jnp.concatenate([at + same, high], axis)
        coefficients = jnp.concatenate([_filled(low, axis, n - high.shape[axis]), high], axis)
    return _filled(coefficients, len(grid) - 1, grid[-1] // 2 + 1)


def _filled(array: Array, axis: int, length: int) -> Array:
    """An array with zeros behind it up to some length of an axis."""
    return jnp.pad(array, [(0, (length - n) * (a == axis)) for a, n in enumerate(array.shape)])


def _joined(array: Array, axis: int, parts: list[tuple[int, int]]) -> Array:
    """Parts of an array along an axis, one behind the other."""
    return jnp.concatenate([lax.slice_in_dim(array, a, b, axis=axis) for a, b in parts], axis)


def unfolded(spectrum: Array, shape: Shape) -> Array:
    """Coefficients of harmonics −h … h, 0 … h on the last axis, of a half-plane spectrum.

    A sum that counts every column but the first twice is ``Re Σ_k`` over all modes: a Nyquist term of one
    axis is divided between −h and h, of several between −h on all and h on all.
    """
    last = len(shape) - 1
    if shape[-1] % 2 == 0:
        half = jnp.asarray(np.where(np.arange(spectrum.shape[-1]) == shape[-1] // 2, 0.5, 1.0))
        spectrum = scaled(spectrum, along(half.astype(spectrum.real.dtype), last, last + 1))
    for axis in range(last):
        n = shape[axis]
        if n % 2:
            continue
        before, at, after = jnp.split(spectrum, [n // 2, n // 2 + 1], axis)
        # Where the other axes are at −h or h the term has their sign.
        sign = np.zeros([m if a != axis else 1 for a, m in enumerate(at.shape)])
        for a in range(axis):
            if shape[a] % 2 == 0:
                sign[(slice(None),) * a + (shape[a] // 2,)] = 1
                sign[(slice(None),) * a + (shape[a] // 2 + 1,)] = -1
        if shape[-1] % 2 == 0:
            sign[..., shape[-1] // 2] = 1
        plus, minus = (
            scaled(at, jnp.asarray((1 + side * sign) / 2, spectrum.real.dtype)) for side in (1, -1)
        )
        spectrum = jnp.concatenate([before, plus, minus, after], axis)
    return spectrum


def series_of(spectrum: Array, shape: Shape) -> FourierSeries:
    """The interpolant of an array by its half-plane spectrum."""
    return _series(unfolded(spectrum, shape), 1 / prod(shape), shape)


def _series(coefficients: Array, factor: float, period: Shape) -> FourierSeries:
    """The series of coefficients as `unfolded` gives them, times a factor."""
    weights = np.full(coefficients.shape[-1], 2.0 * factor)
    weights[0] = factor
    parts = jnp.stack([coefficients.real, coefficients.imag], -2)
    columns = along(jnp.asarray(weights, parts.dtype), parts.ndim - 1, parts.ndim)
    return FourierSeries(parts * columns, period)


def shift_spectrum(spectrum: Array, shape: Shape, at: Position) -> Array:
    """Half-plane spectrum of ``M(x − s)`` for the shift s, the Nyquist terms by the convention above."""
    ndim = len(shape)
    waves, sines = [], {}
    for axis, n in enumerate(shape):
        indices = harmonics(n)[: spectrum.shape[axis]]
        phase = -cycle_phase(indices, n, _along(at, axis))
        at_nyquist = 2 * indices == -n
        parts = [jnp.cos(phase), jnp.where(at_nyquist, 0.0, jnp.sin(phase))]
        if n % 2 == 0:
            parts.append(jnp.where(at_nyquist, jnp.sin(phase), 0.0))
        parts = [along(x, axis, ndim) for x in _computed(jnp.stack(parts))]
        waves.append((parts[0], parts[1]))
        if n % 2 == 0:
            sines[axis] = parts[2]
    re, im = reduce(_times, waves)
    for a, b in combinations(sines, 2):
        both = sines[a] * sines[b]
        others = [wave for axis, wave in enumerate(waves) if axis not in (a, b)]
        c, s = reduce(_times, others) if others else (1.0, 0.0)
        re, im = re - both * c, im - both * s
    return lax.complex(spectrum.real * re - spectrum.imag * im, spectrum.real * im + spectrum.imag * re)


def gradients(spectrum: Array, shape: Shape) -> Array:
    """Derivatives along each axis of the interpolant at the pixels, the axes first."""
    parts = [lax.complex(-spectrum.imag * k, spectrum.real * k) for k in _slopes(spectrum, shape)]
    return jnp.fft.irfftn(jnp.stack(parts), shape, tuple(range(1, len(shape) + 1)))


def gradient_power(spectrum: Array, shape: Shape) -> Array:
    """Power spectra of `gradients`, on the half plane."""
    return jnp.stack([squared(spectrum) * k**2 for k in _slopes(spectrum, shape)])


def _slopes(spectrum: Array, shape: Shape) -> list[Array]:
    """What waves are multiplied by in a derivative along each axis, less i; the Nyquist wave has no slope."""
    result = []
    for axis, n in enumerate(shape):
        slope = np.where(2 * harmonics(n) == -n, 0, 2 * np.pi * harmonics(n) / n)[: spectrum.shape[axis]]
        result.append(along(jnp.asarray(slope, spectrum.real.dtype), axis, len(shape)))
    return result


def _computed(rows: Array) -> Array:
    """The same rows, as the result of a matrix product.

    Else compilers fuse a vector with what uses it and work out its sines anew for every element of an image.
    """
    unit = np.eye(len(rows), dtype=rows.dtype)
    return jnp.dot(unit, rows, precision=lax.Precision.HIGHEST)


def nyquist_power(spectrum: Array, shape: Shape) -> FourierSeries:
    """How ``Σ_i M(i − s)²`` varies with s: only the Nyquist terms of even axes lose power between pixels.

    A mode with the axes U at Nyquist keeps ``cos²(π Σ_U s)`` of its power, so with P_U their summed power
    the sum changes by ``−Σ_U P_U sin²(π Σ_U s) / N``: a series of period one pixel, zero at whole shifts.
    """
    even = [n % 2 == 0 for n in shape]
    subsets = [u for u in product(*((False, True) if e else (False,) for e in even)) if any(u)]
    total = {u: _hyperplane_power(spectrum, shape, u) for u in subsets}
    parts: dict[tuple[int, ...], list[Array]] = {}
    for u in subsets:
        # Inclusion and exclusion: the modes with exactly the axes u at Nyquist.
        larger = [v for v in subsets if all(b >= a for a, b in zip(u, v, strict=True))]
        lost = sum(total[v] * (-1) ** (sum(v) - sum(u)) for v in larger) / 2
        for at, part in ((u, lost), ((0,) * len(u), -lost)):
            parts.setdefault((*map(int, at[:-1]), 0, int(at[-1])), []).append(part)
    grid = (*(3 if e else 1 for e in even[:-1]), 2, 1 + even[-1])
    zero = jnp.zeros_like(spectrum.real, shape=())
    coefficients = [reduce(jnp.add, parts.get(at, [zero])) for at in np.ndindex(grid)]
    return FourierSeries(jnp.stack(coefficients).reshape(grid), (1,) * len(shape))


def _hyperplane_power(spectrum: Array, shape: Shape, at_nyquist: tuple[bool, ...]) -> Array:
    """``Σ |M̂|² / N`` over the full plane's modes that have at least the given axes at Nyquist."""
    plane = spectrum[tuple(n // 2 if u else slice(None) for n, u in zip(shape, at_nyquist, strict=True))]
    power = squared(plane)
    if not at_nyquist[-1]:
        power = power * along(half_weights(shape[-1]).astype(power.dtype), power.ndim - 1, power.ndim)
    return sum_all(power) / prod(shape)


def square_of(spectrum: Array, shape: Shape) -> Array:
    """Coefficients of M², by the half-plane spectrum of M: harmonics −n … n, 0 … n on the last axis.

    They are twice the pixels' band; so M² is formed on a grid that holds them.
    """
    fine = tuple(next_fast_len(2 * n + 1, real=True) for n in shape)
    array = jnp.fft.irfftn(on_grid(unfolded(spectrum, shape), fine), fine) * (prod(fine) / prod(shape))
    square = jnp.fft.rfftn(array**2)[..., : shape[-1] + 1]
    for axis, (n, m) in enumerate(zip(shape[:-1], fine[:-1], strict=True)):
        square = _joined(square, axis, [(0, n + 1), (m - n, m)])
    return scaled(square, 1 / prod(fine))


def correlated_square(square: Array, weight_spectrum: Array, shape: Shape) -> FourierSeries:
    """The series of ``Σ_i w_i M(i − s)²`` from `square_of` M and the half-plane spectrum of w: exact.

    The harmonics of w repeat with period n.
    """
    # Beyond half the period the last axis' harmonics are those of opposite sign, conjugated.
    opposite = jnp.flip(jnp.conj(weight_spectrum[..., : (shape[-1] + 1) // 2]), -1)
    for axis, n in enumerate(shape[:-1]):
        opposite = jnp.flip(_joined(opposite, axis, [(1, n), (0, 1)]), axis)
    weights = jnp.concatenate([weight_spectrum, opposite], -1)
    for axis, n in enumerate(shape[:-1]):
        weights = _joined(weights, axis, [(0, n), (0, 1), (0, n)])
    return _series(conj_product(square, weights), 1.0, shape)
