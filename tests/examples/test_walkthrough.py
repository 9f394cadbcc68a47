"""The notebook shows what it says: committed with outputs, small, and the slow suite runs it again to the same figures."""

import importlib.util
import json
import re
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOK = EXAMPLES / "walkthrough.ipynb"
MAX_BYTES = 1_000_000
NUM_PICTURES = 4
# What must come out again: counts of answers, bytes that change, and that the six experts end every refusal.
FIGURES = re.compile(r"^[A-Z]+: \d+ of \d+$|^\d+ tensors, \d+ bytes change$|^these six: \d+%", re.MULTILINE)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """All outputs of all cells, in order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the cells printed to stdout."""
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def num_pictures(notebook: nbformat.NotebookNode) -> int:
    """How many outputs are PNG pictures."""
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_the_committed_notebook_has_its_outputs_and_no_trace_of_the_machine() -> None:
    text = NOTEBOOK.read_text()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert len(text.encode()) < MAX_BYTES
    assert num_pictures(notebook) == NUM_PICTURES
    assert "these six: 100%" in printed(notebook)
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    without_pictures = json.dumps([{**cell, "outputs": []} for cell in notebook.cells]) + printed(notebook)
    assert not re.search(r"/(home|root|tmp|usr|work)/", without_pictures)


@pytest.mark.slow
@pytest.mark.vllm
def test_the_notebook_runs_to_the_figures_that_it_shows() -> None:
    committed = nbformat.read(NOTEBOOK, as_version=4)
    location = importlib.util.spec_from_file_location("run_notebook", EXAMPLES / "run_notebook.py")
    assert location is not None and location.loader is not None
    script = importlib.util.module_from_spec(location)
    location.loader.exec_module(script)
    notebook = script.executed(NOTEBOOK)
    assert num_pictures(notebook) == NUM_PICTURES
    assert FIGURES.findall(printed(notebook)) == FIGURES.findall(printed(committed)) != []
