"""The runs of a program, from their beginning or their checkpoint on."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_brn.paper.convolution import PatchConv2D, with_convolutions
from keras_brn.paper.data.files import write_arrays
from keras_brn.paper.data.images import as_floats
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.on_device.correction import Correction
from keras_brn.paper.on_device.drawing import Draws
from keras_brn.paper.on_device.evaluation import Evaluation, padded
from keras_brn.paper.on_device.images import vary
from keras_brn.paper.on_device.program import Program
from keras_brn.paper.records import describe_images, provenance, write_json
from keras_brn.paper.training.evaluation import fixed_training_images
from keras_brn.paper.training.files import completed_result, result_path, run_config
from keras_brn.paper.training.network import build_network

# What may differ between the runs of one program: what they see; and of Batch Renorm the bounds.
_OF_EACH_RUN = {"name", "images_per_label", "draw", "seed"}
_BOUNDS = {"r_max", "d_max", "warmup_steps", "r_max_steps", "d_max_steps"}
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
    the same images, variations and protocol; results are in the same format. Several steps are one
    call, the images lie in the memory of the device, and the weights of all runs have an axis of
    the runs. In a program of Batch Renorm, a run with `r_max=1`
    and `d_max=0` is batchnorm in training; in inference it uses averages of sigma where batchnorm
    uses averages of the variance.

    The results are written to `folder` at every evaluation, beside a checkpoint of all runs. A
    call that was cut off goes on from there.

    Args:
        experiments: List of `Experiment`, one of those that `programs` returns.
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


def programs(experiments):
    """Lists of the experiments that one program can train: they differ in nothing but `name`,
    `images_per_label`, `draw`, `seed` and, with Batch Renorm, the bounds and their ramp."""
    together = {}
    for run in experiments:
        together.setdefault(tuple(_alike(run).items()), []).append(run)
    return list(together.values())


def _alike(experiment):
    """Dict of what all runs of its program have in common."""
    own = _OF_EACH_RUN
    if experiment.normalization == "batch_renorm":
        own = own | _BOUNDS
    return {
        name: value for name, value in dataclasses.asdict(experiment).items() if name not in own
    }


def _check(experiments):
    if keras.backend.backend() != "jax":
        raise ValueError(f"The backend must be 'jax'. Received: {keras.backend.backend()!r}")
    first = experiments[0]
    for other in map(_alike, experiments):
        for name, value in _alike(first).items():
            if other.get(name) != value:
                raise ValueError(
                    f"`experiments` must have the same `{name}`. "
                    f"Received: {value!r} and {other.get(name)!r}"
                )
    if first.steps % first.evaluations or first.batch_size % first.group:
        raise ValueError(
            "`evaluations` must divide `steps`, and `group` must divide `batch_size`. Received: "
            f"evaluations={first.evaluations}, steps={first.steps}, group={first.group}, "
            f"batch_size={first.batch_size}"
        )


class Runs:
    """The runs of a program, from the beginning or from their checkpoint to the end.

    Args: as of `train_on_device`.
    """

    def __init__(self, experiments, data, folder, steps_at_once=500, convolution=PatchConv2D):
        self.experiments, self.data, self.folder = experiments, data, Path(folder)
        first = experiments[0]
        self.program, self.correction = Program(first, data, convolution), None
        if first.normalization == "batch_renorm":
            self.correction = Correction(experiments, data, self.program.model)
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
        draws = Draws(self.experiments, np.asarray(self.data.labels["train"]))
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
        if self.correction is not None:
            self.correction.record(self.state, self.results)
        self._write()
        if verbose:
            accuracies = ", ".join(f"{x['name']} {x['accuracy'][-1]:.4f}" for x in self.results)
            print(f"step {self.done}, {time.time() - self.start:.0f} s: {accuracies}", flush=True)

    def _evaluations(self):
        """List of `Evaluation`."""
        network, evaluations = self.program.network, []
        every = np.arange(len(self.experiments))
        parts = {
            "accuracy": ("validation", np.arange(len(self.labels["validation"]))),
            "train_image_accuracy": ("train", fixed_training_images(self.data)),
        }
        for curve, (part, chosen) in parts.items():
            batches = padded(np.arange(len(chosen)), min(_IMAGES_AT_ONCE, len(chosen)))
            images = self.pixels[part][chosen], self.labels[part][chosen]
            evaluations.append(Evaluation(curve, every, network, False, *images, batches))
        images = self.pixels["validation"], self.labels["validation"]
        for images_per_label in {run.images_per_label for run in self.experiments} - {None}:
            runs = np.array([k for k in every if self._has_batch_accuracy(k, images_per_label)])
            if len(runs):
                network, batches = self._test_minibatches(images_per_label)
                evaluations.append(
                    Evaluation("batch_accuracy", runs, network, True, *images, batches)
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
