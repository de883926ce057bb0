"""The paper's training runs, at its scale or smaller."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run. The defaults are the paper's, of Batch Renorm in Figure 1.

    "Inception" marks what the paper leaves to the published training of Inception-v3: Szegedy et
    al. 2016, section 8, and the distributed training script of tensorflow/models.

    Attributes:
        name: Name of the run.
        normalization: "batch_renorm", "batchnorm", "group_norm" or "layer_norm".
        group: Number of consecutive examples that are normalized together (section 4: 32).
        images_per_label: Of a group of `draw` images, how many show the same label; `None` for
            images drawn independently (section 4.3: 2).
        draw: Number of images whose labels are drawn together (section 4.3: 32); `None`: all of a
            step.
        network: "inception_v3", "small_inception" or "small_network", which is plain.
        width: Number of channels of the first convolution of the small network.
        batch_size: Number of examples per step (section 4: 50 workers, 32 each).
        steps: Number of training steps (Figure 1: 130k).
        alpha: Learning rate of mu and sigma (section 4: .01).
        r_max: Final bound (section 4: 3).
        d_max: Final bound (section 4: 5).
        warmup_steps: Steps before the bounds open (section 4: 5k).
        r_max_steps: Step at which r_max is final (section 4: 40k).
        d_max_steps: Step at which d_max is final (section 4: 25k).
        learning_rate: Of RMSProp at the start (Inception: .045).
        learning_rate_decay: Its factor (Inception: .94),
        decay_steps: applied once in so many steps (Inception: 2 epochs, here of 1601 / 2 steps).
        rho: Of RMSProp (Inception: .9).
        optimizer_momentum: Of RMSProp (Inception: .9).
        optimizer_epsilon: Of RMSProp (Inception: 1).
        average_decay: Of the averages of all parameters (section 4; Inception: .9999).
        label_smoothing: Of the training loss (Inception: .1).
        weight_decay: Factor of `tf.nn.l2_loss` of the kernels (Inception: 4e-5).
        dropout: Share of the values dropped before the logits (Inception: .2).
        auxiliary_weight: Of the loss of the auxiliary head (Inception: .4).
        evaluations: Number of evenly spaced evaluations (not said).
        seed: Integer that fixes weights and batches (not said).
    """

    name: str = "batch_renorm"
    normalization: str = "batch_renorm"
    group: int = 32
    images_per_label: int | None = None
    draw: int | None = 32
    network: str = "inception_v3"
    width: int | None = None
    batch_size: int = 1600
    steps: int = 130_000
    alpha: float = 0.01
    r_max: float = 3.0
    d_max: float = 5.0
    warmup_steps: int = 5_000
    r_max_steps: int = 40_000
    d_max_steps: int = 25_000
    learning_rate: float = 0.045
    learning_rate_decay: float = 0.94
    decay_steps: float = 1601.0
    rho: float = 0.9
    optimizer_momentum: float = 0.9
    optimizer_epsilon: float = 1.0
    average_decay: float = 0.9999
    label_smoothing: float = 0.1
    weight_decay: float = 4e-5
    dropout: float = 0.2
    auxiliary_weight: float = 0.4
    evaluations: int = 130
    seed: int = 0


def scaled(experiment, steps, **changes):
    """An experiment of the paper for `small_inception`, 128 images a step and two CPU cores.

    What changes, by what rule:

    - 50 workers become 4: a step is 128 images, still in groups of 32.
    - The ramp keeps its place in the run: its counts of steps are multiplied by the factor
      `steps / 130_000`.
    - alpha is divided by the square root of that factor: in a run of fewer steps a weight moves
      further in each, and mu and sigma must not lag behind it.
    - The averages of the parameters need no change, since their decay is ramped.
    - The learning rate falls to .05 of its start, in 48 steps of .94: where the paper's 81 take it,
      to .007, a short run has learned too little. The epsilon of RMSProp is .003, since the
      gradients of this network are small. Both were chosen by the accuracy of batchnorm in groups
      of 32 alone, on glyphs, after 800 steps.
    - No auxiliary head and no dropout, in a network of 200 thousand parameters.

    For Figure 3 there is `FEW_LABELS`.

    Args:
        experiment: `Experiment` at the paper's scale.
        steps: Number of training steps.
        **changes: Attributes of the `Experiment`, in the place of the rules above.
    """
    factor = steps / 130_000
    values = {
        "network": "small_inception",
        "width": 8,
        "batch_size": 128,
        "steps": steps,
        "alpha": min(1.0, round(experiment.alpha * factor**-0.5, 4)),
        "decay_steps": round(steps / 48, 3),
        "optimizer_epsilon": 0.003,
        "dropout": 0.0,
        "auxiliary_weight": 0.0,
        "evaluations": 20,
    }
    for name in ("warmup_steps", "r_max_steps", "d_max_steps"):
        values[name] = round(getattr(experiment, name) * factor)
    return dataclasses.replace(experiment, **(values | changes))


# What `scaled` changes as well for Figure 3. A step of 128 images in groups of few labels has 64 or
# 16 labels, where the paper's has 800: with the small epsilon, batchnorm with 4 labels a group
# stays at chance. With .3 it learns.
FEW_LABELS = {"optimizer_epsilon": 0.3}


def figure_1():
    """The runs of Figure 1: minibatches of 32."""
    return [Experiment("batchnorm", "batchnorm"), Experiment()]


def figure_1_faster_averages():
    """Batch Renorm of Figure 1 with four times its alpha: whether mu and sigma that lag behind the
    network are what it ends lower by, at our scale."""
    return [Experiment("batch_renorm_alpha4", alpha=0.04)]


def figure_2():
    """The runs of Figure 2: microbatches of 4; and batchnorm of Figure 1."""
    return [
        Experiment("batchnorm", "batchnorm"),
        Experiment("batchnorm_micro4", "batchnorm", group=4),
        Experiment("batch_renorm_micro4", group=4),
    ]


def sigma_averaged():
    """Batchnorm of Figure 2 in microbatches, but inferring with averages of sigma, as Batch Renorm
    does, in the place of averages of the variance."""
    return [Experiment("batchnorm_micro4_sigma", group=4, r_max=1.0, d_max=0.0)]


def figure_3(images_per_label=2):
    """The runs of Figure 3: groups of 32 images, a few of each label; and batchnorm of Figure 1."""
    same = {"images_per_label": images_per_label}
    return [
        Experiment("batchnorm", "batchnorm"),
        Experiment("batchnorm_noniid", "batchnorm", **same),
        Experiment("batchnorm_noniid_halves", "batchnorm", group=16, **same),
        Experiment("batch_renorm_noniid", **same),
    ]


def spread(images_per_label=2):
    """Batchnorm on the labels of Figure 3, but drawn for the whole step, over whose groups the
    images of a label are spread evenly: what few labels cost where groups are not made of them."""
    same = {"images_per_label": images_per_label, "draw": None}
    return [Experiment("batchnorm_noniid_spread", "batchnorm", **same)]


def figure_3_paper_length():
    """Figure 3 at the length of the paper, for two programs of `train_on_device`: seed 0 of 4
    labels x 8, with the same labels spread over the groups, and of the paper's own 16 x 2; and
    seeds 1 and 2 of what 4 x 8 costs and Batch Renorm recovers. Batchnorm is Batch Renorm held at
    r_max=1 and d_max=0."""
    independent, few, _, renorm = figure_3(8)
    _, pairs, _, renorm_pairs = figure_3(2)
    compared = [*spread(8), few, renorm]
    first = [independent, *compared, pairs, renorm_pairs]
    others = [dataclasses.replace(run, seed=seed) for seed in (1, 2) for run in compared]
    changes = {"evaluations": 26, **FEW_LABELS}
    return [
        [_held_at_batchnorm(scaled(run, 130_000, **changes)) for run in runs]
        for runs in (first, others)
    ]


def _held_at_batchnorm(experiment):
    if experiment.normalization != "batchnorm":
        return experiment
    return dataclasses.replace(experiment, normalization="batch_renorm", r_max=1.0, d_max=0.0)


ALPHAS, RAMPS = (0.25, 1, 4), (0.5, 1, 2)  # Of Figure 4: factors of the rule's, one at a time.


def figure_4():
    """Batch Renorm of Figure 2, with another alpha or length of the ramp: the effect of both, which
    the paper leaves open (section 5)."""
    base = figure_2()[2]
    factors = [*((alpha, 1) for alpha in ALPHAS), *((1, ramp) for ramp in RAMPS)]
    return [
        dataclasses.replace(
            base,
            name=figure_4_name(alpha, ramp),
            alpha=base.alpha * alpha,
            r_max_steps=round(base.r_max_steps * ramp),
            d_max_steps=round(base.d_max_steps * ramp),
        )
        for alpha, ramp in dict.fromkeys(factors)
    ]


def figure_4_name(alpha, ramp):
    """The name of a run of Figure 4, from the two factors."""
    name = "batch_renorm_micro4"
    return name if alpha == ramp == 1 else f"{name}_alpha{alpha:g}_ramp{ramp:g}"


GROUP_SIZES = (1, 2, 4, 8, 16, 32)  # Of Figure 5.


def figure_5():
    """What to choose for a number of examples per group: batchnorm, Batch Renorm, Batch Renorm with
    its final bounds from the first step, and normalizations of single examples."""
    at_once = {"warmup_steps": 0, "r_max_steps": 0, "d_max_steps": 0}
    runs = []
    for group in GROUP_SIZES:
        runs += [
            Experiment(figure_5_name("batchnorm", group), "batchnorm", group),
            Experiment(figure_5_name("batch_renorm", group), group=group),
            Experiment(figure_5_name("fixed_bounds", group), group=group, **at_once),
        ]
    return [*runs, *(Experiment(name, name) for name in ("group_norm", "layer_norm"))]


def figure_5_name(name, group):
    """The name of a run of Figure 5, from what is compared and the examples per group."""
    return name if group == 32 else f"{name}_micro{group}"
