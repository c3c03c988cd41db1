"""The door: checks of what a function is given, one for each kind of argument.

Each takes a value and the name of its argument, and returns the value as the function uses it, or raises a
ValueError or TypeError that begins with the name and says what is wanted and what came. What cannot be known
under a trace, the values of arrays, is looked at only where it is there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from numbers import Real
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from .arrays import as_plain, unit_of

T = TypeVar("T")
Shape = tuple[int, ...]


def is_traced(*values: Any) -> bool:
    """Whether something computed from the values now, or from nothing at all, would be a tracer.

    Inside ``jit`` that is so even if none of the values is one: arrays closed over give tracers too.
    """
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(values)):
        return True
    return isinstance(lax.add(np.float32(0), np.float32(0)), Tracer)


def known_values(x: Any) -> np.ndarray | None:
    """What real numbers are now, None where a trace hides it.

    As NumPy arrays: inside ``jit`` a comparison of JAX's, even of arrays from outside, is a tracer.
    """
    return None if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)) else np.asarray(x, float)


def described(value: Any) -> str:
    """A value in few words: its type and shape if it is an array, else as it is written."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape != ():
        return f"an array of {value.dtype} of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def refuse(name: str, wanted: str, value: Any, error: type[Exception] = ValueError) -> NoReturn:
    """Raise the error of an argument that must be something else."""
    raise error(f"{name} must be {wanted}, not {described(value)}")


def as_real_array(x: Any, name: str, unit: Any = None) -> Array:
    """Return `x` as a real floating-point JAX array; `name` is what an error calls it.

    Masked elements become NaN, byte order becomes native, integers and booleans take the default float,
    float16 and bfloat16 become float32. A quantity is converted to `unit`, that of the images; without one
    only what has no dimension is taken. Anything but real numbers raises TypeError.
    """
    if isinstance(x, jax.Array) and x.dtype in (np.float32, np.float64):
        return x
    x = as_plain(x, name, unit)
    try:
        array = jnp.asarray(x) if _has_jax(x) else np.ma.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, not {described(x)}: {error}") from error
    dtype = array.dtype
    if jnp.issubdtype(dtype, np.integer) or dtype.kind == "b":
        dtype = jnp.result_type(float)
    elif not jnp.issubdtype(dtype, np.floating):
        what = described(x) if dtype.kind == "O" else f"of dtype {dtype}"
        raise TypeError(f"{name} must be an array of real numbers, not {what}")
    else:
        dtype = np.dtype(np.float32) if jnp.finfo(dtype).bits <= 32 else jnp.result_type(float)
    if isinstance(array, np.ma.MaskedArray):
        return jnp.asarray(np.ma.filled(array.astype(dtype), np.nan))
    return jnp.asarray(array, dtype=dtype)


def _has_jax(x: Any) -> bool:
    """Whether it is or holds arrays of JAX, of which NumPy would not make one if they are traced."""
    leaves = jax.tree.leaves(x) if isinstance(x, list | tuple) else [x]
    return any(isinstance(leaf, jax.Array) or hasattr(leaf, "__jax_array__") for leaf in leaves)


def as_numbers(x: Any, name: str, wanted: str, dtype: Any = None, unit: Any = None) -> Array:
    """Return real numbers that are no pixels: an array in which a boolean is a mistake."""
    leaves = jax.tree.leaves(x) if isinstance(x, (list, tuple)) else [x]
    if any(isinstance(leaf, bool) or np.dtype(bool) == getattr(leaf, "dtype", None) for leaf in leaves):
        refuse(name, wanted, x, TypeError)
    array = as_real_array(x, name, unit)
    return array if dtype is None else array.astype(dtype)


def scalar(x: Any, name: str, dtype: Any = None) -> Array:
    """Return one real number, which may be traced."""
    array = as_numbers(x, name, "a real number", dtype)
    if array.ndim:
        refuse(name, "a scalar", x)
    return array


def positive(x: Any, name: str, dtype: Any = None, *, wanted: str = "a positive scalar") -> Array:
    """Return one positive number; that it is positive is not asked of a traced one."""
    array = as_numbers(x, name, wanted, dtype)
    if array.ndim:
        refuse(name, wanted, x)
    refuse_unless(lambda value: value > 0, x, name, wanted)
    return array


def refuse_unless(fits: Callable[[np.ndarray], np.ndarray], x: Any, name: str, wanted: str) -> None:
    """Raise if numbers are known and ``fits`` is not true of all."""
    known = known_values(x)
    if known is not None and not np.all(fits(known)):
        refuse(name, wanted, x)


def per_axis(x: Any, name: str, ndim: int, dtype: Any = None, *, or_scalar: bool = False) -> Array:
    """Return one real number for each axis, shape ``(ndim,)``; or one for all, if that is taken."""
    wanted = f"one value per axis, shape ({ndim},)"
    array = as_numbers(x, name, "real numbers", dtype)
    if or_scalar and array.ndim == 0:
        return jnp.broadcast_to(array, (ndim,))
    if array.shape != (ndim,):
        raise ValueError(f"{name} must hold {wanted}{', or be a scalar' * or_scalar}, not {array.shape}")
    return array


def numbers(
    x: Any, name: str, shapes: Collection[Shape], words: str, dtype: Any = None, unit: Any = None
) -> Array:
    """Return real numbers of one of the shapes; ``words`` say, with a verb, which these are."""
    array = as_numbers(x, name, "real numbers", dtype, unit)
    if array.shape not in shapes:
        raise ValueError(f"{name} must {words}, not {array.shape}")
    return array


def boolean_array(x: Any, name: str, shapes: Collection[Shape], words: str) -> Array:
    """Return a mask, an array or nested lists of booleans, of one of the shapes, which ``words`` say."""
    try:
        array = jnp.asarray(x) if _has_jax(x) else np.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be boolean, not {described(x)}: {error}") from error
    if array.dtype != bool:
        refuse(name, "boolean, True where a pixel is to be ignored", x, TypeError)
    if array.shape not in shapes:
        raise ValueError(f"{name} must have {words}, not {array.shape}")
    return jnp.asarray(array)


def real_number(value: Any, name: str, wanted: str, fits: Callable[[float], bool] = np.isfinite) -> float:
    """Return a number that is known now, and of which ``fits`` is true."""
    if isinstance(value, np.ndarray | jax.Array) and value.shape == () and not isinstance(value, Tracer):
        value = value.item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        refuse(name, wanted, value, TypeError)
    number = float(value)
    if not fits(number):
        refuse(name, wanted, value)
    return number


def integer(value: Any, name: str, least: int = 1, wanted: str | None = None) -> int:
    """Return an integer that is known now, not below ``least``."""
    if wanted is None:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        refuse(name, wanted, value, ValueError if isinstance(value, float | np.ndarray) else TypeError)
    if number < least:
        refuse(name, wanted, value)
    return number


def sizes(value: Any, name: str, ndim: int, least: int = 1) -> tuple[int, ...]:
    """Return a static shape, one size for each axis."""
    wanted = f"{ndim} static integers of at least {least}"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        refuse(name, wanted, value, TypeError)
    if len(value) != ndim:
        refuse(name, wanted, value)
    return tuple(integer(n, name, least, wanted) for n in value)


def flag(value: Any, name: str) -> bool:
    """Return a switch, which is True or False and nothing that counts as one."""
    if not isinstance(value, bool | np.bool_):
        refuse(name, "True or False", value, TypeError)
    return bool(value)


def choice(value: T, name: str, options: Collection[T], also: str = "") -> T:
    """Return one of the options; ``also`` says what else there would have been."""
    kinds = tuple({type(option) for option in options})
    if not isinstance(value, kinds) or isinstance(value, bool) or value not in options:
        known = isinstance(value, kinds)
        error = ValueError if known else TypeError
        raise error(f"{name} must be one of {tuple(options)}{also}, not {described(value)}")
    return value


def array_of(x: ArrayLike, name: str, least: int = 1, most: int | None = None) -> Array:
    """Return real data, not empty, with a number of axes from ``least`` to ``most``, in their own unit."""
    array = as_real_array(x, name, unit_of(x))
    if array.size and least <= array.ndim <= (most or array.ndim):
        return array
    if most is None:
        wanted = f"at least {least}-dimensional"
    else:
        wanted = f"{least}-dimensional" if least == most else f"of {least} to {most} dimensions"
    raise ValueError(f"{name} must be {wanted} and not empty, not of shape {array.shape}")


def stack_of(x: ArrayLike, name: str = "stack", unit: Any = None) -> Array:
    """Return frames of two or three axes, one or more, along their axis."""
    array = as_real_array(x, name, unit)
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(
            f"{name} must have shape (N, ny, nx) or (N, nz, ny, nx), with a frame at least, not {array.shape}"
        )
    return array
