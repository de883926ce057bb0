"""Several runs at once, as one program of JAX: a small network alone leaves an accelerator idle.

Figure 3 at the length of the paper, for `python -m keras_brn.paper.reproduce` to draw:

    KERAS_BACKEND=jax python -m keras_brn.paper.on_device --tiny-imagenet PATH [--results results]
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.convolution import PatchConv2D, with_convolutions
from keras_brn.paper.data.files import write_arrays
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.data.tiny_imagenet import load_tiny_imagenet
from keras_brn.paper.experiment import figure_3_paper_length
from keras_brn.paper.records import describe_images, provenance, write_json
from keras_brn.paper.training.evaluation import fixed_training_images
from keras_brn.paper.training.files import completed_result, result_path, run_config
from keras_brn.paper.training.network import build_network, compiled_model
from keras_brn.ramp import LinearRamp

# What may differ between the runs of one program; `r_max` and `d_max` of Batch Renorm only.
_OF_EACH_RUN = {"name", "images_per_label", "draw", "seed", "r_max", "d_max"}
_IMAGES_AT_ONCE = 500


def train_on_device(
    experiments,
    data,
    folder,
    steps_at_once=500,
    convolution=PatchConv2D,
    processes=0,
    verbose=True,
    seconds=None,
):
    """Runs experiments that share a network at once, in one program of JAX.

    They are what `keras_brn.paper.training.train` runs one by one, from the same weights and with
    the same images, variations and protocol; results are in the same format, without
    `correction`. Several steps are one call, the images lie in the memory of the device, and the
    weights of all runs have an axis of the runs. In a program of Batch Renorm, a run with `r_max=1`
    and `d_max=0` is batchnorm in training; in inference it uses averages of sigma where batchnorm
    uses averages of the variance.

    The results are written to `folder` at every evaluation, beside a checkpoint of all runs. A
    call that was cut off goes on from there.

    Args:
        experiments: List of `Experiment`, which differ in nothing but `name`, `images_per_label`,
            `draw`, `seed` and, with Batch Renorm, `r_max` and `d_max`.
        data: `Images`.
        folder: Where the results are stored.
        steps_at_once: Number of training steps per call of the program, at most.
        convolution: Class of the convolutions, a `keras.layers.Conv2D`.
        processes: Number of processes that draw the images; 0: a thread of this one.
        verbose: Whether to print a line per evaluation.
        seconds: Time limit: training ends at the last evaluation that is certain to fit, and goes
            on from there when this is called again. `None`: no limit.

    Returns:
        List of results, dicts as `train` returns them.

    Raises:
        ValueError: If the backend is not JAX, the experiments differ in anything else, a step is
            not made of whole groups, `evaluations` does not divide `steps`, or a stored result is
            of another configuration or of other images.
    """
    _check(experiments)
    images = describe_images(data)
    results = [completed_result(run, data.name, folder, images) for run in experiments]
    if all(results):
        return results
    runs = Runs(experiments, data, folder, steps_at_once, convolution)
    return runs.train(processes, verbose, seconds)


def _check(experiments):
    if keras.backend.backend() != "jax":
        raise ValueError(f"The backend must be 'jax'. Received: {keras.backend.backend()!r}")
    first = experiments[0]
    for name in (field.name for field in dataclasses.fields(first)):
        values = [getattr(run, name) for run in experiments]
        alike = name in _OF_EACH_RUN or all(value == values[0] for value in values)
        if name in ("r_max", "d_max") and first.normalization != "batch_renorm":
            alike = all(value == values[0] for value in values)
        if not alike:
            raise ValueError(f"`experiments` must have the same `{name}`. Received: {values}")
    if first.steps % first.evaluations or first.batch_size % first.group:
        raise ValueError(
            "`evaluations` must divide `steps`, and `group` must divide `batch_size`. Received: "
            f"evaluations={first.evaluations}, steps={first.steps}, group={first.group}, "
            f"batch_size={first.batch_size}"
        )


class State(NamedTuple):
    """What training changes: lists of arrays."""

    trainable: list
    others: list
    optimizer: list
    averages: list


class Program:
    """What is computed for one run.

    Args:
        experiment: `Experiment`.
        data: `Images`.
        convolution: Class of the convolutions.
    """

    def __init__(self, experiment, data, convolution=keras.layers.Conv2D):
        self.experiment, self.data = experiment, data
        self.model = compiled_model(experiment, data)
        network = self.model.network
        self.model.optimizer.build(network.trainable_variables)
        self.network = with_convolutions(network, convolution)
        averaged = {id(weight) for weight in self.model.averaged_weights}
        self._averaged = [
            [id(weight) in averaged for weight in weights]
            for weights in (network.trainable_variables, network.non_trainable_variables)
        ]

    def initial_state(self, experiments):
        """The `State` from which `train` would begin them, with an axis of the runs."""
        models, states = {}, []
        for run in experiments:
            if run.seed not in models:
                keras.utils.set_random_seed(run.seed)
                models[run.seed] = compiled_model(self.experiment, self.data)
            states.append(self._initial_state(models[run.seed], run))
        return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *states)

    def _initial_state(self, model, experiment):
        network = model.network
        _give_ramp(network, experiment)
        if not model.optimizer.built:
            model.optimizer.build(network.trainable_variables)
        trainable, others, optimizer = (
            [np.asarray(weight.value) for weight in weights]
            for weights in (
                network.trainable_variables,
                network.non_trainable_variables,
                model.optimizer.variables,
            )
        )
        return State(trainable, others, optimizer, self._weights_averaged(trainable, others))

    def _weights_averaged(self, trainable, others):
        weights = zip([*trainable, *others], itertools.chain(*self._averaged), strict=True)
        return [weight for weight, averaged in weights if averaged]

    def weights_for_inference(self, state):
        """The weights of the network, `(trainable, others)`, averages wherever there are any."""
        averages = iter(state.averages)
        return tuple(
            [next(averages) if averaged else x for x, averaged in zip(weights, which, strict=True)]
            for weights, which in zip(state[:2], self._averaged, strict=True)
        )

    def train_step(self, state, step, images, labels):
        """A training step.

        Args:
            state: `State`.
            step: Integer, the number of steps completed.
            images: Floats in [-1, 1] (batch, height, width, channels).
            labels: Integers (batch,).

        Returns:
            The next `State`, and the number of images that were classified correctly.
        """
        target = jax.nn.one_hot(labels, self.data.classes)

        def loss(trainable):
            logits, others, penalties = self.network.stateless_call(
                trainable, state.others, images, training=True, return_losses=True
            )
            return self.model.loss(target, logits) + sum(penalties), (others, logits)

        gradients, (others, logits) = jax.grad(loss, has_aux=True)(state.trainable)
        trainable, optimizer = self.model.optimizer.stateless_apply(
            state.optimizer, gradients, state.trainable
        )
        count = step.astype("float32")
        rate = 1.0 - jnp.minimum(self.model.decay, (1.0 + count) / (10.0 + count))
        weights = self._weights_averaged(trainable, others)
        averages = [
            average + rate * (weight - average)
            for average, weight in zip(state.averages, weights, strict=True)
        ]
        return State(trainable, others, optimizer, averages), correct(logits, labels)


def _give_ramp(network, experiment):
    """What `train` does by a `RenormSchedule`."""
    counts = experiment.warmup_steps, experiment.r_max_steps, experiment.d_max_steps
    for layer in network.layers:
        if isinstance(layer, BatchRenormalization):
            layer.set_schedule(None)
            layer.set_bounds(experiment.r_max, experiment.d_max)
            layer.set_schedule(LinearRamp(*counts) if experiment.r_max_steps > 0 else None)


def correct(logits, labels):
    """How many images are classified correctly."""
    return jnp.sum(jnp.argmax(logits, -1) == labels)


def as_floats(images):
    """uint8 images as floats in [-1, 1]."""
    return images.astype("float32") / 127.5 - 1.0


def encoded(variations):
    """Integers below 162, uint8 (batch,): all that `Images.vary` makes of two random integers."""
    return (variations[:, 0] % 81 * 2 + variations[:, 1] % 2).astype("uint8")


def vary(images, indices, codes, flip):
    """`Images.vary` on the device.

    Args:
        images: (all, height, width, channels).
        indices: Integers (batch,): which of them.
        codes: As of `encoded`.
        flip: Whether any image may be mirrored.

    Returns:
        (batch, height, width, channels).
    """
    _, height, width, _ = images.shape
    shift, mirrored = codes.astype("int32") // 2, codes % 2 == 1

    def reflected(positions, size):
        positions = positions % (2 * size)
        return jnp.minimum(positions, 2 * size - 1 - positions)

    rows = reflected(jnp.arange(height) - (shift[:, None] // 9 - 4), height)
    columns = reflected(jnp.arange(width) - (shift[:, None] % 9 - 4), width)
    if flip:
        columns = jnp.where(mirrored[:, None], width - 1 - columns, columns)
    return images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]


class _Draws:
    """The indices and variations of consecutive steps, for all runs: each kind of draw once.

    Args:
        experiments: List of `Experiment`.
        labels: Integers (images,).
    """

    def __init__(self, experiments, labels):
        keys = [(x.seed, x.draw or x.batch_size, x.images_per_label) for x in experiments]
        self.kinds = list(dict.fromkeys(keys))
        self.kind_of_run = np.array([self.kinds.index(key) for key in keys])
        self.batch_size, self.labels = experiments[0].batch_size, labels

    def samplers(self):
        return [
            Sampler(self.labels, self.batch_size, seed, group, images_per_label)
            for seed, group, images_per_label in self.kinds
        ]

    @contextlib.contextmanager
    def of_calls(self, starts, steps, processes):
        """For the block of a `with` statement: yields `indices` and `codes`, (steps, runs, batch),
        of one call after another, drawn ahead from now on.

        Args:
            starts: The first step of each call.
            steps: Number of steps in a call.
            processes: As of `train_on_device`.
        """
        if processes:
            pool = concurrent.futures.ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), _start_drawing, (self,)
            )
        else:
            pool = concurrent.futures.ThreadPoolExecutor(1, "draws", _start_drawing, (self,))

        def submit(first):
            return [pool.submit(_draw, kind, first, steps) for kind in range(len(self.kinds))]

        ahead = collections.deque(submit(first) for first in starts[: 2 + 2 * processes])

        def calls():
            for k in range(len(starts)):
                drawn = [job.result() for job in ahead.popleft()]
                if k + len(ahead) + 1 < len(starts):
                    ahead.append(submit(starts[k + len(ahead) + 1]))
                yield tuple(
                    np.stack([drawn[kind][i] for kind in self.kind_of_run], 1) for i in (0, 1)
                )

        try:
            yield calls()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_drawing(draws):
    global _samplers  # Of a process or a thread that draws.
    _samplers = draws.samplers()


def _draw(kind, first, count):
    draws = [_samplers[kind].draw(step) for step in range(first, first + count)]
    indices = np.stack([indices for indices, _ in draws]).astype("int32")
    return indices, np.stack([encoded(variations) for _, variations in draws])


class Runs:
    """The runs of a program, from the beginning or from their checkpoint to the end.

    Args: as of `train_on_device`.
    """

    def __init__(self, experiments, data, folder, steps_at_once=500, convolution=PatchConv2D):
        self.experiments, self.data, self.folder = experiments, data, Path(folder)
        first = experiments[0]
        self.program = Program(first, data, convolution)
        self.steps, self.per_evaluation = first.steps, first.steps // first.evaluations
        self.per_call = max(n for n in range(1, steps_at_once + 1) if self.per_evaluation % n == 0)
        self.pixels = {part: jnp.asarray(getattr(data, f"{part}_images")) for part in data.labels}
        self.labels = {part: jnp.asarray(y, "int32") for part, y in data.labels.items()}
        self.configs = [run_config(run, data.name) for run in experiments]
        images = describe_images(data)
        digest = hashlib.sha256(json.dumps([self.configs, images]).encode()).hexdigest()
        self.checkpoint = self.folder / f"on_device-{digest[:16]}.npz"
        self.seconds_before, self.start = 0.0, time.time()
        self.results = [self._new_result(config, images) for config in self.configs]
        self.done, self.state = self._restored()
        self.train_steps = None  # Until it is compiled.

    def _new_result(self, config, images):
        result = {key: config[key] for key in ("name", "data", "seed", "group", "images_per_label")}
        result |= {curve: [] for curve in ("step", "accuracy", "train_accuracy")}
        result["config"] = config
        result["provenance"] = {"seconds": 0.0, **provenance(), "images": images, "workers": 1}
        result["provenance"]["trained_together"] = [run.name for run in self.experiments]
        return result

    def _restored(self):
        state = self.program.initial_state(self.experiments)
        if not self.checkpoint.exists():
            return 0, state
        with np.load(self.checkpoint) as stored:
            results = json.loads(str(stored["results"]))
            leaves = [jnp.asarray(stored[str(k)]) for k in range(len(jax.tree.leaves(state)))]
        self.results = results
        self.seconds_before = results[0]["provenance"]["seconds"]
        return results[0]["step"][-1], jax.tree.unflatten(jax.tree.structure(state), leaves)

    def train(self, processes=0, verbose=False, seconds=None):
        self.folder.mkdir(parents=True, exist_ok=True)
        draws = _Draws(self.experiments, np.asarray(self.data.labels["train"]))
        starts = range(self.done, self.steps, self.per_call)
        counts, evaluated = [], None
        with draws.of_calls(starts, self.per_call, processes) as of_calls:
            self.compile()
            for indices, codes in of_calls:
                if len(counts) > 1:
                    jax.block_until_ready(counts[-2])  # Two calls at most are under way.
                arguments = self._step_arguments(indices, codes)
                self.state, correct = self.train_steps(self.state, *arguments)
                counts.append(correct)
                self.done += self.per_call
                if self.done % self.per_evaluation:
                    continue
                seen = self.per_evaluation * self.experiments[0].batch_size
                self._record("train_accuracy", sum(np.asarray(x, "int64") for x in counts) / seen)
                self._evaluate(verbose)
                counts.clear()
                now = time.time() - self.start
                took, evaluated = now - (evaluated or 0.0), now
                if self.done < self.steps and seconds is not None and now + took > seconds:
                    return self.results
        self.checkpoint.unlink(missing_ok=True)
        return self.results

    def compile(self):
        """Compiles all programs at the same time, since each takes long."""
        if self.train_steps is not None:
            return
        shape = self.per_call, len(self.experiments), self.experiments[0].batch_size
        arguments = self._step_arguments(np.zeros(shape, "int32"), np.zeros(shape, "uint8"))
        lowered = {"steps": Runs._train_steps.lower(self, self.state, *arguments)}
        self.evaluations = self._evaluations()
        weights = self.program.weights_for_inference(self.state)
        for evaluation in self.evaluations:
            if evaluation.program not in lowered:
                lowered[evaluation.program] = evaluation.lowered(weights)
        with concurrent.futures.ThreadPoolExecutor(len(lowered)) as pool:
            compiled = pool.map(lambda program: program.compile(), lowered.values())
            self.compiled = dict(zip(lowered, compiled, strict=True))
        self.train_steps = self.compiled.pop("steps")

    def _step_arguments(self, indices, codes):
        pixels, labels = self.pixels["train"], self.labels["train"]
        return np.int32(self.done), indices, codes, pixels, labels

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _train_steps(self, state, first_step, indices, codes, pixels, labels):
        """As many steps as there are indices. Returns the state, and the correct, (runs,)."""

        def step(carry, drawn):
            state, step, total = carry
            indices, codes = drawn
            x = vary(pixels, indices.reshape(-1), codes.reshape(-1), self.data.flip)
            x = as_floats(x).reshape(*indices.shape, *x.shape[1:])
            train_step = jax.vmap(self.program.train_step, (0, None, 0, 0))
            state, correct = train_step(state, step, x, labels[indices])
            return (state, step + 1, total + correct), None

        total = jnp.zeros(len(self.experiments), "int32")
        (state, _, total), _ = jax.lax.scan(step, (state, first_step, total), (indices, codes))
        return state, total

    def _evaluate(self, verbose):
        for result in self.results:
            result["step"].append(self.done)
        weights = self.program.weights_for_inference(self.state)
        for evaluation in self.evaluations:
            correct = self.compiled[evaluation.program](*evaluation.arguments(weights))
            accuracy = np.asarray(correct, "int64") / evaluation.count
            self._record(evaluation.curve, accuracy, evaluation.runs)
        self._write()
        if verbose:
            accuracies = ", ".join(f"{x['name']} {x['accuracy'][-1]:.4f}" for x in self.results)
            print(f"step {self.done}, {time.time() - self.start:.0f} s: {accuracies}", flush=True)

    def _evaluations(self):
        """List of `_Evaluation`."""
        network, evaluations = self.program.network, []
        every = np.arange(len(self.experiments))
        parts = {
            "accuracy": ("validation", np.arange(len(self.labels["validation"]))),
            "train_image_accuracy": ("train", fixed_training_images(self.data)),
        }
        for curve, (part, chosen) in parts.items():
            batches = padded(np.arange(len(chosen)), min(_IMAGES_AT_ONCE, len(chosen)))
            images = self.pixels[part][chosen], self.labels[part][chosen]
            evaluations.append(_Evaluation(curve, every, network, False, *images, batches))
        images = self.pixels["validation"], self.labels["validation"]
        for images_per_label in {run.images_per_label for run in self.experiments} - {None}:
            runs = np.array([k for k in every if self._has_batch_accuracy(k, images_per_label)])
            if len(runs):
                network, batches = self._test_minibatches(images_per_label)
                evaluations.append(
                    _Evaluation("batch_accuracy", runs, network, True, *images, batches)
                )
        return evaluations

    def _has_batch_accuracy(self, k, images_per_label):
        run = self.experiments[k]
        held = run.normalization == "batch_renorm" and (run.r_max, run.d_max) == (1.0, 0.0)
        batchnorm = run.normalization == "batchnorm" or held
        return batchnorm and run.images_per_label == images_per_label

    def _test_minibatches(self, images_per_label):
        """The network for minibatches of test images, and their indices, (batches, images): see
        `keras_brn.paper.training.evaluation.TestMinibatchAccuracy`."""
        labels = np.asarray(self.data.labels["validation"])
        group = 50 // images_per_label * images_per_label
        groups = max(1, len(labels) // group)
        at_once = min(max(1, _IMAGES_AT_ONCE // group), groups)
        network = build_network(self.experiments[0], self.data, group)
        network = with_convolutions(network, type(self.program.network.layers[1]))
        sampler = Sampler(labels, at_once * group, 0, group, images_per_label)
        steps = range(max(1, groups // at_once))
        return network, np.stack([sampler.draw(step)[0] for step in steps])

    def _record(self, curve, values, runs=None):
        runs = range(len(self.results)) if runs is None else runs
        for k, value in zip(runs, values, strict=True):
            self.results[k].setdefault(curve, []).append(round(float(value), 5))

    def _write(self):
        seconds = round(self.seconds_before + time.time() - self.start, 1)
        for run, result in zip(self.experiments, self.results, strict=True):
            result["provenance"]["seconds"] = seconds
            write_json(result_path(run, self.data.name, self.folder), result)
        leaves = {str(k): np.asarray(x) for k, x in enumerate(jax.tree.leaves(self.state))}
        write_arrays(self.checkpoint, {"results": np.array(json.dumps(self.results)), **leaves})


def padded(indices, size):
    """(batches, size) with -1 where there is none."""
    return np.pad(indices, (0, -len(indices) % size), constant_values=-1).reshape(-1, size)


class _Evaluation(NamedTuple):
    """A curve of some of the runs, by the averages of their weights.

    Attributes:
        curve: Its name in the results.
        runs: Integers: which of the runs.
        network: `keras.Model`.
        training: Whether to normalize as in training.
        pixels: uint8 (all, height, width, channels).
        labels: Integers (all,).
        batches: Integers (batches, images): which of them are classified together; -1: none.
    """

    curve: str
    runs: Any
    network: Any
    training: bool
    pixels: Any
    labels: Any
    batches: Any

    @property
    def count(self):
        """The number of images that are classified."""
        return np.sum(self.batches >= 0)

    @property
    def program(self):
        """What tells the programs of evaluations apart."""
        shapes = self.runs.shape, self.pixels.shape, self.batches.shape
        return id(self.network), self.training, *shapes

    def arguments(self, weights):
        """Of the program, from the weights of all runs."""
        return weights, self.runs, self.pixels, self.labels, self.batches

    def lowered(self, weights):
        return count_correct.lower(self.network, self.training, *self.arguments(weights))


@functools.partial(jax.jit, static_argnums=(0, 1))
def count_correct(network, training, weights, runs, pixels, labels, batches):
    """How many of the images are classified correctly by each run, (runs,).

    Args:
        network: `keras.Model`.
        training: Whether to normalize as in training.
        weights: `(trainable, others)` of the network, with an axis of all runs.
        runs: Integers: which of the runs.
        pixels: uint8 (all, height, width, channels).
        labels: Integers (all,).
        batches: Integers (batches, images): which of them are classified together; -1: none.
    """
    weights = jax.tree.map(lambda x: x[runs], weights)

    def of_batch(indices):
        x = as_floats(pixels[indices])
        x = jnp.broadcast_to(x, (len(runs), *x.shape))
        y = jnp.where(indices < 0, -1, labels[indices])
        logits, _ = jax.vmap(
            lambda weights, x: network.stateless_call(*weights, x, training=training)
        )(weights, x)
        return jax.vmap(lambda logits: correct(logits, y))(logits)

    return jnp.sum(jax.lax.map(of_batch, batches), 0)


def main():
    programs = figure_3_paper_length()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-imagenet", type=Path, required=True, help="zip, tar or folder")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--processes", type=int, default=0, help="that draw the images")
    parser.add_argument(
        "--seconds", type=float, help="time limit of each program; a later call goes on from there"
    )
    parser.add_argument(
        "--programs",
        type=int,
        nargs="+",
        default=list(range(len(programs))),
        choices=range(len(programs)),
        help="which of those of `figure_3_paper_length`",
    )
    options = parser.parse_args()
    data = load_tiny_imagenet(options.tiny_imagenet)
    folder = options.results / "on_device"
    for k in options.programs:
        train_on_device(
            programs[k], data, folder, processes=options.processes, seconds=options.seconds
        )


if __name__ == "__main__":
    main()
