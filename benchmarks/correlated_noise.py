"""Errors where the noise is correlated and its spectrum known: by ``noise``, and without it.

    python benchmarks/correlated_noise.py [--draws 400] [--size 64]

Scenes (a field of power k⁻³, twelve stars) with white noise go through what correlates noise: a shift by half
a pixel by linear or cubic interpolation, or a Gaussian. The reference is the scene behind the same, without
noise. With "overlap" fields are crops of larger frames. Columns: the root mean square of the pulls (error
over quoted error); that of the errors over the Cramér-Rao bound of the correlated noise on the whole frame
(for crops of a field, that for fields of this size); the mean reduced χ²; the probability of p-values as
uniform (Kolmogorov-Smirnov); the share of frames with a status.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, stats
from table import command_line, print_head
from wrong_noise import Maker, rms

import jaxchi2
from jaxchi2 import Noise

BATCH = 20
POINT = np.zeros((41, 41))
POINT[20, 20] = 1.0


KERNELS = {
    "white": np.ones((1, 1)),
    "half a pixel, linear": np.full((2, 2), 0.25),
    "half a pixel, cubic": ndimage.shift(POINT, 0.5, order=3),
    "Gaussian of 0.7 pixels": ndimage.gaussian_filter(POINT, 0.7, truncate=8),
    "Gaussian of 1.2 pixels": ndimage.gaussian_filter(POINT, 1.2, truncate=8),
}
SIGMA = 2.0


@partial(jax.jit, static_argnames=("mode", "options"))
def registered(frames: jax.Array, noise: Noise, mode: str, options: tuple) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        given = {"noise": noise} if mode == "noise" else {"err": noise.sigma}
        errors = "sandwich" if mode == "sandwich" else "model"
        return jaxchi2.register(pair[0], pair[1], errors=errors, verdict=False, **given, **dict(options))

    return jax.lax.map(one, frames, batch_size=BATCH)


def bounds(scenes: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Least error of every scene along both axes, on a periodic frame."""
    frame = scenes.shape[1:]
    # Scene and noise have passed the same, which cancels where anything has passed.
    power = np.abs(np.fft.fft2(scenes)) ** 2 / SIGMA**2 / np.prod(frame)
    power *= np.abs(np.fft.fft2(kernel, frame)) > 1e-9
    ky, kx = (2 * np.pi * np.fft.fftfreq(n) for n in frame)
    information = np.einsum("nyx,ay,ax->na", power, [ky**2, ky**0], [kx**0, kx**2])
    return information**-0.5


def rows(size: int, scene: str, name: str, boundary: str, draws: int, seed: int, modes: list[str]):
    # Stars fade at the edges; a field goes on beyond them.
    large = size * 3 // 2 if boundary == "overlap" and scene == "field" else size
    maker, kernel = Maker(large, seed), KERNELS[name]
    shifts = maker.rng.uniform(-2, 2, (draws, 2))
    frames = np.array([getattr(maker, scene)(s) for s in shifts])
    best = bounds(frames[:, 0], kernel) * (large / size)
    frames[:, 1] += SIGMA * maker.rng.normal(size=frames[:, 1].shape)
    frames = np.fft.ifft2(np.fft.fft2(frames) * np.fft.fft2(kernel, (large, large))).real
    cut = slice((large - size) // 2, (large + size) // 2)
    frames = jnp.asarray(frames[:, :, cut, cut], jnp.float32)
    noise = Noise.from_kernel(np.float32(kernel), SIGMA)
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
            for name in KERNELS:
                found = rows(
                    arguments.size, scene, name, boundary, arguments.draws, arguments.seed, arguments.mode
                )
                for row in found:
                    print(row, flush=True)


if __name__ == "__main__":
    main()
