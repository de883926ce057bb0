"""The baselines are what they say."""

import keras
import numpy as np
import pytest
from gradients import training_step
from keras import ops

from keras_brn import BatchRenormalization
from keras_brn.paper.baselines import MicrobatchNormalization

pytestmark = pytest.mark.each_backend


def numpy(value):
    return ops.convert_to_numpy(value)


def test_of_the_whole_batch_is_batchnorm(rng):
    ours, keras_own = MicrobatchNormalization(), keras.layers.BatchNormalization()
    for _ in range(10):
        x, dy = rng.normal(3, 2, (6, 4, 4, 3)), rng.normal(size=(6, 4, 4, 3))
        values, expected = (training_step(layer, x, dy) for layer in (ours, keras_own))
        for value, wanted in zip(values, expected, strict=True):
            np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-4)
    for value, wanted in zip(ours.get_weights(), keras_own.get_weights(), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(numpy(ours(x)), numpy(keras_own(x)), rtol=1e-4, atol=1e-5)


def test_groups_are_normalized_apart_and_the_variance_is_averaged(rng):
    ours = MicrobatchNormalization(2, scale=False, momentum=0.0)
    renorm = BatchRenormalization(r_max=1, d_max=0, microbatch_size=2, scale=False, momentum=0.0)
    x, dy = rng.normal(3, 2, (6, 4, 3)), rng.normal(size=(6, 4, 3))
    values, expected = (training_step(layer, x, dy) for layer in (ours, renorm))
    for value, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)
    groups = x.reshape(3, 8, 3)
    np.testing.assert_allclose(numpy(ours.moving_mean), x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(numpy(ours.moving_variance), groups.var(1).mean(0), rtol=1e-5)
    root = np.sqrt(groups.var(1) + 1e-3).mean(0)
    np.testing.assert_allclose(numpy(renorm.moving_stddev), root, rtol=1e-5)


@pytest.mark.parametrize("trainable", [True, False])
def test_inference_and_frozen_layers_change_nothing(rng, trainable):
    layer = MicrobatchNormalization(2, trainable=trainable)
    x = rng.normal(size=(4, 3)).astype("float32")
    y = layer(x, training=not trainable)
    np.testing.assert_allclose(numpy(y), x / np.sqrt(1.001), rtol=1e-5)
    assert (numpy(layer.moving_mean) == 0).all()


def test_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((3,)), MicrobatchNormalization(4, momentum=0.5)])
    model.save(tmp_path / "model.keras")
    layer = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert (layer.microbatch_size, layer.momentum) == (4, 0.5)
