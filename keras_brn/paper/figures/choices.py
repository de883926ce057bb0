"""Pictures of what the paper leaves open: alpha and the ramp, group sizes, fine-tuning."""

import numpy as np

from keras_brn.paper.experiment import GROUP_SIZES, figure_4_name
from keras_brn.paper.figures.style import STYLES, TITLE_SIZE, draw_seeds, label_ends
from keras_brn.paper.fine_tuning import NORMALIZATIONS
from keras_brn.paper.results.comparisons import (
    NORMALIZATIONS_BY_GROUP_SIZE,
    SINGLE_IMAGES,
)
from keras_brn.paper.results.runs import final_accuracy, runs_by_seed, with_common_seeds
from keras_brn.paper.results.summaries import curves_by_group_size

ALPHAS, RAMPS = (0.25, 1, 4), (0.5, 1, 2)  # Of Figure 4: multiples of the rule's.


def plot_alpha_and_ramp(axes, runs, title):
    """Draws the final accuracy of Batch Renorm over alpha and the length of the ramp: a heat map of
    the means over the seeds that all runs have, and under the map how far seeds differ.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: Those of `keras_brn.paper.experiment.figure_4`, of one data set and length.
        title: String.
    """
    cells = [(alpha, ramp) for alpha in ALPHAS for ramp in RAMPS]
    every = {cell: runs_by_seed(runs, figure_4_name(*cell)) for cell in cells}
    common = with_common_seeds(every, cells)
    accuracy = np.array(
        [[_mean_final_accuracy(common[alpha, ramp]) for ramp in RAMPS] for alpha in ALPHAS]
    )
    for (row, column), value in np.ndenumerate(accuracy):
        color = "white" if value < (accuracy.min() + accuracy.max()) / 2 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color)
    image = axes.imshow(accuracy, cmap="cividis")
    axes.figure.colorbar(image, label="final validation accuracy, %")
    axes.set_xticks(range(len(RAMPS)), [f"x{ramp:g}" for ramp in RAMPS])
    axes.set_yticks(range(len(ALPHAS)), [f"x{alpha:g}" for alpha in ALPHAS])
    seeds = ", ".join(f"{100 * final_accuracy(run):.1f}" for run in every[1, 1].values())
    xlabel = f"length of the ramp, by the rule's\n\nseeds of the middle cell: {seeds}"
    axes.set_title(f"{title}, n = {len(common[1, 1])}", loc="left", fontsize=TITLE_SIZE)
    axes.set(xlabel=xlabel, ylabel="alpha, by the rule's")


def _mean_final_accuracy(by_seed):
    return 100 * np.mean([final_accuracy(run) for run in by_seed.values()])


def plot_group_sizes(axes, runs, title):
    """Draws the final accuracy against the number of images that are normalized together: a point
    for each seed, and lines through the means.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: Those of `keras_brn.paper.experiment.figure_5`, of one data set and length.
        title: String.
    """
    ends = []
    for name, by_size in curves_by_group_size(runs).items():
        color, style = STYLES[name]
        accuracy = 100 * np.array(
            [[final_accuracy(run) for run in by_seed.values()] for by_seed in by_size.values()]
        )
        axes.plot(GROUP_SIZES, accuracy.mean(1), color=color, linestyle=style, linewidth=1.8)
        shown = slice(-1, None) if name in SINGLE_IMAGES else slice(None)  # The same at all sizes.
        for size, points in list(zip(GROUP_SIZES, accuracy, strict=True))[shown]:
            axes.plot([size] * len(points), points, "o", color=color, markersize=4, alpha=0.6)
        ends.append((accuracy[-1].mean(), NORMALIZATIONS_BY_GROUP_SIZE[name], name))
    axes.set_xscale("log", base=2)
    axes.set_xticks(GROUP_SIZES, GROUP_SIZES)
    axes.set_title(f"{title}, n = {accuracy.shape[1]}", loc="left", fontsize=TITLE_SIZE)
    axes.set(xlabel="images per group", ylabel="final validation accuracy, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    label_ends(axes, ends)


def plot_fine_tuning(figure, results):
    """Draws the accuracy after each epoch, a panel per batch size: the mean over the seeds, and
    each seed.

    Args:
        figure: An empty `matplotlib.figure.Figure`, with a constrained layout.
        results: List of what `keras_brn.paper.fine_tuning.fine_tune` returned.
    """
    sizes = sorted({result["batch_size"] for result in results})
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        ends = []
        for name, label in NORMALIZATIONS.items():
            wanted = {"batch_size": size, "normalization": name}.items()
            curves = 100 * np.array([r["accuracy"] for r in results if wanted <= r.items()])
            if not len(curves):
                continue
            epochs = [*range(1, 1 + curves.shape[1])]
            draw_seeds(axes, epochs, curves, name)
            ends.append((curves[:, -1].mean(), f"{label}, n = {len(curves)}", name))
        axes.set_title(f"{size} images per step", loc="left", fontsize=TITLE_SIZE)
        axes.set(xlabel="epochs", xticks=epochs)
        axes.grid(alpha=0.3)
        if axes is panels[-1]:
            label_ends(axes, ends)
    panels[0].set_ylabel("validation accuracy, %")
