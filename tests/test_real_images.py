"""Crops of photographs at known offsets, colour channels, the Sun in two colours, and a FITS mosaic.

The images are those that scikit-image, astropy, sunpy and nibabel carry in their wheels.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from skimage import data
from skimage.registration import phase_cross_correlation

from jaxchi2 import Status, register, register_stack
from jaxchi2.io import read_image

NAMES = ["camera", "moon", "coins", "brick", "hubble_deep_field", "m13"]
FITS = {
    "m13": "astropy/io/fits/hdu/compressed/tests/data/m13.fits",
    "sun, 171 A": "sunpy/data/test/EIT/efz20040301.010016_s.fits",
    "sun, 195 A": "sunpy/data/test/EIT/efz20040301.000010_s.fits",
    "corona": "sunpy/data/test/aia_171_level1.fits",
}


def photograph(name):
    if name in FITS:
        package, _, rest = FITS[name].partition("/")
        # Found without being imported, which takes seconds and warns.
        with warnings.catch_warnings():
            # sunpy's files carry a BLANK card that their floating-point pixels do not need.
            warnings.filterwarnings("ignore", "Invalid 'BLANK'")
            return read_image(Path(find_spec(package).origin).parent / rest).data.astype(np.float32)
    image = getattr(data, name)().astype(np.float32)
    return image.mean(-1) if image.ndim == 3 else image


def window(image, corner, shape=(128, 128)):
    return image[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("offset", [(7, -4), (23, 11)])
def test_crops_at_whole_offsets(name, offset):
    """The same pixels in both, so the answer is exact; taken as periodic they are up to 0.3 pixels off."""
    image = photograph(name)
    corner = np.array(image.shape) // 2 - 70
    reference, moved = window(image, corner), window(image, corner - offset)
    found = register(reference, moved)
    assert found.status == Status.OK
    np.testing.assert_allclose(found.shift, offset, atol=1e-4)


def test_a_corona_that_is_cut_by_the_frame():
    """Windows of 80 pixels of the Sun's, 64 pixels in radius, so that its limb runs out of both."""
    image = photograph("corona")
    found = register(window(image, (20, 24), (80, 80)), window(image, (11, 29), (80, 80)))
    assert found.status == Status.OK
    np.testing.assert_allclose(found.shift, (9, -5), atol=1e-4)


def test_the_sun_in_two_colours_an_hour_apart():
    """Iron at 10⁶ and 1.5·10⁶ K on the same pixels by both headers, so the shift is zero for the limb.

    Within 0.2 pixels: what glows on the disc differs between the colours, and turns by up to 0.4 pixels.
    scikit-image sees the same difference.
    """
    reference, image = photograph("sun, 195 A"), photograph("sun, 171 A")
    found = register(reference, image, fit_gain=True, fit_background=True)
    np.testing.assert_allclose(found.shift, 0, atol=0.2)
    # What differs is more than what they share, so it may be doubted; but it is an answer.
    assert not int(found.status) & ~(Status.UNRELATED | Status.AMBIGUOUS | Status.CONTRADICTED)
    peer = -phase_cross_correlation(reference, image, upsample_factor=100, normalization=None)[0]
    np.testing.assert_allclose(found.shift, peer, atol=0.05)


def test_periodic_rule_is_wrong_on_crops():
    worst = []
    for name in NAMES:
        image = photograph(name)
        corner = np.array(image.shape) // 2 - 70
        found = register(window(image, corner), window(image, corner - (7, -4)), boundary="wrap")
        worst.append(np.max(np.abs(np.asarray(found.shift) - [7, -4]) / np.asarray(found.stderr)))
    assert np.median(worst) > 4


@pytest.mark.parametrize("name", ["camera", "moon", "hubble_deep_field"])
def test_crops_at_fractions_of_a_pixel(name):
    """Three by three pixels averaged after a low-pass, so that the coarse pixels resolve what they hold."""
    image = photograph(name)
    k = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.rfftfreq(image.shape[1]))
    smooth = np.fft.irfft2(np.fft.rfft2(image) * np.exp(-0.5 * (k / 0.07) ** 2), image.shape)

    def coarse(corner):
        fine = window(smooth, corner, (288, 288))
        return fine.reshape(96, 3, 96, 3).mean((1, 3))

    found = register(coarse((40, 40)), coarse((33, 30)))
    np.testing.assert_allclose(found.shift, (7 / 3, 10 / 3), atol=0.02)


def test_colours_of_a_deep_field():
    """Between the channels of one exposure there is no shift but that of the colours; gain and sky differ.

    Expected within 0.2 pixels: stars are sharp to a few pixels and the channels are aligned.
    """
    field = data.hubble_deep_field().astype(np.float32)[520:648, 680:808]
    for first, second in [(0, 1), (1, 2), (0, 2)]:
        found = register(field[..., first], field[..., second], fit_gain=True, fit_background=True)
        plain = register(field[..., first], field[..., second])
        assert not int(found.status) & ~Status.CONTRADICTED
        assert np.all(np.abs(found.shift) < 0.2)
        assert 0.5 < found.gain < 2
        assert found.gain_err < 0.05
        assert found.chi2 < plain.chi2


def test_a_word_is_found_on_its_page():
    page = photograph("page")
    text, word = page[42:122, 20:236], page[50:66, 166:224]
    noisy = text + np.random.default_rng(2).normal(scale=10, size=text.shape).astype(np.float32)
    for options in ({}, {"fit_gain": True, "fit_background": True}):
        found = register(word, noisy, 10.0, **options)
        assert found.status == Status.OK
        np.testing.assert_allclose(found.shift, (8, 146), atol=0.05)


def test_different_photographs_are_unrelated():
    images = [window(photograph(name), (60, 60), (96, 96)) for name in ("camera", "moon", "brick", "grass")]
    for i, first in enumerate(images):
        for second in images[:i]:
            assert register(first, second).status != Status.OK


def test_a_frame_of_nan_is_left_out(tmp_path):
    """A big-endian FITS image with blank borders, as mosaics have them."""
    pixels = window(photograph("moon"), (100, 100), (64, 64))
    padded = np.pad(pixels, 6, constant_values=np.nan)
    fits.PrimaryHDU(np.roll(padded, (2, -3), (0, 1))).writeto(tmp_path / "image.fits")
    found = register(padded, fits.getdata(tmp_path / "image.fits"), 1.0)
    np.testing.assert_allclose(found.shift, (2, -3), atol=1e-4)


def test_time_series_of_a_brain(x64):
    """Twenty frames of a real scan, which nibabel carries, against scikit-image's search on a grid of 1/1000.

    Of unknown noise, with one reference and a periodic boundary, the least χ² is the largest correlation.
    """
    nibabel = pytest.importorskip("nibabel")
    path = Path(nibabel.__file__).parent / "tests" / "data" / "functional.nii"
    volumes = np.moveaxis(np.asarray(nibabel.load(path).dataobj, float), -1, 0)
    stack = volumes[..., 1]
    found = register_stack(stack, stack.mean(0), boundary="wrap", max_shift=4.0, verdict=False)
    step = 1e-3
    for frame, shift in zip(stack, found.shift, strict=True):
        there = phase_cross_correlation(
            stack.mean(0), frame, upsample_factor=round(1 / step), normalization=None
        )[0]
        np.testing.assert_allclose(shift, -there, atol=0.51 * step)
    # The head moves by a hundredth of a pixel, a few times the errors quoted at most.
    assert 0.01 < np.max(np.abs(found.shift)) < 0.1
    assert np.all(found.status == 0)
