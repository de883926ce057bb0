"""Training of an experiment: interrupted at any time, it goes on to the same result."""

import contextlib
import dataclasses
import json
import time
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_brn.averaging import AveragedModel
from keras_brn.distribute.tensorflow import multi_worker, seen_by_workers
from keras_brn.extras import extra
from keras_brn.layer import BatchRenormalization
from keras_brn.monitor import QUANTITIES, RenormMonitor
from keras_brn.paper.baselines import MicrobatchNormalization
from keras_brn.paper.cluster import of_worker, place_among_workers
from keras_brn.paper.data.sampling import batches, in_order
from keras_brn.paper.experiment import Experiment
from keras_brn.paper.networks.inception import inception_v3
from keras_brn.paper.networks.small import small_inception
from keras_brn.paper.records import provenance, write_json
from keras_brn.schedule import RenormSchedule


def train(experiment, data, folder, verbose=2, backups=1, strategy=None, log_dir=None):
    """Runs an experiment, or reads its result where it was run before.

    The result is written to `folder` after every evaluation, beside a checkpoint. A run that
    was cut off goes on from there, with the batches it would have seen, to the same curve.

    Args:
        experiment: `Experiment`.
        data: `Images` or `ImageNet`.
        folder: Where the result is kept; a folder that all workers share.
        verbose: As in `keras.Model.fit`: 2 is a line per backup, 1 a progress bar as well.
        backups: Number of backups from one evaluation to the next, >= 1.
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`, made before anything else of
            TensorFlow, if several workers call this with the same arguments. Each trains on its
            share of a batch; the first writes. `None`: this process does all.
        log_dir: Folder in which TensorBoard's logs are kept, one folder per run; `None`: no logs.
            They need the package `tensorboard`.

    Returns:
        Dict with the curve: `step` (training steps completed), `accuracy` (on the validation
        images, with the averaged parameters) and `train_accuracy` (as trained, mean since the last
        evaluation), lists of equal length; `batch_accuracy` as well where batchnorm is trained on
        groups of a few labels: `accuracy`, but normalized by the statistics of test minibatches
        (section 4.3: 25 labels, 2 images each). With Batch Renorm `correction`: the `layers`, and
        of each quantity that `RenormMonitor` measures a list over the evaluations of lists over
        the layers. Also `name`, `data`, `seed`, `group`, `images_per_label` (`None`: drawn
        independently), `config`, `provenance`.

    Raises:
        ValueError: If the stored result is of another configuration or of other images,
            `evaluations * backups` does not divide `steps`, the replicas (all devices of all
            workers) do not divide the groups of a step, the last backup was made with other
            `backups` and not at the end of one of these, or the workers do not see the same
            `folder`.
        ImportError: If there is a `log_dir`, and `tensorboard` is not installed.
    """
    epochs = experiment.evaluations * backups
    if backups < 1 or experiment.steps % epochs:
        raise ValueError(
            "`evaluations * backups` must divide `steps`. Received: "
            f"evaluations={experiment.evaluations}, backups={backups}, steps={experiment.steps}"
        )
    if experiment.batch_size % (experiment.group * _replicas(strategy)):
        raise ValueError(
            "`batch_size` must be a multiple of `group` times the number of replicas, which share "
            f"the groups of a step. Received: batch_size={experiment.batch_size}, "
            f"group={experiment.group}, replicas={_replicas(strategy)}"
        )
    if log_dir is not None:
        with extra("tensorboard"):
            import tensorboard  # noqa: F401  Keras would miss it after the first epoch.
    path = _path(experiment, data.name, folder)
    checkpoint = path.with_suffix(".keras")
    images = _described(data)
    _refuse_other_images(path, images)
    worker, workers = place_among_workers(strategy)
    result = finished(experiment, data.name, folder)
    stored = checkpoint.stat().st_size if checkpoint.exists() else 0
    seen = seen_by_workers(strategy, -1 if result else stored)
    if len(set(seen)) > 1:
        raise ValueError(
            "`folder` must be the same for all workers. Received: "
            f"folder={str(folder)!r}, with backups of {seen} bytes (-1: none, but the result)"
        )
    if result is not None:
        if worker == 0:
            checkpoint.unlink(missing_ok=True)
        return result
    config = {"data": data.name, **dataclasses.asdict(experiment)}
    result = read_result(path, config) if path.exists() else _empty_result(config)
    result["provenance"] |= {"workers": workers, "images": images}
    path.parent.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(experiment.seed)
    with _scope(strategy):
        if checkpoint.exists():
            model = keras.saving.load_model(checkpoint)
        else:
            model = _compiled_model(experiment, data)
        if strategy is not None:
            model = multi_worker(model)
    done = int(ops.convert_to_numpy(model.optimizer.iterations))
    steps_per_epoch = experiment.steps // epochs
    if done % steps_per_epoch:
        raise ValueError(
            "`backups` must be what it was when the last backup was made. Received: "
            f"backups={backups}, a backup after {steps_per_epoch} steps; the last after {done}"
        )
    _continue_dropout(model.network, worker, done)
    evaluated = done * experiment.evaluations // experiment.steps
    kept = dict.fromkeys((*_CURVES, *QUANTITIES), evaluated)
    kept["epoch_accuracy"] = done // steps_per_epoch
    for curves in (result, result.get("correction", {})):
        for curve in kept.keys() & curves.keys():
            curves[curve] = curves[curve][: kept[curve]]

    callbacks, monitor = [], None
    if experiment.normalization == "batch_renorm":
        if experiment.r_max_steps > 0:  # Bounds that open at once need no ramp.
            callbacks.append(_schedule(experiment))
        if worker == 0:
            minibatch = experiment.batch_size // _replicas(strategy)
            samples = _batches(experiment, data, experiment.seed + 1_000_000, 0, 0, workers)
            inputs = np.concatenate([x[:minibatch] for x, _ in samples.take(4)])
            monitor = RenormMonitor(inputs, minibatch, steps_per_epoch)
            callbacks.append(monitor)
    callbacks.append(
        _Recorder(experiment, data, result, path, checkpoint, monitor, backups, strategy)
    )
    if log_dir is not None and worker == 0:  # After what adds to the logs.
        log_dir = Path(log_dir) / path.stem
        callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False))

    def shares(worker, workers):
        # An end, which is never reached, would cost the workers an exchange in each step.
        return _batches(experiment, data, experiment.seed, done, worker, workers).repeat()

    model.fit(
        of_worker(shares, strategy, experiment.batch_size),
        initial_epoch=done // steps_per_epoch,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        shuffle=False,
        callbacks=callbacks,
        verbose=verbose if worker == 0 else 0,
    )
    return result


def _continue_dropout(network, worker, step):
    """Masks that differ between workers, and go on after a restart; Keras stores no position."""
    for layer in network.layers:
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            seed = ops.convert_to_numpy(generator.state)[0]
            generator.state.assign(np.array([seed + worker, step], "uint32"))


def _scope(strategy):
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _replicas(strategy):
    return 1 if strategy is None else strategy.num_replicas_in_sync


_CURVES = ("step", "accuracy", "train_accuracy", "batch_accuracy")


def finished(experiment, data_name, folder):
    """The result that `train` has written to `folder`, or `None` if the run is not complete."""
    path = _path(experiment, data_name, folder)
    if not path.exists():
        return None
    result = read_result(path, {"data": data_name, **dataclasses.asdict(experiment)})
    result.pop("epoch_accuracy", None)  # If the run was killed after its last evaluation.
    return result if len(result["step"]) == experiment.evaluations else None


def keep(result, folder):
    """Writes a result of `train` to where it looks for it, unless there is one."""
    config = dict(result["config"])
    data_name = config.pop("data")
    path = _path(Experiment(**config), data_name, folder)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)


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


def _described(data):
    """What tells data sets of the same name apart."""
    numbers = {part: len(labels) for part, labels in data.labels.items()}
    shape = {"shape": list(data.image_shape), "labels": data.classes}
    return {**numbers, **shape, "sha256": data.digest}


def _refuse_other_images(path, images):
    stored = json.loads(path.read_text()) if path.exists() else {}
    of_stored = stored.get("provenance", {}).get("images", images)
    if of_stored != images:
        raise ValueError(
            f"The result in `{path}` is of other images: remove it, or choose another folder. "
            f"Received (stored, wanted): {of_stored}, {images}"
        )


def _path(experiment, data_name, folder):
    parts = [data_name, experiment.name, f"{experiment.steps}steps"]
    if experiment.images_per_label is not None:
        parts.append(f"{experiment.images_per_label}perlabel")
    return Path(folder) / f"{'-'.join([*parts, f'seed{experiment.seed}'])}.json"


def _empty_result(config):
    kept = ("name", "data", "seed", "group", "images_per_label")
    return {
        **{key: config[key] for key in kept},
        **{"step": [], "accuracy": [], "train_accuracy": []},
        "config": config,
        "provenance": {"seconds": 0.0, **provenance()},
    }


def _batches(experiment, data, seed, first_step, worker, workers):
    dataset = batches(
        *(data, experiment.batch_size, experiment.steps, seed),
        *(experiment.draw or experiment.batch_size, experiment.images_per_label, first_step),
        worker=worker,
        workers=workers,
    )
    return _for_each_head(experiment, dataset)


def _for_each_head(experiment, dataset):
    if not experiment.auxiliary_weight:
        return dataset
    return dataset.map(lambda x, y: (x, {"logits": y, "auxiliary_logits": y}))


def _schedule(experiment):
    return RenormSchedule(experiment.warmup_steps, experiment.r_max_steps, experiment.d_max_steps)


def _normalization(experiment, group):
    """A function that returns a layer, with gamma = 1 (section 4)."""
    momentum = 1 - experiment.alpha
    makers = {
        "batchnorm": lambda: MicrobatchNormalization(group, momentum=momentum, scale=False),
        "batch_renorm": lambda: BatchRenormalization(
            momentum=momentum,
            scale=False,
            r_max=experiment.r_max,
            d_max=experiment.d_max,
            microbatch_size=group,
        ),
        "group_norm": lambda: keras.layers.GroupNormalization(8, scale=False),
        # Over all values of an example, as where it is compared with group normalization.
        "layer_norm": lambda: keras.layers.GroupNormalization(1, scale=False),
    }
    if experiment.normalization not in makers:
        raise ValueError(
            f"`normalization` must be one of {sorted(makers)}. "
            f"Received: normalization={experiment.normalization!r}"
        )
    return makers[experiment.normalization]


def _network(experiment, data, group):
    """The network; with an auxiliary head it returns a dict, in which "logits" are its own."""
    arguments = (_normalization(experiment, group), data.image_shape, data.classes)
    if experiment.network == "inception_v3":
        return inception_v3(
            *arguments,
            auxiliary=experiment.auxiliary_weight > 0,
            dropout=experiment.dropout,
            weight_decay=experiment.weight_decay,
            seed=experiment.seed,
        )
    if experiment.network == "small_inception":
        if experiment.auxiliary_weight or experiment.dropout:
            raise ValueError(
                "`small_inception` has no auxiliary head and no dropout: see `scaled`. Received: "
                f"auxiliary_weight={experiment.auxiliary_weight}, dropout={experiment.dropout}"
            )
        decay = keras.regularizers.L2(experiment.weight_decay / 2)
        return small_inception(*arguments, experiment.width, decay)
    raise ValueError(
        "`network` must be 'inception_v3' or 'small_inception'. "
        f"Received: network={experiment.network!r}"
    )


def _compiled_model(experiment, data):
    model = AveragedModel(_network(experiment, data, experiment.group), experiment.average_decay)
    learning_rate = keras.optimizers.schedules.ExponentialDecay(
        experiment.learning_rate,
        experiment.decay_steps,
        experiment.learning_rate_decay,
        staircase=True,
    )
    optimizer = keras.optimizers.RMSprop(
        learning_rate,
        rho=experiment.rho,
        momentum=experiment.optimizer_momentum,
        epsilon=experiment.optimizer_epsilon,
    )
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=experiment.label_smoothing
    )
    arguments = {"loss": loss, "metrics": ["accuracy"]}
    if experiment.auxiliary_weight:
        arguments = {
            "loss": {"logits": loss, "auxiliary_logits": loss},
            "loss_weights": {"logits": 1.0, "auxiliary_logits": experiment.auxiliary_weight},
            "metrics": {"logits": ["accuracy"]},
        }
    # XLA makes TensorFlow slower on a CPU.
    jit_compile = False if keras.backend.backend() == "tensorflow" else "auto"
    model.compile(optimizer, jit_compile=jit_compile, **arguments)
    return model


class _Recorder(keras.callbacks.Callback):
    """Evaluates, appends to the result and writes it, then what is needed to go on from it."""

    def __init__(self, experiment, data, result, path, checkpoint, monitor, backups, strategy):
        super().__init__()
        self.monitor, self.backups = monitor, backups
        self.steps_per_epoch = experiment.steps // experiment.evaluations // backups
        self.result, self.path, self.checkpoint = result, path, checkpoint
        self.seconds = result["provenance"]["seconds"]
        self.start = time.time()
        self.writes = place_among_workers(strategy)[0] == 0
        self.metric = "logits_accuracy" if experiment.auxiliary_weight else "accuracy"

        def validation(worker, workers):
            least, more = divmod(len(data.labels["validation"]), workers)
            at_once = max(1, 500 // workers)
            while more and least and least % at_once == 0:
                at_once += 1  # Else some workers would have one batch more than others.
            dataset = in_order(data, at_once, worker=worker, workers=workers)
            return _for_each_head(experiment, dataset)

        self.validation = of_worker(validation, strategy, 500)
        self.test_minibatches = None
        if experiment.images_per_label is not None and experiment.normalization == "batchnorm":
            self.test_minibatches = _TestMinibatches(experiment, data, strategy)

    def on_epoch_end(self, epoch, logs=None):
        model, result = self.model, self.result
        of_epochs = result.setdefault("epoch_accuracy", [])
        of_epochs.append(float(logs[self.metric]))
        if (epoch + 1) % self.backups == 0:
            with model.averaged():
                accuracy = model.evaluate(self.validation, verbose=0, return_dict=True)[self.metric]
            logs["val_accuracy"] = accuracy
            result["step"].append((epoch + 1) * self.steps_per_epoch)
            result["accuracy"].append(round(float(accuracy), 5))
            of_training = float(np.mean(of_epochs[-self.backups :]))
            result["train_accuracy"].append(round(of_training, 5))
            if self.test_minibatches is not None:
                accuracy = self.test_minibatches.accuracy(model.averages)
                result.setdefault("batch_accuracy", []).append(round(accuracy, 5))
            if self.monitor is not None:
                correction = result.setdefault("correction", {"layers": self.monitor.layers})
                for name, values in self.monitor.history.items():
                    correction.setdefault(name, []).append([round(v, 5) for v in values[-1]])
        result["provenance"]["seconds"] = round(self.seconds + time.time() - self.start, 1)
        if self.writes:
            self._write(epoch)

    def _write(self, epoch):
        part = self.checkpoint.with_suffix(".part.keras")
        try:
            write_json(self.path, self.result)
            self.model.save(part)
            part.replace(self.checkpoint)
        except OSError as error:  # Such as a full disk, on which the last backup is whole.
            part.unlink(missing_ok=True)
            warnings.warn(f"Epoch {epoch + 1} has no backup: {error}", stacklevel=2)

    def on_train_end(self, logs=None):
        del self.result["epoch_accuracy"]
        if self.writes:
            write_json(self.path, self.result)
            self.checkpoint.unlink(missing_ok=True)


class _TestMinibatches:
    """Accuracy with the statistics of test minibatches, 25 labels x 2 images (section 4.3).

    With `k` images per label, the minibatches are `50 // k` labels x `k` images.
    """

    def __init__(self, experiment, data, strategy=None):
        per_label = experiment.images_per_label
        group = 50 // per_label * per_label
        groups = max(1, len(data.labels["validation"]) // group)
        replicas = _replicas(strategy)
        at_once = replicas * max(1, min(10, groups // replicas))

        def minibatches(worker, workers):
            return batches(
                *(data, at_once * group, max(1, groups // at_once), 0, group, per_label),
                part="validation",
                augment=False,
                worker=worker,
                workers=workers,
            )

        self.batches = of_worker(minibatches, strategy, at_once * group)
        experiment = dataclasses.replace(experiment, dropout=0.0)
        with _scope(strategy):
            self.model = InTraining(_network(experiment, data, group))
            self.model.compile(loss="categorical_crossentropy", metrics=["accuracy"])
        if strategy is not None:
            multi_worker(self.model)

    def accuracy(self, weights):
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
