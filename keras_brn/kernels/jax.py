"""Normalization in JAX: a tangent, of which the backward pass is the transpose."""

import functools

import jax
import jax.numpy as jnp

from keras_brn.kernels.normalization import Normalization

compiled = jax.jit

_FEW_CHANNELS = 16


def normalization_of(x, axis, microbatch_size=None, mask=None):
    lean = x.shape[axis] >= _FEW_CHANNELS
    kind = LeanNormalization if lean else TangentNormalization
    return kind(x, axis, microbatch_size, mask)


class TangentNormalization(Normalization):
    """As `Normalization`, for derivatives of both modes."""

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
    """As `TangentNormalization`, for many channels: its backward pass is the faster one that XLA
    makes of it, and keeps no `x - mean` beside `x`."""

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
