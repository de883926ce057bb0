"""Fine-tuning a network that was trained with batchnorm, at a few images per step."""

import contextlib
import dataclasses
from pathlib import Path

import keras
import numpy as np

from keras_brn.convert import renormalize
from keras_brn.paper.data.files import digest_of
from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.sampling import batches, in_order
from keras_brn.paper.networks.small import small_inception
from keras_brn.paper.records import (
    describe_images,
    locked_error,
    provenance,
    read_json,
    run_lock,
    write_json,
)
from keras_brn.paper.studies.study import compile_with_cosine
from keras_brn.paper.training.files import check_equal, read_checkpoint_state, save_checkpoint

NORMALIZATIONS = {
    "batchnorm": "batchnorm",
    "frozen_batchnorm": "batchnorm, frozen",
    "batch_renorm": "Batch Renorm, after `renormalize`",
}


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """One run of `fine_tune`.

    Attributes:
        normalization: "batchnorm", by the minibatch; "frozen_batchnorm", not trainable, which in
            Keras is inference with the statistics, gamma and beta of the pretrained network; or
            "batch_renorm", by the minibatch and corrected, with the final bounds from the start.
        batch_size: Number of images per step.
        epochs: Number of times that each image is seen.
        learning_rate: Of Adam at the start; it falls to 0 along a cosine.
        momentum: Of the moving averages of batchnorm and Batch Renorm.
        seed: Integer that fixes the new head and the order of the images.
    """

    normalization: str = "batch_renorm"
    batch_size: int = 4
    epochs: int = 5
    learning_rate: float = 3e-3
    momentum: float = 0.99
    seed: int = 0


def old_and_new_glyphs(train_per_label=200, new_per_label=40):
    """200 characters to train on, and few images of each of 50 others: a pair of `Images`."""
    data = load_glyphs(train_per_label, validation_per_label=40, difficulty=1.25, labels=250)
    new = np.arange(0, 250, 5)
    old = np.setdiff1d(np.arange(250), new)
    return data.of_labels(old), data.of_labels(new, new_per_label)


# Of .0003, .001, .003 and .01, those best with 4 images per step (seed 0).
LEARNING_RATES = {"batchnorm": 3e-3, "frozen_batchnorm": 1e-3, "batch_renorm": 3e-3}


def fine_tuning_runs(seeds=range(3), batch_sizes=(2, 4)):
    """The runs of the comparison, first seeds first."""
    return [
        FineTuning(name, batch_size, learning_rate=LEARNING_RATES[name], seed=seed)
        for seed in seeds
        for batch_size in batch_sizes
        for name in NORMALIZATIONS
    ]


def pretrained(images, steps, path, width=8, seed=0):
    """A `small_inception` with `keras.layers.BatchNormalization`, trained on 128 images a step, or
    read from `path` where it was trained before.

    Args:
        images: `Images`.
        steps: Number of training steps.
        path: Path of a `.keras` file.
        width: As for `small_inception`.
        seed: Integer that fixes weights and batches.

    Raises:
        ValueError: If the file holds a network that was trained otherwise, or does not say how.
        RuntimeError: If another process trains it.
    """
    path = Path(path)
    if not path.exists():
        with run_lock(path) as locked:
            if not locked:
                raise locked_error(path)
            if not path.exists():  # Another process may just have trained it.
                state = {
                    "trained_from": _origin_of_base(images, steps, width, seed),
                    "provenance": provenance(images),
                }
                save_checkpoint(path, _pretrain(images, steps, width, seed), state)
    stored = read_checkpoint_state(path).get("trained_from", {})
    check_equal(path, "another training", stored, _origin_of_base(images, steps, width, seed))
    return keras.saving.load_model(path)


def _origin_of_base(images, steps, width, seed):
    return {"steps": steps, "width": width, "seed": seed, "images": describe_images(images)}


def _pretrain(images, steps, width, seed):
    keras.utils.set_random_seed(seed)
    model = small_inception(
        keras.layers.BatchNormalization, images.image_shape, images.classes, width
    )
    _compile(model, 3e-3, steps)
    model.fit(batches(images, 128, steps, seed), verbose=0)
    return model


def fine_tune(run, base, images, folder, verbose=0):
    """Trains a copy of `base` with a new head, or reads the result where it was run before.

    Args:
        run: `FineTuning`.
        base: As `pretrained` returns it.
        images: `Images`, of other labels.
        folder: Where the result is stored.
        verbose: As in `keras.Model.fit`.

    Returns:
        Dict with the configuration of the run, `accuracy` (on the validation images, after each
        epoch) and `provenance`.

    Raises:
        ValueError: If `normalization` is none of the three, or the stored result is of another
            configuration, another base or other images, or does not say of which.
        RuntimeError: If another process trains this run in this folder.
    """
    path = _result_path(run, folder)
    with contextlib.nullcontext(True) if path.exists() else run_lock(path) as locked:
        if not locked:
            raise locked_error(path)
        result = stored_result(run, folder)
        if result is None:
            result = _fine_tune(run, base, images, verbose)
            write_json(path, result)
    stored = {key: result.get("provenance", {}).get(key) for key in ("base", "images")}
    if None in stored.values():
        raise ValueError(
            f"`{path}` does not say of which base network and images it is: remove it, or choose "
            "another folder."
        )
    wanted = {"base": digest_of_model(base), "images": describe_images(images)}
    check_equal(path, "another base network or other images", stored, wanted)
    return result


def _fine_tune(run, base, images, verbose):
    keras.utils.set_random_seed(run.seed)
    model = adapted(base, images.classes, run)
    steps = len(images.train_labels) // run.batch_size
    _compile(model, run.learning_rate, run.epochs * steps)
    history = model.fit(
        batches(images, run.batch_size, run.epochs * steps, run.seed, augment=False),
        epochs=run.epochs,
        steps_per_epoch=steps,
        validation_data=in_order(images, 500),
        verbose=verbose,
    )
    result = dataclasses.asdict(run)
    result["accuracy"] = [round(value, 5) for value in history.history["val_accuracy"]]
    result["provenance"] = {**provenance(images), "base": digest_of_model(base)}
    return result


def stored_result(run, folder):
    """The result that `fine_tune` has left in `folder`, or `None`; refused if its configuration is
    another."""
    path = _result_path(run, folder)
    if not path.exists():
        return None
    result = read_json(path)
    config = dataclasses.asdict(run)
    check_equal(path, "another configuration", {k: result.get(k) for k in config}, config)
    return result


def _result_path(run, folder):
    name = f"{run.normalization}-batch{run.batch_size}-seed{run.seed}"
    return Path(folder) / f"fine_tuning-{name}.json"


def digest_of_model(model):
    """Hexadecimal digits that no other weights and kinds of layers have."""
    kinds = [type(layer).__name__ for layer in model.layers]
    return digest_of(*model.get_weights(), np.array(kinds))


def adapted(base, classes, run):
    """A copy of `base` with a new last layer and the normalization of `run`."""
    if run.normalization not in NORMALIZATIONS:
        raise ValueError(
            f"`normalization` must be one of {sorted(NORMALIZATIONS)}. "
            f"Received: normalization={run.normalization!r}"
        )
    copy = keras.models.clone_model(base)
    copy.set_weights(base.get_weights())
    model = keras.Model(copy.input, keras.layers.Dense(classes)(copy.layers[-2].output))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = run.momentum
            # Keras: not trainable is inference.
            layer.trainable = run.normalization != "frozen_batchnorm"
    return renormalize(model) if run.normalization == "batch_renorm" else model


def _compile(model, learning_rate, steps):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    compile_with_cosine(model, loss, learning_rate, steps, [accuracy])
