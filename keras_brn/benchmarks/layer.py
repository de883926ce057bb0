"""Time and memory of a training step, against batchnorm and the renorm of Keras.

    python -m keras_brn.benchmarks.layer [--out figures/benchmark] [--backends jax torch] [--mixed]
        [--cases Inception] [--contenders batchnorm ours]

Each backend is a process of its own. In each case the contenders take turns, many steps a turn, so
that a slow moment of the machine meets all of them; the numbers are ratios within a round. Results
are written case by case, and those already measured at the same commit are not measured again.

On a GPU the calls of a turn follow each other without waiting, as in training; memory is measured
on a CPU only. It needs Keras and the backend, and Matplotlib for the figure; where TensorFlow is
not installed, set `KERAS_BACKEND` to what is.
"""

import argparse
import ctypes
import functools
import gc
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_brn.benchmarks.timing import compared_with_first, describe_gpu, take_turns
from keras_brn.extras import extra
from keras_brn.layer import BatchRenormalization
from keras_brn.paper.networks.inception import inception_v3
from keras_brn.paper.networks.small import small_network
from keras_brn.paper.records import provenance, write_json

CONTENDERS = {
    "batchnorm": keras.layers.BatchNormalization,
    "keras renorm": functools.partial(keras.layers.BatchNormalization, renorm=True),
    "ours": BatchRenormalization,
    "ours, microbatches": functools.partial(BatchRenormalization, microbatch_size=4),
}
TORCH = "torch batchnorm"  # PyTorch's own layer, on the same memory; on PyTorch, not in networks.
# What Inception-v3 normalizes in batches of 32 at 299x299, two larger ones, and a dense layer.
SHAPES = (
    (32, 147, 147, 64),
    (32, 73, 73, 80),
    (32, 35, 35, 64),
    (32, 17, 17, 192),
    (32, 8, 8, 384),
    (32, 35, 35, 288),
    (32, 8, 8, 2048),
    (256, 512),
)
PASSES = 8  # Over x, at the least: 2 to read and 1 to write it forward, 4 and 1 backward.


def layer_step(layer, shape, dtype="float32"):
    """A function that runs the layer forward and backward, to x, gamma and beta; on a CPU, and
    waits. The inputs are of `dtype`."""
    x, dy = _random(shape, dtype), _random(shape, dtype)
    layer.build(shape)
    return _layer_step(layer, x, dy)


def masked_step(layer, shape):
    """As `layer_step`, with a mask that leaves out a quarter of the positions."""
    x, dy = _random(shape), _random(shape)
    layer.build(shape)
    mask = np.random.default_rng(1).random(shape[:-1]) > 0.25
    return _layer_step(layer, x, dy, mask=ops.convert_to_tensor(mask))


def inference_step(layer, shape):
    """A function that runs the layer in inference; on a CPU, and waits."""
    x = _random(shape)
    layer.build(shape)
    return _inference_step(layer, x)


def network_step(model, batch_size):
    """A function that takes a training step of a classifier, and waits."""
    model.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=keras.backend.backend() == "jax",
    )
    x = np.random.default_rng(0).normal(size=(batch_size, *model.input_shape[1:]))
    x, y = x.astype("float32"), np.arange(batch_size) % model.output_shape[-1]
    return lambda: model.train_on_batch(x, y)


def plain_inception_v3(new):
    """Inception-v3 for 147x147 images, without what only training needs."""
    options = {"auxiliary": False, "dropout": 0.0, "weight_decay": 0.0}
    return inception_v3(lambda: new(scale=False), (147, 147, 3), **options)


NETWORKS = {
    "Inception-v3, 8 images 147x147": lambda new: network_step(plain_inception_v3(new), 8),
    "small network, 128 images 32x32": lambda new: network_step(small_network(new), 128),
}
CASES = {
    **{str(shape): lambda new, shape=shape: layer_step(new(), shape) for shape in SHAPES},
    **NETWORKS,
}
# Inputs and outputs in half precision, statistics and weights not.
MIXED_CASES = {
    f"{shape} mixed": lambda new, shape=shape: layer_step(
        new(dtype="mixed_bfloat16"), shape, "bfloat16"
    )
    for shape in SHAPES
}
MEMORY_CASES = (str(SHAPES[0]), "Inception-v3, 8 images 147x147")
TENSORS = ", its tensors alone"  # Without the graph of the step, which TensorFlow keeps as well.


def _random(shape, dtype="float32"):
    return ops.convert_to_tensor(np.random.default_rng(0).normal(size=shape), dtype)


# Each backend has `wait(result)`; on a CPU a step waits by itself, so that no two overlap.
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    accelerated = bool(tf.config.list_physical_devices("GPU"))

    def wait(result):
        return result.numpy() if hasattr(result, "numpy") else result

    def _layer_step(layer, x, dy, **arguments):
        @tf.function
        def step(x, dy):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True, **arguments)
            weights = [x, layer.gamma.value, layer.beta.value]
            return y, tape.gradient(y, weights, output_gradients=dy)

        return _waiting(lambda: step(x, dy)[1][2])

    def _inference_step(layer, x):
        step = tf.function(lambda x: layer(x, training=False))
        return _waiting(lambda: step(x))

    def _copy(x):
        copy = tf.function(lambda x: x + 1.0)
        return lambda: copy(x)

elif keras.backend.backend() == "jax":
    import jax

    accelerated = jax.default_backend() != "cpu"
    wait = jax.block_until_ready

    def _layer_step(layer, x, dy, **arguments):
        @jax.jit
        def step(x, dy, trainable, state):
            def forward(x, trainable):
                return layer.stateless_call(trainable, state, x, training=True, **arguments)

            y, pull_back, state = jax.vjp(forward, x, trainable, has_aux=True)
            return y, pull_back(dy), state

        weights = _values(layer)
        return _waiting(lambda: step(x, dy, *weights))

    def _inference_step(layer, x):
        step = jax.jit(lambda x, *weights: layer.stateless_call(*weights, x, training=False)[0])
        weights = _values(layer)
        return _waiting(lambda: step(x, *weights))

    def _values(layer):
        weights = layer.trainable_variables, layer.non_trainable_variables
        return [[weight.value for weight in group] for group in weights]

    def _copy(x):
        copy = jax.jit(lambda x: x + 1.0)
        return _waiting(lambda: copy(x))

elif keras.backend.backend() == "torch":
    import torch

    accelerated = torch.cuda.is_available()

    def wait(result):
        if accelerated:
            torch.cuda.synchronize()
        return result

    def _layer_step(layer, x, dy, **arguments):
        weights = [x.requires_grad_(True), layer.gamma.value, layer.beta.value]
        return lambda: torch.autograd.grad(layer(x, training=True, **arguments), weights, dy)[2]

    def _inference_step(layer, x):
        return torch.no_grad()(lambda: layer(x, training=False))

    def _copy(x):
        return lambda: x + 1.0

    class TorchBatchnorm:
        """PyTorch's layer with channels last, as a contender."""

        def __init__(self, dtype=None):
            self.gamma = self.beta = None

        def build(self, shape):
            kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
            device = _random((1,)).device
            self.layer = kind(shape[-1], eps=1e-3, momentum=0.01, device=device)
            # As Keras names them, with the `value` that a variable of Keras has.
            self.gamma = types.SimpleNamespace(value=self.layer.weight)
            self.beta = types.SimpleNamespace(value=self.layer.bias)

        def __call__(self, x, training):
            if x.ndim == 2:
                return self.layer(x)
            return self.layer(x.movedim(-1, 1)).movedim(1, -1)  # Strides only.


def _waiting(step):
    return step if accelerated else lambda: wait(step())


def contenders_of(case):
    """Dict from the names of the contenders of a case to what makes their layers."""
    if keras.backend.backend() == "torch" and case not in NETWORKS:
        return {**CONTENDERS, TORCH: TorchBatchnorm}
    return CONTENDERS


def measure_time(case, seconds, names=None):
    """Dict of each contender's time: milliseconds, ratios to the first, multiple of the floor."""
    contenders = contenders_of(case)
    if names is not None:
        contenders = {name: new for name, new in contenders.items() if name in names}
    cases = {**CASES, **MIXED_CASES}
    functions = [cases[case](new) for new in contenders.values()]
    shape, dtype = _inputs(case)
    if shape is not None:
        functions.append(_copy(_random(shape, dtype)))
    times = take_turns(functions, seconds, wait=wait)
    results = {}
    for i, name in enumerate(contenders):
        results[name] = compared_with_first(times, i)
        if shape is not None:
            floor = np.median(times[:, -1]) * PASSES / 2  # A copy is two passes.
            results[name]["floors"] = round(float(np.median(times[:, i]) / floor), 2)
    return results


def _inputs(case):
    """The shape and the dtype of a layer's inputs, `None` of a network's."""
    for shape in SHAPES:
        if case == str(shape):
            return shape, "float32"
        if case == f"{shape} mixed":
            return shape, "bfloat16"
    return None, None


def measure_memory(case, contender):
    """Peak of a step above what the process holds before it, in MB; on Linux."""
    step = CASES[case](CONTENDERS[contender])
    if keras.backend.backend() != "tensorflow":  # It keeps what it once had: there, from the start.
        step(), step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Starts the peak anew.
    before = _kilobytes("VmRSS")
    for _ in range(5):
        step()
    return round((_kilobytes("VmHWM") - before) / 1024, 1)


def measure_tensors(case, contender):
    """Peak of a step's tensors above those that stay, in MB: TensorFlow's own account."""
    step = CASES[case](CONTENDERS[contender])
    step(), step()
    gc.collect()
    experimental, cpu, peaks = tf.config.experimental, "CPU:0", []
    for _ in range(5):
        experimental.reset_memory_stats(cpu)
        before = experimental.get_memory_info(cpu)["current"]
        step()
        peaks.append(experimental.get_memory_info(cpu)["peak"] - before)
    return round(float(np.median(peaks)) / 2**20, 1)


def _kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure_backend(path, seconds, mixed=False, parts=("",), names=None):
    """Measures what is missing in the file of all backends, for that of this process.

    Args:
        path: Path of the file.
        seconds: Of turns, for each layer.
        mixed: Whether to measure inputs in half precision as well.
        parts: The cases whose names contain one of these.
        names: Names of contenders, "batchnorm" among them; `None`: all.
    """
    here, backend = provenance(), keras.backend.backend()
    results = json.loads(path.read_text()) if path.exists() else {}
    if results.get(backend, {}).get("provenance") != here:
        results[backend] = {"provenance": here, "time": {}, "memory": {}}
    result = results[backend]
    result["gpu"] = describe_gpu()
    print(f"{backend} on {here['device']}, GPU {result['gpu']}", flush=True)
    cases = [case for case in CASES if case not in NETWORKS]
    cases += [*(MIXED_CASES if mixed else ()), *(case for case in NETWORKS if case in CASES)]
    for case in cases:
        if case not in result["time"] and any(part in case for part in parts):
            longer = 5 if case in NETWORKS else 1
            result["time"][case] = measure_time(case, longer * seconds, names)
            _report(case, {k: v["ratio"] for k, v in result["time"][case].items()}, "x batchnorm")
            result["gpu_after"] = describe_gpu()
            write_json(path, results)
            gc.collect()
    measured = MEMORY_CASES if sys.platform == "linux" and not accelerated else ()
    if backend == "tensorflow":
        measured = [case + what for case in measured for what in ("", TENSORS)]
    for case in measured:
        if case not in result["memory"] and any(part in case for part in parts):
            result["memory"][case] = {
                contender: float(_output("--peak", case, contender))
                for contender in CONTENDERS
                if names is None or contender in names
            }
            _report(case, result["memory"][case], "MB")
            write_json(path, results)


def _report(case, values, unit):
    values = ", ".join(f"{name} {value}" for name, value in values.items())
    print(f"{keras.backend.backend()} {case} [{unit}]: {values}", flush=True)


def _output(*arguments):
    command = [sys.executable, "-m", "keras_brn.benchmarks.layer", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(results):
    """Markdown: ratio to batchnorm, its 10th and 90th percentile, and multiple of the floor."""
    names = list(CONTENDERS)
    if any(TORCH in case for result in results.values() for case in result["time"].values()):
        names.append(TORCH)
    lines = [f"| | | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for backend, result in results.items():
        for case, times in result["time"].items():
            cells = [_cell(name, times[name]) if name in times else "" for name in names]
            lines.append(f"| {backend} | {case} | {' | '.join(cells)} |")
        for case, peaks in result["memory"].items():
            cells = [f"{peaks[name]:.0f} MB" if name in peaks else "" for name in names]
            lines.append(f"| {backend} | {case}, peak memory | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(name, time):
    low, high = time["ratio_p10_p90"]
    cell = f"{time['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    if name == "batchnorm":
        cell = f"{time['milliseconds']:.3g} ms"
    return f"{cell}, {time['floors']:.1f} floors" if "floors" in time else cell


def plot(results, path):
    """A panel for each backend: the ratio of each contender in each case."""
    with extra("paper"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(results) + 2, 4.5), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    colors = {"keras renorm": "0.5", "ours": "C0", "ours, microbatches": "C1"}
    for axes, (backend, result) in zip(panels, results.items(), strict=True):
        rows = np.arange(len(result["time"]))
        for i, (name, color) in enumerate(colors.items()):
            unknown = {"ratio": np.nan, "ratio_p10_p90": [np.nan, np.nan]}
            times = [case.get(name, unknown) for case in result["time"].values()]
            ratios = np.array([case["ratio"] for case in times])
            spread = abs(np.array([case["ratio_p10_p90"] for case in times]).T - ratios)
            axes.errorbar(ratios, rows + 0.2 * (i - 1), xerr=spread, fmt="o", ms=4, color=color,
                          label=name)  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set(title=backend, xlabel="time of a step / keras batchnorm", xlim=(0, None))
        axes.set_yticks(rows, list(result["time"]))
        axes.grid(alpha=0.3, axis="x")
    panels[0].invert_yaxis()
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures/benchmark"))
    installed = [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]
    parser.add_argument("--backends", nargs="+", choices=installed, default=installed)
    parser.add_argument("--seconds", type=float, default=4.0, help="of turns, for each layer")
    parser.add_argument("--mixed", action="store_true", help="also inputs in bfloat16")
    parser.add_argument("--cases", nargs="+", default=[""], help="those whose names contain this")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, TORCH])
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # This process' backend.
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        case, contender = options.peak
        measure = measure_tensors if case.endswith(TENSORS) else measure_memory
        return print(measure(case.removesuffix(TENSORS), contender))
    if options.one:
        arguments = options.seconds, options.mixed, options.cases, options.contenders
        return measure_backend(options.one, *arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    path = options.out.with_suffix(".json")
    for backend in options.backends:
        command = [sys.executable, "-m", "keras_brn.benchmarks.layer", "--one", str(path)]
        subprocess.run(
            [*command, *sys.argv[1:]],
            env={**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"},
            check=True,
        )
    results = json.loads(path.read_text())
    if importlib.util.find_spec("matplotlib"):
        plot(results, options.out.with_suffix(".png"))
    print(table(results))


if __name__ == "__main__":
    main()
