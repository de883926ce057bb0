"""Images in memory, where they come from, and how they are drawn for a training step."""

import functools
import hashlib
import os
import tarfile
import uuid
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np


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


def cached(name, make):
    """The dict of arrays that `make()` returns, kept in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "keras_brn" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = make()
        write_arrays(path, arrays)
    with np.load(path) as file:
        return dict(file)


def digest_of(*arrays):
    """The SHA-256 of the values of arrays, in hexadecimal digits."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


def write_arrays(path, arrays):
    """Writes an npz file that is always whole, also if several processes write it, or one ends."""
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    with part.open("wb") as file:
        np.savez(file, **arrays)
    part.replace(path)


def load_tiny_imagenet(path, size=32):
    """Reads Tiny ImageNet: 200 labels, 500 training and 50 validation images of each.

    Args:
        path: The public `tiny-imagenet-200.zip`, a tar of it (also compressed), or the folder
            that either unpacks to.
        size: Integer, the side that the 64x64 images are shrunk to by averaging, in pixels.

    Returns:
        `Images` with uint8 images (images, size, size, 3).

    Raises:
        ValueError: If `path` does not exist, or holds no Tiny ImageNet.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(
            "`path` must be tiny-imagenet-200.zip, a tar of it, or its folder. "
            f"Received: path={str(path)!r}, which does not exist"
        )
    stamp = f"{path.resolve()}-{path.stat().st_size}-{path.stat().st_mtime_ns}"
    name = f"tiny-imagenet-{size}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}"
    arrays = cached(name, lambda: _decode_tiny_imagenet(path, size))
    classes = int(arrays["train_labels"].max()) + 1
    return Images("tiny_imagenet", classes, flip=True, **arrays)


def _decode_tiny_imagenet(path, size):
    """The arrays of `Images`, sorted by label; labels in the order of their WordNet ids."""
    import tensorflow as tf

    train, validation, annotations = {}, {}, None
    progress = keras.utils.Progbar(110_000, unit_name="image", interval=1)
    for name, content in _files(path):
        folder, _, file = name.rpartition("/")
        if file == "val_annotations.txt":
            annotations = dict(line.split("\t")[:2] for line in content.decode().splitlines())
        elif file.endswith(".JPEG") and not folder.endswith("test/images"):
            image = tf.io.decode_jpeg(content, channels=3)
            image = tf.image.resize(image, [size, size], method="area")
            split = validation if folder.endswith("val/images") else train
            split[file] = tf.cast(tf.round(image), "uint8").numpy()
            progress.update(len(train) + len(validation))
    if annotations is None or not train or not validation:
        raise ValueError(
            "`path` must hold Tiny ImageNet, training and validation images with "
            f"val_annotations.txt. Received: path={str(path)!r}"
        )
    wordnet_ids = {file: file.partition("_")[0] for file in train} | annotations
    label_of = {wnid: label for label, wnid in enumerate(sorted(set(wordnet_ids.values())))}
    arrays = {}
    for part, images in (("train", train), ("validation", validation)):
        files = sorted(images, key=lambda file: (wordnet_ids[file], file))
        arrays[f"{part}_images"] = np.stack([images[file] for file in files])
        arrays[f"{part}_labels"] = np.array([label_of[wordnet_ids[file]] for file in files])
    return arrays


def _files(path):
    """(name, content) of every file in a folder or an archive."""
    if path.is_dir():
        for file in sorted(path.rglob("*.*")):
            if file.is_file():
                yield file.as_posix(), file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()


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
