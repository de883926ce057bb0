"""The examples of the README, as they stand there."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_brn

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BACKENDS = {  # What a name in an example needs.
    "tf.distribute": "tensorflow",
    "keras.distribution": "jax",
    "DistributedDataParallel": "torch",
    ".export(": "tensorflow",
}


def needed(example):
    return next((backend for mark, backend in BACKENDS.items() if mark in example), None)


def test_example():
    names = {}
    exec(EXAMPLES[0], names)
    assert len([line for line in EXAMPLES[0].splitlines() if line]) <= 10
    assert int(names["model"].layers[2].step) == 16
    assert 1 < names["model"].layers[2].r_max < 3


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES[1:], ids=lambda example: example.split("\n")[0])
def test_further_examples(example, backend, tmp_path, monkeypatch):
    if needed(example) not in (None, backend):
        pytest.skip(f"For {needed(example)}.")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(128, 32, 32, 3)).astype("float32"), rng.integers(0, 10, 128)

    def make_model(normalization):
        layers = [keras.layers.Conv2D(8, 3, 2), normalization(), keras.layers.ReLU()]
        layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
        return keras.Sequential([keras.Input((32, 32, 3)), *layers])

    names = {**vars(keras_brn), "keras": keras, "make_model": make_model, "x": x, "y": y}
    names["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    convert = "renormalize(model" in example
    kind = keras.layers.BatchNormalization if convert else keras_brn.BatchRenormalization
    names["model"] = make_model(kind)
    exec(PREPARED[needed(example)], names)
    try:
        exec(example, names)
    finally:
        exec(UNDONE.get(needed(example), ""), names)


PREPARED = {
    None: "model.compile('sgd', loss)",
    "tensorflow": "import tensorflow as tf",
    "jax": "",
    "torch": """
import torch, tempfile
from torch.nn.parallel import DistributedDataParallel
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{tempfile.mkdtemp()}/store", rank=0, world_size=1
)
batches = list(zip(torch.tensor(x).chunk(4), torch.tensor(y).chunk(4)))
network = model
""",
}
UNDONE = {
    "torch": "torch.distributed.destroy_process_group()",
    "jax": "keras.distribution.set_distribution(None)",
}
