"""Several runs in one program of JAX are the runs that `train` makes one by one."""

import dataclasses

import keras
import numpy as np
import pytest
from worker_program import branched, shades

from keras_brn.monitor import QUANTITIES
from keras_brn.paper import on_device
from keras_brn.paper.convolution import PatchConv2D, with_convolutions
from keras_brn.paper.experiment import figure_3, scaled
from keras_brn.paper.on_device import images as device_images
from keras_brn.paper.training import network, recorder, train
from keras_brn.paper.training.files import checkpoint_path, result_path

pytestmark = [
    pytest.mark.each_backend,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX"),
]
RAMP = {"warmup_steps": 2, "r_max_steps": 8, "d_max_steps": 6}
SMALL = {
    "steps": 10,
    "evaluations": 2,
    "batch_size": 32,
    "group": 16,
    "width": 1,
    # With a small epsilon RMSProp divides by small gradients, and their rounding becomes large.
    "learning_rate": 0.1,
    "optimizer_epsilon": 1.0,
}


@pytest.fixture(scope="module")
def images():
    return shades(validation=100)


@pytest.fixture(scope="module", autouse=True)
def _short_compilation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "small_inception", branched)
        yield


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [1, 3, (1, 5), (3, 1)], ids=str)
def test_a_product_of_patches_is_the_convolution(rng, size, strides):
    layers = keras.layers
    x = layers.Input((8, 6, 3))
    y = layers.Conv2D(4, size, strides, padding="same", use_bias=False)(x)
    model = keras.Model(x, y)
    other = with_convolutions(model, PatchConv2D)
    assert type(other.layers[1]) is PatchConv2D
    x = rng.normal(size=(2, 8, 6, 3)).astype("float32")
    np.testing.assert_allclose(other(x), model(x), rtol=1e-5, atol=1e-5)


def test_the_device_varies_as_the_host(images):
    rng = np.random.default_rng(0)
    info = np.iinfo("int64")
    variations = rng.integers(info.min, info.max, (500, 2))
    indices = rng.integers(len(images.train_labels), size=500)
    for flip in (False, True):
        expected = dataclasses.replace(images, flip=flip).vary(
            images.train_images[indices], variations
        )
        codes = device_images.encoded(variations)
        varied = device_images.vary(images.train_images, indices, codes, flip)
        np.testing.assert_array_equal(varied, expected)


def assert_close(value, expected):
    """Relative to the largest of a weight: the mean of a channel may be anywhere near 0."""
    expected = np.asarray(expected)
    largest = np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 + 1e-4 * largest)


@pytest.mark.slow
def test_the_runs_are_those_of_train(images, tmp_path, monkeypatch):
    run = scaled(figure_3(8)[3], **SMALL, **RAMP)
    held = dataclasses.replace(run, name="held", r_max=1.0, d_max=0.0, draw=None)
    at_once = {"warmup_steps": 0, "r_max_steps": 0, "d_max_steps": 0}
    experiments = [run, held, dataclasses.replace(run, name="at_once", seed=1, **at_once)]
    runs = on_device.Runs(experiments, images, tmp_path / "device", steps_at_once=4)
    results = runs.train()
    monkeypatch.setattr(recorder, "remove_checkpoint", lambda path: None)
    for k, experiment in enumerate(experiments):
        expected = train(experiment, images, tmp_path, verbose=0)
        path = checkpoint_path(result_path(experiment, images.name, tmp_path))
        model = keras.saving.load_model(path)
        weights = model.network.trainable_variables, model.network.non_trainable_variables
        for ours, theirs in zip(runs.state[:2], weights, strict=True):
            for value, weight in zip(ours, theirs, strict=True):
                assert_close(value[k], weight)
        averages = {
            id(x): average
            for x, average in zip(model.averaged_weights, model.averages, strict=True)
        }
        averages = [averages[id(x)] for x in [*weights[0], *weights[1]] if id(x) in averages]
        for value, average in zip(runs.state.averages, averages, strict=True):
            assert_close(value[k], average)
        for curve in ("step", "accuracy", "train_accuracy", "train_image_accuracy"):
            np.testing.assert_allclose(results[k][curve], expected[curve], atol=0.011)
        for quantity in QUANTITIES:
            correction = (result["correction"][quantity] for result in (results[k], expected))
            np.testing.assert_allclose(*correction, atol=0.02)
        assert results[k]["config"] == expected["config"]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """A run that nothing cuts off, and its result."""
    run = scaled(figure_3(8)[3], **SMALL, **RAMP)
    folder = tmp_path_factory.mktemp("whole")
    return run, *on_device.train_on_device([run], images, folder, steps_at_once=5, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_run_that_was_cut_off_goes_on(images, tmp_path, whole, processes):
    run, expected = whole
    options = {"steps_at_once": 5, "processes": processes, "verbose": False}
    (part,) = on_device.train_on_device([run], images, tmp_path, seconds=0.0, **options)
    assert part["step"] == [5] and len(list(tmp_path.glob("on_device-*.npz"))) == 1
    (result,) = on_device.train_on_device([run], images, tmp_path, **options)
    assert result["step"] == [5, 10] and not list(tmp_path.glob("*.npz"))
    for curve in ("accuracy", "train_accuracy", "train_image_accuracy"):
        assert result[curve] == expected[curve]
