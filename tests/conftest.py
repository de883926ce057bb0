import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    two = [tf.config.LogicalDeviceConfiguration()] * 2  # For tf.distribute.
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="what takes minutes")


def pytest_collection_modifyitems(config, items):
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
    keras.utils.clear_session()


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
