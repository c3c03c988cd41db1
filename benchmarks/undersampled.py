"""Stars that are sampled too coarsely: crops, as they are, smoothed by hand, and by `smooth_undersampled`.

    python benchmarks/undersampled.py [--draws 400] [--size 64]

Stars of a Gaussian point spread, pixels included, with peaks of 30 to 300 times the noise of the image, at
any places in the frame and beyond its edges, moved by up to two pixels. Columns: the share of frames with
doubts about the match (`UNRELATED`, `AMBIGUOUS`) or without an error, and of the others the root mean square
of the errors and of the pulls (error over quoted error), of the model's errors and of the sandwich's where it
says two; χ² per degree of freedom, the median; the share with other flags. "smoothed by" are both images
behind a Gaussian of so many pixels, with white errors of the size of their noise then.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scenes import FWHM, Stars, rms, round_spot
from scipy import ndimage
from table import command_line, print_head

import jaxchi2
from jaxchi2 import Noise, Status

BATCH = 20
FLAGS = (Status.CONTRADICTED, Status.BAD_FIT, Status.LARGE_ERRORS)


@jax.jit
def registered(frames: jax.Array, err: jax.Array) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        return jaxchi2.register(pair[0], pair[1], err, errors="sandwich")

    return jax.lax.map(one, frames, batch_size=BATCH)


@partial(jax.jit, static_argnames="psf")
def smoothed(frames: jax.Array, reference_err: jax.Array, psf: float) -> jaxchi2.MatchedPair:
    def one(pair: jax.Array) -> jaxchi2.MatchedPair:
        return jaxchi2.smooth_undersampled(pair[0], pair[1], psf, jnp.hypot(1.0, reference_err))

    return jax.lax.map(one, frames)


@jax.jit
def registered_smooth(pairs: jaxchi2.MatchedPair) -> jaxchi2.Registration:
    def one(pair: jaxchi2.MatchedPair) -> jaxchi2.Registration:
        return jaxchi2.register(pair.reference, pair.image, noise=pair.noise)

    return jax.lax.map(one, pairs, batch_size=BATCH)


def blurred(frames: np.ndarray, sigma: float) -> np.ndarray:
    """Behind a Gaussian; NaN within three standard deviations of the edges."""
    margin = int(np.ceil(3 * sigma))
    result = ndimage.gaussian_filter(frames, (0, 0, sigma, sigma), truncate=3)
    inner = np.zeros(frames.shape, bool)
    inner[..., margin:-margin, margin:-margin] = True
    return np.where(inner, result, np.nan)


def row(name: str, found: jaxchi2.Registration, shifts: np.ndarray, both: bool = True) -> str:
    found = jax.tree.map(np.asarray, found)
    doubted = (found.status & (Status.UNRELATED | Status.AMBIGUOUS)) > 0
    good = np.all(np.isfinite(found.stderr), axis=1) & ~doubted
    error = found.shift - shifts
    pulls = [(error / found.stderr)[good]]
    if both:
        pulls.insert(0, pulls[0] * found.inflation[good])
    columns = [
        f"{np.mean(~good):.2f}",
        f"{rms(error[good]):.4f}",
        ", ".join(f"{rms(x):.2f}" for x in pulls),
        f"{np.median(found.chi2[good] / found.dof[good]):.2f}",
        *(f"{np.mean(found.status[good] & flag > 0):.2f}" for flag in FLAGS),
    ]
    return f"| {name} | {' | '.join(columns)} |"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--fwhm", type=float, nargs="*", default=[1.0, 1.2, 1.6])
    parser.add_argument("--stars", type=int, nargs="*", default=[5, 50])
    parser.add_argument("--blur", type=float, nargs="*", default=[1.2])
    parser.add_argument("--reference-err", type=float, default=0.0)
    arguments = parser.parse_args()
    names = ("FWHM", "stars", "how", "doubted", "rms (px)", "pulls", "χ² / dof")
    print_head(arguments, (*names, *(f"`{flag.name}`" for flag in FLAGS)))
    for fwhm in arguments.fwhm:
        area = 2 * np.pi * (fwhm / FWHM) ** 2
        for count in arguments.stars:
            rng = np.random.default_rng(arguments.seed)
            shifts = rng.uniform(-2, 2, (arguments.draws, 2))
            frames = []
            for shift in shifts:
                stars = Stars.drawn(rng, arguments.size, count, (30 * area, 300 * area))
                frames.append([stars.image(round_spot(fwhm), s) for s in (np.zeros(2), shift)])
            frames = (
                np.array(frames)
                + rng.normal(size=(arguments.draws, 2, *[arguments.size] * 2))
                * (np.array([arguments.reference_err, 1.0])[:, None, None])
            )
            err = np.float32(np.hypot(1.0, arguments.reference_err))
            first = f"{fwhm} | {count}"
            given = jnp.asarray(frames, jnp.float32)
            print(row(f"{first} | as it is", registered(given, err), shifts), flush=True)
            for sigma in arguments.blur:
                point = np.zeros((41, 41))
                point[20, 20] = 1.0
                size = Noise.from_kernel(ndimage.gaussian_filter(point, sigma, truncate=3), err).sigma
                found = registered(jnp.asarray(blurred(frames, sigma), jnp.float32), np.float32(size))
                print(row(f"{first} | smoothed by {sigma}", found, shifts), flush=True)
            found = registered_smooth(smoothed(given, np.float32(arguments.reference_err), fwhm))
            print(row(f"{first} | `smooth_undersampled`", found, shifts, False), flush=True)


if __name__ == "__main__":
    main()
