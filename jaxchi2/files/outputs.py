"""What a run writes: never over what it reads, never over what is not its own, by one process at a time.

One rule for images, stacks of them, tables and pictures. Before the work `check_outputs` refuses a path that
is an input, by whatever name, or has no folder, and `locked` refuses one that another process is writing.
What lies at a path stays there unless it may be replaced, and this program wrote it, as the same kind of
content, and nobody has changed it since. What is new is written beside and put in its place when it is
complete; a table alone, which a later run is to go on with, grows where it is.

Beside an output ``a.npy`` there may be ``.a.npy.jaxchi2``, the record that this program wrote it, and while
it is being written ``.unfinished-a.npy`` and ``.a.npy.lock``.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import socket
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .formats import split_extension

__all__ = ["Output", "check_outputs", "files_of", "locked", "replace_file"]

REPLACES = "overwrite=True (--overwrite) replaces it"
# The clocks of some file systems tick every other second.
_SAME_TIME = 2_000_000_000
# What zarr writes for an array, and what it leaves where it was killed.
_ZARR = re.compile(r"zarr\.json|c(/\d+)*|(.*/)?[^/]+\.[0-9a-f]{32}\.partial")


@dataclass(frozen=True)
class Output:
    """A file, or a folder that is one thing, that a run is to write."""

    given: str | os.PathLike
    """The path as the user gave it."""
    content: str
    """What it will hold, in words, such as "aligned frames"; only the same is replaced."""
    overwrite: bool = False
    """Whether what is there may be replaced."""
    run: str = ""
    """What tells the run that writes it from others, where a later one may go on with it."""

    @property
    def path(self) -> Path:
        """Where it really lies: the end of all symbolic links."""
        return Path(os.path.realpath(self.given))

    @property
    def unfinished(self) -> Path:
        """Where it is written before it is complete; of the same suffix, which tells the format."""
        return self.path.with_name(f".unfinished-{self.path.name}")

    @property
    def record(self) -> Path:
        """What says that this program wrote it."""
        return self.path.with_name(f".{self.path.name}.jaxchi2")

    @property
    def lock(self) -> Path:
        """What is locked while it is written."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def settings(self) -> Path:
        """What a table has beside it."""
        return self.path.with_name(f"{self.path.name}.json")

    def check_free(self) -> None:
        """Raise unless nothing is there, or what may be replaced."""
        if not os.path.lexists(self.path):
            return
        if not self.overwrite:
            raise FileExistsError(f"{self.given} exists: give another name; {REPLACES}")
        reason = self._foreign()
        if reason is not None:
            raise FileExistsError(f"{self.given} {reason}, and is not replaced: give another name")

    def begin(self) -> Path:
        """Where to write, cleared of what a killed run left there."""
        self.discard()
        self._record({**self._records(), "unfinished": self.run})
        return self.unfinished

    def check_going_on(self) -> None:
        """Raise unless there is what the same run left when it was killed, or had just put in its place."""
        records = self._records()
        if self.unfinished.exists():
            reason = None if records.get("unfinished") == self.run else "was begun anew by another run"
        elif self.path.exists():
            reason = self._foreign()
            if reason is None and all(entry["run"] != self.run for entry in self._here(records)):
                reason = "is of another run"
        else:
            reason = "is missing"
        if reason is not None:
            raise ValueError(
                f"cannot go on with {self.given}, for it {reason}: {REPLACES}, with resume=False"
            )

    def go_on(self) -> Path:
        """Where to write further."""
        self.check_going_on()
        if not self.unfinished.exists():
            os.replace(self.path, self.unfinished)
        return self.unfinished

    def finish(self) -> None:
        """Put what was written in its place."""
        try:
            self.check_free()
        except FileExistsError as error:
            raise FileExistsError(f"{error}. What was written is {self.unfinished}") from error
        if self.unfinished.is_file():
            with open(self.unfinished, "r+b") as file:
                os.fsync(file.fileno())
        # Of the old one too, for the process may be killed before the new one is in its place.
        records = self._records()
        size, time = _extent(self.unfinished)
        new = {"content": self.content, "run": self.run, "size": size, "time": time}
        written = [*self._here(records), new]
        self._record({"written": written, "unfinished": self.run})
        if self.path.is_dir():
            _remove_store(self.path)
        os.replace(self.unfinished, self.path)

    def discard(self) -> None:
        """Remove what was written and is not complete."""
        if self.unfinished.is_dir():
            _remove_store(self.unfinished)
        self.unfinished.unlink(missing_ok=True)
        if self.record.exists() and not self._records().get("written"):
            self.record.unlink()

    @contextmanager
    def writing(self) -> Generator[Path]:
        """Where to write; put in its place at the end, or removed if something was raised."""
        path = self.begin()
        try:
            yield path
        except BaseException:
            self.discard()
            raise
        self.finish()

    def _foreign(self) -> str | None:
        """Why what is there is not this program's to replace, or None."""
        records = self._records()
        if not records.get("written"):
            return "is not known to be written by jaxchi2"
        here = self._here(records)
        if not here:
            return "has been changed since jaxchi2 wrote it"
        if all(entry["content"] != self.content for entry in here):
            return f"holds {here[-1]['content']}, not {self.content}"
        other = _not_of_a_store(self.path) if self.path.is_dir() else None
        return None if other is None else f"holds {other}, which jaxchi2 did not write"

    def _record(self, records: dict[str, Any]) -> None:
        replace_file(self.record, json.dumps(records).encode())

    def _records(self) -> dict[str, Any]:
        try:
            records = json.loads(self.record.read_bytes())
        except (OSError, ValueError):
            return {}
        return records if isinstance(records, dict) else {}

    def _here(self, records: dict[str, Any]) -> list[dict[str, Any]]:
        """The records that fit what is there."""
        if not self.path.exists():
            return []
        size, time = _extent(self.path)
        entries = records.get("written", [])
        return [e for e in entries if e["size"] == size and abs(e["time"] - time) <= _SAME_TIME]


def _extent(path: Path) -> tuple[int, int]:
    """Bytes of a file, or of all in a folder, and when they were last changed, in nanoseconds."""
    items = [item for item in path.rglob("*") if item.is_file()] if path.is_dir() else [path]
    found = [os.stat(item) for item in items]
    return sum(item.st_size for item in found), max((item.st_mtime_ns for item in found), default=0)


def _not_of_a_store(path: Path) -> str | None:
    """Something in a folder that is no part of a zarr array."""
    names = (item.relative_to(path).as_posix() for item in path.rglob("*"))
    return next((name for name in names if not _ZARR.fullmatch(name)), None)


def _remove_store(path: Path) -> None:
    """Remove a zarr array, but not what else may lie with it."""
    other = _not_of_a_store(path)
    if other is not None:
        raise FileExistsError(f"{path} holds {other}, which jaxchi2 did not write, and is not removed")
    shutil.rmtree(path)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.new")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def files_of(*sources: Any) -> list[str]:
    """Names of the files that sources are read from, as far as that can be told.

    Parameters
    ----------
    *sources
        Paths, also with brackets behind, patterns, arrays mapped into memory, datasets of h5py, arrays of
        zarr, `Frames`, and lists of such. Anything else is taken to be read from no file.

    Returns
    -------
    list of str
        The files and folders that exist.
    """
    found: list[str] = []
    for source in sources:
        if isinstance(source, str | os.PathLike):
            name, _ = split_extension(os.fspath(source))
            found += [name] if os.path.exists(name) else sorted(glob.glob(name))
        elif isinstance(source, list | tuple):
            found += files_of(*source)
        elif isinstance(getattr(source, "files", None), tuple):
            found += source.files
        else:
            found += _files_behind(source)
    return found


def _files_behind(array: Any) -> Iterator[str]:
    """The file of an array that is not in memory; of a view, that of what it is a view of."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and array.filename is not None:
            yield os.fspath(array.filename)
            return
        array = array.base
    for holder, name in (("file", "filename"), ("store", "root")):
        path = getattr(getattr(array, holder, None), name, None)
        if isinstance(path, str | os.PathLike):
            yield os.fspath(path)


def check_outputs(outputs: Iterable[Output], inputs: Iterable[str]) -> None:
    """Raise if an output is an input or another output, lies in one, or has no folder to lie in.

    Files are told apart by what they are, not by their names: links, hard ones too, and other ways of writing
    a name change nothing.
    """
    names = {_identity(name): name for name in inputs}
    names.pop(None, None)
    real = {Path(os.path.realpath(name)): name for name in names.values()}
    seen: list[Output] = []
    for output in outputs:
        if not output.path.parent.is_dir():
            raise FileNotFoundError(2, "No such folder", str(output.path.parent))
        for path in (output.path, output.unfinished, output.record, output.settings):
            same = names.get(_identity(path)) or real.get(path)
            if same is not None:
                raise ValueError(f"the output {output.given} is the input {same}: give another name")
        for name in (name for where, name in real.items() if _within(output.path, where)):
            raise ValueError(f"the output {output.given} and the input {name} lie in one another")
        for other in seen:
            same_file = None is not _identity(output.path) == _identity(other.path)
            if same_file or output.path == other.path or _within(output.path, other.path):
                raise ValueError(f"the outputs {other.given} and {output.given} are the same")
        seen.append(output)


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What tells a file from all others, whatever it is called; None if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _within(first: Path, second: Path) -> bool:
    """Whether one path lies in the other."""
    return first in second.parents or second in first.parents


@contextmanager
def locked(outputs: Iterable[Output]) -> Generator[None]:
    """Keep other processes from writing the outputs.

    The locks are the operating system's and go with the process, however it ends. A file system that has none
    does with a file that is there or not; one that a killed process left is named in the error.

    Raises
    ------
    ValueError
        If another process holds one.
    OSError
        If the folder cannot be written to.
    """
    with ExitStack() as held:
        for output in outputs:
            held.enter_context(_locked(output))
        yield


@contextmanager
def _locked(output: Output) -> Generator[None]:
    file = _lock(output)
    by_name = Path(file.name) != output.lock
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield
    finally:
        # Before the lock is given back where the system allows it: nobody shall lock a file that then goes.
        with suppress(OSError):
            os.unlink(file.name)
        file.close()
        if os.name == "nt":
            with suppress(OSError):
                os.unlink(file.name)
        if by_name:
            with suppress(OSError):
                os.unlink(output.lock)


def _lock(output: Output) -> IO[bytes]:
    """An open file that is the lock."""
    while True:
        file = open(output.lock, "a+b")  # noqa: SIM115
        try:
            able = _try_lock(file)
        except BlockingIOError as error:
            holder = _holder(output.lock)
            file.close()
            raise ValueError(f"another process is writing {output.given}: {holder}") from error
        if not able:
            file.close()
            return _lock_by_name(output)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(output.lock)):
                file.truncate(0)
                return file
        # The process before has removed it since it was opened.
        file.close()


def _try_lock(file: IO[bytes]) -> bool:
    """Lock an open file, or return False where that cannot be done; BlockingIOError if another has it."""
    if os.name == "nt":
        import msvcrt

        # A byte beyond its text, which others can then still read.
        file.seek(2**30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except PermissionError as error:
            raise BlockingIOError(str(error)) from error
        except OSError:
            return False
        return True
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return False
    return True


def _lock_by_name(output: Output) -> IO[bytes]:
    name = output.path.with_name(f".{output.path.name}.writer")
    try:
        return open(name, "x+b")
    except FileExistsError as error:
        raise ValueError(
            f"another process is writing {output.given}: {_holder(name)}; if it has ended, remove {name}"
        ) from error


def _holder(lock: Path) -> str:
    with suppress(OSError):
        return lock.read_text() or "it has just begun"
    return "it has just ended"
