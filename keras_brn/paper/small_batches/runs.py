"""The runs of Figure 6."""

import dataclasses

METHODS = {
    "batchnorm": "batchnorm",
    "batchnorm_accumulated": "batchnorm, gradients of 32 images",
    "batch_renorm": "Batch Renorm",
    "batch_renorm_at_once": "Batch Renorm, final bounds at once",
    "group_norm": "group normalization",
}
IMAGES_PER_STEP = (2, 4, 8, 16, 32)
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (0, 1, 2)
ACCUMULATED = 32  # Images whose gradients "batchnorm_accumulated" sums up for one update.


@dataclasses.dataclass(frozen=True)
class SmallBatchRun:
    """One training run, by Adam with a cosine.

    Attributes:
        method: One of `METHODS`.
        images_per_step: Number of images of a step, which are normalized together.
        learning_rate: Of Adam at the start; it falls to zero by half a cosine.
        seed: Integer that fixes the weights and the images.
        images_seen: Number of images of the whole run, a multiple of `images_per_step`.
        momentum: Of the averages of mu and sigma.
        ramp: Factor of the paper's shares of a run, for the ramp of "batch_renorm".
        width: Number of channels of the first convolution of `small_inception`.
    """

    method: str
    images_per_step: int
    learning_rate: float
    seed: int = 0
    images_seen: int = 64_000
    momentum: float = 0.99
    ramp: float = 1.0
    width: int = 16

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(
                f"`method` must be one of {sorted(METHODS)}. Received: method={self.method!r}"
            )
        if self.images_per_step < 1 or self.images_seen % self.images_per_step:
            raise ValueError(
                "`images_per_step` must divide `images_seen`. Received: "
                f"images_per_step={self.images_per_step}, images_seen={self.images_seen}"
            )

    @property
    def steps(self):
        """The number of training steps."""
        return self.images_seen // self.images_per_step

    @property
    def steps_per_update(self):
        """The number of steps whose gradients are averaged for one update of the weights."""
        accumulated = self.method == "batchnorm_accumulated"
        return max(1, ACCUMULATED // self.images_per_step) if accumulated else 1


def figure_6(images_per_step, learning_rates=LEARNING_RATES, seeds=SEEDS):
    """The runs with one number of images a step: all learning rates of all methods, of which one
    is then chosen for each method on images of their own."""
    methods = [name for name in METHODS if _differs(name, images_per_step)]
    return [
        SmallBatchRun(method, images_per_step, rate, seed)
        for method in methods
        for rate in learning_rates
        for seed in seeds
    ]


def _differs(method, images_per_step):
    return method != "batchnorm_accumulated" or images_per_step < ACCUMULATED


MOMENTA, RAMPS = (0.9, 0.97, 0.99, 0.997, 0.999), (0.0, 1.0, 2.0)


def momentum_and_ramp(images_per_step, images_seen, learning_rate, momenta=MOMENTA, ramps=RAMPS):
    """Batch Renorm by momentum and by the length of the ramp (0: none), at one learning rate."""
    return [
        SmallBatchRun(
            "batch_renorm", images_per_step, learning_rate, seed, images_seen, momentum, ramp
        )
        for momentum in momenta
        for ramp in ramps
        for seed in SEEDS
    ]


def planned_runs(data_name):
    """All runs on a data set: lists of what one program trains."""
    runs = [run for images_per_step in IMAGES_PER_STEP for run in figure_6(images_per_step)]
    groups = groups_of_runs(runs)
    if data_name == "tiny_imagenet":
        groups.append(momentum_and_ramp(4, 16_000, 1e-3))
        groups += [momentum_and_ramp(size, 64_000, 3e-3, (0.9, 0.97), (1.0,)) for size in (16, 32)]
        return groups
    groups += [momentum_and_ramp(4, images_seen, 1e-3) for images_seen in (16_000, 64_000)]
    groups += [
        momentum_and_ramp(16, images_seen, 3e-3) for images_seen in (16_000, 64_000, 256_000)
    ]
    return [*groups, momentum_and_ramp(32, 64_000, 3e-3, (0.9, 0.97), (1.0,))]


def groups_of_runs(runs):
    """Lists of the runs that one program can train: of equally many images a step and in all, and
    of the same kind of layer."""
    groups = {}
    for run in runs:
        kind = run.images_per_step, run.images_seen, run.method == "group_norm", run.width
        groups.setdefault(kind, []).append(run)
    return list(groups.values())
