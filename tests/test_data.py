"""The data sets, and how a training step draws from them."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from keras_brn import data, glyphs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "keras_brn"


# Batches.


def drawn(count=30, steps=12, size=7, **kwargs):
    """The images and labels of each step; image `i` is `i` everywhere."""
    images = np.tile(np.arange(count, dtype="uint8")[:, None, None, None], (1, 4, 4, 1))
    arguments = {"classes": count, "batch_size": size, "steps": steps, "seed": 0, **kwargs}
    dataset = data.batches(images, np.arange(count), **arguments)
    return [(x.numpy(), y.numpy().argmax(1)) for x, y in dataset]


def test_every_epoch_shows_every_image_once_in_its_own_order():
    shown = np.concatenate([y for _, y in drawn(count=30, steps=12, size=10)]).reshape(4, 30)
    assert (np.sort(shown) == np.arange(30)).all()
    assert len({tuple(epoch) for epoch in shown}) == 4
    assert abs(np.corrcoef(shown[0], np.arange(30))[0, 1]) < 0.5


def test_labels_belong_to_their_images():
    for x, y in drawn():
        np.testing.assert_allclose(x[:, 2, 2, 0], y / 127.5 - 1, rtol=1e-5)


def test_a_batch_depends_on_seed_and_step_alone():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), "uint8")

    def draw(seed, first_step):
        arguments = dict(classes=20, batch_size=6, steps=9, flip=True)
        dataset = data.batches(images, np.arange(20), seed=seed, first_step=first_step, **arguments)
        return [x.numpy() for x, _ in dataset]

    np.testing.assert_array_equal(draw(0, 0)[4:], draw(0, 4))
    assert (np.array(draw(0, 0)) != np.array(draw(1, 0))).any()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("down, right", [(0, 0), (2, -1), (-3, 3)])
def test_shifted_moves_whole_pixels(rng, down, right, mirror):
    image = rng.normal(size=(1, 8, 8, 2)).astype("float32")
    moved = data.shifted(image, [down], [right], tf.constant([mirror]))[0].numpy()
    source = image[0, :, ::-1] if mirror else image[0]
    inside = np.roll(source, (down, right), (0, 1))[3:-3, 3:-3]
    np.testing.assert_array_equal(moved[3:-3, 3:-3], inside)
    assert np.isin(moved, source).all()  # The border is reflected.


# The cache.


def test_cache_makes_once_and_survives_an_interruption(cache):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data.cached("numbers", interrupted)
    made = data.cached("numbers", lambda: {"a": np.arange(3)})
    again = data.cached("numbers", interrupted)
    np.testing.assert_array_equal(made["a"], again["a"])
    assert [file.name for file in cache.iterdir()] == ["numbers.npz"]


def test_cache_ignores_a_write_that_was_cut_off(cache, monkeypatch):
    def cut_off(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "savez", cut_off)
        data.cached("numbers", lambda: {"a": np.arange(3)})
    assert data.cached("numbers", lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]


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


def test_images_of_a_label_resemble_each_other_more_than_others():
    images = glyphs.render(2, difficulty=0.1).reshape(2, 1000, -1) / 255.0
    images = np.abs(images - np.median(images, axis=-1, keepdims=True))  # Ink, of either color.
    first, second = (x - x.mean(1, keepdims=True) for x in images)
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second))
    similarity = first @ second.T
    same, other = np.diag(similarity).mean(), similarity.mean()
    assert same > other + 0.3


def test_characters_are_distinct():
    thumbnails = (
        glyphs._templates().reshape(12, 1000, 16, 3, 16, 3).mean((3, 5)).reshape(12, 1000, -1)
    )
    thumbnails -= thumbnails.mean(2, keepdims=True)
    thumbnails /= np.linalg.norm(thumbnails, axis=2, keepdims=True)
    similarity = np.mean([face @ face.T for face in thumbnails], axis=0)
    np.fill_diagonal(similarity, 0)
    assert similarity.max() < 0.85  # They were chosen below .824, with another resampling.


def test_difficulty_distorts():
    deviations = [glyphs.render(1, difficulty).std(axis=0).mean() for difficulty in (0, 1)]
    contrast = [np.ptp(glyphs.render(1, d).reshape(1000, -1), axis=1).mean() for d in (0, 3)]
    assert deviations[0] != deviations[1] and contrast[0] > 250


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"train_per_label": 0}, "train_per_label=0"),
        ({"validation_per_label": 0}, "validation_per_label=0"),
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
    images = data.load_tiny_imagenet(path, size=16)
    assert images.classes == 3 and images.flip
    assert images.train_images.shape == (12, 16, 16, 3)
    assert images.validation_images.shape == (6, 16, 16, 3)
    # Sorted by WordNet id, n01 n02 n03, which were written with 80, 160 and 0.
    for part in ("train", "validation"):
        values = getattr(images, f"{part}_images").mean((1, 2, 3)).round()
        np.testing.assert_array_equal(
            values, np.array([80, 160, 0])[getattr(images, f"{part}_labels")]
        )


def test_bad_paths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.zip"):
        data.load_tiny_imagenet(tmp_path / "nowhere.zip")
    with pytest.raises(ValueError, match="must hold Tiny ImageNet"):
        data.load_tiny_imagenet(tmp_path)
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("readme"), io.BytesIO())
    with pytest.raises(ValueError, match="other.tar"):
        data.load_tiny_imagenet(tmp_path / "other.tar")
