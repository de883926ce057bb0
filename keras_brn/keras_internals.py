"""All that is relied on of Keras without being documented, with its purpose and its substitute.

A test for each of them tells on the day it goes (`tests/test_keras_internals.py`).
"""


def flatten_layers(model, recursive=True):
    """All layers in a model, itself included; each once, also if it is shared.

    Without `Layer._flatten_layers`: a walk over `layer.layers` and over the attributes of layers
    that are not models.
    """
    return list(model._flatten_layers(recursive=recursive))


def build_no_more(model):
    """Keeps `fit` and `evaluate` on TensorFlow from building a model, which is built, once more.

    They would build it from a batch that they take for one device's, and fail where several workers
    share it (keras-team/keras#20585). Without `Trainer._maybe_symbolic_build` there is nothing
    to keep them from: whether Keras then trains is up to it.
    """
    if hasattr(type(model), "_maybe_symbolic_build"):
        vars(model)["_maybe_symbolic_build"] = lambda *_, **__: None


def is_detached(variable):
    """Whether the value of a variable is held by the training loop, as on JAX between its steps.

    There Keras deletes the values of the variables, and puts them back when a callback asks for
    `self.model`. Without `Variable._value`: an `assign` that is lost, as for other layers.
    """
    return getattr(variable, "_value", variable) is None
