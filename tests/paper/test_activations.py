"""What differs between training and inference, against the definitions; and nothing is updated."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization
from keras_brn.paper.activations import activation_differences, layer_outputs

pytestmark = pytest.mark.each_backend


def network(normalization, **arguments):
    model = keras.Sequential([keras.Input((3,))])
    for number in (1, 2):
        model.add(keras.layers.Dense(5))
        model.add(normalization(name=f"norm_{number}", **arguments))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Dense(2))
    return model


@pytest.fixture
def x(rng):
    return rng.normal(1, 2, (22, 3)).astype("float32")


def test_batch_renorm_without_bounds_computes_the_same(x):
    model = network(BatchRenormalization, r_max=None, d_max=None)
    model.layers[1].moving_stddev.assign(np.linspace(0.5, 2, 5))
    differences = activation_differences(model, x, 4)
    assert list(differences) == ["norm_1", "norm_2", "output"]
    assert max(differences.values()) < 1e-5
    held_back = activation_differences(network(BatchRenormalization, r_max=1, d_max=0), x, 4)
    assert min(held_back.values()) > 0.1


def test_difference_of_batchnorm_follows_the_definition(x):
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(name="norm")])
    groups = x[:20].reshape(5, 4, 3).astype("float64")
    training = (groups - groups.mean(1, keepdims=True)) / np.sqrt(
        groups.var(1, keepdims=True) + 1e-3
    )
    inference = groups / np.sqrt(1 + 1e-3)
    expected = np.sqrt(
        np.mean((training - inference) ** 2) / np.mean(inference.reshape(20, 3).var(0))
    )
    assert activation_differences(model, x, 4) == pytest.approx(
        {"norm": expected, "output": expected}, rel=1e-5
    )


@pytest.mark.parametrize("kind", [keras.layers.BatchNormalization, BatchRenormalization])
def test_outputs_are_those_of_the_model_and_nothing_is_updated(x, kind):
    model = network(kind)
    before = model.get_weights()
    in_training, in_inference = layer_outputs(model, x, 4), layer_outputs(model, x)
    for value, weight in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, weight)
    assert in_inference["norm_2"].shape == (22, 5) and in_training["norm_2"].shape == (20, 5)
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(in_inference["output"], expected, rtol=1e-5, atol=1e-6)
    for start in range(0, 20, 4):
        model.set_weights(before)  # The call in training moves the averages.
        expected = ops.convert_to_numpy(model(x[start : start + 4], training=True))
        np.testing.assert_allclose(in_training["output"][start : start + 4], expected, atol=1e-5)


def test_positions_of_images_count_as_examples(rng):
    model = keras.Sequential([keras.Input((4, 4, 2)), BatchRenormalization(r_max=1, d_max=0)])
    x = rng.normal(size=(8, 4, 4, 2)).astype("float32")
    flat = keras.Sequential([keras.Input((2,)), BatchRenormalization(r_max=1, d_max=0)])
    of_images = activation_differences(model, x, 2)["output"]
    of_rows = activation_differences(flat, x.reshape(-1, 2), 2 * 16)["output"]
    assert of_images == pytest.approx(of_rows, rel=1e-5) and of_images > 0.01


def test_refusals(x):
    for batch_size in (0, 23):
        with pytest.raises(ValueError, match=f"batch_size={batch_size}, inputs of length 22"):
            layer_outputs(network(BatchRenormalization), x, batch_size)
    with pytest.raises(ValueError, match="'plain', with .'dense'."):
        layers = [keras.Input((3,)), keras.layers.Dense(2, name="dense")]
        layer_outputs(keras.Sequential(layers, name="plain"), x)
    with pytest.raises(ValueError, match="'unbuilt', a Sequential with 0 known inputs"):
        layer_outputs(keras.Sequential([BatchRenormalization()], name="unbuilt"), x)
