"""Scenes that people register, from one source to fields, and pairs that have nothing in common.

Each is a batch of random draws, registered by one program: how many are right, and what their status says.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxchi2 import Boundary, Search, Status, chi2_surface, register, register_stack

SIZE = 48
Y, X = np.indices((SIZE, SIZE)).astype(float)
DOUBTS = Status.UNRELATED | Status.AMBIGUOUS
PROGRAMS = {}


def find(pairs, **options):
    """Rows of one result for each pair, by programs that tests share."""
    key = (pairs[0].dtype, *sorted(options.items()))
    if key not in PROGRAMS:
        PROGRAMS[key] = jax.jit(partial(jax.lax.map, lambda pair: register(*pair, **options)))
    return jax.tree.map(np.asarray, PROGRAMS[key](pairs))


@pytest.fixture(autouse=True, scope="module")
def _forget():
    yield
    PROGRAMS.clear()


def is_right(found, true):
    return np.all(np.abs(found.shift - true) < np.maximum(1.0, 5 * found.stderr), axis=1)


def spots(places, peaks, width, shift=(0.0, 0.0)):
    return sum(
        p * np.exp(-((Y - y - shift[0]) ** 2 + (X - x - shift[1]) ** 2) / (2 * width**2))
        for (y, x), p in zip(places, peaks, strict=True)
    )


def stars(rng, count, edge=4):
    return rng.uniform(edge, SIZE - edge, (count, 2)), 10 ** rng.uniform(1.0, 3.0, count)


def crops(rng, slope, shift):
    """Two windows of a field of amplitude k^(−slope), of unit variance."""
    k = np.meshgrid(np.fft.fftfreq(2 * SIZE), np.fft.fftfreq(2 * SIZE), indexing="ij")
    size = np.hypot(*k)
    size[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.normal(size=size.shape)) * size**-slope
    spectrum /= np.fft.ifft2(spectrum).real.std()
    window = (slice(SIZE // 2, SIZE // 2 + SIZE),) * 2
    moved = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (k[0] * shift[0] + k[1] * shift[1]))).real
    return np.fft.ifft2(spectrum).real[window], moved[window]


def star_pair(rng):
    """Eight stars of S/N up to 1000, at half-pixel shifts."""
    places, peaks = stars(rng, 8)
    true = np.array([0.5, -0.5]) + rng.integers(-3, 3, 2)
    return *(spots(places, peaks, 1.3, s) + rng.normal(0, 1, Y.shape) for s in ((0, 0), true)), true


def source_pair(rng):
    """One source off centre."""
    place, true = rng.uniform(10, SIZE - 10, (1, 2)), rng.uniform(-6, 6, 2)
    a, b = (spots(place, [20.0], 2.0, s) for s in ((0, 0), true))
    return a, b + rng.normal(0, 1, Y.shape), true


def planet_pair(rng):
    """A bright disc that leaves the middle for a corner, in photons."""

    def disc(y, x):
        return (
            2000 / (1 + np.exp((np.hypot(Y - y, X - x) - 11) / 1.2)) * (1 + 0.15 * np.sin((Y - y) / 1.7)) + 30
        )

    true = rng.uniform(16, 19, 2)
    return rng.poisson(disc(14, 13)), rng.poisson(disc(14 + true[0], 13 + true[1])), true


def square_pair(rng):
    """A square on a blank ground, moved by whole pixels."""
    images = np.zeros((2, SIZE, SIZE))
    top, left = rng.integers(10, 28, 2)
    true = rng.integers(-8, 9, 2)
    for image, (dy, dx) in zip(images, ((0, 0), true), strict=True):
        image[top + dy : top + dy + 9, left + dx : left + dx + 9] = 1.0
    return *(images + 0.02 * rng.normal(size=images.shape)), true


def photon_pair(rng):
    """Half a photon per pixel; the reference has no noise."""
    places, peaks = rng.uniform(0, SIZE, (20, 2)), rng.uniform(0.3, 1.0, 20)
    true = rng.uniform(-2, 2, 2)
    a, b = (spots(places, peaks, 2.5, s) for s in ((0, 0), true))
    return 0.5 * a / a.mean(), rng.poisson(0.5 * b / a.mean()), true


def smooth_pair(rng):
    """A steep scene: its level alone nearly tells the shift."""
    true = rng.uniform(-3, 3, 2)
    a, b = crops(rng, 3.0, true)
    return a, b + 0.2 * rng.normal(size=a.shape), true


def faint_pair(rng):
    """A field at a third of the noise."""
    true = rng.uniform(-3, 3, 2)
    a, b = crops(rng, 1.0, true)
    return a, b + 3.0 * rng.normal(size=a.shape), true


def draws(make, count, seed=0):
    rows = [make(np.random.default_rng([seed, k])) for k in range(count)]
    first, second, true = (
        np.stack([np.asarray(x, float) for x in column]) for column in zip(*rows, strict=True)
    )
    return (first.astype(np.float32), second.astype(np.float32)), true


@pytest.mark.parametrize(
    "make", [star_pair, source_pair, planet_pair, square_pair, photon_pair, smooth_pair, faint_pair]
)
def test_matches_are_found_and_believed(make):
    pairs, true = draws(make, 40)
    found = find(pairs)
    assert np.all(is_right(found, true))
    assert np.sum(found.status != 0) <= 1


def unrelated(make):
    def both(rng):
        return make(rng)[0], make(rng)[1], np.zeros(2)

    return both


def blobs(rng):
    """Five cells of several widths: few sources, which find their like."""
    kinds = zip(
        rng.uniform(0, SIZE, (5, 2)), 50 * rng.uniform(0.3, 1.0, 5), rng.uniform(1.5, 4.0, 5), strict=True
    )
    image = 100 + sum(spots(p[None], [a], w) for p, a, w in kinds) + rng.normal(0, 1, Y.shape)
    return image, image, None


def star_field(rng):
    image = spots(*stars(rng, 12), 1.3) + rng.normal(0, 2, Y.shape)
    return image, image, None


@pytest.mark.long
@pytest.mark.parametrize("make", [blobs, star_field, photon_pair, faint_pair])
@pytest.mark.parametrize("max_shift", [None, 10.0])
def test_unrelated_scenes_are_not_believed(make, max_shift):
    pairs, _ = draws(unrelated(make), 150, seed=1)
    found = find(pairs, max_shift=max_shift)
    assert np.sum(found.status == 0) <= 1


def test_windows_without_overlap_are_not_believed():
    """Tiles of one large scene that have no pixel in common."""
    rng = np.random.default_rng(3)
    tiles = [crops(rng, 1.0, (0.0, 0.0))[0] for _ in range(80)]
    noisy = np.stack(tiles).astype(np.float32) + 0.05 * rng.normal(size=(80, SIZE, SIZE)).astype(np.float32)
    found = find((noisy[:-1], noisy[1:]))
    assert np.all(found.status != 0)


def test_a_small_overlap_is_found_where_max_shift_allows_it():
    """Tiles that share a tenth of their pixels, at the default least overlap."""
    rng = np.random.default_rng(5)
    k = np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128), indexing="ij")
    size = np.hypot(*k)
    size[0, 0] = np.inf
    scene = np.fft.ifft2(np.fft.fft2(rng.normal(size=(128, 128))) * size**-1.5).real
    scene /= scene.std()
    first, second = scene[:64, :64], scene[:64, 54:118]
    noise = 0.05 * rng.normal(size=(2, 64, 64))
    found = register(first + noise[0], second + noise[1], max_shift=np.inf)
    np.testing.assert_allclose(found.shift, [0, -54], atol=0.1)
    assert found.status == Status.OK
    least = Boundary("overlap", min_overlap=0.25)
    assert register(first + noise[0], second + noise[1], max_shift=np.inf, boundary=least).status != 0


@pytest.mark.long
def test_quoted_probabilities_are_those_that_occur():
    """Near detection, how often the better of two minima is the right one, and how often a flag says so."""

    def faint(rng, noise):
        true = rng.uniform(-3, 3, 2)
        a, b = crops(rng, 0.5, true)
        return a, b + noise * rng.normal(size=a.shape), true

    probability, right = [], []
    for noise in (6.0, 8.0, 10.0):
        pairs, true = draws(partial(faint, noise=noise), 300, seed=7)
        found = find(pairs)
        best, second = is_right(found, true), is_right(found._replace(shift=found.runner_up.shift), true)
        probability.append(found.runner_up.probability[best ^ second])
        right.append(best[best ^ second])
    probability, right = np.concatenate(probability), np.concatenate(right)
    for low, high in ((0.5, 0.8), (0.8, 0.95), (0.95, 0.99)):
        bin_ = (probability >= low) & (probability < high)
        quoted, number = probability[bin_].mean(), bin_.sum()
        assert number > 20
        # Five standard deviations, and a tenth for what the model of the noise leaves out.
        assert abs(right[bin_].mean() - quoted) < 5 * np.sqrt(quoted * (1 - quoted) / number) + 0.1


def test_brightness_that_differs_is_named():
    pairs, true = draws(smooth_pair, 3)
    for change in (lambda x: 4 * x, lambda x: x + 6, lambda x: -x):
        found = find((pairs[0], change(pairs[1]).astype(np.float32)))
        assert np.all(found.status & Status.BRIGHTNESS > 0)
    same = find(pairs)
    assert not np.any(same.status & Status.BRIGHTNESS)
    fitted = find((pairs[0], (4 * pairs[1] + 6).astype(np.float32)), fit_gain=True, fit_background=True)
    assert np.all(is_right(fitted, true))
    assert np.all(fitted.status == 0)


def test_errors_that_are_too_large_are_named():
    """A variance given for σ, and errors that are half as large again, which is no mistake to be sure of."""
    pairs, _ = draws(lambda rng: (*(4 * x for x in faint_pair(rng)[:2]), np.zeros(2)), 3)
    found = find(pairs, err=144.0)
    assert np.all(found.status & Status.LARGE_ERRORS > 0)
    assert not np.any(find(pairs, err=14.0).status & Status.LARGE_ERRORS)


def test_a_shift_beyond_the_window_is_out_of_it():
    rng = np.random.default_rng(2)
    for boundary in ("overlap", "wrap"):
        a, b = crops(rng, 2.0, (5.8, 0.0))
        found = register(a, b, max_shift=2, boundary=boundary)
        assert int(found.status) & (Status.OUT_OF_WINDOW | Status.UNRELATED)
        assert not int(found.status) & Status.NOT_CONVERGED


@pytest.mark.long
def test_clipping_the_scene_is_named():
    """Hot pixels of the camera are in both images: the stars that moved are what does not fit."""
    rng = np.random.default_rng(4)
    hot = np.zeros(SIZE * SIZE)
    hot[rng.choice(SIZE * SIZE, 12, False)] = rng.uniform(500, 5000, 12)
    places, peaks = stars(rng, 12)
    a, b = (spots(places, peaks / 3, 1.3, s) + hot.reshape(Y.shape) for s in ((0, 0), (3.0, -2.0)))
    a, b = (x + rng.normal(0, 1, Y.shape) for x in (a, b))
    found = register(a, b, 1.0, reference_err=1.0, clip=5.0)
    assert found.status != 0
    # Cosmic rays fall anywhere.
    a, b = (spots(places, peaks, 1.3, s) for s in ((0, 0), (3.0, -2.0)))
    b = b + rng.normal(0, 1, Y.shape)
    b.flat[rng.choice(SIZE * SIZE, 20, False)] += 300.0
    found = register(a, b, 1.0, clip=5.0)
    np.testing.assert_allclose(found.shift, (3.0, -2.0), atol=0.02)
    assert not int(found.status) & Status.CLIPPED


def test_initial_and_prior_hold_in_the_overlap(x64):
    """A prior is added to the score: −2 times the logarithm of odds, as both are."""
    rng = np.random.default_rng(6)
    a, b = crops(rng, 1.0, (2.0, -3.0))
    b = b + 0.3 * rng.normal(size=a.shape)
    prior = (np.array([2.0, -3.0]), np.diag([4.0, 4.0]))
    surface = chi2_surface(a, b, 0.3, search=Search(prior=prior), max_shift=6)
    plain = chi2_surface(a, b, 0.3, max_shift=6)
    ys, xs = surface.shifts()
    extra = ((ys[:, None] - 2) ** 2 + (xs[None, :] + 3) ** 2) / 4
    difference = np.asarray(surface.map()) - np.asarray(plain.map())
    np.testing.assert_allclose(difference - difference.min(), extra, atol=1e-9)
    # Near a first guess, whatever lies deeper elsewhere.
    found = register(a, b, 0.3, search=Search(initial=[2.0, -3.0]))
    np.testing.assert_allclose(found.shift, [2, -3], atol=0.1)


def test_stacks_search_as_pairs_do():
    pairs, true = draws(star_pair, 4)
    found = register_stack(jnp.asarray(pairs[1]), jnp.asarray(pairs[0]))
    assert np.all(is_right(jax.tree.map(np.asarray, found), true))
    assert np.all(np.asarray(found.status) == 0)


@pytest.mark.long
def test_a_lattice_is_in_several_places():
    """Stars six pixels apart fill the frame: a period more or less fits as well, and half are wrong."""
    rng = np.random.default_rng(11)
    y, x = np.indices((64, 64))

    def lattice(places, shift):
        rows, columns = (np.arange(-12, 76, 6.0) + p + s for p, s in zip(places, shift, strict=True))
        return (
            30
            * sum(np.exp(-((y - r) ** 2) / 3.25) for r in rows)
            * sum(np.exp(-((x - c) ** 2) / 3.25) for c in columns)
        )

    shifts = rng.uniform(1, 4, (100, 2)) * rng.choice([-1, 1], (100, 2))
    places = rng.uniform(0, 6, (100, 2))
    pairs = [(lattice(p, (0, 0)), lattice(p, s)) for p, s in zip(places, shifts, strict=True)]
    pairs = np.array(pairs) + np.stack([np.zeros((100, 64, 64)), rng.normal(size=(100, 64, 64))], axis=1)
    found = jax.lax.map(lambda pair: register(*pair, 1.0), pairs.astype(np.float32), batch_size=20)
    wrong = np.any(np.abs(found.shift - shifts) > 1, axis=1)
    assert 30 < np.sum(wrong) < 70
    assert np.all(found.status[wrong] & Status.AMBIGUOUS > 0)
