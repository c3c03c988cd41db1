"""The notebooks run from a clean kernel, and lie in the repository without outputs.

A cell's metadata may hold replacements under "tiny": here they make the notebook a fraction of its size.
"""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

# What Jupyter's own machinery warns about is no concern of this package.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.long
def test_runs(notebook, tmp_path):
    for cell in notebook.cells:
        for full, tiny in cell.metadata.get("tiny", {}).items():
            assert full in cell.source
            cell.source = cell.source.replace(full, tiny)
    # An exception in a cell is raised here as nbclient.exceptions.CellExecutionError, with its traceback.
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    executed = client.execute()
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not list(tmp_path.iterdir())
