"""Pictures: of one registration, its images and χ² around the minimum; of a stack, how the frames drift.

Everything is drawn on a matplotlib ``Figure`` of its own: pyplot and its global state are not touched and no
display is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from .engine.choices import Boundary
    from .engine.counts import Counts
    from .files.rows import StreamResult
    from .results import Registration

__all__ = ["plot_drift", "plot_registration"]

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 10.0,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "0.25",
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.facecolor": "white",
    "axes.formatter.useoffset": False,
}
_NEEDED = 'pictures need matplotlib, which is not installed: pip install "jaxchi2[plot]"'
# Line width of the contour of so many sigma.
_CONTOURS = {1: 2.2, 2: 1.7, 3: 1.2}
_POINTS = 121
# Of z, y and x; of frames in doubt and without a shift. Told apart by the colour-blind too.
_DRIFT = ("#009E73", "#0072B2", "#E69F00")
_DOUBT = "#7B1E7A"
_FAILED = "#D62728"
# The contour of three sigma for two parameters reaches 3.44 standard errors.
_TITLE_WIDTH = 115
"""Characters of a line above the picture."""
_HALF_WIDTH = 4.3


@contextmanager
def drawing(width: float, height: float, pad: float) -> Iterator[Figure]:
    """A figure of so many inches on a canvas of its own, and the style to draw on it in."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=120)
        FigureCanvasAgg(figure)
        figure.set_layout_engine("constrained", w_pad=pad, h_pad=pad)
        yield figure


def plot_registration(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | Counts | str | None = None,
    result: Registration | None = None,
    *,
    boundary: str | Boundary = "overlap",
    labels: tuple[str, str] = ("reference", "image"),
    origin: Literal["lower", "upper"] = "lower",
    clip: float | None = None,
    **options: Any,
) -> Figure:
    """Show how well a shift aligns two images, and how well it is known.

    Five panels: the two images; image minus reference before and after the shift is undone, on one colour
    scale and the reference's grid, of the pixels that count; and Δχ² = χ² − χ²_min around the minimum with
    the joint 1, 2 and 3σ regions of both shifts (68.3, 95.4 and 99.7 %) and a cross for the shift with its
    marginal errors. From the image the background that was fitted is subtracted, and from that the reference
    times the gain.

    Parameters
    ----------
    reference, image : array_like, shape (ny, nx)
        The two images; of unlike shapes where the boundary is "overlap".
    err : array_like, scalar or shape (ny, nx), Counts or "poisson", optional
        Standard deviation of each pixel, as given to `register`. Without it χ² is scaled so that its minimum
        equals the degrees of freedom, as the errors in ``result`` are.
    result : Registration, optional
        What `register` returned for these images; computed here if not given.
    boundary : str or Boundary
        The boundary rule that ``result`` was found with.
    labels : tuple of str
        Titles of the two images, such as their file names.
    origin : {"lower", "upper"}
        Where row 0 of the images is drawn: ``"lower"`` as astronomers do, ``"upper"`` for photographs.
    clip, **options
        The other options of `register` that ``result`` was found with, such as ``fit_gain`` and ``mask``.

    Returns
    -------
    matplotlib.figure.Figure
        A figure on an Agg canvas: ``figure.savefig("picture.png")``.

    Raises
    ------
    ValueError, TypeError
        If the images do not have two axes; for unfit shapes and options, as of `register`.
    ImportError
        If matplotlib is not installed.
    """
    from .align import align
    from .engine.choices import boundary_for_align
    from .registration import register

    first, second = _float(reference), _float(image)
    if (first.ndim, second.ndim) != (2, 2):
        raise ValueError(
            f"reference and image must have two axes to be drawn, not shapes {first.shape} and {second.shape}"
        )
    if result is None:
        result = register(reference, image, err, boundary=boundary, clip=clip, **options)
    err, options = _as_judged(reference, image, err, boundary, clip, options)
    gain = np.nan_to_num(float(result.gain), nan=1.0)
    whole = np.size(result.background_coefficients) > 1
    background = result.background_image(second.shape) if whole else result.background
    background = np.nan_to_num(np.asarray(background, dtype=float))
    model = gain * np.where(_mask(options, "reference_mask"), np.nan, first)
    counted = np.where(_mask(options, "mask"), np.nan, second) - background

    before = np.full(first.shape, np.nan)
    common = tuple(slice(min(sizes)) for sizes in zip(first.shape, second.shape, strict=True))
    before[common] = counted[common]
    outside = boundary_for_align(boundary)
    aligned = np.asarray(align(counted, result.shift, boundary=outside, shape=first.shape), dtype=float)

    rows, columns = first.shape
    with drawing(12.0, float(np.clip(1.5 + 5.3 * rows / columns, 5.0, 9.0)), 0.08) as figure:
        axes = figure.subplot_mosaic("RIC;BAC", width_ratios=(1, 1, 1.4))
        figure.suptitle(_title(result), fontsize=13)

        for key, pixels, label in (("R", first, labels[0]), ("I", second, labels[1])):
            low, high = limits_of(pixels)
            axes[key].imshow(pixels, origin=origin, cmap="magma", vmin=low, vmax=high)
            axes[key].set_title(_shortened(label))

        before, after = before - model, aligned - model
        limit = _symmetric_limit(before)
        for key, pixels, label in (("B", before, "before"), ("A", after, "after")):
            # What is white is zero, not unknown.
            axes[key].set_facecolor("0.8")
            drawn = axes[key].imshow(pixels, origin=origin, cmap="RdBu_r", vmin=-limit, vmax=limit)
            good = np.isfinite(pixels)
            spread = f"rms {np.sqrt(np.mean(pixels[good] ** 2)):.3g}" if good.any() else "no shift to undo"
            axes[key].set_title(f"difference {label}, {spread}")
        colour_bar(figure, axes["A"], drawn)
        for key in "RB":
            axes[key].set_ylabel("y (pixels)")
        for key in "BA":
            axes[key].set_xlabel("x (pixels)")
        if first.shape == second.shape:
            for key in "RI":
                axes[key].tick_params(labelbottom=False)
            axes["I"].tick_params(labelleft=False)
        axes["A"].tick_params(labelleft=False)

        _draw_chi2(figure, axes["C"], reference, image, err, result, {"boundary": boundary, **options})
    return figure


def plot_drift(result: Registration | StreamResult, *, title: str = "", steps: bool = False) -> Figure:
    """Show how the frames of a stack drift, how well that is known, and which frames are in doubt.

    The shift along each axis over the frame number with a band of one standard error; the error itself and
    the reduced χ², for a band is often thinner than its line; and the path in the plane, or the plane of the
    last two axes, by frame number. A cross marks a frame with a status; if it lies beyond what the others
    span, it is at the edge, and not in the path. A red line marks one without a shift. χ² without ``err`` is
    scaled to one in the median.

    Parameters
    ----------
    result : Registration or StreamResult
        What `register_stack` or `register_file` returned.
    title : str
        A line above, such as the name of the file.
    steps : bool
        Whether the shifts are steps from frame to frame, of ``reference="previous"``.

    Returns
    -------
    matplotlib.figure.Figure
        A figure on an Agg canvas: ``figure.savefig("drift.png")``.

    Raises
    ------
    ValueError
        If ``result`` is not of a stack.
    ImportError
        If matplotlib is not installed.
    """
    shift, sigma = (np.asarray(values, dtype=float) for values in (result.shift, result.stderr))
    if shift.ndim != 2 or shift.shape[1] not in (2, 3):
        raise ValueError(f"a drift needs the shifts of a stack, of shape (N, 2) or (N, 3), not {shift.shape}")
    status = np.asarray(result.status)
    reduced = np.asarray(result.chi2, dtype=float) / np.asarray(result.dof)
    failed = ~np.isfinite(shift).all(1)
    doubtful = (status != 0) & ~failed
    names = "zyx"[-shift.shape[1] :]
    frame = np.arange(len(shift))
    with drawing(13.0, 2.6 + 1.9 * len(names), 0.05) as figure:
        heights = [2.0] * len(names) + [1.1, 1.1]
        axes = figure.subplot_mosaic(
            [[key, "path"] for key in (*names, "error", "chi2")],
            width_ratios=(1.9, 1),
            height_ratios=heights,
        )
        limits = [_believed(*column, failed | doubtful) for column in zip(shift.T, sigma.T, strict=True)]
        columns = zip(names, _DRIFT[-len(names) :], shift.T, sigma.T, limits, strict=True)
        for name, color, values, errors, limit in columns:
            _draw_band(axes[name], frame, values, errors, color)
            if doubtful.any():
                seen = np.clip(values[doubtful], *limit)
                axes[name].plot(frame[doubtful], seen, "x", color=_DOUBT, ms=5, mew=1.2, clip_on=False)
            if np.isfinite(limit).all():
                axes[name].set_ylim(limit)
            axes[name].set_ylabel(f"{'step' if steps else 'shift'} in {name}\n(pixels)", color=color)
            axes["error"].plot(frame, errors, color=color, lw=0.9)
        known = np.any(np.isfinite(np.asarray(result.p_value, dtype=float)))
        if not known and np.isfinite(reduced).any():
            reduced = reduced / np.nanmedian(reduced)
        axes["chi2"].plot(frame, reduced, color="0.3", lw=0.9)
        axes["chi2"].plot(frame[doubtful], reduced[doubtful], "x", color=_DOUBT, ms=5, mew=1.2)
        axes["chi2"].axhline(1, color="0.7", lw=0.8, zorder=0)
        axes["chi2"].set(ylabel="χ²/dof" if known else "χ², relative", xlabel="frame")
        axes["error"].set_ylabel("1σ error\n(pixels)")
        if np.any(sigma > 0):
            axes["error"].set_ylim(0, 1.3 * np.nanpercentile(sigma, 99))
        for key in (*names, "error", "chi2"):
            if len(frame):
                axes[key].set_xlim(-0.5, len(frame) - 0.5)
            axes[key].vlines(
                frame[failed],
                0,
                1,
                color=_FAILED,
                lw=0.8,
                zorder=0,
                transform=axes[key].get_xaxis_transform(),
            )
            axes[key].tick_params(labelbottom=key == "chi2")
            axes[key].grid(alpha=0.25, lw=0.6)
        if status.any():
            _explain(axes[names[0]], doubtful.any(), failed.any())
        figure.align_ylabels([axes[key] for key in (*names, "error", "chi2")])
        low, high = np.transpose(limits)
        within = np.all((low <= shift) & (shift <= high), 1, keepdims=True)
        _draw_path(figure, axes["path"], frame, np.where(within, shift, np.nan)[:, -2:], doubtful, steps)
        figure.suptitle(
            f"{title}\n{_counts(status, failed)}" if title else _counts(status, failed), fontsize=13
        )
    return figure


def _believed(values: np.ndarray, errors: np.ndarray, doubted: np.ndarray) -> tuple[float, float]:
    """What the frames without a doubt span, and a margin; no limit where there are none."""
    if doubted.all():
        return -np.inf, np.inf
    low, high = np.min((values - errors)[~doubted]), np.max((values + errors)[~doubted])
    margin = max(0.05 * (high - low), 1e-6)
    return low - margin, high + margin


def _draw_band(axes: Axes, frame: np.ndarray, values: np.ndarray, errors: np.ndarray, color: str) -> None:
    axes.fill_between(frame, values - errors, values + errors, color=color, alpha=0.3, lw=0)
    # A frame between two without a shift would be a line of no length.
    found = np.isfinite(values)
    alone = found & ~np.append(found[1:], False) & ~np.append(False, found[:-1])
    axes.plot(frame, values, color=color, lw=1.0)
    axes.errorbar(frame[alone], values[alone], errors[alone], fmt=".", color=color, ms=4, lw=0.8)


def _explain(axes: Axes, doubtful: bool, failed: bool) -> None:
    from matplotlib.lines import Line2D

    marks = []
    if doubtful:
        marks.append(Line2D([], [], ls="", marker="x", color=_DOUBT, ms=5, mew=1.2, label="in doubt"))
    if failed:
        marks.append(Line2D([], [], ls="", marker="|", color=_FAILED, ms=9, mew=1.2, label="no shift"))
    axes.legend(
        handles=marks,
        ncols=2,
        frameon=False,
        fontsize=9,
        handletextpad=0.1,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.2,
    )


def _draw_path(
    figure: Figure, axes: Axes, frame: np.ndarray, shift: np.ndarray, doubtful: np.ndarray, steps: bool
) -> None:
    word = "step" if steps else "shift"
    axes.set(xlabel=f"{word} in x (pixels)", ylabel=f"{word} in y (pixels)")
    axes.set_title("steps in the plane" if steps else "path in the plane")
    y, x = shift.T
    if not steps:
        axes.plot(x, y, color="0.75", lw=0.7, zorder=1)
    drawn = axes.scatter(
        x, y, c=frame, s=np.clip(3000 / max(len(frame), 1), 1.5, 16), cmap="viridis", zorder=2, linewidths=0
    )
    axes.plot(x[doubtful], y[doubtful], "x", color=_DOUBT, ms=6, mew=1.2, zorder=3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.25, lw=0.6)
    bar = figure.colorbar(drawn, ax=axes, label="frame", aspect=35, pad=0.02)
    bar.outline.set_linewidth(0.5)


def _counts(status: np.ndarray, failed: np.ndarray) -> str:
    from .status import Status

    counts = [
        (int(np.sum(status & flag != 0)), str(flag.name).lower().replace("_", " ")) for flag in Status if flag
    ]
    flags = ", ".join(f"{count} {name}" for count, name in counts if count)
    text = f"{len(status)} frames, {int(np.sum(status != 0))} with a status"
    return f"{text} ({flags})" if flags else text


def known_pictures() -> tuple[str, ...]:
    """File types that a figure can be saved as, by suffix.

    Returns
    -------
    tuple of str
        Such as ``("jpg", "pdf", "png", "svg")``.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError(_NEEDED) from error
    return tuple(sorted(FigureCanvasAgg.get_supported_filetypes()))


def _mask(options: dict[str, Any], name: str) -> np.ndarray:
    return np.zeros((), bool) if options.get(name) is None else np.asarray(options[name])


def _as_judged(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | Counts | str | None,
    boundary: str | Boundary,
    clip: float | None,
    options: dict[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """Errors and options of the surface: those of `register`, with what it finds of the pixels in rounds.

    Counts have the errors that the model expects; pixels that ``clip`` leaves out are masked.
    """
    from .engine.choices import Choices
    from .engine.counts import as_counts
    from .engine.pair import check
    from .registration import judged, with_unit

    options = {name: value for name, value in options.items() if name not in ("nsigma", "verdict", "errors")}
    counted = as_counts(err) is not None
    if clip is None and not counted:
        return err, options
    of_model = ("fit_gain", "fit_background", "max_shift")
    choices = Choices.of(boundary, **{name: options[name] for name in of_model if name in options})
    of_pair = {name: value for name, value in options.items() if name not in of_model}
    pair, model = check(reference, image, err, choices, **of_pair, counting=True)
    known = err is not None or options.get("weights") is not None
    left, *_ = judged(with_unit(pair, known)[0], known, model, clip)
    return left.err if counted else err, options | {"mask": ~np.isfinite(left.image)}


def _float(pixels: ArrayLike) -> np.ndarray:
    """Convert to float64 with NaN for everything that is bad: masked, infinite or NaN."""
    if isinstance(pixels, np.ma.MaskedArray):
        pixels = np.ma.filled(pixels.astype(float), np.nan)
    values = np.asarray(pixels).astype(float)
    return np.where(np.isfinite(values), values, np.nan)


def limits_of(pixels: np.ndarray) -> tuple[float, float]:
    """Values that are black and white: all but the outermost per cent."""
    good = pixels[np.isfinite(pixels)]
    if good.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(good, (1, 99.7))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _symmetric_limit(pixels: np.ndarray) -> float:
    good = np.abs(pixels[np.isfinite(pixels)])
    limit = float(np.percentile(good, 99.5)) if good.size else 0.0
    return limit or 1.0


def _shortened(label: str, longest: int = 36) -> str:
    return label if len(label) <= longest else f"…{label[1 - longest :]}"


def colour_bar(figure: Figure | SubFigure, axes: Axes, drawn: Any, **options: Any) -> None:
    """A bar beside a panel."""
    # Beside the panel, not from its space: panels with and without a bar stay the same size.
    bar = figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0.0, 0.045, 1.0)), **options)
    bar.outline.set_linewidth(0.5)


def _draw_chi2(
    figure: Figure,
    axes: Axes,
    reference: Any,
    image: Any,
    err: Any,
    result: Registration,
    options: dict[str, Any],
) -> None:
    import jax
    from matplotlib.colors import PowerNorm

    from .engine.errors import delta_chi2
    from .surface import chi2_surface

    shift, sigma = (np.asarray(values, dtype=float) for values in (result.shift, result.stderr))
    axes.set_title("Δχ² around the minimum, joint 1, 2 and 3σ regions")
    axes.set_xlabel("shift in x (pixels)")
    axes.set_ylabel("shift in y (pixels)")
    if not (np.all(np.isfinite(shift)) and np.all(np.isfinite(sigma)) and np.all(sigma > 0)):
        axes.text(0.5, 0.5, "no minimum with error bars", ha="center", va="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[], box_aspect=1)
        return
    if not result.noise_known:
        err = float(np.sqrt(result.reduced_chi2))
    surface = chi2_surface(reference, image, err, **options)
    half = _HALF_WIDTH * sigma
    # Nearly equal errors share one scale, so that the ellipse is seen in its true shape.
    if max(half) < 3 * min(half):
        half[:] = max(half)
    # One program instead of one per operation: the first picture comes in a fraction of the time.
    zoom_of = jax.jit(lambda surface, center, spacing: surface.zoom(center, spacing, (_POINTS, _POINTS)))
    zoom = np.asarray(zoom_of(surface, result.shift, 2 * half / (_POINTS - 1)), dtype=float)
    excess = zoom - zoom.min()
    inflation = np.asarray(result.inflation, dtype=float)
    if np.all(np.isfinite(inflation)):
        # In units of the errors that are quoted; on both axes alike, as χ² is one surface.
        excess = excess / np.prod(inflation)
    y, x = (shift[axis] + half[axis] * np.linspace(-1, 1, _POINTS) for axis in (0, 1))
    drawn = axes.imshow(
        excess,
        origin="lower",
        extent=(x[0], x[-1], y[0], y[-1]),
        cmap="viridis",
        # In √Δχ², the distance from the minimum in standard errors, the valley is as visible as its walls.
        norm=PowerNorm(0.5, vmin=0.0, vmax=25.0),
        aspect="auto",
        interpolation="bilinear",
    )
    levels = [float(delta_chi2(float(n), nfitted=2)) for n in _CONTOURS]
    lines = axes.contour(x, y, excess, levels=levels, colors="white", linewidths=_CONTOURS.values())
    # Labels on the tops of the curves: there they stay apart, however thin the ellipse.
    tops = [max(np.concatenate(curves), key=lambda point: point[1]) for curves in lines.allsegs if curves]
    names = {level: f"{n}σ" for level, n in zip(levels, _CONTOURS, strict=True)}
    axes.clabel(lines, fmt=names, fontsize=10, manual=[tuple(top) for top in tops])
    axes.errorbar(shift[1], shift[0], sigma[0], sigma[1], fmt="none", color="white", lw=1.4, capsize=3)
    axes.set_box_aspect(1)
    axes.locator_params(nbins=6)
    colour_bar(figure, axes, drawn, extend="max", ticks=[0, 1, 4, 9, 16, 25])


def _title(result: Registration) -> str:
    from .results import digits
    from .status import Status

    status = Status(int(result.status))
    shift, sigma = (np.asarray(values, dtype=float) for values in (result.shift, result.stderr))
    if not np.all(np.isfinite(shift)):
        return fill(f"no shift found: {status.message}", _TITLE_WIDTH)
    parts = [
        f"{name} = {value:+.{digits(error)}f} ± {error:.{digits(error)}f}".replace("-", "−")
        for name, value, error in zip("yx", shift, sigma, strict=True)
    ]
    title = f"shift  {',  '.join(parts)} pixels      χ²/dof = {float(result.reduced_chi2):.4g}"
    return title if status == Status.OK else f"{title}\n{fill(status.message, _TITLE_WIDTH)}"
