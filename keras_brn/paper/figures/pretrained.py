"""The picture of the fine-tuning of a network that others trained."""

from keras_brn.extras import extra
from keras_brn.paper.figures.style import BLACK, BLUE, GREEN, TITLE_SIZE
from keras_brn.paper.studies.pretrained import METHODS
from keras_brn.paper.studies.study import reported

with extra("paper"):
    from matplotlib.figure import Figure

_TITLES = {"cifar10": "CIFAR-10", "tiny_imagenet": "Tiny ImageNet"}


def draw_pretrained(results):
    """A `matplotlib.figure.Figure`: for each data set and size of a step a panel with a point for
    each method and seed, and a bar at their mean.

    Args:
        results: As `keras_brn.paper.studies.study.load_study` reads them, search included.
    """
    results = reported(results)
    settings = list(dict.fromkeys((r["data"], r["images_per_step"]) for r in results))
    methods = [name for name in METHODS if any(r["method"] == name for r in results)]
    height = 0.9 + 0.27 * len(methods)
    figure = Figure(figsize=(3.2 + 3 * len(settings), height), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for axes, (data, size) in zip(panels, settings, strict=True):
        for row, method in enumerate(methods):
            values = [
                100 * r["test"]
                for r in results
                if (r["data"], r["images_per_step"], r["method"]) == (data, size, method)
            ]
            if values:
                color = _color(method)
                axes.plot(values, [row] * len(values), "o", color=color, markersize=4, alpha=0.6)
                axes.plot(sum(values) / len(values), row, "|", color=color, markersize=14)
        axes.set_title(f"{_TITLES[data]}, {size} images a step", loc="left", fontsize=TITLE_SIZE)
        axes.set(xlabel="accuracy on test images, %", ylim=(len(methods) - 0.5, -0.5))
        axes.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(methods)), [METHODS[name] for name in methods])
    return figure


def _color(method):
    if method.startswith("batch_renorm"):
        return BLUE
    return GREEN if method == "frozen_batchnorm" else BLACK
