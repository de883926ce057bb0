"""Training runs that compare batchnorm with Batch Renorm, and their results."""

import dataclasses
import json
import time
from pathlib import Path

import keras
import numpy as np

from keras_brn.data import batches
from keras_brn.layer import BatchRenormalization
from keras_brn.models import small_network
from keras_brn.records import provenance, write_json
from keras_brn.schedule import RenormSchedule


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run of `small_network`.

    It is the paper's (section 4), scaled from 130k steps of 1600 images to `steps` of `batch_size`.
    The ramp scales with the number of steps. So does the learning rate of the moving averages: a
    weight moves further in a step of a short run, and mu and sigma must not lag behind it.

    Attributes:
        name: Name of the run.
        microbatch_size: Number of examples that are normalized together (paper: 32, or 4).
        r_max: Final bound (paper: 3); 1 for batchnorm.
        d_max: Final bound (paper: 5); 0 for batchnorm.
        steps: Number of training steps (paper: 130k to 210k).
        batch_size: Number of examples per step (paper: 1600).
        momentum: Of mu and sigma (paper: .99, alpha = .01).
        learning_rate: At the start, of Adam with cosine decay to 0 (paper: RMSProp).
        label_smoothing: Of the training loss (Inception-v3: .1).
        evaluations: Number of times that validation accuracy is measured, evenly spaced.
        seed: Integer that fixes weights and batches.
    """

    name: str
    microbatch_size: int = 32
    r_max: float = 3.0
    d_max: float = 5.0
    steps: int = 3_000
    batch_size: int = 128
    momentum: float = 0.95
    learning_rate: float = 1e-3
    label_smoothing: float = 0.1
    evaluations: int = 20
    seed: int = 0

    def schedule(self):
        """The paper's ramp at this length: 5k, 40k and 25k of 130k steps."""
        return RenormSchedule(*[round(self.steps * k / 130) for k in (5, 40, 25)])


def microbatch_experiments(**changes):
    """The three runs behind the paper's Figure 2, section 4.2; `changes` apply to each."""
    batchnorm = Experiment("batchnorm", r_max=1.0, d_max=0.0)
    runs = (
        batchnorm,
        dataclasses.replace(batchnorm, name="batchnorm_micro4", microbatch_size=4),
        Experiment("batch_renorm_micro4", microbatch_size=4),
    )
    return [dataclasses.replace(run, **changes) for run in runs]


def train(experiment, data, folder, verbose=2):
    """Runs an experiment, or reads its result where it was run before.

    The result is written to `folder` after every evaluation, beside a checkpoint. A run that
    was cut off goes on from there, with the batches it would have seen, to the same curve.

    Args:
        experiment: `Experiment`.
        data: `Images`.
        folder: Where the result is kept.
        verbose: As in `keras.Model.fit`: 2 is a line per evaluation, 1 a progress bar as well.

    Returns:
        Dict with the curve: `step` (training steps completed), `accuracy` (on the validation
        images, with moving statistics) and `train_accuracy` (as trained, mean since the last
        evaluation), lists of equal length; and `name`, `data`, `seed`, `group`,
        `images_per_label` (`None`: drawn independently), `config`, `provenance`.

    Raises:
        ValueError: If the stored result is of another configuration, or `evaluations` does not
            divide `steps`.
    """
    if experiment.steps % experiment.evaluations:
        raise ValueError(
            "`evaluations` must divide `steps`. Received: "
            f"evaluations={experiment.evaluations}, steps={experiment.steps}"
        )
    config = dataclasses.asdict(experiment)
    path = Path(folder) / f"{data.name}-{experiment.name}-{experiment.steps}-{experiment.seed}.json"
    checkpoint = path.with_suffix(".keras")
    result = read_result(path, config) if path.exists() else _empty_result(experiment, data)
    if len(result["step"]) == experiment.evaluations:
        checkpoint.unlink(missing_ok=True)
        return result
    path.parent.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(experiment.seed)
    if checkpoint.exists():
        model = keras.saving.load_model(checkpoint)
    else:
        model = _compiled_network(experiment, data)
    done = int(model.optimizer.iterations)
    for curve in ("step", "accuracy", "train_accuracy"):
        result[curve] = result[curve][: done * experiment.evaluations // experiment.steps]

    interval = experiment.steps // experiment.evaluations
    size = experiment.batch_size
    model.fit(
        batches(
            *(data.train_images, data.train_labels, data.classes, size, experiment.steps),
            seed=experiment.seed,
            first_step=done,
            flip=data.flip,
        ),
        initial_epoch=done // interval,
        epochs=experiment.evaluations,
        steps_per_epoch=interval,
        shuffle=False,
        validation_data=(
            data.validation_images / np.float32(127.5) - 1,
            keras.utils.to_categorical(data.validation_labels, data.classes),
        ),
        validation_batch_size=500,
        callbacks=[experiment.schedule(), _Recorder(result, path, checkpoint, interval)],
        verbose=verbose,
    )
    checkpoint.unlink()
    return result


def read_result(path, config):
    """The result in a file that `train` wrote, refused if its configuration is not `config`."""
    result = json.loads(Path(path).read_text())
    if result["config"] != config:
        differing = {
            key: (result["config"].get(key), config.get(key))
            for key in {*result["config"], *config}
            if result["config"].get(key) != config.get(key)
        }
        raise ValueError(
            f"The result in `{path}` is of another configuration: remove it, or choose another "
            f"folder. Received (stored, wanted): {differing}"
        )
    return result


def _empty_result(experiment, data):
    return {
        "name": experiment.name,
        "data": data.name,
        "seed": experiment.seed,
        "group": experiment.microbatch_size,
        "images_per_label": None,
        "step": [],
        "accuracy": [],
        "train_accuracy": [],
        "config": dataclasses.asdict(experiment),
        "provenance": {"seconds": 0.0, **provenance()},
    }


def _compiled_network(experiment, data):
    def normalization():
        return BatchRenormalization(
            momentum=experiment.momentum,
            scale=False,  # gamma = 1, as in the paper.
            r_max=experiment.r_max,
            d_max=experiment.d_max,
            microbatch_size=experiment.microbatch_size,
        )

    model = small_network(normalization, data.train_images.shape[1:], data.classes)
    decay = keras.optimizers.schedules.CosineDecay(experiment.learning_rate, experiment.steps)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=experiment.label_smoothing
    )
    # XLA makes TensorFlow slower on a CPU.
    jit_compile = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile(keras.optimizers.Adam(decay), loss, metrics=["accuracy"], jit_compile=jit_compile)
    return model


class _Recorder(keras.callbacks.Callback):
    """Appends each evaluation to the result and writes it, then what is needed to go on from it."""

    def __init__(self, result, path, checkpoint, interval):
        super().__init__()
        self.result, self.path, self.checkpoint, self.interval = result, path, checkpoint, interval
        self.seconds = result["provenance"]["seconds"]
        self.start = time.time()

    def on_epoch_end(self, epoch, logs=None):
        self.result["step"].append((epoch + 1) * self.interval)
        self.result["accuracy"].append(round(float(logs["val_accuracy"]), 5))
        self.result["train_accuracy"].append(round(float(logs["accuracy"]), 5))
        self.result["provenance"]["seconds"] = round(self.seconds + time.time() - self.start, 1)
        write_json(self.path, self.result)
        part = self.checkpoint.with_suffix(".part.keras")
        self.model.save(part)
        part.replace(self.checkpoint)
