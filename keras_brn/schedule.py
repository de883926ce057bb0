"""The ramp of the bounds of Batch Renorm over the training steps of a model."""

import functools
import math

import keras
import numpy as np
from keras import ops

from keras_brn.layer import BatchRenormalization, stored_floats, validated_bounds

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
    training step: it is exact under `steps_per_execution`, and nothing is compiled again.

    The largest `r_max` and `d_max` of the layers in the last step appear in the logs, and so
    in the progress bar, `History`, `CSVLogger` and `TensorBoard`.

    The schedule is in force while `fit` runs; after that the bounds hold where they are.
    In a training loop of your own, call `set_model(model)`, `on_train_begin()`,
    `on_train_end()` around steps of `model.train_on_batch`, or call
    `layer.set_bounds(*linear_ramp(step))`.

    Args:
        warmup_steps: Steps of plain batchnorm, with bounds of 1 and 0.
        r_max_steps: Step at which `r_max` reaches its final value.
        d_max_steps: Step at which `d_max` reaches its final value.
        r_max: Final value for all layers, a finite float >= 1; `None`: each layer's own.
        d_max: Final value for all layers, a finite float >= 0; `None`: each layer's own.
        start_step: Step to count from when training begins. `None`: go on from the stored
            number. List the schedule before `keras.callbacks.BackupAndRestore`, so that the
            number that this restores counts.
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

    def on_train_begin(self, logs=None):
        layers = _renorm_layers(self.model)
        finals = [self._final_bounds(layer) for layer in layers]
        step = self._first_step(layers)  # Nothing has changed up to here.

        for layer, final in zip(layers, finals, strict=True):
            layer.step.assign(step)
            layer._scheduled = False
            if self.schedule is None:
                layer.set_bounds(*final)
                layer.bounds.assign(linear_ramp(step, *self.ramp_steps, *final))
                layer._scheduled = True
        self._epoch_start = step
        _install(self.model, layers, self.ramp_steps if self.schedule is None else None)

    def on_train_batch_begin(self, batch, logs=None):
        if self.schedule is not None:
            layers = _renorm_layers(self.model)
            bounds = self.schedule(_stored_step(layers[0]))
            for layer in layers:
                layer.set_bounds(*bounds)

    def on_epoch_end(self, epoch, logs=None):
        step = _stored_step(_renorm_layers(self.model)[0])
        if step == self._epoch_start:
            raise RuntimeError(
                f"No training step was counted in epoch {epoch}: `fit` of this "
                f"{type(self.model).__name__} does not call `model.train_step`, which is what "
                "RenormSchedule extends."
            )
        self._epoch_start = step

    def on_train_end(self, logs=None):
        for layer in _renorm_layers(self.model):
            layer._scheduled = False
        _uninstall(self.model)

    def _final_bounds(self, layer):
        r_max, d_max = stored_floats(layer.final_bounds)
        r_max = r_max if self.r_max is None else self.r_max
        d_max = d_max if self.d_max is None else self.d_max
        if self.schedule is None and math.inf in (r_max, d_max):
            raise ValueError(
                "A ramp needs finite bounds to end at: give them to RenormSchedule or to the "
                f"layer. Received: r_max={r_max}, d_max={d_max}, layer={layer.path!r}"
            )
        return r_max, d_max

    def _first_step(self, layers):
        if self.start_step is not None:
            return self.start_step
        steps = {layer.path: _stored_step(layer) for layer in layers}
        if len(set(steps.values())) > 1:
            raise ValueError(
                "The layers of the model do not agree on the number of training steps: say where "
                f"to begin, with `start_step`. Received: start_step=None, stored steps {steps}"
            )
        return steps[layers[0].path]


def _stored_step(layer):
    return int(ops.convert_to_numpy(layer.step))


def _renorm_layers(model):
    layers = list(model._flatten_layers())
    names = sorted({type(layer).__name__ for layer in layers})
    found = [layer for layer in layers if isinstance(layer, BatchRenormalization) and layer.built]
    if not found:
        raise ValueError(
            "RenormSchedule needs a model with a built BatchRenormalization layer. Received: "
            f"model={model.name!r}, with layers {names}"
        )
    return found


def _install(model, layers, ramp_steps):
    """Extends `model.train_step` by the ramp, and compiles it unless that was done before."""
    _uninstall(model)
    model.make_train_function()
    plain = model.train_function
    model.train_step = _with_ramp(model, layers, ramp_steps)
    # A function that `compile` or the user replaces takes what was made from it along.
    made = vars(plain).setdefault("ramped", {})
    key = (ramp_steps, *map(id, layers))
    if key not in made:
        model.make_train_function(force=True)
        model.train_function.plain = plain
        made[key] = model.train_function
    model.train_function = made[key]


def _uninstall(model):
    """Undoes `_install`, also that of a `fit` which was interrupted."""
    ramped = vars(model).get("train_step")
    if hasattr(ramped, "replaces"):
        del model.train_step
        if ramped.replaces is not None:
            model.train_step = ramped.replaces
        model.train_function = getattr(model.train_function, "plain", None)


def _with_ramp(model, layers, ramp_steps):
    """`model.train_step`, which then also sets, logs and counts: all inside the compiled step."""
    train_step = model.train_step

    def set_bounds():
        step = ops.convert_to_tensor(layers[0].step)
        bounds = ops.stack([ops.cast(layer.bounds, "float32") for layer in layers])
        if ramp_steps is not None:
            finals = ops.stack([ops.cast(layer.final_bounds, "float32") for layer in layers])
            ramp = linear_ramp(
                ops.cast(step, "float32"), *ramp_steps, r_max=finals[:, 0], d_max=finals[:, 1]
            )
            bounds = ops.stack(ramp, axis=1)
            for layer, value in zip(layers, ops.unstack(bounds, num=len(layers)), strict=True):
                layer.bounds.assign(value)
        r_max, d_max = ops.unstack(ops.max(bounds, axis=0), num=2)
        return step + 1, {"r_max": r_max, "d_max": d_max}

    def count(steps):
        for layer in layers:
            layer.step.assign(steps)

    @functools.wraps(train_step)
    def stateful_step(data):
        steps, bounds = set_bounds()
        logs = train_step(data)
        count(steps)
        return _joined(logs, bounds)

    @functools.wraps(train_step)
    def stateless_step(state, data):  # JAX
        variables = model.non_trainable_variables
        with keras.StatelessScope(list(zip(variables, state[1], strict=True))) as scope:
            steps, bounds = set_bounds()
            count(steps)
        non_trainable = [scope.get_current_value(variable) for variable in variables]
        logs, state = train_step((state[0], non_trainable, *state[2:]), data)
        return _joined(logs, bounds), state

    ramped = stateless_step if keras.backend.backend() == "jax" else stateful_step
    ramped.replaces = vars(model).get("train_step")
    return ramped


def _joined(logs, bounds):
    return {**logs, **bounds} if isinstance(logs, dict) else logs
