"""A copy is compiled as its model is, by the same objects where they have no state."""

import keras
import numpy as np
import pytest
from convert_models import BatchNormalization, sequential
from keras import ops

from keras_brn import renormalize, to_batch_normalization

quiet = pytest.mark.filterwarnings("ignore:The optimizer of the copy")


def dice(y, p):  # Has the name of a loss of Keras, but is another function.
    return 1 + ops.mean((y - p) ** 2)


class Dice(keras.losses.Loss):
    def call(self, y, p):
        return dice(y, p)


class Score(keras.metrics.Mean):
    def update_state(self, y, p, sample_weight=None):
        super().update_state(dice(y, p))


class Slow(keras.optimizers.SGD):
    pass


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Without a configuration."""

    def __init__(self, rate=0.25):
        self.rate = rate

    def __call__(self, step):
        return self.rate + 0.0 * ops.cast(step, "float32")


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": dice},
        {"loss": Dice()},
        {"loss": lambda y, p: dice(y, p)},
        {"loss": [dice], "loss_weights": [0.5]},
        {"metrics": [dice, "mae"]},
        {"metrics": [Score(name="score"), keras.metrics.MeanMetricWrapper(dice, name="wrapped")]},
        {"weighted_metrics": [[Score()]]},
        {"optimizer": Slow(0.25)},
        {"optimizer": keras.optimizers.SGD(Schedule())},
        {"optimizer": keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(Schedule()))},
    ],
)
@quiet
def test_unregistered_objects_there_and_back(arguments, rng):
    model = sequential()
    model.compile(**{"optimizer": keras.optimizers.SGD(0.25), "loss": "mse"} | arguments)
    x, y = rng.normal(size=(8, 6)), rng.normal(size=(8, 2))
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    for copy in (renormalized := renormalize(model), to_batch_normalization(renormalized)):
        assert copy.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(expected)
        optimizer = getattr(copy.optimizer, "inner_optimizer", copy.optimizer)
        assert float(optimizer.learning_rate) == 0.25
        assert copy.optimizer is not model.optimizer
        copy.fit(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(expected)


def test_the_arguments_of_compile_are_kept():
    model = sequential()
    model.compile("adam", "mse", run_eagerly=True, jit_compile=False)
    copy = renormalize(model)
    assert copy.run_eagerly and not copy.jit_compile and copy.loss == "mse"
    assert not renormalize(sequential()).compiled


@quiet
def test_metrics_are_not_shared(rng):
    model, x, y = sequential(), rng.normal(size=(8, 6)), rng.normal(size=(8, 2))
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanAbsoluteError()])
    model.evaluate(x, y, verbose=0)
    copy = renormalize(model)
    copy.evaluate(x, y + 9, verbose=0)
    assert not {id(m) for m in model.metrics} & {id(m) for m in copy.metrics}


def test_the_optimizer_starts_anew_and_tells(rng):
    model = sequential()
    model.compile(keras.optimizers.SGD(0.25, momentum=0.5), "mse")
    model.fit(rng.normal(size=(8, 6)), rng.normal(size=(8, 2)), verbose=0)
    with pytest.warns(UserWarning, match="starts anew"):
        copy = renormalize(model)
    assert (copy.optimizer.momentum, int(copy.optimizer.iterations)) == (0.5, 0)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("how", ["var_list", "var_names"])
@quiet
def test_variables_stay_excluded_from_weight_decay(how, scaled, rng):
    model = sequential()
    optimizer = keras.optimizers.AdamW(1e-6, weight_decay=1e5)
    excluded = [model.layers[0].bias, model.layers[1].gamma]
    optimizer.exclude_from_weight_decay(
        **{how: excluded if how == "var_list" else ["bias", "gamma"]}
    )
    wrap = keras.optimizers.LossScaleOptimizer if scaled else lambda each: each
    model.compile(wrap(optimizer), "mse")
    model.set_weights([np.ones_like(weight) for weight in model.get_weights()])
    copy = renormalize(model)
    before = copy.get_weights()
    copy.fit(rng.normal(size=(8, 6)), rng.normal(size=(8, 2)), verbose=0)
    moved = [np.abs(a - b).max() > 1e-3 for a, b in zip(copy.get_weights(), before, strict=True)]
    moved = dict(zip([w.path.split("/", 1)[-1] for w in copy.weights], moved, strict=True))
    assert moved["dense/kernel"] and not moved["dense/bias"]
    assert not moved["batch_normalization/gamma"]
    assert moved["dense_1/bias"] == (how == "var_list")


def test_loss_scaling_that_was_refused():
    keras.config.set_dtype_policy("mixed_float16")
    model = sequential()
    for scale in (False, True):
        model.compile("sgd", "mse", auto_scale_loss=scale)
        scaled = isinstance(renormalize(model).optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == scale


class WithOwnCompile(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalization = BatchNormalization()

    def compile(self, optimizer, extra):
        super().compile(optimizer, "mse")
        self.extra = extra

    def call(self, x, training=False):
        return self.normalization(x, training=training)


class WithBoth(WithOwnCompile):
    def get_compile_config(self):
        return {"optimizer": "sgd", "extra": self.extra}

    def compile_from_config(self, config):
        self.compile(**config)


class Broken(keras.metrics.Mean):
    def __init__(self, function):
        super().__init__()

    def get_config(self):
        return {}


def test_what_can_not_be_compiled_is_told():
    model = WithOwnCompile()
    model(np.zeros((2, 3)))
    model.compile("sgd", extra=3)
    with pytest.warns(UserWarning, match="must be compiled.*`compile` of its own"):
        assert not renormalize(model).compiled
    model = sequential()
    model.compile("sgd", "mse", metrics=[Broken(dice)])
    with pytest.warns(UserWarning, match="must be compiled.*Broken"):
        assert not renormalize(model).compiled


def test_a_compile_of_its_own_that_can_be_repeated():
    model = WithBoth()
    model(np.zeros((2, 3)))
    model.compile("sgd", extra=3)
    assert renormalize(model).extra == 3
