"""Files of arrays: kept between runs, always whole, and told apart by their digest."""

import hashlib
import os
import tarfile
import uuid
import zipfile
from pathlib import Path

import numpy as np

from keras_brn.paper.records import package_version


def cached(name, make):
    """The dict of arrays that `make()` returns, kept in the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(root) / "keras_brn" / f"{name}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = make()
        write_arrays(path, arrays)
    with np.load(path) as file:
        return dict(file)


def digest_of_maker(files, packages=(), values=()):
    """Sixteen hexadecimal digits that change with what makes an array: for the name of a cache.

    Args:
        files: Paths of files that are read: the code, fonts, an archive.
        packages: Names of installed packages, whose versions count.
        values: Further values that are told apart by their `repr`.
    """
    sha = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            sha.update(hashlib.file_digest(file, "sha256").digest())
    versions = [(package, package_version(package)) for package in packages]
    sha.update(repr((versions, *values)).encode())
    return sha.hexdigest()[:16]


def digest_of_source(code, path):
    """As `digest_of_maker`, of images that TensorFlow decodes. An archive is read; of the many
    files of a folder the names, sizes and times count.

    Args:
        code: Path of the code that decodes them.
        path: Path of an archive or a folder.
    """
    archives, entries = [path], []
    if path.is_dir():
        archives = []
        for file in sorted(path.rglob("*.*")):
            status = file.stat()
            relative = file.relative_to(path).as_posix()
            entries.append((relative, status.st_size, status.st_mtime_ns))
    return digest_of_maker([code, *archives], packages=("tensorflow",), values=entries)


def existing_path(path, contents):
    """A `Path`, or a ValueError that says what it must be, if there is nothing."""
    if not Path(path).exists():
        raise ValueError(
            f"`path` must be {contents}. Received: path={str(path)!r}, which does not exist"
        )
    return Path(path)


def files_in(path):
    """(name, content) of every file in a folder, a zip or a tar, also compressed."""
    if path.is_dir():
        for file in sorted(path.rglob("*.*")):
            if file.is_file():
                yield file.as_posix(), file.read_bytes()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, archive.read(name)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, archive.extractfile(member).read()


def digest_of(*arrays):
    """The SHA-256 of the values of arrays, in hexadecimal digits."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()


def write_arrays(path, arrays):
    """Writes an npz file that is always whole, also if several processes write it, or one ends."""
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
