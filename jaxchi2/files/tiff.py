"""TIFF files, also those of OME and of ImageJ: which pages make up a frame."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .axes import Selection, select, suggestion
from .formats import check_complete, optional, raw_frames

# Units of length of ImageJ that OME has under another name, and those of OME.
_LENGTHS = {"micron": "µm", "microns": "µm", "um": "µm", "μm": "µm", "inch": "in"}
_OME_LENGTHS = ("pm", "Å", "nm", "µm", "mm", "cm", "dm", "m", "km", "in")


class PixelSize(NamedTuple):
    """How large a pixel is, as a TIFF file says it: by tags, and in the words of ImageJ or OME."""

    resolution: tuple[float, float]
    """Pixels per unit, x before y."""
    resolutionunit: int
    imagej: dict[str, Any]
    ome: dict[str, Any]


class TiffImages(NamedTuple):
    """An open file, of which frames are read."""

    selection: Selection
    dtype: np.dtype
    fetch: Callable[[int, int], Any]
    """Frames of a run, for each that cannot be read the error; axes of length one may be left."""
    close: Callable[[], None]
    pixel_size: PixelSize


def open_tiff(name: str, label: str, chosen: dict[str, int], *, frames: bool = True) -> TiffImages:
    """Open a TIFF file; see `select` for the arguments.

    Raises
    ------
    ValueError
        If it is not clear what is meant, as `select` does, and of files with several images.
    """
    tifffile = optional("tifffile")
    file, chosen = tifffile.TiffFile(name), dict(chosen)
    try:
        series, axes, shape = _one_series(file, label, chosen, tifffile)
        alone = isinstance(series, list)
        selection = select(label, axes, shape, chosen, frames=frames)
        first = series[0] if alone else series
        read = _page_reader(file, series, selection)
        if not alone and first.dataoffset is not None:
            dtype = np.dtype(first.dtype).newbyteorder(file.byteorder)
            pieces = selection.length * int(np.prod(selection.shape[: selection.outer]))
            check_complete(name, first.dataoffset, dtype.itemsize, pieces, selection.piece_shape)
            read = raw_frames(name, first.dataoffset, dtype, selection.piece_shape)
    except BaseException:
        file.close()
        raise

    def fetch(start: int, stop: int) -> list[Any]:
        runs = [read(piece + start, piece + stop) for piece in selection.pieces]
        return [_joined(selection, [run[i] for run in runs]) for i in range(stop - start)]

    return TiffImages(selection, np.dtype(first.dtype), fetch, file.close, _pixel_size(file, first, tifffile))


def _joined(selection: Selection, pieces: list[Any]) -> Any:
    problems = [piece for piece in pieces if isinstance(piece, Exception)]
    return problems[0] if problems else selection.joined(pieces)


def _one_series(file: Any, label: str, chosen: dict[str, int], tifffile: Any) -> tuple[Any, str, tuple]:
    """The image that is meant, with its axes; or, of pages written one by one, a list of those."""
    reduced = tifffile.FILETYPE.REDUCEDIMAGE | tifffile.FILETYPE.MASK
    found = [s for s in file.series if not s.keyframe.subfiletype & reduced] or list(file.series)
    shape = found[0].shape
    if len(found) > 1 and all(len(s.pages) == 1 and s.shape == shape for s in found) and "P" not in chosen:
        return found, f"I{found[0].axes}", (len(found), *shape)
    position = chosen.pop("P", None) if len(found) > 1 or "P" not in found[0].axes else 0
    if position is None and len(found) > 1:
        listed = "; ".join(f"P={i} {s.axes} {s.shape}" for i, s in enumerate(found))
        raise ValueError(f"{label} has {len(found)} images, {listed}: choose one, {suggestion(label, 'P=0')}")
    if position is not None and position >= len(found):
        raise ValueError(f"{label}: there is no such position, P={position} of {len(found)}")
    series = found[position or 0]
    # With the axes of length one, so that they may be named too.
    if hasattr(series, "get_axes"):  # Older tifffile.
        return series, series.get_axes(False), series.get_shape(False)
    whole = file.series(squeeze=False)[file.series.index(series)]
    return series, whole.axes, whole.shape


def _page_reader(file: Any, series: Any, selection: Selection) -> Callable[[int, int], Any]:
    shape = selection.piece_shape
    pieces = int(np.prod(selection.shape)) // max(int(np.prod(shape)), 1)
    alone = isinstance(series, list)
    pages = len(series if alone else series.pages) // max(pieces, 1)
    number = 0 if alone else file.series.index(series)

    def read(start: int, stop: int) -> Any:
        if alone:
            data = np.array([page.asarray() for page in series[start * pages : stop * pages]])
        else:
            data = file.asarray(key=range(start * pages, stop * pages), series=number)
        return data.reshape(stop - start, *shape)

    return read


def _pixel_size(file: Any, series: Any, tifffile: Any) -> PixelSize:
    page = series.keyframe
    imagej, ome = {}, {}
    if file.is_imagej:
        # µ is written as \\u00B5 there.
        told = {key: file.imagej_metadata.get(key) for key in ("unit", "spacing", "finterval")}
        told["unit"] = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda m: chr(int(m[1], 16)), str(told["unit"] or ""))
        imagej = {key: value for key, value in told.items() if value}
    if file.is_ome:
        images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        image = images[file.series.index(series)] if isinstance(images, list) else images
        names = r"PhysicalSize[XYZ](Unit)?|TimeIncrement(Unit)?"
        ome = {key: value for key, value in image["Pixels"].items() if re.fullmatch(names, key)}
    return PixelSize(page.resolution, int(page.resolutionunit), imagej, ome)


def tiff_options(
    size: PixelSize | None, axes: str, shape: tuple[int, ...], dtype: np.dtype
) -> dict[str, Any]:
    """What to write a file with so that its pixels keep their size, in the words of the one they were in."""
    bigtiff = dtype.itemsize * int(np.prod(shape)) > 2**31
    options: dict[str, Any] = {"photometric": "minisblack", "bigtiff": bigtiff, "metadata": {"axes": axes}}
    if size is None:
        return options
    options |= {"resolution": size.resolution, "resolutionunit": size.resolutionunit}
    if size.imagej and dtype == np.float32 and not bigtiff:
        unit = "".join(c if c.isascii() else f"\\u{ord(c):04X}" for c in size.imagej.get("unit", ""))
        return options | {"imagej": True, "metadata": {"axes": axes} | size.imagej | {"unit": unit}}
    ome = size.ome or _as_ome(size)
    if ome:
        told = {key: value for key, value in ome.items() if "T" in axes or not key.startswith("Time")}
        return options | {"ome": True, "metadata": {"axes": axes} | told}
    return options


def _as_ome(size: PixelSize) -> dict[str, Any]:
    """What ImageJ says of a file that it could not hold."""
    unit = size.imagej.get("unit", "")
    unit = _LENGTHS.get(unit, unit)
    if unit not in _OME_LENGTHS:
        return {}
    lengths = {axis: 1 / pixels for axis, pixels in zip("XY", size.resolution, strict=True) if pixels}
    if "spacing" in size.imagej:
        lengths["Z"] = size.imagej["spacing"]
    told: dict[str, Any] = {}
    for axis, length in lengths.items():
        told |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": unit}
    if "finterval" in size.imagej:
        told |= {"TimeIncrement": size.imagej["finterval"], "TimeIncrementUnit": "s"}
    return told
