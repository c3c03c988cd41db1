"""Real Fourier series on half-plane spectra: what χ² between the pixels is made of.

A real array of shape ``(n_0, …, n_{D-1})`` has the half-plane spectrum that ``rfftn`` returns. It defines
the interpolant ``M(x) = Re Σ_k M̂_k exp(2πi k·x/n) / N`` over the frequencies of ``fftfreq``, so the Nyquist
term of an even axis sits at −1/2 cycles per pixel before the real part is taken. On one even axis that is
the familiar ``cos(πx)``; where several axes are at Nyquist together it is the cosine of the summed phase.
This is the convention of `jaxchi2.fourier.shiftnd`, and everything here is exact for it.

A product of waves, one for each axis, becomes at the Nyquist terms of the axes U the real part of their
product, ``Re Π_U g = Π_U Re g − Σ_{a<b} Im g_a Im g_b Π_{others} Re g`` for up to three axes. So a sum over
all modes is the sum with the real part of every wave at Nyquist, less one over the modes with two axes there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import combinations, product
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from .fourier import product_modulo

Shape = tuple[int, ...]
Columns = Callable[[int, np.ndarray, int], Array]


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

    def product(x: Array, matrix: Array, axis: int) -> Array:
        return jnp.tensordot(x, matrix, axes=((axis,), (0,)), precision=lax.Precision.HIGHEST)

    for axis in reversed(range(len(columns))):
        matrix = columns[axis]
        if axis == len(columns) - 1 and jnp.iscomplexobj(tensor):
            # Of a large tensor, in real products: what makes it need not be stored as complex numbers then.
            both = jnp.concatenate([matrix.real, matrix.imag], 1)
            (re, im), (turned_re, turned_im) = (
                jnp.split(product(x, both, axis), 2, -1) for x in (tensor.real, tensor.imag)
            )
            tensor = lax.complex(re - turned_im, im + turned_re)
        else:
            tensor = product(tensor, matrix, axis)
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
    turns = product_modulo(jnp.asarray(indices % period, whole.dtype), whole % period, period)
    slope = np.asarray(2 * np.pi * indices / period, fraction.dtype)
    return turns.astype(fraction.dtype) * np.asarray(2 * np.pi / period, fraction.dtype) + slope * fraction


def _waves(indices: np.ndarray, period: int, whole: Array, fraction: Array, order: int) -> Array:
    """``(iκ)^r exp(iκs)`` for r = 0 … order in columns, κ = 2π k / period."""
    phase = cycle_phase(indices, period, whole, fraction)
    cos, sin = (along(x, 0, 2) for x in (jnp.cos(phase), jnp.sin(phase)))
    factor = (2j * np.pi * indices[:, None] / period) ** np.arange(order + 1)
    re, im = factor.real.astype(cos.dtype), factor.imag.astype(cos.dtype)
    return lax.complex(cos * re - sin * im, cos * im + sin * re)


class _Series:
    """A real trigonometric polynomial ``f(s) = Re Σ_k c_k exp(2πi k·s / period)``, summed axis by axis.

    Compiled as functions of their own, so that a program that needs them often is traced once.
    """

    period: Shape

    def _sum(self, columns: Columns) -> Array:
        """``Re Σ_k c_k Π_a columns(a, k_a, period_a)[r_a]``, shape ``(r_0, …, r_{D-1})``."""
        raise NotImplementedError

    @partial(jax.jit, static_argnames=("order",))
    def derivatives(self, whole: Array, fraction: Array, order: int) -> Array:
        """All partial derivatives at ``whole + fraction`` up to ``order`` per axis, shape ``(order+1,)*D``.

        Entry ``[a, b]`` is ``∂^a_0 ∂^b_1 f``. One pass over the coefficients.
        """
        return self._sum(lambda axis, k, period: _waves(k, period, whole[axis], fraction[axis], order))

    @jax.jit
    def differences(self, whole: Array, fraction: Array, displacements: list[Array]) -> Array:
        """``f(s + d) − f(s)`` at ``s = whole + fraction``, for d on the grid spanned by one vector per axis.

        The waves enter as ``exp(iκd) − 1`` without cancellation, axis after axis, so a small difference
        has full relative precision: the difference of two values would have none left in float32.
        """

        def columns(changing: int, axis: int, indices: np.ndarray, period: int) -> Array:
            d = displacements[axis]
            wave = _waves(indices, period, whole[axis], fraction[axis], 0)
            phase = along(np.asarray(2 * np.pi * indices / period, d.dtype), 0, 2) * along(d, 1, 2)
            change = lax.complex(-2 * jnp.sin(phase / 2) ** 2, jnp.sin(phase))
            return wave * (1 + change if axis < changing else change if axis == changing else 1 + 0 * change)

        return reduce(jnp.add, [self._sum(partial(columns, axis)) for axis in range(len(displacements))])


@partial(jax.tree_util.register_dataclass, data_fields=["spectrum"], meta_fields=["grid", "period"])
@dataclass(frozen=True)
class FourierSeries(_Series):
    """The function of a half-plane spectrum, ``f(s) = Re Σ_k c_k exp(2πi k·s / period) / N``.

    Only that real part is used, so the column ``k_{D-1} = 0`` need not be Hermitian.
    """

    spectrum: Array
    """Complex, as ``rfftn`` gives it of an array of shape ``grid``."""
    grid: Shape = field(metadata={"static": True})
    """Number of harmonics along each axis; their product is N."""
    period: Shape = field(metadata={"static": True})
    """Period along each axis in pixels: ``grid`` for the interpolant of an image."""

    def _sum(self, columns: Columns) -> Array:
        ndim = len(self.grid)
        matrices, sines = [], {}
        for axis, (n, m) in enumerate(zip(self.grid, self.spectrum.shape, strict=True)):
            indices = harmonics(n)[:m]
            waves = columns(axis, indices, self.period[axis])
            if n % 2 == 0:
                sines[axis] = waves[n // 2].imag
                waves = real_at_nyquist(waves, indices, n)
            matrices.append(waves)
        weights = half_weights(self.grid[-1])[:, None] / prod(self.grid)
        matrices[-1] = scaled(matrices[-1], jnp.asarray(weights, matrices[-1].real.dtype))
        result = contract(self.spectrum, matrices).real
        for pair in combinations(sines, 2):
            others = [a for a in range(ndim) if a not in pair]
            modes = self.spectrum[tuple(self.grid[a] // 2 if a in pair else slice(None) for a in range(ndim))]
            part = contract(modes, [matrices[a] for a in others]).real
            if ndim - 1 in pair:
                part = part / prod(self.grid)
            factors = [along(sines[a], a, ndim) for a in pair]
            result = result - jnp.expand_dims(part, pair) * factors[0] * factors[1]
        return result

    def sampled(self, oversample: int) -> Array:
        """Values at every pixel or half pixel of a ``grid`` of pixels, shift zero at index zero."""
        return interleaved(
            [
                jnp.fft.irfftn(_shift_by_constant(self.spectrum, self.grid, offset), self.grid)
                if any(offset)
                else jnp.fft.irfftn(self.spectrum, self.grid)
                for offset in product(np.arange(0, -1, -1 / oversample).tolist(), repeat=len(self.grid))
            ]
        )


@partial(jax.tree_util.register_dataclass, data_fields=["phases", "edges"], meta_fields=["period"])
@dataclass(frozen=True)
class PolyphaseSeries(_Series):
    """A trigonometric polynomial of harmonics up to ±n, twice the pixels' band, by its half-pixel samples.

    ``phases`` are spectra on the pixel grid, one for each half-pixel offset. Of a harmonic and its alias,
    ``k`` and ``k ∓ n``, the two phases of an axis hold the sum and the difference, so nothing of twice the
    size is transformed or stored. At ±n on an even axis samples tell the cosine; ``edges`` are the sines.
    """

    phases: tuple[Array, ...]
    """Half-plane spectra of f at the pixels plus p/2, for each offset p in ``product((0, 1), repeat=D)``."""
    edges: tuple[FourierSeries, ...]
    """What the half-pixel samples do not show."""
    period: Shape = field(metadata={"static": True})
    """Period along each axis in pixels."""

    def _sum(self, columns: Columns) -> Array:
        matrices = []
        for axis, (n, m) in enumerate(zip(self.period, self.phases[0].shape, strict=True)):
            k = np.concatenate([np.arange((n + 1) // 2), -np.arange(n // 2, 0, -1)])[:m]
            alias = k - np.where(k < 0, -n, n)
            weight = half_weights(n)[:, None] / n if axis == len(self.period) - 1 else 1 / n
            first, second = columns(axis, k, n), columns(axis, alias, n)
            # Zero's aliases are both ±n: half of each, or none where no product of two waves gets there.
            ends = second.real if n % 2 == 0 else jnp.zeros_like(second.real)
            second = jnp.where(k[:, None] == 0, lax.complex(ends, jnp.zeros_like(ends)), second)
            turn = np.exp(-1j * np.pi * np.stack([k, alias]) / n)[:, :, None]
            both = [
                (turn[0] ** p * weight / 2).astype(first.dtype) * first
                + (turn[1] ** p * weight / 2).astype(first.dtype) * second
                for p in (0, 1)
            ]
            matrices.append(both)
        offsets = product((0, 1), repeat=len(matrices))
        sums = [
            contract(phase, [matrix[p] for matrix, p in zip(matrices, offset, strict=True)]).real
            for phase, offset in zip(self.phases, offsets, strict=True)
        ]
        return reduce(jnp.add, [*sums, *(edge._sum(columns) for edge in self.edges)])

    def sampled(self, oversample: int) -> Array:
        """Values at every pixel or half pixel over one period, shift zero at index zero."""
        ndim = len(self.period)
        return interleaved([jnp.fft.irfftn(phase, self.period) for phase in self.phases[: oversample**ndim]])


def interleaved(values: list[Array]) -> Array:
    """One grid of samples from several of equal shape, offset by half a pixel along every axis in turn."""
    if len(values) == 1:
        return values[0]
    shape, ndim = values[0].shape, values[0].ndim
    stacked = jnp.stack(values).reshape(*(2,) * ndim, *shape)
    order = [axis for a in range(ndim) for axis in (ndim + a, a)]
    return stacked.transpose(order).reshape([2 * n for n in shape])


def real_at_nyquist(waves: Array, indices: np.ndarray, length: int) -> Array:
    """Waves in columns, those at the Nyquist term replaced by their real part."""
    kept = along(2 * indices != -length, 0, waves.ndim)
    return lax.complex(waves.real, waves.imag * jnp.asarray(kept, waves.real.dtype))


def shift_spectrum(spectrum: Array, shape: Shape, whole: Array, fraction: Array) -> Array:
    """Half-plane spectrum of ``M(x − whole − fraction)``, the Nyquist terms by the convention above."""
    ndim = len(shape)
    waves, sines = [], {}
    for axis, n in enumerate(shape):
        indices = harmonics(n)[: spectrum.shape[axis]]
        phase = -cycle_phase(indices, n, whole[axis], fraction[axis])
        at_nyquist = 2 * indices == -n
        parts = [jnp.cos(phase), jnp.where(at_nyquist, 0.0, jnp.sin(phase))]
        if n % 2 == 0:
            parts.append(jnp.where(at_nyquist, jnp.sin(phase), 0.0))
        parts = [along(x, axis, ndim) for x in _computed(jnp.stack(parts))]
        waves.append((parts[0], parts[1]))
        if n % 2 == 0:
            sines[axis] = parts[2]
    re, im = _outer(waves)
    for a, b in combinations(sines, 2):
        both = sines[a] * sines[b]
        others = [wave for axis, wave in enumerate(waves) if axis not in (a, b)]
        c, s = _outer(others) if others else (1.0, 0.0)
        re, im = re - both * c, im - both * s
    return lax.complex(spectrum.real * re - spectrum.imag * im, spectrum.real * im + spectrum.imag * re)


def _outer(waves: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Real and imaginary part of the product of complex waves."""
    return reduce(lambda x, y: (x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]), waves)


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
    grid = tuple(3 if e else 1 for e in even)
    coefficients = jnp.zeros_like(spectrum, shape=(*grid[:-1], 1 + even[-1]))
    for u in subsets:
        # Inclusion and exclusion: the modes with exactly the axes u at Nyquist.
        larger = [v for v in subsets if all(b >= a for a, b in zip(u, v, strict=True))]
        lost = sum(total[v] * (-1) ** (sum(v) - sum(u)) for v in larger) / 2 * prod(grid)
        # cos(2π Σ_U s) has weight 2 on the half plane, except on its edge column.
        coefficients = coefficients.at[tuple(map(int, u))].add(lost / (2 if u[-1] else 1))
        coefficients = coefficients.at[(0,) * len(shape)].add(-lost)
    return FourierSeries(coefficients, grid, (1,) * len(shape))


def _hyperplane_power(spectrum: Array, shape: Shape, at_nyquist: tuple[bool, ...]) -> Array:
    """``Σ |M̂|² / N`` over the full plane's modes that have at least the given axes at Nyquist."""
    plane = spectrum[tuple(n // 2 if u else slice(None) for n, u in zip(shape, at_nyquist, strict=True))]
    power = plane.real**2 + plane.imag**2
    if not at_nyquist[-1]:
        power = power * along(half_weights(shape[-1]).astype(power.dtype), power.ndim - 1, power.ndim)
    return jnp.sum(power) / prod(shape)


def correlated_square(
    array: Array, spectrum: Array, weights: Array, weight_spectrum: Array
) -> PolyphaseSeries:
    """The series of ``Σ_i w_i M(i − s)²`` from M's pixels and their spectrum: exact, M² at full bandwidth."""
    shape = array.shape
    phases = []
    for offset in product((0.0, 0.5), repeat=len(shape)):
        samples = jnp.fft.irfftn(_shift_by_constant(spectrum, shape, offset), shape) if any(offset) else array
        phases.append(conj_product(jnp.fft.rfftn(samples**2), weight_spectrum))
    even = [axis for axis, n in enumerate(shape) if n % 2 == 0]
    # With one even axis the Nyquist terms are cosines and so are their squares.
    edges = tuple(_edge(spectrum, shape, weights, axis) for axis in even) if len(even) > 1 else ()
    return PolyphaseSeries(tuple(phases), edges, shape)


def _shift_by_constant(spectrum: Array, shape: Shape, offset: tuple[float, ...]) -> Array:
    # Behind a barrier, or the compiler spends its time on working out constants as large as the image.
    fraction = lax.optimization_barrier(jnp.asarray(offset, spectrum.real.dtype))
    return shift_spectrum(spectrum, shape, jnp.zeros(len(shape), jnp.int32), fraction)


def _edge(spectrum: Array, shape: Shape, weights: Array, axis: int) -> FourierSeries:
    """The sine part of harmonic ±n of an even axis in ``Σ_i w_i M(i − s)²``, of period one pixel along it.

    It comes from the Nyquist terms alone: with ``Z`` the sum over the one-sided band,
    ``M² = Re(Z²)/2 + |Z|²/2``, and ``Z²`` at −n is the square of the Nyquist plane.
    """
    ndim = len(shape)
    negative = _squared_nyquist_plane(spectrum, shape, axis)
    sine = (jnp.conj(_reverse(negative)) - negative) / 2
    for earlier in (a for a in range(axis) if shape[a] % 2 == 0):
        # What is antisymmetric there too, the earlier axis' own edge has.
        n = shape[earlier]
        mean = (jnp.take(sine, n, earlier) + jnp.take(sine, n + 1, earlier)) / 2
        index = (slice(None),) * earlier
        sine = sine.at[(*index, n)].set(mean).at[(*index, n + 1)].set(mean)
    coefficient = conj_product(sine, tiled(jnp.sum(weights, axis)))
    columns = [jnp.zeros_like(coefficient), coefficient]
    if axis < ndim - 1:
        columns.append(-coefficient)
    series = jnp.stack(columns, axis)
    if axis < ndim - 1:
        series = series[..., : shape[-1] + 1]
    grid = tuple(3 if a == axis else 2 * n + 1 for a, n in enumerate(shape))
    period = tuple(1 if a == axis else n for a, n in enumerate(shape))
    return FourierSeries(series * prod(grid), grid, period)


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
    """Spectrum of pixel weights at all harmonics up to ±n, in the order of ``fftfreq``: period n repeats."""
    spectrum = jnp.fft.fftn(weights)
    for axis in range(weights.ndim):
        first = lax.slice_in_dim(spectrum, 0, 1, axis=axis)
        spectrum = jnp.concatenate([spectrum, first, spectrum], axis)
    return spectrum
