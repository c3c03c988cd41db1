import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxchi2
from jaxchi2.cli import main
from jaxchi2.data import demo_files, demo_pair
from jaxchi2.io import read_image

fits = pytest.importorskip("astropy.io.fits")
iio = pytest.importorskip("imageio.v3")
pytest.importorskip("matplotlib")

REFERENCE, IMAGE = map(str, demo_files())

# Found without jaxchi2, by three methods that jaxchi2/data/README.md describes: scikit-image's correlation
# with and without a window, and splines with gain and background fitted. They range over 0.015 pixels, for
# they treat borders and galaxy colours differently; twice half that range about the middle is allowed here.
EXPECTED_SHIFT = (3.0475, -5.0070)
EXPECTED_WITHIN = 0.015


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("jaxchi2: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_shift_of_the_demo_pair_is_what_other_tools_find():
    result = jaxchi2.register(*demo_pair())
    np.testing.assert_allclose(result.shift, EXPECTED_SHIFT, rtol=0, atol=EXPECTED_WITHIN)
    # In two colours galaxies differ by more than noise.
    assert result.status == jaxchi2.Status.CONTRADICTED


def test_shift_of_the_demo_pair_is_that_of_scikit_image():
    """With equal errors χ² and the unnormalised cross-correlation have the same extreme."""
    skimage = pytest.importorskip("skimage.registration")
    reference, image = (pixels.astype(float) for pixels in demo_pair())
    found, _, _ = skimage.phase_cross_correlation(image, reference, normalization=None, upsample_factor=100)
    # Its grid has steps of 0.01 pixels.
    np.testing.assert_allclose(jaxchi2.register(*demo_pair()).shift, found, rtol=0, atol=0.006)


def test_report(capsys):
    code, out, err = run(capsys, "register", REFERENCE, IMAGE)
    assert code == 0
    assert err == ""
    lines = {line[:11].strip(): line[11:].strip() for line in out.splitlines() if line.strip()}
    assert lines["reference"] == "hubble_xdf_green.npy"
    assert lines["image"] == "hubble_xdf_blue.npy, 192 × 192 pixels"
    assert lines["y"].startswith("+3.04")
    assert lines["x"].startswith("-5.00")
    assert lines["x"].count("±") == lines["x"].count("…") == 1
    assert lines["status"].startswith("65536: residuals contradict the errors of the model")
    assert "χ²/dof" in lines
    assert lines["noise"].startswith("7.7")


def test_json_equals_register(capsys):
    code, out, _ = run(capsys, "register", REFERENCE, IMAGE, "--err", "8", "--nsigma", 2, "--json")
    assert code == 0
    fields = json.loads(out)
    result = jaxchi2.register(*demo_pair(), 8.0, nsigma=2.0)
    for name in ("shift", "stderr", "covariance", "interval", "chi2", "dof", "reduced_chi2", "status"):
        np.testing.assert_array_equal(fields[name], np.asarray(getattr(result, name)).tolist())
    assert fields["err"] == 8.0
    assert fields["nsigma"] == 2.0
    assert fields["boundary"] == "overlap"
    assert fields["shape"] == [192, 192]
    assert fields["version"] == jaxchi2.__version__


def test_errors_from_the_residuals(capsys):
    """Two colours of a scene differ by more than noise: windows of theirs scatter by 0.015 pixels."""
    arguments = ("register", REFERENCE, IMAGE, "--errors", "sandwich")
    _, out, _ = run(capsys, *arguments)
    assert "errors     from the residuals, 3.7" in out
    assert "contradict" in out
    _, out, _ = run(capsys, *arguments, "--json")
    fields = json.loads(out)
    assert np.all(np.array(fields["inflation"]) > 3)
    assert np.all(abs(np.array(fields["stderr"]) - 0.012) < 0.003)
    model = jaxchi2.register(*demo_pair())
    np.testing.assert_allclose(fields["stderr"], model.stderr * np.array(fields["inflation"]), rtol=1e-5)


@pytest.fixture
def calls(monkeypatch):
    """What the command passes to register, which is replaced by one that finds nothing."""
    recorded = []

    def register(reference, image, err, **options):
        recorded.append((reference, image, err, options))
        nan = jnp.full((2, 2), jnp.nan)
        status = jnp.asarray(int(jaxchi2.Status.OUT_OF_WINDOW))
        found = jaxchi2.Registration(*[nan[0, 0]] * len(jaxchi2.Registration._fields))
        return found._replace(shift=nan[0], covariance=nan, interval=nan, dof=jnp.asarray(7), status=status)

    monkeypatch.setattr(jaxchi2, "register", register)
    return recorded


@pytest.mark.parametrize(("given", "max_shift"), [(("9.5",), 9.5), (("20", "9.5"), (20.0, 9.5))])
def test_options_reach_register(capsys, calls, given, max_shift):
    options = (
        "--boundary",
        "fill",
        "--max-shift",
        *given,
        "--fit-gain",
        "--fit-background",
        "--clip",
        4.5,
        "--errors",
        "sandwich",
        "--nsigma",
        1.5,
        "--err",
        IMAGE,
    )
    run(capsys, "register", REFERENCE, IMAGE, *options)
    reference, image, err, options = calls[0]
    np.testing.assert_array_equal(reference, demo_pair()[0])
    np.testing.assert_array_equal(image, demo_pair()[1])
    np.testing.assert_array_equal(err, demo_pair()[1])
    assert options == {
        "boundary": "fill",
        "fit_gain": True,
        "fit_background": True,
        "clip": 4.5,
        "errors": "sandwich",
        "max_shift": max_shift,
        "nsigma": 1.5,
    }


def test_error_map_and_fits(capsys, tmp_path):
    """FITS in, by extension; the error map an extension of the same file; an aligned FITS file out."""
    reference, image = demo_pair()
    hdus = fits.HDUList([fits.PrimaryHDU()])
    for name, pixels in (("SCI", image), ("ERR", np.full(image.shape, 8.0))):
        hdus.append(fits.ImageHDU(pixels.astype(np.float32), name=name))
    hdus["SCI"].header["OBJECT"] = "XDF"
    hdus["SCI"].header["CRPIX1"] = 96.0
    path, out_path = tmp_path / "image.fits", tmp_path / "aligned.fits"
    hdus.writeto(path)
    code, out, err = run(
        capsys, "register", REFERENCE, f"{path}[SCI]", "--err", f"{path}[ERR]", "--out", out_path, "--json"
    )
    assert code == 0
    assert str(out_path) in err, "with --json, notes belong on standard error"
    shift = json.loads(out)["shift"]
    uniform = jaxchi2.register(reference, image, 8.0)
    np.testing.assert_allclose(shift, uniform.shift, rtol=0, atol=1e-4)

    aligned, meta = read_image(f"{out_path}[SCI]")
    assert meta.header["OBJECT"] == "XDF"
    assert meta.header["CRPIX1"] == pytest.approx(96.0 - shift[1])
    again = jaxchi2.register(reference, aligned, 8.0)
    np.testing.assert_allclose(again.shift, 0, atol=0.004)


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".png"])
def test_out_is_aligned(capsys, tmp_path, suffix):
    image = tmp_path / f"image{suffix}"
    if suffix == ".npy":
        np.save(image, demo_pair()[1])
    else:
        iio.imwrite(image, demo_pair()[1])
    code, out, _ = run(capsys, "register", REFERENCE, image, "--out", tmp_path / f"aligned{suffix}")
    assert code == 0
    assert "aligned" in out
    aligned = read_image(tmp_path / f"aligned{suffix}").data
    # The image ends 3.05 pixels above the bottom of the reference, and begins 5.01 to the right of its left.
    outside = np.ones(aligned.shape, bool)
    outside[:188, 6:] = False
    outside[188, :], outside[:, 5] = True, True
    if suffix == ".png":
        assert np.all(aligned[outside] == 0)
    else:
        np.testing.assert_array_equal(np.isnan(aligned), outside)
    # Registered in one shape with the test above, so that no other program is compiled.
    again = jaxchi2.register(demo_pair()[0], np.where(outside, np.nan, aligned).astype(np.float32), 8.0)
    # Eight-bit rounding and clipping at 0 and 255 move the centre of a PNG a little.
    np.testing.assert_allclose(again.shift, 0, atol=0.006 if suffix == ".png" else 0.004)


def test_plot(capsys, tmp_path):
    code, out, _ = run(capsys, "register", REFERENCE, IMAGE, "--plot", tmp_path / "a.png")
    assert code == 0
    assert "a.png" in out
    assert iio.imread(tmp_path / "a.png").std() > 20


def test_status_flag_is_exit_status_one(capsys, tmp_path):
    code, out, _ = run(
        capsys,
        "register",
        REFERENCE,
        IMAGE,
        "--boundary",
        "wrap",
        "--max-shift",
        2,
        "--out",
        tmp_path / "a.npy",
        "--plot",
        tmp_path / "a.png",
    )
    assert code == 1
    assert "outside the search window" in out
    assert "none" in out
    assert "not written" in out
    assert not (tmp_path / "a.npy").exists()
    assert (tmp_path / "a.png").exists()


def test_min_overlap_bounds_the_search(capsys, tmp_path):
    """Windows with a fifth of the frame in common."""
    large = np.random.default_rng(0).normal(size=(90, 60))
    np.save(tmp_path / "a.npy", large[:50, :40])
    np.save(tmp_path / "b.npy", large[34:84, 8:48])
    pair = tmp_path / "a.npy", tmp_path / "b.npy"
    options = ("--err", 0.1, "--max-shift", "inf", "--json")
    _, out, _ = run(capsys, "register", *pair, *options, "--min-overlap", 0.2)
    np.testing.assert_allclose(json.loads(out)["shift"], (-34, -8), atol=1e-3)
    code, out, _ = run(capsys, "register", *pair, *options, "--min-overlap", 0.5)
    assert code == 1
    assert json.loads(out)["shift"] != [-34, -8]


@pytest.mark.usefixtures("calls")
def test_json_has_null_for_nan(capsys):
    code, out, _ = run(capsys, "register", REFERENCE, IMAGE, "--json")
    assert code == 1
    fields = json.loads(out)
    assert fields["shift"] == [None, None]
    assert fields["chi2"] is None
    assert fields["status"] == int(jaxchi2.Status.OUT_OF_WINDOW)
    assert "outside the search window" in fields["message"]


def test_one_dimension(capsys, tmp_path):
    scene = np.exp(-((np.arange(64) - 30.0) ** 2) / 20).astype(np.float32)
    np.save(tmp_path / "a.npy", scene)
    np.save(
        tmp_path / "b.npy",
        np.roll(scene, 5) + np.float32(0.01) * np.sin(np.arange(64) ** 2, dtype=np.float32),
    )
    code, out, _ = run(capsys, "register", tmp_path / "a.npy", tmp_path / "b.npy")
    assert code == 0
    assert "\nx " in out
    assert "\ny " not in out
    assert "64 pixels" in out
    assert "not 1" in fails(
        capsys, "register", tmp_path / "a.npy", tmp_path / "b.npy", "--plot", tmp_path / "a.png"
    )


def test_float64_stays_in_the_command(capsys):
    before = jax.config.read("jax_enable_x64")
    code, out, _ = run(capsys, "register", REFERENCE, IMAGE, "--err", "8", "--float64", "--json")
    assert code == 0
    assert jax.config.read("jax_enable_x64") == before
    fields = json.loads(out)
    assert fields["shift"] != np.float32(fields["shift"]).tolist(), "not computed in double precision"
    result = jaxchi2.register(*demo_pair(), 8.0)
    np.testing.assert_allclose(result.shift, fields["shift"], rtol=0, atol=4e-6)


def test_demo_in_a_new_process(tmp_path):
    """As a newcomer types it; numbers as the library gives them, and a picture."""
    done = subprocess.run(
        [sys.executable, "-m", "jaxchi2", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert "errors     from the residuals" in done.stdout
    assert "jaxchi2-demo.png" in done.stdout
    assert iio.imread(tmp_path / "jaxchi2-demo.png").std() > 20


def test_demo_without_plot(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "demo", "--no-plot", "--json")
    assert code == 0
    result = jaxchi2.register(*demo_pair())
    # Another program, with errors from the residuals.
    np.testing.assert_allclose(json.loads(out)["shift"], result.shift, rtol=1e-6)
    assert list(tmp_path.iterdir()) == []


def test_terminal_without_unicode(monkeypatch, tmp_path):
    with open(tmp_path / "out.txt", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["demo", "--no-plot"]) == 0
    assert "+3.04" in (tmp_path / "out.txt").read_text(encoding="ascii")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"jaxchi2 {jaxchi2.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("--help",), ("register", "--help"), ("stack", "--help"), ("demo", "--help")]
)
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "usage: jaxchi2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "frobnicate"),
        (("register", REFERENCE), "IMG"),
        (("register", REFERENCE, "missing.fits[SCI]"), "No such file: missing.fits"),
        (("register", REFERENCE, "image.bmp"), "'.bmp'"),
        (("register", REFERENCE, f"{IMAGE}[1]"), "only FITS files have extensions"),
        (("register", REFERENCE, IMAGE, "--err", "-3"), "positive number"),
        (("register", REFERENCE, IMAGE, "--err", "nan"), "positive number"),
        (("register", REFERENCE, IMAGE, "--err", "missing.npy"), "No such file: missing.npy"),
        (("register", REFERENCE, IMAGE, "--max-shift", "-1"), "max_shift must be positive"),
        (("register", REFERENCE, IMAGE, "--max-shift", "1", "2", "3"), "max_shift"),
        (("register", REFERENCE, IMAGE, "--max-shift", "wide"), "'wide'"),
        (("register", "--max-shift", "3", REFERENCE, IMAGE), "REF"),
        (("register", REFERENCE, IMAGE, "--min-overlap", "0"), "min_overlap must be a number in (0, 1]"),
        (("register", REFERENCE, IMAGE, "--nsigma", "0"), "--nsigma"),
        (("register", REFERENCE, IMAGE, "--nsigma", "many"), "--nsigma"),
        (("register", REFERENCE, IMAGE, "--boundary", "torus"), "--boundary"),
        (("register", REFERENCE, IMAGE, "--out", "aligned.bmp"), "'.bmp'"),
        (("register", REFERENCE, IMAGE, "--plot", "picture.xyz"), "'picture.xyz'"),
        (("stack",), "FILES"),
        (("stack", "missing.fits"), "No such file: missing.fits"),
        (("stack", "missing*.fits"), "No file matches: missing*.fits"),
        (("stack", REFERENCE), "a stack has a frame axis"),
        (("stack", REFERENCE, IMAGE, "--reference", "median"), "first, previous"),
        (("stack", REFERENCE, IMAGE, "--err", "0"), "positive number"),
        (("stack", REFERENCE, IMAGE, "--table", "a.txt"), "'a.txt'"),
        (("stack", REFERENCE, IMAGE, "--out", "a.png"), "'a.png'"),
        (("stack", REFERENCE, IMAGE, "--plot", "a.xyz"), "'a.xyz'"),
        (("stack", REFERENCE, IMAGE, "--chunk", "0"), "chunk"),
    ],
)
def test_errors_take_one_line(capsys, arguments, problem):
    assert problem in fails(capsys, *arguments)


@pytest.fixture
def frames(tmp_path):
    """Eight frames of a drift, in a file; what to register them by."""
    scene = np.random.default_rng(2).normal(size=(16, 16))
    stack = np.stack([np.roll(scene, (k // 2, -k // 3), (0, 1)) for k in range(8)])
    stack += 0.1 * np.random.default_rng(3).normal(size=stack.shape)
    np.save(tmp_path / "stack.npy", stack.astype(np.float32))
    return tmp_path / "stack.npy", ("--reference", "first", "--boundary", "wrap", "--err", 0.14, "--chunk", 4)


def test_stack(capsys, tmp_path, frames):
    path, options = frames
    table, out, plot = tmp_path / "shifts.ecsv", tmp_path / "aligned.tif", tmp_path / "drift.png"
    arguments = ("stack", path, *options, "--table", table, "--out", out, "--plot", plot)
    code, text, err = run(capsys, *arguments)
    assert code == 0
    assert err == "", "no progress where nobody watches"
    lines = {line[:11].strip(): line[11:].strip() for line in text.splitlines() if line.strip()}
    assert lines["source"] == "stack.npy, 8 frames of 16 × 16 pixels"
    assert lines["reference"] == "first"
    assert lines["status"] == "ok"
    assert [lines[name] for name in ("table", "aligned", "picture")] == [str(table), str(out), str(plot)]
    assert iio.imread(plot).std() > 20
    assert np.nanmean(np.std(iio.imread(out), axis=0)) < 0.12
    # The same again with the table finished, as one object.
    whole = table.read_bytes()
    assert f"{plot} exists" in fails(capsys, *arguments)
    code, text, err = run(capsys, *arguments, "--json", "--progress", "--overwrite")
    assert code == 0
    assert str(plot) in err
    fields = json.loads(text)
    result = jaxchi2.register_stack(np.load(path), "first", 0.14, boundary="wrap")
    np.testing.assert_allclose(fields["shift"], result.shift, atol=1e-5)
    assert fields["frames"] == 8
    assert fields["reference"] == "first"
    assert table.read_bytes() == whole
    assert "belongs to a run with other options: err was" in fails(
        capsys, *arguments[:-6], "--table", table, "--err", 1
    )
    again = (*arguments[:-6], "--table", table, "--err", 0.15, "--no-resume", "--progress")
    assert "--overwrite" in fails(capsys, *again)
    code, _, err = run(capsys, *again, "--overwrite")
    assert code == 0
    assert "frame/s" in err
    assert table.read_bytes() != whole


def test_stack_of_files(capsys, tmp_path, frames):
    """One of them missing: told, and exit status 1."""
    path, options = frames
    names = [tmp_path / f"frame{k}.npy" for k in range(8)]
    for name, frame in zip(names, np.load(path), strict=True):
        np.save(name, frame)
    names[2].unlink()
    code, text, _ = run(capsys, "stack", *names, *options)
    assert code == 1
    assert "1 × the frame could not be read: frame 2" in text
    assert f"No such file: {names[2]}" in text
    code, text, _ = run(capsys, "stack", tmp_path / "frame*.npy", *options, "--json", "--float64")
    assert code == 0
    fields = json.loads(text)
    assert fields["frames"] == 7
    assert fields["shift"] != np.float32(fields["shift"]).tolist(), "not computed in double precision"


def test_unlike_shapes(capsys, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((192, 191), np.uint8))
    options = "--boundary", "wrap"
    assert "(192, 191)" in fails(capsys, "register", REFERENCE, tmp_path / "a.npy", *options)
    assert "(192, 191)" in fails(capsys, "register", REFERENCE, IMAGE, "--err", tmp_path / "a.npy")


def test_unlike_shapes_that_overlap(capsys, tmp_path, monkeypatch):
    """A part of the reference, far from its corner: written and drawn on the reference's grid."""
    reference, image = demo_pair()
    np.save(tmp_path / "a.npy", image[80:144, 90:154])
    nan = jnp.full((2, 2), jnp.nan)
    found = jaxchi2.Registration(*[jnp.ones(())] * len(jaxchi2.Registration._fields))
    found = found._replace(
        shift=jnp.asarray(np.add(EXPECTED_SHIFT, (-80, -90))), covariance=nan, interval=nan
    )
    found = found._replace(status=jnp.asarray(0), dof=jnp.asarray(9), background=jnp.zeros(()))
    monkeypatch.setattr(jaxchi2, "register", lambda *_, **__: found)
    out, plot = tmp_path / "o.npy", tmp_path / "p.png"
    code, _, _ = run(capsys, "register", REFERENCE, tmp_path / "a.npy", "--out", out, "--plot", plot)
    assert code == 0
    aligned = np.load(out)
    assert aligned.shape == reference.shape
    known = np.zeros(reference.shape, bool)
    # The image's first pixel lies at 76.95 and 95.01 of the reference.
    known[77:140, 96:159] = True
    np.testing.assert_array_equal(np.isfinite(aligned), known)
    assert np.std((aligned - reference)[known]) < 0.7 * np.std(reference[known])
    assert iio.imread(plot).std() > 20


@pytest.mark.usefixtures("calls")
def test_the_picture_has_the_options_of_the_shift(capsys, tmp_path, monkeypatch):
    drawn = []

    def plot_registration(*images, **options):
        drawn.append(options)
        raise ValueError("enough")

    monkeypatch.setattr("jaxchi2.plot.plot_registration", plot_registration)
    given = ("--fit-gain", "--fit-background", "--clip", 4, "--max-shift", 9, "--boundary", "wrap")
    with pytest.raises(SystemExit):
        main([str(a) for a in ("register", REFERENCE, IMAGE, "--plot", tmp_path / "a.png", *given)])
    options = {"fit_gain": True, "fit_background": True, "clip": 4.0, "boundary": "wrap", "max_shift": 9.0}
    assert options.items() <= drawn[0].items()
    assert list(tmp_path.iterdir()) == []


def test_summary_is_of_related_frames(capsys, frames, monkeypatch):
    path, options = frames
    found = jaxchi2.register_stack(np.load(path), "first", 0.14, boundary="wrap")
    shift, status = np.array(found.shift), np.array(found.status)
    shift[5], status[5] = 60, int(jaxchi2.Status.UNRELATED)

    def register_stack(stack, *_, **__):
        first = 0 if np.array_equal(stack[0], np.load(path)[0]) else 4
        part = jax.tree.map(lambda x: np.asarray(x)[first : first + 4], found)
        return part._replace(shift=shift[first : first + 4], status=status[first : first + 4])

    monkeypatch.setattr("jaxchi2.stream.register_stack", register_stack)
    code, text, _ = run(capsys, "stack", path, *options)
    assert code == 1
    assert "60" not in text
    assert "without unrelated frames" in text
    assert "chance: frame 5" in text


def test_too_little_memory_takes_one_line(capsys, monkeypatch):
    def register(*_, **__):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(jaxchi2, "register", register)
    assert "7 TiB" in fails(capsys, "register", REFERENCE, IMAGE)


def test_a_header_that_promises_too_much_takes_one_line(capsys, tmp_path):
    for name, shape in (
        ("long.npy", (10**9, 8, 8)),
        ("large.npy", (3, 10**6, 10**6)),
        ("image.npy", (10**6,) * 2),
    ):
        with open(tmp_path / name, "wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            file.write(bytes(1000))
    for name in ("long.npy", "large.npy"):
        assert "not complete" in fails(capsys, "stack", tmp_path / name)
    for name in ("large.npy", "image.npy"):
        assert "not complete" in fails(capsys, "register", REFERENCE, tmp_path / name)
    assert "not complete" in fails(capsys, "stack", REFERENCE, IMAGE, "--reference", tmp_path / "image.npy")


@pytest.mark.parametrize("name", ["a.fits", "a.tif", "a.npy", "a.png"])
def test_damaged_files(capsys, tmp_path, name):
    (tmp_path / name).write_bytes(b"this is not an image " * 200)
    fails(capsys, "register", REFERENCE, tmp_path / name)


def test_import_is_light():
    code = (
        "import sys, jaxchi2.cli, jaxchi2.stream\n"
        "heavy = {'matplotlib', 'astropy', 'tifffile', 'imageio', 'PIL', 'h5py', 'zarr', 'pyarrow', 'tqdm'}\n"
        "assert not heavy & set(sys.modules), heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
