"""The examples and numbers of the README and of the pages that it links to, as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_brn.paper.results import stored_tables

ROOT = Path(__file__).parent.parent
FIGURES = ROOT / "figures"
README, EVIDENCE = ((folder / "README.md").read_text() for folder in (ROOT, FIGURES))
PAGES = [
    README,
    *((ROOT / "notebooks" / f"{name}.md").read_text() for name in ("devices", "cluster")),
]
EXAMPLES = [code for page in PAGES for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
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
import keras_brn.paper.data.imagenet, keras_brn.paper.training.network, worker_program
keras_brn.paper.data.imagenet.load_imagenet = lambda folder: worker_program.shades()
keras_brn.paper.experiment.figure_2 = lambda: [worker_program.run(steps=20)]
keras_brn.paper.training.network.small_inception = worker_program.tiny
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
    assert (names["model"].layers[2].step, names["model"].layers[2].r_max) == (80, 3)


@pytest.mark.once
def test_tables_are_those_of_the_stored_figures():
    """With their headings; a table may leave out rows."""
    made = [set(table.splitlines()) for table in stored_tables(FIGURES).values()]
    figures = EVIDENCE[EVIDENCE.index("\n## Figures") : EVIDENCE.index("\n## Speed")]
    shown = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", figures, re.MULTILINE)]
    lengths = sorted(map(len, shown))
    assert len(lengths) == 17 and lengths[0] == 5 and lengths[1] >= 6  # Metric learning: 3 rows.
    for table in shown:
        assert any(lines.issuperset(table) for lines in made), table[0]


@pytest.mark.once
@pytest.mark.parametrize("page", [README, EVIDENCE], ids=["README", "figures"])
def test_intervals_stand_in_a_table_of_the_stored_figures(page):
    made = "\n".join(stored_tables(FIGURES).values())
    intervals = re.findall(r"[+-]?[\d.]+ \[[^\]]*\d\]", page)
    assert len(intervals) >= 2
    assert [interval for interval in intervals if interval not in made] == []


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES[1:], ids=lambda example: example.split("\n")[0])
def test_further_examples(example, backend, tmp_path, monkeypatch):
    needs = [needed for mark, needed in NEEDED.items() if mark in example]
    wanted, before = needs[0] if needs else (None, "")
    if wanted not in (None, backend):
        pytest.skip(f"For {wanted}.")
    code = "\n".join([BEFORE, before, example])
    if wanted is None:
        monkeypatch.chdir(tmp_path)
        exec(code, {"__name__": "__main__"})
    else:  # In a process of its own: a process has one distribution.
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
