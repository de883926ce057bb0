"""The files of a run: its result and, until that is complete, a checkpoint."""

import dataclasses
import json
import zipfile
from pathlib import Path

from keras_brn.paper.experiment import Experiment
from keras_brn.paper.records import read_json, write_json

# A `.keras` file is a zip archive, of which Keras reads the members that it knows.
_STATE = "keras_brn_run.json"


def result_path(experiment, data_name, folder):
    """Where the result of a run is stored."""
    parts = [data_name, experiment.name, f"{experiment.steps}steps"]
    if experiment.images_per_label is not None:
        parts.append(f"{experiment.images_per_label}perlabel")
    return Path(folder) / f"{'-'.join([*parts, f'seed{experiment.seed}'])}.json"


def checkpoint_path(path):
    """Where the checkpoint of a run is stored, from the path of its result."""
    return path.with_suffix(".keras")


def run_config(experiment, data_name):
    """Dict of all that a run is repeated from, as results store it."""
    return {"data": data_name, **dataclasses.asdict(experiment)}


def read_result(path, config, images=None):
    """The result in a file, or `None` where there is no file.

    Args:
        path: As of `result_path`.
        config: As of `run_config`.
        images: As of `describe_images`; `None`: any images.

    Raises:
        ValueError: If the result is of another configuration or of other images.
    """
    path = Path(path)
    if not path.exists():
        return None
    result = read_json(path)
    check_origin(path, result, config, images)
    return result


def completed_result(experiment, data_name, folder, images=None):
    """The result that `train` has left in `folder`, or `None` if the run is not complete.

    It is refused like by `read_result`.
    """
    path = result_path(experiment, data_name, folder)
    result = read_result(path, run_config(experiment, data_name), images)
    complete = result is not None and len(result["step"]) == experiment.evaluations
    return result if complete else None


def store_result(result, folder):
    """Writes a result of `train` to where it looks for it, unless there is one."""
    config = dict(result["config"])
    data_name = config.pop("data")
    path = result_path(Experiment(**config), data_name, folder)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)


def check_origin(path, result, config, images=None):
    """Refuses a result, or that in a checkpoint, of another configuration or of other images.

    Results of older versions do not tell all about their images: what they tell must be equal.
    """
    check_equal(path, "another configuration", result["config"], config)
    if images is not None:
        stored = result.get("provenance", {}).get("images", {})
        check_equal(path, "other images", stored, {key: images.get(key) for key in stored})


def check_equal(path, kind, stored, wanted):
    """Refuses the file at `path` if two dicts differ, that which it stores and the wanted one."""
    differing = {
        key: (stored.get(key), wanted.get(key))
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    }
    if differing:
        raise ValueError(
            f"`{path}` is of {kind}: remove it, or choose another folder. "
            f"Received (stored, wanted): {differing}"
        )


def save_checkpoint(path, model, state):
    """Writes a `.keras` file that also holds `state`, a dict.

    Whenever the writing is cut off, the file is either the old one or the new one.
    """
    part = _unfinished(path)
    try:
        model.save(part)
        with zipfile.ZipFile(part, "a") as archive:
            archive.writestr(_STATE, json.dumps(state))
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def read_checkpoint_state(path):
    """The dict `state` of a file that `save_checkpoint` wrote."""
    try:
        with zipfile.ZipFile(path) as archive:
            state = archive.read(_STATE)
    except zipfile.BadZipFile as error:
        raise ValueError(f"`{path}` is damaged: remove it. Received: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"`{path}` does not say what it was trained from: remove it, or choose another folder."
        ) from error
    return json.loads(state)


def remove_checkpoint(path):
    """Removes a checkpoint, and what was left of one whose writing was cut off."""
    path.unlink(missing_ok=True)
    _unfinished(path).unlink(missing_ok=True)


def _unfinished(path):
    return path.with_suffix(".part.keras")
