"""Runs of Figure 6, many at once in one program of JAX."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_brn.paper.convolution import PatchConv2D
from keras_brn.paper.data.images import as_floats
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.on_device.evaluation import count_correct, padded
from keras_brn.paper.on_device.images import encoded, vary
from keras_brn.paper.records import provenance, read_json, write_json
from keras_brn.paper.small_batches.program import Program, Settings
from keras_brn.paper.training.evaluation import fixed_choice

_IMAGES_PER_CALL = 4_000  # At most.
_IMAGES_AT_ONCE = 100  # In inference.


def train_small_batches(runs, data, choices, folder, convolution=PatchConv2D, verbose=True):
    """Trains runs at once and stores their accuracies, unless they are stored.

    Args:
        runs: List of `SmallBatchRun` that one program can train: see `groups_of_runs`.
        data: `Images`; its validation images are the test set, by which nothing is chosen.
        choices: Pair of images and labels, those by which learning rates are chosen.
        folder: Where the results are stored, one file for all runs.
        convolution: Class of the convolutions, a `keras.layers.Conv2D`.
        verbose: Whether to print what is under way.

    Returns:
        Dict of `runs`, a list of dicts, the attributes of each run with its accuracies; and
        `provenance`. The accuracies are shares of the images, by the weights at the end: in
        training (`minibatches`), of `training` images one by one, of those for `choices`, and of
        the `test` set. With `recomputed_` before them the statistics for inference are those of
        the training images, in minibatches like those of training.

    Raises:
        ValueError: If the backend is not JAX, or the stored runs are others.
    """
    if keras.backend.backend() != "jax":
        raise ValueError(f"The backend must be 'jax'. Received: {keras.backend.backend()!r}")
    path = Path(folder) / f"{_file_name(runs, data)}.json"
    described = [asdict(run) for run in runs]
    if path.exists():
        result = read_json(path)
        stored = [{key: run[key] for key in described[0]} for run in result["runs"]]
        if stored != described:
            raise ValueError(f"`{path}` is of other runs: remove it, or choose another folder.")
        return result
    start = time.time()
    accuracies = Training(runs, data, choices, convolution, verbose).accuracies()
    result = {
        "data": data.name,
        "runs": [{**run, **accuracy} for run, accuracy in zip(described, accuracies, strict=True)],
        "provenance": {**provenance(data), "seconds": round(time.time() - start, 1)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    return result


def _file_name(runs, data):
    kinds = {"group_norm" if run.method == "group_norm" else "batch_renorm" for run in runs}
    changed = "" if len({(run.momentum, run.ramp) for run in runs}) == 1 else "-momentum"
    first = runs[0]
    return f"{data.name}-{first.images_per_step}of{first.images_seen}-{'_'.join(kinds)}{changed}"


class Training:
    """Runs from the beginning to the end.

    Args: as of `train_small_batches`.
    """

    def __init__(self, runs, data, choices, convolution=PatchConv2D, verbose=False):
        self.runs, self.data, self.verbose = runs, data, verbose
        self.per_step = runs[0].images_per_step
        self.program = Program(runs[0], data, convolution)
        self.state = self.program.initial_state(runs)
        settings = [Settings.of(run) for run in runs]
        self.settings = Settings(*(jnp.asarray(x) for x in zip(*settings, strict=True)))
        self.seeds = sorted({run.seed for run in runs})
        self.seed_of_run = np.array([self.seeds.index(run.seed) for run in runs])
        self.parts = {
            "training": (data.train_images, data.train_labels),
            "choices": choices,
            "test": (data.validation_images, data.validation_labels),
        }

    def accuracies(self):
        """List of dicts, one per run: see `train_small_batches`."""
        accuracies = {"minibatches": self.train()}
        accuracies |= self._evaluate(self.weights_for_inference())
        if self.state.squares:
            recomputed = self._evaluate(self.recomputed_weights())
            accuracies |= {f"recomputed_{name}": x for name, x in recomputed.items()}
        return [
            {name: round(float(values[k]), 5) for name, values in accuracies.items()}
            for k in range(len(self.runs))
        ]

    def train(self):
        """The accuracies of the runs in the last minibatches of training."""
        steps = self.runs[0].steps
        most = max(1, _IMAGES_PER_CALL // self.per_step)
        per_call = max(n for n in range(1, most + 1) if steps % n == 0)
        images = per_call * self.per_step
        pixels = jnp.asarray(self.data.train_images)
        labels = jnp.asarray(self.data.train_labels, "int32")
        samplers = [Sampler(self.data.train_labels, images, seed) for seed in self.seeds]

        def draw(call):
            return [sampler.draw(call) for sampler in samplers]

        start = time.time()
        with ThreadPoolExecutor(1) as pool:
            for call, drawn in enumerate(pool.map(draw, range(steps // per_call))):
                shape = len(self.seeds), per_call, self.per_step
                indices = np.stack([x for x, _ in drawn]).astype("int32").reshape(shape)
                codes = np.stack([encoded(x) for _, x in drawn]).reshape(shape)
                drawn = [x.swapaxes(0, 1)[:, self.seed_of_run] for x in (indices, codes)]
                counts = np.int32(call * per_call), np.int32(steps)
                self.state, correct = self._steps(
                    self.state, self.settings, *counts, *drawn, pixels, labels
                )
                last = np.asarray(correct, "int64") / images
                if self.verbose:
                    print(
                        f"{self.data.name}, {self.per_step} images a step: {(call + 1) * images} "
                        f"images, {time.time() - start:.1f} s, accuracy up to {last.max():.3f}",
                        flush=True,
                    )
        return last

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _steps(self, state, settings, first, steps, indices, codes, pixels, labels):
        """As many steps as there are indices, (steps, runs, batch)."""

        def step(carry, drawn):
            state, step, total = carry
            x = self._images(*drawn, pixels)
            train_step = jax.vmap(self.program.train_step, (0, 0, None, None, 0, 0))
            state, count = train_step(state, settings, step, steps, x, labels[drawn[0]])
            return (state, step + 1, total + count), None

        total = jnp.zeros(len(self.runs), "int32")
        (state, _, total), _ = jax.lax.scan(step, (state, first, total), (indices, codes))
        return state, total

    def _images(self, indices, codes, pixels):
        x = vary(pixels, indices.reshape(-1), codes.reshape(-1), self.data.flip)
        return as_floats(x).reshape(*indices.shape, *x.shape[1:])

    def weights_for_inference(self):
        """`(trainable, others)`, with an axis of the runs. Batchnorm infers from averages of the
        variance, Batch Renorm from those of sigma."""
        batchnorm = np.array([run.method.startswith("batchnorm") for run in self.runs])
        sigmas = [
            jnp.where(batchnorm[:, None], jnp.sqrt(square), self.state.others[k])
            for k, square in zip(self.program.sigmas, self.state.squares, strict=True)
        ]
        return self.state.trainable, self.program.with_statistics(self.state.others, sigmas)

    def recomputed_weights(self):
        """`(trainable, others)`, with the mean and the variance of all pixels of up to 10,000
        training images, as the layers see them in minibatches of training."""
        count = min(10_000, len(self.data.train_labels)) // self.per_step * self.per_step
        order = np.random.default_rng(0).permutation(len(self.data.train_labels))[:count]
        batches = order.reshape(-1, self.per_step).astype("int32")
        weights = self.state.trainable, self.state.others
        pixels = jnp.asarray(self.data.train_images)
        means, squared_means, squares = self._measured(weights, batches, pixels)
        sigmas = [
            jnp.sqrt(jnp.maximum(square + squared - mean**2, 1e-6))
            for mean, squared, square in zip(means, squared_means, squares, strict=True)
        ]
        return self.state.trainable, self.program.with_statistics(self.state.others, sigmas, means)

    @functools.partial(jax.jit, static_argnums=0)
    def _measured(self, weights, batches, pixels):
        """The means over batches (batches, images) of what `Program.measure` returns."""

        def measure(indices):
            x = as_floats(pixels[indices])
            return jax.vmap(self.program.measure, (0, None))(weights, x)

        def add(sums, indices):
            return jax.tree.map(jnp.add, sums, measure(indices)), None

        shapes = jax.eval_shape(measure, batches[0])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        sums, _ = jax.lax.scan(add, zeros, batches)
        return jax.tree.map(lambda x: x / len(batches), sums)

    def _evaluate(self, weights):
        accuracies, runs = {}, np.arange(len(self.runs))
        for name, (pixels, labels) in self.parts.items():
            chosen = fixed_choice(len(labels))
            batches = padded(np.arange(len(chosen)), min(_IMAGES_AT_ONCE, len(chosen)))
            images = jnp.asarray(pixels[chosen]), jnp.asarray(labels[chosen], "int32")
            correct = count_correct(self.program.network, False, weights, runs, *images, batches)
            accuracies[name] = np.asarray(correct, "int64") / len(chosen)
        return accuracies
