"""The bounds of one layer in training: their final values, their ramp, and the count of steps."""

import math

import keras
import numpy as np
from keras import ops

from keras_brn.keras_internals import is_detached
from keras_brn.ramp import LinearRamp, coefficients


class Bounds:
    """What a `BatchRenormalization` needs to know its `r_max` and `d_max` in every training step.

    The final values and the ramp are configuration, held as Python numbers. The layer counts its
    calls in training, in a variable. The bounds are a function of both, computed in the step:
    nothing outside of the layer has to move them, and no file of weights can replace them.

    A step may call a layer several times (shared, on real and on generated images, rematerialized
    on PyTorch). The number of completed steps is `calls // calls_per_step`.

    Args:
        r_max: Final value, a float >= 1, or `None` or infinity for unbounded.
        d_max: Final value, a float >= 0, likewise.
        ramp: `keras_brn.LinearRamp`, or `None`: the final values hold from the first step on.

    Raises:
        ValueError: If a value is out of its range, or a ramp has no finite end.
    """

    def __init__(self, r_max, d_max, ramp):
        self.final, self.ramp = validated(r_max, d_max, ramp)
        self.fixed = None  # A pair in the place of all that, until `set` is called.
        self._step, self._calls_per_step = 0, 1  # Until there are variables.
        self.calls = self.calls_per_step = self._coefficients = None
        # PyTorch: (tensor, version, value) of `calls`, and the ramp.
        self._host_count, self._host_values = None, self._values().tolist()

    def build(self, layer, dtype):
        """Gives `layer` the variables `calls` and `calls_per_step`, (), and the ramp's, (3, 2).

        The counts are floats, which are exact up to 16 million: what averages or mixes the weights
        of models (target networks, federated learning) then needs no exception for them. On
        PyTorch, where a `state_dict` holds all variables, the ramp is Python numbers alone.
        """

        def add(name, value, dtype):
            return layer.add_weight(
                name=name,
                shape=np.shape(value),
                initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype),
                dtype=dtype,
                trainable=False,
                autocast=False,
            )

        self.calls = add("calls", self._step * self._calls_per_step, dtype)
        self.calls_per_step = add("calls_per_step", self._calls_per_step, dtype)
        if keras.backend.backend() != "torch":
            self._coefficients = add("ramp", self._values(), dtype)

    @property
    def ramp_variables(self):
        """Those that are configuration and no weights: the ramp, where it is in a variable."""
        return [] if self._coefficients is None else [self._coefficients]

    def in_training(self, dtype):
        """`(r_max, d_max)` of this call in training, numbers or tensors; and counts the call."""
        if keras.backend.backend() == "torch":
            calls = self._calls_on_the_host()
            if calls is not None:
                self._count_on_the_host(calls)
                return self._on_the_host(calls // self._calls_per_step)
        calls = ops.convert_to_tensor(self.calls)
        step = ops.floor(calls / ops.convert_to_tensor(self.calls_per_step))
        coefficients = self._host_values if self._coefficients is None else self._coefficients
        coefficients = ops.convert_to_tensor(coefficients, calls.dtype)
        slope, intercept, final = ops.unstack(coefficients, num=3)
        low = ops.convert_to_tensor([1.0, 0.0], calls.dtype)
        bounds = ops.minimum(ops.maximum(slope * step + intercept, low), final)
        self.calls.assign_add(1)
        return tuple(ops.unstack(ops.cast(bounds, dtype), num=2))

    def _calls_on_the_host(self):
        """The count as a Python number, without waiting for the device: PyTorch runs each small
        operation by itself, and a hundred layers with ten of them each would be felt.

        `None` where the count may not be a number: under `torch.compile` and `torch.func`.
        """
        from keras_brn.kernels.torch import is_compiling

        count = self.calls.value
        if is_compiling():
            return None
        known = self._host_count
        if known is not None and known[0] is count and known[1] == count._version:
            return known[2]
        try:
            self._calls_per_step = max(1, int(self.calls_per_step.value))
            return int(count)
        except RuntimeError:  # Such as in `torch.func.vmap` over the state.
            return None

    def _count_on_the_host(self, calls):
        self.calls.assign(self.calls.value + 1)  # `assign_add` would copy the 1 to the device.
        count = self.calls.value
        self._host_count = (count, count._version, calls + 1)

    def _on_the_host(self, step):
        """As on the device, in Python numbers."""
        (slope, intercept, final), low = self._host_values, (1.0, 0.0)
        return tuple(min(max(slope[k] * step + intercept[k], low[k]), final[k]) for k in (0, 1))

    def _values(self):
        if self.fixed is not None:
            return coefficients(None, *self.fixed)
        return coefficients(self.ramp, *self.final)

    def _at(self, step):
        if self.fixed is not None:
            return self.fixed
        if self.ramp is None:
            return self.final
        return tuple(float(bound) for bound in self.ramp(step, *self.final))

    # From outside of the training step.

    @property
    def in_force(self):
        """`(r_max, d_max)` of the last training step, or of the first before there was one."""
        return self._at(max(0, self.step - 1))

    @property
    def step(self):
        """The number of completed training steps."""
        return self.count_of_calls // self.count_of_calls_per_step

    @property
    def count_of_calls(self):
        """The value of `calls`, an integer."""
        if self.calls is None:
            return self._step * self._calls_per_step
        return _number(self.calls)

    @property
    def count_of_calls_per_step(self):
        """The value of `calls_per_step`, an integer."""
        if self.calls is None:
            return self._calls_per_step
        return max(1, _number(self.calls_per_step))

    def set_step(self, step, calls_per_step=None):
        if not (step >= 0 and step == int(step)):
            raise ValueError(f"`step` must be an integer of at least 0. Received: step={step}")
        if calls_per_step is None:
            calls_per_step = self.count_of_calls_per_step
        elif not (calls_per_step >= 1 and calls_per_step == int(calls_per_step)):
            raise ValueError(
                "`calls_per_step` must be an integer of at least 1. "
                f"Received: calls_per_step={calls_per_step}"
            )
        step, calls_per_step = int(step), int(calls_per_step)
        if self.calls is not None:
            _attached(self.calls).assign(step * calls_per_step)
            _attached(self.calls_per_step).assign(calls_per_step)
        self._step, self._calls_per_step, self._host_count = step, calls_per_step, None

    def set(self, r_max, d_max, ramp):
        """Changes the final values and the ramp, from the next training step on."""
        final, ramp = validated(r_max, d_max, ramp)
        self._assign(final, ramp, None)

    def fix(self, r_max, d_max):
        """Puts two values in the place of all that, and keeps it for `set`."""
        self._assign(self.final, self.ramp, validated(r_max, d_max)[0])

    def _assign(self, final, ramp, fixed):
        if self._coefficients is not None:
            _attached(self._coefficients)  # Or an error, before anything changes.
        self.final, self.ramp, self.fixed = final, ramp, fixed
        self._host_values = self._values().tolist()
        if self._coefficients is not None:
            self._coefficients.assign(self._values())


def validated(r_max, d_max, ramp=None):
    """The two bounds as floats, `None` as infinity, and the ramp; or a ValueError."""
    final = tuple(math.inf if bound is None else float(bound) for bound in (r_max, d_max))
    if not final[0] >= 1:
        raise ValueError(f"`r_max` must be at least 1. Received: r_max={r_max}")
    if not final[1] >= 0:
        raise ValueError(f"`d_max` must be at least 0. Received: d_max={d_max}")
    if ramp is not None and not isinstance(ramp, LinearRamp):
        raise ValueError(
            f"`schedule` must be a `keras_brn.LinearRamp` or None. Received: schedule={ramp!r}"
        )
    if ramp is not None and math.inf in final:
        raise ValueError(
            "A ramp needs finite bounds to end at. "
            f"Received: r_max={r_max}, d_max={d_max}, schedule={ramp!r}"
        )
    return final, ramp


def _number(variable):
    return int(ops.convert_to_numpy(_attached(variable)))


def _attached(variable):
    if is_detached(variable):
        raise RuntimeError(
            f"The state `{variable.path}` is held by `fit`, as always between its steps on JAX. "
            "Reach the layer through `self.model` in a callback."
        )
    return variable
