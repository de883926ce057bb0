"""Where the statistics of a step go."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization
from keras_brn.statistics import StatisticsScope, mean_over_groups

X = np.random.default_rng(0).normal(5, 2, (8, 3)).astype("float32")


class Collected(StatisticsScope):
    def __init__(self):
        self.calls = []

    def receive(self, averages, errors, valid, momentum):
        self.calls.append([ops.convert_to_numpy(error) for error in errors])


@pytest.fixture
def layer():
    layer = BatchRenormalization(momentum=0.5)
    layer.build((None, 3))
    return layer


def test_a_scope_receives_what_would_move_the_averages(layer):
    with Collected() as scope:
        layer(X, training=True)
    assert not ops.convert_to_numpy(layer.moving_mean).any()
    layer(X, training=True)
    for average, error, start in zip(
        (layer.moving_mean, layer.moving_stddev), scope.calls[0], (0, 1), strict=True
    ):
        np.testing.assert_allclose(ops.convert_to_numpy(average), start + 0.5 * error.ravel())


def test_the_innermost_scope_receives_and_the_outer_one_goes_on_after_it(layer):
    with Collected() as outer:
        with Collected() as inner:
            layer(X, training=True)
        layer(X, training=True)
        layer(X)
    assert (len(outer.calls), len(inner.calls)) == (1, 1)


def test_a_scope_ends_with_an_error_in_its_block(layer):
    with pytest.raises(KeyError), Collected():
        raise KeyError
    layer(X, training=True)
    assert ops.convert_to_numpy(layer.moving_mean).all()


@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 3, 1, 1), (2, 3)])
def test_the_mean_is_over_the_groups_that_are_valid(shape):
    errors = np.array([[1.0, 2.0, np.nan], [3.0, np.inf, np.nan]]).reshape(shape)
    valid = ops.convert_to_tensor(np.isfinite(errors))
    (mean,) = mean_over_groups([ops.convert_to_tensor(errors)], valid, channels=3)
    np.testing.assert_allclose(ops.convert_to_numpy(mean), [2, 2, 0])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="For TensorFlow.")
@pytest.mark.parametrize("second", [X + 1, np.full_like(X, np.nan), X[:, ::-1] * [1, 1, np.nan]])
def test_calls_of_a_step_that_are_shared_add_up_as_one_by_one(layer, second):
    import tensorflow as tf

    from keras_brn.distribute.tensorflow import SharedStatistics

    shared = BatchRenormalization.from_config(layer.get_config())
    shared.build((None, 3))
    for x in (X, second):
        layer(x, training=True)

    def step():
        with SharedStatistics() as statistics:
            for x in (X, second):
                shared(x, training=True)
        statistics.share()

    tf.distribute.get_strategy().run(step)
    for name in ("moving_mean", "moving_stddev"):
        ours, expected = (ops.convert_to_numpy(getattr(la, name)) for la in (shared, layer))
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="For TensorFlow.")
def test_a_layer_in_a_loop_of_its_own_is_refused_by_name(layer):
    import tensorflow as tf

    from keras_brn.distribute.tensorflow import SharedStatistics

    @tf.function
    def step():
        with SharedStatistics():
            return tf.while_loop(lambda k: k < 2, lambda k: k + len(layer(X, training=True)), [0])

    with pytest.raises(ValueError, match="unroll=True.*moving_mean"):
        step()
