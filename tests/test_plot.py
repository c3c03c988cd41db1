import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxchi2
from jaxchi2.files.rows import result_of
from jaxchi2.plot import known_pictures, plot_drift, plot_registration

pytest.importorskip("matplotlib")
iio = pytest.importorskip("imageio.v3")

SHAPE = (32, 40)
ERR = 0.3


@pytest.fixture(scope="module")
def pair():
    """Two blobs, displaced by a whole number of pixels, with noise of standard deviation ERR."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    blobs = 9 * np.exp(-((y - 14) ** 2 + (x - 12) ** 2) / 8) + 6 * np.exp(-((y - 20 - (x - 26) / 2) ** 2) / 6)
    scene = blobs * np.exp(-((x - 20) ** 2 + (y - 16) ** 2) / 200)
    noise = np.random.default_rng(1).normal(scale=ERR, size=SHAPE)
    return scene.astype(np.float32), (np.roll(scene, (2, -3), (0, 1)) + noise).astype(np.float32)


@pytest.fixture(scope="module")
def result(pair):
    return jaxchi2.register(*pair, ERR)


@pytest.fixture(scope="module")
def figure(pair, result):
    return plot_registration(*pair, ERR, result, labels=("one", "two"))


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_picture_is_drawn(figure, tmp_path):
    path = tmp_path / "picture.png"
    figure.savefig(path)
    pixels = iio.imread(path)[..., :3].astype(float)
    assert min(pixels.shape[:2]) > 400
    assert pixels.std() > 20
    # Every panel has content: no quarter of the picture is blank.
    rows, columns = (np.array_split(np.arange(n), 2) for n in pixels.shape[:2])
    assert min(pixels[np.ix_(r, c)].std() for r in rows for c in columns) > 20


def test_title_gives_the_numbers(figure):
    title = figure.get_suptitle()
    assert "y = +2.0" in title or "y = +1.9" in title
    assert "±" in title
    assert "χ²/dof = " in title


def test_panels(figure, pair):
    titles = list(panels(figure))
    assert titles[:2] == ["one", "two"]
    before, after = (axes for title, axes in panels(figure).items() if title.startswith("difference"))
    assert before.get_title().startswith("difference before, rms ")
    assert before.images[0].get_clim() == after.images[0].get_clim()
    low, high = before.images[0].get_clim()
    assert low == -high
    np.testing.assert_array_equal(before.images[0].get_array(), pair[1].astype(float) - pair[0])
    # What is left after alignment is the noise that was put in.
    assert np.nanstd(after.images[0].get_array()) == pytest.approx(ERR, rel=0.1)


@jax.jit
def contour(surface, nsigma):
    return surface.contour(nsigma)


@pytest.mark.parametrize("known", [True, False])
def test_contours_are_those_of_the_surface(pair, result, figure, known):
    if not known:
        result = jaxchi2.register(*pair)
        figure = plot_registration(*pair, None, result)
    err = ERR if known else float(jnp.sqrt(result.reduced_chi2))
    surface = jaxchi2.chi2_surface(*pair, err)
    axes = next(axes for title, axes in panels(figure).items() if title.startswith("Δχ²"))
    drawn = axes.collections[0].get_paths()
    stderr = np.asarray(result.stderr)
    assert len(drawn) == 3
    for nsigma, path in zip((1.0, 2.0, 3.0), drawn, strict=True):
        polygon = np.asarray(contour(surface, nsigma))
        # Left, right and bottom ends; the label interrupts the curve at its top. 64 points on an ellipse and
        # 121 grid points both miss its ends by less than a percent.
        for end, axis in ((np.min, 1), (np.max, 1), (np.min, 0)):
            found = end(path.vertices[:, 1 - axis])
            np.testing.assert_allclose(found, end(polygon[:, axis]), rtol=0, atol=0.02 * stderr[axis])
            # With both shifts free the regions are wider than nsigma marginal errors, by a known factor.
            expected = np.sqrt(jaxchi2.delta_chi2(nsigma, nfitted=2)) * stderr[axis]
            assert abs(found - result.shift[axis]) == pytest.approx(expected, rel=0.1)


def test_what_is_fitted_and_left_out_is_drawn(pair, result):
    """A χ² without gain, background, masks and outliers has another minimum and other contours."""
    reference, image = pair
    image = 2.5 * image + 40
    image[4:9, 5:30] += 30
    image[25, 20] += 500
    mask = np.zeros(SHAPE, bool)
    mask[4:9, 5:30] = True
    options = {"fit_gain": True, "fit_background": True, "mask": mask}
    err = 2.5 * ERR
    found = result._replace(gain=jnp.asarray(2.5), background=jnp.asarray(40.0))
    figure = plot_registration(reference, image, err, found, clip=6.0, **options)
    left_out = mask.copy()
    left_out[25, 20] = True
    surface = jaxchi2.chi2_surface(reference, image, err, **options | {"mask": left_out})
    axes = next(axes for title, axes in panels(figure).items() if title.startswith("Δχ²"))
    curves = [path.vertices[:-1:9, ::-1] for path in axes.collections[0].get_paths()]
    heights = [np.mean([surface(point) for point in curve[:6]]) for curve in curves]
    rise = [float(jaxchi2.delta_chi2(n, nfitted=2)) for n in (1.0, 2.0, 3.0)]
    np.testing.assert_allclose(np.diff(heights), np.diff(rise), rtol=0.03)
    before, after = (axes for title, axes in panels(figure).items() if title.startswith("difference"))
    drawn = np.ma.filled(after.images[0].get_array().astype(float), np.nan)
    # The mask and what hangs over, moved back by (2, -3), to the nearest pixel.
    moved_mask = np.roll(mask, (-2, 3), (0, 1))
    moved_mask[-2:], moved_mask[:, :3] = True, True
    unknown = np.isnan(drawn)
    assert np.all(unknown[moved_mask])
    assert np.sum(unknown & ~moved_mask) < 120
    drawn[22:25, 22:25] = np.nan
    assert np.nanstd(drawn) == pytest.approx(err, rel=0.1)
    assert abs(np.nanmean(drawn)) < 0.1
    assert np.isnan(np.ma.filled(before.images[0].get_array().astype(float), np.nan)[mask]).all()


def moved_by(*shift):
    """A registration without errors, so that no χ² is drawn."""
    nan = jnp.full((2, 2), jnp.nan)
    found = jaxchi2.Registration(*[jnp.ones(())] * len(jaxchi2.Registration._fields))
    return found._replace(
        shift=jnp.array(shift), covariance=nan, status=jnp.asarray(0), background=jnp.zeros(())
    )


def difference_after(figure):
    axes = next(axes for title, axes in panels(figure).items() if title.startswith("difference after"))
    return np.ma.filled(axes.images[0].get_array().astype(float), np.nan)


WORLD = np.random.default_rng(8).normal(size=(48, 56)).cumsum(0).cumsum(1).astype(np.float32)


def test_what_hangs_over_is_not_drawn_as_a_difference():
    """After an "overlap" registration; with "wrap" the other side is data."""
    reference, image = WORLD[8:40, 8:48], WORLD[2:34, 15:55]
    drawn = difference_after(plot_registration(reference, image, 1.0, moved_by(6.0, -7.0)))
    expected = np.zeros(SHAPE, bool)
    expected[:26, 7:] = True
    np.testing.assert_array_equal(np.isfinite(drawn), expected)
    assert np.nanstd(drawn) < 0.001
    drawn = difference_after(plot_registration(reference, image, 1.0, moved_by(6.0, -7.0), boundary="wrap"))
    assert np.isfinite(drawn).all()


def test_unlike_shapes():
    """On the reference's grid, whichever of the two is larger."""
    part = WORLD[9:31, 12:36]
    drawn = difference_after(plot_registration(part, WORLD, 1.0, moved_by(9.0, 12.0)))
    assert drawn.shape == part.shape
    np.testing.assert_allclose(drawn, 0, atol=0.01)
    drawn = difference_after(plot_registration(WORLD, part, 1.0, moved_by(-9.0, -12.0)))
    assert drawn.shape == WORLD.shape
    np.testing.assert_allclose(drawn[9:31, 12:36], 0, atol=0.01)
    drawn[9:31, 12:36] = np.nan
    assert np.isnan(drawn).all()


def test_without_a_minimum(pair, tmp_path):
    flat = np.ones(SHAPE, np.float32)
    figure = plot_registration(flat, pair[1], ERR)
    assert figure.get_suptitle().startswith("no shift found: ")
    figure.savefig(tmp_path / "flat.png")
    assert iio.imread(tmp_path / "flat.png").std() > 5


def test_all_nan(result, tmp_path):
    nothing = np.full(SHAPE, np.nan, np.float32)
    nan = {name: jnp.full_like(getattr(result, name), jnp.nan) for name in ("shift", "covariance", "chi2")}
    figure = plot_registration(nothing, nothing, ERR, result._replace(status=jnp.asarray(1), **nan))
    figure.savefig(tmp_path / "nan.png")
    assert " ".join(figure.get_suptitle().split()) == f"no shift found: {jaxchi2.Status.NO_DATA.message}"


def test_inputs_are_not_modified(pair, result):
    before = [pixels.copy() for pixels in pair]
    plot_registration(*pair, ERR, result)
    for pixels, copy in zip(pair, before, strict=True):
        np.testing.assert_array_equal(pixels, copy)


def test_pyplot_is_not_needed(pair, result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert plot_registration(*pair, ERR, result, origin="upper").axes


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        (((8,), (8,)), "two axes"),
        (((4, 5, 6), (4, 5, 6)), "two axes"),
        (((8, 8), (8, 9)), r"shape of reference, \(8, 8\)"),
    ],
)
def test_only_pairs_of_pictures(shapes, text):
    with pytest.raises(ValueError, match=text):
        plot_registration(*(np.zeros(shape, np.float32) for shape in shapes), boundary="wrap")


def test_missing_matplotlib_names_the_extra(pair, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "jaxchi2\[plot\]"'):
        plot_registration(*pair)
    with pytest.raises(ImportError, match=r'pip install "jaxchi2\[plot\]"'):
        known_pictures()


def test_known_pictures():
    assert {"png", "pdf", "svg"} <= set(known_pictures())


def drift(count, status, axes="yx"):
    """Rows of a stream with a drift of one pixel, errors of 0.1."""
    rng = np.random.default_rng(4)
    bad = np.isin(status, [int(jaxchi2.Status.UNREADABLE)])
    columns = {"frame": np.arange(count), "status": np.asarray(status), "dof": np.full(count, 100)}
    for name in axes:
        columns[f"d{name}"] = np.where(bad, np.nan, np.linspace(0, 1, count))
        columns[f"err_{name}"] = np.where(bad, np.nan, 0.1)
    columns |= {"cov_zy": 0.0, "cov_zx": 0.0, "cov_yx": 0.0, "p_value": np.full(count, 0.5)}
    return result_of(columns | {"chi2": np.where(bad, np.nan, rng.chisquare(100, count))}, {}, None, None)


def test_drift(tmp_path):
    status = np.zeros(30, int)
    status[[4, 9]] = jaxchi2.Status.UNRELATED
    status[15] = jaxchi2.Status.UNREADABLE
    figure = plot_drift(drift(30, status), title="night.fits")
    assert figure.get_suptitle() == "night.fits\n30 frames, 3 with a status (2 unrelated, 1 unreadable)"
    axes = {axes.get_ylabel().partition("\n")[0]: axes for axes in figure.axes}
    for name in "yx":
        curve, marks = axes[f"shift in {name}"].lines[0], axes[f"shift in {name}"].lines[-1]
        np.testing.assert_array_equal(curve.get_xdata(), np.arange(30))
        assert np.flatnonzero(np.isnan(curve.get_ydata())).tolist() == [15]
        assert marks.get_xdata().tolist() == [4, 9]
        band = axes[f"shift in {name}"].collections[0].get_paths()[0].vertices
        assert np.ptp(band[np.isclose(band[:, 0], 3), 1]) == pytest.approx(0.2)
    assert axes["1σ error"].get_ylim()[0] == 0
    assert "χ²/dof" in axes
    figure.savefig(tmp_path / "drift.png")
    assert iio.imread(tmp_path / "drift.png").std() > 20


def test_a_frame_in_doubt_does_not_set_the_scale_of_a_drift():
    rows = drift(30, np.where(np.arange(30) == 4, int(jaxchi2.Status.UNRELATED), 0))
    shift = rows.shift.copy()
    shift[4] = -50, 50
    figure = plot_drift(rows._replace(shift=shift))
    for axes in (
        axes for axes in figure.axes if axes.get_ylabel().startswith("shift in") and not axes.get_title()
    ):
        low, high = axes.get_ylim()
        assert -0.5 < low < high < 1.5
        assert axes.lines[-1].get_ydata()[0] in (low, high)
    path = next(axes for axes in figure.axes if axes.get_title() == "path in the plane")
    assert np.abs(path.get_xlim()).max() < 2


def test_drift_of_volumes_and_of_nothing():
    assert "step in z" in [
        axes.get_ylabel().partition("\n")[0]
        for axes in plot_drift(drift(5, np.zeros(5, int), "zyx"), steps=True).figure.axes
    ]
    plot_drift(drift(3, np.full(3, int(jaxchi2.Status.UNREADABLE)))).canvas.draw()
    plot_drift(drift(1, np.zeros(1, int))).canvas.draw()


def test_drift_of_a_pair_is_refused(result):
    with pytest.raises(ValueError, match="shifts of a stack"):
        plot_drift(result)
