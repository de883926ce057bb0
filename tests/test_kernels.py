"""The kernels of each backend against the plain form, and what both promise."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from gradients import Autodiff, second_derivatives, training_step
from keras import ops

from keras_brn import BatchRenormalization
from keras_brn.kernels import normalization_of
from keras_brn.kernels.columns import MOST_VALUES, columns_of


class Batchnorm(keras.layers.Layer):
    """Not Keras' own: `tf.nn.moments` stops a gradient, so its second derivatives are wrong."""

    def __init__(self, axis=-1):
        super().__init__()
        self.axis = axis

    def call(self, x, training=True):
        axes = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        centered = x - ops.mean(x, axes, keepdims=True)
        return centered / ops.sqrt(ops.mean(centered**2, axes, keepdims=True) + 1e-3)


def tensor(value, dtype="float32"):
    return ops.convert_to_tensor(np.asarray(value, dtype))


def class_for(*args, dtype="float32", shape=(4, 3, 2), **kwargs):
    return type(normalization_of(tensor(np.ones(shape), dtype), *args, **kwargs)).__name__


def test_each_backend_uses_its_kernels(backend):
    shape = (6, 5, 32)
    whole, grouped = class_for(2, shape=shape), class_for(2, microbatch_size=2, shape=shape)
    other_axis = class_for(1, shape=shape)
    masked = class_for(2, mask=tensor(np.ones((6, 5)), "bool"), shape=shape)
    small = class_for(1, shape=(4, 3))
    if backend == "tensorflow":
        assert whole == "FusedNormalization"
        doubles = class_for(2, dtype="float64", shape=shape)
        one_channel = class_for(2, shape=(6, 5, 1))
        others = {grouped, other_axis, masked, doubles, small, one_channel}
        assert others == {"PlainNormalization"}
    elif backend == "torch":
        doubles = class_for(2, dtype="float64", shape=shape)
        assert {whole, other_axis, doubles} == {"NativeNormalization"}
        assert {grouped, masked} == {"InPlaceNormalization"}
        on_a_cpu = tensor(0.0).device.type == "cpu"
        assert small == ("InPlaceNormalization" if on_a_cpu else "NativeNormalization")
    else:
        few_channels = class_for(2, shape=(6, 5, 3))
        assert {whole, grouped, masked} == {"LeanNormalization"}
        assert {other_axis, small, few_channels} == {"TangentNormalization"}


def test_small_inputs_take_the_plain_form(backend, kernels_by_size):
    if backend == "torch":
        pytest.skip("There the kernels are faster for them, too.")
    small, large = (class_for(3, shape=(4, size, size, 32)) for size in (31, 32))
    kinds = {
        "tensorflow": ("PlainNormalization", "FusedNormalization"),
        "jax": ("TangentNormalization", "LeanNormalization"),
    }
    assert (small, large) == kinds[backend]
    assert class_for(3, shape=(4, 1, 1, 32)) == (
        "PlainNormalization" if backend == "tensorflow" else large
    )
    if backend == "tensorflow":  # The minibatch may be unknown.
        import tensorflow as tf

        for size, expected in ((15, small), (16, large)):
            made = []

            @tf.function(input_signature=[tf.TensorSpec((None, size, size, 32))])
            def choose(x):
                made.append(type(normalization_of(x, 3)).__name__)  # noqa: B023

            choose.get_concrete_function()
            assert made == [expected]


SHAPES = [(6, 3), (16, 9, 3), (4, 9, 7, 3), (2, 3, 5, 7, 3)]


@pytest.mark.parametrize(
    "shape, mean",
    [((1, 1, 3), 0.0), *[(shape, mean) for shape in SHAPES for mean in (0.0, 3000.0)]],
)
def test_kernels_agree_with_the_plain_form(rng, monkeypatch, shape, mean):
    x, dy = rng.normal(mean, 1, shape), rng.normal(size=shape)
    ours = BatchRenormalization(r_max=1.3, d_max=0.5)
    plain = BatchRenormalization(r_max=1.3, d_max=0.5)
    for layer in (ours, plain):
        layer.build(shape)
        layer.moving_mean.assign([mean] * 3)
    values = training_step(ours, x, dy)
    monkeypatch.setattr("keras_brn.layer.normalization_of", Autodiff)
    expected = training_step(plain, x, dy)
    scale = 1e-4 if mean == 0 else 2e-3  # A float32 near 3000 has steps of 2.4e-4.
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=scale, atol=scale * np.sqrt(x.size / 3))
    for name in ("moving_mean", "moving_stddev"):
        value, other = (ops.convert_to_numpy(getattr(layer, name)) for layer in (ours, plain))
        np.testing.assert_allclose(value, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "shape, arguments",
    [
        ((32, 60, 60, 4), {}),
        ((32, 60, 60, 16), {}),
        ((16, 99_991, 1), {}),  # A prime number of rows.
        ((99_991, 4), {}),
        ((200_000, 4), {}),
        ((200_000, 16), {}),
        ((500, 400, 1, 16), {}),
        ((4, 3, 200, 200), {"axis": 1}),
        ((4, 200_000), {"axis": 0}),
        ((8, 200, 200, 4), {"microbatch_size": 2}),
        ((9, 200, 200, 4), {"microbatch_size": 2}),
        ((300_000, 4), {"microbatch_size": 100_000}),
        ((250_000, 4), {"microbatch_size": 100_000}),
        ((32, 60, 60, 4), {"mask": True}),
        ((99_991, 4), {"mask": True}),
    ],
    ids=str,
)
def test_long_sums_keep_their_digits(rng, shape, arguments):
    """Added up one by one in float32, 115,200 values near 3000 are off by .02, a million by 12."""
    arguments = {"axis": len(shape) - 1, **arguments}
    x = rng.normal(3000, 1, shape).astype("float32")
    counted = np.ones(np.delete(shape, arguments["axis"]), bool)
    if arguments.get("mask"):
        counted = rng.random(counted.shape) < 0.7
        arguments["mask"] = tensor(counted, "bool")
    normalization = normalization_of(tensor(x), **arguments)
    moments = [ops.convert_to_numpy(moment) for moment in normalization.moments(tensor(x))]
    size = arguments.get("microbatch_size") or len(x)
    if arguments["axis"] == 0:
        size = len(x)
    channels = shape[arguments["axis"]]
    rows = np.moveaxis(x, arguments["axis"], -1).astype("float64")
    starts = [0] if arguments["axis"] == 0 else range(0, len(x), size)
    for k, start in enumerate(starts):
        part = slice(None) if arguments["axis"] == 0 else slice(start, start + size)
        values = rows[part][counted[part]]
        mean, variance = (moment.reshape(-1, channels)[k] for moment in moments)
        np.testing.assert_allclose(mean, values.mean(0), atol=6e-3, rtol=0)
        np.testing.assert_allclose(variance, values.var(0), rtol=1e-4)


@pytest.mark.parametrize("count", [1, 7, 1024, 1025, 115_200, 172_872, 1_000_000])
def test_columns_are_divisors_that_leave_short_sums(count):
    columns = columns_of(count)
    assert count % columns == 0
    assert count // columns <= MOST_VALUES
    assert columns <= max(1, MOST_VALUES)


def test_there_are_no_columns_for_a_prime_number_of_values():
    assert columns_of(99_991) is None


@pytest.mark.parametrize("channels", [1, 3, 32])
@pytest.mark.parametrize("layout", ["channels second", "channels last", "neither"])
def test_any_layout_in_memory_is_the_same(rng, backend, channels, layout):
    """PyTorch's pooling and transposed convolutions return what is not contiguous."""
    if backend != "torch":
        pytest.skip("Arrays of the others have one layout.")
    import torch

    shape = (4, 5, 6, channels)
    x, dy = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for _ in range(2))
    expected = training_step(BatchRenormalization(r_max=1.3, d_max=0.5), x, dy.numpy())
    order = {"channels second": (0, 3, 1, 2), "channels last": (0, 1, 2, 3)}
    order = order.get(layout, (2, 0, 3, 1))
    x = x.detach().permute(*order).contiguous().permute(*np.argsort(order).tolist())
    values = training_step(BatchRenormalization(r_max=1.3, d_max=0.5), x, dy.numpy())
    for value, other in zip(values, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape, arguments",
    [
        ((6, 4), {}),
        ((6, 3, 4), {}),
        ((6, 3, 2, 4), {}),
        ((3, 2, 2, 3, 4), {}),
        ((6, 4, 3), {"axis": 1}),
        ((6, 3, 2, 4), {"microbatch_size": 3}),
        ((8, 3, 4), {"microbatch_size": 3}),
    ],
)
def test_second_derivatives(rng, shape, arguments):
    x, weights = rng.normal(1, 2, shape), rng.normal(size=shape)
    size = arguments.pop("microbatch_size", None)
    ours = BatchRenormalization(r_max=1, d_max=0, microbatch_size=size, **arguments)
    value = second_derivatives(ours, x, weights)
    parts = [slice(i, i + (size or len(x))) for i in range(0, len(x), size or len(x))]
    theirs = [second_derivatives(Batchnorm(**arguments), x[part], weights[part]) for part in parts]
    np.testing.assert_allclose(value, np.concatenate(theirs), rtol=2e-3, atol=2e-3)
    assert np.abs(value).max() > 0.1


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_the_backward_pass_keeps_nothing_large_but_the_inputs(rng, backend, microbatch_size):
    if backend != "torch":
        pytest.skip("Elsewhere a compiler decides.")
    import torch

    x = tensor(rng.normal(size=(8, 5, 5, 3))).requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        BatchRenormalization(microbatch_size=microbatch_size)(x, training=True)
    large = {t.untyped_storage().data_ptr() for t in kept if t.numel() >= x.numel()}
    assert large == {x.untyped_storage().data_ptr()}


def test_xla_keeps_nothing_large_but_the_inputs(rng, backend):
    if backend != "jax":
        pytest.skip("Asks XLA.")
    import jax

    x = rng.normal(size=(8, 32, 32, 16)).astype("float32")

    def memory(depth):
        model = keras.Sequential([keras.Input(x.shape[1:])])
        for _ in range(depth):
            model.add(keras.layers.Conv2D(16, 3, padding="same", use_bias=False))
            model.add(BatchRenormalization())
            model.add(keras.layers.ReLU())
        state = [weight.value for weight in model.non_trainable_variables]

        def loss(weights, x):
            return ops.sum(ops.sin(model.stateless_call(weights, state, x, training=True)[0]))

        weights = [weight.value for weight in model.trainable_variables]
        compiled = jax.jit(jax.grad(loss)).lower(weights, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes / x.nbytes

    kept = (memory(6) - memory(3)) / 3
    assert kept < 2.5  # The input of the layer, and that of the convolution after it.


def test_import_brings_no_tensorflow_of_its_own(backend):
    if backend == "tensorflow":
        pytest.skip("It is the backend.")
    check = "import sys, keras; before = 'tensorflow' in sys.modules; import keras_brn; "
    check += "keras_brn.BatchRenormalization()(keras.ops.ones((4, 3)), training=True); "
    check += "sys.exit('tensorflow' in sys.modules and not before)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
