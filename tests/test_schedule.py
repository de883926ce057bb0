"""The ramp: its values, and that they follow the training steps of the model, whatever happens."""

import csv
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, LinearRamp, RenormSchedule, linear_ramp

RAMP = (2, 10, 6)  # warmup_steps, r_max_steps, d_max_steps
X = np.random.default_rng(0).normal(1, 2, (40, 4)).astype("float32")
STEPS_PER_EXECUTION = [1] if keras.backend.backend() == "torch" else [1, 4]


def expected(steps, r_max=3.0, d_max=5.0):
    return [tuple(map(float, linear_ramp(step, *RAMP, r_max, d_max))) for step in steps]


def renorm_layers(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, BatchRenormalization)]


def compiled(*layers, **kwargs):
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("sgd", "mse", **kwargs)
    return model


class Bounds(keras.callbacks.Callback):
    """The bounds of each layer after each batch."""

    def __init__(self):
        super().__init__()
        self.read = []

    def on_train_batch_end(self, batch, logs=None):
        self.read.append([(la.r_max, la.d_max) for la in renorm_layers(self.model)])


def fit(model, schedule, *callbacks, x=X, epochs=1, **kwargs):
    """8 steps an epoch; the bounds of the first trainable layer after each."""
    bounds = Bounds()
    callbacks = [schedule, bounds, *callbacks]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`fit` ends at training step")
        model.fit(x, x, batch_size=5, epochs=epochs, verbose=0, callbacks=callbacks, **kwargs)
    first = [layer.trainable for layer in renorm_layers(model)].index(True)
    return [of_layers[first] for of_layers in bounds.read]


# The function.


def test_default_is_the_ramp_of_the_paper():
    steps = np.array([0, 5_000, 15_000, 22_500, 25_000, 40_000, 200_000])
    r_max, d_max = linear_ramp(steps)
    np.testing.assert_allclose(r_max, [1, 1, 1 + 4 / 7, 2, 1 + 8 / 7, 3, 3])
    np.testing.assert_allclose(d_max, [0, 0, 2.5, 4.375, 5, 5, 5])


def test_ramp_of_a_tensor_is_that_of_a_number():
    for step in range(12):
        for tensor in (
            ops.convert_to_tensor(float(step)),
            keras.Variable(step, dtype="int32", trainable=False),
        ):
            for ramp in (RAMP, (3, 3, 3)):
                values = [float(t) for t in linear_ramp(tensor, *ramp)]
                np.testing.assert_allclose(values, linear_ramp(step, *ramp), rtol=1e-6)


def test_ramp_of_no_length_is_a_jump():
    assert [float(linear_ramp(step, 3, 3, 3)[0]) for step in (0, 2, 3, 4)] == [1, 1, 3, 3]
    assert tuple(map(float, linear_ramp(0, 0, 0, 0))) == (3, 5)


# Every step of every layer.


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"jit_compile": False}])
@pytest.mark.parametrize("block", STEPS_PER_EXECUTION)
def test_follows_the_steps_over_epochs(block, mode):
    model = compiled(BatchRenormalization(), steps_per_execution=block, **mode)
    bounds = fit(model, RenormSchedule(*RAMP), epochs=2, validation_data=(X, X))
    np.testing.assert_allclose(bounds, expected(range(block - 1, 16, block)), rtol=1e-6)
    assert model.layers[0].step == 16


def test_layers_hold_the_bounds_of_the_step():
    model = compiled(BatchRenormalization(), keras.Sequential([BatchRenormalization(r_max=2)]))
    bounds = Bounds()
    model.fit(X, X, batch_size=5, epochs=2, verbose=0, callbacks=[RenormSchedule(*RAMP), bounds])
    for layer, r_max in enumerate((3.0, 2.0)):
        read = [step[layer] for step in bounds.read]
        np.testing.assert_allclose(read, expected(range(16), r_max), rtol=1e-6)


def test_bounds_act_in_the_step_they_belong_to():
    """The squared output of a fixed input is 1 in batchnorm, and rises with the bounds."""
    layer = BatchRenormalization(center=False, scale=False, momentum=0.9999)
    model = compiled(keras.layers.Dense(4, kernel_initializer="identity"), layer)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"]))
    )
    x = 10 * np.tile(X[:5], (10, 1))
    callbacks = [RenormSchedule(*RAMP), record]
    model.fit(x, 0 * x, batch_size=5, shuffle=False, verbose=0, callbacks=callbacks)
    per_step = np.diff(np.array([0, *losses]) * np.arange(11))
    np.testing.assert_allclose(per_step[:3], 1, rtol=1e-2)
    assert (np.diff(per_step[2:]) > 0.05).all()


def test_shared_frozen_and_nested_layers():
    shared, frozen = BatchRenormalization(), BatchRenormalization()
    frozen.trainable = False
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.layers.Dense(4), shared, BatchRenormalization()])
    model = keras.Model(inputs, frozen(shared(inner(shared(inputs)))))  # `shared` 3 times a step.
    model.compile("sgd", "mse")
    bounds = fit(model, RenormSchedule(*RAMP))
    np.testing.assert_allclose(bounds, expected(range(8)), rtol=1e-6)
    assert [layer.step for layer in renorm_layers(model)] == [8, 8, 0]
    frozen.trainable = True
    model.compile("sgd", "mse")
    fit(model, RenormSchedule(*RAMP))
    assert [layer.step for layer in renorm_layers(model)] == [16, 16, 16]


@pytest.mark.parametrize("when", [0, 1, 5])
@pytest.mark.parametrize("first", [True, False])
def test_training_inside_a_callback_goes_on_with_the_ramp(when, first):
    class Replay(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == when:
                self.model.train_on_batch(X[:5], X[:5])

    model = compiled(BatchRenormalization())
    callbacks = [RenormSchedule(*RAMP, start_step=1), Replay()][:: 1 if first else -1]
    model.fit(X, X, batch_size=5, epochs=2, verbose=0, callbacks=callbacks)
    assert 17 <= model.layers[0].step <= 19
    assert model.layers[0].r_max == 3


def test_custom_train_step(backend):
    class Twice(keras.Sequential):
        """Calls itself twice a step, as the discriminator of a GAN."""

        def train_step(self, *args):
            if backend == "jax":
                _, (_, non_trainable, *_) = super().train_step(*args)
                state, data = args
                return super().train_step((state[0], non_trainable, *state[2:]), data)
            super().train_step(*args)
            return super().train_step(*args)

    model = Twice([keras.Input((4,)), BatchRenormalization()])
    model.compile("sgd", "mse")
    np.testing.assert_allclose(fit(model, RenormSchedule(*RAMP)), expected(range(8)), rtol=1e-6)


def test_a_ragged_block_at_the_end_of_an_epoch_is_counted_exactly():
    model = compiled(BatchRenormalization(), steps_per_execution=STEPS_PER_EXECUTION[-1])
    fit(model, RenormSchedule(*RAMP), x=X[:30], epochs=2)  # 6 steps an epoch.
    assert model.layers[0].step == 12


# Over fits and restarts.


def test_goes_on_in_the_next_fit_without_tracing_again(backend):
    class Trace(keras.layers.Layer):
        calls = 0

        def call(self, x):
            type(self).calls += 1
            return x

    model = compiled(Trace(), BatchRenormalization())
    bounds = fit(model, RenormSchedule(*RAMP))
    calls = Trace.calls
    bounds += fit(model, RenormSchedule(*RAMP))
    np.testing.assert_allclose(bounds, expected(range(16)), rtol=1e-6)
    if backend != "torch":
        assert Trace.calls == calls


def test_the_ramp_goes_on_in_a_fit_without_the_callback():
    model = compiled(BatchRenormalization())
    fit(model, RenormSchedule(*RAMP))
    history = model.fit(X[:5], X[:5], batch_size=5, verbose=0)
    assert (model.layers[0].r_max, model.layers[0].d_max) == expected([8])[0]
    assert "r_max" not in history.history
    model.layers[0].set_schedule(None)
    model.layers[0].set_bounds(1.5, 0.5)
    model.fit(X, X, batch_size=5, verbose=0)
    assert model.layers[0].r_max == 1.5


def test_a_model_compiled_again_trains_with_its_new_optimizer():
    model = compiled(keras.layers.Dense(4), BatchRenormalization())
    schedule = RenormSchedule(*RAMP)
    fit(model, schedule)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    kernel = model.layers[0].get_weights()[0]
    np.testing.assert_allclose(fit(model, schedule), expected(range(8, 16)), rtol=1e-6)
    np.testing.assert_array_equal(model.layers[0].get_weights()[0], kernel)


def test_start_step():
    model = compiled(BatchRenormalization())
    bounds = fit(model, RenormSchedule(*RAMP, start_step=5))
    bounds += fit(model, RenormSchedule(*RAMP, start_step=0))
    np.testing.assert_allclose(bounds, expected([*range(5, 13), *range(8)]), rtol=1e-6)


@pytest.mark.parametrize("form", ["model.keras", "model.weights.h5"])
def test_restart_from_a_file_in_the_middle_of_the_ramp(tmp_path, form):
    model = compiled(BatchRenormalization())
    fit(model, RenormSchedule(*RAMP, r_max=2.0))
    if form == "model.keras":
        model.save(tmp_path / form)
        model = keras.saving.load_model(tmp_path / form)
    else:
        model.save_weights(tmp_path / form)
        model = compiled(BatchRenormalization(r_max=2.0, schedule=LinearRamp(*RAMP)))
        model.load_weights(tmp_path / form)
    assert (model.layers[0].r_max, model.layers[0].d_max) == expected([7], r_max=2.0)[0]
    bounds = fit(model, RenormSchedule(*RAMP))
    np.testing.assert_allclose(bounds, expected(range(8, 16), r_max=2.0), rtol=1e-6)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_backup_and_restore(tmp_path):
    def run(*callbacks):
        model = compiled(BatchRenormalization())
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        return fit(model, RenormSchedule(*RAMP), backup, *callbacks, epochs=2)

    with pytest.raises(KeyboardInterrupt):
        run(Interrupt())
    np.testing.assert_allclose(run(), expected(range(8, 16)), rtol=1e-6)


def test_a_fit_that_was_interrupted_leaves_nothing_behind_in_the_next():
    model = compiled(BatchRenormalization())
    with pytest.raises(KeyboardInterrupt):
        fit(model, RenormSchedule(*RAMP), Interrupt(), epochs=2)
    bounds = fit(model, RenormSchedule(*RAMP))
    np.testing.assert_allclose(bounds, expected(range(8, 16)), rtol=1e-6)
    assert "r_max" not in model.fit(X, X, verbose=0).history


def test_bounds_can_be_set_after_a_fit_that_was_interrupted():
    model = compiled(BatchRenormalization())
    with pytest.raises(KeyboardInterrupt):
        fit(model, RenormSchedule(*RAMP), Interrupt(), epochs=2)
    model.compile("sgd", "mse")
    model.layers[0].set_bounds(1.0, 0.0)
    model.fit(X, X, batch_size=5, verbose=0)
    assert (model.layers[0].r_max, model.layers[0].d_max, model.layers[0].step) == (1, 0, 16)
    model.layers[0].set_schedule(None)
    model.layers[0].set_bounds(None, 1)
    assert (model.layers[0].r_max, model.layers[0].d_max) == (np.inf, 1)


def test_a_train_function_of_others_is_used():
    class Count(keras.callbacks.Callback):
        calls = 0

        def on_train_begin(self, logs=None):
            inner = self.model.train_function

            def counted(*args):
                self.calls += 1
                return inner(*args)

            self.model.train_function = counted

    count = Count()
    model = compiled(BatchRenormalization())
    model.fit(X, X, batch_size=5, verbose=0, callbacks=[count, RenormSchedule(0, 8, 8)])
    assert (count.calls, model.layers[0].step) == (8, 8)


# The values.


def test_final_bounds_of_the_schedule_win():
    model = compiled(BatchRenormalization(), BatchRenormalization(r_max=None))
    fit(model, RenormSchedule(0, 4, 4, r_max=2.0, d_max=1.0))
    assert [(layer.r_max, layer.d_max) for layer in model.layers] == [(2, 1), (2, 1)]


def test_set_bounds_under_a_schedule_sets_where_it_ends():
    class Change(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 4:
                self.model.layers[0].set_bounds(2.0, 1.0)

    bounds = fit(compiled(BatchRenormalization()), RenormSchedule(*RAMP), Change())
    steps = expected(range(4)) + expected(range(4, 8), r_max=2.0, d_max=1.0)
    np.testing.assert_allclose(bounds, steps, rtol=1e-6)


def test_unbounded_ends_are_refused_under_a_schedule():
    class Change(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.layers[0].set_bounds(None, 1.0)

    with pytest.raises(ValueError, match="r_max=None"):
        fit(compiled(BatchRenormalization()), RenormSchedule(*RAMP), Change())


@pytest.mark.parametrize("block", STEPS_PER_EXECUTION)
def test_any_function_in_place_of_the_ramp(block):
    model = compiled(BatchRenormalization(), steps_per_execution=block)
    schedule = RenormSchedule(schedule=lambda step: (1 + step / 4, step / 2))
    bounds = fit(model, schedule) + fit(model, schedule)
    first = [step - step % block for step in range(block - 1, 16, block)]
    np.testing.assert_allclose(bounds, [(1 + s / 4, s / 2) for s in first], rtol=1e-6)


def test_logs(tmp_path):
    model = compiled(BatchRenormalization())
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = model.fit(
        *(X, X, 5), epochs=2, verbose=0, callbacks=[RenormSchedule(*RAMP), logger]
    ).history
    logged = list(zip(history["r_max"], history["d_max"], strict=True))
    np.testing.assert_allclose(logged, expected([7, 15]), rtol=1e-6)
    with open(tmp_path / "log.csv") as file:
        assert [float(row["r_max"]) for row in csv.DictReader(file)] == history["r_max"]


# Refusals.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"warmup_steps": float("nan")}, "warmup_steps=nan"),
        ({"r_max_steps": 4_999}, "r_max_steps=4999, warmup_steps=5000"),
        ({"d_max_steps": 4_999}, "d_max_steps=4999, warmup_steps=5000"),
        ({"d_max_steps": float("nan")}, "d_max_steps=nan"),
        ({"r_max": 0.5}, "r_max=0.5"),
        ({"r_max": float("inf")}, "r_max=inf"),
        ({"d_max": -1}, "d_max=-1"),
        ({"d_max": float("nan")}, "d_max=nan"),
        ({"start_step": -1}, "start_step=-1"),
        ({"start_step": 1.5}, "start_step=1.5"),
        ({"schedule": 3}, "schedule=3"),
        ({"schedule": linear_ramp, "warmup_steps": 1}, "warmup_steps=1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RenormSchedule(**arguments)


@pytest.mark.parametrize(
    "layers, message",
    [
        ([keras.layers.BatchNormalization], "BatchNormalization"),
        ([BatchRenormalization, lambda: BatchRenormalization(d_max=None)], "d_max=inf"),
    ],
)
def test_bad_models_are_refused_before_anything_changes(layers, message):
    model = compiled(*[layer() for layer in layers])
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        fit(model, RenormSchedule(*RAMP))
    for value, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weight)


def test_a_layer_that_is_never_called_does_not_stop_the_others():
    class Model(keras.Sequential):
        def __init__(self, *args):
            super().__init__(*args)
            self.unused = BatchRenormalization()
            self.unused.build((None, 4))

    model = Model([keras.Input((4,)), BatchRenormalization()])
    model.compile("sgd", "mse")
    bounds = fit(model, RenormSchedule(*RAMP)) + fit(model, RenormSchedule(*RAMP))
    np.testing.assert_allclose(bounds, expected(range(16)), rtol=1e-6)


def test_a_fit_too_short_for_the_ramp_is_warned_of_once():
    model, schedule = compiled(BatchRenormalization()), RenormSchedule()
    with pytest.warns(UserWarning, match=r"step 16, .*r_max=1, d_max=0 .*for_run\(16\)") as caught:
        for _ in range(2):
            model.fit(X, X, batch_size=5, epochs=2, verbose=0, callbacks=[schedule])
    assert len([w for w in caught if "for_run" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`fit` ends at training step")
        again = RenormSchedule.for_run(16, start_step=0)
        model.fit(X, X, batch_size=5, epochs=2, verbose=0, callbacks=[again])
    assert model.layers[0].r_max == 3


@pytest.mark.parametrize("total", [1, 13, 130_000])
def test_ramp_for_a_run_has_the_shares_of_the_paper(total):
    ramp = LinearRamp.for_run(total)
    assert ramp == RenormSchedule.for_run(total).ramp
    counts = np.array(list(ramp.get_config().values()))
    np.testing.assert_allclose(counts / total, np.array([5, 40, 25]) / 130, atol=0.5 / total)


def test_models_that_share_layers_do_not_pull_each_other_back():
    """A GAN in the classical form of Keras: three steps of D, then one of G with D frozen."""
    shared = BatchRenormalization()
    d = compiled(keras.layers.Dense(4), shared)
    shared.trainable = False
    g = compiled(BatchRenormalization(), d)
    shared.trainable = True
    for model in (d, g):
        schedule = RenormSchedule(*RAMP)
        schedule.set_model(model)
        schedule.on_train_begin()
    for _ in range(4):
        for _ in range(3):
            schedule.on_train_batch_begin(0)
            d.train_on_batch(X[:5], X[:5])
        g.train_on_batch(X[:5], X[:5])
    assert g.layers[0].step == 4
    assert shared.step in (12, 16)  # As far as the backend takes it for frozen in the step of G.


def test_train_on_batch():
    model = compiled(BatchRenormalization(schedule=LinearRamp(*RAMP)))
    bounds = []
    for _ in range(8):
        model.train_on_batch(X[:5], X[:5])
        bounds.append((model.layers[0].r_max, model.layers[0].d_max))
    np.testing.assert_allclose(bounds, expected(range(8)), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_eager_loop(k):
    layer = BatchRenormalization(schedule=LinearRamp(*RAMP))
    layer.set_step(0, calls_per_step=k)
    bounds = []
    for _ in range(8):
        for _ in range(k):
            layer(X, training=True)
            bounds.append((layer.r_max, layer.d_max))
        layer(X)
    np.testing.assert_allclose(bounds[k - 1 :: k], expected(range(8)), rtol=1e-6)
    assert layer.step == 8


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="For JAX.")
def test_stateless_loop():
    import jax

    model = compiled(BatchRenormalization(schedule=LinearRamp(0, 4, 4)))
    trainable, state = ([v.value for v in values] for values in
                        (model.trainable_variables, model.non_trainable_variables))  # fmt: skip
    step = jax.jit(lambda state, x: model.stateless_call(trainable, state, x, training=True))
    means = []
    for _ in range(6):
        y, state = step(state, 50 + X)
        means.append(float(abs(y).mean()))
    assert (np.diff(means[:5]) > 0.5).all()  # d is clipped at 0, 1.25, ... 5.


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.backbone = keras.Sequential([keras.Input((4,)), BatchRenormalization()])
        self.head = [keras.layers.Dense(4), BatchRenormalization(r_max=2)]

    def call(self, x, training=False):
        x = self.head[0](self.backbone(x, training=training))
        return self.head[1](x, training=training)


@pytest.mark.parametrize("block", STEPS_PER_EXECUTION)
@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_models_that_fit_builds(kind, block):
    unbuilt = keras.Sequential([keras.layers.Dense(4), BatchRenormalization()])
    model = unbuilt if kind == "sequential" else Subclassed()
    model.compile("sgd", "mse", steps_per_execution=block)
    bounds = fit(model, RenormSchedule(*RAMP, start_step=1))
    np.testing.assert_allclose(bounds, expected(range(block, 9, block)), rtol=1e-6)
    layers = renorm_layers(model)
    assert [layer.step for layer in layers] == [9] * len(layers)
    for layer in layers:
        r_max = layer._bounds.final[0]
        np.testing.assert_allclose((layer.r_max, layer.d_max), expected([8], r_max)[0], rtol=1e-6)


def test_backup_and_restore_in_any_order_keeps_what_the_schedule_says(tmp_path):
    for number, order in enumerate((1, -1)):

        def run(r_max, *more, order=order, number=number):
            backup = keras.callbacks.BackupAndRestore(
                tmp_path / str(number), delete_checkpoint=False
            )
            schedule = RenormSchedule(*RAMP, r_max=r_max)
            model = compiled(BatchRenormalization())
            callbacks = [*[schedule, backup][::order], *more]
            model.fit(X, X, batch_size=5, epochs=2, verbose=0, callbacks=callbacks)
            return model.layers[0]

        with pytest.raises(KeyboardInterrupt):
            run(2.0, Interrupt())
        layer = run(4.0)
        assert (layer.step, layer.r_max) == (16, 4.0)


def test_weights_rolled_back_roll_the_ramp_back(tmp_path):
    class RollBack(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.save_weights(tmp_path / "w.weights.h5")

        def on_epoch_end(self, epoch, logs=None):
            self.model.load_weights(tmp_path / "w.weights.h5")

    bounds = fit(compiled(BatchRenormalization()), RenormSchedule(*RAMP), RollBack(), epochs=2)
    np.testing.assert_allclose(bounds, 2 * expected(range(8)), rtol=1e-6)


def test_a_function_leaves_the_final_bounds_of_the_layers_alone():
    model = compiled(BatchRenormalization(r_max=2))
    fit(model, RenormSchedule(schedule=lambda step: (1.5, 1)))
    assert model.layers[0].r_max == 1.5
    fit(model, RenormSchedule(0, 2, 2))
    assert model.layers[0].r_max == 2


def test_metrics_are_those_without_a_schedule():
    histories = []
    for callbacks in ([], [RenormSchedule(*RAMP)]):
        keras.utils.set_random_seed(0)
        model = compiled(keras.layers.Dense(1, "sigmoid"), BatchRenormalization(r_max=1, d_max=0))
        model.compile("sgd", "mse", metrics=["mae", keras.metrics.AUC(name="auc")])
        y = (X[:, :1] > 1).astype("float32")
        histories.append(model.fit(X, y, shuffle=False, verbose=0, callbacks=callbacks).history)
    assert histories[1] == histories[0] | {"r_max": [1.0], "d_max": [0.0]}


def test_two_schedules_in_one_fit_are_refused():
    with pytest.raises(ValueError, match="more than one"):
        fit(compiled(BatchRenormalization()), RenormSchedule(*RAMP), RenormSchedule(*RAMP))
