"""What the parts of a training run share."""

import dataclasses
from pathlib import Path
from typing import Any

from keras_brn.paper.cluster import replica_count, worker_rank
from keras_brn.paper.data.sampling import batches
from keras_brn.paper.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run of one worker.

    Attributes:
        experiment: `Experiment`.
        data: `Images` or `ImageNet`.
        path: Path of the result.
        backups: Number of epochs from one evaluation to the next: an epoch ends with a backup.
        strategy: As for `train`.
        evaluation_batch_size: As for `train`.
    """

    experiment: Experiment
    data: Any
    path: Path
    backups: int = 1
    strategy: Any = None
    evaluation_batch_size: int | None = None

    @property
    def epochs(self):
        return self.experiment.evaluations * self.backups

    @property
    def steps_per_epoch(self):
        return self.experiment.steps // self.epochs

    @property
    def worker(self):
        """Which of the workers this is; the first writes."""
        return worker_rank(self.strategy)[0]

    @property
    def workers(self):
        return worker_rank(self.strategy)[1]

    @property
    def examples_per_replica(self):
        """Number of the examples of a step that a device has."""
        return self.experiment.batch_size // replica_count(self.strategy)

    @property
    def metric(self):
        """The name of the accuracy in Keras' logs."""
        return "logits_accuracy" if self.experiment.auxiliary_weight else "accuracy"

    def training_batches(self, seed, first_step, worker, workers):
        """`tf.data.Dataset` of a worker's shares of the training batches."""
        experiment = self.experiment
        dataset = batches(
            self.data,
            experiment.batch_size,
            experiment.steps,
            seed,
            group=experiment.draw or experiment.batch_size,
            images_per_label=experiment.images_per_label,
            first_step=first_step,
            worker=worker,
            workers=workers,
        )
        return self.with_labels_of_heads(dataset)

    def with_labels_of_heads(self, dataset):
        """Pairs of images and labels, with the labels for the auxiliary head where there is one."""
        if not self.experiment.auxiliary_weight:
            return dataset
        return dataset.map(lambda x, y: (x, {"logits": y, "auxiliary_logits": y}))
