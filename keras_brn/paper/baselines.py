"""What Batch Renorm is compared with."""

import keras
from keras import ops

from keras_brn.kernels import normalization_of
from keras_brn.statistics import move_averages


@keras.saving.register_keras_serializable(package="keras_brn")
class MicrobatchNormalization(keras.layers.BatchNormalization):
    """`BatchNormalization` that normalizes each run of consecutive examples by itself in training.

    It averages the variance, as batchnorm does; `BatchRenormalization` with bounds of 1 and 0 has
    the same outputs in training, but averages the standard deviation.

    Args:
        microbatch_size: Integer number of examples >= 1, or `None` for the whole batch.
        **kwargs: As for `keras.layers.BatchNormalization`.
    """

    def __init__(self, microbatch_size=None, **kwargs):
        super().__init__(**kwargs)
        self.microbatch_size = microbatch_size

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False, mask=mask)
        x = ops.cast(inputs, "float32")
        axis = self.axis % len(x.shape)
        normalization = normalization_of(x, axis, self.microbatch_size, mask)
        mean, variance = normalization.moments(x)
        along_axis = [-1] + [1] * (len(x.shape) - 1 - axis)
        scale, offset = ops.ones_like(mean), ops.zeros_like(mean)
        if self.scale:
            scale = scale * ops.reshape(self.gamma, along_axis)
        if self.center:
            offset = offset + ops.reshape(self.beta, along_axis)
        y = normalization.normalize(x, mean, variance, scale, offset, self.epsilon)
        averages = [self.moving_mean, self.moving_variance]
        errors = [
            ops.stop_gradient(value) - ops.reshape(average, along_axis)
            for average, value in zip(averages, (mean, variance), strict=True)
        ]
        # Batchnorm takes all it sees into its averages, also what is not finite.
        move_averages(averages, errors, ops.ones_like(mean, "bool"), self.momentum)
        return ops.cast(y, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "microbatch_size": self.microbatch_size}
