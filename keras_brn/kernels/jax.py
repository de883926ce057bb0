"""Normalization in JAX: a tangent, of which the backward pass is the transpose."""

import functools
import math

import jax
import jax.numpy as jnp

from keras_brn.kernels.normalization import Normalization

compiled = jax.jit

_FEWEST_CHANNELS = 16
_FEWEST_VALUES = 2**17


def normalization_of(x, axis, microbatch_size=None, mask=None):
    kind = LeanNormalization if _is_lean(x, axis) else TangentNormalization
    return kind(x, axis, microbatch_size, mask)


# On a CPU, XLA makes vectors of additions of a few rows, but not of its reduction of a product,
# which takes ten times as long. So where rows are vectors of channels, long sums are made of short
# ones; but not on several devices, each of which may hold some of the groups.
_FEW_ROWS = 8


def _on_one_cpu():
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def _rows_at_once(rows):
    """The largest number of rows, at most `_FEW_ROWS`, that divides `rows`; 1 if there is none."""
    return next(n for n in range(min(_FEW_ROWS, max(rows, 1)), 0, -1) if rows % n == 0)


def _sum_of_rows(x, rows, axis):
    """The sum of so many parts of `x`, rather than a reduction."""
    return functools.reduce(jnp.add, jnp.split(x, rows, axis))


def sum_over(x, axis):
    rows = _rows_at_once(x.shape[axis])
    if rows == 1 or not _on_one_cpu():
        return jnp.sum(x, axis)
    return sum_over(_sum_of_rows(x, rows, axis), axis)


def _repeated(x, times, axis):
    """`x`, of length 1 in an axis, for each of so many rows; its transpose is as `sum_over`."""
    while times > 1:
        rows = _rows_at_once(times)
        if rows == 1:
            return jnp.repeat(x, times, axis)
        x, times = jnp.concatenate([x] * rows, axis), times // rows
    return x


def for_each_group(weight, moments):
    if moments.size == weight.size or not _on_one_cpu():
        return weight
    shape = (1,) * (moments.ndim - weight.ndim) + weight.shape
    return _repeated(weight.reshape(shape), moments.shape[0], 0)


def _is_lean(x, axis):
    """Where that is faster, or saves memory. In microbatches a layer alone takes a third longer so,
    but a network does not, and keeps less."""
    if axis != x.ndim - 1 or x.shape[axis] < _FEWEST_CHANNELS:
        return False
    single_pixels = x.ndim > 2 and x.size == x.shape[0] * x.shape[-1]
    return single_pixels or x.size >= _FEWEST_VALUES


class TangentNormalization(Normalization):
    """As `Normalization`, for derivatives of both modes."""

    def _sum(self, values, axes):
        length = values.shape[axes[0]] if len(axes) == 1 else 0
        if 1 <= length <= _FEW_ROWS:  # Such as a microbatch of vectors.
            return _sum_of_rows(values, length, axes[0])
        return super()._sum(values, axes)

    def _tangent_of_each(self, moments):
        vectors = self._cut_shape is not None and math.prod(self._cut_shape[2:-1]) == 1
        if not (vectors and _on_one_cpu()):
            return super()._tangent_of_each(moments)
        return _repeated(moments, self._cut_shape[1], 1)

    def _differentiable(self, epsilon):
        @jax.custom_jvp
        def normalize(tensors, *arguments):
            return self._output(*arguments, epsilon)

        @normalize.defjvp
        def tangent(arguments, tangents):
            tensors, *primals, _ = arguments
            _, dx, _, _, dscale, doffset = tangents  # The moments are functions of `x`.
            dy = self._with(tensors)._tangent(dx, dscale, doffset, *primals, epsilon)
            return normalize(*arguments), dy

        return functools.partial(normalize, self._tensors)


class LeanNormalization(TangentNormalization):
    """As `TangentNormalization`, for large inputs: its backward pass keeps no `x - mean` beside
    `x`."""

    def _tangent(self, dx, dscale, doffset, x, mean, variance, scale, epsilon):
        sigma = jnp.sqrt(variance + epsilon)
        slope = scale / sigma
        dmean = self._total(self._counted(dx)) / self._divisor
        products = self._total(self._counted(x * dx)) / self._divisor
        dscale -= slope * (products - mean * dmean) / sigma
        # Not `x - mean`, which is known in the forward pass, and which XLA would compute there. In
        # the transpose each product needs the gradient, and is summed up only after the
        # subtraction, so that a large mean does not drown the result.
        dscale = jnp.broadcast_to(self._tangent_of_each(dscale), x.shape)
        normalized = x * (dscale * self._of_each(1.0 / sigma)) - dscale * self._of_each(
            mean / sigma
        )
        through_mean = self._tangent_of_each(doffset - slope * dmean)
        return dx * self._of_each(slope) + normalized + through_mean
