"""The parts of an image that a network sees."""


def training_crop(encoded, seed, image_shape):
    """A random part of an image, mirrored or not, with other colours.

    Args:
        encoded: The image, a string as TensorFlow decodes it, JPEG as a rule.
        seed: Two integers, int64 (2,), on which alone the result depends; all bits count.
        image_shape: (height, width, 3).

    Returns:
        float32 image in [-1, 1].

    Source: Szegedy et al. 2015, section 6: of 8 % to 100 % of the area, with an aspect ratio from
    3/4 to 4/3; and the colours of the published training script of Inception-v3.
    """
    import tensorflow as tf

    seeds = tf.random.split(seed, 7)
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    start, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        image_shape_of(encoded),
        whole,
        seeds[0],
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
    )
    window = tf.concat([start[:2], size[:2]], 0)
    image = _resized_window(encoded, window, image_shape)
    image = tf.image.stateless_random_flip_left_right(image, seeds[1])
    distortions = [
        lambda x: tf.image.stateless_random_brightness(x, 32 / 255, seeds[2]),
        lambda x: tf.image.stateless_random_saturation(x, 0.5, 1.5, seeds[3]),
        lambda x: tf.image.stateless_random_hue(x, 0.2, seeds[4]),
        lambda x: tf.image.stateless_random_contrast(x, 0.5, 1.5, seeds[5]),
    ]

    def distorted(order):
        x = image
        for k in order:
            x = distortions[k](x)
        return x

    # In one of two orders, as published.
    first = tf.random.stateless_uniform([], seeds[6]) < 0.5
    image = tf.cond(first, lambda: distorted((0, 1, 2, 3)), lambda: distorted((0, 3, 1, 2)))
    return 2 * tf.clip_by_value(image, 0, 1) - 1


def central_crop(encoded, image_shape, fraction=0.875):
    """The middle of an image, as `tf.image.central_crop`, and in [-1, 1]."""
    import tensorflow as tf

    size = image_shape_of(encoded)[:2]
    start = tf.cast(tf.cast(size, "float64") * (1 - fraction) / 2, "int32")
    window = tf.concat([start, size - 2 * start], 0)
    return 2 * _resized_window(encoded, window, image_shape) - 1


def _resized_window(encoded, window, image_shape):
    import tensorflow as tf

    image = decoded_window(encoded, window)
    image = tf.image.resize(tf.cast(image, "float32") / 255, image_shape[:2])
    return tf.ensure_shape(image, image_shape)


def image_shape_of(encoded):
    """(height, width, channels) of an encoded image, integers (3,)."""
    import tensorflow as tf

    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded),
        lambda: tf.shape(_decoded(encoded)),
    )


def decoded_window(encoded, window):
    """The pixels of a part of an image, uint8 (height, width, 3).

    Args:
        encoded: The image, a string: JPEG, or else PNG, GIF, BMP or what else TensorFlow decodes.
        window: Integers (4,): first row, first column, height, width.
    """
    import tensorflow as tf

    top, left, height, width = tf.unstack(window)
    return tf.cond(
        tf.io.is_jpeg(encoded),
        # Only the blocks of the JPEG file that the window touches are decoded.
        lambda: tf.io.decode_and_crop_jpeg(encoded, window, channels=3),
        lambda: _decoded(encoded)[top : top + height, left : left + width],
    )


def _decoded(encoded):
    import tensorflow as tf

    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def with_end_marker(encoded):
    """The bytes of a JPEG image, with its end marker where the file was cut off.

    Decoders then fill what is missing with one colour, where they would refuse the whole image.
    """
    cut = encoded.startswith(b"\xff\xd8") and not encoded.endswith(b"\xff\xd9")
    return encoded + b"\xff\xd9" if cut else encoded
