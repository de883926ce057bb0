"""What a user of BatchNormalization expects of a layer that stands in its place."""

import keras
import numpy as np
import pytest
from gradients import training_step
from keras import ops

from keras_brn import BatchRenormalization, LinearRamp


def numpy(value):
    return np.asarray(ops.convert_to_numpy(value))


def state(layer):
    return {w.name: numpy(w).copy() for w in layer.weights}


def assert_same_state(layer, before):
    for name, value in state(layer).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def statistics(layer):
    return [numpy(weight).copy() for weight in (layer.moving_mean, layer.moving_stddev)]


def network(**kwargs):
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 3)(inputs)
    return keras.Model(inputs, BatchRenormalization(name="renorm", **kwargs)(x))


# Conventions of Keras.


def test_order_of_weights_and_arguments():
    layer = BatchRenormalization(-1, 0.9, 1e-5, True, True, "zeros", "ones", "zeros", "ones")
    layer.build((None, 3))
    names = ["gamma", "beta", "moving_mean", "moving_stddev", "calls", "calls_per_step"]
    assert [w.name for w in layer.weights] == names
    assert [w.name for w in layer.trainable_weights] == ["gamma", "beta"]


def test_configuration_of_batch_normalization_needs_no_change_but_the_name():
    config = keras.layers.BatchNormalization(
        axis=1, momentum=0.9, moving_variance_initializer=keras.initializers.Constant(4.0)
    ).get_config()
    layer = BatchRenormalization.from_config(config)
    layer.build((None, 3, 5))
    assert (layer.axis, layer.momentum, layer.r_max) == (1, 0.9, 3)
    np.testing.assert_allclose(numpy(layer.moving_stddev), np.sqrt(4.001), rtol=1e-6)
    again = BatchRenormalization.from_config(layer.get_config())
    again.build((None, 3, 5))
    np.testing.assert_array_equal(numpy(layer.moving_stddev), numpy(again.moving_stddev))


def test_renorm_arguments_of_batch_normalization_are_translated():
    layer = BatchRenormalization(
        renorm=True, renorm_clipping={"rmax": 2.0, "rmin": 0.5, "dmax": 1.0}, renorm_momentum=0.9
    )
    assert (layer.r_max, layer.d_max, layer.momentum) == (2, 1, 0.9)
    unbounded = BatchRenormalization(renorm=True)
    assert (unbounded.r_max, unbounded.d_max) == (np.inf, np.inf)


@pytest.mark.parametrize(
    "arguments",
    [
        {"synchronized": True},
        {"renorm_clipping": {"rmax": 2.0}},
        {"renorm": True, "renorm_clipping": {"rmax": 2.0, "rmin": 0.1}},
        {"moving_stddev_initializer": "zeros"},
        {"moving_stddev_initializer": keras.initializers.Constant(-1.0)},
        {"schedule": 3},
        {"schedule": LinearRamp(), "r_max": None},
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments):
    with pytest.raises(ValueError, match=f"Received: .*{list(arguments)[-1]}="):
        BatchRenormalization(**arguments)


def test_center_and_scale_off(rng):
    x = rng.normal(size=(8, 3)).astype("float32")
    plain = BatchRenormalization(center=False, scale=False, r_max=1, d_max=0)
    y = numpy(plain(x, training=True))
    assert plain.gamma is None and plain.beta is None and not plain.trainable_weights
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)


@pytest.mark.parametrize("shape", [(None, None, None, 3), (None, None, 3), (None, 3)])
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_unknown_dimensions(rng, shape, microbatch_size):
    inputs = keras.Input(shape[1:])
    layer = BatchRenormalization(microbatch_size=microbatch_size)
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == shape
    model.compile("sgd", "mse")
    x = rng.normal(size=(10, 5, 6, 3)[: len(shape) - 1] + (3,)).astype("float32")
    model.fit(x, x, batch_size=6, verbose=0)  # Steps of 6 and of 4 examples.
    assert model.predict(x[:7], verbose=0).shape == (7, *x.shape[1:])
    assert numpy(layer.moving_stddev).min() < 1


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_images_of_many_sizes(rng, microbatch_size):
    layer = BatchRenormalization(microbatch_size=microbatch_size)
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    model.compile("sgd", "mse")
    images = [rng.normal(size=(6, 4, size, 3)).astype("float32") for size in (5, 7, 9)]
    model.fit(((x, x) for x in images), steps_per_epoch=3, verbose=0)
    assert np.isfinite(model.evaluate(images[0], images[0], verbose=0))


def test_sequential_and_subclassed_models(rng):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.renorm = BatchRenormalization()

        def call(self, x, training=False):
            return self.renorm(x, training=training)

    x = rng.normal(3, 1, (16, 3)).astype("float32")
    for model in (Subclassed(), keras.Sequential([BatchRenormalization()])):
        model.compile("sgd", "mse")
        model.fit(x, x, batch_size=8, verbose=0)
        assert numpy(model.layers[0].moving_mean).min() > 0


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_modes_of_execution_agree(rng, backend, microbatch_size):
    x = rng.normal(2, 1, (24, 4, 4, 2)).astype("float32")
    y = rng.normal(2, 1, (24, 2, 2, 3)).astype("float32")
    results = []
    modes = [{"jit_compile": False}, {"run_eagerly": True}]
    if backend != "torch":
        modes.append({"jit_compile": True})
    for mode in modes:
        keras.utils.set_random_seed(0)
        model = network(microbatch_size=microbatch_size, r_max=1.5, d_max=0.5, momentum=0.8)
        model.compile("sgd", "mse", **mode)
        model.fit(x, y, batch_size=8, epochs=2, verbose=0, shuffle=False)
        results.append(model.get_weights())
    for other in results[1:]:
        for value, expected in zip(other, results[0], strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_frozen_layer_is_in_inference_mode(rng):
    x = rng.normal(3, 2, (8, 3)).astype("float32")
    layer = BatchRenormalization()
    layer(x, training=True)
    layer.trainable = False
    before = state(layer)
    np.testing.assert_array_equal(numpy(layer(x, training=True)), numpy(layer(x)))
    assert_same_state(layer, before)


def test_inference_adds_no_second_epsilon(rng):
    x = rng.normal(size=(8, 3)).astype("float32")
    y = BatchRenormalization(epsilon=0.5)(x)  # sigma is 1.
    np.testing.assert_allclose(numpy(y), x, rtol=1e-6)


def test_a_layer_called_twice_moves_twice(rng):
    x = rng.normal(3, 1, (8, 3)).astype("float32")
    once, twice = BatchRenormalization(), BatchRenormalization()
    inputs = keras.Input((3,))
    model = keras.Model(inputs, [twice(inputs), twice(inputs)])
    model(x, training=True)
    once(x, training=True)
    once(x, training=True)
    np.testing.assert_allclose(numpy(twice.moving_mean), numpy(once.moving_mean), rtol=1e-6)


def test_no_gradient_through_the_statistics(rng, backend):
    if backend != "jax":
        pytest.skip("Elsewhere variables stop the gradient.")
    import jax

    layer = BatchRenormalization()
    layer.build((8, 3))

    def infer_after_training(x):
        state = [w.value for w in layer.non_trainable_variables]
        trainable = [w.value for w in layer.trainable_variables]
        _, state = layer.stateless_call(trainable, state, x, training=True)
        return layer.stateless_call(trainable, state, np.ones((8, 3)))[0].sum()

    assert not jax.grad(infer_after_training)(rng.normal(size=(8, 3)).astype("float32")).any()


def test_a_microbatch_larger_than_the_batch_is_the_batch(rng):
    x, dy = rng.normal(size=(8, 3)), rng.normal(size=(8, 3))
    results = [
        training_step(BatchRenormalization(microbatch_size=m), x, dy) for m in (None, 10**12)
    ]
    for value, expected in zip(*results, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_stateless_call_leaves_the_layer_alone(rng, backend):
    x = rng.normal(3, 1, (8, 3)).astype("float32")
    layer = BatchRenormalization()
    layer.build(x.shape)
    before = state(layer)
    values = [
        [w.value for w in ws] for ws in (layer.trainable_variables, layer.non_trainable_variables)
    ]
    _, moved = layer.stateless_call(*values, x, training=True)
    assert_same_state(layer, before)
    layer(x, training=True)
    np.testing.assert_allclose(numpy(moved[0]), numpy(layer.moving_mean), rtol=1e-6)


# Precision.


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16"])
def test_half_precision_keeps_its_statistics_in_float32(rng, policy):
    x = rng.normal(100, 300, (64, 3)).astype("float32")
    layer = BatchRenormalization(dtype=policy, momentum=0.0, r_max=1, d_max=0)
    y, dx, *_ = training_step(layer, x, np.ones_like(x))
    assert layer.moving_stddev.dtype == layer.calls.dtype == "float32"
    np.testing.assert_allclose(numpy(layer.moving_stddev), x.std(0), rtol=0.01)
    np.testing.assert_allclose(y, (x - x.mean(0)) / x.std(0), atol=0.05)
    assert np.isfinite(dx).all()


def test_mixed_precision_trains(rng):
    keras.config.set_dtype_policy("mixed_float16")
    model = network()
    model.compile("sgd", "mse")
    x = rng.normal(size=(16, 4, 4, 2)).astype("float32")
    history = model.fit(x, x[:, :2, :2, :1], batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


# Masks.


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("channels", [1, 4])
def test_masked_values_are_not_counted(rng, axis, channels):
    x = rng.normal(2, 1, (6, 4, channels)).astype("float32")
    mask = np.arange(4)[None] < rng.integers(1, 5, (6, 1))
    x[~mask] = 1000
    layer = BatchRenormalization(axis=axis, momentum=0.0, epsilon=1e-6)
    layer(np.moveaxis(x, -1, axis), training=True, mask=mask)
    np.testing.assert_allclose(numpy(layer.moving_mean), x[mask].mean(0), rtol=1e-5)
    np.testing.assert_allclose(numpy(layer.moving_stddev), x[mask].std(0), rtol=1e-4, atol=1e-3)


def test_mask_arrives_through_the_model(rng):
    x = rng.normal(2, 1, (6, 5, 3)).astype("float32")
    x[:, 3:] = 0
    layer = BatchRenormalization(momentum=0.0)
    keras.Sequential([keras.layers.Masking(), layer])(x, training=True)
    np.testing.assert_allclose(numpy(layer.moving_mean), x[:, :3].mean((0, 1)), rtol=1e-4)


# Nothing is lost in a bad batch.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])  # 1e30: its square is infinite.
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_a_channel_that_is_not_finite_keeps_its_statistics(rng, bad, microbatch_size):
    x = rng.normal(3, 2, (8, 3)).astype("float32")
    x[[1, 6], 1] = bad
    layer = BatchRenormalization(microbatch_size=microbatch_size)
    layer(x, training=True)
    moved = numpy(layer.moving_mean) != 0, numpy(layer.moving_stddev) != 1
    assert [m.tolist() for m in moved] == [[True, False, True]] * 2


def test_the_mean_is_over_the_finite_groups(rng):
    x = rng.normal(3, 2, (8, 3)).astype("float32")
    broken = x.copy()
    broken[0] = np.nan
    layer, expected = (BatchRenormalization(microbatch_size=m) for m in (4, None))
    layer(broken, training=True)
    expected(x[4:], training=True)
    np.testing.assert_allclose(numpy(layer.moving_stddev), numpy(expected.moving_stddev), rtol=1e-6)


@pytest.mark.parametrize("microbatch_size", [None, 3])
def test_empty_and_fully_masked_batches_change_nothing(rng, microbatch_size):
    layer = BatchRenormalization(microbatch_size=microbatch_size)
    training_step(layer, rng.normal(size=(6, 4, 3)), np.ones((6, 4, 3)))
    before = statistics(layer)
    one = np.ones((5, 4, 3))
    for x, mask in ((one[:0], None), (one[:, :0], None), (one, np.zeros((5, 4), bool))):
        for value in training_step(layer, x, x, mask):
            assert np.isfinite(value).all()
        for value, expected in zip(statistics(layer), before, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3), (8, 3)])
@pytest.mark.parametrize("microbatch_size", [None, 1])
def test_dead_channels_and_batches_of_one_are_finite(rng, shape, microbatch_size):
    layer = BatchRenormalization(microbatch_size=microbatch_size)
    for _ in range(3):
        for value in training_step(layer, np.full(shape, 7.0), rng.normal(size=shape)):
            assert np.isfinite(value).all()


# Bounds.


def test_bounds_can_be_read_and_changed():
    layer = BatchRenormalization(r_max=2.5, d_max=3.3)
    assert (layer.r_max, layer.d_max) == (2.5, 3.3)
    layer.set_bounds(1.7, None)
    layer.build((None, 3))
    assert (layer.r_max, layer.d_max) == (1.7, np.inf)
    layer.set_bounds(r_max=None, d_max=0.1)
    assert (layer.r_max, layer.d_max) == (np.inf, 0.1)


class Trace(keras.layers.Layer):
    """Counts how often Python runs it, which on a compiling backend is once per trace."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return x


class SetBounds(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 3:
            self.model.layers[-1].set_bounds(1.0, 0.0)


def test_bounds_changed_in_the_middle_of_fit_hold_from_the_next_step(rng, backend):
    x = rng.normal(3, 2, (6, 8, 3)).astype("float32").reshape(48, 3)
    layer = BatchRenormalization(momentum=0.5, r_max=None, d_max=None, center=False, scale=False)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3), Trace(), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    losses = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(float(logs["loss"]))
    )
    seen, Trace.calls = [], 0
    model.fit(x, 0 * x, batch_size=8, shuffle=False, verbose=0, callbacks=[SetBounds(), losses])
    per_step = np.diff(np.array([0, *seen]) * np.arange(7))  # `loss` is the mean so far.
    np.testing.assert_allclose(per_step[3:], 1, atol=0.01)  # Batchnorm: E[y^2] = 1.
    assert abs(per_step[2] - 1) > 0.02
    assert layer.r_max == 1
    if backend != "torch":
        assert Trace.calls <= 2


def test_a_change_that_fit_would_lose_is_refused(rng, backend):
    if backend != "jax":
        pytest.skip("Only on JAX does fit hold the state.")
    layer = BatchRenormalization()
    model = keras.Sequential([layer])
    model.compile("sgd", "mse")
    change = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: layer.set_bounds(2, 2)
    )
    x = rng.normal(size=(16, 3)).astype("float32")
    with pytest.raises(RuntimeError, match="self.model"):
        model.fit(x, x, verbose=0, callbacks=[change])
    read = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: layer.r_max)
    with pytest.raises(RuntimeError, match="self.model"):
        model.fit(x, x, verbose=0, callbacks=[read])


# In and out.


def test_config_round_trip():
    layer = BatchRenormalization(
        axis=1,
        momentum=0.5,
        r_max=None,
        d_max=0.3,
        microbatch_size=7,
        gamma_regularizer=keras.regularizers.L2(0.1),
        beta_constraint="non_neg",
        moving_stddev_initializer=keras.initializers.Constant(2.0),
    )
    again = BatchRenormalization.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.r_max, again.d_max, again.microbatch_size) == (np.inf, 0.3, 7)


@pytest.mark.parametrize("bounds", [(1.7, 0.2), (None, None)])
def test_saved_models_carry_statistics_and_bounds(rng, tmp_path, bounds):
    model = network()
    x = rng.normal(size=(8, 4, 4, 2)).astype("float32")
    model(x, training=True)
    model.get_layer("renorm").set_bounds(*bounds)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    from_file = keras.saving.load_model(tmp_path / "model.keras")
    from_weights = network(r_max=bounds[0], d_max=bounds[1])
    from_weights.load_weights(tmp_path / "model.weights.h5")
    expected = model.get_layer("renorm")
    for other in (from_file, from_weights, keras.models.clone_model(from_weights)):
        layer = other.get_layer("renorm")
        if other not in (from_file, from_weights):  # Clones share the bounds alone.
            assert (layer.r_max, layer.d_max) == (expected.r_max, expected.d_max)
            continue
        assert (layer.r_max, layer.d_max) == (expected.r_max, expected.d_max)
        assert_same_state(layer, state(expected))
        np.testing.assert_allclose(numpy(other(x)), numpy(model(x)), rtol=1e-6)


@pytest.mark.parametrize("way", ["load_weights", "set_weights", "checkpoint"])
def test_weights_from_elsewhere_do_not_bring_other_bounds(tmp_path, backend, way):
    trained = network(r_max=2.0, schedule=LinearRamp(0, 8, 8))
    trained.get_layer("renorm").set_step(6)
    model = network(r_max=1, d_max=0)
    if way == "load_weights":
        trained.save_weights(tmp_path / "w.weights.h5")
        model.load_weights(tmp_path / "w.weights.h5")
    elif way == "set_weights":
        model.set_weights(trained.get_weights())
    elif backend == "tensorflow":
        import tensorflow as tf

        path = tf.train.Checkpoint(trained).save(tmp_path / "c")
        tf.train.Checkpoint(model).restore(path).assert_consumed()
    else:
        pytest.skip("For TensorFlow.")
    layer = model.get_layer("renorm")
    assert (layer.r_max, layer.d_max, layer.step) == (1, 0, 6)
    y = numpy(layer(np.arange(12.0).reshape(4, 1, 1, 3), training=True))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)  # Batchnorm, in the step as well.


def test_averages_and_mixtures_of_models_are_finite(rng):
    """Target networks, federated means, weight averages."""
    models = [network(r_max=None, d_max=None), network(r_max=None, d_max=None)]
    for model in models:
        model(rng.normal(size=(8, 4, 4, 2)), training=True)
    pairs = list(zip(*(model.get_weights() for model in models), strict=True))
    target = network(r_max=2.0, d_max=1.0)
    target.set_weights([(a + b) / 2 for a, b in pairs])
    for online, slow in zip(models[0].weights, target.weights, strict=True):
        slow.assign(0.1 * online + 0.9 * slow)
    assert all(np.isfinite(weight).all() for weight in target.get_weights())
    layer = target.get_layer("renorm")
    assert (layer.r_max, layer.d_max, layer.step) == (2, 1, 1)


def test_files_of_version_0_1_load(tmp_path, rng):
    """They hold the bounds in force, the final bounds and the step as well."""
    layer, stored = BatchRenormalization(), {}
    layer.build((None, 3))
    values = [rng.normal(size=3), rng.normal(size=3), rng.normal(size=3), rng.uniform(1, 2, 3)]
    for k, value in enumerate([*values, np.array([1.5, 0.5]), np.array([3.0, 5.0]), np.array(12)]):
        stored[str(k)] = value
    layer.load_own_variables(stored)
    for weight, value in zip(layer.weights, values, strict=False):
        np.testing.assert_allclose(numpy(weight), value, rtol=1e-6)
    assert (layer.step, layer.r_max, layer.d_max) == (12, 3, 5)


NAMES = ("gamma", "beta", "moving_mean", "moving_stddev", "calls", "calls_per_step")


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch")
def test_a_state_dict_brings_the_step_and_not_the_ramp(rng):
    def model(ramp):
        return keras.Sequential([keras.Input((3,)), BatchRenormalization(schedule=ramp)])

    x = rng.normal(size=(8, 3)).astype("float32")
    trained, other = model(LinearRamp(0, 4, 4)), model(LinearRamp(0, 40, 40))
    for _ in range(4):
        trained(x, training=True)
    other.load_state_dict(dict(zip(other.state_dict(), trained.state_dict().values(), strict=True)))
    assert {name.split("/")[-1] for name in other.state_dict()} == set(NAMES)
    assert (other.layers[0].step, trained.layers[0].r_max) == (4, 2.5)
    other(x, training=True)
    assert other.layers[0].r_max == 1.2  # By its own ramp, after four of 40 steps.


def test_weights_of_batch_normalization_are_refused(tmp_path):
    def network(normalization):
        return keras.Sequential([keras.Input((3,)), normalization(name="norm")])

    network(keras.layers.BatchNormalization).save_weights(tmp_path / "b.weights.h5")
    model = network(BatchRenormalization)
    with pytest.raises(ValueError, match="renormalize"):
        model.load_weights(tmp_path / "b.weights.h5")
    with pytest.raises(ValueError, match="expecting 6 weights"):
        model.set_weights(network(keras.layers.BatchNormalization).get_weights())


def test_clone_model():
    model = network(r_max=2.0, microbatch_size=4)
    model.get_layer("renorm").set_bounds(2.5, 1.0)
    layer = keras.models.clone_model(model).get_layer("renorm")
    assert (layer.r_max, layer.d_max, layer.microbatch_size) == (2.5, 1.0, 4)


def test_export(rng, tmp_path, backend):
    model = network(microbatch_size=4)
    x = rng.normal(size=(5, 4, 4, 2)).astype("float32")
    expected = numpy(model(x))
    if backend == "torch":
        import torch

        x = ops.convert_to_tensor(x)
        exported = torch.export.export(model.eval(), (x,)).module()
        result = exported(x).detach().cpu()
    else:
        import tensorflow as tf

        model.export(tmp_path / "model", verbose=False)
        served = tf.saved_model.load(tmp_path / "model")
        result = served.serve(x)
    np.testing.assert_allclose(np.asarray(result), expected, rtol=1e-5, atol=1e-5)


# Refusals.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"r_max": 0.9}, "r_max=0.9"),
        ({"r_max": np.nan}, "r_max=nan"),
        ({"d_max": -1}, "d_max=-1"),
        ({"d_max": np.nan}, "d_max=nan"),
        ({"momentum": 1.0}, r"\[0, 1\).*momentum=1.0"),
        ({"momentum": -0.1}, "momentum=-0.1"),
        ({"momentum": np.nan}, "momentum=nan"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": np.nan}, "epsilon=nan"),
        ({"microbatch_size": 0}, "microbatch_size=0"),
        ({"microbatch_size": True}, "microbatch_size=True"),
        ({"microbatch_size": 2.5}, "microbatch_size=2.5"),
        ({"microbatch_size": np.nan}, "microbatch_size=nan"),
        ({"axis": 1.5}, "axis=1.5"),
        ({"axis": [1]}, r"axis=\[1\]"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchRenormalization(**arguments)


@pytest.mark.parametrize(
    "arguments, shape, message",
    [
        ({"axis": 2}, (4, 3), r"axis=2, input_shape=\(4, 3\)"),
        ({"axis": -3}, (4, 3), "axis=-3"),
        ({}, (3,), r"input_shape=\(3,\)"),
        ({}, (4, None), r"axis=-1, input_shape=\(4, None\)"),
        ({"axis": 0, "microbatch_size": 2}, (4, 3), "microbatch_size=2"),
    ],
)
def test_bad_shapes_are_refused(arguments, shape, message):
    layer = BatchRenormalization(**arguments)
    with pytest.raises(ValueError, match=message):
        layer.build(shape)
    assert not layer.weights


@pytest.mark.parametrize("mask_shape", [(4, 5, 3), (4,), (4, 3), (5, 4)])
def test_bad_masks_are_refused(mask_shape):
    layer = BatchRenormalization()
    layer.build((4, 5, 3))
    before = state(layer)
    with pytest.raises(ValueError, match=r"mask.shape=\(4|mask.shape=\(5"):
        layer(np.ones((4, 5, 3), "float32"), training=True, mask=np.ones(mask_shape, bool))
    assert_same_state(layer, before)


@pytest.mark.parametrize("bounds", [(0.5, 1), (2, -1), (np.nan, 1), (2, np.nan)])
def test_bad_bounds_change_nothing(bounds):
    layer = BatchRenormalization()
    layer.build((None, 3))
    with pytest.raises(ValueError, match="Received"):
        layer.set_bounds(*bounds)
    assert (layer.r_max, layer.d_max) == (3, 5)


@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_torch_copies_no_number_to_the_device(rng, backend, monkeypatch, microbatch_size):
    if backend != "torch":
        pytest.skip("Each such copy waits for a GPU, on PyTorch.")
    import torch

    layer = BatchRenormalization(microbatch_size=microbatch_size, schedule=LinearRamp(1, 9, 9))
    x, copied, as_tensor = ops.convert_to_tensor(rng.normal(size=(8, 5, 5, 3))), [], torch.as_tensor
    layer(x, training=True)
    monkeypatch.setattr(torch, "as_tensor", lambda v, **_: copied.append(v) or as_tensor(v, **_))
    for _ in range(3):
        layer(x, training=True)
        layer(x)
    assert [value for value in copied if not torch.is_tensor(value)] == []
