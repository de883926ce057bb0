"""What is computed from the runs of a figure."""

import pytest
from example_runs import RUNS, example_run

from keras_brn.paper.experiment import figure_5
from keras_brn.paper.results import (
    runs_by_steps,
    summarize_figure,
    summarize_group_sizes,
)
from keras_brn.paper.results.runs import runs_by_seed
from keras_brn.paper.results.summaries import first_reached, summarize_variants


def by_seed(*curves):
    return {seed: example_run("", curve, seed) for seed, curve in enumerate(curves)}


def test_the_accuracy_is_that_at_the_end_of_training():
    accuracy = summarize_figure(RUNS, 2)["accuracy"]["batchnorm_micro4"]
    assert (accuracy["value"], accuracy["seeds"]) == (0.3, 2)  # The best are .3 and .5.
    assert 0 <= accuracy["low"] < 0.3 < accuracy["high"] <= 1


def test_differences_and_shares_pair_the_seeds():
    summary = summarize_figure(RUNS, 2)
    difference = summary["differences"]["batch_renorm_micro4 - batchnorm_micro4"]
    assert (difference["low"], difference["value"], difference["high"]) == (0.3, 0.3, 0.3)
    (share,) = summary["shares"].values()
    assert (share["low"], share["value"], share["high"]) == (0.75, 0.75, 0.75)
    assert summary["optimizer_epsilon"] == 0.003


def test_rows_and_differences_are_of_the_same_seeds():
    summary = summarize_figure(RUNS, 1)  # Batch Renorm has one seed, batchnorm two.
    assert summary["accuracy"]["batchnorm"]["value"] == 0.6
    (difference,) = summary["differences"].values()
    assert difference == {"value": -0.1, "low": None, "high": None, "seeds": 1}


def test_a_control_with_fewer_seeds_is_compared_over_its_own():
    accuracies = {"batchnorm": 0.8, "batchnorm_noniid": 0.4, "batch_renorm_noniid": 0.6}
    runs = [
        example_run(name, [0, 0, accuracy + 0.01 * seed], seed, 8)
        for name, accuracy in accuracies.items()
        for seed in range(3)
    ]
    for run in runs:
        run["images_per_label"] = 8 if "noniid" in run["name"] else None
    summary = summarize_figure([*runs, example_run("batchnorm_noniid_spread", [0.7], 1, 8)], 3, 8)
    seeds = {name: estimate["seeds"] for name, estimate in summary["accuracy"].items()}
    assert seeds == {**dict.fromkeys(accuracies, 3), "batchnorm_noniid_spread": 1}
    against_spread = summary["differences"]["batchnorm_noniid - batchnorm_noniid_spread"]
    assert (against_spread["value"], against_spread["seeds"]) == (-0.29, 1)


def test_figure_3_takes_the_images_per_label():
    summary = summarize_figure(RUNS, 3, images_per_label=8)
    assert summary["accuracy"]["batchnorm_noniid"]["value"] == 0.3
    assert summary["accuracy"]["batchnorm_noniid_batchstats"]["value"] == 0.5
    share = summary["shares"]["batch_renorm_noniid: batchnorm_noniid to batchnorm"]
    assert (share["value"], share["low"], share["seeds"]) == (0.66667, None, 1)
    assert not any("halves" in names for names in summary["shares"])
    assert summarize_figure(RUNS, 3, images_per_label=2)["race"] is None


def test_accuracy_on_training_minibatches_is_not_that_on_training_images():
    summary = summarize_figure(RUNS, 3, images_per_label=8)
    minibatches, images = (
        {name: estimate["value"] for name, estimate in summary[part].items()}
        for part in ("minibatch_training_accuracy", "image_training_accuracy")
    )
    assert minibatches == {
        "batchnorm": 0.3,
        "batchnorm_noniid": 0.15,
        "batch_renorm_noniid": 0.25,
    }
    assert images == {"batch_renorm_noniid": 0.6}


def test_a_race_is_run_by_each_seed_against_the_end_of_its_own_baseline():
    """The mean of these curves is never as high as the mean of the baselines' best."""
    runs = by_seed([0.5, 0.2, 0.2], [0.1, 0.1, 0.4])
    baselines = by_seed([0.1, 0.9, 0.4], [0.2, 0.9, 0.3])
    race = first_reached(runs, baselines)
    assert race["steps"] == [10, 30]
    assert race["value"] == pytest.approx(2 / 3, abs=1e-5)


def test_a_race_that_a_seed_does_not_end_has_no_mean():
    race = first_reached(by_seed([0.1, 0.2, 0.5], [0.1, 0.2, 0.3]), by_seed([0.4], [0.4]))
    assert race == {"steps": [30, None], "value": None, "low": None, "high": None, "seeds": 2}


def test_runs_that_differ_in_more_than_the_seed_are_refused():
    for other in ({"data": "glyphs"}, {"step": [20, 40, 60]}):
        runs = [RUNS[0], {**RUNS[0], **other}]
        with pytest.raises(ValueError, match=r"several runs of 'batchnorm' with the same seed"):
            runs_by_seed(runs, "batchnorm")
    assert list(runs_by_steps([RUNS[0], {**RUNS[0], "step": [20, 40, 60]}])) == [30, 60]


def test_group_sizes_are_of_the_seeds_that_all_have():
    runs = [example_run(each.name, [0.9, k / 20]) for k, each in enumerate(figure_5())]
    summary = summarize_group_sizes([*runs, example_run("batchnorm_micro4", [0.9], 1)])
    batchnorm = {size: each["value"] for size, each in summary["accuracy"]["batchnorm"].items()}
    assert batchnorm == {"1": 0.0, "2": 0.15, "4": 0.3, "8": 0.45, "16": 0.6, "32": 0.75}
    assert {each["value"] for each in summary["accuracy"]["layer_norm"].values()} == {0.95}
    assert summary["differences"]["batch_renorm - batchnorm"]["4"]["value"] == 0.05
    with pytest.raises(ValueError, match=r"Received: .*\('layer_norm', 1\): \[\]"):
        summarize_group_sizes(runs[:-1])


def test_variants_of_figure_1_are_compared_with_batchnorm_of_their_length():
    def runs(step, **accuracies):
        return [
            example_run(name, [0.1, accuracy + seed / 10], seed, step=[step // 2, step])
            for name, accuracy in accuracies.items()
            for seed in range(2)
        ]

    by_length = {
        4_000: runs(4_000, batchnorm=0.5, batch_renorm=0.4, batch_renorm_alpha4=0.7),
        1_000: runs(1_000, batchnorm=0.3, batch_renorm=0.35),
        2_000: runs(2_000, batchnorm=0.3),
    }
    summary = summarize_variants(by_length, 4_000)
    assert {name: round(each["value"], 3) for name, each in summary.items()} == {
        "1,000 steps": 0.05,
        "four times the alpha": 0.2,
    }
    assert summary["1,000 steps"]["seeds"] == 2
    assert summarize_variants({4_000: by_length[2_000]}, 4_000) == {}
