"""What is written while a run trains."""

import time
import warnings

import keras
import numpy as np

from keras_brn.paper.records import write_json
from keras_brn.paper.training.evaluation import (
    AveragesAccuracy,
    TestMinibatchAccuracy,
    fixed_training_images,
)
from keras_brn.paper.training.files import checkpoint_path, remove_checkpoint, save_checkpoint

CORRECTION_SEED = 1_000_000  # Added to that of a run: the correction is measured on other images.
CORRECTION_MINIBATCHES = 4


class Recorder(keras.callbacks.Callback):
    """Evaluates, appends to the result and writes it, then what is needed to go on from it.

    Args:
        run: `Run`.
        state: Dict of `result`, as `train` returns it, and `epoch_accuracy`, a list of the accuracy
            on the training minibatches of each epoch so far; both are appended to.
        monitor: `RenormMonitor`, or `None`.
    """

    def __init__(self, run, state, monitor=None):
        super().__init__()
        self.run, self.state, self.monitor = run, state, monitor
        self.result = state["result"]
        self.seconds_before = self.result["provenance"]["seconds"]
        self.start = time.time()
        self.evaluations = {
            "accuracy": AveragesAccuracy(run, "validation"),
            "train_image_accuracy": AveragesAccuracy(run, "train", fixed_training_images(run.data)),
        }
        experiment = run.experiment
        if experiment.images_per_label is not None and experiment.normalization == "batchnorm":
            self.evaluations["batch_accuracy"] = TestMinibatchAccuracy(run)

    def on_epoch_end(self, epoch, logs=None):
        self.state["epoch_accuracy"].append(float(logs[self.run.metric]))
        if (epoch + 1) % self.run.backups == 0:
            self._evaluate((epoch + 1) * self.run.steps_per_epoch)
            logs["val_accuracy"] = self.result["accuracy"][-1]
        seconds = self.seconds_before + time.time() - self.start
        self.result["provenance"]["seconds"] = round(seconds, 1)
        if self.run.worker == 0:
            self._write(epoch)

    def _evaluate(self, step):
        self.result["step"].append(step)
        of_epochs = self.state["epoch_accuracy"][-self.run.backups :]
        self._append("train_accuracy", np.mean(of_epochs))
        for curve, accuracy in self.evaluations.items():
            self._append(curve, accuracy(self.model))
        if self.monitor is not None:
            latest = {name: values[-1] for name, values in self.monitor.history.items()}
            record_correction(self.result, self.monitor.layers, latest)

    def _append(self, curve, value):
        self.result.setdefault(curve, []).append(round(float(value), 5))

    def _write(self, epoch):
        try:
            write_json(self.run.path, self.result)
            save_checkpoint(checkpoint_path(self.run.path), self.model, self.state)
        except OSError as error:  # Such as a full disk, on which the last backup is whole.
            warnings.warn(f"Epoch {epoch + 1} has no backup: {error}", stacklevel=2)

    def on_train_end(self, logs=None):
        if self.run.worker == 0:
            write_json(self.run.path, self.result)
            remove_checkpoint(checkpoint_path(self.run.path))


def record_correction(result, layers, measured):
    """Appends a measurement to the `correction` of a result.

    Args:
        result: As `train` returns it, of a run that is not complete.
        layers: Paths of the layers.
        measured: Dict from the name of a quantity of `RenormMonitor` to a list over the layers.
    """
    correction = result.setdefault("correction", {"layers": layers})
    for name, values in measured.items():
        correction.setdefault(name, []).append([round(value, 5) for value in values])
