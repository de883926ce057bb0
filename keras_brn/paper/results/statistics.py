"""Intervals for what a few training runs, one per seed, say of a mean, a difference or a ratio.

An estimate is a dict of `value`; `low` and `high`, the ends of its 95 % confidence interval; and
`seeds`, the number of runs. All are finite or `None`, so that an estimate can be stored as JSON.
A single run has no interval; that of a ratio is unbounded where the denominator may be zero. Both
ends are `None` in these cases, which `seeds` tells apart.
"""

import functools
import math

import numpy as np

from keras_brn.extras import extra

with extra("paper"):
    from scipy import stats

CONFIDENCE = 0.95


def mean_interval(values, lower=-math.inf, upper=math.inf):
    """The mean over the seeds, with Student's t interval.

    Args:
        values: One number per seed.
        lower: Least possible mean, at which the interval is cut.
        upper: Greatest possible mean, likewise.

    Returns:
        An estimate.

    Raises:
        ValueError: If there are no values, or one is not finite.
    """
    values = _checked("values", values)
    low = high = None
    if len(values) > 1:
        half = _t(len(values)) * values.std(ddof=1) / math.sqrt(len(values))
        low, high = np.clip((values.mean() - half, values.mean() + half), lower, upper)
    return _estimate(values.mean(), low, high, len(values))


def difference_interval(values, baselines):
    """The mean of the differences of two runs of each seed, with Student's t interval.

    Args:
        values: One number per seed.
        baselines: What is subtracted, in the same order of the seeds.

    Returns:
        An estimate.

    Raises:
        ValueError: If the two are not equally many, there are none, or one is not finite.
    """
    values, baselines = _checked_pairs("values", values, "baselines", baselines)
    return mean_interval(values - baselines)


def ratio_interval(numerators, denominators):
    """The ratio of two means over the same seeds, with Fieller's interval.

    It holds the ratios q for which numerators - q * denominators may have mean zero, by a t test
    (Fieller 1954, "Some problems in interval estimation"). Where the mean of the denominators may
    be zero by the same test, no bounded interval has this confidence, and both ends are `None`.

    Args:
        numerators: One number per seed.
        denominators: One number per seed, in the same order of the seeds.

    Returns:
        An estimate; its `value` is `None` where the mean of the denominators is exactly zero.

    Raises:
        ValueError: If the two are not equally many, there are none, or one is not finite.
    """
    above, below = _checked_pairs("numerators", numerators, "denominators", denominators)
    value = None if below.mean() == 0 else above.mean() / below.mean()
    low = high = None
    if len(above) > 1:
        # Of the parabola in q that is negative where the t test of above - q * below accepts.
        variances = _t(len(above)) ** 2 * np.cov(above, below) / len(above)
        square = below.mean() ** 2 - variances[1, 1]
        if square > 0:
            linear = above.mean() * below.mean() - variances[0, 1]
            constant = above.mean() ** 2 - variances[0, 0]
            # It holds `value`, so that a negative discriminant is a rounding error.
            root = math.sqrt(max(0.0, linear**2 - square * constant))
            low, high = (linear - root) / square, (linear + root) / square
    return _estimate(value, low, high, len(above))


@functools.cache
def _t(seeds):
    """Quantile of Student's t distribution for a two-sided interval."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1)


def _estimate(value, low, high, seeds):
    value, low, high = (None if x is None else round(float(x), 5) for x in (value, low, high))
    return {"value": value, "low": low, "high": high, "seeds": seeds}


def _checked(name, values):
    numbers = np.array(list(values), "float64")
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(
            f"`{name}` must be finite numbers, at least one. Received: {name}={numbers.tolist()}"
        )
    return numbers


def _checked_pairs(name, values, other_name, others):
    values, others = _checked(name, values), _checked(other_name, others)
    if len(values) != len(others):
        raise ValueError(
            f"`{name}` and `{other_name}` must be of the same seeds. "
            f"Received: {len(values)} and {len(others)} numbers"
        )
    return values, others
