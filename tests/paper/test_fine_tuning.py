"""Fine-tuning runs."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_brn import BatchRenormalization
from keras_brn.paper import fine_tuning
from keras_brn.paper.data.images import Images
from keras_brn.paper.fine_tuning import (
    NORMALIZATIONS,
    FineTuning,
    adapted,
    digest_of_model,
    fine_tune,
    pretrained,
    stored_result,
)
from keras_brn.paper.records import run_lock


@pytest.fixture(scope="module")
def images():
    """Six labels that are six shades."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 6
    pixels = labels[:, None, None, None] * 30 + rng.integers(0, 40, (24, 16, 16, 1))
    pixels = pixels.astype("uint8")
    return Images("shades", 6, pixels, labels, pixels, labels, flip=False)


@pytest.fixture(scope="module")
def base(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.keras"
    model = pretrained(images, 2, path, width=1)
    again = pretrained(images, 2, path, width=1)  # Read, not trained.
    for weight, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    return model


def statistics(model):
    kinds = keras.layers.BatchNormalization, BatchRenormalization
    layers = [layer for layer in model.layers if isinstance(layer, kinds)]
    assert len(layers) == 24
    return layers, np.concatenate([np.array(layer.moving_mean) for layer in layers])


def test_all_begin_with_the_same_network(images, base):
    outputs = []
    for normalization in NORMALIZATIONS:
        keras.utils.set_random_seed(0)
        model = adapted(base, 3, FineTuning(normalization))
        outputs.append(model.predict(images.train_images / 127.5 - 1, verbose=0))
        kind = BatchRenormalization if normalization == "batch_renorm" else None
        layers, _ = statistics(model)
        assert {type(layer) for layer in layers} == {kind or keras.layers.BatchNormalization}
        assert all(layer.momentum == 0.99 for layer in layers)
        assert {layer.trainable for layer in layers} == {normalization != "frozen_batchnorm"}
    assert outputs[0].shape == (24, 3)
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=1e-5)


@pytest.mark.slow
def test_a_run(images, base, tmp_path, monkeypatch):
    fits = []

    def fit(model, *args, fit=keras.Model.fit, **kwargs):
        fits.append(model)
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", fit)
    before = statistics(base)[1]
    run = FineTuning(batch_size=2, epochs=2)
    few = images.of_labels([4, 1, 5])
    result = fine_tune(run, base, few, tmp_path)
    assert len(result["accuracy"]) == 2 and result["normalization"] == "batch_renorm"
    assert np.abs(statistics(fits[0])[1] - before).max() > 0
    np.testing.assert_array_equal(statistics(base)[1], before)
    assert fine_tune(run, base, few, tmp_path) == result and len(fits) == 1
    with pytest.raises(ValueError, match=r"'epochs': \(2, 3\)"):
        fine_tune(FineTuning(batch_size=2, epochs=3), base, few, tmp_path)


@pytest.fixture
def tiny_base(images, tmp_path, monkeypatch):
    """Of a network that is quick to compile."""

    def tiny(normalization, input_shape, classes, width):
        x = inputs = keras.Input(input_shape)
        x = keras.layers.ReLU()(normalization()(keras.layers.Conv2D(4 * width, 3, 4)(x)))
        return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(x)))

    monkeypatch.setattr(fine_tuning, "small_inception", tiny)
    return pretrained(images, 1, tmp_path / "base.keras", width=1)


def test_a_base_of_another_training_is_refused(images, tiny_base, tmp_path):
    path = tmp_path / "base.keras"
    others = dataclasses.replace(images, train_labels=np.roll(images.train_labels, 1))
    for arguments, message in (
        ((images, 1_000_000, path, 1), r"'steps': \(1, 1000000\)"),
        ((images, 1, path, 8), r"'width': \(1, 8\)"),
        ((images, 1, path, 1, 5), r"'seed': \(0, 5\)"),
        ((others, 1, path, 1), others.digest),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained(*arguments)
    tiny_base.save(path)  # Without what it was trained from.
    with pytest.raises(ValueError, match="base.keras` does not say what it was trained from"):
        pretrained(images, 1, path, width=1)


def test_a_result_of_another_base_or_of_other_images_is_refused(images, tiny_base, tmp_path):
    base = tiny_base
    run = FineTuning(batch_size=8, epochs=1)
    result = fine_tune(run, base, images, tmp_path)
    other = keras.models.clone_model(base)
    with pytest.raises(ValueError, match=f"{digest_of_model(base)}.*{digest_of_model(other)}"):
        fine_tune(run, other, images, tmp_path)
    others = dataclasses.replace(images, validation_images=images.validation_images[::-1])
    with pytest.raises(ValueError, match=f"{images.digest}.*{others.digest}"):
        fine_tune(run, base, others, tmp_path)
    assert stored_result(run, tmp_path) == result
    (path,) = tmp_path.glob("*.json")
    path.write_text(json.dumps({**dataclasses.asdict(run), "accuracy": [0.1]}))
    with pytest.raises(ValueError, match="does not say of which base network and images"):
        fine_tune(run, base, images, tmp_path)


def test_a_result_that_another_process_trains_is_refused(images, tmp_path):
    with run_lock(tmp_path / "fine_tuning-batch_renorm-batch4-seed0.json"):
        with pytest.raises(RuntimeError, match="Another process trains this run"):
            fine_tune(FineTuning(), None, images, tmp_path)
    with run_lock(tmp_path / "base.keras"), pytest.raises(RuntimeError, match="base.keras"):
        pretrained(images, 1, tmp_path / "base.keras")


def test_other_normalizations_are_refused(images, base, tmp_path):
    with pytest.raises(ValueError, match="normalization='layer_norm'"):
        fine_tune(FineTuning("layer_norm"), base, images, tmp_path)
