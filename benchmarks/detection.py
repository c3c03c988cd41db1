"""How often the right match is found, beside two peers, and whether the verdict's probabilities occur.

    python benchmarks/detection.py [--frames 200] [--size 64] [--plots docs]

Windows of random scenes: Gaussian fields of unit variance and amplitude ``k^−slope``, and fields of so many
stars on average, their median peak one; moved by up to a tenth of the frame, with white noise from far below
detection's limit to beyond it. With noise in the image alone the calls are the default ones, which are told
nothing; noise in both images is declared, ``err=noise, reference_err=noise``.

Printed are the share of pairs found, beside scikit-image's unnormalised correlation and DIPlib's; of those
found the share that a flag casts doubt on, and of all the share of silent errors: more than a pixel and five
quoted errors off, without a flag; how often the better of two minima was the right one, by the probability
quoted for it; and how often images that have nothing in common were given a chance below a tenth, a
hundredth and a thousandth.

A pair counts as found within a pixel and three standard deviations of the Cramér–Rao bound. Pairs whose
bound is beyond a tenth of the frame (no star in the window) are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise, product
from typing import NamedTuple

import diplib
import jax
import numpy as np
import skimage
from accuracy import coherence_bound, covariance_bound, moved, slopes
from matplotlib import pyplot
from skimage.registration import phase_cross_correlation

import jaxchi2

FIELDS = ("k^0", "k^−0.5", "k^−1", "k^−2", "k^−3")
STARS = ("1 star", "4 stars", "20 stars")
NOISES = (0.25, 1.0, 2.0, 4.0, 8.0)
BINS = (0.0, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 1.0)
CHANCES = (0.1, 0.01, 0.001)


Curves = dict[str, list[dict[str, float]]]
STYLES = {
    "jaxchi2": {"color": "C0", "marker": "o", "markersize": 3},
    "jaxchi2, max_shift": {"color": "C0", "linestyle": ":", "marker": "o", "markersize": 2},
    "scikit-image": {"color": "C1", "marker": "s", "markersize": 3},
    "DIPlib CC": {"color": "C2", "marker": "^", "markersize": 3},
}


class Pairs(NamedTuple):
    """Images, shifts and what the noise allows."""

    reference: np.ndarray
    image: np.ndarray
    shift: np.ndarray
    bound: np.ndarray
    """Standard deviation of the shift, the noise of both images included."""


class Options(NamedTuple):
    """Of `register`."""

    boundary: str
    both: bool = False
    """Whether the noise of both images is declared."""
    max_shift: float | None = None


def new_scene(kind: str, n: int, window: int, rng: np.random.Generator) -> np.ndarray:
    """A periodic scene of ``n²`` pixels; stars are counted per window."""
    y, x = np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n)[None, :]
    k = np.hypot(y, x)
    if kind.startswith("k"):
        k[0, 0] = np.inf
        slope = float(kind[2:].replace("−", "-"))
        scene = np.fft.ifft2(np.fft.fft2(rng.normal(size=(n, n))) * k**slope).real
        return scene / scene.std()
    number = max(1, rng.poisson(float(kind.split()[0]) * (n / window) ** 2))
    places, peaks = rng.uniform(0, n, (number, 2)), 10 ** rng.uniform(-1, 1, number)
    phases = [
        np.exp(-2j * np.pi * axis * at[:, None]) for axis, at in zip((y[:, 0], x[0]), places.T, strict=True)
    ]
    points = np.einsum("p,pi,pj->ij", peaks, *phases)
    return np.fft.ifft2(points * 2 * np.pi * 1.5**2 * np.exp(-2 * (np.pi * 1.5 * k) ** 2)).real


def pairs(kind: str, noise: float, both: bool, wrap: bool, count: int, n: int, related: bool = True) -> Pairs:
    """Of a periodic scene all of it for ``wrap``, else windows of one four times as large."""
    rng = np.random.default_rng([count, n, int(100 * noise), both, wrap, related, *kind.encode()])
    size, window = (n, (slice(0, n),) * 2) if wrap else (2 * n, (slice(n // 2, n // 2 + n),) * 2)
    rows = []
    for _ in range(count):
        scene = new_scene(kind, size, n, rng)
        shift = rng.uniform(-0.1, 0.1, 2) * n
        other = moved(scene if related else new_scene(kind, size, n, rng), shift)
        first = scene[window] + noise * both * rng.normal(size=(n, n))
        second = other[window] + noise * rng.normal(size=(n, n))
        try:
            if both:
                bound = coherence_bound(other[window], noise, 1.0, 1.0)
            else:
                gradients = np.stack([s[window] for s in slopes(other)])
                bound = covariance_bound(gradients, np.ones((n, n), bool), noise)
        except np.linalg.LinAlgError:
            bound = np.full(2, np.inf)
        rows.append((first, second, shift, np.sqrt(np.abs(bound))))
    return Pairs(*(np.stack(column) for column in zip(*rows, strict=True)))


@cache
def program(options: Options) -> Callable:
    def one(pair: tuple, noise: float) -> jaxchi2.Registration:
        errors = {"err": noise, "reference_err": noise} if options.both else {}
        return jaxchi2.register(*pair, **errors, boundary=options.boundary, max_shift=options.max_shift)

    return jax.jit(lambda pairs, noise: jax.lax.map(partial(one, noise=noise), pairs))


def register_all(data: Pairs, options: Options, noise: float) -> jaxchi2.Registration:
    sent = tuple(np.asarray(x, np.float32) for x in (data.reference, data.image))
    return jax.tree.map(np.asarray, program(options)(sent, noise))


def peers(data: Pairs) -> dict[str, np.ndarray]:
    """Whole shifts by scikit-image and DIPlib, which counts axes from the last."""
    both = list(zip(data.reference, data.image, strict=True))
    return {
        "scikit-image": -np.stack([phase_cross_correlation(*pair, normalization=None)[0] for pair in both]),
        "DIPlib CC": np.stack([np.array(diplib.FindShift(*pair, "CC"))[::-1] for pair in both]),
    }


def is_near(data: Pairs, shift: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.all(np.abs(shift - data.shift) < 1 + 3 * data.bound, axis=1)


def share(which: np.ndarray, of: np.ndarray) -> str:
    return f"{np.mean(which[of]):.2f}" if of.any() else "–"


def table(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


class Quoted(NamedTuple):
    """Of pairs of which one of the two best minima is right."""

    probability: np.ndarray
    best_is_right: np.ndarray


def detect(wrap: bool, both: bool, count: int, n: int) -> tuple[Curves, dict[str, Quoted]]:
    """Prints the shares found and flagged; returns them, and what was quoted for fields and for stars."""
    boundary = "wrap" if wrap else "overlap"
    names = tuple(STYLES)
    print(f"\n### {boundary}, noise in {'both images' if both else 'the image'}")
    table("scene", "noise", *names, "found, but flagged", "UNRELATED", "AMBIGUOUS", "silently wrong")
    curves: Curves = {}
    quoted: dict[str, list[Quoted]] = {"fields": [], "stars": []}
    for kind, noise in product(FIELDS + STARS, NOISES):
        data = pairs(kind, noise, both, wrap, count, n)
        seen = np.all(data.bound < 0.1 * n, axis=1)
        if seen.sum() < 20:
            continue
        found = register_all(data, Options(boundary, both), noise)
        near, second = (is_near(data, x) for x in (found.shift, found.runner_up.shift))
        answers = {
            "jaxchi2": found.shift,
            "jaxchi2, max_shift": register_all(data, Options(boundary, both, 0.125 * n), noise).shift,
            **peers(data),
        }
        shares = {name: float(np.mean(is_near(data, answers[name])[seen])) for name in names}
        curves.setdefault(kind, []).append({"noise": noise, **shares})
        status, right = found.status, seen & near
        silent = (status == 0) & np.any(np.abs(found.shift - data.shift) > 1 + 5 * found.stderr, axis=1)
        flags = [(status & f) != 0 for f in (jaxchi2.Status.UNRELATED, jaxchi2.Status.AMBIGUOUS)]
        cells = [share(x, right) for x in (status != 0, *flags)] + [f"{np.mean(silent[seen]):.3f}"]
        row(kind, noise, *(f"{x:.2f}" for x in shares.values()), *cells)
        either = seen & (near ^ second)
        quoted["stars" if kind in STARS else "fields"].append(
            Quoted(found.runner_up.probability[either], near[either])
        )
    return curves, {name: joint(parts) for name, parts in quoted.items()}


def joint(parts: list[Quoted]) -> Quoted:
    return Quoted(*map(np.concatenate, zip(*parts, strict=True)))


def print_reliability(quoted: dict[str, Quoted]) -> None:
    table("quoted probability", *(f"{name}: pairs | quoted | occurred" for name in quoted))
    for low, high in pairwise(BINS):
        cells = []
        for q in quoted.values():
            of = (q.probability >= low) & ((q.probability < high) | (high == 1))
            cells += [of.sum(), share(q.probability, of), share(q.best_is_right, of)]
        row(f"{low}–{high}", *cells)


def print_unrelated(wrap: bool, count: int, n: int) -> None:
    table("unrelated scenes", "noise", "status 0", *(f"chance < {level}" for level in CHANCES))
    for kind, noise in product(FIELDS + STARS, (0.05, 1.0)):
        data = pairs(kind, noise, False, wrap, count, n, related=False)
        found = register_all(data, Options("wrap" if wrap else "overlap"), noise)
        every = np.ones(count, bool)
        shares = [share(found.chance < level, every) for level in CHANCES]
        row(kind, noise, share(found.status == 0, every), *shares)


def draw_detection(curves: dict[str, Curves], path: str) -> None:
    """A row per setting, a panel per scene."""
    kinds = [kind for kind in FIELDS + STARS if all(kind in c for c in curves.values())]
    figure, panels = pyplot.subplots(
        len(curves), len(kinds), figsize=(2.1 * len(kinds), 2.0 * len(curves)), sharex=True, sharey=True
    )
    for line, (title, of) in zip(panels, curves.items(), strict=True):
        for panel, kind in zip(line, kinds, strict=True):
            for name, style in STYLES.items():
                panel.semilogx(
                    [p["noise"] for p in of[kind]], [p[name] for p in of[kind]], label=name, **style
                )
            panel.set_title(f"{kind}, {title}", fontsize=7)
            panel.tick_params(labelsize=7)
        line[0].set_ylabel("share found", fontsize=8)
    for panel in panels[-1]:
        panel.set_xticks(NOISES, [f"{x:g}" for x in NOISES])
        panel.minorticks_off()
        panel.set_xlabel("noise", fontsize=8)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="upper center", ncols=4, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=110)


def draw_reliability(quoted: dict[str, Quoted], path: str) -> None:
    """Share of pairs whose better minimum was right against the probability quoted, with binomial errors."""
    figure, panel = pyplot.subplots(figsize=(4.5, 4.2))
    panel.plot([0, 1], [0, 1], color="0.7")
    edges = np.linspace(0, 1, 11)
    for (name, q), marker in zip(quoted.items(), "osv^", strict=False):
        bins = np.digitize(q.probability, edges[1:-1])
        points = [
            (q.probability[bins == k].mean(), q.best_is_right[bins == k].mean(), np.sum(bins == k))
            for k in range(10)
            if np.sum(bins == k) >= 10
        ]
        x, y, count = np.array(points).T
        error = np.sqrt(np.maximum(y * (1 - y), 1 / count) / count)
        panel.errorbar(x, y, error, marker=marker, markersize=4, linestyle="none", label=name)
    panel.set(xlabel="probability quoted", ylabel="share of pairs in which it was right")
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--plots", help="folder for detection.png and reliability.png")
    args = parser.parse_args()
    versions = f"jax {jax.__version__}, scikit-image {skimage.__version__}, DIPlib {diplib.__version__}"
    print(f"{args.frames} pairs of {args.size}² per line, float32, {versions}")
    every_curve: dict[str, Curves] = {}
    every_quoted: dict[str, list[Quoted]] = {}
    for wrap in (False, True):
        quoted: dict[str, Quoted] = {}
        for both in (False, True):
            curves, parts = detect(wrap, both, args.frames, args.size)
            where, noise = "wrap" if wrap else "overlap", "both" if both else "one"
            every_curve[f"{where}, {noise}"] = curves
            quoted |= {f"{name}, noise in {noise}": part for name, part in parts.items()}
            for name, part in parts.items():
                every_quoted.setdefault(f"{name}, {where}", []).append(part)
        print_reliability(quoted)
        print_unrelated(wrap, args.frames, args.size)
    if args.plots:
        draw_detection(every_curve, f"{args.plots}/detection.png")
        joined = {name: joint(parts) for name, parts in every_quoted.items()}
        draw_reliability(joined, f"{args.plots}/reliability.png")


if __name__ == "__main__":
    main()
