"""Runs examples/walkthrough.ipynb and writes what comes out into it: `make notebook`.

What would differ from run to run without saying anything, times and versions, is left out.
"""

from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent / "walkthrough.ipynb"
# Of one cell, on a core that others use too.
CELL_SECONDS = 900


def executed(path: Path = NOTEBOOK) -> Any:
    """The notebook with the outputs of a run, which takes three minutes on a quiet core and 2 GB of memory."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Run it in place."""
    nbformat.write(executed(), NOTEBOOK)


if __name__ == "__main__":
    main()
