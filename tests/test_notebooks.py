"""Notebooks: each cell runs within two minutes, and outputs are committed."""

from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STANDARD_LIBRARY = {"dataclasses", "json", "pathlib", "shutil", "sys"}


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(cells: list[Any]) -> list[int]:
    """The number of figures that each cell shows."""
    return [
        sum("data:image/png" in str(output) or "image/png" in str(output) for output in cell.outputs)
        for cell in cells
    ]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_shows_as_many_figures_as_are_committed(path: Any) -> None:
    notebook = nbformat.read(path, as_version=4)
    committed = figures(code_cells(notebook))
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    assert figures(code_cells(notebook)) == committed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_its_outputs(path: Any) -> None:
    """All cells were run in order and without errors, and there are figures."""
    cells = code_cells(nbformat.read(path, as_version=4))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum(figures(cells)) > 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_imports_only_captioner_and_the_standard_library(path: Any) -> None:
    for cell in code_cells(nbformat.read(path, as_version=4)):
        for line in cell.source.splitlines():
            if line.startswith(("import ", "from ")):
                module = line.split()[1].split(".")[0]
                assert module in {"captioner", *STANDARD_LIBRARY}
