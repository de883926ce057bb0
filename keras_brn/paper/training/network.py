"""The network of an experiment, compiled as in the paper."""

import keras

from keras_brn.averaging import AveragedModel
from keras_brn.layer import BatchRenormalization
from keras_brn.paper.baselines import MicrobatchNormalization
from keras_brn.paper.networks.inception import inception_v3
from keras_brn.paper.networks.small import small_inception, small_network


def normalization_maker(experiment, group):
    """A function that returns a layer, with gamma = 1 (section 4).

    Args:
        experiment: `Experiment`.
        group: Number of consecutive examples that are normalized together; `None`: all.
    """
    momentum = 1 - experiment.alpha
    makers = {
        "batchnorm": lambda: MicrobatchNormalization(group, momentum=momentum, scale=False),
        "batch_renorm": lambda: BatchRenormalization(
            momentum=momentum,
            scale=False,
            r_max=experiment.r_max,
            d_max=experiment.d_max,
            microbatch_size=group,
        ),
        "group_norm": lambda: keras.layers.GroupNormalization(8, scale=False),
        # Over all values of an example, as where it is compared with group normalization.
        "layer_norm": lambda: keras.layers.GroupNormalization(1, scale=False),
    }
    if experiment.normalization not in makers:
        raise ValueError(
            f"`normalization` must be one of {sorted(makers)}. "
            f"Received: normalization={experiment.normalization!r}"
        )
    return makers[experiment.normalization]


def build_network(experiment, data, group):
    """The network; with an auxiliary head it returns a dict, in which "logits" are its own."""
    normalization = normalization_maker(experiment, group)
    if experiment.network == "inception_v3":
        return inception_v3(
            normalization,
            data.image_shape,
            data.classes,
            auxiliary=experiment.auxiliary_weight > 0,
            dropout=experiment.dropout,
            weight_decay=experiment.weight_decay,
            seed=experiment.seed,
        )
    small = {"small_inception": small_inception, "small_network": small_network}
    if experiment.network not in small:
        raise ValueError(
            f"`network` must be 'inception_v3' or one of {sorted(small)}. "
            f"Received: network={experiment.network!r}"
        )
    if experiment.auxiliary_weight or experiment.dropout:
        raise ValueError(
            f"`{experiment.network}` has no auxiliary head and no dropout: see `scaled`. Received: "
            f"auxiliary_weight={experiment.auxiliary_weight}, dropout={experiment.dropout}"
        )
    decay = keras.regularizers.L2(experiment.weight_decay / 2)
    build = small[experiment.network]
    return build(normalization, data.image_shape, data.classes, experiment.width, decay)


def compiled_model(experiment, data):
    """An `AveragedModel` of the network, with the optimizer and the loss of the experiment."""
    network = build_network(experiment, data, experiment.group)
    model = AveragedModel(network, experiment.average_decay)
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=experiment.label_smoothing
    )
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    losses, weights, metrics = loss, None, [accuracy]
    if experiment.auxiliary_weight:
        losses = {"logits": loss, "auxiliary_logits": loss}
        weights = {"logits": 1.0, "auxiliary_logits": experiment.auxiliary_weight}
        metrics = {"logits": [accuracy]}
    model.compile(
        _optimizer(experiment),
        loss=losses,
        loss_weights=weights,
        metrics=metrics,
        # XLA makes TensorFlow slower on a CPU.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )
    # TensorFlow traces a step twice if the first trace makes variables.
    model.optimizer.build(model.trainable_variables)
    return model


def _optimizer(experiment):
    learning_rate = keras.optimizers.schedules.ExponentialDecay(
        experiment.learning_rate,
        experiment.decay_steps,
        experiment.learning_rate_decay,
        staircase=True,
    )
    return keras.optimizers.RMSprop(
        learning_rate,
        rho=experiment.rho,
        momentum=experiment.optimizer_momentum,
        epsilon=experiment.optimizer_epsilon,
    )
