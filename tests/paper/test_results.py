"""What is computed from curves, and how it is shown."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_brn.paper.experiment import figure_4, figure_5
from keras_brn.paper.figures import (
    plot_alpha_and_ramp,
    plot_curves,
    plot_few_labels,
    plot_group_sizes,
    plot_images_per_label,
)
from keras_brn.paper.reproduce import draw_alpha_and_ramp
from keras_brn.paper.results import (
    as_results,
    as_runs,
    by_steps,
    estimate,
    load_figure,
    recovered,
    save_figure,
    select,
    summarize,
    table,
    table_of_group_sizes,
)


def run(name, accuracy, seed=0, images_per_label=None, **more):
    return {
        **{"name": name, "data": "shades", "seed": seed, "group": 4},
        **{"images_per_label": images_per_label, "step": [10, 20, 30]},
        **{"accuracy": accuracy, "train_accuracy": accuracy, **more},
        **{"config": {"steps": 30}, "provenance": {"seconds": 1.0}},
    }


RUNS = [
    run("batchnorm", [0.2, 0.4, 0.6]),
    run("batchnorm_micro4", [0.1, 0.3, 0.2]),
    run("batch_renorm_micro4", [0.2, 0.35, 0.5]),
    run("batchnorm", [0.4, 0.6, 0.8], 1),
    run("batchnorm_micro4", [0.3, 0.5, 0.4], 1),
    run("batch_renorm_micro4", [0.2, 0.45, 0.7], 1),
    run("batchnorm_noniid", [0.1, 0.2, 0.4], 0, 2),
    run("batchnorm_noniid", [0.1, 0.2, 0.3], 0, 8, batch_accuracy=[0.1, 0.3, 0.5]),
    run("batch_renorm_noniid", [0.1, 0.2, 0.5], 0, 8),
]


def test_summary_of_figure_2():
    summary = summarize(RUNS, 2)
    assert summary["best"]["batchnorm_micro4"]["value"] == 0.4
    assert summary["best"]["batchnorm_micro4"]["step"] == 20
    assert summary["best"]["batchnorm_micro4"]["train_accuracy"] == 0.3
    assert summary["recovered"]["batch_renorm_micro4"]["value"] == 0.6667
    assert (summary["steps_ratio"]["value"], summary["passes_at"]) == (1.5, 20)


def test_summary_of_figure_3_takes_the_images_per_label():
    runs = as_runs(RUNS)
    summary = summarize(runs, 3, images_per_label=8)
    assert summary["best"]["batchnorm_noniid"]["value"] == 0.3
    assert summary["best"]["batchnorm_noniid_batchstats"]["value"] == 0.5
    assert summary["recovered"]["batch_renorm_noniid"]["value"] == 0.6667
    assert summary["recovered"]["batchnorm_noniid_halves"] is None
    assert summary["recovered"]["batch_renorm_noniid"]["low"] is None  # One seed.
    assert "steps_ratio" not in summarize(runs, 3, images_per_label=2)


def test_estimates_pair_the_seeds():
    a = np.array([0.1, 0.5, 0.9])
    difference = estimate(lambda x, y: x - y, a + 0.1, a)
    assert (difference["low"], difference["value"], difference["high"]) == (0.1, 0.1, 0.1)
    mean = estimate(lambda x: x, a)
    assert mean["low"] < 0.3 < mean["value"] == 0.5 < 0.7 < mean["high"]


def test_no_ratio_of_a_deficit_that_may_be_none():
    runs = [
        run(name, [0.0, 0.0, accuracy], seed)
        for name, accuracies in (
            ("batchnorm", (0.5, 0.5, 0.6)),
            ("batchnorm_micro4", (0.4, 0.6, 0.4)),
            ("batch_renorm_micro4", (0.5, 0.5, 0.5)),
        )
        for seed, accuracy in enumerate(accuracies)
    ]
    assert recovered(runs, "batch_renorm_micro4", "batchnorm", "batchnorm_micro4") is None
    assert recovered(runs[:1], "batch_renorm_micro4", "batchnorm", "batchnorm_micro4") is None


def test_runs_are_selected_by_name_and_labels():
    runs = as_runs(RUNS)
    assert list(select(runs, "batchnorm")) == [0, 1]
    assert select(runs, "batchnorm_noniid", 8)[0]["accuracy"][2] == 0.3


def test_table_has_the_numbers_of_the_paper_and_ours():
    lines = table(2, {"ours": summarize(RUNS, 2)}).splitlines()
    assert lines[3] == "| batchnorm, groups of 4 | 74.2 % at 210,000 | 40.0 % [30.0, 50.0] at 20 |"
    assert lines[5].startswith("| deficit recovered, Batch Renorm | .56 | .67 [")
    assert lines[6].startswith("| steps to Batch Renorm's best, by batchnorm's | .62 | 1.50 [")
    lines = table(3, {"ours": summarize(as_runs(RUNS), 3, 8)}).splitlines()
    assert "| deficit recovered, evaluated by minibatch | .84 | .67 |" in lines
    assert "| training accuracy, batchnorm, few labels | 72.8 % | 30.0 % |" in lines


@pytest.mark.parametrize("figure", [1, 2, 3])
def test_a_figure_travels_with_its_data(tmp_path, figure):
    runs, picture = as_runs(RUNS), Figure()
    axes = picture.subplots(1, 2)
    plot_curves(axes[0], runs, figure, "title", images_per_label=8)
    plot_images_per_label(axes[1], runs, "title")
    save_figure(picture, runs, {"shades": summarize(runs, figure)}, tmp_path / "figure.png")
    stored = load_figure(tmp_path / "figure.png")
    assert stored["summary"]["shades"] == summarize(stored["runs"], figure)
    assert stored["provenance"]["runs"][0] == {
        **{"name": "batchnorm", "seed": 0, "config": {"steps": 30}, "seconds": 1.0}
    }
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_a_stored_figure_gives_back_the_results(tmp_path):
    results = [
        {**run, "config": {"name": run["name"], "seed": run["seed"], "k": run["images_per_label"]}}
        for run in RUNS
    ]
    save_figure(Figure(), as_runs(results), {}, tmp_path / "figure.png")
    assert as_results(load_figure(tmp_path / "figure.png")) == results


def test_few_labels_have_a_row_per_data_set_and_one_legend():
    figure = Figure(layout="constrained")
    plot_few_labels(figure, {"shades": as_runs(RUNS), "again": as_runs(RUNS)})
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        *("shades: 16 labels x 2 images", "shades: 4 labels x 8 images", "shades")
    ]
    assert len(figure.axes) == 6 and not any(axes.get_legend() for axes in figure.axes)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[-2:] == ["Batch Renorm, few labels", "the paper's, in proportion"]
    curves = {line.get_label(): list(line.get_ydata()) for line in figure.axes[1].lines}
    assert curves["Batch Renorm, few labels"] == [0, 10, 20, 50]


@pytest.mark.parametrize("images_per_label", [8, None])
def test_few_labels_without_a_choice_have_one_panel(images_per_label):
    figure = Figure(layout="constrained")
    runs = [run for run in as_runs(RUNS) if run["images_per_label"] in (None, images_per_label)]
    plot_few_labels(figure, {"shades": runs})
    assert [axes.get_title() for axes in figure.axes] == ["shades: 4 labels x 8 images"]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("Batch Renorm, few labels" in said) == (images_per_label == 8)


def test_the_grid_shows_the_seeds_that_all_its_runs_have():
    runs = [run(each.name, [0.1, k / 20]) for k, each in enumerate(figure_4())]
    axes = Figure().subplots()
    plot_alpha_and_ramp(axes, [*runs, run("batch_renorm_micro4", [0.1, 0.9], 1)], "title")
    assert [text.get_text() for text in axes.texts] == [
        *("10.0", "10.0", "10.0", "15.0", "20.0", "25.0", "30.0", "35.0", "40.0")
    ]


def test_figure_4_has_a_panel_for_each_length_with_a_whole_grid(tmp_path):
    whole, part = (
        [
            run(each.name, [0.1, k / 20, 0.3], data="glyphs", step=[length, 2 * length, 3 * length])
            for k, each in enumerate(grid)
        ]
        for grid, length in ((figure_4(), 10), (figure_4()[:4], 20))
    )
    draw_alpha_and_ramp(by_steps(part), tmp_path)
    assert not list(tmp_path.iterdir())
    draw_alpha_and_ramp(by_steps([*part, *whole]), tmp_path)
    stored = load_figure(tmp_path / "figure4.png")
    assert len(stored["runs"]) == 9 and list(stored["summary"]) == ["30"]
    assert stored["summary"]["30"]["batch_renorm_micro4_alpha4_ramp2"]["value"] == 0.4


def test_ratios_begin_with_the_point_where_they_are_below_1():
    for value, low, high, shown in (
        (0.5, None, None, ".50"),
        (-0.25, -10.31, 10.05, "-.25 [-10.31, 10.05]"),
    ):
        ratio = {"value": value, "low": low, "high": high}
        summary = {"best": {}, "recovered": {"batch_renorm_micro4": ratio}}
        assert f"| deficit recovered, Batch Renorm | .56 | {shown} |" in table(2, {"ours": summary})


def test_group_sizes_in_picture_and_table():
    runs = [run(each.name, [0.1, k / 20]) for k, each in enumerate(figure_5())]
    axes = Figure().subplots()
    plot_group_sizes(axes, [*runs, run("batchnorm_micro4", [0.1, 0.6], 1)], "title")
    batchnorm = axes.lines[0].get_xydata().round(6).tolist()
    assert batchnorm == [[1, 10.0], [2, 15.0], [4, 45.0], [32, 45.0]]
    band = axes.collections[0].get_datalim(axes.transData)
    assert (band.ymin, round(band.ymax, 6)) == (10.0, 60.0)
    assert axes.lines[3].get_ydata().round(6).tolist() == 4 * [60.0]
    lines = table_of_group_sizes([*runs, run("batchnorm_micro4", [0.1, 0.6], 1)]).splitlines()
    assert lines[2] == "| batchnorm | 10.0 % | 15.0 % | 45.0 % [30.0, 60.0] | 45.0 % |"
    assert lines[6] == "| layer normalization | 65.0 % | 65.0 % | 65.0 % | 65.0 % |"
