"""The notebook runs from top to bottom, in a smaller setting."""

from pathlib import Path

import nbformat
import papermill
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.slow
def test_notebook_runs(tmp_path):
    parameters = {
        "STEPS": 8,
        "RESULTS": str(tmp_path / "results"),
        "SAVE_AS": str(tmp_path / "figure.png"),
        "SCALE": {"evaluations": 2, "batch_size": 16},
        "GLYPHS": {"train_per_label": 1, "validation_per_label": 1},
    }
    notebook = papermill.execute_notebook(
        NOTEBOOKS / "microbatches.ipynb",
        tmp_path / "out.ipynb",
        parameters,
        cwd=NOTEBOOKS,
        kernel_name="python3",
        progress_bar=False,
    )
    shown = "".join(str(cell.get("outputs")) for cell in notebook.cells)
    assert "Batch Renorm, groups of 4" in shown
    assert (tmp_path / "figure.json").exists()
    assert len(list((tmp_path / "results").glob("*.json"))) == 3


def test_committed_notebook_was_executed_from_top_to_bottom():
    path = NOTEBOOKS / "microbatches.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 200_000
