"""The picture of what several methods come to in a study."""

from keras_brn.extras import extra
from keras_brn.paper.figures.style import BLACK, BLUE, GREEN, TITLE_SIZE
from keras_brn.paper.studies.study import reported

with extra("paper"):
    from matplotlib.figure import Figure


def draw_methods(results, methods, settings, figure=None):
    """A panel for each setting of which there are runs, with a point for each method and seed, and
    a bar at their mean.

    Args:
        results: As `keras_brn.paper.studies.study.load_study` reads them, search included.
        methods: Dict from a method to what the picture calls it.
        settings: Dict from the title of a panel to a dict of the attributes that make it.
        figure: An empty `matplotlib.figure.Figure`; `None`: a new one.

    Returns:
        The figure.
    """
    panels = {
        title: [result for result in reported(results) if setting.items() <= result.items()]
        for title, setting in settings.items()
    }
    panels = {title: of_panel for title, of_panel in panels.items() if of_panel}
    methods = {
        name: label
        for name, label in methods.items()
        if any(result["method"] == name for of_panel in panels.values() for result in of_panel)
    }
    figure = Figure() if figure is None else figure
    figure.set_layout_engine("constrained")
    figure.set_size_inches(3.2 + 3 * len(panels), 0.9 + 0.27 * len(methods))
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, of_panel) in zip(all_axes, panels.items(), strict=True):
        for row, method in enumerate(methods):
            values = [100 * result["test"] for result in of_panel if result["method"] == method]
            if values:
                color = _color(method)
                axes.plot(values, [row] * len(values), "o", color=color, markersize=4, alpha=0.6)
                axes.plot(sum(values) / len(values), row, "|", color=color, markersize=14)
        axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
        axes.set(xlabel="accuracy on test images, %", ylim=(len(methods) - 0.5, -0.5))
        axes.grid(alpha=0.3, axis="x")
    all_axes[0].set_yticks(range(len(methods)), [*methods.values()])
    return figure


def _color(method):
    if method.startswith("batch_renorm"):
        return BLUE
    return GREEN if method == "frozen_batchnorm" else BLACK
