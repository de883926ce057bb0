"""A network for 32x32 images that takes its normalization as a value."""

import keras


def small_network(normalization, input_shape=(32, 32, 1), classes=1000, width=16):
    """A plain stack of nine 3x3 convolutions, each normalized before its ReLU; last map 2x2.

    Args:
        normalization: Function without arguments that returns a new normalization layer.
        input_shape: (height, width, channels), the first two multiples of 16.
        classes: Number of labels.
        width: Number of channels of the first convolution; the last has eight times as many.

    Returns:
        `keras.Model` from images (batch, height, width, channels) to logits (batch, classes).
    """
    x = inputs = keras.Input(input_shape)
    for multiple, stride in (
        (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (8, 2), (8, 1)
    ):  # fmt: skip
        x = keras.layers.Conv2D(
            width * multiple,
            3,
            strides=stride,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
        )(x)
        x = keras.layers.ReLU()(normalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))
