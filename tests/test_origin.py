"""What the files of aligned images say beside their pixels: coordinates, sizes of pixels, units."""

import numpy as np
import pytest

import jaxchi2
import jaxchi2.stream
from jaxchi2.files.sources import open_frames
from jaxchi2.files.stackfile import open_stack_file
from jaxchi2.io import read_image, write_image
from jaxchi2.stream import register_file

fits = pytest.importorskip("astropy.io.fits")
wcs = pytest.importorskip("astropy.wcs")
u = pytest.importorskip("astropy.units")
nddata = pytest.importorskip("astropy.nddata")
tifffile = pytest.importorskip("tifffile")

SHAPE = (20, 24)
SKY = (53.1, -27.8)
"""Where the star is, in degrees."""
SHIFTS = np.array([[0.0, 0.0], [1.25, -2.0], [-0.5, 1.75], [2.0, 0.5]])
STAR = np.array([9.0, 11.0])
OPTIONS = {"boundary": "wrap", "verdict": False, "max_shift": 4.0, "progress": False}


def star(shift):
    y, x = np.indices(SHAPE)
    (cy, cx) = STAR + shift
    return (100 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)).astype(np.float32)


def centre(image):
    return np.array([np.sum(image * axis) for axis in np.indices(SHAPE)]) / np.sum(image)


def pointing(shift, matrix="CD"):
    """Coordinates by which the star has its place on the sky wherever it is in the frame."""
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": SKY[0], "CRVAL2": SKY[1]})
    # Away from the star, so that the matrix counts too.
    header.update({"CRPIX2": STAR[0] + shift[0] + 1 + 4, "CRPIX1": STAR[1] + shift[1] + 1 - 3})
    scale = np.array([[-1e-4, 2e-5], [2e-5, 1e-4]])
    if matrix != "CD":
        header.update({"CDELT1": 1e-4, "CDELT2": 1e-4, "WCSAXES": 2})
        scale = scale / 1e-4
    for i, j in np.ndindex(2, 2):
        header[f"{matrix}{i + 1}_{j + 1}"] = scale[i, j]
    header.update({"CRPIX1A": header["CRPIX1"], "OBJECT": "star", "BUNIT": "adu", "HIERARCH a long one": 3})
    return header


@pytest.fixture
def night(tmp_path):
    """Files of one frame each, in which the star is at one place of the sky."""
    paths = []
    for i, shift in enumerate(SHIFTS):
        hdu = fits.ImageHDU(star(shift)[None], pointing(shift), name="SCI")
        primary = fits.PrimaryHDU()
        primary.header["TELESCOP"] = "HST"
        paths.append(f"{tmp_path}/{i}.fits[SCI]")
        fits.HDUList([primary, hdu]).writeto(tmp_path / f"{i}.fits")
    return paths


def star_on_the_sky(header, image):
    y, x = centre(image)
    return np.array([float(c) for c in wcs.WCS(header).celestial.wcs_pix2world(x, y, 0)])


class Seen(Exception):
    """What would have been registered: frames, reference, errors."""


def seen_by(*arguments, **options):
    """What `register_file` hands on to `register_stack`."""

    def stop(*given, **_):
        raise Seen(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxchi2.stream, "register_stack", stop)
        with pytest.raises(Seen) as caught:
            register_file(*arguments, **options, **OPTIONS)
    return caught.value.args


@pytest.mark.parametrize("reference", ["first", "mean", "file"])
def test_coordinates_of_an_aligned_stack(reference, night, tmp_path):
    there = star_on_the_sky(pointing(SHIFTS[1]), star(SHIFTS[1]))
    given = reference
    if reference == "file":
        given = tmp_path / "reference.fits"
        fits.writeto(given, star([0.75, 0.5]), pointing([0.75, 0.5], "PC"))
    register_file(night, given, 1.0, aligned=tmp_path / "out.fits", **OPTIONS)
    header, data = fits.getheader(tmp_path / "out.fits"), fits.getdata(tmp_path / "out.fits")
    assert data.shape == (4, *SHAPE)
    for frame in data:
        # A hundredth of a pixel: the mean is blurred, and its middle is not that of its blurred star.
        np.testing.assert_allclose(star_on_the_sky(header, frame), there, rtol=0, atol=1e-6)
    assert header["BUNIT"] == "adu"
    assert ("TELESCOP" in header) is (reference != "file")
    assert "coordinates: those of the" in str(header["HISTORY"])
    frame_axis = wcs.WCS(header).sub([3])
    np.testing.assert_allclose(frame_axis.wcs_pix2world([[0], [3]], 0), [[0], [3]])


def test_coordinates_of_a_cube(tmp_path):
    """Its own third axis stays, here that of time, behind axes of length one in another order."""
    header = pointing(SHIFTS[0], "PC")
    header.update({"CTYPE3": "STOKES", "CTYPE4": "UTC", "CRVAL4": 10.0, "CDELT4": 2.0, "CRPIX4": 1.0})
    header.update({"CUNIT4": "s", "WCSAXES": 4, "PC4_4": 1.0})
    stack = np.stack([star(shift) for shift in SHIFTS])
    fits.writeto(tmp_path / "cube.fits", stack[:, None], header)
    register_file(tmp_path / "cube.fits", "first", 1.0, aligned=tmp_path / "out.fits", **OPTIONS)
    found = fits.getheader(tmp_path / "out.fits")
    assert (found["CTYPE3"], found["CDELT3"], found["WCSAXES"], found["NAXIS"]) == ("UTC", 2.0, 3, 3)
    assert not [key for key in found if key == "CTYPE4" or key.endswith("_4")]
    there = star_on_the_sky(pointing(SHIFTS[0]), star(SHIFTS[0]))
    np.testing.assert_allclose(
        star_on_the_sky(found, fits.getdata(tmp_path / "out.fits")[3]), there, atol=1e-7
    )
    times = wcs.WCS(found).sub([3])
    np.testing.assert_allclose(times.wcs_pix2world([[3]], 0), [[16.0]])


def test_stack_without_coordinates(tmp_path):
    register_file(np.stack([star(s) for s in SHIFTS]), "first", 1.0, aligned=tmp_path / "a.fits", **OPTIONS)
    assert "CRPIX1" not in fits.getheader(tmp_path / "a.fits")


MICROSCOPE = {
    "imagej": (
        {"imagej": True, "resolution": (5.0, 4.0), "resolutionunit": 1},
        {"axes": "TYX", "unit": r"\u00B5m", "finterval": 0.5, "spacing": 2.0},
    ),
    "ome": (
        {"ome": True},
        {
            "axes": "TYX",
            "PhysicalSizeX": 0.2,
            "PhysicalSizeXUnit": "µm",
            "PhysicalSizeY": 250.0,
            "PhysicalSizeYUnit": "nm",
            "TimeIncrement": 500.0,
            "TimeIncrementUnit": "ms",
        },
    ),
    "tags": ({"resolution": (5.0, 4.0), "resolutionunit": "CENTIMETER"}, {"axes": "TYX"}),
}


def size_of(path):
    """Size of a pixel and of a step in time as the file says it, with units."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if file.is_ome:
            image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
            return {key: value for key, value in image.items() if key.startswith(("Physical", "Time"))}
        told = file.imagej_metadata or {}
        tags = {"resolution": page.resolution, "unit": page.resolutionunit}
        return tags | {key: told[key] for key in ("unit", "finterval", "spacing") if key in told}


@pytest.mark.parametrize("kind", MICROSCOPE)
def test_pixel_size_of_aligned_tiff(kind, tmp_path):
    options, metadata = MICROSCOPE[kind]
    stack = np.stack([star(shift) for shift in SHIFTS])
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", metadata=metadata, **options)
    frames = open_frames(path)
    output = open_stack_file(
        tmp_path / "a.tif", 4, SHAPE, np.dtype(np.float32), 2, create=True, origin=frames.origin
    )
    output.write(2, stack[2:])
    output.write(0, stack[:2])
    output.close()
    frames.close()
    assert size_of(tmp_path / "a.tif") == size_of(path)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), stack)
    again = open_frames(tmp_path / "a.tif")
    again.close()
    assert again.length == 4


@pytest.mark.parametrize("kind", MICROSCOPE)
def test_pixel_size_of_one_aligned_tiff(kind, tmp_path):
    options, metadata = MICROSCOPE[kind]
    metadata = {key: value for key, value in metadata.items() if not key.startswith("Time")}
    path = tmp_path / "image.tif"
    tifffile.imwrite(
        path, star([0, 0]), photometric="minisblack", metadata=metadata | {"axes": "YX"}, **options
    )
    data, meta = read_image(path)
    write_image(tmp_path / "a.tif", data + 1, meta, shift=(1.0, 2.0))
    assert size_of(tmp_path / "a.tif") == size_of(path)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, data + 1)


def test_what_imagej_cannot_hold_is_told_as_ome(tmp_path):
    options, metadata = MICROSCOPE["imagej"]
    path = tmp_path / "movie.tif"
    tifffile.imwrite(path, np.zeros((3, *SHAPE), np.float32), metadata=metadata, **options)
    frames = open_frames(path)
    frames.close()
    double = np.dtype(np.float64)
    open_stack_file(tmp_path / "a.tif", 3, SHAPE, double, 2, create=True, origin=frames.origin).close()
    expected = {"PhysicalSizeX": 0.2, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0, "TimeIncrement": 0.5}
    found = size_of(tmp_path / "a.tif")
    assert {key: value for key, value in found.items() if not key.endswith("Unit")} == expected
    assert {found[key] for key in found if key.startswith("Physical") and key.endswith("Unit")} == {"µm"}
    assert found["TimeIncrementUnit"] == "s"


# Units and masks of frames in memory


def test_frames_in_several_units(dtype):
    stack = np.stack([star(shift) for shift in SHIFTS]).astype(dtype)
    hole = np.zeros(SHAPE, bool)
    hole[3, 4] = True
    expected = np.where(hole, np.nan, stack)
    for source in (
        [nddata.CCDData(frame, unit="Jy", mask=hole) for frame in stack],
        [nddata.CCDData(stack[0], unit="Jy", mask=hole), *(np.ma.MaskedArray(x, hole) for x in stack[1:])],
        nddata.CCDData(stack, unit="Jy", mask=np.stack([hole] * 4)),
        (nddata.CCDData(1000 * frame, unit="mJy", mask=hole) for frame in stack),
    ):
        frames = open_frames(source)
        scale = 1000 if frames.unit == u.mJy else 1
        np.testing.assert_allclose(frames.read(0, 4).pixels, scale * expected, rtol=1e-6)
    mixed = open_frames([stack[0] * u.Jy, 1000 * stack[1] * u.mJy, stack[2] * u.s])
    pixels, problems = mixed.read(0, 3)
    np.testing.assert_allclose(pixels[:2], stack[:2], rtol=1e-6)
    assert "has the unit s" in problems[2]


def test_stream_in_several_units():
    stack = np.stack([star(shift) for shift in SHIFTS])
    seen = seen_by(stack * u.Jy, 1000 * stack[0] * u.mJy, 2000 * u.mJy)
    for found, expected in zip(seen, (stack, stack[0], 2.0), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for arguments, options in (
        ((stack * u.Jy, "first", 3 * u.s), {}),
        ((stack, "first", 3 * u.mJy), {}),
        ((stack * u.Jy, stack[0] * u.s), {}),
        ((stack * u.Jy, "first", 1.0), {"reference_err": 3 * u.s}),
        ((stack * u.Jy, "first", open_frames(stack * u.mJy)), {}),
    ):
        with pytest.raises(TypeError, match="has the unit"):
            register_file(*arguments, **options, **OPTIONS)


def test_what_holds_frames_but_is_no_array():
    with pytest.raises(TypeError, match=r"frames is a NDData, not an array: pass frames\.data"):
        open_frames(nddata.NDData(np.zeros((3, 4, 5))))
    with pytest.raises(TypeError, match=r"frame is a PrimaryHDU, not an array: pass frame\.data"):
        open_frames(fits.HDUList([fits.PrimaryHDU(star([0, 0]))]))


# Units of files


def write_fits(path, data, unit=None):
    fits.writeto(path, data, fits.Header({} if unit is None else {"BUNIT": unit}))
    return path


@pytest.mark.parametrize("unit", ["ELECTRONS/S", "", None])
def test_a_unit_that_is_not_known_is_none(unit, tmp_path):
    loaded = read_image(write_fits(tmp_path / "a.fits", star([0, 0]), unit))
    assert loaded.meta.unit is None
    np.testing.assert_array_equal(loaded.pixels(u.Jy), loaded.data)


def test_errors_in_files_are_converted_or_refused(tmp_path):
    stack = np.stack([star(shift) for shift in SHIFTS])
    err = np.full(SHAPE, 2.0, np.float32)
    cube = write_fits(tmp_path / "cube.fits", stack, "MJy/sr")
    reference = write_fits(tmp_path / "reference.fits", 1000 * stack[0], "kJy/sr")
    errors = write_fits(tmp_path / "err.fits", 1000 * err, "kJy/sr")
    listed = [
        write_fits(tmp_path / f"{i}.fits", stack[i] * (1000 if i else 1), "kJy/sr" if i else "MJy/sr")
        for i in range(4)
    ]
    variance = write_fits(tmp_path / "variance.fits", err**2, "MJy2 sr-2")
    seconds = write_fits(tmp_path / "seconds.fits", 0 * stack + 1, "s")
    for source in (cube, listed):
        for found, expected in zip(seen_by(source, reference, errors), (stack, stack[0], err), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_array_equal(seen_by(source, reference, 1.0, fit_gain=True)[1], 1000 * stack[0])
        for wrong, name in (
            (variance, r"variance\.fits has the unit MJy2 / sr2"),
            (seconds, "err has the unit s"),
        ):
            with pytest.raises(TypeError, match=name):
                register_file(source, "first", wrong, **OPTIONS)
    # Nothing is known to be wrong here.
    np.testing.assert_array_equal(seen_by(stack, "first", errors)[2], 1000 * err)


def test_units_on_the_command_line(tmp_path, capsys):
    from jaxchi2.cli import main

    reference = write_fits(tmp_path / "a.fits", star(SHIFTS[0]), "Jy")
    image = write_fits(tmp_path / "b.fits", 1000 * star(SHIFTS[1]), "mJy")
    variance = write_fits(tmp_path / "variance.fits", np.ones(SHAPE, np.float32), "Jy2")
    with pytest.raises(SystemExit):
        main(["register", str(reference), str(image), "--err", str(variance)])
    assert "variance.fits has the unit Jy2, and it is wanted in mJy" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(jaxchi2, "register", lambda *given, **_: seen.append(given) or 1 / 0)
        err = write_fits(tmp_path / "err.fits", np.ones(SHAPE, np.float32), "Jy")
        for options in ([], ["--fit-gain"]):
            with pytest.raises(ZeroDivisionError):
                main(["register", str(reference), str(image), "--err", str(err), *options])
    np.testing.assert_allclose(seen[0][0], 1000 * star(SHIFTS[0]), rtol=1e-6)
    np.testing.assert_allclose(seen[0][2], np.full(SHAPE, 1000.0), rtol=1e-6)
    np.testing.assert_array_equal(seen[1][0], star(SHIFTS[0]))
