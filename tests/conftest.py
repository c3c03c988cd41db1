"""Fixtures that every test module may use."""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# The suite compiles far more than it computes: without optimisation and, where XLA still has it, by its older
# code generator for the CPU. Eight devices out of one processor, for what runs on many.
XLA_FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_force_host_platform_device_count=8",
)


def known_flags(flags: Sequence[str]) -> list[str]:
    """Those of the flags that the installed XLA knows: one that it does not ends the process.

    XLA tells no list of them, and keeps the names of dropped ones in its library: so it is started with them.
    """

    def starts(flags: Sequence[str]) -> bool:
        environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(command, env=environment, capture_output=True).returncode == 0

    return list(flags) if starts(flags) else [flag for flag in flags if starts([flag])]


# Once for a run: its workers and the processes that tests start inherit the variables.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join(known_flags(XLA_FLAGS))
# What one of them has compiled the others read, from a folder that begins empty and goes with the run.
PROGRAMS = None
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = tempfile.TemporaryDirectory(prefix="programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = PROGRAMS.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # XLA warns of each program that it reads that its processor had preferences by other names.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# A trace makes so many objects that looking for garbage among them is a tenth of its time and more.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

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
