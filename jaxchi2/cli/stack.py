"""``jaxchi2 stack``: every frame of a stack, from files that may be larger than memory."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .common import (
    add_output_options,
    add_registration_options,
    boundary,
    err_value,
    in_doubt,
    max_shift,
    picture_output,
    plain,
    say,
)

if TYPE_CHECKING:
    from ..files.rows import StreamResult


def add_stack(commands: Any) -> None:
    """The command that registers many frames."""
    parser = commands.add_parser(
        "stack",
        help="measure the displacements of all frames of a stack",
        description="Measure the displacement of every frame from one reference in pixels, with its error. "
        "FILES is one file that holds all frames, the frame axis first: a FITS cube (file.fits[SCI]), a "
        "multi-page TIFF (of several channels file.tif[C=0]), HDF5 (file.h5[dataset]), zarr "
        "(store.zarr[array]) or NPY; or several files of one frame each, also as a quoted pattern: "
        "'night/*.fits'. The stack may be larger than memory. What was interrupted goes on when it is called "
        "again with the same --table.",
    )
    parser.add_argument(
        "files", metavar="FILES", nargs="+", help="one file of all frames, or a file for each"
    )
    parser.add_argument(
        "--reference",
        metavar="mean|first|previous|FILE",
        default="mean",
        help="what the frames are displaced from: the mean of them, aligned, the first, each the one "
        "before it, or an image; default %(default)s",
    )
    add_registration_options(parser, "a frame", "the reference")
    parser.add_argument(
        "--static-pattern",
        action="store_true",
        help="find what does not move with the scene (hot pixels, columns, fixed pattern) together with the "
        "mean, and take it from every frame",
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="write a row for each frame as it is done, to an .ecsv or .csv file or a .parquet folder",
    )
    parser.add_argument(
        "--out", metavar="FILE", help="write the aligned frames, to a .zarr, .tif, .fits or .npy file"
    )
    parser.add_argument("--chunk", metavar="N", type=int, help="frames read at once; default about 64 MB")
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where the table ends, or begin it anew, which needs --overwrite",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show frames per second and the time left; default on a terminal",
    )
    add_output_options(parser, "the drift with its error, and the path in the plane,")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Register, print, write; the exit status."""
    from ..files.outputs import Output, check_outputs, files_of, locked
    from ..files.sources import open_frames
    from ..stream import register_file

    files = arguments.files[0] if len(arguments.files) == 1 else arguments.files
    given = err_value(arguments.err)
    picture = picture_output(arguments, "a picture of a drift")
    outputs = [*picture, *(Output(path, "") for path in (arguments.table, arguments.out) if path is not None)]
    check_outputs(outputs, files_of(files, arguments.reference, None if given == "poisson" else given))
    with locked(picture):
        for output in picture:
            output.check_free()
        frames = open_frames(files)
        if arguments.float64:
            frames = replace(frames, dtype=np.dtype(np.float64), first=frames.first.astype(np.float64))
        try:
            result = register_file(
                frames,
                arguments.reference,
                given,
                table=arguments.table,
                aligned=arguments.out,
                chunk=arguments.chunk,
                resume=arguments.resume,
                overwrite=arguments.overwrite,
                progress=_progress(arguments),
                boundary=boundary(arguments),
                fit_gain=arguments.fit_gain,
                fit_background=arguments.fit_background,
                clip=arguments.clip,
                errors=arguments.errors,
                static_pattern=arguments.static_pattern or None,
                max_shift=max_shift(arguments.max_shift),
            )
        finally:
            frames.close()
        report = _json_report if arguments.json else _text_report
        say(report(arguments, frames.name, frames.shape, result), sys.stdout)
        written = (("table", result.table), ("aligned", result.aligned))
        notes = [f"{name:<9}  {path}" for name, path in written if path]
        for output in picture:
            from ..plot import plot_drift

            steps = arguments.reference == "previous"
            figure = plot_drift(result, title=frames.name, steps=steps)
            with output.writing() as path:
                figure.savefig(path)
            notes.append(f"picture    {output.given}")
    # With --json standard output is for the object alone.
    for note in notes:
        say(note, sys.stderr if arguments.json else sys.stdout)
    return int(in_doubt(result.status))


def _progress(arguments: argparse.Namespace) -> bool | None:
    """Shown on a terminal, if there is what shows it."""
    if arguments.progress is None and not sys.stderr.isatty():
        return False
    return arguments.progress


def _json_report(
    arguments: argparse.Namespace, name: str, shape: tuple[int, ...], result: StreamResult
) -> str:
    from .. import __version__

    fields = {
        "source": name,
        "frames": len(result.status),
        "shape": list(shape),
        "reference": arguments.reference,
        "err": err_value(arguments.err),
        "boundary": arguments.boundary,
        "shift": result.shift,
        "stderr": result.stderr,
        "chi2": result.chi2,
        "dof": result.dof,
        "p_value": result.p_value,
        "status": result.status,
        "problems": {str(frame): reason for frame, reason in result.problems.items()},
        "version": __version__,
    }
    return json.dumps({name: plain(value) for name, value in fields.items()}, allow_nan=False)


def _text_report(
    arguments: argparse.Namespace, name: str, shape: tuple[int, ...], result: StreamResult
) -> str:
    from ..results import digits
    from ..status import Status

    size = " × ".join(str(n) for n in shape)
    reference = arguments.reference
    lines = [
        f"source     {name}, {len(result.status)} frames of {size} pixels",
        f"reference  {reference if reference in ('mean', 'first', 'previous') else Path(reference).name}",
        "",
    ]
    word = "steps" if reference == "previous" else "shifts"
    found = result.believed
    which = "" if found.sum() == np.isfinite(result.shift).all(1).sum() else ", without unrelated frames"
    rows = [("", f"{word} (pixels){which}", "median error")]
    for axis, values, errors in zip("zyx"[-len(shape) :], result.shift.T, result.stderr.T, strict=True):
        if found.any():
            error = float(np.median(errors[found]))
            places = f"+z.{digits(error)}f"
            low, high = values[found].min(), values[found].max()
            rows.append((axis, f"{low:{places}} … {high:{places}}", f"{error:{places[2:]}}"))
        else:
            rows.append((axis, "none", "none"))
    widths = [max(len(row[column]) for row in rows) for column in (1, 2)]
    lines += [f"{axis:<9}  {span:>{widths[0]}}   {error:>{widths[1]}}" for axis, span, error in rows]
    if found.any():
        reduced = np.median(result.chi2[found] / result.dof[found])
        lines += ["", f"χ²/dof     {reduced:.4g} in the median"]
        if arguments.err is None:
            lines.append(
                f"noise      {np.sqrt(reduced):.4g} per pixel, from the residuals: no --err was given"
            )
    flagged = [(flag, np.flatnonzero(result.status & flag)) for flag in Status if flag]
    lines += [
        f"status     {len(those)} × {flag.message}: {_listed(those)}" for flag, those in flagged if len(those)
    ]
    if not len(result.flagged):
        lines.append("status     ok")
    lines += [f"           frame {frame}: {reason}" for frame, reason in list(result.problems.items())[:5]]
    return "\n".join(lines)


def _listed(frames: np.ndarray, longest: int = 8) -> str:
    text = ", ".join(str(frame) for frame in frames[:longest])
    return f"frame {text}" if len(frames) <= longest else f"frame {text}, …"
