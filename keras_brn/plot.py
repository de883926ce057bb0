"""A picture of what Batch Renorm corrects."""

import numpy as np

from keras_brn.monitor import QUANTITIES


def plot_correction(figure, steps, history):
    """Draws what a `keras_brn.RenormMonitor` has seen: a map of layers and steps per quantity.

    Args:
        figure: An empty `matplotlib.figure.Figure`.
        steps: List of training steps, such as `monitor.steps`.
        history: Dict from the name of a quantity to a list over the steps of lists over the layers,
            such as `monitor.history`.
    """
    panels = figure.subplots(2, 3, sharex=True, sharey=True, squeeze=False).flat
    for axes, (name, title) in zip(panels, QUANTITIES.items(), strict=True):
        values = np.array(history[name], "float64").T
        edges = [0, *steps], np.arange(len(values) + 1) + 0.5
        mesh = axes.pcolormesh(*edges, values, cmap="viridis", vmin=0, vmax=np.nanmax(values) or 1)
        figure.colorbar(mesh, ax=axes)
        axes.set_title(title, fontsize="medium")
    for axes in figure.axes[:6]:
        axes.label_outer()
    figure.supxlabel("training steps")
    figure.supylabel("layer, from the image to the logits")
