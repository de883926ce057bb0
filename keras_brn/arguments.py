"""What the arguments that only `BatchNormalization` has mean for `BatchRenormalization`."""

import keras
from keras import initializers, ops

BATCHNORM_ONLY = (
    "moving_variance_initializer",
    "synchronized",
    "renorm",
    "renorm_clipping",
    "renorm_momentum",
)


def translated(arguments, epsilon):
    """What arguments that only `BatchNormalization` has mean for `BatchRenormalization`.

    Args:
        arguments: Dict with some of `BATCHNORM_ONLY`.
        epsilon: Float, the layer's.

    Returns:
        Dict with some of `moving_stddev_initializer`, `momentum`, `r_max` and `d_max`.

    Raises:
        ValueError: If an argument asks for what `BatchRenormalization` does not do.
    """
    meant = {}
    if arguments.get("synchronized"):
        raise ValueError(
            "`synchronized` must be False: each replica normalizes its own examples, and corrects "
            f"them by averages that all share. Received: synchronized={arguments['synchronized']}"
        )
    if "moving_variance_initializer" in arguments:
        meant["moving_stddev_initializer"] = StddevOfVariance(
            arguments["moving_variance_initializer"], epsilon
        )
    if arguments.get("renorm"):
        meant["momentum"] = arguments.get("renorm_momentum", 0.99)
        meant.update(_bounds(arguments.get("renorm_clipping") or {}))
    elif arguments.get("renorm_clipping"):
        raise ValueError(
            "`renorm_clipping` needs `renorm=True`; the bounds of this layer are `r_max` and "
            f"`d_max`. Received: renorm_clipping={arguments['renorm_clipping']}"
        )
    return meant


def _bounds(clipping):
    r_max, r_min = clipping.get("rmax"), clipping.get("rmin")
    wanted = 0.0 if r_max is None else 1.0 / r_max
    if r_min is not None and abs(r_min - wanted) > 1e-6:
        raise ValueError(
            "`renorm_clipping` must have no `rmin`, or 1 / `rmax` as the paper has. "
            f"Received: renorm_clipping={clipping}"
        )
    return {"r_max": r_max, "d_max": clipping.get("dmax")}


@keras.saving.register_keras_serializable(package="keras_brn")
class StddevOfVariance(initializers.Initializer):
    """Initializes a standard deviation from a variance: `sqrt(variance + epsilon)`.

    Args:
        variance_initializer: Initializer of the variance.
        epsilon: Float > 0.
    """

    def __init__(self, variance_initializer, epsilon):
        self.variance_initializer = initializers.get(variance_initializer)
        self.epsilon = epsilon

    def __call__(self, shape, dtype=None):
        return ops.sqrt(self.variance_initializer(shape, dtype) + self.epsilon)

    def get_config(self):
        return {
            "variance_initializer": initializers.serialize(self.variance_initializer),
            "epsilon": self.epsilon,
        }
