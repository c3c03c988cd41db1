"""The static choices of a registration: what the reference is outside its frame, and what is fitted.

What is wrong about these options raises here, by their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log2

import numpy as np

from ..checks import choice, flag, real_number, refuse
from .polynomial import number_of_terms
from .spectrum import Shape

MIN_OVERLAP, SMALL_OVERLAP = 0.25, 0.02
"""Least overlap, and that where ``max_shift`` is given: enough pixels to tell chance from a match."""
BOUNDARIES = ("wrap", "fill", "constant", "reflect", "nearest", "overlap")
ERRORS = ("model", "sandwich")
"""Where error bars come from."""
BACKGROUNDS = ("constant", "plane", "quadratic")
"""Polynomials in the pixel coordinates of the image, by their degree."""
Window = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Boundary:
    """What the reference is outside its frame, with what goes with it; static under jit.

    A plain name stands for ``Boundary(name)`` wherever one is asked for.
    """

    name: str
    """"wrap": periodic. "constant": ``value``; "fill" is another word for it. "reflect" and "nearest": the
    frame's own pixels mirrored at its edge (d c b a | a b c d) or the outermost ones repeated. "overlap":
    unknown, so only the image pixels that fall on the reference count."""
    value: float = 0.0
    """Value outside the frame for "constant", in the units of the images."""
    min_overlap: float | None = None
    """Least overlap for "overlap" and masks, as a fraction of the valid pixels of the image with fewer. None:
    `MIN_OVERLAP`, or `SMALL_OVERLAP` where ``max_shift`` says how far to look."""

    def __post_init__(self) -> None:
        name = choice(self.name, "name of a boundary", BOUNDARIES)
        name = "constant" if name == "fill" else name
        value = real_number(self.value, "value", "a finite number")
        if value and name != "constant":
            refuse("value", "zero unless the boundary is 'constant'", self.value)
        share = self.min_overlap
        if share is not None:
            share = real_number(share, "min_overlap", "a number in (0, 1]", lambda x: 0 < x <= 1)
        object.__setattr__(self, "name", name)
        # Plain numbers, which hash; an array of one does not.
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "min_overlap", share)

    @property
    def periodic(self) -> bool:
        """Whether what leaves the frame on one side comes back on the other."""
        return self.name == "wrap"

    @property
    def overlap(self) -> bool:
        """Whether nothing is known outside the frame."""
        return self.name == "overlap"

    @property
    def constant(self) -> bool:
        """Whether one value is known outside the frame."""
        return self.name == "constant"


def as_boundary(boundary: str | Boundary, name: str = "boundary") -> Boundary:
    """A name or a `Boundary` as the latter; ``name`` is that of the argument."""
    if isinstance(boundary, Boundary):
        return boundary
    if not isinstance(boundary, str):
        refuse(name, "a name or a Boundary", boundary, TypeError)
    return Boundary(choice(boundary, name, BOUNDARIES))


def boundary_for_align(boundary: str | Boundary) -> str:
    """The boundary of `align` after a registration with this one: "wrap" after "wrap", else "overlap".

    A rule for what the reference is outside its frame says nothing of the image.
    """
    return "wrap" if as_boundary(boundary).periodic else "overlap"


@dataclass(frozen=True)
class Choices:
    """What every registration is asked beside its images, checked; hashable."""

    boundary: Boundary
    gain: bool
    """Whether it is fitted."""
    degree: int
    """Of the background, as in `Plan`."""
    max_shift: tuple[float, ...] | None
    """One limit for all axes, or one for each."""

    @classmethod
    def of(
        cls,
        boundary: str | Boundary = "overlap",
        fit_gain: bool = False,
        fit_background: bool | str = False,
        max_shift: float | Sequence[float] | None = None,
    ) -> Choices:
        """Check the options by the names that users know them by."""
        return cls(
            as_boundary(boundary),
            flag(fit_gain, "fit_gain"),
            _degree(fit_background),
            None if max_shift is None else _limits(max_shift),
        )

    @property
    def background(self) -> bool:
        """Whether one is fitted."""
        return self.degree >= 0

    def limits(self, ndim: int) -> tuple[float, ...] | None:
        """Largest shift along each axis, infinite for none; or None."""
        limits = self.max_shift
        if limits is None or len(limits) == ndim:
            return limits
        if len(limits) != 1:
            refuse("max_shift", f"a scalar or hold {ndim} values", limits)
        return limits * ndim

    def plan(
        self, reference: Shape, image: Shape, free: tuple[bool, ...] | None = None, compact: bool = False
    ) -> Plan:
        """The choices for frames of these shapes.

        ``free`` says along which axes the shift is fitted, by default all. ``compact`` says that nobody will
        look at the search grid outside the window.
        """
        limits = self.limits(len(image))
        free = (True,) * len(image) if free is None else free
        boundary = self.boundary
        if boundary.min_overlap is None:
            boundary = replace(boundary, min_overlap=MIN_OVERLAP if limits is None else SMALL_OVERLAP)
        return Plan(
            boundary=boundary,
            gain=self.gain,
            degree=self.degree,
            window=_window(boundary, limits, free, reference, image),
            limited=limits is not None,
            free=free,
            compact=compact
            and limits is not None
            and boundary.periodic
            and all(free)
            # Matrix products for so few shifts take less time than the inverse FFT, on two cores.
            and all(2 * limit + 3 <= min(n / 2, 8 * log2(n)) for limit, n in zip(limits, image, strict=True)),
        )


@dataclass(frozen=True)
class Plan:
    """The choices for frames of given shapes: which model of the reference, and what is fitted."""

    boundary: Boundary
    gain: bool
    degree: int
    """Of the background, a polynomial in the image's pixel coordinates; −1 where none is fitted."""
    window: Window
    """Lowest and highest shift along each axis that is looked at."""
    limited: bool
    """Whether the window was asked for, so that a minimum outside it is none."""
    free: tuple[bool, ...]
    """Whether the shift is fitted along each axis."""
    compact: bool = False
    """Whether the search grid may be the window alone where one χ² holds for all shifts."""

    @property
    def background(self) -> bool:
        """Whether one is fitted."""
        return self.degree >= 0

    @property
    def terms(self) -> int:
        """Number of coefficients of the background."""
        return number_of_terms(len(self.free), self.degree)

    @property
    def whole_window(self) -> tuple[tuple[int, int], ...]:
        """First and last whole shift inside the window."""
        return tuple((ceil(low), floor(high)) for low, high in self.window)


def _degree(fit_background: bool | str) -> int:
    text = isinstance(fit_background, str)
    if not (isinstance(fit_background, bool | np.bool_) or (text and fit_background in BACKGROUNDS)):
        wanted = f"True or False, or one of {BACKGROUNDS}"
        refuse("fit_background", wanted, fit_background, ValueError if text else TypeError)
    return BACKGROUNDS.index(fit_background) if isinstance(fit_background, str) else int(fit_background) - 1


def _limits(max_shift: float | Sequence[float]) -> tuple[float, ...]:
    several = isinstance(max_shift, list | tuple) or getattr(max_shift, "ndim", 0) > 0
    given: list = list(max_shift) if several else [max_shift]  # type: ignore[arg-type]
    limits = tuple(real_number(x, "max_shift", "static real numbers", lambda _: True) for x in given)
    if not limits or not all(limit > 0 for limit in limits):
        refuse("max_shift", "positive", max_shift)
    return limits


def _window(
    boundary: Boundary,
    limits: tuple[float, ...] | None,
    free: tuple[bool, ...],
    reference: Shape,
    image: Shape,
) -> Window:
    """Lowest and highest shift along each axis that is looked at."""
    shapes = list(zip(reference, image, strict=True))
    # Beyond these shifts the frames have no pixel in common, and there is nothing to look at.
    ends = [(m - 1, n - 1) if boundary.overlap else (n, n) for m, n in shapes]
    if limits is not None:
        window = [
            (-min(limit, low), min(limit, high)) for limit, (low, high) in zip(limits, ends, strict=True)
        ]
    elif boundary.periodic:
        window = [(-(n // 2), (n - 1) // 2) for n in image]
    elif boundary.overlap:
        # Half the smaller frame stays covered along each axis: for equal shapes half the frame.
        window = [(min(m, n) / 2 - m, n - min(m, n) / 2) for m, n in shapes]
    else:
        window = [(-n / 2, n / 2) for n in image]
    # An axis may be held anywhere.
    every = zip(window, ends, free, strict=True)
    return tuple(w if is_free or boundary.periodic else (-end[0], end[1]) for w, end, is_free in every)
