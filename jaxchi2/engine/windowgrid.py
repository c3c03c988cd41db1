"""Where the windows of a field lie, and how their pixels weigh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .spectrum import Shape

TAPERS = ("box", "hann")


@dataclass(frozen=True)
class WindowGrid:
    """Windows of one size on an image, at equal distances, as many as there is room for, in its middle."""

    frame: Shape
    """Shape of the image."""
    window: Shape
    """Pixels of a window along each axis."""
    spacing: Shape
    """Pixels from one window to the next."""
    taper: str
    """One of `TAPERS`."""

    @property
    def starts(self) -> list[np.ndarray]:
        """First pixels of the windows along each axis."""
        result = []
        for n, size, step in zip(self.frame, self.window, self.spacing, strict=True):
            last = (n - size) // step
            result.append((n - size - last * step) // 2 + step * np.arange(last + 1))
        return result

    @property
    def shape(self) -> Shape:
        """Number of windows along each axis."""
        return tuple(len(x) for x in self.starts)

    @property
    def centers(self) -> np.ndarray:
        """Centres of the windows in pixels, shape ``(*shape, D)``."""
        places = np.meshgrid(*self.starts, indexing="ij")
        return np.stack(places, -1) + (np.array(self.window) - 1) / 2

    @property
    def weights(self) -> list[np.ndarray]:
        """Weights of a window's pixels along each axis, whose product is the taper."""
        if self.taper == "box":
            return [np.ones(n) for n in self.window]
        return [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in self.window]

    @property
    def own(self) -> float:
        """Share of a window's pixels that would be its own if all were divided."""
        pairs = zip(self.spacing, self.window, strict=True)
        return float(np.prod([min(1.0, step / size) for step, size in pairs]))

    @property
    def overlaps(self) -> list[np.ndarray]:
        """Share of the weights that two windows have in common, along each axis."""
        result = []
        for n, starts, weights in zip(self.frame, self.starts, self.weights, strict=True):
            rows = np.zeros((len(starts), n))
            for row, start in zip(rows, starts, strict=True):
                row[start : start + len(weights)] = weights
            common = rows @ rows.T
            result.append(common / common[0, 0])
        return result
