"""register_and_align and its grain transformation: against register and align one by one."""

import cloudpickle
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from direct import moved, scene

from jaxchi2 import Registration, Status, align, register, register_and_align
from jaxchi2.ml import RegisterAndAlign

SHAPE = (24, 22)
ERR = 0.1
SHIFTS = np.array([(1.3, -2.6), (0.2, 0.7), (-3.4, 1.1)])
OPTIONS = {"boundary": "wrap", "max_shift": 6.0}


def frames(dtype=float):
    """A scene, its noisy copies after `SHIFTS`, and an error map for each."""
    reference = scene(SHAPE, 3.0, seed=1, smooth=True)
    rng = np.random.default_rng(2)
    err = rng.uniform(0.08, 0.12, (len(SHIFTS), *SHAPE))
    images = np.stack([moved(reference, s) for s in SHIFTS]) + err * rng.normal(size=err.shape)
    return reference.astype(dtype), images.astype(dtype), err.astype(dtype)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "dtype"), [("fourier", "float32"), ("linear", "float64")], indirect=["dtype"]
)
def test_is_register_and_align_one_by_one(name, dtype):
    reference, images, err = frames(dtype)
    err = err if name == "linear" else dtype.type(ERR)
    aligned, found = register_and_align(reference, images, err, interpolation=name, **OPTIONS)
    assert aligned.dtype == dtype
    assert isinstance(found, Registration)
    assert np.all(found.status == Status.OK)
    tolerance = 1e-9 if dtype == np.float64 else 2e-4
    for i in range(len(SHIFTS)):
        one = register(reference, images[i], err[i] if name == "linear" else err, **OPTIONS)
        np.testing.assert_allclose(found.shift[i], one.shift, atol=tolerance)
        expected = align(images[i], one.shift, interpolation=name, boundary="wrap")
        np.testing.assert_allclose(aligned[i], expected, atol=10 * tolerance)
        assert np.std(aligned[i] - reference) < 1.2 * ERR


def test_leading_axes_and_errors_of_each_kind(x64):
    reference, images, err = frames()
    batch = jnp.stack([images, images[::-1]])
    aligned, found = register_and_align(reference, batch, err[0], **OPTIONS)
    assert aligned.shape == batch.shape
    assert found.shift.shape == (2, 3, 2)
    assert found.covariance.shape == (2, 3, 2, 2)
    alone, single = register_and_align(reference, images[1], err[0], **OPTIONS)
    assert single.shift.shape == (2,)
    np.testing.assert_allclose(aligned[0, 1], alone, atol=1e-9)
    np.testing.assert_allclose(found.shift[1, 1], single.shift, atol=1e-9)


def test_failed_images_are_filled_and_have_no_gradient():
    reference, images, _ = frames(np.float32)
    images[1] = np.nan
    images[2, 3, 4] = np.nan
    aligned, found = register_and_align(reference, images, ERR, **OPTIONS)
    assert found.status[1] == Status.NO_DATA
    assert np.all(np.isnan(aligned[1]))
    assert np.all(np.isfinite(aligned[0]))
    # The bad pixel falls between four.
    np.testing.assert_array_equal(np.argwhere(np.isnan(aligned[2])), [[6, 2], [6, 3], [7, 2], [7, 3]])

    def loss(images):
        aligned, _ = register_and_align(reference, images, ERR, fill=-1.0, **OPTIONS)
        return jnp.sum(aligned**2), aligned

    gradient, aligned = jax.jit(jax.grad(loss, has_aux=True))(images)
    assert np.all(aligned[1] == -1)
    gradient = np.asarray(gradient)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[1] == 0)
    assert gradient[2, 3, 4] == 0
    assert np.all(np.any(gradient[[0, 2]] != 0, axis=(1, 2)))


@pytest.mark.long
def test_gradient_goes_through_the_shift(x64):
    reference, images, _ = frames()
    rng = np.random.default_rng(3)
    pattern, direction = (jnp.asarray(0.1 * rng.normal(size=SHAPE)) for _ in range(2))

    def loss(pattern):
        aligned, _ = register_and_align(reference + pattern, images[0] + pattern, ERR, **OPTIONS)
        return jnp.mean((aligned - reference) ** 2)

    @jax.jit
    def along(t):
        return loss(pattern + t * direction)

    step = 1e-4
    values = {k: along(k * step) for k in (-2, -1, 1, 2)}
    expected = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    found = jax.jit(jax.value_and_grad(along))(0.0)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.long
def test_loops_and_rematerialisation(x64):
    """`scan` and `remat` give the gradient of the plain program, and optax trains through them."""
    reference, images, _ = frames()

    def loss(gain, image):
        aligned, _ = register_and_align(gain * reference, image, ERR, **OPTIONS)
        return jnp.mean((aligned - gain * reference) ** 2)

    def looped(gain):
        one = jax.checkpoint(loss)
        return jax.lax.scan(lambda total, image: (total + one(gain, image), None), 0.0, images)[0]

    plain = jax.jit(jax.value_and_grad(loss))
    each = np.array([plain(1.2, image) for image in images])
    step = jax.jit(jax.value_and_grad(looped))
    np.testing.assert_allclose(step(1.2), each.sum(0), rtol=1e-10)

    optimizer = optax.adam(0.05)
    gain, state = jnp.asarray(1.2), optimizer.init(1.2)
    for _ in range(10):
        _, gradient = step(gain)
        updates, state = optimizer.update(gradient, state)
        gain = optax.apply_updates(gain, updates)
    assert abs(gain - 1) < 0.1


def test_what_the_images_do_not_show_is_filled():
    """With the default boundary; no part of the opposite edge comes in, and gradients are finite."""
    world = scene((40, 40), 3.0, smooth=True)
    reference = world[8:32, 9:31].astype(np.float32)
    image = moved(world, (0.4, -0.3))[5:29, 11:33].astype(np.float32)
    image[20, 4] = np.nan

    def loss(image):
        aligned, found = register_and_align(reference, image, fill=-7.0, max_shift=6.0)
        return jnp.sum(jnp.where(aligned == -7, 0.0, aligned) ** 2), (aligned, found.shift)

    gradient, (aligned, shift) = jax.jit(jax.grad(loss, has_aux=True))(image)
    np.testing.assert_allclose(shift, (3.4, -2.3), atol=0.05)
    known = np.asarray(aligned != -7)
    # 3.4 and 2.3 pixels hang over; the bad pixel falls between four.
    expected = np.zeros(reference.shape, bool)
    expected[:20, 3:] = True
    expected[16:18, 6:8] = False
    np.testing.assert_array_equal(known, expected)
    assert np.std((aligned - reference)[known]) < 0.05 * np.std(reference)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


def test_small_images_in_a_large_reference():
    world = scene((48, 44), 3.0, smooth=True).astype(np.float32)
    images = np.stack([world[20:36, 12:28], world[5:21, 22:38]])
    aligned, found = register_and_align(world, images, max_shift=np.inf)
    np.testing.assert_allclose(found.shift, [(-20, -12), (-5, -22)], atol=0.05)
    assert aligned.shape == (2, *world.shape)
    for result in aligned:
        assert 14**2 <= np.sum(np.isfinite(result)) <= 16**2
        assert np.nanstd(result - world) < 0.02 * np.std(world)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.ones((4, 4)), np.ones(4)), "images must have the 2 axes of reference"),
        (
            (np.ones((4, 4)), np.ones((3, 4, 4)), np.ones((2, 4, 4))),
            "err must be a scalar, of the shape of",
        ),
        ((np.ones((4, 4)), np.ones((3, 4, 4), complex)), "images"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        register_and_align(*arguments)


# grain


@pytest.mark.long
@pytest.mark.parametrize("keys", [False, True])
def test_grain_pipeline_is_register_and_align(keys):
    reference, images, err = frames(np.float32)
    expected, found = register_and_align(reference, images, err, **OPTIONS)
    elements = [
        {"image": image, "sky": reference, "noise": e, "name": str(i)}
        for i, (image, e) in enumerate(zip(images, err, strict=True))
    ]
    where = ("sky", "image", "noise") if keys else (reference, "image", "noise")
    transform = RegisterAndAlign(*where, **OPTIONS)
    for i, element in enumerate(grain.MapDataset.source(elements).map(transform)):
        assert set(element) == {"image", "sky", "noise", "name", "shift", "covariance", "status"}
        assert all(isinstance(element[k], np.ndarray) for k in ("image", "shift", "covariance", "status"))
        assert element["name"] == str(i)
        np.testing.assert_allclose(element["image"], expected[i], atol=1e-4)
        np.testing.assert_allclose(element["shift"], found.shift[i], atol=1e-5)
        rounding = 1e-4 * float(found.covariance[i].max())
        np.testing.assert_allclose(element["covariance"], found.covariance[i], rtol=1e-3, atol=rounding)
    np.testing.assert_array_equal(elements[0]["image"], images[0])


@pytest.mark.long
def test_grain_batches_in_one_call():
    reference, images, _ = frames(np.float32)
    expected, found = register_and_align(reference, images, ERR, **OPTIONS)
    source = grain.MapDataset.source([{"frame": image} for image in images])
    batch = source.batch(3).map(RegisterAndAlign(reference, "frame", ERR, **OPTIONS))[0]
    np.testing.assert_allclose(batch["frame"], expected, atol=1e-5)
    np.testing.assert_allclose(batch["shift"], found.shift, atol=1e-6)
    loaded = grain.DataLoader(
        data_source=[{"frame": image} for image in images],
        sampler=grain.samplers.SequentialSampler(3),
        operations=[RegisterAndAlign(reference, "frame", ERR, **OPTIONS)],
        worker_count=0,
    )
    np.testing.assert_allclose(np.stack([e["shift"] for e in loaded]), found.shift, atol=1e-6)


def test_grain_transformation_travels_to_another_process():
    reference, images, _ = frames(np.float32)
    transform = RegisterAndAlign(reference, err=ERR, **OPTIONS)
    again = cloudpickle.loads(cloudpickle.dumps(transform))
    element = {"image": images[0]}
    np.testing.assert_array_equal(again.map(element)["shift"], transform.map(element)["shift"])
