"""Figure 6: many runs in one program are what Keras trains one by one."""

import keras
import numpy as np
import pytest
from worker_program import branched, shades

from keras_brn import RenormSchedule
from keras_brn.paper.data.images import hold_out
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.small_batches import network as networks
from keras_brn.paper.small_batches.network import GroupsOfChannels
from keras_brn.paper.small_batches.runs import METHODS, SmallBatchRun, groups_of_runs

pytestmark = pytest.mark.each_backend
of_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="of JAX")
SMALL = {"images_per_step": 4, "learning_rate": 0.001, "images_seen": 64, "width": 2}


@pytest.fixture(scope="module")
def images():
    return hold_out(shades(validation=100), per_label=2)


def trained_by_keras(run, data, normalization):
    """The network of a run, by `fit`."""
    keras.utils.set_random_seed(run.seed)
    network = branched(normalization, data.image_shape, data.classes, run.width)
    accumulated = run.steps_per_update if run.steps_per_update > 1 else None
    rate = keras.optimizers.schedules.CosineDecay(run.learning_rate, run.steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(rate, gradient_accumulation_steps=accumulated)
    network.compile(optimizer, loss)
    indices, variations = Sampler(data.train_labels, run.images_seen, run.seed).draw(0)
    x = data.vary(data.train_images[indices], variations) / 127.5 - 1
    callbacks = [RenormSchedule.for_run(run.steps)] if run.method == "batch_renorm" else []
    network.fit(
        x.astype("float32"),
        data.train_labels[indices],
        batch_size=run.images_per_step,
        shuffle=False,
        callbacks=callbacks,
        verbose=0,
    )
    return network


@of_jax
def test_each_run_of_a_program_is_that_of_fit(images, monkeypatch):
    from keras_brn import BatchRenormalization
    from keras_brn.paper.small_batches.training import Training

    monkeypatch.setattr(networks, "small_inception", branched)
    data, choices = images
    layers = {
        "batchnorm": keras.layers.BatchNormalization,
        "batchnorm_accumulated": keras.layers.BatchNormalization,
        "batch_renorm": BatchRenormalization,
        "batch_renorm_at_once": BatchRenormalization,
        "group_norm": GroupsOfChannels,
    }
    runs = [SmallBatchRun(method, seed=k, **SMALL) for k, method in enumerate(METHODS)]
    x = (data.validation_images / 127.5 - 1).astype("float32")
    for group in groups_of_runs(runs):
        training = Training(group, data, choices)
        training.train()
        weights = training.weights_for_inference()
        for k, run in enumerate(group):
            network = trained_by_keras(run, data, layers[run.method])
            of_run = [[weight[k] for weight in part] for part in weights]
            logits, _ = training.program.network.stateless_call(*of_run, x, training=False)
            expected = network.predict(x, verbose=0)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(logits, expected, atol=1e-3 * scale, err_msg=run.method)


@of_jax
def test_calls_of_the_program_add_up_to_all_steps(images, monkeypatch):
    from keras_brn.paper.small_batches import training

    monkeypatch.setattr(networks, "small_inception", branched)
    monkeypatch.setattr(training, "_IMAGES_PER_CALL", 40)
    run = SmallBatchRun("group_norm", **(SMALL | {"images_seen": 96}))
    whole = training.Training([run], *images)
    whole.train()
    iterations = [x.name for x in whole.program.optimizer.variables].index("iteration")
    assert whole.state.optimizer[iterations].tolist() == [run.steps]


@of_jax
def test_recomputed_statistics_are_those_of_all_pixels(images):
    from keras_brn.paper.small_batches.training import Training

    data, choices = images
    training = Training([SmallBatchRun("batchnorm", seed=3, **SMALL)], data, choices)
    network, layer = training.program.network, training.program.network.layers[2]
    for weight, value in zip(network.trainable_variables, training.state.trainable, strict=True):
        weight.assign(value[0])
    _, others = training.recomputed_weights()
    x = (data.train_images / 127.5 - 1).astype("float32")
    seen = np.asarray(network.layers[1](x), "float64")
    index = [weight.path for weight in network.non_trainable_variables]
    for weight, expected in (
        (layer.moving_mean, seen.mean((0, 1, 2))),
        (layer.moving_stddev, np.sqrt(seen.var((0, 1, 2)) + layer.epsilon)),
    ):
        value = others[index.index(weight.path)][0]
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_the_groups_of_a_layer_have_as_many_channels(rng):
    x = rng.normal(size=(2, 3, 3, 32)).astype("float32")
    layer = GroupsOfChannels(8)
    copy = GroupsOfChannels.from_config(layer.get_config())
    expected = keras.ops.convert_to_numpy(keras.layers.GroupNormalization(4)(x))
    for each in (layer, copy):
        value = keras.ops.convert_to_numpy(each(x))
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert GroupsOfChannels(8)(x[..., :4]).shape == (2, 3, 3, 4)


def test_images_held_out_are_no_training_images(images):
    whole = shades(validation=100)
    data, (pixels, labels) = images
    assert np.bincount(labels).tolist() == [2] * whole.classes
    assert len(data.train_labels) + len(labels) == len(whole.train_labels)
    parts = np.concatenate([data.train_images, pixels]), whole.train_images
    together, before = (sorted(image.tobytes() for image in part) for part in parts)
    assert together == before
    with pytest.raises(ValueError, match="`per_label` must be at least 1"):
        hold_out(whole, 0)
