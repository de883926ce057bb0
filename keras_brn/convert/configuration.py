"""A new layer, metric or optimizer from the configuration of another."""

import inspect
import types
import warnings

import keras
import numpy as np

from keras_brn.convert.sublayers import attributes, mapped
from keras_brn.keras_internals import flatten_layers


def copied_by_configuration(thing):
    """What `thing.get_config()` describes, as an object of the same class without its state.

    Functions and unregistered objects among its arguments are handed over as they are: a
    configuration has only their names, which may be those of others.

    Args:
        thing: A layer, operation, metric or optimizer of Keras.

    Raises:
        ValueError: If the class does not say how.
    """
    functions = _functions(thing)
    try:
        config = mapped(_accepted(thing, _configuration(thing, functions)), _without_variables)
    except Exception as error:  # Whatever `get_config` raises: it is the user's.
        raise _not_copied(thing, "get_config()", error) from error
    plain, failure = _tried(thing, config)
    if plain is not None and _has(plain, functions):
        return plain
    by_objects, _ = _tried(thing, config | functions)
    if by_objects is not None and _has(by_objects, functions):
        return by_objects
    if plain is None and isinstance(thing, keras.layers.Wrapper):
        # The configuration of its layer may be what fails, and a copy of that takes its place.
        anything = keras.saving.serialize_keras_object(keras.layers.Identity())
        plain, _ = _tried(thing, config | {"layer": anything})
    if plain is None:
        raise _not_copied(thing, "from_config()", failure) from failure
    others = [name for name in functions if not _alike(functions[name], _kept(plain, name))]
    if others:
        raise _not_copied(thing, "from_config()", TypeError(f"{others} would be other functions"))
    return plain


def same_configuration(layer, other):
    """Whether two layers are of the same class, with the same arguments but for their names."""
    return type(layer) is type(other) and _equal(_arguments(layer), _arguments(other))


def unknown_arguments(model, copy):
    """The arguments of a subclassed model that its copy need not have been given.

    Keras records the arguments of layers, but of models only if they have a `get_config`.

    Returns:
        Two lists of names: of arguments whose values differ between the two, and of those that
        neither model has as an attribute.
    """
    if not isinstance(model, keras.Model) or type(model).get_config is not keras.Model.get_config:
        return [], []
    parameters = inspect.signature(type(model).__init__).parameters.values()
    names = [
        parameter.name
        for parameter in list(parameters)[1:]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in _OF_EVERY_LAYER
    ]
    known = [name for name in names if name in attributes(model) and name in attributes(copy)]
    differing = [name for name in known if not _comparable(model, copy, name)]
    return differing, [name for name in names if name not in known]


_OF_EVERY_LAYER = {"name", "trainable", "dtype"}


def _comparable(model, copy, name):
    values = getattr(model, name), getattr(copy, name)
    if any(isinstance(value, keras.Layer) for value in values):
        return True  # Layers are compared one by one.
    return _equal(*values)


def _accepted(thing, config):
    """The configuration without what every layer has, if `__init__` does not take it."""
    if _own_from_config(thing):
        return config
    parameters = inspect.signature(type(thing).__init__).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = set() if takes_all else _OF_EVERY_LAYER - set(parameters)
    return {key: value for key, value in config.items() if key not in unknown}


def _own_from_config(thing):
    defaults = keras.Layer.from_config, keras.Model.from_config
    return type(thing).from_config.__func__ not in [method.__func__ for method in defaults]


def _configuration(thing, functions):
    """`thing.get_config()`, also where it can't name one of the functions, or the inner layer."""
    unnamed = {_attribute(thing, name): keras.activations.linear for name in functions}
    if isinstance(thing, keras.layers.Wrapper):
        unnamed["layer"] = keras.layers.Identity()  # A copy of that takes its place later.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # That a lambda can't be loaded safely from a file.
        try:
            return thing.get_config()
        except Exception:
            if not unnamed:
                raise
        nameable = object.__new__(type(thing))
        vars(nameable).update({**vars(thing), **unnamed})
        return nameable.get_config() | functions


def _without_variables(value):
    """Some layers give a weight for the number that it began with: it would be shared."""
    return keras.ops.convert_to_numpy(value) if isinstance(value, keras.Variable) else value


def _tried(thing, config):
    """The new object or `None`, and the error."""
    try:
        with keras.saving.custom_object_scope(_custom_objects(thing)):
            new = type(thing).from_config(dict(config))
        if type(new) is not type(thing):
            raise TypeError(f"it makes a {type(new).__name__}")
        return new, None
    except Exception as error:  # Whatever `__init__` raises: it is the user's.
        return None, error


def _custom_objects(thing):
    """The classes and functions that the configuration may name, by their names."""
    layers = flatten_layers(thing) if isinstance(thing, keras.Layer) else [thing]
    objects = {}
    for layer in layers:
        for value in (layer, *vars(layer).values()):
            named = value if isinstance(value, types.FunctionType) else type(value)
            if not named.__module__.startswith(("keras.", "builtins")):
                objects[keras.saving.get_registered_name(named)] = named
                objects[named.__name__] = named
    return objects


def _functions(thing):
    """Those arguments that are functions or unregistered callables, if the object keeps them."""
    values = {name: _kept(thing, name) for name in inspect.signature(type(thing)).parameters}
    return {
        name: value
        for name, value in values.items()
        if callable(value)
        and not isinstance(value, (type, keras.Operation))
        and not type(value).__module__.startswith("keras.")
    }


def _kept(thing, name):
    """The argument of this name, kept as `name` or `_name`."""
    return vars(thing).get(_attribute(thing, name))


def _attribute(thing, name):
    return name if name in vars(thing) else f"_{name}"


def _has(thing, functions):
    return all(_kept(thing, name) is value for name, value in functions.items())


def _alike(function, other):
    """Whether the two come from the same line, as when `__init__` makes them."""
    if type(function) is not type(other):
        return False
    if not isinstance(function, types.FunctionType):
        return True
    return function.__code__ == other.__code__ and function.__globals__ is other.__globals__


def _not_copied(thing, method, error):
    named = f"Layer '{thing.name}' of class " if isinstance(thing, keras.Layer) else "A "
    return ValueError(
        f"{named}{type(thing).__name__} can't be copied: {method} fails with "
        f"{type(error).__name__}: {_first_line(error)}"
    )


def _first_line(error):
    """Without the whole configuration, which Keras puts before the cause."""
    cause = str(error).split("Exception encountered: ")[-1].strip()
    return cause.split("\n")[0][:300]


def _arguments(layer):
    """The arguments of a layer, or `None` if it does not tell."""
    try:
        return _without_names(_configuration(layer, _functions(layer)))
    except Exception:  # Whatever `get_config` raises: it is the user's.
        return None


def _without_names(config):
    """Without what differs between layers made alike, and what is handed over afterwards."""
    if isinstance(config, dict):
        ignored = {"name", "trainable", "shared_object_id", "build_config", "registered_name"}
        return {k: _without_names(v) for k, v in config.items() if k not in ignored}
    if isinstance(config, (list, tuple)):
        return [_without_names(each) for each in config]
    return config


def _equal(value, other):
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(_equal(value[k], other[k]) for k in value)
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)):
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(_equal(*pair) for pair in pairs)
    try:
        return value is other or bool(np.all(value == other))
    except Exception:  # What can't be compared is not known to be equal.
        return False
