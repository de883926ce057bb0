"""The workers of a cluster: how they find each other, and what each of them reads."""

import contextlib
import json
import os
import socket
import time

from keras_brn.extras import extra


def connect_workers(timeout=600, port=8888):
    """A `tf.distribute.MultiWorkerMirroredStrategy`, once all workers are there.

    The workers are those that the environment variable `TF_CONFIG` names; else the tasks of the
    Slurm step, if it has several. TensorFlow alone would wait for them without end. Call this
    before anything else of TensorFlow.

    Args:
        timeout: Seconds to wait for the other workers.
        port: The first port that the workers of a machine use, under Slurm.

    Returns:
        The strategy, or `None` where there is neither.

    Raises:
        RuntimeError: If a worker cannot be reached in that time.
    """
    with extra("paper"):
        import tensorflow as tf

    if "TF_CONFIG" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        os.environ["TF_CONFIG"] = _slurm_tf_config(port)
    if "TF_CONFIG" not in os.environ:
        return None
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    spec = resolver.cluster_spec().as_dict()
    if sum(len(spec.get(kind, [])) for kind in ("chief", "worker")) > 1:
        _wait_for_workers(spec, resolver.task_type, resolver.task_id, timeout)
    return tf.distribute.MultiWorkerMirroredStrategy(resolver)


def _slurm_tf_config(port):
    """The `TF_CONFIG` of a task. (`SlurmClusterResolver` takes n10 for the node before n9, and
    divides GPUs that Slurm has already given to the tasks.)"""
    from tensorflow.python.distribute.cluster_resolver.slurm_cluster_resolver import (
        expand_hostlist,
        expand_tasks_per_node,
    )

    hosts = expand_hostlist(os.environ["SLURM_STEP_NODELIST"])
    tasks = expand_tasks_per_node(os.environ["SLURM_STEP_TASKS_PER_NODE"])
    addresses = [
        f"{host}:{port + k}" for host, count in zip(hosts, tasks, strict=True) for k in range(count)
    ]
    task = {"type": "worker", "index": int(os.environ["SLURM_PROCID"])}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def _wait_for_workers(spec, task_type, task_id, timeout):
    """Listens where TensorFlow will, and returns when something listens at every worker's address:
    this function, or TensorFlow."""
    own = spec[task_type][task_id]
    missing = [address for kind in ("chief", "worker") for address in spec.get(kind, [])]
    missing.remove(own)
    deadline = time.monotonic() + timeout
    with socket.create_server(("", int(own.rpartition(":")[2])), backlog=1024):
        while missing:
            address = missing[0]
            host, _, port = address.rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=5).close()
                missing.pop(0)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"Not all workers are there after {timeout} s. Start them all, with the "
                        f"same addresses. Received: {own} does not reach {missing} ({error})"
                    ) from error
                time.sleep(0.2)


def worker_rank(strategy):
    """(worker, workers): which of how many processes this is; (0, 1) without a strategy."""
    resolver = None if strategy is None else strategy.cluster_resolver
    addresses = {} if resolver is None else resolver.cluster_spec().as_dict()
    tasks = [(kind, k) for kind in ("chief", "worker") for k in range(len(addresses.get(kind, [])))]
    return (tasks.index((resolver.task_type, resolver.task_id)), len(tasks)) if tasks else (0, 1)


def replica_count(strategy):
    """The number of devices of all workers; 1 without a strategy."""
    return 1 if strategy is None else strategy.num_replicas_in_sync


def strategy_scope(strategy):
    """The scope in which a model is made; it does nothing without a strategy."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def distribute_batches(make, strategy, batch_size=None):
    """The data set that `make(worker, workers)` returns, of this worker.

    Args:
        make: Function that returns a `tf.data.Dataset` of a worker's shares of the batches.
        strategy: As in `keras_brn.paper.training.train`.
        batch_size: Number of examples of a batch, of all replicas together: where a worker has
            several replicas, each gets its part of the share. `None`: `make` returns batches for
            one replica.
    """
    if strategy is None:
        return make(0, 1)

    def share_of_pipeline(context):
        dataset = make(context.input_pipeline_id, context.num_input_pipelines)
        if batch_size is None or context.num_replicas_in_sync == context.num_input_pipelines:
            return dataset
        return dataset.rebatch(max(1, batch_size // context.num_replicas_in_sync))

    return strategy.distribute_datasets_from_function(share_of_pipeline)
