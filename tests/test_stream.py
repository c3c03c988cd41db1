"""A stream's rows are those of the stack in memory, whatever becomes of the process in between."""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import enable_x64

import jaxchi2
from jaxchi2 import Status
from jaxchi2.coadd import align_stack
from jaxchi2.files.sources import open_frames
from jaxchi2.stream import register_file

Table = pytest.importorskip("astropy.table").Table
fits = pytest.importorskip("astropy.io.fits")
tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
parquet = pytest.importorskip("pyarrow.parquet")

# One shape of chunk, one error and one boundary nearly everywhere, so that two programs do for most tests.
SIZE, COUNT, CHUNK, ERR = 16, 10, 4, 0.2
OPTIONS = {"chunk": CHUNK, "boundary": "wrap", "progress": False}


def made(count=COUNT):
    rng = np.random.default_rng(5)
    scene = rng.normal(size=(SIZE, SIZE))
    frames = [np.roll(scene, rng.integers(-3, 4, 2), (0, 1)) for _ in range(count)]
    return (100 * (np.stack(frames) + ERR * rng.normal(size=(count, SIZE, SIZE)))).astype(np.int16)


STACK = made()
# The reference has noise too.
SIGMA = 150 * ERR
# A pixel that marks a frame in which there is something else.
STRANGE = -4321


@pytest.fixture(autouse=True, scope="module")
def _single_precision():
    with enable_x64(False):
        yield


@pytest.fixture
def cube(tmp_path):
    path = tmp_path / "cube.fits"
    fits.writeto(path, STACK)
    return path


class Stopped(list):
    """Frames of which the seventh stops the process when it is to be registered, not when it is looked at."""

    looked = False

    def __getitem__(self, i):
        if i == 6 and self.looked:
            raise KeyboardInterrupt
        self.looked |= i == 6
        return super().__getitem__(i)


class Again:
    """An iterable that can be begun anew."""

    frames = STACK

    def __iter__(self):
        return iter(self.frames)


def same(result, expected):
    assert len(result.status) == len(expected.status)
    for name in ("shift", "chi2", "p_value", "gain", "background"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=2e-5, atol=2e-5)
    for name in ("stderr", "covariance"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(result.status, expected.status)
    np.testing.assert_array_equal(result.dof, expected.dof)


@pytest.mark.parametrize("reference", ["first", "mean", "array"])
def test_equals_the_stack_in_memory(reference, cube):
    """Big-endian integers in a file, in chunks, the last of which is not full."""
    given = STACK[3].astype(np.float32) if reference == "array" else reference
    result = register_file(cube, given, SIGMA, **OPTIONS)
    same(result, jaxchi2.register_stack(STACK.astype(np.float32), given, SIGMA, boundary="wrap"))
    for source in (STACK, list(STACK), Again(), *([] if reference == "mean" else [iter(STACK)])):
        again = register_file(source, given, SIGMA, **OPTIONS)
        np.testing.assert_array_equal(again.shift, result.shift)
        np.testing.assert_array_equal(again.chi2, result.chi2)


@pytest.fixture
def quick(monkeypatch):
    """A register_stack of whole pixels in NumPy, where it is the stream that is tested; its χ² tells err."""

    def register_stack(stack, reference, err=None, **options):
        if isinstance(reference, str):
            assert reference == "previous"
            reference = np.concatenate([stack[:1], stack[:-1]])
        axes = tuple(range(1, stack.ndim))
        spectra = np.fft.fftn(stack, axes=axes) * np.conj(
            np.fft.fftn(np.broadcast_to(reference, stack.shape), axes=axes)
        )
        peaks = np.fft.ifftn(spectra, axes=axes).real.reshape(len(stack), -1).argmax(1)
        size = np.asarray(stack.shape[1:])
        shift = (np.stack(np.unravel_index(peaks, size), -1) + size // 2) % size - size // 2
        err = np.asarray(err, np.float32)
        number = np.ones(len(stack), np.float32)
        chi2 = number * (err if err.ndim < 2 else err.reshape(-1, size.prod()).mean(1))
        covariance = np.broadcast_to(0.01 * np.eye(len(size)) + 0.001, (len(stack), len(size), len(size)))
        found = jaxchi2.Registration(*[number] * len(jaxchi2.Registration._fields))
        return found._replace(
            shift=shift.astype(np.float32),
            covariance=covariance.astype(np.float32),
            nuisance_covariance=np.ones((len(stack), 2, 2), np.float32),
            chi2=chi2,
            dof=np.full(len(stack), size.prod()),
            status=np.zeros(len(stack), np.int32),
            gain=np.float32(1.1) * number,
        )

    monkeypatch.setattr("jaxchi2.stream.register_stack", register_stack)


def test_steps(tmp_path):
    """As `register_stack` finds them; a chunk begins with a step from the end of the last."""
    options = OPTIONS | {"chunk": 5, "max_shift": 7.0}
    result = register_file(STACK, "previous", SIGMA, **options)
    chains = [np.concatenate([STACK[:1], STACK[:5]]), STACK[4:10]]
    for chain, found in zip(chains, (result.shift[:5], result.shift[5:]), strict=True):
        expected = jaxchi2.register_stack(
            chain.astype(np.float32), "previous", SIGMA, boundary="wrap", max_shift=7.0
        )
        np.testing.assert_array_equal(found, expected.shift[1:])


@pytest.mark.usefixtures("quick")
def test_steps_go_on_after_gaps_and_interruptions(tmp_path):
    frames = [*STACK[:3], "unreadable", *STACK[3:]]
    table, aligned = tmp_path / "t.csv", tmp_path / "a.npy"
    arguments = (frames, "previous", SIGMA)
    result = register_file(*arguments, table=table, aligned=aligned, **OPTIONS)
    assert result.failed.tolist() == [3]
    assert set(result.problems) == {3}
    kept = np.delete(np.arange(COUNT + 1), 3)
    np.testing.assert_array_equal(result.shift[kept], register_file(STACK, *arguments[1:], **OPTIONS).shift)
    # Aligned by the sum of the steps, all lie on the first.
    images = np.load(aligned)
    assert np.isnan(images[3]).all()
    assert np.nanstd(images[kept] - STACK[0], axis=(1, 2)).max() < 2 * SIGMA
    # Frame 3, the last of the first chunk, is not there to be gone on from.
    whole = table.read_bytes()
    for chunks in (1, 2):
        table.write_bytes(b"".join(whole.splitlines(True)[: 1 + chunks * CHUNK]))
        register_file(*arguments, table=table, aligned=aligned, **OPTIONS)
        assert table.read_bytes() == whole
        np.testing.assert_array_equal(np.load(aligned), images)


@pytest.mark.usefixtures("quick")
def test_errors_of_every_shape(tmp_path):
    """A number, one per frame, a map and a stack, in memory and in files, each with its own frames."""
    each = np.linspace(1, 2, COUNT, dtype=np.float32)
    maps = each[:, None, None] * np.ones((SIZE, SIZE), np.float32)
    np.save(tmp_path / "map.npy", 3 * maps[0])
    np.save(tmp_path / "maps.npy", maps)
    for err, expected in (
        (SIGMA, np.full(COUNT, SIGMA)),
        (3 * maps[0], np.full(COUNT, 3)),
        (tmp_path / "map.npy", np.full(COUNT, 3)),
        (each, each),
        (maps, each),
        (str(tmp_path / "maps.npy"), each),
        (open_frames(maps), each),
    ):
        for reference in ("first", "previous"):
            result = register_file(STACK, reference, err, **OPTIONS)
            np.testing.assert_allclose(result.chi2, expected, rtol=1e-6)
    result = register_file(STACK, "first", open_frames([*maps[:5], None, *maps[6:]]), **OPTIONS)
    assert result.failed.tolist() == [5]
    assert result.problems[5].startswith("err: ")
    for err in (maps[:3], np.ones(COUNT + 1), np.ones((3, 3)), [str(tmp_path / "map.npy")]):
        with pytest.raises(ValueError, match="err"):
            register_file(STACK, "first", err, **OPTIONS)


def test_an_unreadable_frame_is_a_row(tmp_path):
    paths = []
    for i, frame in enumerate(STACK):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], frame)
    paths[0].write_bytes(b"no image")
    paths[6].unlink()
    np.save(paths[9], STACK[9, 1:])
    result = register_file(paths, "first", SIGMA, table=tmp_path / "t.ecsv", **OPTIONS)
    bad = [0, 6, 9]
    assert result.failed.tolist() == result.flagged.tolist() == list(result.problems) == bad
    assert np.isnan(result.shift[bad]).all()
    assert np.isnan(result.chi2[bad]).all()
    assert [Status(int(s)) for s in result.status[bad]] == [Status.UNREADABLE] * 3
    assert "could not be read" in Status.UNREADABLE.message
    assert repr(result) == "StreamResult(10 frames, 3 with a status, 3 without a shift)"
    # The first that can be read is the reference, and the others are as if there had been no gap.
    good = np.setdiff1d(np.arange(COUNT), bad)
    expected = register_file(STACK[good], "first", SIGMA, **OPTIONS)
    np.testing.assert_allclose(result.shift[good], expected.shift, atol=2e-5)
    table = Table.read(tmp_path / "t.ecsv")
    assert table["frame"].tolist() == list(range(COUNT))
    np.testing.assert_array_equal(np.isnan(table["dy"]), np.isin(np.arange(COUNT), bad))


def read(path):
    """Columns of a table as others read them."""
    if path.suffix == ".ecsv":
        return Table.read(path)
    if path.suffix == ".csv":
        return Table.read(path, format="ascii.csv")
    return parquet.read_table(path).to_pydict()


def content(path):
    if path.is_dir():
        return {item.name: item.read_bytes() for item in path.iterdir()}
    beside = path.with_name(path.name + ".json")
    return path.read_bytes(), beside.read_bytes() if beside.exists() else None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", [".ecsv", ".csv", ".parquet"])
def test_table(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    options = OPTIONS | {"fit_gain": True, "fit_background": True}
    result = register_file(STACK, "first", SIGMA, table=path, **options)
    assert result.table == path
    table = read(path)
    names = "frame dy dx err_y err_x cov_yx chi2 dof p_value status gain gain_err background background_err"
    assert list(getattr(table, "colnames", table)) == names.split()
    np.testing.assert_array_equal(np.asarray(table["frame"]), np.arange(COUNT))
    for name, values in {
        "dy": result.shift[:, 0],
        "dx": result.shift[:, 1],
        "err_x": result.stderr[:, 1],
        "cov_yx": result.covariance[:, 0, 1],
        "chi2": result.chi2,
        "gain": result.gain,
        "background": result.background,
    }.items():
        np.testing.assert_allclose(np.asarray(table[name], np.float32), values, rtol=3e-7, err_msg=name)
    # A finished table is returned as it is.
    before = content(path)
    again = register_file(STACK, "first", SIGMA, table=path, **options)
    assert content(path) == before
    for field in ("shift", "covariance", "chi2", "dof", "p_value", "status", "gain", "background"):
        np.testing.assert_array_equal(getattr(again, field), getattr(result, field))
        assert getattr(again, field).dtype == getattr(result, field).dtype


@pytest.mark.parametrize("source", [STACK, Again()], ids=["array", "iterable"])
@pytest.mark.parametrize("suffix", [".ecsv", ".csv"])
def test_resumes_from_any_byte(suffix, source, tmp_path):
    path, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    register_file(source, "first", SIGMA, table=path, **OPTIONS)
    whole, beside = content(path)
    begin = whole.index(b"frame,dy")
    rng = random.Random(1)
    places = {
        0,
        1,
        begin,
        begin + 1,
        len(whole) - 1,
        len(whole),
        *(rng.randrange(len(whole)) for _ in range(40)),
    }
    for place in sorted(places):
        cut.write_bytes(whole[:place])
        if beside is not None:
            (tmp_path / f"cut{suffix}.json").write_bytes(beside)
        register_file(source, "first", SIGMA, table=cut, **OPTIONS)
        assert content(cut) == (whole, beside), place


def test_parquet_resumes(tmp_path):
    path, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    register_file(STACK, "first", SIGMA, table=path, **OPTIONS)
    parts = content(path)
    assert len(parts) == 3
    for damage in range(4):
        shutil.copytree(path, cut)
        if damage < 3:
            (cut / f"part-{damage:06d}.parquet").unlink()
        else:
            (cut / "part-000001.parquet").write_bytes(parts["part-000001.parquet"][:-9])
        (cut / ".part-000002.parquet.new").write_bytes(b"half of a part")
        result = register_file(STACK, "first", SIGMA, table=cut, **OPTIONS)
        assert content(cut) == parts
        assert len(result.status) == COUNT
        shutil.rmtree(cut)


@pytest.mark.parametrize("suffix", [".ecsv", ".csv", ".parquet"])
def test_other_settings_are_refused(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    register_file(STACK, "first", SIGMA, table=path, **OPTIONS)
    before = content(path)
    other = STACK.copy()
    other[0, 0, 0] += 1
    for change, text in (
        ({"err": 2 * SIGMA}, "err was 30.0 and is 60.0"),
        ({"reference": "mean"}, "reference was 'first' and is 'mean'"),
        ({"reference": STACK[0]}, "reference was 'first' and is 'int16 16x16 sha256"),
        ({"chunk": 5}, "chunk was 4 and is 5"),
        ({"boundary": "overlap"}, "options was .*wrap.* and is .*overlap"),
        ({"source": STACK[:9]}, "frames was 10 and is 9"),
        ({"source": other}, "first was"),
        ({"fit_gain": True}, "options was .* and is .*fit_gain"),
        ({"aligned": tmp_path / "a.npy"}, "aligned was None and is 'a.npy'"),
        ({"source": list(STACK)}, "source was 'array' and is 'sequence'"),
    ):
        arguments = {"source": STACK, "reference": "first", "err": SIGMA, **OPTIONS} | change
        with pytest.raises(ValueError, match=text):
            register_file(table=path, **arguments)
        assert content(path) == before
    # Only when asked, by whichever of the two words fits.
    with pytest.raises(FileExistsError, match="overwrite"):
        register_file(STACK, "first", 2 * SIGMA, table=path, resume=False, **OPTIONS)
    assert content(path) == before
    result = register_file(STACK, "first", 2 * SIGMA, table=path, overwrite=True, **OPTIONS)
    assert content(path) != before
    np.testing.assert_allclose(result.chi2, register_file(STACK, "first", 2 * SIGMA, **OPTIONS).chi2)
    register_file(STACK, "first", SIGMA, table=path, resume=False, overwrite=True, **OPTIONS)
    assert content(path) == before


def test_mean_is_compared_where_a_run_goes_on(tmp_path):
    """Of an iterable nothing else tells what changed behind its first frame."""
    path = tmp_path / "t.csv"
    source, other = Again(), Again()
    register_file(source, "mean", SIGMA, table=path, **OPTIONS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    other.frames = STACK.copy()
    other.frames[9] += 3
    with pytest.raises(ValueError, match="mean was"):
        register_file(other, "mean", SIGMA, table=path, **OPTIONS)
    register_file(source, "mean", SIGMA, table=path, **OPTIONS)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-5])
    register_file(other, "mean", SIGMA, table=path, overwrite=True, **OPTIONS)
    changed = path.read_bytes()
    assert len(changed.splitlines()) == len(whole.splitlines())
    assert changed != whole


def sixteen_and_more(tmp_path):
    """Frames of which not all are looked at, in a file that has been read to half."""
    stack = np.tile(STACK, (4, 1, 1))
    np.save(tmp_path / "m.npy", stack)
    return stack, {"table": tmp_path / "t.csv", **OPTIONS}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("finished", [True, False])
def test_a_file_that_changed_is_not_gone_on_with(finished, tmp_path):
    """Behind its first frame: by its time, its size, and by frames where both are as they were."""
    stack, options = sixteen_and_more(tmp_path)
    source = tmp_path / "m.npy"
    register_file(source, "first", SIGMA, **options)
    if not finished:
        lines = options["table"].read_bytes().splitlines(True)
        options["table"].write_bytes(b"".join(lines[: 1 + CHUNK]))
    there, before = os.stat(source), content(options["table"])
    register_file(source, "first", SIGMA, **(options if finished else options | {"table": None}))
    # One pixel of a frame between those that are looked at.
    changed = stack.copy()
    changed[1, 5, 5] += 1
    np.save(source, changed)
    os.utime(source, ns=(there.st_atime_ns, there.st_mtime_ns + 1000))
    with pytest.raises(ValueError, match=r"files was '1 files, .* and is '1 files"):
        register_file(source, "first", SIGMA, **options)
    # One of the last, with the old time put back.
    changed = stack.copy()
    changed[-1, 5, 5] += 1
    np.save(source, changed)
    os.utime(source, ns=(there.st_atime_ns, there.st_mtime_ns))
    with pytest.raises(ValueError, match="samples was"):
        register_file(source, "first", SIGMA, **options)
    assert content(options["table"]) == before
    np.save(source, stack)
    os.utime(source, ns=(there.st_atime_ns, there.st_mtime_ns))
    register_file(source, "first", SIGMA, **options)


@pytest.mark.usefixtures("quick")
def test_errors_and_lists_that_changed_are_not_gone_on_with(tmp_path):
    names = [tmp_path / f"{i}.npy" for i in range(COUNT)]
    for name, frame in zip(names, STACK, strict=True):
        np.save(name, frame)
    maps = tmp_path / "maps.npy"
    np.save(maps, np.ones(STACK.shape, np.float32))
    options = {"table": tmp_path / "t.csv", **OPTIONS}
    register_file(names, "first", maps, **options)
    register_file(names, "first", maps, **options)
    again = np.ones(STACK.shape, np.float32)
    again[7] = 2
    there = os.stat(maps)
    np.save(maps, again)
    os.utime(maps, ns=(there.st_atime_ns, there.st_mtime_ns))
    with pytest.raises(ValueError, match="err was"):
        register_file(names, "first", maps, **options)
    np.save(maps, np.ones(STACK.shape, np.float32))
    os.utime(maps, ns=(there.st_atime_ns, there.st_mtime_ns))
    os.utime(names[6], ns=(1, 1))
    with pytest.raises(ValueError, match="files was '10 files"):
        register_file(names, "first", maps, **options)


def test_wrong_options_leave_no_table(tmp_path):
    with pytest.raises(ValueError, match="boundary"):
        register_file(STACK, "first", table=tmp_path / "t.ecsv", aligned=tmp_path / "a.npy", boundary="no")
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_are_left_alone(tmp_path):
    for name in ("a.ecsv", "a.csv"):
        for text in ("a,b\n1,2\n", "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: a, datatype: int64}\na\n1\n"):
            (tmp_path / name).write_text(text)
            for more in ({}, {"resume": False}, {"overwrite": True}, {"resume": False, "overwrite": True}):
                with pytest.raises(ValueError, match="no table of registered frames"):
                    register_file(STACK, "first", table=tmp_path / name, **more, **OPTIONS)
            assert (tmp_path / name).read_text() == text
    pyarrow = pytest.importorskip("pyarrow")
    for name in ("thesis.tex", "part-000000.parquet", "part-000001.snappy.parquet"):
        folder = tmp_path / f"{name}.parquet"
        folder.mkdir()
        parquet.write_table(pyarrow.table({"a": [1]}), folder / name)
        for more in ({}, {"resume": False}, {"overwrite": True}):
            with pytest.raises(ValueError, match="no table of registered frames"):
                register_file(STACK, "first", table=folder, **more, **OPTIONS)
        assert (folder / name).exists()
    # A file that cannot be read is nobody's.
    (tmp_path / "c.parquet").mkdir()
    (tmp_path / "c.parquet" / "part-000000.parquet").write_bytes(b"another's")
    # The settings' place beside a table that is not there yet.
    (tmp_path / "b.csv.json").write_text('{"of": "another"}')
    for name in ("c.parquet", "b.csv"):
        with pytest.raises(ValueError, match="exists"):
            register_file(STACK, "first", table=tmp_path / name, overwrite=True, **OPTIONS)
    assert (tmp_path / "b.csv.json").read_text() == '{"of": "another"}'
    assert (tmp_path / "c.parquet" / "part-000000.parquet").read_bytes() == b"another's"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("suffix", [".csv", ".ecsv"])
def test_a_field_that_is_no_number_is_named(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"
    register_file(STACK, "first", SIGMA, table=path, **OPTIONS)
    lines = path.read_text().splitlines(True)
    spoilt = lines[-5].split(",")
    spoilt[2] = "wide"
    path.write_text("".join([*lines[:-5], ",".join(spoilt), *lines[-4:]]))
    before = content(path)
    with pytest.raises(ValueError, match=rf"t\{suffix}, column dx: .*wide"):
        register_file(STACK, "first", SIGMA, table=path, **OPTIONS)
    assert content(path) == before


@pytest.mark.usefixtures("quick")
def test_a_finished_table_is_read_where_nothing_can_be_written(tmp_path):
    path = tmp_path / "t.csv"
    expected = register_file(STACK, "first", SIGMA, table=path, **OPTIONS)
    # Stands for a folder without leave to write, which root has everywhere.
    (tmp_path / ".t.csv.lock").mkdir()
    found = register_file(STACK, "first", SIGMA, table=path, **OPTIONS)
    np.testing.assert_array_equal(found.shift, expected.shift)
    with pytest.raises(OSError, match="lock"):
        register_file(STACK, "first", SIGMA, table=path, resume=False, overwrite=True, **OPTIONS)


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_one_process_at_a_time(suffix, tmp_path):
    path = tmp_path / f"t{suffix}"

    def frames():
        for i, frame in enumerate(STACK):
            if i == 2 * CHUNK:
                with pytest.raises(ValueError, match="another process"):
                    register_file(iter(STACK), "first", SIGMA, table=path, **OPTIONS)
            yield frame

    register_file(frames(), "first", SIGMA, table=path, **OPTIONS)
    assert len(read(path)["frame"]) == COUNT


def read_stack(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".tif":
        return tifffile.imread(path)
    if path.suffix == ".fits":
        return fits.getdata(path)
    return zarr.open(path, mode="r")[:]


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".fits", ".zarr"])
def test_aligned(suffix, tmp_path):
    path, table = tmp_path / f"a{suffix}", tmp_path / "t.csv"
    frames = [*STACK[:-1], None]
    result = register_file(frames, "first", SIGMA, table=table, aligned=path, **OPTIONS)
    assert result.aligned == path
    found = read_stack(path)
    assert found.shape == STACK.shape
    expected = align_stack(STACK.astype(np.float32), result.shift, boundary="wrap").image
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-5, atol=1e-3)
    assert np.isnan(found[-1]).all()
    # Killed in the second chunk: rows are lost, frames half written.
    whole = table.read_bytes()
    lines = whole.splitlines(True)
    table.write_bytes(b"".join(lines[: 1 + CHUNK]) + b"4,0.1")
    unfinished = path.with_name(f".unfinished-{path.name}")
    os.rename(path, unfinished)
    if suffix == ".npy":
        with open(unfinished, "r+b") as file:
            file.seek(-STACK[0].size * 4 * 5 - 99, io.SEEK_END)
            file.write(b"\x01" * 500)
    register_file(frames, "first", SIGMA, table=table, aligned=path, **OPTIONS)
    np.testing.assert_array_equal(read_stack(path), found)
    assert table.read_bytes() == whole
    assert not unfinished.exists()
    # Killed when the frames were in their place, and the last rows not yet in the table.
    table.write_bytes(b"".join(lines[: 1 + 2 * CHUNK]))
    register_file(frames, "first", SIGMA, table=table, aligned=path, **OPTIONS)
    np.testing.assert_array_equal(read_stack(path), found)
    assert table.read_bytes() == whole
    # Another run has taken the name in between, and was killed.
    table.write_bytes(b"".join(lines[: 1 + CHUNK]))
    with contextlib.suppress(KeyboardInterrupt):
        other = tmp_path / "other.csv"
        register_file(Stopped(STACK), "first", table=other, aligned=path, overwrite=True, **OPTIONS)
    assert unfinished.exists()
    with pytest.raises(ValueError, match="was begun anew by another run"):
        register_file(frames, "first", SIGMA, table=table, aligned=path, **OPTIONS)
    np.testing.assert_array_equal(read_stack(path), found)
    (shutil.rmtree if unfinished.is_dir() else os.unlink)(unfinished)
    # An aligned stack that is not the run's own.
    table.write_bytes(b"".join(lines[: 1 + CHUNK]))
    if path.is_dir():
        shutil.rmtree(path)
        zarr.create_array(str(path), shape=(3, 2, 2), dtype="f4")
    else:
        path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="cannot go on with"):
        register_file(frames, "first", SIGMA, table=table, aligned=path, **OPTIONS)
    (shutil.rmtree if path.is_dir() else os.unlink)(path)
    with pytest.raises(ValueError, match="is missing"):
        register_file(frames, "first", SIGMA, table=table, aligned=path, **OPTIONS)


def test_aligned_iterable(tmp_path):
    """Of unknown length: zarr grows, the others cannot."""
    result = register_file(iter(STACK), "first", SIGMA, aligned=tmp_path / "a.zarr", **OPTIONS)
    found = read_stack(tmp_path / "a.zarr")
    np.testing.assert_allclose(
        found,
        align_stack(STACK.astype(np.float32), result.shift, boundary="wrap").image,
        rtol=1e-5,
        atol=1e-3,
    )
    with pytest.raises(ValueError, match=r"take \.zarr"):
        register_file(iter(STACK), "first", SIGMA, aligned=tmp_path / "a.npy", **OPTIONS)


@pytest.mark.usefixtures("quick")
def test_volumes(tmp_path):
    rng = np.random.default_rng(3)
    scene = rng.normal(size=(6, 8, 10)).astype(np.float32)
    volumes = np.stack([np.roll(scene, (k, -k, 1), (0, 1, 2)) for k in range(3)])
    result = register_file(
        volumes, scene, 0.1, table=tmp_path / "t.ecsv", aligned=tmp_path / "a.tif", **OPTIONS
    )
    np.testing.assert_allclose(result.shift, [(k, -k, 1) for k in range(3)], atol=1e-3)
    table = Table.read(tmp_path / "t.ecsv")
    assert table.colnames[:7] == ["frame", "dz", "dy", "dx", "err_z", "err_y", "err_x"]
    assert {"cov_zy", "cov_zx", "cov_yx"} <= set(table.colnames)
    images = tifffile.imread(tmp_path / "a.tif")
    known = np.isfinite(images)
    assert known.mean() > 0.4
    np.testing.assert_allclose(images[known], np.stack([scene] * 3)[known], atol=1e-2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("reference", ["first", "previous"])
def test_unrelated_frames_are_not_moved(reference, tmp_path, monkeypatch):
    """Their shift is chance: no part of the aligned frames, of the range, or of the path that steps make."""
    plain = jaxchi2.stream.register_stack

    def register_stack(stack, *arguments, **options):
        found = plain(stack, *arguments, **options)
        strange = np.asarray(stack)[:, 0, 0] == STRANGE
        shift = np.where(strange[:, None], np.float32(60), found.shift)
        return found._replace(shift=shift, status=np.where(strange, int(Status.UNRELATED), found.status))

    monkeypatch.setattr("jaxchi2.stream.register_stack", register_stack)
    stack = STACK.astype(np.float32)
    stack[6] = STACK[0]
    stack[6, 0, 0] = STRANGE
    table = tmp_path / "t.csv"
    options = {"table": table, "aligned": tmp_path / "a.npy", **OPTIONS}
    result = register_file(stack, reference, SIGMA, **options)
    assert result.shift[6].tolist() == [60, 60]
    assert np.flatnonzero(~result.believed).tolist() == [6]
    images = np.load(options["aligned"])
    assert np.isnan(images[6]).all()
    if reference == "previous":
        # What the steps add up to is that of the frames without it, for it is the first frame again.
        expected = register_file(np.delete(stack, 6, 0)[:6], reference, SIGMA, **OPTIONS).shift.sum(0)
        np.testing.assert_array_equal(np.delete(result.shift, 6, 0)[:6].sum(0), expected)
        np.testing.assert_allclose(images[5], np.roll(stack[5], -expected.astype(int), (0, 1)), atol=0.01)
        # The same where a run goes on behind it.
        whole = table.read_bytes()
        table.write_bytes(b"".join(whole.splitlines(True)[: 1 + 2 * CHUNK]))
        register_file(stack, reference, SIGMA, **options)
        assert table.read_bytes() == whole
        np.testing.assert_array_equal(np.load(options["aligned"]), images)
    else:
        assert np.isfinite(np.delete(images, 6, 0)).all()


@pytest.mark.usefixtures("quick")
def test_no_progress_without_tqdm_unless_asked(monkeypatch, capsys):
    options = {name: value for name, value in OPTIONS.items() if name != "progress"}
    register_file(STACK, "first", SIGMA, **options)
    assert "registering" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm", None)
    register_file(STACK, "first", SIGMA, **options)
    assert capsys.readouterr().err == ""


def test_progress(capsys):
    register_file(STACK, "mean", SIGMA, **(OPTIONS | {"progress": True}))
    shown = capsys.readouterr().err
    assert "registering: 100%" in shown
    assert "mean: 100%" in shown
    assert "frame/s" in shown
    register_file(STACK, "mean", SIGMA, **OPTIONS)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("quick")
def test_default_chunk(tmp_path, monkeypatch):
    """Chunks of equal length, no longer than the limit."""
    monkeypatch.setattr("jaxchi2.stream.MAX_CHUNK", 4)
    for count, expected in ((10, 4), (9, 3), (3, 3)):
        path = tmp_path / f"{count}.csv"
        register_file(STACK[:count], "first", SIGMA, table=path, boundary="wrap", progress=False)
        assert json.loads((tmp_path / f"{count}.csv.json").read_text())["chunk"] == expected


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"source": iter(STACK), "reference": "mean"}, "goes through the frames twice"),
        ({"chunk": 0}, "chunk must be"),
        ({"table": "t.txt"}, r"\.ecsv, \.csv or \.parquet"),
        ({"aligned": "a.png"}, r"\.zarr, \.tif, \.fits or \.npy"),
        ({"aligned": "a.fits.gz"}, r"\.zarr, \.tif, \.fits or \.npy"),
        ({"mask": np.zeros(STACK.shape, bool)}, "mask must hold for all frames"),
    ],
)
def test_errors(change, text):
    with pytest.raises(ValueError, match=text):
        register_file(**({"source": STACK, "reference": "first", "err": SIGMA, **OPTIONS} | change))
    with pytest.raises(FileNotFoundError, match="first, previous"):
        register_file(STACK, "median", **OPTIONS)


@pytest.mark.parametrize(
    ("package", "arguments"),
    [("tqdm", {"progress": True}), ("pyarrow", {"table": "t.parquet"}), ("zarr", {"aligned": "a.zarr"})],
)
def test_missing_package(package, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "jaxchi2\[stream\]"'):
        register_file(STACK, "first", SIGMA, **(OPTIONS | arguments))


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_compilation_cache_dir", {cache!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
from test_stream import OPTIONS, SIGMA, made, register_file

class Slow:
    def __iter__(self):
        for frame in made(120):
            time.sleep(0.01)
            yield frame

print("ready", flush=True)
register_file(Slow(), "first", SIGMA, table={table!r}, aligned={aligned!r}, **OPTIONS)
"""


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_and_run_again(tmp_path):
    """The table after any number of kills is that of a run without, to the byte."""
    whole, killed = (
        {"table": str(tmp_path / name / "t.ecsv"), "aligned": str(tmp_path / name / "a.zarr")}
        for name in ("whole", "killed")
    )
    for paths in (whole, killed):
        os.mkdir(os.path.dirname(paths["table"]))
    common = {"tests": os.path.dirname(__file__), "cache": str(tmp_path / "cache")}

    def start(paths):
        code = SCRIPT.format(**common, **paths)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    with start(whole) as process:
        assert process.wait(240) == 0
    rng, lengths = random.Random(), [0]
    for _ in range(4):
        target = lengths[-1] + rng.randrange(os.path.getsize(whole["table"]) // 6)
        with start(killed) as process:
            # Until some rows have been added, and then at any moment of reading, computing and writing.
            while process.poll() is None and size(killed["table"]) <= target:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
        lengths.append(size(killed["table"]))
    assert any(0 < length < size(whole["table"]) for length in lengths)
    with start(killed) as process:
        assert process.wait(240) == 0
    with open(whole["table"], "rb") as a, open(killed["table"], "rb") as b:
        assert a.read() == b.read()
    np.testing.assert_array_equal(zarr.open(killed["aligned"])[:], zarr.open(whole["aligned"])[:])
