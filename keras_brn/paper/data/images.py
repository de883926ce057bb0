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

    def read(self, draws, batch_size, part="train", augment=True):
        """Gathers the images of batches.

        Args:
            draws: `tf.data.Dataset` of pairs of int64 tensors, like those of `Sampler.draw`: the
                indices of the images of a batch, (batch,), and two random integers for each,
                (batch, 2), on which its variation depends.
            batch_size: Number of images in a batch.
            part: "train" or "validation".
            augment: Whether to `vary` the images.

        Returns:
            `tf.data.Dataset` of float32 images in [-1, 1] (batch, *image_shape), and integer
            labels (batch,).
        """
        import tensorflow as tf

        pixels, labels = getattr(self, f"{part}_images"), self.labels[part].astype("int64")

        def gather(indices, variations):
            x = pixels[indices]
            return self.vary(x, variations) if augment else x, labels[indices]

        def batch(indices, variations):
            types = [pixels.dtype, "int64"]
            x, y = tf.numpy_function(gather, [indices, variations], types, stateful=False)
            x = tf.ensure_shape(x, [*indices.shape, *self.image_shape])
            return tf.cast(x, "float32") / 127.5 - 1, tf.ensure_shape(y, indices.shape)

        return draws.map(batch, num_parallel_calls=1)

    def vary(self, images, variations):
        """Shifts images by up to 4 pixels, the border filled by reflection, after mirroring half of
        them where that keeps the label.

        Args:
            images: Array (batch, height, width, channels), of any type.
            variations: Two random integers for each image, int64 (batch, 2), as of `Sampler.draw`:
                81 shifts and mirrored or not are equally likely.

        Returns:
            Array like `images`.
        """
        batch, height, width, channels = images.shape
        shift, mirrored = variations[:, 0] % 81, variations[:, 1] % 2 == 1
        down, right = shift[:, None] // 9 - 4, shift[:, None] % 9 - 4
        rows = _reflected(np.arange(height) - down, height)
        columns = _reflected(np.arange(width) - right, width)
        columns = np.where((mirrored & self.flip)[:, None], width - 1 - columns, columns)
        rows += height * np.arange(batch)[:, None]  # In all images, one below the other.
        pixels = rows[:, :, None] * width + columns[:, None, :]
        # Much faster than to index three axes.
        return np.take(images.reshape(-1, channels), pixels, axis=0)

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


def _reflected(positions, size):
    """Indices from 0 to `size - 1` for positions that may lie outside, where the border is a
    mirror."""
    positions = positions % (2 * size)
    return np.minimum(positions, 2 * size - 1 - positions)


def as_floats(images):
    """uint8 images as floats in [-1, 1], arrays of NumPy or of JAX."""
    return images.astype("float32") / 127.5 - 1.0


def hold_out(data, per_label):
    """Takes some training images away, to choose by them what the test images must not.

    Args:
        data: `Images`.
        per_label: Number of images of each label, the last ones, fewer than there are.

    Returns:
        `Images` without them; and a pair, their images and their labels.
    """
    labels = data.train_labels
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    if not 0 < per_label < counts.min():
        raise ValueError(
            "`per_label` must be at least 1, and less than the images of a label. "
            f"Received: per_label={per_label}, fewest images {counts.min()}"
        )
    ends = starts + counts
    held = np.sort(order[(ends[:, None] - 1 - np.arange(per_label)).reshape(-1)])
    left = np.setdiff1d(np.arange(len(labels)), held)
    rest = replace(data, train_images=data.train_images[left], train_labels=labels[left])
    return rest, (data.train_images[held], labels[held])
