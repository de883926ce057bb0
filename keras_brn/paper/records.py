"""Files of results, and what produced them."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import keras

from keras_brn.version import __version__


def write_json(path, value):
    """Writes a file that is either the old one or the new one, whenever the writing is cut off."""
    part = path.with_suffix(".part.json")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def provenance():
    """What produced a result: versions, commit, device."""
    from importlib.metadata import PackageNotFoundError, version

    def version_or_none(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "backend": keras.backend.backend(),
        "versions": {
            "python": platform.python_version(),
            "keras-brn": __version__,
            **{
                package: version_or_none(package)
                for package in ("keras", "tensorflow", "jax", "torch", "numpy")
            },
        },
        "commit": _commit(),
        "device": _device(),
        "system": platform.platform(),
        "processor": _processor(),
    }


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
