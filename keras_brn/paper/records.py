"""Files of results, and what produced them."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import uuid
from pathlib import Path

import keras

from keras_brn.extras import extra
from keras_brn.version import __version__


def write_json(path, value):
    """Writes a file that is either the old one or the new one, whenever the writing is cut off, and
    also if several processes write it. JSON has no NaN and no infinity: they become `null`."""
    path = Path(path)
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        part.write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path):
    """What `write_json` wrote; a file that is no JSON is refused by its name."""
    try:
        return json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"`{path}` is damaged: remove it. Received: {error}") from error


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def run_lock(path):
    """Locks the result in a file against other processes, for the block of a `with` statement.

    The block receives whether this process has the lock: nobody waits for it. It must then read
    again whether the result is complete. The system frees the lock of a process that is killed.

    Args:
        path: Path of the result; the lock is a file beside it, which goes when the block is done.
    """
    with extra("paper"):
        import filelock

    path = Path(path).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
        with contextlib.suppress(OSError):  # Windows deletes no open file.
            path.unlink()  # Not after an error, since the run is not complete.
    finally:
        lock.release()


def locked_error(path):
    """What to raise where `run_lock` says that another process has the lock."""
    return RuntimeError(
        f"Another process trains this run and will write `{path}`: wait for its end, or choose "
        "another folder."
    )


def describe_images(data):
    """What tells data sets of the same name apart: the numbers of images and of labels, the shape
    of an image, whether it is mirrored in training, and the digest."""
    counts = {part: len(labels) for part, labels in data.labels.items()}
    return {
        **counts,
        "shape": list(data.image_shape),
        "labels": data.classes,
        "flip": getattr(data, "flip", True),  # ImageNet has no choice.
        "sha256": data.digest,
    }


def provenance(data=None):
    """What produced a result: versions, commit, device, and the images.

    Args:
        data: `Images` or `ImageNet`; `None` for what needs no images.
    """
    versions = {"python": platform.python_version(), "keras-brn": __version__}
    versions |= {package: package_version(package) for package in _PACKAGES}
    described = {
        "backend": keras.backend.backend(),
        "versions": versions,
        "commit": _commit(),
        "device": _device(),
        "system": platform.platform(),
        "processor": _processor(),
        "memory_gib": _memory(),
    }
    return described if data is None else {**described, "images": describe_images(data)}


# Matplotlib's fonts and Pillow render the glyphs.
_PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy", "matplotlib", "pillow")


def package_version(package):
    """The version of an installed package, or `None`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory():
    """The memory of this machine in GiB, or `None` where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no `sysconf`.
        return None


def _processor():
    """The name of the processor's model."""
    path = Path("/proc/cpuinfo")  # On Linux `platform` has no name.
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _device():
    """What trains: the accelerators of this machine, or its processor."""
    backend, accelerators = keras.backend.backend(), []
    if backend == "tensorflow":
        import tensorflow as tf

        devices = tf.config.list_physical_devices("GPU")
        details = [tf.config.experimental.get_device_details(device) for device in devices]
        accelerators = [detail.get("device_name", "GPU") for detail in details]
    elif backend == "jax":
        import jax

        devices = jax.local_devices()
        accelerators = [device.device_kind for device in devices if device.platform != "cpu"]
    elif backend == "torch":
        import torch

        devices = range(torch.cuda.device_count())
        accelerators = [torch.cuda.get_device_name(device) for device in devices]
    if accelerators:
        return f"{len(accelerators)} x {accelerators[0]}"
    return f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"


def _commit():
    """The commit of a clone, marked where it was changed; `None` for an installed package."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    folder = Path(__file__).parent
    if not (folder.parents[1] / ".git").exists() or shutil.which("git") is None:
        return None
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()
