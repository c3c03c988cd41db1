"""Tables on disk that grow by whole chunks of rows and survive being interrupted at any moment.

`open_table` finds the rows that an earlier run completed; `append` adds a chunk, after which it is on disk.
What a killed run left of a chunk is cut off, so that the finished table is the same to the byte.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..io import optional
from .outputs import replace_file

__all__ = ["ParquetTable", "TextTable", "open_table"]

Columns = dict[str, np.ndarray]
_KEY = "jaxchi2"
_NEEDS = "a table of this format"
_FOREIGN = "{path} exists and is no table of registered frames: give another name"


def open_table(
    path: str | os.PathLike,
    types: dict[str, np.dtype],
    chunk: int,
    length: int | None,
) -> TextTable | ParquetTable:
    """Open a table for appending, by its suffix: ``.ecsv``, ``.csv`` or ``.parquet``.

    Parameters
    ----------
    path : path
        The table: a file, for ``.parquet`` a folder of one file per chunk. The settings are in the header of
        an ECSV file, in the metadata of Parquet files, and beside a CSV file in one with ``.json`` appended.
    types : dict of str to dtype
        The columns; the first holds the numbers of the rows.
    chunk : int
        Rows that are appended at once; the last time there may be fewer.
    length : int or None
        Rows of the finished table, if known.

    Returns
    -------
    TextTable or ParquetTable
        With ``settings`` of the earlier run, a dict, or None if it left no row, and ``columns``, the rows of
        its complete chunks. `forget` passes over them, so that the first `append` replaces them.

    Raises
    ------
    ValueError
        For another suffix, or a file there that is no such table.
    """
    path = Path(path)
    kind = known_table_format(path)
    if kind == "PARQUET":
        return ParquetTable(path, types, chunk, length)
    return TextTable(path, types, chunk, length)


def known_table_format(path: str | os.PathLike) -> str:
    """Name the format that a table is written in: ``ECSV``, ``CSV`` or ``PARQUET``.

    Raises
    ------
    ValueError
        If the suffix of the path is that of none of them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".ecsv", ".csv", ".parquet"):
        raise ValueError(f"a table is written as .ecsv, .csv or .parquet, not {Path(path).name!r}")
    return suffix[1:].upper()


class TextTable:
    """A CSV file, with settings beside it, or an ECSV file, with settings in its header."""

    def __init__(self, path: Path, types: dict[str, np.dtype], chunk: int, length: int | None) -> None:
        self.path, self.types = path, types
        self.is_ecsv = path.suffix.lower() == ".ecsv"
        self.beside = path.with_name(path.name + ".json")
        self.settings: dict[str, Any] | None = None
        self.columns: Columns = _no_rows(types)
        self.file: Any = None
        self.end = 0
        if self.is_ecsv:
            optional("astropy.table", "astropy", extra="stream", needs=_NEEDS)
        if path.exists():
            self._find_rows(path.read_bytes(), chunk, length)
        elif not self.is_ecsv and self.beside.exists() and not _is_settings(self.beside):
            raise ValueError(f"{self.beside}, where the settings of {path} go, exists: give another name")

    def forget(self) -> None:
        """Pass over the rows that are there."""
        self.settings, self.columns, self.end = None, _no_rows(self.types), 0

    def begin(self, settings: dict[str, Any]) -> None:
        """Make ready to append: write the header if there are no rows."""
        self.file = open(self.path, "r+b" if self.path.exists() else "x+b")  # noqa: SIM115
        if not len(self):
            # Before its settings are replaced: old rows must not come under new ones.
            self.file.truncate(0)
            if not self.is_ecsv:
                replace_file(self.beside, (json.dumps(settings, indent=1) + "\n").encode())
            self.end = self.file.write(self._header(settings))
        self.file.truncate(self.end)
        self.file.seek(self.end)

    def append(self, columns: Columns) -> None:
        """Add rows; they are on disk when this returns."""
        text = io.StringIO()
        # numpy's text of a number is the shortest that reads back as the same number.
        values = ([str(value) for value in columns[name]] for name in self.types)
        csv.writer(text, lineterminator="\n").writerows(zip(*values, strict=True))
        self.file.write(text.getvalue().encode())
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def _header(self, settings: dict[str, Any]) -> bytes:
        names = ",".join(self.types) + "\n"
        if not self.is_ecsv:
            return names.encode()
        table = optional("astropy.table", "astropy").Table
        empty = table({name: np.empty(0, dtype) for name, dtype in self.types.items()}, meta={_KEY: settings})
        text = io.StringIO()
        empty.write(text, format="ascii.ecsv", delimiter=",")
        return text.getvalue().replace(os.linesep, "\n").encode()

    def _find_rows(self, data: bytes, chunk: int, length: int | None) -> None:
        lines = data.split(b"\n")
        comments = 0
        while comments < len(lines) and lines[comments].startswith(b"#"):
            comments += 1
        names = ",".join(self.types).encode()
        if len(lines) <= comments + 1:
            # A header cut short has no rows below it.
            begun = (b"# %ECSV" if self.is_ecsv else names)[: len(data)]
            if not data.startswith(begun):
                raise ValueError(_FOREIGN.format(path=self.path))
            return
        header = b"\n".join(lines[: comments + 1]) + b"\n"
        settings = self._settings_of(header)
        if lines[comments] != names:
            # Of a run with other options, which the settings tell.
            self.settings = settings
            return
        rows: list[list[str]] = []
        ends = [len(header)]
        # What follows the last line break is the beginning of a row; a damaged disk may leave worse.
        for line in lines[comments + 1 : -1]:
            fields = line.decode("ascii", "replace").split(",")
            if len(fields) != len(self.types) or fields[0] != str(len(rows)):
                break
            rows.append(fields)
            ends.append(ends[-1] + len(line) + 1)
        whole = len(rows) if len(rows) == length else len(rows) // chunk * chunk
        self.settings, self.end = settings if rows else None, ends[whole]
        if whole:
            parts = zip(*rows[:whole], strict=True)
            self.columns = {
                name: self._numbers(name, part, dtype)
                for (name, dtype), part in zip(self.types.items(), parts, strict=True)
            }

    def _numbers(self, name: str, texts: tuple[str, ...], dtype: np.dtype) -> np.ndarray:
        try:
            return np.array(texts).astype(dtype)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{self.path}, column {name}: {error}. Mend or remove the table") from error

    def _settings_of(self, header: bytes) -> dict[str, Any]:
        try:
            if self.is_ecsv:
                table = optional("astropy.table", "astropy").Table
                return dict(table.read(header.decode(), format="ascii.ecsv").meta[_KEY])
            if _is_settings(self.beside):
                return json.loads(self.beside.read_bytes())
        except Exception as error:
            raise ValueError(_FOREIGN.format(path=self.path)) from error
        raise ValueError(_FOREIGN.format(path=self.path))


class ParquetTable:
    """A folder of Parquet files, one for each chunk."""

    def __init__(self, path: Path, types: dict[str, np.dtype], chunk: int, length: int | None) -> None:
        self.path, self.types = path, types
        self.arrow = optional("pyarrow", extra="stream", needs=_NEEDS)
        self.parquet = optional("pyarrow.parquet", "pyarrow", extra="stream", needs=_NEEDS)
        self.settings: dict[str, Any] | None = None
        self.columns: Columns = _no_rows(types)
        self.schema: Any = None
        self.parts = 0
        self.folder: int | None = None
        if path.exists():
            self._check_own()
            self._find_rows(chunk, length)

    def forget(self) -> None:
        """Pass over the rows that are there."""
        self.settings, self.columns, self.parts = None, _no_rows(self.types), 0

    def begin(self, settings: dict[str, Any]) -> None:
        """Make ready to append: remove parts that are not whole."""
        self.path.mkdir(exist_ok=True)
        if os.name == "posix":
            self.folder = os.open(self.path, os.O_RDONLY)
        for item in self.path.iterdir():
            if item.suffix != ".parquet" or item.name >= self._part(self.parts).name:
                item.unlink()
        fields = [(name, self.arrow.from_numpy_dtype(dtype)) for name, dtype in self.types.items()]
        self.schema = self.arrow.schema(fields, metadata={_KEY: json.dumps(settings)})

    def append(self, columns: Columns) -> None:
        """Add rows; they are on disk when this returns."""
        table = self.arrow.table([columns[name] for name in self.types], schema=self.schema)
        data = io.BytesIO()
        self.parquet.write_table(table, data)
        replace_file(self._part(self.parts), data.getvalue())
        if self.folder is not None:
            os.fsync(self.folder)
        self.parts += 1

    def close(self) -> None:
        """Close the folder."""
        if self.folder is not None:
            os.close(self.folder)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.parquet"

    def _check_own(self) -> None:
        """Refuse a folder of other things, of which parts that are not whole would be removed."""
        name = re.compile(r"part-\d{6}\.parquet|\.part-\d{6}\.parquet\.new")
        own = self.path.is_dir() and all(name.fullmatch(item.name) for item in self.path.iterdir())
        parts = list(self.path.glob("part-*")) if own else []
        # One part that is damaged is done again; that all are cannot be told from another's.
        if not own or (parts and not any(map(self._is_own, parts))):
            raise ValueError(_FOREIGN.format(path=self.path))

    def _is_own(self, part: Path) -> bool:
        try:
            return _KEY.encode() in (self.parquet.read_schema(part).metadata or {})
        except (OSError, ValueError):
            return False

    def _find_rows(self, chunk: int, length: int | None) -> None:
        found = [self.columns]
        rows = 0
        while rows != length and self._part(self.parts).exists():
            try:
                table = self.parquet.read_table(self._part(self.parts), partitioning=None, memory_map=False)
                self.settings = self.settings or json.loads(table.schema.metadata[_KEY.encode()])
                part = {name: table[name].to_numpy().astype(dtype) for name, dtype in self.types.items()}
            except (KeyError, OSError, TypeError, ValueError):
                break
            if len(table) != chunk and rows + len(table) != length:
                break
            found.append(part)
            self.parts += 1
            rows += len(table)
        self.columns = {name: np.concatenate([part[name] for part in found]) for name in self.types}


def _no_rows(types: dict[str, np.dtype]) -> Columns:
    return {name: np.empty(0, dtype) for name, dtype in types.items()}


def _is_settings(path: Path) -> bool:
    """Whether a JSON file holds the settings of a table."""
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and settings.keys() >= {"version", "source", "chunk"}
