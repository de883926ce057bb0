"""What averages of the parameters and the monitor add to the time of a training step.

    KERAS_BACKEND=tensorflow python -m keras_brn.benchmarks.overhead [--seconds 60]

The network of the experiments at 128 images a step; the contenders take turns.
"""

import argparse

import keras
import numpy as np

from keras_brn.averaging import AveragedModel
from keras_brn.benchmarks.timing import take_turns, with_spread
from keras_brn.layer import BatchRenormalization
from keras_brn.monitor import Probe, split_into_minibatches
from keras_brn.paper.networks.small import small_inception

INTERVAL, MINIBATCHES, BATCH = 100, 4, 128


def training_step(model, x, y):
    """A function that takes a training step, and waits."""
    model.compile(
        keras.optimizers.RMSprop(1e-3, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    return lambda: model.train_on_batch(x, y)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    x = np.random.default_rng(0).normal(size=(BATCH, 32, 32, 1)).astype("float32")
    networks = [small_inception(BatchRenormalization, classes=200, width=8) for _ in range(3)]
    models = [networks[0], networks[1], AveragedModel(networks[2])]
    steps = [training_step(model, x, np.arange(BATCH)) for model in models]
    probe = Probe(networks[0])
    minibatches = split_into_minibatches(np.concatenate([x] * MINIBATCHES), BATCH)
    times = take_turns([*steps, lambda: probe.measure(minibatches)], options.seconds)
    ratios = times[:, 1:] / times[:, :1]
    print(f"{keras.backend.backend()}: a step takes {1e3 * np.median(times[:, 0]):.1f} ms")
    for name, ratio in (
        ("the same once more", ratios[:, 0]),
        ("with averages of all parameters", ratios[:, 1]),
        (f"with the monitor, {MINIBATCHES} minibatches every {INTERVAL} steps",
         1 + ratios[:, 2] / INTERVAL),
    ):  # fmt: skip
        print(f"{name}: x {with_spread(ratio, '.3f')}")


if __name__ == "__main__":
    main()
