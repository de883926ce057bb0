"""Normalization in JAX: a tangent, of which the backward pass is the transpose."""

import functools

import jax
import jax.numpy as jnp

from keras_brn.kernels.normalization import Normalization

compiled = jax.jit

_FEWEST_CHANNELS = 16
_FEWEST_VALUES = 2**17
_FEW_ROWS = 8


def normalization_of(x, axis, microbatch_size=None, mask=None):
    kind = LeanNormalization if _is_lean(x, axis) else TangentNormalization
    return kind(x, axis, microbatch_size, mask)


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
        if 1 <= length <= _FEW_ROWS:  # Such as a microbatch of vectors: XLA makes vectors of these.
            rows = jnp.split(values, length, axes[0])
            return functools.reduce(jnp.add, rows)
        return super()._sum(values, axes)

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
        dscale = jnp.broadcast_to(self._of_each(dscale), x.shape)
        normalized = x * (dscale * self._of_each(1.0 / sigma)) - dscale * self._of_each(
            mean / sigma
        )
        return dx * self._of_each(slope) + normalized + self._of_each(doffset - slope * dmean)
