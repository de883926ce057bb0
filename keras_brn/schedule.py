"""The ramp of the bounds of Batch Renorm over the training steps of a model."""

import contextlib
import functools
import math

import keras
import numpy as np
from keras import ops

from keras_brn.layer import renorm_layers, validated_bounds

_DEFAULTS = (5_000, 40_000, 25_000, None, None)


def linear_ramp(
    step, warmup_steps=5_000, r_max_steps=40_000, d_max_steps=25_000, r_max=3.0, d_max=5.0
):
    """The bounds of Batch Renorm at a training step; by default those of the paper.

    Up to `warmup_steps` they are 1 and 0, which is batchnorm. From there `r_max` rises
    linearly to its final value at `r_max_steps`, and `d_max` to its own at `d_max_steps`.

    Args:
        step: The number of training steps completed before this one: an integer, an array
            or a tensor. The paper's numbers are for a learning rate and a batch of 1600 that
            take 130k steps or more: scale all three counts with the length of the run.
        warmup_steps: Number of steps >= 0.
        r_max_steps: Number of steps >= `warmup_steps`.
        d_max_steps: Number of steps >= `warmup_steps`.
        r_max: Final value, a float >= 1 (or an array or tensor of them).
        d_max: Final value, a float >= 0 (or an array or tensor of them).

    Returns:
        `(r_max, d_max)`, each of the shape of `step` and the final values together.

    Source: Ioffe 2017, section 4, where the shape of the relaxation is left open.

    Example:

    >>> r_max, d_max = linear_ramp(15_000)
    >>> print(round(float(r_max), 3), float(d_max))
    1.571 2.5
    """
    if ops.is_tensor(step) and "int" in keras.backend.standardize_dtype(step.dtype):
        step = ops.cast(step, "float32")
    clip = ops.clip if ops.is_tensor(step) else np.clip

    def fraction(last_step):
        if last_step == warmup_steps:  # A jump.
            return clip(step - warmup_steps + 1, 0, 1)
        return clip((step - warmup_steps) / (last_step - warmup_steps), 0, 1)

    return 1 + (r_max - 1) * fraction(r_max_steps), d_max * fraction(d_max_steps)


class RenormSchedule(keras.callbacks.Callback):
    """Moves the bounds of every `BatchRenormalization` of a model, at every training step.

    The bounds are those of `linear_ramp` at the number of training steps (calls of
    `train_step`) that the model has completed. That number is kept with the layers, and
    saved with the model: the ramp goes on over epochs, further calls of `fit` with a
    RenormSchedule, and restarts from a checkpoint. It is advanced inside the compiled
    training step, so that it is exact under `steps_per_execution`.

    The largest `r_max` and `d_max` of the layers in the last step appear in the logs: in the
    progress bar, in `History`, and in `CSVLogger` and `TensorBoard` where these are listed
    after the schedule.

    The schedule is in force while `fit` runs; after that the bounds hold where they are (after
    a `fit` that was interrupted, from the next training step or `on_train_end()` on). In a
    loop of your own, call `set_model(model)` and `on_train_begin()`, then
    `on_train_batch_begin(step)` before each `model.train_on_batch`, and `on_train_end()`. Where you
    have no `train_step`, call `layer.set_bounds(*linear_ramp(step))`.

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
            final bound is infinite, or the layers do not agree on the stored step.

    Source: Ioffe 2017, section 4.

    Example:

    >>> model = keras.Sequential([keras.layers.Dense(8), BatchRenormalization()])
    >>> model.compile("sgd", "mse")
    >>> schedule = RenormSchedule(warmup_steps=0, r_max_steps=8, d_max_steps=4)
    >>> x, y = np.ones((32, 4)), np.ones((32, 8))
    >>> history = model.fit(x, y, batch_size=8, verbose=0, callbacks=[schedule])
    >>> print(model.layers[1].r_max)  # the last step used linear_ramp(3, ...)
    1.75
    """

    def __init__(
        self,
        warmup_steps=5_000,
        r_max_steps=40_000,
        d_max_steps=25_000,
        r_max=None,
        d_max=None,
        *,
        start_step=None,
        schedule=None,
    ):
        super().__init__()
        if not 0 <= warmup_steps < math.inf:
            raise ValueError(
                f"`warmup_steps` must be at least 0. Received: warmup_steps={warmup_steps}"
            )
        for name, steps in (("r_max_steps", r_max_steps), ("d_max_steps", d_max_steps)):
            if not warmup_steps <= steps < math.inf:
                raise ValueError(
                    f"`{name}` must be at least `warmup_steps`. "
                    f"Received: {name}={steps}, warmup_steps={warmup_steps}"
                )
        finals = validated_bounds(1 if r_max is None else r_max, 0 if d_max is None else d_max)
        if math.inf in finals:
            raise ValueError(
                f"A ramp needs finite bounds to end at. Received: r_max={r_max}, d_max={d_max}"
            )
        if start_step is not None and not (start_step >= 0 and start_step == int(start_step)):
            raise ValueError(
                f"`start_step` must be None or an integer >= 0. Received: start_step={start_step}"
            )
        if schedule is not None:
            if not callable(schedule):
                raise ValueError(f"`schedule` must be a function. Received: schedule={schedule!r}")
            if (warmup_steps, r_max_steps, d_max_steps, r_max, d_max) != _DEFAULTS:
                raise ValueError(
                    "`schedule` takes the place of the ramp and can't be combined with its "
                    f"arguments. Received: schedule={schedule!r}, warmup_steps={warmup_steps}, "
                    f"r_max_steps={r_max_steps}, d_max_steps={d_max_steps}, r_max={r_max}, "
                    f"d_max={d_max}"
                )
        self.ramp_steps = (warmup_steps, r_max_steps, d_max_steps)
        self.r_max = r_max
        self.d_max = d_max
        self.start_step = start_step
        self.schedule = schedule
        self.async_safe = schedule is None  # Logs then need nothing that the next step changes.

    def on_train_begin(self, logs=None):
        model = self.model
        other = vars(model).get("_renorm_schedule", {}).get("callback", self)
        if other is not self and self.params is not None and other.params is self.params:
            raise ValueError("One `fit` takes one RenormSchedule. Received: more than one")
        _release(model)
        self._bind(renorm_layers(model))
        self._first_epoch = True
        self._ramped_step = _install(self, model)

    def on_epoch_begin(self, epoch, logs=None):
        layers = renorm_layers(self.model)
        if self._first_epoch:  # BackupAndRestore may have loaded weights in the meantime.
            self._bind(layers)
            self._first_epoch = False
        self._epoch_start = layers[0]._get_state("step")

    def on_train_batch_begin(self, batch, logs=None):
        self._in_training = True
        if self.schedule is not None:
            self._follow_schedule(renorm_layers(self.model))

    def on_train_batch_end(self, batch, logs=None):
        if logs is not None:
            steps = (self.params or {}).get("steps") or math.inf  # A last block may be shorter.
            self._log(self._epoch_start + min(batch, steps - 1), logs)

    def on_epoch_end(self, epoch, logs=None):
        if not self._ramped_step.called:
            raise RuntimeError(
                f"No training step was counted in epoch {epoch}: `fit` of this "
                f"{type(self.model).__name__} does not call `model.train_step`, which is what "
                "RenormSchedule extends."
            )
        if logs is not None:
            self._log(renorm_layers(self.model)[0]._get_state("step") - 1, logs)

    def on_train_end(self, logs=None):
        _release(self.model)

    def _bind(self, layers):
        """Checks the layers, then gives them the step and the bounds to begin with."""
        finals = [self._final_bounds(layer) for layer in layers]
        step = self._first_step(layers)  # Nothing has changed up to here.
        self._layers, self._epoch_start, self._in_training = layers, step, False
        for layer, final in zip(layers, finals, strict=True):
            layer._set_state(step=step)
            layer._scheduled = self.schedule is None
            if self.schedule is None:
                bounds = linear_ramp(step, *self.ramp_steps, *final)
                layer._set_state(final_bounds=final, bounds=tuple(map(float, bounds)))
        if self.schedule is not None:
            self._follow_schedule(layers)

    def _follow_schedule(self, layers):
        step = layers[0]._get_state("step")
        self._bounds = validated_bounds(*self.schedule(step))
        for layer in layers:
            layer._set_state(bounds=self._bounds)

    def _log(self, step, logs):
        """Adds the largest bounds of a step. From what the host knows: a look at the weights
        would wait for the device, and on JAX cost a synchronization of the model's state."""
        if self.schedule is None:
            finals = {layer._last_set["final_bounds"] for layer in self._layers}
            bounds = [linear_ramp(step, *self.ramp_steps, *final) for final in finals]
        else:
            bounds = [self._bounds]
        logs["r_max"], logs["d_max"] = (float(max(bound)) for bound in zip(*bounds, strict=True))

    def _final_bounds(self, layer):
        r_max, d_max = layer._get_state("final_bounds")
        r_max = r_max if self.r_max is None else float(self.r_max)
        d_max = d_max if self.d_max is None else float(self.d_max)
        if self.schedule is None and math.inf in (r_max, d_max):
            raise ValueError(
                "A ramp needs finite bounds to end at: give them to RenormSchedule or to the "
                f"layer. Received: r_max={r_max}, d_max={d_max}, layer={layer.path!r}"
            )
        return r_max, d_max

    def _first_step(self, layers):
        if self.start_step is not None:
            return int(self.start_step)
        steps = {layer.path: layer._get_state("step") for layer in layers}
        if len(set(steps.values())) > 1:
            raise ValueError(
                "The layers of the model do not agree on the number of training steps: say where "
                f"to begin, with `start_step`. Received: start_step=None, stored steps {steps}"
            )
        return steps[layers[0].path]


def _install(callback, model):
    """Lets the model train with `_with_ramp`, compiled now unless it was before."""
    model.make_train_function()
    plain = model.train_function
    state = vars(model).setdefault("_renorm_schedule", {})
    if state.get("plain") is not plain:  # `compile` or the user has replaced it.
        state.clear()
    ramp_steps = callback.ramp_steps if callback.schedule is None else None
    key = (ramp_steps, *map(id, callback._layers))
    if key not in state:
        step = _with_ramp(model, ramp_steps)
        with _train_step_replaced(model, step):
            model.make_train_function(force=True)
        state[key] = step, model.train_function
    step, ramped = state[key]

    def train_function(*args):
        # A `fit` that was interrupted never called `on_train_end`: notice that it is over.
        if not callback._in_training:
            _release(model)
            return plain(*args)
        callback._in_training = False
        with _train_step_replaced(model, step):
            return ramped(*args)

    state.update(plain=plain, callback=callback, train_function=train_function)
    model.train_function = train_function
    return step


def _release(model):
    """Undoes `_install`, also that of a `fit` which was interrupted."""
    state = vars(model).get("_renorm_schedule", {})
    if model.train_function is state.get("train_function"):
        model.train_function = state.get("plain")
    for layer in renorm_layers(model):
        layer._scheduled = False


@contextlib.contextmanager
def _train_step_replaced(model, step):
    own = vars(model).get("train_step")  # What the user has put in place of the method.
    vars(model)["train_step"] = step
    try:
        yield
    finally:
        del vars(model)["train_step"]
        if own is not None:
            vars(model)["train_step"] = own


def _with_ramp(model, ramp_steps):
    """`model.train_step`, which then also sets the bounds and counts, inside the compiled step."""
    train_step = model.train_step
    layers = []

    def set_bounds(data=None):
        if not layers:
            if data is not None and not all(layer.built for layer in renorm_layers(model)):
                model._symbolic_build(data_batch=data)  # TensorFlow's `fit` leaves it to the step.
            layers.extend(layer for layer in renorm_layers(model) if layer.built)
        step = ops.convert_to_tensor(layers[0].step)
        if ramp_steps is not None:
            dtype = "float64" if any(la.bounds.dtype == "float64" for la in layers) else "float32"
            finals = ops.stack([ops.cast(layer.final_bounds, dtype) for layer in layers])
            bounds = linear_ramp(ops.cast(step, dtype), *ramp_steps, finals[:, 0], finals[:, 1])
            bounds = ops.unstack(ops.stack(bounds, axis=1), num=len(layers))
            for layer, value in zip(layers, bounds, strict=True):
                layer.bounds.assign(value)
        return step + 1

    def count(steps):
        for layer in layers:
            layer.step.assign(steps)

    @functools.wraps(train_step)
    def stateful_step(data):
        ramped.called = True
        steps = set_bounds(data)
        logs = train_step(data)
        count(steps)
        return logs

    @functools.wraps(train_step)
    def stateless_step(state, data):  # JAX
        ramped.called = True
        variables = model.non_trainable_variables
        with keras.StatelessScope(list(zip(variables, state[1], strict=True))) as scope:
            count(set_bounds())
        non_trainable = [scope.get_current_value(variable) for variable in variables]
        return train_step((state[0], non_trainable, *state[2:]), data)

    ramped = stateless_step if keras.backend.backend() == "jax" else stateful_step
    ramped.called = False
    return ramped
