"""Pictures of the tutorial, from the numbers that it computes."""

import numpy as np

from keras_brn.extras import extra
from keras_brn.paper.figures.style import BLACK, BLUE, ORANGE, TEXT_SIZE, TITLE_SIZE, VERMILLION

with extra("paper"):
    from matplotlib import colormaps
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection


def plot_activation_differences(axes, differences, title):
    """Draws how far training is from inference, layer by layer: a line for each size of minibatch.

    Args:
        axes: `matplotlib.axes.Axes`.
        differences: Dict from a number of examples to what
            `keras_brn.paper.activations.activation_differences` returns for it.
        title: String.
    """
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(differences)))
    for (size, by_layer), shade in zip(sorted(differences.items()), shades, strict=True):
        layers, values = np.arange(len(by_layer)) + 1, list(by_layer.values())
        axes.plot(layers, values, "o-", color=shade, markersize=3, label=f"{size} examples")
    axes.set_xticks(layers, [*layers[:-1], "output"])
    axes.set_title(title, loc="left", fontsize=TITLE_SIZE)
    axes.set_xlabel("normalization layer")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def plot_projection(axes, x, gradient, projected):
    """Draws, for a minibatch of three examples, a gradient and its projection onto the null space
    of (1, 1, 1) and (x_1, x_2, x_3): a line, orthogonal to the plane that these two span.

    Args:
        axes: `mpl_toolkits.mplot3d.axes3d.Axes3D`.
        x: Array (3,), the values of a channel.
        gradient: Array (3,), before the projection.
        projected: Array (3,), after it.
    """
    x, gradient, projected = (np.asarray(value, "float64") for value in (x, gradient, projected))
    length = np.linalg.norm(gradient)

    def direction(vector):
        return length * vector / np.linalg.norm(vector)

    p_0, p_1, normal = direction(np.ones(3)), direction(x), direction(np.cross(np.ones(3), x))
    across = direction(np.cross(normal, p_0))  # In the plane, at a right angle to p_0.
    corners = [-p_0 - across, p_0 - across, p_0 + across, across - p_0]
    axes.add_collection3d(Poly3DCollection([corners], facecolor="0.6", alpha=0.25))
    line = np.stack([-normal, normal], axis=1)
    axes.plot(*line, "--", color="0.4", linewidth=1, label="the null space of $p_0$ and $p_1$")
    axes.plot(*np.stack([gradient, projected], axis=1), ":", color="0.2", linewidth=1)
    for vector, label in ((p_0, "$p_0 = (1, 1, 1)$"), (p_1, "$p_1 = (x_1, x_2, x_3)$")):
        _arrow(axes, vector, BLACK)
        axes.text(*(1.1 * vector), label, fontsize=TEXT_SIZE)
    _arrow(axes, gradient, VERMILLION, "gradient, scaled by $r / \\sigma_B$")
    _arrow(axes, gradient - projected, ORANGE, "its part in the plane, which is removed")
    _arrow(axes, projected, BLUE, "its projection, the gradient of x")
    limits = (-0.8 * length, 0.8 * length)
    axes.set(xlim=limits, ylim=limits, zlim=limits, xticks=[], yticks=[], zticks=[])
    axes.set(xlabel="example 1", ylabel="example 2", zlabel="example 3")
    axes.set_box_aspect((1, 1, 1), zoom=0.88)
    axes.view_init(elev=20, azim=5)
    axes.legend(loc="center left", bbox_to_anchor=(1.05, 0.5), fontsize=TEXT_SIZE, frameon=False)


def _arrow(axes, vector, color, label=None):
    axes.quiver(0, 0, 0, *vector, color=color, arrow_length_ratio=0.08, linewidth=1.8, label=label)
