"""Local shifts: against brute force, known motions, and the scatter that their errors promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import enable_x64
from direct import interpolate, scene
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

from jaxchi2 import Field, Status, register_field
from jaxchi2.engine.windowgrid import WindowGrid

SHAPE, SHIFT = (70, 84), np.array([1.37, -0.62])
SCENE = scene(SHAPE, slope=3.0, smooth=True)
IMAGE = interpolate(SCENE, [np.arange(n) - s for n, s in zip(SHAPE, SHIFT, strict=True)])


def noisy(sigma, seed=0, image=IMAGE):
    return image + sigma * np.random.default_rng(seed).normal(size=image.shape)


def blurred(shape, seed, width=1.5):
    """Gaussian noise of unit variance, blurred."""
    rng = np.random.default_rng(seed)
    k = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    response = np.exp(-2 * (np.pi * width) ** 2 * sum(f**2 for f in k))
    values = np.fft.ifftn(np.fft.fftn(rng.normal(size=shape)) * response).real
    return values / values.std()


@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("taper", ["box", "hann"])
def test_minimum_is_that_of_chi2(fitted, taper, dtype):
    """In the middle of a periodic scene, far from what the edges make unknown."""
    err = 0.05
    image = noisy(err) * (1.2 if fitted else 1.0) + (0.5 if fitted else 0.0)
    found = register_field(
        SCENE.astype(dtype),
        image.astype(dtype),
        err,
        window=(20, 24),
        spacing=(25, 30),
        taper=taper,
        fit_gain=fitted,
        fit_background=fitted,
    )
    assert found.shift.dtype == dtype
    y, x = (found.windows.starts[a][k] for a, k in ((0, 1), (1, 1)))
    weights = np.multiply.outer(*found.windows.weights) / err**2
    data = image[y : y + 20, x : x + 24]

    def chi2(parameters):
        shift, gain, background = parameters[:2], *(parameters[2:] if fitted else (1.0, 0.0))
        places = [y + np.arange(20) - shift[0], x + np.arange(24) - shift[1]]
        return np.sum(weights * (data - gain * interpolate(SCENE, places) - background) ** 2)

    start = [*SHIFT, 1.2, 0.5] if fitted else SHIFT
    best = minimize(chi2, start, method="BFGS", options={"gtol": 1e-5}).x
    error = np.asarray(found.stderr[1, 1])
    np.testing.assert_allclose(found.shift[1, 1], best[:2], rtol=0, atol=0.05 * error.min())
    if fitted:
        np.testing.assert_allclose(found.gain[1, 1], best[2], rtol=2e-3)
        np.testing.assert_allclose(found.background[1, 1], best[3], atol=2e-3)
    if taper == "box":
        np.testing.assert_allclose(found.chi2[1, 1], chi2(best), rtol=1e-3)
        assert found.dof[1, 1] == pytest.approx(20 * 24 - (4 if fitted else 2), rel=1e-5)


def test_grid_of_windows():
    grid = WindowGrid((70, 84), (16, 20), (9, 20), "box")
    assert grid.shape == (7, 4)
    assert grid.centers.shape == (7, 4, 2)
    np.testing.assert_allclose(grid.centers.mean((0, 1)), [34.5, 41.5], atol=0.5)
    assert np.all(np.diff(grid.starts[0]) == 9)
    assert grid.own == pytest.approx(9 / 16)
    np.testing.assert_allclose(grid.overlaps[0][0, :3], [1, 7 / 16, 0])
    found = register_field(SCENE, noisy(0.1), 0.1, window=(16, 20), spacing=(9, 20), verdict=False)
    assert found.shift.shape == (7, 4, 2)
    assert np.isnan(found.chance).all()


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"taper": "hann"},
        {"fit_gain": True, "fit_background": True},
        {"err": None},
        {"errors": "sandwich"},
        {"reference_err": 0.3},
    ],
    ids=str,
)
@pytest.mark.parametrize("width", [1.0, 2.0])
def test_errors_are_the_scatter(options, width):
    """Of some 800 shifts a standard deviation scatters by 2.5 %: five times that is one in a million."""
    true, err, size = np.array([1.37, -2.61]), 0.3, 512
    options = {"err": err, **options}
    big = blurred((size + 64,) * 2, 5, width)
    phase = sum(
        np.fft.fftfreq(size + 64).reshape(s) * t for s, t in zip(((-1, 1), (1, -1)), true, strict=True)
    )
    moved = np.fft.ifft2(np.fft.fft2(big) * np.exp(-2j * np.pi * phase)).real
    reference, image = (x[32:-32, 32:-32].astype(np.float32) for x in (big, moved))
    rng = np.random.default_rng(1)
    image = image + err * rng.normal(size=image.shape)
    if "reference_err" in options:
        reference = reference + err * rng.normal(size=image.shape)
    found = register_field(reference, image, options.pop("err"), window=24, spacing=24, **options)
    assert np.mean(np.asarray(found.status) == 0) > 0.99
    good = np.asarray(found.status) == 0
    pulls = (np.asarray(found.shift)[good] - true) / np.asarray(found.stderr)[good]
    spread = 5 / np.sqrt(2 * pulls.size)
    assert 0.95 - spread < np.std(pulls) < 1.07 + spread
    assert abs(pulls.mean()) < 0.15 + 5 / np.sqrt(pulls.size)


@pytest.mark.long
@pytest.mark.parametrize("err", [0.1, None])
@pytest.mark.parametrize("width", [0.0, 1.5, 4.0])
def test_unrelated_images_are_named(err, width):
    """Of 2883 windows one may be believed: at a chance of 1e-5 two are in three of ten thousand runs."""
    believed = 0
    for seed in range(3):
        first, second = (blurred((512, 512), 2 * seed + k, width).astype(np.float32) for k in (0, 1))
        second = second + 0.1 * np.random.default_rng(100 + seed).normal(size=second.shape).astype(np.float32)
        found = register_field(first, second, err, fit_gain=True, fit_background=True)
        believed += np.sum(np.asarray(found.status) == 0)
    assert believed <= 1


def test_larger_windows_lead_smaller_ones():
    """A motion of up to 12 pixels, which windows of 16 pixels alone do not find."""
    rng = np.random.default_rng(3)
    y, x = np.indices((320, 320)).astype(float)
    motion = np.stack([8 * np.sin(y / 150), 12 * np.cos(x / 170)])
    big = blurred((320, 320), 4)
    image = map_coordinates(big, [y - motion[0], x - motion[1]], order=5, mode="nearest")
    inner = slice(32, -32)
    pair = big[inner, inner], image[inner, inner] + 0.05 * rng.normal(size=(256, 256))
    found = register_field(*pair, window=16, max_shift=14, levels=3)
    true = np.moveaxis(motion[:, inner, inner], 0, -1)
    centers = np.round(found.centers).astype(int)
    away = np.abs(np.asarray(found.shift) - true[centers[..., 0], centers[..., 1]]).max(-1)
    believed = np.asarray(found.valid)
    assert believed.mean() > 0.95
    assert np.nanmax(away[believed]) < 0.5
    alone = register_field(*pair, window=16, max_shift=4)
    assert np.asarray(alone.valid).mean() < 0.5
    again = register_field(*pair, window=16, max_shift=2, initial=found)
    assert np.asarray(again.valid).mean() > 0.95


def test_a_prediction_is_an_array_too():
    shape = WindowGrid(SHAPE, (24, 24), (12, 12), "box").shape
    far = noisy(0.1, image=np.roll(IMAGE, (9, -11), (0, 1)))
    for initial in (np.array([10.0, -12.0]), np.broadcast_to([10.0, -12.0], (*shape, 2))):
        found = register_field(SCENE, far, 0.1, window=24, max_shift=2, initial=initial)
        good = np.asarray(found.status) == 0
        assert good.sum() > 6
        away = np.asarray(found.shift)[good] - SHIFT - (9, -11)
        assert np.abs(away).max() < 0.2


def test_masked_pixels_have_no_influence(dtype):
    mask = np.zeros(SHAPE, bool)
    mask[20:45, 30:60] = True
    mask[5, 5] = True
    results = [
        register_field(
            SCENE.astype(dtype), np.where(mask, value, noisy(0.1)).astype(dtype), 0.1, window=16, mask=mask
        )
        for value in (np.nan, 1e6)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)
    status = np.asarray(results[0].status)
    # A window of which more than half is masked says little, and one that is masked says so.
    inside = (results[0].windows.starts[0] >= 20) & (results[0].windows.starts[0] + 16 <= 45)
    across = (results[0].windows.starts[1] >= 30) & (results[0].windows.starts[1] + 16 <= 60)
    assert np.all(status[np.ix_(inside, across)] & (Status.NO_DATA | Status.LITTLE_OVERLAP | Status.FLAT))
    assert np.mean(status == 0) > 0.5


@pytest.mark.parametrize("what", ["flat image", "flat reference", "all NaN", "beyond"])
def test_hopeless_windows_are_a_status(what):
    reference, image, initial = SCENE.copy(), noisy(0.1), None
    if what == "flat image":
        image[:] = 3.0
    elif what == "flat reference":
        reference[:] = 3.0
    elif what == "all NaN":
        image[:] = np.nan
    else:
        initial = np.array([500.0, 0.0])
    found = register_field(reference, image, 0.1, window=24, initial=initial)
    assert np.all(np.asarray(found.status) != 0)
    failed = np.asarray(found.status) & (
        Status.NO_DATA | Status.LITTLE_OVERLAP | Status.FLAT | Status.NOT_CONVERGED
    )
    if what != "flat image":
        assert np.all(failed)
        assert np.isnan(found.shift).all()


def test_inputs_stay_and_batches_do_not_matter():
    image = noisy(0.1).astype(np.float32)
    before = SCENE.astype(np.float32), image.copy()
    whole = register_field(before[0], image, 0.1, window=20, spacing=11)
    parts = register_field(before[0], image, 0.1, window=20, spacing=11, batch_size=4)
    np.testing.assert_array_equal(image, before[1])
    np.testing.assert_allclose(whole.shift, parts.shift, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(whole.status, parts.status)


def test_transforms():
    """Under jit, in batches, and backwards: the gradient against differences."""
    options = {"window": 24, "spacing": 20, "verdict": False}
    first, second = (noisy(0.1, seed).astype(np.float32)[:48, :48] for seed in (1, 2))
    reference = SCENE.astype(np.float32)[:48, :48]

    def shifts(image):
        return register_field(reference, image, 0.1, **options).shift

    both = jax.jit(jax.vmap(lambda image: register_field(reference, image, 0.1, **options)))(
        jnp.stack([first, second])
    )
    assert isinstance(both, Field)
    for k, image in enumerate((first, second)):
        np.testing.assert_allclose(both.shift[k], shifts(image), rtol=0, atol=1e-5)
    with enable_x64(True):
        reference, image = reference.astype(float), jnp.asarray(first.astype(float))
        direction = np.random.default_rng(4).normal(size=image.shape)
        weights = np.random.default_rng(5).normal(size=shifts(image).shape)
        slope = jax.grad(lambda x: jnp.sum(weights * shifts(x)))(image)
        change = [np.sum(weights * np.asarray(shifts(image + h * direction))) for h in (1e-4, -1e-4)]
        assert np.sum(slope * direction) == pytest.approx((change[0] - change[1]) / 2e-4, rel=1e-4)


@pytest.mark.parametrize("shape", [(400,), (30, 33, 36)])
def test_other_dimensions(shape, dtype):
    rng = np.random.default_rng(6)
    shift = np.arange(2, 2 + len(shape))
    reference = blurred(shape, 7, 1.2)
    image = np.roll(reference, shift, tuple(range(len(shape)))) + 0.1 * rng.normal(size=shape)
    found = register_field(reference.astype(dtype), image.astype(dtype), 0.1, window=16, max_shift=5)
    good = np.asarray(found.status) == 0
    assert good.mean() > 0.5
    pulls = (np.asarray(found.shift)[good] - shift) / np.asarray(found.stderr)[good]
    assert np.sqrt(np.mean(pulls**2)) < 1 + 5 / np.sqrt(pulls.size)


def test_errors_are_larger_where_the_noise_is_correlated():
    rng = np.random.default_rng(8)
    k = np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256), indexing="ij")
    response = np.exp(-2 * (np.pi * 1.0) ** 2 * sum(f**2 for f in k))
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(256, 256))) * response).real
    noise *= 0.2 / noise.std()
    reference = blurred((256, 256), 9)
    found = register_field(reference, reference + noise, 0.2, window=32, spacing=32, errors="sandwich")
    inner = np.asarray(found.inflation)[1:-1, 1:-1]
    assert np.median(inner) > 1.5
    plain = register_field(reference, reference + noise, 0.2, window=32, spacing=32)
    np.testing.assert_array_equal(plain.inflation, 1)
    ratio = np.asarray(found.stderr / plain.stderr)[1:-1, 1:-1]
    np.testing.assert_allclose(ratio, inner, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 3}, "window must"),
        ({"window": 90}, "window must be at most the image's shape"),
        ({"window": (16,)}, "window must"),
        ({"spacing": 0}, "spacing must"),
        ({"max_shift": 0}, "max_shift must"),
        ({"levels": 0}, "levels must"),
        ({"taper": "round"}, "taper must"),
        ({"initial": np.zeros(3)}, "initial must"),
        ({"errors": "robust"}, "errors must"),
    ],
)
def test_wrong_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        register_field(SCENE, IMAGE, 0.1, **options)


def test_unlike_shapes_raise():
    with pytest.raises(ValueError, match="image must have the shape of reference"):
        register_field(SCENE, IMAGE[1:], 0.1)
    with pytest.raises(TypeError, match="fit_background must"):
        register_field(SCENE, IMAGE, 0.1, fit_background="plane")
