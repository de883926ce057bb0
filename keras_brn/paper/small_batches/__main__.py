"""Trains the runs of Figure 6: see the package."""

import argparse
from pathlib import Path

from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.images import hold_out
from keras_brn.paper.data.tiny_imagenet import load_tiny_imagenet
from keras_brn.paper.small_batches.runs import planned_runs
from keras_brn.paper.small_batches.training import train_small_batches


def glyphs():
    """250 characters: 100 images of each for training, 20 for choices, 40 for the test."""
    return hold_out(load_glyphs(120, 40, labels=250), per_label=20)


def tiny_imagenet(path):
    """Forty of the 200 labels, every fifth: 450 images of each for training, 50 for choices and
    its validation images for the test."""
    data = load_tiny_imagenet(path)
    return hold_out(data.of_labels(range(0, data.classes, 5)), per_label=50)


def main():
    parser = argparse.ArgumentParser(prog="python -m keras_brn.paper.small_batches")
    parser.add_argument("--tiny-imagenet", type=Path, help="zip, tar or folder; else glyphs")
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    data, choices = tiny_imagenet(options.tiny_imagenet) if options.tiny_imagenet else glyphs()
    for runs in planned_runs(data.name):
        train_small_batches(runs, data, choices, options.results / "small_batches")


if __name__ == "__main__":
    main()
