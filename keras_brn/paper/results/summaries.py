"""The numbers that figures are read by, from runs of several seeds."""

from keras_brn.paper.experiment import ALPHAS, GROUP_SIZES, RAMPS, figure_4_name, figure_5_name
from keras_brn.paper.results.comparisons import (
    COMPARISONS,
    NORMALIZATIONS_BY_GROUP_SIZE,
    SINGLE_IMAGES,
)
from keras_brn.paper.results.runs import (
    common_epsilon,
    final_accuracies,
    final_accuracy,
    runs_by_seed,
    with_common_seeds,
)
from keras_brn.paper.results.statistics import difference_interval, mean_interval, ratio_interval


def summarize_figure(runs, figure, images_per_label=2):
    """The numbers of one of the paper's figures, from our runs on one data set.

    All rest on the seeds that the compared runs have in common. A control with fewer seeds is
    compared over its own.

    Args:
        runs: As `as_runs` returns them, of one data set and one number of training steps.
        figure: 1, 2 or 3.
        images_per_label: Of Figure 3.

    Returns:
        Dict of estimates (`keras_brn.paper.results.statistics`), as far as there are runs:
        `accuracy`, from a name to the validation accuracy at the end of training;
        `differences`, from "name - name" to that of two accuracies;
        `shares`, from "name: name to name" to the part of the way between two accuracies that the
        first one goes;
        `minibatch_training_accuracy` and `image_training_accuracy`, from a name to the accuracy on
        training minibatches, as they are normalized in training, and on training images that are
        classified one by one; and
        `race`, what `first_reached` returns.
        Also `optimizer_epsilon` and, of Figure 3, `images_per_label`.
    """
    comparison = COMPARISONS[figure]
    curves = curves_of_figure(runs, figure, images_per_label)
    accuracy = {name: final_accuracies(by_seed) for name, by_seed in curves.items()}
    return {
        "images_per_label": images_per_label if figure == 3 else None,
        "optimizer_epsilon": common_epsilon(
            run for by_seed in curves.values() for run in by_seed.values()
        ),
        "accuracy": {name: accuracy_interval(by_seed) for name, by_seed in accuracy.items()},
        "differences": {
            f"{name} - {baseline}": paired_difference(accuracy[name], accuracy[baseline])
            for name, baseline, _ in comparison.differences
            if _have_common_seeds(accuracy, name, baseline)
        },
        "shares": {
            f"{name}: {bottom} to {top}": _share(accuracy[name], accuracy[bottom], accuracy[top])
            for name, bottom, top, _ in comparison.shares
            if _have_common_seeds(accuracy, name, bottom, top)
        },
        "minibatch_training_accuracy": _at_the_end(curves, comparison.training, "train_accuracy"),
        "image_training_accuracy": _at_the_end(curves, comparison.training, "train_image_accuracy"),
        "race": first_reached(
            curves.get(comparison.race.name, {}), curves.get(comparison.race.baseline, {})
        ),
    }


def summarize_variants(runs_by_length, steps):
    """Figure 1 in other lengths, and with four times the alpha.

    Args:
        runs_by_length: Dict from the number of training steps to runs of one data set.
        steps: Number of training steps of the figure itself.

    Returns:
        Dict from what is different to the estimate of the difference of Batch Renorm to batchnorm,
        as far as there are runs.
    """
    variants = {
        f"{length:,} steps": (runs, "batch_renorm")
        for length, runs in sorted(runs_by_length.items())
        if length != steps
    }
    variants["four times the alpha"] = runs_by_length.get(steps, []), "batch_renorm_alpha4"
    summary = {}
    for variant, (runs, name) in variants.items():
        accuracy = {
            each: final_accuracies(runs_by_seed(runs, each)) for each in (name, "batchnorm")
        }
        if _have_common_seeds(accuracy, name, "batchnorm"):
            summary[variant] = paired_difference(accuracy[name], accuracy["batchnorm"])
    return summary


def curves_of_figure(runs, figure, images_per_label=2):
    """The runs that a figure compares, of the seeds that these have in common.

    Args:
        runs: As for `summarize_figure`.
        figure: 1, 2 or 3.
        images_per_label: Of Figure 3.

    Returns:
        Dict from a name to a dict from the seed to a run, without names that have no runs.
    """
    comparison = COMPARISONS[figure]
    curves = {name: runs_by_seed(runs, name, images_per_label) for name in comparison.labels}
    curves = {name: by_seed for name, by_seed in curves.items() if by_seed}
    common = with_common_seeds(curves, [name for name in comparison.compared if name in curves])
    return {name: by_seed for name, by_seed in common.items() if by_seed}


def accuracy_interval(by_seed):
    """Estimate of a mean accuracy, from a dict from the seed to an accuracy, a share of 1."""
    return mean_interval(by_seed.values(), lower=0.0, upper=1.0)


def first_reached(runs, baselines):
    """When runs first reach the accuracy at which a baseline of the same seed ends.

    Args:
        runs: Dict from the seed to a run.
        baselines: Dict from the seed to a run of as many training steps.

    Returns:
        `None` if no seed has both. Else a dict of `steps`: for each seed the step of the first
        evaluation with at least the baseline's final accuracy, or `None` if there is none; and the
        estimate of these steps as a share of the training steps, whose numbers are `None` if a seed
        does not get there.
    """
    seeds = [seed for seed in runs if seed in baselines]
    if not seeds:
        return None
    steps = [_first_step(runs[seed], final_accuracy(baselines[seed])) for seed in seeds]
    if None in steps:
        return {"steps": steps, "value": None, "low": None, "high": None, "seeds": len(seeds)}
    shares = [step / runs[seed]["step"][-1] for step, seed in zip(steps, seeds, strict=True)]
    return {"steps": steps, **mean_interval(shares, lower=0.0, upper=1.0)}


def _first_step(run, accuracy):
    pairs = zip(run["step"], run["accuracy"], strict=True)
    return next((step for step, reached in pairs if reached >= accuracy), None)


def _have_common_seeds(accuracy, *names):
    return bool(set.intersection(*(set(accuracy.get(name, ())) for name in names)))


def _paired(*columns):
    """The values of the seeds that all columns have, as lists in one order."""
    seeds = sorted(set.intersection(*map(set, columns)))
    return [[column[seed] for seed in seeds] for column in columns]


def paired_difference(values, baselines):
    """Estimate of the difference of two dicts from the seed to a number, over common seeds."""
    return difference_interval(*_paired(values, baselines))


def _share(values, bottoms, tops):
    values, bottoms, tops = _paired(values, bottoms, tops)
    gained = [value - bottom for value, bottom in zip(values, bottoms, strict=True)]
    deficit = [top - bottom for top, bottom in zip(tops, bottoms, strict=True)]
    return ratio_interval(gained, deficit)


def _at_the_end(curves, names, key):
    """Estimates of the last value of a curve that not all runs have."""
    final = {
        name: {seed: run[key][-1] for seed, run in curves.get(name, {}).items() if key in run}
        for name in names
    }
    return {name: accuracy_interval(by_seed) for name, by_seed in final.items() if by_seed}


def summarize_alpha_and_ramp(runs):
    """The final accuracy with each alpha and each length of the ramp (Figure 4).

    Args:
        runs: Those of `keras_brn.paper.experiment.figure_4`, of one data set and one number of
            training steps.

    Returns:
        Dict of `accuracy`: from "alpha" and "ramp", as far as there are runs, to a dict from the
        factor, as a string, to an estimate; and `differences`: to such dicts of the difference to
        the factor 1. Each is of the seeds that its runs have in common.
    """
    accuracy = {
        name: {factor: final_accuracies(by_seed) for factor, by_seed in by_factor.items()}
        for name, by_factor in curves_by_factor(runs).items()
    }
    return {
        "accuracy": {
            name: {f"{factor:g}": accuracy_interval(values) for factor, values in of_name.items()}
            for name, of_name in accuracy.items()
        },
        "differences": {
            name: {
                f"{factor:g}": paired_difference(values, of_name[1])
                for factor, values in of_name.items()
                if factor != 1
            }
            for name, of_name in accuracy.items()
        },
    }


def curves_by_factor(runs):
    """Dict from "alpha" and "ramp", as far as there are all runs, to a dict from the factor to a
    dict from the seed to a run, of the seeds that these have in common."""
    names = {
        "alpha": {alpha: figure_4_name(alpha, 1) for alpha in ALPHAS},
        "ramp": {ramp: figure_4_name(1, ramp) for ramp in RAMPS},
    }
    curves = {}
    for kind, name_of in names.items():
        every = {factor: runs_by_seed(runs, name) for factor, name in name_of.items()}
        common = with_common_seeds(every, list(every))
        if all(common.values()):
            curves[kind] = common
    return curves


def summarize_group_sizes(runs):
    """The final accuracy for each number of images that are normalized together (Figure 5).

    Args:
        runs: Those of `keras_brn.paper.experiment.figure_5`, of one data set and one number of
            training steps.

    Returns:
        Dict of `accuracy`: from the name of a normalization to a dict from the group size, as a
        string, to an estimate; and `differences`: from "name - name" to such a dict of differences.
        All are of the seeds that all runs have in common. What normalizes single images has the
        same accuracy for all sizes.
    """
    curves = curves_by_group_size(runs)
    accuracy = {
        name: {str(size): final_accuracies(by_seed) for size, by_seed in by_size.items()}
        for name, by_size in curves.items()
    }
    others = ("batchnorm", "fixed_bounds", "group_norm")
    return {
        "accuracy": {
            name: {size: accuracy_interval(by_seed) for size, by_seed in by_size.items()}
            for name, by_size in accuracy.items()
        },
        "differences": {
            f"batch_renorm - {other}": {
                size: paired_difference(by_seed, accuracy[other][size])
                for size, by_seed in accuracy["batch_renorm"].items()
            }
            for other in others
        },
    }


def curves_by_group_size(runs):
    """Dict from the name of a normalization to a dict from the group size to a dict from the seed
    to a run, of the seeds that all runs of Figure 5 have in common.

    Raises:
        ValueError: If no seed has all runs of Figure 5.
    """
    curves = {}
    for name in NORMALIZATIONS_BY_GROUP_SIZE:
        for size in GROUP_SIZES:
            of_size = name if name in SINGLE_IMAGES else figure_5_name(name, size)
            curves[name, size] = runs_by_seed(runs, of_size)
    common = with_common_seeds(curves, list(curves))
    if not all(common.values()):
        seeds = {key: list(by_seed) for key, by_seed in curves.items()}
        raise ValueError(f"`runs` must have a seed of all runs of Figure 5. Received: {seeds}")
    return {
        name: {size: common[name, size] for size in GROUP_SIZES}
        for name in NORMALIZATIONS_BY_GROUP_SIZE
    }
