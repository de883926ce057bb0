"""Runs as `as_runs` returns them, for the tests of what is computed from runs."""

from keras_brn.paper.results import as_runs


def example_run(name, accuracy, seed=0, images_per_label=None, **more):
    run = {
        "name": name,
        "data": "shades",
        "seed": seed,
        "group": 4,
        "images_per_label": images_per_label,
        "step": [10, 20, 30],
        "accuracy": accuracy,
        "train_accuracy": [0.0, 0.0, accuracy[-1] / 2],
        "config": {
            "name": name,
            "seed": seed,
            "images_per_label": images_per_label,
            "optimizer_epsilon": 0.003,
        },
        "provenance": {"seconds": 1.0},
    }
    return {**run, **more}


RESULTS = [
    example_run("batchnorm", [0.2, 0.4, 0.6]),
    example_run("batchnorm_micro4", [0.1, 0.3, 0.2]),
    example_run("batch_renorm_micro4", [0.2, 0.35, 0.5]),
    example_run("batchnorm", [0.4, 0.6, 0.8], 1),
    example_run("batchnorm_micro4", [0.3, 0.5, 0.4], 1),
    example_run("batch_renorm_micro4", [0.2, 0.45, 0.7], 1),
    example_run("batch_renorm", [0.2, 0.3, 0.5]),
    example_run("batchnorm_noniid", [0.1, 0.2, 0.4], 0, 2),
    example_run("batchnorm_noniid", [0.1, 0.2, 0.3], 0, 8, batch_accuracy=[0.0, 0.3, 0.5]),
    example_run("batch_renorm_noniid", [0.1, 0.2, 0.5], 0, 8, train_image_accuracy=[0.1, 0.2, 0.6]),
]
RUNS = as_runs(RESULTS)
