"""What the monitor says, against the definitions; and that it only looks."""

import csv
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, RenormMonitor, RenormSchedule, measure_correction


def one_layer(**arguments):
    return keras.Sequential([keras.Input((3,)), BatchRenormalization(**arguments)])


@pytest.fixture
def x(rng):
    return rng.normal([0, 1, -4], [1, 2, 0.1], (32, 3)).astype("float32")


def test_follows_the_definitions(x):
    model = one_layer(r_max=1.5, d_max=0.5, microbatch_size=4)
    mu, sigma = np.array([0, 0.5, -2]), np.array([1, 1, 0.4])
    model.layers[0].moving_mean.assign(mu)
    model.layers[0].moving_stddev.assign(sigma)
    (measured,) = measure_correction(model, x, batch_size=16).values()
    groups = x.astype("float64").reshape(8, 4, 3)
    d = (groups.mean(1) - mu) / sigma
    r = np.sqrt(groups.var(1) + 1e-3) / sigma
    shared = (d.mean(0) ** 2 - d.var(0, ddof=1) / 8).mean()
    expected = {
        "r_clipped": ((r > 1.5) | (r < 1 / 1.5)).mean(),
        "d_clipped": (np.abs(d) > 0.5).mean(),
        "r": np.abs(r.clip(1 / 1.5, 1.5) - 1).mean(),
        "d": np.abs(d.clip(-0.5, 0.5)).mean(),
        "distance": np.sqrt((d**2).mean()),
        "lag": np.sqrt(shared),
    }
    assert 0.1 < expected["r_clipped"] < 0.9 and 0.1 < expected["d_clipped"] < 0.9
    assert measured == pytest.approx(expected, rel=1e-4)


def test_lag_is_what_noise_does_not_explain(rng):
    x = rng.normal(0, 1, (4096, 3)).astype("float32")
    model = one_layer(microbatch_size=4)
    (measured,) = measure_correction(model, x, 512).values()
    assert measured["distance"] == pytest.approx(0.5, abs=0.02) and measured["lag"] < 0.05
    (measured,) = measure_correction(model, x + 2, 512).values()
    assert measured["lag"] == pytest.approx(2, abs=0.1)
    (measured,) = measure_correction(one_layer(), x, 4096).values()
    assert np.isnan(measured["lag"])


def test_groups_without_statistics_are_left_out(x):
    model = one_layer(microbatch_size=4)
    (expected,) = measure_correction(model, x[4:], 28).values()
    x[:4] = np.nan
    (measured,) = measure_correction(model, x, 32).values()
    assert measured == pytest.approx(expected, rel=1e-5)


def test_masked_groups_are_left_out(rng):
    embedding = keras.layers.Embedding(7, 3, mask_zero=True)
    model = keras.Sequential(
        [keras.Input((5,)), embedding, BatchRenormalization(microbatch_size=4)]
    )
    tokens = rng.integers(1, 7, (32, 5))
    (expected,) = measure_correction(model, tokens[4:], 28).values()
    tokens[:4] = 0
    (measured,) = measure_correction(model, tokens, 32).values()
    assert measured == pytest.approx(expected, rel=1e-5)


def deep():
    layers = [keras.layers.Dense(4), BatchRenormalization(), keras.layers.Dropout(0.5)] * 2
    layers = [
        type(layer).from_config(layer.get_config() | {"name": f"l{k}"})
        for k, layer in enumerate(layers)
    ]
    model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def test_nothing_is_updated(x):
    model = deep()
    before = [ops.convert_to_numpy(ops.copy(variable)) for variable in model.variables]
    measure_correction(model, x, 8)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value, variable.path)


@pytest.fixture
def fits(x, tmp_path):
    """Training with the monitor, and without."""

    def fit(*monitor):
        keras.utils.set_random_seed(0)
        model = deep()
        history = model.fit(
            *(x, x[:, :1], 8),
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[RenormSchedule(1, 6, 4), *monitor],
        )
        return model, history.history

    monitor = RenormMonitor(x, 8, interval=3, path=tmp_path / "log.csv", per_layer=True)
    return monitor, fit(monitor), fit()


def test_in_fit(fits, tmp_path):
    monitor, (model, history), _ = fits
    assert monitor.steps == [3, 6] and len(monitor.layers) == 2
    for name, values in monitor.history.items():
        assert np.shape(values) == (2, 2)
        assert history[f"renorm_{name}"] == [np.mean(values[0]), np.mean(values[1])]
        assert history[f"renorm_{name}/{monitor.layers[1]}"] == [values[0][1], values[1][1]]
    with (tmp_path / "log.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["step"], line["layer"]) for line in lines] == [
        (step, layer) for step in "36" for layer in monitor.layers
    ]
    assert float(lines[3]["lag"]) == monitor.history["lag"][1][1]
    assert monitor.history["r_clipped"][0][0] > monitor.history["r_clipped"][1][0]  # The ramp.


def test_training_is_not_disturbed(fits):
    _, (watched, history), (plain, expected) = fits
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-6)
    for weight, value in zip(watched.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("momentum, warns", [(0.999, True), (0.8, False)])
def test_hint_that_the_averages_lag(x, momentum, warns):
    model = one_layer(momentum=momentum, r_max=1, d_max=0)
    model.compile("sgd", "mse")
    monitor = RenormMonitor(x, 8, interval=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, x, batch_size=8, epochs=40, verbose=0, callbacks=[monitor])
    assert any("smaller `momentum`" in str(warning.message) for warning in caught) == warns


@pytest.mark.parametrize("lag, warns", [(0.8, True), (0.6, False)])
def test_hint_needs_more_lag_than_noise(x, lag, warns):
    monitor = RenormMonitor(x, 8)
    monitor.on_train_begin()
    monitor.steps, monitor.history["distance"] = [1, 2, 3], [[1.0, 1.0]] * 3
    monitor.history["lag"] = [[0.9, 0.9], [lag, lag], [0.9, 0.1]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor.on_train_end()
    assert bool(caught) == warns


def test_refusals(x):
    with pytest.raises(ValueError, match="interval=0"):
        RenormMonitor(x, 8, interval=0)
    for batch_size in (0, 33):
        with pytest.raises(ValueError, match=f"batch_size={batch_size}, inputs of length 32"):
            measure_correction(one_layer(), x, batch_size)
    with pytest.raises(ValueError, match="'dense'"):
        measure_correction(keras.Sequential([keras.Input((3,))], name="dense"), x, 8)
