"""The numbers of small experiments (`keras_brn.paper.studies`), and their table."""

import numpy as np

from keras_brn.paper.results.statistics import mean_interval
from keras_brn.paper.results.summaries import paired_difference
from keras_brn.paper.results.tables import (
    format_change,
    format_number,
    format_percent,
    format_points,
    markdown,
)

# How a mean and a difference to the baseline are written, and the heading of the latter.
PERCENT = format_percent, format_points, "difference, points"
NUMBERS = format_number, format_change, "difference"


def with_best_rate(results):
    """Those of the results, of one method in one setting, whose learning rate has the greatest mean
    of `choices`: dict from seed to result."""
    by_rate = {}
    for result in results:
        by_rate.setdefault(result["learning_rate"], {})[result["seed"]] = result
    return max(
        by_rate.values(),
        key=lambda by_seed: np.mean([result["choices"] for result in by_seed.values()]),
    )


def summarize_study(results, settings, quantities, baseline):
    """Means over the seeds, and differences to the baseline in the same setting.

    Args:
        results: As `run_study` returns them.
        settings: Names of the attributes that make a setting.
        quantities: Names of the numbers to summarize.
        baseline: Method that the others are compared with.

    Returns:
        Dict from a pair, the method and the tuple of its setting, to a dict from a quantity to a
        pair of estimates, the mean and the difference (`None` for the baseline); and of
        `learning_rate`.
    """
    cells = {}
    for result in results:
        setting = tuple(result[name] for name in settings)
        cells.setdefault((result["method"], setting), []).append(result)
    chosen = {cell: with_best_rate(of_cell) for cell, of_cell in cells.items()}
    summary = {}
    for (method, setting), by_seed in chosen.items():
        summary[method, setting] = {}
        for name in quantities:
            values, others = (
                {seed: result[name] for seed, result in of_seeds.items()}
                for of_seeds in (by_seed, chosen[baseline, setting])
            )
            difference = paired_difference(values, others) if method != baseline else None
            summary[method, setting][name] = mean_interval(values.values()), difference
        summary[method, setting]["learning_rate"] = next(iter(by_seed.values()))["learning_rate"]
    return summary


def study_table(summary, labels, quantities, formats=PERCENT, titles=None):
    """Markdown: for each method and setting the learning rate, and of each quantity the mean and
    the difference to the baseline.

    Args:
        summary: As `summarize_study` returns it.
        labels: Dict from a method to what the table calls it.
        quantities: Dict from the names of the numbers to their headings.
        formats: `PERCENT`, of shares of 1, or `NUMBERS`.
        titles: Dict from a part of a setting to what the table calls it, if not as it is.
    """
    titles = titles or {}
    format_mean, format_difference, difference = formats
    heading = ["", "learning rate"]
    for name in quantities.values():
        heading += [name, difference]
    rows = []
    for (method, setting), values in summary.items():
        shown = (str(titles.get(part, part)) for part in setting)
        row = [", ".join([labels[method], *shown]), f"{values['learning_rate']:g}"]
        for name in quantities:
            mean, to_baseline = values[name]
            row += [format_mean(mean), format_difference(to_baseline)]
        rows.append(row)
    return markdown(heading, rows)
