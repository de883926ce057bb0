"""What Batch Renorm corrects in each of the runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from keras_brn.monitor import QUANTITIES, Probe
from keras_brn.paper.data.images import as_floats
from keras_brn.paper.on_device.drawing import Draws
from keras_brn.paper.on_device.program import give_bounds
from keras_brn.paper.training.recorder import (
    CORRECTION_MINIBATCHES,
    CORRECTION_SEED,
    record_correction,
)


class Correction:
    """Measures the correction as `keras_brn.paper.training.train` does, on minibatches that are not
    trained on.

    Args:
        experiments: List of `Experiment`, of Batch Renorm.
        data: `Images`.
        model: An `AveragedModel` of their network, whose weights are overwritten.
    """

    def __init__(self, experiments, data, model):
        self.experiments, self.data, self.network = experiments, data, model.network
        self.probe = Probe(model)
        others = [dataclasses.replace(x, seed=x.seed + CORRECTION_SEED) for x in experiments]
        draws = Draws(others, np.asarray(data.labels["train"]))
        of_kinds = [self._minibatches(sampler) for sampler in draws.samplers()]
        self.minibatches = [of_kinds[kind] for kind in draws.kind_of_run]

    def _minibatches(self, sampler):
        pixels = self.data.train_images
        draws = [sampler.draw(step) for step in range(CORRECTION_MINIBATCHES)]
        images = [self.data.vary(pixels[indices], variations) for indices, variations in draws]
        return [jnp.asarray(as_floats(x)) for x in images]

    def record(self, state, results):
        """Appends to the `correction` of all results, from the `State` of all runs."""
        weights = [*self.network.trainable_variables, *self.network.non_trainable_variables]
        of_all = jax.device_get([*state.trainable, *state.others])
        of_each = zip(self.experiments, self.minibatches, results, strict=True)
        for k, (experiment, minibatches, result) in enumerate(of_each):
            give_bounds(self.network, experiment)
            for variable, values in zip(weights, of_all, strict=True):
                variable.assign(values[k])
            measured = self.probe.measure(minibatches)
            values = {name: [of[name] for of in measured.values()] for name in QUANTITIES}
            record_correction(result, list(measured), values)
