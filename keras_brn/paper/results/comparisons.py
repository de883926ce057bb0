"""What the figures compare: the paper's numbers, names, and which runs stand against which."""

import dataclasses
from typing import NamedTuple

# Top-1 validation accuracy of Inception-v3 and the step of it: section 4, Figures 1 to 3.
PAPER = {
    "batchnorm": (0.783, 130_000),
    "batch_renorm": (0.785, 130_000),
    "batchnorm_micro4": (0.742, 210_000),
    "batch_renorm_micro4": (0.765, 130_000),
    "batchnorm_noniid": (0.67, None),
    "batchnorm_noniid_batchstats": (0.765, None),
    "batchnorm_noniid_halves": (0.774, 140_000),
    "batch_renorm_noniid": (0.785, 120_000),
}

# Accuracy on the training images, each classified without the others of a minibatch (section 4.3).
# It is not comparable with the accuracy on training minibatches, which is normalized by them.
PAPER_TRAINING_IMAGES = {"batchnorm_noniid": 0.728}


class Difference(NamedTuple):
    """The accuracy of `name` minus that of `baseline`."""

    name: str
    baseline: str
    label: str


class Share(NamedTuple):
    """The part of the way from the accuracy of `bottom` to that of `top` that `name` goes."""

    name: str
    bottom: str
    top: str
    label: str


class Race(NamedTuple):
    """When `name` reaches the accuracy at which `baseline` ends."""

    name: str
    baseline: str
    label: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What one of the paper's figures compares.

    Attributes:
        labels: Dict from the name of each contender to what tables and pictures call it.
        compared: Names on whose common seeds the comparison rests. Other contenders are controls,
            which may have fewer seeds.
        differences: Of accuracies.
        shares: Ratios of differences.
        race: Of two contenders.
        training: Names whose accuracy in training is shown.
    """

    labels: dict[str, str]
    compared: tuple[str, ...]
    differences: tuple[Difference, ...]
    race: Race
    shares: tuple[Share, ...] = ()
    training: tuple[str, ...] = ()


COMPARISONS = {
    1: Comparison(
        labels={
            "batchnorm": "batchnorm, groups of 32",
            "batch_renorm": "Batch Renorm, groups of 32",
        },
        compared=("batchnorm", "batch_renorm"),
        differences=(Difference("batch_renorm", "batchnorm", "Batch Renorm − batchnorm"),),
        race=Race("batch_renorm", "batchnorm", "Batch Renorm reaches batchnorm's final accuracy"),
    ),
    2: Comparison(
        labels={
            "batchnorm": "batchnorm, groups of 32",
            "batchnorm_micro4": "batchnorm, groups of 4",
            "batch_renorm_micro4": "Batch Renorm, groups of 4",
        },
        compared=("batchnorm", "batchnorm_micro4", "batch_renorm_micro4"),
        differences=(
            Difference("batchnorm_micro4", "batchnorm", "batchnorm: groups of 4 − groups of 32"),
            Difference(
                "batch_renorm_micro4", "batchnorm_micro4", "groups of 4: Batch Renorm − batchnorm"
            ),
            Difference(
                "batch_renorm_micro4",
                "batchnorm",
                "Batch Renorm, groups of 4 − batchnorm, groups of 32",
            ),
        ),
        shares=(
            Share(
                "batch_renorm_micro4",
                "batchnorm_micro4",
                "batchnorm",
                "share of batchnorm's deficit that Batch Renorm recovers",
            ),
        ),
        race=Race(
            "batch_renorm_micro4",
            "batchnorm_micro4",
            "Batch Renorm reaches the final accuracy of batchnorm, groups of 4",
        ),
    ),
    3: Comparison(
        labels={
            "batchnorm": "batchnorm, independent images",
            "batchnorm_noniid_spread": "batchnorm, labels spread",
            "batchnorm_noniid": "batchnorm, few labels",
            "batchnorm_noniid_batchstats": "batchnorm, test minibatches",
            "batchnorm_noniid_halves": "batchnorm, halves",
            "batch_renorm_noniid": "Batch Renorm, few labels",
        },
        compared=(
            "batchnorm_noniid",
            "batchnorm_noniid_batchstats",
            "batch_renorm_noniid",
        ),
        differences=(
            # The same labels spread over the groups: few labels in a step cost accuracy, too.
            Difference(
                "batchnorm_noniid",
                "batchnorm_noniid_spread",
                "batchnorm, few labels: in groups − spread over the groups",
            ),
            Difference(
                "batchnorm_noniid", "batchnorm", "batchnorm: few labels − independent images"
            ),
            Difference(
                "batchnorm_noniid_batchstats",
                "batchnorm_noniid",
                "batchnorm, few labels: statistics of test minibatches − averages",
            ),
            Difference(
                "batchnorm_noniid_halves",
                "batchnorm_noniid",
                "batchnorm, few labels: halves − whole groups",
            ),
            Difference(
                "batch_renorm_noniid", "batchnorm_noniid", "few labels: Batch Renorm − batchnorm"
            ),
            Difference(
                "batch_renorm_noniid",
                "batchnorm_noniid_spread",
                "few labels: Batch Renorm − batchnorm, spread over the groups",
            ),
            Difference(
                "batch_renorm_noniid",
                "batchnorm",
                "Batch Renorm, few labels − batchnorm, independent images",
            ),
        ),
        shares=(
            Share(
                "batch_renorm_noniid",
                "batchnorm_noniid",
                "batchnorm_noniid_spread",
                "share of the deficit to spread labels recovered: Batch Renorm",
            ),
            Share(
                "batchnorm_noniid_batchstats",
                "batchnorm_noniid",
                "batchnorm",
                "share of the deficit to independent images recovered: test minibatches",
            ),
            Share(
                "batchnorm_noniid_halves",
                "batchnorm_noniid",
                "batchnorm",
                "share of the deficit to independent images recovered: halves",
            ),
            Share(
                "batch_renorm_noniid",
                "batchnorm_noniid",
                "batchnorm",
                "share of the deficit to independent images recovered: Batch Renorm",
            ),
        ),
        race=Race(
            "batch_renorm_noniid",
            "batchnorm_noniid",
            "Batch Renorm reaches the final accuracy of batchnorm, few labels",
        ),
        training=(
            "batchnorm",
            "batchnorm_noniid_spread",
            "batchnorm_noniid",
            "batch_renorm_noniid",
        ),
    ),
}

# Of Figure 5, which is not the paper's.
NORMALIZATIONS_BY_GROUP_SIZE = {
    "batchnorm": "batchnorm",
    "batch_renorm": "Batch Renorm",
    "fixed_bounds": "Batch Renorm, final bounds from the first step",
    "group_norm": "group normalization",
    "layer_norm": "layer normalization",
}
SINGLE_IMAGES = ("group_norm", "layer_norm")  # Normalize each image, whatever the group.

TITLES = {"glyphs": "glyphs, 1000 characters", "tiny_imagenet": "Tiny ImageNet"}
FEW_LABELS_TITLES = {**TITLES, "glyphs": "glyphs, 80 characters"}  # Of Figure 3.
