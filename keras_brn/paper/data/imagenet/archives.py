"""The official archives of ImageNet, checked before hours are spent on them."""

import tarfile
from pathlib import Path

import keras

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
_BLOCK = 512  # Bytes; a tar archive consists of such blocks, and ends with some of zeros.


def count_images(manual_dir, wordnet_ids):
    """The numbers of images in the archives: a dict from "train" and "validation".

    Args:
        manual_dir: Folder of the archives.
        wordnet_ids: The names of the labels.

    Raises:
        ValueError: If an archive is missing, damaged or cut off, or holds what TensorFlow Datasets
            would count as an image: the validation images get the labels of a list, in order.
    """
    for name in ARCHIVES.values():
        if not (Path(manual_dir) / name).is_file():
            raise ValueError(
                "`manual_dir` must hold ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar: get "
                f"them from image-net.org. Received: manual_dir={str(manual_dir)!r}, where {name} "
                "is missing"
            )
    path = Path(manual_dir) / ARCHIVES["validation"]
    with path.open("rb") as file:
        validation = sum(1 for _ in _members(file, str(path), ".JPEG"))
    counts = {"train": _count_training_images(manual_dir, wordnet_ids), "validation": validation}
    for part, count in counts.items():
        if count == 0:
            raise ValueError(f"`{Path(manual_dir) / ARCHIVES[part]}` must hold images. Received: 0")
    return counts


def _count_training_images(manual_dir, wordnet_ids):
    path, count = Path(manual_dir) / ARCHIVES["train"], 0
    progress = keras.utils.Progbar(len(wordnet_ids), unit_name="label", interval=1)
    with path.open("rb") as file:
        for archive, member in _members(file, str(path), ".tar"):
            if member.name.removesuffix(".tar") not in wordnet_ids:
                raise ValueError(
                    f"`{path.name}` must hold an archive for each label, named by its WordNet id. "
                    f"Received: an entry {member.name!r}"
                )
            images = archive.extractfile(member)
            count += sum(1 for _ in _members(images, f"{path}/{member.name}", ".JPEG"))
            progress.add(1)
    return count


def _members(file, name, ending):
    """Pairs of the archive in a file and each of its entries, which are checked."""
    end = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                if not member.isfile() or "/" in member.name or not member.name.endswith(ending):
                    raise ValueError(
                        f"`{name}` must be the official archive, which holds {ending} files and no "
                        "folders: make it anew from those files. "
                        f"Received: an entry {member.name!r}"
                    )
                yield archive, member
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            file.seek(end)
            complete = file.read(_BLOCK) == bytes(_BLOCK)
    except tarfile.TarError as error:
        raise ValueError(f"{_DAMAGED.format(name)} Received: {error}") from error
    if not complete:
        raise ValueError(f"{_DAMAGED.format(name)} Received: no end mark at byte {end}")


_DAMAGED = "`{}` is damaged, or was not copied to its end: get it again."
