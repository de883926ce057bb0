"""A worker of a small training run, which may be made to fail:

    python -m keras_brn.paper.launch --workers 2 tests/worker_program.py FOLDER [FAILURE STEP]

Without the launcher, one process trains alone.

FAILURE: "kill" this worker after a step, or "tear" the backup after it, half written; both of the
last worker that can. Or "full": no space is left for that backup, and the program goes on.
"""

import errno
import os
import sys
from pathlib import Path

import keras
import numpy as np

from keras_brn.paper.cluster import connect_workers, worker_rank
from keras_brn.paper.data.images import Images
from keras_brn.paper.experiment import figure_3, scaled
from keras_brn.paper.training import network, train, trainer


def shades(validation=501):
    """Ten labels that are ten shades; so many images are for validation, the same ones. 501 are an
    uneven number of batches for two workers: the last image is alone."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 10
    pixels = labels[:, None, None, None] * 20 + rng.integers(0, 40, (120, 16, 16, 1))
    pixels = pixels.astype("uint8")
    index = np.arange(validation) % 120
    return Images("shades", 10, pixels, labels, pixels[index], labels[index], False)


def tiny(normalization, input_shape, classes, width, kernel_regularizer, dropout=0.0):
    """In the place of `small_inception`, which takes long to compile."""
    x = inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, 4, use_bias=False)(x)
    x = keras.layers.ReLU()(normalization()(x))
    x = keras.layers.Dropout(dropout, seed=0)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


def branched(normalization, input_shape, classes, width, kernel_regularizer=None):
    """As `tiny`, with its normalizations in a row, beside each other, and after pooling."""
    layers = keras.layers

    def conv(x, size, strides=1):
        options = {"use_bias": False, "kernel_regularizer": kernel_regularizer}
        x = layers.Conv2D(8 * width, size, strides, padding="same", **options)(x)
        return layers.ReLU()(normalization()(x))

    inputs = keras.Input(input_shape)
    x = conv(conv(inputs, 3, 2), 1)
    pooled = layers.AveragePooling2D(3, 1, "same")(x)
    largest = layers.MaxPooling2D(3, 1, "same")(x)
    x = layers.Concatenate()([conv(x, (1, 3)), conv(pooled, 1), largest])
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def run(steps=12):
    """Label pairs, in groups of 8; the ramp opens, and the weights do not run away."""
    small = {"evaluations": 2, "batch_size": 32, "width": 1, "group": 8, "draw": 8}
    return scaled(figure_3()[3], steps, warmup_steps=1, learning_rate=0.003, **small)


def step_of(model):
    return int(model.optimizer.iterations.numpy())


def main(folder, failure=None, at=0):
    strategy = connect_workers(timeout=120)
    worker, workers = worker_rank(strategy)
    recorder, save = trainer.Recorder, keras.Model.save

    class Recorder(recorder):
        def on_train_batch_end(self, batch, logs=None):
            if failure == "kill" and worker == workers - 1 and step_of(self.model) == int(at):
                os.kill(os.getpid(), 9)

        def on_train_end(self, logs=None):
            super().on_train_end(logs)
            np.savez(Path(folder) / f"weights{worker}.npz", *self.model.get_weights())

    def failing_save(model, path, **kwargs):
        if step_of(model) == int(at) and failure == "full":
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, path, **kwargs)
        if step_of(model) == int(at) and failure == "tear":
            os.truncate(path, 1000)
            os.kill(os.getpid(), 9)

    trainer.Recorder, keras.Model.save = Recorder, failing_save
    network.small_inception = tiny
    logs = Path(folder) / "logs"
    train(run(), shades(), folder, strategy=strategy, backups=3, log_dir=logs)


if __name__ == "__main__":
    main(*sys.argv[1:])
