"""Each undocumented name of Keras that is relied on does what it is relied on for."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_brn.keras_internals import (
    compile_arguments,
    flatten_layers,
    has_weight_decay,
    replace_sublayer,
    state_may_be_added,
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
