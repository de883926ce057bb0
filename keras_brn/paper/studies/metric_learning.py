"""Metric learning: embeddings of characters, compared on characters never seen.

    python -m keras_brn.paper.studies.metric_learning [--results results] [--out figures]

Minibatches of P labels x K images are what section 4.3 of the paper takes its example from. A
network that classifies some characters goes on to learn an embedding in such minibatches, in which
images of other characters then find their like.
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.images import as_floats
from keras_brn.paper.studies.study import (
    Batches,
    adapted,
    base_network,
    check_method,
    compile_with_cosine,
    printing,
    run_study,
    save_study,
    study_parser,
)

METHODS = {
    "batchnorm": "batchnorm",
    "frozen_batchnorm": "batchnorm, frozen",
    "batch_renorm": "Batch Renorm",
}
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
IMAGES_PER_LABEL = (8,)
_TEMPERATURE = 0.1


@dataclasses.dataclass(frozen=True)
class MetricRun:
    """One training run, by Adam with a cosine.

    Attributes:
        method: One of `METHODS`. "frozen_batchnorm" trains all but the normalization, which stays
            that of the network before.
        images_per_label: Number of images of each label in a minibatch.
        learning_rate: Of Adam at the start; it falls to zero by half a cosine.
        seed: Integer that fixes the network before, the new weights and the images.
        batch_size: Number of images of a step.
        steps: Number of training steps.
        base_steps: Number of steps of 32 independent images that the network before is trained.
        momentum: Of the averages of mu and sigma.
    """

    method: str
    images_per_label: int
    learning_rate: float
    seed: int = 0
    batch_size: int = 32
    steps: int = 1_000
    base_steps: int = 1_000
    momentum: float = 0.9

    def __post_init__(self):
        check_method(self.method, METHODS)


def metric_runs(images_per_label=IMAGES_PER_LABEL, rates=LEARNING_RATES, seeds=range(3)):
    """The runs of the comparison, first seeds first."""
    return [
        MetricRun(method, images, rate, seed)
        for seed in seeds
        for images in images_per_label
        for method in METHODS
        for rate in rates
    ]


def contrastive_loss(labels, embeddings):
    """How unlikely images choose images of their label by their similarity.

    Args:
        labels: Integers (batch,) or (batch, 1).
        embeddings: Tensor (batch, features) of unit vectors.

    Returns:
        Tensor (batch,): the mean of -log softmax over the images of the same label.

    Source: Khosla et al. 2020, equation 2; with two images a label the N-pair loss of Sohn 2016.
    """
    labels = ops.reshape(labels, (-1, 1))
    itself = ops.eye(ops.shape(embeddings)[0], dtype=embeddings.dtype)
    same = ops.cast(labels == ops.transpose(labels), embeddings.dtype) - itself
    similarity = ops.matmul(embeddings, ops.transpose(embeddings)) / _TEMPERATURE
    log_share = ops.log_softmax(similarity - 1e9 * itself, axis=1)
    return -ops.sum(same * log_share, axis=1) / ops.maximum(ops.sum(same, axis=1), 1)


def recall_at_1(embeddings, labels):
    """The share of the images whose nearest other image has the same label.

    Args:
        embeddings: Array (images, features) of unit vectors.
        labels: Integers (images,).
    """
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return round(float(np.mean(labels[np.argmax(similarity, axis=1)] == labels)), 5)


def train_metric(run, data, base):
    """The result of a run.

    Args:
        run: `MetricRun`.
        data: Three `Images`: to train on, by which to choose, and for the test, of other labels.
        base: As `base_network` returns it, of the seed of the run.

    Returns:
        Dict of recalls at 1, shares of 1: `choices` and `test`; and `before`, of the test with the
        features of the network before.
    """
    train, choices, test = data
    keras.utils.set_random_seed(run.seed)
    features = keras.Model(base.input, keras.layers.UnitNormalization()(base.layers[-2].output))
    before = _recall(features, test)
    model = _embedding(base, run)
    compile_with_cosine(model, contrastive_loss, run.learning_rate, run.steps)
    images, labels = train.train_images, train.train_labels
    batches = Batches(images, labels, run.steps, run.seed + 1, run.batch_size, run.images_per_label)
    model.fit(batches, shuffle=False, verbose=0)
    return {
        "choices": _recall(model, choices),
        "test": _recall(model, test),
        "before": before,
    }


def _recall(model, images):
    embeddings = model.predict(as_floats(images.validation_images), batch_size=500, verbose=0)
    return recall_at_1(embeddings, images.validation_labels)


def _embedding(base, run):
    def head(features):
        embedding = keras.layers.Dense(64, use_bias=False)(features)
        return keras.layers.UnitNormalization()(embedding)

    return adapted(base, head, run.method, run.momentum)


def metric_data():
    """150 characters to train on, 60 images of each; 50 for choices and 50 for the test, 40 images
    of each: three `Images`."""
    data = load_glyphs(60, 40, labels=250)
    labels = np.arange(250)
    return tuple(data.of_labels(labels[np.isin(labels % 5, k)]) for k in ([0, 1, 2], 3, 4))


def main(arguments=None):
    options = study_parser("metric_learning").parse_args(arguments)
    data = metric_data()
    base = functools.cache(lambda seed, steps: base_network(data[0], seed, steps))

    def train(run):
        return train_metric(run, data, base(run.seed, run.base_steps))

    folder = options.results / "metric"
    results = run_study(metric_runs(), printing(train), folder, data[0])
    save_study(results, options.out / "metric_learning.json")


if __name__ == "__main__":
    main()
