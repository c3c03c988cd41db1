"""The rows of a table of registered frames: from a `Registration`, and back as arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..results import Registration
from ..status import Status

__all__ = ["StreamResult", "believed_shift", "column_types", "columns_of", "result_of", "shift_of"]

Columns = dict[str, np.ndarray]
_AXES = "zyx"


class StreamResult(NamedTuple):
    """What the table holds, as NumPy arrays with one row per frame."""

    shift: np.ndarray
    """Displacement from the reference in pixels, in axis order, shape ``(N, D)``; for ``"previous"`` from the
    frame before. NaN where there is none."""
    covariance: np.ndarray
    """Covariance of ``shift`` in square pixels, shape ``(N, D, D)``."""
    chi2: np.ndarray
    """χ² at the minimum, shape ``(N,)``."""
    dof: np.ndarray
    """Degrees of freedom, shape ``(N,)``."""
    p_value: np.ndarray
    """Probability of a χ² at least as large by noise alone, shape ``(N,)``; NaN without ``err``."""
    status: np.ndarray
    """`Status` flags, shape ``(N,)``; zero means nothing is wrong."""
    gain: np.ndarray
    """Factor of the reference in the frame, 1 if not fitted, shape ``(N,)``."""
    background: np.ndarray
    """What the frame has beside that, 0 if not fitted, shape ``(N,)``."""
    problems: dict[int, str]
    """For each frame that this run could not read, the reason."""
    table: Path | None
    """The table on disk."""
    aligned: Path | None
    """The aligned frames on disk."""

    @property
    def stderr(self) -> np.ndarray:
        """Marginal standard error of each axis in pixels, shape ``(N, D)``."""
        return np.sqrt(np.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def believed(self) -> np.ndarray:
        """Whether each frame has a shift and is not called unrelated, shape ``(N,)``."""
        return np.isfinite(self.shift).all(-1) & ((self.status & int(Status.UNRELATED)) == 0)

    @property
    def flagged(self) -> np.ndarray:
        """Numbers of the frames with a status."""
        return np.flatnonzero(self.status)

    @property
    def failed(self) -> np.ndarray:
        """Numbers of the frames without a shift."""
        return np.flatnonzero(~np.isfinite(self.shift).all(-1))

    def __repr__(self) -> str:
        frames, flagged, failed = len(self.status), len(self.flagged), len(self.failed)
        return f"StreamResult({frames} frames, {flagged} with a status, {failed} without a shift)"


def column_types(ndim: int, dtype: np.dtype, options: dict[str, Any]) -> dict[str, np.dtype]:
    """Names of the columns and their types, for frames of so many axes and the options of a registration."""
    names = _AXES[-ndim:]
    floating = [f"d{a}" for a in names] + [f"err_{a}" for a in names]
    floating += [f"cov_{names[i]}{names[j]}" for i in range(ndim) for j in range(i + 1, ndim)]
    types: dict[str, np.dtype] = {"frame": np.dtype(np.int64)}
    types |= dict.fromkeys([*floating, "chi2"], dtype)
    types |= {"dof": np.dtype(np.int64), "p_value": dtype, "status": np.dtype(np.int32)}
    for name in ("gain", "background"):
        if options.get(f"fit_{name}"):
            types |= {name: dtype, f"{name}_err": dtype}
    return types


def columns_of(
    first: int, result: Registration, bad: np.ndarray, types: dict[str, np.dtype]
) -> dict[str, np.ndarray]:
    """Columns of the frames from number ``first``; a bad one is a row of NaN and `Status.UNREADABLE`."""
    shift, covariance = np.asarray(result.shift), np.asarray(result.covariance)
    names = _AXES[-shift.shape[-1] :]
    values: dict[str, Any] = {
        "frame": np.arange(first, first + len(bad)),
        "gain_err": result.gain_err,
        "background_err": result.background_err,
    }
    for i, a in enumerate(names):
        values |= {f"d{a}": shift[:, i], f"err_{a}": np.sqrt(covariance[:, i, i])}
        values |= {f"cov_{a}{b}": covariance[:, i, j] for j, b in enumerate(names) if j > i}
    missing = {"frame": values["frame"], "dof": 0, "status": int(Status.UNREADABLE)}
    return {
        name: np.where(
            bad,
            missing.get(name, np.nan),
            np.asarray(values[name] if name in values else getattr(result, name))[: len(bad)],
        ).astype(dtype)
        for name, dtype in types.items()
    }


def shift_of(columns: Columns) -> np.ndarray:
    """The shifts in axis order, shape ``(N, D)``."""
    return np.stack([columns[f"d{a}"] for a in _AXES if f"d{a}" in columns], -1)


def believed_shift(columns: Columns) -> np.ndarray:
    """The shifts, NaN for frames that are called unrelated: chance has put them anywhere in the window."""
    unrelated = (columns["status"] & int(Status.UNRELATED)) != 0
    return np.where(unrelated[:, None], np.nan, shift_of(columns))


def result_of(
    columns: Columns,
    problems: dict[int, str],
    table: str | os.PathLike | None,
    aligned: str | os.PathLike | None,
) -> StreamResult:
    """The columns as one object."""
    shift = shift_of(columns)
    ndim = shift.shape[-1]
    names = _AXES[-ndim:]
    covariance = np.empty((*shift.shape, ndim), shift.dtype)
    for i, a in enumerate(names):
        covariance[:, i, i] = columns[f"err_{a}"] ** 2
        for j in range(i + 1, ndim):
            covariance[:, i, j] = covariance[:, j, i] = columns[f"cov_{a}{names[j]}"]
    # As in a Registration, where there is no answer.
    one = np.where(np.isfinite(columns["chi2"]), 1, np.nan).astype(shift.dtype)
    return StreamResult(
        shift=shift,
        covariance=covariance,
        chi2=columns["chi2"],
        dof=columns["dof"],
        p_value=columns["p_value"],
        status=columns["status"],
        gain=columns.get("gain", one),
        background=columns.get("background", 0 * one),
        problems=problems,
        table=None if table is None else Path(table),
        aligned=None if aligned is None else Path(aligned),
    )
