"""Time of a call on small and odd shapes, with masks, channels first, in half precision and in
inference, by that of Keras' batchnorm.

    KERAS_BACKEND=torch python -m keras_brn.benchmarks.grid [--out grid.json] [--seconds 1]

Where nothing else is said a call is a training step of one layer, forward and backward.
"""

import argparse
from pathlib import Path

import keras

from keras_brn.benchmarks.layer import inference_step, layer_step, masked_step, wait
from keras_brn.benchmarks.timing import (
    compared_with_first,
    ratio_with_spread,
    take_turns,
    write_measured,
)
from keras_brn.layer import BatchRenormalization

SHAPES = (
    (4, 8, 8, 384),
    (2, 147, 147, 64),
    (8, 1, 1, 1280),
    (32, 35, 35, 1),
    (4, 100, 64),
    (4, 512),
)


def _channels_first(new, shape):
    return layer_step(new(axis=1), (shape[0], shape[-1], *shape[1:-1]))


CALLS = {  # Functions of what makes the layer and of a shape, channels last.
    "training": lambda new, shape: layer_step(new(), shape),
    "mask": lambda new, shape: masked_step(new(), shape),
    "channels first": _channels_first,
    "float16": lambda new, shape: layer_step(new(dtype="mixed_float16"), shape, "float16"),
    "bfloat16": lambda new, shape: layer_step(new(dtype="mixed_bfloat16"), shape, "bfloat16"),
    "inference": lambda new, shape: inference_step(new(), shape),
}
LAYERS = (keras.layers.BatchNormalization, BatchRenormalization)


def measure_call(call, shape, seconds):
    """Milliseconds of ours, and the ratio to Keras' batchnorm with its spread; `None` where that
    fails, as it does on JAX and PyTorch with a mask and one channel."""
    batchnorm, ours = (CALLS[call](new, shape) for new in LAYERS)
    ours()
    try:
        batchnorm()
    except (IndexError, ValueError):
        return None
    return compared_with_first(take_turns([batchnorm, ours], seconds, wait=wait), 1)


def table(results):
    """Markdown: for each call and shape the ratio with its 10th and 90th percentile."""
    lines = [f"| | {' | '.join(map(str, SHAPES))} |", "|---" * (len(SHAPES) + 1) + "|"]
    for call, of_shapes in results.items():
        lines.append(f"| {call} | {' | '.join(map(ratio_with_spread, of_shapes.values()))} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("grid.json"))
    parser.add_argument("--seconds", type=float, default=1.0, help="of turns, for each call")
    options = parser.parse_args(arguments)
    results = {}
    for call in CALLS:
        results[call] = {str(shape): measure_call(call, shape, options.seconds) for shape in SHAPES}
        print(call, *map(ratio_with_spread, results[call].values()), sep=", ", flush=True)
    write_measured(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
