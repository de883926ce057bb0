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
