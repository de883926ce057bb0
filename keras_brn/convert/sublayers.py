"""The layers that a layer holds, and by which of its attributes."""

import functools

import keras

from keras_brn.keras_internals import flatten_layers, replace_sublayer, state_may_be_added


def is_graph(layer):
    """Whether the layer is a Sequential or functional model."""
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and hasattr(layer, "operations")
    )


def direct_sublayers(layer):
    """List of the layers that Keras counts as the layer's own, without theirs."""
    return [each for each in flatten_layers(layer, recursive=False) if each is not layer]


def sublayers(layer):
    """Dict from where a layer holds a sublayer to the sublayer.

    The keys are the same for every layer of the same configuration: the name of the attribute,
    then the keys and indices of the dicts, lists and tuples in it; for a graph also the position
    in `layers`. The order is that in which the layer was given its sublayers.
    """
    order = {id(each): index for index, each in enumerate(direct_sublayers(layer))}
    places = {}
    if is_graph(layer):
        places.update({("layers", index): each for index, each in enumerate(layer.layers)})
    for name, value in attributes(layer).items():
        for path, leaf in _leaves(value, (name,)):
            if id(leaf) in order:
                places[path] = leaf
    return dict(sorted(places.items(), key=lambda item: order[id(item[1])]))


def attributes(layer):
    """Dict of the attributes of a layer that Keras does not give to every layer."""
    values = {**vars(layer), **vars(layer).get("_modules", {})}  # The latter on PyTorch.
    known = _attributes_of_keras()
    return {
        name: value
        for name, value in values.items()  # `_self_`: TensorFlow's account of them.
        if name not in known and not name.startswith("_self_")
    }


def check_places(model, layers):
    """Checks that a copy of the model could be given other layers in the place of these.

    Raises:
        ValueError: If one of them is nowhere that it could be found again in a copy.
    """
    places, seen = [model], set()
    while places:
        layer = places.pop()
        if id(layer) not in seen:
            seen.add(id(layer))
            places.extend(sublayers(layer).values())
    lost = [layer.name for layer in layers if layer.built and id(layer) not in seen]
    if lost:
        raise ValueError(
            f"Layers {lost} of model '{model.name}' can't be replaced: they must be attributes, or "
            "in lists, tuples or dicts of them. Leave them out with `layers`."
        )


def replace(parent, old, new):
    """Puts `new` in the place of `old` among the sublayers and in the attributes of `parent`."""
    replace_sublayer(parent, old, new)
    for name, value in attributes(parent).items():
        replaced = mapped(value, lambda leaf: new if leaf is old else leaf)
        if replaced is not value:
            setattr(parent, name, replaced)


def set_attribute(layer, name, value):
    """Sets an attribute, also of a layer that is built."""
    with state_may_be_added(layer):
        setattr(layer, name, value)


def mapped(value, function):
    """A structure of lists, tuples and dicts with `function` of each leaf.

    Unlike in `keras.tree`, the keys of a dict need no order, and what does not change is the same
    object as before.
    """
    if isinstance(value, dict):
        items = {key: mapped(each, function) for key, each in value.items()}
        changed = any(items[key] is not value[key] for key in items)
        return items if changed else value
    if not isinstance(value, (list, tuple)):
        return function(value)
    items = [mapped(each, function) for each in value]
    if all(new is old for new, old in zip(items, value, strict=True)):
        return value
    if isinstance(value, list):
        return items
    kind = value.__class__  # That of the tuple in what TensorFlow wraps around it.
    return kind(*items) if hasattr(value, "_fields") else kind(items)


def _leaves(value, path):
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return [(path, value)]
    return [leaf for key, each in items for leaf in _leaves(each, (*path, key))]


@functools.cache
def _attributes_of_keras():
    """Names that every model has, also when it is compiled, which adds a dict with layers."""
    chain = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    graph = keras.Model(chain.inputs, chain.outputs)
    for model in (chain, graph):
        model.compile("sgd", "mse", metrics=["mae"])
    return {*dir(chain), *dir(graph)}
