"""All that is relied on of Keras without being documented, with its purpose and its substitute.

A test for each of them tells on the day it goes (`tests/test_keras_internals.py`).
"""

import contextlib

import keras


def flatten_layers(model, recursive=True):
    """All layers in a model, itself included; each once, also if it is shared.

    Without `Layer._flatten_layers`: a walk over `layer.layers` and over the attributes of layers
    that are not models.
    """
    return list(model._flatten_layers(recursive=recursive))


def check_trainer(model):
    """Refuses a Keras whose trainer has not the methods that `take_steps_by` overrides."""
    overridden = ("make_train_function", "make_test_function")
    missing = [name for name in overridden if not hasattr(type(model), name)]
    if missing:
        raise RuntimeError(
            f"`multi_worker` overrides {missing}, which this trainer does not have. "
            f"Received: keras {keras.__version__}"
        )


def take_steps_by(model, distributed):
    """Lets `fit` and `evaluate` call `distributed(step)`, a function of an iterator over batches.

    `make_train_function` and `make_test_function` are there to be overridden, but what they must
    leave behind, `train_function` and `test_function`, is not documented. Without them: a loop
    in the place of `fit`.
    """

    def make_train_function(force=False):
        if model.train_function is None or force:
            model.train_function = distributed(model.train_step)

    def make_test_function(force=False):
        if model.test_function is None or force:
            model.test_function = distributed(model.test_step)

    vars(model)["make_train_function"] = make_train_function
    vars(model)["make_test_function"] = make_test_function


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


def replace_sublayer(parent, old, new):
    """Makes `parent` count `new` among its sublayers where it counted `old`.

    The attributes of `parent` are not touched. Keras itself forgets no layer whose attribute is
    set anew: its weights would stay among those of the model. Without `Layer._tracker`: keep
    `old`, and leave it out wherever the layers of a model are listed.
    """
    tracker = parent._tracker
    if not tracker.is_in_store("layers", old):
        return
    if tracker.is_in_store("layers", new):
        tracker.untrack(old)
    else:
        tracker.replace_tracked_value("layers", old, new)
    if keras.backend.backend() == "torch" and "_torch_params" in parent._modules:
        del parent._modules["_torch_params"]  # Keras lists the parameters anew when asked.


@contextlib.contextmanager
def state_may_be_added(layer):
    """Lets attributes be set that hold layers or variables, although the layer is built.

    Without `Layer._tracker.unlock`: refuse models that were given layers after their `__init__`.
    """
    locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        yield
    finally:
        if locked:
            layer._tracker.lock()


def compile_arguments(model):
    """Dict of the arguments that `model.compile` was called with, the objects themselves.

    Without `Model._compile_config`: `get_compile_config`, which has names in the place of objects
    and so finds neither unregistered functions nor those that have the name of one of Keras'.
    """
    return dict(model._compile_config.config)


def has_weight_decay(optimizer, variable):
    """Whether `exclude_from_weight_decay` of the optimizer left the variable out.

    Without `Optimizer._use_weight_decay`: a warning that the exclusions are lost.
    """
    return optimizer._use_weight_decay(variable)
