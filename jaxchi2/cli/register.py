"""``jaxchi2 register`` and ``jaxchi2 demo``: one pair of images."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..engine.choices import boundary_for_align
from ..files.outputs import Output, check_outputs, files_of, locked
from ..io import known_format, write_image
from .common import (
    add_output_options,
    add_registration_options,
    boundary,
    err_value,
    in_doubt,
    load,
    max_shift,
    picture_output,
    plain,
    positive,
    say,
)

if TYPE_CHECKING:
    from ..io import LoadedImage
    from ..results import Registration

_PICTURE = "the images, their difference before and after, and chi2 around its minimum,"


def add_register(commands: Any) -> None:
    """The command that registers two files."""
    parser = commands.add_parser(
        "register",
        help="measure the displacement of one image from another",
        description="Measure the displacement of IMG from REF in pixels, with its error. "
        "Formats: FITS (an extension in brackets: file.fits[1], file.fits[SCI], file.fits[SCI,2]), "
        "TIFF, NPY, PNG, JPEG.",
    )
    parser.add_argument("reference", metavar="REF", help="the reference image")
    parser.add_argument("image", metavar="IMG", help="the image that is displaced from it")
    add_registration_options(parser, "IMG", "REF")
    parser.add_argument(
        "--nsigma", metavar="N", type=positive, default=1.0, help="confidence of the interval; default 1"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="write IMG, aligned to REF, in the format of FILE's suffix"
    )
    add_output_options(parser, _PICTURE)
    parser.set_defaults(run=run)


def add_demo(commands: Any) -> None:
    """The same on a pair that the package carries."""
    parser = commands.add_parser(
        "demo",
        help="the same on a bundled pair of Hubble images",
        description="Register a pair of Hubble images that the package carries, and draw the result.",
    )
    add_output_options(parser, _PICTURE, default_plot="jaxchi2-demo.png")
    parser.add_argument("--no-plot", dest="plot", action="store_const", const=None, help="draw no picture")
    parser.set_defaults(err=None, boundary="overlap", min_overlap=None, max_shift=None, nsigma=1.0, out=None)
    # Two colours of one scene: it is not noise that they differ by.
    parser.set_defaults(fit_gain=False, fit_background=False, clip=None, errors="sandwich", run=run)


def run(arguments: argparse.Namespace) -> int:
    """Register, print, write; the exit status."""
    from .. import register
    from ..data import demo_files

    if arguments.command == "demo":
        arguments.reference, arguments.image = map(str, demo_files())
    given = err_value(arguments.err)
    picture = picture_output(arguments, "a picture of a registration")
    aligned = _image_output(arguments)
    outputs = [*aligned, *picture]
    counted = given == "poisson"
    check_outputs(outputs, files_of(arguments.reference, arguments.image, None if counted else given))
    with locked(outputs):
        for output in outputs:
            output.check_free()
        reference, image = load(arguments.reference), load(arguments.image)
        unit = image.meta.unit
        err: Any = load(given).pixels(unit) if isinstance(given, str) and not counted else given
        # Where the gain is fitted the unit of the reference is of no account.
        reference = reference._replace(data=reference.pixels(None if arguments.fit_gain else unit))
        if picture and reference.data.ndim != 2:
            raise ValueError(f"--plot draws images with two axes, not {reference.data.ndim}")
        for output in aligned:
            _rehearse(output, reference, image)
        if arguments.float64:
            reference, image = (
                loaded._replace(data=loaded.data.astype(float)) for loaded in (reference, image)
            )
        options = {
            "boundary": boundary(arguments),
            "fit_gain": arguments.fit_gain,
            "fit_background": arguments.fit_background,
            "clip": arguments.clip,
            "errors": arguments.errors,
            "max_shift": max_shift(arguments.max_shift),
        }
        result = register(reference.data, image.data, err, nsigma=arguments.nsigma, **options)
        report = _json_report if arguments.json else _text_report
        say(report(arguments, reference, err, result), sys.stdout)
        notes = [_write_aligned(output, reference, image, result, options) for output in aligned]
        notes += [_draw(output, arguments, reference, image, err, result, options) for output in picture]
    if arguments.command == "demo":
        notes.append(f"try        jaxchi2 register {arguments.reference} {arguments.image}")
    # With --json standard output is for the object alone.
    for note in notes:
        say(note, sys.stderr if arguments.json else sys.stdout)
    return int(in_doubt(result.status))


def _image_output(arguments: argparse.Namespace) -> list[Output]:
    """The aligned image, if one is to be written, in a format that is known."""
    if arguments.out is None:
        return []
    known_format(arguments.out)
    return [Output(arguments.out, "an aligned image", arguments.overwrite)]


def _rehearse(output: Output, reference: LoadedImage, image: LoadedImage) -> None:
    """Find out before the computation that the aligned image could not be written after it."""
    nothing = np.zeros(reference.data.shape, np.float32)
    try:
        write_image(output.begin(), nothing, image.meta, shift=np.zeros(nothing.ndim))
    finally:
        output.discard()


def _write_aligned(
    output: Output, reference: LoadedImage, image: LoadedImage, result: Registration, options: dict[str, Any]
) -> str:
    """Write the image on the reference's grid; what there is to say about it."""
    if not np.all(np.isfinite(result.shift)):
        return f"aligned    {output.given} not written: there is no shift to undo"
    from ..align import align

    boundary, shape = boundary_for_align(options["boundary"]), reference.data.shape
    aligned = np.asarray(align(image.data, result.shift, boundary=boundary, shape=shape))
    with output.writing() as path:
        write_image(path, aligned, image.meta, shift=np.asarray(result.shift))
    return f"aligned    {output.given}"


def _draw(
    output: Output,
    arguments: argparse.Namespace,
    reference: LoadedImage,
    image: LoadedImage,
    err: Any,
    result: Registration,
    options: dict[str, Any],
) -> str:
    """Draw the picture; what there is to say about it."""
    from ..plot import plot_registration

    # FITS counts its rows upwards, all other formats downwards.
    origin: Literal["lower", "upper"] = "lower" if image.meta.format == "FITS" else "upper"
    labels = Path(arguments.reference).name, Path(arguments.image).name
    figure = plot_registration(
        reference.data, image.data, err, result, labels=labels, origin=origin, **options
    )
    with output.writing() as path:
        figure.savefig(path)
    return f"picture    {output.given}"


def _json_report(
    arguments: argparse.Namespace, reference: LoadedImage, err: Any, result: Registration
) -> str:
    from .. import Status, __version__

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
        "inflation": result.inflation,
        "chi2": result.chi2,
        "dof": result.dof,
        "reduced_chi2": result.reduced_chi2,
        "status": result.status,
        "message": Status(int(result.status)).message,
        "version": __version__,
    }
    return json.dumps({name: plain(value) for name, value in fields.items()}, allow_nan=False)


def _text_report(
    arguments: argparse.Namespace, reference: LoadedImage, err: Any, result: Registration
) -> str:
    from .. import Status
    from ..results import digits

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
    if arguments.errors == "sandwich" and np.all(np.isfinite(result.inflation)):
        factors = " and ".join(f"{x:.2f}" for x in np.ravel(result.inflation))
        lines.append(f"errors     from the residuals, {factors} times those of the model")
    status = Status(int(result.status))
    lines.append(f"status     {'ok' if status == Status.OK else f'{int(status)}: {status.message}'}")
    return "\n".join(lines)
