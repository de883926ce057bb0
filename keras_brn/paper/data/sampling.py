"""How the images of a training step are drawn."""

import numpy as np

from keras_brn.paper.data.images import permuted


def batches(
    images,
    batch_size,
    steps,
    seed,
    group=32,
    images_per_label=None,
    first_step=0,
    part="train",
    augment=True,
    worker=0,
    workers=1,
):
    """Batches of images; each image is a function of (seed, step, place in the batch) alone, so
    that a run which starts again at step 1000 sees what it would have seen there, and several
    workers see what one would.

    Args:
        images: `Images` or `ImageNet`.
        batch_size: Number of images per step, of all workers together.
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
        part: "train" or "validation".
        augment: Whether to vary the images, as `Images` or `ImageNet` says.
        worker: Which of the consecutive shares of every batch to return, from 0.
        workers: Number of shares.

    Returns:
        `tf.data.Dataset` of `steps - first_step` pairs: float32 images in [-1, 1] (batch_size /
        workers, height, width, channels) and one-hot labels (batch_size / workers, classes).

    Raises:
        ValueError: If the groups do not divide the batch, or the labels the groups, or the workers
            the batch, or a label has too few images.
    """
    import tensorflow as tf

    if not 0 <= worker < workers or batch_size % workers:
        raise ValueError(
            "`workers` must divide `batch_size`, and `worker` be from 0 to `workers - 1`. "
            f"Received: batch_size={batch_size}, worker={worker}, workers={workers}"
        )
    labels = images.labels[part]
    if images_per_label is None:
        indices = _shuffled_indices(len(labels), batch_size)
    else:
        indices = _paired_indices(labels, batch_size, group, images_per_label)
    share = batch_size // workers

    def drawn(step):
        place = worker * share + tf.range(share, dtype="int64")
        of_image = step * batch_size + place
        return tf.gather(indices(seed, step), place), tf.stack([seed + 0 * place, of_image], 1)

    dataset = tf.data.Dataset.range(first_step, steps).map(drawn)
    return _read(images, dataset, share, part, augment)


def in_order(images, batch_size, part="validation", worker=0, workers=1, indices=None):
    """Images of a part as they are, or every `workers`-th of them, as `tf.data.Dataset` like that
    of `batches`; the last batch may be smaller.

    `indices` are integers: which of the images, `None` for all.
    """
    import tensorflow as tf

    indices = np.arange(len(images.labels[part])) if indices is None else np.asarray(indices)
    indices = tf.constant(indices[worker::workers], "int64")
    dataset = tf.data.Dataset.from_tensor_slices(indices).batch(batch_size)
    dataset = dataset.map(lambda index: (index, tf.stack([index, index], 1)))
    return _read(images, dataset, batch_size, part, augment=False)


def _read(images, drawn, batch_size, part, augment):
    import tensorflow as tf

    def one_hot(x, label):
        return x, tf.one_hot(label, images.classes)

    return images.read(drawn, batch_size, part, augment).map(one_hot).prefetch(2)


def _shuffled_indices(count, batch_size):
    """Function (seed, step) -> indices of a batch: all images, in another order in each epoch."""
    import tensorflow as tf

    def indices(seed, step):
        position = step * batch_size + tf.range(batch_size, dtype="int64")
        epoch = position // count  # The next may begin inside the batch.
        return permuted(position % count, count, tf.stack([seed + 0 * epoch, epoch, 0 * epoch], 1))

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
        return tf.gather(order, tf.gather(starts, label) + permuted(rank, count, seeds))

    return indices
