"""Local shifts: errors against the scatter, the field that they support, known pairs, and windows per second.

    python benchmarks/local_fields.py [--star REF DEF] [--particles FIRST SECOND VECTORS] [--speed]

Scenes of 512², windows of 32 pixels 16 apart. "blurred" is noise behind a Gaussian of 1.5 pixels, with
noise of 0.3 of its standard deviation in the image; "particles" are Gaussians of 1.2 pixels, one in 40
pixels, with noise of 0.06 of a peak. Pulls are errors over quoted errors, their root mean square: of
windows against the motion at the centre and averaged over the window, the latter also by the errors of
the sandwich; of the smooth field at random points, and of its gradient.

--star: the noisy "Star" pair of the DIC Challenge 2.0 (Reu et al., Experimental Mechanics 62, 2022),
whose motion is ``0.5 cos(2π (y − 250) / p(x))`` along y with a period p from 10 to 300 pixels, nothing
along x. --particles: an image pair and the vectors of another program with their own errors.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.signal import fftconvolve

import jaxchi2

MARGIN = 64
WIDTHS = (16, 24, 32)
CREST = 100
"""Row of the star pair's part that is used where the motion is largest."""


def blurred(rng: np.random.Generator, size: int) -> np.ndarray:
    k = np.fft.fftfreq(size)
    response = np.exp(-2 * (np.pi * 1.5) ** 2 * (k[:, None] ** 2 + k[None, :] ** 2))
    scene = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * response).real
    return scene / scene.std()


def particles(rng: np.random.Generator, size: int) -> np.ndarray:
    k = np.fft.fftfreq(size)
    number = size**2 // 40
    response = 2 * np.pi * 1.2**2 * np.exp(-2 * (np.pi * 1.2) ** 2 * (k[:, None] ** 2 + k[None, :] ** 2))
    waves = [np.exp(-2j * np.pi * np.multiply.outer(rng.uniform(0, size, number), k)) for _ in range(2)]
    return np.fft.ifft2(waves[0].T @ waves[1] * response).real


SCENES = {"blurred": (blurred, 0.3), "particles": (particles, 0.06)}
Motion = Callable[[np.ndarray, np.ndarray], np.ndarray]


def motions(size: int) -> dict[str, Motion]:
    """Displacements along y and x at pixels of the scene."""
    middle = size / 2

    def vortex(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        fall = 0.015 * np.exp(-((x - middle) ** 2 + (y - middle) ** 2) / (2 * 80**2))
        return np.stack([(x - middle) * fall, -(y - middle) * fall])

    return {
        "constant": lambda y, x: np.stack([0.37 + 0 * x, -1.21 + 0 * y]),
        "shear": lambda y, x: np.stack([0.01 * (x - middle), 0 * y]),
        "cosine": lambda y, x: np.stack([0.5 * np.cos(x / 32), 0.3 * np.sin(y / 48)]),
        "vortex": vortex,
    }


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(np.square(x))))


def truths(size: int, seed: int) -> None:
    """Windows and smooth fields of known motions."""
    names = (
        "scene | motion | OK | centre | averaged | sandwich | point | gradient | errors (px): window, point"
    )
    print(f"| {names} |\n{'|---' * 9}|")
    rng, wide = np.random.default_rng(seed), size + 2 * MARGIN
    y, x = np.indices((wide, wide)).astype(float)
    inner = (slice(MARGIN, -MARGIN),) * 2
    for scene, (make, sigma) in SCENES.items():
        for name, motion in motions(wide).items():
            big, moved = make(rng, wide), motion(y, x)
            image = map_coordinates(big, [y - moved[0], x - moved[1]], order=5, mode="nearest")[inner]
            image = image + sigma * rng.normal(size=image.shape)
            pair = jnp.asarray(big[inner], "float32"), jnp.asarray(image, "float32")
            options = {"window": 32, "spacing": 16, "max_shift": 5}
            field = jaxchi2.register_field(*pair, sigma, **options)
            robust = jaxchi2.register_field(*pair, sigma, **options, errors="sandwich")
            good = np.asarray(field.status) == 0
            shift, error = np.asarray(field.shift)[good], np.asarray(field.stderr)[good]
            centers = field.centers[good].T + MARGIN
            box = np.ones((1, 32, 32)) / 32**2
            means = fftconvolve(moved, box, "same", axes=(1, 2))
            at = [motion(*centers), [map_coordinates(m, centers + 0.5, order=1) for m in means]]
            away = [shift - np.transpose(true) for true in at]
            pulls = away[0] / error, away[1] / error, away[1] / np.asarray(robust.stderr)[good]
            points = rng.uniform(40, size - 40, (1000, 2))
            smooth = field.smooth()
            found, slopes = smooth.at(points), smooth.gradient(points)
            true = motion(*(points.T + MARGIN)).T
            step = 0.01 * np.eye(2)[:, :, None]
            places = points.T + MARGIN
            changes = [(motion(*(places + d)) - motion(*(places - d))) / 0.02 for d in step]
            gradient = np.stack([changes[b][a] for a in range(2) for b in range(2)], -1)
            of_point = (np.asarray(found.value) - true) / np.asarray(found.stderr)
            of_slope = (np.asarray(slopes.value) - gradient) / np.asarray(slopes.stderr)
            quoted = f"{np.median(error):.4f}, {np.median(found.stderr):.4f}"
            numbers = " | ".join(f"{rms(v):.2f}" for v in (*pulls, of_point, of_slope))
            print(f"| {scene} | {name} | {np.mean(good):.3f} | {numbers} | {quoted} |", flush=True)


def star(first: Path, second: Path) -> None:
    """The pair of the DIC Challenge: noise along x, where nothing moves, and amplitude at the crest."""
    import imageio.v3

    reference, image = (
        imageio.v3.imread(path, plugin="pillow").astype("float32")[150:350] for path in (first, second)
    )
    print("\nStar pair, without `err`; along x where the period is above 120 pixels. Along y 0.5 is true, of")
    print("which more than 10 % is lost in periods below the last column's.\n")
    names = "windows | scatter along x (px) | quoted | pulls | mean along y | period"
    print(f"| {names} |\n{'|---' * 6}|")
    for width in WIDTHS:
        field = jaxchi2.register_field(reference, image, window=width, spacing=(4, width), max_shift=2)
        row = np.argmin(np.abs(field.centers[:, 0, 0] - CREST))
        report(f"{width}", field.centers[row, :, 1], field.shift[row], field.stderr[row])
    field = jaxchi2.register_field(reference, image, window=16, spacing=8, max_shift=2)
    x = np.arange(20.0, 3980.0, 16)
    values = field.smooth().at(np.stack([np.full_like(x, CREST), x], -1))
    report("smooth field of 16", x, values.value, values.stderr)


def report(name: str, x: np.ndarray, shift: jax.Array, error: jax.Array) -> None:
    """Noise along x and the loss along y, at places along the crest."""
    shift, error, period = np.asarray(shift), np.asarray(error), 10 + 290 * x / 4000
    slow = period > 120
    lost = np.convolve(shift[:, 0], np.ones(5) / 5, "same") < 0.45
    limit = period[lost & (period > 15) & (x < 3900)].max(initial=0)
    numbers = np.nanstd(shift[slow, 1]), np.nanmedian(error[slow, 1])
    pulls, mean = rms(shift[slow, 1] / error[slow, 1]), np.nanmean(shift[slow, 0])
    print(
        f"| {name} | {numbers[0]:.4f} | {numbers[1]:.4f} | {pulls:.2f} | {mean:.3f} | {limit:.0f} |",
        flush=True,
    )


def particle_pair(first: Path, second: Path, vectors: Path) -> None:
    """Our vectors beside those of another program, in units of both errors."""
    import imageio.v3

    pair = [imageio.v3.imread(path, plugin="pillow").astype("float32") for path in (first, second)]
    x, y, u, v, ex, ey, _ = np.loadtxt(vectors, skiprows=3).T
    known = (ex > 0) & (ey > 0)
    options = {"window": 32, "spacing": 4, "max_shift": 12, "levels": 2}
    field = jaxchi2.register_field(*pair, **options, fit_gain=True, fit_background=True)
    print(f"\nParticle pair of {pair[0].shape}: {known.sum()} vectors of the other program have an error.")
    print(f"Of {field.status.size} windows {np.mean(field.valid):.3f} are valid.\n")
    index = [(place[known] - field.centers[0, 0, a]) / 4 for a, place in enumerate((y, x))]
    shift, error = (
        np.stack([map_coordinates(np.asarray(z)[..., a], index, order=0, mode="nearest") for a in (1, 0)], -1)
        for z in (field.shift, field.stderr)
    )
    away, other = shift - np.stack([u, v], -1)[known], np.stack([ex, ey], -1)[known]
    inside = np.abs(away) < 3 * np.hypot(error, other)
    print("| | u | v |\n|---|---|---|")
    for name, values in (
        ("median difference (px)", np.nanmedian(np.abs(away), 0)),
        ("our median error", np.nanmedian(error, 0)),
        ("theirs", np.median(other, 0)),
    ):
        print(f"| {name} | {values[0]:.3f} | {values[1]:.3f} |")
    there = np.isfinite(away)
    shares = [np.mean(inside[there[:, k], k]) for k in (0, 1)]
    print(f"| within three errors of both | {shares[0]:.3f} | {shares[1]:.3f} |")


def seconds(function: Callable[[], jax.Array]) -> float:
    times = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


@jax.jit
def correlations(frames: jax.Array) -> jax.Array:
    first, second = jnp.fft.rfft2(frames), jnp.fft.rfft2(frames[::-1])
    return jnp.fft.irfft2(first * jnp.conj(second), frames.shape[1:])


def speed() -> None:
    """Windows per second, and the FFTs of a plain correlation of the same windows."""
    names = "windows of 2048² | per second | shift and covariance alone | × FFTs of a correlation"
    print(f"\n| {names} |\n{'|---' * 4}|")
    rng = np.random.default_rng(0)
    scene = blurred(rng, 2048)
    image = np.roll(scene, 1, 0) + 0.1 * rng.normal(size=scene.shape)
    pair = [jnp.asarray(x, "float32") for x in (scene, image)]

    def run(width: int, spacing: int, verdict: bool) -> jax.Array:
        options = {"window": width, "spacing": spacing, "max_shift": 4, "verdict": verdict}
        return jaxchi2.register_field(*pair, 0.1, **options).shift

    for width, spacing in ((32, 16), (32, 8), (64, 32)):
        number = run(width, spacing, True)[..., 0].size
        full, bare = (seconds(partial(run, width, spacing, verdict)) for verdict in (True, False))
        frames = jnp.asarray(rng.normal(size=(256, width, width)), "float32")
        floor = seconds(partial(correlations, frames)) / 256 * number
        name = f"{number} of {width}², {spacing} apart"
        print(f"| {name} | {number / full:.0f} | {number / bare:.0f} | {full / floor:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--star", type=Path, nargs=2)
    parser.add_argument("--particles", type=Path, nargs=3)
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    print(f"float32; jax {jax.__version__}, {jax.devices()[0].platform}\n")
    truths(arguments.size, arguments.seed)
    if arguments.star:
        star(*arguments.star)
    if arguments.particles:
        particle_pair(*arguments.particles)
    if arguments.speed:
        speed()


if __name__ == "__main__":
    main()
