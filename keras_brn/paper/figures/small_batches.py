"""The picture of Figure 6: accuracy against the number of images in a step."""

from keras_brn.extras import extra
from keras_brn.paper.figures.style import STYLES, TITLE_SIZE, label_ends
from keras_brn.paper.records import write_json
from keras_brn.paper.small_batches.results import (
    CONTENDERS,
    TITLES,
    of_figure,
    summarize_momentum,
    summarize_small_batches,
    with_one_rate,
    write_runs,
)
from keras_brn.paper.small_batches.runs import IMAGES_PER_STEP

with extra("paper"):
    from matplotlib.figure import Figure


def write_small_batches(runs, provenance, out):
    """Writes Figure 6: its picture, a table of all runs and a file of what they say.

    Args:
        runs: As of `keras_brn.paper.small_batches.results.load_results`.
        provenance: Likewise.
        out: Folder.
    """
    summary = summarize_small_batches(runs)
    if not summary:
        return
    picture = Figure(figsize=(9, 3.8), layout="constrained")
    plot_small_batches(picture, runs)
    picture.savefig(out / "figure6.png", dpi=120)
    write_runs(out / "figure6.csv", runs)
    of_momentum = summarize_momentum(runs)
    stored = {"summary": summary, "momentum": of_momentum, "provenance": provenance}
    write_json(out / "figure6.json", stored)


def plot_small_batches(figure, runs):
    """Draws a panel for each data set: a point for each seed, and lines through the means.

    Args:
        figure: An empty `matplotlib.figure.Figure`, with a constrained layout.
        runs: As of `write_small_batches`.
    """
    data_sets = [name for name in TITLES if of_figure(runs, name)]
    panels = figure.subplots(1, len(data_sets), squeeze=False)[0]
    for axes, data in zip(panels, data_sets, strict=True):
        ends = []
        for name in CONTENDERS:
            ends += _plot_contender(axes, of_figure(runs, data), name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(IMAGES_PER_STEP, IMAGES_PER_STEP)
        axes.minorticks_off()
        axes.set_title(TITLES[data], loc="left", fontsize=TITLE_SIZE)
        axes.set(xlabel="images in a step")
        axes.grid(alpha=0.3)
        if axes is panels[-1]:
            label_ends(axes, ends)
    panels[0].set_ylabel("accuracy on test images, %")


def _plot_contender(axes, runs, name):
    color, style = STYLES[name]
    means = {}
    for size in IMAGES_PER_STEP:
        of_size = [run for run in runs if run["images_per_step"] == size]
        points = [100 * run["test"] for run in with_one_rate(of_size, name).values()]
        if points:
            axes.plot([size] * len(points), points, "o", color=color, markersize=3, alpha=0.5)
            means[size] = sum(points) / len(points)
    if not means:
        return []
    axes.plot(list(means), list(means.values()), color=color, linestyle=style, linewidth=1.8)
    return [(means[max(means)], CONTENDERS[name], name)]
