"""The grid of calls: every one is measured, and the tables of the evidence are those stored."""

import json
from pathlib import Path

import pytest

from keras_brn.benchmarks import grid

FIGURES = Path(__file__).parents[2] / "figures"


@pytest.mark.slow
def test_every_call_is_measured(monkeypatch, tmp_path, backend, capsys):
    monkeypatch.setattr(grid, "SHAPES", ((4, 3, 3, 2), (4, 3, 3, 1)))
    path = tmp_path / "grid.json"
    grid.main(["--out", str(path), "--seconds", "0.001"])
    results = json.loads(path.read_text())["results"]
    assert list(results) == list(grid.CALLS)
    for call, of_shapes in results.items():
        several, one = of_shapes.values()  # Channels.
        assert several["ratio"] > 0 and several["milliseconds"] > 0
        assert (one is None) == (call == "mask" and backend != "tensorflow")
    rows = capsys.readouterr().out.splitlines()[-len(grid.CALLS) :]
    assert [row.split(" | ")[0] for row in rows] == [f"| {call}" for call in grid.CALLS]


@pytest.mark.once
def test_the_tables_of_the_evidence_are_those_stored():
    shown = (FIGURES / "README.md").read_text()
    stored = json.loads((FIGURES / "grid.json").read_text())
    assert set(stored) == {"tensorflow", "jax", "torch"}
    for of_backend in stored.values():
        assert grid.table(of_backend["results"]) in shown
