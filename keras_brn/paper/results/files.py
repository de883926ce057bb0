"""Runs as a figure shows them, and the files that hold the runs of a figure."""

import json
from pathlib import Path

import numpy as np

from keras_brn.paper.records import write_json


def as_runs(results):
    """What `keras_brn.paper.training.train` returned, as the runs of a figure.

    The evaluation with the statistics of test minibatches becomes a run of its own. Of the
    correction the means over the layers remain.
    """
    runs = []
    for result in results:
        run = {key: value for key, value in result.items() if key != "batch_accuracy"}
        if "correction" in result:
            run["correction"] = {
                quantity: [_mean_over_layers(values) for values in over_evaluations]
                for quantity, over_evaluations in result["correction"].items()
                if quantity != "layers"
            }
        runs.append(run)
        if "batch_accuracy" in result:
            name = f"{result['name']}_batchstats"
            runs.append({**run, "name": name, "accuracy": result["batch_accuracy"]})
    return runs


def _mean_over_layers(values):
    """`None` where a layer could not be measured, which is NaN, or `None` in a file."""
    mean = np.mean(np.array(values, "float64"))
    return round(float(mean), 4) if np.isfinite(mean) else None


def as_results(runs):
    """What `train` returned, from the runs of a figure: the reverse of `as_runs`, but that of the
    correction the means remain."""
    results = {}
    for run in runs:
        result = results.setdefault(json.dumps(run["config"]), {})
        if run["name"] == run["config"]["name"]:
            result.update(run)
        else:
            result["batch_accuracy"] = run["accuracy"]
    return list(results.values())


def save_figure(figure, runs, summary, path):
    """Writes a picture, and beside it a JSON file with the curves, summary and provenance.

    Args:
        figure: `matplotlib.figure.Figure`.
        runs: As `as_runs` returns them.
        summary: What the file shall say of them.
        path: Path of the picture; the other file has the same name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    curves = [{k: v for k, v in run.items() if k not in ("config", "provenance")} for run in runs]
    provenance = [
        {"name": run["name"], "seed": run["seed"], "config": run["config"], **run["provenance"]}
        for run in runs
    ]
    write_json(
        path.with_suffix(".json"),
        {"runs": curves, "summary": summary, "provenance": {"runs": provenance}},
    )
    figure.savefig(path, dpi=120, bbox_inches="tight")


def load_figure(path):
    """What `save_figure` wrote beside a picture.

    Args:
        path: Path of the picture, or of the file beside it.

    Returns:
        Dict of `runs`, each with its `config` and `provenance`, as `as_runs` returns them; and
        `summary`.
    """
    stored = json.loads(Path(path).with_suffix(".json").read_text())
    runs = [
        {**curves, "config": made["config"], "provenance": _without_identity(made)}
        for curves, made in zip(stored["runs"], stored["provenance"]["runs"], strict=True)
    ]
    return {"runs": runs, "summary": stored["summary"]}


def _without_identity(made):
    return {key: value for key, value in made.items() if key not in ("name", "seed", "config")}
