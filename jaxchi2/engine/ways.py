"""The two ways to χ²: a quick one for pixels that are all known and have one error, and one for any.

A bad pixel makes everything NaN in the quick way. So outside ``jit`` it is tried and its result looked at:
that saves compiling both, and a pass over the pixels to ask before. Traced values decide at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

import jax
from jax import lax

from .builders import KnownReference, is_clean, is_even, uniform_terms, weighted_terms
from .choices import Plan
from .pair import Pair
from .passes import any_in_batch
from .terms import Chi2Terms

T = TypeVar("T")


class Way(Enum):
    """How the terms of χ² are built."""

    QUICK = "no pixel is bad"
    ANY = "pixels may be bad"
    BY_VALUES = "the values decide at run time"


def has_quick_way(pair: Pair, plan: Plan) -> bool:
    """Whether one error for all pixels, the boundary and the background allow the quick way."""
    return plan.boundary.periodic and is_even(pair, plan)


def with_terms(
    function: Callable[[Chi2Terms], Any],
    pair: Pair,
    plan: Plan,
    way: Way,
    known: KnownReference | None = None,
) -> Any:
    """``function(terms)``, the terms built the given way; by the general one where there is no quick one."""
    if way is Way.ANY or not has_quick_way(pair, plan):
        return function(weighted_terms(pair, plan, known))
    if way is Way.QUICK:
        return function(uniform_terms(pair, plan))
    return lax.cond(
        any_in_batch(~is_clean(lax.stop_gradient(pair))),
        # What is kept for its derivatives would be kept, as zeros, for clean images too.
        jax.checkpoint(lambda pair: function(weighted_terms(pair, plan))),
        lambda pair: function(uniform_terms(pair, plan)),
        pair,
    )


def tried(
    run: Callable[[Way], T],
    promising: bool,
    traced: bool,
    failed: Callable[[T], Any],
    otherwise: Way = Way.ANY,
) -> T:
    """The result of the quick way, where that is promising and has not failed; else of another.

    Traced values decide at run time.
    """
    if traced:
        return run(Way.BY_VALUES)
    if promising:
        found = run(Way.QUICK)
        if not failed(found):
            return found
    return run(otherwise)
