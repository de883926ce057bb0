"""Normalization in PyTorch: its native batchnorm kernels, or else with few temporaries."""

import inspect
import math

import torch
from keras import ops
from torch.autograd import forward_ad

from keras_brn.kernels.columns import MOST_VALUES_BACKWARD, columns_of
from keras_brn.kernels.normalization import Normalization

is_compiling = torch.compiler.is_compiling

_FEWEST_CHANNELS = 16  # With fewer, in the last axis, the kernels of a CPU are slow.


def compiled(function):
    """`function` without a gradient, and with random numbers of its own."""

    def without_trace(*arguments):
        # The dropout of Keras draws from PyTorch's own generators.
        with torch.no_grad(), torch.random.fork_rng():
            return function(*arguments)

    return without_trace


@torch.library.custom_op("keras_brn::kept", mutates_args=())
def _copy(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@_copy.register_fake
def _(x):
    return torch.empty_like(x)


def kept(x):
    """`x`, as the backward pass must have it.

    `torch.compile` computes small values anew in the backward pass, and takes for them the moving
    averages, which have moved by then. It does not look into operations like this one.
    """
    return _copy(x) if is_compiling() else x


# What `keras_brn.kernels` describes, by PyTorch itself: the number of calls bounds small steps.


def like(variable, x):
    value = variable.value
    if value.dtype == x.dtype and value.device == x.device:
        return value
    return ops.convert_to_tensor(value, x.dtype)


def reshaped(x, shape):
    return x.reshape(shape)


def cast(x, dtype):
    return x.to(getattr(torch, dtype))


def sum_over(x, axis):
    return x.sum(axis)


def sqrt(x):
    return x.sqrt()


_TRUE = torch.ones((), dtype=torch.bool)


def isfinite(x):
    if not is_compiling() and x.device.type == "cpu" and not _is_transformed(x):
        if math.isfinite(x.sum()):
            return _TRUE.expand_as(x)  # A sum takes a tenth to two fifths of the time.
    return x.isfinite()


def clip(x, low, high):
    return x.clamp(low, high)


def zero_unless(valid, x):
    return x.masked_fill(~valid, 0.0)


def known_to_hold(valid):
    return not is_compiling() and valid._base is _TRUE  # As `isfinite` returns it.


def add_share(variable, x, share):
    value = variable.value
    variable.assign(torch.add(value, x.to(value.dtype), alpha=share))


def stop_gradient(x):
    return x.detach()


_update_stats = torch.ops.aten.batch_norm_update_stats
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward


def normalization_of(x, axis, microbatch_size=None, mask=None):
    whole = microbatch_size is None and mask is None
    if whole and x.numel() > 0 and x.device.type in ("cpu", "cuda") and not _is_transformed(x):
        if x.shape[axis] == 1 or (x.stride(axis) > 1 and x.movedim(axis, 1).is_contiguous()):
            return NativeNormalization(x, axis, channels_last=False)
        if axis == x.ndim - 1 and _is_fast_in_rows(x):
            return NativeNormalization(x, axis, channels_last=True)
    return InPlaceNormalization(x, axis, microbatch_size, mask)


def _is_fast_in_rows(x):
    """Whether the kernels for channels last are faster than the plain form, and as exact."""
    if x.device.type != "cpu":
        return True
    channels = x.shape[-1]
    rows = x.numel() // channels
    exact = rows <= MOST_VALUES_BACKWARD and columns_of(rows) is not None
    return exact and channels >= _FEWEST_CHANNELS


def _is_transformed(x):
    """Whether `torch.func` or forward-mode differentiation sees `x`: the kernels know neither."""
    if is_compiling():
        return False
    try:
        x.data_ptr()
    except RuntimeError:  # Of a tensor that stands for others.
        return True
    return forward_ad.unpack_dual(x).tangent is not None


class InPlaceNormalization(Normalization):
    """As `Normalization`, without the temporaries of autograd."""

    def _sum(self, values, axes):
        return values.sum(axes, keepdim=True) if axes else values  # PyTorch: none are all.

    def _cut(self, x):
        return x if self._cut_shape is None else x.reshape(self._cut_shape)

    def moments(self, x):
        with torch.no_grad():  # Not as a decorator, which `torch.compile` can't trace.
            x = self._cut(x)
            mean = self._total(self._counted(x)) / self._divisor
            centered = self._counted(x - self._of_each(mean))
            return mean, self._total(centered.mul_(centered)) / self._divisor

    def normalize(self, x, mean, variance, scale, offset, epsilon):
        # What `torch.compile` knows no tangents of.
        function = _Normalize if is_compiling() else _NormalizeWithTangents
        held = self._tensors
        held = held.get("_mask"), held.get("_divisor")
        y = function.apply(self._cut(x), mean, variance, scale, offset, *held, epsilon, self)
        return y.view_as(x)

    def gradients(self, dy, x, mean, variance, scale, epsilon):
        """The gradients of `x`, `scale` and `offset`."""
        if torch.is_grad_enabled():  # Second derivatives: the moments are functions of `x`.
            mean, variance = Normalization.moments(self, x)
            return self._backward(dy, x, mean, variance, scale, epsilon)
        inverse = (variance + epsilon).rsqrt()
        products = (x - self._of_each(mean)).mul_(dy)
        dscale, doffset = self._total(products) * inverse, self._total(dy)
        slope = scale * inverse
        share = slope / -self._divisor
        through_variance = share * inverse * dscale
        through_mean = torch.addcmul(share * doffset, through_variance, mean, value=-1)
        dx = torch.mul(x, self._of_each(through_variance), out=products)
        dx = self._counted(dx.add_(self._of_each(through_mean)))
        return dx.addcmul_(dy, self._of_each(slope)), dscale, doffset


class NativeNormalization(InPlaceNormalization):
    """As `Normalization`, of the whole minibatch, by the kernels of PyTorch's own batchnorm.

    Args:
        x: As of `Normalization`.
        axis: Likewise.
        channels_last: Whether `x` lies in memory like that. Else the channels are second there.
    """

    def __init__(self, x, axis, channels_last):
        super().__init__(x, axis)
        self._axis, self._channels_last = axis, channels_last
        self._shape = (-1, *(1 for _ in range(x.ndim - 1 - axis)))

    def moments(self, x):
        with torch.no_grad():
            if self._channels_last:
                return _moments_of_rows(x)
            mean, variance = _update_stats(self._channels_second(x), None, None, 0.0)
            return mean.view(self._shape), variance.view(self._shape)

    def gradients(self, dy, x, mean, variance, scale, epsilon):
        # Differentiable: the kernel's own derivative knows what the moments are.
        dx, dscale, doffset = _batch_norm_backward(
            self._channels_second(dy),
            self._channels_second(x),
            scale.reshape(-1),
            None,
            None,
            mean.reshape(-1),
            (variance.reshape(-1) + epsilon).rsqrt(),
            True,
            epsilon,
            [True, True, True],
        )
        if self._channels_last:
            return dx.movedim(1, -1).reshape_as(x), dscale, doffset
        return dx.movedim(1, self._axis), dscale.view(self._shape), doffset.view(self._shape)

    def _channels_second(self, x):
        """`x` as the kernels take it: a view of `x`, and of its gradient almost always."""
        return (
            _rows(x, x.shape[-1]) if self._channels_last else x.movedim(self._axis, 1).contiguous()
        )


def _moments_of_rows(x):
    """Mean and biased variance, (channels,), of `x`, channels last.

    Each of some columns gets moments of its own, which are then combined: see `columns_of`.
    """
    channels = x.shape[-1]
    columns = columns_of(x.numel() // channels) if x.device.type == "cpu" else 1
    mean, variance = _update_stats(_rows(x, columns * channels), None, None, 0.0)
    if columns == 1:
        return mean, variance
    of_columns = mean.view(columns, channels)
    mean = of_columns.mean(0)
    variance = variance.view(columns, channels) + (of_columns - mean).square()
    return mean, variance.mean(0)


def _rows(x, channels):
    """(1, channels, rows, 1)."""
    return x.reshape(1, -1, 1, channels).permute(0, 3, 1, 2)


class _Normalize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, mean, variance, scale, offset, mask, divisor, epsilon, normalization):
        slope = scale * (variance + epsilon).rsqrt()
        offset = torch.addcmul(offset, mean, slope, value=-1)
        offset, slope = (normalization._of_each(m) for m in (offset, slope))
        return torch.addcmul(offset, x, slope)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.epsilon, ctx.normalization = inputs
        del tensors[4]  # The offset.
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def saved(ctx):
        """The normalization, and the arguments of its derivatives."""
        *arguments, mask, divisor = ctx.saved_tensors
        held = {"_mask": mask, "_divisor": divisor}
        held = {name: value for name, value in held.items() if value is not None}
        return ctx.normalization._with(held), (*arguments, ctx.epsilon)

    @staticmethod
    def backward(ctx, dy):
        normalization, arguments = _Normalize.saved(ctx)
        dx, dscale, doffset = normalization.gradients(dy, *arguments)
        return dx, None, None, dscale, doffset, None, None, None, None


# PyTorch asks for it at each call, and Python would find it out each time.
_Normalize.forward.__signature__ = inspect.signature(_Normalize.forward)


class _NormalizeWithTangents(_Normalize):
    @staticmethod
    def jvp(ctx, dx, dmean, dvariance, dscale, doffset, *_):
        normalization, arguments = _Normalize.saved(ctx)
        x, _, _, scale, _ = arguments
        dx, dscale, doffset = (
            torch.zeros_like(of) if tangent is None else tangent
            for tangent, of in ((dx, x), (dscale, scale), (doffset, scale))
        )
        return normalization._tangent(dx, dscale, doffset, *arguments)
