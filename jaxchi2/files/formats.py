"""Image files: the formats of their names, what stands in brackets behind, packages, plain reads."""

import os
import re
from collections.abc import Callable
from importlib import import_module
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

_SUFFIXES = {
    ".fits": "FITS",
    ".fit": "FITS",
    ".fts": "FITS",
    ".fits.gz": "FITS",
    ".fit.gz": "FITS",
    ".fts.gz": "FITS",
    ".fits.fz": "FITS",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".npy": "NPY",
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
}


def known_format(path: str | Path) -> str:
    """Name the format that a file's suffix stands for.

    Parameters
    ----------
    path : str or Path
        File name, with or without a FITS extension in brackets.

    Returns
    -------
    str
        One of ``FITS``, ``TIFF``, ``NPY``, ``PNG``, ``JPEG``.

    Raises
    ------
    ValueError
        If the suffix is not one of those known.
    """
    name, _ = split_extension(path)
    lower = Path(name).name.lower()
    for suffix, label in _SUFFIXES.items():
        if lower.endswith(suffix):
            return label
    suffix = Path(name).suffix
    came = f"suffix {suffix!r} of {name!r}" if suffix else f"no suffix in {name!r}"
    raise ValueError(f"cannot tell the image format: {came}; known are {', '.join(_SUFFIXES)}")


def split_extension(path: str | Path) -> tuple[str, str | None]:
    """Split ``file[inside]`` into the file and what stands in brackets, None without them."""
    match = re.fullmatch(r"(.+)\[([^\[\]]*)\]", str(path))
    # A file whose name really ends in brackets is that file.
    if match is None or Path(path).is_file():
        return str(path), None
    return match[1], match[2].strip()


def optional(
    module: str, package: str | None = None, *, extra: str = "io", needs: str = "this file format"
) -> Any:
    """Import a module that not everyone has; the error says what needs it and which extra brings it."""
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0]
        message = f'{needs} needs {package}, which is not installed: pip install "jaxchi2[{extra}]"'
        raise ImportError(message) from error


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of an open NPY file, which is then read up to the first value."""
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        return read_header(file)
    except (KeyError, ValueError) as error:
        raise ValueError(f"cannot read {file.name!r} as an NPY file of numbers: {error}") from error


def check_complete(name: str, offset: int, itemsize: int, length: int, frame: tuple[int, ...]) -> None:
    """Refuse a file that lacks most of the frames that its header tells of, all of which would be looked for.

    Of a copy that broke off at the end the frames before it are of use.
    """
    there = max(0, os.path.getsize(name) - offset) // (itemsize * prod(frame) or 1)
    if 2 * there < length:
        shape = tuple(n for n in frame if n != 1)
        raise ValueError(
            f"{name!r} is not complete: its header tells of {length} frames of shape {shape}, of which "
            f"{there} are there"
        )


def raw_frames(path: str, offset: int, dtype: np.dtype, frame: tuple[int, ...]) -> Callable[[int, int], Any]:
    """Frames one after the other in a file, read by a plain read."""
    size = int(np.prod(frame))

    def fetch(start: int, stop: int) -> Any:
        with open(path, "rb") as file:
            file.seek(offset + start * size * dtype.itemsize)
            values = np.fromfile(file, dtype, (stop - start) * size)
        whole = len(values) // size
        frames = values[: whole * size].reshape(whole, *frame)
        if whole == stop - start:
            return frames
        return [*frames, *[EOFError("the file ends before this frame does")] * (stop - start - whole)]

    return fetch
