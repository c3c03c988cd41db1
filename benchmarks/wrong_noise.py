"""Pulls where the noise is not what the errors say: those of the model, and those of the sandwich.

    python benchmarks/wrong_noise.py [--draws 400] [--size 64]

Each draw is a new scene of two kinds (a field of power k⁻³ and twelve stars), moved by up to two pixels, with
new noise. A pull is the error of a shift over the quoted one; their root mean square is to be one. Inflation
is the ratio of both kinds of quoted errors, its median and its scatter over the draws; flagged is how often
`Status.CONTRADICTED` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scenes import rms, smoothed
from table import command_line, print_head

import jaxchi2
from jaxchi2 import Status
from jaxchi2.template import has_answer

BATCH = 20


class Maker:
    """Scenes on a frame, and noise of several kinds."""

    def __init__(self, size: int, seed: int):
        self.size, self.rng = size, np.random.default_rng(seed)
        self.frequency = np.fft.fftfreq(size)
        self.k = np.hypot(self.frequency[:, None], self.frequency[None, :])

    def field(self, shift: np.ndarray) -> np.ndarray:
        """Two frames of a Gaussian field, periodic."""
        k = np.where(self.k > 0, self.k, 1.0)
        spectrum = np.fft.fft2(self.white()) * k**-1.5 * np.exp(-((k / 0.3) ** 4))
        spectrum[0, 0] = 0.0
        phase = self.frequency[:, None] * shift[0] + self.frequency[None, :] * shift[1]
        frames = [np.fft.ifft2(x).real for x in (spectrum, spectrum * np.exp(-2j * np.pi * phase))]
        return 10 * np.array(frames) / frames[0].std()

    def stars(self, shift: np.ndarray, count: int = 12) -> np.ndarray:
        """Two frames of stars, FWHM 3 pixels, away from the edges."""
        y, x = np.indices((self.size, self.size)).astype(float)
        frames = np.zeros((2, self.size, self.size))
        for _ in range(count):
            place, peak = self.rng.uniform(12, self.size - 12, 2), 10 ** self.rng.uniform(1.3, 2.5)
            for frame, s in zip(frames, (np.zeros(2), shift), strict=True):
                frame += peak * np.exp(-((y - place[0] - s[0]) ** 2 + (x - place[1] - s[1]) ** 2) / 3.25)
        return frames

    def white(self) -> np.ndarray:
        """Noise of unit variance."""
        return self.rng.normal(size=(self.size, self.size))

    def halfway(self) -> np.ndarray:
        """Noise of unit variance after a linear shift by half a pixel on both axes."""
        noise = self.white()
        return sum(np.roll(noise, (a, b), (0, 1)) for a in (0, 1) for b in (0, 1)) / 2


NOISE: dict[str, tuple[Callable, float | None]] = {
    "white": (lambda m, image: (0.0, m.white()), 1.0),
    "no err given": (lambda m, image: (0.0, m.white()), None),
    "err half of the noise": (lambda m, image: (0.0, m.white()), 0.5),
    "err twice the noise": (lambda m, image: (0.0, m.white()), 2.0),
    "shifted by half a pixel": (lambda m, image: (0.0, m.halfway()), 1.0),
    "smoothed by 0.7 pixels": (lambda m, image: (0.0, smoothed(m.white(), 0.7)), 1.0),
    "smoothed by 1.2 pixels": (lambda m, image: (0.0, smoothed(m.white(), 1.2)), 1.0),
    "in the reference too": (lambda m, image: (m.white(), m.white()), 1.0),
    "three times on the sources": (lambda m, image: (0.0, m.white() * np.where(image > 5, 3.0, 1.0)), 1.0),
    "of counts": (lambda m, image: (0.0, m.white() * np.sqrt(1 + np.maximum(image, 0.0) / 5)), 1.0),
}


@partial(jax.jit, static_argnames=("known", "options"))
def registered(frames: jax.Array, err: jax.Array, known: bool, options: tuple) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        given = err if known else None
        return jaxchi2.register(pair[0], pair[1], given, errors="sandwich", verdict=False, **dict(options))

    return jax.lax.map(one, frames, batch_size=BATCH)


def row(maker: Maker, scene: str, noise: str, draws: int, options: dict) -> str:
    shifts = maker.rng.uniform(-2, 2, (draws, 2))
    make, err = NOISE[noise]
    frames = np.array([getattr(maker, scene)(s) for s in shifts])
    frames += np.array([np.broadcast_arrays(*make(maker, image)) for _, image in frames])
    found = registered(
        jnp.asarray(frames, jnp.float32),
        jnp.asarray(1.0 if err is None else err, jnp.float32),
        err is not None,
        tuple(options.items()),
    )
    found = jax.tree.map(np.asarray, found)
    good = has_answer(found)
    pull = ((found.shift - shifts) / found.stderr)[good]
    columns = [
        f"{rms(pull * found.inflation[good]):.2f}",
        f"{rms(pull):.2f}",
        f"{np.median(found.inflation[good]):.2f} ± {np.std(found.inflation[good]):.2f}",
        f"{np.mean(found.status[good] & Status.CONTRADICTED > 0):.3f}",
    ]
    if options.get("fit_gain"):
        columns.append(f"{rms(((found.gain - 1) / found.gain_err)[good]):.2f}")
        columns.append(f"{rms((found.background / found.background_err)[good]):.2f}")
    else:
        columns += ["", ""]
    boundary = options["boundary"] + (", gain, background" if options.get("fit_gain") else "")
    return f"| {scene} | {noise} | {boundary} | {' | '.join(columns)} |"


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    names = ("scene", "noise", "boundary", "pulls, model", "sandwich", "inflation", "flagged")
    names += ("gain", "background")
    print_head(arguments, names)
    maker = Maker(arguments.size, arguments.seed)
    for boundary in arguments.boundary:
        for nuisances in (False, True):
            options = {"boundary": boundary, "fit_gain": nuisances, "fit_background": nuisances}
            for scene in ("field", "stars"):
                for noise in NOISE:
                    print(row(maker, scene, noise, arguments.draws, options), flush=True)


if __name__ == "__main__":
    main()
