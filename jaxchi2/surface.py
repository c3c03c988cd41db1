"""χ² as a surface over the shift: a value anywhere, maps, zooms, profiles and contours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from .errors import contour_points, delta_chi2, interval_points, profile_values
from .fourier import as_real_array
from .minimum import find_minimum
from .terms import BOUNDARIES, Chi2Terms, is_quick, uniform_terms, weighted_terms


class Pair(NamedTuple):
    """Checked inputs: floating point of one dtype, equal shapes."""

    reference: Array
    image: Array
    err: Array


def check_pair(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None,
    boundary: str,
    oversample: int,
    names: tuple[str, str] = ("reference", "image"),
) -> Pair:
    """Convert and check a pair of images; everything that is wrong about shapes, dtypes or options raises."""
    first, second = names
    reference, image = as_real_array(reference, first), as_real_array(image, second)
    shape = reference.shape
    if shape != image.shape:
        raise ValueError(f"{second} must have the shape of {first}, {shape}, not {image.shape}")
    if not 1 <= len(shape) <= 3:
        raise ValueError(f"{first} and {second} must have 1, 2 or 3 axes, not {len(shape)}")
    if min(shape) < 2:
        raise ValueError(
            f"{first} and {second} must have two or more pixels on every axis, not shape {shape}"
        )
    err = as_real_array(1.0 if err is None else err, "err")
    if err.shape not in ((), shape):
        raise ValueError(f"err must be a scalar or have the shape of the images, {shape}, not {err.shape}")
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, not {boundary!r}")
    if oversample not in (1, 2) or isinstance(oversample, bool):
        raise ValueError(f"oversample must be 1 or 2, not {oversample!r}")
    dtype = jnp.result_type(reference, image)
    return Pair(reference.astype(dtype), image.astype(dtype), err.astype(dtype))


def split_shift(shift: ArrayLike, ndim: int, dtype: jnp.dtype, name: str = "shift") -> tuple[Array, Array]:
    """Whole pixels and remainder of a shift given in pixels, one value per axis."""
    shift = jnp.asarray(shift, dtype)
    if shift.shape != (ndim,):
        raise ValueError(f"{name} must hold one value per axis, shape ({ndim},), not {shift.shape}")
    whole = jnp.round(lax.stop_gradient(shift))
    return whole.astype(jnp.int32), shift - whole


@partial(jax.tree_util.register_dataclass, data_fields=["terms"], meta_fields=[])
@dataclass(frozen=True)
class Chi2Surface:
    """χ²(s) of an image against a shifted reference, exact at every real shift s.

    Made by `chi2_surface`; a pytree, so that it passes through ``jit``, ``vmap`` and ``grad``. Positions
    and shifts are in pixels, in axis order ``(…, y, x)``; χ² is not reduced.
    """

    terms: Chi2Terms

    @jax.jit
    def __call__(self, shift: ArrayLike) -> Array:
        """χ² at one shift, shape ``(D,)`` in, a scalar out; differentiable in the shift and the images.

        A sum of squared residuals: relative precision is that of the dtype however large the S/N.
        """
        return self.terms.residual_chi2(*self._split(shift))

    @jax.jit
    def map(self) -> Array:
        """χ² at the whole-pixel shifts (every half pixel with ``oversample=2``), shape of the images.

        Shift zero is at index ``n // 2`` of each axis, and shifts grow with the index; `shifts` gives
        them. For the boundary ``fill`` the central half of all shifts that leave an overlap.
        """
        terms = self.terms
        over, frame = terms.oversample, terms.frame
        values = jnp.roll(terms.grid + terms.constant, [over * (n // 2) for n in frame], range(len(frame)))
        return values[tuple(slice(0, over * n) for n in frame)]

    def shifts(self) -> tuple[np.ndarray, ...]:
        """Shifts along each axis at which `map` is given, one vector per axis."""
        over = self.terms.oversample
        return tuple(np.arange(over * n) / over - n // 2 for n in self.terms.frame)

    def zoom(self, center: ArrayLike, spacing: ArrayLike, shape: tuple[int, ...]) -> Array:
        """χ² on a small regular grid at sub-pixel spacing.

        Parameters
        ----------
        center : array_like, shape (D,)
            Shift at the centre of the grid, in pixels.
        spacing : array_like
            Step of the grid in pixels, a scalar or one per axis.
        shape : tuple of int
            Number of points per axis; static under jit. Point i of m lies at
            ``center + (i − (m − 1)/2) · spacing``.

        Returns
        -------
        Array
            χ², of the given shape: χ² at the centre from residuals, plus differences from it that keep
            their relative precision, so that a minimum 1e-6 pixels wide is smooth in float32 too.
        """
        whole, fraction = self._split(center, "center")
        ndim = len(self.terms.shape)
        shape = tuple(int(m) for m in shape)
        if len(shape) != ndim or min(shape) < 1:
            raise ValueError(f"shape must hold {ndim} positive sizes, not {shape}")
        steps = jnp.asarray(spacing, fraction.dtype)
        if steps.shape not in ((), (ndim,)):
            raise ValueError(f"spacing must be a scalar or hold {ndim} values, not shape {steps.shape}")
        steps = jnp.broadcast_to(steps, (ndim,))
        return _zoom(self.terms, whole, fraction, steps, shape)

    @jax.jit
    def minimum(self) -> Array:
        """Shift of the minimum, shape ``(D,)``; its derivatives are those of the exact minimum."""
        found = find_minimum(self.terms, None)
        return found.whole + found.fraction

    @partial(jax.jit, static_argnames="nfitted")
    def interval(self, nsigma: ArrayLike = 1.0, nfitted: int = 1) -> Array:
        """Extremes of each axis over Δχ² < ``delta_chi2(nsigma, nfitted)``, as positions, shape ``(D, 2)``.

        With ``nfitted=1`` the profile-likelihood interval of each axis (MINOS), with ``nfitted=2`` the
        extent of the joint region of two. NaN where the region does not close.
        """
        found = find_minimum(self.terms, None)
        points = interval_points(self.terms, found, self._threshold(nsigma, nfitted))
        return found.whole[:, None] + found.fraction[:, None] + extremes(points.displacement, points.found)

    @partial(jax.jit, static_argnames=("n", "nfitted"))
    def contour(self, nsigma: ArrayLike = 1.0, n: int = 64, nfitted: int = 2) -> Array:
        """Polygon of n points on Δχ² = ``delta_chi2(nsigma, nfitted)``, shape ``(n, 2)``, two axes only.

        One root on each of n rays from the minimum; NaN on a ray where the region does not close.
        """
        if len(self.terms.shape) != 2:
            raise ValueError(f"contour needs images with 2 axes, not {len(self.terms.shape)}")
        if n < 3:
            raise ValueError(f"n must be at least 3, not {n}")
        found = find_minimum(self.terms, None)
        points = contour_points(self.terms, found, self._threshold(nsigma, nfitted), n)
        displacement = jnp.where(points.found[:, None], points.displacement, jnp.nan)
        return (found.whole + found.fraction)[None, :] + displacement

    @partial(jax.jit, static_argnames="axis")
    def profile(self, axis: int, positions: ArrayLike) -> Array:
        """Δχ² above the minimum at given shifts along one axis, minimised over the other axes.

        Parameters
        ----------
        axis : int
            The axis that is held; static under jit.
        positions : array_like, shape (n,)
            Shifts along it, in pixels.
        """
        ndim = len(self.terms.shape)
        if not -ndim <= axis < ndim:
            raise ValueError(f"axis must lie between {-ndim} and {ndim - 1}, not {axis}")
        axis %= ndim
        found = find_minimum(self.terms, None)
        displacements = (
            jnp.asarray(positions, found.fraction.dtype) - found.whole[axis] - found.fraction[axis]
        )
        return profile_values(self.terms, found, axis, jnp.atleast_1d(displacements))

    def _split(self, shift: ArrayLike, name: str = "shift") -> tuple[Array, Array]:
        return split_shift(shift, len(self.terms.shape), self.terms.constant.dtype, name)

    def _threshold(self, nsigma: ArrayLike, nfitted: int) -> Array:
        return delta_chi2(nsigma, nfitted).astype(self.terms.constant.dtype)


@partial(jax.jit, static_argnames="shape")
def _zoom(terms: Chi2Terms, whole: Array, fraction: Array, steps: Array, shape: tuple[int, ...]) -> Array:
    offsets = [jnp.asarray(np.arange(m) - (m - 1) / 2, steps.dtype) * steps[a] for a, m in enumerate(shape)]
    return terms.residual_chi2(whole, fraction) + terms.differences(whole, fraction, offsets)


def extremes(displacement: Array, found: Array) -> Array:
    """Lower and upper extreme per axis, shape ``(D, 2)``, from the points of `interval_points`."""
    ndim = displacement.shape[1]
    own = jnp.stack([displacement[i, i % ndim] for i in range(2 * ndim)])
    return jnp.where(found, own, jnp.nan).reshape(2, ndim).T


def chi2_surface(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None = None,
    *,
    boundary: str = "wrap",
    oversample: int = 1,
) -> Chi2Surface:
    """χ² between an image and a shifted reference, as an exact function of the shift.

        χ²(s) = Σ_i (D_i − M(i − s))² / err_i²

    D is the image and M the Fourier interpolant of the reference.

    Parameters
    ----------
    reference, image : array_like, shape (n,), (ny, nx) or (nz, ny, nx)
        Real; integers become the default float. Pixels that are not finite, or masked in a numpy masked
        array, have weight zero. For those of the reference that is settled at the best whole pixel: the
        image pixels they cover there, with a margin of one pixel, are left out at every shift.
    err : array_like, scalar or shape of the images, optional
        Standard deviation of each pixel of ``image``, in its units. A pixel whose error is not a positive
        finite number has weight zero. None means 1.
    boundary : {"wrap", "fill"}
        What the reference is outside its frame: periodic, or zero (interpolated on twice the frame);
        static under jit.
    oversample : {1, 2}
        Samples per pixel of the grid that the minimum is looked for on; static under jit.

    Returns
    -------
    Chi2Surface
        A pytree; call it, or ask it for maps, zooms, intervals, profiles and contours. Cost: 3 FFTs for
        equal errors, about 13 with an error map. Inside ``jit``, where it cannot be known that no pixel
        is bad, always the latter.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.random.default_rng(1).normal(size=(16, 16))
    >>> surface = chi2_surface(scene, np.roll(scene, (2, -3), (0, 1)), 0.1)
    >>> print(f"{surface([2.0, -3.0]):.3f}")
    0.000
    """
    pair = check_pair(reference, image, err, boundary, oversample)
    if is_quick(*pair, boundary=boundary):
        terms = _uniform(*pair, oversample)
        if jnp.isfinite(terms.constant):
            return Chi2Surface(terms)
    return Chi2Surface(_weighted(*pair, boundary, oversample))


_uniform = jax.jit(uniform_terms, static_argnums=3)
_weighted = jax.jit(weighted_terms, static_argnums=(3, 4))
