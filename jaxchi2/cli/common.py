"""What the commands share: options, numbers and files from text, messages of one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..engine.choices import BACKGROUNDS, BOUNDARIES, ERRORS, MIN_OVERLAP, SMALL_OVERLAP, Boundary
from ..status import Status

if TYPE_CHECKING:
    from ..files.outputs import Output
    from ..io import LoadedImage


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line and no usage text."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with status 2."""
        self.exit(2, f"jaxchi2: error: {message}\n")


def add_registration_options(parser: argparse.ArgumentParser, image: str, reference: str) -> None:
    """Options of a registration of ``image``, by which name the help calls it."""
    parser.add_argument(
        "--err",
        metavar="VALUE|FILE|poisson",
        help=f"one-sigma error of a pixel of {image}: a number, or an image of its shape; poisson: "
        f"{image} counts photons. "
        "Without it the noise is taken as unknown and equal, and the errors are scaled by the reduced chi2",
    )
    parser.add_argument(
        "--boundary",
        choices=BOUNDARIES,
        default="overlap",
        help=f"what lies outside {reference}: nothing known, so that the overlap alone counts (overlap); "
        "itself, repeated (wrap) or mirrored (reflect); zero (fill, constant); its outermost pixels "
        "(nearest); default %(default)s",
    )
    parser.add_argument(
        "--min-overlap",
        metavar="SHARE",
        type=float,
        help="least overlap, as a share of the valid pixels of the smaller frame; "
        f"default {MIN_OVERLAP}, or {SMALL_OVERLAP} with --max-shift",
    )
    parser.add_argument(
        "--fit-gain", action="store_true", help=f"fit the brightness of {image} relative to {reference}"
    )
    added = parser.add_mutually_exclusive_group()
    added.add_argument("--fit-background", action="store_true", help=f"fit a constant added to {image}")
    added.add_argument(
        "--background",
        dest="fit_background",
        choices=BACKGROUNDS,
        help=f"fit what is added to {image} as a polynomial of its pixel coordinates",
    )
    parser.add_argument(
        "--clip",
        metavar="K",
        type=positive,
        help="leave out pixels more than K standard deviations off, found in rounds; above 1",
    )
    parser.add_argument(
        "--errors",
        choices=ERRORS,
        default="model",
        help="where error bars come from: the noise as given, or the residuals (sandwich), which hold for "
        "correlated and undeclared noise too; default %(default)s",
    )
    parser.add_argument(
        "--max-shift",
        metavar="PIX",
        nargs="+",
        help="largest shift looked for, one number for all axes or one per axis in the order y x; "
        "give it after the files",
    )


def add_output_options(
    parser: argparse.ArgumentParser, picture: str, default_plot: str | None = None
) -> None:
    """What every command can do with its result; the picture is of ``picture``."""
    default = f"; default {default_plot}" if default_plot else ""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the report")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        default=default_plot,
        help=f"draw {picture} to a PNG, PDF or SVG file{default}",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace outputs that are there; only such as jaxchi2 wrote, never an input",
    )
    parser.add_argument("--float64", action="store_true", help="compute in double precision")


def picture_output(arguments: argparse.Namespace, content: str) -> list[Output]:
    """The picture, if one is to be drawn, of a kind that can be."""
    from pathlib import Path

    from ..files.outputs import Output

    if arguments.plot is None:
        return []
    from ..plot import known_pictures

    if Path(arguments.plot).suffix.lstrip(".").lower() not in known_pictures():
        raise ValueError(f"--plot writes {', '.join(known_pictures())}, not {arguments.plot!r}")
    return [Output(arguments.plot, content, arguments.overwrite)]


def positive(text: str) -> float:
    """A positive number, as an argument's type."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def one_line(error: Exception) -> str:
    """What an error says, with the file it is about."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__


def load(path: str) -> LoadedImage:
    """Read an image; whatever is wrong with the file is a ValueError or an OSError."""
    from ..io import read_image

    try:
        return read_image(path)
    except (ImportError, OSError, ValueError):
        raise
    except Exception as error:
        # The decoders of damaged files raise what they like (zlib.error, struct.error, SyntaxError, ...).
        raise ValueError(f"cannot read {path!r}: {error}") from error


def boundary(arguments: argparse.Namespace) -> str | Boundary:
    """What ``--boundary`` and ``--min-overlap`` say."""
    share = arguments.min_overlap
    return arguments.boundary if share is None else Boundary(arguments.boundary, min_overlap=share)


def max_shift(texts: Sequence[str] | None) -> float | tuple[float, ...] | None:
    """One number, or one for each axis."""
    if texts is None:
        return None
    try:
        values = tuple(float(text) for text in texts)
    except ValueError as error:
        given = " ".join(texts)
        raise ValueError(f"--max-shift takes numbers and stands after the files; {given!r} came") from error
    return values[0] if len(values) == 1 else values


def in_doubt(status: Any) -> bool:
    """Whether a flag is set that is a doubt about what is quoted: errors from the residuals hold anyway."""
    return bool(np.any(np.asarray(status) & ~int(Status.CONTRADICTED)))


def plain(value: Any) -> Any:
    """Make lists and numbers that JSON knows: no arrays, null for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say(text: str, stream: Any) -> None:
    """Print, with question marks for letters that the terminal's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), file=stream, flush=True)


def err_value(text: str | None) -> float | str | None:
    """The number, or the name of the file; also ``poisson``."""
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return text
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"--err must be a positive number or a file, not {text!r}")
    return value
