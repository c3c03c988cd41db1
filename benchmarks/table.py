"""What the Monte Carlo benchmarks share: their command line, and the head of their tables."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Draws, size of the frames, seed and boundaries."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--boundary", choices=("wrap", "overlap"), nargs="*", default=["wrap", "overlap"])
    return parser


def print_head(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """What was run, and the columns."""
    print(f"float32, {arguments.draws} draws, frames of {arguments.size}²; jax {jax.__version__}\n")
    print(f"| {' | '.join(names)} |", "|---" * len(names) + "|", sep="\n")
