"""One normalization layer in the place of another: its arguments and its statistics."""

import keras
import numpy as np
from keras import ops

from keras_brn.layer import BatchRenormalization

OPTIONS = {"r_max", "d_max", "schedule", "microbatch_size", "momentum", "epsilon"}

_SHARED_ARGUMENTS = (
    "name",
    "trainable",
    "axis",
    "momentum",
    "epsilon",
    "center",
    "scale",
    "beta_initializer",
    "gamma_initializer",
    "moving_mean_initializer",
    "beta_regularizer",
    "gamma_regularizer",
    "beta_constraint",
    "gamma_constraint",
)


def renorm_for(layer, options):
    """A `BatchRenormalization`, not yet built, for a `BatchNormalization`.

    Args:
        layer: `keras.layers.BatchNormalization`.
        options: Dict of arguments of `BatchRenormalization`, which come before the layer's own.

    Raises:
        ValueError: If it can't do what the layer does.
    """
    _check_exact_class(layer, keras.layers.BatchNormalization)
    if layer.synchronized:
        raise ValueError(
            f"Layer '{layer.name}' is synchronized over replicas, which BatchRenormalization is "
            "not. Leave it out with `layers`."
        )
    arguments = _shared_arguments(layer) | _renorm_arguments(layer, options) | options
    try:
        return BatchRenormalization(**arguments)
    except ValueError as error:
        raise ValueError(
            f"Layer '{layer.name}' can't become a BatchRenormalization. {error}. Give all layers "
            "another value as an option of `renormalize`, or leave this one out with `layers`."
        ) from error


def batchnorm_for(layer):
    """A `BatchNormalization`, not yet built, for a `BatchRenormalization`."""
    _check_exact_class(layer, BatchRenormalization)
    return keras.layers.BatchNormalization(**_shared_arguments(layer))


def copy_normalization(old, new):
    """Gives `new` the weights of `old`, of which one holds sigma and the other its variance.

    Returns:
        Dict from the id of each weight of `old` to a pair: the weight of `new` that has its
        place, and the function from the values of the one to those of the other.
    """
    places = {}
    for name in ("gamma", "beta", "moving_mean"):
        if getattr(old, name) is not None:
            places[id(getattr(old, name))] = getattr(new, name), lambda value: value
    if isinstance(new, BatchRenormalization):
        places[id(old.moving_variance)] = (
            new.moving_stddev,
            lambda variance: np.sqrt(variance + old.epsilon),
        )
    else:
        places[id(old.moving_stddev)] = (
            new.moving_variance,
            lambda stddev: stddev**2 - new.epsilon,
        )
    for weight in old.weights:
        if id(weight) in places:
            target, function = places[id(weight)]
            target.assign(function(float64(weight)))
            target.trainable = weight.trainable
    return places


def float64(variable):
    """The values of a variable, in an array of its own."""
    return np.array(ops.convert_to_numpy(variable), "float64")


def _shared_arguments(layer):
    """As objects: an unregistered regularizer could not be found by its name."""
    arguments = {name: getattr(layer, name) for name in _SHARED_ARGUMENTS}
    return arguments | {"dtype": layer.dtype_policy}


def _renorm_arguments(layer, options):
    """Those of a `BatchNormalization(renorm=True)`, which Keras has since 3.14."""
    if not getattr(layer, "renorm", False):
        return {}
    clipping = layer.renorm_clipping
    r_max = clipping.get("rmax")
    r_min = clipping.get("rmin") or 0.0
    if "r_max" not in options and not np.isclose(r_min, 1 / r_max if r_max else 0.0):
        raise ValueError(
            f"Layer '{layer.name}' bounds r by rmin={r_min} and rmax={r_max}, where "
            "BatchRenormalization has 1 / r_max and r_max. Pass `r_max`."
        )
    return {"r_max": r_max, "d_max": clipping.get("dmax"), "momentum": layer.renorm_momentum}


def _check_exact_class(layer, kind):
    if type(layer) is not kind:
        raise ValueError(
            f"Layer '{layer.name}' is a {type(layer).__name__}, a subclass of {kind.__name__} "
            "whose own behaviour would be lost. Leave it out with `layers`."
        )
