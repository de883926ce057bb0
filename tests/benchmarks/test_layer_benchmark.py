"""The benchmark's arithmetic; its numbers are measured, not tested."""

import json

import numpy as np
import pytest

from keras_brn.benchmarks import layer as benchmark
from keras_brn.benchmarks import timing


@pytest.mark.once
def test_functions_take_turns(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def function(name, seconds):
        def run():
            order.append(name)
            clock[0] += seconds

        return run

    times = timing.take_turns([function("a", 1.0), function("b", 3.0)], seconds=40.0)
    np.testing.assert_allclose(times, [[1.0, 3.0]] * 10)
    assert "".join(order[6:]) == "abba" * 5 or "".join(order[6:]) == "baab" * 5


@pytest.mark.once
def test_a_short_call_is_repeated_within_its_turn(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    calls = []

    def function():
        calls.append(1)
        clock[0] += 0.001

    times = timing.take_turns([function], seconds=0.0, turn=0.02)
    np.testing.assert_allclose(times, 0.001)
    assert len(calls) == 3 + 20 * len(times)


@pytest.mark.slow
def test_results_are_kept_and_shown(monkeypatch, tmp_path, backend, capsys):
    case = str(benchmark.SHAPES[-1])
    built = []

    def counted(new):
        built.append(new)
        return benchmark.layer_step(new(), benchmark.SHAPES[-1])

    monkeypatch.setattr(benchmark, "CASES", {case: counted})
    monkeypatch.setattr(benchmark, "MEMORY_CASES", ())
    path = tmp_path / "benchmark.json"
    benchmark.measure_backend(path, seconds=0.01)
    benchmark.measure_backend(path, seconds=0.01)
    assert len(built) == len(benchmark.contenders_of(case))  # The second time nothing is measured.
    assert f"{backend} {case}" in capsys.readouterr().out
    results = json.loads(path.read_text())
    assert results[backend]["time"][case]["batchnorm"]["ratio"] == 1
    lines = benchmark.table(results).splitlines()
    assert len(lines) == 3 and lines[2].count("floors") == len(built)
    benchmark.plot(results, tmp_path / "benchmark.png")
    assert (tmp_path / "benchmark.png").stat().st_size > 5_000


@pytest.mark.slow
def test_every_contender_takes_a_step_in_half_precision(monkeypatch, tmp_path, backend):
    shape, case = (4, 3, 3, 2), "(4, 3, 3, 2) mixed"
    outputs = []

    def step(new):
        step = benchmark.layer_step(new(dtype="mixed_bfloat16"), shape, "bfloat16")
        outputs.append(step())
        return step

    monkeypatch.setattr(benchmark, "SHAPES", (shape,))
    monkeypatch.setattr(benchmark, "CASES", {})
    monkeypatch.setattr(benchmark, "MEMORY_CASES", ())
    monkeypatch.setattr(benchmark, "MIXED_CASES", {case: step})
    path = tmp_path / "benchmark.json"
    benchmark.measure_backend(path, seconds=0.01, mixed=True)
    times = json.loads(path.read_text())[backend]["time"][case]
    assert list(times) == list(benchmark.contenders_of(case)) and len(outputs) == len(times)
    assert (benchmark.TORCH in times) == (backend == "torch")


@pytest.mark.once
def test_memory_is_the_peak_of_a_step(monkeypatch):
    size = 64 * 2**20

    def step():
        return np.ones(size, "uint8").sum()

    monkeypatch.setattr(benchmark, "CASES", {"case": lambda new: step})
    peak = benchmark.measure_memory("case", "ours")
    assert 60 < peak < 80


@pytest.mark.once
def test_memory_of_tensors_is_their_peak(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    stays = tf.ones(8 * 2**20)

    def step():
        return float(tf.reduce_sum(tf.ones(16 * 2**20)) + stays[0])

    monkeypatch.setattr(benchmark, "CASES", {"case": lambda new: step})
    assert 60 < benchmark.measure_tensors("case", "ours") < 70
