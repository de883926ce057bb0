"""A residual network in steps of few images: CIFAR-10, 20 layers.

    python -m keras_brn.paper.studies.residual [--cifar10 PATH] [--results results] [--out figures]

All images of a step are normalized together, and the gradient is theirs alone.
"""

import dataclasses
import functools

import keras

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.data.cifar10 import load_cifar10
from keras_brn.paper.data.images import as_floats, hold_out
from keras_brn.paper.studies.study import (
    SEARCH_SEED,
    CountedByImages,
    VariedBatches,
    accuracy,
    check_method,
    compile_with_cosine,
    search_and_report,
    study_parser,
)
from keras_brn.schedule import RenormSchedule

METHODS = {
    "batchnorm": "batchnorm",
    "batch_renorm": "Batch Renorm",
    "group_norm": "group normalization",
    "plain": "no normalization",
}
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
BLOCKS = 3  # Of two layers, in each of the three sizes: 2 * 3 * 3 + 2 = 20 layers.


@dataclasses.dataclass(frozen=True)
class ResidualRun(CountedByImages):
    """One training run, by Adam with a cosine.

    Attributes:
        method: One of `METHODS`.
        images_per_step: Number of images of a step, which are normalized together.
        learning_rate: Of Adam at the start; it falls to zero by half a cosine.
        seed: Integer that fixes the weights and the images.
        images_seen: Number of images of the whole run.
        width: Number of channels of the first layers; the published network has 16.
    """

    method: str
    images_per_step: int
    learning_rate: float
    seed: int = 0
    images_seen: int = 20_000
    width: int = 8

    def __post_init__(self):
        check_method(self.method, METHODS)


def normalization_maker(run):
    """A function that returns a layer."""
    return {
        "batchnorm": functools.partial(
            BatchRenormalization, r_max=1, d_max=0, momentum=run.momentum
        ),
        "batch_renorm": functools.partial(BatchRenormalization, momentum=run.momentum),
        "group_norm": functools.partial(keras.layers.GroupNormalization, run.width // 2),
        "plain": functools.partial(keras.layers.Activation, "linear"),
    }[run.method]


def residual_network(normalization, width, classes=10):
    """The network of He et al. 2016, section 4.2, for images of 32 x 32 pixels.

    Args:
        normalization: Function that returns a layer.
        width: Number of channels of the first third; the second has twice, the third four times as
            many, at half and a quarter of the resolution.
        classes: Number of labels.

    Returns:
        Model from images (batch, 32, 32, 3) to logits (batch, classes). Shortcuts have no weights:
        where the resolution falls they take each second pixel, and zeros as further channels.
    """
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.ReLU()(_normalized(inputs, width, 1, normalization))
    for channels in (width, 2 * width, 4 * width):
        for _ in range(BLOCKS):
            strides = 1 if channels == x.shape[-1] else 2
            y = keras.layers.ReLU()(_normalized(x, channels, strides, normalization))
            y = _normalized(y, channels, 1, normalization)
            if strides == 2:
                x = keras.layers.AveragePooling2D(1, 2)(x)
                x = keras.layers.Concatenate()([x, keras.ops.zeros_like(x)])
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


def _normalized(x, channels, strides, normalization):
    # Its shift is for the network without normalization; batchnorm takes it away.
    convolution = keras.layers.Conv2D(
        channels, 3, strides, padding="same", kernel_initializer="he_normal"
    )
    return normalization()(convolution(x))


def train_network(run, data):
    """The trained network of a run, on `Images`."""
    keras.utils.set_random_seed(run.seed)
    model = residual_network(normalization_maker(run), run.width, data.classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_with_cosine(model, loss, run.learning_rate, run.steps)
    ramp = [RenormSchedule.for_run(run.steps)] if run.method == "batch_renorm" else []
    model.fit(VariedBatches(data, run), verbose=0, shuffle=False, callbacks=ramp)
    return model


def train_residual(run, data, choices):
    """The result of a run.

    Args:
        run: `ResidualRun`.
        data: `Images`.
        choices: Pair of uint8 images and labels, by which learning rates are chosen.

    Returns:
        Dict of accuracies, shares of 1: `choices`, and `test`, of the validation images.
    """
    model = train_network(run, data)
    return {
        "choices": accuracy(model, as_floats(choices[0]), choices[1]),
        "test": accuracy(model, as_floats(data.validation_images), data.validation_labels),
    }


def search_runs(images_per_step=(4,)):
    """The runs that choose the learning rate of each method and size."""
    return [
        ResidualRun(method, size, rate, SEARCH_SEED)
        for size in images_per_step
        for method in METHODS
        for rate in LEARNING_RATES
    ]


def main(arguments=None):
    parser = study_parser("residual")
    parser.add_argument("--cifar10", help="a folder or an archive of images; else it is downloaded")
    options = parser.parse_args(arguments)
    data, choices = hold_out(load_cifar10(options.cifar10), per_label=300)
    setting = ("method", "images_per_step")

    def train(run):
        return train_residual(run, data, choices)

    search_and_report("residual", options, search_runs(), setting, range(3), train, data)


if __name__ == "__main__":
    main()
