"""What is computed in a training step of one run, in JAX; many runs are one `jax.vmap` of it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_brn.paper.convolution import PatchConv2D, with_convolutions
from keras_brn.paper.on_device.program import correct
from keras_brn.paper.small_batches.network import build_network, renorm_layers_of, set_bounds
from keras_brn.statistics import StatisticsScope, mean_over_groups


class Settings(NamedTuple):
    """What differs between the runs of a program, besides their state: numbers."""

    learning_rate: Any
    steps_per_update: Any
    alpha: Any

    @classmethod
    def of(cls, run):
        return cls(run.learning_rate, run.steps_per_update, 1.0 - run.momentum)


class State(NamedTuple):
    """What training changes: lists of arrays.

    `gradients` are sums since the last update, and `squares` averages of sigma squared: those of
    the variance plus epsilon, from which batchnorm infers.
    """

    trainable: list
    others: list
    optimizer: list
    gradients: list
    squares: list


class _Moving(StatisticsScope):
    """Moves the averages of the layers by the `alpha` of a run, and keeps each sigma of the
    minibatch, by the `id` of the variable of its average."""

    def __init__(self, alpha):
        self.alpha, self.sigmas = alpha, {}

    def receive(self, averages, errors, valid, momentum):
        errors = mean_over_groups(errors, valid, averages[0].shape[0])
        self.sigmas[id(averages[1])] = averages[1].value + errors[1]
        for average, error in zip(averages, errors, strict=True):
            average.assign_add(self.alpha * error)


class _Measured(StatisticsScope):
    """Keeps the mean and the squared sigma of each layer, and moves nothing."""

    def __init__(self):
        self.means, self.squares = {}, {}

    def receive(self, averages, errors, valid, momentum):
        errors = mean_over_groups(errors, valid, averages[0].shape[0])
        key = id(averages[1])
        self.means[key] = averages[0].value + errors[0]
        self.squares[key] = jnp.square(averages[1].value + errors[1])


class Program:
    """The network of some runs, and what is done with it.

    Args:
        run: A `SmallBatchRun`.
        data: `Images`.
        convolution: Class of the convolutions.
    """

    def __init__(self, run, data, convolution=PatchConv2D):
        self.run, self.data, self.convolution = run, data, convolution
        self.network = with_convolutions(build_network(run, data), convolution)
        self.optimizer = keras.optimizers.Adam()
        self.optimizer.build(self.network.trainable_variables)
        names = [variable.name for variable in self.optimizer.variables]
        self._rate = names.index("learning_rate")
        index = {id(x): k for k, x in enumerate(self.network.non_trainable_variables)}
        layers = renorm_layers_of(self.network)
        self._keys = [id(layer.moving_stddev) for layer in layers]
        self.means = [index[id(layer.moving_mean)] for layer in layers]
        self.sigmas = [index[id(layer.moving_stddev)] for layer in layers]
        self._epsilons = [layer.epsilon for layer in layers]

    def initial_state(self, runs):
        """The `State` that runs begin with, with an axis of the runs."""
        networks = {}
        for seed in {run.seed for run in runs}:
            keras.utils.set_random_seed(seed)
            networks[seed] = build_network(self.run, self.data)
        states = [self._initial_state(networks[run.seed], run) for run in runs]
        return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *states)

    def _initial_state(self, network, run):
        set_bounds(network, run)
        trainable, others = (
            [np.asarray(variable.value) for variable in variables]
            for variables in (network.trainable_variables, network.non_trainable_variables)
        )
        optimizer = [np.asarray(variable.value) for variable in self.optimizer.variables]
        gradients = [np.zeros_like(variable) for variable in trainable]
        squares = [
            np.full_like(others[k], 1.0 + epsilon)
            for k, epsilon in zip(self.sigmas, self._epsilons, strict=True)
        ]
        return State(trainable, others, optimizer, gradients, squares)

    def train_step(self, state, settings, step, steps, images, labels):
        """A training step.

        Args:
            state: `State`.
            settings: `Settings`.
            step: Integer, the number of steps completed.
            steps: Integer, that of the whole run.
            images: Floats in [-1, 1] (batch, height, width, channels).
            labels: Integers (batch,).

        Returns:
            The next `State`, and the number of images that were classified correctly.
        """

        def loss(trainable):
            with _Moving(settings.alpha) as moving:
                logits, others = self.network.stateless_call(
                    trainable, state.others, images, training=True
                )
            losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            return jnp.mean(losses), (others, self._in_order(moving.sigmas), logits)

        gradients, (others, sigmas, logits) = jax.grad(loss, has_aux=True)(state.trainable)
        gradients = jax.tree.map(jnp.add, state.gradients, gradients)
        squares = [
            square + settings.alpha * (sigma**2 - square)
            for square, sigma in zip(state.squares, sigmas, strict=True)
        ]
        cosine = 0.5 * (1.0 + jnp.cos(math.pi * step / steps))
        optimizer = list(state.optimizer)
        optimizer[self._rate] = settings.learning_rate * cosine
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, [x / settings.steps_per_update for x in gradients], state.trainable
        )
        update = (step + 1) % settings.steps_per_update == 0
        weights = trainable, optimizer, [jnp.zeros_like(x) for x in gradients]
        before = state.trainable, state.optimizer, gradients
        trainable, optimizer, gradients = jax.tree.map(
            lambda new, old: jnp.where(update, new, old), weights, before
        )
        return State(trainable, others, optimizer, gradients, squares), correct(logits, labels)

    def measure(self, weights, images):
        """The mean, the square of the mean, and sigma squared of each layer, in training.

        Args:
            weights: `(trainable, others)`.
            images: Floats in [-1, 1] (batch, height, width, channels).
        """
        with _Measured() as measured:
            self.network.stateless_call(*weights, images, training=True)
        means, squares = self._in_order(measured.means), self._in_order(measured.squares)
        return means, [mean**2 for mean in means], squares

    def _in_order(self, of_layers):
        return [of_layers[key] for key in self._keys]

    def with_statistics(self, others, sigmas, means=None):
        """The weights that are not trained, with other averages for inference."""
        others = list(others)
        for k, sigma in zip(self.sigmas, sigmas, strict=True):
            others[k] = sigma
        for k, mean in zip(self.means, means or (), strict=means is not None):
            others[k] = mean
        return others
