"""The notebooks run from top to bottom, in a smaller setting."""

from pathlib import Path

import keras
import nbformat
import papermill
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
FIGURE = {
    "STEPS": 8,
    "CHANGES": {"evaluations": 2, "batch_size": 32, "width": 1},
    "GLYPHS": {"train_per_label": 8},
}
TUNING = {"CHANGES": {"epochs": 1}, "PRETRAINING_STEPS": 1, "WIDTH": 1, "TRAIN_PER_LABEL": 1}
EXPECTED = {  # Parameters, the number of runs, and a row of the table.
    "figure1": (FIGURE, 2, "Batch Renorm, groups of 32"),
    "figure2": (FIGURE, 3, "deficit recovered, Batch Renorm"),
    "fine_tuning": (TUNING, 3, "Batch Renorm, after `renormalize`"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_notebook_runs(tmp_path, name):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("The same code on every backend, most of it compilation.")
    parameters, runs, row = EXPECTED[name]
    notebook = papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb",
        tmp_path / "out.ipynb",
        {**parameters, "RESULTS": str(tmp_path / "results")},
        cwd=NOTEBOOKS,
        kernel_name="python3",
        progress_bar=False,
    )
    assert row in "".join(str(cell.get("outputs")) for cell in notebook.cells)
    assert len(list((tmp_path / "results").glob("*.json"))) == runs


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_were_executed_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 200_000
    tags = {tag for cell in code for tag in cell.metadata.get("tags", [])}
    assert "injected-parameters" not in tags  # As anyone gets it, without a setting of one machine.
