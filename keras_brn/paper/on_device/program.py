"""A training step of one run, which the program maps over all of them."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.convolution import with_convolutions
from keras_brn.paper.training.network import compiled_model
from keras_brn.ramp import LinearRamp


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
        give_bounds(network, experiment)
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


def give_bounds(network, experiment):
    """Gives the layers the bounds of an experiment, and the ramp, as `RenormSchedule` does."""
    counts = experiment.warmup_steps, experiment.r_max_steps, experiment.d_max_steps
    for layer in network.layers:
        if isinstance(layer, BatchRenormalization):
            layer.set_schedule(None)
            layer.set_bounds(experiment.r_max, experiment.d_max)
            layer.set_schedule(LinearRamp(*counts) if experiment.r_max_steps > 0 else None)


def correct(logits, labels):
    """How many images are classified correctly."""
    return jnp.sum(jnp.argmax(logits, -1) == labels)
