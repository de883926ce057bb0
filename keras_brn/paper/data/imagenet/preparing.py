"""ImageNet from the official archives."""

import shutil
import warnings
from pathlib import Path

from keras_brn.extras import extra
from keras_brn.paper.data.imagenet.archives import ARCHIVES, count_images
from keras_brn.paper.data.imagenet.loading import BUILDER, absolute, load_imagenet
from keras_brn.paper.data.imagenet.open_files import allow_open_files
from keras_brn.paper.records import run_lock

OFFICIAL_IMAGES = {"train": 1_281_167, "validation": 50_000}


def prepare_imagenet(manual_dir, data_dir=None, images=None):
    """Converts the official archives to what `load_imagenet` reads, once: about 150 GB, in hours.

    The archives are checked first, and all images are decoded in the end. What a preparation that
    was killed has left in `data_dir` is removed, so let nothing else prepare ImageNet there.

    Args:
        manual_dir: Folder of ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from
            image-net.org.
        data_dir: Where TensorFlow Datasets keeps its data; `None`: in the user's home.
        images: The numbers of images that the archives must hold: a dict from "train" and
            "validation", as `OFFICIAL_IMAGES`. `None`: as many as they hold, with a warning where
            that is not the official number.

    Raises:
        ValueError: If an archive is missing, damaged, cut off or holds another number of images or
            what would give images the wrong labels; or as for `load_imagenet`.
        RuntimeError: If another process prepares it, or as for `load_imagenet`.
    """
    with extra("imagenet"):
        import importlib_resources  # noqa: F401  TensorFlow Datasets needs it undeclared.
        import tensorflow_datasets as tfds

    manual_dir, data_dir = absolute(manual_dir), absolute(data_dir)
    builder = tfds.builder(BUILDER, data_dir=data_dir, file_format="array_record")
    folder = Path(builder.data_dir)
    if not (folder / "dataset_info.json").exists():
        _check_archives(manual_dir, set(builder.info.features["label"].names), images)
        with run_lock(folder) as locked:
            if not locked:
                raise RuntimeError(f"Another process prepares ImageNet in {folder.parent}.")
            for unfinished in folder.parent.glob(f"incomplete.*_{folder.name}"):
                shutil.rmtree(unfinished)
            config = tfds.download.DownloadConfig(manual_dir=manual_dir)
            builder.download_and_prepare(download_config=config)
    load_imagenet(data_dir)  # Which leaves the labels beside the images.


def _check_archives(manual_dir, wordnet_ids, images):
    counted = count_images(manual_dir, wordnet_ids)
    if images is not None and counted != images:
        raise ValueError(
            "The archives must hold the numbers of images that `images` tells. "
            f"Received: images={images}, where {manual_dir} holds {counted}"
        )
    if images is None and counted != OFFICIAL_IMAGES:
        warnings.warn(
            f"The archives in {manual_dir} hold {counted}, not all images of ImageNet, "
            f"{OFFICIAL_IMAGES}. If that is meant, give these numbers as `images`.",
            stacklevel=3,
        )
    # TensorFlow Datasets makes at most 1,024 files of a part, of 64 MB or more.
    sizes = [(Path(manual_dir) / name).stat().st_size for name in ARCHIVES.values()]
    allow_open_files(sum(min(1024, 1 + size // 2**26) for size in sizes))
