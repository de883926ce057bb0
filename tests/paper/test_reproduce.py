"""The runs behind the figures, and the figures drawn from them."""

import collections
import dataclasses
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from keras_brn.paper import reproduce
from keras_brn.paper.experiment import figure_1, figure_3, figure_3_paper_length, scaled
from keras_brn.paper.reproduce import planned_runs, take_over_runs
from keras_brn.paper.results import as_runs, save_figure
from keras_brn.paper.training import completed_result, store_result

FIGURES = Path(__file__).parents[2] / "figures"
SMALL = {"evaluations": 3, "seed": 3}


def test_runs_of_stored_figures_are_not_repeated(tmp_path):
    few, other = scaled(figure_3(8)[1], 12, **SMALL), scaled(figure_1()[0], 12, **SMALL)
    for run, figure in ((few, "3"), (other, "1")):
        config = {"data": "shades", **dataclasses.asdict(run)}
        result = {"name": run.name, "seed": 3, "step": [4, 8, 12], "config": config}
        result |= {"accuracy": [0.1, 0.2, 0.3], "batch_accuracy": [0.3, 0.2, 0.1]}
        runs = as_runs([{**result, "provenance": {"seconds": 1.0}}])
        save_figure(Figure(), runs, {}, tmp_path / f"figure{figure}.png")
    take_over_runs(tmp_path, tmp_path)
    taken = completed_result(few, "shades", tmp_path / "few_labels")
    assert (taken["accuracy"], taken["batch_accuracy"]) == ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    assert completed_result(other, "shades", tmp_path / "labels")["name"] == "batchnorm"
    store_result({**taken, "accuracy": [0.0] * 3}, tmp_path / "few_labels")  # What is there stays.
    assert completed_result(few, "shades", tmp_path / "few_labels")["accuracy"] == [0.1, 0.2, 0.3]


def test_stored_figures_are_drawn_anew_from_their_runs(tmp_path, monkeypatch):
    """`--stored FOLDER --only-figures` needs neither training nor data."""
    arguments = ["--stored", FIGURES, "--results", tmp_path / "runs", "--out", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", ["reproduce", *map(str, arguments), "--only-figures"])
    reproduce.main()
    for name in (f"figure{figure}" for figure in reproduce.SETTINGS):
        stored = json.loads((FIGURES / f"{name}.json").read_text())
        drawn = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert drawn["summary"] == stored["summary"]
        assert by_content(drawn["runs"]) == by_content(stored["runs"])
        assert (tmp_path / "out" / f"{name}.png").exists()
    for name in ("figure6.csv", "figure6.json"):
        assert (tmp_path / "out" / name).read_text() == (FIGURES / name).read_text()
    assert (tmp_path / "out" / "figure6.png").exists()


def by_content(runs):
    return sorted(json.dumps(run, sort_keys=True) for run in runs)


def test_runs_at_the_paper_length_are_the_stored_ones(tmp_path):
    """They are found by their configuration, in which batchnorm is held at (1, 0)."""
    take_over_runs(FIGURES, tmp_path)
    planned = [run for program in figure_3_paper_length() for run in program]
    assert {(run.steps, run.normalization) for run in planned} == {(130_000, "batch_renorm")}
    for run in planned:
        assert ((run.r_max, run.d_max) == (1.0, 0.0)) == run.name.startswith("batchnorm")
    completed = reproduce.completed_results([], tmp_path)
    assert len(completed["on_device"]) == len(planned) == 12
    assert all(len(result["accuracy"]) == 26 for result in completed["on_device"])


def test_the_plan_has_the_seeds_of_each_comparison():
    data_sets = ["glyphs", "tiny_imagenet"]
    planned = planned_runs(data_sets)
    assert len(set(planned)) == len(planned)

    def seeds(setting, data, name, images_per_label=None):
        wanted = (setting, data, name, images_per_label, 4_000)
        return sum(
            (s, d, run.name, run.images_per_label, run.steps) == wanted for s, d, run in planned
        )

    names = ("batchnorm", "batch_renorm", "batchnorm_micro4", "batch_renorm_micro4")
    assert [seeds("labels", "glyphs", name) for name in names] == [5, 5, 5, 5]
    assert [seeds("labels", "tiny_imagenet", name) for name in names] == [3, 3, 3, 3]
    assert seeds("few_labels", "glyphs", "batchnorm") == 5
    assert seeds("few_labels", "tiny_imagenet", "batchnorm") == 3
    assert seeds("few_labels", "glyphs", "batchnorm_noniid_spread", 8) == 5
    counted = collections.Counter(
        (setting, data, dataclasses.replace(run, seed=0)) for setting, data, run in planned
    )
    assert min(counted.values()) == 3


def test_runs_that_share_a_network_are_trained_together():
    pytest.importorskip("jax")
    planned = planned_runs(["glyphs", "tiny_imagenet"])
    units = reproduce.trained_together(planned)
    apart = [(setting, name, run) for setting, name, runs in units for run in runs]
    assert len(apart) == len(planned) and set(apart) == set(planned)
    assert len(units) < len(planned) / 5
    for _, _, runs in units:
        assert len({(run.normalization, run.group, run.alpha, run.steps) for run in runs}) == 1


def test_lengths_and_settings_of_the_plan():
    data_sets = ["glyphs", "tiny_imagenet"]
    planned = planned_runs(data_sets)
    assert {(setting, data, run.steps) for setting, data, run in planned} == {
        *((setting, data, 4_000) for setting in ("labels", "few_labels") for data in data_sets),
        *(("labels", data, 1_000) for data in data_sets),
    }
    epsilons = {(setting, run.optimizer_epsilon) for setting, _, run in planned}
    assert epsilons == {("labels", 0.003), ("few_labels", 0.3)}
