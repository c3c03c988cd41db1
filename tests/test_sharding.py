"""Frames spread over devices: eight simulated ones in this process, and two processes on this machine."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxchi2
from jaxchi2.batch import spread

SHAPE = (14, 16)
rng = np.random.default_rng(3)
SCENE = scene(SHAPE, 2.0, seed=3, smooth=True)
# Not a multiple of the devices, and fewer on the last one.
STACK = np.stack([moved(SCENE, s) for s in rng.uniform(-2, 2, (13, 2))])
STACK += 0.1 * rng.normal(size=STACK.shape)
STACK[5] = np.nan
STACK[7, 2, 3] = np.nan


def mesh_of(count):
    return jax.make_mesh((count,), ("frames",))


@pytest.fixture
def mesh():
    # Set by conftest.py: without them nothing here would be tested.
    assert len(jax.devices()) >= 8
    return mesh_of(8)


def same(found, expected):
    for name, a, b in zip(found._fields, found, expected, strict=True):
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize(
    ("reference", "boundary"), [("mean", "wrap"), ("first", "overlap"), ("previous", "wrap")]
)
def test_devices_change_nothing(mesh, x64, boundary, reference):
    options = {"boundary": boundary, "verdict": False, "batch_size": 2}
    found = jaxchi2.register_stack(STACK, reference, 0.1, mesh=mesh, **options)
    same(found, jaxchi2.register_stack(STACK, reference, 0.1, **options))


@pytest.mark.long
def test_any_number_of_devices_gives_the_same(x64):
    options = {"boundary": "wrap", "verdict": False}
    alone = jaxchi2.register_stack(STACK, SCENE, 0.1, **options)
    same(jaxchi2.register_stack(STACK, SCENE, 0.1, mesh=mesh_of(3), **options), alone)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["array", "mean"])
def test_gradients_are_those_without_a_mesh(mesh, x64, kind):
    """Of frames, which are spread, of what all devices have in common, and through their sum."""

    def loss(stack, reference, err, mesh):
        reference = "mean" if kind == "mean" else reference
        found = jaxchi2.register_stack(stack, reference, err, boundary="wrap", verdict=False, mesh=mesh)
        good = jnp.all(jnp.isfinite(found.shift), 1)
        return jnp.sum(jnp.where(good[:, None], found.shift**2, 0.0)) + jnp.sum(
            jnp.where(good[:, None], found.stderr, 0.0)
        )

    arguments = STACK, SCENE, np.float64(0.1)
    spread_out = jax.jit(jax.grad(lambda *a: loss(*a, mesh), argnums=(0, 1, 2)))(*arguments)
    alone = jax.jit(jax.grad(lambda *a: loss(*a, None), argnums=(0, 1, 2)))(*arguments)
    for a, b in zip(spread_out, alone, strict=True):
        assert np.all(np.isfinite(b))
        # Sums over devices are in another order, and where a minimum comes to rest depends on it.
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * np.max(np.abs(b)))
    assert np.any(np.asarray(alone[0]) != 0)
    assert np.any(np.asarray(alone[1]) != 0) == (kind == "array")


@pytest.mark.long
@pytest.mark.parametrize("reference", ["array", "mean"])
def test_no_device_gathers_frames(mesh, reference):
    """The compiled program: no collective at all, but for one sum that makes the mean."""

    def run(stack, image):
        image = "mean" if reference == "mean" else image
        return jaxchi2.register_stack(stack, image, 0.1, boundary="wrap", verdict=False, mesh=mesh).shift

    frames, _ = spread(jnp.asarray(STACK[:8], jnp.float32), mesh)
    text = jax.jit(run).lower(frames, jnp.asarray(SCENE, jnp.float32)).compile().as_text()
    assert "fft" in text
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    assert bool(re.search("all-reduce", text)) == (reference == "mean")


def test_results_stay_on_their_devices(mesh):
    found = jaxchi2.register_stack(STACK[:8], SCENE, 0.1, boundary="wrap", verdict=False, mesh=mesh)
    assert len(found.shift.sharding.device_set) == 8


@pytest.mark.long
def test_an_explicit_mesh_is_as_good(x64):
    """Frames whose sharding is part of their type, by themselves, under jit, vmap and a gradient."""
    stack = np.nan_to_num(STACK[:8])
    explicit = jax.make_mesh((8,), ("frames",), axis_types=(AxisType.Explicit,))
    there = jax.device_put(stack, NamedSharding(explicit, P("frames")))
    options = {"boundary": "wrap", "verdict": False}

    def of_stack(x):
        return jaxchi2.register_stack(x, SCENE, 0.1, **options)

    def one_by_one(x):
        return jax.vmap(lambda image: jaxchi2.register(SCENE, image, 0.1, **options))(x)

    for function in (
        of_stack,
        jax.jit(one_by_one),
        jax.jit(jax.grad(lambda x: jnp.nansum(of_stack(x).shift))),
    ):
        found, expected = function(there), function(stack)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)
    assert of_stack(there).shift.sharding.spec[0] == "frames"
    # An image by its rows, which are no multiple of its size on any axis but this.
    wide = jax.device_put(np.tile(SCENE, (4, 1)), NamedSharding(explicit, P("frames")))
    found = jaxchi2.register(np.roll(np.asarray(wide), 1, 1), wide, 0.1, **options)
    np.testing.assert_allclose(found.shift, (0, -1), atol=1e-9)
    np.testing.assert_allclose(jaxchi2.estimate_noise(wide), jaxchi2.estimate_noise(np.asarray(wide)))


@pytest.mark.long
def test_two_processes(tmp_path, x64):
    """Each with its own frames, four and nine, on two devices each: what one process gets for all."""
    np.save(tmp_path / "stack.npy", STACK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    root = Path(__file__).parents[1]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    script = str(Path(__file__).parent / "two_processes.py")
    workers = [
        subprocess.Popen(
            [sys.executable, script, port, "2", str(rank), str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        texts = [worker.communicate(timeout=240)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(texts)
    for reference in ("mean", "first", "previous"):
        found = np.concatenate([np.load(tmp_path / f"{reference}-{rank}.npy") for rank in range(2)])
        alone = jaxchi2.register_stack(STACK, reference, 0.1, boundary="wrap", verdict=False)
        expected = np.column_stack([alone.shift, alone.stderr, alone.chi2])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_small_frames_stay_on_their_device():
    """They are put into larger frames outside jit, on the device that they are on."""
    device = jax.devices()[3]
    rng = np.random.default_rng(0)
    scene = rng.normal(size=(20, 22)).astype(np.float32)
    reference, image = (jax.device_put(x, device) for x in (scene, np.roll(scene, 2, 0)))
    found = jaxchi2.register(reference, image, 0.1)
    assert found.shift.devices() == {device}
    np.testing.assert_allclose(found.shift, (2, 0), atol=0.02)


def test_frames_spread_over_devices_have_an_answer():
    scene = np.random.default_rng(0).normal(size=(24, 20)).astype(np.float32)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    reference, image = (jax.device_put(x, spread) for x in (scene, np.roll(scene, 2, 0)))
    np.testing.assert_allclose(jaxchi2.register(reference, image, 0.1).shift, (2, 0), atol=0.02)
