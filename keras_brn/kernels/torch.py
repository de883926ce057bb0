"""Normalization in PyTorch: its native batchnorm kernels, or else with few temporaries."""

import torch

from keras_brn.kernels.normalization import Normalization

is_compiling = torch.compiler.is_compiling


def compiled(function):
    """`function` without a gradient, and with random numbers of its own."""

    def without_trace(*arguments):
        # The dropout of Keras draws from PyTorch's own generators.
        with torch.no_grad(), torch.random.fork_rng():
            return function(*arguments)

    return without_trace


_update_stats = torch.ops.aten.batch_norm_update_stats
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward


def normalization_of(x, axis, microbatch_size=None, mask=None):
    whole = microbatch_size is None and mask is None and axis == x.ndim - 1
    if whole and x.numel() > 0 and x.device.type in ("cpu", "cuda"):
        return NativeNormalization(x, axis)
    return InPlaceNormalization(x, axis, microbatch_size, mask)


class InPlaceNormalization(Normalization):
    """As `Normalization`, without the temporaries of autograd."""

    @torch.no_grad()
    def moments(self, x):
        x = self._cut(x)
        mean = self._total(self._counted(x)) / self._divisor
        squares = self._counted(x - self._of_each(mean)).square_()
        return mean, self._total(squares) / self._divisor

    def normalize(self, x, mean, variance, scale, offset, epsilon):
        y = _Normalize.apply(self._cut(x), mean, variance, scale, offset, epsilon, self)
        return y.view_as(x)

    def gradients(self, dy, x, mean, variance, scale, epsilon):
        """The gradients of `x`, `scale` and `offset`."""
        if torch.is_grad_enabled():  # Second derivatives: the moments are functions of `x`.
            mean, variance = Normalization.moments(self, x)
            return self._backward(dy, x, mean, variance, scale, epsilon)
        sigma = (variance + epsilon).sqrt()
        products = (x - self._of_each(mean)).mul_(dy)
        dscale, doffset = self._total(products) / sigma, self._total(dy)
        slope = scale / sigma
        through_variance = -slope * dscale / (sigma * self._divisor)
        through_mean = -slope * doffset / self._divisor - through_variance * mean
        dx = torch.mul(x, self._of_each(through_variance), out=products)
        dx = self._counted(dx.add_(self._of_each(through_mean)))
        return dx.addcmul_(dy, self._of_each(slope)), dscale, doffset


class NativeNormalization(InPlaceNormalization):
    """As `Normalization`, of the whole minibatch, channels last."""

    @torch.no_grad()
    def moments(self, x):
        # The kernel adds up in float32, one value after the other. So each column gets moments of
        # its own: the sums are shorter, and a large mean does not drown them.
        columns, channels = x.shape[-2:] if x.ndim > 2 else (1, x.shape[-1])
        mean, variance = _update_stats(_channels_second(x, columns * channels), None, None, 0.0)
        of_columns = mean.view(columns, channels)
        mean = of_columns.mean(0)
        variance = variance.view(columns, channels) + (of_columns - mean).square()
        return mean, variance.mean(0)

    def gradients(self, dy, x, mean, variance, scale, epsilon):
        # Differentiable: the kernel's own derivative knows what the moments are.
        dx, dscale, doffset = _batch_norm_backward(
            _channels_second(dy),
            _channels_second(x),
            scale,
            None,
            None,
            mean,
            (variance + epsilon).rsqrt(),
            True,
            epsilon,
            [True, True, True],
        )
        return dx.movedim(1, -1).reshape_as(x), dscale, doffset


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, variance, scale, offset, epsilon, normalization):
        ctx.save_for_backward(x, mean, variance, scale)
        ctx.epsilon, ctx.normalization = epsilon, normalization
        slope = scale * (variance + epsilon).rsqrt()
        offset, slope = (normalization._of_each(m) for m in (offset - mean * slope, slope))
        return torch.addcmul(offset, x, slope)

    @staticmethod
    def backward(ctx, dy):
        dx, dscale, doffset = ctx.normalization.gradients(dy, *ctx.saved_tensors, ctx.epsilon)
        return dx, None, None, dscale, doffset, None, None


def _channels_second(x, channels=None):
    """`x` as (1, channels, rows, 1), without a copy."""
    return x.reshape(1, -1, 1, channels or x.shape[-1]).permute(0, 3, 1, 2)
