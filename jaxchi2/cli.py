"""The command line: ``jaxchi2 register REF IMG`` measures a shift, ``jaxchi2 demo`` shows how it looks.

Exit status 0 means a good result, 1 a result with a status flag set (it is printed all the same), 2 an error
in the arguments or the files, told in one line.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

if TYPE_CHECKING:
    from .io import LoadedImage
    from .registration import Registration

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line and no usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"jaxchi2: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process if not given.

    Returns
    -------
    int
        0 for a good result, 1 for one with a status flag set.

    Raises
    ------
    SystemExit
        With code 2 for an error in arguments or files, 0 after ``--help`` and ``--version``.
    """
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    import jax

    precision = bool(jax.config.read("jax_enable_x64"))
    try:
        # A choice of this process; put back for a caller that goes on in it.
        jax.config.update("jax_enable_x64", precision or arguments.float64)
        return _run(parser, arguments)
    finally:
        jax.config.update("jax_enable_x64", precision)


def _build_parser() -> _Parser:
    from . import __version__
    from .pair import BOUNDARIES

    parser = _Parser(
        prog="jaxchi2", description="Sub-pixel image registration by chi-squared, with error bars."
    )
    parser.add_argument("--version", action="version", version=f"jaxchi2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    register = commands.add_parser(
        "register",
        help="measure the displacement of one image from another",
        description="Measure the displacement of IMG from REF in pixels, with its error. "
        "Formats: FITS (an extension in brackets: file.fits[1], file.fits[SCI], file.fits[SCI,2]), "
        "TIFF, NPY, PNG, JPEG.",
    )
    register.add_argument("reference", metavar="REF", help="the reference image")
    register.add_argument("image", metavar="IMG", help="the image that is displaced from it")
    register.add_argument(
        "--err",
        metavar="VALUE|FILE",
        help="one-sigma error of a pixel of IMG: a number, or an image of IMG's shape. "
        "Without it the noise is taken as unknown and equal, and the errors are scaled by the reduced chi2",
    )
    register.add_argument(
        "--boundary",
        choices=BOUNDARIES,
        default="overlap",
        help="what lies outside REF: nothing known, so that the overlap alone counts (overlap); itself, "
        "repeated (wrap) or mirrored (reflect); zero (fill, constant); its outermost pixels (nearest); "
        "default %(default)s",
    )
    register.add_argument("--fit-gain", action="store_true", help="fit the brightness of IMG relative to REF")
    register.add_argument("--fit-background", action="store_true", help="fit a constant added to IMG")
    register.add_argument(
        "--clip",
        metavar="K",
        type=_positive,
        help="leave out pixels more than K standard deviations off, found in rounds; above 1",
    )
    register.add_argument(
        "--max-shift",
        metavar="PIX",
        nargs="+",
        help="largest shift looked for, one number for all axes or one per axis in the order y x; "
        "give it after the files",
    )
    register.add_argument(
        "--nsigma", metavar="N", type=_positive, default=1.0, help="confidence of the interval; default 1"
    )
    register.add_argument(
        "--oversample",
        type=int,
        choices=(1, 2),
        default=1,
        help="samples per pixel in the search; 2 helps with very sharp images; default %(default)s",
    )
    register.add_argument(
        "--out", metavar="FILE", help="write IMG, aligned to REF, in the format of FILE's suffix"
    )
    _add_common(register)

    demo = commands.add_parser(
        "demo",
        help="the same on a bundled pair of Hubble images",
        description="Register a pair of Hubble images that the package carries, and draw the result.",
    )
    _add_common(demo, default_plot="jaxchi2-demo.png")
    demo.add_argument("--no-plot", dest="plot", action="store_const", const=None, help="draw no picture")
    demo.set_defaults(err=None, boundary="overlap", max_shift=None, nsigma=1.0, oversample=1, out=None)
    demo.set_defaults(fit_gain=False, fit_background=False, clip=None)
    return parser


def _add_common(parser: argparse.ArgumentParser, default_plot: str | None = None) -> None:
    default = f"; default {default_plot}" if default_plot else ""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the report")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        default=default_plot,
        help="draw the images, their difference before and after, and chi2 around its minimum, "
        f"to a PNG, PDF or SVG file{default}",
    )
    parser.add_argument("--float64", action="store_true", help="compute in double precision")


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def _run(parser: _Parser, arguments: argparse.Namespace) -> int:
    from . import register
    from .data import demo_files

    if arguments.command == "demo":
        arguments.reference, arguments.image = map(str, demo_files())
    try:
        reference, image = _load(arguments.reference), _load(arguments.image)
        err = _load_err(arguments.err)
        _check_outputs(arguments, reference.data.ndim)
        if arguments.float64:
            reference, image = (
                loaded._replace(data=loaded.data.astype(float)) for loaded in (reference, image)
            )
        result = register(
            reference.data,
            image.data,
            err,
            boundary=arguments.boundary,
            fit_gain=arguments.fit_gain,
            fit_background=arguments.fit_background,
            clip=arguments.clip,
            oversample=arguments.oversample,
            max_shift=_max_shift(arguments.max_shift),
            nsigma=arguments.nsigma,
        )
        report = _json_report if arguments.json else _text_report
        _say(report(arguments, reference, err, result), sys.stdout)
        notes = _write_outputs(arguments, reference, image, err, result)
    except (ImportError, OSError, TypeError, ValueError) as error:
        parser.error(_one_line(error))
    # With --json standard output is for the object alone.
    for note in notes:
        _say(note, sys.stderr if arguments.json else sys.stdout)
    return 0 if int(result.status) == 0 else 1


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def _load(path: str) -> LoadedImage:
    from .io import read_image

    try:
        return read_image(path)
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:
        # The decoders of damaged files raise what they like (zlib.error, struct.error, SyntaxError, ...).
        raise ValueError(f"cannot read {path!r}: {error}") from error


def _load_err(text: str | None) -> Any:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return _load(text).data
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"--err must be a positive number or a file, not {text!r}")
    return value


def _max_shift(texts: Sequence[str] | None) -> float | tuple[float, ...] | None:
    if texts is None:
        return None
    try:
        values = tuple(float(text) for text in texts)
    except ValueError as error:
        given = " ".join(texts)
        raise ValueError(f"--max-shift takes numbers and stands after the files; {given!r} came") from error
    return values[0] if len(values) == 1 else values


def _check_outputs(arguments: argparse.Namespace, ndim: int) -> None:
    """Find out before the computation what could not be written after it."""
    from .io import known_format

    if arguments.out is not None:
        known_format(arguments.out)
    if arguments.plot is not None:
        if ndim != 2:
            raise ValueError(f"--plot draws images with two axes, not {ndim}")
        from .plot import known_pictures

        suffix = Path(arguments.plot).suffix.lstrip(".").lower()
        if suffix not in known_pictures():
            raise ValueError(f"--plot writes {', '.join(known_pictures())}, not {arguments.plot!r}")


def _write_outputs(
    arguments: argparse.Namespace,
    reference: LoadedImage,
    image: LoadedImage,
    err: Any,
    result: Registration,
) -> list[str]:
    notes = []
    if arguments.out is not None:
        if np.all(np.isfinite(result.shift)):
            from .io import write_image
            from .plot import undo_shift

            aligned = undo_shift(image.data, np.asarray(result.shift))
            write_image(arguments.out, aligned, image.meta, shift=np.asarray(result.shift))
            notes.append(f"aligned    {arguments.out}")
        else:
            notes.append(f"aligned    {arguments.out} not written: there is no shift to undo")
    if arguments.plot is not None:
        from .plot import plot_registration

        # FITS counts its rows upwards, all other formats downwards.
        origin: Literal["lower", "upper"] = "lower" if image.meta.format == "FITS" else "upper"
        labels = Path(arguments.reference).name, Path(arguments.image).name
        figure = plot_registration(
            reference.data, image.data, err, result, boundary=arguments.boundary, labels=labels, origin=origin
        )
        figure.savefig(arguments.plot)
        notes.append(f"picture    {arguments.plot}")
    if arguments.command == "demo":
        notes.append(f"try        jaxchi2 register {arguments.reference} {arguments.image}")
    return notes


def _json_report(
    arguments: argparse.Namespace, reference: LoadedImage, err: Any, result: Registration
) -> str:
    from . import Status, __version__

    fields = {
        "reference": arguments.reference,
        "image": arguments.image,
        "shape": list(reference.data.shape),
        "boundary": arguments.boundary,
        "nsigma": arguments.nsigma,
        "err": err if isinstance(err, float) else arguments.err,
        "shift": result.shift,
        "stderr": result.stderr,
        "covariance": result.covariance,
        "interval": result.interval,
        "chi2": result.chi2,
        "dof": result.dof,
        "reduced_chi2": result.reduced_chi2,
        "status": result.status,
        "message": Status(int(result.status)).message,
        "version": __version__,
    }
    return json.dumps({name: _plain(value) for name, value in fields.items()}, allow_nan=False)


def _plain(value: Any) -> Any:
    """Make lists and numbers that JSON knows: no arrays, null for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text_report(
    arguments: argparse.Namespace, reference: LoadedImage, err: Any, result: Registration
) -> str:
    from . import Status
    from .registration import digits

    size = " × ".join(str(n) for n in reference.data.shape)
    lines = [
        f"reference  {Path(arguments.reference).name}",
        f"image      {Path(arguments.image).name}, {size} pixels",
        "",
    ]
    shift, stderr, interval = (np.asarray(a) for a in (result.shift, result.stderr, result.interval))
    names = "zyx"[-len(shift) :]
    rows = [("", "shift (pixels)", f"{arguments.nsigma:g}σ interval")]
    for name, value, sigma, (low, high) in zip(names, shift, stderr, interval, strict=True):
        if math.isfinite(value):
            # z: no minus before a rounded zero.
            places = f"+z.{digits(float(sigma))}f"
            row = (name, f"{value:{places}} ± {sigma:{places[2:]}}", f"{low:{places}} … {high:{places}}")
        else:
            row = (name, "none", "none")
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in (1, 2)]
    lines += [f"{name:<9}  {best:>{widths[0]}}   {span:>{widths[1]}}" for name, best, span in rows]
    chi2, dof, reduced = float(result.chi2), int(result.dof), float(result.reduced_chi2)
    lines += ["", f"χ²/dof     {chi2:.6g} / {dof} = {reduced:.4g}"]
    if err is None and math.isfinite(reduced):
        lines.append(f"noise      {math.sqrt(reduced):.4g} per pixel, from the residuals: no --err was given")
    status = Status(int(result.status))
    lines.append(f"status     {'ok' if status == Status.OK else f'{int(status)}: {status.message}'}")
    return "\n".join(lines)


def _say(text: str, stream: Any) -> None:
    """Print, with question marks for letters that the terminal's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)
