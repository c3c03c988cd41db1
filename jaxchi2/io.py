"""Images from and to files: FITS, TIFF, NPY, PNG and JPEG.

`read_image` returns the pixels as an array, with what `write_image` needs to put an aligned image back
into a file of the same kind. The packages that know the formats (astropy, tifffile, imageio) are imported
when a file of that format is met and not before.
"""

import os
import re
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .arrays import Measured, as_plain
from .files.axes import LUMINANCE, luminance, split_choices
from .files.formats import known_format, npy_header, optional, split_extension
from .files.tiff import PixelSize, open_tiff, tiff_options

__all__ = ["LUMINANCE", "ImageMeta", "LoadedImage", "known_format", "read_image", "write_image"]

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
    pixel_size: PixelSize | None = None
    """How large a pixel is, as a TIFF file says it; None for the other formats."""

    @property
    def unit(self) -> Any:
        """Unit of the pixels by BUNIT of a FITS header, None without one that astropy knows."""
        text = "" if self.header is None else str(self.header.get("BUNIT", "")).strip()
        if not text:
            return None
        try:
            return optional("astropy.units", "astropy").Unit(text)
        except ValueError:
            return None


class Origin(NamedTuple):
    """What a stack's file says beside the values of its pixels, for the file of the aligned stack."""

    header: Any = None
    """FITS header, its axes those of the stack."""
    pixel_size: PixelSize | None = None


class LoadedImage(NamedTuple):
    """An image and its origin, as `read_image` returns them."""

    data: np.ndarray
    """The pixels in native byte order; ``(ny, nx)`` for a picture."""
    meta: ImageMeta
    """What `write_image` takes as ``like``."""

    def pixels(self, unit: Any) -> np.ndarray:
        """The pixels in a unit, as they are if that or their own is not known.

        Raises
        ------
        TypeError
            If they cannot be converted, as a variance cannot to the unit of an error.
        """
        if unit is None or self.meta.unit is None:
            return self.data
        return np.asarray(as_plain(Measured(self.data, self.meta.unit), self.meta.path, unit))


def read_image(path: str | Path) -> LoadedImage:
    """Read one image from a file.

    A FITS extension is named in brackets after the file: ``file.fits[1]`` by number, ``file.fits[SCI]`` by
    name, ``file.fits[SCI,2]`` by name and version. Without brackets the first extension that holds an image
    is read. Of a TIFF file that has several channels, times or positions one of each is chosen,
    ``file.tif[C=1,T=0]``. Axes of length one, as radio images have them, are dropped. Colours are combined to
    the luminance 0.2126 R + 0.7152 G + 0.0722 B (ITU-R BT.709); an alpha channel is ignored, and so is a
    rotation noted in a photograph's EXIF data.

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
    inside, chosen = split_choices(extension)
    if extension is not None and kind != "FITS" and (kind != "TIFF" or inside is not None):
        raise ValueError(f"[{extension}] after {name!r}: only FITS files have extensions, this is {kind}")
    if not Path(name).is_file():
        raise FileNotFoundError(2, "No such file", name)
    if kind == "FITS":
        return _read_fits(name, extension)
    pixel_size = None
    if kind == "TIFF":
        data, pixel_size = _read_tiff(name, chosen)
    elif kind == "NPY":
        data = _read_npy(name)
    else:
        data = optional("imageio.v3", "imageio").imread(name, index=0, plugin="pillow")
    dtype, shape = data.dtype, data.shape
    if kind in ("PNG", "JPEG") and data.ndim == 3:
        data = luminance(data)
    return LoadedImage(_plain(data, name), ImageMeta(name, kind, dtype, shape, pixel_size=pixel_size))


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
        the kind of extension; a TIFF file the size of the pixels with its unit.
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
        _write_tiff(name, data.astype(np.float32), None if like is None else like.pixel_size)
    elif kind == "NPY":
        np.save(name, data)
    else:
        stored = data.dtype if like is None else like.dtype
        optional("imageio.v3", "imageio").imwrite(name, _to_integers(data, stored, kind), plugin="pillow")


def _plain(data: np.ndarray, name: str) -> np.ndarray:
    data = np.asarray(data)
    if data.dtype.kind not in "buif":
        raise ValueError(f"{name!r} holds values of type {data.dtype}; an image of real numbers is needed")
    if data.dtype.kind == "b":
        data = data.astype(np.uint8)
    data = data.reshape([n for n in data.shape if n != 1])
    return np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("="))


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


def _read_tiff(name: str, chosen: dict[str, int]) -> tuple[np.ndarray, PixelSize]:
    images = open_tiff(name, Path(name).name, chosen, frames=False)
    try:
        return np.asarray(images.fetch(0, 1)[0]), images.pixel_size
    finally:
        images.close()


def _write_tiff(name: str, data: np.ndarray, pixel_size: PixelSize | None) -> None:
    tifffile = optional("tifffile")
    if pixel_size is None or data.ndim not in (2, 3):
        tifffile.imwrite(name, data, photometric="minisblack")
    else:
        axes = "ZYX"[-data.ndim :]
        tifffile.imwrite(name, data, **tiff_options(pixel_size, axes, data.shape, data.dtype))


def _read_fits(name: str, extension: str | None) -> LoadedImage:
    hdus, index = open_fits(name, extension)
    with hdus:
        header = hdus[index].header.copy()
        primary = hdus[0].header.copy() if index else None
        stored = hdus[index].data
    meta = ImageMeta(name, "FITS", stored.dtype, stored.shape, header, primary)
    return LoadedImage(_plain(stored, name), meta)


def open_fits(name: str, extension: str | None) -> tuple[Any, int]:
    """Open a FITS file, and find the extension asked for or the first that holds an image.

    What BLANK marks becomes NaN, which astropy does for integers with a sign but not for those without.
    """
    fits = optional("astropy.io.fits", "astropy")
    hdus = fits.open(name, memmap=False)
    try:
        index = find_hdu(hdus, name, extension)
        if "BLANK" not in hdus[index].header:
            return hdus, index
    except BaseException:
        hdus.close()
        raise
    hdus.close()
    return fits.open(name, memmap=False, uint=False), index


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


# Cards that belong to an axis, or to two.
_ONE_AXIS = re.compile(r"(CTYPE|CUNIT|CNAME|CRVAL|CDELT|CRPIX|CROTA|CRDER|CSYER|CZPHS|CPERI)(\d+)([A-Z]?)")
_PARAMETER = re.compile(r"(PV|PS)(\d+)(_\d+[A-Z]?)")
# Distortions in tables, which are in other extensions.
_TABLE = re.compile(r"(CPDIS|CPERR|D2IMDIS|D2IMERR)\d+[A-Z]?|(DP|D2IM)\d+(\..*)?")
_TWO_AXES = re.compile(r"(PC|CD)(\d+)_(\d+)([A-Z]?)")


def stack_header(meta: ImageMeta, axes: Sequence[int | None]) -> Any:
    """FITS header for a stack from that of its file, or of a file of one frame.

    Parameters
    ----------
    meta : ImageMeta
        The file's header and shape.
    axes : sequence of int
        For each axis of the stack that of the file; None for the frame axis of frames in a file each, which
        then counts them.
    """
    fits = optional("astropy.io.fits", "astropy")
    count, header = len(axes), fits.Header()
    moved = {str(len(meta.shape) - a): str(count - i) for i, a in enumerate(axes) if a is not None}
    header.extend(meta.header, strip=True)
    if meta.primary is not None:
        header.extend(meta.primary, strip=True, unique=True)
    for card in (*_STALE_CARDS, "EXTNAME", "EXTVER", "EXTLEVEL", "INHERIT"):
        header.remove(card, ignore_missing=True)
    cards, systems = [], set()
    for card in header.cards:
        one, two = _ONE_AXIS.fullmatch(card.keyword), _TWO_AXES.fullmatch(card.keyword)
        keyword = _renamed(card.keyword, one or _PARAMETER.fullmatch(card.keyword), two, moved)
        if one:
            systems.add(one[3])
        if keyword is None or _TABLE.fullmatch(keyword):
            continue
        if re.fullmatch("WCSAXES[A-Z]?", keyword):
            cards.append(fits.Card(keyword, count, card.comment))
        elif keyword != card.keyword:
            cards.append(fits.Card(keyword, card.value, card.comment))
        else:
            cards.append(card)
    header = fits.Header(cards)
    for system in sorted(systems) if None in axes else ():
        header.update({f"CTYPE{count}{system}": "FRAME", f"CRPIX{count}{system}": 1.0})
        header.update({f"CRVAL{count}{system}": 0.0, f"CDELT{count}{system}": 1.0})
        # Of a matrix that is given by CD, what is not given is zero.
        if any(re.fullmatch(rf"CD\d+_\d+{system}", keyword) for keyword in header):
            header[f"CD{count}_{count}{system}"] = 1.0
    return header


def _renamed(keyword: str, one: Any, two: Any, moved: dict[str, str]) -> str | None:
    """Keyword of a card after axes have moved; None if its axis is left out."""
    if one:
        axis = moved.get(one[2])
        return None if axis is None else f"{one[1]}{axis}{one[3]}"
    if two:
        row, column = moved.get(two[2]), moved.get(two[3])
        return None if row is None or column is None else f"{two[1]}{row}_{column}{two[4]}"
    return keyword


def move_coordinates(header: Any, shift: Sequence[float] | np.ndarray) -> None:
    """Let coordinates follow the content of frames whose shift is undone; their axes are the last."""
    for axis, pixels in enumerate(np.asarray(shift, dtype=float)[::-1]):
        _move_reference_pixel(header, axis + 1, pixels)


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
