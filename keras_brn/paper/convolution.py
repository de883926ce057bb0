"""Convolutions of many small networks at once: as matrix products, in JAX."""

import functools

import jax
import jax.numpy as jnp
import keras


def with_convolutions(network, kind):
    """A copy of a functional network whose convolutions are of the class `kind`, a
    `keras.layers.Conv2D`, with the same weights."""
    if kind is keras.layers.Conv2D:
        return network

    def clone(layer):
        new = kind if type(layer) is keras.layers.Conv2D else type(layer)
        return new.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=clone)
    copy.set_weights(network.get_weights())
    return copy


def patches(x, size, strides):
    """What each output of a convolution with "same" padding sees.

    Args:
        x: (batch, height, width, channels).
        size: (height, width) of the kernel.
        strides: (down, right).

    Returns:
        List of (batch, height / down, width / right, channels), one per position in the kernel.
    """
    outputs = [-(-n // stride) for n, stride in zip(x.shape[1:3], strides, strict=True)]
    missing = [
        max(0, (m - 1) * stride + k - n)
        for n, m, k, stride in zip(x.shape[1:3], outputs, size, strides, strict=True)
    ]
    x = jnp.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])
    return [
        x[
            :,
            i : i + (outputs[0] - 1) * strides[0] + 1 : strides[0],
            j : j + (outputs[1] - 1) * strides[1] + 1 : strides[1],
        ]
        for i in range(size[0])
        for j in range(size[1])
    ]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def split_matmul(x, kernel, parts):
    """(m, k) times (k, n), with the sum over m of the gradient of the kernel in `parts`."""
    return x @ kernel


def _forward(x, kernel, parts):
    return x @ kernel, (x, kernel)


def _backward(parts, saved, dy):
    x, kernel = saved
    cut = [a.reshape(parts, -1, a.shape[-1]) for a in (x, dy)]
    dkernel = jnp.einsum("smk,smn->skn", *cut).sum(0)
    return dy @ kernel.T, dkernel


split_matmul.defvjp(_forward, _backward)


class PatchConv2D(keras.layers.Conv2D):
    """A matrix product of patches, (values, kernel) x (kernel, filters)."""

    rows = 1024  # Of which each part of a gradient of the kernel is a sum.

    def convolution_op(self, inputs, kernel):
        kernel = keras.ops.convert_to_tensor(kernel)
        seen = patches(inputs, self.kernel_size, self.strides)
        seen = seen[0] if len(seen) == 1 else jnp.concatenate(seen, -1)
        shape = seen.shape
        seen = seen.reshape(-1, shape[-1])
        y = split_matmul(seen, kernel.reshape(-1, kernel.shape[-1]), max(1, len(seen) // self.rows))
        return y.reshape(*shape[:-1], -1)
