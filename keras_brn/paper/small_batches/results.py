"""What the runs of Figure 6 say: the learning rates chosen, and the accuracies with them."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np

from keras_brn.paper.results.statistics import difference_interval, mean_interval
from keras_brn.paper.results.tables import MISSING, format_percent, format_points, markdown
from keras_brn.paper.small_batches.runs import (
    IMAGES_PER_STEP,
    METHODS,
    MOMENTA,
    RAMPS,
    SmallBatchRun,
)

# Every method, and batchnorm with other statistics in inference.
CONTENDERS = {
    "batchnorm": METHODS["batchnorm"],
    "batchnorm_recomputed": "batchnorm, statistics recomputed",
    **{name: label for name, label in METHODS.items() if name != "batchnorm"},
}
_BASELINE = "batchnorm"
_ATTRIBUTES = ("data", *(field.name for field in dataclasses.fields(SmallBatchRun)))
TITLES = {"glyphs": "glyphs, 250 characters", "tiny_imagenet": "Tiny ImageNet, 40 labels"}


def load_results(folder):
    """What `train_small_batches` stored in a folder.

    Returns:
        `runs`, a list of dicts, the attributes and accuracies of each run with the name of its
        data set as `data`; and `provenance`, a list of dicts, one per program. A run that two
        programs trained is that of the program with more runs.
    """
    results = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("*.json"))]
    results.sort(key=lambda result: -len(result["runs"]))
    runs = {}
    for result in results:
        for run in result["runs"]:
            run = {"data": result["data"], **run}
            runs.setdefault(tuple(run[key] for key in _ATTRIBUTES), run)
    described = [{"runs": len(result["runs"]), **result["provenance"]} for result in results]
    return list(runs.values()), described


def stored_results(figures):
    """What `load_results` returned, from the files of Figure 6 in a folder of figures; empty lists
    where there are none."""
    if not (figures / "figure6.json").exists():
        return [], []
    stored = json.loads((figures / "figure6.json").read_text())
    return read_runs(figures / "figure6.csv"), stored["provenance"]


def write_runs(path, runs):
    """Writes runs as a CSV file, a line for each."""
    names = list(dict.fromkeys(name for run in runs for name in run))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(runs, key=lambda run: [str(run[key]) for key in _ATTRIBUTES]))


def read_runs(path):
    """What `write_runs` wrote."""
    with open(path, newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text or None


def with_one_rate(runs, contender):
    """The runs of a contender with the learning rate that is best, in the mean over the seeds, on
    the images for choices.

    Args:
        runs: List of dicts, as `train_small_batches` returns them, of one number of images a step.
        contender: Key of `CONTENDERS`.

    Returns:
        Dict from seed to run, in which `choices` and `test` are those of the contender; empty
        where there are no runs.
    """
    recomputed = contender == "batchnorm_recomputed"
    prefix, method = ("recomputed_", "batchnorm") if recomputed else ("", contender)
    by_rate = {}
    for run in runs:
        if run["method"] == method:
            accuracies = {key: run[prefix + key] for key in ("training", "choices", "test")}
            by_rate.setdefault(run["learning_rate"], {})[run["seed"]] = run | accuracies
    if not by_rate:
        return {}

    def mean_choice(by_seed):
        return np.mean([run["choices"] for run in by_seed.values()])

    return max(by_rate.values(), key=mean_choice)


def summarize_small_batches(runs):
    """Accuracies on the test images, and their differences to batchnorm, by data set and number of
    images a step.

    Args:
        runs: List of dicts, as `train_small_batches` returns them.

    Returns:
        Nested dict: data set, images a step, contender, to a dict of `accuracy`, `difference`
        and `training_minibatches`, estimates as of `keras_brn.paper.results.statistics`; and
        `learning_rate`.
    """
    summary = {}
    for data in TITLES:
        for images_per_step in IMAGES_PER_STEP:
            of_size = [run for run in of_figure(runs, data) if _size(run) == images_per_step]
            by_contender = {name: with_one_rate(of_size, name) for name in CONTENDERS}
            if not by_contender[_BASELINE]:
                continue
            baseline = by_contender[_BASELINE]
            summary.setdefault(data, {})[str(images_per_step)] = {
                name: _summary_of_contender(by_seed, baseline)
                for name, by_seed in by_contender.items()
                if by_seed
            }
    return summary


def of_figure(runs, data):
    """Those of the runs that differ in method, images a step, learning rate and seed alone."""
    defaults = {"data": data, "momentum": 0.99, "ramp": 1.0, "images_seen": 64_000}.items()
    return [run for run in runs if defaults <= run.items()]


def _size(run):
    return run["images_per_step"]


def _summary_of_contender(by_seed, baseline):
    tests = {seed: run["test"] for seed, run in by_seed.items()}
    seeds = sorted(tests.keys() & baseline.keys())
    return {
        "learning_rate": next(iter(by_seed.values()))["learning_rate"],
        "accuracy": mean_interval(tests.values(), 0.0, 1.0),
        "training_minibatches": mean_interval(
            (run["minibatches"] for run in by_seed.values()), 0.0, 1.0
        ),
        "difference": difference_interval(
            [tests[seed] for seed in seeds], [baseline[seed]["test"] for seed in seeds]
        ),
    }


def small_batch_tables(summary):
    """Dict from a title to a Markdown table, one per data set.

    Args:
        summary: As `summarize_small_batches` returns it.
    """
    return {f"Figure 6, {TITLES[data]}": _table(by_size) for data, by_size in summary.items()}


def _table(by_size):
    sizes = list(by_size)

    def row(label, name, key, form):
        cells = [by_size[size].get(name) for size in sizes]
        return [label, *(MISSING if cell is None else form(cell[key]) for cell in cells)]

    rows = [row(label, name, "accuracy", format_percent) for name, label in CONTENDERS.items()]
    rows.append(["*difference to batchnorm, in points*", *("" for _ in sizes)])
    others = {name: label for name, label in CONTENDERS.items() if name != _BASELINE}
    rows += [row(label, name, "difference", format_points) for name, label in others.items()]
    rows.append(["*learning rate chosen*", *("" for _ in sizes)])
    rows += [row(label, name, "learning_rate", "{:g}".format) for name, label in CONTENDERS.items()]
    return markdown(["images a step", *sizes], rows)


def summarize_momentum(runs):
    """Accuracies of Batch Renorm on the test images by momentum and ramp.

    Returns:
        List of dicts: `data`, `images_per_step`, `images_seen`, `ramp`, `momentum`, `accuracy`.
    """
    keys = ("data", "images_per_step", "images_seen", "ramp", "momentum")
    grids = {
        (run["data"], run["images_per_step"], run["images_seen"], run["learning_rate"])
        for run in runs
        if run["momentum"] != 0.99 and run["method"] == "batch_renorm"
    }
    cells = {}
    for run in runs:
        grid = (run["data"], run["images_per_step"], run["images_seen"], run["learning_rate"])
        if run["method"] == "batch_renorm" and grid in grids:
            cells.setdefault(tuple(run[key] for key in keys), {})[run["seed"]] = run["test"]
    return [
        dict(zip(keys, cell, strict=True)) | {"accuracy": mean_interval(by_seed.values(), 0.0, 1.0)}
        for cell, by_seed in sorted(cells.items())
    ]


def momentum_tables(cells):
    """Two Markdown tables: accuracy by momentum, with the ramp that has the paper's shares of the
    run; and by the length of the ramp, with momentum .99.

    Args:
        cells: As `summarize_momentum` returns it.
    """
    by_setting = {}
    for cell in cells:
        steps = cell["images_seen"] // cell["images_per_step"]
        setting = cell["data"], cell["images_per_step"], steps
        by_setting.setdefault(setting, {})[cell["momentum"], cell["ramp"]] = cell["accuracy"]

    def table(heading, columns):
        rows = [
            [
                f"{TITLES[data]}, {size} images, {steps:,} steps",
                *(format_percent(accuracies.get(column)) for column in columns),
            ]
            for (data, size, steps), accuracies in sorted(by_setting.items())
            if sum(column in accuracies for column in columns) > 1
        ]
        return markdown(heading, rows)

    momenta = ["momentum", *(f"{momentum:g}" for momentum in MOMENTA)]
    lengths = ["length of the ramp", "none", "the paper's share", "twice that"]
    return {
        "momentum": table(momenta, [(momentum, 1.0) for momentum in MOMENTA]),
        "ramp": table(lengths, [(0.99, ramp) for ramp in RAMPS]),
    }
