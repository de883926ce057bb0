"""The layer against Algorithm 1 in float64, the theorems that follow from it, and Keras' renorm."""

import keras
import numpy as np
import pytest
from gradients import training_step
from keras import ops
from reference import Reference

from keras_brn import BatchRenormalization

TOLERANCE = {"rtol": 2e-4, "atol": 2e-4}
SHAPES = [
    ((12, 3), -1),
    ((6, 5, 3), -1),
    ((6, 3, 5), 1),
    ((6, 4, 5, 3), -1),
    ((6, 3, 4, 5), 1),
    ((6, 4, 3, 5), 2),
    ((5, 2, 3, 2, 3), -1),
    ((5, 3, 2, 2, 3), -4),
]


def assert_follows(layer, reference, rng, shape, steps=20, masked=False, tolerance=None):
    """Drives both through the same steps, from the same random gamma and beta."""
    layer.build(shape)
    for name in ("gamma", "beta"):
        value = rng.normal(1, 0.5, shape[layer.axis])
        setattr(reference, name, value)
        getattr(layer, name).assign(value)
    mask = None
    for _ in range(steps):
        x, dy = rng.normal(0.7, 2, shape), rng.normal(size=shape)
        if masked:
            mask = rng.random(np.delete(shape, layer.axis)) < 0.6
            mask[::2, ...] |= True
        ours = [*training_step(layer, x, dy, mask), layer.moving_mean, layer.moving_stddev]
        theirs = [*reference.step(x, dy, mask), reference.mu, reference.sigma]
        for value, expected in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(value), expected, **(tolerance or TOLERANCE)
            )
    y = ops.convert_to_numpy(layer(x, training=False))
    np.testing.assert_allclose(y, reference.inference(x), **(tolerance or TOLERANCE))


def pair(channels, *, momentum=0.9, r_max=1.4, d_max=0.3, **kwargs):
    layer = BatchRenormalization(momentum=momentum, r_max=r_max, d_max=d_max, **kwargs)
    return layer, Reference(
        channels,
        r_max,
        d_max,
        1 - momentum,
        **{key: kwargs[key] for key in kwargs if key in ("axis", "microbatch_size", "epsilon")},
    )


@pytest.mark.parametrize("microbatch_size", [None, 2, 4])
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_follows_the_reference(rng, shape, axis, microbatch_size):
    layer, reference = pair(3, axis=axis, microbatch_size=microbatch_size)
    assert_follows(layer, reference, rng, shape)


@pytest.mark.parametrize("shape, axis", [s for s in SHAPES if len(s[0]) > 2])
def test_small_inputs_follow_the_reference(rng, kernels_by_size, shape, axis):
    layer, reference = pair(3, axis=axis)
    assert_follows(layer, reference, rng, shape)


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_many_channels_follow_the_reference(rng, microbatch_size):
    layer, reference = pair(16, microbatch_size=microbatch_size)
    assert_follows(layer, reference, rng, (6, 3, 16))


@pytest.mark.parametrize("microbatch_size", [None, 4])
@pytest.mark.parametrize("shape, axis", [s for s in SHAPES if len(s[0]) > 2])
def test_follows_the_reference_masked(rng, shape, axis, microbatch_size):
    layer, reference = pair(3, axis=axis, microbatch_size=microbatch_size)
    assert_follows(layer, reference, rng, shape, masked=True)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (3.0, 5.0), (1.0, 0.5), (1.5, 0.0), (None, None)])
def test_follows_the_reference_at_any_bounds(rng, bounds):
    layer, reference = pair(3)
    layer.set_bounds(*bounds)
    reference.r_max, reference.d_max = (np.inf if b is None else b for b in bounds)
    assert_follows(layer, reference, rng, (6, 4, 3))


def test_follows_the_reference_over_many_steps(rng):
    layer, reference = pair(3, momentum=0.97, microbatch_size=3)
    assert_follows(layer, reference, rng, (8, 3), steps=150)


def test_float64_follows_the_reference_to_the_last_digits(rng, backend):
    if backend == "jax":
        pytest.skip("JAX has float64 behind a switch of the whole process.")
    layer, reference = pair(3, dtype="float64", microbatch_size=4)
    assert_follows(layer, reference, rng, (10, 5, 3), tolerance={"rtol": 1e-10, "atol": 1e-10})


def test_large_mean_and_small_deviation(rng):
    x = rng.normal(3000, 1, (64, 5, 5, 2)).astype("float32")
    layer, reference = pair(2, r_max=1, d_max=0)
    y, *_ = training_step(layer, x, np.ones_like(x))
    expected, *_ = reference.step(x, np.ones_like(x))
    np.testing.assert_allclose(y, expected, atol=2e-3)


# Theorems.


def test_bounds_of_1_and_0_are_batchnorm(rng):
    ours = BatchRenormalization(r_max=1, d_max=0)
    theirs = keras.layers.BatchNormalization()
    for _ in range(5):
        x, dy = rng.normal(3, 2, (8, 4, 3)), rng.normal(size=(8, 4, 3))
        pairs = zip(training_step(ours, x, dy), training_step(theirs, x, dy), strict=True)
        for value, expected in pairs:
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)


def test_unclipped_training_output_is_the_inference_output(rng):
    layer = BatchRenormalization(r_max=None, d_max=None)
    x = rng.normal(3, 2, (8, 4, 3)).astype("float32")
    layer(x, training=True)
    inference = ops.convert_to_numpy(layer(x, training=False))
    training = ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_allclose(training, inference, rtol=1e-4, atol=1e-4)


def test_output_of_an_example_ignores_the_others_while_nothing_is_clipped(rng):
    x = rng.normal(size=(8, 4, 3)).astype("float32")
    other = np.concatenate([x[:1], 5 * x[1:]])
    first, second = (BatchRenormalization(r_max=None, d_max=None) for _ in range(2))
    y, z = (
        ops.convert_to_numpy(layer(v, training=True)) for layer, v in [(first, x), (second, other)]
    )
    np.testing.assert_allclose(y[0], z[0], rtol=1e-4, atol=1e-4)


def test_no_gradient_through_r_and_d(rng):
    x, dy = rng.normal(2, 3, (16, 2)), rng.normal(size=(16, 2))
    _, dx, *_ = training_step(BatchRenormalization(epsilon=1e-12, r_max=None, d_max=None), x, dy)
    # Two constraints of the paper's section 3; through r and d neither would hold.
    np.testing.assert_allclose(dx.sum(0), 0, atol=1e-4)
    np.testing.assert_allclose((x * dx).sum(0), 0, atol=1e-3)


def test_microbatches_know_nothing_of_each_other(rng):
    x, dy = rng.normal(size=(8, 4, 3)), rng.normal(size=(8, 4, 3))
    layer = BatchRenormalization(microbatch_size=4, r_max=1, d_max=0)
    y, dx, *_ = training_step(layer, x, dy)
    for part in (slice(0, 4), slice(4, 8)):
        alone = training_step(BatchRenormalization(r_max=1, d_max=0), x[part], dy[part])
        np.testing.assert_allclose(y[part], alone[0], atol=1e-5)
        np.testing.assert_allclose(dx[part], alone[1], atol=1e-5)


def test_a_ragged_last_group_is_a_smaller_group(rng):
    x, dy = rng.normal(size=(7, 5, 3)), rng.normal(size=(7, 5, 3))
    y, *_ = training_step(BatchRenormalization(microbatch_size=4, r_max=1, d_max=0), x, dy)
    alone, *_ = training_step(BatchRenormalization(r_max=1, d_max=0), x[4:], dy[4:])
    np.testing.assert_allclose(y[4:], alone, atol=1e-5)


def test_stddev_is_averaged_not_the_variance(rng):
    layer = BatchRenormalization(momentum=0.0, microbatch_size=4, epsilon=1e-9)
    x = rng.normal(size=(40_000, 1)).astype("float32")
    layer(x, training=True)
    # E[sigma_B] of 4 Gaussian values is .798; the root of the mean biased variance is .866.
    np.testing.assert_allclose(ops.convert_to_numpy(layer.moving_stddev), 0.798, atol=0.01)


def test_statistics_of_a_fixed_point_stay(rng):
    x = rng.normal(2, 3, (64, 3)).astype("float32")
    layer = BatchRenormalization(momentum=0.0)
    layer(x, training=True)
    before = [ops.convert_to_numpy(w).copy() for w in (layer.moving_mean, layer.moving_stddev)]
    layer(x, training=True)
    for weight, value in zip((layer.moving_mean, layer.moving_stddev), before, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(weight), value, rtol=1e-6)


def test_statistics_are_used_before_they_are_updated(rng):
    x = rng.normal(5, 1, (64, 1)).astype("float32")
    y = BatchRenormalization(momentum=0.0, r_max=None, d_max=None)(x, training=True)
    np.testing.assert_allclose(ops.convert_to_numpy(y), x, atol=1e-3)  # mu was 0, sigma 1.


# The incumbent.


@pytest.mark.parametrize("bounds", [(1.1, 0.1), (3.0, 5.0)])
def test_parity_with_the_renorm_of_keras(rng, bounds):
    r_max, d_max = bounds
    clipping = {"rmax": r_max, "rmin": 1 / r_max, "dmax": d_max}
    try:
        theirs = keras.layers.BatchNormalization(
            momentum=0.9, renorm=True, renorm_clipping=clipping, renorm_momentum=0.9
        )
    except (TypeError, ValueError):
        pytest.skip("Keras has renorm since 3.14.")
    ours = BatchRenormalization(momentum=0.9, r_max=r_max, d_max=d_max)
    for _ in range(60):
        x, dy = rng.normal(1, 2, (16, 4, 3)), rng.normal(size=(16, 4, 3))
        pairs = zip(training_step(ours, x, dy), training_step(theirs, x, dy), strict=True)
        for value, expected in pairs:
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)
    for weight in ("moving_mean", "moving_stddev"):
        value, expected = (ops.convert_to_numpy(getattr(o, weight)) for o in (ours, theirs))
        np.testing.assert_allclose(value, expected, rtol=1e-4)
