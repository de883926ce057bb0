"""A callback that gives the layers of a model their ramp."""

import math
import warnings

import keras

from keras_brn.bounds import validated
from keras_brn.layer import renorm_layers
from keras_brn.ramp import LinearRamp, scaled_counts


class RenormSchedule(keras.callbacks.Callback):
    """Gives every `BatchRenormalization` of a model the ramp of its bounds.

    The bounds are those of `linear_ramp` at the number of training steps that a layer has
    completed. The layers count them, and compute their bounds in the step itself: the ramp is the
    same under `steps_per_execution`, in `train_on_batch`, in loops of your own, and it goes on in
    further calls of `fit`, with this callback or without. The count is a weight of the layer, so
    that it is saved with the model and the ramp goes on after a restart.

    A step is a call of `train_step`, whether an optimizer updates the weights in it, skips it (loss
    scaling) or accumulates its gradient (`gradient_accumulation_steps`): mu and sigma move in each.
    A layer that is called several times in a step counts it once; how often it is called is found
    out in the first step. A layer that is frozen counts nothing, and takes up the model's step
    at the beginning of the epoch in which it is trainable again; so does a layer that is new.

    The largest `r_max` and `d_max` of the layers, as they were in the last step of an epoch, appear
    in its logs: in `History`, and in `CSVLogger` and `TensorBoard` where these are listed after
    the schedule. A `fit` that ends before the ramp does is warned of.

    In a loop of your own give the layers their ramp when they are made, by
    `BatchRenormalization(schedule=LinearRamp(...))`, or call `set_model(model)` and
    `on_train_begin()` of this callback once. Where a step calls a layer several times, say so by
    `layer.set_step(0, calls_per_step=k)`.

    Args:
        warmup_steps: Steps of plain batchnorm, with bounds of 1 and 0.
        r_max_steps: Step at which `r_max` reaches its final value.
        d_max_steps: Step at which `d_max` reaches its final value.
        r_max: Final value, which all layers then keep as theirs, a finite float >= 1;
            `None`: each layer's own.
        d_max: Final value, the same, a finite float >= 0; `None`: each layer's own.
        start_step: Step to count from when training begins. `None`: go on from the stored
            number, which is also what `keras.callbacks.BackupAndRestore` restores.
        schedule: Function `step -> (r_max, d_max)` in place of the ramp, such as
            `lambda step: linear_ramp(step, 100, 900, 500)`. It is called on the host before
            each batch, so its bounds are constant inside a block of `steps_per_execution`;
            it is not saved, and on JAX it costs a synchronization of the model's state.

    Raises:
        ValueError: If a step lies before the one that it follows, a bound is out of its range;
            when training begins, if the model has no `BatchRenormalization`, a layer's
            final bound is infinite, or `fit` has another RenormSchedule.

    Source: Ioffe 2017, section 4.

    Example:

    >>> import numpy as np
    >>> from keras_brn import BatchRenormalization
    >>> model = keras.Sequential([keras.layers.Dense(8), BatchRenormalization()])
    >>> model.compile("sgd", "mse")
    >>> schedule = RenormSchedule(warmup_steps=0, r_max_steps=4, d_max_steps=2)
    >>> x, y = np.ones((32, 4)), np.ones((32, 8))
    >>> history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[schedule])
    >>> print(history.history["r_max"])  # In the steps 3 and 7, counted from 0.
    [2.5, 3.0]
    """

    def __init__(
        self,
        warmup_steps=None,
        r_max_steps=None,
        d_max_steps=None,
        r_max=None,
        d_max=None,
        *,
        start_step=None,
        schedule=None,
    ):
        super().__init__()
        counts = {
            "warmup_steps": warmup_steps,
            "r_max_steps": r_max_steps,
            "d_max_steps": d_max_steps,
        }
        if schedule is not None:
            _check_function(schedule, counts | {"r_max": r_max, "d_max": d_max})
        given = {name: steps for name, steps in counts.items() if steps is not None}
        self.ramp = LinearRamp(**given) if schedule is None else None
        finals = validated(1 if r_max is None else r_max, 0 if d_max is None else d_max)[0]
        if math.inf in finals:
            raise ValueError(
                f"A ramp needs finite bounds to end at. Received: r_max={r_max}, d_max={d_max}"
            )
        if start_step is not None and not (start_step >= 0 and start_step == int(start_step)):
            raise ValueError(
                f"`start_step` must be None or an integer >= 0. Received: start_step={start_step}"
            )
        self.r_max = r_max
        self.d_max = d_max
        self.start_step = start_step
        self.schedule = schedule
        self._warned = False

    @classmethod
    def for_run(cls, total_steps, **kwargs):
        """A schedule with the paper's shares of a run: 5, 40 and 25 of 130 thousand steps.

        Args:
            total_steps: Number of training steps of the whole run, >= 1.
            **kwargs: `r_max`, `d_max`, `start_step`.
        """
        return cls(*scaled_counts(total_steps), **kwargs)

    def on_train_begin(self, logs=None):
        if self.params and self.params.setdefault("renorm_schedule", self) is not self:
            raise ValueError("One `fit` takes one RenormSchedule. Received: more than one")
        self._give_ramp(renorm_layers(self.model))
        self._first_epoch, self._calls = True, _CallsPerStep()

    def on_epoch_begin(self, epoch, logs=None):
        layers = renorm_layers(self.model)
        if self._first_epoch:  # BackupAndRestore may have loaded weights in the meantime.
            self._give_ramp(layers)
            self._warn_if_too_short(epoch, layers)
            self._first_epoch = False
        _agree_on_step(layers)
        self._calls = _CallsPerStep()

    def on_train_batch_begin(self, batch, logs=None):
        if self.params and not self._calls.known:  # In `fit`, which counts the batches.
            self._calls.measure(batch, renorm_layers(self.model))
        if self.schedule is not None:
            self._follow_function(renorm_layers(self.model))

    def on_epoch_end(self, epoch, logs=None):
        layers = renorm_layers(self.model)
        steps = (self.params or {}).get("steps")
        if steps and not self._calls.measurements:  # There was no second batch to measure it by.
            self._calls.measure(steps, layers)
        bounds = [(layer.r_max, layer.d_max) for layer in layers if layer.trainable]
        if logs is not None and bounds:
            logs["r_max"], logs["d_max"] = map(max, zip(*bounds, strict=True))

    def _give_ramp(self, layers):
        """Checks the layers, then gives them the ramp and the step to begin with."""
        finals = [self._final_bounds(layer) for layer in layers]  # Nothing has changed up to here.
        for layer, final in zip(layers, finals, strict=True):
            if self.start_step is not None:
                layer.set_step(self.start_step)
            if self.schedule is None:
                layer._bounds.set(*final, self.ramp)
        if self.schedule is not None:
            self._follow_function(layers)

    def _final_bounds(self, layer):
        r_max, d_max = layer._bounds.final
        r_max = r_max if self.r_max is None else float(self.r_max)
        d_max = d_max if self.d_max is None else float(self.d_max)
        if self.schedule is None and math.inf in (r_max, d_max):
            raise ValueError(
                "A ramp needs finite bounds to end at: give them to RenormSchedule or to the "
                f"layer. Received: r_max={r_max}, d_max={d_max}, layer={layer.path!r}"
            )
        return r_max, d_max

    def _follow_function(self, layers):
        bounds = validated(*self.schedule(max(layer.step for layer in layers)))[0]
        for layer in layers:
            layer._bounds.fix(*bounds)

    def _warn_if_too_short(self, epoch, layers):
        epochs, steps = ((self.params or {}).get(name) for name in ("epochs", "steps"))
        if self.ramp is None or self._warned or not epochs or not steps:
            return
        end = max(layer.step for layer in layers) + (epochs - epoch) * steps
        if end < max(self.ramp.r_max_steps, self.ramp.d_max_steps):
            self._warned = True
            r_max, d_max = self.ramp(end, *layers[0]._bounds.final)
            warnings.warn(
                f"`fit` ends at training step {end}, before the ramp of the bounds does: at "
                f"r_max={r_max:.3g}, d_max={d_max:.3g} (1 and 0 are batchnorm). The ramp is "
                f"{self.ramp}. `RenormSchedule.for_run({end})` has the paper's shares of a run of "
                f"{end} steps: {LinearRamp.for_run(end)}.",
                stacklevel=2,
            )


class _CallsPerStep:
    """How often a training step calls each layer, from the counts before and after steps.

    What other callbacks do between two batches (training on a batch again) may call the layers as
    well, so the smaller of two measurements counts.
    """

    def __init__(self):
        self.measurements = 0
        self._before = None  # (batch, from the path of a layer to its step and its calls)

    @property
    def known(self):
        return self.measurements == 2

    def measure(self, batch, layers):
        layers = [layer for layer in layers if layer.built]
        if self._before is not None:
            first, counts = self._before
            self.measurements += 1
            for layer in layers:
                if layer.path in counts:
                    self._correct(layer, batch - first, *counts[layer.path])
        counts = {layer.path: (layer.step, layer._bounds.count_of_calls) for layer in layers}
        self._before = batch, counts

    def _correct(self, layer, steps, step, calls):
        calls_per_step, rest = divmod(layer._bounds.count_of_calls - calls, steps)
        known = layer._bounds.count_of_calls_per_step
        smaller = self.measurements == 1 or calls_per_step < known
        if calls_per_step and not rest and smaller and calls_per_step != known:
            layer.set_step(step + steps, calls_per_step)


def _agree_on_step(layers):
    """Brings layers that were frozen, or are new, to the step of the others."""
    layers = [layer for layer in layers if layer.built and layer.trainable]
    steps = [layer.step for layer in layers]
    for layer, step in zip(layers, steps, strict=True):
        if step < max(steps):
            layer.set_step(max(steps))


def _check_function(schedule, others):
    if not callable(schedule):
        raise ValueError(f"`schedule` must be a function. Received: schedule={schedule!r}")
    given = {name: value for name, value in others.items() if value is not None}
    if given:
        raise ValueError(
            "`schedule` takes the place of the ramp and can't be combined with its arguments. "
            f"Received: schedule={schedule!r}, "
            + ", ".join(f"{name}={value}" for name, value in given.items())
        )
