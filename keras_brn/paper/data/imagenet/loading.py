"""ImageNet as it was prepared."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_brn.extras import extra
from keras_brn.paper.data.imagenet.checks import checked_images
from keras_brn.paper.data.imagenet.crops import central_crop, training_crop, with_end_marker
from keras_brn.paper.data.imagenet.open_files import allow_open_files

BUILDER = "imagenet2012:5.1.0"


@dataclass(frozen=True)
class ImageNet:
    """ImageNet on disk; images are read and decoded as they are drawn.

    Attributes:
        name: Name of the data set.
        classes: Number of labels.
        image_shape: (height, width, 3) of the images that a network sees.
        sources: Dict from "train" and "validation" to random access to the encoded images.
        labels: Dict from "train" and "validation" to the labels, integers (images,).
        digest: Hexadecimal digits that no other images and labels have.
    """

    name: str
    classes: int
    image_shape: tuple
    sources: dict[str, Any]
    labels: dict[str, np.ndarray]
    digest: str

    def read(self, draws, batch_size, part="train", augment=True):
        """As `Images.read`; `augment`: crops and colours as in training, else the central part."""
        import tensorflow as tf

        source, labels = self.sources[part], tf.constant(self.labels[part], "int64")

        def encoded(indices):
            records = source.__getitems__(indices.tolist())
            return np.array([with_end_marker(record["image"]) for record in records], object)

        def read(indices, variations):
            images = tf.numpy_function(encoded, [indices], tf.string, stateful=False)
            return images, tf.gather(labels, indices), variations

        def decode(image, label, variation):
            if augment:
                return training_crop(image, variation, self.image_shape), label
            return central_crop(image, self.image_shape), label

        images = draws.map(read, num_parallel_calls=2).unbatch()
        images = images.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
        # `unbatch` has lost it.
        return images.apply(tf.data.experimental.assert_cardinality(draws.cardinality()))


def load_imagenet(data_dir=None, size=299):
    """ImageNet, as `prepare_imagenet` has left it.

    Its more than a thousand files stay open, so the limit of this process for open files is raised
    where that is needed.

    Where TensorFlow Datasets alone prepared it, in the format array_record, the first call decodes
    all images, on all cores for some minutes up to an hour, and writes labels and digest beside
    them, where it must be allowed to.

    Args:
        data_dir: Where TensorFlow Datasets keeps its data; `None`: in the user's home.
        size: Side of the images that a network sees, in pixels.

    Returns:
        `ImageNet`.

    Raises:
        ValueError: If ImageNet is not prepared there, or in another format, or if an image cannot
            be decoded: these are named. JPEG files that were cut off are named in a warning, and
            decoded as far as they go.
        RuntimeError: If the system does not allow this process to open enough files.
        PermissionError: If the labels cannot be written.
    """
    with extra("imagenet"):
        import importlib_resources  # noqa: F401  TensorFlow Datasets needs it undeclared.
        import tensorflow_datasets as tfds

    builder = tfds.builder(BUILDER, data_dir=absolute(data_dir))
    folder = Path(builder.data_dir)
    if not (folder / "dataset_info.json").exists():
        raise ValueError(
            "`data_dir` must hold ImageNet, prepared: call "
            "`keras_brn.paper.data.imagenet.prepare_imagenet` once. "
            f"Received: data_dir={data_dir!r}, where {folder} is missing"
        )
    if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            "`data_dir` must hold ImageNet in the format array_record, for random access: call "
            "`keras_brn.paper.data.imagenet.prepare_imagenet` with another `data_dir`. "
            f"Received: data_dir={data_dir!r}, prepared as {builder.info.file_format.value}"
        )
    parts = ("train", "validation")
    allow_open_files(sum(builder.info.splits[part].num_shards for part in parts))
    decoders = {"image": tfds.decode.SkipDecoding()}
    sources = {part: builder.as_data_source(split=part, decoders=decoders) for part in parts}
    checked = checked_images(folder, sources)
    _report_broken(folder, checked)
    return ImageNet(
        name="imagenet",
        classes=builder.info.features["label"].num_classes,
        image_shape=(size, size, 3),
        sources=sources,
        labels={part: checked[part] for part in parts},
        digest=str(checked["digest"]),
    )


def absolute(folder):
    """A folder that errors can name whatever the working directory; `None` stays."""
    return None if folder is None else str(Path(folder).expanduser().resolve())


def _report_broken(folder, checked):
    def listed(names):
        return f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"

    undecodable, cut_off = checked["undecodable"], checked["cut_off"]
    if len(undecodable):
        raise ValueError(
            f"{len(undecodable)} images of {folder} cannot be decoded. Replace them in the "
            "archives, remove this folder and prepare it again. "
            f"Received: {listed(undecodable)}"
        )
    if len(cut_off):
        warnings.warn(
            f"{len(cut_off)} images of {folder} were cut off; what is missing of them is shown in "
            f"one colour: {listed(cut_off)}",
            stacklevel=3,
        )
