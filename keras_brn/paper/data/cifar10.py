"""CIFAR-10, from Keras' own source or from an archive of its images."""

from pathlib import Path

import keras
import numpy as np

from keras_brn.extras import extra
from keras_brn.paper.data.files import cached, digest_of_source, existing_path, files_in
from keras_brn.paper.data.images import Images


def load_cifar10(path=None):
    """CIFAR-10: 10 labels, 5,000 training and 1,000 validation images of each.

    Args:
        path: `None`: `keras.datasets.cifar10`, which is downloaded once. Else a folder, a zip or a
            tar, also compressed, with the images as `train/<label>/<name>.jpg` or `.png` and
            `test/<label>/...`; the labels in alphabetical order are 0, 1, 2, ...

    Returns:
        `Images` with uint8 images (images, 32, 32, 3). Those of an archive are sorted by label.

    Raises:
        ValueError: If `path` does not exist, or does not hold training and test images.
    """
    if path is None:
        (train, of_train), (test, of_test) = keras.datasets.cifar10.load_data()
        return Images("cifar10", 10, train, of_train[:, 0], test, of_test[:, 0], flip=True)
    path = existing_path(path, "a folder or an archive of CIFAR-10's images")
    name = f"cifar10-{digest_of_source(__file__, path)}"
    arrays = cached(name, lambda: _decoded(path))
    return Images("cifar10", int(arrays["train_labels"].max()) + 1, flip=True, **arrays)


def _decoded(path):
    """The arrays of `Images`, sorted by label and name."""
    with extra("paper"):
        import tensorflow as tf

    images = {"train": {}, "test": {}}
    progress = keras.utils.Progbar(60_000, unit_name="image", interval=1)
    for name, content in files_in(path):
        part, label, file = ["", "", *Path(name).parts][-3:]
        if part in images and file.endswith((".jpg", ".png")):
            image = tf.io.decode_image(content, channels=3, expand_animations=False)
            images[part][label, file] = image.numpy()
            progress.update(sum(map(len, images.values())))
    if not all(images.values()):
        raise ValueError(
            "`path` must hold training and test images, as train/<label>/<name>.jpg and "
            f"test/<label>/<name>.jpg. Received: path={str(path)!r}"
        )
    labels = sorted({label for label, _ in images["train"]})
    arrays = {}
    for part, of_part in (("train", images["train"]), ("validation", images["test"])):
        keys = sorted(of_part)
        arrays[f"{part}_images"] = np.stack([of_part[key] for key in keys])
        arrays[f"{part}_labels"] = np.array([labels.index(label) for label, _ in keys])
    return arrays
