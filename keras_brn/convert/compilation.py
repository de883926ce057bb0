"""A copy compiled as its model is: the same loss, new metrics and a new optimizer."""

import keras

from keras_brn.convert.configuration import copied_by_configuration
from keras_brn.convert.sublayers import mapped
from keras_brn.keras_internals import compile_arguments, has_weight_decay


def compile_like(model, copy, places):
    """Compiles `copy` as `model` is.

    Args:
        model: A model.
        copy: Its copy.
        places: Dict from the id of a variable of `model` to a pair, of which the first is the
            variable of `copy` that has its place.

    Returns:
        List of sentences about what could not be done.
    """
    if not model.compiled:
        return []
    try:
        _compile(model, copy, places)
    except Exception as error:  # Whatever the user's objects raise.
        return [f"The copy of '{model.name}' must be compiled: {error}"]
    if not copy.compiled:
        return [
            f"The copy of '{model.name}' must be compiled: its class has a `compile` of its own, "
            "and no `compile_from_config`."
        ]
    if model.optimizer is not None and model.optimizer.built:
        return [
            f"The optimizer of the copy of '{model.name}' starts anew, without the state of the "
            "one that it was made from."
        ]
    return []


def _compile(model, copy, places):
    kind = type(copy)
    if kind.compile_from_config is not keras.Model.compile_from_config:
        copy.compile_from_config(model.get_compile_config())
        return
    if kind.compile is not keras.Model.compile:
        return
    arguments = compile_arguments(model)
    for name in ("metrics", "weighted_metrics"):
        arguments[name] = mapped(arguments[name], _new_metric)
    arguments["optimizer"] = _new_optimizer(arguments["optimizer"], model, places)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    copy.compile(**arguments, auto_scale_loss=scaled)


def _new_metric(metric):
    """A metric has state; what is a function or a name has none."""
    return copied_by_configuration(metric) if isinstance(metric, keras.Metric) else metric


def _new_optimizer(optimizer, model, places):
    if not isinstance(optimizer, keras.Optimizer):
        return optimizer
    if type(optimizer) is keras.optimizers.LossScaleOptimizer:
        return keras.optimizers.LossScaleOptimizer(
            _new_optimizer(optimizer.inner_optimizer, model, places),
            optimizer.initial_scale,
            optimizer.dynamic_growth_steps,
            name=optimizer.name,
        )
    new = copied_by_configuration(optimizer)
    excluded = [
        places[id(variable)][0]
        for variable in model.trainable_variables
        if id(variable) in places and not has_weight_decay(optimizer, variable)
    ]
    if excluded:
        new.exclude_from_weight_decay(var_list=excluded)
    return new
