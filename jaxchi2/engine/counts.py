"""Errors of an image that counts photons: the variance of a pixel is what the model expects there.

Not what was counted there: the root of the data favours pixels that came out low (Neyman's bias). χ² is
minimised in rounds, each with the variance of the last one's model. Where the rounds come to rest, χ² with
weights held has the slope of Poisson's likelihood, ``Σ (D − m) ∂m / m``: it is its maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from ..checks import numbers, refuse, refuse_unless
from .continuation import average_nearby
from .passes import mean_over
from .spectrum import Shape

NEARBY, ANYWHERE = 0.1, 0.01
"""Least count of a pixel that a variance is taken from, as shares of the mean nearby and of that of all."""


@partial(
    jax.tree_util.register_dataclass, data_fields=["gain", "read_noise", "offset"], meta_fields=[]
)
@dataclass(frozen=True)
class Counts:
    """How an image counts: electrons are ``gain × (value − offset)``, with the noise of their number.

    Scalars, or maps of the shape of the image, as cameras have them whose pixels are read one by one. A pixel
    whose gain is not positive, or of which anything is not finite, has weight zero.
    """

    gain: ArrayLike = 1.0
    """Electrons per unit of the image."""
    read_noise: ArrayLike = 0.0
    """Standard deviation of what reading a pixel adds, in electrons."""
    offset: ArrayLike = 0.0
    """Value of a pixel without an electron, in units of the image; of one whose sky has been subtracted, less
    than zero by that sky."""


POISSON = Counts()


def as_counts(err: ArrayLike | Counts | str | None, name: str = "err") -> Counts | None:
    """The counting that an argument stands for; None where it is a standard deviation, or nothing."""
    if isinstance(err, str):
        if err != "poisson":
            refuse(name, "a standard deviation, 'poisson' or Counts", err)
        return POISSON
    return err if isinstance(err, Counts) else None


def check_counts(counts: Counts, shape: Shape, dtype: jnp.dtype, unit: object = None) -> Counts:
    """Numbers of an image of this shape, as arrays."""
    words = f"be a scalar or have the shape of its image, {shape}"

    def checked(x: ArrayLike, name: str, unit: object = None) -> Array:
        return numbers(x, name, ((), shape), words, dtype, unit)

    gain, read_noise = checked(counts.gain, "gain of counts"), checked(counts.read_noise, "read_noise")
    for x, name, wanted, least in ((gain, "gain of counts", "positive", 1e-30), (read_noise, "read_noise", "zero or more", 0)):
        if not x.ndim:
            refuse_unless(lambda value, least=least: value >= least, x, name, wanted)
    return Counts(gain, read_noise, checked(counts.offset, "offset", unit))


def mean_err(counts: Counts, image: Array) -> Array:
    """Standard deviation of all pixels alike, that of the mean of them; a constant."""
    electrons = lax.stop_gradient(counts.gain * (image - counts.offset))
    known = jnp.isfinite(electrons) & (counts.gain > 0)
    mean = jnp.maximum(mean_over(jnp.where(known, electrons, 0.0), known), 0.0)
    gain, read = (mean_over(jnp.broadcast_to(x, image.shape), known) for x in (counts.gain, counts.read_noise**2))
    return jnp.where(known, jnp.sqrt(mean + read) / gain, jnp.nan)


def expected_err(counts: Counts, model: Array) -> Array:
    """Standard deviation of each pixel where a model expects so much, the mean where there is no model."""
    electrons = counts.gain * (model - counts.offset)
    known = jnp.isfinite(electrons) & (counts.gain > 0)
    some = jnp.where(known, jnp.maximum(electrons, 0.0), 0.0)
    mean = mean_over(some, known)
    least = jnp.maximum(NEARBY * average_nearby(some, known), ANYWHERE * mean)
    variance = jnp.where(known, jnp.maximum(some, least), mean) + counts.read_noise**2
    return jnp.where(counts.gain > 0, jnp.sqrt(variance) / counts.gain, jnp.nan)
