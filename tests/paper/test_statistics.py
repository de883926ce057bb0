"""Intervals of a few seeds: how often they hold the true value, and what they are made of."""

import json

import numpy as np
import pytest
from scipy import stats

from keras_brn.paper.results.statistics import difference_interval, mean_interval, ratio_interval

TRIALS = 2_000
MEAN, DEVIATION = 0.9, 0.002  # Of an accuracy over the seeds.
SEEDS = pytest.mark.parametrize("seeds", [2, 3, 5])


def coverage(truth, estimates):
    """The share of the intervals that hold the truth; unbounded ones do."""
    return np.mean([e["low"] is None or e["low"] <= truth <= e["high"] for e in estimates])


@SEEDS
def test_the_interval_of_a_mean_holds_it_in_95_of_100_trials(rng, seeds):
    trials = rng.normal(MEAN, DEVIATION, (TRIALS, seeds))
    assert coverage(MEAN, [mean_interval(values) for values in trials]) == pytest.approx(
        0.95, abs=0.015
    )


@SEEDS
def test_the_interval_of_a_difference_holds_it_in_95_of_100_trials(rng, seeds):
    of_seed = rng.normal(0, 0.01, (TRIALS, seeds))  # Both runs of a seed share its luck.
    values, baselines = (
        mean + of_seed + rng.normal(0, DEVIATION, (TRIALS, seeds)) for mean in (0.91, 0.9)
    )
    estimates = list(map(difference_interval, values, baselines))
    assert coverage(0.01, estimates) == pytest.approx(0.95, abs=0.015)


def test_differences_are_paired():
    baselines = np.array([0.1, 0.5, 0.9])
    difference = difference_interval(baselines + 0.1, baselines)
    assert (difference["low"], difference["value"], difference["high"]) == (0.1, 0.1, 0.1)


@SEEDS
@pytest.mark.parametrize("deficit", [0.05, 0.004])  # With the latter, many are unbounded.
def test_the_interval_of_a_ratio_holds_it_in_95_of_100_trials(rng, seeds, deficit):
    noise = rng.normal(0, DEVIATION, (2, TRIALS, seeds))
    estimates = list(map(ratio_interval, 0.5 * deficit + noise[0] + noise[1], deficit + noise[1]))
    unbounded = np.mean([estimate["low"] is None for estimate in estimates])
    assert coverage(0.5, estimates) >= 0.935
    assert coverage(0.5, estimates) <= (0.965 if unbounded == 0 else 1)


def test_the_interval_of_a_mean_is_that_of_scipy(rng):
    values = rng.normal(size=4)
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    estimate = mean_interval(values)
    np.testing.assert_allclose((estimate["low"], estimate["high"]), expected, atol=1e-5)
    cut = mean_interval(values, lower=values.mean(), upper=10)
    assert cut["low"] == cut["value"] == estimate["value"] and cut["high"] == estimate["high"]


def test_the_ends_of_fiellers_interval_are_where_the_t_test_begins_to_refuse(rng):
    numerators, denominators = rng.normal(1, 0.1, 5), rng.normal(2, 0.1, 5)
    estimate = ratio_interval(numerators, denominators)
    assert estimate["value"] == pytest.approx(numerators.mean() / denominators.mean(), abs=1e-5)
    for end in ("low", "high"):
        test = stats.ttest_1samp(numerators - estimate[end] * denominators, 0)
        assert test.pvalue == pytest.approx(0.05, abs=1e-3)


def test_a_ratio_is_unbounded_exactly_where_its_denominator_may_be_zero(rng):
    for shift in np.linspace(0, 4, 40):
        numerators, denominators = rng.normal(size=3), shift + rng.normal(size=3)
        may_be_zero = stats.ttest_1samp(denominators, 0).pvalue >= 0.05
        assert (ratio_interval(numerators, denominators)["low"] is None) == may_be_zero


@pytest.mark.parametrize(
    "estimate",
    [
        mean_interval([0.5]),
        mean_interval([0.5, 0.5]),
        ratio_interval([0.1], [0.0]),
        ratio_interval([0.0, 0.0], [0.0, 0.0]),
        ratio_interval([0.1, 0.2, 0.3], [0.0, 0.1, -0.1]),
        ratio_interval([0.0, 0.25, 0.2, 0.2, 0.2], [0.0, 0.3, 0.2, 0.2, 0.2]),
        ratio_interval([0.1, 0.1], [0.2, 0.2]),
    ],
)
def test_estimates_of_degenerate_seeds_are_valid_json(estimate):
    assert json.loads(json.dumps(estimate, allow_nan=False)) == estimate


def test_equal_values_leave_no_doubt():
    assert mean_interval([0.3, 0.3])["low"] == mean_interval([0.3, 0.3])["high"] == 0.3
    ratio = ratio_interval([0.1, 0.1], [0.2, 0.2])
    assert (ratio["low"], ratio["value"], ratio["high"]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: mean_interval([]), r"`values` .* Received: values=\[\]"),
        (lambda: mean_interval([0.1, float("nan")]), r"Received: values=\[0.1, nan\]"),
        (lambda: difference_interval([0.1], [0.1, 0.2]), "Received: 1 and 2 numbers"),
        (lambda: ratio_interval([0.1], [float("inf")]), r"Received: denominators=\[inf\]"),
    ],
)
def test_what_is_no_sample_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
