"""Images from and to files: FITS, TIFF, NPY, PNG and JPEG.

`read_image` returns the pixels as an array, with what `write_image` needs to put an aligned image back
into a file of the same kind. The packages that know the formats (astropy, tifffile, imageio) are imported
when a file of that format is met and not before.
"""

import os
import re
from collections.abc import Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["ImageMeta", "LoadedImage", "known_format", "read_image", "write_image"]

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

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in the luminance of a colour image (ITU-R BT.709)."""

# What these cards say about the stored integers is no longer true of the aligned floating-point image.
_STALE_CARDS = ("BSCALE", "BZERO", "BLANK", "DATAMIN", "DATAMAX", "CHECKSUM", "DATASUM")


class ImageMeta(NamedTuple):
    """Where an image came from and how its file stored it."""

    path: str
    """The file, without the FITS extension."""
    format: str
    """One of ``FITS``, ``TIFF``, ``NPY``, ``PNG``, ``JPEG``."""
    dtype: np.dtype
    """Type of the stored pixels, before colours were combined."""
    shape: tuple[int, ...]
    """Shape in the file, axes of length one and colours included."""
    header: Any = None
    """FITS header of the extension that was read; None for the other formats."""
    primary: Any = None
    """FITS primary header, when the image lay in an extension."""


class LoadedImage(NamedTuple):
    """An image and its origin, as `read_image` returns them."""

    data: np.ndarray
    """The pixels in native byte order; ``(ny, nx)`` for a picture."""
    meta: ImageMeta
    """What `write_image` takes as ``like``."""


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


def read_image(path: str | Path) -> LoadedImage:
    """Read one image from a file.

    A FITS extension is named in brackets after the file: ``file.fits[1]`` by number, ``file.fits[SCI]`` by
    name, ``file.fits[SCI,2]`` by name and version. Without brackets the first extension that holds an image
    is read. Axes of length one, as radio images have them, are dropped. Colours are combined to the
    luminance 0.2126 R + 0.7152 G + 0.0722 B (ITU-R BT.709); an alpha channel is ignored, and so is a rotation
    noted in a photograph's EXIF data.

    Parameters
    ----------
    path : str or Path
        The file; its suffix tells the format.

    Returns
    -------
    LoadedImage
        The pixels, and their origin for `write_image`.

    Raises
    ------
    ValueError
        If the format or the extension is not known, or the file holds no image of real numbers.
    ImportError
        If the package that reads the format is not installed.
    """
    kind = known_format(path)
    name, extension = split_extension(path)
    if extension is not None and kind != "FITS":
        raise ValueError(f"[{extension}] after {name!r}: only FITS files have extensions, this is {kind}")
    if not Path(name).is_file():
        raise FileNotFoundError(2, "No such file", name)
    if kind == "FITS":
        return _read_fits(name, extension)
    if kind == "TIFF":
        data = _read_tiff(name)
    elif kind == "NPY":
        data = _read_npy(name)
    else:
        data = optional("imageio.v3", "imageio").imread(name, index=0, plugin="pillow")
    dtype, shape = data.dtype, data.shape
    if kind in ("PNG", "JPEG") and data.ndim == 3:
        data = luminance(data)
    return LoadedImage(_plain(data, name), ImageMeta(name, kind, dtype, shape))


def write_image(
    path: str | Path,
    array: ArrayLike,
    like: ImageMeta | None = None,
    *,
    shift: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Write an image in the format that the suffix of ``path`` stands for; an existing file is replaced.

    FITS and NPY keep floating-point values as they are and TIFF stores 32-bit floats. PNG and JPEG hold
    integers: values are rounded and clipped to the range of the integers that ``like`` was stored with, NaN
    becomes zero, and a colour image comes back as its luminance.

    Parameters
    ----------
    path : str or Path
        The file to write.
    array : array_like
        The pixels.
    like : ImageMeta, optional
        Origin of the image, from `read_image`. A FITS file then keeps the headers, the axes of length one and
        the kind of extension.
    shift : sequence of float, optional
        The displacement that was undone, in pixels and axis order ``(y, x)``, one number per axis of
        ``array``. A FITS header records it in a HISTORY card, and its reference pixel ``CRPIX`` moves by
        ``-shift`` with the content, so that each star keeps its coordinates.

    Raises
    ------
    ValueError
        If the format is not known or cannot hold the values.
    ImportError
        If the package that writes the format is not installed.
    """
    kind = known_format(path)
    name, extension = split_extension(path)
    if extension is not None:
        raise ValueError(f"cannot write to an extension, {name}[{extension}]: give a plain file name")
    data = np.asarray(array)
    if kind == "FITS":
        _write_fits(name, data, like, shift)
    elif kind == "TIFF":
        tifffile = optional("tifffile")
        tifffile.imwrite(name, data.astype(np.float32), photometric="minisblack")
    elif kind == "NPY":
        np.save(name, data)
    else:
        stored = data.dtype if like is None else like.dtype
        optional("imageio.v3", "imageio").imwrite(name, _to_integers(data, stored, kind), plugin="pillow")


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


def _plain(data: np.ndarray, name: str) -> np.ndarray:
    data = np.asarray(data)
    if data.dtype.kind not in "buif":
        raise ValueError(f"{name!r} holds values of type {data.dtype}; an image of real numbers is needed")
    if data.dtype.kind == "b":
        data = data.astype(np.uint8)
    data = data.reshape([n for n in data.shape if n != 1])
    return np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))


def luminance(data: np.ndarray) -> np.ndarray:
    """Combine the colours on the last axis; two channels are grey and alpha, four are colour and alpha."""
    if data.shape[-1] < 3:
        return data[..., 0]
    return data[..., :3] @ np.asarray(LUMINANCE, dtype=np.float32)


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


def _read_npy(name: str) -> np.ndarray:
    with open(name, "rb") as file:
        shape, _, dtype = npy_header(file)
        # NumPy makes room for what the header tells of before it looks for it.
        there, wanted = os.path.getsize(name) - file.tell(), dtype.itemsize * prod(shape)
    if there < wanted and not dtype.hasobject:
        raise ValueError(
            f"{name!r} is not complete: its header tells of {wanted} bytes, of which {there} are there"
        )
    try:
        return np.load(name, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"cannot read {name!r} as an NPY file of numbers: {error}") from error


def _read_tiff(name: str) -> np.ndarray:
    tifffile = optional("tifffile")
    with tifffile.TiffFile(name) as file:
        series = file.series[0]
        data, axes = series.asarray(), series.axes
    # tifffile marks the colours of a pixel, and only them, with S.
    return luminance(np.moveaxis(data, axes.index("S"), -1)) if "S" in axes else data


def _read_fits(name: str, extension: str | None) -> LoadedImage:
    fits = optional("astropy.io.fits", "astropy")
    with fits.open(name, memmap=False) as hdus:
        index = find_hdu(hdus, name, extension)
        hdu = hdus[index]
        stored = hdu.data
        header = hdu.header.copy()
        primary = hdus[0].header.copy() if index else None
    meta = ImageMeta(name, "FITS", stored.dtype, stored.shape, header, primary)
    return LoadedImage(_plain(stored, name), meta)


def find_hdu(hdus: Any, name: str, extension: str | None) -> int:
    """Index of the extension asked for, or of the first that holds an image; no pixel is read."""
    names = [f"{i} {hdu.name},{hdu.ver}".replace(" ,", " unnamed,") for i, hdu in enumerate(hdus)]
    there = f"{name!r} has: {'; '.join(names)}"
    if extension is None:
        for index, hdu in enumerate(hdus):
            if hdu.is_image and hdu.shape:
                return index
        raise ValueError(f"no extension holds an image; {there}")
    label, _, version = (part.strip() for part in extension.partition(","))
    try:
        key = int(label) if label.isdigit() else (label, int(version)) if version else label
        index = hdus.index_of(key)
        hdu = hdus[index]
    except (KeyError, IndexError, ValueError) as error:
        raise ValueError(f"no extension [{extension}]; {there}") from error
    if not hdu.is_image or not hdu.shape:
        raise ValueError(f"extension [{extension}] holds no image; {there}")
    return index


def _write_fits(name: str, data: np.ndarray, like: ImageMeta | None, shift: Any) -> None:
    if name.lower().endswith(".fz"):
        raise ValueError(f"cannot write {name!r}: FITS files are written uncompressed or as .fits.gz")
    fits = optional("astropy.io.fits", "astropy")
    from jaxchi2 import __version__

    header, primary = (None, None) if like is None else (like.header, like.primary)
    header = fits.Header() if header is None else header.copy()
    for card in _STALE_CARDS:
        header.remove(card, ignore_missing=True)
    shape = data.shape
    if like is not None and tuple(n for n in like.shape if n != 1) == shape:
        shape = like.shape
    if shift is not None:
        moved = np.asarray(shift, dtype=float)
        axes = [axis for axis, n in enumerate(shape) if n != 1]
        for axis, pixels in zip(axes, moved, strict=True):
            _move_reference_pixel(header, len(shape) - axis, pixels)
        listed = ", ".join(f"{-pixels:+.5f}" for pixels in moved)
        header.add_history(f"jaxchi2 {__version__}: moved by ({listed}) pixels in array axis order (y, x)")
    else:
        header.add_history(f"jaxchi2 {__version__}: written by write_image")
    pixels = data.reshape(shape)
    if primary is None:
        hdus = fits.HDUList([fits.PrimaryHDU(pixels, header)])
    else:
        hdus = fits.HDUList([fits.PrimaryHDU(header=primary), fits.ImageHDU(pixels, header)])
    hdus.writeto(name, overwrite=True, output_verify="silentfix")


def _move_reference_pixel(header: Any, fits_axis: int, shift: float) -> None:
    # Alternative coordinate systems carry a letter: CRPIX1A ... CRPIX1Z.
    for key in [key for key in header if re.fullmatch(f"CRPIX{fits_axis}[A-Z]?", key)]:
        header[key] = header[key] - float(shift)


def _to_integers(data: np.ndarray, stored: np.dtype, kind: str) -> np.ndarray:
    stored = np.dtype(np.uint8) if stored.kind == "b" else np.dtype(stored)
    allowed = ("uint8", "uint16") if kind == "PNG" else ("uint8",)
    if data.ndim != 2 or stored.name not in allowed:
        raise ValueError(
            f"a {kind} file holds a two-dimensional image of {' or '.join(allowed)}, not {data.ndim} "
            f"dimensions of {stored.name}: write FITS, TIFF or NPY"
        )
    if data.dtype == stored:
        return data
    limit = np.iinfo(stored).max
    return np.rint(np.clip(np.nan_to_num(data, nan=0.0), 0, limit)).astype(stored)
