"""A student reproduction of Figure 2, repeated and completed: CIFAR-10, 100 epochs of 25 steps.

    python -m keras_brn.paper.studies.cifar10 [--cifar10 PATH] [--results results] [--out figures]

The report says how the network is built, alpha, the final bounds, and that the bounds begin to open
after 20 epochs; in another sentence, after 50. Both are run. It does not say when the bounds are
final (here 25 epochs after they begin to open), nor the images of a step and of a microbatch (here
32, and 32 or 4), nor the channels (here 16, 32 and 64), the dropout (here .1, .2 and .3) and the
optimizer (here Adam with a constant learning rate, the same for all methods).
"""

import dataclasses

import keras
import numpy as np

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.data.cifar10 import load_cifar10
from keras_brn.paper.data.images import as_floats, hold_out
from keras_brn.paper.studies.study import (
    SEARCH_SEED,
    VariedBatches,
    accuracy,
    check_method,
    compile_with_adam,
    printing,
    run_study,
    save_study,
    study_parser,
)
from keras_brn.paper.training.evaluation import fixed_choice
from keras_brn.schedule import RenormSchedule

STEPS_PER_EPOCH = 25
METHODS = {
    "batchnorm": "batchnorm",
    "batch_renorm_20": "Batch Renorm, from epoch 20",
    "batch_renorm_50": "Batch Renorm, from epoch 50",
}
OPENING_EPOCHS = {"batch_renorm_20": (20, 45), "batch_renorm_50": (50, 75)}  # First and last.
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
MICROBATCHES = (4, 32)


@dataclasses.dataclass(frozen=True)
class Cifar10Run:
    """One training run, by Adam.

    Attributes:
        method: One of `METHODS`.
        microbatch: Number of images that are normalized together.
        learning_rate: Of Adam.
        seed: Integer that fixes the weights and the images.
        epochs: Number of epochs of 25 steps.
        images_per_step: Number of images of a step.
        alpha: Learning rate of mu and sigma.
        width: Number of channels of the first block.
    """

    method: str
    microbatch: int
    learning_rate: float
    seed: int = 0
    epochs: int = 100
    images_per_step: int = 32
    alpha: float = 0.01
    width: int = 16

    def __post_init__(self):
        check_method(self.method, METHODS)

    @property
    def steps(self):
        """The number of training steps."""
        return STEPS_PER_EPOCH * self.epochs


def blocks_network(normalization, width=16, classes=10):
    """Three blocks of two convolutions, each normalized before its ReLU, and dropout, which grows
    with depth.

    Args:
        normalization: Function that returns a layer.
        width: Number of channels of the first block; each further block has twice as many, at half
            the resolution.
        classes: Number of labels.

    Returns:
        Model from images (batch, 32, 32, 3) to logits (batch, classes).
    """
    model = keras.Sequential([keras.Input((32, 32, 3))])
    for channels, dropout in ((width, 0.1), (2 * width, 0.2), (4 * width, 0.3)):
        for _ in range(2):
            model.add(keras.layers.Conv2D(channels, 3, padding="same", use_bias=False))
            model.add(normalization())
            model.add(keras.layers.ReLU())
        model.add(keras.layers.MaxPooling2D())
        model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(classes))
    return model


class StepAccuracy(keras.callbacks.Callback):
    """Accuracy on images, each classified by itself, after training steps of `model.fit`, without
    an end of the epoch.

    Args:
        images: uint8 (images, height, width, channels).
        labels: Integers (images,).
        every: Number of steps from one evaluation to the next.

    Attributes:
        accuracy: List of shares of 1.
    """

    def __init__(self, images, labels, every=1):
        super().__init__()
        self.images, self.labels, self.every = as_floats(images), labels, every
        self.accuracy, self._steps = [], 0

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self._steps % self.every == 0:
            # Not `predict`: that is a loop with callbacks of its own, within this one.
            predicted = np.argmax(self.model.predict_on_batch(self.images), axis=1)
            self.accuracy.append(round(float(np.mean(predicted == self.labels)), 5))


def train_network(run, data, callbacks=()):
    """The trained network of a run, on `Images`."""
    keras.utils.set_random_seed(run.seed)
    held = {"r_max": 1, "d_max": 0} if run.method == "batchnorm" else {}

    def normalization():
        return BatchRenormalization(momentum=1 - run.alpha, microbatch_size=run.microbatch, **held)

    model = blocks_network(normalization, run.width, data.classes)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_with_adam(model, loss, run.learning_rate)
    if run.method in OPENING_EPOCHS:
        first, last = (STEPS_PER_EPOCH * epoch for epoch in OPENING_EPOCHS[run.method])
        callbacks = [RenormSchedule(first, last, last), *callbacks]
    model.fit(VariedBatches(data, run), verbose=0, shuffle=False, callbacks=list(callbacks))
    return model


def train_cifar10(run, data, choices):
    """The result of a run.

    Args:
        run: `Cifar10Run`.
        data: `Images`.
        choices: Pair of uint8 images and labels, by which learning rates are chosen.

    Returns:
        Dict of accuracies, shares of 1: `choices`; of the validation images `test` at the end, and
        `curve`, after every second epoch, of 1,000 of them; `early` and `late` are the means of
        the curve over the first half of training and over epochs 71 to 100.
    """
    images, labels = data.validation_images, data.validation_labels
    of_curve = fixed_choice(len(labels), 1_000)
    validation = StepAccuracy(images[of_curve], labels[of_curve], every=2 * STEPS_PER_EPOCH)
    model = train_network(run, data, [validation])
    curve = validation.accuracy
    return {
        "choices": accuracy(model, as_floats(choices[0]), choices[1]),
        "test": accuracy(model, as_floats(images), labels),
        "early": round(float(np.mean(curve[: len(curve) // 2])), 5),
        "late": round(float(np.mean(curve[-max(1, 3 * len(curve) // 10) :])), 5),
        "curve": curve,
    }


def runs_of(learning_rates, seed):
    """A run for each method, microbatch and learning rate."""
    return [
        Cifar10Run(method, microbatch, rate, seed)
        for microbatch in MICROBATCHES
        for method in METHODS
        for rate in learning_rates
    ]


def best_rate(results):
    """The learning rate whose mean of `choices`, over methods and microbatches, is greatest: since
    it is constant, the end of a single run says little."""
    by_rate = {}
    for result in results:
        by_rate.setdefault(result["learning_rate"], []).append(result["choices"])
    return max(by_rate, key=lambda rate: np.mean(by_rate[rate]))


def main(arguments=None):
    parser = study_parser("cifar10")
    parser.add_argument("--cifar10", help="a folder or an archive of images; else it is downloaded")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    options = parser.parse_args(arguments)
    data, choices = hold_out(load_cifar10(options.cifar10), per_label=300)

    train = printing(lambda run: train_cifar10(run, data, choices))
    folder = options.results / "cifar10"
    results = run_study(runs_of(LEARNING_RATES, SEARCH_SEED), train, folder, data)
    rate = best_rate(results)
    for seed in range(options.seeds):
        results += run_study(runs_of([rate], seed), train, folder, data)
    save_study(results, options.out / "cifar10.json")


if __name__ == "__main__":
    main()
