"""All runs behind the figures, scaled to a laptop, and the figures themselves.

    python -m keras_brn.paper.reproduce [--tiny-imagenet PATH] [--results results] [--out figures]

Runs that `--results` already holds are not repeated, and one that was cut off goes on where it was,
so the command can be stopped at any time. `--part 1/2` and `--part 2/2` share the runs between two
processes. `--only-figures` draws what there is. `--stored figures` takes over the runs of these.
"""

import argparse
import functools
from pathlib import Path

from matplotlib.figure import Figure

from keras_brn.paper import fine_tuning
from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.tiny_imagenet import load_tiny_imagenet
from keras_brn.paper.experiment import (
    FEW_LABELS,
    figure_1,
    figure_2,
    figure_3,
    figure_4,
    figure_4_name,
    figure_5,
    scaled,
    sigma_averaged,
    spread,
)
from keras_brn.paper.figures import (
    plot_alpha_and_ramp,
    plot_curves,
    plot_few_labels,
    plot_fine_tuning,
    plot_group_sizes,
)
from keras_brn.paper.records import write_json
from keras_brn.paper.results import (
    FIGURES,
    as_results,
    as_runs,
    by_steps,
    estimate_of_best,
    load_figure,
    save_figure,
    summarize,
)
from keras_brn.paper.training import completed_result, store_result, train
from keras_brn.plot import plot_correction

STEPS = 4_000
SHORT, LONG, LONGEST = 0.25, 4, 10  # Some runs are of so many times these steps.
SETTINGS = {  # Of the figures.
    **{"1": "labels", "2": "labels", "4": "labels", "5": "labels"},
    **{"3": "few_labels", "3_long": "few_labels", "3_longest": "few_labels"},
}
TITLES = {"glyphs": "glyphs", "tiny_imagenet": "Tiny ImageNet, 32x32"}


def few_glyphs():
    """The glyphs of Figure 3: 80 labels, of which 64 are drawn for a step of label pairs, as 800 of
    1000 are in the paper. They are more distorted, or all runs would be right at the end."""
    return load_glyphs(1_250, 100, difficulty=1.6, labels=80)


def plan(data_sets, steps=STEPS):
    """The runs of all figures, first seeds first: triples of "labels" or "few_labels", a data set
    and an `Experiment`.

    Args:
        data_sets: Names, of "glyphs" and "tiny_imagenet".
        steps: Number of training steps, from which few runs differ.
    """
    batchnorm, few, halves, renorm = figure_3(8)
    # Each comparison with its length, and its number of seeds on glyphs and on Tiny ImageNet.
    comparisons = (
        ("labels", 1, figure_2(), 5, 3),
        ("few_labels", 1, [batchnorm, few, renorm], 5, 3),
        ("few_labels", 1, [halves], 5, 1),
        ("few_labels", 1, spread(8), 2, 1),
        ("labels", 1, figure_1(), 5, 1),
        ("few_labels", 1, figure_3(2), 5, 1),
        ("few_labels", 1, figure_3(4), 1, 1),
        ("few_labels", 1, figure_3(1)[1::2], 1, 1),  # A half of single images is no different.
        ("labels", 1, figure_5(), 2, 0),
        ("labels", 1, figure_4(), 1, 0),
        ("labels", 1, sigma_averaged(), 2, 0),
        ("few_labels", LONG, [*figure_3(8), *figure_3(2)[1::2]], 0, 1),
        ("few_labels", LONGEST, figure_3(8), 0, 1),
        ("labels", SHORT, figure_4(), 1, 0),
    )
    changes = {"labels": {}, "few_labels": FEW_LABELS}
    planned = [
        (setting, name, scaled(run, round(length * steps), seed=seed, **changes[setting]))
        for seed in range(5)
        for setting, length, runs, of_glyphs, of_tiny_imagenet in comparisons
        for name in data_sets
        for run in runs
        if seed < (of_glyphs if name == "glyphs" else of_tiny_imagenet)
    ]
    return list(dict.fromkeys(planned))


def take_over(figures, results):
    """Keeps the runs of stored figures as `train` would."""
    for figure, setting in SETTINGS.items():
        path = figures / f"figure{figure}.json"
        for result in as_results(load_figure(path)) if path.exists() else ():
            store_result(result, results / setting)


def draw(runs, out):
    """Writes Figures 1, 2 and 5 as far as there are runs, these as `as_runs` returns them."""
    names = {run["name"] for run in runs}
    of = _by_data(runs)
    data_sets = list(of)
    for number in (1, 2):
        if names.issuperset(FIGURES[number]):
            picture = Figure(figsize=(6 * len(data_sets), 4.2))
            columns = picture.subplots(1, len(data_sets), squeeze=False)[0]
            for axes, name in zip(columns, data_sets, strict=True):
                plot_curves(axes, of[name], number, TITLES[name])
            summary = {name: summarize(of[name], number) for name in data_sets}
            shown = [*FIGURES[number]]
            if number == 2 and "batchnorm_micro4_sigma" in names:
                shown.append("batchnorm_micro4_sigma")
                summary["glyphs"]["sigma_averaged"] = estimate_of_best(of["glyphs"], shown[-1])
            _save(picture, number, runs, shown, summary, out)
    wanted = sorted(experiment.name for experiment in figure_5())
    if names.issuperset(wanted):
        picture = Figure(figsize=(6, 4.2))
        plot_group_sizes(picture.subplots(), of["glyphs"], TITLES["glyphs"])
        summary = {"glyphs": {name: estimate_of_best(of["glyphs"], name) for name in wanted}}
        _save(picture, 5, of["glyphs"], wanted, summary, out)


def draw_alpha_and_ramp(runs, out):
    """Writes Figure 4: a panel for each length of which there is the grid.

    Args:
        runs: Dict from numbers of steps to runs, as `by_steps` returns it.
        out: Folder.
    """
    wanted = sorted(experiment.name for experiment in figure_4())
    of = {
        steps: [run for run in found if run["data"] == "glyphs"]
        for steps, found in runs.items()
        if {run["name"] for run in found}.issuperset(wanted)
    }
    if of:
        picture = Figure(figsize=(6 * len(of), 4.2))
        panels = picture.subplots(1, len(of), squeeze=False)[0]
        for axes, (steps, found) in zip(panels, of.items(), strict=True):
            plot_alpha_and_ramp(axes, found, f"{TITLES['glyphs']}, {steps:,} steps")
        summary = {
            str(steps): {name: estimate_of_best(found, name) for name in wanted}
            for steps, found in of.items()
        }
        _save(picture, 4, [run for found in of.values() for run in found], wanted, summary, out)


def draw_few_labels(runs, figure, out):
    """Writes Figure "3", "3_long" or "3_longest" from what `as_runs` returns of its runs."""
    of = _by_data(runs)
    if not of:
        return
    several = len({run["images_per_label"] for run in runs} - {None}) > 1
    picture = Figure(figsize=(15 if several else 7, 4 * len(of)), layout="constrained")
    plot_few_labels(picture, {TITLES[name]: found for name, found in of.items()})
    summary = {
        name: {
            str(k): summarize(found, 3, images_per_label=k)
            for k in sorted({run["images_per_label"] for run in found} - {None})
        }
        for name, found in of.items()
    }
    _save(picture, figure, runs, FIGURES[3], summary, out)


def _by_data(runs):
    of = {name: [run for run in runs if run["data"] == name] for name in TITLES}
    return {name: found for name, found in of.items() if found}


def draw_correction(results, out):
    """Writes the picture of the correction in Figure 2's Batch Renorm; and beside it that of the
    run with a quarter of its alpha, too."""
    names = figure_4_name(1, 1), figure_4_name(0.25, 1)
    wanted = {"data": "glyphs", "seed": 0}.items()
    runs = [run for run in results if wanted <= run.items() and run["name"] in names]
    whole = all("layers" in run["correction"] for run in runs)  # Stored figures hold means alone.
    if whole and runs and runs[0]["name"] == names[0]:
        picture = Figure(figsize=(13, 6), layout="constrained")
        plot_correction(picture, runs[0]["step"], runs[0]["correction"])
        picture.savefig(out / "correction.png", dpi=100)
        write_json(out / "correction.json", {"runs": runs})


def draw_fine_tuning(results, out):
    """Writes the picture of the fine-tuning runs, and their results beside it."""
    if results:
        picture = Figure(figsize=(10, 4.2), layout="constrained")
        plot_fine_tuning(picture, results)
        picture.savefig(out / "fine_tuning.png", dpi=120)
        summary = fine_tuning.summarize(results)
        write_json(out / "fine_tuning.json", {"runs": results, "summary": summary})


def _save(picture, number, runs, names, summary, out):
    runs = [run for run in runs if run["name"] in names]
    save_figure(picture, runs, summary, out / f"figure{number}.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny-imagenet", type=Path, help="zip, tar or folder; none: glyphs alone")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--part", default="1/1", help="k/n: the k-th of n shares of the runs")
    parser.add_argument("--only-figures", action="store_true")
    parser.add_argument("--stored", type=Path, help="folder of figures, whose runs are kept")
    options = parser.parse_args()
    if options.stored is not None:
        take_over(options.stored, options.results)
    loaders = {("labels", "glyphs"): load_glyphs, ("few_labels", "glyphs"): few_glyphs}
    if options.tiny_imagenet is not None:
        photographs = functools.cache(lambda: load_tiny_imagenet(options.tiny_imagenet))
        loaders |= {(setting, "tiny_imagenet"): photographs for setting in ("labels", "few_labels")}
    planned = plan(dict.fromkeys(name for _, name in loaders), options.steps)
    adaptations = fine_tuning.plan()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.only_figures:
        part, parts = map(int, options.part.split("/"))
        data_sets = {key: load() for key, load in loaders.items()}
        for setting, name, run in planned[part - 1 :: parts]:
            print(setting, name, run, flush=True)
            train(run, data_sets[setting, name], options.results / setting)
        if part == 1:  # These are short, and begin with one network.
            old, new = fine_tuning.old_and_new_glyphs()
            base = fine_tuning.pretrained(old, 1_000, options.results / "base.keras")
            for run in adaptations:
                print(run, flush=True)
                fine_tuning.fine_tune(run, base, new, options.results)
    results = {"labels": [], "few_labels": []}
    for setting, name, run in planned:
        result = completed_result(run, name, options.results / setting)
        results[setting] += [] if result is None else [result]
    labels, few_labels = (by_steps(as_runs(found)) for found in results.values())
    draw(labels.get(options.steps, []), options.out)
    draw_alpha_and_ramp(labels, options.out)
    draw_few_labels(few_labels.get(options.steps, []), "3", options.out)
    draw_few_labels(few_labels.get(LONG * options.steps, []), "3_long", options.out)
    draw_few_labels(few_labels.get(LONGEST * options.steps, []), "3_longest", options.out)
    draw_correction(by_steps(results["labels"]).get(options.steps, []), options.out)
    adapted = [fine_tuning.stored_result(run, options.results) for run in adaptations]
    draw_fine_tuning([result for result in adapted if result is not None], options.out)


if __name__ == "__main__":
    main()
