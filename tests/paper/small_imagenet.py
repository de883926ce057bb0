"""A small ImageNet: archives like the official ones, of generated images."""

import io
import tarfile

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_brn.paper.data.imagenet import prepare_imagenet

LABELS, PER_LABEL, VALIDATION = 8, 8, 20


def prepare(folder):
    """Leaves the archives in `folder / "manual"`, and what is made of them in `folder / "data"`."""
    names, validation = official_labels(folder / "data")
    write_archives(folder / "manual", names[:LABELS], validation, PER_LABEL)
    images = {"train": LABELS * PER_LABEL, "validation": VALIDATION}
    prepare_imagenet(folder / "manual", folder / "data", images)


def official_labels(folder):
    """The names of all labels, and the labels of the first validation images."""
    builder = tfds.builder("imagenet2012:5.1.0", data_dir=folder)
    names = builder.info.features["label"].names
    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return names, [names.index(name) for name in path.read_text().split()[:VALIDATION]]


def jpeg(rng, label, height=90, width=120):
    """Smooth noise around the colour of a label."""
    colour = np.random.default_rng(label).uniform(0, 255, 3)
    image = np.clip(colour + rng.normal(0, 60, (5, 7, 3)), 0, 255)
    image = tf.cast(tf.image.resize(image, [height, width]), "uint8")
    return tf.io.encode_jpeg(image).numpy()


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_archives(folder, wordnet_ids, validation_labels, per_label=8):
    """Writes both archives: `per_label` images of each id, and a validation image of each label
    in a sequence."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for label, wordnet_id in enumerate(wordnet_ids):
            images = io.BytesIO()
            with tarfile.open(fileobj=images, mode="w") as of_label:
                for number in range(per_label):
                    add(of_label, f"{wordnet_id}_{number}.JPEG", jpeg(rng, label))
            add(archive, f"{wordnet_id}.tar", images.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, label in enumerate(validation_labels, 1):
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", jpeg(rng, label))
