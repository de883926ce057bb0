"""`fit`, `evaluate` and `predict` under `tf.distribute.MultiWorkerMirroredStrategy`.

Keras fails there with several workers (keras-team/keras#20585), at two places of its trainer for
TensorFlow. This file goes around them, by methods that Keras lets a model override:

- `fit` and `evaluate` build the model from a batch that they reduce as if it were nested no
  deeper than one level. A model that is built has no need of it.
- The logs, scalars, are reduced along their axis 0. Here they are reduced as they are.

The training step also averages the statistics of Batch Renorm over the workers, in one all-reduce
that takes the logs along: the layer's own way costs two for each layer.
"""

import functools

import keras
from keras import ops

from keras_brn.keras_internals import build_no_more
from keras_brn.statistics import StatisticsScope, mean_over_groups

_OVERRIDDEN = ("make_train_function", "make_test_function", "fit", "evaluate")


def multi_worker(model):
    """Lets a model train under `tf.distribute.MultiWorkerMirroredStrategy` (TensorFlow).

    Every worker runs the same program:

        strategy = tf.distribute.MultiWorkerMirroredStrategy()  # Before anything else.
        with strategy.scope():
            model = keras_brn.multi_worker(build_model())
            model.compile("rmsprop", "sparse_categorical_crossentropy")
        model.fit(dataset, callbacks=[keras_brn.RenormSchedule()])

    The minibatches of `dataset` are those of all workers together, which share each evenly. Each
    normalizes its part, and after every step all hold the same weights, mu and sigma: those of one
    process that has the whole minibatch, and the size of a part as `microbatch_size`. A layer
    that is called several times in a step corrects by the averages from before the step. What
    other layers average, such as `keras.layers.BatchNormalization`, each worker has for itself.

    A batch needs an example for each replica: leave out a last one that has fewer. TensorFlow would
    give some replicas an empty batch, for which its convolutions on a CPU fail.

    Args:
        model: A `keras.Model`, made and built inside the scope.

    Returns:
        The same model.

    Raises:
        RuntimeError: If the backend is not TensorFlow, or the trainer of Keras has not
            the methods that this overrides.
        ValueError: If the model was not made in the scope of the strategy, or is not built. In
            `fit` and `evaluate`: if every worker would see the same data (a generator, a
            `PyDataset`, or a dataset that is not sharded), or shares of different numbers of
            batches; with `jit_compile=True`, which cannot compile the exchange between the
            workers; or with `steps_per_execution` above 1.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "`multi_worker` is for TensorFlow. See `average_statistics` for PyTorch and "
            "`keras.distribution` for JAX. "
            f"Received: backend={keras.backend.backend()}"
        )
    missing = [name for name in _OVERRIDDEN if not hasattr(type(model), name)]
    if missing:
        raise RuntimeError(
            f"`multi_worker` overrides {missing}, which this trainer does not have. "
            f"Received: keras {keras.__version__}"
        )
    _check_scope(model)
    own = {
        "make_train_function": functools.partial(_make_train_function, model),
        "make_test_function": functools.partial(_make_test_function, model),
        "fit": functools.partial(_fit, model),
        "evaluate": functools.partial(_evaluate, model),
    }
    vars(model).update(own)
    build_no_more(model)
    return model


def _check_scope(model):
    import tensorflow as tf

    strategy = model.distribute_strategy
    made_in_scope = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    if not made_in_scope or not all(
        strategy.extended.variable_created_in_scope(variable.value) for variable in model.variables
    ):
        raise ValueError(
            "`model` must be made inside `with strategy.scope():` of a "
            "MultiWorkerMirroredStrategy, else each worker would train by itself. "
            f"Received: model={model.name!r}, with the strategy {type(strategy).__name__}"
        )
    if not model.built:
        raise ValueError(f"`model` must be built. Received: model={model.name!r}, not built")


def _fit(model, x=None, *args, validation_data=None, **kwargs):
    _check_sharded(model, "x", x)
    if validation_data is not None and not isinstance(validation_data, (tuple, list)):
        _check_sharded(model, "validation_data", validation_data)
    return type(model).fit(model, x, *args, validation_data=validation_data, **kwargs)


def _evaluate(model, x=None, *args, **kwargs):
    _check_sharded(model, "x", x)
    return type(model).evaluate(model, x, *args, **kwargs)


def _check_sharded(model, name, x):
    import tensorflow as tf

    received = type(x).__name__
    if isinstance(x, tf.data.Dataset):
        off = tf.data.experimental.AutoShardPolicy.OFF
        if x.options().experimental_distribute.auto_shard_policy != off:
            return
        received = "a dataset with AutoShardPolicy.OFF"
    elif isinstance(x, tf.distribute.DistributedDataset):
        counts = seen_by_workers(model.distribute_strategy, int(x.cardinality))
        if len(set(counts)) > 1:
            raise ValueError(
                f"`{name}` must have equally many batches on all workers. "
                f"Received: {name} = shares of {counts} batches"
            )
        return
    elif isinstance(x, (list, tuple, dict)) or hasattr(x, "shape"):
        return
    raise ValueError(
        f"`{name}` must be shared between the workers, but each would see all of it: use arrays, a "
        "`tf.data.Dataset`, or `strategy.distribute_datasets_from_function`. "
        f"Received: {name} = {received}"
    )


def _make_train_function(model, force=False):
    if model.train_function is None or force:
        model.train_function = _distributed(model, model.train_step)


def _make_test_function(model, force=False):
    if model.test_function is None or force:
        model.test_function = _distributed(model, model.test_step)


def _distributed(model, step):
    """A function that takes a step with the next batch of an iterator, and returns the logs."""
    import tensorflow as tf

    if model.steps_per_execution != 1 or model.get_compile_config().get("jit_compile") is True:
        raise ValueError(
            "Several workers need `steps_per_execution=1`, and `jit_compile` not True. Received: "
            f"steps_per_execution={model.steps_per_execution}, "
            f"jit_compile={model.get_compile_config().get('jit_compile')}"
        )

    def replica_step(data):
        with SharedStatistics() as statistics:
            logs = step(data)
        return statistics.share(logs)

    def distributed_step(iterator):
        logs = model.distribute_strategy.run(replica_step, args=(iterator.get_next(),))
        return {
            name: model.distribute_strategy.experimental_local_results(value)[0]
            for name, value in logs.items()
        }

    if model.run_eagerly:
        return distributed_step
    return tf.function(distributed_step, autograph=False, reduce_retracing=True)


def seen_by_workers(strategy, number):
    """List of what each replica received for `number`, an integer."""
    if strategy is None:
        return [number]
    import tensorflow as tf

    each = strategy.run(lambda: tf.constant([number], "int64"))
    return strategy.gather(each, axis=0).numpy().tolist()


class SharedStatistics(StatisticsScope):
    """Holds back what the layers of a replica add to their averages in a step, and shares it with
    all replicas, in one all-reduce."""

    def __init__(self):
        self._moves = {}  # By the id of a variable: the variable and its move.

    def __enter__(self):
        import tensorflow as tf

        self._graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        return super().__enter__()

    def receive(self, averages, errors, valid, momentum):
        self._refuse_inner_graphs(averages[0])
        channels = averages[0].shape[0]
        errors = mean_over_groups(errors, valid, channels)
        # Where an earlier call of the step moved an average, this one starts from there; but a
        # channel of which it has seen nothing stays where it is.
        seen = ops.any(ops.reshape(valid, (-1, channels)), axis=0)
        for average, error in zip(averages, errors, strict=True):
            move = (1.0 - momentum) * ops.convert_to_tensor(error, average.dtype)
            if id(average) in self._moves:
                earlier = self._moves[id(average)][1]
                move = ops.where(seen, momentum * earlier + move, earlier)
            self._moves[id(average)] = average, move

    def _refuse_inner_graphs(self, average):
        import tensorflow as tf

        if self._graph is not None and tf.compat.v1.get_default_graph() is not self._graph:
            raise ValueError(
                "`multi_worker` can't share the statistics of a layer that is called in a graph of "
                "its own, such as the loop of `keras.layers.RNN`: unroll it (`unroll=True`). "
                f"Received: {average.path}"
            )

    def flush(self):
        self.share()

    def share(self, logs=None):
        """Adds the means over all replicas, and returns those of the logs."""
        import tensorflow as tf

        logs = logs or {}
        variables = [variable.value for variable, _ in self._moves.values()]
        values = [move for _, move in self._moves.values()] + list(logs.values())
        if not values:
            return logs
        dtype = "float64" if any(value.dtype == "float64" for value in values) else "float32"
        packed = tf.concat([tf.cast(tf.reshape(value, [-1]), dtype) for value in values], 0)
        context = tf.distribute.get_replica_context()
        mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, packed)
        parts = tf.split(mean, [value.shape.num_elements() for value in values])
        self._moves = {}

        def assign(strategy, moves):
            for variable, move in zip(variables, moves, strict=True):
                strategy.extended.update(
                    variable, lambda v, move: v.assign_add(tf.cast(move, v.dtype)), args=(move,)
                )

        moves, scalars = parts[: len(variables)], parts[len(variables) :]
        context.merge_call(assign, args=(moves,))
        return {name: value[0] for name, value in zip(logs, scalars, strict=True)}
