"""What a registration returns, with what follows from its fields."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.scipy.special import ndtr

from .engine.polynomial import monomials, number_of_terms
from .engine.verdict import RunnerUp
from .status import Status

MAX_REDUCED_CHI2 = 2.0
"""χ² per degree of freedom from which `Status.BAD_FIT` is set, if the errors are known: those quoted are then
1.4 times too small and more. Its probability alone would flag most images of a million pixels, where errors
known to 1 % are enough to make it negligible."""
MIN_P_VALUE = 1e-6
"""Probability of so large a χ² below which `Status.BAD_FIT` is set, and of so small a one
`Status.LARGE_ERRORS`: with few degrees of freedom the thresholds above and below are not enough."""
MIN_REDUCED_CHI2 = 0.5
"""χ² per degree of freedom below which `Status.LARGE_ERRORS` is set; with few it must be lower still."""


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
    """Degrees of freedom: pixels with a weight less the fitted parameters (free axes, gain, background), an
    integer scalar."""
    status: Array
    """`Status` flags, an integer scalar; zero means nothing is wrong."""
    gain: Array
    """Factor of the reference in the image, 1 if not fitted."""
    background: Array
    """What the image has beside the reference times ``gain``, in units of the image; 0 if not fitted. Of a
    plane or a quadratic the value at the centre of the image's frame."""
    background_coefficients: Array
    """All of that, shape ``(K,)``: coefficients of 1, of the pixel coordinates from the centre of the image's
    frame, in axis order, and of their products two by two. In two dimensions 1, y, x, y², yx, x², y from
    −(ny − 1) / 2 to (ny − 1) / 2. Of a constant one number, and a zero if not fitted."""
    nuisance_covariance: Array
    """Covariance of gain and background, shape ``(2, 2)``, that of the shift taken in; 0 if not fitted."""
    runner_up: RunnerUp
    """The next best separate minimum."""
    chance: Array
    """Probability that unrelated images with these spectra match as well at some shift of the window."""
    noise_known: Array
    """Whether errors were given; if not, every error here has been scaled by the reduced χ²."""
    inflation: Array
    """Errors quoted over those of the model, per axis, shape ``(D,)``: one with ``errors="model"``, and near
    one from the sandwich if the noise is as said."""

    @property
    def p_value(self) -> Array:
        """Probability of a χ² at least as large by noise alone; NaN if the noise is not known.

        By the normal approximation of Wilson & Hilferty (1931), right to 1e-3 for 10 degrees of freedom
        and better for more. Where a noisy reference is filtered (``reference_err`` with a boundary other than
        "wrap", a mask or an error map) χ² is too small, and this is an upper bound.
        """
        return jnp.where(self.noise_known, _upper_tail(self.chi2, self.dof), jnp.nan)

    @property
    def gain_err(self) -> Array:
        """Standard error of ``gain``."""
        return root(self.nuisance_covariance[..., 0, 0])

    @property
    def background_err(self) -> Array:
        """Standard error of ``background``."""
        return root(self.nuisance_covariance[..., 1, 1])

    def background_image(self, shape: tuple[int, ...]) -> Array:
        """The background on a frame of the image's shape, in units of the image; leading axes are kept."""
        size, degree = self.background_coefficients.shape[-1], 0
        while number_of_terms(len(shape), degree) < size:
            degree += 1
        dtype = self.background_coefficients.dtype
        places = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
        powers = monomials(len(shape), degree)
        terms = np.stack(
            [np.prod([x**p for x, p in zip(places, row, strict=True)], axis=0) for row in powers]
        )
        return jnp.tensordot(
            self.background_coefficients, jnp.asarray(terms, dtype), 1, precision=lax.Precision.HIGHEST
        )

    @property
    def stderr(self) -> Array:
        """Marginal standard error of each axis in pixels, shape ``(D,)``."""
        return root(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

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
        if any(isinstance(x, Tracer) or not hasattr(x, "shape") for x in jax.tree.leaves(self)):
            fields = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
            return f"Registration({fields})"
        if self.shift.ndim > 1:
            bad = int(np.sum(np.asarray(self.status) != 0))
            return f"Registration({self.shift.shape[:-1]} results, {bad} with a status)"
        pairs = zip(np.asarray(self.shift), np.asarray(self.stderr), strict=True)
        shift = ", ".join(f"{value:+.{digits(error)}f} ± {error:.{digits(error)}f}" for value, error in pairs)
        status = Status(int(self.status))
        verdict = "" if status == Status.OK else f", status={int(status)} ({status.message})"
        return f"Registration(shift=({shift}) px, chi2={float(self.chi2):.5g}, dof={int(self.dof)}{verdict})"


def root(variance: Array) -> Array:
    """Square root, with a derivative of zero at zero and where there is no root.

    The variance is zero where images are equal and errors are scaled by χ².
    """
    positive = variance > 0
    other = jnp.where(variance == 0, 0.0, jnp.nan)
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), other)


def in_units(chi2: Array, unit: Array) -> tuple[Array, Array]:
    """χ² of residuals in some unit in that of the images, and `Status.OUT_OF_RANGE` if it has no number."""
    scaled = chi2 * unit * unit
    lost = (jnp.isfinite(chi2) & ~jnp.isfinite(scaled)) | ((chi2 > 0) & (scaled == 0))
    return scaled, jnp.where(lost, np.int32(Status.OUT_OF_RANGE), np.int32(0))


def _upper_tail(chi2: Array, dof: Array) -> Array:
    """Probability of a χ² at least as large."""
    ratio, part = chi2 / dof, 2 / (9 * dof)
    return ndtr(-(jnp.cbrt(ratio) - (1 - part)) / jnp.sqrt(part))


def is_bad_fit(chi2: Array, dof: Array) -> Array:
    """Whether χ² with known errors is far above its degrees of freedom."""
    chi2 = lax.stop_gradient(chi2)
    return (chi2 > MAX_REDUCED_CHI2 * dof) & (_upper_tail(chi2, dof) < MIN_P_VALUE)


def is_too_good(chi2: Array, dof: Array) -> Array:
    """Whether χ² with known errors is far below its degrees of freedom."""
    chi2 = lax.stop_gradient(chi2)
    return (chi2 < MIN_REDUCED_CHI2 * dof) & (1 - _upper_tail(chi2, dof) < MIN_P_VALUE)


Flagged = tuple[Array, Status]


def first_of(causes: list[Flagged]) -> Array:
    """The flag of the first condition that holds, or zero."""
    return jnp.select([c for c, _ in causes], [np.int32(flag) for _, flag in causes], np.int32(Status.OK))


def all_of(doubts: list[Flagged]) -> Array:
    """The flags of all conditions that hold."""
    return reduce(jnp.bitwise_or, [jnp.where(c, np.int32(flag), np.int32(0)) for c, flag in doubts])


def digits(error: float) -> int:
    """Decimals that show two significant figures of an error."""
    return int(np.clip(1 - np.floor(np.log10(error)), 0, 9)) if np.isfinite(error) and error > 0 else 6
