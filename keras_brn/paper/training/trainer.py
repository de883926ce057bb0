"""Runs an experiment."""

import contextlib
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_brn.distribute.tensorflow import multi_worker, seen_by_workers
from keras_brn.extras import extra
from keras_brn.monitor import RenormMonitor
from keras_brn.paper.cluster import distribute_batches, replica_count, strategy_scope
from keras_brn.paper.records import describe_images, locked_error, provenance, run_lock
from keras_brn.paper.training.files import (
    check_origin,
    checkpoint_path,
    completed_result,
    read_checkpoint_state,
    read_result,
    remove_checkpoint,
    result_path,
    run_config,
)
from keras_brn.paper.training.network import compiled_model
from keras_brn.paper.training.recorder import CORRECTION_MINIBATCHES, CORRECTION_SEED, Recorder
from keras_brn.paper.training.run import Run
from keras_brn.schedule import RenormSchedule


def train(
    experiment,
    data,
    folder,
    verbose=2,
    backups=1,
    strategy=None,
    log_dir=None,
    evaluation_batch_size=None,
):
    """Runs an experiment, or reads its result where it was run before.

    The result is written to `folder` after every evaluation, beside a checkpoint. A run that
    was cut off goes on from there, with the batches it would have seen, to the same curve.

    Args:
        experiment: `Experiment`.
        data: `Images` or `ImageNet`.
        folder: Where the result is stored; a folder that all workers share.
        verbose: As in `keras.Model.fit`: 2 is a line per backup, 1 a progress bar as well.
        backups: Number of backups from one evaluation to the next, >= 1.
        strategy: A `tf.distribute.MultiWorkerMirroredStrategy`, made before anything else of
            TensorFlow, if several workers call this with the same arguments. Each trains on its
            share of a batch; the first writes. `None`: this process does all.
        log_dir: Folder of TensorBoard's logs, one folder in it per run; `None`: no logs. They need
            the package `tensorboard`.
        evaluation_batch_size: Number of images that a device classifies at once, >= 1. `None`: as
            many as it trains on in a step; or more, up to 500 of 32 x 32 pixels.

    Returns:
        Dict with the curve: `step` (training steps completed), `accuracy` (on the validation
        images, with the averaged parameters), `train_image_accuracy` (the same on 10,000 fixed
        training images without variation, or on all if there are fewer) and `train_accuracy` (on
        the training minibatches, as trained, mean since the last evaluation), lists of equal
        length; `batch_accuracy` as well where batchnorm is trained on groups of a few labels:
        `accuracy`, but normalized by the statistics of test minibatches (section 4.3: 25 labels, 2
        images each). With Batch Renorm `correction`: the `layers`, and of each quantity that
        `RenormMonitor` measures a list over the evaluations of lists over the layers. Also `name`,
        `data`, `seed`, `group`, `images_per_label` (`None`: drawn independently), `config`,
        `provenance` (with `resumed`, if the run went on under other versions or on another
        machine). Results of older versions have no `train_image_accuracy`.

    Raises:
        ValueError: If the stored result or checkpoint is of another configuration or of other
            images, `evaluations * backups` does not divide `steps`, the replicas (all devices of
            all workers) do not divide the groups of a step, the last backup was made with other
            `backups` and not at the end of one of these, or the workers do not see the same
            `folder`.
        RuntimeError: If another process trains this run in this folder.
        ImportError: If there is a `log_dir`, and `tensorboard` is not installed.
    """
    _check_arguments(experiment, backups, strategy, evaluation_batch_size)
    if log_dir is not None:
        with extra("tensorboard"):
            import tensorboard  # noqa: F401  Keras would miss it after the first epoch.
    images = describe_images(data)
    path = result_path(experiment, data.name, folder)
    run = Run(experiment, data, path, backups, strategy, evaluation_batch_size)
    result = completed_result(experiment, data.name, folder, images)
    lock = run_lock(path) if result is None and run.worker == 0 else contextlib.nullcontext(True)
    with lock as locked:
        if result is None:  # Another process may just have completed it.
            result = completed_result(experiment, data.name, folder, images)
        _check_folder(path, locked, result is not None, strategy)
        if result is None:
            return _train(run, images, verbose, log_dir)
        if run.worker == 0:
            remove_checkpoint(checkpoint_path(path))
        return result


def _check_arguments(experiment, backups, strategy, evaluation_batch_size):
    if backups < 1 or experiment.steps % (experiment.evaluations * backups):
        raise ValueError(
            "`evaluations * backups` must divide `steps`. Received: "
            f"evaluations={experiment.evaluations}, backups={backups}, steps={experiment.steps}"
        )
    if evaluation_batch_size is not None and evaluation_batch_size < 1:
        raise ValueError(
            "`evaluation_batch_size` must be at least 1. "
            f"Received: evaluation_batch_size={evaluation_batch_size}"
        )
    replicas = replica_count(strategy)
    if experiment.batch_size % (experiment.group * replicas):
        raise ValueError(
            "`batch_size` must be a multiple of `group` times the number of replicas, which share "
            f"the groups of a step. Received: batch_size={experiment.batch_size}, "
            f"group={experiment.group}, replicas={replicas}"
        )


_LOCKED_BY_ANOTHER, _COMPLETE = -2, -1  # Instead of the size of a checkpoint.


def _check_folder(path, locked, complete, strategy):
    """All workers raise, or none does: the others would wait for one that is gone."""
    checkpoint = checkpoint_path(path)
    status = checkpoint.stat().st_size if checkpoint.exists() else 0
    if complete:
        status = _COMPLETE
    elif not locked:
        status = _LOCKED_BY_ANOTHER
    statuses = seen_by_workers(strategy, status)
    if _LOCKED_BY_ANOTHER in statuses:
        raise locked_error(path)
    if len(set(statuses)) > 1:
        raise ValueError(
            "`folder` must be the same for all workers. Received: "
            f"folder={str(path.parent)!r}, with backups of {statuses} bytes "
            "(-1: none, but the result)"
        )


def _train(run, images, verbose, log_dir):
    """Trains from the checkpoint on, or from the beginning, and returns the result."""
    keras.utils.set_random_seed(run.experiment.seed)
    model, state = _model_and_state(run, images)
    steps_done = int(ops.convert_to_numpy(model.optimizer.iterations))
    if steps_done % run.steps_per_epoch:
        raise ValueError(
            "`backups` must be what it was when the last backup was made. Received: "
            f"backups={run.backups}, a backup after {run.steps_per_epoch} steps; the last after "
            f"{steps_done}"
        )
    if steps_done:
        note_other_circumstances(state["result"]["provenance"], provenance(), steps_done)
    continue_dropout(model.network, run.worker, steps_done)

    def shares(worker, workers):
        # An end, which is never reached, would cost the workers an exchange in each step.
        dataset = run.training_batches(run.experiment.seed, steps_done, worker, workers)
        return dataset.repeat()

    model.fit(
        distribute_batches(shares, run.strategy, run.experiment.batch_size),
        initial_epoch=steps_done // run.steps_per_epoch,
        epochs=run.epochs,
        steps_per_epoch=run.steps_per_epoch,
        shuffle=False,
        callbacks=_callbacks(run, state, log_dir),
        verbose=verbose if run.worker == 0 else 0,
    )
    return state["result"]


def _model_and_state(run, images):
    """The model, and what the `Recorder` continues: of the checkpoint, or new ones."""
    checkpoint = checkpoint_path(run.path)
    config = run_config(run.experiment, run.data.name)
    with strategy_scope(run.strategy):
        if checkpoint.exists():
            state = read_checkpoint_state(checkpoint)
            check_origin(checkpoint, state["result"], config, images)
            model = keras.saving.load_model(checkpoint)
        else:
            read_result(run.path, config, images)  # It is written anew, if it is of this run.
            state = {"result": _empty_result(config, images), "epoch_accuracy": []}
            model = compiled_model(run.experiment, run.data)
    state["result"]["provenance"]["workers"] = run.workers
    return model if run.strategy is None else multi_worker(model), state


def _empty_result(config, images):
    result = {key: config[key] for key in ("name", "data", "seed", "group", "images_per_label")}
    for curve in ("step", "accuracy", "train_accuracy"):
        result[curve] = []
    result["config"] = config
    result["provenance"] = {"seconds": 0.0, **provenance(), "images": images}
    return result


def note_other_circumstances(stored, current, step):
    """Adds to a provenance, as `resumed`, what has changed since the run was cut off at a step."""
    changed = {key: value for key, value in current.items() if stored.get(key) != value}
    if changed:
        stored.setdefault("resumed", []).append({"step": step, **changed})


def continue_dropout(network, worker, step):
    """Masks that differ between workers, and go on after a restart; Keras stores no position."""
    for layer in network.layers:
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            seed = ops.convert_to_numpy(generator.state)[0]
            generator.state.assign(np.array([seed + worker, step], "uint32"))


def _callbacks(run, state, log_dir):
    experiment = run.experiment
    callbacks, monitor = [], None
    if experiment.normalization == "batch_renorm":
        if experiment.r_max_steps > 0:  # Bounds that open at once need no ramp.
            callbacks.append(
                RenormSchedule(
                    experiment.warmup_steps, experiment.r_max_steps, experiment.d_max_steps
                )
            )
        if run.worker == 0:
            monitor = _monitor(run)
            callbacks.append(monitor)
    callbacks.append(Recorder(run, state, monitor))
    if log_dir is not None and run.worker == 0:  # After what adds to the logs.
        folder = Path(log_dir) / run.path.stem
        callbacks.append(keras.callbacks.TensorBoard(folder, write_graph=False))
    return callbacks


def _monitor(run):
    """Measures the correction on minibatches that are not trained on."""
    minibatch = run.examples_per_replica
    samples = run.training_batches(run.experiment.seed + CORRECTION_SEED, 0, 0, run.workers)
    samples = samples.take(CORRECTION_MINIBATCHES)
    inputs = np.concatenate([x[:minibatch] for x, _ in samples])
    return RenormMonitor(inputs, minibatch, run.steps_per_epoch)
