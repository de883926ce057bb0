"""A network for 32x32 images that takes its normalization as a value."""

import keras


def small_network(
    normalization, input_shape=(32, 32, 1), classes=1000, width=16, kernel_regularizer=None
):
    """A plain stack of nine 3x3 convolutions, each normalized before its ReLU; last map 2x2.

    Args:
        normalization: Function without arguments that returns a new normalization layer.
        input_shape: (height, width, channels), the first two multiples of 16.
        classes: Number of labels.
        width: Number of channels of the first convolution; the last has eight times as many.
        kernel_regularizer: Of all kernels, a `keras.regularizers.Regularizer` or `None`.

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
            kernel_regularizer=kernel_regularizer,
        )(x)
        x = keras.layers.ReLU()(normalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    logits = keras.layers.Dense(classes, kernel_regularizer=kernel_regularizer)(x)
    return keras.Model(inputs, logits)


def small_inception(
    normalization, input_shape=(32, 32, 1), classes=1000, width=16, kernel_regularizer=None
):
    """Inception-v3 in small: its kinds of blocks, 24 normalizations, 15 of them in a row.

    A stem, then blocks of branches at 1/2, 1/4 and 1/8 of the size, with convolutions of 3x3, of
    5x1 after 1x5, and of 3x1 beside 1x3, each normalized before its ReLU; the last map is 4x4
    for 32x32 images.

    Args:
        normalization: Function without arguments that returns a new normalization layer.
        input_shape: (height, width, channels), the first two multiples of 8.
        classes: Number of labels.
        width: Number of channels of the first convolution; the logits see 16 times as many.
        kernel_regularizer: Of all kernels, a `keras.regularizers.Regularizer` or `None`.

    Returns:
        `keras.Model` from images (batch, height, width, channels) to logits (batch, classes).
    """
    layers = keras.layers

    def conv(x, filters, size, strides=1):
        x = layers.Conv2D(
            filters * width,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=kernel_regularizer,
        )(x)
        return layers.ReLU()(normalization()(x))

    def pooled(x, filters):
        return conv(layers.AveragePooling2D(3, 1, "same")(x), filters, 1)

    def reduced(x, filters):
        branch = conv(conv(x, filters // 2, 1), filters, 3)
        branches = [conv(x, filters, 3, strides=2), conv(branch, filters, 3, strides=2)]
        return layers.Concatenate()([*branches, layers.MaxPooling2D(3, 2, "same")(x)])

    x = inputs = keras.Input(input_shape)
    x = conv(conv(x, 1, 3), 2, 3, strides=2)
    x = layers.Concatenate()([conv(x, 1, 1), conv(conv(x, 1, 1), 2, 3), pooled(x, 1)])
    x = reduced(x, 2)
    factorized = conv(conv(conv(x, 2, 1), 2, (1, 5)), 2, (5, 1))
    x = layers.Concatenate()([conv(x, 2, 1), factorized, pooled(x, 2)])
    x = reduced(x, 4)
    narrow = conv(x, 4, 1)
    split = [conv(narrow, 4, (1, 3)), conv(narrow, 4, (3, 1))]
    x = layers.Concatenate()([conv(x, 4, 1), *split, pooled(x, 4)])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, kernel_regularizer=kernel_regularizer)(x))
