"""Pictures of local shifts: arrows with the ellipses of their errors, and how large these are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from .plot import colour_bar, drawing, limits_of

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .field import Field

__all__ = ["plot_field"]

MOST_ARROWS = 40
"""Along an axis; of more windows every second, third, … is drawn."""


def plot_field(
    field: Field,
    image: ArrayLike | None = None,
    *,
    title: str = "",
    scale: float | None = None,
    subtract_mean: bool = False,
    origin: Literal["lower", "upper"] = "lower",
) -> Figure:
    """Show local shifts as arrows with the one-sigma ellipses of their errors, and the size of these.

    On the left arrows from the middle of each window, coloured by their length in standard errors, over the
    image; a cross where there is no answer, a ring where it is in doubt. On the right the standard error of
    each window, the root of the mean variance of its axes.

    Parameters
    ----------
    field : Field
        From `register_field`, of two dimensions.
    image : array_like, shape (ny, nx), optional
        What to draw behind the arrows.
    title : str
        Text above the picture.
    scale : float, optional
        Pixels of an arrow for each pixel of displacement. None: the longest reach from one arrow to the next.
    subtract_mean : bool
        Draw displacements from their mean, which the title then gives.
    origin : {"lower", "upper"}
        Where row 0 of the image is drawn.

    Returns
    -------
    matplotlib.figure.Figure
        A figure on an Agg canvas: ``figure.savefig("picture.png")``.

    Raises
    ------
    ValueError
        For a field of other than two dimensions, and an image of another shape than the field's.
    ImportError
        If matplotlib is not installed.
    """
    frame = field.windows.frame
    if len(frame) != 2 or np.ndim(field.status) != 2:
        raise ValueError(f"field must be one of two dimensions, not of {np.shape(field.status)} windows")
    if image is not None and np.shape(image) != frame:
        raise ValueError(f"image must have the shape of the field's, {frame}, not {np.shape(image)}")
    with drawing(12.0, 5.6, 0.06) as figure:
        left, right = figure.subplots(1, 2, sharex=True, sharey=True)
        mean = _draw_arrows(left, field, image, scale, subtract_mean, origin)
        variance = np.trace(np.asarray(field.covariance, float), axis1=-2, axis2=-1) / 2
        y, x = np.moveaxis(field.centers, -1, 0)
        drawn = right.pcolormesh(x, y, np.sqrt(variance), shading="nearest", cmap="viridis")
        right.set_title("standard error (pixels)")
        right.set_aspect("equal")
        colour_bar(figure, right, drawn)
        for axes in (left, right):
            axes.set_xlabel("x (pixels)")
        left.set_ylabel("y (pixels)")
        bad = int(np.sum(np.asarray(field.status) != 0))
        words = [title, f"{field.status.size} windows, {bad} with a status", mean]
        figure.suptitle("; ".join(w for w in words if w), fontsize=11)
    return figure


def _draw_arrows(
    axes: Axes,
    field: Field,
    image: ArrayLike | None,
    scale: float | None,
    subtract_mean: bool,
    origin: Literal["lower", "upper"],
) -> str:
    """Arrows, ellipses and marks; the mean in words where it was subtracted."""
    from matplotlib.collections import EllipseCollection

    step = max(1, -(-max(field.status.shape) // MOST_ARROWS))
    thin = (slice(step // 2, None, step),) * 2
    shift, covariance = (np.asarray(z, float)[thin] for z in (field.shift, field.covariance))
    status, centers = np.asarray(field.status)[thin], field.centers[thin]
    answered, words = np.isfinite(shift).all(-1), ""
    error = np.sqrt(np.einsum("...a,...ab,...b->...", *_along(shift, covariance)))
    if subtract_mean and answered.any():
        mean = np.nanmean(np.asarray(field.shift, float)[np.asarray(field.valid)], 0)
        shift, words = shift - mean, f"less their mean, y = {mean[0]:+.3f}, x = {mean[1]:+.3f} px"
    length = np.hypot(*np.moveaxis(shift, -1, 0))
    if scale is None:
        longest = np.nanquantile(length[answered], 0.98) if answered.any() else 1.0
        scale = step * max(field.windows.spacing) / (longest or 1.0)
    if image is not None:
        low, high = limits_of(np.asarray(image, float))
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin=origin, alpha=0.6)
    elif origin == "upper":
        axes.invert_yaxis()
    y, x = (centers[..., k][answered] for k in (0, 1))
    dy, dx = (scale * shift[..., k][answered] for k in (0, 1))
    drawn = axes.quiver(
        x, y, dx, dy, np.clip((length / error)[answered], 0, 10),
        angles="xy", scale_units="xy", scale=1, width=0.004, cmap="plasma", clim=(0, 10),
    )  # fmt: skip
    values, vectors = np.linalg.eigh(covariance[answered])
    sizes = 2 * scale * np.sqrt(np.maximum(values, 0))
    turned = np.degrees(np.arctan2(vectors[:, 0, 1], vectors[:, 1, 1]))
    ellipses = EllipseCollection(
        sizes[:, 1], sizes[:, 0], turned, units="xy", offsets=np.stack([x + dx, y + dy], -1),
        offset_transform=axes.transData, facecolors="none", edgecolors="0.2", linewidths=0.7,
    )  # fmt: skip
    axes.add_collection(ellipses)
    doubted = (status != 0) & answered
    axes.plot(centers[..., 1][~answered], centers[..., 0][~answered], "x", color="#D62728", ms=4)
    axes.plot(centers[..., 1][doubted], centers[..., 0][doubted], "o", color="#7B1E7A", ms=6, mfc="none")
    axes.set_title(f"displacement × {scale:.3g}, with 1σ ellipses")
    axes.set_aspect("equal")
    colour_bar(axes.figure, axes, drawn, label="length in standard errors, to 10")
    return words


def _along(shift: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along the shifts, on either side of the covariance."""
    size = np.linalg.norm(shift, axis=-1, keepdims=True)
    unit = shift / np.where(size > 0, size, 1.0)
    return unit, covariance, unit
