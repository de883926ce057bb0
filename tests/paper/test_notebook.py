"""The notebooks run from top to bottom, in a smaller setting."""

import json
import re
import shutil
import sys
from pathlib import Path

import jupyter_client
import keras
import numpy as np
import pytest
from PIL import Image

from keras_brn.paper.experiment import GROUP_SIZES
from keras_brn.paper.launch import start, wait
from keras_brn.paper.results import figure_table, group_size_table

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
FIGURES = NOTEBOOKS.parent / "figures"
FIGURE = {
    "STEPS": 4,
    # Where tables and runs matter, and no accuracy, the plain network is built faster.
    "CHANGES": {"network": "small_network", "evaluations": 1, "batch_size": 32, "width": 1},
    "GLYPHS": {"train_per_label": 8, "labels": 80},
}
REHEARSAL = {
    "TRAIN": {},
    "CHANGES": {"network": "small_network", "steps": 2, "evaluations": 1, "batch_size": 32},
}
EXPECTED = {  # Parameters, the number of runs if it trains, and a row of the table.
    "figure1": (FIGURE, 2, "Batch Renorm, groups of 32"),
    "figure2": (FIGURE, 3, "share of batchnorm's deficit that Batch Renorm recovers"),
    "figure3": (FIGURE, 5, "share of the deficit to independent images recovered: halves"),
    "figure4": ({}, None, "image/png"),  # Shows the stored runs.
    "figure5": ({}, None, "layer normalization"),
    "cluster": (REHEARSAL, 2, "Batch Renorm, groups of 32"),
    "cost": ({}, None, "mu and sigma, one by one, ms"),
    "metric_learning": ({}, None, "Batch Renorm"),  # Shows the stored runs.
    "recurrent": ({}, None, "Batch Renorm, one set of averages"),
    "reinforcement": ({"STEPS": 60}, None, "Batch Renorm (CrossQ)"),
    "residual": ({"STEPS": 2, "IMAGES": 8}, None, "Batch Renorm, 4"),
    "cifar10": (
        {"STEPS": 25, "IMAGES": 32, "INCEPTION_STEPS": 1},
        None,
        "Batch Renorm, from epoch 20, 4",
    ),
    "generative": ({"STEPS": 10}, None, "Batch Renorm in the generator"),
    "fine_tuning": (
        {"IMAGES_SEEN": 8, "BASE_STEPS": 1, "OLD_PER_LABEL": 64},
        None,
        "Batch Renorm, after `renormalize`",
    ),
}


OF_JAX = {"reinforcement"}  # It sets the backend: in a kernel of its own.
# Their training steps are those of the package, which other tests compile: to trace a step takes
# longer than a few steps.
EAGER = {"figure1", "figure2", "figure3", "fine_tuning", "cluster", "cifar10", "residual"}


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks: to start and to import takes 7 s."""
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.client_class = "jupyter_client.asynchronous.AsyncKernelClient"  # As nbclient needs.
    manager.start_kernel()
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_notebook_runs(tmp_path, name, kernel):
    parameters, runs, row = EXPECTED[name]
    if name in ("residual", "cifar10"):
        parameters = {**parameters, "CIFAR10": str(_small_cifar10(tmp_path))}
    if runs is not None:
        parameters = {**parameters, "RESULTS": str(tmp_path / "results")}
    notebook = _execute(name, tmp_path, parameters, kernel)
    assert row in "".join(str(cell.get("outputs")) for cell in notebook.cells)
    if runs is not None:
        assert len(list((tmp_path / "results").glob("*.json"))) == runs


@pytest.mark.slow
@pytest.mark.each_backend
def test_tutorial_runs(tmp_path, kernel):
    notebook = _execute("tutorial", tmp_path, {"IMAGES": 2, "EPOCHS": 1}, kernel)
    printed = _printed(notebook)
    assert "E[r] = 1.000, 0.922, 0.798" in printed and "Batch Renorm, 4 examples:" in printed
    gradients = re.findall(r"^by_\w+ +(.*?)  sum", printed, re.MULTILINE)
    assert len(gradients) == 3 and len(set(gradients)) == 1  # The formula's, NumPy's, the layer's.
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "data" in o]
    assert [list(picture["data"]).count("image/png") for picture in pictures] == [1] * 8


@pytest.mark.long
@pytest.mark.parametrize("name, runs, width", [("figure4", 5, 1), ("figure5", 20, 8)])
def test_notebook_trains_anew(tmp_path, name, runs, width, kernel):
    parameters = {**FIGURE, "TRAIN": True, "RESULTS": str(tmp_path / "results")}
    parameters["CHANGES"] = {**FIGURE["CHANGES"], "width": width}  # Group norm has 8 groups.
    _execute(name, tmp_path, parameters, kernel)
    assert len(list((tmp_path / "results").glob("*.json"))) == runs


def _small_cifar10(folder):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("airplane", "cat"):
            of_label = folder / "cifar10" / part / label
            of_label.mkdir(parents=True)
            for number in range(20):
                image = rng.integers(0, 256, (32, 32, 3)).astype("uint8")
                Image.fromarray(image).save(of_label / f"{number}.png")
    return folder / "cifar10"


def _read(path):
    import nbformat  # Takes 3 s, which a process that runs none of these need not.

    return nbformat.read(path, as_version=4)


def _execute(name, folder, parameters, kernel):
    """The notebook, run in a kernel in which others may have run, but which holds no name."""
    import nbformat
    import papermill

    if name in OF_JAX:
        paths = NOTEBOOKS / f"{name}.ipynb", folder / "out.ipynb"
        return papermill.execute_notebook(*paths, parameters, progress_bar=False, cwd=NOTEBOOKS)
    lines = [
        "%reset -f",
        "import os, keras",
        f"os.chdir({str(NOTEBOOKS)!r})",
        f"os.environ['XDG_CACHE_HOME'] = {str(folder / 'cache')!r}",
        "keras.utils.clear_session(free_memory=False)",
        "keras.utils.set_random_seed(0)",
    ]
    if keras.backend.backend() == "tensorflow":
        lines += ["import tensorflow", f"tensorflow.config.run_functions_eagerly({name in EAGER})"]
    notebook = _read(NOTEBOOKS / f"{name}.ipynb")
    notebook.cells.insert(0, nbformat.v4.new_code_cell("\n".join([*lines, "%reset -f"])))
    nbformat.write(notebook, folder / "in.ipynb")
    paths = folder / "in.ipynb", folder / "out.ipynb"
    return papermill.execute_notebook(*paths, parameters, progress_bar=False, km=kernel)


SMALL = {
    "IMAGENET": {"size": 32},
    "CHANGES": {
        "network": "small_network",
        "width": 1,
        "auxiliary_weight": 0,
        "dropout": 0,
        "batch_size": 64,
        "steps": 4,
        "evaluations": 2,
    },
    "TRAIN": {"backups": 2},
}
INCEPTION = {
    "IMAGENET": {"size": 107},
    "CHANGES": {"batch_size": 64, "steps": 2, "evaluations": 1},
    "TRAIN": {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "figure, small, runs",
    [
        (1, SMALL, 2),
        pytest.param(1, INCEPTION, 2, marks=pytest.mark.long),
        pytest.param(2, SMALL, 3, marks=pytest.mark.long),
        pytest.param(3, SMALL, 4, marks=pytest.mark.long),
    ],
)
def test_workers_run_the_notebook_for_clusters_on_imagenet(
    tmp_path, figure, small, runs, imagenet_folder, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(imagenet_folder / "cache"))
    folder = shutil.copytree(imagenet_folder / "data", tmp_path / "data")
    if figure == 3:  # It evaluates on pairs of a label, which 20 validation images have not.
        (path,) = folder.glob("**/labels.npz")
        labels = dict(np.load(path))
        np.savez(path, **{**labels, "validation": np.arange(len(labels["validation"])) // 2})
    parameters = {
        "FIGURE": figure,
        "IMAGENET": {**small["IMAGENET"], "data_dir": str(folder)},
        "RESULTS": str(tmp_path / "results"),
        "TRAIN": {**small["TRAIN"], "log_dir": str(tmp_path / "logs")},
        "CHANGES": small["CHANGES"],
    }
    arguments = ["--cwd", str(NOTEBOOKS), "-k", "python3", "--no-progress-bar"]
    notebooks = [str(NOTEBOOKS / "cluster.ipynb"), str(tmp_path / "out%t.ipynb")]
    command = [sys.executable, "-m", "papermill", *notebooks, *arguments]
    assert wait(start([*command, "-y", json.dumps(parameters)], 2)) == 0
    row = {1: "Batch Renorm, groups of 32", 2: "groups of 4", 3: "halves"}[figure]
    for worker in range(2):
        cells = _read(tmp_path / f"out{worker}.ipynb").cells
        said = "".join(str(cell.get("outputs")) for cell in cells)
        assert row in said and ("val_accuracy" in said) == (worker == 0)
    results = [json.loads(path.read_text()) for path in (tmp_path / "results").glob("*.json")]
    assert [result["provenance"]["workers"] for result in results] == runs * [2]
    assert len(list((tmp_path / "logs").glob("*/train/events*"))) == runs


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_were_executed_from_top_to_bottom(path):
    notebook = _read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 200_000
    tags = {tag for cell in code for tag in cell.metadata.get("tags", [])}
    assert "injected-parameters" not in tags  # As anyone gets it, without a setting of one machine.
    streams = {output.get("name") for cell in code for output in cell.outputs}
    assert "stderr" not in streams


def _printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_tutorial_ends_with_numbers_that_it_has_printed():
    notebook = _read(NOTEBOOKS / "tutorial.ipynb")
    rows = [line.split("|") for line in notebook.cells[-1].source.splitlines() if line[:1] == "|"]
    numbers = re.findall(r"\d*\.\d+", " ".join(row[3] for row in rows))  # The column "Here".
    assert len(numbers) >= 6 and [n for n in numbers if n not in _printed(notebook)] == []


def test_index_names_and_shows_every_notebook():
    index = (NOTEBOOKS / "README.md").read_text()
    rows = re.findall(r"\((\w+)\.ipynb\).*src=\"pictures/(\w+)\.png\"", index)
    assert all(name == picture for name, picture in rows)
    names = {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert {name for name, _ in rows} == names
    assert {path.stem for path in (NOTEBOOKS / "pictures").iterdir()} == names


def _stored_columns(figure):
    """The last columns of the notebook's tables: each a heading and what it is a summary of."""
    summary = json.loads((FIGURES / f"{figure}.json").read_text())["summary"]
    if not figure.startswith("figure3"):
        return summary
    shown = [k for k in ("2", "8") if k in summary["tiny_imagenet"]]
    return {f"{name}, {k}": by_label[k] for name, by_label in summary.items() for k in shown}


@pytest.mark.parametrize(
    "figure",
    ["figure1", "figure2", "figure3", "figure3_paper_length", "figure5"],
)
def test_committed_notebooks_show_the_stored_figures(figure):
    columns = _stored_columns(figure)
    if figure == "figure5":
        columns, made = GROUP_SIZES, group_size_table(columns["glyphs"])
    else:
        made = figure_table(int(figure[6]), columns)
    path = NOTEBOOKS / f"{figure.removesuffix('_paper_length')}.ipynb"
    cells = _read(path).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    shown = [_last(len(columns), text) for text in texts if text.startswith("|")]
    assert _last(len(columns), made) in shown


def _last(columns, table):
    """The label and the last columns of each row."""
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    return [(row[0], *row[-columns:]) for row in rows]
