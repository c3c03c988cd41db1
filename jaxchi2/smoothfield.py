"""The smooth field that local shifts support, with its covariance everywhere.

The field is a tensor product of cubic B-splines with coefficients c, and its prior is that of a thin plate,
which weighs the mean square of its second derivatives, ``cᵀ P c``. With ŝ_b the shift of window b, B_b its
inverse covariance, A_b the means of the splines over it and f the share of a window that no other overlaps, c
has the least

    Σ_b f (A_b c − ŝ_b)ᵀ B_b (A_b c − ŝ_b) + λ cᵀ P c

so that every pixel counts once. Windows that overlap share noise, in proportion ρ to their common pixels.
With ``M = f Σ A_bᵀ B_b A_b + λ P`` the covariance of what c is off by, by prior and noise, is therefore

    M⁻¹ (λ P + f² Σ_ab A_aᵀ B_a^½ ρ_ab B_b^½ A_b) M⁻¹

The stiffness λ is that of the largest marginal likelihood, planes, which have no prior, left out (restricted
maximum likelihood).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from itertools import combinations_with_replacement
from math import ceil, prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from .checks import as_real_array, positive, real_number, refuse
from .engine.algebra import inverse, or_one
from .engine.continuation import average_nearby, eroded
from .engine.passes import count, extremes
from .engine.spectrum import Shape, along
from .engine.windowgrid import WindowGrid
from .sampling import interpolant

NEAR = 2
"""Pixels around one that is not finite whose splines are not those of the image."""
INVERSIONS = 20
"""Steps in which the position of a pixel of the reference is found in the image."""
MOST = 900
"""Splines for each component, at most, unless a scale is given."""


class Values(NamedTuple):
    """A quantity at points, and its covariance."""

    value: Array
    """Shape ``(..., K)`` for K components, ``(...)`` for one."""
    covariance: Array
    """Shape ``(..., K, K)``, or ``(...)``, the variance."""

    @property
    def stderr(self) -> Array:
        """Standard errors, shape of ``value``."""
        if self.covariance.ndim == self.value.ndim:
            return jnp.sqrt(self.covariance)
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))


class _Axis(NamedTuple):
    """Splines along one axis, whose centres lie ``scale`` apart, the first before the frame."""

    first: float
    scale: float
    number: int


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["coefficients", "root", "stiffness", "windows"],
    meta_fields=["axes", "frame"],
)
@dataclass(frozen=True)
class SmoothField:
    """A smooth field of displacements with a covariance everywhere; from `smooth`."""

    coefficients: Array
    """Of the splines, one row for each component of the shift, shape ``(D, K)``."""
    root: Array
    """R of their covariance ``Rᵀ R``, shape ``(D K, D K)``."""
    stiffness: Array
    """λ."""
    windows: Array
    """How many had a part in it."""
    axes: tuple[_Axis, ...]
    frame: Shape
    """Shape of the image; static."""

    def at(self, points: ArrayLike) -> Values:
        """The displacement at points of the image in pixels, shape ``(..., D)``, in axis order."""
        return self._linear(points, [[(1.0, a, ())] for a in range(len(self.axes))])

    def gradient(self, points: ArrayLike) -> Values:
        """Derivatives ``∂u_a/∂x_b``, shape ``(..., D²)``, those of one component beside each other."""
        ndim = len(self.axes)
        return self._linear(points, [[(1.0, a, (b,))] for a in range(ndim) for b in range(ndim)])

    def strain(self, points: ArrayLike) -> Values:
        """Small strains ``(∂u_a/∂x_b + ∂u_b/∂x_a) / 2`` for a ≤ b, in two dimensions yy, yx, xx."""
        pairs = combinations_with_replacement(range(len(self.axes)), 2)
        return self._linear(points, [[(0.5, a, (b,)), (0.5, b, (a,))] for a, b in pairs])

    def divergence(self, points: ArrayLike) -> Values:
        """``Σ ∂u_a/∂x_a``, shape of the points without their last axis."""
        return _single(self._linear(points, [[(1.0, a, (a,)) for a in range(len(self.axes))]]))

    def vorticity(self, points: ArrayLike) -> Values:
        """``∂u_y/∂x − ∂u_x/∂y`` in two dimensions, in array order; of a turn from x to y twice its rate."""
        if len(self.axes) != 2:
            raise ValueError(f"vorticity is for two dimensions, not {len(self.axes)}")
        return _single(self._linear(points, [[(1.0, 0, (1,)), (-1.0, 1, (0,))]]))

    def warp(self, reference: ArrayLike) -> Array:
        """The reference as the image shows it, ``out(i) = reference(i − u(i))``, on the image's grid.

        By cubic splines, NaN outside the frame and within three pixels of one that is not finite.
        """
        pixels = self._pixels()
        return _sampled(
            as_real_array(reference, "reference"), pixels - self._displacement(pixels), self.frame
        )

    def unwarp(self, image: ArrayLike) -> Array:
        """The image brought back onto the reference, ``out(i) = image(j)`` with ``j − u(j) = i``.

        The position is found in twenty steps, which is enough where the field's derivatives are below a half.
        By cubic splines, NaN outside the frame and within three pixels of one that is not finite.
        """
        pixels = self._pixels()
        at = lax.fori_loop(0, INVERSIONS, lambda _, at: pixels + self._displacement(at), pixels)
        return _sampled(as_real_array(image, "image"), at, self.frame)

    def _pixels(self) -> Array:
        places = np.meshgrid(*map(np.arange, self.frame), indexing="ij")
        return jnp.asarray(np.stack(places, -1), self.coefficients.dtype)

    def _displacement(self, places: Array) -> Array:
        """That at places, ``(*frame, D)``, without its covariance; line by line, for memory."""

        def of_line(line: Array) -> Array:
            splines = _splines(line, self.axes, ())
            return jnp.dot(splines, self.coefficients.T, precision=lax.Precision.HIGHEST)

        return lax.map(of_line, places)

    def _linear(self, points: ArrayLike, terms: list) -> Values:
        """Sums of factors times derivatives of components, one for each quantity."""
        points = jnp.asarray(points, self.coefficients.dtype)
        ndim = len(self.axes)
        if points.shape[-1:] != (ndim,):
            refuse("points", f"of shape (..., {ndim})", points.shape)
        quantities = []
        for sums in terms:
            parts = [jnp.zeros((*points.shape[:-1], self.coefficients.shape[1]), points.dtype)] * ndim
            for factor, component, derivatives in sums:
                parts[component] = parts[component] + factor * _splines(points, self.axes, derivatives)
            quantities.append(jnp.concatenate(parts, -1))
        rows = jnp.stack(quantities, -2)
        value = jnp.dot(rows, self.coefficients.reshape(-1), precision=lax.Precision.HIGHEST)
        half = jnp.dot(rows, self.root.T, precision=lax.Precision.HIGHEST)
        covariance = jnp.einsum("...ik,...jk->...ij", half, half, precision=lax.Precision.HIGHEST)
        return Values(value, covariance)


def _sampled(image: Array, places: Array, frame: Shape) -> Array:
    """An image at places of shape ``(..., D)``, NaN where it is unknown."""
    if image.shape != frame:
        raise ValueError(f"the image must have the shape of the field's, {frame}, not {image.shape}")
    positions = jnp.moveaxis(places, -1, 0)
    known = jnp.isfinite(image)
    filled = jnp.where(known, image, average_nearby(jnp.where(known, image, 0.0), known))
    values = interpolant(filled, 3, "nearest")(positions)
    whole = eroded(known, NEAR, "edge").astype(filled.dtype)
    whole = interpolant(whole, 1, "constant")(positions)
    return jnp.where(whole > 1 - 1e-3, values, jnp.nan)


def _single(values: Values) -> Values:
    return Values(values.value[..., 0], values.covariance[..., 0, 0])


def smooth(
    windows: WindowGrid,
    shift: Array,
    covariance: Array,
    valid: Array,
    scale: float | None = None,
    stiffness: ArrayLike | None = None,
) -> SmoothField:
    """The smooth field that the valid shifts of some windows support; see `Field.smooth`."""
    if scale is None:
        scale = max(windows.window) / 2
        while prod(ceil(n / scale) + 3 for n in windows.frame) > MOST:
            scale *= 1.1
    scale = real_number(scale, "scale", "a positive number", lambda x: x > 0)
    if stiffness is not None:
        stiffness = positive(stiffness, "stiffness", shift.dtype)
    counts = [ceil(n / scale) + 3 for n in windows.frame]
    middles = [(n - 1) / 2 for n in windows.frame]
    axes = tuple(_Axis(x - scale * (k - 1) / 2, scale, k) for x, k in zip(middles, counts, strict=True))
    columns, bends = _basis(axes)
    basis = _Basis(jnp.asarray(columns, shift.dtype), jnp.asarray(bends))
    return _smoothed(shift, covariance, valid, stiffness, basis, windows, axes)


class _Basis(NamedTuple):
    """Combinations of splines that do not bend together: planes first, then those of unit bending each."""

    columns: Array
    """In splines, shape ``(K, K)``."""
    bends: Array
    """Which of them do, shape ``(K,)``."""


@lru_cache(maxsize=4)
def _basis(axes: tuple[_Axis, ...]) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(_thin_plate(axes))
    bends = np.arange(len(values)) > len(axes)
    return vectors / np.sqrt(np.where(bends, values, 1.0)), bends


@partial(jax.jit, static_argnames=("windows", "axes"))
def _smoothed(
    shift: Array,
    covariance: Array,
    valid: Array,
    stiffness: Array | None,
    basis: _Basis,
    windows: WindowGrid,
    axes: tuple[_Axis, ...],
) -> SmoothField:
    ndim, dtype, eps = len(axes), shift.dtype, jnp.finfo(shift.dtype).eps
    rows = jnp.dot(jnp.asarray(_seen(windows, axes), dtype), basis.columns, precision=lax.Precision.HIGHEST)
    size = rows.shape[1]
    use = (valid & jnp.all(jnp.isfinite(shift), -1)).reshape(-1)
    unit_matrix = jnp.eye(ndim, dtype=dtype)
    covariance = jnp.where(use[:, None, None], covariance.reshape(-1, ndim, ndim), unit_matrix)
    own = windows.own
    information = jnp.where(use[:, None, None], own * jax.vmap(inverse)(covariance), 0.0)
    shifts = jnp.where(use[:, None], shift.reshape(-1, ndim), 0.0)
    # About their mean, for the sake of the digits.
    middle = jnp.sum(shifts, 0) / jnp.maximum(count(use), 1)
    shifts = jnp.where(use[:, None], shifts - middle[None, :], 0.0)
    unit = or_one(extremes(information)[0])
    information = information / unit

    def block(a: int, b: int) -> Array:
        return jnp.dot(rows.T * information[:, a, b][None, :], rows, precision=lax.Precision.HIGHEST)

    blocks = [[block(a, b) for b in range(ndim)] for a in range(ndim)]
    normal = jnp.concatenate([jnp.concatenate(row, 1) for row in blocks])
    weighted = jnp.sum(information * shifts[:, None, :], -1)
    right = jnp.dot(weighted.T, rows, precision=lax.Precision.HIGHEST).reshape(-1)
    energy = jnp.sum(weighted * shifts)
    bends = jnp.tile(basis.bends, ndim)
    # Where nothing is known, not even a plane, it is a constant of a frame's size at most.
    largest = float(sum(n**2 for n in windows.frame))
    least = jnp.where(bends, 0.0, 1 / (size * largest * unit)) + jnp.finfo(dtype).tiny

    def solved(log_stiffness: Array) -> tuple[Array, Array, Array, Array]:
        """Factor of the scaled matrix, its scale, the solution times that factor, and the evidence."""
        diagonal = jnp.diagonal(normal) + jnp.where(bends, jnp.exp(log_stiffness), least)
        scale = 1 / jnp.sqrt(diagonal)
        correlation = normal * scale[:, None] * scale[None, :]
        # What rounding leaves of waves that no window sees and no prior bounds is not to be negative.
        one = jnp.where(bends, 1 + len(normal) * eps, 1.0)
        correlation = jnp.where(np.eye(len(normal), dtype=bool), one[:, None], correlation)
        factor = jnp.linalg.cholesky(correlation)
        half = jax.scipy.linalg.solve_triangular(factor, right * scale, lower=True)
        left = unit * (energy - jnp.sum(half**2))
        logs = jnp.sum(jnp.log(jnp.diagonal(factor))) + jnp.sum(jnp.log(diagonal)) / 2
        evidence = (count(bends) * log_stiffness - left) / 2 - logs
        return factor, scale, half, jnp.where(jnp.isfinite(evidence), evidence, -jnp.inf)

    def shared() -> Array:
        """``f² Σ_ab A_aᵀ B_a^½ ρ_ab B_b^½ A_b``, in the units of ``normal``."""
        halves = own**0.5 * jnp.linalg.cholesky(jnp.where(use[:, None, None], information, unit_matrix))
        halves = jnp.where(use[:, None, None], halves, 0.0)
        overlaps = [jnp.asarray(x, dtype) for x in windows.overlaps]
        total = jnp.zeros_like(normal)
        for d in range(ndim):
            part = (halves[:, :, d, None] * rows[:, None, :]).reshape(len(rows), -1)
            spread = part.reshape(*windows.shape, -1)
            for overlap in overlaps:
                # Each time the first axis goes to the end.
                spread = jnp.tensordot(spread, overlap, ((0,), (0,)), precision=lax.Precision.HIGHEST)
            spread = jnp.moveaxis(spread, 0, -1)
            total = total + jnp.dot(part.T, spread.reshape(part.shape), precision=lax.Precision.HIGHEST)
        return total

    if stiffness is None:
        bending = extremes(jnp.where(bends, jnp.diagonal(normal), jnp.nan))
        found = _best(lambda x: solved(x)[3], *(jnp.log(or_one(x)) for x in bending))
    else:
        found = jnp.log(stiffness / unit)
    factor, scale, half, _ = solved(found)
    triangular = partial(jax.scipy.linalg.solve_triangular, factor, lower=True)
    mixed = jnp.kron(unit_matrix, basis.columns) * scale[None, :]
    whitened = triangular(mixed.T)
    coefficients = jnp.dot(half, whitened, precision=lax.Precision.HIGHEST)
    noise = shared() + jnp.diag(jnp.where(bends, jnp.exp(found), least))
    noise = noise * scale[:, None] * scale[None, :] + 1e-6 * jnp.eye(len(noise), dtype=dtype)
    root = jnp.dot(
        jnp.linalg.cholesky(noise).T, triangular(whitened, trans=1), precision=lax.Precision.HIGHEST
    )
    return SmoothField(
        # Splines sum to one.
        coefficients=coefficients.reshape(ndim, size) + middle[:, None],
        root=root / jnp.sqrt(unit),
        stiffness=jnp.exp(found) * unit,
        windows=count(use),
        axes=axes,
        frame=windows.frame,
    )


def _best(evidence: Callable[[Array], Array], high: Array, low: Array) -> Array:
    """Where the evidence is largest: the best of a coarse grid, then of a finer one about it."""
    low, high = low - np.log(100.0), high + np.log(100.0)
    step = (high - low) / 15
    best = low
    places = low + step * np.arange(16)
    for _ in range(2):
        best = places[jnp.argmax(lax.map(evidence, places))]
        places = best + step * np.linspace(-1, 1, 9)
        step = step / 4
    return best


def _spline(t: Any, order: int, xp: Any = jnp) -> Any:
    """A cubic B-spline or its derivative; centres lie one apart."""
    r = abs(t)
    outer, inner = xp.maximum(2 - r, 0.0), xp.maximum(1 - r, 0.0)
    if order == 0:
        return (outer**3 - 4 * inner**3) / 6
    if order == 1:
        return xp.sign(t) * (4 * inner**2 - outer**2) / 2
    return outer - 4 * inner


def _splines(points: Array, axes: tuple[_Axis, ...], derivatives: tuple[int, ...]) -> Array:
    """All splines at points, or a derivative by some axes, shape ``(..., K)``."""
    result = jnp.ones((*points.shape[:-1], 1), points.dtype)
    for a, axis in enumerate(axes):
        order = derivatives.count(a)
        places = along(np.arange(axis.number), points.ndim - 1, points.ndim)
        t = (points[..., a, None] - axis.first) / axis.scale - places
        column = _spline(t, order) / axis.scale**order
        result = (result[..., :, None] * column[..., None, :]).reshape(*points.shape[:-1], -1)
    return result


def _seen(windows: WindowGrid, axes: tuple[_Axis, ...]) -> np.ndarray:
    """What each window sees of the splines: their mean over its pixels."""
    columns = []
    for axis, first, weights in zip(axes, windows.starts, windows.weights, strict=True):
        pixels = first[:, None, None] + np.arange(len(weights))[None, :, None]
        values = _spline((pixels - axis.first) / axis.scale - np.arange(axis.number), 0, np)
        columns.append(np.average(values, axis=1, weights=weights))
    return reduce(np.kron, columns)


def _thin_plate(axes: tuple[_Axis, ...]) -> np.ndarray:
    """Mean over the frame of the second derivatives' products, ``Σ_ab ∂_a∂_b B_j ∂_a∂_b B_k``."""
    grams = []
    for axis in axes:
        nodes, weights = np.polynomial.legendre.leggauss(4)
        cells = np.arange(1, axis.number - 2)
        t = (cells[:, None] + (nodes[None, :] + 1) / 2).ravel()
        w = np.tile(weights / 2, len(cells)) / len(cells)
        away = t[:, None] - np.arange(axis.number)
        values = [_spline(away, order, np) / axis.scale**order for order in range(3)]
        grams.append([v.T @ (w[:, None] * v) for v in values])
    total = 0.0
    for a in range(len(axes)):
        for b in range(len(axes)):
            orders = [(a == k) + (b == k) for k in range(len(axes))]
            total = total + reduce(np.kron, [grams[k][order] for k, order in enumerate(orders)])
    return np.asarray(total)
