"""Pulls of counted photons: with the model's variance, and with the root of the data.

    python benchmarks/counts.py [--draws 400] [--size 64]

Each draw is a new scene of a kind, moved by up to two pixels, with new photons: twelve stars of FWHM 3 pixels
on a sky that has half of the light, or none; a field of power k⁻³ and contrast 0.35, whose darkest pixel has
no light; one star on a sky of 0.1. The reference is the scene without noise. Counts are those of a pixel on
average, of one star its photons. Columns: share of draws whose match is believed (not unrelated, nor
ambiguous); of all draws the scatter of the pulls, (found − true) / quoted error, their mean along both axes,
the root mean square error, χ² per degree of freedom, and how often ``p_value`` is below 0.01; how often
`Status.FEW_COUNTS` and the flags of a bad χ² are set; the share of draws off by more than five errors without
any flag; and the median background in counts, fitted with the gain in a run of its own.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from table import command_line, print_head

import jaxchi2
from jaxchi2 import Status

BATCH = 20
MEANS = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
PHOTONS = (10, 20, 40, 100, 300, 1000)


class Maker:
    """Scenes of unit mean on a frame."""

    def __init__(self, size: int, seed: int):
        self.size, self.rng = size, np.random.default_rng(seed)
        self.frequency = np.fft.fftfreq(size)
        self.pixels = np.indices((size, size)).astype(float)

    def star(self, place: np.ndarray) -> np.ndarray:
        """A star with a peak of one."""
        y, x = self.pixels
        return np.exp(-((y - place[0]) ** 2 + (x - place[1]) ** 2) / 3.25)

    def stars(self, shift: np.ndarray, sky: float) -> np.ndarray:
        """Two frames of stars away from the edges, and the share of light that is sky."""
        frames = np.zeros((2, self.size, self.size))
        for _ in range(12):
            place, peak = self.rng.uniform(12, self.size - 12, 2), 10 ** self.rng.uniform(1.3, 2.5)
            frames += peak * np.array([self.star(place), self.star(place + shift)])
        return (1 - sky) * frames / frames[0].mean() + sky

    def field(self, shift: np.ndarray) -> np.ndarray:
        """Two frames of a Gaussian field, periodic."""
        k = np.hypot(self.frequency[:, None], self.frequency[None, :])
        noise = np.fft.fft2(self.rng.normal(size=k.shape))
        spectrum = noise * np.where(k > 0, k, np.inf) ** -1.5 * np.exp(-((k / 0.3) ** 4))
        phase = self.frequency[:, None] * shift[0] + self.frequency[None, :] * shift[1]
        frames = np.array([np.fft.ifft2(s).real for s in (spectrum, spectrum * np.exp(-2j * np.pi * phase))])
        frames = 1 + 0.35 * frames / frames[0].std()
        frames -= min(0.0, frames.min())
        return frames / frames[0].mean()

    def one(self, shift: np.ndarray, sky: float) -> np.ndarray:
        """Two frames of a star of one photon on a sky of so much of it per pixel."""
        place = np.full(2, self.size / 2) + self.rng.uniform(-0.5, 0.5, 2)
        frames = np.array([self.star(place), self.star(place + shift)])
        return frames / frames[0].sum() + sky


@partial(jax.jit, static_argnames=("err", "boundary", "nuisances"))
def registered(frames: jax.Array, err: str, boundary: str, nuisances: bool) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        given = jnp.sqrt(jnp.maximum(pair[1], 1.0)) if err == "data" else err
        options = {"fit_gain": nuisances, "fit_background": nuisances, "verdict": not nuisances}
        return jaxchi2.register(pair[0], pair[1], given, boundary=boundary, **options)

    return jax.lax.map(one, frames, batch_size=BATCH)


def row(maker: Maker, name: str, scene: str, level: float, draws: int, boundary: str) -> list[str]:
    shifts = maker.rng.uniform(-2, 2, (draws, 2))
    kinds = {
        "stars": lambda s: level * maker.stars(s, 0.5),
        "stars, no sky": lambda s: level * maker.stars(s, 0.0),
        "field": lambda s: level * maker.field(s),
        "one star": lambda s: level * maker.one(s, 0.1 / level),
    }
    scenes = np.array([kinds[scene](s) for s in shifts])
    scenes[:, 1] = maker.rng.poisson(np.maximum(scenes[:, 1], 0.0))
    frames = jnp.asarray(scenes, jnp.float32)
    rows, root = [], draws**0.5
    for err in ("poisson", "data"):
        found = jax.tree.map(np.asarray, registered(frames, err, boundary, False))
        fitted = jax.tree.map(np.asarray, registered(frames, err, boundary, True))
        status, off = found.status, found.shift - shifts
        there = np.isfinite(off).all(1)
        good = there & (status & int(Status.UNRELATED | Status.AMBIGUOUS) == 0)
        pulls = (off / found.stderr)[there]
        lost = np.any(np.abs(off / found.stderr) > 5, axis=1) & there & (status == 0)
        bad = Status.BAD_FIT | Status.LARGE_ERRORS
        columns = [
            f"{np.mean(good):.3f}",
            f"{np.std(pulls):.2f}",
            " ".join(f"{x:+.2f}" for x in np.mean(pulls, axis=0)),
            f"{np.sqrt(np.mean(off[there] ** 2)):.4f}",
            f"{np.mean((found.chi2 / found.dof)[there]):.3f}",
            f"{np.mean(np.asarray(jaxchi2.Registration(*found).p_value)[there] < 0.01):.3f}",
            f"{np.mean(status & Status.FEW_COUNTS > 0):.3f}",
            f"{np.mean(status & int(bad) > 0):.3f}",
            f"{np.mean(lost):.3f}",
            f"{np.nanmedian(fitted.background):+.3f} ± {np.nanmedian(fitted.background_err) / root:.3f}",
        ]
        rows.append(f"| {name} | {level:g} | {err} | {' | '.join(columns)} |")
    return rows


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    names = (
        "scene, boundary",
        "counts",
        "err",
        "believed",
        "pulls",
        "mean pull",
        "rms (px)",
        "χ²/dof",
        "p < 0.01",
    )
    names += ("FEW_COUNTS", "bad χ²", "missed", "background")
    print_head(arguments, names)
    for boundary in arguments.boundary:
        maker = Maker(arguments.size, arguments.seed)
        for scene in ("stars", "stars, no sky", "field", "one star"):
            for level in PHOTONS if scene == "one star" else MEANS:
                lines = row(maker, f"{scene}, {boundary}", scene, level, arguments.draws, boundary)
                print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
