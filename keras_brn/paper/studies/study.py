"""Small experiments: runs of one configuration each, kept in a folder and then in one file.

A run is a frozen dataclass with `method`, `learning_rate` and `seed` among its attributes; its
result is a dict of numbers, with `choices` among them: how good it is (more is better) on data by
which learning rates are chosen, and on which nothing is reported.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import keras
import numpy as np

from keras_brn.convert import renormalize
from keras_brn.paper.data.files import digest_of
from keras_brn.paper.data.images import as_floats
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.networks.small import small_inception
from keras_brn.paper.records import locked_error, provenance, read_json, run_lock, write_json

SEARCH_SEED = 100  # From here on seeds are of searches, and nothing of them is reported.


def check_method(method, methods):
    """Raises a ValueError if a method is none of a dict's."""
    if method not in methods:
        raise ValueError(f"`method` must be one of {sorted(methods)}. Received: method={method!r}")


class CountedByImages:
    """Of a run with the attributes `images_seen`, in all, and `images_per_step`."""

    @property
    def steps(self):
        """The number of training steps."""
        return self.images_seen // self.images_per_step

    @property
    def momentum(self):
        """Of the averages of mu and sigma: what was best in Figure 6 for this number of steps."""
        return min(0.99, max(0.0, 1 - 100 / self.steps))


class Batches(keras.utils.PyDataset):
    """The images of each step as they are, as floats in [-1, 1], and their labels.

    Args:
        images: uint8 (images, height, width, channels).
        labels: Integers (images,).
        steps: Number of steps.
        seed: As for `Sampler`.
        batch_size: Number of images of a step.
        images_per_label: As for `Sampler`, in groups of a whole step.
    """

    def __init__(self, images, labels, steps, seed, batch_size, images_per_label=None):
        super().__init__()
        self.images, self.labels, self.steps = images, labels, steps
        self.sampler = Sampler(labels, batch_size, seed, batch_size, images_per_label)

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        indices, _ = self.sampler.draw(step)
        return as_floats(self.images[indices]), self.labels[indices]


class VariedBatches(Batches):
    """As `Batches`, of the images of a run, varied.

    Args:
        data: `Images`.
        run: Has the attributes `steps`, `images_per_step` and `seed`.
    """

    def __init__(self, data, run):
        images, labels = data.train_images, data.train_labels
        super().__init__(images, labels, run.steps, run.seed, run.images_per_step)
        self.vary = data.vary

    def __getitem__(self, step):
        indices, variations = self.sampler.draw(step)
        return as_floats(self.vary(self.images[indices], variations)), self.labels[indices]


def compile_with_cosine(model, loss, learning_rate, steps, metrics=None):
    """Compiles a model for Adam, whose learning rate falls to zero by half a cosine.

    Args:
        model: A `keras.Model`, built.
        loss: As for `keras.Model.compile`.
        learning_rate: At the start.
        steps: Number of training steps.
        metrics: List of `keras.metrics.Metric`.
    """
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    compile_with_adam(model, loss, schedule, metrics)


def compile_with_adam(model, loss, learning_rate, metrics=None):
    """As `compile_with_cosine`, with a learning rate that is a number or a schedule of Keras."""
    model.compile(
        keras.optimizers.Adam(learning_rate),
        loss,
        metrics=metrics,
        # XLA makes TensorFlow slower on a CPU.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    model.optimizer.build(model.trainable_variables)  # Else TensorFlow traces a step twice.


def base_network(images, seed, steps, batch_size=32, width=8):
    """A `small_inception` with `keras.layers.BatchNormalization` that classifies glyphs, trained on
    independent images: the network before those that are fine-tuned.

    Args:
        images: `Images`.
        seed: Integer that fixes weights and batches.
        steps: Number of training steps.
        batch_size: Number of images of a step.
        width: As for `small_inception`.
    """
    keras.utils.set_random_seed(seed)
    normalization = keras.layers.BatchNormalization
    model = small_inception(normalization, images.image_shape, images.classes, width)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_with_cosine(model, loss, 3e-3, steps)
    batches = Batches(images.train_images, images.train_labels, steps, seed, batch_size)
    model.fit(batches, shuffle=False, verbose=0)
    return model


def adapted(base, head, method, momentum, **bounds):
    """A copy of a network with another head, and normalized as a method says.

    Args:
        base: A functional `keras.Model` with batchnorm, whose last layer is exchanged.
        head: Function of what that layer sees that returns the new outputs.
        method: "frozen_batchnorm": not trainable, which in Keras is inference with the statistics,
            gamma and beta of the base; beginning with "batch_renorm": `renormalize`d; else as it
            is.
        momentum: Of the averages of mu and sigma.
        **bounds: `r_max` and `d_max`, as for `renormalize`.
    """
    copy = keras.models.clone_model(base)
    copy.set_weights(base.get_weights())
    model = keras.Model(copy.input, head(copy.layers[-2].output))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
            layer.trainable = method != "frozen_batchnorm"
    return renormalize(model, **bounds) if method.startswith("batch_renorm") else model


def accuracy(model, inputs, labels):
    """The share of inputs that a model of logits classifies as their labels."""
    predicted = np.argmax(model.predict(inputs, batch_size=500, verbose=0), axis=1)
    return round(float(np.mean(predicted == labels)), 5)


def run_study(runs, train, folder, data=None):
    """The results of all runs; those that the folder holds already are read.

    Args:
        runs: List of frozen dataclasses of one type.
        train: Function of a run that returns its result, a dict of numbers.
        folder: Where results are kept, a file for each run.
        data: `Images` that the runs use, for the provenance.

    Returns:
        List of dicts: the attributes of a run, its result, and `provenance`.

    Raises:
        RuntimeError: If another process trains one of the runs in this folder.
    """
    results = []
    for run in runs:
        config = dataclasses.asdict(run)
        described = {**config, "images": None if data is None else data.digest}
        digits = digest_of(np.frombuffer(json.dumps(described).encode(), "uint8"))[:16]
        path = Path(folder) / f"{run.method}-seed{run.seed}-{digits}.json"
        if not path.exists():
            with run_lock(path) as locked:
                if not locked:
                    raise locked_error(path)
                if not path.exists():
                    write_json(path, {**config, **train(run), "provenance": provenance(data)})
        results.append(read_json(path))
    return results


def printing(train):
    """`train`, as of `run_study`, that also prints a run and the floats of its result."""

    def train_and_print(run):
        result = train(run)
        print(run, {key: v for key, v in result.items() if isinstance(v, float)}, flush=True)
        return result

    return train_and_print


def best_runs(runs, results, setting, seeds):
    """The runs to report: those that were best in a search, with other seeds.

    Args:
        runs: The runs of the search.
        results: Theirs, in the same order.
        setting: Names of the attributes that make a setting. In each, that configuration is best
            whose mean of `choices`, over the seeds of the search, is greatest.
        seeds: Iterable of integers, none of them a seed of the search.

    Returns:
        List of runs, one for each setting and seed, first seeds first.
    """
    qualities = {}
    for run, result in zip(runs, results, strict=True):
        qualities.setdefault(dataclasses.replace(run, seed=0), []).append(result["choices"])
    best = {}
    for run, of_run in qualities.items():
        key = tuple(getattr(run, name) for name in setting)
        if key not in best or np.mean(of_run) > np.mean(qualities[best[key]]):
            best[key] = run
    return [dataclasses.replace(run, seed=seed) for seed in seeds for run in best.values()]


def search_and_report(name, options, search, setting, seeds, train, data=None):
    """Makes the runs of a search and those to report, and saves all of them.

    Args:
        name: Of the study: its results are `options.out / f"{name}.json"`.
        options: As `study_parser(name)` parses them.
        search: The runs of the search.
        setting: As for `best_runs`.
        seeds: As for `best_runs`.
        train: As for `run_study`.
        data: As for `run_study`.
    """
    train, folder = printing(train), options.results / name
    searched = run_study(search, train, folder, data)
    reported = best_runs(search, searched, setting, seeds)
    results = run_study(reported, train, folder, data)
    save_study(searched + results, options.out / f"{name}.json")


def study_parser(name):
    """The command line of a study: where single results are kept, and where their file goes."""
    parser = argparse.ArgumentParser(prog=f"python -m keras_brn.paper.studies.{name}")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("figures"))
    return parser


def save_study(results, path):
    """Writes all results to one file, each provenance once."""
    made = []
    for result in results:
        if result["provenance"] not in made:
            made.append(result["provenance"])
    runs = [{k: v for k, v in result.items() if k != "provenance"} for result in results]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"runs": runs, "provenance": made})


def load_study(path):
    """The results, without provenance, that `save_study` wrote, those of the search included."""
    return read_json(path)["runs"]


def reported(results):
    """Those of the results that are not of a search."""
    return [result for result in results if result["seed"] < SEARCH_SEED]
