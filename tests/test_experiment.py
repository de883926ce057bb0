"""Training runs and their results."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_brn import BatchRenormalization
from keras_brn.data import Images
from keras_brn.experiment import Experiment, _Recorder, microbatch_experiments, train
from keras_brn.models import small_network
from keras_brn.results import load_figure, plot_curves, save_figure, summarize, table

SMALL = {"steps": 12, "evaluations": 3, "batch_size": 8, "seed": 3}


@pytest.fixture(scope="module")
def images():
    """Four labels that are four shades."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    pixels = labels[:, None, None, None] * 60 + rng.integers(0, 40, (40, 32, 32, 1))
    pixels = pixels.astype("uint8")
    return Images("shades", 4, pixels, labels, pixels[:12], labels[:12], flip=False)


def test_network_takes_its_normalization_as_a_value():
    for normalization in (BatchRenormalization, keras.layers.BatchNormalization):
        model = small_network(normalization, (32, 32, 3), classes=7, width=2)
        layers = [layer for layer in model.layers if type(layer) is normalization]
        assert len(layers) == 9 and model.output_shape == (None, 7)
        maps = [layer.output.shape[1] for layer in layers]
        assert maps == [32, 16, 16, 8, 8, 4, 4, 2, 2]


def test_the_runs_differ_in_their_normalization_alone():
    runs = [dataclasses.asdict(run) for run in microbatch_experiments(steps=100)]
    differing = {key for key in runs[0] if len({run[key] for run in runs}) > 1}
    assert differing == {"name", "microbatch_size", "r_max", "d_max"}


def test_the_ramp_scales_with_the_steps():
    assert Experiment("paper", steps=130_000).schedule().ramp_steps == (5_000, 40_000, 25_000)
    assert Experiment("ours", steps=1_300).schedule().ramp_steps == (50, 400, 250)


@pytest.mark.slow
def test_a_run_learns_and_is_read_the_next_time(images, tmp_path):
    experiment = Experiment("batch_renorm_micro4", 4, **{**SMALL, "steps": 60})
    result = train(experiment, images, tmp_path, verbose=0)
    assert result["step"] == [20, 40, 60]
    assert result["train_accuracy"][-1] > 0.5  # Of four labels.
    assert result["config"] == dataclasses.asdict(experiment)
    assert result["provenance"]["backend"] == keras.backend.backend()
    assert result["provenance"]["seconds"] > 0
    stored = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert stored == result == train(experiment, images, tmp_path, verbose=0)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_curve(images, tmp_path, monkeypatch):
    experiment = Experiment("batch_renorm_micro4", 4, **SMALL)
    whole = train(experiment, images, tmp_path / "whole", verbose=0)

    def killed(self, epoch, logs=None, original=_Recorder.on_epoch_end):
        original(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_Recorder, "on_epoch_end", killed)
        train(experiment, images, tmp_path / "parts", verbose=0)
    resumed = train(experiment, images, tmp_path / "parts", verbose=0)
    for curve in ("step", "accuracy", "train_accuracy"):
        np.testing.assert_allclose(resumed[curve], whole[curve], atol=1e-6)


@pytest.mark.slow
def test_a_kill_between_curve_and_checkpoint_loses_nothing(images, tmp_path, monkeypatch):
    experiment = Experiment("batchnorm", **SMALL)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keras.Model, "save", killed)
        train(experiment, images, tmp_path, verbose=0)
    assert train(experiment, images, tmp_path, verbose=0)["step"] == [4, 8, 12]


def test_a_result_of_another_configuration_is_refused(images, tmp_path):
    train(Experiment("batchnorm", **SMALL), images, tmp_path, verbose=0)
    with pytest.raises(ValueError, match=r"momentum.*0.95.*0.5"):
        train(Experiment("batchnorm", momentum=0.5, **SMALL), images, tmp_path, verbose=0)
    with pytest.raises(ValueError, match="evaluations=5, steps=12"):
        train(Experiment("batchnorm", **{**SMALL, "evaluations": 5}), images, tmp_path)


# Results.


def curve(name, accuracy, seed=0):
    return {
        **{"name": name, "data": "shades", "seed": seed, "group": 4, "images_per_label": None},
        **{"step": [10, 20, 30], "accuracy": accuracy, "train_accuracy": accuracy},
        **{"config": {"steps": 30}, "provenance": {"seconds": 1.0}},
    }


RUNS = [
    curve("batchnorm", [0.2, 0.4, 0.6]),
    curve("batchnorm_micro4", [0.1, 0.3, 0.2]),
    curve("batch_renorm_micro4", [0.2, 0.35, 0.5]),
    curve("batchnorm", [0.4, 0.6, 0.8], 1),
    curve("batchnorm_micro4", [0.3, 0.5, 0.4], 1),
    curve("batch_renorm_micro4", [0.2, 0.45, 0.7], 1),
]


def test_summary():
    summary = summarize(RUNS)
    assert summary["best"]["batchnorm_micro4"] == {"accuracy": 0.4, "step": 20}
    assert summary["recovered"] == round((0.6 - 0.4) / (0.7 - 0.4), 3)
    assert (summary["steps_ratio"], summary["passes_at"], summary["seeds"]) == (1.5, 20, 2)


def test_table_has_the_numbers_of_the_paper_and_ours():
    lines = table({"ours": summarize(RUNS)}).splitlines()
    assert lines[3] == "| batchnorm, groups of 4 | 74.2 % at 210,000 | 40.0 % at 20 |"
    assert lines[5] == "| part of the deficit recovered | .56 | 0.667 |"


def test_a_figure_travels_with_its_data(tmp_path):
    figure = Figure()
    plot_curves(figure.subplots(), RUNS, "title")
    save_figure(figure, RUNS, tmp_path / "figure.png")
    stored = load_figure(tmp_path / "figure.png")
    assert stored["summary"] == summarize(stored["runs"])
    assert stored["provenance"]["runs"][0] == {
        **{"name": "batchnorm", "seed": 0, "config": {"steps": 30}, "seconds": 1.0}
    }
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
