"""What the stored figures were made from."""

import json
from pathlib import Path

FIGURES = Path(__file__).parents[2] / "figures"


def commits(value):
    """All commits in a stored file."""
    if isinstance(value, dict):
        here = [value["commit"]] if "commit" in value else []
        return here + [commit for item in value.values() for commit in commits(item)]
    return [commit for item in value for commit in commits(item)] if isinstance(value, list) else []


def of_a_changed_tree(stored):
    return {name for name, value in stored.items() if any(map(_is_not_a_commit, commits(value)))}


def _is_not_a_commit(commit):
    return commit is None or len(commit) != 40


def test_stored_runs_are_of_committed_code():
    stored = {path.name: json.loads(path.read_text()) for path in FIGURES.glob("*.json")}
    assert all(commits(value) for value in stored.values())
    assert not of_a_changed_tree(stored)


def test_runs_of_a_changed_tree_or_of_no_commit_are_found():
    clean = {"provenance": {"runs": [{"commit": 40 * "a"}]}}
    dirty = {"provenance": {"runs": [{"commit": 40 * "a"}, {"commit": f"{40 * 'b'}-dirty"}]}}
    none = {"torch": {"provenance": {"commit": None}}}
    assert of_a_changed_tree({"a": clean, "b": dirty, "c": none}) == {"b", "c"}


def test_the_picture_of_the_correction_is_of_a_run_of_figure_2():
    (correction, *_) = json.loads((FIGURES / "correction.json").read_text())["runs"]
    stored = json.loads((FIGURES / "figure2.json").read_text())["runs"]
    same = {key: correction[key] for key in ("name", "data", "seed")}
    (run,) = [run for run in stored if same.items() <= run.items()]
    assert run["accuracy"] == correction["accuracy"]
