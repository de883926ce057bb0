"""Models of every kind to convert, trained a little, with statistics that matter."""

import collections
import functools

import keras
import numpy as np
from keras import layers, ops

from keras_brn import BatchRenormalization
from keras_brn.averaging import AveragedModel

BatchNormalization = layers.BatchNormalization
registered = keras.saving.register_keras_serializable("tests")


def inputs_for(kind):
    """Inputs for a model of `KINDS`: an array, or a structure of them."""
    shapes = SHAPES.get(kind, (4, 6))
    rng = np.random.default_rng(0)
    return keras.tree.map_shape_structure(lambda s: rng.normal(size=s).astype("float32"), shapes)


def call(model, x, **arguments):
    """Of a model that takes one structure of tensors, or several positional ones."""
    return model(*x, **arguments) if isinstance(x, tuple) else model(x, **arguments)


def outputs(model, x):
    return [ops.convert_to_numpy(y) for y in keras.tree.flatten(call(model, x, training=False))]


def largest_error(model, x, expected):
    pairs = zip(outputs(model, x), expected, strict=True)
    return max(np.abs(y - wanted).max() for y, wanted in pairs)


def count(model, kind):
    return sum(isinstance(layer, kind) for layer in model._flatten_layers())


def trained(kind):
    """A model of `KINDS`, compiled and trained for a step, and inputs for it."""
    model = KINDS[kind]()
    x = inputs_for(kind)
    y = outputs(model, x)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.5), "mse")
    if not isinstance(x, tuple):  # `fit` gives a model one structure of tensors.
        model.fit(x, y if len(y) > 1 else y[0], verbose=0)
    randomize(model)
    return model, x


def randomize(model):
    rng = np.random.default_rng(1)
    for layer in model._flatten_layers():
        if isinstance(layer, (BatchNormalization, BatchRenormalization)) and layer.built:
            for weight in (layer.gamma, layer.beta, layer.moving_mean):
                if weight is not None:
                    weight.assign(rng.uniform(0.5, 1.5, weight.shape))
            spread = getattr(layer, "moving_variance", None)
            spread = layer.moving_stddev if spread is None else spread
            spread.assign(rng.uniform(0.3, 1.5, spread.shape))
        if isinstance(layer, AveragedModel):
            for average in layer.averages:
                average.assign(rng.uniform(0.3, 1.5, average.shape))


def sequential():
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(5), BatchNormalization(), layers.ReLU(), layers.Dense(2)]
    )


def functional():
    x = inputs = keras.Input((4, 4, 3))
    shared = BatchNormalization(name="shared", momentum=0.9, epsilon=1e-5)
    x = layers.Conv2D(3, 3, padding="same")(x)
    x = layers.add([shared(x), shared(2 * x)]) + 1.0
    x = BatchNormalization(axis=1, scale=False, name="first", dtype="float32")(x, training=False)
    x = BatchNormalization(center=False, name="frozen", trainable=False)(x)
    model = keras.Model(inputs, [x, layers.Flatten()(x)], name="functional")
    return model


def nested():
    inputs = keras.Input((4, 4, 3))
    x = layers.Flatten()(functional()(inputs)[0])
    model = keras.Model(inputs, keras.Sequential([layers.Dense(3), BatchNormalization()])(x))
    return model


def dicts():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model({"a": a, "b": b}, {"y": BatchNormalization()(a + b), "z": a})
    return model


class Block(layers.Layer):
    """Makes its layers, of which one has no usable configuration; is not registered."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self._dense = layers.Dense(units, name="dense")
        self._normalization = BatchNormalization(name="normalization")
        self.scale = Scale(lambda x: 2.0 * x)

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="normal")
        self._dense.build(input_shape)
        self._normalization.build((*input_shape[:-1], self.units))

    def call(self, x, training=False):
        x = self._normalization(self._dense(x) + self.bias, training=training)
        return self.scale(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Scale(layers.Layer):
    def __init__(self, function):
        super().__init__()
        self._function = function

    def build(self, input_shape):
        self.slope = self.add_weight(name="slope", shape=input_shape[-1:], initializer="normal")

    def call(self, x):
        return self._function(x) * self.slope


class Late(layers.Layer):
    """Makes its normalization when it is built."""

    def build(self, input_shape):
        self.normalization = BatchNormalization()
        self.normalization.build(input_shape)

    def call(self, x, training=False):
        return self.normalization(x, training=training)


def blocks():
    return keras.Sequential([keras.Input((6,)), Block(4), Block(5), Late(), layers.Dense(2)])


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [Block(6), Block(5)]
        self.again = self.blocks[1]
        self.graph = keras.Sequential([layers.Dense(4), BatchNormalization(), layers.ReLU()])
        self.head = layers.TimeDistributed(BatchNormalization(name="timed"))

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        x = self.graph(x, training=training)
        return self.head(x[:, None], training=training)


Pair = collections.namedtuple("Pair", "first second")


class Containers(keras.Model):
    def __init__(self):
        super().__init__()
        self.two_keys = {0: BatchNormalization(), "one": layers.Dense(4)}
        self.pair = Pair(BatchNormalization(), (layers.Dense(3), [BatchNormalization()]))
        self.ordered = collections.OrderedDict(z=BatchNormalization(), a=layers.Dense(2))

    def call(self, x, training=False):
        x = self.two_keys["one"](self.two_keys[0](x, training=training))
        x = self.pair.second[0](self.pair.first(x, training=training))
        x = self.pair.second[1][0](x, training=training)
        return self.ordered["a"](self.ordered["z"](x, training=training))


class Child(layers.Layer):
    def __init__(self, parent):
        super().__init__()
        vars(self)["parent"] = parent  # Keras itself can't follow one that it tracks.
        self.normalization = BatchNormalization()

    def call(self, x, training=False):
        return self.parent.twice(self.normalization(x, training=training))


class Cycle(keras.Model):
    def __init__(self):
        super().__init__()
        self.child = Child(self)

    def twice(self, x):
        return 2.0 * x

    def call(self, x, training=False):
        return self.child(x, training=training)


class TwoInputs(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalization = BatchNormalization()
        self.never_called = BatchNormalization()
        self.auxiliary = BatchNormalization(name="auxiliary")
        self.auxiliary.build((None, 3))  # As one that only training calls.

    def call(self, a, b, training=False):
        return self.normalization(a + b, training=training)


def built(model, kind=None):
    call(model, inputs_for(kind))
    return model


def relu(x):  # Has the name of a function of Keras, but is another.
    return 3.0 * x


def functions():
    """Layers that hold functions, by which Keras could not find them again."""
    inner = keras.Sequential([keras.Input((6,)), layers.Lambda(lambda x: x + 1), layers.Dense(4)])
    inner.add(BatchNormalization(beta_regularizer=Unregistered()))
    leaky = functools.partial(ops.leaky_relu, negative_slope=0.5)
    chain = [layers.TimeDistributed(inner), layers.Lambda(lambda x: ops.normalize(x, axis=-1))]
    chain += [layers.Dense(4, f, kernel_regularizer=Unregistered()) for f in (relu, leaky, ops.sin)]
    chain += [layers.Dense(4, lambda x: x - 1), layers.Activation(relu), BatchNormalization()]
    last = layers.Dense(2, layers.PReLU(keras.initializers.Constant(0.3)))  # Not 0: no dead output.
    return keras.Sequential([keras.Input((3, 6)), *chain, last])


class Unregistered(keras.regularizers.Regularizer):
    def __call__(self, x):
        return 0.01 * ops.sum(x * x)


def recurrent():
    cells = [layers.GRUCell(4), layers.LSTMCell(4)]
    chain = [layers.Bidirectional(layers.LSTM(3, return_sequences=True)), layers.RNN(cells)]
    model = keras.Sequential([keras.Input((3, 6)), BatchNormalization(), *chain])
    model.add(BatchNormalization())
    return model


def adapted():
    """Its first layer has statistics of its own; as that of the EfficientNets."""
    first = layers.Normalization()
    first.adapt(np.random.default_rng(2).normal(5, 3, (64, 6)).astype("float32"))
    second = layers.Discretization(num_bins=4, output_mode="one_hot")
    second.adapt(np.random.default_rng(3).normal(0, 2, (64, 6)).astype("float32"))
    inputs = keras.Input((6,))
    x = layers.concatenate([layers.Flatten()(second(inputs)), layers.Dense(3)(first(inputs))])
    return keras.Model(inputs, layers.Dense(2)(BatchNormalization()(x)))


def averaged():
    return AveragedModel(sequential(), decay=0.5)


def averaged_subclassed():
    return AveragedModel(built(Subclassed()), decay=0.5)


KINDS = {
    "sequential": sequential,
    "functional": functional,
    "nested": nested,
    "dicts": dicts,
    "blocks": blocks,
    "subclassed": lambda: built(Subclassed()),
    "containers": lambda: built(Containers()),
    "cycle": lambda: built(Cycle()),
    "two inputs": lambda: built(TwoInputs(), "two inputs"),
    "functions": functions,
    "recurrent": recurrent,
    "adapted": adapted,
    "averaged": averaged,
    "averaged subclassed": averaged_subclassed,
}
SHAPES = {
    "functional": (4, 4, 4, 3),
    "nested": (4, 4, 4, 3),
    "dicts": {"a": (4, 6), "b": (4, 6)},
    "two inputs": ((4, 6), (4, 6)),
    "functions": (4, 3, 6),
    "recurrent": (4, 3, 6),
}
