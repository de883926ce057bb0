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
    module = _KERNELS.get(keras.backend.backend())
    if module is None:
        return Normalization(x, axis, microbatch_size, mask)
    return importlib.import_module(module).normalization_of(x, axis, microbatch_size, mask)
