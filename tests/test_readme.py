"""The examples of the README, as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_brn.paper.results import load_figure, table, table_of_group_sizes

FIGURES = Path(__file__).parent.parent / "figures"
README = (FIGURES.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BEFORE = """
import keras, numpy as np
from keras_brn import *
rng = np.random.default_rng(0)
x, y = rng.normal(size=(128, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 128)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
def make_model(normalization):
    layers = [keras.layers.Conv2D(8, 3, 2), normalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((32, 32, 3)), *layers])
model = make_model(BatchRenormalization)
model.compile("sgd", loss)
"""
BATCHNORM = "model = make_model(keras.layers.BatchNormalization)"
PROCESSES = """
import tempfile, torch
from torch.nn.parallel import DistributedDataParallel
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1
)
batches = list(zip(torch.tensor(x).chunk(4), torch.tensor(y).chunk(4)))
network = model
"""
SMALL = f"""
import sys
sys.path.append({str(Path(__file__).parent / "paper")!r})
import keras_brn.paper.data.imagenet, worker_program
keras_brn.paper.data.imagenet.load_imagenet = lambda folder: worker_program.shades()
keras_brn.paper.experiment.figure_2 = lambda: [worker_program.run(steps=20)]
"""
NEEDED = {  # By what is in an example: the backend, and what goes before it.
    "load_imagenet(": ("tensorflow", SMALL),
    "tf.distribute": ("tensorflow", "import tensorflow as tf"),
    "keras.distribution": ("jax", ""),
    "DistributedDataParallel": ("torch", PROCESSES),
    ".export(": ("tensorflow", BATCHNORM),
    "renormalize(model": (None, BATCHNORM),
}


def test_example():
    names = {}
    exec(EXAMPLES[0], names)
    assert len([line for line in EXAMPLES[0].splitlines() if line]) <= 10
    assert int(names["model"].layers[2].step) == 16
    assert 1 < names["model"].layers[2].r_max < 3


@pytest.mark.parametrize("figure", [1, 2, 3, 5])
def test_tables_are_those_of_the_stored_figures(figure):
    stored = load_figure(FIGURES / f"figure{figure}")
    if figure == 5:
        made = table_of_group_sizes(stored["runs"])
    else:
        columns = stored["summary"]
        if figure == 3:
            for name in ("3_long", "3_longest"):
                summary = load_figure(FIGURES / f"figure{name}")["summary"]
                columns = {**columns, name: summary["tiny_imagenet"]}
            columns = {name: by_label["8"] for name, by_label in columns.items()}
        made = table(figure, columns)
    (section,) = re.findall(rf"\(Figure {figure}.*?(?=\n\*\*|\Z)", README, re.DOTALL)
    shown, made = (
        re.findall(r"^\|.*", _without_steps(text), re.MULTILINE) for text in (section, made)
    )
    assert len(shown) >= 4
    assert set(shown[2:]) <= set(made[2:])


def _without_steps(text):
    return re.sub(r" at [\d,]+", "", text)  # Most runs are at their best at the end.


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES[1:], ids=lambda example: example.split("\n")[0])
def test_further_examples(example, backend, tmp_path):
    needs = [needed for mark, needed in NEEDED.items() if mark in example]
    wanted, before = needs[0] if needs else (None, "")
    if wanted not in (None, backend):
        pytest.skip(f"For {wanted}.")
    # In a process of its own: a process has one distribution.
    command = [sys.executable, "-c", "\n".join([BEFORE, before, example])]
    subprocess.run(command, cwd=tmp_path, check=True)
