"""What the exchange of mu and sigma of Inception-v3 costs a step: packed, and one by one.

python -m keras_brn.paper.launch --workers 2 keras_brn/benchmarks/exchange.py [--rounds 30]
"""

import argparse
import time

import keras
import numpy as np

from keras_brn.benchmarks.timing import with_spread
from keras_brn.distribute.tensorflow import SharedStatistics
from keras_brn.extras import extra
from keras_brn.layer import BatchRenormalization
from keras_brn.paper.cluster import connect_workers, worker_rank
from keras_brn.statistics import move_averages

with extra("paper"):
    import tensorflow as tf


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    strategy = connect_workers()
    network = keras.applications.InceptionV3(weights=None, include_top=False)
    channels = [
        layer.output.shape[-1]
        for layer in network.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    with strategy.scope():
        layers = [BatchRenormalization() for _ in channels]
        for layer, count in zip(layers, channels, strict=True):
            layer.build((None, count))

    def update():
        for layer, count in zip(layers, channels, strict=True):
            error, averages = tf.fill([count], 0.1), [layer.moving_mean, layer.moving_stddev]
            move_averages(averages, [error, error], tf.fill([count], True), layer.momentum)

    def packed():
        with SharedStatistics() as statistics:
            update()
        statistics.share()

    ways = {"packed": packed, "one by one": update}
    steps = [tf.function(lambda way=way: strategy.run(way)) for way in ways.values()]
    times = np.empty((rounds, len(steps)))
    for step in steps:
        step(), step()
    for row in times:
        for k, step in enumerate(steps):
            start = time.perf_counter()
            step()
            np.asarray(layers[-1].moving_mean)  # Waits.
            row[k] = 1e3 * (time.perf_counter() - start)
    worker, workers = worker_rank(strategy)
    if worker == 0:
        floats = 2 * sum(channels)
        print(f"{workers} workers, {2 * len(layers)} statistics, {4 * floats / 1e3:.0f} kB a step")
        for name, column in zip(ways, times.T, strict=True):
            print(f"{name}: {with_spread(column, '.1f')} ms")
        print(f"one by one / packed: {with_spread(times[:, 1] / times[:, 0], '.1f')}")


if __name__ == "__main__":
    main()
