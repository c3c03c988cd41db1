"""Scenes and noise of the Monte Carlo benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FWHM = np.sqrt(8 * np.log(2))


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def smoothed(noise: np.ndarray, sigma: float) -> np.ndarray:
    """White noise of unit variance behind a Gaussian, on a periodic frame, of unit variance again."""
    waves = np.meshgrid(*map(np.fft.fftfreq, noise.shape), indexing="ij")
    response = np.exp(-2 * (np.pi * sigma) ** 2 * sum(k**2 for k in waves))
    return np.fft.ifftn(np.fft.fftn(noise) * response).real / np.sqrt(np.mean(response**2))


class Spot(NamedTuple):
    """A Gaussian of a point-spread function."""

    covariance: np.ndarray
    share: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)


def round_spot(fwhm: float) -> list[Spot]:
    return [Spot(np.eye(2) * (fwhm / FWHM) ** 2)]


class Stars(NamedTuple):
    """Places and fluxes of stars, in a frame and around it."""

    places: np.ndarray
    fluxes: np.ndarray
    size: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, size: int, count: int, fluxes: Sequence[float]) -> Stars:
        """So many in the frame, as dense beyond it, with fluxes evenly in their logarithm."""
        margin = 8
        around = rng.uniform(-margin, size + margin, (rng.poisson(count * (1 + 2 * margin / size) ** 2), 2))
        inside = np.all((around > 0) & (around < size), axis=1)
        places = np.concatenate([rng.uniform(0, size, (count, 2)), around[~inside]])
        return cls(places, np.exp(rng.uniform(*np.log(fluxes), len(places))), size)

    def image(self, psf: list[Spot], shift: np.ndarray) -> np.ndarray:
        """What a point-spread function makes of them, moved."""
        pixels = np.arange(self.size)
        total = np.zeros((self.size, self.size))
        for spot in psf:
            inverse = np.linalg.inv(spot.covariance)
            y, x = (
                pixels - (p + s + o)[:, None]
                for p, s, o in zip(self.places.T, shift, spot.offset, strict=True)
            )
            exponent = inverse[0, 0] * y[:, :, None] ** 2 + inverse[1, 1] * x[:, None, :] ** 2
            if inverse[0, 1]:
                exponent += 2 * inverse[0, 1] * y[:, :, None] * x[:, None, :]
            peak = spot.share * self.fluxes / (2 * np.pi * np.sqrt(np.linalg.det(spot.covariance)))
            total += np.einsum("n,nyx->yx", peak, np.exp(-exponent / 2))
        return total
