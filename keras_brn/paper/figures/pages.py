"""Pictures of several panels: a row for each data set, as wide as a README shows them."""

from keras_brn.paper.figures.curves import (
    mark_crossing,
    mark_highest,
    plot_curves,
    plot_final_accuracy,
    plot_images_per_label,
    plot_training_accuracy,
)
from keras_brn.paper.results.runs import common_epsilon
from keras_brn.paper.results.tables import with_epsilon

WIDTH, ROW_HEIGHT = 9, 2.7  # in inches


def plot_comparison(figure, runs, number):
    """Draws Figure 1 or 2: for each data set the curves, and where they end.

    Args:
        figure: An empty `matplotlib.figure.Figure`; its size and layout are set.
        runs: Dict from a title to the runs of a data set, as `plot_curves` takes them.
        number: 1 or 2.
    """
    for (curves, ends), (title, of_data) in _rows(figure, runs):
        plot_curves(curves, of_data, number, with_epsilon(title, common_epsilon(of_data)))
        plot_final_accuracy(ends, of_data, number)


def plot_few_labels(figure, runs):
    """Draws Figure 3: for each data set the curves of the largest number of images per label; and
    the final accuracy against this number, or if there is only one the accuracy in training.

    Args:
        figure: An empty `matplotlib.figure.Figure`; its size and layout are set.
        runs: Dict from a title to the runs of a data set, as `plot_curves` takes them.
    """
    numbers = {run["images_per_label"] for of_data in runs.values() for run in of_data} - {None}
    shown = max(numbers)
    for (curves, right), (title, of_data) in _rows(figure, runs):
        title = with_epsilon(f"{title}: {32 // shown} labels x {shown}", common_epsilon(of_data))
        plot_curves(curves, of_data, 3, title, shown)
        if len(numbers) > 1:
            plot_images_per_label(right, of_data, "groups of 32 images")
        else:
            mark_crossing(curves, of_data, shown)
            plot_training_accuracy(right, of_data, "on training minibatches (dashed)", shown)


def plot_paper_length(figure, runs):
    """Draws Figure 3 at the length of the paper: a panel for each number of images per label.

    In the panel of the most images per label are marked the step from which on test minibatches
    help batchnorm, and where its accuracy on single images is highest, before it declines.

    Args:
        figure: An empty `matplotlib.figure.Figure`; its size and layout are set.
        runs: As `plot_curves` takes them.
    """
    figure.set_layout_engine("constrained")
    figure.set_size_inches(WIDTH, 6.4)
    numbers = sorted({run["images_per_label"] for run in runs} - {None}, reverse=True)
    panels = figure.subplots(len(numbers), 1, sharex=True, sharey=True, squeeze=False)
    for axes, k in zip(panels[:, 0], numbers, strict=True):
        plot_curves(axes, runs, 3, f"{32 // k} labels x {k} images", k)
        if k == numbers[0]:
            mark_crossing(axes, runs, k)
            mark_highest(axes, runs, "batchnorm_noniid", k)
            axes.set_xlabel("")


def _rows(figure, runs):
    """Pairs of a row's two axes and an item of `runs`."""
    figure.set_layout_engine("constrained")
    figure.set_size_inches(WIDTH, ROW_HEIGHT * len(runs))
    rows = figure.subplots(len(runs), 2, squeeze=False, width_ratios=[1.2, 1])
    return zip(rows, runs.items(), strict=True)
