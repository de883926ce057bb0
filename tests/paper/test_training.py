"""Training runs and their results."""

import dataclasses
import functools
import json
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from worker_program import shades, tiny

from keras_brn import BatchRenormalization
from keras_brn.monitor import QUANTITIES
from keras_brn.paper.experiment import Experiment, figure_1, figure_2, figure_3, scaled, spread
from keras_brn.paper.networks.small import small_inception
from keras_brn.paper.records import describe_images
from keras_brn.paper.results import as_runs
from keras_brn.paper.training import evaluation, network, train, trainer
from keras_brn.paper.training.recorder import Recorder
from keras_brn.paper.training.run import Run
from keras_brn.paper.training.trainer import continue_dropout

pytestmark = pytest.mark.each_backend

SMALL = {"steps": 12, "evaluations": 3, "batch_size": 32, "width": 1, "seed": 3}


@pytest.fixture(scope="module")
def images():
    return shades(validation=100)


def small(run, **changes):
    return scaled(run, **(SMALL | changes))


@pytest.mark.once
def test_network_takes_its_normalization_as_a_value():
    for normalization in (BatchRenormalization, keras.layers.BatchNormalization):
        model = small_inception(normalization, (32, 32, 3), classes=7, width=2)
        layers = [layer for layer in model.layers if type(layer) is normalization]
        assert len(layers) == 24 and model.output_shape == (None, 7)
        assert layers[0].output.shape == (None, 32, 32, 2)
        assert layers[-1].output.shape == (None, 4, 4, 8)
        deepest = {}  # How many normalizations lie on the way to a layer.
        for layer in model.layers:
            sources = [deepest[id(x)] for x in keras.tree.flatten(layer.input) if id(x) in deepest]
            deepest[id(layer.output)] = max(sources, default=0) + (layer in layers)
        assert deepest[id(model.output)] == 15


@pytest.mark.once
def test_the_runs_differ_in_what_the_paper_compares():
    for runs, expected in (
        (figure_1(), {"name", "normalization"}),
        (figure_2(), {"name", "normalization", "group"}),
        (figure_3(), {"name", "normalization", "group", "images_per_label"}),
        ([figure_3(8)[1], *spread(8)], {"name", "draw"}),
    ):
        for values in (runs, [scaled(run, 100) for run in runs]):
            values = [dataclasses.asdict(run) for run in values]
            assert expected == {k for k in values[0] if len({run[k] for run in values}) > 1}


@pytest.mark.once
def test_the_protocol_is_the_papers(images):
    run = small(figure_2()[2])
    model = network.compiled_model(run, images)
    optimizer = model.optimizer.get_config()
    assert isinstance(model.optimizer, keras.optimizers.RMSprop) and not optimizer["centered"]
    assert [optimizer[key] for key in ("rho", "momentum", "epsilon")] == [0.9, 0.9, 0.003]
    rates = [model.optimizer._learning_rate(step) for step in (0, 0.9, 1)]  # 1/48 of 12 steps.
    rates = [float(rate) for rate in rates]
    assert rates == pytest.approx([0.045, 0.045 * 0.94**3, 0.045 * 0.94**4])
    assert (model.decay, run.label_smoothing, run.weight_decay) == (0.9999, 0.1, 4e-5)
    logits, label = np.arange(10.0)[None], np.eye(10)[None, 7]
    expected = -np.sum((0.9 * label + 0.01) * (logits - np.log(np.exp(logits).sum())))
    assert float(model.loss(label, logits)) == pytest.approx(expected, rel=1e-5)
    follows = {}  # A layer by the output that it takes.
    for layer in model.network.layers:
        for x in keras.tree.flatten(layer.input):
            follows.setdefault(id(x), []).append(layer)
    convolutions = [x for x in model.network.layers if isinstance(x, keras.layers.Conv2D)]
    for convolution in convolutions:
        (normalization,) = follows[id(convolution.output)]
        (activation,) = follows[id(normalization.output)]
        assert isinstance(normalization, BatchRenormalization)
        assert isinstance(activation, keras.layers.ReLU)
        assert normalization.gamma is None and normalization.microbatch_size == 4
        assert convolution.kernel_regularizer.l2 == pytest.approx(2e-5)
    assert len(convolutions) == 24


@pytest.mark.once
def test_scaling_keeps_the_places_in_the_run():
    ours = scaled(Experiment(), 1_300)
    assert (ours.warmup_steps, ours.r_max_steps, ours.d_max_steps) == (50, 400, 250)
    assert ours.alpha == 0.1  # A hundredth of the steps.
    assert scaled(Experiment(), 1_300, alpha=0.5).alpha == 0.5


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize("run", [figure_2()[2], figure_3()[2]], ids=lambda run: run.name)
def test_a_run_learns_and_is_read_the_next_time(images, tmp_path, run):
    run = small(run, steps=150, width=8)
    result = train(run, images, tmp_path, verbose=0)
    assert result["step"] == [50, 100, 150]
    assert result["train_accuracy"][-1] > 0.3  # Of ten labels.
    assert result["config"] == {"data": "shades", **dataclasses.asdict(run)}
    assert result["provenance"]["backend"] == keras.backend.backend()
    assert result["provenance"]["seconds"] > 0
    stored = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert stored == result == train(run, images, tmp_path, verbose=0)
    assert len(list(tmp_path.iterdir())) == 1
    assert ("batch_accuracy" in result) == (run.images_per_label is not None)
    if run.normalization == "batch_renorm":
        correction = result["correction"]
        assert len(correction["layers"]) == 24
        assert all(np.shape(correction[name]) == (3, 24) for name in QUANTITIES)
        (of_figure,) = as_runs([result])
        assert of_figure["correction"]["lag"][1] == pytest.approx(
            np.mean(correction["lag"][1]), abs=1e-4
        )


def killed_after(epochs, monkeypatch):
    """Within `monkeypatch`, runs are interrupted after so many epochs."""
    original = Recorder.on_epoch_end

    def killed(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch + 1 == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(Recorder, "on_epoch_end", killed)


@pytest.mark.slow
@pytest.mark.parametrize("kind, dropout", [(figure_3()[1], 0.0), (figure_2()[2], 0.5)])
def test_a_run_that_was_killed_goes_on_to_the_same_curve(
    images, tmp_path, monkeypatch, kind, dropout
):
    monkeypatch.setattr(network, "small_inception", functools.partial(tiny, dropout=dropout))
    run = small(kind)
    whole = train(run, images, tmp_path / "whole", verbose=0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(2, patch)
        train(run, images, tmp_path / "parts", verbose=0)
    resumed = train(run, images, tmp_path / "parts", verbose=0)
    curves = ("step", "accuracy", "train_accuracy", "train_image_accuracy", "batch_accuracy")
    for curve in curves:
        assert (curve in resumed) == (curve in whole)
        if curve in whole:
            np.testing.assert_allclose(resumed[curve], whole[curve], atol=1e-6)
    if "correction" in whole:
        for name in QUANTITIES:
            of_resumed, of_whole = (result["correction"][name] for result in (resumed, whole))
            np.testing.assert_allclose(of_resumed, of_whole, rtol=1e-3, atol=1e-4)


def interrupted(run, images, folder, monkeypatch):
    """Leaves what a run leaves that is killed after its first evaluation; its result."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(1, patch)
        train(run, images, folder, verbose=0)
    (path,) = folder.glob("*.json")
    return path


@pytest.mark.once
def test_what_changes_while_a_run_is_cut_off_is_noted(images, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "small_inception", tiny)
    run, made = small(figure_1()[0]), trainer.provenance()
    interrupted(run, images, tmp_path, monkeypatch)
    monkeypatch.setattr(trainer, "provenance", lambda: {**made, "processor": "another"})
    resumed = train(run, images, tmp_path, verbose=0)["provenance"]
    assert resumed["resumed"] == [{"step": 4, "processor": "another"}]
    assert resumed["processor"] == made["processor"]


@pytest.mark.once
@pytest.mark.parametrize(
    "statuses, error, message",
    [
        ([0, -2], RuntimeError, "Another process trains this run"),
        ([0, 7], ValueError, r"backups of \[0, 7\] bytes"),
        ([-1, 0], ValueError, r"backups of \[-1, 0\] bytes"),
    ],
)
@pytest.mark.parametrize("worker", [0, 1])
def test_all_workers_refuse_what_one_of_them_does(
    tmp_path, monkeypatch, worker, statuses, error, message
):
    def seen_by_workers(strategy, status):
        assert status == statuses[worker]
        return statuses

    monkeypatch.setattr(trainer, "seen_by_workers", seen_by_workers)
    if statuses[worker] > 0:
        (tmp_path / "run.keras").write_bytes(bytes(statuses[worker]))
    locked, complete = statuses[worker] != -2, statuses[worker] == -1
    with pytest.raises(error, match=message):
        trainer._check_folder(tmp_path / "run.json", locked, complete, strategy=None)


@pytest.mark.slow
def test_a_checkpoint_of_another_configuration_or_of_other_images_is_refused(
    images, tmp_path, monkeypatch
):
    """Also after the result beside it has been removed, as the error advises."""
    monkeypatch.setattr(network, "small_inception", tiny)
    run, other = (small(figure_1()[1], alpha=alpha) for alpha in (0.1, 0.5))
    others = dataclasses.replace(images, train_labels=np.roll(images.train_labels, 1))
    path = interrupted(run, images, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"seed3.json` is of another.*'alpha': \(0.1, 0.5\)"):
        train(other, images, tmp_path, verbose=0)
    path.unlink()
    with pytest.raises(ValueError, match=r"seed3.keras` is of another.*'alpha': \(0.1, 0.5\)"):
        train(other, images, tmp_path, verbose=0)
    with pytest.raises(ValueError, match=f"seed3.keras` is of other images.*{others.digest}"):
        train(run, others, tmp_path, verbose=0)
    assert not path.exists()
    resumed = train(run, images, tmp_path, verbose=0)
    assert resumed["step"] == [4, 8, 12] and len(resumed["accuracy"]) == 3


@pytest.mark.once
def test_a_checkpoint_that_does_not_say_its_configuration_is_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "small_inception", tiny)
    run = small(figure_1()[1])
    network.compiled_model(run, images).save(tmp_path / "shades-batch_renorm-12steps-seed3.keras")
    with pytest.raises(ValueError, match="does not say what it was trained from"):
        train(run, images, tmp_path, verbose=0)


@pytest.mark.once
@pytest.mark.parametrize("ending", ["json", "keras"])
def test_a_damaged_file_is_named(images, tmp_path, ending):
    path = tmp_path / f"shades-batch_renorm-12steps-seed3.{ending}"
    path.write_bytes(b'{"half')
    with pytest.raises(ValueError, match=f"seed3.{ending}` is damaged: remove it"):
        train(small(figure_1()[1]), images, tmp_path, verbose=0)


@pytest.mark.once
def test_a_run_that_another_process_trains_is_refused_until_that_ends(
    images, tmp_path, monkeypatch
):
    monkeypatch.setattr(network, "small_inception", tiny)
    run = small(figure_1()[1])
    path = tmp_path / "shades-batch_renorm-12steps-seed3.json"
    program = (
        "import sys, time\n"
        "from keras_brn.paper.records import run_lock\n"
        "with run_lock(sys.argv[1]) as locked:\n"
        "    print(locked, flush=True)\n"
        "    time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"True\n"
        with pytest.raises(RuntimeError, match="Another process trains this run and will write"):
            train(run, images, tmp_path, verbose=0)
        assert [file.name for file in tmp_path.iterdir()] == [path.with_suffix(".lock").name]
    finally:
        other.kill()
        other.communicate()
    assert train(run, images, tmp_path, verbose=0)["step"] == [4, 8, 12]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_accuracy_of_training_images_is_that_of_each_image_classified_alone(images, monkeypatch):
    """With the averaged parameters, not with the trained ones."""
    monkeypatch.setattr(network, "small_inception", tiny)
    model = network.compiled_model(small(figure_2()[2]), images)
    rng = np.random.default_rng(0)
    for weight, average in zip(model.averaged_weights, model.averages, strict=True):
        value = ops.convert_to_numpy(average) + rng.normal(0, 0.5, average.shape)
        average.assign(abs(value) if weight.name == "moving_stddev" else value)
    inputs = images.train_images / 127.5 - 1
    with model.averaged():
        alone = np.array([model.predict(x[None], verbose=0).argmax() for x in inputs])
    assert len(set(alone)) > 1 and (alone != model.predict(inputs, verbose=0).argmax(1)).any()
    labels = np.where(np.arange(120) % 3 == 0, (alone + 1) % 10, alone)
    data = dataclasses.replace(images, train_labels=labels)
    run = Run(small(figure_2()[2]), data, path=None, evaluation_batch_size=7)
    chosen = evaluation.fixed_training_images(data, most=30)
    assert len(set(chosen)) == 30 and max(chosen) > 100
    accuracy = evaluation.AveragesAccuracy(run, "train", chosen)(model)
    assert accuracy == pytest.approx(np.mean(chosen % 3 != 0), abs=1e-6)


@pytest.mark.once
@pytest.mark.once
@pytest.mark.parametrize(
    "side, batch_size, expected", [(299, 32, 32), (299, 4, 5), (32, 128, 500), (32, 2048, 2048)]
)
def test_evaluation_takes_about_the_memory_of_training(images, side, batch_size, expected):
    large = SimpleNamespace(image_shape=(side, side, 3))
    run = Run(small(figure_1()[1], batch_size=batch_size), large, path=None)
    assert evaluation.images_at_once(run) == expected
    run = dataclasses.replace(run, evaluation_batch_size=3)
    assert evaluation.images_at_once(run) == 3


def test_workers_have_their_own_masks():
    layer = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((8,)), layer])
    masks = []
    for worker, step in ((0, 3), (1, 3), (0, 4)):
        layer.seed_generator.state.assign(np.array([7, 0], "uint32"))
        continue_dropout(model, worker, step)
        masks.append(ops.convert_to_numpy(model(np.ones((4, 8)), training=True)).tolist())
    assert masks[0] not in masks[1:] and masks[1] != masks[2]


@pytest.mark.slow
def test_other_backups_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "small_inception", tiny)
    run = small(figure_1()[0])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_after(1, patch)
        train(run, images, tmp_path, verbose=0, backups=4)
    with pytest.raises(ValueError, match="backups=1, a backup after 4 steps; the last after 1"):
        train(run, images, tmp_path, verbose=0)
    assert train(run, images, tmp_path, verbose=0, backups=4)["step"] == [4, 8, 12]


@pytest.mark.once
@pytest.mark.slow
def test_a_kill_between_curve_and_checkpoint_loses_nothing(images, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "small_inception", tiny)
    run = small(figure_1()[1])

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.Model, "save", killed)
        train(run, images, tmp_path, verbose=0)
    assert train(run, images, tmp_path, verbose=0)["step"] == [4, 8, 12]


@pytest.mark.slow
def test_evaluation_with_the_statistics_of_test_minibatches(images, monkeypatch):
    monkeypatch.setattr(network, "small_inception", tiny)
    run = small(figure_3(4)[1], width=2)
    keras.utils.set_random_seed(0)
    minibatches = evaluation.TestMinibatchAccuracy(Run(run, images, path=None))
    whole = network.build_network(run, images, group=None)
    weights = [ops.convert_to_numpy(weight) for weight in whole.weights]
    correct = []
    for x, y in minibatches.batches.as_numpy_iterator():
        for part in np.split(np.arange(len(x)), len(x) // 48):  # Of 12 labels, 4 images each.
            labels = y[part].argmax(1).reshape(4, 12)
            assert (labels == labels[0]).all()
            logits = ops.convert_to_numpy(whole(x[part], training=True))
            correct.append(logits.argmax(1).reshape(4, 12) == labels)
    assert len(correct) == 2 and 0 < np.mean(correct) < 1
    assert minibatches.accuracy(weights) == pytest.approx(np.mean(correct), abs=0.02)
    moved = [
        w + 3.0 if v.name.startswith("moving") else w
        for v, w in zip(whole.weights, weights, strict=True)
    ]
    assert minibatches.accuracy(moved) == minibatches.accuracy(weights)


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["group_norm", "layer_norm"])
def test_other_normalizations(images, tmp_path, monkeypatch, normalization):
    monkeypatch.setattr(network, "small_inception", tiny)
    run = small(Experiment(normalization, normalization), evaluations=1)
    assert train(run, images, tmp_path, verbose=0)["step"] == [12]


@pytest.mark.once
def test_what_cannot_be_run_is_refused(images, tmp_path):
    run = small(figure_1()[0])
    config = {"data": "shades", **dataclasses.asdict(run)}
    stored = tmp_path / "shades-batchnorm-12steps-seed3.json"
    stored.write_text(json.dumps({"config": config, "step": [4, 8, 12]}))
    assert train(run, images, tmp_path)["step"] == [4, 8, 12]
    labels = np.roll(images.train_labels, 1)
    others = dataclasses.replace(images, train_labels=labels)
    described = [describe_images(data) for data in (images, others)]
    with_images = {"config": config, "step": [4, 8, 12], "provenance": {"images": described[0]}}
    stored.write_text(json.dumps(with_images))
    assert train(run, images, tmp_path)["step"] == [4, 8, 12]
    with pytest.raises(ValueError, match=f"{described[0]['sha256']}.*{described[1]['sha256']}"):
        train(run, others, tmp_path)
    with pytest.raises(ValueError, match=r"alpha.*0.5"):
        train(small(figure_1()[0], alpha=0.5), images, tmp_path, verbose=0)
    for changes, message in (
        ({"evaluations": 5}, "evaluations=5, backups=1, steps=12"),
        ({"batch_size": 48}, "batch_size=48, group=32, replicas=1"),
        ({"normalization": "instance_norm"}, "normalization='instance_norm'"),
        ({"network": "resnet"}, "network='resnet'"),
        ({"dropout": 0.2}, "dropout=0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            train(small(figure_1()[1], name="other", **changes), images, tmp_path)
    with pytest.raises(ValueError, match="evaluation_batch_size=0"):
        train(small(figure_1()[1], name="other"), images, tmp_path, evaluation_batch_size=0)
