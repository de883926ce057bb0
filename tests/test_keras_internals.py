"""Each undocumented name of Keras that is relied on does what it is relied on for."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_brn.keras_internals import (
    build_no_more,
    compile_arguments,
    flatten_layers,
    has_weight_decay,
    is_detached,
    replace_sublayer,
    state_may_be_added,
    take_steps_by,
)


class Holder(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(2, name="first"), [layers.Dense(2, name="second")]

    def call(self, x):
        return self.second[0](self.first(x))


@pytest.fixture
def holder():
    model = Holder()
    model(np.zeros((1, 2)))
    return model


def test_flatten_layers(holder):
    outer = keras.Sequential([keras.Input((2,)), holder])
    names = {layer.name for layer in flatten_layers(outer)}
    assert {"first", "second", outer.name, holder.name} <= names
    direct = flatten_layers(holder, recursive=False)
    assert [layer.name for layer in direct] == [holder.name, "first", "second"]


def test_replace_sublayer(holder):
    new = layers.Dense(2, name="new")
    new.build((1, 2))
    replace_sublayer(holder, holder.first, new)
    holder.first = new  # Although the model is built.
    assert [layer.name for layer in holder.layers] == ["new", "second"]
    assert holder.weights[0] is new.kernel and len(holder.weights) == 4
    if keras.backend.backend() == "torch":
        assert any(parameter is new.kernel.value for parameter in holder.parameters())
    replace_sublayer(holder, holder.second[0], new)
    assert [layer.name for layer in holder.layers] == ["new"]


def test_state_may_be_added(holder):
    with pytest.raises(ValueError, match="cannot add new elements"):
        holder.third = layers.Dense(2)
    with state_may_be_added(holder):
        holder.third = layers.Dense(2, name="third")
    assert holder.layers[-1].name == "third"
    with pytest.raises(ValueError, match="cannot add new elements"):
        holder.fourth = layers.Dense(2)


def test_compile_arguments(holder):
    loss, optimizer = lambda y, p: y - p, keras.optimizers.SGD()
    holder.compile(optimizer, loss, metrics=["mae"], steps_per_execution=1)
    arguments = compile_arguments(holder)
    assert arguments["loss"] is loss and arguments["optimizer"] is optimizer
    assert arguments["metrics"] == ["mae"]
    holder.compile(**arguments)


def test_has_weight_decay(holder):
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay([holder.first.bias])
    assert has_weight_decay(optimizer, holder.first.kernel)
    assert not has_weight_decay(optimizer, holder.first.bias)


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


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="For TensorFlow.")
def test_fit_and_evaluate_take_the_steps_that_they_are_given():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    steps = []

    def distributed(step):
        def function(iterator):
            steps.append(step.__name__)
            return step(next(iterator))

        return function

    take_steps_by(model, distributed)
    model.compile("sgd", "mse", run_eagerly=True)
    x = keras.ops.ones((8, 3))
    model.fit(x, x, batch_size=4, verbose=0)
    model.evaluate(x, x, batch_size=8, verbose=0)
    assert steps == ["train_step", "train_step", "test_step"]


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
