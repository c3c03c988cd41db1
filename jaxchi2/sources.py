"""Frames from anywhere: files of many frames, lists of files, arrays, iterables, read a few at a time.

`open_frames` finds out how many frames a source has and of what shape; `Frames.read` gives any run of them as
floating-point pixels. No file is mapped into memory, whose pages would pile up, and a frame that cannot be
read is one of NaN with the reason beside it, not an exception.
"""

from __future__ import annotations

import glob
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .io import find_hdu, known_format, luminance, npy_header, optional, read_image, split_extension
from .outputs import files_of

__all__ = ["Chunk", "Frames", "open_frames", "read_array"]

# Frames of a source, or for each that cannot be read the reason why.
Fetch = Callable[[int, int], Any]
MOST_TRIED = 1000
"""Frames that are tried before a source is given up none of whose frames can be read."""
_HDF5 = (".h5", ".hdf5", ".hdf", ".he5")


class Chunk(NamedTuple):
    """A run of frames."""

    pixels: np.ndarray
    """Shape ``(n, ny, nx)`` or ``(n, nz, ny, nx)``, floating point in native byte order."""
    problems: dict[int, str]
    """For each frame that could not be read, by its number in the source, the reason."""


class _Layout(NamedTuple):
    """How an array on disk or in memory holds frames."""

    lead: int
    """Axes of length one before the frame axis."""
    length: int
    raw: tuple[int, ...]
    """Shape of a frame there, axes of length one included."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(n for n in self.raw if n != 1)

    def key(self, start: int, stop: int) -> tuple[int | slice, ...]:
        return (*[0] * self.lead, slice(start, stop))


@dataclass(frozen=True)
class Frames:
    """Frames of one shape, each of which can be asked for."""

    name: str
    """File name, pattern or kind of the source, without the folder."""
    length: int | None
    """Number of frames; None where only the end will tell."""
    shape: tuple[int, ...]
    """Shape of a frame, ``(ny, nx)`` or ``(nz, ny, nx)``."""
    dtype: np.dtype
    """Type of the pixels that `read` returns: that of the source if floating point, else JAX's default."""
    first: np.ndarray
    """The first frame that can be read."""
    one_shot: bool = False
    """Whether the frames come once and in order, so that none can be asked for a second time."""
    fetch: Fetch = lambda start, stop: ()
    """What `read` converts."""
    path: str | None = None
    """File without which no frame can be read."""
    close: Callable[[], None] = lambda: None
    """Close the file."""
    files: tuple[str, ...] = ()
    """The files that they are read from, as far as that is known."""

    def read(self, start: int, stop: int) -> Chunk:
        """Read frames ``start`` to ``stop``, without the last.

        Parameters
        ----------
        start, stop : int
            Numbers of frames, from 0.

        Returns
        -------
        Chunk
            The frames; fewer at the end of a source of unknown length.

        Raises
        ------
        FileNotFoundError
            If the file as a whole has gone. What is wrong with single frames does not raise.
        """
        # An iterable that fails has ended; of any other source the rest can still be read.
        read = self.fetch if self.length is None else partial(_fetched, self.fetch, self.path)
        fetched = read(start, stop)
        pixels = np.full((len(fetched), *self.shape), np.nan, self.dtype)
        problems = {}
        for i, raw in enumerate(fetched):
            problem = _convert(raw, pixels[i])
            if problem is not None:
                problems[start + i] = problem
        return Chunk(pixels, problems)


def open_frames(source: Any) -> Frames:
    """Find the frames of a source.

    Parameters
    ----------
    source : path, list of paths, array_like or iterable
        *A path* to one file that holds all frames, the frame axis first: a FITS cube, also compressed, by
        extension ``file.fits[1]``, ``file.fits[SCI]``; a multi-page TIFF or OME-TIFF, with several channels
        ``file.tif[C=1]``; HDF5 ``file.h5[group/dataset]`` and zarr ``store.zarr[array]``, the brackets left
        out where there is but one stack inside; NPY. *A pattern* with ``*`` or ``?``, sorted with numbers by
        value (2 before 10), or *a list of paths*: each file one frame, of any format of `read_image`. *An
        array*, or what is indexed like one (h5py, zarr, dask); *a sequence or iterable* of frames. Axes of
        length one are dropped. Give the path of an NPY file rather than ``numpy.load(mmap_mode="r")``, whose
        pages stay in memory.

    Returns
    -------
    Frames
        What there is to read. The first readable frame sets the shape: one of another shape counts as
        unreadable.

    Raises
    ------
    ValueError
        If no frame can be read, or frames do not have two or three axes, or what is meant is not clear.
    OSError
        If there is no such file.
    ImportError
        If the package that reads the format is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> frames = open_frames(np.arange(24, dtype=">i2").reshape(4, 2, 3))
    >>> frames.length, frames.shape, frames.dtype
    (4, (2, 3), dtype('float32'))
    >>> frames.read(3, 4).pixels
    array([[[18., 19., 20.],
            [21., 22., 23.]]], dtype=float32)
    """
    if isinstance(source, Frames):
        return source
    return replace(_open(source), files=tuple(files_of(source)))


def _open(source: Any) -> Frames:
    if isinstance(source, str | Path):
        text = str(source)
        if ("*" in text or "?" in text) and not os.path.exists(text):
            return _open_list(_matching(text), Path(text).name)
        return _open_file(text)
    if hasattr(source, "shape") and hasattr(source, "__getitem__"):
        return _open_array(source, "array", np.dtype(source.dtype), source.shape)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        if len(source) and all(isinstance(item, str | Path) for item in source):
            paths = [str(item) for item in source]
            return _open_list(paths, f"{Path(paths[0]).name} … {Path(paths[-1]).name}")
        return _with_first("sequence", len(source), lambda i, j: [source[k] for k in range(i, j)])
    if isinstance(source, Iterable):
        forward = _Forward(source)
        return _with_first("iterable", None, forward.fetch, one_shot=forward.one_shot)
    raise TypeError(f"frames come from a path, a list of paths, an array or an iterable, not {source!r}")


def read_array(path: str | Path) -> np.ndarray:
    """Read a whole array, such as a reference image or an error map, from any file that holds one.

    Parameters
    ----------
    path : str or Path
        As for `open_frames`, or an image of any format of `read_image`.

    Returns
    -------
    numpy.ndarray
        The array, axes of length one dropped.
    """
    name, inside = split_extension(path)
    if not os.path.exists(name):
        raise FileNotFoundError(2, "No such file", name)
    if _is_hdf5(name):
        h5py = optional("h5py", extra="stream")
        with h5py.File(name, "r") as file:
            return np.squeeze(_dataset(file, name, inside, _hdf5_arrays(file, h5py), least=2)[()])
    if _is_zarr(name):
        store, arrays = _zarr_arrays(name)
        return np.squeeze(_dataset(store, name, inside, arrays, least=2)[...])
    return read_image(path).data


def _with_first(
    name: str,
    length: int | None,
    fetch: Fetch,
    dtype: np.dtype | None = None,
    *,
    path: str | None = None,
    one_shot: bool = False,
    close: Callable[[], None] = lambda: None,
) -> Frames:
    """The source with the first of its frames that can be read."""
    problem, i = "there is none", 0
    while i < MOST_TRIED if length is None else i < min(length, MOST_TRIED):
        # What comes but once is asked for from its beginning, so that none of it is passed over.
        fetched = fetch(0, i + 1) if length is None else _fetched(fetch, path, i, i + 1)
        if length is None and len(fetched) <= i:
            break
        raw = fetched[-1]
        i += 1
        if isinstance(raw, Exception):
            problem = _reason(raw)
            continue
        pixels = _plain(raw)
        if pixels.ndim not in (2, 3):
            raise ValueError(
                f"{name}: a frame must have 2 or 3 axes longer than one, not shape {np.shape(raw)}; "
                "the frame axis of a stack comes first"
            )
        first = np.full(pixels.shape, np.nan, _float_type(pixels.dtype if dtype is None else dtype))
        _convert(raw, first)
        return Frames(name, length, first.shape, first.dtype, first, one_shot, fetch, path, close)
    close()
    raise ValueError(f"{name}: none of {'the first ' * (i == MOST_TRIED)}{i} frames can be read: {problem}")


def _fetched(fetch: Fetch, path: str | None, start: int, stop: int) -> Any:
    """The frames of a run, each with what went wrong in its place if it did."""
    try:
        return fetch(start, stop)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        # Readers of damaged files raise what they like (zlib.error, struct.error, KeyError, ...).
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(2, "No such file", path) from error
        if stop - start == 1:
            return [error]
    return [frame for i in range(start, stop) for frame in _fetched(fetch, path, i, i + 1)]


def _convert(raw: Any, out: np.ndarray) -> str | None:
    """Fill in one frame and return None, or why it cannot be."""
    if isinstance(raw, Exception):
        return _reason(raw)
    try:
        pixels = _plain(raw)
        if pixels.shape != out.shape:
            return f"shape {pixels.shape}, not {out.shape} as the first"
        # A value beyond the range of float32 is no pixel value.
        with np.errstate(over="ignore"):
            out[...] = pixels
    except (TypeError, ValueError) as error:
        out[...] = np.nan
        return _reason(error)
    return None


def _plain(raw: Any) -> np.ndarray:
    if isinstance(raw, np.ma.MaskedArray):
        raw = np.ma.filled(raw.astype(_float_type(raw.dtype)), np.nan)
    pixels = np.asarray(raw)
    if pixels.dtype.kind not in "buif":
        raise TypeError(f"frames must hold real numbers, not {pixels.dtype}")
    return pixels.reshape([n for n in pixels.shape if n != 1])


def _float_type(dtype: np.dtype) -> np.dtype:
    if dtype.kind == "f" and dtype.itemsize <= 4:
        return np.dtype(np.float32)
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def _layout(name: str, shape: Sequence[int]) -> _Layout:
    lead = 0
    while len(shape) - lead > 3 and shape[lead] == 1:
        lead += 1
    if len(shape) - lead < 3:
        raise ValueError(
            f"{name} has shape {tuple(shape)}: a stack has a frame axis and two or three more. Of one image "
            "per file give a list of files or a pattern"
        )
    return _Layout(lead, int(shape[lead]), tuple(int(n) for n in shape[lead + 1 :]))


def _open_array(
    array: Any,
    name: str,
    dtype: np.dtype,
    shape: Sequence[int],
    path: str | None = None,
    close: Callable[[], None] = lambda: None,
) -> Frames:
    layout = _layout(name, shape)

    def fetch(start: int, stop: int) -> Any:
        return array[layout.key(start, stop)]

    return _with_first(name, layout.length, fetch, dtype, path=path, close=close)


def _matching(pattern: str) -> list[str]:
    name, extension = split_extension(pattern) if pattern.endswith("]") else (pattern, None)

    def by_number(path: str) -> list:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]

    paths = sorted(glob.glob(name), key=by_number)
    if not paths:
        raise FileNotFoundError(2, "No file matches", pattern)
    return [path if extension is None else f"{path}[{extension}]" for path in paths]


def _open_list(paths: list[str], name: str) -> Frames:
    for path in paths:
        known_format(path)

    def read(path: str) -> Any:
        try:
            return read_image(path).data
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            return error

    return _with_first(name, len(paths), lambda start, stop: [read(path) for path in paths[start:stop]])


def _open_file(text: str) -> Frames:
    name, inside = split_extension(text)
    label = Path(name).name if inside is None else f"{Path(name).name}[{inside}]"
    if not os.path.exists(name):
        raise FileNotFoundError(2, "No such file", name)
    if _is_hdf5(name):
        return _open_hdf5(name, inside, label)
    if _is_zarr(name):
        store, arrays = _zarr_arrays(name)
        array = _dataset(store, name, inside, arrays, least=3)
        return _open_array(array, label, np.dtype(array.dtype), array.shape, name)
    if os.path.isdir(name):
        raise ValueError(f"{name!r} is a folder: for the files in it give a pattern such as {name}/*.tif")
    kind = known_format(name)
    if inside is not None and kind not in ("FITS", "TIFF"):
        raise ValueError(f"[{inside}] after {name!r}: {kind} files hold but one thing")
    if kind == "FITS":
        return _open_fits(name, inside, label)
    if kind == "TIFF":
        return _open_tiff(name, inside, label)
    if kind == "NPY":
        return _open_npy(name, label)
    raise ValueError(f"{name!r} holds one image: of one image per file give a list of files or a pattern")


def _check_complete(name: str, offset: int, itemsize: int, layout: _Layout) -> None:
    """Refuse a file that lacks most of the frames that its header tells of, all of which would be looked for.

    Of a copy that broke off at the end the frames before it are of use.
    """
    there = max(0, os.path.getsize(name) - offset) // (itemsize * prod(layout.raw) or 1)
    if 2 * there < layout.length:
        raise ValueError(
            f"{name!r} is not complete: its header tells of {layout.length} frames of shape {layout.shape}, "
            f"of which {there} are there"
        )


def _raw_frames(path: str, offset: int, dtype: np.dtype, frame: tuple[int, ...]) -> Fetch:
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


def _open_npy(name: str, label: str) -> Frames:
    with open(name, "rb") as file:
        shape, fortran, dtype = npy_header(file)
        offset = file.tell()
    if fortran:
        raise ValueError(
            f"{name!r} is in Fortran order, which scatters each frame over the file: save it with "
            "numpy.save(path, numpy.ascontiguousarray(stack))"
        )
    layout = _layout(label, shape)
    _check_complete(name, offset, dtype.itemsize, layout)
    return _with_first(label, layout.length, _raw_frames(name, offset, dtype, layout.raw), dtype, path=name)


def _open_fits(name: str, inside: str | None, label: str) -> Frames:
    fits = optional("astropy.io.fits", "astropy")
    with ExitStack() as opened, warnings.catch_warnings():
        # That a file is cut short is told frame by frame.
        warnings.simplefilter("ignore", UserWarning)
        hdus = opened.enter_context(fits.open(name, memmap=False))
        hdu = hdus[find_hdu(hdus, name, inside)]
        layout = _layout(label, hdu.shape)
        if not isinstance(hdu, fits.CompImageHDU) and not name.lower().endswith(".gz"):
            _check_complete(name, hdu.fileinfo()["datLoc"], abs(hdu.header["BITPIX"]) // 8, layout)
        opened.pop_all()

    def fetch(start: int, stop: int) -> Any:
        return hdu.section[layout.key(start, stop)]

    return _with_first(label, layout.length, fetch, path=name, close=hdus.close)


def _open_tiff(name: str, inside: str | None, label: str) -> Frames:
    tifffile = optional("tifffile")
    channel = None
    if inside is not None:
        match = re.fullmatch(r"C=(\d+)", inside)
        if match is None:
            raise ValueError(f"[{inside}] after {name!r}: of a TIFF file a channel is chosen as [C=0]")
        channel = int(match[1])
    with ExitStack() as opened:
        file = opened.enter_context(tifffile.TiffFile(name))
        series = file.series[0]
        axes, shape, dtype, offset = series.axes, series.shape, series.dtype, series.dataoffset
        # Pages written one by one are a series each.
        alone = len(file.series) > 1 and len(series.pages) == 1 and all(s.shape == shape for s in file.series)
        if alone:
            axes, shape, offset = f"I{axes}", (len(file.series), *shape), None
        if axes[0] in "YXS":
            raise ValueError(
                f"{label} holds one image: a stack has a frame axis (axes {axes}, shape {shape})"
            )
        layout = _layout(label, shape)
        inner = axes[layout.lead + 1 :]
        channels = layout.raw[inner.index("C")] if "C" in inner else 1
        if channels > 1 and channel is None:
            raise ValueError(f"{label} has {channels} channels (axes {axes}): choose one, {label}[C=0]")
        if channel is not None and not ("C" in inner and channel < channels):
            raise ValueError(f"{label}: there is no such channel (axes {axes}, shape {shape})")
        if offset is not None:
            _check_complete(name, offset, np.dtype(dtype).itemsize, layout)
        opened.pop_all()

    def picked(frame: Any) -> Any:
        if isinstance(frame, Exception):
            return frame
        left = inner
        if channel is not None:
            frame, left = np.take(frame, channel, left.index("C")), left.replace("C", "")
        return luminance(np.moveaxis(frame, left.index("S"), -1)) if "S" in left else frame

    pages = len(series.pages) // layout.length

    def raw(start: int, stop: int) -> Any:
        if alone:
            return [page.asarray() for page in file.series[start:stop]]
        data = file.asarray(key=range(start * pages, stop * pages), series=0)
        return data.reshape(stop - start, *layout.raw)

    read: Fetch = raw
    if offset is not None:
        read = _raw_frames(name, offset, np.dtype(dtype).newbyteorder(file.byteorder), layout.raw)

    def fetch(start: int, stop: int) -> Any:
        return [picked(frame) for frame in read(start, stop)]

    return _with_first(label, layout.length, fetch, dtype, path=name, close=file.close)


def _is_hdf5(name: str) -> bool:
    return name.lower().endswith(_HDF5) and os.path.isfile(name)


def _is_zarr(name: str) -> bool:
    return any(os.path.isfile(os.path.join(name, part)) for part in ("zarr.json", ".zarray", ".zgroup"))


def _dataset(store: Any, name: str, inside: str | None, arrays: dict[str, int], least: int) -> Any:
    """The array asked for, or the only one with enough axes; ``arrays`` has the axes of each."""
    if hasattr(store, "shape"):
        if inside:
            raise ValueError(f"[{inside}] after {name!r}: it is an array, with nothing inside")
        return store
    there = f"{name!r} has: {', '.join(arrays) or 'none'}"
    if inside is not None:
        if inside.strip("/") not in arrays:
            raise ValueError(f"no array [{inside}]; {there}")
        return store[inside.strip("/")]
    fit = [path for path, ndim in arrays.items() if ndim >= least]
    if len(fit) != 1:
        raise ValueError(f"say which array is meant in brackets after the file name; {there}")
    return store[fit[0]]


def _hdf5_arrays(file: Any, h5py: Any) -> dict[str, int]:
    arrays = {}

    def visit(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[path] = item.ndim

    file.visititems(visit)
    return arrays


def _open_hdf5(name: str, inside: str | None, label: str) -> Frames:
    h5py = optional("h5py", extra="stream")
    with h5py.File(name, "r") as file:
        dataset = _dataset(file, name, inside, _hdf5_arrays(file, h5py), least=3)
        path, dtype, layout = dataset.name, dataset.dtype, _layout(label, dataset.shape)

    def fetch(start: int, stop: int) -> Any:
        # Opened anew each time: an open HDF5 file is locked against its writer.
        with h5py.File(name, "r") as file:
            return file[path][layout.key(start, stop)]

    return _with_first(label, layout.length, fetch, dtype, path=name)


def _zarr_arrays(name: str) -> tuple[Any, dict[str, int]]:
    zarr = optional("zarr", extra="stream")
    store = zarr.open(name, mode="r")
    if hasattr(store, "shape"):
        return store, {}
    arrays = {path: item.ndim for path, item in store.members(max_depth=None) if hasattr(item, "shape")}
    return store, dict(sorted(arrays.items()))


class _Forward:
    """An iterable read in runs, of which the last run alone is kept."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.iterable = iterable
        self.iterator = iter(iterable)
        self.one_shot = self.iterator is iterable
        self.begin = 0
        self.kept: list[Any] = []

    def fetch(self, start: int, stop: int) -> Any:
        if start < self.begin:
            if self.one_shot:
                raise RuntimeError(f"frame {start} has gone by: an iterator gives each frame once")
            self.iterator, self.begin, self.kept = iter(self.iterable), 0, []
        while self.begin < start:
            if not self.kept and not self._pull():
                return []
            self.kept.pop(0)
            self.begin += 1
        while len(self.kept) < stop - start and self._pull():
            pass
        return self.kept[: stop - start]

    def _pull(self) -> bool:
        for frame in self.iterator:
            self.kept.append(frame)
            return True
        return False
