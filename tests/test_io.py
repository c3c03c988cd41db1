import subprocess
import sys

import numpy as np
import pytest

from jaxchi2.data import demo_files, demo_pair
from jaxchi2.io import LUMINANCE, ImageMeta, known_format, read_image, write_image

fits = pytest.importorskip("astropy.io.fits")
tifffile = pytest.importorskip("tifffile")
iio = pytest.importorskip("imageio.v3")


@pytest.fixture
def pixels():
    return np.random.default_rng(1).normal(100, 20, (13, 18))


@pytest.fixture
def mosaic(tmp_path):
    """A file as a space telescope's pipeline writes it: two science extensions and a table."""
    rng = np.random.default_rng(2)
    images = [rng.normal(size=(9, 12)).astype(np.float32) for _ in range(3)]
    primary = fits.PrimaryHDU()
    primary.header["TELESCOP"] = "HST"
    hdus = [primary]
    for image, (name, version) in zip(images, (("SCI", 1), ("ERR", 1), ("SCI", 2)), strict=True):
        hdu = fits.ImageHDU(image, name=name, ver=version)
        hdu.header["EXPTIME"] = (13.5, "seconds")
        hdu.header["CRPIX1"] = 6.5
        hdu.header["CRPIX2"] = 5.0
        hdu.header["CRPIX1A"] = 1.0
        hdus.append(hdu)
    hdus.append(fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])], name="CAT"))
    path = tmp_path / "mosaic.fits"
    fits.HDUList(hdus).writeto(path)
    return path, images


def test_known_format():
    assert known_format("a/b.c/image.FITS") == "FITS"
    assert known_format("image.fits.gz[SCI,2]") == "FITS"
    assert known_format("image.tif") == known_format("image.tiff") == "TIFF"
    assert known_format("image.npy") == "NPY"
    assert known_format("image.png") == "PNG"
    assert known_format("image.JPG") == known_format("image.jpeg") == "JPEG"


@pytest.mark.parametrize(
    ("name", "came"), [("image.bmp", r"suffix '\.bmp'"), ("image", "no suffix"), ("x.gz", r"suffix '\.gz'")]
)
def test_unknown_format_says_what_came_and_what_is_known(name, came):
    with pytest.raises(ValueError, match=rf"{came}.*known are \.fits.*\.npy"):
        read_image(name)
    with pytest.raises(ValueError, match=came):
        write_image(name, np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("extension", "index"),
    [
        ("", 0),
        ("[1]", 0),
        ("[SCI]", 0),
        ("[sci]", 0),
        ("[SCI,1]", 0),
        ("[2]", 1),
        ("[ERR]", 1),
        ("[SCI, 2]", 2),
    ],
)
def test_fits_extensions(mosaic, extension, index):
    path, images = mosaic
    data, meta = read_image(f"{path}{extension}")
    np.testing.assert_array_equal(data, images[index])
    assert data.dtype == np.dtype(np.float32)
    assert data.dtype.isnative
    assert meta.format == "FITS"
    assert meta.path == str(path)
    assert meta.header["EXPTIME"] == 13.5
    assert meta.primary["TELESCOP"] == "HST"


@pytest.mark.parametrize(
    ("extension", "problem"),
    [
        ("[DQ]", r"no extension \[DQ\].*0 PRIMARY,1; 1 SCI,1; 2 ERR,1; 3 SCI,2; 4 CAT,1"),
        ("[9]", "no extension"),
        ("[SCI,7]", "no extension"),
        ("[SCI,x]", "no extension"),
        ("[]", "no extension"),
        ("[0]", "holds no image"),
        ("[CAT]", "holds no image"),
    ],
)
def test_fits_extension_errors(mosaic, extension, problem):
    with pytest.raises(ValueError, match=problem):
        read_image(f"{mosaic[0]}{extension}")


def test_fits_without_image(tmp_path):
    path = tmp_path / "empty.fits"
    fits.PrimaryHDU().writeto(path)
    with pytest.raises(ValueError, match="no extension holds an image"):
        read_image(path)


def test_extension_of_another_format(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    with pytest.raises(ValueError, match="only FITS files have extensions"):
        read_image(f"{tmp_path}/a.npy[1]")


def test_brackets_in_a_file_name(tmp_path, pixels):
    np.save(tmp_path / "a[1].npy", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a[1].npy").data, pixels)


def test_fits_round_trip_keeps_headers_and_extension(mosaic, tmp_path):
    path, images = mosaic
    loaded = read_image(f"{path}[SCI,2]")
    out = tmp_path / "out.fits"
    write_image(out, images[2] + 1, loaded.meta, shift=(1.25, -2.5))
    data, meta = read_image(f"{out}[SCI,2]")
    np.testing.assert_array_equal(data, images[2] + 1)
    assert meta.header["EXPTIME"] == 13.5
    assert meta.header.comments["EXPTIME"] == "seconds"
    assert meta.primary["TELESCOP"] == "HST"
    assert "(-1.25000, +2.50000)" in str(meta.header["HISTORY"]).replace("\n", "")
    # What was at FITS pixel (x, y) is now at (x + 2.5, y - 1.25).
    assert meta.header["CRPIX1"] == 9.0
    assert meta.header["CRPIX1A"] == 3.5
    assert meta.header["CRPIX2"] == 3.75
    assert loaded.meta.header["CRPIX1"] == 6.5, "the caller's header must stay as it was"


def test_world_coordinates_follow_the_content(mosaic, tmp_path):
    wcs = pytest.importorskip("astropy.wcs")
    path, images = mosaic
    loaded = read_image(f"{path}[SCI]")
    header = loaded.meta.header
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 53.1, "CRVAL2": -27.8})
    header.update({"CDELT1": -1e-5, "CDELT2": 1e-5})
    # The content moves by +2 columns and -1 row when a displacement of (1, -2) is undone.
    write_image(tmp_path / "out.fits", np.roll(images[0], (-1, 2), (0, 1)), loaded.meta, shift=(1, -2))
    before, after = (wcs.WCS(h) for h in (header, read_image(tmp_path / "out.fits").meta.header))
    np.testing.assert_allclose(
        after.all_pix2world([[7, 3]], 0), before.all_pix2world([[5, 4]], 0), rtol=1e-14
    )


def test_fits_scaled_integers(tmp_path):
    """BZERO and BLANK describe the stored integers; the float image written back must not carry them."""
    stored = np.arange(48, dtype=np.uint16).reshape(6, 8) + 40000
    fits.PrimaryHDU(stored).writeto(tmp_path / "a.fits")
    data, meta = read_image(tmp_path / "a.fits")
    assert data.dtype == np.uint16
    np.testing.assert_array_equal(data, stored)
    write_image(tmp_path / "b.fits", data + np.float32(0.5), meta)
    back = read_image(tmp_path / "b.fits")
    np.testing.assert_array_equal(back.data, stored + np.float32(0.5))
    assert not {"BZERO", "BSCALE", "BLANK"} & set(back.meta.header)


@pytest.mark.parametrize(
    ("stored", "zero"), [("int16", 0), ("int16", 2**15), ("uint8", -(2**7)), ("int32", 2**31), ("int16", 10)]
)
@pytest.mark.parametrize("compressed", [False, True])
def test_fits_blank_pixels(tmp_path, stored, zero, compressed):
    """With a sign and without, as a file of one image and as a stack."""
    from jaxchi2.files.sources import open_frames

    numbers = np.arange(3 * 20 * 24).reshape(3, 20, 24).astype(stored)
    blank = int(numbers[1, 2, 3])
    hdu = (fits.CompImageHDU if compressed else fits.ImageHDU)(numbers, name="SCI")
    hdu.header["BLANK"] = blank
    if zero:
        hdu.header["BZERO"] = zero
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits")
    expected = np.where(numbers == blank, np.nan, numbers.astype(float) + zero)
    data, meta = read_image(f"{tmp_path}/a.fits[SCI]")
    np.testing.assert_allclose(data, expected, rtol=1e-7)
    frames = open_frames(f"{tmp_path}/a.fits[SCI]")
    np.testing.assert_allclose(frames.read(1, 3).pixels, expected[1:], rtol=1e-7)
    frames.close()
    write_image(tmp_path / "b.fits", data, meta)
    np.testing.assert_array_equal(read_image(tmp_path / "b.fits").data, data)


def test_fits_axes_of_length_one(tmp_path, pixels):
    """Radio images: (Stokes, frequency, y, x)."""
    hdu = fits.PrimaryHDU(pixels[None, None])
    hdu.header["CRPIX1"] = hdu.header["CRPIX3"] = 1.0
    hdu.writeto(tmp_path / "radio.fits")
    data, meta = read_image(tmp_path / "radio.fits")
    np.testing.assert_array_equal(data, pixels)
    write_image(tmp_path / "out.fits", data, meta, shift=(0.5, 0.25))
    header = fits.getheader(tmp_path / "out.fits")
    assert (header["NAXIS"], header["NAXIS3"], header["CRPIX1"], header["CRPIX3"]) == (4, 1, 0.75, 1.0)


def test_fits_compressed_in_and_out(tmp_path):
    image = np.random.default_rng(3).integers(0, 1000, (20, 24), dtype=np.int32)
    hdu = fits.CompImageHDU(image, name="SCI", compression_type="RICE_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "a.fits.fz")
    data, meta = read_image(tmp_path / "a.fits.fz")
    np.testing.assert_array_equal(data, image)
    write_image(tmp_path / "b.fits.gz", data / 2, meta)
    np.testing.assert_array_equal(read_image(f"{tmp_path}/b.fits.gz[SCI]").data, image / 2)
    with pytest.raises(ValueError, match="uncompressed"):
        write_image(tmp_path / "c.fits.fz", data, meta)


def test_fits_without_meta(tmp_path, pixels):
    write_image(tmp_path / "a.fits", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.fits").data, pixels)
    write_image(tmp_path / "a.fits", pixels + 1)
    np.testing.assert_array_equal(read_image(tmp_path / "a.fits").data, pixels + 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_tiff(tmp_path, pixels, dtype):
    tifffile.imwrite(tmp_path / "a.tif", pixels.astype(dtype), photometric="minisblack")
    data, meta = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(data, pixels.astype(dtype))
    assert (meta.format, meta.dtype) == ("TIFF", dtype)
    write_image(tmp_path / "b.tiff", data + 0.25, meta)
    back = read_image(tmp_path / "b.tiff").data
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, (data + 0.25).astype(np.float32))


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_colour(tmp_path, planar):
    rgb = np.random.default_rng(4).integers(0, 255, (7, 8, 3), dtype=np.uint8)
    stored = rgb if planar == "contig" else np.moveaxis(rgb, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").data, rgb @ np.array(LUMINANCE), rtol=1e-5)


def test_tiff_stack_stays_three_dimensional(tmp_path):
    stack = np.random.default_rng(5).normal(size=(3, 7, 8)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, stack)


@pytest.mark.parametrize("dtype", [bool, np.int64, ">f4", np.float64])
def test_npy(tmp_path, pixels, dtype):
    array = (pixels > 100) if dtype is bool else pixels.astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data, meta = read_image(tmp_path / "a.npy")
    np.testing.assert_array_equal(data, array)
    assert data.dtype.isnative
    assert data.dtype.kind in "uif"
    write_image(tmp_path / "b.npy", data, meta)
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png(tmp_path, dtype):
    limit = np.iinfo(dtype).max
    image = np.random.default_rng(6).integers(0, limit, (9, 11), dtype=dtype, endpoint=True)
    iio.imwrite(tmp_path / "a.png", image)
    data, meta = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(data, image)
    assert data.dtype == dtype
    values = data.astype(float)
    values[0, :4] = -5.0, limit + 5.0, 7.6, np.nan
    write_image(tmp_path / "b.png", values, meta)
    back = read_image(tmp_path / "b.png").data
    assert back.dtype == dtype
    assert back[0, :4].tolist() == [0, limit, 8, 0]
    np.testing.assert_array_equal(back[1:], image[1:])


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_colour_and_alpha(tmp_path, channels):
    image = np.random.default_rng(7).integers(0, 255, (9, 11, channels), dtype=np.uint8)
    image[..., 0] = 255
    iio.imwrite(tmp_path / "a.png", image)
    data, meta = read_image(tmp_path / "a.png")
    expected = image[..., 0] if channels == 2 else image[..., :3] @ np.array(LUMINANCE)
    np.testing.assert_allclose(data, expected, rtol=1e-5)
    write_image(tmp_path / "b.png", data, meta)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").data, np.rint(expected))


def test_luminance_keeps_white_white():
    assert sum(LUMINANCE) == pytest.approx(1, abs=1e-12)


def test_jpeg(tmp_path):
    y, x = np.mgrid[:24, :32]
    image = np.rint(127 + 60 * np.sin(y / 5) * np.cos(x / 7)).astype(np.uint8)
    iio.imwrite(tmp_path / "a.jpg", image, quality=95)
    data, meta = read_image(tmp_path / "a.jpg")
    assert meta.format == "JPEG"
    # Compression at this quality changes a smooth picture by a few grey levels.
    np.testing.assert_allclose(data.astype(float), image, atol=4)
    write_image(tmp_path / "b.jpeg", data + 0.3, meta)
    np.testing.assert_allclose(read_image(tmp_path / "b.jpeg").data.astype(float), image, atol=8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_pictures_do_not_hold_floats(tmp_path, pixels, name):
    meta = ImageMeta("a.fits", "FITS", pixels.dtype, pixels.shape)
    for like in (None, meta):
        with pytest.raises(ValueError, match=r"not 2 dimensions of float64: write FITS, TIFF or NPY"):
            write_image(tmp_path / name, pixels, like)
    assert not (tmp_path / name).exists()


def test_write_to_extension_is_refused(tmp_path, pixels):
    with pytest.raises(ValueError, match="plain file name"):
        write_image(f"{tmp_path}/a.fits[1]", pixels)


@pytest.mark.parametrize("name", ["a.fits", "a.fits.gz", "a.tif", "a.npy", "a.png", "a.jpg"])
@pytest.mark.parametrize("content", [b"", b"this is not an image " * 200])
def test_garbage_is_a_plain_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError)):
        read_image(tmp_path / name)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.fits"):
        read_image(tmp_path / "missing.fits[1]")


@pytest.mark.parametrize("values", [np.array([[1j, 2]]), np.array([["a", "b"]])])
def test_only_real_numbers(tmp_path, values):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match="real numbers"):
        read_image(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("name", "package"), [("a.fits", "astropy"), ("a.tif", "tifffile"), ("a.png", "imageio")]
)
def test_missing_package_names_the_extra(tmp_path, monkeypatch, name, package):
    (tmp_path / name).write_bytes(b"x")
    for module in [m for m in sys.modules if m.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.*pip install "jaxchi2\[io\]"'):
        read_image(tmp_path / name)
    with pytest.raises(ImportError, match=r'pip install "jaxchi2\[io\]"'):
        write_image(tmp_path / name, np.zeros((4, 4), np.uint8))


def test_import_is_light():
    code = (
        "import sys, jaxchi2.io, jaxchi2.data\n"
        "heavy = {'astropy', 'tifffile', 'imageio', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_demo_pair():
    reference, image = demo_pair()
    assert reference.shape == image.shape == (192, 192)
    assert reference.dtype == image.dtype == np.uint8
    for path, array in zip(demo_files(), (reference, image), strict=True):
        np.testing.assert_array_equal(read_image(path).data, array)
        assert path.stat().st_size < 150_000
    assert "public domain" in (demo_files()[0].parent / "README.md").read_text(encoding="utf-8")
