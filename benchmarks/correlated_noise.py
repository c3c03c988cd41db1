"""Errors where the noise is correlated and its spectrum known: by ``noise``, and without it.

    python benchmarks/correlated_noise.py [--draws 400] [--size 64]

Scenes (a field of power k⁻³, twelve stars) with white noise go through what correlates noise: a shift by half
a pixel by linear or cubic interpolation, a Gaussian, or drizzling of four exposures, whose pixels, shrunk to
0.8, drop their light on the pixels that they cover of a common grid. The reference is the scene behind the
same, without noise. With "overlap" fields are crops of larger frames. Columns: the root mean square of the
pulls (error over quoted error); that of the errors over the Cramér-Rao bound of the correlated noise on the
whole frame (for crops of a field, that for fields of this size); the mean reduced χ²; the probability of
p-values as uniform (Kolmogorov-Smirnov); the share of frames with a status.
"""

from __future__ import annotations

from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scenes import rms
from scipy import ndimage, stats
from table import command_line, print_head
from wrong_noise import Maker

import jaxchi2
from jaxchi2 import Noise

BATCH = 20
POINT = np.zeros((41, 41))
POINT[20, 20] = 1.0


DITHERS = ((0.0, 0.0), (0.5, 0.25), (0.25, 0.5), (-0.25, -0.25))
PIXFRAC = 0.8


class Exposure(NamedTuple):
    """One of those that are added up: where its pixels are on the common grid, and what becomes of one."""

    offset: tuple[float, float]
    kernel: np.ndarray


def drop(offset: tuple[float, float]) -> np.ndarray:
    """Shares of a pixel shrunk to `PIXFRAC` that the pixels around it get, by the area they cover of it."""
    edges = np.arange(-1.5, 2)
    lines = [np.diff(np.clip(edges, d - PIXFRAC / 2, d + PIXFRAC / 2)) / PIXFRAC for d in offset]
    return np.multiply.outer(*lines)


NOTHING = (0.0, 0.0)
PROCESSES = {
    "white": [Exposure(NOTHING, np.ones((1, 1)))],
    "half a pixel, linear": [Exposure(NOTHING, np.full((2, 2), 0.25))],
    "half a pixel, cubic": [Exposure(NOTHING, ndimage.shift(POINT, 0.5, order=3))],
    "Gaussian of 0.7 pixels": [Exposure(NOTHING, ndimage.gaussian_filter(POINT, 0.7, truncate=8))],
    "Gaussian of 1.2 pixels": [Exposure(NOTHING, ndimage.gaussian_filter(POINT, 1.2, truncate=8))],
    "drizzled": [Exposure(offset, drop(offset)) for offset in DITHERS],
}
SIGMA = 2.0


@partial(jax.jit, static_argnames=("mode", "options"))
def registered(frames: jax.Array, noise: Noise, mode: str, options: tuple) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        given = {"noise": noise} if mode == "noise" else {"err": noise.sigma}
        errors = "sandwich" if mode == "sandwich" else "model"
        return jaxchi2.register(pair[0], pair[1], errors=errors, verdict=False, **given, **dict(options))

    return jax.lax.map(one, frames, batch_size=BATCH)


def waves(frame: tuple[int, ...]) -> list[np.ndarray]:
    return [2 * np.pi * np.fft.fftfreq(n) for n in frame]


def responses(process: list[Exposure], frame: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every exposure what becomes of the scene, which it sees at its own place, and of its noise."""
    ky, kx = waves(frame)
    result = []
    for (y, x), kernel in process:
        response = np.fft.fft2(kernel, frame) / len(process)
        result.append((response * np.exp(1j * (ky[:, None] * y + kx[None, :] * x)), response))
    return result


def added_up(scenes: np.ndarray, process: list[Exposure], rng: np.random.Generator | None) -> np.ndarray:
    """Exposures of scenes, each with white noise if there is any, on the common grid."""
    total = np.zeros(scenes.shape)
    for scene, noise in responses(process, scenes.shape[1:]):
        spectrum = np.fft.fft2(scenes) * scene
        if rng is not None:
            spectrum = spectrum + np.fft.fft2(SIGMA * rng.normal(size=scenes.shape)) * noise
        total += np.fft.ifft2(spectrum).real
    return total


def noise_of(process: list[Exposure]) -> Noise:
    """Of independent exposures covariances add up."""
    each = [Noise.from_kernel(np.float32(kernel), SIGMA / len(process)).covariance for _, kernel in process]
    return Noise(reduce(jnp.add, each))


def bounds(scenes: np.ndarray, process: list[Exposure]) -> np.ndarray:
    """Least error of every scene along both axes, on a periodic frame."""
    frame = scenes.shape[1:]
    each = responses(process, frame)
    response, noise = sum(scene for scene, _ in each), sum(np.abs(n) ** 2 for _, n in each)
    passed = noise > 1e-18
    power = np.abs(np.fft.fft2(scenes) * response) ** 2 / np.where(passed, noise, np.inf)
    ky, kx = waves(frame)
    information = np.einsum(
        "nyx,ay,ax->na", power / SIGMA**2 / np.prod(frame), [ky**2, ky**0], [kx**0, kx**2]
    )
    return information**-0.5


def rows(size: int, scene: str, name: str, boundary: str, draws: int, seed: int, modes: list[str]):
    # Stars fade at the edges; a field goes on beyond them.
    large = size * 3 // 2 if boundary == "overlap" and scene == "field" else size
    maker, process = Maker(large, seed), PROCESSES[name]
    shifts = maker.rng.uniform(-2, 2, (draws, 2))
    frames = np.array([getattr(maker, scene)(s) for s in shifts])
    best = bounds(frames[:, 0], process) * (large / size)
    pairs = added_up(frames[:, 0], process, None), added_up(frames[:, 1], process, maker.rng)
    frames = np.stack(pairs, axis=1)
    cut = slice((large - size) // 2, (large + size) // 2)
    frames = jnp.asarray(frames[:, :, cut, cut], jnp.float32)
    noise = noise_of(process)
    for mode in modes:
        found = registered(frames, noise, mode, (("boundary", boundary),))
        found = jax.tree.map(np.asarray, found)
        error = found.shift - shifts
        good = np.isfinite(found.chi2)
        columns = [
            f"{rms((error / found.stderr)[good]):.3f}",
            f"{rms((error / best)[good]):.3f}",
            f"{np.mean(found.chi2[good] / found.dof[good]):.3f}",
            f"{stats.kstest(np.asarray(found.p_value)[good], 'uniform').pvalue:.2g}",
            f"{np.mean(found.status != 0):.3f}",
        ]
        yield f"| {scene} | {name} | {boundary} | {mode} | {' | '.join(columns)} |"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--scene", choices=("field", "stars"), nargs="*", default=["field", "stars"])
    parser.add_argument("--noise", choices=PROCESSES, nargs="*", default=list(PROCESSES))
    parser.add_argument("--mode", nargs="*", default=["model", "sandwich", "noise"])
    arguments = parser.parse_args()
    names = (
        "scene",
        "noise",
        "boundary",
        "errors",
        "pulls",
        "rms / bound",
        "χ² / dof",
        "p uniform",
        "status",
    )
    print_head(arguments, names)
    for boundary in arguments.boundary:
        for scene in arguments.scene:
            for name in arguments.noise:
                found = rows(
                    arguments.size, scene, name, boundary, arguments.draws, arguments.seed, arguments.mode
                )
                for row in found:
                    print(row, flush=True)


if __name__ == "__main__":
    main()
