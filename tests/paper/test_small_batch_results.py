"""What is said of the runs of Figure 6."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_brn.paper.figures.small_batches import plot_small_batches
from keras_brn.paper.figures.style import STYLES
from keras_brn.paper.small_batches.results import (
    CONTENDERS,
    load_results,
    read_runs,
    stored_results,
    summarize_momentum,
    summarize_small_batches,
    with_one_rate,
    write_runs,
)
from keras_brn.paper.small_batches.runs import (
    IMAGES_PER_STEP,
    LEARNING_RATES,
    METHODS,
    SEEDS,
    SmallBatchRun,
    figure_6,
    groups_of_runs,
    planned_runs,
)

FIGURES = Path(__file__).parents[2] / "figures"


def result_of(run, choices, test, recomputed=(0.0, 0.0)):
    """What `train_small_batches` returns of a run."""
    accuracies = {"minibatches": 0.5, "training": 0.6, "choices": choices, "test": test}
    names = ("recomputed_training", "recomputed_choices", "recomputed_test")
    accuracies |= dict(zip(names, (0.7, *recomputed), strict=True))
    return {"data": "glyphs", **vars(run), **accuracies}


def test_learning_rates_are_chosen_by_the_images_for_choices():
    results = []
    for rate, choices, test in ((0.1, 0.4, 0.9), (0.2, 0.5, 0.3)):
        for seed in (0, 1):
            run = SmallBatchRun("batchnorm", 4, rate, seed)
            # Seed 0 alone would choose the other one.
            shift = 0.15 if (rate, seed) == (0.1, 0) else 0.0
            results.append(result_of(run, choices + shift, test, (1 - choices, test / 2)))
    chosen = with_one_rate(results, "batchnorm")
    assert {run["learning_rate"] for run in chosen.values()} == {0.2}
    assert [chosen[seed]["test"] for seed in (0, 1)] == [0.3, 0.3]
    recomputed = with_one_rate(results, "batchnorm_recomputed")
    assert {run["learning_rate"] for run in recomputed.values()} == {0.1}
    assert [recomputed[seed]["test"] for seed in (0, 1)] == [0.45, 0.45]
    assert with_one_rate(results, "group_norm") == {}


def test_differences_are_of_runs_of_one_seed():
    tests = {"batchnorm": (0.3, 0.5, 0.7), "batch_renorm": (0.41, 0.61, 0.81)}
    results = [
        result_of(SmallBatchRun(method, 2, 0.1, seed), 0.5, test)
        for method, values in tests.items()
        for seed, test in enumerate(values)
    ]
    of_size = summarize_small_batches(results)["glyphs"]["2"]
    difference = of_size["batch_renorm"]["difference"]
    assert difference == {"value": 0.11, "low": 0.11, "high": 0.11, "seeds": 3}
    assert of_size["batch_renorm"]["accuracy"]["value"] == 0.61
    assert "group_norm" not in of_size


def test_a_run_that_two_programs_trained_counts_once(tmp_path):
    run = SmallBatchRun("batch_renorm", 4, 0.1)
    other = SmallBatchRun("batch_renorm", 4, 0.1, 1)
    for name, results in (
        ("a", [result_of(run, 0.1, 0.1)]),
        ("b", [result_of(run, 0.2, 0.2), result_of(other, 0.3, 0.3)]),
    ):
        stored = {"data": "glyphs", "runs": results, "provenance": {"commit": name}}
        (tmp_path / f"{name}.json").write_text(json.dumps(stored))
    runs, provenance = load_results(tmp_path)
    assert sorted(run["test"] for run in runs) == [0.2, 0.3]
    assert [(each["runs"], each["commit"]) for each in provenance] == [(2, "b"), (1, "a")]


def test_runs_come_back_from_their_file(tmp_path):
    runs = [result_of(run, 0.25, 1.0) for run in figure_6(4)]
    del runs[-1]["recomputed_test"]
    write_runs(tmp_path / "runs.csv", runs)
    back = read_runs(tmp_path / "runs.csv")
    names = list(runs[0])
    expected = [[run.get(name) for name in names] for run in runs]
    assert sorted(map(str, expected)) == sorted(str([run[name] for name in names]) for run in back)


def test_the_runs_are_a_grid():
    runs = figure_6(4)
    assert len(set(runs)) == len(METHODS) * len(LEARNING_RATES) * len(SEEDS)
    assert {run.steps for run in runs} == {16_000}
    assert {run.method for run in figure_6(32)} == METHODS.keys() - {"batchnorm_accumulated"}
    for group in planned_runs("glyphs"):
        assert groups_of_runs(group) == [group]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"method": "none"}, "`method` must be one of"), ({"images_per_step": 7}, "must divide")],
)
def test_bad_runs_are_refused(changes, message):
    arguments = {"method": "batchnorm", "images_per_step": 4, "learning_rate": 0.1} | changes
    with pytest.raises(ValueError, match=message):
        SmallBatchRun(**arguments)


def test_the_stored_figure_is_complete_and_says_what_its_runs_say():
    runs, _ = stored_results(FIGURES)
    keys = vars(figure_6(2)[0])
    stored = [SmallBatchRun(**{key: run[key] for key in keys}) for run in runs]
    for data in ("glyphs", "tiny_imagenet"):
        of_data = {run for run, row in zip(stored, runs, strict=True) if row["data"] == data}
        assert of_data == {run for group in planned_runs(data) for run in group}
    figure = json.loads((FIGURES / "figure6.json").read_text())
    assert summarize_small_batches(runs) == figure["summary"]
    assert summarize_momentum(runs) == figure["momentum"]


def test_the_picture_shows_each_seed_and_the_means():
    runs, _ = stored_results(FIGURES)
    picture = Figure(layout="constrained")
    plot_small_batches(picture, runs)
    axes = picture.axes[0]
    summary = json.loads((FIGURES / "figure6.json").read_text())["summary"]["glyphs"]
    for name in CONTENDERS:
        lines = [line for line in axes.lines if line.get_color() == STYLES[name][0]]
        *points, means = [line.get_xydata() for line in lines]
        sizes = [size for size in IMAGES_PER_STEP if name in summary[str(size)]]
        assert [len(of_size) for of_size in points] == [len(SEEDS)] * len(sizes)
        expected = [100 * summary[str(size)][name]["accuracy"]["value"] for size in sizes]
        np.testing.assert_allclose(means, np.stack([sizes, expected], 1), atol=1e-3)
