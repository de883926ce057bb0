"""Pictures show the runs that they are given."""

import io

import numpy as np
import pytest
from example_runs import RUNS, example_run
from matplotlib.figure import Figure
from PIL import Image

from keras_brn.paper.experiment import figure_4, figure_5
from keras_brn.paper.figures import (
    mark_crossing,
    mark_highest,
    plot_alpha_and_ramp,
    plot_comparison,
    plot_curves,
    plot_few_labels,
    plot_final_accuracy,
    plot_group_sizes,
    plot_paper_length,
    plot_training_accuracy,
)
from keras_brn.paper.figures.files import write_alpha_and_ramp
from keras_brn.paper.figures.png import as_png
from keras_brn.paper.figures.style import BLUE, STYLES, spread_out
from keras_brn.paper.figures.tutorial import plot_activation_differences, plot_projection
from keras_brn.paper.results import as_runs, load_figure, runs_by_steps
from keras_brn.paper.results.comparisons import COMPARISONS, NORMALIZATIONS_BY_GROUP_SIZE


def lines(axes, name):
    """The data of the lines of a contender: of each seed, of the mean, and of the points."""
    color = STYLES[name][0]
    return [line.get_xydata().round(6).tolist() for line in axes.lines if line.get_color() == color]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_contenders_of_a_picture_differ_in_colour():
    for names in (
        *(comparison.labels for comparison in COMPARISONS.values()),
        NORMALIZATIONS_BY_GROUP_SIZE,
    ):
        assert len({STYLES[name][0] for name in names}) == len(names)


def test_curves_are_seeds_and_their_mean_on_a_linear_axis():
    axes = Figure().subplots()
    plot_curves(axes, RUNS, 2, "title")
    first, second, mean, points = lines(axes, "batchnorm_micro4")
    assert first == [[0, 0], [10, 10], [20, 30], [30, 20]] and second[-1] == [30, 40]
    assert mean[-1] == [30, 30] and points == [[30, 20], [30, 40]]
    assert "Batch Renorm, groups of 4, n = 2" in texts(axes)
    assert axes.get_yscale() == "linear" and len(axes.lines) == 3 * 4


def test_ends_are_points_of_the_seeds_and_an_interval():
    axes = Figure().subplots()
    plot_final_accuracy(axes, RUNS, 2)
    points, mean, interval = lines(axes, "batchnorm_micro4")
    assert [x for x, _ in points] == [20, 40] and mean[0][0] == 30
    assert [x for x, _ in interval] == [0, 100]  # Of two seeds, cut at what is possible.
    heights = {name: lines(axes, name)[0][0][1] for name in COMPARISONS[2].labels}
    assert sorted(heights, key=heights.get) == [
        "batchnorm",
        "batch_renorm_micro4",
        "batchnorm_micro4",
    ]


def test_labels_are_spread_out_to_be_read():
    assert spread_out([0.1, 0.5], 0.1).tolist() == [0.1, 0.5]
    spread = spread_out([0.2, 0.2, 0.23, 0.97, 0.99], 0.1)
    assert np.diff(spread).min() >= 0.0999 and spread.max() < 1
    assert spread[:3].mean() == pytest.approx(0.21)


def test_pages_have_a_row_for_each_data_set():
    figure = Figure()
    plot_comparison(figure, {"shades": RUNS, "again": RUNS}, 2)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[::2] == ["shades, RMSProp's epsilon .003", "again, RMSProp's epsilon .003"]
    figure = Figure()
    plot_few_labels(figure, {"shades": RUNS})
    curves, images_per_label = figure.axes
    assert curves.get_title(loc="left") == "shades: 4 labels x 8, RMSProp's epsilon .003"
    assert "Batch Renorm, few labels, n = 1" in texts(curves)
    assert lines(images_per_label, "batchnorm_noniid")[-1] == [[2, 40], [8, 30]]


def test_few_labels_of_one_kind_show_the_accuracy_in_training():
    figure = Figure()
    runs = [run for run in RUNS if run["images_per_label"] in (None, 8)]
    plot_few_labels(figure, {"shades": runs})
    curves, training = figure.axes
    assert "from step 20 on,\ntest minibatches\nhelp batchnorm" in texts(curves)
    assert training.get_ylabel() == "accuracy in training, %"


def test_a_panel_for_each_number_of_images_per_label_at_the_paper_length():
    more = as_runs(
        [example_run("batchnorm_noniid", [0.1, 0.4, 0.3], 0, 8, batch_accuracy=3 * [0.5])]
    )
    pairs = [run for run in RUNS if run["images_per_label"] in (None, 2)]
    figure = Figure()
    plot_paper_length(figure, [*more, *pairs])
    most, pairs = figure.axes
    assert [axes.get_title(loc="left") for axes in (most, pairs)] == [
        "4 labels x 8 images",
        "16 labels x 2 images",
    ]
    assert "highest: 40.0 %\nat step 20" in texts(most)
    assert not any(text.startswith("highest") for text in texts(pairs))
    assert most.get_yscale() == "linear" and most.get_ylim() == pairs.get_ylim()


def test_no_highest_accuracy_is_marked_where_it_is_at_the_end():
    axes = Figure().subplots()
    mark_highest(axes, RUNS, "batchnorm_noniid", 8)
    assert not axes.lines and not axes.texts


def test_two_accuracies_in_training():
    axes = Figure().subplots()
    plot_training_accuracy(axes, RUNS, "title", 8)
    drawn = {(line.get_color(), line.get_linestyle()): line.get_ydata()[-1] for line in axes.lines}
    assert drawn[STYLES["batch_renorm_noniid"][0], "--"] == 25  # On minibatches.
    assert drawn[STYLES["batch_renorm_noniid"][0], "-"] == 60  # On images, one by one.
    assert (STYLES["batchnorm_noniid"][0], "-") not in drawn


def test_no_crossing_is_marked_where_there_is_none():
    axes = Figure().subplots()
    runs = [
        run for run in RUNS if run["name"] == "batchnorm_noniid" and run["images_per_label"] == 8
    ]
    mark_crossing(axes, [*runs, {**runs[0], "name": "batchnorm_noniid_batchstats"}], 8)
    assert not axes.lines and not axes.texts


def test_alpha_and_ramp_are_drawn_of_the_seeds_that_all_runs_have():
    runs = [example_run(each.name, [0.9, k / 20]) for k, each in enumerate(figure_4())]
    axes = Figure().subplots()
    plot_alpha_and_ramp(axes, [*runs, example_run("batch_renorm_micro4", [0.1, 0.9], 1)], "title")
    lines = {tuple(line.get_xdata()): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(lines[0.25, 1, 4], [0, 5, 10])
    np.testing.assert_allclose(lines[0.5, 1, 2], [15, 5, 20])
    assert sorted(texts(axes)) == ["alpha, n = 1", "ramp, n = 1"]


def test_figure_4_has_a_panel_for_each_length_with_all_alphas_or_ramps(tmp_path):
    whole, part = (
        [
            example_run(each.name, [0.9, k / 20], data="glyphs", step=[length, 2 * length])
            for k, each in enumerate(grid)
        ]
        for grid, length in ((figure_4(), 10), (figure_4()[:2], 20))
    )
    write_alpha_and_ramp(runs_by_steps(part), tmp_path)
    assert not list(tmp_path.iterdir())
    write_alpha_and_ramp(runs_by_steps([*part, *whole]), tmp_path)
    stored = load_figure(tmp_path / "figure4.png")
    assert len(stored["runs"]) == 5 and list(stored["summary"]) == ["20"]
    summary = stored["summary"]["20"]
    assert summary["accuracy"]["ramp"]["2"]["value"] == 0.2
    assert summary["differences"]["alpha"]["0.25"]["value"] == pytest.approx(-0.05)


def test_group_sizes_are_points_of_the_seeds_and_means():
    runs = [
        example_run(each.name, [0.9, k / 20 + seed / 10], seed)
        for seed in range(2)
        for k, each in enumerate(figure_5())
    ]
    axes = Figure().subplots()
    plot_group_sizes(axes, runs, "title")
    mean, *points = lines(axes, "batchnorm")
    assert mean == [[1, 5], [2, 20], [4, 35], [8, 50], [16, 65], [32, 80]]
    assert points[2] == [[4, 30], [4, 40]]
    assert len(lines(axes, "layer_norm")) == 2  # The same at all sizes: its points once.
    assert axes.get_yscale() == "linear"


def test_activation_differences_are_a_line_for_each_size():
    axes = Figure().subplots()
    by_size = {8: {"norm": 0.25, "output": 0.5}, 2: {"norm": 1.0, "output": 2.0}}
    plot_activation_differences(axes, by_size, "title")
    assert [line.get_label() for line in axes.lines] == ["2 examples", "8 examples"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 1], [2, 2]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "output"]


def test_projection_is_drawn_beside_the_null_space(rng):
    axes = Figure().add_subplot(projection="3d")
    x, gradient, projected = rng.normal(size=(3, 3))
    plot_projection(axes, x, gradient, projected)
    line, removed = (np.diff(line.get_data_3d(), axis=1)[:, 0] for line in axes.lines)
    for vector in (np.ones(3), x):
        assert line @ vector == pytest.approx(0, abs=1e-9)
    assert removed == pytest.approx(projected - gradient)


def test_png_of_a_notebook_is_small_and_looks_the_same():
    figure, plain = Figure(figsize=(4, 2), layout="constrained"), io.BytesIO()
    axes = figure.subplots()
    axes.plot([0, 1, 0], color=BLUE)
    axes.imshow(np.arange(300).reshape(15, 20), extent=(0, 2, 0, 1), aspect="auto")
    figure.savefig(plain, dpi=100)
    small = as_png(figure)
    assert len(small) < 0.6 * plain.tell() and Image.open(io.BytesIO(small)).mode == "P"
    pixels = [np.array(Image.open(file).convert("RGB"), int) for file in (plain, io.BytesIO(small))]
    assert np.abs(pixels[0] - pixels[1]).max() <= 16
