"""One training, on one device and by the workers of each engine.

`python tests/engines.py ROLE OUT [RANK PORT]` is a worker; `run` starts all of a role.
"""

import contextlib
import os
import pickle
import subprocess
import sys

import keras
import numpy as np
from keras import ops

import keras_brn
from keras_brn import BatchRenormalization, LinearRamp, RenormSchedule, average_statistics
from keras_brn.averaging import AveragedModel
from keras_brn.paper.baselines import MicrobatchNormalization
from keras_brn.paper.cluster import distribute_batches
from keras_brn.paper.data.images import Images
from keras_brn.paper.data.sampling import batches
from keras_brn.paper.launch import free_addresses, tf_configs
from keras_brn.paper.networks.inception import inception_v3

EPOCHS, STEPS, BATCH, RAMP = 2, 10, 48, (4, 16, 12)
RATE, MOMENTUM = 0.05, 0.9


def data(rank=0, workers=1):
    """Images and labels of an epoch; of several workers, each has its share of every batch."""
    rng = np.random.default_rng(0)
    shape = (STEPS, workers, BATCH // workers)
    x, y = rng.normal(1, 2, (*shape, 8, 8, 3)).astype("float32"), rng.integers(0, 10, shape)
    return x[:, rank].reshape(-1, 8, 8, 3), y[:, rank].reshape(-1)


def label_pairs(worker=0, workers=1):
    """Minibatches of 8, of 4 labels, 2 images each: a `tf.data.Dataset` of a worker's share."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (100, 8, 8, 3), "uint8"), np.arange(100) % 10
    images = Images("noise", 10, pixels, labels, pixels[:1], labels[:1], True)
    shares = {"worker": worker, "workers": workers}
    pairs = batches(images, BATCH, EPOCHS * STEPS, 0, group=8, images_per_label=2, **shares)
    return pairs.map(lambda x, y: (x, tf.argmax(y, 1)))


def averaged_network():
    """With both of the layers that are compared, and averages of the parameters."""
    return AveragedModel(network(8, dense=MicrobatchNormalization))


def fit_label_pairs(model, strategy=None):
    model.fit(
        distribute_batches(label_pairs, strategy, BATCH),
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        verbose=0,
        callbacks=[RenormSchedule(*RAMP)],
    )
    return [ops.convert_to_numpy(weight) for weight in (*model.weights, *model.averages)]


@keras.saving.register_keras_serializable()
def he_normal(shape, dtype):
    """Without Keras' generators, which JAX compiles for seconds."""
    scale = (2 / np.prod(shape[:-1])) ** 0.5
    return np.random.default_rng(0).normal(0, scale, shape).astype(dtype)


def network(microbatch_size=None, dense=BatchRenormalization):
    """Two convolutions and a dense layer that are normalized, and the logits."""

    def normalized(layer, *args, kind=BatchRenormalization):
        layer = layer(*args, use_bias=False, kernel_initializer=he_normal)
        normalization = kind(momentum=0.9, microbatch_size=microbatch_size)
        # Smooth: rounding may decide on which side of its kink a ReLU is, and so on a gradient.
        return layer, normalization, keras.layers.Activation("softplus")

    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            *normalized(keras.layers.Conv2D, 8, 3),
            *normalized(keras.layers.Conv2D, 16, 3, 2),
            keras.layers.Flatten(),
            *normalized(keras.layers.Dense, 16, kind=dense),
            keras.layers.Dense(10, kernel_initializer=he_normal),
        ]
    )


def compiled(model, **arguments):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.SGD(RATE, MOMENTUM)
    model.compile(optimizer, loss, metrics=["accuracy"], **arguments)
    return model


def fit(model, x, y):
    compiled(model)
    schedule = RenormSchedule(*RAMP)
    model.fit(x, y, len(x) // STEPS, EPOCHS, shuffle=False, verbose=0, callbacks=[schedule])
    return model


def trained(microbatch_size=None, rank=0, workers=1):
    return fit(network(microbatch_size), *data(rank, workers))


def error(weights, expected):
    """The largest difference of a weight, in units of its maximum; both are lists of arrays."""
    return max(
        np.abs(value - other).max() / np.abs(other).max()
        for value, other in zip(weights, expected, strict=True)
    )


def jax_devices():
    """One worker with all devices."""
    distribution = keras.distribution.DataParallel()
    keras.distribution.set_distribution(distribution)
    results = {size: trained(size).get_weights() for size in (BATCH // 8, None)}
    return {"trained": results, "compiled": compiled_layer(distribution, BATCH // 8)}


def compiled_layer(distribution, microbatch_size):
    """What XLA makes of a layer, forward and backward, whose inputs are distributed."""
    import jax

    layer = BatchRenormalization(microbatch_size=microbatch_size)
    x = np.ones((BATCH, 8, 8, 4), "float32")
    layer.build(x.shape)
    state = [variable.value for variable in layer.non_trainable_variables]

    def loss(x, trainable):
        y, new_state = layer.stateless_call(trainable, state, x, training=True)
        return (y**2).mean(), new_state

    x = keras.distribution.distribute_tensor(x, distribution.get_data_layout(x.shape))
    trainable = [variable.value for variable in layer.trainable_variables]
    return jax.jit(jax.grad(loss, (0, 1), has_aux=True)).lower(x, trainable).compile().as_text()


def jax_process(rank, port):
    keras.distribution.initialize(f"localhost:{port}", 2, rank)
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    return {BATCH // 2: trained(BATCH // 2, rank, 2).get_weights()}


def torch_process(rank, port):
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=2
    )
    x, y = data(rank, 2)
    results = {"loop": ddp_loop(network(), x, y), "fit": ddp_fit(network(), x, y)}
    distributed.destroy_process_group()
    return results


def ddp_loop(model, x, y):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
    layers = [layer for layer in model.layers if isinstance(layer, BatchRenormalization)]
    epoch = list(zip(torch.tensor(x).chunk(STEPS), torch.tensor(y).chunk(STEPS), strict=True))
    for layer in layers:
        layer.set_schedule(LinearRamp(*RAMP))
    for images, labels in EPOCHS * epoch:
        logits = parallel(images, training=True)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        average_statistics(model)
    return model.get_weights()


def ddp_fit(network, x, y):
    from torch.nn.parallel import DistributedDataParallel

    class Parallel(keras.Model):
        def __init__(self, network):
            super().__init__()
            self.network = network
            self.parallel = [DistributedDataParallel(network)]  # In a list, it is not a layer.

        def call(self, x, training=None):
            return self.parallel[0](x, training=True) if training else self.network(x)

        def train_step(self, data):
            logs = super().train_step(data)
            average_statistics(self)
            return logs

    return fit(Parallel(network), x, y).network.get_weights()


def sharded(x, y, steps=STEPS, policy="DATA"):
    """A `tf.data.Dataset` of the batches of all workers together."""
    import tensorflow as tf

    options = tf.data.Options()
    policy = getattr(tf.data.experimental.AutoShardPolicy, policy)
    options.experimental_distribute.auto_shard_policy = policy
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(len(x) // steps)
    return dataset.with_options(options)


def multi_worker(rank, port):
    """The ways to train under `MultiWorkerMirroredStrategy`, and what Keras does by itself."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    dataset = sharded(*data())
    with strategy.scope():
        model = keras_brn.multi_worker(network())
        averaged = keras_brn.multi_worker(averaged_network())
        plain, in_loop = network(), network()
        for each in (model, averaged, plain):
            compiled(each)
    results = {"keras": {}, "weights": {}}
    for name in ("fit", "evaluate"):
        try:
            getattr(plain, name)(dataset, verbose=0)
        except Exception as error:  # Whatever it is.
            results["keras"][name] = type(error).__name__

    schedule = RenormSchedule(*RAMP)
    arguments = {"epochs": EPOCHS, "validation_data": dataset, "callbacks": [schedule]}
    results["history"] = model.fit(dataset, verbose=0, **arguments).history
    results["evaluate"] = model.evaluate(dataset, verbose=0, return_dict=True)
    results["predict"] = model.predict(data()[0][:99], batch_size=40, verbose=0)
    results["weights"]["fit"] = model.get_weights()
    results["label pairs"] = fit_label_pairs(averaged, strategy)

    def uneven(context):
        return tf.data.Dataset.from_tensor_slices(data()).batch(40).take(2 + (rank == 0))

    try:
        model.evaluate(strategy.distribute_datasets_from_function(uneven), verbose=0)
    except ValueError as error:
        results["uneven"] = str(error)
    results["weights"]["loop"] = multi_worker_loop(strategy, in_loop, dataset)
    return results


def multi_worker_loop(strategy, model, dataset):
    import tensorflow as tf

    with strategy.scope():
        optimizer = keras.optimizers.SGD(RATE, MOMENTUM)
        optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))  # Which Keras divides by the replicas.
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    step = tf.function(lambda x, y: strategy.run(replica_step, args=(x, y)))
    layers = [layer for layer in model.layers if isinstance(layer, BatchRenormalization)]
    batches = strategy.experimental_distribute_dataset(dataset.repeat(EPOCHS))
    for layer in layers:
        layer.set_schedule(LinearRamp(*RAMP))
    for batch in batches:
        step(*batch)
    return model.get_weights()


def inception(rank=None, port=None):
    """The weights of Inception-v3 after 20 steps, by two workers or by this process.

    With alpha = .01, as in the paper: with .1, mu and sigma of 94 layers, each of which sees those
    before it, grow the last digit of a float64 to .01 in 20 steps.
    """
    import tensorflow as tf

    strategy = None if rank is None else tf.distribute.MultiWorkerMirroredStrategy()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20 * 16, 75, 75, 3)).astype("float32")
    y = rng.integers(0, 10, 20 * 16)
    results = {}
    for dtype in ("float64", "float32"):
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(dtype)
        keras.utils.set_random_seed(0)
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            microbatch = 8 if strategy is None else None
            model = inception_v3(
                lambda size=microbatch: BatchRenormalization(scale=False, microbatch_size=size),
                *((75, 75, 3), 10),
                auxiliary=False,
                dropout=0.0,
            )
            if strategy is not None:
                keras_brn.multi_worker(model)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(1e-4, MOMENTUM), loss, jit_compile=False)
        dataset = sharded(x, y, steps=20)
        model.fit(dataset, verbose=0, callbacks=[RenormSchedule(*RAMP)])
        results[dtype] = model.get_weights()
    return results


def run(role, folder, workers=1, timeout=300, **environment):
    """What each worker of a role returns, within so many seconds."""
    port = free_addresses(1)[0].rpartition(":")[2]
    paths = [str(folder / f"{role}{rank}") for rank in range(workers)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, role, path, *([str(rank), port] if workers > 1 else [])],
            env={**os.environ, "TF_CONFIG": tf_config, **environment},
        )
        for rank, (path, tf_config) in enumerate(zip(paths, tf_configs(workers), strict=True))
    ]
    try:
        assert not any([process.wait(timeout=timeout) for process in processes]), role
    finally:
        for process in processes:
            process.kill()
    results = []
    for path in paths:
        with open(path, "rb") as file:
            results.append(pickle.load(file))
    return results


if __name__ == "__main__":
    role, out, *worker = sys.argv[1:]
    results = globals()[role](*map(int, worker))
    with open(out, "wb") as file:
        pickle.dump(results, file)
