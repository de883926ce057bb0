"""Recurrent networks with Batch Renorm: one set of averages for all time steps (section 5)."""

import keras
from keras import ops

from keras_brn.layer import BatchRenormalization
from keras_brn.statistics import StatisticsScope, move_averages


@keras.saving.register_keras_serializable("keras_brn")
class RenormLSTMCell(keras.layers.Layer):
    """LSTM cell that normalizes its two matrix products and its cell state:

        gates  = normalized(x W) + normalized(h U) + b
        c_next = sigmoid(forget) * c + sigmoid(input) * tanh(candidate)
        h_next = sigmoid(output) * tanh(normalized(c_next))

    with the three normalizations of Cooijmans et al. 2017 (equations 6 to 8), here by Batch
    Renorm. The averages of mu and sigma are the same for all time steps, as Ioffe 2017 proposes
    in section 5, so that a sequence can be longer than those that it was trained on.

    To be used in `RenormRNN`.

    Args:
        units: Integer, number of outputs.
        gamma: Float, initial scale of the normalized products, .1 in Cooijmans et al.: with 1 the
            gates would saturate and their gradients vanish.
        **kwargs: `name` and `dtype`, as of any layer.

    Shapes: inputs (batch, features); states h and c, and the output h, (batch, units).
    """

    def __init__(self, units, gamma=0.1, **kwargs):
        super().__init__(**kwargs)
        if not (isinstance(units, int) and units >= 1):
            raise ValueError(f"`units` must be an integer of at least 1. Received: units={units!r}")
        self.units, self.gamma = units, gamma
        self.state_size, self.output_size = [units, units], units
        # The bias of the gates is the only shift of the products.
        self.input_norm = self.normalization("input_norm", center=False)
        self.recurrent_norm = self.normalization("recurrent_norm", center=False)
        self.cell_norm = self.normalization("cell_norm", center=True)

    def normalization(self, name, center):
        """A new layer that normalizes over axis 0; a subclass may return another."""
        scale = keras.initializers.Constant(self.gamma)
        return BatchRenormalization(
            gamma_initializer=scale, center=center, name=name, dtype=self.dtype_policy
        )

    def build(self, input_shape):
        gates = 4 * self.units
        self.kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1], gates), initializer="glorot_uniform"
        )
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.units, gates), initializer="orthogonal"
        )
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer=self._initial_bias)
        self.input_norm.build((None, gates))
        self.recurrent_norm.build((None, gates))
        self.cell_norm.build((None, self.units))

    def _initial_bias(self, shape, dtype=None):
        """1 for the forget gate, so that a new cell remembers."""
        parts = [ops.zeros, ops.ones, ops.zeros, ops.zeros]
        return ops.concatenate([part((self.units,), dtype) for part in parts])

    def call(self, inputs, states, training=None):
        h, c = states
        of_input = self.input_norm(ops.matmul(inputs, self.kernel), training=training)
        of_state = self.recurrent_norm(ops.matmul(h, self.recurrent_kernel), training=training)
        gates = of_input + of_state + ops.convert_to_tensor(self.bias, of_input.dtype)
        write, forget, candidate, read = ops.split(gates, 4, axis=-1)
        c = ops.sigmoid(forget) * c + ops.sigmoid(write) * ops.tanh(candidate)
        h = ops.sigmoid(read) * ops.tanh(self.cell_norm(c, training=training))
        return h, [h, c]

    def get_config(self):
        return {**super().get_config(), "units": self.units, "gamma": self.gamma}


@keras.saving.register_keras_serializable("keras_brn")
class RenormRNN(keras.layers.RNN):
    """`keras.layers.RNN` of a cell with Batch Renorm, such as `RenormLSTMCell`.

    In training each time step is normalized by its own minibatch, all with the same averages;
    once a sequence these move by the mean over the time steps. In training the loop over time is
    unrolled, so that the number of time steps must be known: it is the length of the batches that
    `fit` is given. In inference the number is free.

    Arguments and shapes are those of `keras.layers.RNN`, without `unroll`.
    """

    def call(self, sequences, initial_state=None, mask=None, training=False):
        if training and mask is not None:
            raise ValueError(
                "RenormRNN can't leave masked time steps out of the statistics in training: give "
                f"it sequences of one length, without a mask. Received: mask={mask}"
            )
        self.unroll = bool(training)  # A loop of the backend can't hand the statistics out.
        with _OncePerSequence() as statistics:
            outputs = super().call(sequences, initial_state, mask, training)
        statistics.move()
        return outputs

    def get_config(self):
        config = super().get_config()
        del config["unroll"]
        return config


class _OncePerSequence(StatisticsScope):
    """Holds the statistics of all time steps back, and takes them as those of as many groups."""

    def __init__(self):
        self.received = {}  # By averages.

    def receive(self, averages, errors, valid, momentum):
        key = tuple(id(average) for average in averages)
        self.received.setdefault(key, (averages, momentum, []))[2].append((errors, valid))

    def move(self):
        for averages, momentum, steps in self.received.values():
            errors = [ops.stack([errors[k] for errors, _ in steps]) for k in range(len(averages))]
            valid = ops.stack([valid for _, valid in steps])
            move_averages(averages, errors, valid, momentum)
