"""What is not as it should be when ImageNet is prepared and loaded."""

import io
import re
import resource
import shutil
import tarfile

import numpy as np
import pytest
import small_imagenet
import tensorflow as tf
from PIL import Image

from keras_brn.paper.data import imagenet
from keras_brn.paper.data.imagenet import archives, checks, crops, open_files, preparing
from keras_brn.paper.data.sampling import batches
from keras_brn.paper.records import run_lock


def encoded(kind, mode="RGB", **options):
    image = np.random.default_rng(0).integers(0, 255, (9, 12, 3), "uint8")
    file = io.BytesIO()
    image = Image.fromarray(image).resize((120, 90), Image.Resampling.BICUBIC)
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


JPEG = encoded("JPEG", quality=95, subsampling=0)


# The archives.


TRAIN, VALIDATION = archives.ARCHIVES["train"], archives.ARCHIVES["validation"]
IDS = {"n01440764", "n01443537", "n01484850"}


@pytest.fixture
def folder(tmp_path):
    """Archives of three labels with two images each, and of four validation images."""
    small_imagenet.write_archives(tmp_path / "manual", sorted(IDS), [0, 1, 2, 0], per_label=2)
    return tmp_path / "manual"


def cut(path, member, offset=0):
    """Cuts an archive off, so many bytes after the beginning of a member."""
    with tarfile.open(path) as archive:
        start = archive.getmembers()[member].offset
    with path.open("r+b") as file:
        file.truncate(start + offset)


def test_images_are_counted(folder):
    assert archives.count_images(folder, IDS) == {"train": 6, "validation": 4}


@pytest.mark.parametrize("offset", [0, 200, 700])
@pytest.mark.parametrize("name, member", [(TRAIN, 2), (VALIDATION, 3)])
def test_archives_that_were_cut_off_are_named(folder, name, member, offset):
    """At the boundary of two members, in a header, in an image."""
    cut(folder / name, member, offset)
    with pytest.raises(ValueError, match=re.escape(f"{folder / name}") + ".* damaged"):
        archives.count_images(folder, IDS)


@pytest.mark.parametrize("offset", [0, 700])
def test_an_archive_of_a_label_that_was_cut_off_is_named(folder, offset):
    with tarfile.open(folder / TRAIN) as archive:
        archive.extractall(folder, filter="data")
    cut(folder / "n01443537.tar", 1, offset)
    with tarfile.open(folder / TRAIN, "w") as archive:
        for path in sorted(folder.glob("n*.tar")):
            archive.add(path, path.name)
    with pytest.raises(ValueError, match=f"{TRAIN}/n01443537.tar` is damaged"):
        archives.count_images(folder, IDS)


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", bytes(512 * 20)])
def test_what_is_no_archive_is_named(folder, content):
    """The last is an archive without an image."""
    (folder / VALIDATION).write_bytes(content)
    with pytest.raises(ValueError, match=VALIDATION):
        archives.count_images(folder, IDS)


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(ValueError, match="ILSVRC2012_img_train.tar is missing"):
        imagenet.prepare_imagenet(tmp_path, tmp_path / "data")


def test_a_folder_in_an_archive_is_refused(folder, tmp_path):
    """TensorFlow Datasets would take it for an image, and give the next image its label."""
    with tarfile.open(folder / VALIDATION, "a") as archive:
        entry = archive.gettarinfo(tmp_path)
        entry.name = "val"
        archive.addfile(entry)
    with pytest.raises(ValueError, match="an entry 'val'"):
        imagenet.prepare_imagenet(folder, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_label_that_is_none_is_refused(folder):
    with pytest.raises(ValueError, match="an entry 'n01484850.tar'"):
        archives.count_images(folder, IDS - {"n01484850"})


def test_numbers_of_images_are_those_that_are_expected(folder, tmp_path):
    with pytest.raises(ValueError, match=r"1281167.*'train': 6, 'validation': 4"):
        imagenet.prepare_imagenet(folder, tmp_path / "data", imagenet.OFFICIAL_IMAGES)
    assert not (tmp_path / "data").exists()
    with pytest.warns(UserWarning, match=r"'train': 6, 'validation': 4.*not all images"):
        preparing._check_archives(folder, IDS, images=None)


# Broken images.


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize(
    "content",
    [
        JPEG,
        encoded("JPEG", progressive=True),
        encoded("JPEG", "L"),
        encoded("PNG"),
        encoded("PNG", "RGBA"),
        encoded("PNG", "L"),
        encoded("GIF"),
        encoded("BMP"),
        encoded("WEBP", lossless=True),
    ],
)
def test_what_tensorflow_decodes_is_read_in_each_format(content):
    assert checks._broken(content) == (None, "")
    pixels = decoded(content)
    assert crops.image_shape_of(content).numpy()[:2].tolist() == [90, 120]
    window = crops.decoded_window(content, tf.constant([20, 10, 30, 50])).numpy()
    assert np.abs(window - pixels[20:50, 10:60].astype(int)).mean() < 2  # Of two JPEG decoders.
    for k in range(5):
        crop = imagenet.training_crop(content, [0, k], (32, 32, 3))
        assert crop.shape == (32, 32, 3) and np.isfinite(crop).all()
    assert imagenet.central_crop(content, (32, 32, 3)).shape == (32, 32, 3)


@pytest.mark.parametrize("missing", [1, 2, 10, 700])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_off_is_decoded_as_far_as_it_goes(missing, progressive):
    whole = encoded("JPEG", progressive=progressive, quality=95)
    content = whole[:-missing]
    assert checks._broken(content) == ("cut_off", "")
    content = crops.with_end_marker(content)
    for k in range(20):
        assert np.isfinite(imagenet.training_crop(content, [0, k], (32, 32, 3))).all()
    if not progressive:
        top = tf.constant([0, 0, 40, 120])
        same = crops.decoded_window(content, top) == crops.decoded_window(whole, top)
        assert tf.reduce_all(same)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", JPEG[:300], encoded("PNG")[:-500], encoded("GIF")[:-50], encoded("TIFF")],
)
def test_what_cannot_be_decoded_is_known(content):
    fault, reason = checks._broken(content)
    assert fault == "undecodable" and reason.startswith(": ") and "{{" not in reason


def prepare(folder, images):
    """Prepares ImageNet of one label from the files in a dict."""
    (folder / "manual").mkdir()
    label = io.BytesIO()
    with tarfile.open(fileobj=label, mode="w") as archive:
        for name, content in images.items():
            small_imagenet.add(archive, name, content)
    with tarfile.open(folder / "manual" / TRAIN, "w") as archive:
        small_imagenet.add(archive, "n01440764.tar", label.getvalue())
    with tarfile.open(folder / "manual" / VALIDATION, "w") as archive:
        small_imagenet.add(archive, "ILSVRC2012_val_00000001.JPEG", JPEG)
    counts = {"train": len(images), "validation": 1}
    imagenet.prepare_imagenet(folder / "manual", folder / "data", counts)


@pytest.mark.slow
def test_broken_images_are_named_before_training(tmp_path, monkeypatch):
    images = {"good": JPEG, "html": b"<html>", "cut": JPEG[:-10], "tiff": encoded("TIFF")}
    images = {f"n01440764_{name}.JPEG": content for name, content in images.items()}
    expected = r"2 images of .* n01440764_(html|tiff).JPEG \(train: .*_(html|tiff).JPEG"
    with pytest.raises(ValueError, match=expected):
        prepare(tmp_path, images)
    monkeypatch.setattr(checks, "_check_all", None)  # Not all images again.
    with pytest.raises(ValueError, match=expected):
        imagenet.load_imagenet(tmp_path / "data")


@pytest.mark.slow
def test_training_on_images_of_other_formats_and_cut_off_ones(tmp_path, monkeypatch):
    contents = [JPEG, JPEG[:-10], JPEG[:-500], encoded("PNG"), encoded("GIF"), encoded("BMP")]
    images = {f"n01440764_{k}.JPEG": content for k, content in enumerate(contents)}
    with pytest.warns(UserWarning, match=r"2 images of .* were cut off.*n01440764_\d.JPEG"):
        prepare(tmp_path, images)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="were cut off"):
        data = imagenet.load_imagenet("data", size=32)
    seen = [x.numpy() for x, _ in batches(data, 6, 10, 0)]
    assert np.shape(seen) == (10, 6, 32, 32, 3) and np.isfinite(seen).all()


def test_the_digest_is_of_the_images(imagenet_folder, tmp_path):
    first = imagenet.load_imagenet(imagenet_folder / "data")
    sources = {part: list(source) for part, source in first.sources.items()}
    assert checks._check_all(sources_of(sources))["digest"] == first.digest
    sources["train"][0] = {**sources["train"][0], "image": JPEG}
    assert checks._check_all(sources_of(sources))["digest"] != first.digest


class Records(list):
    def __getitems__(self, indices):
        return [self[k] for k in indices]


def sources_of(records):
    return {part: Records(of_part) for part, of_part in records.items()}


# Folders and files.


def test_other_files_in_the_folder_are_checked_again(imagenet_folder, tmp_path):
    imagenet.load_imagenet(imagenet_folder / "data")
    (stored,) = (imagenet_folder / "data").rglob("labels.npz")
    copy = shutil.copytree(stored.parent, tmp_path / "5.1.0")
    before = checks.checked_images(copy, sources={})  # Read, since nothing has changed.
    (path,) = copy.glob("*train*array_record*")
    path.write_bytes(b"other")
    assert before["train"].size and "train" not in checks.checked_images(copy, sources={})


@pytest.fixture
def limit():
    """The limit for open files, and back to it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_for_open_files_is_raised(limit, tmp_path):
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limit[1]))
    open_files.allow_open_files(600)
    files = [(tmp_path / str(k)).open("w") for k in range(600)]
    for file in files:
        file.close()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == limit[1]
    raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    open_files.allow_open_files(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == raised


@pytest.mark.parametrize("hard, accepted", [(1_088, False), (1_300, True), (-1, True)])
def test_a_limit_that_cannot_be_raised_is_refused(monkeypatch, hard, accepted):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))
    if accepted:
        open_files.allow_open_files(1_088)
        assert 1_088 < limits[0][0] and limits[0][1] == hard
    else:
        with pytest.raises(RuntimeError, match="1088 files.*ulimit -Hn.*limit of 1088"):
            open_files.allow_open_files(1_088)
        assert not limits


def test_the_files_of_the_data_set_are_allowed_before_any_is_read(imagenet_folder, monkeypatch):
    def allow(count):
        assert count == len(list((imagenet_folder / "data").rglob("*.array_record*")))
        raise InterruptedError

    monkeypatch.setattr(imagenet.loading, "allow_open_files", allow)
    with pytest.raises(InterruptedError):
        imagenet.load_imagenet(imagenet_folder / "data")


def test_open_files_are_allowed_before_the_official_archives_are_converted(tmp_path, monkeypatch):
    for name, size in ((TRAIN, 147_897_477_120), (VALIDATION, 6_744_924_160)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)  # Of which the disk holds nothing.
    allowed = []
    monkeypatch.setattr(preparing, "count_images", lambda *_: imagenet.OFFICIAL_IMAGES)
    monkeypatch.setattr(preparing, "allow_open_files", allowed.append)
    preparing._check_archives(tmp_path, IDS, images=None)
    assert 1_024 + 64 <= allowed[0] < 1_200


def test_what_a_killed_preparation_has_left_is_removed(folder, tmp_path, monkeypatch):
    unfinished = tmp_path / "data" / "imagenet2012" / "incomplete.ABC123_5.1.0"
    other = tmp_path / "data" / "imagenet2012" / "incomplete.ABC123_5.0.0"
    for path in (unfinished, other):
        path.mkdir(parents=True)
        (path / "file").write_bytes(b"half")
    counts = {"train": 6, "validation": 4}
    with run_lock(unfinished.parent / "5.1.0"):
        with pytest.raises(RuntimeError, match="Another process prepares ImageNet"):
            imagenet.prepare_imagenet(folder, tmp_path / "data", counts)
    assert unfinished.exists()
    monkeypatch.chdir(tmp_path)  # Relative folders.
    imagenet.prepare_imagenet("manual", "data", counts)
    assert sorted(path.name for path in unfinished.parent.iterdir()) == ["5.1.0", other.name]
    imagenet.prepare_imagenet("nowhere", "data")  # Prepared before.


def test_errors_name_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "archives"))):
        imagenet.prepare_imagenet("archives", "data")
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "data"))):
        imagenet.load_imagenet("data")
