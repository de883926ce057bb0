"""What the files import: the library needs Keras, NumPy and one backend, and no extra."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_brn.extras import BACKENDS
from keras_brn.paper import cluster
from keras_brn.paper.data import glyphs, imagenet, sampling, tiny_imagenet

pytestmark = pytest.mark.once

TESTS = Path(__file__).parent
ROOT = TESTS.parent / "keras_brn"
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}
WINGS = [name for name in FILES if name.startswith(("paper", "benchmarks"))]
LIBRARY = [name for name in FILES if name not in WINGS]


def imported(tree):
    """The modules that a tree imports anywhere, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0  # The files name modules in full.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(tree):
    return {name.split(".")[0] for name in imported(tree)} - sys.stdlib_module_names


class WithoutExtras(ast.NodeTransformer):
    def visit_With(self, node):
        in_extra = ast.unparse(node.items[0]).startswith("extra(")
        return ast.Pass() if in_extra else self.generic_visit(node)


@pytest.mark.parametrize("name", LIBRARY)
def test_library_imports_keras_numpy_and_the_backend_of_a_file(name):
    allowed, tree = {"keras", "numpy", "keras_brn"}, ast.parse(FILES[name].read_text())
    if Path(name).parts[0] in ("kernels", "distribute"):
        allowed |= {Path(name).stem} & set(BACKENDS)
    assert packages(tree) <= allowed
    wings = ("keras_brn.paper", "keras_brn.benchmarks", "keras.src")
    assert not [name for name in imported(tree) if name.startswith(wings)]


@pytest.mark.parametrize("name", WINGS)
def test_further_packages_are_imported_within_their_extra(name):
    tree = WithoutExtras().visit(ast.parse(FILES[name].read_text()))
    assert packages(tree) <= {"keras", "numpy", "keras_brn", *BACKENDS}


@pytest.mark.parametrize(
    "extra, missing, use",
    [
        ("paper", "tensorflow", lambda: sampling.batches(None, 4, 1, seed=0)),
        ("paper", "tensorflow", lambda: sampling.in_order(None, 4)),
        ("paper", "tensorflow", lambda: glyphs._warp([], 1.0, None)),
        ("paper", "tensorflow", lambda: tiny_imagenet._decode_tiny_imagenet(None, 32)),
        ("paper", "tensorflow", cluster.connect_workers),
        ("paper", "matplotlib", lambda: importlib.reload(glyphs)),
        ("paper", "PIL", lambda: importlib.reload(glyphs)),
        ("imagenet", "tensorflow_datasets", imagenet.load_imagenet),
        ("imagenet", "importlib_resources", imagenet.load_imagenet),
    ],
)
def test_a_missing_extra_is_named(extra, missing, use, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    line = re.escape(f'pip install "keras-brn[{extra}]"')
    with pytest.raises(ImportError, match=f"{line}.*{missing}"):
        use()


def python(program, backend, missing):
    missing = f"import sys\nsys.modules.update(dict.fromkeys({sorted(missing)}))\n"
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT.parent)}
    command = [sys.executable, "-c", missing + program]
    return subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)


OPTIONAL = {"tensorflow_datasets", "matplotlib", "IPython", "PIL", "tensorboard"}
SCIPY = {"tensorflow": {"scipy"}, "jax": set(), "torch": {"scipy"}}  # JAX itself needs it.
NEW = """
import keras
before = set(sys.modules)
import keras_brn
new = {name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert new == {"keras_brn"}, new
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_library_works_where_all_else_is_missing(backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = OPTIONAL | SCIPY[backend] | set(BACKENDS) - {backend}
    done = python(NEW + (TESTS / "smoke.py").read_text(), backend, missing)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_missing_backend_is_named(backend):
    done = python("import keras_brn", backend, {backend})
    assert f'ImportError: The backend of Keras is missing: pip install "keras-brn[{backend}]"' in (
        done.stderr
    )
