"""The notebooks in examples/: each runs from beginning to end, and is committed with its output."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYSERINI_KD_HOME", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # `make` sets 1, for tests beside each other; these come last
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in code(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_its_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs) >= 2
    assert not [output for cell in code(notebook) for output in cell.outputs if output.output_type == "error"]
