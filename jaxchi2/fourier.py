"""Fourier primitives: correlate, shift, zoom and upsample arrays of any number of axes.

An array ``f`` of ``n`` samples per axis is read as one period of a trigonometric polynomial,

    f(x) = Re Σ_k F_k exp(2πi k·x),    k = fftfreq(n) on each axis,  F = fftn(f) / f.size,

which passes through every sample and can be evaluated at any real position ``x`` in pixels.

- *Shift.* A positive shift ``s`` moves content towards larger indices: ``g(x) = f(x - s)``, and
  ``np.roll(f, 3, axis=0)`` is ``f`` shifted by ``(3, 0)``. Everything is periodic.
- *Axis order.* Shifts, offsets and coordinates come in array order ``(..., y, x)``. The one exception is
  `shift2d`, which takes x before y because `image_registration` does.
- *Odd and even sizes.* On an odd axis every frequency has its negative, and shifting by ``s`` and then by
  ``-s`` is the identity. On an even axis the Nyquist frequency is unpaired and kept at -1/2. In the real part
  it becomes ``cos(πx)``, and ``cos(π(x + y))`` where two axes are at Nyquist; it vanishes half-way between
  samples, and such a pair of shifts loses it.
- *Precision.* Results have the dtype of the data. A position is split into its nearest integer, whose phase
  is reduced in integer arithmetic, and a fraction of at most half a pixel, so a float32 phase is as accurate
  at pixel 2000 as at pixel 2. What float32 cannot represent is lost earlier: 1000.37 arrives 5e-6 too small.
- *Values that are not finite* count as zero in `correlate2d` and `shiftnd`, and spread over the whole result
  in the zooms and interpolations.

The names and arguments are those of `image_registration`. Its ``nthreads``, ``use_numpy_fft`` and
``allow_huge`` mean nothing here; they are accepted with a warning, in its positions too (`accept_obsolete`).
"""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike
from scipy.fft import next_fast_len

from .checks import (
    array_of,
    as_real_array,
    choice,
    described,
    flag,
    known_values,
    per_axis,
    positive,
    refuse,
    scalar,
)

__all__ = [
    "correlate2d",
    "dftups",
    "dftups1d",
    "fourier_interp1d",
    "fourier_interp2d",
    "fourier_interpnd",
    "odddftups",
    "shift2d",
    "shiftnd",
    "upsample_image",
    "zoom1d",
    "zoom_on_pixel",
    "zoomnd",
]

P = ParamSpec("P")
R = TypeVar("R")
_Split = tuple[Array, Array]  # a position: the nearest integer, as a float, and the fraction left over


def accept_obsolete(**slots: int | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function take arguments that have no effect, and warn when one is given.

    Each keyword names such an argument and gives its position in the older signature, None if it had none.
    Positional arguments from the first of these positions on are read in the older order. The decorated
    function keeps its own signature and docstring.
    """
    positions = sorted((slot, name) for name, slot in slots.items() if slot is not None)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        order = [key for key, par in inspect.signature(function).parameters.items() if par.kind in named]
        for slot, name in positions:
            order.insert(slot, name)
        first = positions[0][0] if positions else len(order)

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> R:
            if len(args) > len(order):
                raise TypeError(f"{function.__name__} takes {len(order)} arguments, got {len(args)}")
            late = dict(zip(order[first:], args[first:], strict=False))
            if twice := late.keys() & kwargs.keys():
                raise TypeError(f"{function.__name__} got {', '.join(sorted(twice))} twice")
            given = {**late, **kwargs}
            if dead := [name for name in slots if name in given]:
                text = f"{function.__name__}: {', '.join(dead)} given, which has no effect"
                warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*args[:first], **{key: given[key] for key in given if key not in slots})

        return wrapper

    return decorate


def _spectrum(inp: ArrayLike, ndim: int) -> tuple[Array, Any]:
    """Convert the argument ``inp``, real or complex, to a complex array; return also its parts' dtype."""
    numeric = jnp if isinstance(inp, jax.Array) else np
    try:
        parts = numeric.real(inp), numeric.imag(inp)
    except (TypeError, ValueError) as error:
        raise TypeError(f"inp must be an array of numbers, not {described(inp)}") from error
    real, imag = (array_of(part, "inp", ndim, ndim) for part in parts)
    return lax.complex(real, imag), real.dtype


def static_sizes(shape: Any, name: str, count: int, least: int = 1) -> tuple[int, ...]:
    """Return `count` sizes of at least `least` as integers, from whole numbers of any type.

    One number stands for the same size on every axis. Errors call the argument `name`.
    """
    numbers = "a static whole number" if count == 1 else f"{count} static whole numbers"
    wanted = f"{name} must be {numbers} of at least {least}, got {shape!r}"
    try:
        given = list(shape) if np.ndim(shape) else [shape] * count
        sizes = tuple(int(m) if float(m).is_integer() else 0 for m in given)
    except (TypeError, ValueError, OverflowError, jax.errors.ConcretizationTypeError) as error:
        raise ValueError(wanted) from error
    if len(sizes) != count or min(sizes) < least or any(isinstance(m, bool | str) for m in given):
        raise ValueError(wanted)
    return sizes


def _output_shape(shape: Any, name: str, default: Sequence[int]) -> tuple[int, ...]:
    return tuple(default) if shape is None else static_sizes(shape, name, len(default))


def _split(position: Array) -> _Split:
    whole = jnp.round(position)
    return whole, position - whole


def _split_ratio(a: Array, b: Array) -> _Split:
    """Split ``a / b`` without rounding the quotient first: its last bit is 6e-5 at 1000 in float32."""
    whole = lax.stop_gradient(jnp.round(a / b))
    return whole, (a - whole * b) / b


def _add(a: _Split, b: _Split) -> _Split:
    carry, fraction = _split(a[1] + b[1])
    return a[0] + b[0] + carry, fraction


def product_modulo(a: Array, b: Array, n: int) -> Array:
    """Return ``a * b mod n`` for integers ``0 <= a, b < n <= 2**30`` without leaving 32 bits."""
    # So many bits of a are done at once that neither they times b nor a rest times their size overflows.
    bits = 31 - (n - 1).bit_length()
    if 2 * bits >= 31:
        return a * b % n
    product = jnp.zeros_like(b)
    for low in reversed(range(0, (n - 1).bit_length(), bits)):
        part = (a >> low) & (2**bits - 1)
        product = ((product << bits) % n + part * b % n) % n
    return product


def _fast_length(n: int) -> int:
    return int(next_fast_len(n, real=True))


def _phases(position: _Split, n: int) -> Array:
    """exp(2πi k x) at each position x (shape ``(m,)``) and each k of ``fftfreq(n)``, shape ``(m, n)``."""
    whole, fraction = position
    # The remainder is exact in floating point, and after it any whole number fits the integers.
    residue = jnp.mod(whole, n).astype(np.int32)[:, None]
    cycles = product_modulo(jnp.arange(n, dtype=np.int32)[None, :], residue, n)
    cycles = jnp.where(2 * cycles >= n, cycles - n, cycles)
    frequency = jnp.asarray(np.fft.fftfreq(n)[None, :], dtype=fraction.dtype)
    angle = 2 * np.pi * (cycles.astype(fraction.dtype) / n + frequency * fraction[:, None])
    return lax.complex(jnp.cos(angle), jnp.sin(angle))


def _on_grid(spectrum: Array, positions: Sequence[_Split]) -> Array:
    """Σ_k F_k exp(2πi k·x) on the grid spanned by one vector of positions per axis.

    One matrix product per axis: each takes the leading axis away and appends its result, so that after the
    last one the axes stand in their old order. Default precision is bfloat16 on a TPU, TF32 on some GPUs.
    """
    for position in positions:
        phases = _phases(position, spectrum.shape[0])
        spectrum = jnp.tensordot(spectrum, phases, axes=(0, 1), precision=lax.Precision.HIGHEST)
    return spectrum


def _finish(values: Array, real: bool) -> Array:
    """Take the real part, or move Nyquist to +1/2, where `image_registration` has it in the complex form."""
    return values.real if real else values.conj()


@partial(jax.jit, static_argnames="real")
def _interpolate(data: Array, vectors: Sequence[Array], real: bool) -> Array:
    values = _on_grid(jnp.fft.fftn(data, norm="forward"), [_split(x) for x in vectors])
    return _finish(values, real)


@partial(jax.jit, static_argnames="real")
def _interpolate_points(data: Array, coordinates: Sequence[Array], real: bool) -> Array:
    spectrum = jnp.fft.fftn(data, norm="forward")

    def at(point: Array) -> Array:
        return _on_grid(spectrum, [_split(x[None]) for x in point]).reshape(())

    # In batches: every point at once would hold all but one axis of the data for each of them.
    points = jnp.stack([x.ravel() for x in coordinates], axis=1)
    return _finish(lax.map(at, points, batch_size=256).reshape(coordinates[0].shape), real)


@partial(jax.jit, static_argnames=("outshape", "real"))
def _zoom(
    data: Array, middles: Array, offsets: Array, usfac: Array, outshape: Sequence[int], real: bool
) -> tuple[list[Array], Array]:
    """Evaluate `data` around ``middles + offsets``; return the positions per axis and the values."""
    centers = _add(_split(middles), _split(offsets))
    positions = []
    for whole, fraction, m in zip(*centers, outshape, strict=True):
        steps = _split_ratio(jnp.arange(m, dtype=data.dtype) - (m - 1) / 2, usfac)
        positions.append(_add((whole[None], fraction[None]), steps))
    values = _on_grid(jnp.fft.fftn(data, norm="forward"), positions)
    return [whole + fraction for whole, fraction in positions], _finish(values, real)


@partial(jax.jit, static_argnames="shape")
def _window(spectrum: Array, usfac: Array, origin: Sequence[Array], shape: tuple[int, ...]) -> Array:
    samples = [start - jnp.arange(m, dtype=start.dtype) for start, m in zip(origin, shape, strict=True)]
    return _on_grid(spectrum, [_split_ratio(x, usfac) for x in samples])


@partial(jax.jit, static_argnames=("return_abs", "return_real"))
def _shift(data: Array, offset: Array, phase: Array, return_abs: bool, return_real: bool) -> Array:
    spectrum = jnp.fft.fftn(jnp.where(jnp.isfinite(data), data, 0))
    for axis, n in enumerate(data.shape):
        factor = _phases(_split(-offset[axis, None]), n)[0]
        spectrum = spectrum * jnp.expand_dims(factor, tuple(a for a in range(data.ndim) if a != axis))
    result = jnp.fft.ifftn(spectrum) * lax.complex(jnp.cos(phase), -jnp.sin(phase))
    if return_real:
        return result.real
    return jnp.abs(result) if return_abs else result


@partial(jax.jit, static_argnames="padded")
def _correlate(im1: Array, im2: Array, padded: Sequence[int]) -> Array:
    axes = tuple(range(im1.ndim))
    a, b = (jnp.fft.rfftn(jnp.where(jnp.isfinite(im), im, 0), padded, axes) for im in (im1, im2))
    backwards = jnp.fft.irfftn(a * b.conj(), padded, axes)  # index t holds shift -t
    rolled = jnp.roll(backwards, tuple((n - 1) // 2 for n in im1.shape), axes)
    return rolled[tuple(slice(n) for n in im1.shape)]


@accept_obsolete(nthreads=3, use_numpy_fft=4, allow_huge=None)
def correlate2d(im1: ArrayLike, im2: ArrayLike, boundary: str = "wrap") -> Array:
    """Cross-correlate two arrays of equal shape, with any number of axes.

    ``out[k] = Σ_i im1[i - s] im2[i]`` with ``s = (n - 1)//2 - k`` on each axis: index ``(n - 1)//2`` is shift
    zero and the shift falls as the index rises. Values that are not finite count as zero.

    Parameters
    ----------
    im1, im2 : array
        Two real arrays of the same shape.
    boundary : {'wrap', 'fill'}
        Continue `im1` periodically, or by zeros.

    Returns
    -------
    Array
        The correlation, shape of `im1`.

    Raises
    ------
    ValueError, TypeError
        For unlike shapes, an unknown boundary, complex dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> spike = np.zeros((5, 7))
    >>> spike[1, 2] = 1.0
    >>> correlation = correlate2d(spike, np.roll(spike, (1, -2), (0, 1)))
    >>> row, column = np.unravel_index(np.argmax(correlation), spike.shape)
    >>> print(2 - row, 3 - column)
    1 -2
    """
    first, second = array_of(im1, "im1"), array_of(im2, "im2")
    if first.shape != second.shape:
        raise ValueError(f"im1 and im2 must have the same shape, not {first.shape} and {second.shape}")
    boundary = choice(boundary, "boundary", ("wrap", "fill"))
    shape = first.shape
    # Shifts reach n//2, so n + n//2 elements keep one end from meeting the other.
    padded = shape if boundary == "wrap" else tuple(_fast_length(n + n // 2) for n in shape)
    return _correlate(first, second, padded)


@accept_obsolete(nthreads=3, use_numpy_fft=4, allow_huge=None)
def shiftnd(
    data: ArrayLike,
    offset: ArrayLike | Sequence,
    phase: ArrayLike = 0,
    *,
    return_abs: bool = False,
    return_real: bool = True,
) -> Array:
    """Shift an array by a real number of pixels per axis: ``g(x) = f(x - offset)``, periodic.

    Costs two FFTs. Values that are not finite count as zero.

    Parameters
    ----------
    data : array
        Real array with any number of axes.
    offset : sequence of float
        Shift along each axis, in array order; positive towards larger indices.
    phase : float
        The result is multiplied by ``exp(-i phase)`` before its real part is taken.
    return_abs : bool
        With ``return_real=False``, return the modulus.
    return_real : bool
        Return the real part; otherwise the complex result, or its modulus. It is complex because of `phase`
        and of the Nyquist frequency of even axes.

    Returns
    -------
    Array
        The shifted array, shape of `data`.

    Raises
    ------
    ValueError, TypeError
        For an offset without one number per axis, complex dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> print(np.asarray(shiftnd(wave, [0.5])).round(3))
    [ 0.924  0.924  0.383 -0.383 -0.924 -0.924 -0.383  0.383]
    """
    array = array_of(data, "data")
    offsets = per_axis(offset, "offset", array.ndim, array.dtype)
    flags = flag(return_abs, "return_abs"), flag(return_real, "return_real")
    return _shift(array, offsets, scalar(phase, "phase", array.dtype), *flags)


@accept_obsolete(nthreads=4, use_numpy_fft=5, allow_huge=None)
def shift2d(
    data: ArrayLike,
    deltax: ArrayLike,
    deltay: ArrayLike,
    phase: ArrayLike = 0,
    *,
    return_abs: bool = False,
    return_real: bool = True,
) -> Array:
    """Shift a 2-D array by `deltax` columns and `deltay` rows: ``shiftnd(data, (deltay, deltax), ...)``.

    Parameters, result and errors as for `shiftnd`.

    Examples
    --------
    >>> import numpy as np
    >>> print(np.round(np.abs(shift2d(np.eye(3), 1, 0))))
    [[0. 1. 0.]
     [0. 0. 1.]
     [1. 0. 0.]]
    """
    array = array_of(data, "data", 2, 2)
    offset = (scalar(deltay, "deltay", array.dtype), scalar(deltax, "deltax", array.dtype))
    return shiftnd(array, offset, phase, return_abs=return_abs, return_real=return_real)


@accept_obsolete(nthreads=None, use_numpy_fft=None, allow_huge=None)
def zoomnd(
    inp: ArrayLike,
    offsets: ArrayLike | Sequence = (),
    middle_convention: Callable[[float], float] = float,
    usfac: ArrayLike = 1,
    outshape: float | Sequence[float] | None = None,
    *,
    return_xouts: bool = False,
    return_real: bool = True,
) -> Any:
    """Zoom in on the centre of an array by Fourier interpolation: one FFT and a matrix product per axis.

    Sample ``i`` of the ``m`` samples along an axis of ``n`` pixels lies at
    ``middle_convention((n - 1)/2) + offset + (i - (m - 1)/2)/usfac``.

    Parameters
    ----------
    inp : array
        Real array with any number of axes.
    offsets : sequence of float
        Offset from the middle along each axis, in pixels of `inp`; none by default.
    middle_convention : callable
        Turns ``(n - 1)/2`` into the middle: ``float``, ``math.floor`` or ``math.ceil``.
    usfac : float
        Samples per pixel; may be traced.
    outshape : int or sequence of int, optional
        Shape of the result; that of `inp` by default.
    return_xouts : bool
        Return ``(positions, zoomed)``, ``positions`` laid out as by `numpy.indices`, ``(ndim, *outshape)``.
    return_real : bool
        Return the real part; otherwise the complex sum, with Nyquist at +1/2 as `image_registration` has it.

    Returns
    -------
    zoomed : Array
        Shape ``outshape``; with ``return_xouts`` after the positions.

    Raises
    ------
    ValueError, TypeError
        For offsets without one number per axis, an unfit ``outshape``, complex dtypes.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> positions, zoomed = zoomnd(wave, usfac=4, outshape=3, return_xouts=True)
    >>> print(np.asarray(positions[0]), np.asarray(zoomed).round(3))
    [3.25 3.5  3.75] [-0.831 -0.924 -0.981]
    """
    data = array_of(inp, "inp")
    shape = _output_shape(outshape, "outshape", data.shape)
    middles = _middles(middle_convention, data)
    given = np.zeros_like(middles) if isinstance(offsets, list | tuple) and not offsets else offsets
    shifts = per_axis(given, "offsets", data.ndim, data.dtype)
    return_xouts, return_real = flag(return_xouts, "return_xouts"), flag(return_real, "return_real")
    xouts, zoomed = _zoom(data, middles, shifts, positive(usfac, "usfac", data.dtype), shape, return_real)
    return (jnp.stack(jnp.meshgrid(*xouts, indexing="ij")), zoomed) if return_xouts else zoomed


def _middles(convention: Callable[[float], float], data: Array) -> np.ndarray:
    """What the convention makes of the middle of each axis."""
    wanted = "a function of a number that gives one, as float, math.floor and math.ceil are"
    if not callable(convention):
        refuse("middle_convention", wanted, convention, TypeError)
    try:
        middles = np.array([float(convention((n - 1) / 2)) for n in data.shape], dtype=data.dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"middle_convention must be {wanted}, not {described(convention)}: {error}"
        ) from error
    if not np.all(np.isfinite(middles)):
        refuse("middle_convention", wanted, convention)
    return middles


@accept_obsolete(nthreads=4, use_numpy_fft=5, allow_huge=None)
def zoom_on_pixel(
    inp: ArrayLike,
    coordinates: ArrayLike | Sequence,
    usfac: ArrayLike = 1,
    outshape: float | Sequence[float] | None = None,
    *,
    return_real: bool = True,
    return_xouts: bool = False,
) -> Any:
    """Zoom in on the position `coordinates`, one number per axis, whole or not.

    Other parameters, result and errors as for `zoomnd`.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> print(np.asarray(zoom_on_pixel(wave, [0.0], usfac=2, outshape=3)).round(3))
    [0.924 1.    0.924]
    """
    data = array_of(inp, "inp")
    offsets = per_axis(coordinates, "coordinates", data.ndim, data.dtype)
    flags = {"return_real": return_real, "return_xouts": return_xouts}
    return zoomnd(data, offsets, lambda middle: 0.0, usfac, outshape, **flags)


@accept_obsolete(nthreads=4, use_numpy_fft=5, allow_huge=None)
def zoom1d(
    inp: ArrayLike,
    usfac: ArrayLike = 1,
    outsize: float | None = None,
    offset: ArrayLike = 0,
    *,
    return_xouts: bool = False,
    return_real: bool = True,
) -> Any:
    """Zoom in on the centre of a 1-D array: `zoomnd` for one axis, its positions one vector.

    Parameters and errors as for `zoomnd`.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> print(np.asarray(zoom1d(wave, 4, 3, offset=0.5)).round(3))
    [-0.981 -1.    -0.981]
    """
    data = array_of(inp, "inp", 1, 1)
    shape = _output_shape(outsize, "outsize", data.shape)
    offsets = scalar(offset, "offset", data.dtype)[None]
    return_xouts = flag(return_xouts, "return_xouts")
    xouts, zoomed = zoomnd(data, offsets, float, usfac, shape, return_xouts=True, return_real=return_real)
    return (xouts[0], zoomed) if return_xouts else zoomed


@accept_obsolete(nthreads=None, use_numpy_fft=None, allow_huge=None)
def dftups(
    inp: ArrayLike,
    nor: float | None = None,
    noc: float | None = None,
    usfac: ArrayLike = 1,
    roff: ArrayLike = 0,
    coff: ArrayLike = 0,
) -> Array:
    """Evaluate the Fourier transform of a spectrum on an upsampled window, by two matrix products.

    ``out[i, j] = Σ inp[k, l] exp(-2πi (f_k (i - roff) + f_l (j - coff))/usfac)``, ``f = fftfreq``
    (Guizar-Sicairos, Thurman & Fienup 2008, doi:10.1364/OL.33.000156).

    Parameters
    ----------
    inp : array
        Real or complex spectrum, shape ``(ny, nx)``, zero frequency first.
    nor, noc : int, optional
        Rows and columns of the result; ``ny`` and ``nx`` by default. Whole floats count as integers.
    usfac : float
        Samples of the result per pixel.
    roff, coff : float
        Row and column of the result at which the origin lies.

    Returns
    -------
    Array
        Complex, shape ``(nor, noc)``.

    Raises
    ------
    ValueError, TypeError
        For an array without two axes, sizes that are not positive whole numbers.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(6.0).reshape(2, 3)
    >>> print(np.allclose(dftups(image), np.fft.fft2(image), atol=1e-5))
    True
    """
    spectrum, dtype = _spectrum(inp, 2)
    shape = _output_shape(nor, "nor", spectrum.shape[:1]) + _output_shape(noc, "noc", spectrum.shape[1:])
    origin = scalar(roff, "roff", dtype), scalar(coff, "coff", dtype)
    return _window(spectrum, positive(usfac, "usfac", dtype), origin, shape)


@accept_obsolete(nthreads=None, use_numpy_fft=None, allow_huge=None)
def odddftups(
    inp: ArrayLike,
    nor: float | None = None,
    noc: float | None = None,
    usfac: ArrayLike = 1,
    roff: ArrayLike = 0,
    coff: ArrayLike = 0,
) -> Array:
    """Evaluate the Fourier transform of a spectrum on an upsampled window: `dftups` by its other name.

    Parameters, result and errors as for `dftups`, which is right for odd and even axes alike.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(6.0).reshape(2, 3)
    >>> print(np.allclose(odddftups(image), np.fft.fft2(image), atol=1e-5))
    True
    """
    return dftups(inp, nor, noc, usfac, roff, coff)


@accept_obsolete(nthreads=None, use_numpy_fft=None, allow_huge=None)
def dftups1d(
    inp: ArrayLike,
    usfac: ArrayLike = 1,
    outsize: float | None = None,
    offset: ArrayLike = 0,
    return_xouts: bool = False,
) -> Any:
    """Evaluate the Fourier transform of a one-dimensional spectrum on an upsampled window.

    ``out[j] = Σ inp[k] exp(-2πi f_k (j + offset)/usfac)``, ``f = fftfreq``: the offset has the opposite sign
    of those of `dftups`.

    Parameters
    ----------
    inp : array
        Real or complex spectrum, shape ``(n,)``, zero frequency first.
    usfac : float
        Samples of the result per pixel.
    outsize : int, optional
        Samples of the result; ``n`` by default. A whole float counts as an integer.
    offset : float
        Where the first sample lies, in samples of the result.
    return_xouts : bool
        Return ``(positions, out)``, the positions in pixels.

    Returns
    -------
    out : Array
        Complex, shape ``(outsize,)``; with ``return_xouts`` after the positions.

    Raises
    ------
    ValueError, TypeError
        For an array without one axis, a size that is not a positive whole number.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8)
    >>> x, out = dftups1d(np.fft.ifft(wave), 4, 3, offset=14, return_xouts=True)
    >>> print(np.asarray(x), np.asarray(out).real.round(3))
    [3.5  3.75 4.  ] [-0.924 -0.981 -1.   ]
    """
    spectrum, dtype = _spectrum(inp, 1)
    shape = _output_shape(outsize, "outsize", spectrum.shape)
    factor, start = positive(usfac, "usfac", dtype), scalar(offset, "offset", dtype)
    out = _window(spectrum, factor, (-start,), shape)
    return ((start + jnp.arange(shape[0], dtype=dtype)) / factor, out) if return_xouts else out


@accept_obsolete(nthreads=3, use_numpy_fft=4, allow_huge=None)
def upsample_image(
    image: ArrayLike,
    upsample_factor: ArrayLike = 1,
    output_size: float | Sequence[float] | None = None,
    *,
    xshift: ArrayLike = 0,
    yshift: ArrayLike = 0,
) -> Array:
    """Upsample a 2-D image: ``out[i, j]`` is `image` at ``((i - yshift)/factor, (j - xshift)/factor)``.

    The result is real, as the docstring of `image_registration` promises; that package returns a complex
    array, of which this is the real part.

    Parameters
    ----------
    image : array
        Real image, shape ``(ny, nx)``.
    upsample_factor : float
        Samples per pixel; may be traced if `output_size` is given.
    output_size : int or pair of int, optional
        Shape of the result; ``upsample_factor`` times that of `image`, rounded up, by default.
    xshift, yshift : float
        Shift of the content along columns and rows, in upsampled pixels.

    Returns
    -------
    Array
        Shape ``output_size``.

    Raises
    ------
    ValueError, TypeError
        For an image without two axes, an unfit ``output_size``, a traced factor without one.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(4) / 4) * np.ones((2, 1))
    >>> print(np.round(np.abs(upsample_image(wave, 2)[0]), 3))
    [1.    0.707 0.    0.707 1.    0.707 0.    0.707]
    """
    data = array_of(image, "image", 2, 2)
    factor = positive(upsample_factor, "upsample_factor", data.dtype)
    shifts = scalar(yshift, "yshift", data.dtype), scalar(xshift, "xshift", data.dtype)
    if output_size is None:
        known = known_values(upsample_factor)
        if known is None:
            raise ValueError("output_size must be given where upsample_factor is traced, not None")
        output_size = [math.ceil(n * float(known)) for n in data.shape]
    rows, columns = _output_shape(output_size, "output_size", data.shape)
    return dftups(jnp.fft.ifft2(data), rows, columns, factor, *shifts).real


@accept_obsolete(nthreads=3, use_numpy_fft=4, allow_huge=None)
def fourier_interp1d(
    data: ArrayLike, out_x: ArrayLike, data_x: ArrayLike | None = None, *, return_real: bool = True
) -> Array:
    """Interpolate a 1-D array at the positions `out_x`, continuing it periodically.

    Parameters
    ----------
    data : array
        Real samples, shape ``(n,)``.
    out_x : array
        Positions, shape ``(m,)``, in pixels or, with `data_x`, on its scale.
    data_x : array, optional
        Positions of the samples, shape ``(n,)``, all different, rising or falling. They turn `out_x` into
        pixels by linear interpolation, the first and last spacing continued outside, where
        `image_registration` repeats the end values.
    return_real : bool
        Return the real part; otherwise the complex sum, as in `zoomnd`.

    Returns
    -------
    Array
        Shape ``(m,)``.

    Raises
    ------
    ValueError, TypeError
        For arrays without one axis, ``data_x`` of another shape than ``data``.

    Examples
    --------
    >>> import numpy as np
    >>> print(np.asarray(fourier_interp1d(np.cos(2 * np.pi * np.arange(8) / 8), [0.5, 4.0])).round(3))
    [ 0.924 -1.   ]
    """
    samples = array_of(data, "data", 1, 1)
    out = array_of(out_x, "out_x", 1, 1).astype(samples.dtype)
    if data_x is not None:
        support = as_real_array(data_x, "data_x").astype(samples.dtype)
        if support.shape != samples.shape:
            raise ValueError(f"data_x must have the shape of data, {samples.shape}, not {support.shape}")
        order = jnp.argsort(support)
        pixels = order.astype(samples.dtype)
        out = jnp.interp(out, support[order], pixels, left="extrapolate", right="extrapolate")
    return _interpolate(samples, [out], flag(return_real, "return_real"))


@accept_obsolete(nthreads=2, use_numpy_fft=3, allow_huge=None)
def fourier_interp2d(data: ArrayLike, outinds: Any, *, return_real: bool = True) -> Array:
    """Interpolate a 2-D array, `fourier_interpnd` for two axes.

    Parameters, result and errors as for `fourier_interpnd`.

    Examples
    --------
    >>> import numpy as np
    >>> wave = np.cos(2 * np.pi * np.arange(8) / 8) * np.ones((2, 1))
    >>> print(np.round(fourier_interp2d(wave, [np.array([0.0]), np.array([0.5, 4.0])]), 3))
    [[ 0.924 -1.   ]]
    """
    return fourier_interpnd(array_of(data, "data", 2, 2), outinds, return_real=return_real)


@accept_obsolete(nthreads=2, use_numpy_fft=3, allow_huge=None)
def fourier_interpnd(data: ArrayLike, outinds: Any, *, return_real: bool = True) -> Array:
    """Interpolate an array with any number of axes on a grid or at single points.

    Parameters
    ----------
    data : array
        Real array; it is continued periodically.
    outinds : sequence of arrays
        One array of positions per axis of `data`, in pixels. Vectors span a grid, at the cost of one matrix
        product per axis. Arrays of one shape with two axes or more, as from `numpy.indices`, are the
        coordinates of single points, at the cost of a sum over all of `data` for each.
    return_real : bool
        Return the real part; otherwise the complex sum, as in `zoomnd`.

    Returns
    -------
    Array
        Shape ``(len(outinds[0]), len(outinds[1]), ...)`` on a grid, ``outinds[0].shape`` for points.

    Raises
    ------
    ValueError, TypeError
        For another number of positions than axes, or positions of unlike shapes.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.cos(2 * np.pi * np.arange(8) / 8) * np.ones((2, 1))
    >>> print(np.round(fourier_interpnd(image, np.array([[[0.0, 1.0]], [[0.5, 4.0]]])), 3))
    [[ 0.924 -1.   ]]
    """
    array, return_real = array_of(data, "data"), flag(return_real, "return_real")
    wanted = f"one array of positions per axis of data, {array.ndim}"
    if not isinstance(outinds, list | tuple | np.ndarray | jax.Array) or getattr(outinds, "ndim", 1) == 0:
        refuse("outinds", wanted, outinds, TypeError)
    if len(outinds) != array.ndim:
        refuse("outinds", wanted, outinds)
    positions = [array_of(x, "outinds").astype(array.dtype) for x in outinds]
    shapes = {x.shape for x in positions}
    if all(x.ndim == 1 for x in positions):
        return _interpolate(array, positions, return_real)
    if len(shapes) > 1:
        raise ValueError(f"outinds must be vectors or arrays of one shape, not of {sorted(shapes)}")
    return _interpolate_points(array, positions, return_real)
