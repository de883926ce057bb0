"""Averages of all parameters, on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, RenormSchedule
from keras_brn.averaging import AveragedModel


def numpy(values):
    return [ops.convert_to_numpy(value) for value in values]


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4),
            BatchRenormalization(),
            keras.layers.Dropout(0.1, seed=0),
        ]
    )
    model = AveragedModel(network, decay=0.3)
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def data(rng):
    return rng.normal(2, 1, (40, 3)).astype("float32"), rng.normal(size=(40, 4)).astype("float32")


class Weights(keras.callbacks.Callback):
    """The weights after each step."""

    def on_train_begin(self, logs=None):
        self.seen = [numpy(self.model.averaged_weights)]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(numpy(self.model.averaged_weights))


def test_follows_the_weights(model, data):
    weights = Weights()
    schedule = RenormSchedule(0, 20, 20)
    model.fit(*data, batch_size=4, verbose=0, callbacks=[schedule, weights])
    names = [weight.name for weight in model.averaged_weights]
    assert sorted(names) == [*("beta", "bias", "gamma", "kernel", "moving_mean", "moving_stddev")]
    expected = weights.seen[0]
    for step, seen in enumerate(weights.seen[1:]):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * s for e, s in zip(expected, seen, strict=True)]
    for value, wanted in zip(numpy(model.averages), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6)
    assert model.network.layers[1].r_max == pytest.approx(1.9)  # The schedule is at work beneath.


def test_averaged_evaluates_with_the_averages_and_puts_the_weights_back(model, data):
    model.fit(*data, batch_size=4, verbose=0)
    trained, averages = numpy(model.averaged_weights), numpy(model.averages)
    before = numpy([model(data[0])])[0]
    with pytest.raises(KeyError), model.averaged():
        for value, wanted in zip(numpy(model.averaged_weights), averages, strict=True):
            np.testing.assert_array_equal(value, wanted)
        assert np.abs(numpy([model(data[0])])[0] - before).max() > 1e-4
        raise KeyError
    for value, wanted in zip(numpy(model.averaged_weights), trained, strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_evaluation_in_the_middle_of_fit_does_not_disturb_training(model, data):
    class Evaluates(keras.callbacks.Callback):
        losses = []

        def on_epoch_end(self, epoch, logs=None):
            with self.model.averaged():
                self.losses.append(self.model.evaluate(*data, verbose=0))

    copy = keras.models.clone_model(model)
    copy.compile("sgd", "mse")
    copy.set_weights(model.get_weights())
    ends = []
    for each, callbacks in ((model, [Evaluates()]), (copy, [])):
        keras.utils.set_random_seed(1)
        each.fit(*data, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
        ends.append(each.get_weights())
    for value, wanted in zip(*ends, strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert len(set(Evaluates.losses)) == 3


def test_is_saved_with_its_averages(model, data, tmp_path):
    model.fit(*data, batch_size=4, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert (loaded.decay, int(loaded.steps)) == (0.3, 10)
    for value, wanted in zip(numpy(loaded.averages), numpy(model.averages), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_a_network_that_is_built_later(data):
    model = AveragedModel(keras.Sequential([keras.layers.Dense(4)]))
    model.compile("sgd", "mse")
    model.fit(*data, batch_size=20, verbose=0)
    assert int(model.steps) == 2 and len(model.averages) == 2


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_bad_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay}"):
        AveragedModel(keras.Sequential(), decay)
