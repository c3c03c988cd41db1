"""What the library stands on: which releases of JAX it takes, and that the one here adds up rightly."""

import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64, known_flags
from packaging.requirements import Requirement


def test_jax_that_adds_up_wrongly_is_not_installed():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    (jax_,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "jax")
    versions = ("0.6.2", "0.7.0", "0.10.1", "0.10.2", "0.12.0", "0.12.0.1")
    assert list(jax_.specifier.filter(versions)) == ["0.7.0", "0.10.1", "0.12.0", "0.12.0.1"]


@pytest.mark.parametrize(("dtype", "n"), [("float32", 32769), ("float64", 16385)])
def test_jax_adds_up_rightly(dtype, n):
    """JAX's issue 39103, whose sizes these are: the last sums of a compiled program come out too small."""
    with enable_x64(dtype == "float64"):
        rows = jnp.zeros((n, 3), dtype).at[:, 0].set(jnp.arange(n, dtype=dtype))
        sums = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=dtype) @ row) ** 2)))(rows)
    np.testing.assert_array_equal(sums, np.arange(n, dtype=dtype) ** 2)


def test_flags_that_xla_does_not_know_are_left_out():
    flags = ["--xla_backend_optimization_level=0", "--xla_no_such_flag=1"]
    assert known_flags(flags) == flags[:1]
