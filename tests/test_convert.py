"""Models there and back: the same outputs, weights and names, and the original untouched."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, renormalize, to_batch_normalization

BatchNormalization = keras.layers.BatchNormalization


def randomize(model, rng):
    """Statistics and weights as training leaves them."""
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNormalization):
            for weight in layer.weights:
                low = 0.3 if "variance" in weight.name or "gamma" in weight.name else -1.0
                weight.assign(rng.uniform(low, 1.5, weight.shape))
    return model


def outputs(model, x):
    return [ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def count(model, kind):
    return sum(isinstance(layer, kind) for layer in model._flatten_layers())


def sequential():
    layers = keras.layers
    return keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU()]
    )


def functional():
    x = inputs = keras.Input((8, 8, 3))
    shared = BatchNormalization(axis=-1, name="shared", momentum=0.9, epsilon=1e-5)
    x = keras.layers.Conv2D(3, 3, padding="same")(x)
    x = keras.layers.add([shared(x), shared(2 * x)]) + 1.0
    x = BatchNormalization(axis=1, scale=False, name="first", dtype="float32")(x)
    x = BatchNormalization(center=False, name="frozen", trainable=False)(x)
    return keras.Model(inputs, [x, keras.layers.Flatten()(x)], name="functional")


def nested():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, sequential()(functional()(inputs)[0]))


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self._conv = keras.layers.Conv2D(filters, 3, name="conv")
        self._normalization = BatchNormalization(name="normalization")
        self.more = {"list": [BatchNormalization(), keras.layers.ReLU()]}

    def build(self, input_shape):
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="normal")
        self._conv.build(input_shape)
        shape = (*input_shape[:-1], self.filters)
        self._normalization.build(shape)
        self.more["list"][0].build(shape)

    def call(self, x, training=False):
        x = self._normalization(self._conv(x) + self.bias, training=training)
        return self.more["list"][1](self.more["list"][0](x, training=training))

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(4), Block(5)]
        self.again = self.blocks[1]
        self.head = keras.layers.TimeDistributed(BatchNormalization(name="timed"))

    def call(self, x, training=False):
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(x, training=training)


def subclassed():
    model = Subclassed()
    model(np.zeros((2, 8, 8, 3), "float32"))
    return model


def inside_functional():
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, Block(4)(inputs))


MODELS = [sequential, functional, nested, subclassed, inside_functional]


@pytest.mark.parametrize("make", MODELS)
def test_there_and_back(rng, make):
    model = randomize(make(), rng)
    x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    expected, weights = outputs(model, x), model.get_weights()
    normalizations = count(model, BatchNormalization)
    renormalized = renormalize(model)
    assert count(renormalized, BatchNormalization) == 0
    assert count(renormalized, BatchRenormalization) == normalizations
    back = to_batch_normalization(renormalized)
    assert count(back, BatchNormalization) == normalizations
    for other in (renormalized, back):
        for value, wanted in zip(outputs(other, x), expected, strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-5, rtol=1e-5)
    renormalized(x, training=True)
    for value, wanted in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert not {id(w) for w in model.weights} & {id(w) for w in renormalized.weights}


def test_training_the_copy_leaves_the_model_alone(rng):
    model = randomize(sequential(), rng)
    x, y = rng.normal(size=(4, 8, 8, 3)).astype("float32"), np.zeros((4, 6, 6, 4), "float32")
    expected = outputs(model, x)[0]
    copy = renormalize(model)
    copy.compile("sgd", "mse")
    copy.fit(x, y, verbose=0)  # JAX deletes the arrays that it updates.
    np.testing.assert_array_equal(outputs(model, x)[0], expected)
    assert np.abs(outputs(copy, x)[0] - expected).max() > 1e-3


@pytest.mark.parametrize("make", MODELS)
def test_structure_names_and_flags_are_kept(make):
    model = make()
    renormalized = renormalize(model)
    assert type(renormalized) is type(model) and renormalized.name == model.name
    old, new = (list(m._flatten_layers()) for m in (model, renormalized))
    assert [layer.name for layer in new] == [layer.name for layer in old]
    for layer, other in zip(old, new, strict=True):
        assert (layer.trainable, layer.dtype_policy.name) == (
            other.trainable,
            other.dtype_policy.name,
        )
        if isinstance(layer, BatchNormalization):
            for name in ("axis", "epsilon", "momentum", "scale", "center"):
                assert getattr(layer, name) == getattr(other, name)


def test_dtype_policy_is_kept(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    layer = renormalize(sequential()).layers[1]
    assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")


def test_options_and_filters():
    model = functional()
    by_name = renormalize(model, layers=["shared"], r_max=2.0, microbatch_size=4, momentum=0.5)
    assert count(by_name, BatchRenormalization) == 1 and count(by_name, BatchNormalization) == 2
    layer = by_name.get_layer("shared")
    assert (layer.r_max, layer.microbatch_size, layer.momentum) == (2.0, 4, 0.5)
    by_function = renormalize(model, layers=lambda layer: layer.trainable)
    assert count(by_function, BatchRenormalization) == 2


def test_renorm_layers_of_keras_keep_their_bounds(rng):
    clipping = {"rmax": 2.0, "rmin": 0.5, "dmax": 1.5}
    try:
        layer = BatchNormalization(renorm=True, renorm_clipping=clipping, renorm_momentum=0.8)
    except (TypeError, ValueError):
        pytest.skip("Keras has renorm since 3.14.")
    model = randomize(keras.Sequential([keras.Input((3,)), layer]), rng)
    ours = renormalize(model)
    assert (ours.layers[0].r_max, ours.layers[0].d_max) == (2.0, 1.5)
    assert ours.layers[0].momentum == 0.8
    x = rng.normal(size=(4, 3)).astype("float32")
    np.testing.assert_allclose(outputs(ours, x)[0], outputs(model, x)[0], atol=1e-5)
    layer.renorm_clipping = {"rmax": 2.0, "rmin": 0.1, "dmax": 1.5}
    with pytest.raises(ValueError, match="rmin=0.1"):
        renormalize(model)
    assert renormalize(model, r_max=4.0).layers[0].r_max == 4


def test_the_compile_state_is_kept_and_the_optimizers_loss_told(rng):
    model = sequential()
    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), "mse", metrics=["mae"])
    x, y = rng.normal(size=(8, 8, 8, 3)), rng.normal(size=(8, 6, 6, 4))
    model.fit(x, y, verbose=0)
    with pytest.warns(UserWarning, match="starts anew"):
        copy = renormalize(model)
    assert copy.compiled and float(copy.optimizer.learning_rate) == 0.25
    assert copy.optimizer is not model.optimizer
    assert set(copy.fit(x, y, verbose=0).history) == {"loss", "mae"}


class Late(keras.layers.Layer):
    def build(self, input_shape):
        self.normalization = BatchNormalization()
        self.normalization.build(input_shape)

    def call(self, x):
        return self.normalization(x)


class Special(BatchNormalization):
    pass


class NeedsConfig(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.normalization = BatchNormalization()

    def build(self, input_shape):
        self.normalization.build(input_shape)

    def call(self, x):
        return self.function(self.normalization(x))


def with_layer(layer):
    return keras.Sequential([keras.Input((3,)), layer])


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (lambda: with_layer(keras.layers.Dense(2)), {}, "no BatchNormalization to convert"),
        (lambda: with_layer(BatchNormalization()), {"layers": "b1"}, r"no layers \['b1'\]"),
        (lambda: with_layer(BatchNormalization()), {"layers": lambda x: False}, "chose none"),
        (lambda: with_layer(BatchNormalization()), {"axis": 1}, r"Received: \['axis'\]"),
        (lambda: with_layer(BatchNormalization()), {"r_max": 0.5}, "r_max=0.5"),
        (lambda: keras.Sequential([BatchNormalization()]), {}, "has no weights yet"),
        (lambda: with_layer(Special(name="special")), {}, "'special' is a Special"),
        pytest.param(
            *(lambda: with_layer(BatchNormalization(synchronized=True)), {}, "is synchronized"),
            marks=pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow"),
        ),
        (lambda: with_layer(Late()), {}, "Could not replace"),
        (lambda: with_layer(NeedsConfig(ops.relu)), {}, "get_config"),
    ],
)
def test_what_cant_be_converted_is_told(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        renormalize(make(), **arguments)
