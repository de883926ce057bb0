"""What the curves of training runs say, beside what the paper says."""

import json
import re
from pathlib import Path

import numpy as np

from keras_brn.paper.experiment import figure_5_name
from keras_brn.paper.records import write_json

# Top-1 validation accuracy of Inception-v3 and the step of it: section 4, Figures 1 to 3.
PAPER = {
    "batchnorm": (0.783, 130_000),
    "batch_renorm": (0.785, 130_000),
    "batchnorm_micro4": (0.742, 210_000),
    "batch_renorm_micro4": (0.765, 130_000),
    "batchnorm_noniid": (0.67, None),
    "batchnorm_noniid_batchstats": (0.765, None),
    "batchnorm_noniid_halves": (0.774, 140_000),
    "batch_renorm_noniid": (0.785, 120_000),
}
FIGURES = {
    1: ("batchnorm", "batch_renorm"),
    2: ("batchnorm", "batchnorm_micro4", "batch_renorm_micro4"),
    3: (
        "batchnorm",
        "batchnorm_noniid",
        "batchnorm_noniid_batchstats",
        "batchnorm_noniid_halves",
        "batchnorm_noniid_spread",
        "batch_renorm_noniid",
    ),
    5: ("batchnorm", "batch_renorm", "fixed_bounds", "group_norm", "layer_norm"),
}


def as_runs(results):
    """What `keras_brn.paper.training.train` returned, as the runs of a figure.

    The evaluation with the statistics of test minibatches becomes a run of its own, and of the
    correction the means over the layers remain.
    """
    runs = []
    for result in results:
        run = {key: value for key, value in result.items() if key != "batch_accuracy"}
        if "correction" in result:
            run["correction"] = {
                name: [round(float(np.mean(of_layers)), 4) for of_layers in values]
                for name, values in result["correction"].items()
                if name != "layers"
            }
        runs.append(run)
        if "batch_accuracy" in result:
            name = f"{result['name']}_batchstats"
            runs.append({**run, "name": name, "accuracy": result["batch_accuracy"]})
    return runs


def as_results(stored):
    """What `train` returned, from a figure as `load_figure` reads it: the reverse of `as_runs`, but
    that of the correction the means remain."""
    results = {}
    for run, made in zip(stored["runs"], stored["provenance"]["runs"], strict=True):
        config = made["config"]
        result = results.setdefault(json.dumps(config), {})
        if run["name"] == config["name"]:
            produced = {k: v for k, v in made.items() if k not in ("name", "seed", "config")}
            result.update(run, config=config, provenance=produced)
        else:
            result["batch_accuracy"] = run["accuracy"]
    return list(results.values())


def select(runs, name, images_per_label=None):
    """The runs of a name, by seed; those of independent images have no `images_per_label`."""
    found = [
        run
        for run in runs
        if run["name"] == name
        and run["images_per_label"] == (images_per_label if "noniid" in name else None)
    ]
    return {run["seed"]: run for run in sorted(found, key=lambda run: run["seed"])}


def by_steps(runs):
    """Dict from the numbers of training steps, shortest first, to the runs of this length."""
    lengths = sorted({run["step"][-1] for run in runs})
    return {steps: [run for run in runs if run["step"][-1] == steps] for steps in lengths}


def best(run):
    """(accuracy, step) where a curve is highest."""
    k = int(np.argmax(run["accuracy"]))
    return run["accuracy"][k], run["step"][k]


def estimate(statistic, *columns, repeats=10_000):
    """A statistic of means over the seeds, with its 95 % interval.

    Args:
        statistic: Function of the means of the columns, arrays (repeats,).
        *columns: For each contender a list, one number per seed; the seeds are paired.
        repeats: Number of bootstrap samples of the seeds.

    Returns:
        Dict of `value`, `low` and `high`, of which the last two are `None` for a single seed; and
        `seeds`.
    """
    values = np.array(columns, "float64")
    seeds = values.shape[1]
    result = {"value": float(statistic(*values.mean(1))), "low": None, "high": None, "seeds": seeds}
    if seeds > 1:
        drawn = np.random.default_rng(0).integers(seeds, size=(repeats, seeds))
        with np.errstate(divide="ignore", invalid="ignore"):
            samples = statistic(*values[:, drawn].mean(2))
        result["low"], result["high"] = (float(q) for q in np.quantile(samples, [0.025, 0.975]))
    return {key: round(v, 4) if isinstance(v, float) else v for key, v in result.items()}


def estimate_of_best(runs, name, images_per_label=None):
    """The `estimate` of the best accuracy of the runs of a name; `None` if there are none."""
    found = select(runs, name, images_per_label).values()
    return estimate(lambda a: a, [best(run)[0] for run in found]) if found else None


def recovered(runs, name, top, bottom, images_per_label=None):
    """The part of what `bottom` falls short of `top` that `name` wins back, as `estimate`.

    `None` where runs are missing, or where the deficit may be none: its interval holds 0.
    """
    curves = [select(runs, each, images_per_label) for each in (top, bottom, name)]
    seeds = sorted(set.intersection(*map(set, curves)))
    if not seeds:
        return None
    columns = [[best(curve[seed])[0] for seed in seeds] for curve in curves]
    deficit = estimate(lambda top, bottom, _: top - bottom, *columns)
    if (deficit["value"] if deficit["low"] is None else deficit["low"]) <= 0:
        return None
    return estimate(lambda top, bottom, by: (by - bottom) / (top - bottom), *columns)


def summarize(runs, figure, images_per_label=2):
    """The numbers of one of the paper's figures, from our runs on one data set.

    Args:
        runs: As `as_runs` returns them, of one data set.
        figure: 1, 2 or 3.
        images_per_label: Of Figure 3.

    Returns:
        Dict of `best`, from a name to the best accuracy (an `estimate`), `step` where the mean of
        the curves is best, and the final `train_accuracy`; and of the figure's ratios, as
        estimates or `None`: `recovered`, from a name to what it wins back of batchnorm's deficit;
        `steps_ratio`, the step of Batch Renorm's best by that of batchnorm's; `passes_at`, the
        step at which Batch Renorm has reached batchnorm's best, in the mean over the seeds.
    """
    curves = {name: select(runs, name, images_per_label) for name in FIGURES[figure]}
    curves = {name: list(found.values()) for name, found in curves.items() if found}
    summary = {"images_per_label": images_per_label if figure == 3 else None, "best": {}}
    for name, found in curves.items():
        mean = np.mean([run["accuracy"] for run in found], axis=0)
        summary["best"][name] = {
            **estimate_of_best(runs, name, images_per_label),
            "step": found[0]["step"][int(mean.argmax())],
            "train_accuracy": round(float(np.mean([r["train_accuracy"][-1] for r in found])), 4),
        }
    bottom = FIGURES[figure][0 if figure == 1 else 1]
    summary["recovered"] = {
        name: recovered(runs, name, "batchnorm", bottom, images_per_label)
        for name in FIGURES[figure][2:]
    }
    renorm = FIGURES[figure][-1]
    if renorm in curves and bottom in curves:
        steps = [
            {seed: best(run)[1] for seed, run in select(runs, name, images_per_label).items()}
            for name in (renorm, bottom)
        ]
        seeds = sorted(set(steps[0]) & set(steps[1]))
        columns = [[of_seed[seed] for seed in seeds] for of_seed in steps]
        summary["steps_ratio"] = estimate(lambda a, b: a / b, *columns)
        mean = np.mean([run["accuracy"] for run in curves[renorm]], axis=0)
        passed = np.flatnonzero(mean >= summary["best"][bottom]["value"])
        summary["passes_at"] = curves[renorm][0]["step"][passed[0]] if len(passed) else None
    return summary


def table(figure, columns):
    """Markdown: the paper's numbers beside ours.

    Args:
        figure: 1, 2 or 3.
        columns: Dict from a heading to what `summarize` returned.
    """
    lines = [f"| | paper | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]

    def add(label, paper, ours):
        lines.append(f"| {label} | {paper} | {' | '.join(ours)} |")

    def at(step):
        return "" if step is None else f" at {step:,}"

    for name in FIGURES[figure]:
        paper = "–"
        if name in PAPER:
            accuracy, step = PAPER[name]
            paper = f"{100 * accuracy:.1f} %{at(step)}"
        cells = [
            f"{percent(s['best'][name])}{at(s['best'][name]['step'])}" if name in s["best"] else "–"
            for s in columns.values()
        ]
        add(LABELS[name], paper, cells)
    for name, paper in _PAPER_TRAINING.get(figure, {}).items():
        bests = [s["best"].get(name) for s in columns.values()]
        cells = ["–" if best is None else f"{100 * best['train_accuracy']:.1f} %" for best in bests]
        add(f"training accuracy, {LABELS[name]}", paper, cells)
    for name, paper in _PAPER_RECOVERED.get(figure, {}).items():
        who, _, how = LABELS[name].partition(", ")
        label = f"deficit recovered, {who if name.startswith('batch_renorm') else how}"
        add(label, paper, [_ratio(s["recovered"].get(name)) for s in columns.values()])
    add(
        "steps to Batch Renorm's best, by batchnorm's",
        _PAPER_STEPS[figure],
        [_ratio(s.get("steps_ratio")) for s in columns.values()],
    )
    passed = [s.get("passes_at") for s in columns.values()]
    add("step that reaches batchnorm's best", "not said", [f"{s:,}" if s else "–" for s in passed])
    return "\n".join(lines)


LABELS = {
    "batchnorm": "batchnorm, groups of 32",
    "batch_renorm": "Batch Renorm, groups of 32",
    "batchnorm_micro4": "batchnorm, groups of 4",
    "batch_renorm_micro4": "Batch Renorm, groups of 4",
    "batchnorm_noniid": "batchnorm, few labels",
    "batchnorm_noniid_batchstats": "batchnorm, evaluated by minibatch",
    "batchnorm_noniid_halves": "batchnorm, in halves",
    "batchnorm_noniid_spread": "batchnorm, labels spread over the groups",
    "batch_renorm_noniid": "Batch Renorm, few labels",
}
_PAPER_TRAINING = {  # Under training statistics, at the end.
    3: {"batchnorm": "–", "batchnorm_noniid": "72.8 %", "batch_renorm_noniid": "–"},
}
_PAPER_RECOVERED = {
    2: {"batch_renorm_micro4": ".56"},
    3: {
        "batchnorm_noniid_batchstats": ".84",
        "batchnorm_noniid_halves": ".92",
        "batchnorm_noniid_spread": "–",
        "batch_renorm_noniid": "1.02",
    },
}
_PAPER_STEPS = {1: "1.0", 2: ".62", 3: "–"}


def by_group_size(runs):
    """The best accuracy for each number of images that are normalized together.

    Args:
        runs: Those of `keras_brn.paper.experiment.figure_5`, of one data set.

    Returns:
        Dict from "batchnorm", "batch_renorm", "fixed_bounds", "group_norm" and "layer_norm" to a
        dict from 1, 2, 4 and 32 to an `estimate`, as far as there are runs. What normalizes each
        image by itself has the same for all sizes.
    """
    found = {}
    for name in FIGURES[5]:
        alone = name in ("group_norm", "layer_norm")
        for size in (1, 2, 4, 32):
            estimated = estimate_of_best(runs, name if alone else figure_5_name(name, size))
            if estimated is not None:
                found.setdefault(name, {})[size] = estimated
    return found


def table_of_group_sizes(runs):
    """Markdown: what `by_group_size` returns, for all of `FIGURES[5]`."""
    found = by_group_size(runs)
    lines = ["| images per group | 1 | 2 | 4 | 32 |", "|---" * 5 + "|"]
    for name in FIGURES[5]:
        cells = [percent(estimated) for estimated in found[name].values()]
        lines.append(f"| {LABELS_OF_SIZES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


LABELS_OF_SIZES = {
    "batchnorm": "batchnorm",
    "batch_renorm": "Batch Renorm",
    "fixed_bounds": "Batch Renorm, final bounds from the first step",
    "group_norm": "group normalization",
    "layer_norm": "layer normalization",
}


def percent(estimate):
    """An `estimate` in percent, with its interval."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    spread = "" if low is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} %{spread}"


def _ratio(estimate):
    if estimate is None:
        return "–"
    value, low, high = (
        None if number is None else re.sub(r"^(-?)0\.", r"\1.", f"{number:.2f}")
        for number in (estimate["value"], estimate["low"], estimate["high"])
    )
    return value if low is None else f"{value} [{low}, {high}]"


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
    figure.savefig(path, dpi=120, bbox_inches="tight")
    curves = [{k: v for k, v in run.items() if k not in ("config", "provenance")} for run in runs]
    provenance = [
        {"name": run["name"], "seed": run["seed"], "config": run["config"], **run["provenance"]}
        for run in runs
    ]
    write_json(
        path.with_suffix(".json"),
        {"runs": curves, "summary": summary, "provenance": {"runs": provenance}},
    )


def load_figure(path):
    """What `save_figure` wrote beside a picture: `runs`, `summary` and `provenance`."""
    return json.loads(Path(path).with_suffix(".json").read_text())
