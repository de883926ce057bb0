"""Markdown tables of the summaries, beside the paper's numbers.

Accuracies are in percent, differences in points, ratios as they are; in brackets stands the 95 %
interval, and n is the number of seeds.
"""

import re

from keras_brn.paper.experiment import GROUP_SIZES
from keras_brn.paper.results.comparisons import (
    COMPARISONS,
    NORMALIZATIONS_BY_GROUP_SIZE,
    PAPER,
    PAPER_TRAINING_IMAGES,
)

MISSING = "–"


def figure_table(figure, columns):
    """The paper's numbers beside ours.

    Args:
        figure: 1, 2 or 3.
        columns: Dict from a heading to what `summarize_figure` returned.
    """
    comparison, summaries = COMPARISONS[figure], list(columns.values())
    labels = comparison.labels

    def cells(part, key, form):
        return [form(summary[part].get(key)) for summary in summaries]

    rows = [_section("validation accuracy at the end", summaries)]
    for name, label in labels.items():
        rows.append([label, _paper_accuracy(name), *cells("accuracy", name, format_percent)])
    rows.append(_section("differences, in points", summaries))
    for name, baseline, label in comparison.differences:
        ours = cells("differences", f"{name} - {baseline}", format_points)
        rows.append([label, _paper_difference(name, baseline), *ours])
    variants = [summary.get("variants", {}) for summary in summaries]
    for variant in dict.fromkeys(name for of_data in variants for name in of_data):
        ours = [format_points(of_data.get(variant)) for of_data in variants]
        rows.append([f"Batch Renorm − batchnorm, {variant}", MISSING, *ours])
    rows.append(_section("ratios", summaries))
    for name, bottom, top, label in comparison.shares:
        ours = cells("shares", f"{name}: {bottom} to {top}", format_ratio)
        rows.append([label, _paper_share(name, bottom, top), *ours])
    label = f"{comparison.race.label}, after this share of the steps"
    rows.append([label, "not said", *(format_race(summary["race"]) for summary in summaries)])
    if comparison.training:
        rows += _training_rows(comparison, summaries)
    return markdown(["", "paper", *map(_heading, columns, summaries)], rows)


def _training_rows(comparison, summaries):
    """Two accuracies, which differ in what normalizes; the paper has one of them."""
    rows = []
    for title, part, paper in (
        ("accuracy on training minibatches", "minibatch_training_accuracy", {}),
        (
            "accuracy on training images, one by one",
            "image_training_accuracy",
            PAPER_TRAINING_IMAGES,
        ),
    ):
        rows.append(_section(title, summaries))
        for name in comparison.training:
            of_paper = f"{100 * paper[name]:.1f} %" if name in paper else MISSING
            ours = [format_percent(summary[part].get(name)) for summary in summaries]
            rows.append([comparison.labels[name], of_paper, *ours])
    return rows


def _heading(heading, summary):
    return with_epsilon(heading, summary["optimizer_epsilon"])


def with_epsilon(title, epsilon):
    """A title with the setting that tells runs of one name in different figures apart.

    Args:
        title: String.
        epsilon: As `common_epsilon` returns it.
    """
    return title if epsilon is None else f"{title}, RMSProp's epsilon {_number(epsilon, 'g')}"


def _section(title, columns):
    return [f"*{title}*", "", *("" for _ in columns)]


def _paper_accuracy(name):
    if name not in PAPER:
        return MISSING
    accuracy, step = PAPER[name]
    return f"{100 * accuracy:.1f} %" + ("" if step is None else f" at {step:,}")


def _paper_difference(name, baseline):
    if not {name, baseline} <= PAPER.keys():
        return MISSING
    return _number(100 * (PAPER[name][0] - PAPER[baseline][0]), "+.1f")


def _paper_share(name, bottom, top):
    if not {name, bottom, top} <= PAPER.keys():
        return MISSING
    value, low, high = (PAPER[each][0] for each in (name, bottom, top))
    return _number((value - low) / (high - low), ".2f")


def alpha_and_ramp_table(summaries):
    """Accuracies with each alpha and length of the ramp, and differences to the rule's.

    Args:
        summaries: Dict from the number of training steps, as a string, to what
            `summarize_alpha_and_ramp` returned.
    """
    columns = list(summaries.values())
    labels = {"alpha": "alpha", "ramp": "length of the ramp"}

    def rows(part, form):
        cells = dict.fromkeys(
            (name, factor)
            for column in columns
            for name, by_factor in column[part].items()
            for factor in by_factor
        )
        return [
            [
                f"{labels[name]} x {factor}",
                *(form(column[part].get(name, {}).get(factor)) for column in columns),
            ]
            for name, factor in sorted(cells)
        ]

    differences = rows("differences", format_points)
    section = _section("differences to the rule's, in points", columns[1:])
    heading = ["", *(f"{int(steps):,} steps" for steps in summaries)]
    return markdown(heading, [*rows("accuracy", format_percent), section, *differences])


def group_size_table(summary):
    """Accuracies and differences by the number of images that are normalized together.

    Args:
        summary: As `summarize_group_sizes` returns it.
    """
    labels, sizes = NORMALIZATIONS_BY_GROUP_SIZE, [str(size) for size in GROUP_SIZES]
    rows = [
        [labels[name], *(format_percent(by_size[size]) for size in sizes)]
        for name, by_size in summary["accuracy"].items()
    ]
    rows.append(_section("differences, in points", sizes[1:]))
    for names, by_size in summary["differences"].items():
        label = " − ".join(labels[name] for name in names.split(" - "))
        rows.append([label, *(format_points(by_size[size]) for size in sizes)])
    return markdown(["images per group", *sizes], rows)


def markdown(heading, rows):
    """A table.

    Args:
        heading: List of strings.
        rows: List of such lists.
    """
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def format_percent(estimate):
    """An estimate of an accuracy, a share of 1, in percent."""
    return _format(estimate, lambda value: f"{100 * value:.1f}", " %")


def format_points(estimate):
    """An estimate of a difference of accuracies, in points of a percent."""
    return _format(estimate, lambda value: _number(100 * value, "+.2f"))


def format_number(estimate):
    """An estimate of a large number, such as a return, without decimals."""
    return _format(estimate, lambda value: f"{value:.0f}")


def format_change(estimate):
    """An estimate of a difference of large numbers."""
    return _format(estimate, lambda value: f"{value:+.0f}")


def format_ratio(estimate):
    """An estimate of a ratio."""
    return _format(estimate, lambda value: _number(value, ".2f"))


def format_race(race):
    """What `first_reached` returned."""
    if race is None or race["value"] is not None:
        return format_ratio(race)
    reached = sum(step is not None for step in race["steps"])
    return f"in {reached} of n = {race['seeds']} seeds"


def _format(estimate, number, unit=""):
    if estimate is None:
        return MISSING
    value, seeds = estimate["value"], estimate["seeds"]
    text = "undefined" if value is None else number(value) + unit
    if seeds > 1 and estimate["low"] is None:
        text += " [unbounded]"
    elif seeds > 1:
        text += f" [{number(estimate['low'])}, {number(estimate['high'])}]"
    return f"{text}, n = {seeds}"


def _number(value, form):
    """A number without the zero before its point."""
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{form}}")
