"""Sequential and functional models, built anew from copies of their layers."""

import inspect
import warnings

import keras

from keras_brn.convert import sublayers
from keras_brn.convert.building import name_scopes


def copied_graph(model, copy):
    """A Sequential or functional model of the copies of its layers; of its own class, where that
    can be made of layers or tensors.

    Args:
        model: `keras.Sequential`, or a functional model.
        copy: Function of a layer or operation that returns its copy.
    """
    return _chain(model, copy) if isinstance(model, keras.Sequential) else _dag(model, copy)


def _chain(model, copy):
    layers = [copy(layer) for layer in model.layers]
    if hasattr(model, "inputs"):  # Else the inputs are several tensors.
        (input_layer,) = _input_layers(keras.Model(model.inputs, model.outputs))
        layers = [copy(input_layer), *layers]
    kind = type(model) if has_class_of_graph(model) else keras.Sequential
    with name_scopes(model):
        return kind(layers, trainable=model.trainable, name=model.name)


def _dag(model, copy):
    with warnings.catch_warnings():  # Those that `model` gave when it was made.
        warnings.simplefilter("ignore")
        # `clone_model` compiles the clone of a compiled model, by names; this is not compiled.
        graph = keras.Model(model.input, model.output, name=model.name)
    layers = {id(layer.output): layer for layer in _input_layers(graph)}
    inputs = keras.tree.map_structure(lambda x: copy(layers[id(x)]).output, model.input)
    copied = keras.models.clone_model(graph, inputs, clone_function=copy)
    if type(model) is not type(copied) and has_class_of_graph(model):
        copied = type(model)(copied.input, copied.output, name=model.name)
    return copied


def _input_layers(graph):
    return [layer for layer in graph.layers if isinstance(layer, keras.layers.InputLayer)]


def has_class_of_graph(model):
    """Whether a model of its class can be made of layers or tensors, as graphs of Keras are."""
    constructor = type(model).__init__
    if isinstance(model, keras.Sequential):
        return constructor is keras.Sequential.__init__
    arguments = inspect.getfullargspec(constructor)
    takes_all = arguments.varargs is not None and arguments.varkw is not None
    return takes_all or arguments.args[1:] == ["inputs", "outputs", "name"]


def what_is_lost(model, copy):
    """The sentence for a graph whose class has a constructor of its own."""
    kinds = [kind for kind in type(model).__mro__ if not isinstance(copy, kind)]
    defined = {name: value for kind in kinds for name, value in vars(kind).items()}
    inherited = set(dir(keras.Model))
    lost = {n for n, value in defined.items() if n in inherited or isinstance(value, property)}
    lost |= sublayers.attributes(model).keys() - sublayers.attributes(copy).keys() - {"history"}
    names = ", ".join(sorted(name for name in lost if not name.startswith("_")))
    return (
        f"The copy of '{model.name}' is a {type(copy).__name__} model, without what the class "
        f"{type(model).__name__} adds or changes: {names}."
    )
