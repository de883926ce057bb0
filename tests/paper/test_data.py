"""The data sets."""

import io
import os
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from keras_brn.paper.data import files, glyphs, images, tiny_imagenet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "keras_brn"


# The cache.


def test_cache_makes_once_and_survives_an_interruption(cache):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.cached("numbers", interrupted)
    made = files.cached("numbers", lambda: {"a": np.arange(3)})
    again = files.cached("numbers", interrupted)
    np.testing.assert_array_equal(made["a"], again["a"])
    assert [file.name for file in cache.iterdir()] == ["numbers.npz"]


def test_cache_ignores_a_write_that_was_cut_off(cache, monkeypatch):
    def cut_off(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "savez", cut_off)
        files.cached("numbers", lambda: {"a": np.arange(3)})
    assert files.cached("numbers", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


def test_images_of_some_labels():
    labels = np.array([2, 0, 1, 2, 0, 1])
    pixels = np.arange(6, dtype="uint8").reshape(6, 1, 1, 1)
    six = images.Images("six", 3, pixels, labels, pixels[:3], labels[:3], flip=True)
    few = six.of_labels([2, 0], train_per_label=1)
    assert few.classes == 2 and few.flip
    assert few.train_images.ravel().tolist() == [0, 1] == few.validation_images.ravel().tolist()
    assert few.train_labels.tolist() == [0, 1] == few.validation_labels.tolist()
    assert six.of_labels([1, 2]).train_labels.tolist() == [1, 0, 1, 0]


# Glyphs.


def test_glyphs_are_a_function_of_their_seed():
    first, again, other = (glyphs.render(1, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_glyphs_have_the_labels_of_imagenet_in_number():
    images = glyphs.load_glyphs(train_per_label=2, validation_per_label=1)
    assert images.classes == len(set(glyphs.CHARACTERS)) == 1000
    assert images.train_images.shape == (2000, 32, 32, 1)
    assert images.train_images.dtype == np.uint8
    assert (np.bincount(images.train_labels) == 2).all()
    assert (images.train_images[:1000] != images.validation_images).mean() > 0.5


def test_fewer_labels_are_some_of_them():
    images = glyphs.load_glyphs(train_per_label=2, validation_per_label=1, labels=200)
    assert images.classes == 200 and (np.bincount(images.train_labels) == 2).all()


def resemblance(difficulty):
    """Mean correlation of the ink of two images of a label, and of two labels."""
    images = glyphs.render(2, difficulty).reshape(2, 1000, -1) / 255.0
    images = np.abs(images - np.median(images, axis=-1, keepdims=True))  # Ink, of either color.
    first, second = (x - x.mean(1, keepdims=True) for x in images)
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    similarity = first @ second.T
    return np.diag(similarity).mean(), similarity.mean()


def test_images_of_a_label_resemble_each_other_less_where_they_are_distorted_more():
    same, other = np.transpose([resemblance(difficulty) for difficulty in (0, 1, 3)])
    assert same[0] > other[0] + 0.3
    assert (np.diff(same - other) < -0.05).all()


def test_characters_are_distinct():
    thumbnails = (
        glyphs._templates().reshape(12, 1000, 16, 3, 16, 3).mean((3, 5)).reshape(12, 1000, -1)
    )
    thumbnails -= thumbnails.mean(2, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=2, keepdims=True)
    similarity = np.mean([face @ face.T for face in thumbnails], axis=0)
    np.fill_diagonal(similarity, 0)
    assert similarity.max() < 0.85  # They were chosen below .824, with another resampling.


def of_another_version(package):
    return "0.0"


@pytest.mark.parametrize(
    "module, name, value",
    [
        (glyphs, "_BOX", 20),
        (glyphs, "CHARACTERS", glyphs.CHARACTERS[19::-1]),
        (glyphs, "__file__", files.__file__),
        (glyphs, "_fonts", lambda fonts=glyphs._fonts: fonts()[:6]),
        (files, "package_version", of_another_version),
    ],
    ids=["scale", "characters", "code", "fonts", "versions"],
)
def test_what_other_code_rendered_is_not_read(cache, monkeypatch, module, name, value):
    arguments = {"train_per_label": 1, "validation_per_label": 1, "labels": 3}
    monkeypatch.setattr(glyphs, "CHARACTERS", glyphs.CHARACTERS[:20])  # All take seconds.
    monkeypatch.setattr(glyphs, "_templates", glyphs._templates.__wrapped__)
    glyphs.load_glyphs(**arguments)
    glyphs.load_glyphs(**arguments)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, name, value)
    loaded = glyphs.load_glyphs(**arguments)
    assert len(list(cache.iterdir())) == 2
    np.testing.assert_array_equal(loaded.train_images, glyphs.render(1, seed=(0, 0), labels=3))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train_per_label": 0}, "train_per_label=0"),
        ({"validation_per_label": 0}, "validation_per_label=0"),
        ({"labels": 1001}, "from 1 to 1000. Received: labels=1001"),
        ({"difficulty": -1}, "difficulty=-1"),
        ({"difficulty": float("nan")}, "difficulty=nan"),
    ],
)
def test_bad_glyphs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        glyphs.load_glyphs(**arguments)


# Tiny ImageNet.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The layout of the public archive: 3 labels, 4 training and 2 validation images of each."""
    root = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    annotations = []
    for label, wnid in enumerate(("n03", "n01", "n02")):
        for k in range(4):
            write(root / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 80 * label, gray=k == 0)
        for k in range(2):
            name = f"val_{3 * k + label}.JPEG"
            write(root / "val" / "images" / name, 80 * label)
            annotations.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
        write(root / "test" / "images" / f"test_{label}.JPEG", 0)
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "wnids.txt").write_text("n03\nn01\nn02\n")
    return root


def write(path, value, gray=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((64, 64, 1 if gray else 3), value, "uint8")
    path.write_bytes(tf.io.encode_jpeg(image).numpy())


def pack(folder, kind, path):
    files = [file for file in folder.rglob("*") if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(folder.parent))
    else:
        with tarfile.open(path, "w:xz") as archive:
            archive.add(folder, folder.name)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_tiny_imagenet(folder, tmp_path, kind):
    path = folder if kind == "folder" else pack(folder, kind, tmp_path / "archive")
    loaded = tiny_imagenet.load_tiny_imagenet(path, size=16)
    assert loaded.classes == 3 and loaded.flip
    assert loaded.train_images.shape == (12, 16, 16, 3)
    assert loaded.validation_images.shape == (6, 16, 16, 3)
    # Sorted by WordNet id, n01 n02 n03, which were written with 80, 160 and 0.
    for part in ("train", "validation"):
        values = getattr(loaded, f"{part}_images").mean((1, 2, 3)).round()
        np.testing.assert_array_equal(
            values, np.array([80, 160, 0])[getattr(loaded, f"{part}_labels")]
        )


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_changed_images_are_decoded_again(folder, tmp_path, kind):
    """Also where the path, and of an archive the size and the time, stay as they were."""
    changed = shutil.copytree(folder, tmp_path / folder.name)
    image = changed / "train" / "n03" / "images" / "n03_1.JPEG"

    def load():
        path = changed if kind == "folder" else tmp_path / "archive.tar"
        if kind == "tar":
            with tarfile.open(path, "w") as archive:
                archive.add(changed, changed.name)
            os.utime(path, (0, 0))
        return tiny_imagenet.load_tiny_imagenet(path, size=16)

    before = load()
    np.testing.assert_array_equal(load().train_images, before.train_images)
    write(image, 250)
    after = load()
    assert (after.train_images != before.train_images).any(axis=(1, 2, 3)).sum() == 1
    assert after.digest != before.digest


def test_bad_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.zip"):
        tiny_imagenet.load_tiny_imagenet(tmp_path / "nowhere.zip")
    with pytest.raises(ValueError, match="must hold Tiny ImageNet"):
        tiny_imagenet.load_tiny_imagenet(tmp_path)
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(ValueError, match="other.tar"):
        tiny_imagenet.load_tiny_imagenet(tmp_path / "other.tar")
