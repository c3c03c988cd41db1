"""Conventions of the whole package: what it exports, how that is documented, what it imports."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
import tomllib
import types
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import enable_x64

import jaxchi2
from jaxchi2 import Chi2Surface, Registration, RunnerUp, Status, fourier, image_registration

PACKAGE = Path(jaxchi2.__file__).parent
# Packages of several modules each of which has its place.
WINGS = ("engine", "files")
# A module imports only from those before it.
ORDER = [
    "arrays",
    "checks",
    "sharding",
    "fourier",
    "engine.passes",
    "engine.position",
    "engine.spectrum",
    "engine.algebra",
    "engine.taylor",
    "engine.polynomial",
    "engine.choices",
    "engine.constraints",
    "engine.continuation",
    "engine.counts",
    "engine.pair",
    "engine.noise",
    "engine.overlap",
    "engine.kernels",
    "engine.correlated",
    "engine.searchgrid",
    "engine.chi2series",
    "engine.layout",
    "engine.wiener",
    "engine.terms",
    "engine.builders",
    "engine.minimum",
    "engine.errors",
    "engine.chance",
    "engine.verdict",
    "engine.sandwich",
    "engine.ways",
    "engine.gridded",
    "engine.windowgrid",
    "engine.windows",
    "sampling",
    "motion",
    "surface",
    "status",
    "results",
    "registration",
    "batch",
    "coadd",
    "align",
    "template",
    "psf",
    "pattern",
    "chunks",
    "mean",
    "stack",
    "joint",
    "pipeline",
    "smoothfield",
    "field",
    "leastsq",
    "image_registration",
    "ml",
    "files.axes",
    "files.formats",
    "files.tiff",
    "io",
    "files.outputs",
    "data",
    "files.sources",
    "files.settings",
    "files.rows",
    "files.tables",
    "files.stackfile",
    "stream",
    "plot",
    "plotfield",
    "cli",
]
PUBLIC = {name: getattr(jaxchi2, name) for name in jaxchi2.__all__ if name != "fourier"}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if not inspect.isclass(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
OLDER = {
    function.__name__: function
    for function in (
        image_registration.cross_correlation_shifts,
        image_registration.register_images,
        image_registration.iterative_zoom.centers_to_edges,
    )
}
FOURIER = {f"fourier.{name}": getattr(fourier, name) for name in fourier.__all__}


def test_all_is_what_there_is():
    assert jaxchi2.__all__ == sorted(set(jaxchi2.__all__))
    names = {
        name
        for name, value in vars(jaxchi2).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    # `align` is a function although a module has that name too.
    assert names | {"fourier"} == set(jaxchi2.__all__)
    assert callable(jaxchi2.align)


def test_all_of_fourier_is_what_there_is():
    assert fourier.__all__ == sorted(set(fourier.__all__))
    assert all(inspect.isfunction(f) and f.__module__ == "jaxchi2.fourier" for f in FOURIER.values())


def test_version():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    assert jaxchi2.__version__ == project["version"]


# Docstrings


def sections(value):
    """Split a NumPy-style docstring by its underlined headings; the text before them is under ""."""
    lines = inspect.getdoc(value).splitlines()
    heads = [
        i for i, line in enumerate(lines[1:]) if line and set(line) == {"-"} and len(line) == len(lines[i])
    ]
    found = {"": "\n".join(lines[: heads[0] if heads else None])}
    for head, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        found[lines[head]] = "\n".join(lines[head + 2 : end])
    return found


@pytest.mark.parametrize("name", [*FUNCTIONS, *OLDER])
def test_function_is_documented(name):
    function = {**FUNCTIONS, **OLDER}[name]
    found = sections(function)
    assert found[""].splitlines()[0].endswith(".")
    # A function may refer to the one whose arguments it takes.
    elsewhere = "as for `" in found[""]
    required = {"Returns", "Examples"} if elsewhere else {"Parameters", "Returns", "Raises", "Examples"}
    assert required <= set(found)
    if not elsewhere:
        documented = {
            word.strip().lstrip("*")
            for line in found["Parameters"].splitlines()
            if line and not line.startswith(" ")
            for word in line.partition(" : ")[0].split(",")
        }
        assert set(inspect.signature(function).parameters) == documented


@pytest.mark.parametrize("name", FOURIER)
def test_fourier_function_is_documented(name):
    found = sections(FOURIER[name])
    assert found[""].splitlines()[0].endswith(".")
    elsewhere = "as for `" in found[""]
    required = {"Examples"} if elsewhere else {"Parameters", "Returns", "Raises", "Examples"}
    assert required <= set(found)


@pytest.mark.parametrize("name", CLASSES)
def test_class_and_methods_are_documented(name):
    cls = CLASSES[name]
    assert inspect.getdoc(cls)
    for member, value in vars(cls).items():
        if member.startswith("_") and member != "__call__":
            continue
        if inspect.isfunction(value) or isinstance(value, property):
            assert value.__doc__, f"{name}.{member} has no docstring"
            assert value.__doc__.strip().splitlines()[0].rstrip().endswith((".", ":"))


def test_every_field_of_registration_is_documented():
    tree = ast.parse((PACKAGE / "results.py").read_text())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Registration").body
    documented = {
        field.target.id
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    assert documented == set(Registration._fields)


def modules():
    """Every module, those within packages after them."""
    for name in ORDER:
        module = importlib.import_module(f"jaxchi2.{name}")
        yield module
        for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
            yield importlib.import_module(info.name)


def doctests():
    """Every example of every module's own objects, as pytest parameters.

    Objects are unwrapped first: doctest's own search of a module passes over decorated functions.
    """
    for module in modules():
        module_name = module.__name__.removeprefix("jaxchi2.")
        objects = {
            name: inspect.unwrap(value)
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        }
        for name, value in {"": module, **objects}.items():
            finder = doctest.DocTestFinder(exclude_empty=True, recurse=inspect.isclass(value))
            label = f"{module_name}.{name}".rstrip(".")
            for test in finder.find(value, label, module, globs=dict(vars(module))):
                if test.examples:
                    yield pytest.param(test, id=test.name)


DOCTESTS = list(doctests())


def test_doctests_are_found():
    found = {p.id.rpartition(".")[2] for p in DOCTESTS}
    assert set(FUNCTIONS) <= found


@pytest.mark.parametrize("test", DOCTESTS)
def test_doctest(test):
    # The numbers shown are those of JAX's default precision.
    with enable_x64(False):
        results = doctest.DocTestRunner().run(test, clear_globs=False)
    assert results.attempted
    assert not results.failed


# Signatures


@pytest.mark.parametrize(
    ("function", "data"),
    [
        (jaxchi2.register, ["reference", "image", "err"]),
        (jaxchi2.chi2_surface, ["reference", "image", "err"]),
        (jaxchi2.align, ["image", "shift"]),
    ],
)
def test_options_are_keyword_only(function, data):
    parameters = inspect.signature(function).parameters
    assert list(parameters)[: len(data)] == data
    for name, parameter in parameters.items():
        expected = parameter.POSITIONAL_OR_KEYWORD if name in data else parameter.KEYWORD_ONLY
        assert parameter.kind == expected


@pytest.mark.parametrize("name", [*FUNCTIONS, *OLDER, *FOURIER])
def test_signatures_are_annotated(name):
    signature = inspect.signature({**FUNCTIONS, **OLDER, **FOURIER}[name])
    assert signature.return_annotation is not signature.empty
    assert all(p.annotation is not p.empty for p in signature.parameters.values())


# Imports


def test_import_is_light_and_leaves_configuration():
    # JAX is imported first: what it brings along is not the question.
    script = """
import sys
import jax
before = dict(jax.config.values)
already = set(sys.modules)
import jaxchi2
heavy = {"matplotlib", "astropy", "tifffile", "imageio", "scipy.stats", "PIL"}
print(sorted(heavy & (set(sys.modules) - already)), dict(jax.config.values) == before)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[] True"


def module_of(parts):
    """Of the packages of several modules each is one; of others all are."""
    return ".".join(parts[: 2 if parts[0] in WINGS else 1])


def imported(path):
    """Modules of the package that a file imports from, anywhere in it."""
    package = ["jaxchi2", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            targets = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for target in targets:
            top, _, rest = target.partition(".")
            if top == "jaxchi2":
                yield module_of(rest.split("."))


def source_files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        gathers = parts[-1] in ("__init__", "__main__") and (len(parts) == 1 or parts[0] in WINGS)
        if not gathers:
            yield pytest.param(module_of(parts), path, id=str(path.relative_to(PACKAGE)))


SOURCE_FILES = list(source_files())


def test_every_module_has_a_place_in_the_order():
    assert {p.values[0] for p in SOURCE_FILES} == set(ORDER)


@pytest.mark.parametrize(("module", "path"), SOURCE_FILES)
def test_imports_go_one_way(module, path):
    above = ORDER[: ORDER.index(module)]
    # The package itself gathers the core, so what is not of the core may use it too.
    if "image_registration" in above:
        above += ["__version__", *jaxchi2.__all__]
    assert set(imported(path)) <= {*above, module}


# Results are pytrees


def example():
    """A pair whose sizes and options are those of register's own example, compiled once for both."""
    rng = np.random.default_rng(1)
    scene = rng.normal(size=(32, 32))
    return scene, np.roll(scene, (2, -3), (0, 1)) + rng.normal(scale=0.1, size=scene.shape), 0.1


def survives(value):
    leaves, structure = jax.tree.flatten(value)
    again = jax.tree.unflatten(structure, leaves)
    mapped = jax.tree.map(lambda x: x, value)
    jitted = jax.jit(lambda x: x)(value)
    for copy in (again, mapped, jitted):
        assert type(copy) is type(value)
        assert jax.tree.structure(copy) == structure
        for a, b in zip(jax.tree.leaves(copy), leaves, strict=True):
            np.testing.assert_array_equal(a, b)


def test_registration_is_a_pytree():
    with enable_x64(False):
        result = jaxchi2.register(*example()[:2])
        assert isinstance(result, Registration)
        assert len(jax.tree.leaves(result)) == len(Registration._fields) + len(RunnerUp._fields) - 1
        survives(result)
        assert jax.jit(lambda r: r.dx + r.stderr[1])(result).shape == ()
        assert Status(int(result.status)) == Status.OK
        with pytest.raises(AttributeError):
            result.shift = 0


def test_surface_is_a_pytree():
    with enable_x64(False):
        surface = jaxchi2.chi2_surface(*example())
        assert isinstance(surface, Chi2Surface)
        survives(surface)
        shift = np.float32([1.5, -2.5])
        value = jax.jit(lambda surface, shift: surface(shift))(surface, shift)
        np.testing.assert_allclose(value, surface(shift), rtol=1e-5)
        with pytest.raises(AttributeError):
            surface.terms = None
