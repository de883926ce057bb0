"""Inception-v3 as the paper trained it."""

import keras


def inception_v3(
    normalization,
    input_shape=(299, 299, 3),
    classes=1000,
    auxiliary=True,
    dropout=0.2,
    weight_decay=4e-5,
    seed=None,
):
    """Inception-v3 with any normalization, and as its authors trained it.

    That is, with the auxiliary head, dropout, initializers and weight decay which
    `keras.applications.InceptionV3` leaves out.

    Args:
        normalization: Function without arguments that returns a new normalization layer, for
            channels last. In the paper `lambda: BatchRenormalization(scale=False)`, gamma fixed at
            1; epsilon is that layer's.
        input_shape: (height, width, channels) of images in [-1, 1]; at least 75 pixels, and 107
            with the auxiliary head, whose pooling needs a map of 5x5.
        classes: Number of labels.
        auxiliary: Whether there is an auxiliary head on `mixed7`, the last map of 17x17 for images
            of 299x299. Its loss has the weight .4.
        dropout: Share of the values that are dropped before the logits.
        weight_decay: Factor of `tf.nn.l2_loss` of all kernels, >= 0.
        seed: Integer for the dropout, or `None`.

    Returns:
        `keras.Model` from images (batch, height, width, channels) to logits (batch, classes), or
        with `auxiliary` to a dict of `logits` and `auxiliary_logits`, each (batch, classes).

    Raises:
        ValueError: If the images are too small for the auxiliary head.

    Source: Szegedy et al. 2016 for the network; initializers, weight decay, dropout and head as in
    the published training script, tensorflow/models, inception.
    """
    layers = keras.layers
    decay = keras.regularizers.L2(weight_decay / 2) if weight_decay else None

    def kernel(stddev):
        return {
            "kernel_initializer": keras.initializers.TruncatedNormal(stddev=stddev),
            "kernel_regularizer": decay,
        }

    def replaced(layer):
        if isinstance(layer, layers.BatchNormalization):
            new = normalization()
            new.name = layer.name
            return new
        config = layer.get_config()
        return type(layer).from_config(
            config | kernel(0.1) if isinstance(layer, layers.Conv2D) else config
        )

    plain = keras.applications.InceptionV3(
        include_top=False, weights=None, input_shape=input_shape, pooling="avg"
    )
    body = keras.models.clone_model(plain, clone_function=replaced)
    x = layers.Dropout(dropout, seed=seed)(body.output)
    logits = layers.Dense(classes, name="logits", **kernel(0.01))(x)
    if not auxiliary:
        return keras.Model(body.input, logits)

    x = body.get_layer("mixed7").output
    if min(x.shape[1:3]) < 5:
        raise ValueError(
            "The auxiliary head needs images of at least 107x107: enlarge them, or pass "
            f"`auxiliary=False`. Received: input_shape={tuple(input_shape)}"
        )

    def convolution(x, filters, size, stddev):
        x = layers.Conv2D(filters, size, use_bias=False, **kernel(stddev))(x)
        return layers.ReLU()(normalization()(x))

    x = convolution(layers.AveragePooling2D(5, 3)(x), 128, 1, 0.1)
    x = convolution(x, 768, x.shape[1:3], 0.01)  # The whole map: one value per example.
    head = layers.Dense(classes, name="auxiliary_logits", **kernel(0.001))
    return keras.Model(
        body.input, {"logits": logits, "auxiliary_logits": head(layers.Flatten()(x))}
    )
