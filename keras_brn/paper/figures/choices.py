"""Pictures of what the paper leaves open: alpha and the ramp, group sizes."""

import numpy as np

from keras_brn.paper.experiment import GROUP_SIZES
from keras_brn.paper.figures.style import STYLES, TITLE_SIZE, label_ends
from keras_brn.paper.results.comparisons import NORMALIZATIONS_BY_GROUP_SIZE, SINGLE_IMAGES
from keras_brn.paper.results.runs import final_accuracies
from keras_brn.paper.results.summaries import curves_by_factor, curves_by_group_size


def plot_alpha_and_ramp(axes, runs, title):
    """Draws the final accuracy of Batch Renorm over alpha and over the length of the ramp, as far
    as there are runs: points of the seeds that those of a line have, and lines through the means.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: Those of `keras_brn.paper.experiment.figure_4`, of one data set and length.
        title: String.
    """
    ends, factors = [], set()
    for name, by_factor in curves_by_factor(runs).items():
        color, style = STYLES[name]
        accuracy = 100 * np.array(
            [[*final_accuracies(by_seed).values()] for by_seed in by_factor.values()]
        )
        axes.plot([*by_factor], accuracy.mean(1), color=color, linestyle=style, linewidth=1.8)
        axes.plot([*by_factor], accuracy, "o", color=color, markersize=4, alpha=0.6)
        ends.append((accuracy[-1].mean(), f"{name}, n = {accuracy.shape[1]}", name))
        factors |= by_factor.keys()
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(factors), [f"x{factor:g}" for factor in sorted(factors)])
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.set(xlabel="by the rule's", ylabel="final validation accuracy, %")
    axes.grid(alpha=0.3)
    label_ends(axes, ends)


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
            [[*final_accuracies(by_seed).values()] for by_seed in by_size.values()]
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
