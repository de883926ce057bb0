"""Fine-tuning runs."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_brn import BatchRenormalization
from keras_brn.paper.data.images import Images
from keras_brn.paper.results.studies import summarize_study
from keras_brn.paper.studies import fine_tuning, study
from keras_brn.paper.studies.fine_tuning import FineTuningRun, train_fine_tuning
from keras_brn.paper.studies.study import adapted, base_network, load_study, reported


@pytest.fixture(scope="module")
def images():
    """Six labels that are six shades."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 6
    pixels = labels[:, None, None, None] * 30 + rng.integers(0, 40, (24, 16, 16, 1))
    pixels = pixels.astype("uint8")
    return Images("shades", 6, pixels, labels, pixels, labels, flip=False)


@pytest.fixture(scope="module")
def base(images):
    return base_network(images, seed=0, steps=2, batch_size=8, width=1)


def normalizations(model):
    kinds = keras.layers.BatchNormalization, BatchRenormalization
    return [layer for layer in model.layers if isinstance(layer, kinds)]


def test_all_begin_with_the_same_network(images, base):
    outputs = []
    for method in fine_tuning.METHODS:
        keras.utils.set_random_seed(0)
        model = adapted(base, keras.layers.Dense(3), method, 0.9)
        outputs.append(model.predict(images.train_images / 127.5 - 1, verbose=0))
        renorm = method == "batch_renorm"
        kind = BatchRenormalization if renorm else keras.layers.BatchNormalization
        layers = normalizations(model)
        assert len(layers) == 24 and {type(layer) for layer in layers} == {kind}
        assert all(layer.momentum == 0.9 for layer in layers)
        assert {layer.trainable for layer in layers} == {method != "frozen_batchnorm"}
        assert not renorm or (layers[0].r_max, layers[0].d_max) == (3.0, 5.0)
    assert outputs[0].shape == (24, 3)
    for output in outputs[1:]:
        np.testing.assert_allclose(output, outputs[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["frozen_batchnorm", "batch_renorm"])
def test_a_run(images, base, method, monkeypatch):
    fitted = []

    def fit(model, *args, fit=keras.Model.fit, **kwargs):
        fitted.append(model)
        return fit(model, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", fit)
    before = [weight.copy() for weight in base.get_weights()]
    few = images.of_labels([4, 1, 5])
    run = FineTuningRun(method, 2, 1e-3, images_seen=8)
    result = train_fine_tuning(run, few, (few.train_images, few.train_labels), base)
    assert set(result) == {"choices", "test"} and result["choices"] == result["test"]
    for weight, kept in zip(base.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)
    mean, moved = (np.array(normalizations(model)[0].moving_mean) for model in (base, fitted[0]))
    assert (np.abs(moved - mean).max() == 0) == (method == "frozen_batchnorm")
    assert int(fitted[0].optimizer.iterations) == 4


def test_each_seed_has_a_base_and_other_images_choose(tmp_path, monkeypatch):
    """The rate is best on the choices; nothing of the search is reported."""
    bases = []

    def train(run, images, choices, base):
        assert base == run.seed and len(choices[0]) == 20 * images.classes
        return {"choices": -abs(run.learning_rate - 1e-3), "test": 0.5}

    def new_base(old, seed, steps, batch_size):
        bases.append(seed)
        return seed

    monkeypatch.setattr(fine_tuning, "train_fine_tuning", train)
    monkeypatch.setattr(fine_tuning, "base_network", new_base)
    fine_tuning.main(["--results", str(tmp_path), "--out", str(tmp_path)])
    stored = load_study(tmp_path / "fine_tuning.json")
    assert bases == [study.SEARCH_SEED, 0, 1, 2] and len(stored) == 24 + 18
    assert {result["learning_rate"] for result in reported(stored)} == {1e-3}
    summary = summarize_study(reported(stored), ("images_per_step",), ["test"], "batchnorm")
    assert len(summary) == 6 and (tmp_path / "fine_tuning.png").exists()


def test_old_and_new_characters_share_nothing():
    old, new, (pixels, labels) = fine_tuning.old_and_new_glyphs(64, 40)
    assert (old.classes, new.classes) == (200, 50)
    assert len(new.train_labels) == 2_000 and len(labels) == 1_000
    seen = {image.tobytes() for image in new.train_images}
    assert not any(image.tobytes() in seen for image in [*pixels, *new.validation_images])


def test_other_methods_are_refused():
    with pytest.raises(ValueError, match="method='layer_norm'"):
        dataclasses.replace(FineTuningRun("batchnorm", 2, 1e-3), method="layer_norm")
