"""How often `Status.CONTRADICTED` is set: for right errors, and for errors 1.5 times too small and too large.

    python benchmarks/contradicted.py [--draws 1000] [--errors model]

Scenes of eleven kinds, new in every draw, moved by up to 1.5 pixels, with white noise of unit variance in the
image. By the sandwich, or with ``--errors model`` by the verdict of the call without options, which leaves it
to the flags of χ² where these say it already.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxchi2
from jaxchi2 import Status
from jaxchi2.template import has_answer

Scene = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def field(slope: float, contrast: float, n: int) -> Scene:
    """Periodic, amplitude k^−slope up to Nyquist's frequency."""
    frequency = np.fft.fftfreq(n)
    k = np.hypot(frequency[:, None], frequency[None, :])
    k[0, 0] = np.inf

    def frames(rng: np.random.Generator, shift: np.ndarray) -> np.ndarray:
        spectrum = np.fft.fft2(rng.normal(size=(n, n))) * k**-slope
        phase = frequency[:, None] * shift[0] + frequency[None, :] * shift[1]
        pair = np.array([np.fft.ifft2(x).real for x in (spectrum, spectrum * np.exp(-2j * np.pi * phase))])
        return pair * contrast / pair[0].std()

    return frames


def crop(slope: float, contrast: float, n: int) -> Scene:
    """The middle of a field of twice the size."""
    whole, middle = field(slope, contrast, 2 * n), slice(n // 2, n // 2 + n)
    return lambda rng, shift: whole(rng, shift)[:, middle, middle]


def stars(count: int, low: float, high: float, n: int = 64) -> Scene:
    """FWHM 3 pixels, the logarithms of their peaks evenly between two limits."""
    y, x = np.indices((n, n)).astype(float)

    def frames(rng: np.random.Generator, shift: np.ndarray) -> np.ndarray:
        pair = np.zeros((2, n, n))
        for _ in range(count):
            place, peak = rng.uniform(8, n - 8, 2), 10 ** rng.uniform(low, high)
            for frame, s in zip(pair, (np.zeros(2), shift), strict=True):
                frame += peak * np.exp(-((y - place[0] - s[0]) ** 2 + (x - place[1] - s[1]) ** 2) / 3.25)
        return pair

    return frames


SCENES: dict[str, tuple[Scene, bool]] = {
    "white, S/N 5, 32²": (field(0, 5, 32), True),
    "k⁻¹, S/N 10, 64²": (field(1, 10, 64), True),
    "k⁻¹, S/N 5, 16²": (field(1, 5, 16), True),
    "k⁻², S/N 1, 64²": (field(2, 1, 64), True),
    "k⁻³, S/N 10, 64²": (field(3, 10, 64), True),
    "60 stars": (stars(60, 1.3, 2.5), True),
    "12 stars": (stars(12, 1.3, 2.5), True),
    "one star": (stars(1, 1.5, 2.5), True),
    "one faint star": (stars(1, 0.9, 1.2), True),
    "crop, k⁻¹, S/N 10, 48²": (crop(1, 10, 48), False),
    "crop, k⁻², S/N 10, 48²": (crop(2, 10, 48), False),
}


@partial(jax.jit, static_argnames=("boundary", "errors"))
def registered(frames: jax.Array, err: jax.Array, boundary: str, errors: str) -> jaxchi2.Registration:
    options = {"boundary": boundary, "verdict": errors == "model", "errors": errors}
    return jax.lax.map(lambda pair: jaxchi2.register(*pair, err, **options), frames, batch_size=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--errors", choices=("sandwich", "model"), default="sandwich")
    arguments = parser.parse_args()
    rng = np.random.default_rng(5)
    print(f"float32, {arguments.draws} draws, jax {jax.__version__}\n")
    names = ("boundary", "scene", "pull", "ln inflation", "flagged", "err / 1.5", "err × 1.5")
    print(f"| {' | '.join(names)} |", "|---" * len(names) + "|", sep="\n")
    for boundary in ("wrap", "overlap"):
        for name, (scene, periodic) in SCENES.items():
            if boundary == "wrap" and not periodic:
                continue
            shifts = rng.uniform(-1.5, 1.5, (arguments.draws, 2))
            frames = np.array([scene(rng, s) for s in shifts])
            frames[:, 1] += rng.normal(size=frames[:, 1].shape)
            columns = []
            for factor in (1.0, 1 / 1.5, 1.5):
                given = jnp.asarray(frames, jnp.float32), jnp.float32(factor)
                found = registered(*given, boundary, arguments.errors)
                found = jax.tree.map(np.asarray, found)
                good = has_answer(found)
                if factor == 1.0:
                    pulls = ((found.shift - shifts) / found.stderr)[good]
                    logarithm = np.log(found.inflation[good])
                    columns.append(f"{np.sqrt(np.mean(pulls**2)):.2f}")
                    columns.append(f"{np.mean(logarithm):+.2f} ± {np.std(logarithm):.2f}")
                columns.append(f"{np.mean(found.status[good] & int(Status.CONTRADICTED) > 0):.3f}")
            print(f"| {boundary} | {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
