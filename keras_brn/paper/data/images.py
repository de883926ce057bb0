"""Images in memory, and their variation."""

import functools
from dataclasses import dataclass, replace

import numpy as np

from keras_brn.paper.data.files import digest_of


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    Attributes:
        name: Name of the data set.
        classes: Number of labels.
        train_images: uint8 (images, height, width, channels).
        train_labels: Integers (images,).
        validation_images: As `train_images`.
        validation_labels: As `train_labels`.
        flip: Whether a mirrored image still shows its label.
    """

    name: str
    classes: int
    train_images: np.ndarray
    train_labels: np.ndarray
    validation_images: np.ndarray
    validation_labels: np.ndarray
    flip: bool

    @property
    def image_shape(self):
        """(height, width, channels)."""
        return self.train_images.shape[1:]

    @property
    def labels(self):
        """Dict from "train" and "validation" to the labels."""
        return {"train": self.train_labels, "validation": self.validation_labels}

    @functools.cached_property
    def digest(self):
        """Hexadecimal digits that no other images and labels have."""
        train, validation = (self.labels[part].astype("int64") for part in ("train", "validation"))
        return digest_of(self.train_images, train, self.validation_images, validation)

    def read(self, drawn, batch_size, part="train", augment=True):
        """Gathers the images of batches.

        Args:
            drawn: `tf.data.Dataset` of pairs (indices, seeds): which images are in a batch,
                (batch,), and two integers for each, (batch, 2), of which its variation depends.
            batch_size: Number of images in a batch.
            part: "train" or "validation".
            augment: Whether to shift the images by up to 4 pixels, and to mirror half of them
                where that keeps the label.

        Returns:
            `tf.data.Dataset` of float32 images in [-1, 1] (batch, *image_shape), and integer
            labels (batch,).
        """
        import tensorflow as tf

        with tf.device("CPU"):
            pixels = tf.constant(getattr(self, f"{part}_images"))
            labels = tf.constant(self.labels[part], "int64")

        def batch(index, seeds):
            x = tf.cast(tf.gather(pixels, index), "float32") / 127.5 - 1
            if augment:
                key = tf.stack([seeds[:, 0], 0 * index, 0 * index], 1)
                one_of = permuted(seeds[:, 1], 2**48, key) % (9 * 9 * 2)
                down, right, mirrored = one_of // 18, one_of // 2 % 9, one_of % 2 == 1
                x = shifted(x, down - 4, right - 4, mirrored & self.flip)
            return x, tf.gather(labels, index)

        return drawn.map(batch, num_parallel_calls=1)

    def of_labels(self, labels, train_per_label=None):
        """The images of some labels, which become 0, 1, 2, ...

        Args:
            labels: Sequence of different integers.
            train_per_label: Number of training images of each, the first; `None`: all.
        """
        labels = np.asarray(labels)
        arrays = {}
        for part, most in (("train", train_per_label), ("validation", None)):
            of_part = self.labels[part]
            chosen = [np.flatnonzero(of_part == label)[:most] for label in labels]
            index = np.sort(np.concatenate(chosen))
            new = {label: k for k, label in enumerate(labels.tolist())}
            arrays[f"{part}_images"] = getattr(self, f"{part}_images")[index]
            arrays[f"{part}_labels"] = np.array([new[label] for label in of_part[index].tolist()])
        return replace(self, classes=len(labels), **arrays)


def permuted(index, count, seeds):
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
