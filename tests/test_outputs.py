"""Nothing that a run reads, and nothing that is not its own, is written over; by one process at a time."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from jaxchi2 import Registration
from jaxchi2.cli import main
from jaxchi2.files import outputs
from jaxchi2.files.outputs import Output, check_outputs, files_of, locked
from jaxchi2.stream import register_file

fits = pytest.importorskip("astropy.io.fits")
tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
iio = pytest.importorskip("imageio.v3")
pytest.importorskip("matplotlib")
pytest.importorskip("pyarrow")

STACK = np.random.default_rng(1).normal(size=(6, 8, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def _nothing_moves(monkeypatch):
    """Registrations that compute nothing: it is what becomes of files that is tested."""

    def found(*shape):
        one = np.ones(shape, np.float32)
        result = Registration(*[one] * len(Registration._fields))
        return result._replace(
            shift=np.zeros((*shape, 2), np.float32),
            covariance=np.full((*shape, 2, 2), np.nan, np.float32),
            interval=np.zeros((*shape, 2, 2), np.float32),
            nuisance_covariance=np.ones((*shape, 2, 2), np.float32),
            dof=np.full(shape, 9),
            status=np.zeros(shape, np.int32),
            background=0 * one,
            background_coefficients=0 * one[..., None],
        )

    monkeypatch.setattr("jaxchi2.stream.register_stack", lambda stack, *_, **__: found(len(stack)))
    monkeypatch.setattr("jaxchi2.register", lambda *_, **__: found())


def content(path):
    """Every byte under a path."""
    if path.is_dir():
        return {item: item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}
    return path.read_bytes()


def everything(folder):
    return {item: item.read_bytes() for item in folder.rglob("*") if item.is_file()}


def write_stack(path, stack=STACK):
    writers = {
        ".npy": np.save,
        ".fits": fits.writeto,
        ".tif": lambda path, stack: tifffile.imwrite(path, stack, photometric="minisblack"),
        ".zarr": lambda path, stack: zarr.create_array(str(path), data=stack),
    }
    writers[path.suffix](path, stack)
    return path


@pytest.fixture
def never(monkeypatch):
    """What must not be reached before the outputs are found to be in order."""

    def fail(*_, **__):
        raise AssertionError("computed before the outputs were checked")

    monkeypatch.setattr("jaxchi2.stream.register_stack", fail)
    monkeypatch.setattr("jaxchi2.stream._mean", fail)
    monkeypatch.setattr("jaxchi2.register", fail)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# An output that is an input


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("suffix", [".npy", ".fits", ".tif", ".zarr"])
def test_a_source_is_no_output(suffix, tmp_path, monkeypatch, capsys):
    path = write_stack(tmp_path / f"m{suffix}")
    other = write_stack(tmp_path / f"n{suffix}")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / f"link{suffix}"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    for aligned in (path, f"m{suffix}", f"folder/../m{suffix}", link):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="is the input"):
                register_file(path, "first", aligned=aligned, overwrite=overwrite, progress=False)
    for text in (path, link):
        assert "is the input" in refused(capsys, "stack", path, "--out", text, "--overwrite")
        assert "is the input" in refused(capsys, "stack", other, "--reference", path, "--out", text)
        assert "is the input" in refused(capsys, "stack", other, "--err", path, "--out", text)
    assert everything(tmp_path) == before


@pytest.mark.usefixtures("never")
def test_an_input_is_known_however_it_is_given(tmp_path):
    path = write_stack(tmp_path / "m.npy")
    hard = tmp_path / "hard.npy"
    os.link(path, hard)
    frames = [tmp_path / f"{i}.npy" for i in range(3)]
    for name, frame in zip(frames, STACK, strict=False):
        np.save(name, frame)
    mapped = np.load(path, mmap_mode="r")
    before = everything(tmp_path)
    for source, aligned in (
        (path, hard),
        (frames, frames[1]),
        (f"{tmp_path}/?.npy", frames[2]),
        (mapped, path),
        (mapped[2:, 1:], path),
        ([mapped[0], mapped[1]], path),
    ):
        with pytest.raises(ValueError, match="is the input"):
            register_file(source, "first", aligned=aligned, overwrite=True, progress=False)
    for options in ({"reference": mapped[0]}, {"err": mapped}, {"mask": mapped[0]}):
        arguments = {"reference": "first", "aligned": path, "overwrite": True, "progress": False} | options
        with pytest.raises(ValueError, match="is the input"):
            register_file(frames, **arguments)
    assert everything(tmp_path) == before


def test_files_of_what_is_not_in_memory(tmp_path):
    h5py = pytest.importorskip("h5py")
    store = zarr.open(write_stack(tmp_path / "a.zarr"), mode="r")
    assert [os.path.realpath(name) for name in files_of(store)] == [str(tmp_path / "a.zarr")]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        assert files_of(file.create_dataset("a", data=STACK)) == [str(tmp_path / "a.h5")]
    fits.writeto(tmp_path / "a.fits", STACK)
    assert files_of(f"{tmp_path}/a.fits[0]", tmp_path / "gone.fits", 3.0, None, STACK) == [
        str(tmp_path / "a.fits")
    ]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("suffix", [".npy", ".fits", ".tif", ".png"])
def test_an_image_is_no_output(suffix, tmp_path, capsys):
    paths = [tmp_path / f"{name}{suffix}" for name in ("reference", "image", "err")]
    for path in paths:
        pixels = (20 * np.abs(STACK[0])).astype(np.uint8)
        iio.imwrite(path, pixels) if suffix == ".png" else write_stack(path, pixels)
    before = everything(tmp_path)
    for path in paths:
        arguments = ("register", *paths[:2], "--err", paths[2], "--overwrite")
        assert "is the input" in refused(capsys, *arguments, "--out", path)
        if suffix == ".png":
            assert "is the input" in refused(capsys, *arguments, "--plot", path)
    assert everything(tmp_path) == before


def test_folders_that_lie_in_one_another(tmp_path):
    inside = write_stack(tmp_path / "a.zarr")
    for given in (inside / "table.csv", inside / "c" / "aligned.npy"):
        with pytest.raises(ValueError, match="lie in one another"):
            check_outputs([Output(given, "")], [str(inside)])
    with pytest.raises(ValueError, match="lie in one another"):
        check_outputs([Output(tmp_path / "a.zarr", "")], [str(inside / "zarr.json")])
    with pytest.raises(ValueError, match="are the same"):
        check_outputs([Output(inside, ""), Output(inside / "table.csv", "")], [])
    with pytest.raises(ValueError, match="are the same"):
        check_outputs([Output(tmp_path / "a.png", ""), Output(f"{tmp_path}/./a.png", "")], [])
    # What lies beside an output is written too.
    beside = tmp_path / "t.csv.json"
    beside.write_text("[]")
    with pytest.raises(ValueError, match="is the input"):
        check_outputs([Output(tmp_path / "t.csv", "")], [str(beside)])


# What is there already


def outputs_of(command, tmp_path):
    """A run that takes each of the outputs, small and the same for all."""
    source = tmp_path / "stack.npy"
    if not source.exists():
        np.save(source, STACK)
        np.save(tmp_path / "a.npy", STACK[0])
    if command == "register":
        return ("register", tmp_path / "a.npy", tmp_path / "a.npy")
    return ("stack", source, "--reference", "first", "--chunk", 6)


CASES = [
    ("register", "--out", "o.npy"),
    ("register", "--out", "o.fits"),
    ("register", "--plot", "o.png"),
    ("stack", "--out", "o.npy"),
    ("stack", "--out", "o.tif"),
    ("stack", "--out", "o.fits"),
    ("stack", "--out", "o.zarr"),
    ("stack", "--table", "o.csv"),
    ("stack", "--table", "o.ecsv"),
    ("stack", "--table", "o.parquet"),
    ("stack", "--plot", "o.svg"),
]


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(("command", "option", "name"), CASES)
def test_what_others_wrote_is_left_alone(command, option, name, tmp_path, capsys):
    """A file, or a folder with files in it, of the right name; and no folder at all."""
    arguments = outputs_of(command, tmp_path)
    path = tmp_path / name
    for folder in (False, True):
        if folder:
            path.mkdir()
            (path / "thesis.tex").write_text("years of work")
        else:
            path.write_text("years of work")
        before = everything(tmp_path)
        for more in ((), ("--overwrite",)):
            said = refused(capsys, *arguments, option, path, *more)
            assert str(path) in said
        assert everything(tmp_path) == before
        if not folder:
            path.unlink()
    assert "No such folder" in refused(capsys, *arguments, option, tmp_path / "missing" / name)


@pytest.mark.parametrize(("command", "option", "name"), CASES)
def test_its_own_is_replaced_when_asked(command, option, name, tmp_path, capsys):
    arguments = outputs_of(command, tmp_path)
    path = tmp_path / name
    arguments = (*arguments, option, path)
    main([str(a) for a in arguments])
    first = content(path)
    capsys.readouterr()
    other = (*arguments, "--fit-background")
    said = refused(capsys, *other)
    assert "overwrite" in said
    assert content(path) == first
    main([str(a) for a in (*other, "--overwrite")])
    assert content(path)
    beside = {f".{name}.jaxchi2", f"{name}.json", name, "stack.npy", "a.npy"}
    assert {item.name for item in tmp_path.iterdir()} <= beside, "nothing is left of the writing"
    capsys.readouterr()
    if option == "--table":
        return
    # As soon as somebody has worked on it, it is theirs.
    changed = path / "zarr.json" if path.is_dir() else path
    with open(changed, "ab") as file:
        file.write(b" ")
    there = content(path)
    assert "has been changed" in refused(capsys, *other, "--overwrite")
    assert content(path) == there


def test_only_the_same_content_is_replaced(tmp_path, capsys):
    path = tmp_path / "o.npy"
    main([str(a) for a in (*outputs_of("register", tmp_path), "--out", path)])
    capsys.readouterr()
    before = path.read_bytes()
    said = refused(capsys, *outputs_of("stack", tmp_path), "--out", path, "--overwrite")
    assert "holds an aligned image, not aligned frames" in said
    assert path.read_bytes() == before


def test_what_lies_in_a_store_of_ours_is_not_removed(tmp_path, capsys):
    path = tmp_path / "o.zarr"
    arguments = (*outputs_of("stack", tmp_path), "--out", path)
    main([str(a) for a in arguments])
    capsys.readouterr()
    # As old as the store and empty, so that only its name tells.
    (path / "notes.txt").touch()
    os.utime(path / "notes.txt", (0, 0))
    before = content(path)
    assert "notes.txt" in refused(capsys, *arguments, "--overwrite")
    assert content(path) == before


@pytest.mark.usefixtures("never")
def test_formats_that_cannot_hold_the_image(tmp_path, capsys):
    """Found out before the computation, and nothing is left of the trial."""
    np.save(tmp_path / "a.npy", STACK[0])
    arguments = ("register", tmp_path / "a.npy", tmp_path / "a.npy")
    before = everything(tmp_path)
    assert "PNG file holds" in refused(capsys, *arguments, "--out", tmp_path / "o.png")
    assert everything(tmp_path) == before


def test_the_old_one_stays_until_the_new_is_complete(tmp_path):
    options = {"progress": False, "chunk": 2, "aligned": tmp_path / "o.npy"}
    register_file(STACK, "first", **options)
    before = everything(tmp_path)

    class Broken(list):
        looked = False

        def __getitem__(self, i):
            if i == 4 and self.looked:
                raise KeyboardInterrupt
            self.looked |= i == 4
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        register_file(Broken(STACK[::-1]), "first", overwrite=True, **options)
    after = everything(tmp_path)
    after[tmp_path / ".o.npy.jaxchi2"] = before[tmp_path / ".o.npy.jaxchi2"]
    assert after == before
    register_file(STACK[::-1], "first", overwrite=True, **options)
    assert (tmp_path / "o.npy").read_bytes() != before[tmp_path / "o.npy"]


def test_a_link_is_followed(tmp_path):
    """The link stays one, and what it leads to is replaced."""
    (tmp_path / "far").mkdir()
    link = tmp_path / "o.npy"
    link.symlink_to(tmp_path / "far" / "real.npy")
    options = {"progress": False, "aligned": link}
    for overwrite in (False, True):
        register_file(STACK, "first", overwrite=overwrite, **options)
        assert link.is_symlink()
        assert np.load(tmp_path / "far" / "real.npy").shape == STACK.shape


# Locks

HOLD = """
import sys
from jaxchi2.files.outputs import Output, locked
with locked([Output(sys.argv[1], "")]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_one_process_at_a_time_and_no_lock_outlives_it(tmp_path, capsys):
    arguments = outputs_of("stack", tmp_path)
    for option, name in (("--out", "o.zarr"), ("--plot", "o.png"), ("--table", "o.csv")):
        path = tmp_path / name
        if option == "--out":
            with hold(path) as process:
                said = refused(capsys, *arguments, option, path)
                assert f"another process is writing {path}: process {process.pid} on " in said
                process.send_signal(signal.SIGKILL)
                process.wait()
            assert (tmp_path / f".{name}.lock").exists()
        else:
            with locked([Output(path, "")]):
                assert "another process is writing" in refused(capsys, *arguments, option, path)
        with locked([Output(path, "")]):
            pass
        assert not (tmp_path / f".{name}.lock").exists()
        assert not path.exists()


def test_a_lock_that_was_removed_is_none(tmp_path, monkeypatch):
    """A process that waited for a lock whose file has gone takes the new file."""
    output = Output(tmp_path / "a.npy", "")
    plain, calls = outputs._try_lock, []

    def slow(file):
        if not calls:
            output.lock.unlink()
        calls.append(file)
        return plain(file)

    monkeypatch.setattr(outputs, "_try_lock", slow)
    with locked([output]):
        assert len(calls) == 2
        with pytest.raises(ValueError, match="another process"), locked([output]):
            pass


def test_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_try_lock", lambda file: False)
    output = Output(tmp_path / "a.npy", "")
    with locked([output]):
        said = rf"process {os.getpid()} on .* remove .*\.a\.npy\.writer"
        with pytest.raises(ValueError, match=said), locked([output]):
            pass
        assert (tmp_path / ".a.npy.writer").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_damaged_counts_for_nothing(tmp_path):
    output = Output(tmp_path / "a.npy", "numbers", overwrite=True)
    with output.writing() as path:
        np.save(path, STACK)
    output.check_free()
    for text in ("", "[]", "{", json.dumps({"written": []})):
        output.record.write_text(text)
        with pytest.raises(FileExistsError, match="not known to be written by jaxchi2"):
            output.check_free()
