"""The one pass over all images of ImageNet: their labels, their digest, and which are broken."""

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from keras_brn.paper.data.files import digest_of, write_arrays
from keras_brn.paper.data.imagenet.crops import decoded_window, image_shape_of, with_end_marker

_AT_ONCE = 64  # Images that a thread reads and decodes.


def checked_images(folder, sources):
    """What the pass over all images has found, read from `folder` where it was made before.

    Args:
        folder: `Path` of the images' files, which must be writable the first time.
        sources: As of `ImageNet`.

    Returns:
        Dict of arrays: of each part the labels; `digest`, a string; and `undecodable` and
        `cut_off`, the names of images of which no pixel or not all can be decoded.
    """
    path, key = folder / "labels.npz", _files_key(folder)
    if path.exists():
        with np.load(path) as file:
            stored = dict(file)
        if str(stored.get("files")) == key:
            return stored
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"The labels of the images are written to {folder}, which must be writable once."
        )
    checked = {**_check_all(sources), "files": np.array(key)}
    write_arrays(path, checked)
    return checked


def _files_key(folder):
    """Changes with the files of the images, as far as their names and sizes do."""
    files = sorted(folder.glob("*.array_record*"))
    return repr([(file.name, file.stat().st_size) for file in files])


def _check_all(sources):
    progress = keras.utils.Progbar(sum(map(len, sources.values())), unit_name="image", interval=1)
    checked, hashes = {}, []
    broken = {"undecodable": [], "cut_off": []}
    for part, source in sources.items():
        labels = []
        for label, sha256, name, fault, reason in _checks(source):
            labels.append(label)
            hashes.append(sha256)
            if fault is not None:
                broken[fault].append(f"{name} ({part}{reason})")
            progress.add(1)
        checked[part] = np.array(labels, "int64")
    digest = digest_of(np.frombuffer(b"".join(hashes), "uint8"), *checked.values())
    checked["digest"] = np.array(digest)
    return checked | {fault: np.array(names, "str") for fault, names in broken.items()}


def _checks(source):
    """What `_check` returns for all images of a part, in order; made on all cores."""
    starts = range(0, len(source), _AT_ONCE)
    chunks = [range(start, min(start + _AT_ONCE, len(source))) for start in starts]
    # Threads, since TensorFlow decodes without the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for checks in threads.map(functools.partial(_check, source), chunks):
            yield from checks


def _check(source, indices):
    """Of each image: its label, the hash of its file, the file's name, and what is broken."""
    records = []
    for record in source.__getitems__(list(indices)):
        encoded = record["image"]
        sha256 = hashlib.sha256(encoded).digest()
        name = record["file_name"].decode()
        records.append((int(record["label"]), sha256, name, *_broken(encoded)))
    return records


def _broken(encoded):
    """(`None`, "") for a whole image, else the kind of fault and the reason."""
    reason = _decoding_error(encoded)
    if reason is None:
        return None, ""
    if with_end_marker(encoded) != encoded and _decoding_error(with_end_marker(encoded)) is None:
        return "cut_off", ""
    return "undecodable", f": {reason}"


def _decoding_error(encoded):
    """What TensorFlow says where it cannot decode all of an image, else `None`."""
    import tensorflow as tf

    try:
        with tf.device("CPU"):
            size = image_shape_of(encoded)[:2]
            decoded_window(encoded, tf.concat([[0, 0], size], 0))
    except tf.errors.OpError as error:
        return re.sub(r"{{.*?}}|\[Op:.*?\]", "", error.message).strip()
    return None
