"""A training step of one layer, with gradients, in the terms of each backend."""

import functools

import keras
import numpy as np
from keras import ops

from keras_brn.kernels import Normalization


class Autodiff(Normalization):
    """The plain form, which leaves every derivative to the backend."""

    def normalize(self, x, mean, variance, scale, offset, epsilon):
        x = self._cut(x)
        centered = (x - self._of_each(mean)) / self._of_each(ops.sqrt(variance + epsilon))
        y = centered * self._of_each(scale) + self._of_each(offset)
        return y if self._cut_shape is None else ops.reshape(y, self._whole)

    def __init__(self, x, *arguments):
        super().__init__(x, *arguments)
        self._whole = ops.shape(x)


def training_step(layer, x, dy, mask=None):
    """Calls the layer in training mode, which moves its state, and pulls `dy` back.

    Returns NumPy arrays: y, dx, and the gradients of the trainable weights.
    """
    x = ops.convert_to_tensor(x, layer.compute_dtype)
    layer.built or layer.build(x.shape)
    y, gradients = _step(layer, x, dy, mask)
    return [np.asarray(ops.convert_to_numpy(value), "float64") for value in (y, *gradients)]


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    def _step(layer, x, dy, mask):
        weights = [weight.value for weight in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
        return y, tape.gradient(y, [x, *weights], output_gradients=tf.cast(dy, y.dtype))

elif keras.backend.backend() == "jax":
    import jax

    @functools.partial(jax.jit, static_argnums=0)
    def _compiled_step(layer, trainable, state, x, dy, mask):
        def forward(x, trainable):
            return layer.stateless_call(trainable, state, x, training=True, mask=mask)

        y, pull_back, state = jax.vjp(forward, x, trainable, has_aux=True)
        return y, pull_back(jax.numpy.asarray(dy, y.dtype)), state

    def _step(layer, x, dy, mask):
        trainable, state = (
            [weight.value for weight in weights]
            for weights in (layer.trainable_variables, layer.non_trainable_variables)
        )
        y, (dx, dweights), state = _compiled_step(layer, trainable, state, x, dy, mask)
        for weight, value in zip(layer.non_trainable_variables, state, strict=True):
            weight.assign(value)
        return y, [dx, *dweights]

elif keras.backend.backend() == "torch":
    import torch

    def _step(layer, x, dy, mask):
        x.requires_grad_(True)
        y = layer(x, training=True, mask=mask)
        weights = [weight.value for weight in layer.trainable_variables]
        dy = torch.as_tensor(np.asarray(dy)).to(y)
        return y, torch.autograd.grad(y, [x, *weights], dy)


def second_derivatives(layer, x, weights):
    """The gradient by `x` of `sum(weights * (d sum(weights * sin(y)) / dx)**2)`, a NumPy array."""
    layer.build(x.shape)
    x, weights = (ops.convert_to_tensor(np.asarray(a, "float32")) for a in (x, weights))
    return np.asarray(ops.convert_to_numpy(_second_derivatives(layer, x, weights)))


def _loss(values, weights):
    return ops.sum(weights * values)


if keras.backend.backend() == "tensorflow":

    @tf.function
    def _second_derivatives(layer, x, weights):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = _loss(ops.sin(layer(x, training=True)), weights)
            penalty = _loss(tape.gradient(loss, x) ** 2, weights)
        return outer.gradient(penalty, x)

elif keras.backend.backend() == "jax":

    @functools.partial(jax.jit, static_argnums=0)
    def _second_derivatives(layer, x, weights):
        state = [
            [w.value for w in ws]
            for ws in (layer.trainable_variables, layer.non_trainable_variables)
        ]

        def loss(x):
            return _loss(ops.sin(layer.stateless_call(*state, x, training=True)[0]), weights)

        return jax.grad(lambda x: _loss(jax.grad(loss)(x) ** 2, weights))(x)

elif keras.backend.backend() == "torch":

    def _second_derivatives(layer, x, weights):
        x.requires_grad_(True)
        loss = _loss(ops.sin(layer(x, training=True)), weights)
        (dx,) = torch.autograd.grad(loss, x, create_graph=True)
        (ddx,) = torch.autograd.grad(_loss(dx**2, weights), x)
        return ddx.detach()
