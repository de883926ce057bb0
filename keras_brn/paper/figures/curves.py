"""Pictures of training curves, and of where they end."""

import numpy as np

from keras_brn.paper.figures.style import STYLES, TEXT_SIZE, TITLE_SIZE, draw_seeds, label_ends
from keras_brn.paper.results.comparisons import COMPARISONS
from keras_brn.paper.results.runs import final_accuracies, final_accuracy, runs_by_seed
from keras_brn.paper.results.summaries import accuracy_interval, curves_of_figure


def plot_curves(axes, runs, figure, title, images_per_label=2):
    """Draws validation accuracy against training steps: the mean over the seeds, and each seed.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: As `keras_brn.paper.results.as_runs` returns them, of one data set.
        figure: 1, 2 or 3.
        title: String.
        images_per_label: Of Figure 3.
    """
    ends = []
    for name, by_seed in curves_of_figure(runs, figure, images_per_label).items():
        steps = [0, *next(iter(by_seed.values()))["step"]]
        accuracy = 100 * np.array([[0, *run["accuracy"]] for run in by_seed.values()])
        draw_seeds(axes, steps, accuracy, name)
        label = f"{COMPARISONS[figure].labels[name]}, n = {len(by_seed)}"
        ends.append((accuracy[:, -1].mean(), label, name))
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.set(xlabel="training steps", ylabel="validation accuracy, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    _count_steps(axes)
    label_ends(axes, ends)


def _count_steps(axes):
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter("{x:,.0f}")


def plot_final_accuracy(axes, runs, figure, images_per_label=2):
    """Draws where the curves end, the highest first: a point for each seed, and the mean with its
    95 % interval.

    The axis shows the points; an interval that is wider is cut at the frame.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: As for `plot_curves`.
        figure: 1, 2 or 3.
        images_per_label: Of Figure 3.
    """
    curves = curves_of_figure(runs, figure, images_per_label)
    accuracy = {name: final_accuracies(by_seed) for name, by_seed in curves.items()}
    highest_first = sorted(accuracy, key=lambda name: -np.mean([*accuracy[name].values()]))
    for row, name in enumerate(highest_first):
        _draw_estimate(axes, row, accuracy[name], STYLES[name][0])
    points = [100 * value for by_seed in accuracy.values() for value in by_seed.values()]
    margin = 0.15 * (max(points) - min(points)) or 1
    axes.set_xlim(min(points) - margin, max(points) + margin)
    axes.set_ylim(len(accuracy) - 0.5, -0.5)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("validation accuracy at the end, %")
    axes.grid(axis="x", alpha=0.3)


def _draw_estimate(axes, row, by_seed, color):
    """Points of the seeds, and under them the mean with its interval."""
    axes.plot(
        [100 * value for value in by_seed.values()],
        [row - 0.12] * len(by_seed),
        "o",
        color=color,
        alpha=0.6,
    )
    estimate = accuracy_interval(by_seed)
    if estimate["low"] is not None:
        axes.plot(100 * estimate["value"], row + 0.15, "|", color=color, markersize=10)
        ends = [100 * estimate["low"], 100 * estimate["high"]]
        axes.plot(ends, [row + 0.15] * 2, color=color, linewidth=2)


def mark_crossing(axes, runs, images_per_label):
    """Marks from which step on batchnorm, trained on few labels, is better with the statistics of
    test minibatches than with its averages: then it has learned to rely on the other images of a
    minibatch.

    Args:
        axes: `matplotlib.axes.Axes`, drawn by `plot_curves`.
        runs: As for `plot_curves`, of Figure 3.
        images_per_label: Of Figure 3.
    """
    names = "batchnorm_noniid", "batchnorm_noniid_batchstats"
    by_averages, by_minibatch = (
        runs_by_seed(runs, name, images_per_label).values() for name in names
    )
    gained = np.mean([run["accuracy"] for run in by_minibatch], axis=0) - np.mean(
        [run["accuracy"] for run in by_averages], axis=0
    )
    behind = np.flatnonzero(gained <= 0)
    first = behind[-1] + 1 if len(behind) else 0
    if first == len(gained):
        return
    step = next(iter(by_averages))["step"][first]
    color = STYLES["batchnorm_noniid_batchstats"][0]
    axes.axvline(step, color=color, linewidth=0.8)
    axes.annotate(
        f"from step {step:,} on,\ntest minibatches\nhelp batchnorm",
        (step, 0),
        xytext=(4, 4),
        textcoords="offset points",
        color=color,
        fontsize=TEXT_SIZE,
    )


def mark_highest(axes, runs, name, images_per_label):
    """Marks where the accuracy of a contender is highest, if that is before the end.

    Args:
        axes: `matplotlib.axes.Axes`, drawn by `plot_curves`.
        runs: As for `plot_curves`, of Figure 3.
        name: Name of the contender.
        images_per_label: Of Figure 3.
    """
    curves = [*runs_by_seed(runs, name, images_per_label).values()]
    accuracy = 100 * np.mean([run["accuracy"] for run in curves], axis=0)
    highest = int(np.argmax(accuracy))
    if highest == len(accuracy) - 1:
        return
    color, step = STYLES[name][0], curves[0]["step"][highest]
    axes.plot(step, accuracy[highest], "v", color=color, markersize=6)
    axes.annotate(
        f"highest: {accuracy[highest]:.1f} %\nat step {step:,}",
        (step, accuracy[highest]),
        xytext=(0, -8),
        textcoords="offset points",
        va="top",
        color=color,
        fontsize=TEXT_SIZE,
    )


def plot_images_per_label(axes, runs, title):
    """Draws the final accuracy against the number of images per label in groups of 32: a point for
    each seed, and lines through the means.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: As for `plot_curves`.
        title: String.
    """
    present = sorted({run["images_per_label"] for run in runs} - {None})
    curves = {k: curves_of_figure(runs, 3, k) for k in present}
    for name in COMPARISONS[3].labels:
        color, style = STYLES[name]
        accuracy = {
            k: [100 * final_accuracy(run) for run in of_name[name].values()]
            for k, of_name in curves.items()
            if name in of_name
        }
        for k, points in accuracy.items():
            axes.plot([k] * len(points), points, "o", color=color, markersize=3, alpha=0.6)
        means = [np.mean(points) for points in accuracy.values()]
        axes.plot([*accuracy], means, color=color, linestyle=style, linewidth=1.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(present, present)
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.set(xlabel="images per label", ylabel="final validation accuracy, %")
    axes.grid(alpha=0.3)


def plot_training_accuracy(axes, runs, title, images_per_label):
    """Draws accuracy in training against training steps, of two kinds, as far as runs have them: on
    minibatches, normalized by these, as dashed lines; on images, one by one, as solid lines.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: As for `plot_curves`, of Figure 3.
        title: String.
        images_per_label: Of Figure 3.
    """
    curves = curves_of_figure(runs, 3, images_per_label)
    for key, style in (("train_accuracy", "--"), ("train_image_accuracy", "-")):
        for name in COMPARISONS[3].training:
            accuracy = [run[key] for run in curves.get(name, {}).values() if key in run]
            if accuracy:
                steps = next(iter(curves[name].values()))["step"]
                axes.plot(steps, 100 * np.mean(accuracy, axis=0), style, color=STYLES[name][0])
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.set(xlabel="training steps", ylabel="accuracy in training, %")
    axes.set_ylim(bottom=0)
    _count_steps(axes)
    axes.grid(alpha=0.3)
