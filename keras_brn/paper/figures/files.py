"""The pictures that are kept, each with its runs, as far as there are runs."""

from keras_brn.extras import extra
from keras_brn.paper.experiment import figure_4, figure_4_name, figure_5
from keras_brn.paper.figures.choices import plot_alpha_and_ramp, plot_group_sizes
from keras_brn.paper.figures.pages import plot_comparison, plot_few_labels, plot_paper_length
from keras_brn.paper.records import write_json
from keras_brn.paper.results.comparisons import COMPARISONS, FEW_LABELS_TITLES, TITLES
from keras_brn.paper.results.files import save_figure
from keras_brn.paper.results.runs import final_accuracies, runs_by_seed
from keras_brn.paper.results.summaries import (
    accuracy_interval,
    curves_by_factor,
    summarize_alpha_and_ramp,
    summarize_figure,
    summarize_group_sizes,
    summarize_variants,
)
from keras_brn.plot import plot_correction

with extra("paper"):
    from matplotlib.figure import Figure


def write_comparison(runs_by_length, steps, number, out):
    """Writes Figure 1 or 2.

    Args:
        runs_by_length: As `runs_by_steps` returns it.
        steps: Number of training steps of the figure; runs of other lengths are in the summary.
        number: 1 or 2.
        out: Folder.
    """
    names, runs = [*COMPARISONS[number].labels], runs_by_length.get(steps, [])
    if not {run["name"] for run in runs}.issuperset(names):
        return
    by_data = _by_data(runs)
    picture = Figure()
    plot_comparison(picture, {TITLES[name]: by_data[name] for name in by_data}, number)
    summary = {name: summarize_figure(of_data, number) for name, of_data in by_data.items()}
    if number == 1:
        for name, of_data in summary.items():
            of_name = {length: _by_data(of).get(name, []) for length, of in runs_by_length.items()}
            of_data["variants"] = summarize_variants(of_name, steps)
        runs = [run for of_length in runs_by_length.values() for run in of_length]
        names.append("batch_renorm_alpha4")
    if number == 2:
        names.append("batchnorm_micro4_sigma")
        if averaged := runs_by_seed(by_data.get("glyphs", []), names[-1]):
            summary["glyphs"]["sigma_averaged"] = _final_accuracy(averaged)
    _write(picture, number, runs, names, summary, out)


def write_few_labels(runs, out):
    """Writes Figure 3 from what `as_runs` returns of its runs."""
    by_data = _by_data(runs)
    if not by_data:
        return
    picture = Figure()
    titled = {FEW_LABELS_TITLES[name]: of_data for name, of_data in by_data.items()}
    plot_few_labels(picture, titled)
    _write(picture, 3, runs, COMPARISONS[3].labels, _by_images_per_label(by_data), out)


def write_paper_length(runs, out):
    """Writes Figure 3 at the length of the paper.

    Args:
        runs: As `as_runs` returns those of `keras_brn.paper.experiment.figure_3_paper_length`.
        out: Folder.
    """
    if not {run["name"] for run in runs}.issuperset(COMPARISONS[3].compared):
        return
    picture = Figure()
    plot_paper_length(picture, runs)
    summary = _by_images_per_label(_by_data(runs))
    _write(picture, "3_paper_length", runs, {run["name"] for run in runs}, summary, out)


def _by_images_per_label(by_data):
    return {
        name: {
            str(k): summarize_figure(of_data, 3, images_per_label=k)
            for k in sorted({run["images_per_label"] for run in of_data} - {None})
        }
        for name, of_data in by_data.items()
    }


def write_alpha_and_ramp(runs_by_length, out):
    """Writes Figure 4: a panel for each length of which there are all alphas, or all ramps.

    Args:
        runs_by_length: As `runs_by_steps` returns it.
        out: Folder.
    """
    wanted = sorted(experiment.name for experiment in figure_4())
    complete = {
        steps: _by_data(runs)["glyphs"]
        for steps, runs in runs_by_length.items()
        if curves_by_factor(_by_data(runs).get("glyphs", []))
    }
    if not complete:
        return
    picture = Figure(figsize=(5 * len(complete), 3.6), layout="constrained")
    panels = picture.subplots(1, len(complete), squeeze=False)[0]
    for axes, (steps, runs) in zip(panels, complete.items(), strict=True):
        plot_alpha_and_ramp(axes, runs, f"glyphs, {steps:,} steps")
    summary = {str(steps): summarize_alpha_and_ramp(runs) for steps, runs in complete.items()}
    runs = [run for of_length in complete.values() for run in of_length]
    _write(picture, 4, runs, wanted, summary, out)


def write_group_sizes(runs, out):
    """Writes Figure 5 from the runs of one number of training steps."""
    wanted = {experiment.name for experiment in figure_5()}
    glyphs = _by_data(runs).get("glyphs", [])
    if not {run["name"] for run in glyphs}.issuperset(wanted):
        return
    picture = Figure(figsize=(8, 3.6), layout="constrained")
    plot_group_sizes(picture.subplots(), glyphs, TITLES["glyphs"])
    _write(picture, 5, glyphs, wanted, {"glyphs": summarize_group_sizes(glyphs)}, out)


def write_correction(results, out):
    """Writes the picture of the correction in Figure 2's Batch Renorm; and beside it that of the
    run with a quarter of its alpha, too. Runs of stored figures, which have only the means over
    the layers, are not drawn.

    Args:
        results: As `train` returns them, of one number of training steps.
        out: Folder.
    """
    names = figure_4_name(1, 1), figure_4_name(0.25, 1)
    wanted = {"data": "glyphs", "seed": 0}.items()
    runs = [run for run in results if wanted <= run.items() and run["name"] in names]
    whole = all("layers" in run["correction"] for run in runs)
    if whole and runs and runs[0]["name"] == names[0]:
        picture = Figure(figsize=(13, 6), layout="constrained")
        plot_correction(picture, runs[0]["step"], runs[0]["correction"])
        picture.savefig(out / "correction.png", dpi=100)
        write_json(out / "correction.json", {"runs": runs})


def _by_data(runs):
    """Dict from the name of a data set, as far as there are runs of it, to these."""
    by_data = {name: [run for run in runs if run["data"] == name] for name in TITLES}
    return {name: of_data for name, of_data in by_data.items() if of_data}


def _final_accuracy(by_seed):
    return accuracy_interval(final_accuracies(by_seed))


def _write(picture, number, runs, names, summary, out):
    runs = [run for run in runs if run["name"] in names]
    save_figure(picture, runs, summary, out / f"figure{number}.png")
