"""Normalization in recurrent networks: characters read row by row.

    python -m keras_brn.paper.studies.recurrent [--results results] [--out figures]

An LSTM reads an image of 32 rows from the top to the bottom, of `LENGTH` time steps in all: before
and after the image there are empty rows, as many as chance wants. In the test it also reads
sequences of twice the length.
"""

import dataclasses
import functools

import keras
import numpy as np

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.images import hold_out
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.studies.study import (
    SEARCH_SEED,
    CountedByImages,
    accuracy,
    check_method,
    compile_with_cosine,
    search_and_report,
    study_parser,
)
from keras_brn.recurrent import RenormLSTMCell, RenormRNN
from keras_brn.schedule import RenormSchedule

METHODS = {
    "plain": "LSTM without normalization",
    "layer_norm": "layer normalization",
    "batchnorm_per_step": "batchnorm, averages for each time step",
    "batchnorm": "batchnorm, one set of averages",
    "batch_renorm": "Batch Renorm, one set of averages",
}
LENGTH, IMAGE_ROWS, IMAGE_COLUMNS, LABELS = 40, 32, 32, 50
LEARNING_RATES = (3e-3, 1e-2)
GAMMAS = (0.1, 0.3, 1.0)


@dataclasses.dataclass(frozen=True)
class RecurrentRun(CountedByImages):
    """One training run, by Adam with a cosine.

    Attributes:
        method: One of `METHODS`.
        images_per_step: Number of images of a step, which are normalized together.
        learning_rate: Of Adam at the start; it falls to zero by half a cosine.
        gamma: Where the scales of the normalizations start; `None` without normalization.
        seed: Integer that fixes the weights and the images.
        images_seen: Number of images of the whole run.
        units: Number of outputs of the LSTM.
    """

    method: str
    images_per_step: int
    learning_rate: float
    gamma: float | None
    seed: int = 0
    images_seen: int = 32_000
    units: int = 64

    def __post_init__(self):
        check_method(self.method, METHODS)


def search_runs(images_per_step=(32,)):
    """The runs that choose the learning rate and gamma of each method and size.

    Averages for each time step are left out with fewer than 32 images, where they learn nothing.
    """
    return [
        RecurrentRun(method, size, rate, gamma, SEARCH_SEED)
        for size in images_per_step
        for method in METHODS
        if method != "batchnorm_per_step" or size >= 32
        for rate in LEARNING_RATES
        for gamma in ([None] if method == "plain" else GAMMAS)
    ]


class _Cell(RenormLSTMCell):
    """The same cell with another normalization."""

    def __init__(self, units, kind, gamma):
        self.kind = kind
        super().__init__(units, gamma=gamma)

    def normalization(self, name, center):
        return self.kind(
            gamma_initializer=keras.initializers.Constant(self.gamma), center=center, name=name
        )


class PerTimeStep(keras.layers.Layer):
    """Batchnorm with averages of its own for each of the first `LENGTH` time steps; later ones
    take the last (Cooijmans et al. 2017, section 3)."""

    def __init__(self, momentum, gamma_initializer, center, name):
        super().__init__(name=name)
        self.steps = [
            BatchRenormalization(r_max=1, d_max=0, momentum=momentum, scale=False, center=False)
            for _ in range(LENGTH)
        ]
        self.gamma_initializer, self.center = gamma_initializer, center
        self.time = 0

    def build(self, input_shape):
        for step in self.steps:
            step.build(input_shape)
        shape = (input_shape[-1],)
        # One scale and one shift for all time steps.
        self.gamma = self.add_weight(shape=shape, initializer=self.gamma_initializer, name="gamma")
        if self.center:
            self.beta = self.add_weight(shape=shape, initializer="zeros", name="beta")

    def call(self, inputs, training=None):
        step = self.steps[min(self.time, LENGTH - 1)]
        self.time += 1
        y = self.gamma * step(inputs, training=training)
        return y + self.beta if self.center else y


class PerTimeStepRNN(keras.layers.RNN):
    """Counts the time steps of the cell's `PerTimeStep` layers from 0."""

    def call(self, sequences, initial_state=None, mask=None, training=False):
        for layer in (self.cell.input_norm, self.cell.recurrent_norm, self.cell.cell_norm):
            layer.time = 0
        return super().call(sequences, initial_state, mask, training)


def recurrent_network(run, length):
    """The network of a run for sequences of a length; weights do not depend on the length."""
    inputs = keras.Input((length, IMAGE_COLUMNS))
    x = _recurrent_layer(run)(inputs)
    return keras.Model(inputs, keras.layers.Dense(LABELS)(x))


def _recurrent_layer(run):
    if run.method == "plain":
        return keras.layers.LSTM(run.units)
    if run.method == "layer_norm":
        cell = _Cell(run.units, keras.layers.LayerNormalization, run.gamma)
        return keras.layers.RNN(cell)
    if run.method == "batchnorm_per_step":
        cell = _Cell(run.units, functools.partial(PerTimeStep, run.momentum), run.gamma)
        return PerTimeStepRNN(cell, unroll=True)
    r_max, d_max = (1, 0) if run.method == "batchnorm" else (3, 5)
    normalization = functools.partial(
        BatchRenormalization, r_max=r_max, d_max=d_max, momentum=run.momentum
    )
    return RenormRNN(_Cell(run.units, normalization, run.gamma))


def sequences(images, length, rng):
    """Images as sequences of rows, each at a random place between empty rows.

    Args:
        images: uint8 (images, 32, 32, 1).
        length: Number of time steps.
        rng: `numpy.random.Generator`.

    Returns:
        float32 (images, length, 32); empty rows are zeros, the mean of an image.
    """
    rows = images[..., 0].astype("float32") / 127.5 - 1
    rows -= rows.mean((1, 2), keepdims=True)
    x = np.zeros((len(rows), length, rows.shape[2]), "float32")
    # The distance to the end is that of training, so that only the wait before it is new.
    after = rng.integers(LENGTH - IMAGE_ROWS + 1, size=len(rows))
    time = length - after[:, None] - IMAGE_ROWS + np.arange(IMAGE_ROWS)
    x[np.arange(len(rows))[:, None], time] = rows
    return x


class _Batches(keras.utils.PyDataset):
    def __init__(self, data, run):
        super().__init__()
        self.data, self.run = data, run
        self.sampler = Sampler(data.train_labels, run.images_per_step, run.seed)

    def __len__(self):
        return self.run.steps

    def __getitem__(self, step):
        indices, variations = self.sampler.draw(step)
        rng = np.random.default_rng(abs(int(variations[0, 0])))
        x = sequences(self.data.train_images[indices], LENGTH, rng)
        return x, self.data.train_labels[indices]


def train_recurrent(run, data, choices):
    """The result of a run.

    Args:
        run: `RecurrentRun`.
        data: `Images` of `LABELS` labels.
        choices: Pair of uint8 images and labels, by which learning rates and gammas are chosen.

    Returns:
        Dict of accuracies, shares of 1: `choices`, by which settings are chosen; `test`, of
        sequences as in training; `longer`, of the same images in sequences of twice the length.
    """
    keras.utils.set_random_seed(run.seed)
    model = recurrent_network(run, LENGTH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_with_cosine(model, loss, run.learning_rate, run.steps)
    ramp = [RenormSchedule.for_run(run.steps)] if run.method == "batch_renorm" else []
    model.fit(_Batches(data, run), verbose=0, shuffle=False, callbacks=ramp)
    longer = recurrent_network(run, 2 * LENGTH)
    longer.set_weights(model.get_weights())
    test = data.validation_images, data.validation_labels
    return {
        "choices": _accuracy(model, *choices),
        "test": _accuracy(model, *test),
        "longer": _accuracy(longer, *test),
    }


def _accuracy(model, images, labels):
    x = sequences(images, model.input_shape[1], np.random.default_rng(0))
    return accuracy(model, x, labels)


def recurrent_data():
    """50 characters: 100 images of each for training, 20 for choices, 40 for the test."""
    return hold_out(load_glyphs(120, 40, labels=LABELS), per_label=20)


def main(arguments=None):
    options = study_parser("recurrent").parse_args(arguments)
    data, choices = recurrent_data()
    search_and_report(
        "recurrent",
        options,
        search_runs(),
        ("method", "images_per_step"),
        range(3),
        lambda run: train_recurrent(run, data, choices),
        data,
    )


if __name__ == "__main__":
    main()
