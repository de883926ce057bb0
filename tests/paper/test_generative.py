"""The adversarial networks: their steps, the gradient penalty, and what is measured."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.studies import generative

RUN = generative.GenerativeRun("batch_renorm", 1e-3, images_per_step=4, images_seen=32, width=2)


@pytest.fixture(scope="module")
def data():
    return load_glyphs(4, 2, labels=10)


def renorms(network):
    return [layer for layer in network.layers if isinstance(layer, BatchRenormalization)]


@pytest.mark.parametrize(
    "method, of_generator, of_discriminator",
    [("batch_renorm", (3, 5), (3, 5)), ("batch_renorm_generator", (3, 5), (1, 0))],
)
def test_the_ramp_counts_steps_and_not_calls(data, method, of_generator, of_discriminator):
    model = generative.train_adversaries(dataclasses.replace(RUN, method=method), data)
    for network, calls, layers, bounds in (
        (model.generator, 2, 3, of_generator),
        (model.discriminator, 3, 2, of_discriminator),
    ):
        assert len(renorms(network)) == layers
        for layer in renorms(network):
            assert (layer.step, float(layer.r_max), float(layer.d_max)) == (8, *bounds)
            assert layer.calls_per_step == calls


@pytest.mark.parametrize("still", ["generator", "discriminator"])
def test_each_network_is_trained_by_its_own_loss(still):
    """The discriminator comes to tell real pictures from generated ones, and the generator to be
    taken for real, while the other stays as it is."""
    keras.utils.set_random_seed(0)
    model = generative.Adversaries(dataclasses.replace(RUN, method="plain"))
    optimizers = {"generator": model.optimizer, "discriminator": model.discriminator_optimizer}
    optimizers[still].learning_rate = 0.0
    networks = {name: getattr(model, name) for name in optimizers}
    before = {name: network.get_weights() for name, network in networks.items()}
    real, z = tf.ones((4, 32, 32, 1)), generative.noise(20, 0)

    def logits():
        return [float(np.mean(model.discriminator(x))) for x in (real, model.generator(z))]

    of_real, of_generated = logits()
    for _ in range(10):
        model.train_step((real,))
    for name, network in networks.items():
        pairs = zip(before[name], network.get_weights(), strict=True)
        assert any(np.any(x != y) for x, y in pairs) == (name != still)
    if still == "generator":
        assert logits()[0] > of_real and logits()[1] < of_generated
    else:
        assert logits()[1] > of_generated


def test_the_gradient_penalty_is_its_derivative():
    """Its derivative by a weight, through second derivatives of the normalization, against
    differences of the penalty; with batchnorm, as r and d carry no gradient."""
    keras.utils.set_random_seed(1)
    run = dataclasses.replace(RUN, method="batchnorm", penalty=2.0)
    model = generative.Adversaries(run)
    real = tf.constant(np.random.default_rng(0).normal(size=(4, 32, 32, 1)), "float32")
    kernel = model.discriminator.layers[2].kernel
    direction = np.random.default_rng(1).normal(size=kernel.shape).astype("float32")
    direction /= np.linalg.norm(direction)
    with tf.GradientTape() as tape:
        loss = model._loss_of_real(tf, real)
    gradient = float(np.sum(tape.gradient(loss, kernel.value) * direction))
    values, at = [], kernel.numpy()
    for sign in (1, -1):
        kernel.assign(at + sign * 1e-3 * direction)
        values.append(float(model._loss_of_real(tf, real)))
    kernel.assign(at)
    without = generative.Adversaries(dataclasses.replace(run, penalty=0.0))
    without.discriminator.set_weights(model.discriminator.get_weights())
    assert float(without._loss_of_real(tf, real)) < 0.99 * float(loss)
    np.testing.assert_allclose(gradient, (values[0] - values[1]) / 2e-3, rtol=0.02)


def test_companions_change_batchnorm_alone(data):
    shares = {}
    for method in ("batchnorm", "plain"):
        run = dataclasses.replace(RUN, method=method)
        generator = generative.train_adversaries(run, data).generator
        before = generator.get_weights()
        shares[method] = generative.companions_change(generator, 4)
        for old, new in zip(before, generator.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    assert shares["plain"] < 1e-6 and 0.01 < shares["batchnorm"] < 1


def test_frechet_distance():
    """By the matrix root of its definition; and of two normal distributions it is known."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 3)), rng.normal(1, 2, size=(60, 3)) @ rng.normal(size=(3, 3))
    of_x, of_y = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(of_x @ of_y).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(of_x + of_y - 2 * root)
    np.testing.assert_allclose(generative.frechet_distance(x, y), expected, rtol=1e-6)
    x = rng.normal(size=(100_000, 1)) * [1.0, 1.0]
    np.testing.assert_allclose(generative.frechet_distance(x, 3 * x + 1), 2 + 8, rtol=0.02)


def test_a_run(data):
    quality = generative.Quality(data, steps=1)
    run = dataclasses.replace(RUN, images_seen=8)
    result = generative.train_generative(run, data, quality, pictures=40)
    assert set(result) == {"choices", "test", "training", "real", "companions"}
    assert result["choices"] < 0 < min(result["test"], result["training"], result["real"])
    assert result["test"] != result["training"]


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="`method` must be one of .* Received: method='none'"):
        generative.GenerativeRun("none", 1e-3)
