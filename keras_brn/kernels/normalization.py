"""The arithmetic of the layer in training: moments, one multiply-add, and its backward pass."""

import copy
import math

from keras import ops


class Normalization:
    """Normalizes each channel of `x` by the moments of its group of examples, in `keras.ops`.

    Args:
        x: Tensor of rank 2 or more, float32 or float64.
        axis: Integer >= 0, the channels.
        microbatch_size: Number of consecutive examples in a group, of which the last may be
            smaller; `None` for a single group.
        mask: Tensor that broadcasts to the shape of `x` without its channels, or `None`. Where it
            is `False`, a value is not counted in the moments.

    Attributes:
        count: The number of values behind each moment; broadcasts with them.
    """

    def __init__(self, x, axis, microbatch_size=None, mask=None):
        self._cut_shape = None if mask is not None else _even_groups(x, microbatch_size)
        if self._cut_shape is None:
            groups = _groups(x, axis, microbatch_size, self._sum)
            self._total, self._of_each, self.count = groups
        else:
            self._total, self.count = _total_over(self._cut(x), {0, axis + 1}, self._sum)
            self._of_each = _of_each
        self._mask = None
        if mask is not None:
            self._mask = ops.expand_dims(ops.cast(mask, "bool"), axis)
            self.count = self._total(self._counted(ops.ones_like(x)))
        self._divisor = self.count
        if not is_certain(self.count):
            self._divisor = ops.where(self.count > 0, self.count, 1.0)

    @property
    def _tensors(self):
        """Those that derivatives depend on besides their arguments, by the names of attributes."""
        held = {"_mask": self._mask, "_divisor": self._divisor}
        return {name: value for name, value in held.items() if ops.is_tensor(value)}

    def _with(self, tensors):
        """A copy with other `_tensors`: a derivative that is taken later, or in another context,
        must not use those of this one."""
        other = copy.copy(self)
        vars(other).update(tensors)
        return other

    def _sum(self, values, axes):
        """Over some axes, in ascending order, which remain with length 1."""
        return ops.sum(values, axes, keepdims=True)

    def _cut(self, x):
        """(groups, examples, ...) where the groups are known to be of equal size."""
        return x if self._cut_shape is None else ops.reshape(x, self._cut_shape)

    def _counted(self, values):
        return values if self._mask is None else ops.where(self._mask, values, 0.0)

    def moments(self, x):
        """Mean and biased variance, each (groups, 1, .., channels), channels where they were."""
        x = self._cut(x)
        mean = self._total(self._counted(x)) / self._divisor
        centered = self._counted(x - self._of_each(mean))
        return mean, self._total(ops.square(centered)) / self._divisor

    def normalize(self, x, mean, variance, scale, offset, epsilon):
        """`(x - mean) / sqrt(variance + epsilon) * scale + offset`, the moments being those of `x`.

        What flows back to `x` through its moments is in the gradient of `x`, as in the backward
        equations of the paper (section 3), so that nothing flows back to `mean` and `variance`.
        In second derivatives they are functions of `x` like any other.

        Args:
            x: Tensor, the one that `mean` and `variance` come from.
            mean: As returned by `moments`.
            variance: As returned by `moments`.
            scale: Tensor of the shape of the moments.
            offset: Tensor of the shape of the moments.
            epsilon: Float > 0.
        """

        y = self._differentiable(epsilon)(self._cut(x), mean, variance, scale, offset)
        return y if self._cut_shape is None else ops.reshape(y, ops.shape(x))

    def _differentiable(self, epsilon):
        """`normalize` of examples that are cut into groups, as a function of its tensors, with the
        derivative that it promises."""

        @ops.custom_gradient
        def normalize(*arguments):
            def backward(dy):
                dx, dscale, doffset = self._backward(dy, *arguments[:4], epsilon)
                return dx, None, None, dscale, doffset

            return self._output(*arguments, epsilon), backward

        return normalize

    def _output(self, x, mean, variance, scale, offset, epsilon):
        slope = scale / ops.sqrt(variance + epsilon)
        return x * self._of_each(slope) + self._of_each(offset - mean * slope)

    def _backward(self, dy, x, mean, variance, scale, epsilon):
        """The gradients of `x`, `scale` and `offset`."""
        sigma = ops.sqrt(variance + epsilon)
        dscale, doffset = self._dscale(dy, x, mean, sigma), self._total(dy)
        slope = scale / sigma
        through_variance = self._of_each(-slope * dscale / (sigma * self._divisor))
        through_mean = self._of_each(-slope * doffset / self._divisor)
        centered = x - self._of_each(mean)
        through_moments = self._counted(centered * through_variance + through_mean)
        return dy * self._of_each(slope) + through_moments, dscale, doffset

    def _dscale(self, dy, x, mean, sigma):
        return self._total(dy * (x - self._of_each(mean))) / sigma

    def _tangent(self, dx, dscale, doffset, x, mean, variance, scale, epsilon):
        """The tangent of the output from those of `x`, `scale` and `offset`: the transpose of
        `_backward`."""
        sigma = ops.sqrt(variance + epsilon)
        slope = scale / sigma
        centered = x - self._of_each(mean)
        dmean = self._total(self._counted(dx)) / self._divisor
        dsigma = self._total(self._counted(centered * dx)) / (sigma * self._divisor)
        through_sigma = self._tangent_of_each((dscale - slope * dsigma) / sigma)
        through_mean = self._tangent_of_each(doffset - slope * dmean)
        return dx * self._of_each(slope) + centered * through_sigma + through_mean

    def _tangent_of_each(self, moments):
        return self._of_each(moments)


def is_certain(count):
    """Whether it is known, and that there are values behind each moment."""
    return isinstance(count, float) and count > 0


def _even_groups(x, size):
    """(groups, size, ...) if that is certain to hold `x`, else `None`."""
    batch = x.shape[0]
    if size is None or not isinstance(batch, int) or batch == 0 or batch % min(size, batch):
        return None
    return (-1, min(size, batch), *ops.shape(x)[1:])


def _total_over(x, kept, sum_over):
    """Function that sums over all axes but those in `kept`, and the number of values summed."""
    shape = ops.shape(x)
    axes = [axis for axis in range(len(shape)) if axis not in kept]
    count = math.prod([shape[axis] for axis in axes])
    count = float(count) if isinstance(count, int) else ops.cast(count, x.dtype)
    return lambda values: sum_over(values, axes), count


def _of_each(moments):
    return moments


def _groups(x, channel_axis, size, sum_over):
    """How the values of a channel are grouped, where the last group may be smaller.

    Returns:
        total: Function that sums values of the shape of `x` over each group, to
            (groups, 1, .., channels), the channels being where they were.
        of_each: Function that gives every example the moments of its group, (batch, 1, ..).
        count: The number of values in each group.
    """
    if size is None:
        total, count = _total_over(x, {channel_axis}, sum_over)
        return total, _of_each, count

    shape = ops.shape(x)
    if isinstance(shape[0], int):
        size = max(1, min(size, shape[0]))
    groups = -(-shape[0] // size)
    missing = groups * size - shape[0]
    of_example, count = _total_over(x, {0, channel_axis}, sum_over)
    examples = ops.minimum(size, shape[0] - size * ops.arange(groups))
    count = ops.cast(examples, x.dtype) * count

    def total(values):  # Per example first: only a vector per example is padded and grouped.
        values = of_example(values)
        if not isinstance(missing, int) or missing:
            values = ops.pad(values, [[0, missing]] + [[0, 0]] * (len(shape) - 1))
        of_group = sum_over(ops.reshape(values, (groups, size, *values.shape[1:])), [1])
        return ops.squeeze(of_group, 1)

    def of_each(moments):
        return ops.take(moments, ops.arange(shape[0]) // size, axis=0)

    return total, of_each, ops.reshape(count, (groups, *[1] * (len(shape) - 1)))
