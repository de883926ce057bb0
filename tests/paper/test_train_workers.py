"""An experiment over two workers: the same as in one process, also after failures."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import worker_program

from keras_brn.paper.cluster import _slurm_tf_config, connect_workers, worker_rank
from keras_brn.paper.launch import free_addresses, start, visible_gpus, wait

pytestmark = pytest.mark.slow
PROGRAM = Path(worker_program.__file__)


def launch(folder, *failure):
    """The exit status of two workers."""
    return wait(start([sys.executable, str(PROGRAM), str(folder), *map(str, failure)], 2))


def weights(folder, worker=0):
    with np.load(folder / f"weights{worker}.npz") as file:
        return list(file.values())


def check_equal(values, expected, tolerance):
    for value, other in zip(values, expected, strict=True):
        assert np.abs(value - other).max() <= tolerance * np.abs(other).max()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert launch(folder) == 0
    return folder


def result(folder):
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_workers_hold_the_same(uninterrupted):
    check_equal(weights(uninterrupted, 1), weights(uninterrupted), tolerance=0)


def test_the_first_worker_writes_the_logs(uninterrupted):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for part, tag, points in (
        ("train", "epoch_accuracy", 6),
        ("train", "epoch_renorm_lag", 6),
        ("validation", "epoch_accuracy", 2),
    ):
        (path,) = uninterrupted.glob(f"logs/*/{part}/events*")
        events = EventAccumulator(str(path))
        events.Reload()
        assert len(events.Tensors(tag)) == points


def test_one_process_trains_the_same(uninterrupted, tmp_path):
    subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], check=True)
    check_equal(weights(uninterrupted), weights(tmp_path), tolerance=1e-3)
    together, alone = result(uninterrupted), result(tmp_path)
    assert together["step"] == alone["step"] == [6, 12]
    for curve in ("accuracy", "train_accuracy"):
        np.testing.assert_allclose(together[curve], alone[curve], atol=1e-4)
    assert (together["provenance"]["workers"], alone["provenance"]["workers"]) == (2, 1)
    assert together["correction"].keys() == alone["correction"].keys()


def test_failures_lose_no_more_than_the_steps_since_the_last_backup(uninterrupted, tmp_path):
    """Killed at a step, killed in a backup, a full disk and then killed again; then to the end."""

    def backup():
        (path,) = tmp_path.glob("*seed0.keras")
        return int(keras.saving.load_model(path).optimizer.iterations)

    step = int(np.random.default_rng().integers(3, 7))
    print(f"killed after step {step}")
    assert launch(tmp_path, "kill", step) != 0
    assert backup() == (step - 1) // 2 * 2
    assert launch(tmp_path, "tear", 8) != 0
    assert backup() == 6
    assert launch(tmp_path, "full", 10) == 0
    assert result(tmp_path)["step"] == result(uninterrupted)["step"]
    assert not list(tmp_path.glob("*.keras"))
    check_equal(weights(tmp_path), weights(uninterrupted), tolerance=1e-4)
    for curve in ("accuracy", "train_accuracy"):
        np.testing.assert_allclose(result(tmp_path)[curve], result(uninterrupted)[curve], atol=1e-3)


def test_workers_with_different_folders_are_refused(tmp_path):
    """One of them would begin, and the other go on."""
    program = (
        "import json, os, sys\n"
        f"sys.path.append({str(PROGRAM.parent)!r})\n"
        "import worker_program\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        f"worker_program.main({str(tmp_path / 'of')!r} + str(index))"
    )
    (tmp_path / "of1").mkdir()
    backup = "shades-batch_renorm_noniid-12steps-2perlabel-seed0.keras"
    (tmp_path / "of1" / backup).write_bytes(b"12")
    status, said = output_of(program, tmp_path)
    assert status == 1 and "`folder` must be the same for all workers" in said
    assert "with backups of [0, 2] bytes" in said


def test_launcher_ends_all_when_one_fails():
    program = (
        "import json, os, sys, time\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1: sys.exit(3)\n"
        "time.sleep(600)"
    )
    started = start([sys.executable, "-c", program], 3)
    assert wait(started) == 3
    assert all(process.wait(10) is not None for process, _ in started)


def output_of(program, tmp_path, *options, arguments=()):
    path = tmp_path / "program.py"
    path.write_text(program)
    command = [sys.executable, "-m", "keras_brn.paper.launch", "--workers", "2"]
    command += [*options, path, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, ended.stdout


@pytest.mark.parametrize(
    "seen, gpus, expected",
    [
        (None, 2, ["0,1", "2,3"]),
        ("4,5,6,7", 2, ["4,5", "6,7"]),
        ("6, 4,5", 1, ["6", "4"]),
        ("GPU-ab,MIG-cd", 1, ["GPU-ab", "MIG-cd"]),
        ("4,5", 0, ["", ""]),
    ],
)
def test_each_worker_has_gpus_of_those_that_are_visible(monkeypatch, seen, gpus, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert visible_gpus(2, gpus) == [{"CUDA_VISIBLE_DEVICES": own} for own in expected]
    assert visible_gpus(2, None) == [{}, {}]


@pytest.mark.parametrize("seen", ["", "-1", "3", "3,-1,4"])
def test_more_gpus_than_are_visible_are_refused(monkeypatch, tmp_path, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    with pytest.raises(ValueError, match=f"workers=2, gpus=1, CUDA_VISIBLE_DEVICES='{seen}'"):
        visible_gpus(2, 1)
    with pytest.raises(ValueError, match="gpus=-1"):
        visible_gpus(2, -1)


@pytest.fixture
def light(monkeypatch):
    """Programs without TensorFlow, of which the launcher has no need."""
    monkeypatch.setenv("KERAS_BACKEND", "numpy")


def test_launcher_refuses_more_gpus_than_are_visible(light, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert output_of("print(1)", tmp_path, "--gpus", "1") == (2, "")


def test_launcher_passes_on_what_the_workers_say(light, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,5,4")
    program = "import os, sys; print(sys.argv[1:], os.environ['CUDA_VISIBLE_DEVICES'])"
    status, said = output_of(program, tmp_path, "--gpus", "2", arguments=["out%t"])
    assert status == 0
    assert sorted(said.split("\n")) == ["", "0: ['out0'] 7,6", "1: ['out1'] 5,4"]


def test_slurm():
    """The tasks of a step find one another by what Slurm sets."""
    program = (
        "from keras_brn.paper.cluster import connect_workers, worker_rank\n"
        f"strategy = connect_workers(60, port={free_addresses(1)[0].rpartition(':')[2]})\n"
        "print(*worker_rank(strategy), strategy.num_replicas_in_sync)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    environment |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    environment |= {"SLURM_STEP_NODELIST": "localhost"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**environment, "SLURM_PROCID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert said == ["0 2 2\n", "1 2 2\n"]


def test_slurm_counts_the_tasks_in_the_order_of_the_nodes(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[9-10],gpu01")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "2,1(x2)")
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert json.loads(_slurm_tf_config(8888)) == {
        "cluster": {"worker": ["n9:8888", "n9:8889", "n10:8888", "gpu01:8888"]},
        "task": {"type": "worker", "index": 2},
    }


def test_without_a_cluster_there_is_no_strategy(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    assert connect_workers() is None
    assert worker_rank(None) == (0, 1)


def test_kubernetes():
    """The job of the page on clusters gives each of its pods the addresses of all."""
    page = (Path(__file__).parents[2] / "notebooks" / "cluster.md").read_text()
    (setting,) = re.findall(r"export TF_CONFIG=.*", page)
    (addresses,) = re.findall(r"workers=.*seq.*", page)
    script = f"{addresses}\n{setting}\nprintenv TF_CONFIG"
    environment = {**os.environ, "WORKERS": "3", "JOB_COMPLETION_INDEX": "2"}
    assert "backoffLimit: 10000" in page  # A restart of any worker counts; the default is 6.
    said = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(said) == {
        "cluster": {"worker": [f"brn-{k}.brn:8888" for k in range(3)]},
        "task": {"type": "worker", "index": 2},
    }


def test_a_worker_that_never_comes_is_named(tmp_path):
    program = (
        "import json, os, sys\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1: sys.exit(0)\n"
        "from keras_brn.paper.cluster import connect_workers\n"
        "connect_workers(timeout=3)"
    )
    status, said = output_of(program, tmp_path)
    assert status == 1 and "Not all workers are there after 3 s" in said
