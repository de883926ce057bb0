"""The ramp: its values, and that they follow the training steps of the model, whatever happens."""

import csv

import keras
import numpy as np
import pytest
from keras import ops

from keras_brn import BatchRenormalization, RenormSchedule, linear_ramp

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
    """The bounds in the logs of each batch, and those in the layers, read through the model."""

    def __init__(self, read_layers=False):
        super().__init__()
        self.logged, self.read, self.read_layers = [], [], read_layers

    def on_train_batch_end(self, batch, logs=None):
        self.logged.append((float(logs["r_max"]), float(logs["d_max"])))
        if self.read_layers:
            self.read.append([(la.r_max, la.d_max) for la in renorm_layers(self.model)])


def fit(model, schedule, *callbacks, x=X, epochs=1, **kwargs):
    """8 steps an epoch; the bounds after each."""
    bounds = Bounds()
    callbacks = [schedule, bounds, *callbacks]
    model.fit(x, x, batch_size=5, epochs=epochs, verbose=0, callbacks=callbacks, **kwargs)
    return bounds.logged


# The function.


def test_default_is_the_ramp_of_the_paper():
    steps = np.array([0, 5_000, 15_000, 22_500, 25_000, 40_000, 200_000])
    r_max, d_max = linear_ramp(steps)
    np.testing.assert_allclose(r_max, [1, 1, 1 + 4 / 7, 2, 1 + 8 / 7, 3, 3])
    np.testing.assert_allclose(d_max, [0, 0, 2.5, 4.375, 5, 5, 5])


def test_ramp_of_a_tensor_is_that_of_a_number():
    for step in range(12):
        for tensor in (ops.convert_to_tensor(float(step)), ops.convert_to_tensor(step)):
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
    assert int(model.layers[0].step) == 16


def test_layers_hold_the_bounds_of_the_step():
    model = compiled(BatchRenormalization(), keras.Sequential([BatchRenormalization(r_max=2)]))
    bounds = Bounds(read_layers=True)
    model.fit(X, X, batch_size=5, verbose=0, callbacks=[RenormSchedule(*RAMP), bounds])
    for layer, r_max in enumerate((3.0, 2.0)):
        read = [step[layer] for step in bounds.read]
        np.testing.assert_allclose(read, expected(range(8), r_max), rtol=1e-6)


def test_bounds_act_in_the_step_they_belong_to():
    """The squared output of a fixed input is 1 in batchnorm, and rises with the bounds."""
    layer = BatchRenormalization(center=False, scale=False, momentum=0.9999)
    model = compiled(keras.layers.Dense(4, kernel_initializer="identity"), layer)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"]))
    )
    x = 10 * np.tile(X[:5], (8, 1))
    model.fit(
        x, 0 * x, batch_size=5, shuffle=False, verbose=0, callbacks=[RenormSchedule(*RAMP), record]
    )
    per_step = np.diff(np.array([0, *losses]) * np.arange(9))
    np.testing.assert_allclose(per_step[:3], 1, rtol=1e-2)
    assert (np.diff(per_step[2:]) > 0.05).all()


@pytest.mark.parametrize("block", STEPS_PER_EXECUTION)
def test_shared_frozen_and_nested_layers_do_not_change_the_count(block):
    shared, frozen = BatchRenormalization(), BatchRenormalization()
    frozen.trainable = False
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.layers.Dense(4), shared, BatchRenormalization()])
    model = keras.Model(inputs, frozen(shared(inner(shared(inputs)))))
    model.compile("sgd", "mse", steps_per_execution=block)
    bounds = fit(model, RenormSchedule(*RAMP))
    np.testing.assert_allclose(bounds, expected(range(block - 1, 8, block)), rtol=1e-6)
    assert [int(layer.step) for layer in renorm_layers(model)] == [8, 8, 8]


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
    assert int(model.layers[0].step) == 12


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


def test_without_a_schedule_the_bounds_hold():
    model = compiled(BatchRenormalization())
    fit(model, RenormSchedule(*RAMP))
    history = model.fit(X, X, batch_size=5, verbose=0)
    assert (model.layers[0].r_max, model.layers[0].d_max) == expected([7])[0]
    assert "r_max" not in history.history
    model.layers[0].set_bounds(1.5, 0.5)
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
        model = compiled(BatchRenormalization())
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


def test_a_fit_that_was_interrupted_is_over_for_the_next_one_without_a_schedule():
    model = compiled(BatchRenormalization())
    with pytest.raises(KeyboardInterrupt):
        fit(model, RenormSchedule(*RAMP), Interrupt(), epochs=2)
    for _ in range(2):
        model.fit(X, X, batch_size=5, verbose=0)
        assert (model.layers[0].r_max, model.layers[0].d_max) == expected([7])[0]
        assert int(model.layers[0].step) == 8
        model.compile("sgd", "mse")
    model.layers[0].set_bounds(None, 1)
    assert model.layers[0].d_max == 1


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


def test_layers_that_disagree_on_the_step_are_refused():
    model = compiled(BatchRenormalization(), BatchRenormalization())
    model.layers[1].step.assign(40_000)
    with pytest.raises(ValueError, match="start_step=None.*40000"):
        fit(model, RenormSchedule(*RAMP))
    fit(model, RenormSchedule(*RAMP, start_step=0))


def test_a_train_function_that_skips_train_step_is_noticed(backend):
    class Own(keras.Sequential):
        def make_train_function(self, force=False):
            def function(*args):
                return ({}, args[0]) if backend == "jax" else {}

            self.train_function = function

    model = Own([keras.Input((4,)), BatchRenormalization()])
    model.compile("sgd", "mse")
    with pytest.raises(RuntimeError, match="train_step"):
        model.fit(X, X, steps_per_epoch=2, verbose=0, callbacks=[RenormSchedule()])


def test_in_a_loop_of_your_own():
    model = compiled(BatchRenormalization())
    schedule = RenormSchedule(*RAMP)
    schedule.set_model(model)
    schedule.on_train_begin()
    bounds = []
    for step in range(8):
        schedule.on_train_batch_begin(step)
        assert np.ndim(model.train_on_batch(X[:5], X[:5])) == 0
        bounds.append((model.layers[0].r_max, model.layers[0].d_max))
    schedule.on_train_end()
    np.testing.assert_allclose(bounds, expected(range(8)), rtol=1e-6)
    model.train_on_batch(X[:5], X[:5])
    assert int(model.layers[0].step) == 8


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
    assert [int(layer.step) for layer in layers] == [9] * len(layers)
    for layer in layers:
        r_max = layer._get_state("final_bounds")[0]
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
        assert (int(layer.step), layer.r_max) == (16, 4.0)


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
    assert histories[1] == {**histories[0], "r_max": [1.0], "d_max": [0.0]}


def test_two_schedules_in_one_fit_are_refused():
    with pytest.raises(ValueError, match="more than one"):
        fit(compiled(BatchRenormalization()), RenormSchedule(*RAMP), RenormSchedule(*RAMP))
