import gc
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

import keras_brn.kernels

TESTS = Path(__file__).parent
PAPER = TESTS / "paper"
DOCTESTS_ONCE = TESTS.parent / "keras_brn" / "paper", TESTS.parent / "keras_brn" / "benchmarks"
KERNELS = keras_brn.kernels._kernels
FEWEST_VALUES = getattr(KERNELS, "_FEWEST_VALUES", None)  # None on PyTorch.

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    two = [tf.config.LogicalDeviceConfiguration()] * 2  # For tf.distribute.
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="what takes minutes")


def runs_once(item):
    """If it is the same on every backend, as the reproduction is but for what is marked."""
    if item.get_closest_marker("once"):
        return True
    return PAPER in item.path.parents and not item.get_closest_marker("each_backend")


def pytest_ignore_collect(collection_path):
    """What has nothing for this backend is not even imported."""
    if keras.backend.backend() == "tensorflow":
        return None
    if collection_path in DOCTESTS_ONCE:
        return True
    of_paper = collection_path.parent == PAPER and collection_path.suffix == ".py"
    return True if of_paper and "each_backend" not in collection_path.read_text() else None


def pytest_collection_finish():
    gc.freeze()  # What is imported stays: to look for garbage in it takes 5 % of the time.


def pytest_collection_modifyitems(config, items):
    if keras.backend.backend() != "tensorflow":
        config.hook.pytest_deselected(items=[item for item in items if runs_once(item)])
        items[:] = [item for item in items if not runs_once(item)]
    if not config.getoption("--long"):
        skip = pytest.mark.skip(reason="needs --long")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.utils.clear_session(free_memory=False)  # To collect garbage takes .6 s.


@pytest.fixture(autouse=True)
def _kernels_of_large_inputs(monkeypatch):
    """Tests have small inputs, for which the layer would take the plain form."""
    if FEWEST_VALUES is not None:
        monkeypatch.setattr(KERNELS, "_FEWEST_VALUES", 0)


@pytest.fixture
def kernels_by_size(monkeypatch, _kernels_of_large_inputs):
    """The kernels are chosen as outside of tests."""
    if FEWEST_VALUES is not None:
        monkeypatch.setattr(KERNELS, "_FEWEST_VALUES", FEWEST_VALUES)


@pytest.fixture(scope="session")
def imagenet_folder(tmp_path_factory):
    """Of the small ImageNet."""
    import small_imagenet

    folder = tmp_path_factory.mktemp("imagenet")
    small_imagenet.prepare(folder)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def backend():
    return keras.backend.backend()
