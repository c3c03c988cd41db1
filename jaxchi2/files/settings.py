"""What decides the content of a table, in words that JSON and YAML know, so that a later run can compare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from .outputs import REPLACES

__all__ = ["check_same", "describe", "describe_files", "describe_run", "fingerprint"]

MOST_FILES = 4096
"""Of a folder, so many files are asked for their size and time."""


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


def describe_files(names: Iterable[str]) -> str:
    """How many files there are, their bytes, and a digest of each one's size and time of the last change."""
    digest, count, size = hashlib.sha256(), 0, 0
    for name in names:
        parts = islice(sorted(Path(name).rglob("*")), MOST_FILES) if os.path.isdir(name) else [name]
        for part in parts:
            try:
                found = os.stat(part)
            except OSError:
                continue
            # A folder's own size and time say nothing that its files do not.
            if not os.path.isdir(part):
                count, size = count + 1, size + found.st_size
                digest.update(f"{found.st_size} {found.st_mtime_ns} ".encode())
    return f"{count} files, {size} bytes, times sha256 {digest.hexdigest()[:16]}"


def describe_run(settings: dict[str, Any]) -> str:
    """What tells a run from one with other settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def check_same(path: str, there: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise a ValueError that says what differs, if something does."""
    differing = [
        f"{name} was {there.get(name)!r} and is {now.get(name)!r}"
        for name in dict.fromkeys([*there, *now])
        if there.get(name) != now.get(name)
    ]
    if differing:
        raise ValueError(f"{path} belongs to a run with other options: {'; '.join(differing)}. {REPLACES}")
