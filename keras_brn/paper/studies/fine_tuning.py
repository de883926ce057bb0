"""Fine-tuning of a network that was trained with batchnorm, to other characters.

    python -m keras_brn.paper.studies.fine_tuning [--results results] [--out figures]

Each seed has a network of its own to begin with. The learning rate is chosen for each method and
number of images a step by another seed, another network and images that are not reported.
"""

import dataclasses
import functools

import keras
import numpy as np

from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.images import as_floats, hold_out
from keras_brn.paper.studies.study import (
    SEARCH_SEED,
    Batches,
    CountedByImages,
    accuracy,
    adapted,
    base_network,
    check_method,
    compile_with_cosine,
    load_study,
    search_and_report,
    study_parser,
)

METHODS = {
    "batchnorm": "batchnorm",
    "frozen_batchnorm": "batchnorm, frozen",
    "batch_renorm": "Batch Renorm, after `renormalize`",
}
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
IMAGES_PER_STEP = (2, 4)
PANELS = {f"{images} images a step": {"images_per_step": images} for images in IMAGES_PER_STEP}


@dataclasses.dataclass(frozen=True)
class FineTuningRun(CountedByImages):
    """One training run, by Adam with a cosine.

    Attributes:
        method: One of `METHODS`. "frozen_batchnorm" trains all but the normalization, which stays
            that of the network before; "batch_renorm" has its final bounds from the start.
        images_per_step: Number of images of a step, which are normalized together.
        learning_rate: Of Adam at the start; it falls to zero by half a cosine.
        seed: Integer that fixes the network before, the new last layer and the images.
        images_seen: Number of images of the whole run.
        momentum: Of the averages of mu and sigma.
        base_steps: Number of steps of 128 images that the network before is trained.
    """

    method: str
    images_per_step: int
    learning_rate: float
    seed: int = 0
    images_seen: int = 10_000
    momentum: float = 0.99
    base_steps: int = 1_000

    def __post_init__(self):
        check_method(self.method, METHODS)


def search_runs(images_per_step=IMAGES_PER_STEP, rates=LEARNING_RATES, seeds=(SEARCH_SEED,)):
    """The runs by which the learning rates are chosen."""
    return [
        FineTuningRun(method, images, rate, seed)
        for seed in seeds
        for images in images_per_step
        for method in METHODS
        for rate in rates
    ]


def train_fine_tuning(run, images, choices, base):
    """The result of a run.

    Args:
        run: `FineTuningRun`.
        images: `Images`, of labels that the base does not know.
        choices: Pair of other uint8 images of these labels, and theirs.
        base: As `base_network` returns it, of the seed of the run. It is left as it is.

    Returns:
        Dict of accuracies, shares of 1: `choices` and `test`.
    """
    keras.utils.set_random_seed(run.seed)
    model = adapted(base, keras.layers.Dense(images.classes), run.method, run.momentum)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_with_cosine(model, loss, run.learning_rate, run.steps)
    batches = Batches(
        images.train_images, images.train_labels, run.steps, run.seed, run.images_per_step
    )
    model.fit(batches, shuffle=False, verbose=0)
    return {
        "choices": accuracy(model, as_floats(choices[0]), choices[1]),
        "test": accuracy(model, as_floats(images.validation_images), images.validation_labels),
    }


def old_and_new_glyphs(old_per_label=200, new_per_label=40):
    """200 characters to train on before, and 50 others: two `Images`, and for choices a pair of
    images and labels, 20 of each of the others."""
    data = load_glyphs(old_per_label, validation_per_label=40, difficulty=1.25, labels=250)
    new = np.arange(0, 250, 5)
    old = np.setdiff1d(np.arange(250), new)
    images, choices = hold_out(data.of_labels(new, new_per_label + 20), per_label=20)
    return data.of_labels(old), images, choices


def main(arguments=None):
    from keras_brn.paper.figures import draw_methods  # Which imports this module.

    options = study_parser("fine_tuning").parse_args(arguments)
    old, images, choices = old_and_new_glyphs()
    base = functools.cache(lambda seed, steps: base_network(old, seed, steps, batch_size=128))

    def train(run):
        return train_fine_tuning(run, images, choices, base(run.seed, run.base_steps))

    setting = ("method", "images_per_step")
    search_and_report("fine_tuning", options, search_runs(), setting, range(3), train, images)
    picture = draw_methods(load_study(options.out / "fine_tuning.json"), METHODS, PANELS)
    picture.savefig(options.out / "fine_tuning.png", dpi=120)


if __name__ == "__main__":
    main()
