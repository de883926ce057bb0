"""Which images the runs see, drawn ahead by a thread or by processes."""

import collections
import concurrent.futures
import contextlib
import multiprocessing

import numpy as np

from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.on_device.images import encoded


class Draws:
    """The indices and variations of consecutive steps, for all runs: each kind of draw once.

    Args:
        experiments: List of `Experiment`.
        labels: Integers (images,).
    """

    def __init__(self, experiments, labels):
        keys = [(x.seed, x.draw or x.batch_size, x.images_per_label) for x in experiments]
        self.kinds = list(dict.fromkeys(keys))
        self.kind_of_run = np.array([self.kinds.index(key) for key in keys])
        self.batch_size, self.labels = experiments[0].batch_size, labels

    def samplers(self):
        return [
            Sampler(self.labels, self.batch_size, seed, group, images_per_label)
            for seed, group, images_per_label in self.kinds
        ]

    @contextlib.contextmanager
    def of_calls(self, starts, steps, processes):
        """For the block of a `with` statement: yields `indices` and `codes`, (steps, runs, batch),
        of one call after another, drawn ahead from now on.

        Args:
            starts: The first step of each call.
            steps: Number of steps in a call.
            processes: As of `train_on_device`.
        """
        if processes:
            pool = concurrent.futures.ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), _start_drawing, (self,)
            )
        else:
            pool = concurrent.futures.ThreadPoolExecutor(1, "draws", _start_drawing, (self,))

        def submit(first):
            return [pool.submit(_draw, kind, first, steps) for kind in range(len(self.kinds))]

        ahead = collections.deque(submit(first) for first in starts[: 2 + 2 * processes])

        def calls():
            for k in range(len(starts)):
                drawn = [job.result() for job in ahead.popleft()]
                if k + len(ahead) + 1 < len(starts):
                    ahead.append(submit(starts[k + len(ahead) + 1]))
                yield tuple(
                    np.stack([drawn[kind][i] for kind in self.kind_of_run], 1) for i in (0, 1)
                )

        try:
            yield calls()
        finally:
            pool.shutdown(cancel_futures=True)


def _start_drawing(draws):
    global _samplers  # Of a process or a thread that draws.
    _samplers = draws.samplers()


def _draw(kind, first, count):
    draws = [_samplers[kind].draw(step) for step in range(first, first + count)]
    indices = np.stack([indices for indices, _ in draws]).astype("int32")
    return indices, np.stack([encoded(variations) for _, variations in draws])
