"""One pair in, one `Registration` out: the shift, its error, and whether to believe it."""

from __future__ import annotations

from enum import IntFlag
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from .errors import covariance_of, interval_points
from .fourier import as_real_array
from .minimum import find_minimum, is_positive_definite
from .surface import check_pair, extremes
from .terms import Chi2Terms, is_quick, with_terms


class Status(IntFlag):
    """What is wrong with a registration; zero means nothing.

    ``OPEN_INTERVAL`` leaves the shift and its covariance good; every other flag sets them to NaN.
    """

    OK = 0
    NO_DATA = 1
    FLAT = 2
    OUT_OF_WINDOW = 4
    NOT_CONVERGED = 8
    OPEN_INTERVAL = 16

    @property
    def message(self) -> str:
        """The flags in words."""
        return "; ".join(text for flag, text in _MESSAGES.items() if flag in self) or "ok"


_MESSAGES = {
    Status.NO_DATA: "too few pixels have a weight to fit a shift",
    Status.FLAT: "χ² has no minimum: an image is flat or the pair has nothing in common",
    Status.OUT_OF_WINDOW: "the minimum lies outside max_shift",
    Status.NOT_CONVERGED: "the refinement did not converge",
    Status.OPEN_INTERVAL: "Δχ² does not reach its threshold on every side, an interval bound is NaN",
}


class Registration(NamedTuple):
    """Where an image sits relative to its reference, and how well that is known.

    With leading batch axes on every field when it comes out of ``vmap``.
    """

    shift: Array
    """Displacement of the image from the reference in pixels, in axis order, shape ``(D,)``."""
    covariance: Array
    """Covariance of ``shift`` in square pixels, shape ``(D, D)``."""
    interval: Array
    """Lower and upper bound of each axis as positions in pixels, shape ``(D, 2)``.

    As positions they have the spacing of the dtype at the shift: in float32 at 50 pixels 4e-6.
    """
    chi2: Array
    """χ² at the minimum, a scalar; with ``err=None`` the sum of squared residuals."""
    dof: Array
    """Degrees of freedom: pixels with a weight less the number of axes, an integer scalar."""
    status: Array
    """`Status` flags, an integer scalar; zero means nothing is wrong."""

    @property
    def stderr(self) -> Array:
        """Marginal standard error of each axis in pixels, shape ``(D,)``."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def reduced_chi2(self) -> Array:
        """χ² per degree of freedom, near one if the errors are right."""
        return self.chi2 / self.dof

    @property
    def dx(self) -> Array:
        """Shift along the last axis."""
        return self.shift[..., -1]

    @property
    def dy(self) -> Array:
        """Shift along the last axis but one."""
        if self.shift.shape[-1] < 2:
            raise AttributeError("a one-dimensional registration has no dy")
        return self.shift[..., -2]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
        if any(isinstance(x, Tracer) or not hasattr(x, "shape") for x in self):
            return f"Registration({fields})"
        if self.shift.ndim > 1:
            bad = int(np.sum(np.asarray(self.status) != 0))
            return f"Registration({self.shift.shape[:-1]} results, {bad} with a status)"
        pairs = zip(np.asarray(self.shift), np.asarray(self.stderr), strict=True)
        shift = ", ".join(f"{value:+.{digits(error)}f} ± {error:.{digits(error)}f}" for value, error in pairs)
        status = Status(int(self.status))
        verdict = "" if status == Status.OK else f", status={int(status)} ({status.message})"
        return f"Registration(shift=({shift}) px, chi2={float(self.chi2):.5g}, dof={int(self.dof)}{verdict})"


def digits(error: float) -> int:
    """Decimals that show two significant figures of an error."""
    return int(np.clip(1 - np.floor(np.log10(error)), 0, 9)) if np.isfinite(error) and error > 0 else 6


def register(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None = None,
    *,
    boundary: str = "wrap",
    oversample: int = 1,
    max_shift: float | tuple[float, ...] | None = None,
    nsigma: ArrayLike = 1.0,
) -> Registration:
    """Measure the displacement of an image from a reference, with its error, by minimising χ².

        χ²(s) = Σ_i (D_i − M(i − s))² / err_i²

    D is the image, M the Fourier interpolant of the reference. The minimum is found on the pixel grid and
    refined by Newton's method on the exact series; the result is continuous, not quantised.

    Parameters
    ----------
    reference, image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        Real; integers become the default float, other dtypes are kept. Not modified. A pixel that is not
        finite, or masked in a numpy masked array, has weight zero; for one of the reference, the image
        pixels that it covers at the best whole pixel are left out, with a margin of one pixel.
    err : array_like, scalar or shape of the images, optional
        Standard deviation of each pixel of ``image``, in its units; a pixel whose error is not a positive
        finite number has weight zero. None: equal and unknown; covariance and interval are then scaled by
        the reduced χ², as ``scipy.optimize.curve_fit`` does without ``absolute_sigma``.
    boundary : {"wrap", "fill"}
        What the reference is outside its frame: periodic, or zero; static under jit.
    oversample : {1, 2}
        Samples per pixel of the search grid; static under jit. At 1, a reference sharper than its pixels
        loses up to 60 % of its peak at half-pixel shifts; the refinement finds it nevertheless: near the
        limit of detection, 1 and 2 found as many of 150 such shifts.
    max_shift : float or tuple of float, optional
        Largest absolute shift allowed, for all axes or each, in pixels; static under jit. None: half the
        frame.
    nsigma : array_like
        Confidence of ``interval`` in standard deviations, a scalar; Δχ² is ``nsigma²``.

    Returns
    -------
    Registration
        ``shift`` in array-axis order: ``np.roll(reference, 3, axis=0)`` has ``(+3, 0)``. `align` undoes
        it. ``covariance`` is ``2 H⁻¹`` with H the Hessian of χ², ``stderr`` the marginal errors,
        ``interval`` the profile likelihood's (MINOS). ``status`` is a `Status`; what is wrong with the
        values never raises. Every field is differentiable in the images and errors, to any order, by the
        implicit function theorem.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options; while tracing, under jit.

    Notes
    -----
    Cost: 3 FFTs of the frame and a few passes for equal errors; about 13 FFTs for an error map, bad
    pixels or ``boundary="fill"``. Accuracy in float32: about 1e-6 pixels, at any S/N, plus the spacing of
    float32 at the shift itself (4e-6 pixels at 50).

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(1)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> register(scene, image, 0.1)
    Registration(shift=(+1.9992 ± 0.0018, -2.9988 ± 0.0018) px, chi2=1066.6, dof=1022)
    """
    pair = check_pair(reference, image, err, boundary, oversample)
    limits = check_max_shift(max_shift, pair.reference.ndim)
    nsigma = as_real_array(nsigma, "nsigma").astype(pair.image.dtype)
    if nsigma.ndim or (not isinstance(nsigma, Tracer) and not nsigma > 0):
        raise ValueError(f"nsigma must be a positive scalar, not {nsigma}")
    options = (err is not None, boundary, oversample, limits)
    if not is_quick(*pair, boundary=boundary):
        return _register(*pair, nsigma, None, *options)
    result = _register(*pair, nsigma, True, *options)
    return result if result.status != Status.FLAT else _register(*pair, nsigma, False, *options)


def check_max_shift(max_shift: float | tuple[float, ...] | None, ndim: int) -> tuple[float, ...] | None:
    """One positive limit per axis, or None."""
    if max_shift is None:
        return None
    try:
        limits = np.atleast_1d(np.asarray(max_shift, float))
    except (TypeError, ValueError) as error:
        raise TypeError(f"max_shift must be static real numbers, not {max_shift!r}") from error
    if limits.shape not in ((1,), (ndim,)):
        raise ValueError(f"max_shift must be a scalar or hold {ndim} values, not {max_shift!r}")
    if not np.all(limits > 0):
        raise ValueError(f"max_shift must be positive, not {max_shift!r}")
    return tuple(np.broadcast_to(limits, (ndim,)).tolist())


@partial(jax.jit, static_argnames=("known_err", "clean", "boundary", "oversample", "max_shift"))
def _register(
    reference: Array,
    image: Array,
    err: Array,
    nsigma: Array,
    clean: bool | None,
    known_err: bool,
    boundary: str,
    oversample: int,
    max_shift: tuple[float, ...] | None,
) -> Registration:
    if max_shift is None and boundary == "fill":
        max_shift = tuple(n / 2 for n in reference.shape)
    # Without errors, the reference's range is a unit in which no square under- or overflows.
    unit = err if known_err else _range_of(reference)
    run = partial(solve, nsigma=nsigma, known_err=known_err, max_shift=max_shift)
    result, _ = with_terms(run, reference, image, unit, boundary, oversample, clean)
    return result if known_err else result._replace(chi2=result.chi2 * unit**2)


def _range_of(array: Array) -> Array:
    finite = jnp.isfinite(array)
    largest, smallest = (
        jnp.max(array, where=finite, initial=-jnp.inf),
        jnp.min(array, where=finite, initial=jnp.inf),
    )
    extent = lax.stop_gradient(largest - smallest)
    return jnp.where(jnp.isfinite(extent) & (extent > 0), extent, 1.0)


def solve(
    terms: Chi2Terms, nsigma: Array, known_err: bool, max_shift: tuple[float, ...] | None
) -> tuple[Registration, Array]:
    """Minimum, errors and verdict for one surface, whichever way its terms were built.

    Also the interval's bounds relative to the shift, ``(D, 2)``: as positions they are rounded to the
    spacing of the dtype at the shift, which at high S/N is more than their distance from it.
    """
    minimum = find_minimum(terms, max_shift)
    whole, fraction = minimum.whole, minimum.fraction
    ndim = len(terms.shape)
    chi2 = terms.residual_chi2(whole, fraction)
    dof = terms.n_valid - ndim
    scale = jnp.ones_like(chi2) if known_err else chi2 / jnp.maximum(dof, 1)
    points = interval_points(terms, minimum, nsigma**2 * scale)

    period = np.asarray(terms.shape)
    turns = jnp.floor((whole + fraction) / period + 0.5).astype(whole.dtype)
    shift = (whole - turns * period.astype(np.int32)) + fraction

    # Curvature that rounding alone could make is none; that of the shortest wave is π² times its amplitude.
    least = 4 * np.pi**2 * jnp.finfo(shift.dtype).eps * terms.amplitude
    curved = jnp.diagonal(minimum.hessian) > least
    flat = terms.flat | ~(is_positive_definite(minimum.hessian) & jnp.all(curved))
    outside = (
        jnp.zeros_like(flat)
        if max_shift is None
        else jnp.any(jnp.abs(shift) > np.asarray(max_shift, shift.dtype))
    )
    # Only the first of these that applies is a cause; the rest would follow from it.
    cause = [
        (dof <= 0, Status.NO_DATA),
        (flat, Status.FLAT),
        (~minimum.converged, Status.NOT_CONVERGED),
        (outside, Status.OUT_OF_WINDOW),
        (~jnp.all(points.found), Status.OPEN_INTERVAL),
    ]
    status = jnp.select([c for c, _ in cause], [np.int32(flag) for _, flag in cause], np.int32(Status.OK))
    failed = (status != Status.OK) & (status != Status.OPEN_INTERVAL)

    def unless_failed(x: Array) -> Array:
        return jnp.where(failed, jnp.nan, x)

    bounds = unless_failed(extremes(points.displacement, points.found))
    result = Registration(
        shift=unless_failed(shift),
        covariance=unless_failed(covariance_of(minimum.hessian) * scale),
        interval=shift[:, None] + bounds,
        chi2=unless_failed(chi2),
        dof=dof,
        status=status,
    )
    return result, bounds
