"""Fixtures that every test module may use."""

import os
from pathlib import Path

# The suite compiles far more than it computes: XLA's older code generator for the CPU, without optimisation.
# Eight devices out of one processor, for what runs on many.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
    "--xla_force_host_platform_device_count=8",
)

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

# JAX before 0.8 keeps the context manager in jax.experimental; later ones warn there.
if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:
    from jax.experimental import enable_x64


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run the test in each precision, whatever the environment has chosen."""
    with enable_x64(request.param == "float64"):
        yield np.dtype(request.param)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Some thousand compiled programs in one process are more memory maps than Linux allows it."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test in double precision."""
    with enable_x64(True):
        yield


@pytest.fixture(scope="session")
def reference():
    """Results of image_registration 0.2.10, each checked against a direct computation, by "case/name"."""
    with np.load(Path(__file__).parent / "data" / "reference.npz") as arrays:
        return dict(arrays)
