"""What people have for an array, as plain numbers: masked images, quantities with a unit, lists of them.

No package of images or units is imported: their objects are known by what they offer, which is that of
astropy's ``Quantity``, ``Masked``, ``CCDData`` and ``Column``.
"""

from typing import Any

import jax
import numpy as np

_NUMBERS = (bool, int, float, complex, np.generic)


class Measured:
    """An array with a unit, as a file has them."""

    def __init__(self, values: np.ndarray, unit: Any) -> None:
        self.values, self.unit = values, unit

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype, copy=True) if copy else np.asarray(self.values, dtype)


def unit_of(*values: Any) -> Any:
    """The unit of the first of some images, or lists of them, that has one; None without."""
    for value in values:
        unit = unit_of(*value) if isinstance(value, list | tuple) else _unit(value)
        if unit is not None:
            return unit
    return None


def as_plain(x: Any, name: str, unit: Any = None) -> Any:
    """Return ``x`` as numbers in ``unit``, the masked ones in a numpy masked array.

    Parameters
    ----------
    x : array_like
        What has no unit is taken to be in ``unit``.
    name : str
        What an error calls it.
    unit : astropy unit, optional
        None: of no dimension, the unit of plain numbers.

    Returns
    -------
    array_like
        Of the type of ``x`` where there was nothing to do.

    Raises
    ------
    TypeError
        For a unit that cannot be converted, and for an object that holds an array but is none.
    """
    if type(x) is np.ndarray or isinstance(x, (*_NUMBERS, jax.Array)):
        return x
    if type(x) in (list, tuple):
        return [as_plain(item, name, unit) for item in x]
    values, own = _values(x, name), _unit(x)
    if own is None or own == unit:
        return values
    if np.ma.isMaskedArray(values):
        values = np.ma.filled(values.astype(np.result_type(values, np.float32)), np.nan)
    try:
        return own.to("" if unit is None else unit, np.asarray(values))
    except (TypeError, ValueError) as error:
        beside = "the other numbers have none" if unit is None else f"it is wanted in {unit}"
        raise TypeError(
            f"{name} has the unit {own}, and {beside}: convert it, or pass the values of all without units"
        ) from error


def _unit(x: Any) -> Any:
    if isinstance(x, (str, *_NUMBERS)):
        return None
    unit = getattr(x, "unit", None)
    return unit if hasattr(unit, "is_equivalent") else None


def _values(x: Any, name: str) -> Any:
    """What is left without the unit."""
    if isinstance(x, np.ma.MaskedArray):
        return x
    if hasattr(x, "unmasked") and hasattr(x, "mask"):
        return np.ma.MaskedArray(np.asarray(x.unmasked), np.asarray(x.mask))
    if isinstance(x, np.ndarray):
        return np.asarray(x)
    if hasattr(x, "__array__"):
        if not (hasattr(x, "uncertainty") and hasattr(x, "mask")):
            return x
        # numpy.ma would ask the mask of an image for its own mask, and so on.
        data = np.asarray(x.data)
        mask = None if x.mask is None else np.broadcast_to(np.asarray(x.mask, bool), data.shape)
        return data if mask is None else np.ma.MaskedArray(data, mask)
    if not hasattr(x, "__jax_array__"):
        _refuse(x, name)
    return x


def _refuse(x: Any, name: str) -> None:
    """Say where the array is, of something that holds one."""
    kind = type(x).__name__
    if hasattr(x, "toarray"):
        raise TypeError(f"{name} is a {kind}, not an array: pass {name}.toarray()")
    if hasattr(x, "magnitude") and hasattr(x, "units"):
        raise TypeError(f"{name} is a {kind} with the unit {x.units}: pass {name}.magnitude, all in one unit")
    if hasattr(x, "uncertainty_type"):
        raise TypeError(
            f"{name} is a {kind}, not an array: pass a standard deviation, "
            f"{name}.represent_as(StdDevUncertainty).array"
        )
    if isinstance(x, list) and len(x) and hasattr(x[0], "data"):
        raise TypeError(f"{name} is a list of {type(x[0]).__name__}, not an array: pass {name}[0].data")
    if hasattr(x, "data"):
        mask = f", and {name}.mask as a mask" if hasattr(x, "mask") else ""
        raise TypeError(f"{name} is a {kind}, not an array: pass {name}.data{mask}")
