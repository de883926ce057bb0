"""The runs of a figure, by name, seed and length."""


def runs_by_seed(runs, name, images_per_label=None):
    """The runs of a name.

    Args:
        runs: As `as_runs` returns them, of one data set and one number of training steps.
        name: Name of an `Experiment`, or of what `as_runs` makes of one.
        images_per_label: Of images of few labels; runs of independent images have none.

    Returns:
        Dict from the seed, in ascending order, to a run.

    Raises:
        ValueError: If several runs have the same name and seed, as those of two data sets do.
    """
    wanted = images_per_label if "noniid" in name else None
    named = [run for run in runs if (run["name"], run["images_per_label"]) == (name, wanted)]
    seeds = sorted(run["seed"] for run in named)
    if len(set(seeds)) < len(seeds):
        raise ValueError(
            "`runs` must be of one data set and one number of training steps. "
            f"Received: several runs of {name!r} with the same seed, of the seeds {seeds}"
        )
    return dict(sorted((run["seed"], run) for run in named))


def runs_by_steps(runs):
    """Dict from the numbers of training steps, shortest first, to the runs of this length."""
    lengths = sorted({run["step"][-1] for run in runs})
    return {steps: [run for run in runs if run["step"][-1] == steps] for steps in lengths}


def final_accuracy(run):
    """Validation accuracy at the end of training, a share of 1. (The highest of all evaluations
    would be chosen on the images that it is reported for.)"""
    return run["accuracy"][-1]


def final_accuracies(by_seed):
    """From a dict from the seed to a run, that to its `final_accuracy`."""
    return {seed: final_accuracy(run) for seed, run in by_seed.items()}


def with_common_seeds(curves, names):
    """The runs of the seeds that all runs of some names have.

    Args:
        curves: Dict from a name to what `runs_by_seed` returned.
        names: Names whose runs are compared with each other.
    """
    seeds = set.intersection(*(set(curves[name]) for name in names)) if names else set()
    return {
        name: {seed: run for seed, run in by_seed.items() if seed in seeds}
        for name, by_seed in curves.items()
    }


def common_epsilon(runs):
    """RMSProp's epsilon, in which runs of one name differ between figures; `None` if these differ
    in it themselves, or have none."""
    epsilons = {run["config"].get("optimizer_epsilon") for run in runs}
    return epsilons.pop() if len(epsilons) == 1 else None
