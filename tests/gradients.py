"""A training step of one layer, with gradients, in the terms of each backend."""

import keras
import numpy as np
from keras import ops


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

    def _step(layer, x, dy, mask):
        def forward(x, trainable):
            state = [weight.value for weight in layer.non_trainable_variables]
            return layer.stateless_call(trainable, state, x, training=True, mask=mask)

        trainable = [weight.value for weight in layer.trainable_variables]
        y, pull_back, state = jax.vjp(forward, x, trainable, has_aux=True)
        for weight, value in zip(layer.non_trainable_variables, state, strict=True):
            weight.assign(value)
        dx, dweights = pull_back(jax.numpy.asarray(dy, y.dtype))
        return y, [dx, *dweights]

elif keras.backend.backend() == "torch":
    import torch

    def _step(layer, x, dy, mask):
        x.requires_grad_(True)
        y = layer(x, training=True, mask=mask)
        weights = [weight.value for weight in layer.trainable_variables]
        dy = torch.as_tensor(np.asarray(dy)).to(y.dtype)
        return y, torch.autograd.grad(y, [x, *weights], dy)
