"""Every way of differentiating that a backend has, against what it makes of plain operations."""

import shutil

import keras
import numpy as np
import pytest
from gradients import Autodiff
from keras import ops

from keras_brn import BatchRenormalization, LinearRamp

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.each_backend
of_jax, of_tensorflow, of_torch = (
    pytest.mark.skipif(BACKEND != name, reason=f"of {name}")
    for name in ("jax", "tensorflow", "torch")
)
CASES = [
    ((6, 4), {}),
    ((4, 16), {}),
    ((6, 3, 4), {}),
    ((3, 2, 1, 16), {}),
    ((6, 4, 3), {"axis": 1}),
    ((6, 3, 2, 4), {"microbatch_size": 3}),
    ((8, 3, 4), {"microbatch_size": 3}),
    ((6, 3, 4), {"mask": True}),
]


@pytest.fixture(params=CASES, ids=str)
def setting(request, rng, monkeypatch):
    """`x`, a direction, and two functions of the input and gamma: the layer, and its plain form."""
    shape, arguments = request.param
    x, direction = (rng.normal(1, 2, shape).astype("float32") for _ in range(2))
    arguments = dict(arguments)
    mask = rng.random(shape[:-1]) < 0.7 if arguments.pop("mask", False) else None
    layer = BatchRenormalization(r_max=1.3, d_max=0.5, **arguments)
    layer.build(shape)
    state = [ops.copy(variable.value) for variable in layer.non_trainable_variables]

    def output(x, gamma):
        trainable = [gamma, ops.zeros_like(gamma)]
        counted = None if mask is None else ops.convert_to_tensor(mask)
        return layer.stateless_call(trainable, state, x, training=True, mask=counted)[0]

    def plain(x, gamma):
        with monkeypatch.context() as patch:
            patch.setattr("keras_brn.layer.normalization_of", Autodiff)
            return output(x, gamma)

    gamma = rng.normal(size=layer.gamma.shape).astype("float32")
    return x, direction, gamma, output, plain


def check(value, expected):
    for one, other in zip(value, expected, strict=True):
        one, other = (ops.convert_to_numpy(each) for each in (one, other))
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4 * np.abs(other).max())


@of_jax
def test_jax(setting):
    import jax

    x, direction, gamma, *functions = (
        jax.numpy.asarray(each) if isinstance(each, np.ndarray) else each for each in setting
    )
    weights = jax.numpy.asarray(np.random.default_rng(1).normal(size=x.shape), "float32")

    def derivatives(function):
        return jax.jit(lambda: list_of_derivatives(function))()

    def list_of_derivatives(function):
        def loss(x, gamma):
            return (weights * function(x, gamma) ** 3).sum()

        def loss_of_x(x):
            return loss(x, gamma)

        tangents = (direction, 0.3 * gamma)
        gradient = jax.grad(loss, (0, 1))
        both = jax.numpy.stack([x, direction])
        return [
            *jax.jvp(function, (x, gamma), tangents),
            jax.jacfwd(loss_of_x)(x),
            *gradient(x, gamma),
            *jax.grad(jax.checkpoint(loss), (0, 1))(x, gamma),
            *jax.jvp(gradient, (x, gamma), tangents)[1],  # Forward over reverse.
            jax.grad(lambda x: jax.jvp(loss_of_x, (x,), (direction,))[1])(x),  # Reverse over it.
            jax.hessian(loss_of_x)(x),
            jax.vmap(function, (0, None))(both, gamma),
            jax.vmap(jax.grad(loss_of_x))(both),
        ]

    check(*map(derivatives, functions))


@of_tensorflow
def test_tensorflow(setting):
    import tensorflow as tf

    x, direction, gamma, *functions = (
        tf.constant(each) if isinstance(each, np.ndarray) else each for each in setting
    )
    weights = np.random.default_rng(1).normal(size=x.shape).astype("float32")

    def derivatives(function):
        def tangent(x, gamma, function=function):
            with tf.autodiff.ForwardAccumulator([x, gamma], [direction, 0.3 * gamma]) as forward:
                y = function(x, gamma)
            return forward.jvp(y)

        def gradient(x, gamma):
            with tf.GradientTape() as tape:
                tape.watch([x, gamma])
                loss = tf.reduce_sum(weights * function(x, gamma) ** 3)
            return tape.gradient(loss, [x, gamma])

        def forward_over_reverse(x, gamma):
            return tangent(x, gamma, gradient)

        def reverse_over_reverse(x, gamma):
            with tf.GradientTape() as tape:
                tape.watch([x, gamma])
                total = sum(tf.reduce_sum(each**2) for each in gradient(x, gamma))
            return tape.gradient(total, [x, gamma])

        return [
            tangent(x, gamma),
            tf.function(tangent)(x, gamma),
            tangent(x, gamma, tf.function(function)),
            *gradient(x, gamma),
            *tf.function(gradient)(x, gamma),
            *forward_over_reverse(x, gamma),
            *tf.function(forward_over_reverse)(x, gamma),
            *reverse_over_reverse(x, gamma),
        ]

    check(*map(derivatives, functions))


@of_torch
def test_torch(setting):
    import torch
    from torch.autograd import forward_ad

    x, direction, gamma, *functions = (
        torch.tensor(each) if isinstance(each, np.ndarray) else each for each in setting
    )
    weights = torch.tensor(np.random.default_rng(1).normal(size=x.shape), dtype=torch.float32)

    def derivatives(function):
        def loss(x, gamma):
            return (weights * function(x, gamma) ** 3).sum()

        def loss_of_x(x):
            return loss(x, gamma)

        def dual():
            with forward_ad.dual_level():
                y = function(forward_ad.make_dual(x, direction), gamma)
                return forward_ad.unpack_dual(y).tangent

        tangents = (direction, 0.3 * gamma)
        both = torch.stack([x, direction])
        return [
            *torch.func.jvp(function, (x, gamma), tangents),
            dual(),
            torch.func.jacfwd(loss_of_x)(x),
            *torch.func.grad(loss, (0, 1))(x, gamma),
            torch.func.grad(loss, 1)(x, gamma),
            torch.func.hessian(loss_of_x)(x),
            *torch.func.jvp(torch.func.grad(loss, (0, 1)), (x, gamma), tangents)[1],
            torch.func.vmap(function, (0, None))(both, gamma),
            torch.func.vmap(torch.func.grad(loss_of_x))(both),
            torch.func.vmap(function, (None, 0))(x, torch.stack([gamma, 2 * gamma])),
            torch.func.vmap(torch.func.grad(loss, 1), (None, 0))(x, torch.stack([gamma, -gamma])),
        ]

    check(*map(derivatives, functions))


@of_tensorflow
def test_a_ragged_tensor_is_normalized_by_its_values(rng):
    import tensorflow as tf

    values = rng.normal(2, 3, (7, 4)).astype("float32")
    ragged = tf.RaggedTensor.from_row_lengths(values, [3, 0, 4])
    layer, of_values = BatchRenormalization(momentum=0.5), BatchRenormalization(momentum=0.5)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
            loss = tf.reduce_sum(y.flat_values**3)
        return y, tape.gradient(loss, layer.gamma.value)

    layer.build((None, None, 4))
    of_values.build((None, 4))
    y, gradient = step(ragged)
    with tf.GradientTape() as tape:
        expected = of_values(values, training=True)
        loss = tf.reduce_sum(expected**3)
    np.testing.assert_allclose(y.flat_values, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y.row_lengths(), [3, 0, 4])
    expected = tape.gradient(loss, of_values.gamma.value)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(
        layer.non_trainable_weights, of_values.non_trainable_weights, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    grouped = BatchRenormalization(microbatch_size=2)
    grouped.build((None, None, 4))
    with pytest.raises(ValueError, match="Of a RaggedTensor"):
        grouped(ragged, training=True)
    assert int(grouped.calls) == 0


@of_torch
@pytest.mark.parametrize(
    "arguments",
    [{}, {"microbatch_size": 3}, {"axis": 1}, {"schedule": LinearRamp(1, 4, 3)}],
    ids=str,
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="Its code is C++.")
def test_torch_compile_takes_the_whole_layer(rng, arguments):
    """Without a break of the graph. Its backward pass must not use the averages that have moved."""
    import torch

    ours, expected = (BatchRenormalization(momentum=0.5, **arguments) for _ in range(2))
    shape = (6, 4, 32)
    for layer in (ours, expected):
        layer.build(shape)
    torch.compiler.reset()
    whole = torch.compile(lambda x: ours(x, training=True), fullgraph=True)
    inference = torch.compile(lambda x: ours(x), fullgraph=True)
    for step in range(5):
        x, dy = (torch.tensor(rng.normal(step, 2, shape), dtype=torch.float32) for _ in range(2))
        results = []
        for layer, call in ((ours, whole), (expected, lambda x: expected(x, training=True))):
            x = x.detach().requires_grad_(True)
            y = call(x)
            weights = [weight.value for weight in layer.trainable_variables]
            results.append([y, *torch.autograd.grad(y, [x, *weights], dy)])
        check([value.detach() for value in results[0]], [value.detach() for value in results[1]])
        for one, other in zip(ours.weights, expected.weights, strict=True):
            np.testing.assert_allclose(*map(ops.convert_to_numpy, (one, other)), rtol=1e-5)
        check([inference(x).detach()], [expected(x).detach()])
