"""What can't be converted is refused by name, and what is lost is told."""

import warnings

import keras
import numpy as np
import pytest
from convert_models import (
    BatchNormalization,
    Late,
    built,
    count,
    functional,
    outputs,
    sequential,
)
from keras import layers, ops

from keras_brn import BatchRenormalization, renormalize, to_batch_normalization


class Special(BatchNormalization):
    pass


class Fused(BatchRenormalization):
    def call(self, x, training=None):
        return ops.relu(super().call(x, training=training))


class NoConfiguration(layers.Layer):
    """Takes what is not kept under its name, and has weights."""

    def __init__(self, numbers):
        super().__init__()
        self.normalization = BatchNormalization()
        self.total = sum(numbers)

    def build(self, input_shape):
        self.normalization.build(input_shape)

    def call(self, x):
        return self.normalization(x) * self.total


class Set(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalizations = {BatchNormalization(name="in_a_set")}

    def call(self, x):
        return list(self.normalizations)[0](x)


class Grown(keras.Model):
    def __init__(self):
        super().__init__()
        self.chain = [BatchNormalization()]

    def call(self, x):
        for layer in self.chain:
            x = layer(x)
        return x


def grown():
    model = Grown()
    model.chain.append(layers.Dense(3, name="later"))
    return built(model)


class Arguments(keras.Model):
    """Keras does not record the arguments of models without a `get_config`."""

    def __init__(self, units=3, slope=1.0, rate=0.5):
        super().__init__()
        self.slope = slope
        self.head, self.normalization = layers.Dense(units), BatchNormalization()

    def call(self, x, training=False):
        return self.slope * self.normalization(self.head(x), training=training)


class Extended(layers.Layer):
    """Has a weight that neither `__init__` nor `build` makes."""

    def __init__(self):
        super().__init__(name="extended")

    def call(self, x):
        return x


def extended():
    layer = Extended()
    layer.add_weight(name="extra", shape=(3,))
    return with_layer(layer, BatchNormalization())


def with_layer(*chain):
    return keras.Sequential([keras.Input((3,)), *chain])


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (lambda: with_layer(layers.Dense(2)), {}, "no BatchNormalization to convert"),
        (lambda: with_layer(BatchNormalization()), {"layers": "b1"}, r"no layers \['b1'\]"),
        (lambda: with_layer(BatchNormalization()), {"layers": lambda x: False}, "chose none"),
        (lambda: with_layer(BatchNormalization()), {"axis": 1}, r"Received: \['axis'\]"),
        (lambda: with_layer(BatchNormalization()), {"r_max": 0.5}, "r_max=0.5"),
        (lambda: keras.Sequential([BatchNormalization()]), {}, "has no weights yet"),
        (lambda: with_layer(Special(name="special")), {}, "'special' is a Special"),
        (lambda: with_layer(NoConfiguration(range(3))), {}, "'no_configuration'.*get_config"),
        (lambda: built(Set()), {}, r"\['in_a_set'\].*can't be replaced"),
        (grown, {}, "'grown' holds 'later'"),
        (lambda: built(Arguments(slope=2.0)), {}, r"'arguments'.*\['slope'\]"),
        (lambda: built(Arguments(slope=2.0)), {"clone_function": lambda x: x}, "itself"),
        (lambda: sequential(), {"clone_function": lambda x: 3}, "Received: 3 for layer 'dense'"),
        (extended, {}, r"'extended'.*\['extra'\], and its copy \[\]"),
    ],
)
def test_refused(make, arguments, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        renormalize(model, **arguments)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras has it there only")
def test_synchronized_over_replicas():
    model = with_layer(BatchNormalization(synchronized=True, name="over_replicas"))
    with pytest.raises(ValueError, match="'over_replicas' is synchronized"):
        renormalize(model)


def test_subclasses_of_ours_are_refused_or_left_out():
    model = with_layer(Fused(name="fused"), BatchRenormalization(name="plain"))
    with pytest.raises(ValueError, match="'fused' is a Fused"):
        to_batch_normalization(model)
    copy = to_batch_normalization(model, layers="plain")
    assert type(copy.layers[0]) is Fused and type(copy.layers[1]) is BatchNormalization


def test_a_way_out():
    model = built(Arguments(slope=2.0))
    copy = renormalize(
        model,
        clone_function=lambda each: Arguments(slope=2.0) if isinstance(each, Arguments) else None,
    )
    x = np.ones((2, 6), "float32")
    np.testing.assert_allclose(outputs(copy, x)[0], outputs(model, x)[0], atol=1e-5)
    assert count(copy, BatchRenormalization) == 1


def test_arguments_that_nobody_recorded_are_named():
    with pytest.warns(UserWarning, match=r"\['units', 'rate'\].*defaults"):
        copy = renormalize(built(Arguments(units=5)))
    assert copy.head.units == 5


class Graph(keras.Model):
    def __init__(self):
        inputs = keras.Input((6,))
        super().__init__(inputs, BatchNormalization()(layers.Dense(3)(inputs)))
        self.preprocessor = layers.Rescaling(0.5)

    def train_step(self, *arguments):
        return super().train_step(*arguments)


class Trainer(keras.Model):
    """A graph of any layers with a `train_step` of its own."""

    def train_step(self, *arguments):
        return super().train_step(*arguments)


def test_a_class_that_is_lost_is_told():
    with pytest.warns(UserWarning, match="class Graph adds or changes: preprocessor, train_step"):
        copy = renormalize(Graph())
    assert type(copy) is keras.Model(copy.inputs, copy.outputs).__class__
    plain = functional()
    assert type(renormalize(Trainer(plain.input, plain.output))) is Trainer


class Hidden(keras.Model):
    """Holds the same layer where no copy can find it, and calls it there."""

    def __init__(self):
        super().__init__()
        self.normalization = BatchNormalization()
        self.call_it = self.normalization.__call__

    def call(self, x, training=False):
        return self.call_it(x, training=training)


class Random(layers.Layer):
    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=next(self.seeds))

    seeds = iter(range(1000))


def test_a_copy_that_predicts_otherwise_is_told(rng):
    model = built(Hidden())
    model.normalization.moving_mean.assign(np.full(6, 3.0))
    with pytest.warns(UserWarning, match="'hidden' predicts otherwise.*differ by"):
        renormalize(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_layer(BatchNormalization(), Random()),  # Differs from itself.
        lambda: with_layer(BatchNormalization(dtype="float16")),
        lambda: built(keras.Sequential([layers.Embedding(3, 4), BatchNormalization()])),
        lambda: with_layer(Late()),
    ],
)
def test_no_false_alarm(make):
    model = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        renormalize(model)
