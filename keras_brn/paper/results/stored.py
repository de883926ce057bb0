"""The tables of the stored figures, as the README shows them."""

import json
from pathlib import Path
from typing import NamedTuple

from keras_brn.paper.results.comparisons import FEW_LABELS_TITLES, TITLES
from keras_brn.paper.results.studies import NUMBERS, PERCENT, study_table, summarize_study
from keras_brn.paper.results.tables import alpha_and_ramp_table, figure_table, group_size_table
from keras_brn.paper.small_batches.results import momentum_tables, small_batch_tables
from keras_brn.paper.studies import (
    cifar10,
    fine_tuning,
    generative,
    metric_learning,
    pretrained,
    recurrent,
    reinforcement,
    residual,
)
from keras_brn.paper.studies.study import load_study, reported


class Study(NamedTuple):
    """What a table shows of a study.

    Attributes:
        methods: Dict from a method to what the table calls it.
        quantities: Dict from the names of numbers in the results to their headings.
        baseline: The method that the others are compared with.
        setting: Names of the attributes that make a setting.
        formats: How numbers are written, as for `study_table`.
        titles: Dict from what a setting is called in the results to what it is called in the table.
    """

    methods: dict
    quantities: dict
    baseline: str = "batchnorm"
    setting: tuple = ()
    formats: tuple = PERCENT
    titles: dict = {}


STUDIES = {  # By the name of the file.
    "metric_learning": Study(metric_learning.METHODS, {"test": "recall at 1"}),
    "recurrent": Study(
        recurrent.METHODS,
        {"test": "accuracy", "longer": "sequences twice as long"},
        baseline="batchnorm_per_step",
        setting=("images_per_step",),
    ),
    "reinforcement": Study(
        reinforcement.METHODS,
        {"mean": "return, whole run", "last": "return, last quarter"},
        formats=NUMBERS,
    ),
    "fine_tuning": Study(fine_tuning.METHODS, {"test": "accuracy"}, setting=("images_per_step",)),
    "pretrained": Study(
        pretrained.METHODS,
        {"test": "accuracy"},
        setting=("data", "images_per_step"),
        titles=pretrained.TITLES,
    ),
    "residual": Study(residual.METHODS, {"test": "accuracy"}, setting=("images_per_step",)),
    "cifar10": Study(
        cifar10.METHODS,
        {
            "test": "accuracy at the end",
            "early": "mean, epochs 1 to 50",
            "late": "mean, epochs 71 to 100",
        },
        setting=("microbatch",),
    ),
    "generative": Study(
        generative.METHODS,
        {
            "test": "distance to real pictures",
            "training": "distance as training makes them",
        },
        formats=NUMBERS,
    ),
}


def stored_tables(folder):
    """Markdown tables of the summaries in a folder of figures.

    Args:
        folder: As `python -m keras_brn.paper.reproduce --out` writes it.

    Returns:
        Dict from what a table is of to the table, as far as there are figures.
    """
    folder = Path(folder)

    def summary(name):
        path = folder / f"{name}.json"
        return json.loads(path.read_text())["summary"] if path.exists() else {}

    tables = {}
    for number in (1, 2):
        columns = {TITLES[data]: values for data, values in summary(f"figure{number}").items()}
        if columns:
            tables[f"Figure {number}"] = figure_table(number, columns)
    by_images_per_label = {}
    for name, length in (("figure3", ""), ("figure3_paper_length", ", 130,000 steps")):
        for data, of_data in summary(name).items():
            for images_per_label, values in of_data.items():
                columns = by_images_per_label.setdefault(int(images_per_label), {})
                columns[FEW_LABELS_TITLES[data] + length] = values
    for images_per_label, columns in sorted(by_images_per_label.items()):
        title = f"Figure 3, {32 // images_per_label} labels x {images_per_label} images"
        tables[title] = figure_table(3, columns)
    if of_factors := summary("figure4"):
        tables["Figure 4"] = alpha_and_ramp_table(of_factors)
    if of_group_sizes := summary("figure5"):
        tables["Figure 5"] = group_size_table(of_group_sizes["glyphs"])
    if (folder / "figure6.json").exists():
        stored = json.loads((folder / "figure6.json").read_text())
        tables |= small_batch_tables(stored["summary"])
        tables |= momentum_tables(stored["momentum"])
    for name, study in STUDIES.items():
        if (folder / f"{name}.json").exists():
            results = reported(load_study(folder / f"{name}.json"))
            of_study = summarize_study(results, study.setting, study.quantities, study.baseline)
            tables[name] = study_table(
                of_study, study.methods, study.quantities, study.formats, study.titles
            )
    return tables
