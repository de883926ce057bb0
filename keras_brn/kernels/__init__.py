"""The arithmetic of the layer in training, by the fastest kernels that the backend has."""

import importlib

import keras
from keras import ops

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
    return x


def like(variable, x):
    """The value of a variable, in the type of the tensor `x`."""
    return ops.convert_to_tensor(variable, x.dtype)


def for_each_group(weight, moments):
    """`weight`, once for each group of the `moments` where that is faster, else as it is; either
    broadcasts with them."""
    return weight


def reshaped(x, shape):
    return ops.reshape(x, shape)


def cast(x, dtype):
    return ops.cast(x, dtype)


def sum_over(x, axis):
    return ops.sum(x, axis)


def sqrt(x):
    return ops.sqrt(x)


def isfinite(x):
    return ops.isfinite(x)


def clip(x, low, high):
    """`x`, but not below `low` and not above `high`, numbers or tensors."""
    return ops.clip(x, low, high)


def zero_unless(valid, x):
    """`x` where `valid` is `True`, else 0, also in the place of a NaN."""
    return ops.where(valid, x, ops.zeros_like(x))


def known_to_hold(valid):
    """Whether all of a boolean tensor is `True`, if that is known at once."""
    return False


def add_share(variable, x, share):
    """Adds `share`, a number, of a tensor to a variable."""
    variable.assign_add(share * ops.convert_to_tensor(x, variable.dtype))


stop_gradient = ops.stop_gradient

if keras.backend.backend() == "jax":
    for_each_group, sum_over = _kernels.for_each_group, _kernels.sum_over

if keras.backend.backend() == "torch":  # It runs each call by itself, those of Keras as well.
    kept, like, reshaped, clip = _kernels.kept, _kernels.like, _kernels.reshaped, _kernels.clip
    cast, sum_over = _kernels.cast, _kernels.sum_over
    sqrt, isfinite = _kernels.sqrt, _kernels.isfinite
    zero_unless, known_to_hold = _kernels.zero_unless, _kernels.known_to_hold
    add_share = _kernels.add_share
    stop_gradient = _kernels.stop_gradient
