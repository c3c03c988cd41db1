"""χ² maps and the shifts and errors read off them, on the exact χ² surface.

Shifts and errors are continuous; the arguments that set the resolution in `image_registration`
(``upsample_factor``, ``max_auto_size``, the zoom shapes) shape the returned χ² grid alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from .. import checks
from ..checks import array_of, choice, flag, integer, is_traced, real_number, refuse
from ..engine.choices import BOUNDARIES, Choices, Plan
from ..engine.errors import delta_chi2
from ..engine.layout import lay_out, prepare
from ..engine.pair import Pair, check_images
from ..engine.position import Position
from ..engine.spectrum import harmonics
from ..engine.terms import Chi2Terms
from ..engine.ways import Way, has_quick_way, tried, with_terms
from ..fourier import accept_obsolete, correlate2d, static_sizes
from ..leastsq import fit
from ..registration import solve
from ..results import Registration
from ..sampling import MODES
from ..status import Status
from .iterative_zoom import above_one, positive, zoom_in

Chi2Grid = tuple[Array, Array, Array]


@accept_obsolete(nthreads=4, use_numpy_fft=6, allow_huge=9)
def chi2n_map(
    im1: ArrayLike,
    im2: ArrayLike,
    err: ArrayLike | None = None,
    boundary: str | None = "wrap",
    *,
    zeromean: bool = False,
    return_all: bool = False,
    reduced: bool = False,
) -> Array | tuple[Array, Array, Array, Array]:
    """χ² of ``im2`` against ``im1`` moved by every whole-pixel shift.

    Parameters
    ----------
    im1, im2 : array_like, shape (ny, nx)
        The reference, which is moved, and the image. A pixel that is not finite has weight zero.
    err : array_like, scalar or shape (ny, nx), optional
        Standard deviation of each pixel of ``im2``, its sign ignored; weight zero where it is zero or not
        finite. None means 1.
    boundary : {"wrap", "fill"}
        ``im1`` is periodic, or zero outside its frame, which None means too; static under jit.
    zeromean : bool
        Subtract from each image the plain mean of its finite pixels first; static under jit.
    return_all : bool
        Also return the three terms; static under jit.
    reduced : bool
        Divide χ² (not the terms) by the number of all pixels less two; static under jit.

    Returns
    -------
    chi2 : Array, shape (ny, nx)
        Shift zero is at index ``((ny − 1) // 2, (nx − 1) // 2)``; the shift *falls* as the index grows.
    term1, term2, term3 : Array
        ``Σ im2²/err²``, a scalar; ``−2 Σ im2 im1(−s)/err²``, a map; ``Σ im1(−s)²/err²``, a map if the
        errors differ or the boundary is "fill", else a scalar. Only with ``return_all``.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown boundaries.

    Notes
    -----
    Unlike `image_registration`: NaN and zero errors get weight zero, not value zero at weight one;
    "fill" with a scalar error sums the third term over the overlap alone; the boundaries that package
    accepts here and treats as "wrap" are refused; integer images do not overflow.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.random.default_rng(0).normal(size=(9, 8))
    >>> chi2 = chi2n_map(scene, np.roll(scene, (1, -2), (0, 1)), 1.0)
    >>> int(chi2.argmin()) == (4 - 1) * 8 + (3 + 2)
    True
    """
    pair, model = _pair(im1, im2, err, boundary, zeromean, ("wrap", "fill"))
    return _chi2n_map(pair, model, flag(return_all, "return_all"), flag(reduced, "reduced"))


@partial(jax.jit, static_argnums=(1, 2, 3))
def _chi2n_map(pair: Pair, plan: Plan, return_all: bool, reduced: bool) -> Array | tuple[Array, ...]:
    boundary = "wrap" if plan.boundary.periodic else "fill"
    prepared = prepare(pair, plan)
    layout = lay_out(prepared, pair, plan)
    frame = tuple(slice(0, n) for n in pair.image.shape)
    image, weights = (jnp.roll(x, -layout.corner, (0, 1)) for x in (layout.image, layout.weights))
    # In the units that came in, the pedestal put back: it belongs to the terms, if not to their sum.
    weights = weights[frame] / prepared.unit**2
    model, data = (x[frame] * prepared.unit + prepared.pedestal for x in (layout.reference, image))
    model_c, data_c = model - prepared.pedestal, data - prepared.pedestal

    def term2_of(model: Array, data: Array) -> Array:
        return -2 * correlate2d(model, weights * data, boundary)

    term3_of = partial(_term3, weights=weights, boundary=boundary)
    chi2 = jnp.sum(weights * data_c**2) + term2_of(model_c, data_c) + term3_of(model_c)
    if reduced:
        chi2 = chi2 / (pair.image.size - 2)
    if not return_all:
        return chi2
    term3 = term3_of(model)
    if pair.err.ndim == 0 and boundary == "wrap":
        term3 = jnp.sum(weights * model**2)
    return chi2, jnp.sum(weights * data**2), term2_of(model, data), term3


def _term3(model: Array, weights: Array, boundary: str) -> Array:
    return correlate2d(model**2, weights, boundary)


@accept_obsolete(nthreads=5, use_numpy_fft=6, allow_huge=14)
def chi2_shift(
    im1: ArrayLike,
    im2: ArrayLike,
    err: ArrayLike | None = None,
    upsample_factor: float | str = "auto",
    boundary: str | None = "wrap",
    *,
    zeromean: bool = False,
    nfitted: int = 2,
    verbose: bool = False,
    return_error: bool = True,
    return_chi2array: bool = False,
    max_auto_size: int = 512,
    max_nsig: float = 1.1,
) -> tuple:
    """Measure the shift of ``im2`` from ``im1`` and its error; the minimum of the exact χ² surface.

    Parameters
    ----------
    im1, im2 : array_like, shape (ny, nx)
        The reference and the image. A pixel that is not finite has weight zero.
    err : array_like, scalar or shape (ny, nx), optional
        Standard deviation of each pixel of ``im2``, its sign ignored; weight zero where it is zero or not
        finite. None means 1, and the errors are then in the units of the images: see `register` for another
        way.
    upsample_factor : float or "auto"
        Samples per pixel of the returned χ² grid; "auto" fits its window to the region within
        ``max_nsig``; static under jit.
    boundary : str
        What ``im1`` is outside its frame, one of the names that `register` takes; static under jit. "wrap",
        the default as in `image_registration`, is wrong where content crosses the edge; "overlap" is not.
        None means "fill".
    zeromean : bool
        Subtract from each image the plain mean of its finite pixels first; static under jit.
    nfitted : int
        Number of parameters that the errors are joint for: 2 for the region of both shifts, 1.52 times as
        wide as the marginal errors, which 1 gives; static under jit.
    verbose : bool
        Print the result (outside ``jit`` only).
    return_error, return_chi2array : bool
        What to return; static under jit.
    max_auto_size : int
        Samples along each axis of the χ² grid for "auto"; static under jit.
    max_nsig : float
        Standard deviations that this grid shows at least; static under jit.

    Returns
    -------
    dx, dy : Array
        Shift in pixels, positive towards larger indices. NaN where χ² has no minimum.
    errx, erry : Array
        Half the extent of the region Δχ² < ``delta_chi2(1, nfitted)``. Only with ``return_error``.
    (x, y, chi2) : tuple of Array
        χ² around the best pixel and its coordinates, all two-dimensional; the coordinates are *minus* the
        shift, as in `image_registration`. Only with ``return_chi2array``.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options.

    Notes
    -----
    Unlike `image_registration`: shift and errors are not quantised; the grid is centred on the best pixel
    on even axes too, always holds the minimum, and its χ² is exact between pixels.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> dx, dy, errx, erry = chi2_shift(scene, image, 0.1)
    >>> print(f"{dx:.3f} ± {errx:.3f}, {dy:.3f} ± {erry:.3f}")
    -2.997 ± 0.003, 1.998 ± 0.003
    """
    pair, model = _pair(im1, im2, err, boundary, zeromean)
    if not isinstance(upsample_factor, str) or upsample_factor != "auto":
        upsample_factor = positive(upsample_factor, "upsample_factor")
    (max_auto_size,) = static_sizes(max_auto_size, "max_auto_size", 1)
    max_nsig, nfitted = positive(max_nsig, "max_nsig"), integer(nfitted, "nfitted")
    return_error, verbose = flag(return_error, "return_error"), flag(verbose, "verbose")
    wants_grid = flag(return_chi2array, "return_chi2array")
    window = UpsampledGrid(upsample_factor, max_auto_size, max_nsig, nfitted) if wants_grid else None
    return _in_order(*_shift_and_grid(pair, model, nfitted, window), return_error, verbose)


@accept_obsolete(nthreads=5, use_numpy_fft=6, allow_huge=None)
def chi2_shift_iterzoom(
    im1: ArrayLike,
    im2: ArrayLike,
    err: ArrayLike | None = None,
    upsample_factor: float | str = "auto",
    boundary: str | None = "wrap",
    *,
    zeromean: bool = False,
    verbose: bool = False,
    return_error: bool = True,
    return_chi2array: bool = False,
    zoom_shape: Sequence[int] = (10, 10),
    rezoom_shape: Sequence[int] = (100, 100),
    rezoom_factor: float = 5,
    mindiff: float = 1,
    zoomstep: float = 2,
) -> tuple:
    """Measure the shift of ``im2`` from ``im1`` as `chi2_shift` does, with a χ² grid found by zooming in.

    The zoom factor grows by ``zoomstep`` from one until the two lowest points of a ``zoom_shape`` grid
    around the minimum differ in χ² by less than ``mindiff``. The returned grid has ``rezoom_shape`` points
    at ``rezoom_factor`` times that zoom.

    Parameters
    ----------
    im1, im2, err, boundary, zeromean, verbose, return_error, return_chi2array
        As for `chi2_shift`.
    upsample_factor
        Has no effect, here as in `image_registration`: the zoom sets the spacing.
    zoom_shape, rezoom_shape : sequence of two int
        Shapes ``(ny, nx)`` of the grids that are zoomed in on and returned; static under jit.
    rezoom_factor : float
        Zoom of the returned grid over the last level's; static under jit.
    mindiff : float
        Difference in χ² at which zooming stops, positive; static under jit.
    zoomstep : float
        Factor between levels, above one; static under jit.

    Returns
    -------
    dx, dy, errx, erry : Array
        As for `chi2_shift`, with ``nfitted=2``.
    (x, y, chi2) : tuple of Array
        χ² around the minimum and its coordinates; here *plus* the shift, and falling with the index.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options.

    Notes
    -----
    Unlike `image_registration` 0.2.10: it can be called; the shift is the minimum itself, not the centre of
    the last level but one; even axes are not off by half a pixel; it stops after at most 60 levels.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> dx, dy, errx, erry = chi2_shift_iterzoom(scene, image, 0.1)
    >>> print(f"{dx:.3f} ± {errx:.3f}, {dy:.3f} ± {erry:.3f}")
    -2.997 ± 0.003, 1.998 ± 0.003
    """
    del upsample_factor
    pair, model = _pair(im1, im2, err, boundary, zeromean)
    levels = (
        static_sizes(zoom_shape, "zoom_shape", 2, 2),
        static_sizes(rezoom_shape, "rezoom_shape", 2, 2),
        positive(rezoom_factor, "rezoom_factor"),
        positive(mindiff, "mindiff"),
        above_one(zoomstep),
    )
    return_error, verbose = flag(return_error, "return_error"), flag(verbose, "verbose")
    window = RezoomedGrid(*levels) if flag(return_chi2array, "return_chi2array") else None
    return _in_order(*_shift_and_grid(pair, model, 2, window), return_error, verbose)


def chi2_shift_leastsq(
    im1: ArrayLike,
    im2: ArrayLike,
    err: ArrayLike | None = None,
    mode: str = "wrap",
    maxoff: float | None = None,
    return_error: bool = True,
    guessx: float = 0,
    guessy: float = 0,
    use_fft: bool = False,
    ignore_outside: bool = True,
    verbose: bool = False,
) -> tuple:
    """Measure the shift of ``im2`` from ``im1`` and its error by least squares on the pixels, with `fit`.

    Parameters
    ----------
    im1, im2 : array_like, shape (ny, nx)
        The reference and the image; a constant between them is fitted. A pixel that is not finite has weight
        zero.
    err : array_like, scalar or shape (ny, nx), optional
        Standard deviation of each pixel of ``im2``, its sign ignored; weight zero where it is zero or not
        finite. None: the errors are scaled by the reduced χ².
    mode : {"wrap", "constant", "reflect", "nearest"}
        What ``im1`` is outside its frame, if that is asked for, as in ``scipy.ndimage.map_coordinates``,
        "wrap" being its "grid-wrap"; static under jit.
    maxoff : float, optional
        Largest shift along each axis; as many pixels are left out at each edge of the frame, so that nothing
        from outside is looked at, whatever ``ignore_outside`` says. Static under jit.
    return_error : bool
        Whether to return the errors; static under jit.
    guessx, guessy : float
        Where to start, in pixels. Both zero: at the best shift of all. Static under jit.
    use_fft : bool
        Interpolate by Fourier series instead of cubic splines; static under jit. Linear interpolation,
        ``order=1`` of ``map_coordinates``, is ``fit(interpolation="linear")``.
    ignore_outside : bool
        Leave out pixels without a counterpart in ``im1``; static under jit.
    verbose : bool
        Print the shift and χ² at every step (outside ``jit`` only).

    Returns
    -------
    dx, dy : Array
        Shift in pixels, positive towards larger indices. NaN where there is no minimum.
    errx, erry : Array
        Marginal standard errors. Only with ``return_error``.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options, a ``maxoff`` that leaves no pixels.

    Notes
    -----
    Unlike `image_registration`: it runs; ``im1`` is interpolated, and ``err`` stays with the pixels of
    ``im2``, where that package interpolates image and errors; ``maxoff`` leaves out a margin, not all but a
    square of twice its size; "wrap" has the period of the frame; no input is modified.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> scene = rng.normal(size=(32, 32))
    >>> image = np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape)
    >>> dx, dy, errx, erry = chi2_shift_leastsq(scene, image, 0.1, use_fft=True)
    >>> print(f"{dx:.3f} ± {errx:.3f}, {dy:.3f} ± {erry:.3f}")
    -2.994 ± 0.003, 1.998 ± 0.003
    """
    mode = choice(mode, "mode", MODES)
    pair = check_planes(im1, im2, err)
    return_error, verbose = flag(return_error, "return_error"), flag(verbose, "verbose")
    use_fft, ignore_outside = flag(use_fft, "use_fft"), flag(ignore_outside, "ignore_outside")
    start = [real_number(x, name, "a finite number") for x, name in ((guessy, "guessy"), (guessx, "guessx"))]
    guess = np.array(start) if any(start) else None
    mask = None
    if maxoff is not None:
        maxoff = positive(maxoff, "maxoff")
        smallest = min(pair.image.shape)
        margin = ceil(min(maxoff, smallest))
        if 2 * margin >= smallest:
            refuse("maxoff", f"below half of each axis of {pair.image.shape}", maxoff)
        mask = np.ones(pair.image.shape, bool)
        mask[margin:-margin, margin:-margin] = False
    found = fit(
        pair.reference,
        pair.image,
        None if err is None else pair.err,
        mask=mask,
        interpolation="fourier" if use_fft else "cubic",
        boundary="overlap" if ignore_outside and maxoff is None else mode,
        max_shift=maxoff,
        initial=guess,
        fit_background=True,
    )
    if verbose and not isinstance(found.cost, Tracer):
        for step in range(int(found.steps) + 1):
            y, x = found.history.parameters[step, :2]
            print(f"{step:3d}  x = {x:.6f}, y = {y:.6f}, chi2 = {2 * found.history.cost[step]:.6g}")
    (dy, dx), (erry, errx) = found.shift, found.stderr.shift
    return (dx, dy, errx, erry) if return_error else (dx, dy)


def per_iteration(pars: Mapping[str, Any], i: int, resid: ArrayLike, *args: Any, **kws: Any) -> None:
    """Print the parameters and χ² of a step: a callback for ``lmfit.minimize``.

    `chi2_shift_leastsq` has no use for it, and prints its steps if ``verbose``.

    Parameters
    ----------
    pars : mapping
        Parameters with a ``name`` and a ``value`` each.
    i : int
        The step: the first hundred are printed, then every tenth.
    resid : array_like
        Residuals in standard deviations.
    *args, **kws
        Ignored.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> per_iteration({"x": SimpleNamespace(name="x", value=1.5)}, 3, [3.0, 4.0])
    step 3: x = 1.5, chi2 = 25
    """
    if i < 100 or i % 10 == 0:
        values = "".join(f"{par.name} = {par.value:.6g}, " for par in pars.values())
        print(f"step {i}: {values}chi2 = {np.sum(np.square(resid)):.6g}")


def check_planes(
    im1: ArrayLike, im2: ArrayLike, err: ArrayLike | None = None, names: tuple[str, str] = ("im1", "im2")
) -> Pair:
    """Convert and check a pair of two-dimensional images. Of errors only the size counts, not the sign."""
    for image, name in zip((im1, im2), names, strict=True):
        array_of(image, name, 2, 2)
    pair = check_images(im1, im2, err, names=names)
    return pair._replace(err=jnp.abs(pair.err))


def _pair(
    im1: ArrayLike,
    im2: ArrayLike,
    err: ArrayLike | None,
    boundary: str | None,
    zeromean: bool,
    boundaries: tuple[str, ...] = BOUNDARIES,
) -> tuple[Pair, Plan]:
    pair = check_planes(im1, im2, err)
    boundary = "fill" if boundary is None else choice(boundary, "boundary", boundaries)
    if flag(zeromean, "zeromean"):
        reference, image = (x - jnp.mean(x, where=jnp.isfinite(x)) for x in pair[:2])
        pair = pair._replace(reference=reference, image=image)
    return pair, Choices.of(boundary).plan(pair.reference.shape, pair.image.shape)


def _shift_and_grid(
    pair: Pair, plan: Plan, nfitted: int, grid: UpsampledGrid | RezoomedGrid | None
) -> tuple[Registration, Array, Chi2Grid | None]:
    return tried(
        lambda way: _compiled(pair, way, plan, nfitted, grid),
        has_quick_way(pair, plan),
        is_traced(pair),
        lambda found: found[0].status == Status.FLAT,
    )


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _compiled(
    pair: Pair, way: Way, plan: Plan, nfitted: int, grid: UpsampledGrid | RezoomedGrid | None
) -> tuple[Registration, Array, Chi2Grid | None]:
    nsigma = jnp.sqrt(delta_chi2(1.0, nfitted)).astype(pair.image.dtype)

    def measure(terms: Chi2Terms) -> tuple[Registration, Array, Chi2Grid | None]:
        result, bounds = solve(terms, nsigma, True)
        errors = (bounds[:, 1] - bounds[:, 0]) / 2
        return result, errors, None if grid is None else grid(terms, result)

    return with_terms(measure, pair, plan, way)


def _in_order(
    result: Registration, errors: Array, grid: Chi2Grid | None, return_error: bool, verbose: bool
) -> tuple:
    if verbose and not isinstance(result.shift, Tracer):
        print(f"dx = {result.dx:.6g} ± {errors[1]:.2g}, dy = {result.dy:.6g} ± {errors[0]:.2g}, {result!r}")
    returned: tuple[Array, ...] = (result.dx, result.dy)
    if return_error:
        returned += (errors[1], errors[0])
    return returned if grid is None else (*returned, grid)


def _grid_around(
    terms: Chi2Terms, at: Position, step: Array, shape: tuple[int, ...]
) -> tuple[list[Array], Array]:
    """Displacements from a position that *fall* by ``step`` with the index, and χ² there."""
    steps = [jnp.asarray((m - 1) / 2 - np.arange(m), at.fraction.dtype) * step for m in shape]
    return steps, terms.residual_chi2(at) + terms.series.differences(at, steps)


@dataclass(frozen=True)
class UpsampledGrid:
    """χ² in a window around the best pixel; its coordinates are minus the shift and grow with the index."""

    factor: float | str
    size: int
    nsigma: float
    nfitted: int

    def __call__(self, terms: Chi2Terms, result: Registration) -> Chi2Grid:
        """Coordinates along x and y, and χ²."""
        start = terms.grid.start()
        whole, dtype = start.whole, start.fraction.dtype
        if isinstance(self.factor, str):
            shape: tuple[int, ...] = (self.size, self.size)
            threshold = delta_chi2(self.nsigma, self.nfitted).astype(dtype)
            extent = _extent_in_pixels(terms.grid.values, whole, threshold)
            step = 1 / jnp.maximum(1, self.size / 2 / jnp.maximum(1, extent).astype(dtype))
        else:
            # Two pixels hold the minimum wherever it lies in the best one; where the frame's worth of samples
            # spans less on either axis, take as many as span two.
            frame = terms.pixels.frame
            enough = min(frame) >= 2 * self.factor
            shape = frame if enough else (round(2 * self.factor),) * 2
            step = jnp.asarray(1 / self.factor, dtype)
        steps, chi2 = _grid_around(terms, start, step, shape)
        center = whole + _turns(terms, result.shift - whole)
        y, x = (-(center[a] + steps[a]) for a in (0, 1))
        y, x = jnp.meshgrid(y, x, indexing="ij")
        return x, y, chi2


def _turns(terms: Chi2Terms, difference: Array) -> Array:
    """Whole periods in a difference of shifts, in pixels."""
    if terms.period is None:
        return jnp.zeros_like(difference)
    period = jnp.asarray(terms.period, difference.dtype)
    return jnp.round(difference / period) * period


def _extent_in_pixels(grid: Array, whole: Array, threshold: Array) -> Array:
    """Larger extent along an axis of the grid's region below ``threshold`` above its minimum."""
    inside = grid - jnp.min(grid) < threshold
    extents = []
    for axis, n in enumerate(grid.shape):
        others = tuple(a for a in range(grid.ndim) if a != axis)
        distance = (harmonics(n) - whole[axis] + n // 2) % n - n // 2
        seen = jnp.any(inside, others)
        extents.append(jnp.max(jnp.where(seen, distance, 0)) - jnp.min(jnp.where(seen, distance, 0)))
    return jnp.max(jnp.stack(extents))


@dataclass(frozen=True)
class RezoomedGrid:
    """χ² around the minimum at the zoom that ``mindiff`` asks for; its coordinates are the shift."""

    zoom_shape: tuple[int, ...]
    rezoom_shape: tuple[int, ...]
    rezoom_factor: float
    mindiff: float
    zoomstep: float

    def __call__(self, terms: Chi2Terms, result: Registration) -> Chi2Grid:
        """Coordinates along x and y, and χ²."""
        whole, start = terms.grid.start()

        def level(center: Array, factor: Array) -> Array:
            steps = [jnp.asarray(np.arange(m) - (m - 1) / 2, center.dtype) / factor for m in self.zoom_shape]
            return terms.series.differences(Position(whole, center), steps)

        factor = zoom_in(level, terms.grid.values, start, self.zoom_shape, self.mindiff, self.zoomstep)[0]
        fraction = result.shift - whole - _turns(terms, result.shift - whole)
        step = 1 / (factor * self.rezoom_factor)
        steps, chi2 = _grid_around(terms, Position(whole, fraction), step, self.rezoom_shape)
        y, x = (result.shift[a] + steps[a] for a in (0, 1))
        y, x = jnp.meshgrid(y, x, indexing="ij")
        return x, y, chi2


def chi2map_to_errors(
    chi2map: ArrayLike, zoomfactor: ArrayLike = 1.0, nsigma: ArrayLike = 1, nfitted: int = 2
) -> tuple[Array, Array, Array, Array]:
    """Errors from a χ² map: how far the region Δχ² < ``delta_chi2(nsigma, nfitted)`` reaches.

    Parameters
    ----------
    chi2map : array_like, shape (ny, nx)
        χ² with its minimum inside and the whole region around it.
    zoomfactor : array_like
        Samples per pixel of the map.
    nsigma : array_like
        Confidence in standard deviations, any positive number.
    nfitted : int
        Number of parameters that the region is joint for; static under jit.

    Returns
    -------
    x_low, x_high, y_low, y_high : Array
        Distances in pixels from the minimum to the lower and the upper edge along x, then y. NaN where the
        map ends inside the region or has no finite minimum.

    Raises
    ------
    ValueError
        For a map without two axes of at least 3 samples, or an unfit ``nfitted``.

    Notes
    -----
    Unlike `image_registration`: edges and minimum are interpolated between the samples (√Δχ² linearly, the
    minimum by a parabola), so they are not quantised to one; thresholds are right at any ``nsigma``.

    Examples
    --------
    >>> import numpy as np
    >>> y, x = np.indices((81, 91)) - np.array([40, 45])[:, None, None]
    >>> print(np.round(chi2map_to_errors((y / 6) ** 2 + (x / 9) ** 2, nfitted=1), 2))
    [9. 9. 6. 6.]
    """
    chi2map = array_of(chi2map, "chi2map", 2, 2)
    if min(chi2map.shape) < 3:
        raise ValueError(f"chi2map must have two axes of at least 3 samples, not shape {chi2map.shape}")
    zoomfactor = checks.positive(zoomfactor, "zoomfactor", chi2map.dtype)
    threshold = delta_chi2(checks.positive(nsigma, "nsigma"), nfitted).astype(chi2map.dtype)
    x, y = (_extent_of_profile(jnp.min(chi2map, axis), threshold) / zoomfactor for axis in (0, 1))
    return x[0], x[1], y[0], y[1]


@jax.jit
def _extent_of_profile(profile: Array, threshold: Array) -> Array:
    """Distance in samples from a profile's minimum to where it passes ``threshold``, below and above."""
    n = len(profile)
    best = jnp.clip(jnp.argmin(profile), 1, n - 2)
    left, middle, right = (profile[best + i] for i in (-1, 0, 1))
    curvature = left - 2 * middle + right
    offset = jnp.where(curvature > 0, 0.5 * (left - right) / jnp.where(curvature > 0, curvature, 1.0), 0.0)
    lowest = middle - 0.25 * (left - right) * offset
    root = jnp.sqrt(jnp.maximum(profile - lowest, 0.0))
    outside = root >= jnp.sqrt(threshold)
    index = np.arange(n)

    def edge(side: int) -> Array:
        beyond = outside & ((index - best) * side > 0)
        first = jnp.argmin(jnp.where(beyond, jnp.abs(index - best), n))
        a, b = root[first - side], root[first]
        # Next to the minimum √Δχ² has changed sign on the way.
        a = jnp.where((first - side == best) & (offset * side > 0), -a, a)
        crossing = first - side + side * (jnp.sqrt(threshold) - a) / (b - a)
        return jnp.where(jnp.any(beyond), side * (crossing - best - offset), jnp.nan)

    return jnp.where(jnp.isfinite(lowest), jnp.stack([edge(-1), edge(1)]), jnp.nan)
