"""How many images of ImageNet a machine reads, decodes and distorts in a second.

    python -m keras_brn.benchmarks.input --data-dir data [--tfrecord-dir other] [--rounds 15]

Drawn independently, and in pairs of a label. `--tfrecord-dir` is where TensorFlow Datasets has
ImageNet in its default format: then the same images, read in the order of the files and shuffled
in a buffer, are measured in turns with ours.
"""

import argparse
import time

import numpy as np

from keras_brn.benchmarks.timing import with_spread
from keras_brn.extras import extra
from keras_brn.paper.data.imagenet import BUILDER, load_imagenet, training_crop
from keras_brn.paper.data.sampling import batches

BATCH = 32


def plain(data_dir, image_shape):
    """What TensorFlow Datasets does by itself, with the crops of `ImageNet`."""
    with extra("imagenet"):
        import tensorflow as tf
        import tensorflow_datasets as tfds

    builder = tfds.builder(BUILDER, data_dir=data_dir)
    decoders = {"image": tfds.decode.SkipDecoding()}
    images = builder.as_dataset(split="train", decoders=decoders, shuffle_files=True).repeat()

    def decode(number, record):
        image = training_crop(record["image"], tf.stack([0, number]), image_shape)
        return image, tf.one_hot(record["label"], builder.info.features["label"].num_classes)

    images = images.shuffle(1_000).enumerate()
    images = images.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(BATCH, drop_remainder=True).prefetch(2)


def rates(ways, rounds, batches_per_round=20):
    """Images per second of each data set of a dict, in turns: an array (rounds, ways)."""
    iterators = [iter(way) for way in ways.values()]
    measured = np.empty((rounds, len(ways)))
    for row in measured:
        for k, iterator in enumerate(iterators):
            for _ in range(5):  # What it has prepared while others were measured.
                next(iterator)
            start = time.perf_counter()
            for _ in range(batches_per_round):
                next(iterator)
            row[k] = batches_per_round * BATCH / (time.perf_counter() - start)
    return measured


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--tfrecord-dir")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    data = load_imagenet(options.data_dir)
    steps = 10**9
    ways = {
        "independent": batches(data, BATCH, steps, 0),
        "pairs of a label": batches(data, BATCH, steps, 0, images_per_label=2),
    }
    if options.tfrecord_dir is not None:
        ways["plain TFDS"] = plain(options.tfrecord_dir, data.image_shape)
    measured = rates(ways, options.rounds)
    for name, column in zip(ways, measured.T, strict=True):
        line = f"{name}: {with_spread(column, '.0f')} images/s"
        if options.tfrecord_dir is not None and name != "plain TFDS":
            line += f", by plain TFDS {with_spread(column / measured[:, -1], '.2f')}"
        print(line)


if __name__ == "__main__":
    main()
