"""Averages of the parameters of a model, for inference."""

import contextlib

import keras
from keras import ops

from keras_brn.keras_internals import flatten_layers
from keras_brn.layer import BatchRenormalization
from keras_brn.statistics import flush_statistics


@keras.saving.register_keras_serializable(package="keras_brn")
class AveragedModel(keras.Model):
    """Trains `network`, and keeps exponential moving averages of all its parameters.

    The averages include the statistics of normalization layers, unlike `use_ema` of the optimizers
    of Keras. After each training step `t`, counted from 0,

        average += (1 - min(decay, (1 + t) / (10 + t))) * (weight - average)

    as part of the compiled step. They are saved with the model.

    Args:
        network: A `keras.Model`.
        decay: Float in [0, 1). The horizon grows with the training, up to `1 / (1 - decay)` steps.

    Attributes:
        averages: List of the averages, in the order of `averaged_weights`.

    Raises:
        ValueError: If `decay` is out of its range.

    Source: Ioffe 2017, section 4: inference uses averages of all model parameters. The ramp of the
    decay is that of the published training script of Inception-v3.

    Example:

    >>> model = AveragedModel(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]))
    >>> model.compile("sgd", "mse")
    >>> x, y = ops.ones((8, 4)), ops.zeros((8, 2))
    >>> history = model.fit(x, y, verbose=0)
    >>> with model.averaged():
    ...     loss = model.evaluate(x, y, verbose=0)
    """

    def __init__(self, network, decay=0.9999, **kwargs):
        super().__init__(**kwargs)
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1). Received: decay={decay}")
        self.network = network
        self.decay = float(decay)
        if network.built:
            self.build()

    def build(self, input_shape=None):
        if not self.network.built:
            self.network.build(input_shape)
        self.averages = [
            self.add_weight(
                name=f"average_{i}",
                shape=weight.shape,
                dtype=weight.dtype,
                initializer=lambda shape, dtype, weight=weight: copied(weight),
                trainable=False,
                autocast=False,
            )
            for i, weight in enumerate(self.averaged_weights)
        ]
        self.steps = self.add_weight(
            name="steps", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    @property
    def averaged_weights(self):
        """The weights of the network that hold floats, but for what Batch Renorm counts."""
        counts = {
            id(variable)
            for layer in flatten_layers(self.network)
            if isinstance(layer, BatchRenormalization)
            for variable in (layer.calls, layer.calls_per_step)
        }
        weights = [weight for weight in self.network.weights if "float" in weight.dtype]
        return [weight for weight in weights if id(weight) not in counts]

    @contextlib.contextmanager
    def averaged(self):
        """Puts the averages in the place of the weights, for the block of a `with` statement.

        In a callback on JAX, reach the model through `self.model`.
        """
        trained = [copied(weight) for weight in self.averaged_weights]
        try:
            for weight, average in zip(self.averaged_weights, self.averages, strict=True):
                weight.assign(copied(average))
            yield
        finally:
            for weight, value in zip(self.averaged_weights, trained, strict=True):
                weight.assign(value)

    def train_step(self, *arguments):
        if keras.backend.backend() != "jax":
            logs = super().train_step(*arguments)
            flush_statistics()
            self._average()
            return logs
        logs, (trainable, state, *others) = super().train_step(*arguments)
        variables = [*self.trainable_variables, *self.non_trainable_variables]
        with keras.StatelessScope(list(zip(variables, [*trainable, *state], strict=True))) as scope:
            self._average()
        state = [scope.get_current_value(weight) for weight in self.non_trainable_variables]
        return logs, (trainable, state, *others)

    def _average(self):
        step = ops.cast(self.steps, "float32")
        rate = 1.0 - ops.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for weight, average in zip(self.averaged_weights, self.averages, strict=True):
            weight, old = ops.convert_to_tensor(weight), ops.convert_to_tensor(average)
            average.assign_add(ops.cast(rate, average.dtype) * (weight - old))
        self.steps.assign_add(1)

    def get_config(self):
        network = keras.saving.serialize_keras_object(self.network)
        return {"name": self.name, "network": network, "decay": self.decay}

    @classmethod
    def from_config(cls, config):
        network = keras.saving.deserialize_keras_object(config["network"])
        return cls(**{**config, "network": network})


def copied(variable):
    """The value of a variable in an array of its own: on JAX, a training step deletes the arrays
    of the variables that it updates, and a variable may not lose its own to another's."""
    return ops.copy(ops.convert_to_tensor(variable))
