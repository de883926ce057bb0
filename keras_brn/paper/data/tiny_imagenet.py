"""Tiny ImageNet, from its public archive."""

import keras
import numpy as np

from keras_brn.extras import extra
from keras_brn.paper.data.files import cached, digest_of_source, existing_path, files_in
from keras_brn.paper.data.images import Images


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
    path = existing_path(path, "tiny-imagenet-200.zip, a tar of it, or its folder")
    name = f"tiny-imagenet-{size}-{digest_of_source(__file__, path)}"
    arrays = cached(name, lambda: _decode_tiny_imagenet(path, size))
    classes = int(arrays["train_labels"].max()) + 1
    return Images("tiny_imagenet", classes, flip=True, **arrays)


def _decode_tiny_imagenet(path, size):
    """The arrays of `Images`, sorted by label; labels in the order of their WordNet ids."""
    with extra("paper"):
        import tensorflow as tf

    train, validation, annotations = {}, {}, None
    progress = keras.utils.Progbar(110_000, unit_name="image", interval=1)
    for name, content in files_in(path):
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
