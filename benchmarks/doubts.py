"""What is wrong with a pair, how the residuals look, and what the call without options says of it.

    python benchmarks/doubts.py [--draws 300] [--plot docs/doubts.png]

Sixty stars of full width at half maximum 3 pixels on 64², new in every draw, moved by 1 to 4 pixels along
each axis, with white noise of one in the image, and one thing that the call is not told. Printed are the
root mean square of the pulls, (found − true) / quoted error, by default and with ``errors="sandwich"``, and
how often each flag is set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scenes import smoothed

import jaxchi2
from jaxchi2 import Status
from jaxchi2.template import has_answer

SIZE = 64
STARS = 60
FLAGS = ("CONTRADICTED", "STATIC_PATTERN", "BAD_FIT", "LARGE_ERRORS", "BRIGHTNESS", "UNRELATED", "AMBIGUOUS")
Y, X = np.indices((SIZE, SIZE)).astype(float)


class Sky:
    """The stars of one draw."""

    def __init__(self, rng: np.random.Generator, lattice: bool = False) -> None:
        self.place, self.peak = rng.uniform(-8, SIZE + 8, (STARS, 2)), 10 ** rng.uniform(0.8, 2.2, STARS)
        if lattice:
            self.place = np.stack(np.meshgrid(*2 * [np.arange(-12, SIZE + 12, 6.0)]), -1).reshape(-1, 2)
            self.peak = np.full(len(self.place), 30.0)

    def image(self, shift: np.ndarray, width: float = 3.0, angle: float = 0.0) -> np.ndarray:
        """Seen with a point spread of this width, about the middle turned by degrees, and moved."""
        middle, turn = (SIZE - 1) / 2, np.deg2rad(angle)
        matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        result = np.zeros((SIZE, SIZE))
        for (y, x), peak in zip((self.place - middle) @ matrix.T + middle + shift, self.peak, strict=True):
            square = (Y - y) ** 2 + (X - x) ** 2
            result += peak * (3.0 / width) ** 2 * np.exp(-4 * np.log(2) * square / width**2)
        return result


Pair = tuple[np.ndarray, np.ndarray]
Maker = Callable[[np.random.Generator, Sky, np.ndarray], Pair]


def noise(rng: np.random.Generator, size: float = 1.0) -> np.ndarray:
    return size * rng.normal(size=(SIZE, SIZE))


def plain(rng: np.random.Generator, sky: Sky, shift: np.ndarray, size: float = 1.0, **options: float) -> Pair:
    return sky.image(np.zeros(2)), sky.image(shift, **options) + noise(rng, size)


def resampled(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    return sky.image(np.zeros(2)), sky.image(shift) + smoothed(noise(rng), 0.7)


def noisy_reference(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    return sky.image(np.zeros(2)) + noise(rng), sky.image(shift) + noise(rng)


def patterned(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    pattern = noise(rng, 0.5)
    return sky.image(np.zeros(2)) + pattern, sky.image(shift) + pattern + noise(rng)


def hot(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    pixels = np.zeros((SIZE, SIZE))
    pixels.flat[rng.choice(pixels.size, 8, replace=False)] = rng.uniform(10, 60, 8)
    return sky.image(np.zeros(2)) + pixels, sky.image(shift) + pixels + noise(rng)


def sloping(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    return sky.image(np.zeros(2)), sky.image(shift) + noise(rng) + np.linspace(-2, 2, SIZE)[:, None]


def brighter(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    return sky.image(np.zeros(2)), 1.3 * sky.image(shift) + noise(rng)


def photons(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    image = sky.image(shift)
    return sky.image(np.zeros(2)), image + noise(rng) * np.sqrt(1 + image / 5)


def strangers(rng: np.random.Generator, sky: Sky, shift: np.ndarray) -> Pair:
    return sky.image(np.zeros(2)), Sky(rng).image(shift) + noise(rng)


CASES: dict[str, Maker] = {
    "nothing": plain,
    "the noise is 1.5 times larger": partial(plain, size=1.5),
    "the image was resampled: neighbours share noise": resampled,
    "the reference has noise too": noisy_reference,
    "the stars have photon noise": photons,
    "the camera adds a pattern": patterned,
    "eight hot pixels": hot,
    "the sky slopes by 4 σ": sloping,
    "the image is 1.3 times brighter": brighter,
    "the stars are wider: 3.5 for 3 pixels": partial(plain, width=3.5),
    "a turn by 0.5°": partial(plain, angle=0.5),
    "a lattice": plain,
    "another field": strangers,
}


@partial(jax.jit, static_argnames="errors")
def registered(frames: jax.Array, errors: str) -> jaxchi2.Registration:
    return jax.lax.map(lambda pair: jaxchi2.register(*pair, 1.0, errors=errors), frames, batch_size=20)


def drawn(case: str, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs and their shifts."""
    rng = np.random.default_rng(sum(map(ord, case)))
    shifts = rng.uniform(1, 4, (draws, 2)) * rng.choice([-1, 1], (draws, 2))
    pairs = [CASES[case](rng, Sky(rng, lattice=case == "a lattice"), shift) for shift in shifts]
    return np.array(pairs, np.float32), shifts


def draw(path: str) -> None:
    """Residuals of the first pair of each case, by the model at the shift that was found."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 4, figsize=(11, 9), constrained_layout=True)
    shown = [name for name in CASES if name != "a lattice"]
    for axis, name in zip(axes.flat, shown, strict=True):
        frames, shifts = drawn(name, 1)
        reference, image = frames[0]
        found = jaxchi2.register(reference, image, 1.0)
        moved = jaxchi2.align(reference, -found.shift, boundary="overlap")
        axis.imshow(image - moved, cmap="RdBu_r", vmin=-5, vmax=5, origin="lower")
        pulls = np.abs(found.shift - shifts[0]) / found.stderr
        said = ", ".join(flag.name or "" for flag in Status if flag and flag & int(found.status)) or "no flag"
        axis.set_title(f"{name}\n{said}\noff by {pulls[0]:.1f}, {pulls[1]:.1f} σ", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--plot", help="file for the residuals of one pair of each case")
    arguments = parser.parse_args()
    print(f"{arguments.draws} pairs of {SIZE}² per line, float32, jax {jax.__version__}\n")
    names = ("what the call is not told", "pull", "pull, sandwich", *FLAGS, "no flag")
    print(f"| {' | '.join(names)} |", "|---" * len(names) + "|", sep="\n")
    for case in CASES:
        frames, shifts = drawn(case, arguments.draws)
        model, robust = (
            jax.tree.map(np.asarray, registered(jnp.asarray(frames), errors))
            for errors in ("model", "sandwich")
        )
        columns = []
        for found in (model, robust):
            pulls = ((found.shift - shifts) / found.stderr)[has_answer(found)]
            size = np.sqrt(np.mean(pulls**2)) if len(pulls) else np.nan
            columns.append(f"{size:.2f}" if size < 100 else f"{size:.0f}")
        columns += [f"{np.mean(model.status & int(Status[name]) > 0):.2f}" for name in FLAGS]
        columns.append(f"{np.mean(model.status == 0):.2f}")
        print(f"| {case} | {' | '.join(columns)} |", flush=True)
    if arguments.plot:
        draw(arguments.plot)


if __name__ == "__main__":
    main()
