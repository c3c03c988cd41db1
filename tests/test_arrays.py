"""Images and errors as other packages hold them: masked, with units, or not arrays at all."""

import numpy as np
import pytest
import scipy.sparse

import jaxchi2
from jaxchi2.arrays import unit_of
from jaxchi2.engine.pair import check_pair
from jaxchi2.fourier import as_real_array

u = pytest.importorskip("astropy.units")
nddata = pytest.importorskip("astropy.nddata")
fits = pytest.importorskip("astropy.io.fits")
table = pytest.importorskip("astropy.table")
Masked = pytest.importorskip("astropy.utils.masked").Masked

SHAPE = (12, 14)
PIXELS = np.random.default_rng(0).normal(10, 3, SHAPE).astype(np.float32)
HOLES = PIXELS > 14
KNOWN = np.where(HOLES, np.nan, PIXELS)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (nddata.CCDData(PIXELS, unit="adu"), PIXELS),
        (nddata.CCDData(PIXELS, unit="adu", mask=HOLES), KNOWN),
        (nddata.NDDataArray(PIXELS, mask=HOLES), KNOWN),
        (nddata.NDDataArray(PIXELS, mask=HOLES.astype(np.uint8) * 4), KNOWN),
        (
            nddata.NDDataArray(PIXELS.astype(np.int16), mask=HOLES),
            np.where(HOLES, np.nan, PIXELS.astype(int)),
        ),
        (PIXELS * u.Jy, PIXELS),
        (Masked(PIXELS, HOLES), KNOWN),
        (Masked(PIXELS * u.Jy, HOLES), KNOWN),
        (table.MaskedColumn(PIXELS, mask=HOLES, unit="Jy"), KNOWN),
        ([nddata.CCDData(PIXELS, unit="adu", mask=HOLES)] * 2, np.stack([KNOWN] * 2)),
        ([PIXELS * u.Jy, 1000 * PIXELS * u.mJy], np.stack([PIXELS] * 2)),
        ([2 * u.Jy, 500 * u.mJy], [2.0, 0.5]),
    ],
)
def test_images_of_astropy(image, expected, dtype):
    found = as_real_array(image, "image", unit_of(image))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype in (np.float32, dtype)


def test_a_conversion_keeps_the_precision(dtype):
    found = as_real_array(PIXELS.astype(dtype) * u.mJy, "image", u.Jy)
    assert found.dtype == dtype
    expected = PIXELS.astype(dtype) / np.asarray(1000, dtype)
    np.testing.assert_allclose(found, expected, rtol=2 * np.finfo(dtype).eps)


class Volume:
    """As nibabel and others have them: no array, but one inside."""

    data = PIXELS


class PintQuantity:
    magnitude, units = PIXELS, "meter"


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (
            nddata.NDData(PIXELS, mask=HOLES),
            r"image is a NDData.*pass image\.data, and image\.mask as a mask",
        ),
        (fits.PrimaryHDU(PIXELS), r"image is a PrimaryHDU.*pass image\.data$"),
        (fits.HDUList([fits.PrimaryHDU(PIXELS)]), r"PrimaryHDU.*pass image\[0\]\.data"),
        (Volume(), r"image is a Volume.*pass image\.data$"),
        (nddata.VarianceUncertainty(PIXELS), r"image\.represent_as\(StdDevUncertainty\)\.array"),
        (scipy.sparse.csr_array(PIXELS), r"pass image\.toarray\(\)"),
        (PintQuantity(), r"unit meter: pass image\.magnitude"),
        ([nddata.NDData(PIXELS)] * 2, r"image is a NDData"),
    ],
)
def test_what_is_no_array_says_where_it_is(image, text):
    with pytest.raises(TypeError, match=text):
        jaxchi2.estimate_noise(image)


def test_sunpy_maps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        maps = pytest.importorskip(
            "sunpy.map", reason="sunpy.map needs the extra sunpy[map]", exc_type=ImportError
        )
        header = {"cunit1": "arcsec", "cunit2": "arcsec", "ctype1": "HPLN-TAN", "ctype2": "HPLT-TAN"}
        image = maps.Map(PIXELS, header | {"cdelt1": 1, "cdelt2": 1, "date-obs": "2020-01-01"})
    with pytest.raises(TypeError, match=r"image is a GenericMap.*pass image\.data"):
        jaxchi2.estimate_noise(image)


def test_pairs_in_several_units(dtype):
    """What counts is the unit of the images; numbers without a unit are in that."""
    image = PIXELS.astype(dtype)
    numbers = check_pair(image, image + 1, 0.3, reference_err=0.2)
    for reference, other, err, reference_err in [
        (image * u.Jy, (image + 1) * u.Jy, 300 * u.mJy, 0.2 * u.Jy),
        (image * u.Jy, 1000 * (image + 1) * u.mJy, 0.3, 200 * u.mJy),
        (image, (image + 1) * u.Jy, 300 * u.mJy, 0.2),
        (nddata.CCDData(image, unit="adu"), nddata.CCDData(image + 1, unit="adu"), 0.3, 0.2 * u.adu),
    ]:
        pair = check_pair(reference, other, err, reference_err=reference_err)
        for found, expected in zip(pair[:4], numbers[:4], strict=True):
            np.testing.assert_allclose(found, expected, rtol=8 * np.finfo(dtype).eps)
            assert found.dtype == dtype
    weights = check_pair(image * u.Jy, image * u.Jy, None, weights=np.full(SHAPE, 4e-6) / u.mJy**2)
    np.testing.assert_allclose(weights.err, 0.5, rtol=1e-6)
    fraction = check_pair(image, image, 30 * u.percent)
    np.testing.assert_allclose(fraction.err, 0.3, rtol=1e-6)


def test_stacks_in_several_units():
    stack = np.stack([PIXELS, np.roll(PIXELS, 1, 0), PIXELS])
    options = {"boundary": "wrap", "verdict": False, "max_shift": 3.0}
    numbers = jaxchi2.register_stack(stack, PIXELS, 0.5, **options)
    units = jaxchi2.register_stack(list(1000 * stack * u.mJy), PIXELS * u.Jy, 500 * u.mJy, **options)
    np.testing.assert_allclose(units.shift, numbers.shift, atol=1e-5)
    np.testing.assert_allclose(units.stderr, numbers.stderr, rtol=1e-4)


def test_variances_in_several_units():
    stack = np.stack([PIXELS, PIXELS + 1])
    aligned = jaxchi2.align_stack(
        1000 * stack * u.mJy, np.zeros((2, 2)), 0.25 * u.Jy**2, interpolation="nearest", boundary="wrap"
    )
    np.testing.assert_allclose(aligned.variance, np.full(stack.shape, 0.25e6), rtol=1e-5)
    combined = jaxchi2.combine(stack * u.Jy, [0.25 * u.Jy**2] * 2)
    np.testing.assert_allclose(combined.variance, np.full(SHAPE, 0.25 / 2), rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda image, err: jaxchi2.register(image, image, err),
        lambda image, err: jaxchi2.register(image, image, 1.0, reference_err=err),
        lambda image, err: jaxchi2.chi2_surface(image, image, err),
        lambda image, err: jaxchi2.fit(image, image, err),
        lambda image, err: jaxchi2.chi2_shift(image, image, err),
        lambda image, err: jaxchi2.register_stack([image] * 3, "first", err),
        lambda image, err: jaxchi2.register_stack([image] * 3, "first", 1.0, reference_err=err),
        lambda image, err: jaxchi2.register_stack([image] * 3, np.full(SHAPE, 1.0) * err),
        lambda image, err: jaxchi2.register_jointly([image] * 3, err),
        lambda image, err: jaxchi2.register_jointly([image] * 3, reference=np.full(SHAPE, 1.0) * err),
        lambda image, err: jaxchi2.register_and_align(image, [image] * 3, err),
        lambda image, err: jaxchi2.register_and_align(np.full(SHAPE, 1.0) * err, [image] * 3),
        lambda image, err: jaxchi2.align_stack([image] * 3, np.zeros((3, 2)), err),
        lambda image, err: jaxchi2.combine([image] * 3, err),
    ],
)
def test_units_that_do_not_fit_are_refused(call):
    with pytest.raises(TypeError, match=r"has the unit \w+"):
        call(PIXELS * u.Jy, 3 * u.s)


def test_an_error_with_a_unit_beside_plain_images():
    with pytest.raises(TypeError, match="err has the unit mJy, and the other numbers have none"):
        jaxchi2.register(PIXELS, PIXELS, 3 * u.mJy)


def test_one_image_with_a_unit_is_taken_in_it(dtype):
    image = PIXELS.astype(dtype)
    for unit in (u.mJy, u.ABmag):
        assert jaxchi2.estimate_noise(image * unit) == jaxchi2.estimate_noise(image)
    assert jaxchi2.align(image * u.Jy, [1, 2]).dtype == dtype
    moved = jaxchi2.fourier.shiftnd(image * u.Jy, [1, 2])
    np.testing.assert_allclose(moved, np.roll(image, (1, 2), (0, 1)), rtol=100 * np.finfo(dtype).eps)
