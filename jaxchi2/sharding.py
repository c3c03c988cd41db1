"""Arrays that are spread over an explicit mesh, whose sharding is part of their type.

`jax.make_mesh` makes such meshes by default. Nearly every operation would have to say how its result is to be
spread, which the compiler knows as well: so it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

Given = ParamSpec("Given")
Result = TypeVar("Result")


def any_sharding(by_frame: bool = False) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Let a function take arrays on an explicit mesh; what it returns is there too.

    With ``by_frame`` results have the first axis of the first argument, and are spread as it is; else every
    device has them all.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @wraps(function)
        def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            # An iterator would be used up, and none holds arrays that are taken.
            leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Iterator))
            there = {i: x for i, x in enumerate(leaves) if _explicit_mesh(x) is not None}
            if not there:
                return function(*args, **kwargs)
            first = next(iter(there.values()))
            mesh = _explicit_mesh(first)
            spec = jax.typeof(first).sharding.spec if by_frame and 0 in there else P()

            def compute(arrays: dict[int, jax.Array]) -> Result:
                filled = [arrays.get(i, x) for i, x in enumerate(leaves)]
                args, kwargs = jax.tree.unflatten(tree, filled)
                return function(*args, **kwargs)

            with jax.sharding.use_abstract_mesh(mesh):
                return jax.sharding.auto_axes(compute, axes=mesh.axis_names, out_sharding=P(*spec[:1]))(there)

        return run

    return decorate


def _explicit_mesh(x: Any) -> Any:
    if not isinstance(x, jax.Array):
        return None
    mesh = jax.typeof(x).sharding.mesh
    return mesh if not mesh.empty and AxisType.Explicit in mesh.axis_types else None
