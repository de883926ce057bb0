"""What a model holds besides the kernels of its layers is in its copy."""

import keras
import numpy as np
import pytest
from convert_models import BatchNormalization, call, largest_error, outputs, sequential
from keras import layers, ops

from keras_brn import renormalize
from keras_brn.averaging import AveragedModel


def numbers(variable):
    return ops.convert_to_numpy(variable)


def test_single_variables_stay_frozen():
    model = sequential()
    model.layers[0].kernel.trainable = False
    model.layers[1].gamma.trainable = False
    model.layers[3].trainable = False
    copy = renormalize(model)
    names = [variable.name for variable in model.trainable_variables]
    assert [variable.name for variable in copy.trainable_variables] == names == ["bias", "beta"]


def test_flags_of_a_layer_that_two_hold():
    """Setting the flag of one holder sets those of what it holds."""

    class Holder(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.TimeDistributed(BatchNormalization())
            self.second = layers.TimeDistributed(self.first.layer)

        def call(self, x):
            return self.second(self.first(x))

    model = Holder()
    model(np.zeros((2, 3, 4)))
    model.second.trainable = False
    model.first.layer.trainable = True
    copy = renormalize(model)
    assert copy.first.layer is copy.second.layer
    assert (copy.second.trainable, copy.first.layer.trainable) == (False, True)


@pytest.mark.parametrize("prepare", ["enable_lora", "quantize"])
def test_adapted_and_quantized_kernels(prepare, rng):
    model = sequential()
    if prepare == "enable_lora":
        model.layers[0].enable_lora(2)
        model.layers[0].lora_kernel_b.assign(rng.normal(size=(2, 5)))
    else:
        model.layers[0].quantize("int8")
    copy, x = renormalize(model), rng.normal(size=(4, 6)).astype("float32")
    assert largest_error(copy, x, outputs(model, x)) < 1e-5
    for old, new in zip(model.layers[0].weights, copy.layers[0].weights, strict=True):
        np.testing.assert_array_equal(numbers(old), numbers(new))  # Keras adds LoRA to the kernel.
        assert (old.name, old.dtype, old.trainable) == (new.name, new.dtype, new.trainable)


def test_vocabularies():
    words = ["copies", "keep", "their", "words"]
    text = layers.TextVectorization(output_sequence_length=4)
    text.adapt(words)
    ids = layers.StringLookup(output_mode="one_hot")
    ids.adapt(words)

    class Reader(keras.Model):
        def __init__(self):
            super().__init__()
            self.text, self.ids = layers.TextVectorization(output_sequence_length=4), None
            self.normalization = BatchNormalization()

        def call(self, x):
            return self.normalization(x)

    model = Reader()
    model.text, model.ids = text, ids
    model(np.zeros((2, 3)))
    copy = renormalize(model)
    assert copy.text is not text and copy.text.get_vocabulary() == text.get_vocabulary()
    assert copy.ids.get_vocabulary() == ids.get_vocabulary()


def test_optional_inputs(rng):
    class Sum(layers.Layer):
        def call(self, a, b=None):
            return a if b is None else a + b

        def compute_output_shape(self, a_shape, b_shape=None):
            return a_shape

    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b", optional=True)
    model = keras.Model([a, b], BatchNormalization()(Sum()(a, b)))
    copy, x = renormalize(model), rng.normal(size=(4, 3)).astype("float32")
    for inputs in ([x, x], [x, None]):
        assert largest_error(copy, inputs, outputs(model, inputs)) < 1e-5


def test_attributes_outside_of_a_graph(rng):
    inputs = keras.Input((6,))
    hidden = layers.Dense(5)(inputs)
    model = keras.Model(inputs, BatchNormalization()(hidden))
    model.features = keras.Model(inputs, hidden)
    model.more = {"heads": [BatchNormalization(name="outside"), layers.Dense(2)]}
    for layer in model.more["heads"]:
        layer.build((None, 3))
    model.temperature = keras.Variable(3.0, trainable=False)
    copy = renormalize(model)
    x = rng.normal(size=(4, 6)).astype("float32")
    assert largest_error(copy.features, x, outputs(model.features, x)) < 1e-5
    assert copy.features.layers[1] is copy.layers[1]  # Shared, as in the model.
    assert type(copy.more["heads"][0]).__name__ == "BatchRenormalization"
    np.testing.assert_array_equal(*(numbers(m.more["heads"][1].kernel) for m in (model, copy)))
    assert numbers(copy.temperature) == 3 and copy.temperature is not model.temperature
    assert len(copy.trainable_variables) == len(model.trainable_variables)


def test_seeds(rng):
    class Noise(layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed = keras.random.SeedGenerator()

        def call(self, x):
            return x + keras.random.normal(ops.shape(x), seed=self.seed)

    model = keras.Sequential([keras.Input((3,)), Noise(), BatchNormalization()])
    copy, x = renormalize(model), rng.normal(size=(4, 3)).astype("float32")
    assert largest_error(copy, x, outputs(model, x)) < 1e-5


def test_averages_by_their_meaning(rng):
    """The average of a variance becomes that of a standard deviation, whatever its place."""
    model = AveragedModel(sequential(), decay=0.5)
    for average in model.averages:
        average.assign(rng.uniform(0.5, 2.0, average.shape))
    model.steps.assign(7)
    x = rng.normal(size=(4, 6)).astype("float32")
    copy = renormalize(model)
    with model.averaged(), copy.averaged():
        assert largest_error(copy, x, outputs(model, x)) < 1e-5
    variance, spread = (
        m.averages[[w.name for w in m.averaged_weights].index(name)]
        for m, name in ((model, "moving_variance"), (copy, "moving_stddev"))
    )
    np.testing.assert_allclose(numbers(spread), np.sqrt(numbers(variance) + 1e-3), rtol=1e-6)
    assert int(copy.steps) == 7 and copy.decay == 0.5


def test_what_was_set_after_the_constructor(rng):
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalization, self.head = BatchNormalization(), layers.Dense(3)

        def call(self, x, training=False):
            return self.last(self.head(self.normalization(x, training=training)))

    model = Net()
    model.head = layers.Dense(5)  # Another in the place of that of the constructor.
    model.last = layers.Dense(2, name="last")
    x = rng.normal(size=(4, 6)).astype("float32")
    call(model, x)
    copy = renormalize(model)
    assert largest_error(copy, x, outputs(model, x)) < 1e-5
    assert len(copy.weights) - len(model.weights) == len(copy.normalization.weights) - 4


def test_layers_that_the_copy_shares(rng):
    model = sequential()
    copy = renormalize(
        model, clone_function=lambda layer: layer if isinstance(layer, layers.Dense) else None
    )
    assert copy.layers[0] is model.layers[0] and copy.layers[2] is not model.layers[2]
    x = rng.normal(size=(4, 6)).astype("float32")
    assert largest_error(copy, x, outputs(model, x)) < 1e-5
