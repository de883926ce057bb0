"""The arithmetic of the layer in training, by the fastest kernels that the backend has."""

import importlib

import keras

from keras_brn.kernels.normalization import Normalization

_KERNELS = {
    "jax": "keras_brn.kernels.jax",
    "tensorflow": "keras_brn.kernels.tensorflow",
    "torch": "keras_brn.kernels.torch",
}
# Here and not when a layer is called, where `torch.compile` would stop at the import.
_module = _KERNELS.get(keras.backend.backend())
_kernels = None if _module is None else importlib.import_module(_module)


def normalization_of(x, axis, microbatch_size=None, mask=None):
    """The fastest `Normalization` for `x`; arguments as there."""
    make = Normalization if _kernels is None else _kernels.normalization_of
    return make(x, axis, microbatch_size, mask)


def compiled(function):
    """`function` of tensors, compiled where the backend can, for calls outside of training."""
    return function if _kernels is None else _kernels.compiled(function)


def kept(x):
    """`x`, which depends on weights that the layer moves, as the backward pass must have it."""
    return _kernels.kept(x) if keras.backend.backend() == "torch" else x
