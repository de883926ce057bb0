"""How training batches are drawn from images in memory."""

import numpy as np


def batches(
    images,
    batch_size,
    steps,
    seed,
    group=32,
    images_per_label=None,
    first_step=0,
    augment=True,
):
    """Batches of images; each one is a function of (seed, step) alone, so that
    a run which starts again at step 1000 sees what it would have seen there.

    Args:
        images: `Images`.
        batch_size: Number of images per step.
        steps: Number of steps of the whole run.
        seed: Integer.
        group: Number of consecutive images whose labels are drawn together; of use with
            `images_per_label` only.
        images_per_label: `None` for images drawn independently, all of them in each epoch. Else
            each group has `group // images_per_label` labels, drawn with replacement, and that
            many different images of each (section 4.3: groups of 32, 2 images per label). The
            second images of the labels follow all the first, and so on, so that consecutive
            parts of a group share its labels evenly.
        first_step: Step to begin with.
        augment: Whether to shift the images by up to 4 pixels, and to mirror half of them where
            that keeps the label.

    Returns:
        `tf.data.Dataset` of `steps - first_step` pairs: float32 images in [-1, 1] (batch_size,
        height, width, channels) and one-hot labels (batch_size, classes).

    Raises:
        ValueError: If the groups do not divide the batch, or the labels the groups, or a label
            has too few images.
    """
    import tensorflow as tf

    if images_per_label is None:
        indices = _shuffled_indices(len(images.train_labels), batch_size)
    else:
        indices = _paired_indices(images.train_labels, batch_size, group, images_per_label)
    with tf.device("CPU"):
        pixels = tf.constant(images.train_images)
        labels = tf.constant(images.train_labels, "int64")

    def batch(step):
        index = indices(seed, step)
        x = tf.cast(tf.gather(pixels, index), "float32") / 127.5 - 1
        if augment:
            shift = tf.random.stateless_uniform([2, batch_size], [seed, step], -4, 5, "int32")
            mirrored = tf.random.stateless_uniform([batch_size], [seed + 1, step]) < 0.5
            x = shifted(x, shift[0], shift[1], mirrored & images.flip)
        return x, tf.one_hot(tf.gather(labels, index), images.classes)

    dataset = tf.data.Dataset.range(first_step, steps)
    return dataset.map(batch, num_parallel_calls=1).prefetch(2)


def _shuffled_indices(count, batch_size):
    """Function (seed, step) -> indices of a batch: all images, in another order in each epoch."""
    import tensorflow as tf

    def indices(seed, step):
        position = step * batch_size + tf.range(batch_size, dtype="int64")
        epoch = position // count  # The next may begin inside the batch.
        return _permuted(position % count, count, tf.stack([seed + 0 * epoch, epoch, 0 * epoch], 1))

    return indices


def _paired_indices(labels, batch_size, group, images_per_label):
    """Function (seed, step) -> indices of a batch in groups of a few labels."""
    import tensorflow as tf

    order = np.argsort(labels, kind="stable")
    present, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    if batch_size % group or group % images_per_label or counts.min() < images_per_label:
        raise ValueError(
            "`group` must divide `batch_size`, and `images_per_label` divide `group`; each label "
            f"needs that many images. Received: batch_size={batch_size}, group={group}, "
            f"images_per_label={images_per_label}, fewest images {counts.min()}"
        )
    order, starts, counts = (tf.constant(array, "int64") for array in (order, starts, counts))
    groups, labels_per_group = batch_size // group, group // images_per_label

    def indices(seed, step):
        shape = [groups, 1, labels_per_group]
        label = tf.random.stateless_uniform(shape, [seed + 2, step], 0, len(present), "int64")
        label = tf.reshape(tf.repeat(label, images_per_label, axis=1), [-1])
        # The images of a label come in an order of this label's place in the group.
        place = tf.range(groups * labels_per_group, dtype="int64")
        place = tf.repeat(tf.reshape(place, shape), images_per_label, axis=1)
        rank = tf.reshape(tf.range(images_per_label, dtype="int64"), [1, -1, 1])
        place, rank = (tf.reshape(n + tf.zeros_like(place), [-1]) for n in (place, rank))
        seeds = tf.stack([seed + 0 * place, step + 0 * place, 1 + place], 1)
        count = tf.gather(counts, label)
        return tf.gather(order, tf.gather(starts, label) + _permuted(rank, count, seeds))

    return indices


def _permuted(index, count, seeds):
    """Where a pseudorandom permutation of `count` things takes each of them (one per seed)."""
    import tensorflow as tf

    return tf.raw_ops.RandomIndexShuffle(
        index=index,
        seed=seeds,
        max_index=count - 1 + 0 * index,
        rounds=16,  # The default of 4 leaves neighbours together.
    )


def shifted(images, down, right, mirrored):
    """Moves images (batch, height, width, channels) by whole pixels (batch,), after mirroring those
    that are `mirrored` (batch,); the border is filled by reflection."""
    import tensorflow as tf

    width = tf.cast(tf.shape(images)[2], "float32")
    down, right = tf.cast(down, "float32"), tf.cast(right, "float32")
    zero, one = tf.zeros_like(down), tf.ones_like(down)
    sign = tf.where(mirrored, -one, one)
    start = tf.where(mirrored, width - 1 + right, -right)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([sign, zero, start, zero, one, -down, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="REFLECT",
    )
