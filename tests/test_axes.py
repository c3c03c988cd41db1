"""Which axis of a microscope's file is time, and which channel, position and plane are read."""

from itertools import permutations

import numpy as np
import pytest

from jaxchi2.files.axes import LUMINANCE, ngff_axes, select
from jaxchi2.files.sources import open_frames, read_array
from jaxchi2.io import read_image

tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

# Five times, two channels, three planes.
MOVIE = (np.arange(5 * 2 * 3 * 6 * 7).reshape(5, 2, 3, 6, 7) * 37 % 1009).astype(np.uint16)


def ordered(axes, data=MOVIE):
    """The movie with its axes in another order; what is not named is the first of its axis."""
    left = "".join(letter for letter in "TCZYX" if letter in axes)
    data = data[tuple(slice(None) if letter in axes else 0 for letter in "TCZYX")]
    return np.transpose(data, [left.index(letter) for letter in axes])


def write(path, axes, **options):
    tifffile.imwrite(path, ordered(axes), metadata={"axes": axes}, photometric="minisblack", **options)
    return path


def holds(source, frames):
    found = open_frames(source)
    assert (found.length, found.shape) == (len(frames), frames.shape[1:])
    np.testing.assert_array_equal(found.first, frames[0])
    # Not in order, and not from the beginning.
    for start, stop in ((len(frames) - 2, len(frames)), (0, 2), (0, len(frames))):
        pixels, problems = found.read(start, stop)
        assert problems == {}
        np.testing.assert_array_equal(pixels, frames[start:stop])
    found.close()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["".join(p) for p in permutations("TCZ")])
def test_time_is_the_frame_axis_wherever_it_comes(order, compression, tmp_path):
    path = write(tmp_path / "a.ome.tif", f"{order}YX", compression=compression)
    holds(f"{path}[C=1]", MOVIE[:, 1])
    holds(f"{path}[C=0,Z=2]", MOVIE[:, 0, 2])
    np.testing.assert_array_equal(read_array(f"{path}[T=3,C=1]"), MOVIE[3, 1])
    np.testing.assert_array_equal(read_image(f"{path}[Z=1,T=4,C=0]").data, MOVIE[4, 0, 1])
    with pytest.raises(ValueError, match=r"has 2 channels .*a\.ome\.tif\[C=0\]"):
        open_frames(path)
    with pytest.raises(ValueError, match=r"no such channel, C=2"):
        open_frames(f"{path}[C=2]")


@pytest.mark.parametrize(
    ("axes", "choice", "frames"),
    [
        ("CTYX", "[C=1]", MOVIE[:, 1, 0]),
        ("ZTYX", "", MOVIE[:, 0]),
        ("ZTYX", "[Z=1]", MOVIE[:, 0, 1]),
        ("TZYX", "", MOVIE[:, 0]),
        ("TYX", "[C=0]", MOVIE[:, 0, 0]),
        ("CZYX", "[C=1]", MOVIE[0, 1]),
        ("ZCYX", "[C=1]", MOVIE[0, 1]),
        # There is nothing else that could be the frames.
        ("ZYX", "", MOVIE[0, 0]),
        ("CYX", "", MOVIE[0, :, 0]),
    ],
)
def test_some_of_the_axes(axes, choice, frames, tmp_path):
    holds(f"{write(tmp_path / 'a.ome.tif', axes)}{choice}", frames)


def test_imagej(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ordered("TCYX"), imagej=True, metadata={"axes": "TCYX"})
    holds(f"{tmp_path}/a.tif[C=1]", MOVIE[:, 1, 0])


def test_one_image_is_no_mixture(tmp_path):
    """Channels and times of a file that is read as one image would be planes of a volume."""
    with pytest.raises(ValueError, match=r"has 2 channels .*\[C=0\]"):
        read_image(write(tmp_path / "a.ome.tif", "CYX"))
    np.testing.assert_array_equal(read_image(f"{tmp_path}/a.ome.tif[C=1]").data, MOVIE[0, 1, 0])
    with pytest.raises(ValueError, match=r"has 5 times .*\[T=0\]"):
        read_image(write(tmp_path / "b.ome.tif", "TZYX"))
    np.testing.assert_array_equal(read_image(f"{tmp_path}/b.ome.tif[T=2]").data, MOVIE[2, 0])
    np.testing.assert_array_equal(read_image(write(tmp_path / "c.ome.tif", "ZYX")).data, MOVIE[0, 0])


@pytest.mark.parametrize("planar", [False, True])
def test_colours_of_a_movie_of_volumes(planar, tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (3, 4, 3, 6, 7), dtype=np.uint8)
    axes, stored = ("ZTSYX", colours) if planar else ("ZTYXS", np.moveaxis(colours, 2, -1))
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        stored,
        metadata={"axes": axes},
        photometric="rgb",
        planarconfig="separate" if planar else "contig",
    )
    frames = open_frames(tmp_path / "a.ome.tif")
    pixels = frames.read(0, 4).pixels
    frames.close()
    expected = np.einsum("ztsyx,s->tzyx", colours, LUMINANCE)
    np.testing.assert_allclose(pixels, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["a.ome.tif", "a.tif"])
def test_a_second_position_is_not_dropped(name, tmp_path):
    path = tmp_path / name
    with tifffile.TiffWriter(path) as file:
        for position in range(2):
            file.write(MOVIE[:, position, 0], metadata={"axes": "TYX"}, photometric="minisblack")
    for read in (open_frames, read_image):
        with pytest.raises(ValueError, match=r"has 2 images, P=0 TYX \(5, 6, 7\); P=1 .*\[P=0\]"):
            read(path)
    for position in range(2):
        holds(f"{path}[P={position}]", MOVIE[:, position, 0])
    np.testing.assert_array_equal(read_image(f"{path}[P=1,T=2]").data, MOVIE[2, 1, 0])
    with pytest.raises(ValueError, match=r"no such position, P=2 of 2"):
        open_frames(f"{path}[P=2]")


def test_small_copies_are_not_positions(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(MOVIE[:, 0, 0], photometric="minisblack")
        file.write(MOVIE[0, 0, 0, ::2, ::2], photometric="minisblack", subfiletype=1)
    holds(path, MOVIE[:, 0, 0])


def test_pages_written_one_by_one_are_one_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in MOVIE[:, 0, 0]:
            file.write(page, compression="zlib", photometric="minisblack")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").data, MOVIE[:, 0, 0])


def test_a_damaged_page_is_one_frame_where_time_is_not_first(tmp_path):
    path = write(tmp_path / "a.ome.tif", "ZTYX", compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages[1 * len(MOVIE) + 3]
        begin, size = page.dataoffsets[0], page.databytecounts[0]
    data = bytearray(path.read_bytes())
    data[begin : begin + size] = b"\xff" * size
    path.write_bytes(data)
    frames = open_frames(path)
    pixels, problems = frames.read(0, 5)
    frames.close()
    assert list(problems) == [3]
    np.testing.assert_array_equal(np.delete(pixels, 3, 0), np.delete(MOVIE[:, 0], 3, 0))


def write_ngff(path, version, data=MOVIE, axes="tczyx", group=None):
    """As the specification of OME-NGFF has it, with a coarser level."""
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": name, "type": kinds.get(name, "space")} for name in axes]
    multiscale = {
        "axes": named if version in ("0.4", "0.5") else list(axes),
        "datasets": [{"path": "0"}, {"path": "1"}],
    }
    if version == "0.2":
        del multiscale["axes"]
    inner = {"multiscales": [multiscale | {"version": version}]}
    attributes = {"ome": {"version": version, **inner}} if version == "0.5" else inner
    root = zarr.open_group(str(path), mode="a", zarr_format=3 if version == "0.5" else 2)
    image = root if group is None else root.require_group(group)
    image.attrs.update(attributes)
    image.create_array("0", data=data)
    image.create_array("1", data=data[..., ::2, ::2])
    return path


@pytest.mark.parametrize("version", ["0.2", "0.3", "0.4", "0.5"])
def test_ngff(version, tmp_path):
    path = write_ngff(tmp_path / "a.zarr", version)
    holds(f"{path}[C=1]", MOVIE[:, 1])
    holds(f"{path}[C=1,Z=2]", MOVIE[:, 1, 2])
    holds(f"{path}[1,C=0]", MOVIE[:, 0, :, ::2, ::2])
    # The array itself, whose axes its folder knows.
    holds(f"{path}/0[C=1]", MOVIE[:, 1])
    np.testing.assert_array_equal(read_array(f"{path}[T=3,C=1]"), MOVIE[3, 1])
    for name in (path, f"{path}[0]", f"{path}/0"):
        with pytest.raises(ValueError, match=r"has 2 channels .*C=0\]"):
            open_frames(name)
    with pytest.raises(ValueError, match=r"no such channel, C=2"):
        open_frames(f"{path}[C=2]")


def test_axes_of_ngff_in_any_order(tmp_path):
    holds(f"{write_ngff(tmp_path / 'a.zarr', '0.4', MOVIE[:, :, 0], 'tcyx')}[C=1]", MOVIE[:, 1, 0])
    holds(f"{write_ngff(tmp_path / 'b.zarr', '0.5', ordered('CTYX'), 'ctyx')}[C=1]", MOVIE[:, 1, 0])
    holds(write_ngff(tmp_path / "c.zarr", "0.5", ordered("ZTYX"), "ztyx"), MOVIE[:, 0])
    # One time and one channel, as of a stack of slices.
    holds(write_ngff(tmp_path / "d.zarr", "0.4", MOVIE[:1, :1]), MOVIE[0, 0])


def test_several_images_of_ngff(tmp_path):
    path = tmp_path / "a.zarr"
    for field in range(2):
        write_ngff(path, "0.5", MOVIE[:, field, 0], "tyx", group=f"A/1/{field}")
    with pytest.raises(ValueError, match=r"a\.zarr holds the images A/1/0, A/1/1: .*a\.zarr\[A/1/0\]"):
        open_frames(path)
    holds(f"{path}[A/1/1]", MOVIE[:, 1, 0])
    holds(f"{path}[A/1/1/0]", MOVIE[:, 1, 0])
    with pytest.raises(ValueError, match="no array"):
        open_frames(f"{path}[A/2/0]")


def test_labels_of_ngff_are_not_meant(tmp_path):
    path = write_ngff(tmp_path / "a.zarr", "0.4", MOVIE[:, 0, 0], "tyx")
    write_ngff(path, "0.4", np.zeros_like(MOVIE[:, 0, 0]), "tyx", group="labels/cells")
    holds(path, MOVIE[:, 0, 0])


def test_a_choice_needs_names_of_axes(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=MOVIE[:, 0, 0])
    with pytest.raises(ValueError, match="does not say what its axes are"):
        open_frames(f"{tmp_path}/a.zarr[C=1]")


def test_axes_without_a_name_that_is_known():
    multiscale = {"axes": [{"name": "tau"}, {"name": "z", "type": "space"}, {"name": "y"}, {"name": "x"}]}
    assert ngff_axes(multiscale, 4) == "QZYX"
    assert select("a", "QQYX", (4, 3, 6, 7), {}).frame == 0
    with pytest.raises(ValueError, match=r"has 3 images along axis H .*a\[H=0\]"):
        select("a", "THYX", (4, 3, 6, 7), {})
