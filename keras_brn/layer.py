"""Batch Renormalization as a Keras layer."""

import math
import numbers

import keras
from keras import constraints, initializers, ops, regularizers

from keras_brn.arguments import BATCHNORM_ONLY, translated
from keras_brn.bounds import Bounds
from keras_brn.keras_internals import flatten_layers
from keras_brn.kernels import (
    clip,
    for_each_group,
    isfinite,
    kept,
    like,
    normalization_of,
    reshaped,
    sqrt,
    stop_gradient,
)
from keras_brn.kernels.normalization import is_certain
from keras_brn.statistics import move_averages


@keras.saving.register_keras_serializable(package="keras_brn")
class BatchRenormalization(keras.layers.Layer):
    """Normalizes like batchnorm, but trains on the outputs that inference will compute.

    It stands wherever `keras.layers.BatchNormalization` does. In training, each
    channel of the minibatch `B` is normalized by its own mean `mu_B` and standard
    deviation `sigma_B`, then corrected towards the moving averages `mu`, `sigma`:

        mu_B    = mean(x)
        sigma_B = sqrt(mean((x - mu_B)**2) + epsilon)
        r       = stop_gradient(clip(sigma_B / sigma, 1 / r_max, r_max))
        d       = stop_gradient(clip((mu_B - mu) / sigma, -d_max, d_max))
        y       = gamma * ((x - mu_B) / sigma_B * r + d) + beta
        mu     += (1 - momentum) * (mu_B - mu)
        sigma  += (1 - momentum) * (sigma_B - sigma)

    In inference, and when `trainable` is `False`:

        y       = gamma * (x - mu) / sigma + beta

    With `r_max=1, d_max=0` this is batchnorm; while neither bound is active, the
    training output is the inference output.

    Args:
        axis: Integer, the channel axis: -1 for channels last, 1 for channels first.
        momentum: Float in [0, 1), `1 - alpha` of the paper. Unlike in batchnorm it
            affects training: shorter runs, whose weights move faster, need a smaller one.
        epsilon: Float > 0, added to the variance inside `sigma_B`.
        center: If `True`, add `beta`.
        scale: If `True`, multiply by `gamma`.
        beta_initializer: Initializer of `beta`.
        gamma_initializer: Initializer of `gamma`.
        moving_mean_initializer: Initializer of `moving_mean`, the paper's `mu`.
        moving_stddev_initializer: Initializer of `moving_stddev`, the paper's `sigma`,
            which contains `epsilon`.
        beta_regularizer: Regularizer of `beta`, or `None`.
        gamma_regularizer: Regularizer of `gamma`, or `None`.
        beta_constraint: Constraint of `beta`, or `None`.
        gamma_constraint: Constraint of `gamma`, or `None`.
        r_max: Float >= 1, the bound of the scale correction; with a ramp the value that it ends
            at. `None` or infinity: unbounded, which a ramp does not accept.
        d_max: Float >= 0, the same for the shift correction.
        schedule: `keras_brn.LinearRamp`, by which the bounds rise from 1 and 0 with the training
            steps; `None`: `r_max` and `d_max` hold from the first step, unless a
            `keras_brn.RenormSchedule` gives the layer a ramp.
        microbatch_size: Integer number of examples >= 1, or `None` for the whole batch.
            In training, each run of that many consecutive examples is normalized by
            itself, and `mu`, `sigma` move once, by the mean over these groups: one
            device computes what several workers with a minibatch of that size compute.
            If it does not divide the batch, as in the last step of an epoch, the
            remaining examples are a smaller last group. Inference takes any batch.
        **kwargs: `name`, `dtype`, `trainable` and so on, as for any Keras layer. Also the
            arguments that only `BatchNormalization` has, so that a layer or its configuration
            needs no other change than that of its name: `moving_variance_initializer`,
            `renorm_clipping` and `renorm_momentum` are translated, `synchronized=True` is refused.

    Call arguments:
        inputs: Tensor of rank 2 or more; every dimension but the channels' may be unknown.
        training: Boolean, whether to normalize by the minibatch and to update `mu`, `sigma`.
        mask: Boolean tensor that broadcasts to the shape of `inputs` without its channel axis.
            Positions where it is `False` are normalized, but not counted in `mu_B`, `sigma_B`.

    Output: tensor of the shape of `inputs`, in the layer's compute dtype. Statistics are
    computed and kept in float32, or in float64 under a float64 policy (where JAX has it).

    Weights, in this order: `gamma` and `beta` (channels,), trainable, where enabled;
    `moving_mean` and `moving_stddev` (channels,); `calls` (), how often the layer was called in
    training, and `calls_per_step` (). Like the states of random generators, the ramp is in
    `variables` but not in `weights`: it is configuration, and no file of weights, no `set_weights`
    and no average of models brings another.

    The layer counts its training steps: calls with `training=True` while it is trainable, also
    those whose update an optimizer skips or accumulates. Where a step of a loop of your own calls
    it `k` times, say so by `set_step(0, calls_per_step=k)`; `RenormSchedule` finds it out.

    Where the statistics of a channel are not finite, or no example is left to compute them
    from, its `mu` and `sigma` stay as they were. Under `tf.distribute.MirroredStrategy`,
    they move by the mean over the replicas; under PyTorch's `DistributedDataParallel`, they do
    if `keras_brn.average_statistics` is called after each step. `keras.distribution` on JAX
    normalizes the batch of all devices together, unless `microbatch_size` cuts it.
    Rematerialization with PyTorch calls a layer twice per step, so they move twice, as those
    of `BatchNormalization` do.

    Raises:
        ValueError: If an argument is out of its range, the channel axis does not exist or
            has no known size, or the mask does not fit the inputs.

    Source: Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in
    Batch-Normalized Models", NeurIPS 2017, Algorithm 1.

    Example:

    >>> layer = BatchRenormalization(r_max=2.0, microbatch_size=4)
    >>> layer(keras.random.normal((32, 8, 8, 3)), training=True).shape == (32, 8, 8, 3)
    True
    >>> layer.set_bounds(r_max=3.0, d_max=None)
    >>> layer.r_max, layer.d_max
    (3.0, inf)
    >>> layer.step
    1
    """

    def __init__(
        self,
        axis=-1,
        momentum=0.99,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        moving_mean_initializer="zeros",
        moving_stddev_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        *,
        r_max=3.0,
        d_max=5.0,
        schedule=None,
        microbatch_size=None,
        **kwargs,
    ):
        batchnorm_only = {name: kwargs.pop(name) for name in BATCHNORM_ONLY if name in kwargs}
        meant = translated(batchnorm_only, epsilon)
        momentum, r_max = meant.get("momentum", momentum), meant.get("r_max", r_max)
        d_max = meant.get("d_max", d_max)
        moving_stddev_initializer = meant.get(
            "moving_stddev_initializer", moving_stddev_initializer
        )
        super().__init__(**kwargs)
        if not isinstance(axis, numbers.Integral) or isinstance(axis, bool):
            raise ValueError(f"`axis` must be an integer. Received: axis={axis!r}")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum}")
        if not 0 < epsilon < math.inf:
            raise ValueError(f"`epsilon` must be positive and finite. Received: epsilon={epsilon}")
        if microbatch_size is not None:
            whole = isinstance(microbatch_size, numbers.Integral)
            if not whole or isinstance(microbatch_size, bool) or microbatch_size < 1:
                raise ValueError(
                    "`microbatch_size` must be None or an integer of at least 1. "
                    f"Received: microbatch_size={microbatch_size!r}"
                )
            microbatch_size = int(microbatch_size)
        self.axis = int(axis)
        self.momentum = float(momentum)
        self.epsilon = float(epsilon)
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_stddev_initializer = initializers.get(moving_stddev_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.microbatch_size = microbatch_size
        self.supports_masking = True
        self.gamma = None
        self.beta = None
        _check_positive(self.moving_stddev_initializer)
        if isinstance(schedule, dict):
            schedule = keras.saving.deserialize_keras_object(schedule)
        self._bounds = Bounds(r_max, d_max, schedule)

    def build(self, input_shape):
        if len(input_shape) < 2:
            raise ValueError(
                "The inputs must have a batch axis and a channel axis. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        channels = input_shape[self._channel_axis(input_shape)]
        if channels is None:
            raise ValueError(
                "The channel dimension must be known. "
                f"Received: axis={self.axis}, input_shape={tuple(input_shape)}"
            )
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=(channels,),
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=(channels,),
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )
        # Half precision can hold neither a standard deviation of 1e5 nor a small update.
        dtype = _at_least_float32(self.variable_dtype)
        state = {"dtype": dtype, "trainable": False, "autocast": False}
        self.moving_mean = self.add_weight(
            name="moving_mean",
            shape=(channels,),
            initializer=self.moving_mean_initializer,
            aggregation="mean",
            **state,
        )
        self.moving_stddev = self.add_weight(
            name="moving_stddev",
            shape=(channels,),
            initializer=self.moving_stddev_initializer,
            aggregation="mean",
            **state,
        )
        self._bounds.build(self, dtype)
        # As attributes, which `tf.train.Checkpoint` saves.
        self.calls, self.calls_per_step = self._bounds.calls, self._bounds.calls_per_step
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    def call(self, inputs, training=None, mask=None):
        self._check_mask(inputs, mask)
        x = _as_type(inputs, _at_least_float32(inputs.dtype))
        axis = self._channel_axis(x.shape)
        mu, sigma = (_per_channel(w, x, axis) for w in (self.moving_mean, self.moving_stddev))
        gamma = None if self.gamma is None else _per_channel(self.gamma, x, axis)
        beta = None if self.beta is None else _per_channel(self.beta, x, axis)
        if not (training and self.trainable):
            slope = 1 / sigma if gamma is None else gamma / sigma
            offset = -mu * slope if beta is None else beta - mu * slope
            return ops.convert_to_tensor(x * slope + offset, self.compute_dtype)
        normalization = normalization_of(x, axis, self.microbatch_size, mask)
        mean, variance = normalization.moments(x)
        # Neither r and d nor the averages send a gradient back.
        mu_B, sigma_B = stop_gradient(mean), stop_gradient(sqrt(variance + self.epsilon))
        r_max, d_max = self._bounds.in_training(x.dtype)
        errors = [mu_B - mu, sigma_B - sigma]
        r = kept(clip(sigma_B / sigma, 1 / r_max, r_max))
        d = kept(clip(errors[0] / sigma, -d_max, d_max))
        gamma, beta = (w if w is None else for_each_group(w, mean) for w in (gamma, beta))
        scale, offset = (r, d) if gamma is None else (gamma * r, gamma * d)
        offset = offset if beta is None else offset + beta
        y = normalization.normalize(x, mean, variance, scale, offset, self.epsilon)
        valid = isfinite(errors[1])
        if not is_certain(normalization.count):
            valid = valid & (normalization.count > 0)
        averages = [self.moving_mean, self.moving_stddev]
        move_averages(averages, errors, valid, self.momentum)
        return _as_type(y, self.compute_dtype)

    @property
    def r_max(self):
        """Float, the `r_max` of the last training step, or of the first before there was one.

        On JAX, a callback must reach the layer through `self.model`.
        """
        return self._bounds.in_force[0]

    @property
    def d_max(self):
        """Float, the `d_max` of the last training step, or of the first before there was one."""
        return self._bounds.in_force[1]

    @property
    def schedule(self):
        """`keras_brn.LinearRamp`, or `None`."""
        return self._bounds.ramp

    @property
    def step(self):
        """Integer, the number of completed training steps."""
        return self._bounds.step

    def set_bounds(self, r_max, d_max):
        """Changes the bounds from the next training step on, without retracing.

        With a ramp they are the bounds that it ends at; `set_schedule(None)` takes it away. In a
        loop over `stateless_call` on JAX the state is in your hands: this changes the layer's
        `non_trainable_variables`, to be read anew. A `schedule` needs no such care.

        Args:
            r_max: Float >= 1, or `None` for unbounded.
            d_max: Float >= 0, or `None` for unbounded.

        Raises:
            ValueError: If a bound is out of its range, or the layer has a ramp and there is no
                bound for it to end at.
            RuntimeError: If `fit` on JAX holds the state, so that the change would be lost.
        """
        self._bounds.set(r_max, d_max, self._bounds.ramp)

    def set_schedule(self, schedule):
        """Gives the layer a ramp from the next training step on, or takes it away.

        Args:
            schedule: `keras_brn.LinearRamp`, evaluated at the layer's own `step`, or `None`.

        Raises:
            ValueError: If the layer is unbounded, which a ramp can't end at.
            RuntimeError: As `set_bounds`.
        """
        self._bounds.set(*self._bounds.final, schedule)

    def set_step(self, step, calls_per_step=None):
        """Sets the number of completed training steps, which the ramp goes by.

        Args:
            step: Integer >= 0.
            calls_per_step: Integer >= 1, how often a training step calls the layer; `None`: as
                before, which is once if nothing else was said.

        Raises:
            ValueError: If a number is out of its range.
            RuntimeError: As `set_bounds`.
        """
        self._bounds.set_step(step, calls_per_step)

    @property
    def weights(self):
        ramp = self._bounds.ramp_variables
        return [weight for weight in super().weights if all(weight is not each for each in ramp)]

    def save_own_variables(self, store):
        for index, weight in enumerate(self.weights):
            store[str(index)] = weight

    def load_own_variables(self, store):
        names = sorted(store.keys(), key=int)
        values = [store[name] for name in names]
        weights = self.weights
        if len(values) == len(weights) + 1:  # Of version 0.1: bounds, final bounds, step.
            values = [*values[:-3], values[-1], 1]
        if len(values) != len(weights):
            raise ValueError(
                f"The file has {len(values)} variables for layer '{self.name}', which has "
                f"{[weight.name for weight in weights]}. Weights of a BatchNormalization, whose "
                "variance is not a standard deviation, are loaded into a model with that, which "
                "`keras_brn.renormalize` then converts."
            )
        for weight, value in zip(weights, values, strict=True):
            weight.assign(value)

    def _channel_axis(self, shape):
        if not -len(shape) <= self.axis < len(shape):
            raise ValueError(
                "`axis` must be an axis of the input. "
                f"Received: axis={self.axis}, input_shape={tuple(shape)}"
            )
        axis = self.axis % len(shape)
        if axis == 0 and self.microbatch_size is not None:
            raise ValueError(
                "`microbatch_size` cuts axis 0, so the channels can't be there. "
                f"Received: axis={self.axis}, microbatch_size={self.microbatch_size}"
            )
        return axis

    def _check_mask(self, inputs, mask):
        if mask is None:
            return
        expected = list(inputs.shape)
        del expected[self._channel_axis(expected)]
        fits = len(mask.shape) == len(expected) and all(
            given in (wanted, 1, None) or wanted is None
            for given, wanted in zip(mask.shape, expected, strict=True)
        )
        if not fits:
            raise ValueError(
                "`mask` must have the shape of the inputs without their channel axis, "
                f"{tuple(expected)}. Received: mask.shape={tuple(mask.shape)}, "
                f"inputs.shape={tuple(inputs.shape)}, axis={self.axis}"
            )

    def compute_output_shape(self, input_shape):
        self._channel_axis(input_shape)
        return input_shape

    def get_config(self):
        r_max, d_max = (None if math.isinf(bound) else bound for bound in self._bounds.final)
        return {
            **super().get_config(),
            "axis": self.axis,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "moving_mean_initializer": initializers.serialize(self.moving_mean_initializer),
            "moving_stddev_initializer": initializers.serialize(self.moving_stddev_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
            "r_max": r_max,
            "d_max": d_max,
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "microbatch_size": self.microbatch_size,
        }


def renorm_layers(model):
    """The `BatchRenormalization` layers of a model; a ValueError if there are none."""
    layers = flatten_layers(model)
    normalizations = [layer for layer in layers if isinstance(layer, BatchRenormalization)]
    if not normalizations:
        raise ValueError(
            "`model` must have a BatchRenormalization layer. Received: "
            f"model={model.name!r}, with layers {sorted({type(la).__name__ for la in layers})}"
        )
    return normalizations


def _check_positive(initializer):
    """Refuses an initial sigma that is not positive: the first step divides by it."""
    if type(initializer) is initializers.Ones:
        return
    value = float(ops.convert_to_numpy(initializer((1,), dtype="float32"))[0])
    if not value > 0:
        raise ValueError(
            "`moving_stddev_initializer` must give positive values. "
            f"Received: moving_stddev_initializer={initializer}, which gives {value}"
        )


def _per_channel(weight, x, axis):
    """The value of a weight, (channels,), such that it broadcasts with `x`."""
    value = like(weight, x)
    axes_behind = len(x.shape) - 1 - axis
    return reshaped(value, [-1] + [1] * axes_behind) if axes_behind else value


def _as_type(x, dtype):
    # Not `ops.convert_to_tensor` for what is one: on PyTorch small steps are bound by such calls.
    if ops.is_tensor(x) and keras.backend.standardize_dtype(x.dtype) == dtype:
        return x
    return ops.convert_to_tensor(x, dtype)


def _at_least_float32(dtype):
    # Not `keras.backend.result_type`, which makes float32 of float64 on PyTorch.
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
