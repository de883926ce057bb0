"""The models of `keras.applications` that use batchnorm, with Batch Renorm and back.

`pytest tests/test_applications.py --long -rP | grep '|'` makes a table of all of them: the
number of normalizations, and the largest difference there and back, by the largest output. The
last column is what a wrong epsilon in the first normalization alone would make.
"""

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, renormalize, to_batch_normalization

BatchNormalization = keras.layers.BatchNormalization
MODELS = """
DenseNet121 DenseNet169 DenseNet201 EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3
EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7 EfficientNetV2B0 EfficientNetV2B1
EfficientNetV2B2 EfficientNetV2B3 EfficientNetV2L EfficientNetV2M EfficientNetV2S
InceptionResNetV2 InceptionV3 MobileNet MobileNetV2 MobileNetV3Large MobileNetV3Small NASNetLarge
NASNetMobile ResNet101 ResNet101V2 ResNet152 ResNet152V2 ResNet50 ResNet50V2 Xception
""".split()
WITHOUT = "VGG16 VGG19 ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge".split()
QUICK = {  # JAX compiles each of their operations.
    "tensorflow": {"EfficientNetB0", "MobileNetV2", "MobileNetV3Small", "ResNet50"},
    "jax": {"MobileNet"},
    "torch": {"MobileNetV3Small"},
}[keras.backend.backend()]
PIXELS = ("EfficientNet", "MobileNetV3")  # These scale their inputs from [0, 255].


def images(name, rng):
    """Eight images of 6x6 large pixels, which the layers can tell from one another."""
    x = rng.normal(size=(8, 6, 6, 3)).repeat(16, axis=1).repeat(16, axis=2).astype("float32")
    return 127.5 + 60 * x if name.startswith(PIXELS) else x


def randomize(model, x, rng):
    """Random gamma and beta, and moving statistics around those of `x`, layer after layer.

    Those of the inputs are ImageNet's, where the model holds such.

    Their variances are a little larger, as in a trained network that damps noise.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):  # As with the weights for ImageNet.
            layer.load_own_variables({"0": [0.485, 0.456, 0.406], "1": [0.23, 0.22, 0.23], "2": 1})
    normalizations = [m for m in model._flatten_layers() if isinstance(m, BatchNormalization)]
    for layer in normalizations:
        layer.momentum = 0.0
        if layer.gamma is not None:
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
        layer.beta.assign(rng.normal(0.0, 0.3, layer.beta.shape))
    model(x, training=True)
    for layer in normalizations:
        variance = ops.convert_to_numpy(layer.moving_variance)
        variance = variance * rng.uniform(0.8, 1.25, variance.shape) + variance.mean() / 4
        layer.moving_variance.assign(variance)
    return normalizations


def outputs(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def largest_error(y, expected):
    return np.abs(y - expected).max() / np.abs(expected).max()


def count(model, kind):
    return sum(isinstance(layer, kind) for layer in model._flatten_layers())


def optional(name):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.long)


@pytest.mark.parametrize("name", [optional(name) for name in MODELS])
def test_there_and_back(name, backend, rng):
    if backend == "torch" and name.startswith("NASNet"):
        pytest.skip("Keras has no NASNet on PyTorch.")
    application = getattr(keras.applications, name)
    model = application(weights=None, input_shape=(96, 96, 3), classifier_activation=None)
    normalizations = randomize(model, images(name, rng), rng)
    x = images(name, rng)
    expected = outputs(model, x)

    def error(other):
        return largest_error(outputs(other, x), expected)

    renormalized = renormalize(model)
    back = to_batch_normalization(renormalized)
    assert count(renormalized, BatchRenormalization) == len(normalizations)
    assert count(renormalized, BatchNormalization) == 0
    assert count(back, BatchNormalization) == len(normalizations)
    errors = error(renormalized), error(back)
    first = normalizations[0]
    first.moving_variance.assign(first.moving_variance + first.epsilon)
    wrong = error(model)
    row = name, len(normalizations), *(f"{value:.1e}" for value in (*errors, wrong))
    print("|", " | ".join(map(str, row)), "|")
    assert max(errors) < 1e-5 < wrong


@pytest.mark.once
def test_the_list_is_complete():
    models = {name for name in dir(keras.applications) if name[0].isupper()}
    assert models == {*MODELS, *WITHOUT}
