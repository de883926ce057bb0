"""A figure travels with the runs that it shows."""

import json

import pytest
from example_runs import RESULTS, RUNS
from matplotlib.figure import Figure

from keras_brn.paper.figures import plot_curves
from keras_brn.paper.results import (
    as_results,
    as_runs,
    load_figure,
    save_figure,
    summarize_figure,
)


@pytest.mark.parametrize("figure", [1, 2, 3])
def test_a_figure_travels_with_its_data(tmp_path, figure):
    picture = Figure()
    plot_curves(picture.subplots(), RUNS, figure, "title", images_per_label=8)
    save_figure(picture, RUNS, {"shades": summarize_figure(RUNS, figure)}, tmp_path / "figure.png")
    stored = load_figure(tmp_path / "figure.png")
    assert stored["runs"] == RUNS
    assert stored["summary"]["shades"] == summarize_figure(stored["runs"], figure)
    made = json.loads((tmp_path / "figure.json").read_text())["provenance"]["runs"][0]
    assert made == {"name": "batchnorm", "seed": 0, "config": RUNS[0]["config"], "seconds": 1.0}
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_a_stored_figure_gives_back_the_results(tmp_path):
    save_figure(Figure(), as_runs(RESULTS), {}, tmp_path / "figure.png")
    assert as_results(load_figure(tmp_path / "figure.json")["runs"]) == RESULTS


def test_of_the_correction_the_means_over_the_layers_remain():
    """`None` is a quantity that a layer has no value of."""
    correction = {"layers": ["a", "b"], "lag": [[0.1, 0.2], [0.1, None], [0.1, float("nan")]]}
    (run,) = as_runs([{**RESULTS[0], "correction": correction}])
    assert run["correction"] == {"lag": [0.15, None, None]}
