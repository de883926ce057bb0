"""Pictures of training curves, and of what Batch Renorm corrects."""

import numpy as np

from keras_brn.paper.experiment import figure_4_name
from keras_brn.paper.fine_tuning import NORMALIZATIONS
from keras_brn.paper.results import (
    FIGURES,
    LABELS,
    LABELS_OF_SIZES,
    PAPER,
    best,
    by_group_size,
    estimate_of_best,
    select,
)

_COLORS = {
    "batchnorm": "0.35",
    "batch_renorm": "C0",
    "batchnorm_micro4": "C1",
    "batch_renorm_micro4": "C0",
    "batchnorm_noniid": "C1",
    "batchnorm_noniid_batchstats": "C2",
    "batchnorm_noniid_halves": "C4",
    "batchnorm_noniid_spread": "C5",
    "batch_renorm_noniid": "C0",
}


def plot_curves(axes, runs, figure, title, images_per_label=2):
    """Draws validation accuracy against training steps: the mean over the seeds, and their range.

    Dashed lines are the paper's final values, in proportion to batchnorm's in groups of 32.
    The ordinate is stretched towards 100 %, where the curves are close.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: As `keras_brn.paper.results.as_runs` returns them, of one data set.
        figure: 1, 2 or 3.
        title: String.
        images_per_label: Of Figure 3.
    """
    reference = select(runs, "batchnorm").values()
    scale = np.mean([best(run)[0] for run in reference]) if reference else None
    for name in FIGURES[figure]:
        curves = list(select(runs, name, images_per_label).values())
        if not curves:
            continue
        steps = [0, *curves[0]["step"]]
        accuracy = 100 * np.array([[0, *run["accuracy"]] for run in curves])
        color = _COLORS[name]
        axes.plot(steps, accuracy.mean(0), color=color, label=LABELS[name])
        axes.fill_between(steps, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2, lw=0)
        if scale is not None and name in PAPER and name != "batchnorm":
            paper = 100 * scale * PAPER[name][0] / PAPER["batchnorm"][0]
            axes.axhline(paper, color=color, linestyle="--", linewidth=0.8)
    if scale is not None:
        axes.plot(
            [], [], color="0.5", linestyle="--", linewidth=0.8, label="the paper's, in proportion"
        )
    _scale_by_error(axes)
    axes.set(title=title, xlabel="training steps", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.locator_params(axis="x", nbins=5)
    axes.legend(loc="best", fontsize="small")


def _scale_by_error(axes):
    """Stretches the ordinate, an accuracy in percent, towards 100 %, where the differences that
    matter are small: by the logarithm of 105 - y, which 100 % has as well."""
    axes.set_yscale(
        "function",
        functions=(lambda y: -np.log(105 - np.minimum(y, 104)), lambda t: 105 - np.exp(-t)),
    )
    if axes.get_ylim()[1] > 50:
        axes.set_yticks([0, 50, 70, 80, 90, 95])


def plot_few_labels(figure, runs):
    """Draws Figure 3: for each data set the curves of 16 labels x 2 images and of 4 x 8, and, if
    there are several, the best accuracy against the number of images per label.

    Args:
        figure: An empty `matplotlib.figure.Figure`, with a constrained layout.
        runs: Dict from a title to the runs of a data set, as `plot_curves` takes them.
    """
    present = {run["images_per_label"] for found in runs.values() for run in found} - {None}
    shown, several = sorted(present & {2, 8}) or [8], len(present) > 1
    rows = figure.subplots(len(runs), len(shown) + several, squeeze=False)
    for row, (title, found) in zip(rows, runs.items(), strict=True):
        for axes, k in zip(row, shown, strict=False):
            plot_curves(axes, found, 3, f"{title}: {32 // k} labels x {k} images", k)
        if several:
            plot_images_per_label(row[-1], found, title)
    for axes in rows.flat:
        axes.get_legend().remove()  # One for all.
    handles = rows[0, len(shown) - 1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=rows.shape[1] + 1)


def plot_images_per_label(axes, runs, title):
    """Draws the best accuracy against the number of images per label in groups of 32.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: As `keras_brn.paper.results.as_runs` returns them, of one data set.
        title: String.
    """
    present = sorted({run["images_per_label"] for run in runs} - {None})
    for name in FIGURES[3]:
        of = {k: estimate_of_best(runs, name, k) for k in present}
        numbers = [k for k in present if of[k] is not None]
        if not numbers:
            continue
        values = [of[k] for k in numbers]
        middle = np.array([value["value"] for value in values])
        low, high = (
            [v["value"] if v[side] is None else v[side] for v in values] for side in ("low", "high")
        )
        axes.errorbar(
            numbers,
            100 * middle,
            100 * np.array([middle - low, high - middle]),
            color=_COLORS[name],
            linestyle="--" if name == "batchnorm" else "-",
            marker="o",
            capsize=3,
            label="independent images" if name == "batchnorm" else LABELS[name],
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(present, present)
    axes.set(
        title=title, xlabel="images per label in groups of 32", ylabel="best validation accuracy, %"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def plot_alpha_and_ramp(axes, runs, title):
    """Draws the best accuracy of Batch Renorm over alpha and the length of the ramp: a heat map of
    the means over the seeds that all its runs have.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: Those of `keras_brn.paper.experiment.figure_4`, of one data set.
        title: String.
    """
    alphas, ramps = (0.25, 1, 4), (0.5, 1, 2)
    found = [[select(runs, figure_4_name(alpha, ramp)) for ramp in ramps] for alpha in alphas]
    seeds = set.intersection(*(set(of_seed) for row in found for of_seed in row))
    accuracy = 100 * np.array(
        [[np.mean([best(of_seed[seed])[0] for seed in seeds]) for of_seed in row] for row in found]
    )
    for (row, column), value in np.ndenumerate(accuracy):
        axes.text(column, row, f"{value:.1f}", ha="center", va="center")
    image = axes.imshow(accuracy, cmap="cividis", alpha=0.7)
    axes.figure.colorbar(image, label="best validation accuracy, %")
    axes.set_xticks(range(len(ramps)), [f"x{ramp:g}" for ramp in ramps])
    axes.set_yticks(range(len(alphas)), [f"x{alpha:g}" for alpha in alphas])
    axes.set(title=title, xlabel="length of the ramp, by the rule's", ylabel="alpha, by the rule's")


def plot_group_sizes(axes, runs, title):
    """Draws the best accuracy against the number of examples that are normalized together.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: Those of `keras_brn.paper.experiment.figure_5`, of one data set.
        title: String.
    """
    colors = dict(zip(FIGURES[5], ("C1", "C0", "C2", "C4", "C5"), strict=True))
    for name, of_size in by_group_size(runs).items():
        values, low, high = (
            [100 * (each["value"] if each[key] is None else each[key]) for each in of_size.values()]
            for key in ("value", "low", "high")
        )
        alone = name in ("group_norm", "layer_norm")
        style = {"linestyle": "--"} if alone else {"marker": "o"}
        axes.plot([*of_size], values, color=colors[name], label=LABELS_OF_SIZES[name], **style)
        axes.fill_between([*of_size], low, high, color=colors[name], alpha=0.2, lw=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 32], [1, 2, 4, 32])
    _scale_by_error(axes)
    axes.set(title=title, xlabel="images per group", ylabel="best validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def plot_fine_tuning(figure, results):
    """Draws the accuracy after each epoch, a panel per batch size: mean over the seeds, and range.

    Args:
        figure: An empty `matplotlib.figure.Figure`.
        results: List of what `keras_brn.paper.fine_tuning.fine_tune` returned.
    """
    sizes = sorted({result["batch_size"] for result in results})
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    colors = dict(zip(NORMALIZATIONS, ("C1", "C2", "C0"), strict=True))
    for axes, size in zip(panels, sizes, strict=True):
        for name, label in NORMALIZATIONS.items():
            wanted = {"batch_size": size, "normalization": name}
            found = [result for result in results if wanted.items() <= result.items()]
            curves = 100 * np.array([result["accuracy"] for result in found])
            epochs = 1 + np.arange(curves.shape[1])
            axes.plot(epochs, curves.mean(0), color=colors[name], label=label)
            axes.fill_between(
                epochs, curves.min(0), curves.max(0), color=colors[name], alpha=0.2, lw=0
            )
        axes.set(title=f"{size} images per step", xlabel="epochs", xticks=epochs)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation accuracy, %")
    panels[-1].legend(fontsize="small")
