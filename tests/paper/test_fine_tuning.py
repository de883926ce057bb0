"""Fine-tuning runs."""

import keras
import numpy as np
import pytest

from keras_brn import BatchRenormalization
from keras_brn.paper.data.images import Images
from keras_brn.paper.fine_tuning import (
    NORMALIZATIONS,
    FineTuning,
    adapted,
    fine_tune,
    pretrained,
)

if keras.backend.backend() != "tensorflow":
    pytest.skip("The same code on every backend.", allow_module_level=True)


@pytest.fixture(scope="module")
def images():
    """Six labels that are six shades."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 6
    pixels = labels[:, None, None, None] * 30 + rng.integers(0, 40, (24, 16, 16, 1))
    return Images("shades", 6, *(pixels.astype("uint8"), labels) * 2, flip=False)


@pytest.fixture(scope="module")
def base(images, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.keras"
    model = pretrained(images, 2, path, width=1)
    again = pretrained(images, 1_000_000, path)  # Read, not trained.
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
    with pytest.raises(ValueError, match="epochs=3"):
        fine_tune(FineTuning(batch_size=2, epochs=3), base, few, tmp_path)


def test_other_normalizations_are_refused(images, base, tmp_path):
    with pytest.raises(ValueError, match="normalization='layer_norm'"):
        fine_tune(FineTuning("layer_norm"), base, images, tmp_path)
