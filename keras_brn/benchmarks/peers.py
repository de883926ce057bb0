"""Other public layers of Batch Renorm, and the backends' own batchnorm: time and error of a step.

    pip install --no-deps sb3-contrib torchrl avalanche-lib sbx-rl; pip install flax
    KERAS_BACKEND=torch python -m keras_brn.benchmarks.peers [--out peers.json] [--seconds 4]

What isn't installed is left out. Times are ratios to keras.layers.BatchNormalization, in turns, as
in `keras_brn.benchmarks.layer`. All layers have the same averages and open bounds, so that a step
of training must compute what inference computes, `(x - mu) / sigma`, and its gradient is that of
batchnorm times `sigma_B / sigma` (Ioffe 2017, section 3): the errors are the largest deviations
from that in float64, y by its own standard deviation, and the gradient likewise.
"""

import argparse
import functools
import importlib.util
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_brn.benchmarks.layer import wait
from keras_brn.benchmarks.timing import (
    compared_with_first,
    ratio_with_spread,
    take_turns,
    write_measured,
)
from keras_brn.layer import BatchRenormalization

EPSILON, MOMENTUM = 1e-3, 0.99
SHAPES = (
    (256, 256),
    (256, 512),
    (4, 512),
    (4, 35, 35, 64),
    (32, 35, 35, 64),
    (32, 147, 147, 64),
)


def load_file(package, path):
    """The module in one file of an installed package, without what the package imports besides;
    `None` where the package isn't installed."""
    found = importlib.util.find_spec(package)
    if found is None:
        return None
    file = Path(found.submodule_search_locations[0]) / path
    spec = importlib.util.spec_from_file_location(f"{package}_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Example:
    """An input, its gradient, the averages, and what Batch Renorm makes of them, in float64.

    Args:
        shape: Tuple of integers, channels last.
    """

    def __init__(self, shape):
        rng = np.random.default_rng(0)
        self.shape = shape
        x, dy = (rng.normal(size=shape).astype("float32") for _ in range(2))
        x += 3
        self.x, self.dy = x, dy
        x, dy, axes = x.astype("float64"), dy.astype("float64"), tuple(range(len(shape) - 1))
        mu_B, sigma_B = x.mean(axes), np.sqrt(EPSILON + x.var(axes))
        self.mu = (mu_B + 0.1 * rng.normal(size=shape[-1])).astype("float32")
        self.sigma = (sigma_B * rng.uniform(0.8, 1.2, shape[-1])).astype("float32")
        self.variance = self.sigma**2 - np.float32(EPSILON)
        self.y = (x - self.mu) / self.sigma
        x_hat = (x - mu_B) / sigma_B
        self.dx = (dy - dy.mean(axes) - x_hat * (dy * x_hat).mean(axes)) / self.sigma

    def errors(self, y, dx):
        """The largest deviations of an output and a gradient, in standard deviations."""
        return {
            name: float(np.abs(value.astype("float64") - expected).max() / expected.std())
            for name, value, expected in (("y", y, self.y), ("dx", dx, self.dx))
        }


def keras_layer(new, example):
    """A built layer of Keras with the averages of the example."""
    layer = new(epsilon=EPSILON, momentum=MOMENTUM)
    layer.build(example.shape)
    averages = {
        "moving_mean": example.mu,
        "moving_stddev": example.sigma,
        "moving_variance": example.variance,
        "renorm_mean": example.mu,  # Of Keras' renorm: what it corrects towards.
        "renorm_stddev": example.sigma,
    }
    for name, value in averages.items():
        if getattr(layer, name, None) is not None:
            getattr(layer, name).assign(value)
    return layer


KERAS = {
    "keras batchnorm": keras.layers.BatchNormalization,
    "keras renorm": functools.partial(keras.layers.BatchNormalization, renorm=True),
    "ours": BatchRenormalization,
}
BATCHNORM = ("keras batchnorm", "torch batchnorm", "flax batchnorm")  # These have no error.


def torch_steps(example):
    """Dict from a contender to a function that returns y and the gradients to x and weights."""
    import torch

    x = ops.convert_to_tensor(example.x).requires_grad_(True)
    dy = ops.convert_to_tensor(example.dy)
    channels, images = example.shape[-1], len(example.shape) == 4

    def step(forward, weights):
        def run():
            y = forward(x)
            return y, torch.autograd.grad(y, [x, *weights], dy)

        return run

    steps = {}
    for name, new in KERAS.items():
        layer = keras_layer(new, example)
        weights = layer.gamma.value, layer.beta.value
        steps[name] = step(functools.partial(layer, training=True), weights)

    def add(name, module, averages):
        for attribute, value in averages.items():
            old = getattr(module, attribute)
            setattr(module, attribute, torch.tensor(value, device=x.device).reshape(old.shape))
        module.to(x.device).train()

        def forward(x):  # On the same memory: only strides change.
            return module(x.movedim(-1, 1)).movedim(1, -1) if images else module(x)

        steps[name] = step(forward, list(module.parameters()))

    kind = torch.nn.BatchNorm2d if images else torch.nn.BatchNorm1d
    of_torch = {"running_mean": example.mu, "running_var": example.variance}
    add("torch batchnorm", kind(channels, eps=EPSILON, momentum=1 - MOMENTUM), of_torch)
    if module := load_file("torchrl", "modules/models/batchrenorm.py"):
        layer = module.BatchRenorm1d(channels, eps=EPSILON, warmup_steps=0)
        add("torchrl", layer, of_torch)
    if not images and (module := load_file("sb3_contrib", "common/torch_layers.py")):
        layer = module.BatchRenorm1d(channels, eps=EPSILON, warmup_steps=0)
        layer.steps += 1
        add("sb3-contrib", layer, {"ra_mean": example.mu, "ra_var": example.variance})
    if images and (module := load_file("avalanche", "models/batch_renorm.py")):
        layer = module.BatchRenorm2D(channels, eps=EPSILON, r_max=3.0, d_max=5.0)
        averages = {"running_avg_mean": example.mu, "running_avg_std": example.sigma}
        add("avalanche", layer, averages)
    return steps


def jax_steps(example):
    """As `torch_steps`; all of a step is compiled."""
    import jax

    x, dy = ops.convert_to_tensor(example.x), ops.convert_to_tensor(example.dy)

    def step(forward, weights, state):
        @jax.jit
        def compiled(x, dy, weights, state):
            y, pull_back, state = jax.vjp(
                lambda x, weights: forward(x, weights, state), x, weights, has_aux=True
            )
            return y, pull_back(dy), state

        return lambda: compiled(x, dy, weights, state)[:2]

    def of_keras(layer):
        def forward(x, weights, state):
            return layer.stateless_call(weights, state, x, training=True)

        weights = layer.trainable_variables, layer.non_trainable_variables
        return step(forward, *([weight.value for weight in group] for group in weights))

    steps = {name: of_keras(keras_layer(new, example)) for name, new in KERAS.items()}

    def add(name, module):
        variables = module.init(jax.random.key(0), x)
        averages = {"mean": example.mu, "var": example.variance}
        state = variables["batch_stats"] | averages

        def forward(x, weights, state):
            values = {"params": weights, "batch_stats": state}
            y, changed = module.apply(values, x, mutable=["batch_stats"])
            return y, changed["batch_stats"]

        steps[name] = step(forward, variables["params"], state)

    if importlib.util.find_spec("flax"):
        linen = importlib.import_module("flax.linen")
        settings = {"use_running_average": False, "momentum": MOMENTUM, "epsilon": EPSILON}
        add("flax batchnorm", linen.BatchNorm(**settings))
        if module := load_file("sbx", "common/jax_layers.py"):
            add("sbx", module.BatchRenorm(**settings, warmup_steps=0))
    return steps


def measure_peers(shape, seconds):
    """Of each contender: milliseconds, ratio to Keras' batchnorm with its spread, and errors."""
    example = Example(shape)
    steps = {"torch": torch_steps, "jax": jax_steps}[keras.backend.backend()](example)
    results = {}
    for name, step in steps.items():
        y, (dx, *_) = step()
        measured = example.errors(*(ops.convert_to_numpy(value) for value in (y, dx)))
        results[name] = {"errors": None if name in BATCHNORM else measured}
    waiting = [lambda step=step: wait(step()) for step in steps.values()]
    times = take_turns(waiting, seconds)
    for k, name in enumerate(steps):
        results[name] |= compared_with_first(times, k)
    return results


def table(results):
    """Markdown: of each contender the ratios with their 10th and 90th percentile, for each shape;
    and the largest errors."""
    lines = [f"| | {' | '.join(results)} | largest error: y, its gradient |"]
    lines.append("|---" * (len(results) + 2) + "|")
    names = dict.fromkeys(name for of_shape in results.values() for name in of_shape)
    for name in names:
        measured = [of_shape.get(name) for of_shape in results.values()]
        cells = [name, *map(ratio_with_spread, measured)]
        errors = [result["errors"] for result in measured if result and result["errors"]]
        largest = [f"{max(error[key] for error in errors):.0e}" for key in ("y", "dx") if errors]
        lines.append(f"| {' | '.join([*cells, ', '.join(largest) or '–'])} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of turns, for each shape")
    options = parser.parse_args(arguments)
    if keras.backend.backend() not in ("torch", "jax"):
        raise SystemExit("The others are of PyTorch and JAX: set KERAS_BACKEND to torch or jax.")
    results = {str(shape): measure_peers(shape, options.seconds) for shape in SHAPES}
    write_measured(options.out, results)
    print(table(results))


if __name__ == "__main__":
    main()
