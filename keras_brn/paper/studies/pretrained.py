"""Fine-tuning of a network that others trained on ImageNet, with a few images a step.

    python -m keras_brn.paper.studies.pretrained --cifar10 PATH --tiny-imagenet PATH \\
        [--results results] [--out figures]

EfficientNet-lite0 was trained with batchnorm and large minibatches. With memory for a few images it
is trained further on a thousand images of 96x96 pixels, each of them three times, of the 10 labels
of CIFAR-10 or of 50 of Tiny ImageNet. The learning rate is chosen for each method and number of
images a step, with a seed and on images of which nothing is reported: it climbs from the same rate
as long as it gets better.
"""

import dataclasses
import functools
import math
from pathlib import Path

import keras
import numpy as np

from keras_brn.paper.data.cifar10 import load_cifar10
from keras_brn.paper.data.images import hold_out
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.data.tiny_imagenet import load_tiny_imagenet
from keras_brn.paper.networks.efficientnet import pretrained_efficientnet, scaled
from keras_brn.paper.studies.study import (
    SEARCH_SEED,
    CountedByImages,
    adapted,
    best_runs,
    check_method,
    compile_with_adam,
    printing,
    run_study,
    save_study,
    study_parser,
)

METHODS = {
    "batchnorm": "batchnorm",
    "frozen_batchnorm": "batchnorm, frozen",
    "batch_renorm": "Batch Renorm, bounds 3 and 5",
    "batch_renorm_slow": "Batch Renorm, bounds 3 and 5, momentum .999",
    "batch_renorm_tight": "Batch Renorm, bounds 1.5 and .5",
    "batch_renorm_tight_slow": "Batch Renorm, bounds 1.5 and .5, momentum .999",
    "batchnorm_slow": "batchnorm, momentum .999",
}
_SLOW = "_slow"
_BOUNDS = {
    "batch_renorm": {"r_max": 3.0, "d_max": 5.0},
    "batch_renorm_tight": {"r_max": 1.5, "d_max": 0.5},
}
LEARNING_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FIRST_RATE = 1e-3
SIZE = 96
# Data and images of a step, the most important first.
SETTINGS = (("cifar10", 4), ("cifar10", 2), ("cifar10", 8), ("tiny_imagenet", 4))
TITLES = {"cifar10": "CIFAR-10", "tiny_imagenet": "Tiny ImageNet"}
PANELS = {  # Of the picture.
    f"{TITLES[data]}, {images} images a step": {"data": data, "images_per_step": images}
    for data, images in SETTINGS
}


@dataclasses.dataclass(frozen=True)
class PretrainedRun(CountedByImages):
    """One training run, by Adam with a warm-up and a cosine.

    Attributes:
        method: One of `METHODS`. "frozen_batchnorm" trains all but the normalization, which stays
            that of the network before.
        data: Name of the data set.
        images_per_step: Number of images of a step, which are normalized together.
        learning_rate: Of Adam at its greatest. It rises to it over `warmup` of the run, and falls
            to zero by half a cosine.
        seed: Integer that fixes the images to train on, their order, and the new last layer.
        images_seen: Number of images of the whole run.
        training_images: Number of different images to train on, as many of each label.
        warmup: Share of the steps.
    """

    method: str
    data: str
    images_per_step: int
    learning_rate: float
    seed: int = 0
    images_seen: int = 3_000
    training_images: int = 1_000
    warmup: float = 0.1

    def __post_init__(self):
        check_method(self.method, METHODS)

    def learning_rate_at(self, step):
        """The learning rate of a step, the first of which is 0."""
        first = self.warmup * self.steps
        if step < first:
            return self.learning_rate * (step + 1) / (first + 1)
        return (
            self.learning_rate * (1 + math.cos(math.pi * (step - first) / (self.steps - first))) / 2
        )


def climb(run, quality, rates=LEARNING_RATES):
    """The runs of a search for the learning rate: from that of the run upwards as long as it gets
    better, and downwards where it got no better upwards.

    Args:
        run: `PretrainedRun`.
        quality: Function of a run that returns how good it is; more is better.
        rates: Tuple of learning rates in ascending order, with that of the run.

    Returns:
        List of runs: all that were tried.
    """
    tried = [run]
    start = rates.index(run.learning_rate)
    for way in (rates[start + 1 :], rates[:start][::-1]):
        best = quality(run)
        for rate in way:
            tried.append(dataclasses.replace(run, learning_rate=rate))
            if quality(tried[-1]) <= best:
                break
            best = quality(tried[-1])
        if best > quality(run):
            break
    return tried


def search_and_seeds(first, results_of, seeds=range(3)):
    """The results of the search for a learning rate, and of the seeds to report at the best one.

    Args:
        first: `PretrainedRun` where the search begins.
        results_of: Function of a list of runs that returns the list of their results.
        seeds: Iterable of integers.
    """
    search = climb(first, lambda run: results_of([run])[0]["choices"])
    results = results_of(search)
    return results + results_of(best_runs(search, results, ("method",), seeds))


class _Batches(keras.utils.PyDataset):
    def __init__(self, images, run):
        super().__init__()
        self.images, self.run = images, run
        self.chosen = _images_of_seed(images, run)
        labels = images.train_labels[self.chosen]
        self.sampler = Sampler(labels, run.images_per_step, run.seed)

    def __len__(self):
        return self.run.steps

    def __getitem__(self, step):
        drawn, variations = self.sampler.draw(step)
        indices = self.chosen[drawn]
        x = self.images.vary(self.images.train_images[indices], variations)
        return scaled(x), self.images.train_labels[indices]


def _images_of_seed(images, run):
    rng, of_each = np.random.default_rng(run.seed), run.training_images // images.classes
    of_labels = [np.flatnonzero(images.train_labels == label) for label in range(images.classes)]
    return np.concatenate([rng.choice(indices, of_each, replace=False) for indices in of_labels])


class _LearningRate(keras.callbacks.Callback):
    """That of the run: a schedule of Keras would be compiled into the step, which runs share."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = self.run.learning_rate_at(batch)


def train_pretrained(run, images, choices, model):
    """The result of a run.

    Args:
        run: `PretrainedRun`.
        images: `Images`.
        choices: Pair of uint8 images and labels, by which learning rates are chosen.
        model: As `Networks.before` returns it. It is trained.

    Returns:
        Dict of accuracies, shares of 1: `choices` and `test`.
    """
    keras.utils.set_random_seed(run.seed)
    head = model.layers[-1]
    kernel = keras.initializers.GlorotUniform(run.seed)(head.kernel.shape)
    head.set_weights([kernel, np.zeros(head.bias.shape)])
    model.fit(_Batches(images, run), shuffle=False, verbose=0, callbacks=[_LearningRate(run)])
    test = images.validation_images, images.validation_labels
    return {"choices": _accuracy(model, *choices), "test": _accuracy(model, *test)}


def _accuracy(model, images, labels, batch_size=100):
    parts = [images[first : first + batch_size] for first in range(0, len(images), batch_size)]
    predicted = [np.argmax(model.predict_on_batch(scaled(part)), axis=1) for part in parts]
    return round(float(np.mean(np.concatenate(predicted) == labels)), 5)


def fine_tuned_network(base, method, classes):
    """A copy of a network with a new last layer and the normalization of a method, compiled."""
    momentum = 0.999 if method.endswith(_SLOW) else 0.99
    bounds = _BOUNDS.get(method.removesuffix(_SLOW), {})
    model = adapted(base, keras.layers.Dense(classes), method, momentum, **bounds)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_with_adam(model, loss, FIRST_RATE)
    return model


class Networks:
    """The networks that runs begin with. One is made for each method, number of labels and size of
    a step, and set back for each run: to trace its step takes as long as 150 steps.

    Args:
        base: `keras.Model` with batchnorm, whose last layer is exchanged.
    """

    def __init__(self, base):
        self.base = base
        self._made = functools.cache(self._make)

    def _make(self, method, classes, images_per_step):
        model = fine_tuned_network(self.base, method, classes)
        return model, model.get_weights()

    def before(self, run, classes):
        """The compiled network of a run as it is before training."""
        model, weights = self._made(run.method, classes, run.images_per_step)
        model.set_weights(weights)
        for variable in model.optimizer.variables:
            variable.assign(keras.ops.zeros_like(variable))
        return model


def pretrained_data(name, path):
    """Images of 96x96 pixels: `Images` with thrice what a run trains on, and of other training
    images a pair of 500 images and labels, for choices.

    Args:
        name: "cifar10", of which all 10 labels are taken and 1,000 test images; or "tiny_imagenet",
            of which every fourth label is taken, 50, and 1,250 of their validation images.
        path: As for `load_cifar10` or `load_tiny_imagenet`.
    """
    of_each = 350 if name == "cifar10" else 70
    if name == "cifar10":
        data, every = load_cifar10(path).of_labels(range(10), of_each), 10
    else:
        data, every = load_tiny_imagenet(path, size=64).of_labels(range(0, 200, 4), of_each), 2
    data = dataclasses.replace(
        data,
        validation_images=data.validation_images[::every],
        validation_labels=data.validation_labels[::every],
    )
    large = {name: _resized(getattr(data, name)) for name in ("train_images", "validation_images")}
    return hold_out(dataclasses.replace(data, **large), per_label=500 // data.classes)


def _resized(images, at_once=500):
    parts = []
    for first in range(0, len(images), at_once):
        x = images[first : first + at_once].astype("float32")
        x = keras.ops.image.resize(x, (SIZE, SIZE), "bicubic", data_format="channels_last")
        parts.append(np.clip(np.round(keras.ops.convert_to_numpy(x)), 0, 255).astype("uint8"))
    return np.concatenate(parts)


def main(arguments=None):
    from keras_brn.paper.figures import draw_methods  # Which imports this module.

    parser = study_parser("pretrained")
    parser.add_argument("--cifar10", type=Path, help="as for `load_cifar10`")
    parser.add_argument("--tiny-imagenet", type=Path, help="as for `load_tiny_imagenet`")
    options = parser.parse_args(arguments)
    networks = Networks(pretrained_efficientnet(SIZE))
    load = functools.cache(pretrained_data)
    stored = []
    for name, images_per_step in SETTINGS:
        images, choices = load(name, getattr(options, name))

        def train(run, images=images, choices=choices):
            return train_pretrained(run, images, choices, networks.before(run, images.classes))

        folder = options.results / "pretrained"
        results_of = functools.partial(run_study, train=printing(train), folder=folder, data=images)
        for method in METHODS:
            first = PretrainedRun(method, name, images_per_step, FIRST_RATE, SEARCH_SEED)
            stored += search_and_seeds(first, results_of)
            save_study(stored, options.out / "pretrained.json")
    picture = draw_methods(stored, METHODS, PANELS)
    picture.savefig(options.out / "pretrained.png", dpi=120)


if __name__ == "__main__":
    main()
