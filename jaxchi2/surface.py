"""χ² as a surface over the shift: a value anywhere, maps, zooms, profiles and contours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from .checks import as_numbers, choice, integer, is_traced, per_axis, positive, refuse, sizes
from .engine.choices import ERRORS, Boundary, Choices, Plan
from .engine.constraints import ANYWHERE, Search
from .engine.errors import (
    contour_points,
    covariance_of,
    delta_chi2,
    interval_bounds,
    interval_points,
    profile_values,
)
from .engine.minimum import Minimum, find_minima, find_minimum
from .engine.pair import Pair, check
from .engine.position import Position
from .engine.sandwich import sandwich
from .engine.terms import Chi2Terms
from .engine.verdict import Peaks, Posterior, explained, peaks, posterior
from .engine.ways import Way, has_quick_way, tried, with_terms


@partial(jax.tree_util.register_dataclass, data_fields=["terms"], meta_fields=[])
@dataclass(frozen=True)
class Chi2Surface:
    """χ²(s) of an image against a shifted reference, exact at every real shift s.

    Made by `chi2_surface`; a pytree, so that it passes through ``jit``, ``vmap`` and ``grad``. Positions
    and shifts are in pixels, in axis order ``(…, y, x)``; χ² is not reduced.
    """

    terms: Chi2Terms

    def __call__(self, shift: ArrayLike) -> Array:
        """χ² at one shift, shape ``(D,)`` in, a scalar out; differentiable in the shift and the images.

        A sum of squared residuals: relative precision is that of the dtype however large the S/N.
        """
        return self._value(self._per_axis(shift, "shift"))

    @jax.jit
    def _value(self, shift: Array) -> Array:
        return self.terms.residual_chi2(Position.of(shift))

    @jax.jit
    def map(self) -> Array:
        """χ² at the whole-pixel shifts, shape of the images.

        Shift zero is at index ``n // 2`` of each axis, and shifts grow with the index; `shifts` gives
        them. Where the boundary is "overlap" or pixels of the reference are unknown, each shift has n pixels
        of its own, and χ² of one does not compare with that of another. Then this is ``n ln(1 − r²)``, r
        their correlation, −2 times the logarithm of a likelihood too, counted from χ² at the best whole
        shift; infinite where too few pixels overlap; for "overlap" over the search window.
        """
        return self._in_order(self.terms.grid_chi2())

    def _in_order(self, grid: Array) -> Array:
        """A quantity on the search grid in the order of `shifts`."""
        for axis, picked in enumerate(self._indices()):
            grid = jnp.take(grid, picked, axis)
        return grid

    def _indices(self) -> list[np.ndarray]:
        lengths = zip(self.terms.grid.shape, self.shifts(), strict=True)
        return [shift.astype(int) % length for length, shift in lengths]

    def shifts(self) -> tuple[np.ndarray, ...]:
        """Shifts along each axis at which `map` is given, one vector per axis."""
        plan = self.terms.plan
        if plan.boundary.overlap:
            return tuple(np.arange(low, high + 1.0) for low, high in plan.whole_window)
        return tuple(np.arange(float(n)) - n // 2 for n in self.terms.pixels.frame)

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
        at = self._per_axis(center, "center")
        steps = self._per_axis(spacing, "spacing", or_scalar=True)
        return self._zoom(at, steps, sizes(shape, "shape", len(at)))

    @partial(jax.jit, static_argnames="shape")
    def _zoom(self, center: Array, steps: Array, shape: tuple[int, ...]) -> Array:
        at = Position.of(center)
        offsets = [
            jnp.asarray(np.arange(m) - (m - 1) / 2, steps.dtype) * steps[a] for a, m in enumerate(shape)
        ]
        return self.terms.residual_chi2(at) + self.terms.series.differences(at, offsets)

    @jax.jit
    def minimum(self) -> Array:
        """Shift of the minimum, shape ``(D,)``; its derivatives are those of the exact minimum."""
        found = self._found()
        return found.position.shift

    def covariance(self, errors: str = "model") -> Array:
        """Covariance of the shift at the minimum, shape ``(D, D)``, in pixels squared; zero for a held axis.

        Parameters
        ----------
        errors : {"model", "sandwich"}
            ``2 H⁻¹`` of the errors as given, or what the residuals say; see `register`. Static under jit. The
            latter has no derivative.
        """
        return self._covariance(choice(errors, "errors", ERRORS))

    @partial(jax.jit, static_argnames="errors")
    def _covariance(self, errors: str) -> Array:
        found, free = self._found(), self.terms.plan.free
        if errors == "model":
            return covariance_of(found.hessian, free)
        return sandwich(self.terms, found.position)[0][: len(free), : len(free)]

    def _found(self) -> Minimum:
        return find_minimum(self.terms.grid, self.terms.series)

    def interval(self, nsigma: ArrayLike = 1.0, nfitted: int = 1) -> Array:
        """Extremes of each axis over Δχ² < ``delta_chi2(nsigma, nfitted)``, as positions, shape ``(D, 2)``.

        With ``nfitted=1`` the profile-likelihood interval of each axis (MINOS), with ``nfitted=2`` the
        extent of the joint region of two. NaN where the region does not close.
        """
        return self._interval(self._threshold(nsigma, nfitted))

    @jax.jit
    def _interval(self, threshold: Array) -> Array:
        found = self._found()
        points = interval_points(self.terms.series, found, threshold)
        bounds = interval_bounds(points, self.terms.plan.free)
        return found.position.shift[:, None] + bounds

    def contour(self, nsigma: ArrayLike = 1.0, n: int = 64, nfitted: int = 2) -> Array:
        """Polygon of n points on Δχ² = ``delta_chi2(nsigma, nfitted)``, shape ``(n, 2)``, two axes only.

        One root on each of n rays from the minimum; NaN on a ray where the region does not close.
        """
        if len(self.terms.grid.shape) != 2:
            raise ValueError(f"contour needs images with 2 axes, not {len(self.terms.grid.shape)}")
        if not all(self.terms.plan.free):
            raise ValueError("contour needs both axes free, not fixed")
        return self._contour(self._threshold(nsigma, nfitted), integer(n, "n", 3))

    @partial(jax.jit, static_argnames="n")
    def _contour(self, threshold: Array, n: int) -> Array:
        found = self._found()
        points = contour_points(self.terms.series, found, threshold, n)
        displacement = jnp.where(points.found[:, None], points.displacement, jnp.nan)
        return found.position.shift[None, :] + displacement

    def profile(self, axis: int, positions: ArrayLike) -> Array:
        """Δχ² above the minimum at given shifts along one axis, minimised over the other axes.

        Parameters
        ----------
        axis : int
            The axis that is held; static under jit.
        positions : array_like, shape (n,)
            Shifts along it, in pixels.
        """
        ndim = len(self.terms.grid.shape)
        wanted = f"an integer from {-ndim} to {ndim - 1}"
        axis = integer(axis, "axis", -ndim, wanted)
        if axis >= ndim:
            refuse("axis", wanted, axis)
        at = as_numbers(positions, "positions", "real numbers", self.terms.grid.values.dtype)
        if at.ndim > 1:
            refuse("positions", "a vector", positions)
        return self._profile(axis % ndim, jnp.atleast_1d(at))

    @partial(jax.jit, static_argnames="axis")
    def _profile(self, axis: int, positions: Array) -> Array:
        found = self._found()
        whole, fraction = found.position
        return profile_values(self.terms.series, found, axis, positions - whole[axis] - fraction[axis])

    def peaks(self, n: int = 2) -> Peaks:
        """The n deepest separate minima, the best first: shifts, shape ``(n, D)``, and Δχ², shape ``(n,)``.

        Minima of the search grid, below all their neighbours and more than a pixel from the best, then
        refined like it. Where each shift has pixels of its own they stay whole shifts.
        """
        return self._peaks(integer(n, "n", 2))

    @partial(jax.jit, static_argnames="n")
    def _peaks(self, n: int) -> Peaks:
        minimum, others = find_minima(self.terms.grid, self.terms.series, n - 1)
        return peaks(self.terms, minimum, others, explained(self.terms.grid, others))

    def posterior(self, temperature: ArrayLike = 1.0) -> Posterior:
        """``exp(−χ² / (2 temperature))`` over the samples of `map`, normalised, with mean and covariance.

        Smooth in the images where the minimum jumps from one peak to the next: a soft argmin. It is a sum
        over samples, so where the peak is sharper than a pixel the mean is drawn to one; a temperature of
        the order of χ²'s rise over a pixel makes it smooth again. A prior is part of χ². With a gain to fit,
        where each shift has n pixels of its own, χ² is ``n ln(1 − r²)``, r their correlation: the likelihood
        at the best gain and the best error.
        """
        return self._posterior(positive(temperature, "temperature", self.terms.grid.values.dtype))

    @jax.jit
    def _posterior(self, temperature: Array) -> Posterior:
        found = posterior(self.terms.grid, temperature)
        return found._replace(probability=self._in_order(found.probability))

    def posterior_mean(self, temperature: ArrayLike = 1.0) -> Array:
        """Mean of the `posterior`, shape ``(D,)``, in pixels."""
        return self.posterior(temperature).mean

    def _per_axis(self, x: ArrayLike, name: str, or_scalar: bool = False) -> Array:
        values = self.terms.grid.values
        return per_axis(x, name, values.ndim, values.dtype, or_scalar=or_scalar)

    def _threshold(self, nsigma: ArrayLike, nfitted: int) -> Array:
        dtype = self.terms.grid.values.dtype
        return delta_chi2(positive(nsigma, "nsigma", dtype), nfitted)


def chi2_surface(
    reference: ArrayLike,
    image: ArrayLike,
    err: ArrayLike | None = None,
    *,
    reference_err: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    boundary: str | Boundary = "overlap",
    fit_gain: bool = False,
    fit_background: bool | str = False,
    max_shift: float | tuple[float, ...] | None = None,
    search: Search = ANYWHERE,
) -> Chi2Surface:
    """χ² between an image and a shifted reference, as an exact function of the shift.

        χ²(s) = Σ_i (D_i − a M(i − s) − b)² / err_i²

    D is the image, M the Fourier interpolant of the reference, a = 1 and b = 0 unless they are fitted: then
    they are at their best for every s.

    Parameters
    ----------
    reference, image, err, reference_err, weights, mask, reference_mask
        As for `register`, but None for ``err`` means 1. Where pixels of the reference are unknown (masked,
        or outside the frame for "overlap") the pixels that count are settled at the best whole shift, and
        are the same for all shifts that the surface is asked about; only `Chi2Surface.map` goes further.
    boundary, fit_gain, fit_background, max_shift, search
        As for `register`.

    Returns
    -------
    Chi2Surface
        A pytree; call it, or ask it for maps, zooms, intervals, profiles and contours. Cost: 3 FFTs for
        equal errors and "wrap", about 14 with an error map. Inside ``jit``, where it cannot be known that no
        pixel is bad, always the latter.

    Raises
    ------
    ValueError, TypeError
        For unlike or unfit shapes, complex dtypes, unknown options.

    Examples
    --------
    >>> import numpy as np
    >>> scene = np.random.default_rng(1).normal(size=(16, 16))
    >>> surface = chi2_surface(scene, np.roll(scene, (2, -3), (0, 1)), 0.1, boundary="wrap")
    >>> print(f"{surface([2.0, -3.0]):.3f}")
    0.000
    """
    pair, plan = check(
        reference,
        image,
        err,
        Choices.of(boundary, fit_gain, fit_background, max_shift),
        search=search,
        reference_err=reference_err,
        weights=weights,
        mask=mask,
        reference_mask=reference_mask,
    )
    promising = mask is None and reference_mask is None and has_quick_way(pair, plan)
    terms = tried(
        partial(_terms, pair, plan),
        promising and not is_traced(pair),
        False,
        lambda terms: ~jnp.isfinite(terms.series.constant),
    )
    return Chi2Surface(terms)


@partial(jax.jit, static_argnames=("plan", "way"))
def _terms(pair: Pair, plan: Plan, way: Way) -> Chi2Terms:
    return with_terms(lambda terms: terms, pair, plan, way)
