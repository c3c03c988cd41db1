"""Stacks larger than memory: frames are read, registered and written a chunk at a time.

A thread reads the next chunk while the device works on this one. Each chunk's rows are on disk before the
next is begun, so that a run that was killed goes on where it stopped and ends with the same table.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from .arrays import as_plain
from .coadd import align_stack
from .engine.choices import boundary_for_align
from .engine.counts import as_counts
from .files.outputs import REPLACES, Output, check_outputs, files_of, locked
from .files.rows import StreamResult, believed_shift, column_types, columns_of, result_of
from .files.settings import check_same, describe, describe_files, describe_run, fingerprint
from .files.sources import Frames, aligned_origin, open_frames, read_array
from .files.stackfile import StackFile, known_stack_format, open_stack_file
from .files.tables import ParquetTable, TextTable, known_table_format, open_table
from .io import optional
from .mean import MeanTemplate, most_of_mean
from .results import Registration
from .stack import REFERENCES, mean_template, register_stack
from .status import Status

__all__ = ["StreamResult", "register_file"]

CHUNK_BYTES = 2**26
"""Of the frames that are read at once by default; at most three times as many are held."""
SAMPLES = 16
"""Frames by which a source is told from one that was changed."""
MAX_CHUNK = 1024
"""Frames of a chunk by default, however small they are: what an interruption costs at most."""


def register_file(
    source: Any,
    reference: str | Path | ArrayLike = "mean",
    err: str | Path | ArrayLike | None = None,
    *,
    table: str | os.PathLike | None = None,
    aligned: str | os.PathLike | None = None,
    chunk: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> StreamResult:
    """Measure the displacement of every frame of a stack of any length, in bounded memory.

    Parameters
    ----------
    source : path, pattern, list of paths, array_like or iterable
        The frames, as for `open_frames` of `jaxchi2.files.sources`: a FITS cube, multi-page TIFF, HDF5,
        zarr or NPY file; a list of files or a pattern with ``*``; an array; any iterable of arrays.
    reference : {"mean", "first", "previous"}, path or array_like
        What the frames are displaced from. "mean" is the mean of aligned frames that `register_stack` makes,
        of up to 64, evenly spaced, which are read before; of an iterable of unknown length it takes a pass of
        its own. "first" is the first frame that can be read; "previous" for every frame the last before it
        that could be read, so that the shifts are steps and their sum, without the NaN, is the position.
    err : path, array_like, Counts or "poisson", optional
        Standard deviation of the pixels: a scalar, one for each frame, shape ``(N,)``, a map, or a stack,
        also larger than memory, with the frames of ``source``. Taken to be in the unit of the source; one
        that has another, or a FITS file with another BUNIT, is converted or refused. None: unknown; "poisson"
        and Counts for counted photons, and another reference than the mean; see `register`.
    table : path, optional
        Where rows are written as they come: ``.ecsv``, ``.csv`` (with the settings beside it in
        ``….csv.json``) or ``.parquet``, a folder of one file per chunk. The columns are ``frame``, the shift
        ``dy dx``, its errors ``err_y err_x``, the covariance ``cov_yx``, ``chi2``, ``dof``, ``p_value``,
        ``status``, and gain and background (that at the centre of the frame) with their errors where they are
        fitted; in three dimensions also those of z.
    aligned : path, optional
        Where the frames are written with their shift undone (for "previous" the sum of the steps), NaN where
        there is nothing, and all NaN for a frame without a shift or one that is called unrelated, whose step
        counts as none: ``.npy``, ``.tif``, ``.fits``, or ``.zarr``, which alone takes an iterable of unknown
        length. It is in its place when all frames are done.
    chunk : int, optional
        Frames read and registered at once. None: about 64 MB, at most 1024 frames.
    resume : bool
        Go on behind the last complete chunk of ``table``. False begins it anew, if ``overwrite`` allows that.
    overwrite : bool
        Whether ``aligned``, and a ``table`` that cannot be gone on with, may be replaced. Only what this
        function wrote before is; what is read from never is.
    progress : bool, optional
        Show frames per second and the time left on standard error, by tqdm. None: if that is installed.
    **options
        Those of `register_stack`, for all frames alike: ``boundary``, ``max_shift``, ``fit_gain``,
        ``mask``, ``mesh``, …. With ``static_pattern=True`` the pattern is that of the frames that make the
        mean, and the aligned frames are without it.

    Returns
    -------
    StreamResult
        The rows of all frames, those of earlier runs with them.

    Raises
    ------
    ValueError
        For unfit shapes and options; if ``table`` was begun with other settings or from another source,
        saying what differs; for "mean" of an iterator, whose frames come but once; if an output is an input,
        or another process is writing it.
    OSError
        If there is no such file, or an output exists that may not be replaced. A single frame that cannot be
        read, or is of another shape, does not raise: its row is NaN with ``Status.UNREADABLE``.
    ImportError
        If a package is missing: ``pip install "jaxchi2[stream]"`` has them all.

    Notes
    -----
    *Interruption.* Whenever the process is killed, the same call goes on, and the table is the same to the
    byte as without interruption, on the same machine: chunks begin where they would have begun, an incomplete
    one is cut off and done again, and a chunk's aligned frames are written before its rows. An iterator must
    begin at frame 0 again. A finished table is returned as it is. A frame that could not be read is not tried
    again. That the source is the same is told by its settings, by size and time of its files and by sixteen
    of its frames; of an iterator by the first.

    *Memory.* Some three chunks, the reference, and what `register_stack` needs for its batch; not more for a
    longer stack. A mean takes some eight times the frames that it is made of before.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> frames = (np.roll(scene, k, axis=1) + 0.1 * rng.normal(size=scene.shape) for k in range(4))
    >>> result = register_file(frames, "first", 0.14, boundary="wrap", progress=False)
    >>> print(np.round(result.shift[:, 1]), result)
    [0. 1. 2. 3.] StreamResult(4 frames, 0 with a status, 0 without a shift)
    """
    if table is not None:
        known_table_format(table)
    if aligned is not None:
        known_stack_format(aligned)
    outputs = [
        Output(path, content, overwrite)
        for path, content in ((table, "a table"), (aligned, "aligned frames"))
        if path is not None
    ]
    image_file = None if isinstance(reference, str) and reference in REFERENCES else reference
    check_outputs(outputs, files_of(source, image_file, err, list(options.values())))
    with ExitStack() as cleanup:
        barred = None
        try:
            cleanup.enter_context(locked(outputs))
        except OSError as error:
            # A table that is finished can be returned all the same.
            barred = error
        bar = _Bar(progress)
        cleanup.callback(bar.close)
        frames = open_frames(source)
        if frames is not source:
            cleanup.callback(frames.close)
        if isinstance(reference, str) and reference == "mean" and frames.one_shot:
            raise ValueError(
                "reference='mean' goes through the frames twice, and an iterator gives them once: take "
                "'first' or an image, or an iterable that can be begun anew"
            )
        # Where the gain is fitted the unit of the reference is of no account.
        given, unit = reference, None if options.get("fit_gain") else frames.unit
        reference = _as_reference(reference, frames, unit)
        errors = _Errors(err, frames)
        cleanup.callback(errors.close)
        size = _chunk_size(chunk, frames)
        options = {name: value for name, value in options.items() if value is not None}
        if "reference_err" in options:
            options["reference_err"] = as_plain(options["reference_err"], "reference_err", frames.unit)
        settings = _settings(frames, reference, errors, size, options)
        settings["aligned"] = None if aligned is None else Path(aligned).name
        types = column_types(len(frames.shape), frames.dtype, options)
        stack = None
        if aligned is not None:
            run = "" if table is None else describe_run(settings)
            stack = _Aligned(Output(aligned, "aligned frames", overwrite, run), frames, size, given)
            cleanup.callback(stack.close, keep=table is not None)

        rows, mean = None, None
        if table is not None:
            rows = open_table(table, types, size, frames.length)
            cleanup.callback(rows.close)
            mean = _go_on_or_forget(rows, settings, frames.length, resume, overwrite)
        start = 0 if rows is None else len(rows)
        if rows is not None and start and start == frames.length:
            if aligned is None or os.path.exists(aligned):
                return result_of(rows.columns, {}, table, aligned)
            if not overwrite:
                raise ValueError(f"{table} has rows of frames of which {aligned} is missing; {REPLACES}")
            rows.forget()
            start = 0
        if barred is not None:
            raise barred
        if stack is not None:
            stack.check(start)

        image, own = frames.first, None
        if not isinstance(reference, str):
            image = np.asarray(reference)
        elif reference == "mean":
            image, own = _mean(frames, errors, size, options, bar)
            settings["mean"] = fingerprint(image.image if own else image)
            if own is None:
                # Of a single frame there is no mean, and no pattern.
                options.pop("static_pattern", None)
            if rows is not None and start and mean != settings["mean"]:
                if not overwrite:
                    check_same(str(table), {"mean": mean}, {"mean": settings["mean"]})
                rows.forget()
                start = 0
        steps = isinstance(reference, str) and reference == "previous"
        registrar = _Registrar(frames, errors, None if steps else image, size, options, types, own)
        done = {name: np.empty(0, dtype) for name, dtype in types.items()} if rows is None else rows.columns
        if steps and start:
            registrar.go_on(done)

        found, problems = [done], dict[int, str]()
        bar.begin("registering", frames.length, start)
        both = _read_both(frames, errors)
        chunks = cleanup.enter_context(closing(_read_ahead(both, start, size, frames.length)))
        for first, (pixels, err_pixels, wrong) in chunks:
            columns, shift = registrar.register(first, pixels, err_pixels, wrong)
            # Not before the options have been accepted: a table that is begun is bound to them.
            if rows is not None and len(found) == 1:
                rows.begin(settings)
            if stack is not None:
                readable = [i for i in range(len(shift)) if first + i not in wrong]
                moved = shift[readable[0]] if readable else np.full(shift.shape[1:], np.nan)
                stack.write(first, registrar.align(first, pixels, shift), moved)
            if rows is not None:
                rows.append(columns)
            found.append(columns)
            problems |= wrong
            bar.update(len(pixels))
        if stack is not None:
            stack.finish()
    joined = {name: np.concatenate([part[name] for part in found]) for name in types}
    return result_of(joined, problems, table, aligned)


def _go_on_or_forget(
    rows: TextTable | ParquetTable,
    settings: dict[str, Any],
    length: int | None,
    resume: bool,
    overwrite: bool,
) -> str | None:
    """Leave a table the rows that can be gone on with; the fingerprint of the mean they were found by."""
    if rows.settings is None:
        return None
    if not resume and not overwrite:
        raise FileExistsError(f"{rows.path} exists and is to be begun anew: {REPLACES}")
    there = dict(rows.settings)
    mean = there.pop("mean", None)
    if len(rows) == length and settings["aligned"] is None:
        there["aligned"] = None
    try:
        check_same(str(rows.path), there, settings)
    except ValueError:
        if not overwrite:
            raise
        resume = False
    if not resume:
        rows.forget()
    return mean


class _Aligned:
    """The aligned frames on disk, put in place with the last of them."""

    def __init__(self, output: Output, frames: Frames, chunk: int, reference: Any) -> None:
        self.output, self.frames, self.chunk, self.reference = output, frames, chunk, reference
        self.file: StackFile | None = None
        self.finished = False

    def check(self, start: int) -> None:
        """Raise if frames from number ``start`` could not be written."""
        if start == 0:
            self.output.check_free()
        else:
            self.output.check_going_on()

    def write(self, first: int, pixels: np.ndarray, shift: np.ndarray) -> None:
        """Put frames at their place; they are on disk when this returns.

        ``shift`` is that of the first of them that could be read, by which the coordinates move.
        """
        frames = self.frames
        if self.file is None:
            new = first == 0
            path = self.output.begin() if new else self.output.go_on()
            origin = aligned_origin(frames, self.reference, shift) if new else None
            self.file = open_stack_file(
                path, frames.length, frames.shape, frames.dtype, self.chunk, create=new, origin=origin
            )
        self.file.write(first, pixels)
        # Before the rows of these frames: a finished table has all its frames in place.
        if first + len(pixels) == frames.length:
            self.finish()

    def finish(self) -> None:
        """Put the file in place."""
        if self.finished:
            return
        if self.file is not None:
            self.file.close()
        # Without a frame to write, an earlier run was killed just before this.
        if self.output.unfinished.exists():
            self.output.finish()
        self.finished = True

    def close(self, keep: bool) -> None:
        """Close the file; ``keep`` says whether a later run can go on with what is not finished."""
        if self.file is not None and not self.finished:
            self.file.close()
            if not keep:
                self.output.discard()


class _Errors:
    """Standard deviations of the pixels of any run of frames."""

    def __init__(self, err: Any, frames: Frames) -> None:
        self.frames: Frames | None = None
        self.value: Any = None
        self.each = False
        counts = None if isinstance(err, str) and err != "poisson" else as_counts(err)
        if err is None or counts is not None:
            self.value = counts
            return
        if isinstance(err, str | Path):
            err = _opened_errors(err, frames)
        paths = isinstance(err, list | tuple) and all(isinstance(item, str | Path) for item in err)
        if not (paths or isinstance(err, Frames)):
            err = as_plain(err, "err", frames.unit)
        if paths or isinstance(err, Frames) or np.ndim(err) == len(frames.shape) + 1:
            self.frames = open_frames(err)
            if frames.unit is not None and self.frames.unit not in (None, frames.unit):
                self.close()
                raise TypeError(f"err has the unit {self.frames.unit}, the source {frames.unit}: convert it")
            if (self.frames.length, self.frames.shape) != (frames.length, frames.shape):
                self.close()
                raise ValueError(
                    f"err has {self.frames.length} frames of shape {self.frames.shape}, the source "
                    f"{frames.length} of {frames.shape}"
                )
            return
        self.value = np.asarray(err)
        self.each = self.value.ndim == 1
        if self.value.shape not in ((), frames.shape, (frames.length,)):
            raise ValueError(
                f"err must be a scalar, one per frame, a map of shape {frames.shape} or a stack of "
                f"{frames.length} such, not of shape {self.value.shape}"
            )

    def of(self, start: int, size: int, pixels: np.ndarray | None, bad: np.ndarray) -> Any:
        """What `register_stack` takes for a chunk that begins at frame ``start``; ones for bad frames."""
        if pixels is None and not self.each:
            return self.value
        part = self.value[start : start + size] if pixels is None else pixels
        full = np.ones((size, *part.shape[1:]), part.dtype)
        full[: len(part)] = part
        full[bad] = 1
        return full

    def at(self, numbers: list[int]) -> Any:
        """What `register_stack` takes for frames of these numbers."""
        if self.frames is not None:
            return np.concatenate([self.frames.read(i, i + 1).pixels for i in numbers])
        return self.value[numbers] if self.each else self.value

    def describe(self) -> Any:
        if self.frames is not None:
            first, files = fingerprint(self.frames.first), describe_files(self.frames.files)
            return f"{self.frames.name} {first}, samples {_samples(self.frames)}, {files}"
        return describe(self.value)

    def close(self) -> None:
        if self.frames is not None:
            self.frames.close()


class _Registrar:
    """Registers chunks one after the other, each filled up to one length for one compiled program.

    A first chunk that is not full is the only one, and is left as it is.
    """

    def __init__(
        self,
        frames: Frames,
        errors: _Errors,
        reference: np.ndarray | MeanTemplate | None,
        size: int,
        options: dict[str, Any],
        types: dict[str, np.dtype],
        own: dict[int, Registration] | None = None,
    ) -> None:
        self.frames, self.errors, self.size, self.options, self.types = frames, errors, size, options, types
        self.reference = reference
        """None where each frame is registered to the one before."""
        self.own = own or {}
        """Results of the frames that the reference is made of, each against the others."""
        self.last = frames.first
        """What a missing frame is replaced by if it is the first of a chunk."""
        self.position = np.zeros(len(frames.shape))

    def go_on(self, done: dict[str, np.ndarray]) -> None:
        """Take over the last readable frame and the sum of the steps from rows that there are."""
        self.position = _positions(self.position, believed_shift(done))[-1]
        readable = np.flatnonzero(done["status"] != Status.UNREADABLE)
        if len(readable):
            pixels, problems = self.frames.read(readable[-1], readable[-1] + 1)
            if problems:
                last = f"frame {readable[-1]}, the last one of the run that is to go on,"
                raise OSError(f"{last} can no longer be read: {problems}")
            self.last = pixels[0]

    def register(
        self, first: int, pixels: np.ndarray, err_pixels: np.ndarray | None, problems: dict[int, str]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Columns of the table for a chunk, and the positions of its frames."""
        count = len(pixels)
        bad = self._missing(first, count)
        bad[[i - first for i in problems]] = True
        filled = _filled(pixels, bad, self.last)
        err = self.errors.of(first, len(bad), err_pixels, bad)
        if self.reference is not None:
            found = register_stack(filled, self.reference, err, **self.options)
            mine = [i for i in range(count) if first + i in self.own]
            if mine:
                rows = jax.tree.map(lambda *x: np.stack(x), *[self.own[first + i] for i in mine])
                found = jax.tree.map(partial(_replaced, mine), found, rows)
            columns = columns_of(first, found, bad[:count], self.types)
            return columns, believed_shift(columns)
        if np.ndim(err) in (1, filled.ndim):
            err = np.concatenate([err[:1], err])
        chain = np.concatenate([self.last[None], filled])
        found = register_stack(chain, "previous", err, **self.options)
        columns = columns_of(first, jax.tree.map(lambda x: x[1:], found), bad[:count], self.types)
        steps = believed_shift(columns)
        positions = _positions(self.position, steps)
        self.position, self.last = positions[-1], filled[count - 1]
        return columns, np.where(np.isnan(steps), np.nan, positions)

    def align(self, first: int, pixels: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """The frames of a chunk with their shift undone, NaN for those without."""
        missing = self._missing(first, len(pixels))
        padded = np.full((len(missing), shift.shape[1]), np.nan, pixels.dtype)
        padded[: len(shift)] = shift
        full = _filled(pixels, missing, self.last)
        if isinstance(self.reference, MeanTemplate) and self.reference.pattern is not None:
            full = full - self.reference.pattern[None]
        boundary = boundary_for_align(self.options.get("boundary", "overlap"))
        aligned = align_stack(full, padded, mask=self.options.get("mask"), boundary=boundary)
        return np.asarray(aligned.image)[: len(pixels)]

    def _missing(self, first: int, count: int) -> np.ndarray:
        """Which frames of a full chunk there are not."""
        return np.arange(self.size if first else count) >= count


def _filled(pixels: np.ndarray, bad: np.ndarray, last: np.ndarray) -> np.ndarray:
    """A full chunk, in which each bad frame is replaced by the last good one before it.

    With NaN instead a chunk would take the longer way, and the frame after a gap would have nothing to be
    compared with.
    """
    if not bad.any():
        return pixels
    source = np.maximum.accumulate(np.where(bad, 0, np.arange(1, len(bad) + 1)))
    return np.concatenate([last[None], pixels])[source]


def _positions(start: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Running sum of steps, a missing one counted as none; added in order, so that it can be gone on with."""
    return np.cumsum(np.concatenate([start[None], np.nan_to_num(steps.astype(float))]), 0)[1:]


def _read_both(frames: Frames, errors: _Errors) -> Callable[[int, int], tuple]:
    """What reads pixels, their errors where these are a stack too, and why frames could not be read."""

    def read(start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None, dict[int, str]]:
        pixels, problems = frames.read(start, stop)
        if errors.frames is None:
            return pixels, None, problems
        err, err_problems = errors.frames.read(start, stop)
        return pixels, err, {i: f"err: {reason}" for i, reason in err_problems.items()} | problems

    return read


def _read_ahead(
    read: Callable[[int, int], tuple], start: int, size: int, length: int | None
) -> Generator[tuple[int, tuple], None, None]:
    """Chunks of a source in order, the next being read on a thread while one is used."""

    def stop(begin: int) -> int:
        return begin + size if length is None else min(begin + size, length)

    with ThreadPoolExecutor(1, thread_name_prefix="jaxchi2-read") as pool:
        coming = pool.submit(read, start, stop(start))
        while True:
            ready = coming.result()
            count = len(ready[0])
            last = count < size or start + count == length
            if not last:
                coming = pool.submit(read, start + count, stop(start + count))
            if count:
                yield start, ready
            if last:
                return
            start += count


def _replaced(places: list[int], values: Any, others: np.ndarray) -> np.ndarray:
    values = np.array(values)
    values[places] = others
    return values


def _mean(
    frames: Frames, errors: _Errors, size: int, options: dict[str, Any], bar: _Bar
) -> tuple[Any, dict[int, Registration] | None]:
    """The mean of some frames, evenly spaced, and the results of these by number."""
    numbers, pixels = _some_frames(frames, size, bar)
    if len(numbers) == 1:
        return pixels[0], None
    template, found = mean_template(pixels, errors.at(numbers), **options)
    rows = [jax.tree.map(lambda x, i=i: np.asarray(x)[i], found) for i in range(len(numbers))]
    return jax.tree.map(np.asarray, template), dict(zip(numbers, rows, strict=True))


def _some_frames(frames: Frames, size: int, bar: _Bar) -> tuple[list[int], np.ndarray]:
    """Numbers and pixels of as many frames as a mean may be made of."""
    most = most_of_mean(frames.shape, frames.dtype.itemsize)
    if frames.length is not None:
        numbers = list(range(0, frames.length, -(-frames.length // most)))
        bar.begin("mean", len(numbers), 0)
        pixels = np.empty((len(numbers), *frames.shape), frames.dtype)
        for i, number in enumerate(numbers):
            pixels[i] = frames.read(number, number + 1).pixels[0]
            bar.update(1)
        return numbers, pixels
    kept: dict[int, np.ndarray] = {}
    every = 1
    bar.begin("mean", None, 0)
    for first, (chunk, _) in _read_ahead(frames.read, 0, size, None):
        for i, frame in enumerate(chunk, first):
            if i % every == 0:
                kept[i] = frame.copy()
            if len(kept) > most:
                every *= 2
                kept = {k: x for k, x in kept.items() if k % every == 0}
        bar.update(len(chunk))
    return list(kept), np.stack(list(kept.values()))


def _as_reference(reference: Any, frames: Frames, unit: Any) -> Any:
    if isinstance(reference, str) and reference in REFERENCES:
        return reference
    if isinstance(reference, str | Path):
        try:
            return read_array(reference, unit)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                2, f"reference is neither a file nor one of {', '.join(REFERENCES)}", str(reference)
            ) from error
    reference = as_plain(reference, "reference", frames.unit)
    if isinstance(reference, np.ma.MaskedArray):
        reference = np.ma.filled(reference.astype(np.result_type(reference, np.float32)), np.nan)
    return reference


def _opened_errors(path: str | Path, frames: Frames) -> Any:
    """A map of errors in a file, or a stack of them that is left there."""
    try:
        opened = open_frames(path)
    except ValueError:
        # One image is no stack; what else is wrong comes up again here.
        return read_array(path, frames.unit)
    if opened.shape == frames.shape:
        return opened
    opened.close()
    return read_array(path, frames.unit)


def _chunk_size(chunk: int | None, frames: Frames) -> int:
    if chunk is not None:
        if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
            raise ValueError(f"chunk must be a positive number of frames, not {chunk!r}")
        return chunk
    size = min(max(1, CHUNK_BYTES // frames.first.nbytes), MAX_CHUNK)
    if frames.length is None:
        return size
    # Chunks of equal length, for the last is filled up to that of the others.
    return -(-frames.length // -(-frames.length // size))


def _settings(
    frames: Frames, reference: Any, errors: _Errors, size: int, options: dict[str, Any]
) -> dict[str, Any]:
    """What decides the content of the table."""
    from . import __version__

    for name in ("mask", "reference_mask", "reference_err"):
        if np.ndim(options.get(name, 0)) > len(frames.shape):
            raise ValueError(f"{name} must hold for all frames, not have shape {np.shape(options[name])}")
    return {
        "version": __version__,
        "source": frames.name,
        "frames": frames.length,
        "shape": list(frames.shape),
        "dtype": str(frames.dtype),
        "first": fingerprint(frames.first),
        "samples": _samples(frames),
        "files": describe_files(frames.files),
        "reference": describe(reference),
        "err": errors.describe(),
        "chunk": size,
        "options": {name: describe(value) for name, value in sorted(options.items())},
    }


def _samples(frames: Frames) -> str:
    """Digest of frames from all over the source, if they can be asked for."""
    if frames.length is None:
        return fingerprint(frames.first)
    which = np.unique(np.linspace(0, frames.length - 1, SAMPLES).astype(int))
    return fingerprint(np.concatenate([frames.read(i, i + 1).pixels for i in which]))


class _Bar:
    """Progress on standard error, or nothing."""

    def __init__(self, shown: bool | None) -> None:
        self.make: Any = None
        self.bar: Any = None
        if shown or shown is None:
            try:
                self.make = optional("tqdm", extra="stream", needs="progress=True").tqdm
            except ImportError:
                if shown:
                    raise

    def begin(self, label: str, total: int | None, done: int) -> None:
        self.close()
        if self.make is not None:
            self.bar = self.make(total=total, initial=done, desc=label, unit="frame", mininterval=0.5)

    def update(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
