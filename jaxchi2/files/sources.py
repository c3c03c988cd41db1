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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..arrays import Measured, as_plain, unit_of
from ..io import ImageMeta, Origin, move_coordinates, open_fits, read_image, stack_header
from .axes import Selection, ngff_axes, select, split_choices, suggestion
from .formats import check_complete, known_format, npy_header, optional, raw_frames, split_extension
from .outputs import files_of
from .tiff import open_tiff

__all__ = ["Chunk", "Frames", "open_frames", "read_array"]

# Frames of a source, or for each that cannot be read the reason why.
Fetch = Callable[[int, int], Any]
MOST_TRIED = 1000
"""Frames that are tried before a source is given up none of whose frames can be read."""
_NO_ORIGIN = Origin()
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
    origin: Origin = _NO_ORIGIN
    """What else is in a file of the frames, for that of the aligned ones."""
    unit: Any = None
    """Unit of the pixels, where it is known."""
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
            problem = _convert(raw, pixels[i], self.unit)
            if problem is not None:
                problems[start + i] = problem
        return Chunk(pixels, problems)


def open_frames(source: Any) -> Frames:
    """Find the frames of a source.

    Parameters
    ----------
    source : path, list of paths, array_like or iterable
        *A path* to one file that holds all frames, the frame axis first: a FITS cube, also compressed, by
        extension ``file.fits[1]``, ``file.fits[SCI]``; a multi-page TIFF; HDF5 ``file.h5[group/dataset]`` and
        zarr ``store.zarr[array]``, the brackets left out where there is but one stack inside; NPY. Where the
        file names its axes, as TIFF of OME or ImageJ and OME-NGFF do, the frame axis is that of time wherever
        it comes, or z if there is none; of several channels one is chosen, ``file.tif[C=1]``,
        ``store.zarr[C=1]``, of positions ``[P=1]``, and so with any axis, ``[C=1,Z=4]``.

        *A pattern* with ``*`` or ``?``, sorted with numbers by value (2 before 10), or *a list of paths*:
        each file one frame, of any format of `read_image`. *An array*, or what is indexed like one (h5py,
        zarr, dask); *a sequence or iterable* of frames. Axes of length one are dropped. Give the path of an
        NPY file rather than ``numpy.load(mmap_mode="r")``, whose pages stay in memory.

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
        unit = unit_of(source)
        array = as_plain(source, "frames", unit)
        return replace(_open_array(array, "array", np.dtype(array.dtype), array.shape), unit=unit)
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        if len(source) and all(isinstance(item, str | Path) for item in source):
            paths = [str(item) for item in source]
            return _open_list(paths, f"{Path(paths[0]).name} … {Path(paths[-1]).name}")
        return _with_first("sequence", len(source), lambda i, j: [source[k] for k in range(i, j)])
    if isinstance(source, Iterable):
        forward = _Forward(source)
        return _with_first("iterable", None, forward.fetch, one_shot=forward.one_shot)
    as_plain(source, "frames")
    raise TypeError(f"frames come from a path, a list of paths, an array or an iterable, not {source!r}")


def read_array(path: str | Path, unit: Any = None) -> np.ndarray:
    """Read a whole array, such as a reference image or an error map, from any file that holds one.

    Parameters
    ----------
    path : str or Path
        As for `open_frames`, or an image of any format of `read_image`.
    unit : astropy unit, optional
        What a FITS file that says its unit is converted to.

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
        array, selection = _zarr_array(name, inside, Path(path).name, frames=False)
        return np.squeeze(array[... if selection is None else selection.key()])
    return read_image(path).pixels(unit)


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
        unit = unit_of(raw)
        pixels = _plain(raw, unit)
        if pixels.ndim not in (2, 3):
            raise ValueError(
                f"{name}: a frame must have 2 or 3 axes longer than one, not shape {np.shape(raw)}; "
                "the frame axis of a stack comes first"
            )
        first = np.full(pixels.shape, np.nan, _float_type(pixels.dtype if dtype is None else dtype))
        _convert(raw, first, unit)
        return Frames(name, length, first.shape, first.dtype, first, one_shot, fetch, path, close, unit=unit)
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


def _convert(raw: Any, out: np.ndarray, unit: Any) -> str | None:
    """Fill in one frame and return None, or why it cannot be."""
    if isinstance(raw, Exception):
        return _reason(raw)
    try:
        pixels = _plain(raw, unit)
        if pixels.shape != out.shape:
            return f"shape {pixels.shape}, not {out.shape} as the first"
        # A value beyond the range of float32 is no pixel value.
        with np.errstate(over="ignore"):
            out[...] = pixels
    except (TypeError, ValueError) as error:
        out[...] = np.nan
        return _reason(error)
    return None


def _plain(raw: Any, unit: Any) -> np.ndarray:
    raw = as_plain(raw, "frame", unit)
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

    metas: list[ImageMeta] = []

    def read(path: str) -> Any:
        try:
            data, meta = read_image(path)
        except (ImportError, MemoryError):
            raise
        except Exception as error:
            return error
        # Of the first frame that can be read, which is read first.
        if not metas:
            metas.append(meta)
        return data if meta.unit is None else Measured(data, meta.unit)

    frames = _with_first(name, len(paths), lambda start, stop: [read(path) for path in paths[start:stop]])
    return replace(frames, origin=origin_of(metas[0]))


def _open_file(text: str) -> Frames:
    name, inside = split_extension(text)
    label = Path(name).name if inside is None else f"{Path(name).name}[{inside}]"
    if not os.path.exists(name):
        raise FileNotFoundError(2, "No such file", name)
    if _is_hdf5(name):
        return _open_hdf5(name, inside, label)
    if _is_zarr(name):
        return _open_zarr(name, inside, label)
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
    check_complete(name, offset, dtype.itemsize, layout.length, layout.raw)
    return _with_first(label, layout.length, raw_frames(name, offset, dtype, layout.raw), dtype, path=name)


def _open_fits(name: str, inside: str | None, label: str) -> Frames:
    with ExitStack() as opened, warnings.catch_warnings():
        # That a file is cut short is told frame by frame.
        warnings.simplefilter("ignore", UserWarning)
        hdus, index = open_fits(name, inside)
        opened.enter_context(hdus)
        hdu = hdus[index]
        layout = _layout(label, hdu.shape)
        meta = ImageMeta(name, "FITS", np.dtype(float), hdu.shape, hdu.header.copy())
        if index:
            meta = meta._replace(primary=hdus[0].header.copy())
        fits = optional("astropy.io.fits", "astropy")
        if not isinstance(hdu, fits.CompImageHDU) and not name.lower().endswith(".gz"):
            offset, itemsize = hdu.fileinfo()["datLoc"], abs(hdu.header["BITPIX"]) // 8
            check_complete(name, offset, itemsize, layout.length, layout.raw)
        opened.pop_all()

    def fetch(start: int, stop: int) -> Any:
        return hdu.section[layout.key(start, stop)]

    frames = _with_first(label, layout.length, fetch, path=name, close=hdus.close)
    inner = [layout.lead + 1 + a for a, n in enumerate(layout.raw) if n != 1]
    return replace(frames, origin=Origin(stack_header(meta, [layout.lead, *inner])), unit=meta.unit)


def aligned_origin(frames: Frames, reference: Any, shift: np.ndarray) -> Origin:
    """What a file of aligned frames says beside their values.

    Coordinates are those of the reference if it is a file that has them, and else the first frame's, which
    move with what it shows.

    Parameters
    ----------
    frames : Frames
        Before they are aligned.
    reference : path or other
        As `jaxchi2.stream.register_file` takes it.
    shift : numpy.ndarray, shape (D,)
        Displacement from the reference of the first frame that can be read; NaN if unknown.
    """
    origin = frames.origin
    if isinstance(reference, str | Path) and os.path.isfile(split_extension(reference)[0]):
        own = _file_origin(reference)
        if own.header is not None and any(key.startswith("CRPIX") for key in own.header):
            own.header.add_history("coordinates: those of the reference")
            return own
    if origin.header is None:
        return origin
    header = origin.header.copy()
    if np.isfinite(shift).all():
        move_coordinates(header, shift)
        listed = ", ".join(f"{-pixels:+.5f}" for pixels in shift)
        header.add_history(f"coordinates: those of the first frame, moved by ({listed}) pixels, order (y, x)")
    else:
        header.add_history("coordinates: those of the first frame, whose displacement is not known")
    return origin._replace(header=header)


def _file_origin(path: str | Path) -> Origin:
    """`origin_of` a file, nothing if it is not of a format that says more than pixels."""
    try:
        return origin_of(read_image(path).meta)
    except ValueError:
        return _NO_ORIGIN


def origin_of(meta: ImageMeta) -> Origin:
    """What the file of one image, as of each frame or the reference, says for that of a stack."""
    if meta.header is None:
        return Origin(pixel_size=meta.pixel_size)
    return Origin(stack_header(meta, [None, *[a for a, n in enumerate(meta.shape) if n != 1]]))


def _open_tiff(name: str, inside: str | None, label: str) -> Frames:
    path, chosen = split_choices(inside)
    if path is not None:
        raise ValueError(f"[{inside}] after {name!r}: of a TIFF file a channel is chosen as [C=0]")
    images = open_tiff(name, label, chosen)
    frames = _with_first(
        label, images.selection.length, images.fetch, images.dtype, path=name, close=images.close
    )
    return replace(frames, origin=Origin(pixel_size=images.pixel_size))


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


def _open_zarr(name: str, inside: str | None, label: str) -> Frames:
    array, selection = _zarr_array(name, inside, label, frames=True)
    dtype = np.dtype(array.dtype)
    if selection is None:
        return _open_array(array, label, dtype, array.shape, name)
    axis = sum(picked is None for picked in selection.picked[: selection.frame])

    def fetch(start: int, stop: int) -> Any:
        return np.moveaxis(array[selection.key(start, stop)], axis, 0)

    return _with_first(label, selection.length, fetch, dtype, path=name)


def _zarr_array(name: str, inside: str | None, label: str, *, frames: bool) -> tuple[Any, Selection | None]:
    """The array that is meant, and what is read of it if it is said what its axes are."""
    zarr = optional("zarr", extra="stream")
    store = zarr.open(name, mode="r")
    path, chosen = split_choices(inside)
    if hasattr(store, "shape"):
        # Which may be one of those of an image.
        folder, there = os.path.split(os.path.abspath(name))
        images = _ngff_images({"": zarr.open_group(folder, mode="r")}) if _is_zarr(folder) else {}
        array = _dataset(store, name, path, {}, least=0)
    else:
        members = dict(sorted(store.members(max_depth=None)))
        images = _ngff_images({"": store, **members})
        path = _one_image(label, path, images)
        arrays = {key: item.ndim for key, item in members.items() if hasattr(item, "shape")}
        array = _dataset(store, name, path, arrays, least=3 if frames else 2)
        there = array.path
    for image in images.values():
        if there in image.paths:
            axes = ngff_axes(image.metadata, array.ndim)
            return array, select(label, axes, array.shape, chosen, frames=frames)
    if chosen:
        raise ValueError(f"[{inside}] after {name!r}: the file does not say what its axes are")
    return array, None


class _Image(NamedTuple):
    """An image of OME-NGFF."""

    paths: list[str]
    """Its arrays, from the finest."""
    metadata: dict[str, Any]


def _ngff_images(groups: dict[str, Any]) -> dict[str, _Image]:
    """Images of OME-NGFF among the groups of a store, by path."""
    images = {}
    for path, group in groups.items():
        attributes = dict(group.attrs)
        # Under "ome" since version 0.5.
        several = attributes.get("ome", attributes).get("multiscales")
        if several:
            paths = [f"{path}/{level['path']}".strip("/") for level in several[0]["datasets"]]
            images[path] = _Image(paths, several[0])
    return images


def _one_image(label: str, path: str | None, images: dict[str, _Image]) -> str | None:
    """Path of the array that is meant, where it is that of an image."""
    if path is not None:
        image = images.get(path.strip("/"))
        return path if image is None else image.paths[0]
    # Labels are images too.
    pictures = [key for key in images if "labels" not in key.split("/")]
    if len(pictures) > 1:
        raise ValueError(
            f"{label} holds the images {', '.join(pictures)}: choose one, {suggestion(label, pictures[0])}"
        )
    return images[pictures[0]].paths[0] if pictures else None


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
