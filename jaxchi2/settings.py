"""What decides the content of a table, in words that JSON and YAML know, so that a later run can compare."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

__all__ = ["check_same", "describe", "fingerprint"]


def describe(value: Any) -> Any:
    """An option as numbers, strings, lists and dicts; an array by its `fingerprint`."""
    if isinstance(value, float):
        return float(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mesh):
        return {str(name): int(n) for name, n in value.shape.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Sequence):
        return [describe(item) for item in value]
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else fingerprint(array)


def fingerprint(array: np.ndarray) -> str:
    """Type, shape and a digest of the values."""
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype} {'x'.join(map(str, array.shape))} sha256 {digest[:16]}"


def check_same(path: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ValueError that says what differs, if something does."""
    differing = [
        f"{name} was {there.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys([*there, *now])
        if there.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(f"{path} was begun otherwise: {'; '.join(differing)}. resume=False replaces it")
