"""CIFAR-10 from a folder or an archive."""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from keras_brn.paper.data.cifar10 import load_cifar10


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two labels; an image is all of one colour, which tells which it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    for part, count in (("train", 3), ("test", 2)):
        for k, label in enumerate(("cat", "airplane")):
            (folder / part / label).mkdir(parents=True)
            for number in range(count):
                colour = (100 * k + 10 * number, 200 if part == "test" else 0, 30)
                Image.new("RGB", (32, 32), colour).save(folder / part / label / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", ["folder", "zip", "xztar"])
def test_labels_are_in_alphabetical_order(folder, tmp_path, kind):
    path = folder
    if kind != "folder":
        path = shutil.make_archive(tmp_path / "archive", kind, folder.parent, folder.name)
    data = load_cifar10(path)
    assert (data.name, data.classes, data.flip) == ("cifar10", 2, True)
    np.testing.assert_array_equal(data.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.validation_labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.train_images[:, 0, 0, 0], [100, 110, 120, 0, 10, 20])
    np.testing.assert_array_equal(data.validation_images[:, 9, 9], [
        [100, 200, 30], [110, 200, 30], [0, 200, 30], [10, 200, 30]])  # fmt: skip


def test_of_keras(monkeypatch):
    arrays = [np.zeros((4, 32, 32, 3), "uint8"), np.array([[3], [1], [2], [0]], "uint8")]
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: (arrays, arrays))
    data = load_cifar10()
    np.testing.assert_array_equal(data.train_labels, [3, 1, 2, 0])
    assert data.image_shape == (32, 32, 3)


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_cifar10(tmp_path / "nowhere")
    shutil.rmtree(folder / "test")
    with pytest.raises(ValueError, match="must hold training and test images"):
        load_cifar10(folder)
