"""The arithmetic of the layer in training, by the fastest kernels that the backend has."""

import importlib

import keras

from keras_brn.kernels.normalization import Normalization

_KERNELS = {
    "jax": "keras_brn.kernels.jax",
    "tensorflow": "keras_brn.kernels.tensorflow",
    "torch": "keras_brn.kernels.torch",
}


def normalization_of(x, axis, microbatch_size=None, mask=None):
    """The fastest `Normalization` for `x`; arguments as there."""
    kernels = _kernels()
    make = Normalization if kernels is None else kernels.normalization_of
    return make(x, axis, microbatch_size, mask)


def compiled(function):
    """`function` of tensors, compiled where the backend can, for calls outside of training."""
    kernels = _kernels()
    return function if kernels is None else kernels.compiled(function)


def _kernels():
    module = _KERNELS.get(keras.backend.backend())
    return None if module is None else importlib.import_module(module)
