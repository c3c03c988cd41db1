"""Pulls where the sky of one image has a gradient: with a constant, a plane and a quadratic fitted.

    python benchmarks/gradient_sky.py [--draws 400] [--size 64]

Each draw is a new scene of two kinds (a field of power k⁻³ and twelve stars), moved by up to two pixels, with
new noise of one standard deviation σ. To the second image a background is added, in a random direction, that
rises by so many σ from side to side; or a bowl as deep as that. A pull is an error over the quoted one; the
root mean square of those of the shift is to be one, and so is that of the background at the centre. rms and
err are of the shift, in pixels: the true error, and the quoted one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from scenes import rms
from table import command_line, print_head
from wrong_noise import BATCH, Maker

import jaxchi2
from jaxchi2 import Status
from jaxchi2.template import has_answer

ROWS = [
    ("none", 0, False),
    ("none", 0, "constant"),
    ("none", 0, "plane"),
    ("none", 0, "quadratic"),
    ("plane", 1, "constant"),
    ("plane", 1, "plane"),
    ("plane", 10, "constant"),
    ("plane", 10, "plane"),
    ("plane", 10, "quadratic"),
    ("plane", 100, "constant"),
    ("plane", 100, "plane"),
    ("plane", 1000, "plane"),
    ("bowl", 100, "plane"),
    ("bowl", 100, "quadratic"),
]


@partial(jax.jit, static_argnames=("options",))
def registered(frames: jax.Array, options: tuple) -> jaxchi2.Registration:
    def one(pair: jax.Array) -> jaxchi2.Registration:
        return jaxchi2.register(pair[0], pair[1], 1.0, **dict(options))

    return jax.lax.map(one, frames, batch_size=BATCH)


def sky(maker: Maker, kind: str, height: float) -> np.ndarray:
    """A background of zero at the centre."""
    y, x = np.meshgrid(*[np.linspace(-0.5, 0.5, maker.size)] * 2, indexing="ij")
    angle = maker.rng.uniform(0, 2 * np.pi)
    along = y * np.sin(angle) + x * np.cos(angle)
    return height * (along if kind == "plane" else along**2 + (y**2 + x**2))


def row(maker: Maker, draws: int, scene: str, kind: str, height: float, options: dict) -> str:
    shifts = maker.rng.uniform(-2, 2, (draws, 2))
    frames = np.array([getattr(maker, scene)(s) for s in shifts])
    frames[:, 1] += [maker.white() + sky(maker, kind, height) for _ in shifts]
    found = registered(jnp.asarray(frames, jnp.float32), tuple(options.items()))
    found = jax.tree.map(np.asarray, found)
    good = has_answer(found)
    error = (found.shift - shifts)[good]
    pull = error / found.stderr[good]
    columns = [
        scene,
        options["boundary"] + (", gain" if options["fit_gain"] else ""),
        "none" if kind == "none" else f"{kind}, {height} σ",
        options["fit_background"] or "nothing",
        f"{rms(error):.4f}",
        f"{rms(found.stderr[good]):.4f}",
        f"{rms(pull):.2f}",
        f"{np.mean(found.reduced_chi2[good]):.3f}",
        f"{rms((found.background / found.background_err)[good]):.2f}" if options["fit_background"] else "",
        f"{np.mean(found.status != Status.OK):.3f}",
    ]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    names = ("scene", "boundary", "sky", "fitted", "rms", "err", "pull", "χ²/dof", "pull, background")
    names += ("flagged",)
    print_head(arguments, names)
    maker = Maker(arguments.size, arguments.seed)
    for boundary in arguments.boundary:
        for scene in ("field", "stars"):
            for kind, height, form in ROWS:
                options = {"boundary": boundary, "fit_gain": boundary == "overlap", "fit_background": form}
                print(row(maker, arguments.draws, scene, kind, height, options), flush=True)


if __name__ == "__main__":
    main()
