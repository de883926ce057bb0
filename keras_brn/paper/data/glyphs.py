"""Glyphs: a data set of 1000 characters, rendered on this machine from matplotlib's fonts.

It has ImageNet's number of labels and needs no download: 32x32 gray images of characters of the
DejaVu fonts, under a random affine map, contrast, shading and noise.
"""

import functools
import math
import os
from pathlib import Path

import keras
import numpy as np

from keras_brn.extras import extra
from keras_brn.paper.data.files import cached, digest_of_maker
from keras_brn.paper.data.images import Images

with extra("paper"):
    import matplotlib
    from PIL import Image, ImageFont

SIZE = 32
_TEMPLATE, _BOX = 48, 40  # Pixels of a template, and of the longer side of the glyph in it.

# Of the letters, numbers, symbols and punctuation in all twelve faces, in the order of their
# code points, each one whose shape is not that of an earlier one (correlation below .824
# between 16x16 thumbnails, mean over the faces), up to the thousandth.
CHARACTERS = (Path(__file__).parent / "glyphs.txt").read_text(encoding="utf-8").replace("\n", "")


def load_glyphs(train_per_label=100, validation_per_label=8, difficulty=1.0, seed=0, labels=1000):
    """Renders the glyphs, or reads them from the user's cache directory.

    Args:
        train_per_label: Number of training images of each of the 1000 characters, >= 1.
            100 take about 10 seconds and 100 MB.
        validation_per_label: Number of validation images of each character, >= 1.
        difficulty: Float >= 0, the size of all distortions; 0 gives the upright character in
            a random face. At 1, batchnorm comes to 93 % in Figure 1.
        seed: Integer; the images depend on the arguments alone.
        labels: Number of characters, from 1 to 1000, evenly spaced among them.

    Returns:
        `Images` with uint8 images (images, 32, 32, 1). Image `i` shows label `i % labels`.

    Raises:
        ValueError: If a number of images or labels is out of its range, or `difficulty` negative.
    """
    for name, count, most in (
        ("train_per_label", train_per_label, math.inf),
        ("validation_per_label", validation_per_label, math.inf),
        ("labels", labels, len(CHARACTERS)),
    ):
        if not 1 <= count <= most:
            limits = "at least 1" if most == math.inf else f"from 1 to {most}"
            raise ValueError(f"`{name}` must be {limits}. Received: {name}={count}")
    if not difficulty >= 0:
        raise ValueError(f"`difficulty` must be at least 0. Received: difficulty={difficulty}")

    def make():
        arrays = {}
        for split, (part, per_label) in enumerate(
            (("train", train_per_label), ("validation", validation_per_label))
        ):
            arrays[f"{part}_images"] = render(per_label, difficulty, (seed, split), labels)
            arrays[f"{part}_labels"] = np.tile(np.arange(labels), per_label)
        return arrays

    name = f"glyphs-{train_per_label}-{validation_per_label}-{difficulty}-{seed}-{labels}"
    return Images("glyphs", labels, flip=False, **cached(f"{name}-{_digest_of_code()}", make))


def _digest_of_code():
    """Changes with all that the images depend on besides the arguments of `load_glyphs`."""
    return digest_of_maker(
        files=[__file__, *_fonts()],
        packages=("matplotlib", "numpy", "pillow", "tensorflow"),
        values=(CHARACTERS, SIZE, _TEMPLATE, _BOX),
    )


def render(per_label, difficulty=1.0, seed=0, labels=1000):
    """Renders `per_label` images of each character: uint8 (images, 32, 32, 1), a round of labels
    after the other. `seed` is an integer or a sequence of them."""
    chosen = np.arange(labels) * len(CHARACTERS) // labels
    templates = _templates()[:, chosen]
    progress = keras.utils.Progbar(per_label, unit_name="image per label", interval=1)
    rounds = []
    for index in range(per_label):
        rng = np.random.default_rng([*np.atleast_1d(seed), index])
        rounds.append(_render_round(templates, difficulty, rng))
        progress.add(1)
    return np.concatenate(rounds)


def _render_round(templates, difficulty, rng):
    """One image of each character."""
    faces, labels = templates.shape[:2]
    glyphs = templates[rng.integers(faces, size=labels), np.arange(labels)]
    coverage = _warp(glyphs.astype("float32")[..., None] / 255, difficulty, rng)

    def uniform(low, high):
        return rng.uniform(low, high, (labels, 1, 1, 1)).astype("float32")

    # Ink on paper or paper on ink, the paper shaded along a random direction.
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIZE, dtype="float32")] * 2, indexing="ij")
    angle = uniform(0, 2 * np.pi)
    slope = np.cos(angle) * x[..., None] + np.sin(angle) * y[..., None]
    spread = min(0.9 * difficulty, 1.0)
    contrast = uniform(1 - 0.7 * spread, 1) * rng.choice([-1, 1], (labels, 1, 1, 1))
    paper = (
        0.5
        + uniform(-0.15, 0.15) * spread
        - contrast / 2
        + 0.18 * difficulty * slope * uniform(-1, 1)
    )
    noise = rng.standard_normal(coverage.shape, dtype="float32") * 0.105 * difficulty
    image = paper + contrast * coverage + noise
    return (255 * np.clip(image, 0, 1)).round().astype("uint8")


def _warp(glyphs, difficulty, rng):
    """Maps the templates to `SIZE` pixels by random affine maps."""
    with extra("paper"):
        import tensorflow as tf  # A fast warp, and the same whatever the backend of Keras.

    n = len(glyphs)
    angle = rng.normal(0, 0.13, n) * difficulty
    shear = rng.normal(0, 0.13, n) * difficulty
    size = _BOX / rng.uniform(SIZE * (0.8 - min(0.26 * difficulty, 0.45)), SIZE * 0.8, n)
    aspect = np.exp(rng.normal(0, 0.1, n) * difficulty)
    center = SIZE / 2 - 0.5 + rng.uniform(-2.6, 2.6, (2, n)) * difficulty
    # Output pixel -> template pixel.
    a, b = size * aspect * np.cos(angle), size * (shear - np.sin(angle))
    c, d = size * np.sin(angle), size / aspect * np.cos(angle)
    middle = _TEMPLATE / 2 - 0.5
    x0 = middle - a * center[0] - b * center[1]
    y0 = middle - c * center[0] - d * center[1]
    zero = np.zeros(n)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=glyphs,
        transforms=np.stack([a, b, x0, c, d, y0, zero, zero], axis=1).astype("float32"),
        output_shape=[SIZE, SIZE],
        fill_value=0.0,
        interpolation="BILINEAR",
    ).numpy()


def _fonts():
    """The twelve faces of the DejaVu fonts that come with matplotlib."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [path for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in path.name]


@functools.cache
def _templates():
    """The glyphs, cropped, scaled and centered: uint8 (faces, characters, height, width)."""
    paths = _fonts()
    templates = np.zeros((len(paths), len(CHARACTERS), _TEMPLATE, _TEMPLATE), "uint8")
    for face, path in enumerate(paths):
        font = ImageFont.truetype(os.fspath(path), 64)
        for label, character in enumerate(CHARACTERS):
            mask = font.getmask(character, mode="L")
            glyph = Image.frombytes("L", mask.size, bytes(mask))
            glyph = glyph.crop(glyph.getbbox())
            scale = _BOX / max(glyph.size)
            glyph = glyph.resize([max(1, round(side * scale)) for side in glyph.size])
            width, height = glyph.size
            top, left = (_TEMPLATE - height) // 2, (_TEMPLATE - width) // 2
            templates[face, label, top : top + height, left : left + width] = glyph
    return templates
