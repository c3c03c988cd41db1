"""Zooming in on a minimum by Fourier interpolation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from ..checks import array_of, as_real_array, flag, real_number, refuse
from ..engine.searchgrid import grid_minimum
from ..fourier import accept_obsolete, static_sizes, zoomnd

__all__ = ["centers_to_edges", "iterative_zoom", "iterative_zoom_1d"]

MAX_LEVELS = 60

Levels = tuple[Array, Array, Array, Array, Array]


def positive(value: float | str, name: str) -> float:
    """Return a number above zero; ``name`` is what an error calls it."""
    return real_number(value, name, "a positive number", lambda x: x > 0)


def above_one(zoomstep: float) -> float:
    """Return a number above one."""
    return real_number(zoomstep, "zoomstep", "above one", lambda x: x > 1)


def zoom_in(
    level: Callable[[Array, Array], Array],
    values: Array,
    center: Array,
    shape: tuple[int, ...],
    mindiff: float,
    zoomstep: float,
) -> tuple[Array, Array, Array]:
    """Zoom on a minimum until the two lowest values of a level differ by less than ``mindiff``.

    ``level(center, factor)`` gives a grid of the given shape at spacing ``1/factor`` around ``center``.
    Returns the factor, the centre of the last level, and the minimum within it.
    """

    def gap(values: Array) -> Array:
        lowest = jnp.min(values)
        return jnp.min(jnp.where(values > lowest, values, jnp.inf)) - lowest

    middle = jnp.asarray([(m - 1) / 2 for m in shape], center.dtype)

    def zoom(state: Levels) -> Levels:
        factor, _, best, _, count = state
        factor = factor * zoomstep
        grid = level(best, factor)
        found = best + (grid_minimum(grid).astype(best.dtype) - middle) / factor
        return factor, best, found, gap(grid), count + 1

    def unresolved(state: Levels) -> Array:
        # A plateau has no second value: its gap is infinite, and zooming on would not end.
        return (state[3] > mindiff) & jnp.isfinite(state[3]) & (state[4] < MAX_LEVELS)

    state = (jnp.ones_like(center[0]), center, center, gap(values), jnp.zeros((), jnp.int32))
    factor, center, position, _, _ = lax.while_loop(unresolved, zoom, state)
    return factor, center, position


@accept_obsolete(ploteach=7)
def iterative_zoom(
    image: ArrayLike,
    mindiff: float = 1.0,
    zoomshape: Sequence[int] = (10, 10),
    return_zoomed: bool = False,
    zoomstep: float = 2,
    verbose: bool = False,
    minmax: Callable | str = "min",
    *,
    return_center: bool = True,
) -> Array | tuple[Array, Array, Array]:
    """Zoom in on the minimum of an image by Fourier interpolation until its neighbours differ too little.

    The zoom factor grows by ``zoomstep`` from one until the two lowest points of a ``zoomshape`` grid
    around the minimum differ by less than ``mindiff``. The image is read as periodic.

    Parameters
    ----------
    image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        An array with one minimum to zoom in on.
    mindiff : float
        Difference at which zooming stops, positive; static under jit.
    zoomshape : sequence of int
        Shape of the zoomed grids; static under jit.
    return_zoomed : bool
        Also return the last grid and its zoom factor; static under jit.
    zoomstep : float
        Factor between levels, above one; static under jit.
    verbose : bool
        Print the result (outside ``jit`` only).
    minmax : "min", "max", numpy.min or numpy.max
        Which extremum to zoom in on; static under jit.
    return_center : bool
        Return the position in pixels of the image, or else its offset from the pixel ``(n − 1) // 2``
        of each axis, the zero of `chi2n_map`; static under jit.

    Returns
    -------
    position : Array, shape (D,)
        Where the extremum of the last grid lies, in axis order. Good to the spacing of that grid.
    zoomed, factor, position : Array
        With ``return_zoomed``: the last grid, of shape ``zoomshape``, its points per pixel, the position.

    Raises
    ------
    ValueError
        For a ``mindiff`` that is not positive, a ``zoomstep`` not above one, unfit shapes.

    Notes
    -----
    Unlike `image_registration`: the position belongs to the returned grid, not to the level before it; it
    works if no zoom is needed, on a constant, and in any number of dimensions; it stops after at most 60
    levels.

    Examples
    --------
    >>> import numpy as np
    >>> y, x = np.indices((20, 23))
    >>> bowl = -100 * np.cos(2 * np.pi * (y - 8.34) / 20) - 100 * np.cos(2 * np.pi * (x - 12.77) / 23)
    >>> print(iterative_zoom(bowl, mindiff=1e-3))
    [ 8.3359375 12.7734375]
    """
    image = array_of(image, "image", 1, 3)
    return_zoomed, verbose = flag(return_zoomed, "return_zoomed"), flag(verbose, "verbose")
    return_center = flag(return_center, "return_center")
    shape = static_sizes(zoomshape, "zoomshape", image.ndim, 2)
    mindiff, zoomstep = positive(mindiff, "mindiff"), above_one(zoomstep)
    named = isinstance(minmax, str) or callable(minmax)
    if not named or minmax not in ("min", "max", np.min, np.max):
        refuse("minmax", "'min', 'max', numpy.min or numpy.max", minmax)
    sign = -1 if minmax in ("max", np.max) else 1
    zoomed, factor, position = _iterative_zoom(image, shape, mindiff, zoomstep, sign)
    if verbose and not isinstance(position, Tracer):
        print(f"zoom factor {factor:.6g}, extremum at {position}")
    if not return_center:
        position = position - np.asarray([(n - 1) // 2 for n in image.shape], position.dtype)
    return (zoomed, factor, position) if return_zoomed else position


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _iterative_zoom(
    image: Array, shape: tuple[int, ...], mindiff: float, zoomstep: float, sign: int
) -> tuple[Array, Array, Array]:
    middle = jnp.asarray([(n - 1) / 2 for n in image.shape], image.dtype)

    def level(center: Array, factor: Array) -> Array:
        return zoomnd(image, offsets=center - middle, usfac=factor, outshape=shape) * sign

    start = grid_minimum(image * sign).astype(image.dtype)
    factor, center, position = zoom_in(level, image * sign, start, shape, mindiff, zoomstep)
    return level(center, factor) * sign, factor, position


@accept_obsolete()
def iterative_zoom_1d(
    data: ArrayLike,
    mindiff: float = 1.0,
    zoomshape: Sequence[int] = (10,),
    return_zoomed: bool = False,
    zoomstep: float = 2,
    verbose: bool = False,
    minmax: Callable | str = "min",
    return_center: bool = True,
) -> Array | tuple[Array, Array, Array]:
    """Zoom in on the minimum of a one-dimensional array: `iterative_zoom`, with a scalar position.

    Parameters, errors and options as for `iterative_zoom`.

    Returns
    -------
    position : Array
        A scalar; with ``return_zoomed`` after the last grid and its points per pixel.

    Examples
    --------
    >>> import numpy as np
    >>> print(iterative_zoom_1d(-100 * np.cos(2 * np.pi * (np.arange(20) - 8.34) / 20), mindiff=1e-3))
    8.3359375
    """
    data, return_zoomed = array_of(data, "data", 1, 1), flag(return_zoomed, "return_zoomed")
    zoomed, factor, position = iterative_zoom(
        data, mindiff, zoomshape, True, zoomstep, verbose, minmax=minmax, return_center=return_center
    )
    return (zoomed, factor, position[0]) if return_zoomed else position[0]


def centers_to_edges(arr: ArrayLike) -> Array:
    """Edges of equally spaced cells from their centres, as ``matplotlib.pyplot.pcolor`` wants them.

    Parameters
    ----------
    arr : array_like, shape (n,)
        Centres, rising or falling, two or more.

    Returns
    -------
    Array, shape (n + 1,)
        Edges half a spacing below and above, in the same direction.

    Raises
    ------
    ValueError, TypeError
        For an array without one axis of two or more elements.

    Notes
    -----
    Unlike `image_registration`: falling centres have falling edges around them all.

    Examples
    --------
    >>> print(centers_to_edges([1.0, 2.0, 3.0]))
    [0.5 1.5 2.5 3.5]
    """
    centers = as_real_array(arr, "arr")
    if centers.ndim != 1 or centers.size < 2:
        raise ValueError(f"arr must have one axis of at least 2 elements, not shape {centers.shape}")
    half = (centers[1] - centers[0]) / 2
    return jnp.append(centers - half, centers[-1] + half)
