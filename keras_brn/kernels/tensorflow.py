"""Normalization by TensorFlow's fused batchnorm kernels, three to four times as fast on a CPU.

On a GPU their saved statistics mean something else, and XLA fuses the plain form by itself.
"""

import functools
import math

import tensorflow as tf

from keras_brn.kernels.columns import MOST_VALUES, MOST_VALUES_BACKWARD, columns_of
from keras_brn.kernels.normalization import Normalization

try:  # Not public. Without it derivatives of forward mode go through the kernels, and are wrong.
    from tensorflow.python.eager.forwardprop_util import pack_tangents
except ImportError:
    pack_tangents = None


# Below, the plain form takes less time than the kernels and what goes around them.
_FEWEST_VALUES = 2**17
_SUPPOSED_BATCH = 16  # Where the size of the minibatch is not known.


def compiled(function):
    return tf.function(function, reduce_retracing=True)


def normalization_of(x, axis, microbatch_size=None, mask=None):
    if isinstance(x, tf.RaggedTensor):
        return RaggedNormalization(x, axis, microbatch_size, mask)
    whole = microbatch_size is None and mask is None and 1 < axis == len(x.shape) - 1
    fits = whole and x.dtype == tf.float32 and x.shape[-1] > 1 and _is_large(x)
    if fits and _only_cpus() and not _has_tangent(x):
        columns = _columns(x)
        if columns is not None:
            return FusedNormalization(x, axis, columns)
    return PlainNormalization(x, axis, microbatch_size, mask)


def _is_large(x):
    sizes = [x.shape[0] or _SUPPOSED_BATCH, *x.shape[1:]]
    return None in sizes or math.prod(sizes) >= _FEWEST_VALUES


@functools.cache
def _only_cpus():
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def _has_tangent(x):
    """Whether a `tf.autodiff.ForwardAccumulator`, which knows the kernels wrongly, watches `x`."""
    return pack_tangents is not None and bool(pack_tangents([x]).tangents)


class PlainNormalization(Normalization):
    """As `Normalization`, with sums that keep their digits, which are also faster."""

    def _sum(self, values, axes):
        # TensorFlow adds up in float32, one value after the other: so where there are many or it is
        # not known how many, one axis at a time, and long axes in parts.
        sizes = [values.shape[axis] for axis in axes]
        if None not in sizes and math.prod(sizes) <= MOST_VALUES:
            return tf.reduce_sum(values, axes, keepdims=True)
        for axis in reversed(axes):
            values = _sum_over_axis(values, axis)
        return values


def _sum_over_axis(values, axis):
    length = values.shape[axis]
    if length is None or length <= MOST_VALUES:
        return tf.reduce_sum(values, axis, keepdims=True)
    columns = columns_of(length)
    if columns is None:
        parts = tf.split(values, [length - length % MOST_VALUES, length % MOST_VALUES], axis)
        return tf.add_n([_sum_over_axis(part, axis) for part in parts])
    shape = tf.shape(values)
    cut = tf.concat([shape[:axis], [length // columns, columns], shape[axis + 1 :]], 0)
    of_columns = tf.reduce_sum(tf.reshape(values, cut), axis)
    return tf.reduce_sum(of_columns, axis, keepdims=True)


class FusedNormalization(PlainNormalization):
    """As `Normalization`, of the whole minibatch, channels last; moments are (channels,).

    Args:
        x: As of `Normalization`.
        axis: Likewise.
        columns: Integer, a divisor of the number of values of a channel: see `columns_of`.
    """

    def __init__(self, x, axis, columns):
        super().__init__(x, axis)
        self._columns = columns
        self._total = lambda values: tf.reshape(self._sum(values, [0, 1, 2]), [-1])

    def moments(self, x):
        return _moments(tf.reshape(x, (-1, self._columns, x.shape[-1])))

    def normalize(self, x, mean, variance, scale, offset, epsilon):
        @tf.custom_gradient
        def normalize(*arguments):
            return self._output_and_gradient(*arguments, epsilon)

        if len(x.shape) == 4:
            return normalize(x, mean, variance, scale, offset)
        rows = tf.reshape(x, (-1, 1, 1, x.shape[-1]))
        return tf.reshape(normalize(rows, mean, variance, scale, offset), tf.shape(x))

    def _output_and_gradient(self, x, mean, variance, scale, offset, epsilon):
        """The output, and the function of its gradient that returns those of the arguments."""
        y, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=epsilon,
            is_training=False,
        )

        @tf.custom_gradient
        def gradients(*arguments):
            return self._gradients_and_second_derivative(*arguments, epsilon)

        def gradient(dy):
            dx, dscale, doffset = gradients(dy, *_in_this_graph((x, mean, variance, scale)))
            return dx, None, None, dscale, doffset

        return y, gradient

    def _gradients_and_second_derivative(self, dy, x, mean, variance, scale, epsilon):
        """The gradients of x, scale and offset by the fused kernel; theirs by the plain form."""
        arguments = (dy, x, mean, variance, scale)
        dx, dscale, doffset, *_ = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=dy,
            x=x,
            scale=scale,
            reserve_space_1=mean,
            reserve_space_2=variance,
            reserve_space_3=tf.constant([], x.dtype),
            epsilon=epsilon,
            is_training=True,
        )

        def second_derivative(*upstream):
            return self._second_derivative(*upstream, *_in_this_graph(arguments), epsilon)

        return (dx, dscale, doffset), second_derivative

    def _second_derivative(self, ux, uscale, uoffset, dy, x, mean, variance, scale, epsilon):
        """The gradients of the arguments of `_backward`, for upstream gradients of its results."""
        inverse = tf.math.rsqrt(variance + epsilon)
        slope, normalized = scale * inverse, (x - mean) * inverse
        dscale, doffset = self._total(dy * normalized), self._total(dy)
        through_mean, through_scale = self._total(ux), self._total(ux * normalized)
        n = self._divisor
        of_dy = slope * (ux - (through_mean + normalized * through_scale) / n)
        of_dy += uscale * normalized + uoffset
        of_normalized = uscale * dy - slope / n * (dscale * ux + through_scale * dy)
        of_slope = self._total(ux * dy) - (through_mean * doffset + through_scale * dscale) / n
        of_inverse = self._total(of_normalized * (x - mean)) + of_slope * scale
        return (
            of_dy,
            of_normalized * inverse,
            -inverse * self._total(of_normalized),
            -0.5 * of_inverse * inverse**3,
            of_slope * inverse,
        )


class RaggedNormalization:
    """As `Normalization`, of the values of a `tf.RaggedTensor`, without groups and mask.

    Raises:
        ValueError: If there are groups or a mask, or the last axis is not that of the channels or
            is ragged.
    """

    def __init__(self, x, axis, microbatch_size, mask):
        last = x.flat_values.shape.rank - 1
        if microbatch_size is not None or mask is not None or axis != len(x.shape) - 1 or not last:
            raise ValueError(
                "Of a RaggedTensor the last axis must be that of the channels and not be ragged, "
                "and there can be no `microbatch_size` and no `mask`. Received: "
                f"inputs.shape={tuple(x.shape)}, axis={axis}, microbatch_size={microbatch_size}, "
                f"mask={mask}"
            )
        self._of_values = normalization_of(x.flat_values, last)
        self.count = self._of_values.count

    def moments(self, x):
        return self._of_values.moments(x.flat_values)

    def normalize(self, x, *arguments):
        return x.with_flat_values(self._of_values.normalize(x.flat_values, *arguments))


def _columns(x):
    """Into how many columns the values of a channel are cut; `None` if they are too many."""
    if x.shape[:-1].is_fully_defined():
        count = math.prod(x.shape[:-1])
        return None if count > MOST_VALUES_BACKWARD else columns_of(max(1, count))
    columns = 1
    for size in reversed(x.shape[1:-1]):
        if size is None or columns * size > 4 * MOST_VALUES:
            break
        columns *= size
    return columns if x.shape[-2] is not None else tf.shape(x)[-2]


def _in_this_graph(tensors):
    """The tensors, which may be of the graph of a function that this one differentiates. A graph of
    further derivatives must find them here."""
    return [tf.identity(tensor) for tensor in tensors]


@tf.custom_gradient
def _moments(x):
    """Mean and biased variance, (channels,), of `x`, (rows, columns, channels).

    Each column gets moments of its own, which are then combined: see `columns_of`.
    """
    channels = x.shape[2]
    columns = x.shape[1] or tf.shape(x)[1]
    zeros, none = tf.zeros(columns * channels), tf.constant([], x.dtype)
    _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, (-1, 1, 1, columns * channels)),
        scale=zeros,  # Of an output that nobody needs.
        offset=zeros,
        mean=none,
        variance=none,
        is_training=True,
    )
    rows = x.shape[0] or tf.cast(tf.shape(x)[0], x.dtype)
    variance *= (rows - 1) / rows  # Biased.
    if x.shape[1] != 1:
        of_columns = tf.reshape(mean, (columns, channels))
        mean = tf.reduce_mean(of_columns, 0)
        variance = tf.reshape(variance, (columns, channels))
        variance = tf.reduce_mean(variance + tf.math.squared_difference(of_columns, mean), 0)
    if not (x.shape[0] and x.shape[1]):
        any_values = tf.size(x) > 0
        mean, variance = (tf.where(any_values, moment, 0.0) for moment in (mean, variance))

    def backward(dmean, dvariance):  # Of second derivatives only.
        (here,) = _in_this_graph([x])
        mean, _ = _moments(here)
        values = tf.cast(tf.size(here) / channels, x.dtype)
        return (dmean + 2.0 * dvariance * (here - mean)) / values

    return (mean, variance), backward
