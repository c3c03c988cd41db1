"""Errors of an image that counts photons: the variance of a pixel is what the model expects there.

Not what was counted there: the root of the data favours pixels that came out low (Neyman's bias). χ² is
minimised in rounds, each with the variance of the last one's model. Where the rounds come to rest, χ² with
its weights held has the slope of Poisson's likelihood, ``Σ (D − m) ∂m / m``: it is its maximum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ..checks import numbers, refuse, refuse_unless
from .continuation import average_nearby
from .passes import count, mean_over, some, sum_all
from .spectrum import Shape

NEARBY, ANYWHERE = 0.1, 0.01
"""Least count that a variance is taken from, as shares of the mean nearby and of that of all pixels: the
interpolant rings around what is sharp, and what it has in the dark is no count."""


@partial(jax.tree_util.register_dataclass, data_fields=["gain", "read_noise", "offset"], meta_fields=[])
@dataclass(frozen=True)
class Counts:
    """How an image counts: its electrons are ``gain × (value − offset)``, with the noise of their number.

    Scalars, or maps of the shape of the image, as of a camera whose pixels are each read on their own. A
    pixel whose gain is not positive, or of which anything is not finite, has weight zero.
    """

    gain: ArrayLike = 1.0
    """Electrons per unit of the image."""
    read_noise: ArrayLike = 0.0
    """Standard deviation of what reading a pixel adds, in electrons."""
    offset: ArrayLike = 0.0
    """Value of a pixel without an electron, in units of the image. Of an image whose sky has been subtracted,
    lower by that sky."""


POISSON = Counts()
"""Plain numbers of photons."""


class Camera(NamedTuple):
    """`Counts`, checked, in arrays."""

    gain: Array
    read_noise: Array
    offset: Array

    @property
    def works(self) -> Array:
        """Whether a pixel can be compared."""
        finite = jnp.isfinite(self.gain) & jnp.isfinite(self.read_noise) & jnp.isfinite(self.offset)
        return finite & (self.gain > 0)

    def electrons(self, values: Array) -> tuple[Array, Array]:
        """Electrons of values, none where they would be negative or unknown; and where they are known."""
        number = self.gain * (values - self.offset)
        known = jnp.isfinite(number) & self.works
        return jnp.where(known, jnp.maximum(number, 0.0), 0.0), known

    def err_of(self, variance: Array) -> Array:
        """Standard deviation in units of the image from a variance in electrons; NaN of a pixel without."""
        return jnp.where(self.works, jnp.sqrt(variance) / jnp.where(self.works, self.gain, 1.0), jnp.nan)


def as_counts(err: Any) -> Counts | None:
    """The counting that errors stand for; None where they are standard deviations, or nothing."""
    if isinstance(err, str):
        if err != "poisson":
            refuse("err", "numbers, 'poisson' or Counts", err)
        return POISSON
    return err if isinstance(err, Counts) else None


def check_counts(counts: Counts, shape: Shape, dtype: jnp.dtype, unit: Any = None) -> Camera:
    """How an image of this shape counts."""
    words = f"be a scalar or have the shape of its image, {shape}"
    gain = numbers(counts.gain, "gain of Counts", ((), shape), words, dtype)
    read_noise = numbers(counts.read_noise, "read_noise", ((), shape), words, dtype)
    if not gain.ndim:
        refuse_unless(lambda x: x > 0, gain, "gain of Counts", "positive")
    if not read_noise.ndim:
        refuse_unless(lambda x: x >= 0, read_noise, "read_noise", "zero or more")
    return Camera(
        gain, read_noise, numbers(counts.offset, "offset of Counts", ((), shape), words, dtype, unit)
    )


def mean_err(camera: Camera, image: Array) -> Array:
    """Standard deviation of all pixels alike, from the mean of the image."""
    electrons, known = camera.electrons(image)
    variance = mean_over(electrons + camera.read_noise**2, known)
    gain = mean_over(jnp.where(known, camera.gain, 0.0), known)
    return jnp.where(known, jnp.sqrt(variance) / jnp.where(gain > 0, gain, 1.0), jnp.nan)


class Expected(NamedTuple):
    """What the noise of an image is where a model expects its counts."""

    err: Array
    """Standard deviation of each pixel."""
    share: Array
    """What χ² is per pixel: one, and less where variances are taken to be larger than expected."""
    scatter: Array
    """Variance of χ² over what it is for normal noise; of few counts it is larger."""
    photons: Array
    """So many photons with equal shares in what is known of the shift leave its error as normal as it is;
    along the axis with fewest."""


def expected(camera: Camera, model: Array, slopes: Array, counted: Array, free: tuple[bool, ...]) -> Expected:
    """The noise where a model expects its counts; ``slopes`` are its derivatives along each axis.

    Scores ``∂m n / σ²``, n the noise of a pixel, add up to an excess kurtosis of ``Σ (∂m / σ²)⁴ κ / I²``,
    with the information ``I = Σ ∂m² / σ²`` and κ the fourth cumulant of n, by Poisson's law its mean count.
    """
    own, known = camera.electrons(model)
    read, counted = camera.read_noise**2, counted & known
    pixels = counted | (known & ~some(counted))
    mean = mean_over(own, pixels)
    # Nothing is known of a level beyond what the number of all counts says.
    least = jnp.maximum(ANYWHERE * mean, jnp.sqrt(mean / jnp.maximum(count(pixels), 1)))
    least = jnp.maximum(NEARBY * average_nearby(own, known), least)
    number = jnp.where(known, jnp.maximum(own, least), mean)
    variance = number + read
    safe = jnp.where(counted, variance, 1.0)
    share = mean_over((own + read) / safe, counted)
    spread = mean_over(((own + read) ** 2 + own / 2) / safe**2, counted)
    signal = slopes * jnp.where(counted, camera.gain / jnp.sqrt(safe), 0.0)[None]
    information, kurtosis = (
        jnp.stack([sum_all(x) for x in terms]) for terms in (signal**2, signal**4 * (number / safe**2)[None])
    )
    photons = jnp.where(kurtosis > 0, information**2 / jnp.where(kurtosis > 0, kurtosis, 1.0), jnp.inf)
    return Expected(
        err=camera.err_of(variance),
        share=jnp.where(share > 0, share, 1.0),
        scatter=jnp.where(share > 0, spread / jnp.where(share > 0, share, 1.0) ** 2, 1.0),
        photons=jnp.min(jnp.where(np.array(free), photons, jnp.inf)),
    )
