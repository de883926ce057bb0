"""The recurrent layer: one set of averages for all time steps."""

import keras
import numpy as np
import pytest

import keras_brn


def network(cell, length=None):
    inputs = keras.Input((length, 3))
    return keras.Model(inputs, keras.layers.Dense(1)(keras_brn.RenormRNN(cell)(inputs)))


def sequences(length=5, batch=4):
    return np.random.default_rng(0).normal(1, 2, (batch, length, 3)).astype("float32")


def array(weight):
    return keras.ops.convert_to_numpy(weight).astype("float64")


def normalized(x, layer):
    beta = 0 if layer.beta is None else array(layer.beta)
    return array(layer.gamma) * (x - array(layer.moving_mean)) / array(layer.moving_stddev) + beta


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def outputs_by_hand(cell, x):
    h = c = np.zeros((len(x), cell.units))
    for t in range(x.shape[1]):
        gates = normalized(x[:, t] @ array(cell.kernel), cell.input_norm)
        gates += normalized(h @ array(cell.recurrent_kernel), cell.recurrent_norm)
        write, forget, candidate, read = np.split(gates + array(cell.bias), 4, axis=1)
        c = sigmoid(forget) * c + sigmoid(write) * np.tanh(candidate)
        h = sigmoid(read) * np.tanh(normalized(c, cell.cell_norm))
    return h


def trained(cell, length=5, steps=12, **kwargs):
    model = network(cell, length=None)
    model.compile("adam", "mse")
    x = np.concatenate([sequences(length)] * steps)
    model.fit(x, x[:, 0, :1], batch_size=4, shuffle=False, verbose=0, **kwargs)
    return model


@pytest.mark.parametrize("length", [1, 5, 9])
def test_inference_follows_the_equations_at_any_length(length):
    cell = keras_brn.RenormLSTMCell(4)
    model = trained(cell)
    x = sequences(length)
    outputs = keras.Model(model.inputs, model.layers[1].output).predict(x, verbose=0)
    np.testing.assert_allclose(outputs, outputs_by_hand(cell, x), atol=1e-5)


def test_averages_move_once_a_sequence_by_the_mean_over_time():
    cell = keras_brn.RenormLSTMCell(4)
    layer = keras_brn.RenormRNN(cell)
    x = sequences()
    layer(x, training=True)
    products = x @ array(cell.kernel)
    mean, variance = products.mean(0).mean(0), products.var(0)
    stddev = (variance + cell.input_norm.epsilon) ** 0.5
    np.testing.assert_allclose(array(cell.input_norm.moving_mean), 0.01 * mean, atol=1e-6)
    expected = 1 + 0.01 * (stddev.mean(0) - 1)
    np.testing.assert_allclose(array(cell.input_norm.moving_stddev), expected, atol=1e-6)


def test_ramp_counts_steps_and_not_time_steps():
    cell = keras_brn.RenormLSTMCell(4)
    trained(cell, callbacks=[keras_brn.RenormSchedule.for_run(12)])
    assert [n.step for n in (cell.input_norm, cell.recurrent_norm, cell.cell_norm)] == [12] * 3
    assert cell.cell_norm.r_max == 3


def test_a_saved_model_predicts_the_same(tmp_path):
    model = trained(keras_brn.RenormLSTMCell(4, gamma=0.3))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = sequences(7)
    np.testing.assert_allclose(loaded.predict(x), model.predict(x), atol=1e-6)
    assert loaded.layers[1].cell.gamma == 0.3


def test_both_directions():
    layer = keras.layers.Bidirectional(keras_brn.RenormRNN(keras_brn.RenormLSTMCell(4)))
    assert layer(sequences(), training=True).shape == (4, 8)


def test_masks_are_refused_in_training_before_anything_moves():
    layer = keras_brn.RenormRNN(keras_brn.RenormLSTMCell(4))
    layer(sequences())
    with pytest.raises(ValueError, match="masked time steps"):
        layer(sequences(), mask=np.ones((4, 5), bool), training=True)
    assert not array(layer.cell.input_norm.moving_mean).any()


def test_units_are_checked():
    with pytest.raises(ValueError, match="`units` must be an integer of at least 1.*units=0"):
        keras_brn.RenormLSTMCell(0)
