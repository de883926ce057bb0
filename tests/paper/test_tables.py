"""Tables of summaries, beside the paper's numbers."""

import pytest
from example_runs import RUNS, example_run

from keras_brn.paper.experiment import figure_4, figure_5
from keras_brn.paper.results import (
    figure_table,
    group_size_table,
    summarize_figure,
    summarize_group_sizes,
)
from keras_brn.paper.results.statistics import difference_interval, ratio_interval
from keras_brn.paper.results.summaries import summarize_alpha_and_ramp
from keras_brn.paper.results.tables import (
    alpha_and_ramp_table,
    format_percent,
    format_points,
    format_race,
    format_ratio,
    with_epsilon,
)


def rows(figure, summary):
    lines = figure_table(figure, {"ours": summary}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    return cells


def test_the_table_of_figure_2_has_the_papers_numbers_and_ours():
    shown = rows(2, summarize_figure(RUNS, 2))
    assert shown[0] == ["", "paper", "ours, RMSProp's epsilon .003"]
    assert ["batchnorm, groups of 4", "74.2 % at 210,000", "30.0 % [0.0, 100.0], n = 2"] in shown
    assert [
        "groups of 4: Batch Renorm − batchnorm",
        "+2.3",
        "+30.00 [+30.00, +30.00], n = 2",
    ] in shown
    assert [
        "share of batchnorm's deficit that Batch Renorm recovers",
        ".56",
        ".75 [.75, .75], n = 2",
    ] in shown
    titles = [line[0] for line in shown if line[0].startswith("*")]
    assert titles == [
        "*validation accuracy at the end*",
        "*differences, in points*",
        "*ratios*",
    ]


@pytest.mark.parametrize(
    "figure, shares", [(1, []), (2, [".56"]), (3, ["–", ".84", ".92", "1.02"])]
)
def test_the_papers_ratios_follow_from_its_accuracies(figure, shares):
    shown = rows(figure, summarize_figure([], figure))
    assert [line[1] for line in shown if line[0].startswith("share")] == shares


def test_the_papers_training_accuracy_stands_beside_that_of_images_one_by_one():
    shown = rows(3, summarize_figure(RUNS, 3, 8))
    minibatches = shown.index(["*accuracy on training minibatches*", "", ""])
    images = shown.index(["*accuracy on training images, one by one*", "", ""])
    assert {line[1] for line in shown[minibatches + 1 : images]} == {"–"}
    assert ["batchnorm, few labels", "72.8 %", "–"] in shown[images:]
    assert ["Batch Renorm, few labels", "–", "60.0 %, n = 1"] in shown[images:]


@pytest.mark.parametrize(
    "shown, expected",
    [
        (format_percent(None), "–"),
        (format_percent({"value": 0.5, "low": None, "high": None, "seeds": 1}), "50.0 %, n = 1"),
        (
            format_points({"value": -0.0046, "low": -0.0083, "high": 0.0009, "seeds": 5}),
            "-.46 [-.83, +.09], n = 5",
        ),
        (
            format_ratio({"value": -0.25, "low": -10.31, "high": 10.05, "seeds": 3}),
            "-.25 [-10.31, 10.05], n = 3",
        ),
        (format_ratio(ratio_interval([0.1, 0.2], [0.3, -0.1])), "1.50 [unbounded], n = 2"),
        (format_ratio(ratio_interval([0.1, 0.2], [0.1, -0.1])), "undefined [unbounded], n = 2"),
        (format_race(None), "–"),
        (format_race({"steps": [5, None], "value": None, "seeds": 2}), "in 1 of n = 2 seeds"),
        (with_epsilon("glyphs", 0.3), "glyphs, RMSProp's epsilon .3"),
        (with_epsilon("glyphs", None), "glyphs"),
    ],
)
def test_cells(shown, expected):
    assert shown == expected


def test_variants_of_figure_1_are_differences_in_its_table():
    runs = [run for run in RUNS if run["name"] in ("batchnorm", "batch_renorm")]
    columns = {"a": summarize_figure(runs, 1), "b": summarize_figure(runs, 1)}
    columns["b"]["variants"] = {"1,000 steps": difference_interval([0.5], [0.4])}
    lines = figure_table(1, columns).splitlines()
    assert "| Batch Renorm − batchnorm, 1,000 steps | – | – | +10.00, n = 1 |" in lines


def test_the_table_of_alpha_and_ramp():
    runs = [example_run(each.name, [0.1, k / 20]) for k, each in enumerate(figure_4())]
    lines = alpha_and_ramp_table({"4000": summarize_alpha_and_ramp(runs)}).splitlines()
    assert lines[0] == "|  | 4,000 steps |"
    assert lines[2] == "| alpha x 0.25 | 0.0 %, n = 1 |"
    assert lines[-1] == "| length of the ramp x 2 | +15.00, n = 1 |"


def test_the_table_of_group_sizes():
    runs = [example_run(each.name, [0.1, k / 20]) for k, each in enumerate(figure_5())]
    lines = group_size_table(summarize_group_sizes(runs)).splitlines()
    assert lines[0] == "| images per group | 1 | 2 | 4 | 8 | 16 | 32 |"
    assert lines[2].startswith("| batchnorm | 0.0 %, n = 1 | 15.0 %, n = 1 | 30.0 %, n = 1 |")
    assert lines[8].startswith("| Batch Renorm − batchnorm | +5.00, n = 1 |")
