"""ImageNet, on a small one that the same builder has prepared from archives like the official."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from small_imagenet import LABELS, PER_LABEL, VALIDATION, official_labels

from keras_brn.benchmarks import input as throughput
from keras_brn.paper.data import imagenet
from keras_brn.paper.data.imagenet import checks
from keras_brn.paper.data.sampling import batches, in_order


@pytest.fixture
def small(imagenet_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(imagenet_folder / "cache"))
    return imagenet.load_imagenet(imagenet_folder / "data", size=64)


def test_what_is_loaded(small, imagenet_folder):
    assert small.classes == 1000 and small.image_shape == (64, 64, 3)
    np.testing.assert_array_equal(
        np.bincount(small.labels["train"], minlength=1000), [PER_LABEL] * LABELS + [0] * 992
    )
    names, validation = official_labels(imagenet_folder / "data")
    records = list(small.sources["validation"])
    numbers = [int(record["file_name"].decode()[-13:-5]) for record in records]
    assert sorted(numbers) == list(range(1, VALIDATION + 1))
    np.testing.assert_array_equal(
        small.labels["validation"], [validation[number - 1] for number in numbers]
    )


def test_labels_are_read_once(small, imagenet_folder, monkeypatch):
    monkeypatch.setattr(checks, "_check_all", None)
    again = imagenet.load_imagenet(imagenet_folder / "data", size=64)
    np.testing.assert_array_equal(again.labels["train"], small.labels["train"])


def test_evaluation_sees_the_middle_of_each_image(small):
    x, y = (np.concatenate(part) for part in zip(*in_order(small, 8), strict=True))
    np.testing.assert_array_equal(y.argmax(1), small.labels["validation"])
    for shown, record in zip(x, small.sources["validation"], strict=True):
        image = tf.image.central_crop(tf.io.decode_jpeg(record["image"]), 0.875)
        expected = tf.image.resize(tf.cast(image, "float32"), (64, 64)) / 127.5 - 1
        np.testing.assert_allclose(shown, expected, atol=1e-5)


def test_training_sees_every_image_once_an_epoch(small):
    (labels,) = [y.numpy().argmax(1) for _, y in batches(small, 64, 1, 0)]
    np.testing.assert_array_equal(np.bincount(labels), [PER_LABEL] * LABELS)


def test_label_pairs(small):
    ((x, y),) = batches(small, 16, 1, 0, group=8, images_per_label=2)
    labels = y.numpy().argmax(1).reshape(2, 2, 4)
    np.testing.assert_array_equal(labels[:, 0], labels[:, 1])
    x = x.numpy().reshape(2, 2, 4, -1)
    assert (np.abs(x[:, 0] - x[:, 1]).max(-1) > 0.1).all()


def test_workers_and_restarts_see_what_one_run_does(small):
    arguments = {"group": 4, "images_per_label": 2}
    alone = [x.numpy() for x, _ in batches(small, 8, 3, 0, **arguments)]
    shares = [
        [x.numpy() for x, _ in batches(small, 8, 3, 0, worker=k, workers=2, **arguments)]
        for k in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), alone)
    ((again, _),) = batches(small, 8, 3, 0, first_step=2, **arguments)
    np.testing.assert_array_equal(again, alone[2])


def windows(count):
    """What crops show of an image whose red is its row and whose green is its column, in parts."""
    row, column = np.meshgrid(np.arange(90), np.arange(120), indexing="ij")
    image = np.stack([row * 2.5, column * 2, np.full_like(row, 128)], -1).astype("uint8")
    encoded = tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False)
    crops = [imagenet.training_crop(encoded, [0, k], (64, 64, 3)).numpy() for k in range(count)]
    return image, np.array(crops)


def test_crops(monkeypatch):
    for name in ("brightness", "saturation", "hue", "contrast"):
        monkeypatch.setattr(tf.image, f"stateless_random_{name}", lambda x, *args: x)
    image, crops = windows(300)
    position = (crops[..., :2] + 1) * 127.5 / [2.5, 2]  # Of each pixel, in the image.
    height = (position[:, -1, 32, 0] - position[:, 0, 32, 0]) * 64 / 63
    width = (position[:, 32, -1, 1] - position[:, 32, 0, 1]) * 64 / 63
    assert 0.4 < (width < 0).mean() < 0.6  # Mirrored.
    area, aspect = height * abs(width) / (90 * 120), abs(width) / height
    assert 0.07 < area.min() < 0.15 and 0.85 < area.max() < 1.02
    assert 0.7 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.4


def test_colours_vary_but_stay_in_range():
    image, crops = windows(50)
    assert crops.min() >= -1 and crops.max() <= 1
    assert crops[..., 2].mean(axis=(1, 2)).std() > 0.05  # The blue, constant in the image.


def test_a_crop_depends_on_its_seed_alone():
    _, crops = windows(3)
    _, again = windows(2)
    np.testing.assert_array_equal(crops[:2], again)
    assert np.abs(np.diff(crops, axis=0)).max((1, 2, 3)).min() > 0.1


def test_every_bit_of_the_seed_matters():
    image = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (90, 120, 3), "uint8"))
    crop = imagenet.training_crop(image, np.array([0, 0]), (64, 64, 3))
    for k in range(0, 64, 9):
        for seed in np.eye(2, dtype="int64") << k:
            other = imagenet.training_crop(image, seed, (64, 64, 3))
            assert np.abs(other - crop).max() > 0.1


def test_the_number_of_batches_is_known(small):
    dataset = batches(small, 16, 3, 0)
    assert dataset.cardinality() == 3 and len(list(dataset.repeat(2))) == 6
    assert in_order(small, 8).cardinality() == 3  # 20 images.


def test_an_evaluation_knows_its_end(small):
    model = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.GlobalAveragePooling2D()])
    model.add(keras.layers.Dense(1000))
    model.compile(loss="categorical_crossentropy", jit_compile=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Keras warns where the data end unexpectedly.
        model.evaluate(in_order(small, 8), verbose=0)
    workers = [in_order(small, 7, worker=k, workers=2).cardinality() for k in range(2)]
    assert workers == [2, 2]  # What the workers compare: unknown would be -2.


def test_trains(small):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1000)]
    model = keras.Sequential([keras.Input((64, 64, 3)), *layers])
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True))
    model.fit(batches(small, 16, 3, 0), verbose=0)


def test_refuses_what_is_not_prepared(imagenet_folder):
    with pytest.raises(ValueError, match="call `keras_brn.paper.data.imagenet.prepare_imagenet`"):
        imagenet.load_imagenet(imagenet_folder / "nothing")


@pytest.fixture(scope="module")
def tfrecord_folder(imagenet_folder):
    """The same images in the default format of TFDS."""
    folder = imagenet_folder / "tf"
    builder = tfds.builder("imagenet2012:5.1.0", data_dir=folder, file_format="tfrecord")
    config = tfds.download.DownloadConfig(manual_dir=str(imagenet_folder / "manual"))
    builder.download_and_prepare(download_config=config)
    return folder


def test_refuses_another_format(tfrecord_folder):
    with pytest.raises(ValueError, match="array_record.*prepared as tfrecord"):
        imagenet.load_imagenet(tfrecord_folder)


@pytest.mark.slow
def test_throughput(small, imagenet_folder, tfrecord_folder, capsys):
    """It is measured, and plain TFDS yields what ours does."""
    folders = ["--data-dir", imagenet_folder / "data", "--tfrecord-dir", tfrecord_folder]
    throughput.main([*map(str, folders), "--rounds", "1"])
    independent, pairs, plain = capsys.readouterr().out.splitlines()[-3:]
    for line in (independent, pairs):
        assert re.search(r": \d+ \[.* images/s, by plain TFDS \d+\.\d\d ", line)
    assert re.fullmatch(r"plain TFDS: \d+ \[.*\] images/s", plain)
    x, y = next(iter(throughput.plain(tfrecord_folder, small.image_shape)))
    ((ours, labels),) = batches(small, throughput.BATCH, 1, 0)
    assert x.shape == ours.shape and x.dtype == ours.dtype and y.shape == labels.shape
