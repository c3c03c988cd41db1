"""What may be wrong with a registration, and the sentence that says so."""

from __future__ import annotations

from enum import IntFlag


class Status(IntFlag):
    """What is wrong with a registration; zero means nothing.

    NO_DATA, LITTLE_OVERLAP, FLAT, NOT_CONVERGED and OUT_OF_WINDOW leave no answer: shift and errors are NaN,
    and of these only the first that applies is set. The others are doubts about an answer that is there, and
    add up; BRIGHTNESS may also say why there is none.
    CONTRADICTED is set where χ² does not say the same already, as BAD_FIT or LARGE_ERRORS, and not where
    ``reference_err`` is given; always with ``errors="sandwich"``, whose errors hold all the same.
    FEW_COUNTS is set where an image of counts (`Counts`) has too few of them.
    AT_BOUND and WRONG_BASIN are for `fit` alone, whose only other doubts are BAD_FIT and OUT_OF_RANGE;
    UNREADABLE is for streams, where there is no frame.
    """

    OK = 0
    NO_DATA = 1
    FLAT = 2
    OUT_OF_WINDOW = 4
    NOT_CONVERGED = 8
    OPEN_INTERVAL = 16
    LITTLE_OVERLAP = 32
    UNRELATED = 64
    AMBIGUOUS = 128
    AT_BOUND = 256
    BAD_FIT = 512
    UNREADABLE = 1024
    LARGE_ERRORS = 2048
    BRIGHTNESS = 4096
    CLIPPED = 8192
    WRONG_BASIN = 16384
    OUT_OF_RANGE = 32768
    CONTRADICTED = 65536
    STATIC_PATTERN = 131072
    FEW_COUNTS = 262144

    @property
    def message(self) -> str:
        """The flags in words."""
        return "; ".join(text for flag, text in _MESSAGES.items() if flag in self) or "ok"


_MESSAGES = {
    Status.NO_DATA: "too few pixels have a weight along an axis (does it count frames or colours?); edges "
    "and masks take margins",
    Status.LITTLE_OVERLAP: "no shift of the window leaves the least overlap",
    Status.FLAT: "χ² has no minimum: an image is flat, if only along an axis, or nothing is in common",
    Status.NOT_CONVERGED: "the refinement did not converge",
    Status.OUT_OF_WINDOW: "the minimum lies outside the search window",
    Status.OPEN_INTERVAL: "Δχ² does not reach its threshold on every side, an interval bound is NaN",
    Status.UNRELATED: "unrelated images would match as well by chance",
    Status.AMBIGUOUS: "another minimum is nearly as deep",
    Status.AT_BOUND: "a parameter of the fit lies at its bound and has no error",
    Status.BAD_FIT: "χ² is far above its degrees of freedom: the errors or the model are wrong",
    Status.UNREADABLE: "the frame could not be read",
    Status.LARGE_ERRORS: "χ² is far below its degrees of freedom: too large errors (a variance for σ?)",
    Status.BRIGHTNESS: "brightness, background or sign differ: fit_gain, fit_background, or negate one",
    Status.CLIPPED: "clipping left out much of the scene: a bad match, or defects of both images",
    Status.WRONG_BASIN: "less than half of the reference is in the image where it was put: a wrong minimum",
    Status.OUT_OF_RANGE: "χ² is too large or too small for the dtype: scale the images",
    Status.STATIC_PATTERN: "both images have a pattern that does not move with the scene",
    Status.FEW_COUNTS: "few photons tell the shift: its error is not that of a normal law, and too small",
    Status.CONTRADICTED: "residuals contradict the errors of the model: other noise or another scene; "
    "errors='sandwich' holds",
}
