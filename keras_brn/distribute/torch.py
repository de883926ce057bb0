"""Statistics that several processes keep in common."""

import keras
from keras import ops

from keras_brn.layer import renorm_layers


def average_statistics(model, group=None):
    """Gives every process the mean of all processes' `moving_mean` and `moving_stddev` (PyTorch).

    Under `torch.nn.parallel.DistributedDataParallel` each process normalizes its own minibatch. The
    gradients are averaged, the statistics are not. As their update is linear, their mean after the
    step is what one process computes that has the whole batch, and the size of a process' minibatch
    as `microbatch_size`. All processes must call this after each training step:

        parallel = DistributedDataParallel(model)
        ...
        loss_of(parallel(x, training=True), y).backward()
        optimizer.step()
        average_statistics(model)

    It is one all-reduce of two numbers per channel. A process whose statistics stayed as they
    were, since they were not finite, counts as one that did not move.

    Args:
        model: A built `keras.Model`: the one inside of `DistributedDataParallel`.
        group: A `torch.distributed.ProcessGroup`, or `None` for the default group.

    Raises:
        RuntimeError: If the backend is not PyTorch, where `keras.distribution` and
            `tf.distribute.MirroredStrategy` need no such call, or if there are no processes.
        ValueError: If the model is not a Keras model, has no `BatchRenormalization`, or is not
            built; or if this process is not in `group`.
    """
    if keras.backend.backend() != "torch":
        raise RuntimeError(
            "`average_statistics` is for PyTorch; `keras.distribution.DataParallel` and "
            "`tf.distribute.MirroredStrategy` average the statistics by themselves. "
            f"Received: backend={keras.backend.backend()}"
        )
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "`model` must be a Keras model, not what it is wrapped in. "
            f"Received: model of type {type(model).__name__}"
        )
    layers = renorm_layers(model)
    unbuilt = [layer.name for layer in layers if not layer.built]
    if unbuilt:
        raise ValueError(f"`model` must be built. Received: model with unbuilt layers {unbuilt}")
    statistics = [var for layer in layers for var in (layer.moving_mean, layer.moving_stddev)]
    packed = ops.concatenate([ops.convert_to_tensor(variable) for variable in statistics])
    mean, start = _mean_over_processes(packed, group), 0
    for variable in statistics:
        variable.assign(mean[start : start + variable.shape[0]])
        start += variable.shape[0]


def _mean_over_processes(values, group):
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("Call `torch.distributed.init_process_group` before.")
    processes = dist.get_world_size(group)
    if processes < 1:
        raise ValueError(f"This process must be in the group. Received: group={group}")
    dist.all_reduce(values, group=group)  # The sum: Gloo has no mean.
    return values / processes
