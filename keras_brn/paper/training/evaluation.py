"""How a run is evaluated while it trains."""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_brn.distribute.tensorflow import multi_worker
from keras_brn.paper.cluster import distribute_batches, replica_count, strategy_scope
from keras_brn.paper.data.sampling import batches, in_order
from keras_brn.paper.training.network import build_network

# Inference of this many pixels takes less memory than training with them would.
_PIXELS_AT_ONCE = 500 * 32 * 32


def images_at_once(run):
    """The number of images that a device classifies at once: as many as it trains on, which takes
    more memory, or more where they are small."""
    if run.evaluation_batch_size is not None:
        return run.evaluation_batch_size
    height, width = run.data.image_shape[:2]
    return max(1, run.examples_per_replica, _PIXELS_AT_ONCE // (height * width))


def evaluation_batches(run, part, indices=None):
    """The images of a part as they are, shared by the workers.

    Args:
        run: `Run`.
        part: "train" or "validation".
        indices: Integers: which of the images; `None`: all.
    """
    count = len(run.data.labels[part] if indices is None else indices)

    def share(worker, workers):
        size = images_at_once(run)
        least, more = divmod(count, workers)
        while more and least and least % size == 0:
            size += 1  # Else some workers would have one batch more than others.
        dataset = in_order(run.data, size, part, worker=worker, workers=workers, indices=indices)
        return run.with_labels_of_heads(dataset)

    return distribute_batches(share, run.strategy)


def fixed_training_images(data, most=10_000):
    """The indices of up to `most` training images, a random choice that is the same in all runs."""
    return fixed_choice(len(data.labels["train"]), most)


def fixed_choice(count, most=10_000):
    """Up to `most` of the integers below `count`, a random choice, in ascending order."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


class AveragesAccuracy:
    """Accuracy of the averaged parameters; each image is classified independently of others.

    Args:
        run: `Run`.
        part: "train" or "validation".
        indices: As for `evaluation_batches`.
    """

    def __init__(self, run, part, indices=None):
        self.metric = run.metric
        self.batches = evaluation_batches(run, part, indices)

    def __call__(self, model):
        with model.averaged():
            return float(model.evaluate(self.batches, verbose=0, return_dict=True)[self.metric])


class TestMinibatchAccuracy:
    """Accuracy of the averaged parameters with the statistics of test minibatches, 25 labels x 2
    images (section 4.3).

    With `k` images per label, the minibatches are `50 // k` labels x `k` images.

    Args:
        run: `Run`, of batchnorm.
    """

    __test__ = False  # Of pytest, which takes the name for that of a test.

    def __init__(self, run):
        data, per_label = run.data, run.experiment.images_per_label
        group = 50 // per_label * per_label
        groups = max(1, len(data.labels["validation"]) // group)
        replicas = replica_count(run.strategy)
        groups_per_replica = min(max(1, images_at_once(run) // group), max(1, groups // replicas))
        at_once = replicas * groups_per_replica

        def minibatches(worker, workers):
            return batches(
                data,
                batch_size=at_once * group,
                steps=max(1, groups // at_once),
                seed=0,
                group=group,
                images_per_label=per_label,
                part="validation",
                augment=False,
                worker=worker,
                workers=workers,
            )

        self.batches = distribute_batches(minibatches, run.strategy, at_once * group)
        experiment = dataclasses.replace(run.experiment, dropout=0.0)
        with strategy_scope(run.strategy):
            self.model = InTraining(build_network(experiment, data, group))
            self.model.compile(loss="categorical_crossentropy", metrics=["accuracy"])
        if run.strategy is not None:
            multi_worker(self.model)

    def __call__(self, model):
        return self.accuracy(model.averages)

    def accuracy(self, weights):
        """The accuracy with these weights of the network, a list of arrays."""
        for weight, value in zip(self.model.network.weights, weights, strict=True):
            weight.assign(ops.convert_to_numpy(value))
        return float(self.model.evaluate(self.batches, verbose=0)[1])


class InTraining(keras.Model):
    """Normalizes as in training, also in evaluation."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.built = True

    def call(self, inputs):
        outputs = self.network(inputs, training=True)
        return outputs["logits"] if isinstance(outputs, dict) else outputs
