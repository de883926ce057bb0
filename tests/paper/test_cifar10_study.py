"""The student reproduction's network, its ramp in epochs, and its accuracy after each step."""

import keras
import numpy as np
import pytest

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.data.images import Images, hold_out
from keras_brn.paper.studies import cifar10


def noise(count=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype("uint8")
    labels = np.arange(count) % 10
    return Images("noise", 10, images, labels, images[:20], labels[:20], flip=True)


def test_the_network_is_that_of_the_report():
    network = cifar10.blocks_network(keras.layers.BatchNormalization, 4)
    kinds = [type(layer).__name__ for layer in network.layers]
    block = ["Conv2D", "BatchNormalization", "ReLU"] * 2 + ["MaxPooling2D", "Dropout"]
    assert kinds == block * 3 + ["Flatten", "Dense"]
    rates = [x.rate for x in network.layers if isinstance(x, keras.layers.Dropout)]
    assert rates == sorted(set(rates))  # Growing.
    assert network.output_shape == (None, 10)


@pytest.mark.parametrize(
    "method, bounds",
    [("batchnorm", (1, 0)), ("batch_renorm_20", (3, 5)), ("batch_renorm_50", (1, 0))],
)
def test_bounds_after_45_epochs(method, bounds, monkeypatch):
    """Of one step, so that it takes no time."""
    monkeypatch.setattr(cifar10, "STEPS_PER_EPOCH", 1)
    run = cifar10.Cifar10Run(method, 2, 1e-3, epochs=46, images_per_step=2, width=1)
    network = cifar10.train_network(run, noise())
    (layer, *_) = [x for x in network.layers if isinstance(x, BatchRenormalization)]
    assert (layer.microbatch_size, layer.momentum) == (2, 0.99)
    assert (float(layer.r_max), float(layer.d_max)) == bounds


def test_a_run():
    data, choices = hold_out(noise(), per_label=1)
    run = cifar10.Cifar10Run("batch_renorm_20", 4, 1e-3, epochs=4, images_per_step=4, width=2)
    with pytest.warns(UserWarning, match="ends at training step 100, before the ramp"):
        result = cifar10.train_cifar10(run, data, choices)
    first, last = result["curve"]  # After 50 and 100 steps.
    assert (result["early"], result["late"], result["test"]) == (first, last, last)
    assert 0 <= result["choices"] <= 1


def test_accuracy_after_each_step_and_the_epoch_goes_on():
    """Twice two steps; a learning rate of 0 keeps the accuracy, and `fit` its own counts."""
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten()])
    model.add(keras.layers.Dense(10))
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(True))
    data = noise(8)
    accuracy = cifar10.StepAccuracy(data.train_images, data.train_labels)
    other = cifar10.StepAccuracy(data.train_images, data.train_labels, every=3)
    x = data.train_images / np.float32(127.5) - 1
    history = model.fit(
        x, data.train_labels, batch_size=4, epochs=2, verbose=0, callbacks=[accuracy, other]
    )
    predicted = np.argmax(model.predict(x, verbose=0), axis=1)
    expected = round(float(np.mean(predicted == data.train_labels)), 5)
    assert accuracy.accuracy == [expected] * 4 and other.accuracy == [expected]
    assert len(history.history["loss"]) == 2


def test_one_learning_rate_for_all():
    """That of the best mean, though another one has the best run."""
    qualities = {1e-3: (0.5, 0.6), 3e-3: (0.6, 0.55), 1e-2: (0.7, 0.1)}
    results = [
        {"learning_rate": rate, "choices": quality}
        for rate, of_rate in qualities.items()
        for quality in of_rate
    ]
    assert cifar10.best_rate(results) == 3e-3
    runs = cifar10.runs_of([3e-3], 7)
    assert {(run.method, run.microbatch) for run in runs} == {
        (method, microbatch) for method in cifar10.METHODS for microbatch in (4, 32)
    }
    assert {(run.learning_rate, run.seed) for run in runs} == {(3e-3, 7)} and len(runs) == 6


def test_unknown_methods_are_refused():
    with pytest.raises(ValueError, match="`method` must be one of .* Received: method='none'"):
        cifar10.Cifar10Run("none", 4, 1e-3)
