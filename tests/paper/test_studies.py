"""Small experiments: what is kept, what is chosen, and that their runs train."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.images import hold_out
from keras_brn.paper.results.studies import summarize_study
from keras_brn.paper.studies import metric_learning, recurrent, study
from keras_brn.paper.studies.study import load_study, run_study, save_study


@dataclasses.dataclass(frozen=True)
class Run:
    method: str
    learning_rate: float
    seed: int


RUNS = [
    Run(method, rate, seed) for method in ("a", "b") for rate in (0.1, 0.2) for seed in range(3)
]


def result(run):
    """Rate .2 is better on `choices`, .1 on `test`."""
    gain = 1 + run.seed if run.method == "b" else 0
    return {"choices": run.learning_rate, "test": -run.learning_rate + 0.1 * gain}


def test_a_study_is_kept_and_goes_on(tmp_path):
    made = []

    def train(run):
        made.append(run)
        return result(run)

    run_study(RUNS[:5], train, tmp_path)
    results = run_study(RUNS, train, tmp_path)
    assert made == RUNS
    save_study(results, tmp_path / "study.json")
    assert load_study(tmp_path / "study.json") == [
        {**dataclasses.asdict(run), **result(run)} for run in RUNS
    ]


def test_the_rate_is_chosen_on_choices_and_the_difference_paired():
    results = [{**dataclasses.asdict(run), **result(run)} for run in RUNS]
    summary = summarize_study(results, (), ["test"], "a")
    mean, difference = summary["b", ()]["test"]
    assert summary["b", ()]["learning_rate"] == 0.2
    assert summary["a", ()]["test"][1] is None
    assert mean["seeds"] == difference["seeds"] == 3
    np.testing.assert_allclose([mean["value"], difference["value"]], [0.0, 0.2], atol=1e-7)
    half = 0.1 * 4.302653 / np.sqrt(3)  # t of 2 degrees of freedom.
    np.testing.assert_allclose(difference["low"], 0.2 - half, atol=1e-5)


def test_contrastive_loss_and_recall_by_hand():
    x = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.array([0, 0, 0, 1, 1, 2])  # The last one has none of its like.
    expected = np.zeros(6)
    for i in range(6):
        others = [j for j in range(6) if j != i]
        total = sum(np.exp(x[i] @ x[j] / 0.1) for j in others)
        alike = [j for j in others if labels[j] == labels[i]]
        if alike:
            expected[i] = -np.mean([np.log(np.exp(x[i] @ x[j] / 0.1) / total) for j in alike])
    loss = metric_learning.contrastive_loss(labels[:, None], keras.ops.convert_to_tensor(x))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loss), expected, rtol=1e-4, atol=1e-4)
    x = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [0.2, 0.8]])
    assert metric_learning.recall_at_1(x, np.array([0, 0, 1, 1, 0])) == 0.8


@pytest.fixture(scope="module")
def metric_data_and_base():
    data, labels = load_glyphs(4, 4, labels=40), np.arange(40)
    data = tuple(data.of_labels(labels[labels % 3 == k]) for k in range(3))
    return data, metric_learning.base_network(data[0], 0, 2)


@pytest.mark.parametrize("method", ["frozen_batchnorm", "batch_renorm"])
def test_metric_runs(method, metric_data_and_base):
    data, base = metric_data_and_base
    before = [w.copy() for w in base.get_weights()]
    run = metric_learning.MetricRun(method, 2, 1e-3, batch_size=8, steps=2)
    result = metric_learning.train_metric(run, data, base)
    assert set(result) == {"choices", "test", "before"}
    assert all(0 <= value <= 1 for value in result.values())
    for weight, kept in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


@pytest.mark.parametrize("method", ["layer_norm", "batch_renorm"])
def test_recurrent_runs(method, monkeypatch):
    monkeypatch.setattr(recurrent, "IMAGE_ROWS", 4)
    monkeypatch.setattr(recurrent, "LENGTH", 6)
    data = load_glyphs(4, 2, labels=recurrent.LABELS)
    rows = {part: getattr(data, part)[:, :4] for part in ("train_images", "validation_images")}
    data, choices = hold_out(dataclasses.replace(data, **rows), per_label=2)
    run = recurrent.RecurrentRun(method, 4, 1e-3, 0.1, images_seen=8, units=4)
    result = recurrent.train_recurrent(run, data, choices)
    assert set(result) == {"choices", "test", "longer"}
    assert all(0 <= value <= 1 for value in result.values())


def test_each_time_step_has_averages_of_its_own():
    run = recurrent.RecurrentRun("batchnorm_per_step", 4, 1e-3, 0.1, units=2)
    model = recurrent.recurrent_network(run, recurrent.LENGTH)
    x = np.random.default_rng(0).normal(size=(4, recurrent.LENGTH, 32)).astype("float32")
    x *= np.arange(recurrent.LENGTH)[:, None]
    model(x, training=True)
    norm = model.layers[1].cell.input_norm
    means = [keras.ops.convert_to_numpy(step.moving_mean) for step in norm.steps]
    kernel = keras.ops.convert_to_numpy(model.layers[1].cell.kernel)
    expected = (1 - run.momentum) * (x @ kernel).mean(0)
    np.testing.assert_allclose(means, expected, atol=1e-4)


def test_other_seeds_choose_what_is_reported(tmp_path):
    """In the mean over them: with seed 100 alone the rate .2 would be chosen for "a"."""
    quality = {("a", 0.1): (1, 6), ("a", 0.2): (4, 1), ("b", 0.1): (1, 1), ("b", 0.2): (2, 1)}
    search = [Run(method, rate, seed) for method, rate in quality for seed in (100, 101)]

    def train(run):
        qualities = quality[run.method, run.learning_rate]
        return {"choices": float(qualities[run.seed - 100]) if run.seed >= 100 else 0.0}

    options = study.study_parser("tried").parse_args(
        ["--results", str(tmp_path), "--out", str(tmp_path)]
    )
    study.search_and_report("tried", options, search, ("method",), range(2), train)
    runs = load_study(tmp_path / "tried.json")
    assert len(runs) == len(search) + 4
    reported = [(run["method"], run["learning_rate"], run["seed"]) for run in runs[len(search) :]]
    assert reported == [("a", 0.1, 0), ("b", 0.2, 0), ("a", 0.1, 1), ("b", 0.2, 1)]


def test_sequences_end_as_in_training():
    images = np.zeros((3, 32, 32, 1), "uint8")
    images[:, 0] = 255  # The first row of an image.
    short, long = (
        recurrent.sequences(images, length, np.random.default_rng(0)) for length in (40, 80)
    )
    np.testing.assert_array_equal(short, long[:, 40:])
    assert not long[:, :40].any()


def test_unknown_methods_are_refused():
    expected = "`method` must be one of .* Received: method='none'"
    with pytest.raises(ValueError, match=expected):
        metric_learning.MetricRun("none", 2, 1e-3)
    with pytest.raises(ValueError, match=expected):
        recurrent.RecurrentRun("none", 2, 1e-3, 0.1)
