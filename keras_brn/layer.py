"""Batch Renormalization as a Keras layer."""

import contextlib
import math
import numbers
import threading

import keras
import numpy as np
from keras import constraints, initializers, ops, regularizers

from keras_brn.kernels import normalization_of


class _Gathering(threading.local):
    """What the layers called in this thread do with their updates: `None` is at once."""

    updates = None


_gathering = _Gathering()


@contextlib.contextmanager
def gathered_by(updates):
    """The layers called in the block hand their updates to `updates.add(variable, move, momentum)`,
    which is to add `move` to the variable when `updates.apply()` is called."""
    _gathering.updates = updates
    try:
        yield
    finally:
        _gathering.updates = None


def move_average(average, error, momentum):
    """Moves an average by the share `1 - momentum` of what it is off; or hands that on."""
    move = (1.0 - momentum) * error
    if _gathering.updates is None:
        average.assign_add(move)
    else:
        _gathering.updates.add(average, move, momentum)


def apply_gathered():
    """Brings mu and sigma up to date, for what comes after them in a training step."""
    if _gathering.updates is not None:
        _gathering.updates.apply()


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
        r_max: Float >= 1, the bound of the scale correction; under a
            `keras_brn.RenormSchedule` the value that the ramp ends at. `None` or
            infinity: unbounded, which a ramp does not accept.
        d_max: Float >= 0, the same for the shift correction.
        microbatch_size: Integer number of examples >= 1, or `None` for the whole batch.
            In training, each run of that many consecutive examples is normalized by
            itself, and `mu`, `sigma` move once, by the mean over these groups: one
            device computes what several workers with a minibatch of that size compute.
            If it does not divide the batch, as in the last step of an epoch, the
            remaining examples are a smaller last group. Inference takes any batch.
        **kwargs: `name`, `dtype`, `trainable` and so on, as for any Keras layer.

    Call arguments:
        inputs: Tensor of rank 2 or more; every dimension but the channels' may be unknown.
        training: Boolean, whether to normalize by the minibatch and to update `mu`, `sigma`.
        mask: Boolean tensor that broadcasts to the shape of `inputs` without its channel axis.
            Positions where it is `False` are normalized, but not counted in `mu_B`, `sigma_B`.

    Output: tensor of the shape of `inputs`, in the layer's compute dtype. Statistics are
    computed and kept in float32, or in float64 under a float64 policy (where JAX has it).

    Weights, in this order: `gamma` and `beta` (channels,), trainable, where enabled;
    `moving_mean` and `moving_stddev` (channels,); `bounds` (2,), the `r_max` and `d_max`
    in force; `final_bounds` (2,), those that a schedule ends at; `step` (), the training
    steps counted by a schedule.

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
        microbatch_size=None,
        **kwargs,
    ):
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
        bounds = validated_bounds(r_max, d_max)
        self._last_set = {"bounds": bounds, "final_bounds": bounds, "step": 0}
        self._scheduled = False  # Whether a RenormSchedule moves the bounds.

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

        self.bounds = self._add_state("bounds", dtype)
        self.final_bounds = self._add_state("final_bounds", dtype)
        self.step = self._add_state("step", "int32")
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes={self.axis: channels})

    def _add_state(self, name, dtype):
        value = self._last_set[name]
        return self.add_weight(
            name=name,
            shape=np.shape(value),
            initializer=lambda shape, dtype: ops.convert_to_tensor(value, dtype),
            dtype=dtype,
            trainable=False,
            autocast=False,
        )

    def call(self, inputs, training=None, mask=None):
        self._check_mask(inputs, mask)
        x = ops.convert_to_tensor(inputs, _at_least_float32(inputs.dtype))
        mu, sigma = self._per_channel(self.moving_mean, x), self._per_channel(self.moving_stddev, x)
        gamma = 1.0 if self.gamma is None else self._per_channel(self.gamma, x)
        beta = 0.0 if self.beta is None else self._per_channel(self.beta, x)
        if not (training and self.trainable):
            slope = gamma / sigma
            return ops.convert_to_tensor(x * slope + (beta - mu * slope), self.compute_dtype)
        axis = self._channel_axis(x.shape)
        normalization = normalization_of(x, axis, self.microbatch_size, mask)
        mean, variance = normalization.moments(x)
        # Neither r and d nor the averages send a gradient back.
        mu_B, sigma_B = ops.stop_gradient(mean), ops.stop_gradient((variance + self.epsilon) ** 0.5)
        bounds = ops.convert_to_tensor(self.bounds, x.dtype)
        r_max, d_max = bounds[0], bounds[1]
        r = ops.clip(sigma_B / sigma, 1 / r_max, r_max)
        d = ops.clip((mu_B - mu) / sigma, -d_max, d_max)
        y = normalization.normalize(x, mean, variance, gamma * r, gamma * d + beta, self.epsilon)
        self._update(mu_B - mu, sigma_B - sigma, normalization.count)
        return ops.convert_to_tensor(y, self.compute_dtype)

    def _update(self, mu_error, sigma_error, count):
        """Moves `mu` and `sigma` by the mean over the groups that have something to say."""
        valid = ops.isfinite(sigma_error) & (count > 0)
        errors = [ops.where(valid, error, 0.0) for error in (mu_error, sigma_error)]
        if self.microbatch_size is not None:
            sums = ops.sum(ops.stack([*errors, ops.cast(valid, mu_error.dtype)]), axis=1)
            *errors, groups = ops.unstack(sums, num=3)
            errors = [error / ops.maximum(groups, 1.0) for error in errors]
        for average, error in zip((self.moving_mean, self.moving_stddev), errors, strict=True):
            if len(error.shape) > 1:
                error = ops.reshape(error, average.shape)
            error = ops.convert_to_tensor(error, average.dtype)
            move_average(average, error, self.momentum)

    @property
    def r_max(self):
        """Float, the `r_max` in force; outside of the compiled step. On JAX: see `set_bounds`."""
        return self._get_state("bounds")[0]

    @property
    def d_max(self):
        """Float, the `d_max` in force; outside of the compiled step. On JAX: see `set_bounds`."""
        return self._get_state("bounds")[1]

    def set_bounds(self, r_max, d_max):
        """Changes the bounds from the next training step on, without retracing.

        Under a `RenormSchedule` they become the bounds that it ends at. On JAX, `fit` keeps
        the state of the model outside of its layers: there, call this from a callback that
        reaches the layer through `self.model`, which puts the state back.

        Args:
            r_max: Float >= 1, or `None` for unbounded.
            d_max: Float >= 0, or `None` for unbounded.

        Raises:
            ValueError: If a bound is out of its range, or infinite under a schedule.
            RuntimeError: If `fit` on JAX holds the state, so that the change would be lost.
        """
        bounds = validated_bounds(r_max, d_max)
        if self._scheduled and math.inf in bounds:
            raise ValueError(
                "A RenormSchedule needs finite bounds to end at. "
                f"Received: r_max={r_max}, d_max={d_max}"
            )
        self._set_state(final_bounds=bounds)
        if not self._scheduled:
            self._set_state(bounds=bounds)

    def _get_state(self, name):
        """`bounds`, `final_bounds` or `step` as Python numbers, also before the layer is built."""
        if not self.built:
            return self._last_set[name]
        value = ops.convert_to_numpy(self._attached(getattr(self, name)))
        # The shortest decimals that are stored so: 3.3, not 3.299999952.
        return tuple(float(str(number)) for number in value) if value.ndim else int(value)

    def _set_state(self, **state):
        for name, value in state.items():
            if self.built:
                self._attached(getattr(self, name)).assign(value)
            self._last_set[name] = value

    def _attached(self, variable):
        if getattr(variable, "_value", variable) is None:
            raise RuntimeError(
                f"The state of layer '{self.name}' is held by `fit`, as always between its steps "
                "on JAX. Reach the layer through `self.model` in a callback."
            )
        return variable

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

    def _per_channel(self, weight, x):
        weight = ops.convert_to_tensor(weight, x.dtype)
        axis = self._channel_axis(x.shape)
        if axis == len(x.shape) - 1:
            return weight
        return ops.reshape(weight, [-1] + [1] * (len(x.shape) - 1 - axis))

    def compute_output_shape(self, input_shape):
        self._channel_axis(input_shape)
        return input_shape

    def get_config(self):
        final_bounds = self._get_state("final_bounds")
        r_max, d_max = (None if math.isinf(bound) else bound for bound in final_bounds)
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
            "microbatch_size": self.microbatch_size,
        }


def renorm_layers(model):
    layers = list(model._flatten_layers())
    names = sorted({type(layer).__name__ for layer in layers})
    found = [layer for layer in layers if isinstance(layer, BatchRenormalization)]
    if not found:
        raise ValueError(
            "`model` must have a BatchRenormalization layer. Received: "
            f"model={model.name!r}, with layers {names}"
        )
    return found


def validated_bounds(r_max, d_max):
    """The two bounds as floats, `None` as infinity; a ValueError where they are out of range."""
    bounds = tuple(math.inf if bound is None else float(bound) for bound in (r_max, d_max))
    if not bounds[0] >= 1:
        raise ValueError(f"`r_max` must be at least 1. Received: r_max={r_max}")
    if not bounds[1] >= 0:
        raise ValueError(f"`d_max` must be at least 0. Received: d_max={d_max}")
    return bounds


def _at_least_float32(dtype):
    # Not `keras.backend.result_type`, which makes float32 of float64 on PyTorch.
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"
