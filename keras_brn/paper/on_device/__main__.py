"""Figure 3 at the length of the paper, for `python -m keras_brn.paper.reproduce` to draw:

KERAS_BACKEND=jax python -m keras_brn.paper.on_device --tiny-imagenet PATH [--results results]
"""

import argparse
from pathlib import Path

from keras_brn.paper.data.tiny_imagenet import load_tiny_imagenet
from keras_brn.paper.experiment import figure_3_paper_length
from keras_brn.paper.on_device import train_on_device


def main():
    programs = figure_3_paper_length()
    parser = argparse.ArgumentParser(
        prog="python -m keras_brn.paper.on_device", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--tiny-imagenet", type=Path, required=True, help="zip, tar or folder")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--processes", type=int, default=0, help="that draw the images")
    parser.add_argument(
        "--seconds", type=float, help="time limit of each program; a later call goes on from there"
    )
    parser.add_argument(
        "--programs",
        type=int,
        nargs="+",
        default=list(range(len(programs))),
        choices=range(len(programs)),
        help="which of those of `figure_3_paper_length`",
    )
    options = parser.parse_args()
    data = load_tiny_imagenet(options.tiny_imagenet)
    folder = options.results / "on_device"
    for k in options.programs:
        train_on_device(
            programs[k], data, folder, processes=options.processes, seconds=options.seconds
        )


if __name__ == "__main__":
    main()
