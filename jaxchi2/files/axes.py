"""What the axes of a file mean: which of them counts the frames, and which have to be chosen from.

An axis is a letter, as in TIFF files: T time, C channel, Z Y X space, S the colours of a pixel; Q and I have
no name. What is chosen stands in brackets after the file: ``[C=1]``, ``[C=1,Z=4]``, ``[path,C=1]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in the luminance of a colour image (ITU-R BT.709)."""

_NAMES = {"C": "channels", "T": "times", "P": "positions"}
# Space, colours and what has no name need not be chosen from.
_FREE = "ZYXSQI"


class Selection(NamedTuple):
    """The axes of an array, and what is read of each."""

    axes: str
    """A letter for each."""
    shape: tuple[int, ...]
    picked: tuple[int | None, ...]
    """For each axis the index that was chosen, or None."""
    frame: int | None
    """Which axis counts the frames; None of a single image."""

    def key(self, start: int = 0, stop: int = 1) -> tuple[int | slice, ...]:
        """Index of a run of frames in an array."""
        run = slice(start, stop)
        axes = enumerate(self.picked)
        return tuple(run if a == self.frame else slice(None) if p is None else p for a, p in axes)

    @property
    def length(self) -> int:
        """Number of frames."""
        return 1 if self.frame is None else self.shape[self.frame]

    @property
    def outer(self) -> int:
        """How many axes come before the frame axis, or how many first axes of a single image are chosen from.

        Of what comes behind, a file that is written in order holds one piece for each frame.
        """
        return [*self.picked, None].index(None) if self.frame is None else self.frame

    @property
    def pieces(self) -> list[int]:
        """Of the pieces that a file consists of, the numbers of those that hold frame 0."""
        outer = self.shape[: self.outer]
        index = np.arange(int(np.prod(outer)) * self.length)[:: self.length].reshape(outer)
        return np.ravel(index[self.key()[: self.outer]]).tolist()

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """Shape of a piece."""
        return self.shape[self.outer + (self.frame is not None) :]

    def joined(self, pieces: list[np.ndarray]) -> np.ndarray:
        """A frame out of its pieces, colours combined."""
        key = self.key()
        whole = [n for n, k in zip(self.shape, key[: self.outer], strict=False) if isinstance(k, slice)]
        inner = key[len(key) - len(self.piece_shape) :]
        pixels = np.reshape(pieces, (*whole, *self.piece_shape))[(*[slice(None)] * len(whole), *inner)]
        left = "".join(x for a, x in enumerate(self.axes) if a != self.frame and self.picked[a] is None)
        return luminance(np.moveaxis(pixels, left.index("S"), -1)) if "S" in left else pixels


def split_choices(inside: str | None) -> tuple[str | None, dict[str, int]]:
    """Split what stands in brackets into a path or name, None without one, and the choices along axes."""
    chosen, rest = {}, []
    for part in [] if inside is None else inside.split(","):
        match = re.fullmatch(r"\s*([A-Za-z])\s*=\s*(\d+)\s*", part)
        if match is None:
            rest.append(part)
        else:
            chosen[match[1].upper()] = int(match[2])
    return (",".join(rest) if rest else None), chosen


def suggestion(label: str, choice: str) -> str:
    """A file's label with a choice added to what stands in brackets."""
    return f"{label[:-1]},{choice}]" if label.endswith("]") else f"{label}[{choice}]"


def select(
    label: str, axes: str, shape: Sequence[int], chosen: dict[str, int], *, frames: bool = True
) -> Selection:
    """Find out what is to be read of an array.

    Parameters
    ----------
    label : str
        What errors call the file.
    axes : str
        A letter for each axis.
    shape : sequence of int
        Lengths of the axes.
    chosen : dict
        Index along each axis that was chosen from.
    frames : bool
        Whether one of the axes counts frames: time; without it the first that is neither space within a frame
        nor a channel, so that of a volume it is z; and the channels where there is nothing else.

    Raises
    ------
    ValueError
        If something has to be chosen, if there is not what was chosen, or if no axis is left for the frames.
    """
    lengths = tuple(int(n) for n in shape)
    picked: list[int | None] = [None] * len(axes)
    for letter, index in chosen.items():
        axis = axes.find(letter)
        if axis < 0 or index >= lengths[axis]:
            name = _NAMES.get(letter, "place")
            raise ValueError(
                f"{label}: there is no such {name.removesuffix('s')}, {letter}={index} (axes {axes}, "
                f"shape {lengths})"
            )
        picked[axis] = index
    frame = _frame_axis(axes, lengths, picked) if frames else None
    if frames and frame is None:
        raise ValueError(f"{label} holds one image: a stack has a frame axis (axes {axes}, shape {lengths})")
    for axis, (letter, length) in enumerate(zip(axes, lengths, strict=True)):
        if length > 1 and picked[axis] is None and axis != frame and letter not in _FREE:
            raise ValueError(
                f"{label} has {length} {_NAMES.get(letter, f'images along axis {letter}')} (axes {axes}): "
                f"choose one, {suggestion(label, f'{letter}=0')}"
            )
    return Selection(axes, lengths, tuple(picked), frame)


def _frame_axis(axes: str, shape: tuple[int, ...], picked: list[int | None]) -> int | None:
    free = [a for a, letter in enumerate(axes) if picked[a] is None and letter not in "YXS"]
    long = [a for a in free if shape[a] > 1]
    for several in (long, free):
        times, others = [a for a in several if axes[a] == "T"], [a for a in several if axes[a] != "C"]
        if several:
            return [*times, *others, *several][0]
    return None


def ngff_axes(multiscale: dict[str, Any], ndim: int) -> str:
    """Axes of an image of OME-NGFF by its metadata; before version 0.3 they are always the same five."""
    listed = multiscale.get("axes") or list("tczyx")[-ndim:]
    letters = ""
    for axis in listed:
        name, kind = (axis, axis) if isinstance(axis, str) else (axis["name"], axis.get("type"))
        letter = {"time": "T", "channel": "C"}.get(kind, name.upper())
        other = "Z" if kind == "space" else "Q"
        letters += letter if letter in tuple("TCZYX") else other
    return letters


def luminance(data: np.ndarray) -> np.ndarray:
    """Combine the colours on the last axis; two channels are grey and alpha, four are colour and alpha."""
    if data.shape[-1] < 3:
        return data[..., 0]
    return data[..., :3] @ np.asarray(LUMINANCE, dtype=np.float32)
