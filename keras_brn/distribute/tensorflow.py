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
import re

import keras

from keras_brn.layer import gathered_by

_KNOWN = ((3, 12), (3, 16))  # From, and up to but without.


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
        RuntimeError: If the backend is not TensorFlow, or the version of Keras is not known.
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
    version = tuple(map(int, re.findall(r"\d+", keras.__version__)[:2]))
    if not _KNOWN[0] <= version < _KNOWN[1]:
        first, end = (".".join(map(str, known)) for known in _KNOWN)
        raise RuntimeError(
            f"`multi_worker` knows the trainer of Keras from {first} to before {end}. "
            f"Received: keras {keras.__version__}"
        )
    _check_scope(model)
    if not hasattr(type(model), "_maybe_symbolic_build"):
        raise RuntimeError(f"This Keras has another trainer. Received: keras {keras.__version__}")
    own = {
        "make_train_function": functools.partial(_make_train_function, model),
        "make_test_function": functools.partial(_make_test_function, model),
        "_maybe_symbolic_build": lambda *_, **__: None,
        "fit": functools.partial(_fit, model),
        "evaluate": functools.partial(_evaluate, model),
    }
    vars(model).update(own)
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
        updates = Updates()
        with gathered_by(updates):
            logs = step(data)
        return updates.apply(logs)

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


class Updates:
    """What the layers of a replica add to their averages in a step, before the workers share it."""

    def __init__(self):
        self.moves = {}

    def add(self, variable, move, momentum):
        _, earlier = self.moves.get(id(variable), (None, 0.0))
        self.moves[id(variable)] = variable, momentum * earlier + move  # As if one by one.

    def apply(self, logs=None):
        """Adds the means over all replicas, and returns those of the logs."""
        import tensorflow as tf

        logs = logs or {}
        variables = [variable.value for variable, _ in self.moves.values()]
        values = [move for _, move in self.moves.values()] + list(logs.values())
        if not values:
            return logs
        dtype = "float64" if any(value.dtype == "float64" for value in values) else "float32"
        packed = tf.concat([tf.cast(tf.reshape(value, [-1]), dtype) for value in values], 0)
        context = tf.distribute.get_replica_context()
        mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, packed)
        parts = tf.split(mean, [value.shape.num_elements() for value in values])
        self.moves = {}

        def assign(strategy, moves):
            for variable, move in zip(variables, moves, strict=True):
                strategy.extended.update(
                    variable, lambda v, move: v.assign_add(tf.cast(move, v.dtype)), args=(move,)
                )

        moves, scalars = parts[: len(variables)], parts[len(variables) :]
        context.merge_call(assign, args=(moves,))
        return {name: value[0] for name, value in zip(logs, scalars, strict=True)}
