"""Two replicas of `tf.distribute.MirroredStrategy` on one machine."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, RenormSchedule, linear_ramp

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute", allow_module_level=True)

import tensorflow as tf

RAMP = (2, 10, 6)


def trained(strategy=None, microbatch_size=None):
    """16 steps of 8 examples, the bounds opening from the third on."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(2, 3, (64, 4)).astype("float32")
    with (strategy or tf.distribute.get_strategy()).scope():
        layer = BatchRenormalization(momentum=0.8, microbatch_size=microbatch_size)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), layer])
        model.compile(keras.optimizers.SGD(0.1), "mse")
    history = model.fit(
        *(x, x, 8), epochs=2, shuffle=False, verbose=0, callbacks=[RenormSchedule(*RAMP)]
    )
    return model, layer, history.history


@pytest.fixture(scope="module")
def mirrored():
    return trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))


def test_replicas_hold_the_same(mirrored):
    for weight in mirrored[1].weights:
        replicas = [np.asarray(value) for value in weight.value.values]
        assert len(replicas) == 2
        np.testing.assert_array_equal(*replicas, err_msg=weight.name)


def test_two_replicas_compute_what_two_microbatches_do(mirrored):
    model, _, history = trained(microbatch_size=4)
    np.testing.assert_allclose(mirrored[2]["loss"], history["loss"], rtol=1e-4)
    for value, expected in zip(mirrored[0].get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_schedule_and_saved_state(mirrored, tmp_path):
    model, layer, history = mirrored
    assert (layer.r_max, layer.d_max) == linear_ramp(15, *RAMP) == (3, 5)
    assert history["r_max"] == [linear_ramp(7, *RAMP)[0], 3]
    model.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras").layers[-1]
    for weight, expected in zip(saved.weights, layer.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), ops.convert_to_numpy(expected))
