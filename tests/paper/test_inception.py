"""Inception-v3, against its published counts."""

import numpy as np
import pytest

from keras_brn import BatchRenormalization
from keras_brn.paper.networks.inception import inception_v3


def fixed_gamma():
    return BatchRenormalization(scale=False)


@pytest.fixture(scope="module")
def model():
    return inception_v3(fixed_gamma)


def count(weights):
    return sum(np.prod(weight.shape) for weight in weights)


def test_parameters(model):
    # keras.applications: 23,851,784 with 17,216 means and variances, without gamma and head.
    # torchvision: 27,161,264 with the head, and with a gamma for each of 17,216 + 896 channels.
    alone = inception_v3(fixed_gamma, auxiliary=False)
    assert count(alone.trainable_weights) == 23_851_784 - 2 * 17_216
    assert count(model.trainable_weights) == 27_161_264 - 17_216 - 896
    layers = [layer for layer in model.layers if isinstance(layer, BatchRenormalization)]
    assert len(layers) == 96 and {layer.gamma for layer in layers} == {None}


def test_outputs(model):
    outputs = model(np.zeros((2, 299, 299, 3), "float32"))
    assert {name: y.shape for name, y in outputs.items()} == {
        "logits": (2, 1000),
        "auxiliary_logits": (2, 1000),
    }
    assert model.get_layer("mixed7").output.shape[1:3] == (17, 17)


def test_initializers_and_weight_decay(model):
    kernels = {
        layer.name: np.array(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")
    }
    deviations = {name: kernel.std() for name, kernel in kernels.items() if kernel.size > 50_000}
    of_normal = 0.88  # What truncation at two deviations leaves.
    assert deviations.pop("logits") == pytest.approx(of_normal * 0.01, rel=0.02)
    assert deviations.pop("auxiliary_logits") == pytest.approx(of_normal * 0.001, rel=0.02)
    last = max(deviations, key=lambda name: kernels[name].size)
    assert kernels[last].shape == (5, 5, 128, 768)
    assert deviations.pop(last) == pytest.approx(of_normal * 0.01, rel=0.02)
    np.testing.assert_allclose(list(deviations.values()), of_normal * 0.1, rtol=0.02)
    squares = sum((kernel.astype("float64") ** 2).sum() for kernel in kernels.values())
    assert float(sum(model.losses)) == pytest.approx(4e-5 * squares / 2, rel=1e-4)


def test_small_images():
    model = inception_v3(fixed_gamma, (107, 107, 3), classes=3)
    assert model.output["auxiliary_logits"].shape == (None, 3)
    with pytest.raises(ValueError, match=r"input_shape=\(106, 106, 3\)"):
        inception_v3(fixed_gamma, (106, 106, 3))
    assert inception_v3(fixed_gamma, (75, 75, 3), 3, auxiliary=False).output.shape == (None, 3)
