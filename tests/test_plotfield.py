"""The picture of local shifts: what is drawn where."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from direct import moved, scene

from jaxchi2 import register_field

pytest.importorskip("matplotlib")

from jaxchi2.plotfield import plot_field

SHAPE = (80, 96)
SHIFT = np.array([0.6, -1.4])


@pytest.fixture(scope="module")
def field():
    still = 5 * scene(SHAPE, 3.0, smooth=True)
    image = moved(still, SHIFT) + scene(SHAPE, 0.0, seed=1)
    image[:40, :48] = np.nan
    return register_field(still.astype(np.float32), image.astype(np.float32), 1.0, window=16)


def test_arrows_are_the_shifts(field, tmp_path):
    figure = plot_field(field, np.ones(SHAPE), title="A title", scale=3.0)
    left, right = figure.axes[:2]
    (arrows,) = (c for c in left.collections if type(c).__name__ == "Quiver")
    answered = np.isfinite(np.asarray(field.shift)).all(-1)
    np.testing.assert_allclose(arrows.U, 3 * np.asarray(field.shift)[answered][:, 1], rtol=1e-6)
    np.testing.assert_allclose(arrows.V, 3 * np.asarray(field.shift)[answered][:, 0], rtol=1e-6)
    np.testing.assert_array_equal(arrows.XY, field.centers[answered][:, ::-1])
    crosses = left.lines[0]
    assert len(crosses.get_xdata()) == np.sum(~answered) > 0
    assert "× 3" in left.get_title()
    assert figure.get_suptitle().startswith("A title; ")
    drawn = np.ma.filled(right.collections[0].get_array(), np.nan)
    variance = np.trace(np.asarray(field.covariance), axis1=-2, axis2=-1) / 2
    np.testing.assert_allclose(drawn, np.sqrt(variance), rtol=1e-5)
    figure.savefig(tmp_path / "field.png")
    assert (tmp_path / "field.png").stat().st_size > 20_000


def test_ellipses_are_the_covariance():
    still = 5 * scene(SHAPE, 3.0, smooth=True)
    found = register_field(still, moved(still, SHIFT) + scene(SHAPE, 0.0, seed=1), 1.0, window=16)
    covariance = jnp.asarray([[0.04, 0.0], [0.0, 0.01]], found.shift.dtype)
    found = replace(found, covariance=jnp.broadcast_to(covariance, found.covariance.shape))
    figure = plot_field(found, scale=2.0)
    (ellipses,) = (c for c in figure.axes[0].collections if type(c).__name__ == "EllipseCollection")
    # Widths along the longer axis, which is y: from edge to edge, twice the standard error times the scale.
    np.testing.assert_allclose(ellipses.get_widths(), 0.8, rtol=1e-5)
    np.testing.assert_allclose(ellipses.get_heights(), 0.4, rtol=1e-5)
    np.testing.assert_allclose(np.abs(ellipses.get_angles()) % 180, 90, atol=1e-3)


def test_mean_is_subtracted_and_the_axis_turned(field):
    figure = plot_field(field, subtract_mean=True, origin="upper")
    assert "less their mean, y = +0.6" in figure.get_suptitle()
    low, high = figure.axes[0].get_ylim()
    assert low > high


def test_many_windows_are_thinned():
    still = scene((200, 90), 3.0, smooth=True)
    found = register_field(still, moved(still, SHIFT), window=16, spacing=2, max_shift=2, verdict=False)
    (arrows,) = (c for c in plot_field(found).axes[0].collections if type(c).__name__ == "Quiver")
    assert 0 < len(arrows.U) <= 40 * 40


def test_wrong_shapes_raise(field):
    with pytest.raises(ValueError, match="image must have the shape"):
        plot_field(field, np.ones((3, 3)))
    line = np.random.default_rng(0).normal(size=200)
    with pytest.raises(ValueError, match="two dimensions"):
        plot_field(register_field(line, np.roll(line, 1), 0.1, window=32))
