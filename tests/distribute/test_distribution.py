"""Several workers train what one device trains with their minibatch as its microbatch.

`pytest -rP` shows the errors.
"""

import functools

import engines
import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, average_statistics, linear_ramp

TOLERANCE = 1e-5  # Of each weight's maximum.
BACKEND = keras.backend.backend()
on_tensorflow, on_jax, on_torch = (
    pytest.mark.skipif(BACKEND != name, reason=name) for name in ("tensorflow", "jax", "torch")
)


@functools.cache
def one_device(microbatch_size):
    return engines.trained(microbatch_size).get_weights()


def check(name, weights, microbatch_size):
    error = engines.error(weights, one_device(microbatch_size))
    print(f"{name}, microbatch_size={microbatch_size}: {error:.1e}")
    assert error < TOLERANCE


def check_workers_agree(results):
    for way, weights in results[0].items():
        assert engines.error(results[1][way], weights) == 0


@on_jax  # Where both are needed anyway.
def test_weights_depend_on_the_size_of_the_microbatch():
    assert engines.error(one_device(None), one_device(engines.BATCH // 2)) > 0.1


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    flags = "--xla_force_host_platform_device_count=8"
    (results,) = engines.run("jax_devices", tmp_path_factory.mktemp("devices"), XLA_FLAGS=flags)
    return results


@on_jax
def test_data_parallel_over_devices(devices):
    for microbatch_size, weights in devices["trained"].items():
        check("8 devices", weights, microbatch_size)


@on_jax
def test_microbatches_stay_on_their_devices(devices):
    assert "all-reduce" in devices["compiled"]  # Of statistics and gradients.
    for moves in ("all-gather", "all-to-all", "collective-permute"):
        assert moves not in devices["compiled"]


@on_jax
def test_data_parallel_over_processes(tmp_path):
    gloo = {"JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    results = engines.run("jax_process", tmp_path, workers=2, **gloo)
    check_workers_agree(results)
    check("2 processes", *results[0].values(), engines.BATCH // 2)


@on_torch
def test_distributed_data_parallel(tmp_path):
    results = engines.run("torch_process", tmp_path, workers=2, OMP_NUM_THREADS="1")
    check_workers_agree(results)
    for way, weights in results[0].items():
        check(f"2 processes, {way}", weights, engines.BATCH // 2)


@pytest.fixture(scope="module")
def mirrored():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        return engines.trained()


@on_tensorflow
def test_mirrored_strategy(mirrored):
    check("2 replicas", mirrored.get_weights(), engines.BATCH // 2)


@on_tensorflow
def test_replicas_hold_the_same(mirrored):
    for weight in mirrored.weights:
        replicas = [np.asarray(value) for value in weight.value.values]
        assert len(replicas) == 2
        np.testing.assert_array_equal(*replicas, err_msg=weight.name)


@on_tensorflow
def test_schedule_and_saved_state(mirrored, tmp_path):
    layer, of_epochs = mirrored.layers[1], mirrored.history.history["r_max"]
    assert (layer.r_max, layer.d_max) == (3, 5)
    assert of_epochs == [linear_ramp(engines.STEPS - 1, *engines.RAMP)[0], 3]
    mirrored.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras")
    for weight, expected in zip(saved.weights, mirrored.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), ops.convert_to_numpy(expected))


@pytest.mark.skipif(BACKEND == "torch", reason="There it works.")
def test_average_statistics_is_for_torch():
    with pytest.raises(RuntimeError, match=f"backend={BACKEND}"):
        average_statistics(engines.network())


@on_torch
def test_average_statistics_needs_processes():
    with pytest.raises(RuntimeError, match="init_process_group"):
        average_statistics(engines.network())


@on_torch
def test_average_statistics_needs_a_built_model_with_the_layer():
    import torch

    with pytest.raises(ValueError, match="type Identity"):
        average_statistics(torch.nn.Identity())
    with pytest.raises(ValueError, match="model='plain'"):
        average_statistics(keras.Sequential([keras.layers.Dense(2)], name="plain"))
    with pytest.raises(ValueError, match=r"unbuilt layers \['late'\]"):
        average_statistics(keras.Sequential([BatchRenormalization(name="late")]))
