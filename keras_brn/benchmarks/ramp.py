"""What counting steps and computing bounds costs the layers of a model in a training step.

    KERAS_BACKEND=jax python -m keras_brn.benchmarks.ramp [--layers 100] [--seconds 20]

The same function with the bounds of so many layers and with two constants takes turns.
"""

import argparse

import keras
import numpy as np
from keras import ops

from keras_brn.benchmarks.timing import take_turns, with_spread
from keras_brn.bounds import Bounds
from keras_brn.ramp import LinearRamp


class BoundsOfLayers(keras.Layer):
    """Adds up the bounds of `count` layers, or as many constants."""

    def __init__(self, count, ramps):
        super().__init__()
        self.ramps = ramps
        self.each = [Bounds(3.0, 5.0, LinearRamp()) for _ in range(count)]
        for bounds in self.each:
            bounds.build(self, "float32")
        self.built = True

    def call(self, x):
        for bounds in self.each:
            r_max, d_max = bounds.in_training("float32") if self.ramps else (1.0, 0.0)
            x = x + r_max + d_max
        return x


def training_call(layer):
    """A function that calls the layer as a training step does, and waits."""
    backend, x = keras.backend.backend(), ops.ones(())
    if backend == "tensorflow":
        import tensorflow as tf

        call = tf.function(layer)
        return lambda: call(x).numpy()
    if backend == "jax":
        import jax

        call = jax.jit(lambda state, x: layer.stateless_call([], state, x))
        state = [[variable.value for variable in layer.non_trainable_variables]]

        def step():
            y, state[0] = call(state[0], x)
            return jax.block_until_ready(y)

        return step
    return lambda: float(layer(x))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    steps = [training_call(BoundsOfLayers(options.layers, ramps)) for ramps in (True, False)]
    times = 1e3 * take_turns(steps, options.seconds)
    cost = with_spread(np.subtract(*times.T), ".2f")
    print(f"{keras.backend.backend()}: the ramps of {options.layers} layers take {cost} ms a step")


if __name__ == "__main__":
    main()
