"""What is relied on of Keras without being documented is still there."""

import keras
import pytest

from keras_brn.keras_internals import build_no_more, flatten_layers, is_detached


def test_flatten_layers_goes_into_what_holds_layers_and_takes_each_once():
    shared = keras.layers.Dense(3)
    inner = keras.Sequential([keras.Input((3,)), shared, keras.layers.ReLU()])
    model = keras.Sequential([keras.Input((3,)), shared, inner])
    kinds = [type(layer).__name__ for layer in flatten_layers(model)]
    assert kinds[0] == "Sequential" and kinds.count("Dense") == 1 and kinds.count("ReLU") == 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="For TensorFlow.")
def test_fit_builds_a_model_no_more():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    assert hasattr(model, "_maybe_symbolic_build")
    build_no_more(model)
    assert model._maybe_symbolic_build(iterator=None) is None


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="For JAX.")
def test_fit_on_jax_holds_the_values_of_variables():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    kernel, detached = model.layers[0].kernel, []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: detached.append(is_detached(kernel))
    )
    x = keras.ops.ones((8, 3))
    model.fit(x, x, batch_size=4, verbose=0, callbacks=[record])
    assert detached == [True, True] and not is_detached(kernel)
