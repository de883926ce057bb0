"""ImageNet (ILSVRC 2012) through TensorFlow Datasets, in the crops that Inception-v3 trains on."""

import functools
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_brn.extras import extra
from keras_brn.paper.data.files import digest_of, write_arrays

BUILDER = "imagenet2012:5.1.0"
_ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}


@dataclass(frozen=True)
class ImageNet:
    """ImageNet on disk; images are read and decoded as they are drawn.

    Attributes:
        name: Name of the data set.
        classes: Number of labels.
        image_shape: (height, width, 3) of the images that a network sees.
        sources: Dict from "train" and "validation" to random access to the encoded images.
        labels: Dict from "train" and "validation" to the labels, integers (images,).
    """

    name: str
    classes: int
    image_shape: tuple
    sources: dict[str, Any]
    labels: dict[str, np.ndarray]

    @functools.cached_property
    def digest(self):
        """Hexadecimal digits that no other labels have; the images are not read."""
        return digest_of(*(self.labels[part].astype("int64") for part in ("train", "validation")))

    def read(self, draws, batch_size, part="train", augment=True):
        """As `Images.read`; `augment`: crops and colours as in training, else the central part."""
        import tensorflow as tf

        source, labels = self.sources[part], tf.constant(self.labels[part], "int64")

        def encoded(indices):
            records = source.__getitems__(indices.tolist())
            return np.array([record["image"] for record in records], object)

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


def training_crop(encoded, seed, image_shape):
    """A random part of an image, mirrored or not, with other colours.

    Args:
        encoded: The JPEG image, a string.
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
        tf.io.extract_jpeg_shape(encoded),
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

    size = tf.io.extract_jpeg_shape(encoded)[:2]
    start = tf.cast(tf.cast(size, "float64") * (1 - fraction) / 2, "int32")
    window = tf.concat([start, size - 2 * start], 0)
    return 2 * _resized_window(encoded, window, image_shape) - 1


def _resized_window(encoded, window, image_shape):
    import tensorflow as tf

    # Only the blocks of the JPEG file that the window touches are decoded.
    image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    image = tf.image.resize(tf.cast(image, "float32") / 255, image_shape[:2])
    return tf.ensure_shape(image, image_shape)


def prepare_imagenet(manual_dir, data_dir=None):
    """Converts the official archives to what `load_imagenet` reads, once: about 150 GB, in hours.

    Args:
        manual_dir: Folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from
            image-net.org.
        data_dir: Where TensorFlow Datasets keeps its data; `None`: in the user's home.

    Raises:
        ValueError: If an archive is missing, or holds what would give images the wrong labels.
    """
    for name in _ARCHIVES.values():
        path = Path(manual_dir) / name
        if not path.is_file():
            raise ValueError(
                "`manual_dir` must hold ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar: get "
                f"them from image-net.org. Received: manual_dir={str(manual_dir)!r}, where {name} "
                "is missing"
            )
    _check_archives(manual_dir)
    with extra("imagenet"):
        import importlib_resources  # noqa: F401  TensorFlow Datasets needs it undeclared.
        import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    builder = tfds.builder(BUILDER, data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=config)
    load_imagenet(data_dir)  # Which leaves the labels beside the images.


def _check_archives(manual_dir):
    """Refuses entries that TFDS would count as images: the labels of the validation images are
    those of a list, in order."""
    for part, ending in (("train", ".tar"), ("validation", ".JPEG")):
        path = Path(manual_dir) / _ARCHIVES[part]
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile() or "/" in member.name or not member.name.endswith(ending):
                    raise ValueError(
                        f"`{path.name}` must be the official archive, which holds {ending} files "
                        "and no folders: make it anew from those files. "
                        f"Received: an entry {member.name!r}"
                    )


def load_imagenet(data_dir=None, size=299):
    """ImageNet, as `prepare_imagenet` has left it.

    Where TensorFlow Datasets alone prepared it, in the format array_record, the first call reads
    all labels and writes them beside the images, where it must be allowed to.

    Args:
        data_dir: Where TensorFlow Datasets keeps its data; `None`: in the user's home.
        size: Side of the images that a network sees, in pixels.

    Returns:
        `ImageNet`.

    Raises:
        ValueError: If ImageNet is not prepared there, or in another format.
    """
    with extra("imagenet"):
        import importlib_resources  # noqa: F401  TensorFlow Datasets needs it undeclared.
        import tensorflow_datasets as tfds

    builder = tfds.builder(BUILDER, data_dir=data_dir)
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
    decoders = {"image": tfds.decode.SkipDecoding()}
    sources = {part: builder.as_data_source(split=part, decoders=decoders) for part in _ARCHIVES}
    path = folder / "labels.npz"
    if not path.exists():  # One pass over all images.
        write_arrays(path, _read_labels(sources))
    with np.load(path) as file:
        labels = dict(file)
    classes = builder.info.features["label"].num_classes
    return ImageNet("imagenet", classes, (size, size, 3), sources, labels)


def _read_labels(sources):
    progress = keras.utils.Progbar(sum(map(len, sources.values())), unit_name="label", interval=1)
    labels = {}
    for part, source in sources.items():
        labels[part] = np.empty(len(source), "int64")
        for start in range(0, len(source), 256):
            indices = range(start, min(start + 256, len(source)))
            labels[part][indices] = [r["label"] for r in source.__getitems__(list(indices))]
            progress.add(len(indices))
    return labels
