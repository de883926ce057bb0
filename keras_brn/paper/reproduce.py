"""All runs behind the figures, scaled to a laptop; the figures themselves; and their tables.

    python -m keras_brn.paper.reproduce [--tiny-imagenet PATH] [--results results] [--out figures]

Runs that `--results` already holds are not repeated, and one that was cut off goes on where it was,
so the command can be stopped at any time. `--part 1/2` and `--part 2/2` share the runs between two
processes. `--only-figures` draws what there is. `--stored figures` takes over the runs of these. On
a GPU, `--together` and `KERAS_BACKEND=jax` train up to 26 runs at once; there `--part` shares it.

Figure 3 at the length of the paper is trained on an accelerator, by another command that shares
`--results`:

    KERAS_BACKEND=jax python -m keras_brn.paper.on_device --tiny-imagenet PATH [--results results]

and so is Figure 6, once for glyphs, without a path, and once for Tiny ImageNet:

    KERAS_BACKEND=jax python -m keras_brn.paper.small_batches [--tiny-imagenet PATH]

Figures, their summaries and tables are made anew from stored runs, without training or data, by

    python -m keras_brn.paper.reproduce --stored figures --only-figures

(All but the picture of the correction, for which the stored runs have too little.)
"""

import argparse
import itertools
from pathlib import Path

from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.tiny_imagenet import load_tiny_imagenet
from keras_brn.paper.experiment import (
    FEW_LABELS,
    figure_1,
    figure_1_faster_averages,
    figure_2,
    figure_3,
    figure_3_paper_length,
    figure_4,
    figure_5,
    scaled,
    sigma_averaged,
    spread,
)
from keras_brn.paper.figures import files
from keras_brn.paper.figures.small_batches import write_small_batches
from keras_brn.paper.results import as_results, as_runs, load_figure, runs_by_steps, stored_tables
from keras_brn.paper.small_batches.results import load_results, stored_results
from keras_brn.paper.training import completed_result, store_result, train

STEPS = 4_000
SHORT = 0.25  # Some runs are of so many times these steps.
CHANGES = {"labels": {}, "few_labels": FEW_LABELS}  # To `scaled`, by the setting of a figure.
SETTINGS = {
    "1": "labels",
    "2": "labels",
    "3": "few_labels",
    "3_paper_length": "on_device",
    "4": "labels",
    "5": "labels",
}


def few_glyphs():
    """The glyphs of Figure 3: 80 labels, of which 64 are drawn for a step of label pairs, as 800 of
    1000 are in the paper. They are more distorted, or all runs would be right at the end."""
    return load_glyphs(1_250, 100, difficulty=1.6, labels=80)


def planned_runs(data_sets, steps=STEPS):
    """The runs of all figures, first seeds first: triples of "labels" or "few_labels", a data set
    and an `Experiment`.

    Args:
        data_sets: Names, of "glyphs" and "tiny_imagenet".
        steps: Number of training steps, from which few runs differ.
    """
    # Each comparison with its length, and its number of seeds on glyphs and on Tiny ImageNet.
    comparisons = (
        ("labels", 1, figure_2(), 5, 3),
        ("labels", 1, figure_1(), 5, 3),
        ("few_labels", 1, [*figure_3(8), *spread(8)], 5, 3),
        ("few_labels", 1, figure_3(2), 5, 3),
        ("few_labels", 1, figure_3(4), 3, 3),
        ("few_labels", 1, figure_3(1)[1::2], 3, 3),  # A half of single images is no different.
        ("labels", 1, figure_5(), 3, 0),
        ("labels", 1, figure_4(), 3, 0),
        ("labels", 1, sigma_averaged(), 3, 0),
        ("labels", SHORT, figure_4(), 3, 0),
        ("labels", 1, figure_1_faster_averages(), 3, 3),
        ("labels", SHORT, figure_1(), 3, 3),
    )
    planned = [
        (setting, name, scaled(run, round(length * steps), seed=seed, **CHANGES[setting]))
        for seed in range(5)
        for setting, length, runs, of_glyphs, of_tiny_imagenet in comparisons
        for name in data_sets
        for run in runs
        if seed < (of_glyphs if name == "glyphs" else of_tiny_imagenet)
    ]
    return list(dict.fromkeys(planned))


def take_over_runs(figures, results):
    """Keeps the runs of stored figures as `train` would.

    Args:
        figures: Folder of the figures.
        results: Folder of the results.
    """
    for figure, setting in SETTINGS.items():
        path = figures / f"figure{figure}.json"
        for result in as_results(load_figure(path)["runs"]) if path.exists() else ():
            store_result(result, results / setting)


def trained_together(planned):
    """What `planned_runs` returns, in the programs of `train_on_device`: triples of "labels" or
    "few_labels", a data set and a list of `Experiment`."""
    from keras_brn.paper.on_device import programs

    by_data = {}
    for setting, name, run in planned:
        by_data.setdefault((setting, name), []).append(run)
    return [(*kind, runs) for kind, of_kind in by_data.items() for runs in programs(of_kind)]


def train_all(planned, data_sets, results):
    """Trains what is not yet trained.

    Args:
        planned: As `planned_runs` returns it.
        data_sets: Dict from pairs of setting and name to data sets.
        results: Folder of the results.
    """
    for setting, name, run in planned:
        print(setting, name, run, flush=True)
        train(run, data_sets[setting, name], results / setting)


def train_all_together(planned, data_sets, results):
    """As `train_all`, of what `trained_together` returns."""
    from keras_brn.paper.on_device import train_on_device

    for setting, name, runs in planned:
        print(setting, name, *runs, flush=True)
        train_on_device(runs, data_sets[setting, name], results / setting)


def completed_results(planned, results):
    """The results of the runs that are complete, those of `train_on_device` among them.

    Args:
        planned: As `planned_runs` returns it.
        results: Folder of the results.

    Returns:
        Dict from a setting to a list of results.
    """
    programs = itertools.chain(*figure_3_paper_length())
    on_device = [("on_device", "tiny_imagenet", run) for run in programs]
    completed = {setting: [] for setting in SETTINGS.values()}
    for setting, name, run in [*planned, *on_device]:
        result = completed_result(run, name, results / setting)
        completed[setting] += [] if result is None else [result]
    return completed


def write_all(results, steps, out):
    """Writes all figures, as far as there are runs.

    Args:
        results: Dict from "labels", "few_labels" and "on_device" to lists of what `train`, or
            `train_on_device`, returned.
        steps: Number of training steps, from which few runs differ.
        out: Folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    labels = runs_by_steps(as_runs(results["labels"]))
    few_labels = runs_by_steps(as_runs(results["few_labels"]))
    for number in (1, 2):
        files.write_comparison(labels, steps, number, out)
    files.write_few_labels(few_labels.get(steps, []), out)
    files.write_paper_length(as_runs(results["on_device"]), out)
    files.write_alpha_and_ramp(labels, out)
    files.write_group_sizes(labels.get(steps, []), out)
    files.write_correction(runs_by_steps(results["labels"]).get(steps, []), out)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-imagenet", type=Path, help="zip, tar or folder; none: glyphs alone")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--part", default="1/1", help="k/n: the k-th of n shares of the runs")
    parser.add_argument("--together", action="store_true", help="many runs in a program of JAX")
    parser.add_argument("--only-figures", action="store_true")
    parser.add_argument("--stored", type=Path, help="folder of figures, whose runs are kept")
    options = parser.parse_args()
    if options.stored is not None:
        take_over_runs(options.stored, options.results)
    names = ["glyphs"]
    if options.tiny_imagenet is not None or options.only_figures:
        names.append("tiny_imagenet")
    planned = planned_runs(names, options.steps)
    if not options.only_figures:
        part, parts = map(int, options.part.split("/"))
        data_sets = {("labels", "glyphs"): load_glyphs(), ("few_labels", "glyphs"): few_glyphs()}
        if options.tiny_imagenet is not None:
            photographs = load_tiny_imagenet(options.tiny_imagenet)
            data_sets |= {(setting, "tiny_imagenet"): photographs for setting in CHANGES}
        if options.together:
            programs = trained_together(planned)
            train_all_together(programs[part - 1 :: parts], data_sets, options.results)
        else:
            train_all(planned[part - 1 :: parts], data_sets, options.results)
    results = completed_results(planned, options.results)
    write_all(results, options.steps, options.out)
    small_batches = load_results(options.results / "small_batches")
    if not small_batches[0] and options.stored is not None:
        small_batches = stored_results(options.stored)
    write_small_batches(*small_batches, options.out)
    for title, table in stored_tables(options.out).items():
        print(f"\n{title}:\n\n{table}")


if __name__ == "__main__":
    main()
