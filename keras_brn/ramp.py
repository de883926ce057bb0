"""The ramp of the bounds of Batch Renorm over the training steps."""

import math

import keras
import numpy as np
from keras import ops

PAPER_STEPS, WARMUP_STEPS, R_MAX_STEPS, D_MAX_STEPS = 130_000, 5_000, 40_000, 25_000


def linear_ramp(
    step,
    warmup_steps=WARMUP_STEPS,
    r_max_steps=R_MAX_STEPS,
    d_max_steps=D_MAX_STEPS,
    r_max=3.0,
    d_max=5.0,
):
    """The bounds of Batch Renorm at a training step; by default those of the paper.

    Up to `warmup_steps` they are 1 and 0, which is batchnorm. From there `r_max` rises
    linearly to its final value at `r_max_steps`, and `d_max` to its own at `d_max_steps`.

    Args:
        step: The number of training steps completed before this one: an integer, an array,
            a tensor or a variable. The paper's numbers are for a learning rate and a batch of
            1600 that take 130k steps or more: scale all three counts with the length of the run.
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
    if isinstance(step, keras.Variable):
        step = ops.convert_to_tensor(step)
    if ops.is_tensor(step) and "int" in keras.backend.standardize_dtype(step.dtype):
        step = ops.cast(step, "float32")
    clip = ops.clip if ops.is_tensor(step) else np.clip

    def fraction(last_step):
        if last_step == warmup_steps:  # A jump.
            return clip(step - warmup_steps + 1, 0, 1)
        return clip((step - warmup_steps) / (last_step - warmup_steps), 0, 1)

    return 1 + (r_max - 1) * fraction(r_max_steps), d_max * fraction(d_max_steps)


@keras.saving.register_keras_serializable(package="keras_brn")
class LinearRamp:
    """The three counts of steps of `linear_ramp`, as a value that a layer and its file can hold.

    Args:
        warmup_steps: Steps of plain batchnorm, with bounds of 1 and 0; a number >= 0.
        r_max_steps: Step at which `r_max` is final, a number >= `warmup_steps`.
        d_max_steps: Step at which `d_max` is final, a number >= `warmup_steps`.

    Raises:
        ValueError: If a count is out of its range.

    Source: Ioffe 2017, section 4.

    Example:

    >>> LinearRamp.for_run(total_steps=26_000)
    LinearRamp(warmup_steps=1000, r_max_steps=8000, d_max_steps=5000)
    """

    def __init__(self, warmup_steps=WARMUP_STEPS, r_max_steps=R_MAX_STEPS, d_max_steps=D_MAX_STEPS):
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
        self.warmup_steps = warmup_steps
        self.r_max_steps = r_max_steps
        self.d_max_steps = d_max_steps

    @classmethod
    def for_run(cls, total_steps):
        """The ramp that has the paper's shares of a run: 5, 40 and 25 of 130 thousand steps.

        Args:
            total_steps: Number of training steps of the whole run, >= 1.
        """
        return cls(*scaled_counts(total_steps))

    def __call__(self, step, r_max=3.0, d_max=5.0):
        """`(r_max, d_max)` at a step; arguments as of `linear_ramp`."""
        return linear_ramp(
            step, self.warmup_steps, self.r_max_steps, self.d_max_steps, r_max, d_max
        )

    def __eq__(self, other):
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self):
        return hash((self.warmup_steps, self.r_max_steps, self.d_max_steps))

    def __repr__(self):
        counts = ", ".join(f"{name}={value}" for name, value in self.get_config().items())
        return f"LinearRamp({counts})"

    def get_config(self):
        return {
            "warmup_steps": self.warmup_steps,
            "r_max_steps": self.r_max_steps,
            "d_max_steps": self.d_max_steps,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def scaled_counts(total_steps):
    """The paper's three counts of steps, in proportion to a run of `total_steps`."""
    if not 1 <= total_steps < math.inf:
        raise ValueError(f"`total_steps` must be at least 1. Received: total_steps={total_steps}")
    counts = (WARMUP_STEPS, R_MAX_STEPS, D_MAX_STEPS)
    return tuple(round(count * total_steps / PAPER_STEPS) for count in counts)


def coefficients(ramp, r_max, d_max):
    """The ramp as three rows (r_max, d_max): `clip(slope * step + intercept, (1, 0), final)`.

    So a training step needs a few operations on two numbers. Float64 (3, 2); without a ramp
    (`None`) the final values hold from the start.
    """
    low, final = np.array([1.0, 0.0]), np.array([r_max, d_max], "float64")
    if ramp is None:
        return np.stack([np.zeros(2), final, final])
    ends = np.array([ramp.r_max_steps, ramp.d_max_steps], "float64")
    # A ramp of no length is a jump: final at `warmup_steps`, one step after the last of none.
    start = np.where(ends == ramp.warmup_steps, ramp.warmup_steps - 1, ramp.warmup_steps)
    slope = (final - low) / (ends - start)
    return np.stack([slope, low - slope * start, final])
