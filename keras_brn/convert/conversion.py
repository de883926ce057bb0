"""`renormalize` and `to_batch_normalization`: from a model to its converted copy."""

import warnings

import keras

from keras_brn.convert.check import difference_in_inference
from keras_brn.convert.compilation import compile_like
from keras_brn.convert.network import NetworkCopy
from keras_brn.convert.normalization import OPTIONS, batchnorm_for, renorm_for
from keras_brn.convert.state import copy_state
from keras_brn.convert.sublayers import check_places
from keras_brn.keras_internals import flatten_layers
from keras_brn.layer import BatchRenormalization


def renormalize(model, layers=None, *, clone_function=None, **options):
    """A copy of `model` in which every `BatchNormalization` is a `BatchRenormalization`.

    Its weights, names, dtype policies and trainable flags are the model's, and so are its outputs
    in inference, which one forward pass checks where inputs can be made. `model` itself does not
    change. What `keras.models.clone_model` can copy can be converted, and subclassed models and
    layers that can be copied by their `get_config`.

    Args:
        model: A built `keras.Model`: functional, Sequential or subclassed, nested in any way. In
            the parts that are subclassed, layers must be attributes, or in lists, tuples or dicts
            of them.
        layers: Which layers to convert: a name, a list of names, or a function of the layer that
            returns a boolean; `None` for all.
        clone_function: For layers that can't be copied by their configuration, or should not be:
            function of a layer that returns its copy, without weights; or the layer itself,
            which the two models then share; or `None`, to copy it as usual. It is asked about
            every layer but those that are converted, the Sequential and functional models that
            hold such, and those that another layer makes itself.
        **options: `r_max`, `d_max`, `schedule`, `microbatch_size`, `momentum` and `epsilon` of
            `BatchRenormalization`. By default, momentum and epsilon are those of the layer
            converted, and so are the bounds of layers with `renorm=True`.

    Returns:
        A model of the same class, compiled if `model` was, with the same loss, new metrics and an
        optimizer that starts anew. Only a graph whose class has a constructor of its own becomes
        a plain one. A warning says that, and what else is not the same.

    Raises:
        ValueError: If there is nothing to convert, or something that can't be, with its name.

    A layer that makes its normalizations itself makes them as before when it is loaded from a
    `.keras` file: save the weights of such a copy, and load them into a converted model.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.BatchNormalization()])
    >>> renormalize(model, microbatch_size=4).layers[0].microbatch_size
    4
    """
    if set(options) - OPTIONS:
        raise ValueError(
            f"The options are {sorted(OPTIONS)}. Received: {sorted(set(options) - OPTIONS)}"
        )
    BatchRenormalization(**options)  # Which refuses a wrong value without a layer's name.
    chosen = _chosen(model, keras.layers.BatchNormalization, layers)
    replacements = {id(layer): renorm_for(layer, options) for layer in chosen}
    return _converted(model, chosen, replacements, clone_function)


def to_batch_normalization(model, layers=None, *, clone_function=None):
    """A copy of `model` in which every `BatchRenormalization` is a `BatchNormalization`.

    In inference the two are the same function, so this is the model to deploy: tools that fold
    batchnorm into convolutions know it, and it can be loaded without keras_brn.

    Args:
        model: As for `renormalize`.
        layers: As for `renormalize`.
        clone_function: As for `renormalize`.

    Returns:
        As `renormalize`.

    Raises:
        ValueError: If there is nothing to convert, or something that can't be, with its name.
    """
    chosen = _chosen(model, BatchRenormalization, layers)
    replacements = {id(layer): batchnorm_for(layer) for layer in chosen}
    return _converted(model, chosen, replacements, clone_function)


def _converted(model, chosen, replacements, clone_function):
    check_places(model, chosen)
    network = NetworkCopy(replacements, clone_function)
    copy = network.of(model)
    places = copy_state(model, network.pairs)
    messages = network.warnings + compile_like(model, copy, places)
    difference = difference_in_inference(model, copy)
    if difference is not None:
        messages.append(
            f"The copy of '{model.name}' predicts otherwise than the model: on random inputs its "
            f"outputs differ by {difference:.1e} of the largest."
        )
    for message in messages:
        warnings.warn(message, stacklevel=3)
    return copy


def _chosen(model, kind, layers):
    """The layers of a class that `layers` chooses."""
    all_layers = flatten_layers(model)
    if isinstance(layers, str):
        layers = [layers]
    if layers is not None and not callable(layers):
        names = set(layers)
        missing = names - {layer.name for layer in all_layers}
        if missing:
            raise ValueError(f"Model '{model.name}' has no layers {sorted(missing)} (`layers`).")
        layers = lambda layer: layer.name in names  # noqa: E731
    candidates = [layer for layer in all_layers if isinstance(layer, kind)]
    if candidates and not any(layer.built for layer in candidates):
        raise ValueError(f"Model '{model.name}' has no weights yet: build it, or call it once.")
    chosen = [layer for layer in candidates if layers is None or layers(layer)]
    if not chosen:
        raise ValueError(
            f"Model '{model.name}' has no {kind.__name__} to convert, or `layers` chose none."
        )
    return chosen
