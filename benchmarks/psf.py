"""Images with unlike point-spread functions: as they are, by the sandwich, and behind `match_psf`.

    python benchmarks/psf.py [--draws 300] [--size 64]

Crops with forty stars, of fluxes that make peaks of 20 to 300 times the noise at a full width of 3 pixels,
moved by up to two pixels. Noise of one in the image, and in the reference where it says "both". Columns: the
root mean square of the errors, in pixels and over the bound for the image's noise alone, and of the pulls
(error over quoted error), of the model's errors and of the sandwich's for images as they are; the mean error
along y; χ² per degree of freedom, the median; the share of frames with each flag. "turned" are ellipses of
3.5 by 2.5 pixels, one along the diagonal. "coma" has a second Gaussian with a tenth of the light, 3 pixels
off along y, of which nothing is told: the centroids differ by 0.3 pixels.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scenes import FWHM, Spot, Stars, rms, round_spot
from table import command_line, print_head

import jaxchi2
from jaxchi2 import Status

BATCH = 20
LAGS = 31
FLAGS = (Status.CONTRADICTED, Status.BAD_FIT, Status.LARGE_ERRORS)
WIDE = round_spot(3.5)
ALONG = [Spot(np.diag([3.5, 2.5]) ** 2 / FWHM**2)]
DIAGONAL = [Spot(np.array([[9.25, 3.0], [3.0, 9.25]]) / FWHM**2)]
COMA = [*(x._replace(share=0.9) for x in WIDE), *(x._replace(share=0.1, offset=(3.0, 0.0)) for x in WIDE)]
CASES = {
    "2.5, 3.5": (round_spot(2.5), WIDE),
    "3.5, 2.5": (WIDE, round_spot(2.5)),
    "3.0, 3.5": (round_spot(3.0), WIDE),
    "turned": (ALONG, DIAGONAL),
    "2.5, 3.5 with coma": (round_spot(2.5), COMA),
}


@jax.jit
def registered(frames: jax.Array, reference_err: jax.Array | None) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        return jaxchi2.register(pair[0], pair[1], 1.0, reference_err=reference_err, errors="sandwich")

    return jax.lax.map(one, frames, batch_size=BATCH)


@partial(jax.jit, static_argnames="name")
def matched(frames: jax.Array, reference_err: jax.Array | None, name: str) -> jaxchi2.MatchedPair:
    widths = [np.array(spots[0].covariance) for spots in CASES[name]]

    def one(pair: jax.Array) -> jaxchi2.MatchedPair:
        return jaxchi2.match_psf(pair[0], pair[1], *widths, 1.0, reference_err)

    return jax.tree.map(of_one_shape, jax.lax.map(one, frames))


def of_one_shape(x: jax.Array) -> jax.Array:
    """Covariances with zeros around them, so that one program does for all."""
    lacking = [(max(LAGS - n, 0) // 2,) * 2 for n in x.shape[1:]]
    return jnp.pad(x, [(0, 0), *lacking])


@jax.jit
def registered_matched(pairs: jaxchi2.MatchedPair) -> jaxchi2.Registration:
    def one(pair: jaxchi2.MatchedPair) -> jaxchi2.Registration:
        return jaxchi2.register(
            pair.reference, pair.image, noise=pair.noise, reference_noise=pair.reference_noise
        )

    return jax.lax.map(one, pairs, batch_size=BATCH)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--case", choices=CASES, nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    names = ("widths (px)", "noise in", "how", "rms (px)", "rms / bound", "pulls", "mean in y", "χ² / dof")
    print_head(arguments, (*names, *(f"`{flag.name}`" for flag in FLAGS)))
    area = 2 * np.pi * (3.0 / FWHM) ** 2
    for name in arguments.case:
        rng = np.random.default_rng(arguments.seed)
        shifts = rng.uniform(-2, 2, (arguments.draws, 2))
        frames, bounds = [], []
        for shift in shifts:
            stars = Stars.drawn(rng, arguments.size, 40, (20 * area, 300 * area))
            frames.append([stars.image(*x) for x in zip(CASES[name], (0 * shift, shift), strict=True)])
            slopes = [
                stars.image(CASES[name][1], shift + step) - stars.image(CASES[name][1], shift - step)
                for step in 0.01 * np.eye(2)
            ]
            bounds.append(np.sum(np.square(slopes) / 0.02**2, axis=(1, 2)) ** -0.5)
        noise = rng.normal(size=(arguments.draws, 2, *[arguments.size] * 2))
        for both in (False, True):
            given = jnp.asarray(frames + noise * np.array([both, 1.0])[:, None, None], jnp.float32)
            err = np.float32(1.0) if both else None
            results = {"as it is": registered(given, err)}
            results["`match_psf`"] = registered_matched(matched(given, err, name))
            for how, found in results.items():
                found = jax.tree.map(np.asarray, found)
                error = found.shift - shifts
                pulls = [error / found.stderr]
                if how == "as it is":
                    pulls.insert(0, pulls[0] * found.inflation)
                columns = [
                    f"{rms(error):.4f}",
                    f"{rms(error / np.array(bounds)):.2f}",
                    ", ".join(f"{rms(x):.2f}" for x in pulls),
                    f"{np.mean(error[:, 0]):+.4f}",
                    f"{np.median(found.chi2 / found.dof):.2f}",
                    *(f"{np.mean(found.status & flag > 0):.2f}" for flag in FLAGS),
                ]
                print(
                    f"| {name} | {'both' if both else 'image'} | {how} | {' | '.join(columns)} |", flush=True
                )


if __name__ == "__main__":
    main()
