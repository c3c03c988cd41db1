"""Frames of every kind of source are those that were put in."""

import io
import sys

import numpy as np
import pytest

from jaxchi2.files.sources import open_frames, read_array

fits = pytest.importorskip("astropy.io.fits")
tifffile = pytest.importorskip("tifffile")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

STACK = (np.arange(5 * 6 * 7).reshape(5, 6, 7) * 37 % 1000).astype(np.uint16)


def write_fits(path, stack):
    fits.writeto(path, stack)
    return path


def write_compressed_fits(path, stack):
    tiled = fits.CompImageHDU(stack.astype(np.int16), name="SCI")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.zeros((2, 2))), tiled]).writeto(path)
    return f"{path}[SCI]"


def write_tiff(path, stack):
    tifffile.imwrite(path, stack, byteorder=">", photometric="minisblack")
    return path


def write_compressed_tiff(path, stack):
    tifffile.imwrite(path, stack, compression="zlib", photometric="minisblack")
    return path


def write_pages(path, stack):
    with tifffile.TiffWriter(path) as file:
        for page in stack:
            file.write(page, compression="zlib", photometric="minisblack")
    return path


def write_ome(path, stack):
    both = np.stack([stack, stack + 1], axis=1)
    tifffile.imwrite(path, both, metadata={"axes": "TCYX"}, photometric="minisblack")
    return f"{path}[C=0]"


def write_colours(path, stack):
    tifffile.imwrite(path, np.stack([stack] * 3, axis=-1), photometric="rgb")
    return path


def write_hdf5(path, stack):
    with h5py.File(path, "w") as file:
        file["raw/frames"] = stack
        file["time"] = np.arange(len(stack))
    return path


def write_hdf5_by_name(path, stack):
    with h5py.File(path, "w") as file:
        file["a/frames"] = stack.astype(">i4")[:, None]
        file["dark"] = 0 * stack
    return f"{path}[a/frames]"


def write_zarr(path, stack):
    zarr.create_array(str(path), data=stack, chunks=(2, 6, 7))
    return path


def write_zarr_group(path, stack):
    group = zarr.open_group(str(path), mode="w")
    group.create_array("0", data=stack[None, :, None])
    group.create_array("1", data=stack[:, ::2, ::2])
    return f"{path}[0]"


def write_npy(path, stack):
    np.save(path, stack.astype(">i2"))
    return path


FILES = {
    "fits": (write_fits, "a.fits"),
    "fits.gz": (write_fits, "a.fits.gz"),
    "fits extension, compressed": (write_compressed_fits, "a.fits"),
    "tiff": (write_tiff, "a.tif"),
    "tiff, compressed": (write_compressed_tiff, "a.tif"),
    "tiff, page by page": (write_pages, "a.tif"),
    "ome-tiff": (write_ome, "a.ome.tif"),
    "tiff, colours": (write_colours, "a.tif"),
    "hdf5": (write_hdf5, "a.h5"),
    "hdf5 dataset": (write_hdf5_by_name, "a.h5"),
    "zarr": (write_zarr, "a.zarr"),
    "zarr array": (write_zarr_group, "a.zarr"),
    "npy": (write_npy, "a.npy"),
}


def holds(frames, stack, dtype=np.float32):
    # Not in order, and not from the beginning.
    for start, stop in ((3, 5), (0, 2), (2, 3), (0, 5)):
        pixels, problems = frames.read(start, stop)
        assert problems == {}
        assert pixels.dtype == dtype
        assert pixels.dtype.isnative
        np.testing.assert_allclose(pixels, stack[start:stop], rtol=1e-6)
    np.testing.assert_allclose(frames.first, stack[0], rtol=1e-6)
    assert frames.length == len(stack)
    assert frames.shape == stack.shape[1:]


@pytest.mark.parametrize("kind", FILES)
def test_file(kind, tmp_path):
    write, name = FILES[kind]
    frames = open_frames(write(tmp_path / name, STACK))
    holds(frames, STACK)
    frames.close()


@pytest.mark.parametrize("suffix", [".fits", ".tif", ".npy", ".png"])
def test_pattern_is_sorted_by_number(suffix, tmp_path):
    from jaxchi2.io import write_image

    # Ten names, of which the tenth would come second by its letters.
    numbers = [1, 2, 3, 9, 10]
    for number, image in zip(numbers, STACK % 251, strict=True):
        if suffix == ".png":
            pytest.importorskip("imageio.v3").imwrite(tmp_path / f"f{number}.png", image.astype(np.uint8))
        else:
            write_image(tmp_path / f"f{number}{suffix}", image)
    (tmp_path / "notes.txt").write_text("not a frame")
    frames = open_frames(tmp_path / f"*{suffix}")
    holds(frames, STACK % 251)
    assert frames.name == f"*{suffix}"
    listed = open_frames([str(tmp_path / f"f{number}{suffix}") for number in numbers])
    holds(listed, STACK % 251)


def test_pattern_of_extensions(tmp_path):
    for i in range(2):
        fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(STACK[i], name="SCI")]).writeto(tmp_path / f"{i}.fits")
    frames = open_frames(f"{tmp_path}/*.fits[SCI]")
    np.testing.assert_array_equal(frames.read(0, 2).pixels, STACK[:2])


def test_memory(dtype):
    """float64 is kept where JAX has it; everything else becomes its default."""
    holds(open_frames(STACK), STACK, dtype)
    holds(open_frames(STACK.astype(">f8")), STACK, dtype)
    holds(open_frames(STACK.astype(np.float32)), STACK)
    holds(open_frames(list(STACK)), STACK, dtype)
    masked = np.ma.masked_equal(STACK, STACK[0, 0, 1])
    expected = np.where(masked.mask, np.nan, STACK)
    holds(open_frames(masked), expected, dtype)
    volumes = np.stack([STACK] * 3)
    assert open_frames(volumes).shape == STACK.shape


class Again:
    def __iter__(self):
        return iter(STACK)


def test_iterables():
    once = open_frames(frame for frame in STACK)
    assert once.length is None
    assert once.one_shot
    np.testing.assert_array_equal(once.read(0, 2).pixels, STACK[:2])
    np.testing.assert_array_equal(once.read(3, 9).pixels, STACK[3:])
    assert len(once.read(5, 7).pixels) == 0
    with pytest.raises(RuntimeError, match="gone by"):
        once.read(0, 1)
    again = open_frames(Again())
    assert not again.one_shot
    for _ in range(2):
        np.testing.assert_array_equal(again.read(1, 9).pixels, STACK[1:])
        np.testing.assert_array_equal(again.read(0, 1).pixels, STACK[:1])


def test_an_iterable_that_fails_is_not_a_frame():
    def frames():
        yield STACK[0]
        raise OSError("the camera is gone")

    source = open_frames(frames())
    with pytest.raises(OSError, match="camera"):
        source.read(0, 2)


def test_bad_frames_of_a_list(tmp_path):
    paths = [tmp_path / f"{i}.npy" for i in range(5)]
    paths[0].write_bytes(b"not an image")
    np.save(paths[1], STACK[1])
    np.save(paths[3], STACK[3, 1:])
    np.save(paths[4], STACK[4])
    frames = open_frames(paths)
    np.testing.assert_array_equal(frames.first, STACK[1])
    pixels, problems = frames.read(0, 5)
    assert list(problems) == [0, 2, 3]
    assert "No such file" in problems[2]
    assert "(5, 7), not (6, 7)" in problems[3]
    assert np.isnan(pixels[[0, 2, 3]]).all()
    np.testing.assert_array_equal(pixels[[1, 4]], STACK[[1, 4]])


def test_bad_frames_of_a_sequence():
    frames = open_frames([STACK[0], "no frame", STACK[2].astype(complex), None, STACK[4]])
    assert list(frames.read(0, 5).problems) == [1, 2, 3]


def cut_fits(data):
    return data[: -(2880 + 100)]


def cut_npy(data):
    return data[:-2]


def damage_tiff(data):
    """Its directory lies behind the pixels: what is damaged is the compressed data of the last page."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[4]
        begin, size = page.dataoffsets[0], page.databytecounts[0]
    return data[:begin] + b"\xff" * size + data[begin + size :]


@pytest.mark.parametrize(
    ("kind", "damage"), [("fits", cut_fits), ("tiff, compressed", damage_tiff), ("npy", cut_npy)]
)
def test_damaged_file(kind, damage, tmp_path):
    """The frames that are there are read; the last is not."""
    write, name = FILES[kind]
    path = write(tmp_path / name, np.tile(STACK, (1, 10, 10)))
    path.write_bytes(damage(path.read_bytes()))
    frames = open_frames(path)
    pixels, problems = frames.read(0, 5)
    assert list(problems) == [4]
    assert np.isfinite(pixels[:4]).all()
    assert np.isnan(pixels[4]).all()
    frames.close()


@pytest.mark.parametrize("kind", ["fits", "tiff", "npy"])
def test_header_that_promises_too_much(kind, tmp_path, monkeypatch):
    """Told at once, not after a look for every frame; and what is worse of those that are there."""
    write, name = FILES[kind]
    path = write(tmp_path / name, np.tile(STACK, (1, 20, 20)))
    data = path.read_bytes()
    begin = data.index(np.tile(STACK, (1, 20, 20)).astype(">i2").tobytes()[:40]) if kind != "fits" else 2880
    for length in (begin + 100, begin + 2 * 6 * 7 * 400 * 2):
        path.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=r"not complete: its header tells of 5 frames .* of which [02] are"
        ):
            open_frames(path)


def test_not_every_frame_is_tried(monkeypatch):
    tried = []

    class Unreadable:
        shape, dtype = (10**9, 8, 8), np.dtype(np.float32)

        def __getitem__(self, key):
            tried.append(key)
            raise OSError("the disk is gone")

    with pytest.raises(ValueError, match="none of the first 1000 frames can be read: the disk is gone"):
        open_frames(Unreadable())
    assert len(tried) == 1000


def test_damaged_chunk_of_hdf5(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("a", data=STACK, chunks=(1, 6, 7), compression="gzip")
        info = data.id.get_chunk_info(2)
    raw = bytearray(path.read_bytes())
    raw[info.byte_offset : info.byte_offset + info.size] = b"\xff" * info.size
    path.write_bytes(raw)
    pixels, problems = open_frames(path).read(0, 5)
    assert list(problems) == [2]
    np.testing.assert_array_equal(pixels[[0, 1, 3, 4]], STACK[[0, 1, 3, 4]])


def test_a_file_that_goes_is_not_so_many_bad_frames(tmp_path):
    np.save(tmp_path / "a.npy", STACK)
    frames = open_frames(tmp_path / "a.npy")
    (tmp_path / "a.npy").unlink()
    with pytest.raises(FileNotFoundError):
        frames.read(0, 2)


def test_read_array(tmp_path):
    for kind in ("hdf5", "zarr", "npy", "fits"):
        write, name = FILES[kind]
        np.testing.assert_array_equal(read_array(write(tmp_path / name, STACK)), STACK)
    with pytest.raises(FileNotFoundError):
        read_array(tmp_path / "missing.h5")


def make(tmp_path):
    np.save(tmp_path / "image.npy", STACK[0])
    np.save(tmp_path / "fortran.npy", np.asfortranarray(STACK))
    np.save(tmp_path / "complex.npy", STACK.astype(complex))
    write_ome(tmp_path / "a.ome.tif", STACK)
    tifffile.imwrite(tmp_path / "colour.tif", np.zeros((9, 8, 3), np.uint8), photometric="rgb")
    write_hdf5_by_name(tmp_path / "a.h5", STACK)
    write_zarr_group(tmp_path / "a.zarr", STACK)
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "bad.npy").write_bytes(b"no")


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("missing.npy", FileNotFoundError, "No such file"),
        ("missing*.npy", FileNotFoundError, "No file matches"),
        ("image.npy", ValueError, "a list of files or a pattern"),
        ("b.png", ValueError, "holds one image"),
        ("fortran.npy", ValueError, "Fortran"),
        ("complex.npy", TypeError, "real numbers"),
        ("bad.npy", ValueError, "bad.npy"),
        ("image.npy[1]", ValueError, "but one thing"),
        ("colour.tif", ValueError, "holds one image"),
        ("a.ome.tif", ValueError, "2 channels"),
        ("a.ome.tif[C=2]", ValueError, "no such channel"),
        ("a.ome.tif[2]", ValueError, r"\[C=0\]"),
        ("a.h5", ValueError, "a/frames, dark"),
        ("a.h5[b]", ValueError, r"no array \[b\]"),
        ("a.zarr", ValueError, "0, 1"),
        (".", ValueError, "is a folder"),
        ("a.xyz", FileNotFoundError, "No such file"),
        (["a.xyz"], ValueError, "'.xyz'"),
        (["missing.npy"], ValueError, "none of 1 frames"),
        ([], ValueError, "none of 0 frames"),
        (iter([]), ValueError, "none of 0 frames"),
        ([np.zeros(3)], ValueError, "2 or 3 axes"),
        (np.zeros((3, 3)), ValueError, "frame axis"),
        (3, TypeError, "frames come from"),
    ],
)
def test_errors(source, error, text, tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        open_frames(source)


@pytest.mark.parametrize(("package", "kind"), [("h5py", "hdf5"), ("zarr", "zarr"), ("tifffile", "tiff")])
def test_missing_package(package, kind, tmp_path, monkeypatch):
    write, name = FILES[kind]
    path = write(tmp_path / name, STACK)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}, which is not installed: pip install"):
        open_frames(path)
