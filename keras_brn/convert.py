"""A model with another normalization and the same weights, in and out."""

import functools
import inspect
import warnings

import keras
import numpy as np
from keras import ops

from keras_brn.averaging import copied
from keras_brn.layer import BatchRenormalization

_COMMON = (
    "name",
    "trainable",
    "dtype",
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


def renormalize(model, layers=None, **options):
    """A copy of `model` in which every `BatchNormalization` is a `BatchRenormalization`.

    Its weights, names, dtype policies and trainable flags are the model's, and so are its outputs
    in inference. `model` itself does not change.

    Args:
        model: A built `keras.Model`: functional, Sequential or subclassed, nested in any way. The
            parts that are subclassed need `get_config`, as for saving, if their `__init__` takes
            arguments; their normalization layers must be attributes, or in lists or dicts of them.
        layers: Which layers to convert: a name, a list of names, or a function of the layer that
            returns a boolean; `None` for all.
        **options: `r_max`, `d_max`, `microbatch_size`, `momentum` of `BatchRenormalization`. By
            default, momentum is that of the layer converted, and so are the bounds of layers with
            `renorm=True`.

    Returns:
        A model of the same class, compiled if `model` was, with an optimizer that starts anew.

    Raises:
        ValueError: If there is nothing to convert, or something that can't be.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.BatchNormalization()])
    >>> renormalize(model, microbatch_size=4).layers[0].microbatch_size
    4
    """
    allowed = {"r_max", "d_max", "microbatch_size", "momentum"}
    if set(options) - allowed:
        raise ValueError(
            f"The options are {sorted(allowed)}. Received: {sorted(set(options) - allowed)}"
        )
    return _converted(
        model,
        keras.layers.BatchNormalization,
        _chosen(layers, model),
        lambda layer: _renorm_of(layer, options),
    )


def to_batch_normalization(model):
    """A copy of `model` in which every `BatchRenormalization` is a `BatchNormalization`.

    In inference the two are the same function, so this is the model to deploy: tools that fold
    batchnorm into convolutions know it, and it can be loaded without keras_brn.

    Args:
        model: As for `renormalize`.

    Returns:
        As `renormalize`.

    Raises:
        ValueError: If there is nothing to convert, or something that can't be.
    """
    return _converted(model, BatchRenormalization, lambda layer: True, _batchnorm_of)


def _renorm_of(layer, options):
    if type(layer) is not keras.layers.BatchNormalization:
        raise ValueError(
            f"Layer '{layer.name}' is a {type(layer).__name__}, whose own behaviour would be lost. "
            "Leave it out with `layers`."
        )
    if layer.synchronized:
        raise ValueError(
            f"Layer '{layer.name}' is synchronized over replicas, which BatchRenormalization is "
            "not. Leave it out with `layers`."
        )
    bounds = {}
    if getattr(layer, "renorm", False):
        clipping = layer.renorm_clipping
        r_max = clipping.get("rmax")
        r_min = clipping.get("rmin") or 0.0
        if "r_max" not in options and not np.isclose(r_min, 1 / r_max if r_max else 0.0):
            raise ValueError(
                f"Layer '{layer.name}' bounds r by rmin={r_min} and rmax={r_max}, where "
                "BatchRenormalization has 1 / r_max and r_max. Pass `r_max`."
            )
        bounds = {"r_max": r_max, "d_max": clipping.get("dmax")}
        bounds["momentum"] = layer.renorm_momentum
    config = layer.get_config()
    config = {key: config[key] for key in _COMMON} | bounds | options
    return BatchRenormalization(**config)


def _batchnorm_of(layer):
    config = layer.get_config()
    return keras.layers.BatchNormalization(**{key: config[key] for key in _COMMON})


def _converted(model, kind, chosen, convert):
    if not model.built:
        raise ValueError(f"Model '{model.name}' has no weights yet: build it, or call it once.")
    clones = {}  # By id: a layer that is shared stays shared.

    def wanted(layer):
        return isinstance(layer, kind) and chosen(layer)

    def clone(layer):
        if id(layer) not in clones:
            clones[id(layer)] = new_clone(layer)
        return clones[id(layer)]

    def new_clone(layer):
        if wanted(layer):
            return convert(layer)
        if _is_graph(layer):
            return _clone_graph(layer, clone)
        copy = _from_config(layer)
        if isinstance(layer, keras.Layer) and any(map(wanted, layer._flatten_layers())):
            _replace_sublayers(layer, copy, clone)
        return copy

    if not any(map(wanted, model._flatten_layers())):
        raise ValueError(
            f"Model '{model.name}' has no {kind.__name__} to convert, or `layers` chose none."
        )
    copy = clone(model)
    if not copy.built:
        copy.build_from_config(model.get_build_config())
        copy.built = True  # Which Keras leaves to the first call.
    left = [layer.name for layer in copy._flatten_layers() if wanted(layer)]
    if left:
        raise ValueError(
            f"Could not replace {left}: such layers must be created in `__init__`, and be "
            "attributes, or in lists or dicts of them. Else leave them out with `layers`."
        )
    _transfer(model, copy, set())
    _compile_like(model, copy)
    return copy


def _is_graph(layer):
    """Whether the layer is a Sequential or functional model."""
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "operations")
    )


def _clone_graph(model, clone):
    inputs = None
    if not isinstance(model, keras.Sequential):
        layers = [x for x in model.layers if isinstance(x, keras.layers.InputLayer)]
        names = {id(layer.output): layer.name for layer in layers}
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=names[id(x)]),
            model.input,
        )
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    if type(copy) is not type(model):
        warnings.warn(
            f"The copy of '{model.name}' is a {type(copy).__name__} model: what the class "
            f"{type(model).__name__} adds to that, such as a `train_step`, is lost.",
            stacklevel=6,
        )
    return copy


def _from_config(layer):
    parameters = inspect.signature(layer.__class__.__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    # A subclassed model need not take what every layer has.
    unknown = set() if takes_all else {"name", "trainable", "dtype"} - set(parameters)
    try:
        config = layer.get_config()
        config = {key: value for key, value in config.items() if key not in unknown}
        copy = layer.__class__.from_config(config)
        copy.name = layer.name
        return copy
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} can't be copied: give it a "
            "`get_config` that returns the arguments of its `__init__`."
        ) from error


def _sublayers(layer):
    """Dict from the name of an attribute to its value, a structure with layers in it."""
    if _is_graph(layer):
        return {"layers": layer.layers}
    known = _attributes_of_every_layer()
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}  # The latter on PyTorch.
    found = {
        name: value
        for name, value in attributes.items()  # `_self_`: TensorFlow's account of them.
        if name not in known and not name.startswith("_self_") and any(_layers_in(value))
    }
    order = {id(each): k for k, each in enumerate(layer._flatten_layers(recursive=False))}
    return dict(sorted(found.items(), key=lambda item: order[id(_layers_in(item[1])[0])]))


@functools.cache
def _attributes_of_every_layer():
    return {*dir(keras.Model()), *dir(keras.Layer())}


def _layers_in(value):
    return [leaf for leaf in keras.tree.flatten(value) if isinstance(leaf, keras.Layer)]


def _replace_sublayers(layer, copy, clone):
    """Gives `copy`, not yet built, clones of the sublayers of `layer`."""
    of_copy = _sublayers(copy)
    values = {name: value for name, value in _sublayers(layer).items() if name in of_copy}
    for name in values:
        copy.replaced = _layers_in(of_copy[name])
        copy.replaced.clear()  # Only a list that is tracked makes Keras forget a layer.
        object.__delattr__(copy, "replaced")
    for name, value in values.items():
        new = keras.tree.map_structure(
            lambda leaf: clone(leaf) if isinstance(leaf, keras.Layer) else leaf, value
        )
        setattr(copy, name, new)


def _transfer(old, new, seen):
    """Copies weights and trainable flags between models of the same structure."""
    if id(old) in seen:
        return
    seen.add(id(old))
    new.trainable = old.trainable
    if type(old) is not type(new) and _normalizes(old) and _normalizes(new):
        _transfer_normalization(old, new)
        return
    inner = [], []
    of_new = _sublayers(new)
    for name, value in _sublayers(old).items():
        pairs = zip(_layers_in(value), _layers_in(of_new[name]), strict=True)
        for pair in pairs:
            _transfer(*pair, seen)
            for layer, weights in zip(pair, inner, strict=True):
                weights.extend(id(weight) for weight in layer.weights)
    own = [
        [weight for weight in layer.weights if id(weight) not in weights]
        for layer, weights in zip((old, new), inner, strict=True)
    ]
    for source, target in zip(*own, strict=True):
        target.assign(copied(source))


def _normalizes(layer):
    return isinstance(layer, (keras.layers.BatchNormalization, BatchRenormalization))


def _transfer_normalization(old, new):
    for name in ("gamma", "beta", "moving_mean"):
        if getattr(old, name) is not None:
            getattr(new, name).assign(copied(getattr(old, name)))
    if isinstance(new, BatchRenormalization):
        variance = np.asarray(ops.convert_to_numpy(old.moving_variance), "float64")
        new.moving_stddev.assign(np.sqrt(variance + old.epsilon))
    else:
        stddev = np.asarray(ops.convert_to_numpy(old.moving_stddev), "float64")
        new.moving_variance.assign(stddev**2 - old.epsilon)


def _compile_like(model, copy):
    if not model.compiled:
        return
    if not copy.compiled:
        try:
            copy.compile_from_config(model.get_compile_config())
        except (TypeError, ValueError) as error:
            warnings.warn(f"The copy of '{model.name}' must be compiled: {error}", stacklevel=4)
            return
    if model.optimizer is not None and model.optimizer.built:
        warnings.warn(
            f"The optimizer of the copy of '{model.name}' starts anew, without the state of "
            "the one that it was made from.",
            stacklevel=4,
        )


def _chosen(layers, model):
    if layers is None:
        return lambda layer: True
    if callable(layers):
        return layers
    names = {layers} if isinstance(layers, str) else set(layers)
    missing = names - {layer.name for layer in model._flatten_layers()}
    if missing:
        raise ValueError(f"Model '{model.name}' has no layers {sorted(missing)} (`layers`).")
    return lambda layer: layer.name in names
