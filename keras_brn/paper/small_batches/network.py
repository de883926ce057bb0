"""The network of a run of Figure 6."""

import keras

from keras_brn.layer import BatchRenormalization
from keras_brn.paper.networks.small import small_inception
from keras_brn.ramp import LinearRamp, scaled_counts

_CHANNELS_PER_GROUP = 8


@keras.saving.register_keras_serializable(package="keras_brn")
class GroupsOfChannels(keras.layers.GroupNormalization):
    """Group normalization by the number of channels in a group, which is the same in all layers.

    Args:
        channels_per_group: Integer >= 1; a layer of fewer channels has one group.
        **kwargs: As for `keras.layers.GroupNormalization`, without `groups`.
    """

    def __init__(self, channels_per_group=_CHANNELS_PER_GROUP, **kwargs):
        kwargs.pop("groups", None)
        super().__init__(groups=1, **kwargs)
        self.channels_per_group = channels_per_group

    def build(self, input_shape):
        self.groups = max(1, input_shape[self.axis] // self.channels_per_group)
        super().build(input_shape)

    def get_config(self):
        return {**super().get_config(), "channels_per_group": self.channels_per_group}


def build_network(run, data):
    """A `small_inception`. Batchnorm in it is Batch Renorm held at `r_max=1` and `d_max=0`, which
    trains alike; for inference it needs averages of the variance in the place of sigma's."""

    def normalization():
        if run.method == "group_norm":
            return GroupsOfChannels()
        return BatchRenormalization(momentum=run.momentum)

    return small_inception(normalization, data.image_shape, data.classes, run.width)


def set_bounds(network, run):
    """Gives the layers the bounds of a run, with their ramp."""
    bounds = (1.0, 0.0) if run.method.startswith("batchnorm") else (3.0, 5.0)
    counts = [round(run.ramp * count) for count in scaled_counts(run.steps)]
    ramp = LinearRamp(*counts) if run.method == "batch_renorm" and run.ramp else None
    for layer in renorm_layers_of(network):
        layer.set_schedule(None)
        layer.set_bounds(*bounds)
        layer.set_schedule(ramp)


def renorm_layers_of(network):
    """The layers of Batch Renorm of a functional network, none with group normalization."""
    return [layer for layer in network.layers if isinstance(layer, BatchRenormalization)]
