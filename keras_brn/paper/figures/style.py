"""How the contenders are drawn: colours that the colour-blind tell apart, line styles, labels."""

import numpy as np

# Okabe and Ito 2008, "Color universal design".
BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"

STYLES = {
    "batchnorm": (BLACK, "-"),
    "batch_renorm": (BLUE, "-"),
    "batchnorm_micro4": (VERMILLION, "--"),
    "batch_renorm_micro4": (BLUE, "-"),
    "batchnorm_noniid": (VERMILLION, "--"),
    "batchnorm_noniid_batchstats": (GREEN, ":"),
    "batchnorm_noniid_halves": (PURPLE, "-."),
    "batchnorm_noniid_spread": (ORANGE, (0, (6, 2))),
    "batch_renorm_noniid": (BLUE, "-"),
    "fixed_bounds": (SKY_BLUE, "--"),
    "batch_renorm_at_once": (SKY_BLUE, "--"),
    "batchnorm_recomputed": (PURPLE, ":"),
    "batchnorm_accumulated": (VERMILLION, "--"),
    "group_norm": (GREEN, "-."),
    "layer_norm": (ORANGE, ":"),
    "alpha": (BLUE, "-"),
    "ramp": (VERMILLION, "--"),
}
TEXT_SIZE, TITLE_SIZE = 8.5, 10


def draw_seeds(axes, x, values, name):
    """Draws a thin line for each seed, their mean as a thick line, and a point where each ends.

    Args:
        axes: `matplotlib.axes.Axes`.
        x: List of abscissae.
        values: Array (seeds, abscissae).
        name: Key of `STYLES`.
    """
    color, style = STYLES[name]
    if len(values) > 1:
        for of_seed in values:
            axes.plot(x, of_seed, color=color, linewidth=0.6, alpha=0.4)
    axes.plot(x, np.mean(values, axis=0), color=color, linestyle=style, linewidth=1.8)
    axes.plot([x[-1]] * len(values), values[:, -1], "o", color=color, markersize=3)


def label_ends(axes, ends):
    """Writes labels to the right of the axes, beside the ends of the curves, without overlap.

    Args:
        axes: `matplotlib.axes.Axes`, with its final limits.
        ends: List of triples: ordinate of the end, label, key of `STYLES`.
    """
    low, high = axes.get_ylim()
    height = axes.get_window_extent().height / axes.figure.dpi * 72  # in points
    gap = 1.25 * TEXT_SIZE / height
    ends = sorted(ends, key=lambda end: end[0])
    wanted = [(y - low) / (high - low) for y, _, _ in ends]
    for end, height_of_text, (_, label, name) in zip(
        wanted, spread_out(wanted, gap), ends, strict=True
    ):
        axes.annotate(
            label,
            xy=(1, end),
            xytext=(1.07, height_of_text),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=STYLES[name][0],
            fontsize=TEXT_SIZE,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": STYLES[name][0],
                "linewidth": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def spread_out(positions, gap):
    """Positions moved apart, so that neighbours are at least `gap` from each other and none is
    above the axes, whose height is 1.

    Args:
        positions: Ascending numbers.
        gap: Positive number.
    """
    moved = np.array(positions, "float64")
    for _ in range(200):
        lacking = np.maximum(0, gap - np.diff(moved))
        if lacking.max(initial=0) < 1e-6 * gap:
            break
        moved[1:] += lacking / 2
        moved[:-1] -= lacking / 2
    highest = 0.98
    for k in reversed(range(len(moved))):
        moved[k] = min(moved[k], highest)
        highest = moved[k] - gap
    return moved
