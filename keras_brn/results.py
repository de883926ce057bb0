"""Curves of training runs: a picture, a table beside the paper's numbers, and the file of both."""

import json
from pathlib import Path

import numpy as np

from keras_brn.records import write_json

# Top-1 validation accuracy and the step of it: section 4, Figures 1 and 2.
_PAPER = {
    "batchnorm": (0.783, 130_000),
    "batchnorm_micro4": (0.742, 210_000),
    "batch_renorm_micro4": (0.765, 130_000),
}
_LABELS = {
    "batchnorm": "batchnorm, groups of 32",
    "batchnorm_micro4": "batchnorm, groups of 4",
    "batch_renorm_micro4": "Batch Renorm, groups of 4",
}
_COLORS = {"batchnorm": "0.35", "batchnorm_micro4": "C1", "batch_renorm_micro4": "C0"}


def plot_curves(axes, runs, title):
    """Draws validation accuracy against training steps: the mean over the seeds, and their range.

    Args:
        axes: `matplotlib.axes.Axes`.
        runs: List of results of `keras_brn.experiment.train`.
        title: String.
    """
    for name, curves in _by_name(runs).items():
        steps = [0, *curves[0]["step"]]
        accuracy = 100 * np.array([[0, *curve["accuracy"]] for curve in curves])
        color = _COLORS[name]
        axes.plot(steps, accuracy.mean(0), color=color, label=_LABELS[name])
        if len(curves) > 1:
            axes.fill_between(steps, accuracy.min(0), accuracy.max(0), color=color, alpha=0.2)
    axes.set(title=title, xlabel="training steps", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")


def summarize(runs):
    """The numbers of the paper's Figure 2, from our runs.

    Args:
        runs: Results of the three runs of `microbatch_experiments`, with any number of seeds.

    Returns:
        Dict of the best accuracy of each run, in the mean over the seeds, and its step (`best`);
        `recovered`, the part of the deficit of groups of 4 that Batch Renorm wins back;
        `steps_ratio`, Batch Renorm's steps to its best by batchnorm's; `passes_at`, the step
        at which Batch Renorm has reached batchnorm's best, or `None`. Also `seeds`.
    """
    curves = _by_name(runs)
    mean = {name: np.mean([c["accuracy"] for c in curves[name]], axis=0) for name in curves}
    steps = {name: curves[name][0]["step"] for name in curves}
    best = {
        name: {"accuracy": round(float(a.max()), 5), "step": steps[name][int(a.argmax())]}
        for name, a in mean.items()
    }
    top, small, renorm = (best[name]["accuracy"] for name in _PAPER)
    passed = np.flatnonzero(mean["batch_renorm_micro4"] >= small)
    return {
        "best": best,
        "recovered": round((renorm - small) / (top - small), 3) if top > small else None,
        "steps_ratio": round(
            best["batch_renorm_micro4"]["step"] / best["batchnorm_micro4"]["step"], 3
        ),
        "passes_at": steps["batch_renorm_micro4"][passed[0]] if len(passed) else None,
        "seeds": len(curves["batchnorm"]),
    }


def table(columns):
    """Markdown: the paper's numbers beside ours.

    Args:
        columns: Dict from a heading to what `summarize` returned.
    """
    lines = [
        f"| | paper | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]

    def add(label, paper, ours):
        lines.append(f"| {label} | {paper} | {' | '.join(ours)} |")

    def percent(accuracy, step):
        return f"{100 * accuracy:.1f} % at {step:,}"

    for name, label in _LABELS.items():
        best = [percent(**summary["best"][name]) for summary in columns.values()]
        add(label, percent(*_PAPER[name]), best)
    missing = {None: "–"}
    for label, key, paper in (
        ("part of the deficit recovered", "recovered", ".56"),
        ("steps to its best, by batchnorm's", "steps_ratio", ".62"),
        ("step that reaches batchnorm's best", "passes_at", "not said"),
        ("seeds", "seeds", "1"),
    ):
        values = [summary[key] for summary in columns.values()]
        add(label, paper, [missing.get(value, str(value)) for value in values])
    return "\n".join(lines)


def save_figure(figure, runs, path):
    """Writes a picture, and beside it a JSON file with the curves, summary and provenance.

    Args:
        figure: `matplotlib.figure.Figure`.
        runs: Results of `keras_brn.experiment.train`.
        path: Path of the picture; the other file has the same name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    curves = [{k: v for k, v in run.items() if k not in ("config", "provenance")} for run in runs]
    provenance = [
        {"name": run["name"], "seed": run["seed"], "config": run["config"], **run["provenance"]}
        for run in runs
    ]
    write_json(
        path.with_suffix(".json"),
        {"runs": curves, "summary": summarize(runs), "provenance": {"runs": provenance}},
    )


def load_figure(path):
    """What `save_figure` wrote beside a picture: `runs`, `summary` and `provenance`."""
    return json.loads(Path(path).with_suffix(".json").read_text())


def _by_name(runs):
    names = [name for name in _LABELS if any(run["name"] == name for run in runs)]
    return {name: [run for run in runs if run["name"] == name] for name in names}
