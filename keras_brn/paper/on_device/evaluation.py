"""Accuracies of all runs, by the averages of their weights."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from keras_brn.paper.data.images import as_floats
from keras_brn.paper.on_device.program import correct


def padded(indices, size):
    """(batches, size) with -1 where there is none."""
    return np.pad(indices, (0, -len(indices) % size), constant_values=-1).reshape(-1, size)


class Evaluation(NamedTuple):
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
