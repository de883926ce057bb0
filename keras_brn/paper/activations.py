"""What a network computes in training and in inference, layer by layer, for the same inputs."""

import keras
import numpy as np
from keras import ops

from keras_brn.kernels import compiled
from keras_brn.layer import BatchRenormalization

_KINDS = (keras.layers.BatchNormalization, BatchRenormalization)
OUTPUT = "output"  # The key of the model's own output.


def layer_outputs(model, inputs, batch_size=None):
    """The outputs of the normalization layers of a model, and its own; nothing is updated.

    Args:
        model: A `keras.Model`, functional or Sequential and built, with one input and one output.
            Its normalization layers stand in it directly, not within another model; of a layer
            that it calls twice, the outputs are those of the last call.
        inputs: Array (examples, ...).
        batch_size: Number of examples in a minibatch of training: the inputs pass through the model
            as in training, minibatch by minibatch. Those beyond a multiple of `batch_size` are left
            out. `None`: as in inference, all of them.

    Returns:
        Dict from the name of a layer to an array (examples, ...), in the order of the model's
        layers; the last is `"output"`, the model's own.

    Raises:
        ValueError: If the model is of another kind or has no normalization layer, or there are
            fewer examples than `batch_size`.
    """
    ends = [getattr(model, name, None) or [] for name in ("inputs", "outputs")]
    if [len(end) for end in ends] != [1, 1]:
        raise ValueError(
            "`model` must be functional, or Sequential and built, with one input and one output. "
            f"Received: model={model.name!r}, a {type(model).__name__} with {len(ends[0])} known "
            f"inputs and {len(ends[1])} outputs"
        )
    if not any(isinstance(layer, _KINDS) for layer in model.layers):
        raise ValueError(
            "`model` must have a BatchNormalization or a BatchRenormalization among its layers. "
            f"Received: model={model.name!r}, with {[layer.name for layer in model.layers]}"
        )
    if batch_size is not None and not 1 <= batch_size <= len(inputs):
        raise ValueError(
            "`batch_size` must be None or from 1 to the number of `inputs`. "
            f"Received: batch_size={batch_size}, inputs of length {len(inputs)}"
        )
    probe, names = _probe(model)
    if batch_size is None:
        parts = [probe(ops.convert_to_tensor(inputs), training=False)]
    else:
        parts = _in_training(probe, inputs, batch_size)
    return {
        name: np.concatenate([ops.convert_to_numpy(part[name]) for part in parts]) for name in names
    }


def _probe(model):
    """A model of the same layers, whose outputs are what `layer_outputs` returns; and their names.

    Not by `layer.output`: that of a Sequential, which `add` builds anew each time, is of an earlier
    graph, and both graphs together would call the layer twice.
    """
    outputs = {}

    def call(layer, *args, **kwargs):
        y = layer(*args, **kwargs)
        if isinstance(layer, _KINDS):
            outputs[layer.name] = y
        return y

    graph = keras.Model(model.inputs, model.outputs)
    copy = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)
    outputs[OUTPUT] = copy.outputs[0]
    return keras.Model(copy.inputs, outputs), list(outputs)


def _in_training(model, inputs, batch_size):
    """The outputs for each minibatch. The scope takes what the layers would update."""

    def forward(values, x):
        with keras.StatelessScope(list(zip(model.variables, values, strict=True))):
            return model(x, training=True)

    forward = compiled(forward)
    values = [ops.convert_to_tensor(variable) for variable in model.variables]
    starts = range(0, len(inputs) - batch_size + 1, batch_size)
    return [forward(values, ops.convert_to_tensor(inputs[k : k + batch_size])) for k in starts]


def activation_differences(model, inputs, batch_size):
    """How far what a model computes in training is from what it computes in inference.

    Args:
        model: As for `layer_outputs`.
        inputs: As for `layer_outputs`.
        batch_size: Number of examples in a minibatch of training.

    Returns:
        Dict like that of `layer_outputs` to floats: the root mean square, over examples, positions
        and channels, of the difference between training and inference, divided by the standard
        deviation that a channel has in inference (root mean square over the channels). At 0 they
        are the same; at 1 they differ by as much as one example differs from the mean of all.

    Raises:
        ValueError: As for `layer_outputs`.
    """
    training = layer_outputs(model, inputs, batch_size)
    inference = layer_outputs(model, inputs)
    differences = {}
    for name, ours in training.items():
        reference = inference[name][: len(ours)]
        axes = tuple(range(reference.ndim - 1))
        spread = np.sqrt(np.mean(np.var(reference, axis=axes)))
        differences[name] = float(np.sqrt(np.mean((ours - reference) ** 2)) / spread)
    return differences
