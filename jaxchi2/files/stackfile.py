"""A stack of images as one file, laid out in full beforehand and filled in by runs of frames.

Writing a run a second time changes nothing, so an interrupted run may repeat its last.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..io import Origin, known_format, optional
from .tiff import tiff_options

__all__ = ["StackFile", "open_stack_file"]


class StackFile(NamedTuple):
    """A stack on disk that is being filled in."""

    write: Callable[[int, np.ndarray], None]
    """``write(start, frames)`` puts frames at their place; they are on disk when it returns."""
    close: Callable[[], None]


def known_stack_format(path: str | os.PathLike) -> str:
    """Name the format that a stack is written in: ``NPY``, ``TIFF``, ``FITS`` or ``ZARR``.

    Raises
    ------
    ValueError
        If the suffix of the path is that of none of them.
    """
    name = os.fspath(path)
    if name.lower().rstrip("/").endswith(".zarr"):
        return "ZARR"
    kind = known_format(name)
    if kind not in ("FITS", "TIFF", "NPY") or name.lower().endswith((".gz", ".fz")):
        raise ValueError(f"a stack is written as .zarr, .tif, .fits or .npy, not {Path(name).name!r}")
    return kind


def open_stack_file(
    path: str | os.PathLike,
    length: int | None,
    frame: tuple[int, ...],
    dtype: np.dtype,
    chunk: int,
    *,
    create: bool,
    origin: Origin | None = None,
) -> StackFile:
    """Open a stack for writing.

    Parameters
    ----------
    path : path
        ``.npy``, ``.tif``, ``.fits`` or ``.zarr``.
    length : int or None
        Number of frames; None, where only the end will tell, for ``.zarr`` alone.
    frame : tuple of int
        Shape of a frame.
    dtype : numpy.dtype
        Type of the pixels, float32 or float64.
    chunk : int
        Frames that are written at once. A zarr chunk holds about 1 MB, a divisor of this number of frames, so
        that no two writes meet in one.
    create : bool
        Whether to lay out the file, replacing what is there, or go on with it.
    origin : Origin, optional
        What else a FITS or TIFF file is to say: header and coordinates, size of a pixel.

    Returns
    -------
    StackFile

    Raises
    ------
    ValueError
        For another suffix, an unknown length, or a file to go on with that is not of this kind.
    """
    name, kind = os.fspath(path), known_stack_format(path)
    if kind == "ZARR":
        return _open_zarr(name, length, frame, dtype, chunk, create)
    if length is None:
        raise ValueError(f"{name}: the number of frames is not known beforehand, take .zarr")
    layout, locate = {
        "NPY": (_lay_out_npy, _locate_npy),
        "TIFF": (_lay_out_tiff, _locate_tiff),
        "FITS": (_lay_out_fits, _locate_fits),
    }[kind]
    if create:
        layout(name, (length, *frame), np.dtype(dtype), Origin() if origin is None else origin)
    try:
        offset, stored, shape = locate(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot go on with {name}: {error}") from error
    # A TIFF file does not tell axes of length one.
    if [n for n in shape if n > 1] != [n for n in (length, *frame) if n > 1] or stored.newbyteorder(
        "="
    ) != dtype:
        raise ValueError(
            f"cannot go on with {name}: it holds {shape} of {stored.newbyteorder('=')}, "
            f"not {(length, *frame)} of {dtype}"
        )
    # Plain writes: the pages of a memory map would stay in memory.
    file = open(name, "r+b")  # noqa: SIM115
    size = stored.itemsize * int(np.prod(frame))

    def write(start: int, frames: np.ndarray) -> None:
        file.seek(offset + start * size)
        file.write(np.ascontiguousarray(frames, stored).data)
        file.flush()
        os.fsync(file.fileno())

    return StackFile(write, file.close)


def _open_zarr(
    name: str, length: int | None, frame: tuple[int, ...], dtype: np.dtype, chunk: int, create: bool
) -> StackFile:
    zarr = optional("zarr", extra="stream")
    wanted = max(1, 2**20 // (int(np.prod(frame)) * np.dtype(dtype).itemsize))
    together = max(n for n in range(1, min(chunk, wanted) + 1) if chunk % n == 0)
    if create:
        array = zarr.create_array(
            name,
            shape=(length or 0, *frame),
            chunks=(together, *frame),
            dtype=dtype,
            fill_value=np.nan,
            overwrite=True,
        )
    else:
        try:
            array = zarr.open_array(name, mode="r+")
        except FileNotFoundError as error:
            raise ValueError(f"cannot go on with {name}: it is not there") from error
        if array.shape[1:] != frame or length not in (None, array.shape[0]) or array.dtype != dtype:
            raise ValueError(
                f"cannot go on with {name}: it holds {array.shape} of {array.dtype}, "
                f"not {(length, *frame)} of {dtype}"
            )

    def write(start: int, frames: np.ndarray) -> None:
        if start + len(frames) > array.shape[0]:
            array.resize((start + len(frames), *frame))
        array[start : start + len(frames)] = frames

    return StackFile(write, lambda: None)


def _extend(name: str, size: int) -> None:
    """Make a file so long, the rest zeros that take no room until they are written."""
    os.truncate(name, size)


def _lay_out_npy(name: str, shape: tuple[int, ...], dtype: np.dtype, _: Origin) -> None:
    with open(name, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
    _extend(name, offset + dtype.itemsize * int(np.prod(shape)))


def _locate_npy(name: str) -> tuple[int, np.dtype, tuple[int, ...]]:
    with open(name, "rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("its header is of another version")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return file.tell(), dtype, shape


def _lay_out_tiff(name: str, shape: tuple[int, ...], dtype: np.dtype, origin: Origin) -> None:
    options = tiff_options(origin.pixel_size, "TZYX" if len(shape) == 4 else "TYX", shape, dtype)
    optional("tifffile").imwrite(name, shape=shape, dtype=dtype, **options)


def _locate_tiff(name: str) -> tuple[int, np.dtype, tuple[int, ...]]:
    tifffile = optional("tifffile")
    try:
        with tifffile.TiffFile(name) as file:
            series = file.series[0]
            dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
            if series.dataoffset is None:
                raise ValueError("its pages are not one after the other")
            return series.dataoffset, dtype, series.shape
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _lay_out_fits(name: str, shape: tuple[int, ...], dtype: np.dtype, origin: Origin) -> None:
    fits = optional("astropy.io.fits", "astropy")
    from jaxchi2 import __version__

    cards: list[Any] = [("SIMPLE", True), ("BITPIX", -8 * dtype.itemsize), ("NAXIS", len(shape))]
    cards += [(f"NAXIS{axis + 1}", n) for axis, n in enumerate(reversed(shape))]
    header = fits.Header(cards)
    header.extend([] if origin.header is None else origin.header, strip=True)
    header.add_history(f"jaxchi2 {__version__}: frames aligned to one reference")
    text = header.tostring().encode("ascii")
    Path(name).write_bytes(text)
    blocks = -(-dtype.itemsize * int(np.prod(shape)) // 2880)
    _extend(name, len(text) + 2880 * blocks)


def _locate_fits(name: str) -> tuple[int, np.dtype, tuple[int, ...]]:
    fits = optional("astropy.io.fits", "astropy")
    with fits.open(name, memmap=False) as hdus:
        bits = hdus[0].header["BITPIX"]
        if bits not in (-32, -64):
            raise ValueError("it does not hold floating-point numbers")
        return hdus[0].fileinfo()["datLoc"], np.dtype(f">f{-bits // 8}"), hdus[0].shape
