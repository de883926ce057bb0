"""Workers of `MultiWorkerMirroredStrategy` train what one process does that has their minibatch as
its microbatch. `pytest -rP` shows the errors."""

import functools

import engines
import keras
import numpy as np
import pytest

from keras_brn import RenormSchedule, multi_worker
from keras_brn.averaging import AveragedModel
from keras_brn.paper.cluster import distribute_batches

TOLERANCE = 1e-5  # Of each weight's maximum.

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow")


@functools.cache
def one_process(microbatch_size):
    """The model, and what `fit` returned."""
    model = engines.compiled(engines.network(microbatch_size))
    data = engines.sharded(*engines.data())
    history = model.fit(
        data,
        epochs=engines.EPOCHS,
        validation_data=data,
        verbose=0,
        callbacks=[RenormSchedule(*engines.RAMP)],
    )
    return model, history.history


@pytest.fixture(scope="module", params=[2, 3])
def workers(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    return engines.run("multi_worker", folder, request.param)


def test_workers_agree(workers):
    for other in workers[1:]:
        for way, weights in workers[0]["weights"].items():
            assert engines.error(other["weights"][way], weights) == 0, way
        assert engines.error(other["label pairs"], workers[0]["label pairs"]) == 0
        assert other["history"] == workers[0]["history"]
        np.testing.assert_array_equal(other["predict"], workers[0]["predict"])


def test_one_process_trains_the_same(workers):
    model, history = one_process(engines.BATCH // len(workers))
    for way, weights in workers[0]["weights"].items():
        error = engines.error(weights, model.get_weights())
        print(f"{len(workers)} workers, {way}: {error:.1e}")
        assert error < TOLERANCE, way
    assert workers[0]["history"].keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(workers[0]["history"][name], values, rtol=1e-5, err_msg=name)


def test_one_process_trains_the_same_on_label_pairs(workers):
    """The weights and their averages."""
    model = engines.compiled(engines.averaged_network())
    error = engines.error(workers[0]["label pairs"], engines.fit_label_pairs(model))
    print(f"{len(workers)} workers, label pairs: {error:.1e}")
    assert error < TOLERANCE


def test_evaluate_and_predict(workers):
    model, _ = one_process(engines.BATCH // len(workers))
    x, y = engines.data()
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    assert workers[0]["evaluate"] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(workers[0]["predict"], model.predict(x[:99], verbose=0), atol=1e-5)


def test_shares_of_different_lengths_are_refused(workers):
    """Else one would evaluate while the others have gone on."""
    assert f"shares of {[3, *[2] * (len(workers) - 1)]} batches" in workers[-1]["uneven"]


def test_keras_alone_still_fails(workers):
    """Else Keras has mended it: take `multi_worker` for those versions away."""
    assert workers[0]["keras"] == {"fit": "ValueError", "evaluate": "ValueError"}


@pytest.mark.long
def test_inception_v3(tmp_path):
    workers = engines.run("inception", tmp_path, workers=2, timeout=3000)
    (alone,) = engines.run("inception", tmp_path, timeout=3000)
    for dtype, weights in alone.items():
        assert engines.error(workers[1][dtype], workers[0][dtype]) == 0
        error = engines.error(workers[0][dtype], weights)
        print(f"Inception-v3 in {dtype}: {error:.1e}")
        if dtype == "float64":
            assert error < TOLERANCE


@pytest.fixture
def strategy():
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()  # One worker.


@pytest.fixture
def model(strategy):
    with strategy.scope():
        return engines.compiled(multi_worker(engines.network()))


def test_arrays_are_shared(model):
    model.fit(*engines.data(), batch_size=64, verbose=0)


def test_one_worker_alone(model):
    model.fit(
        engines.sharded(*engines.data()), verbose=0, callbacks=[RenormSchedule(*engines.RAMP)]
    )
    assert model.layers[1].step == engines.STEPS


def test_replicas_of_a_worker_share_its_batches():
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    data = distribute_batches(
        lambda worker, workers: tf.data.Dataset.range(8).batch(6), strategy, 6
    )
    seen = [[x.numpy().tolist() for x in strategy.experimental_local_results(x)] for x in data]
    assert seen == [[[0, 1, 2], [3, 4, 5]], [[6, 7], []]]


def test_averages_of_a_network_without_the_layer(strategy):
    x, y = engines.data()
    with strategy.scope():
        layers = [keras.layers.Flatten(), keras.layers.Dense(10)]
        network = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        model = engines.compiled(multi_worker(AveragedModel(network)))
    model.fit(engines.sharded(x, y), verbose=0)
    assert model.steps == engines.STEPS


def test_refuses_a_model_from_outside_the_scope(strategy):
    with pytest.raises(ValueError, match="inside `with strategy.scope"):
        multi_worker(engines.network())
    network = engines.network()
    with strategy.scope(), pytest.raises(ValueError, match="inside `with strategy.scope"):
        multi_worker(AveragedModel(network))


def test_refuses_an_unbuilt_model(strategy):
    with strategy.scope(), pytest.raises(ValueError, match="'late', not built"):
        multi_worker(keras.Sequential([keras.layers.Dense(1)], name="late"))


def test_refuses_data_that_every_worker_would_see(model):
    x, y = engines.data()
    off = engines.sharded(x, y, policy="OFF")
    sequence = keras.utils.PyDataset()
    for data, received in ((off, "OFF"), (iter([(x, y)]), "iterator"), (sequence, "PyDataset")):
        with pytest.raises(ValueError, match=f"`x` must be shared.*{received}"):
            model.fit(data)
        with pytest.raises(ValueError, match=f"`x` must be shared.*{received}"):
            model.evaluate(data)
        with pytest.raises(ValueError, match=f"`validation_data` must be shared.*{received}"):
            model.fit(x, y, validation_data=data)


@pytest.mark.parametrize("arguments", [{"jit_compile": True}, {"steps_per_execution": 2}])
def test_refuses_what_cannot_be_compiled(model, arguments):
    engines.compiled(model, **arguments)
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        model.fit(engines.sharded(*engines.data()), verbose=0)


@pytest.mark.parametrize("missing", ["make_train_function", "make_test_function"])
def test_refuses_a_keras_without_what_it_overrides(model, monkeypatch, missing):
    for kind in type(model).__mro__:
        if missing in vars(kind):
            monkeypatch.delattr(kind, missing)
    with pytest.raises(RuntimeError, match=f"{missing}.*keras {keras.__version__}"):
        multi_worker(model)
