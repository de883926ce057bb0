"""The state of a network, handed over to its copy."""

import tempfile

import keras
from keras import ops

from keras_brn.averaging import AveragedModel
from keras_brn.convert.normalization import copy_normalization, float64
from keras_brn.convert.sublayers import direct_sublayers


def copy_state(model, pairs):
    """Gives the copies the weights, assets and trainable flags of their layers.

    Args:
        model: The model that was copied.
        pairs: Dict from the id of a layer to a pair: the layer and its copy.

    Returns:
        Dict from the id of a variable of `model` to a pair: the variable of the copy that has its
        place, and the function from the values of the one to those of the other.

    Raises:
        ValueError: If a copy has not the variables of its layer.
    """
    layers = [layer for layer in _parents_first(model) if id(layer) in pairs]
    copied = [pairs[id(layer)] for layer in layers if pairs[id(layer)][1] is not layer]
    for layer, copy in copied:
        copy.trainable = layer.trainable  # Of all in it, which come later and have their own.
    places = {}
    for layer, copy in copied:
        if type(layer) is type(copy):
            places.update(_copy_own_state(layer, copy))
        elif layer.built and not isinstance(layer, keras.Model):  # That of another class.
            places.update(copy_normalization(layer, copy))
    for layer, copy in copied:
        if isinstance(layer, AveragedModel):
            _copy_averages(layer, copy, places)
    return places


def _parents_first(model):
    """All layers, each after those that hold it."""
    finished, seen = [], set()

    def visit(layer):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        for each in direct_sublayers(layer):
            visit(each)
        finished.append(layer)

    visit(model)
    return reversed(finished)


def _copy_own_state(layer, copy):
    """What is the layer's own, without its sublayers: by Keras' protocol for saving."""
    if _saves_itself(layer):
        store = {}
        layer.save_own_variables(store)
        copy.load_own_variables({name: _array(value) for name, value in store.items()})
    if hasattr(layer, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)
    # One by one, because Keras saves neither seeds nor the factors of LoRA.
    old, new = _own_variables(layer), _own_variables(copy)
    if [v.shape for v in old] != [v.shape for v in new]:
        if not layer.built or _saves_itself(layer):
            return {}
        raise ValueError(
            f"Layer '{layer.name}' of class {type(layer).__name__} has the variables "
            f"{[v.name for v in old]}, and its copy {[v.name for v in new]}: not all of them are "
            "made by its `__init__` and `build`."
        )
    for source, target in zip(old, new, strict=True):
        target.assign(_array(source))
        if target.trainable != source.trainable:
            target.trainable = source.trainable
    return {id(v): (w, lambda value: value) for v, w in zip(old, new, strict=True)}


def _saves_itself(layer):
    kind = type(layer)
    return (
        kind.save_own_variables is not keras.Layer.save_own_variables
        or kind.load_own_variables is not keras.Layer.load_own_variables
    )


def _own_variables(layer):
    inner = {id(v) for each in direct_sublayers(layer) for v in each.variables}
    return [variable for variable in layer.variables if id(variable) not in inner]


def _array(value):
    """The value in an array of its own, which training one model can't take from the other."""
    if ops.is_tensor(value) or isinstance(value, keras.Variable):
        return ops.convert_to_numpy(value).copy()
    return value


def _copy_averages(model, copy, places):
    """By what they are averages of: that of a variance becomes one of a standard deviation."""
    averages = {id(w): a for w, a in zip(copy.averaged_weights, copy.averages, strict=True)}
    for weight, average in zip(model.averaged_weights, model.averages, strict=True):
        target, function = places[id(weight)]
        averages[id(target)].assign(function(float64(average)))
