"""Small experiments: runs of one configuration each, kept in a folder and then in one file.

A run is a frozen dataclass with `method`, `learning_rate` and `seed` among its attributes; its
result is a dict of numbers, with `choices` among them: how good it is (more is better) on data by
which learning rates are chosen, and on which nothing is reported.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from keras_brn.paper.data.files import digest_of
from keras_brn.paper.records import locked_error, provenance, read_json, run_lock, write_json
from keras_brn.paper.results.statistics import difference_interval, mean_interval


def run_study(runs, train, folder, data=None):
    """The results of all runs; those that the folder holds already are read.

    Args:
        runs: List of frozen dataclasses of one type.
        train: Function of a run that returns its result, a dict of numbers.
        folder: Where results are kept, a file for each run.
        data: `Images` that the runs use, for the provenance.

    Returns:
        List of dicts: the attributes of a run, its result, and `provenance`.

    Raises:
        RuntimeError: If another process trains one of the runs in this folder.
    """
    results = []
    for run in runs:
        config = dataclasses.asdict(run)
        described = {**config, "images": None if data is None else data.digest}
        digits = digest_of(np.frombuffer(json.dumps(described).encode(), "uint8"))[:16]
        path = Path(folder) / f"{run.method}-seed{run.seed}-{digits}.json"
        if not path.exists():
            with run_lock(path) as locked:
                if not locked:
                    raise locked_error(path)
                if not path.exists():
                    write_json(path, {**config, **train(run), "provenance": provenance(data)})
        results.append(read_json(path))
    return results


def save_study(results, path):
    """Writes all results to one file, each provenance once."""
    made = []
    for result in results:
        if result["provenance"] not in made:
            made.append(result["provenance"])
    runs = [{k: v for k, v in result.items() if k != "provenance"} for result in results]
    write_json(path, {"runs": runs, "provenance": made})


def load_study(path):
    """The results, without provenance, that `save_study` wrote."""
    return read_json(path)["runs"]


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
        pair of estimates, the mean and the difference; and of `learning_rate`.
    """
    cells = {}
    for result in results:
        setting = tuple(result[name] for name in settings)
        cells.setdefault((result["method"], setting), []).append(result)
    chosen = {cell: with_best_rate(of_cell) for cell, of_cell in cells.items()}
    summary = {}
    for (method, setting), by_seed in chosen.items():
        others = chosen[baseline, setting]
        seeds = sorted(by_seed.keys() & others.keys())
        summary[method, setting] = {
            name: (
                mean_interval(result[name] for result in by_seed.values()),
                difference_interval(
                    [by_seed[seed][name] for seed in seeds], [others[seed][name] for seed in seeds]
                ),
            )
            for name in quantities
        }
        summary[method, setting]["learning_rate"] = next(iter(by_seed.values()))["learning_rate"]
    return summary
