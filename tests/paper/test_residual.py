"""The residual network, and that its runs train."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_brn.paper.data.images import Images, hold_out
from keras_brn.paper.studies import residual


def test_parameters_are_those_of_the_published_network():
    """He et al. 2016, table 6: .27 million with 16, 32 and 64 channels."""
    network = residual.residual_network(keras.layers.BatchNormalization, 16)
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    kernels = [x for x in network.layers if isinstance(x, keras.layers.Conv2D)]
    assert (len(norms), len(kernels), network.output_shape) == (19, 19, (None, 10))
    weights = sum(np.prod(x.kernel.shape) for x in [*kernels, network.layers[-1]])
    assert weights == 432 + 6 * 2304 + (4608 + 5 * 9216) + (18432 + 5 * 36864) + 640


def test_a_block_without_convolutions_is_its_shortcut():
    """With kernels of zero only what the first convolution makes goes on; where the resolution
    falls, each second pixel of it."""
    network = residual.residual_network(lambda: keras.layers.Activation("linear"), 2)
    first, *others = [x for x in network.layers if isinstance(x, keras.layers.Conv2D)]
    for convolution in others:
        convolution.kernel.assign(keras.ops.zeros_like(convolution.kernel))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    y = np.maximum(keras.ops.convert_to_numpy(first(x)), 0)[:, ::4, ::4].mean((1, 2))
    features = keras.Model(network.input, network.layers[-1].input)(x)
    np.testing.assert_allclose(features, np.pad(y, ((0, 0), (0, 6))), atol=1e-6)


def test_each_method_has_its_layer():
    layers = {
        method: residual.normalization_maker(residual.ResidualRun(method, 4, 1e-3))()
        for method in residual.METHODS
    }
    for method, bounds in (("batchnorm", (1, 0)), ("batch_renorm", (3, 5))):
        layer = layers[method]
        assert (layer.r_max, layer.d_max, layer.momentum) == (*bounds, 0.98)
    assert layers["group_norm"].groups == 4
    assert isinstance(layers["plain"], keras.layers.Activation)


@pytest.mark.parametrize("method", ["batch_renorm", "group_norm"])
def test_runs(method):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 32, 32, 3)).astype("uint8")
    labels = np.arange(40) % 10
    data = Images("noise", 10, images, labels, images[:20], labels[:20], flip=True)
    data, choices = hold_out(data, per_label=1)
    run = residual.ResidualRun(method, 4, 1e-3, images_seen=8, width=2)
    assert (run.steps, dataclasses.replace(run, images_seen=20_000).momentum) == (2, 0.98)
    result = residual.train_residual(run, data, choices)
    assert set(result) == {"choices", "test"} and all(0 <= x <= 1 for x in result.values())


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="`method` must be one of .* Received: method='none'"):
        residual.ResidualRun("none", 4, 1e-3)
