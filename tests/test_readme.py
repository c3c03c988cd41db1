"""The README's example prints what the README says it prints."""

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from direct import moved, scene

import jaxchi2

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


pytestmark = pytest.mark.skipif(
    not README.exists(), reason="an installed copy of the tests has no README beside it"
)


def test_example_prints_the_output_shown():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks("python")[0], str(README), "exec"), {})
    assert printed.getvalue() == blocks("text")[0]


def test_example_of_a_loss_has_a_gradient():
    still = scene((24, 22), 3.0, smooth=True)
    frames = np.stack([moved(still, (s, -s)) for s in (0.0, 0.6, 1.3)]) + 0.1 * scene((24, 22), 0.0)
    names = {"jax": jax, "jaxchi2": jaxchi2, "frames": frames, "pattern": np.zeros((24, 22))}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(blocks("python")[4], str(README), "exec"), names)
    assert np.all(np.isfinite(names["gradient"]))
    assert np.any(names["gradient"] != 0)


def test_example_of_stacks_runs():
    still = scene((24, 22), 3.0, smooth=True)
    stack = np.stack([moved(still, (s, -s)) for s in (0.0, 0.6, 1.3)]) + 0.1 * scene((24, 22), 0.0)
    names = {"jax": jax, "jaxchi2": jaxchi2, "stack": stack.astype(np.float32)}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(blocks("python")[1], str(README), "exec"), names)
    assert names["image"].shape == (24, 22)
    assert names["joint"].shift.shape == (3, 2)


def test_example_of_local_shifts_runs():
    still = 5 * scene((96, 90), 3.0, smooth=True)
    image = moved(still, (0.6, -1.3)) + scene((96, 90), 0.0, seed=1)
    names = {"jaxchi2": jaxchi2, "reference": still, "image": image, "points": np.array([[48.0, 45.0]])}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(blocks("python")[3], str(README), "exec"), names)
    assert names["field"].shift.shape == (5, 4, 2)
    found = names["smooth"].at(names["points"])
    away = np.abs(np.asarray(found.value) - (0.6, -1.3))
    assert np.all(away < 5 * np.asarray(found.stderr) + 0.02)
