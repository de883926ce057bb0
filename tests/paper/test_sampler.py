"""The random draws: all alike, all different, and without TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import chi2, chisquare

from keras_brn.paper.data.images import Images
from keras_brn.paper.data.sampling import Sampler

GLYPHS = np.tile(np.arange(80), 1250)


def draws(sampler, steps):
    """Indices and variations of the first steps, (steps, batch_size, ...)."""
    return [np.array(part) for part in zip(*map(sampler.draw, range(steps)), strict=True)]


def likely(statistic, freedom):
    """Whether a chi-square statistic is neither too large nor too small for chance."""
    return 1e-3 < chi2.sf(statistic, freedom) < 1 - 1e-3


def uniform(values, kinds):
    return likely(chisquare(np.bincount(np.ravel(values), minlength=kinds)).statistic, kinds - 1)


def test_every_image_is_as_likely_at_every_position():
    indices, _ = draws(Sampler(np.zeros(20, int), batch_size=20, seed=0), 4_000)
    counts = np.zeros((20, 20))
    np.add.at(counts, (np.arange(20), indices), 1)
    assert likely(((counts - 200) ** 2 / 200).sum(), 19 * 19)
    assert uniform(indices[:-1, 3] * 20 + indices[1:, 5], 400)  # Epochs are independent,
    assert uniform((indices[:, 1] - indices[:, 0]) % 20 - 1, 19)  # and so are neighbours.


@pytest.mark.parametrize("images_per_label", [1, 2, 8])
def test_labels_and_their_images_are_alike(images_per_label):
    sampler = Sampler(GLYPHS, batch_size=128, seed=0, images_per_label=images_per_label)
    indices, _ = draws(sampler, 2_000)
    labels, ranks = (
        part.reshape(-1, images_per_label, 32 // images_per_label)
        for part in (indices % 80, indices // 80)
    )
    assert uniform(labels[:, 0], 80)
    for k in range(images_per_label):  # In each part of the group.
        assert uniform(ranks[:, k], 1250)
        assert uniform(labels[:, k] * 10 + ranks[:, k] % 10, 800)  # Images and labels.
    assert uniform(labels[:, 0, 0] * 80 + labels[:, 0, 1], 6400)  # With replacement.
    assert uniform(labels[:-4, 0, 0] * 80 + labels[4:, 0, 0], 6400)  # From step to step.


def test_all_ordered_choices_are_alike():
    """3 of 4 images: each of 24 choices, also for labels of different sizes."""
    sampler = Sampler([0] * 4 + [1] * 7, batch_size=12, seed=0, group=12, images_per_label=3)
    indices, _ = draws(sampler, 6_000)
    triples = indices.reshape(-1, 3, 4).transpose(0, 2, 1).reshape(-1, 3)
    assert np.diff(np.sort(triples, axis=1)).all()  # Different images.
    of_first = triples[triples[:, 0] < 4]
    kinds, counts = np.unique(of_first, axis=0, return_counts=True)
    assert len(kinds) == 24 and likely(chisquare(counts).statistic, 23)
    kinds, counts = np.unique(triples[triples[:, 0] >= 4], axis=0, return_counts=True)
    assert len(kinds) == 7 * 6 * 5 and likely(chisquare(counts).statistic, 209)


@pytest.mark.parametrize("images_per_label", [2, 8])
def test_as_many_different_choices_as_by_chance(images_per_label):
    sampler = Sampler(GLYPHS, batch_size=128, seed=0, images_per_label=images_per_label)
    indices, _ = draws(sampler, 2_000)
    ranks = (indices // 80).reshape(-1, images_per_label, 32 // images_per_label)
    choices = ranks.transpose(0, 2, 1).reshape(-1, images_per_label)[:, :2]
    drawn, possible = len(choices), 1250 * 1249
    repeated = drawn - possible * (1 - np.exp(-drawn / possible))
    assert abs(drawn - len(np.unique(choices, axis=0)) - repeated) < 5 * repeated**0.5


@pytest.mark.parametrize("images_per_label", [None, 2, 8])
@pytest.mark.parametrize("argument", ["step", "seed"])
def test_draws_differ_where_one_bit_does(images_per_label, argument):
    """In labels, images and variations; with independent images, each step is an epoch."""

    def draw(number):
        seed, step = (number, 7) if argument == "seed" else (1, number)
        sampler = Sampler(np.arange(1_000) % 50, 1_000, seed, 40, images_per_label)
        indices, variations = sampler.draw(step)
        return indices % 50, indices // 50, variations

    labels, ranks, variations = draw(5)
    for k in range(41):
        other_labels, other_ranks, other_variations = draw(5 ^ 2**k)
        assert (labels == other_labels).mean() < 0.1  # A fiftieth is expected,
        assert (ranks == other_ranks).mean() < 0.1  # and a twentieth.
        assert not np.intersect1d(variations, other_variations).size


def test_no_seed_shares_numbers_with_another():
    samplers = [Sampler([0, 1], batch_size=8, seed=seed) for seed in range(50)]
    variations = np.array([[sampler.draw(step)[1] for step in range(50)] for sampler in samplers])
    assert len(np.unique(variations)) == variations.size


def test_every_bit_of_a_variation_is_random():
    _, variations = draws(Sampler([0], batch_size=100, seed=0), 400)
    bits = np.unpackbits(variations.reshape(-1, 2).view("uint8"), axis=1)
    assert bits.shape == (40_000, 128) and np.abs(bits.mean(0) - 0.5).max() < 4 * 0.0025
    correlation = np.corrcoef(bits, rowvar=False) - np.eye(128)
    assert np.abs(correlation).max() < 5.5 * 0.005  # The largest of 8,128.


def numbered(side=19, flip=True):
    """An image whose pixels all differ."""
    image = np.arange(side * (side + 2), dtype="int64").reshape(1, side, side + 2, 1)
    return Images("numbered", 1, image, np.zeros(1, int), image, np.zeros(1, int), flip)


def movements(images, variations):
    """Down, right and mirrored of each variation, as the middle of the image shows."""
    image = images.train_images
    x = images.vary(np.repeat(image, len(variations), 0), variations)[:, 9, 9:11, 0]
    mirrored = x[:, 1] < x[:, 0]
    row, column = x[:, 0] // 21, x[:, 0] % 21
    return 9 - row, np.where(mirrored, column - 11, 9 - column), mirrored


def test_shifts_and_mirrors_are_alike():
    indices, variations = draws(Sampler(np.arange(10), batch_size=40, seed=0), 1_500)
    down, right, mirrored = movements(numbered(), variations.reshape(-1, 2))
    assert (down.min(), down.max(), right.min(), right.max()) == (-4, 4, -4, 4)
    kinds = (down * 9 + right + 40) * 2 + mirrored
    assert uniform(kinds, 162)
    assert uniform(kinds[:-1] // 18 * 9 + kinds[1:] // 18, 81)  # From image to image,
    assert uniform(kinds[:-40] // 18 * 9 + kinds[40:] // 18, 81)  # from step to step,
    assert uniform(kinds * 10 + indices.ravel(), 1620)  # and of each image.


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(12, 7, 3), (8, 8, 1), (3, 5, 2)])
def test_vary_moves_whole_pixels_and_reflects_the_border(rng, shape, flip):
    images = Images("noise", 1, None, None, None, None, flip)
    x = rng.integers(0, 256, (81, *shape), "uint8")
    variations = np.stack([81 * rng.integers(-9, 9, 81) + np.arange(81), np.arange(81) // 9], 1)
    varied = images.vary(x, variations)
    assert varied.dtype == x.dtype
    for image, (shift, mirror), result in zip(x, variations, varied, strict=True):
        source = image[:, ::-1] if mirror % 2 and flip else image
        source = np.pad(source, ((4, 4), (4, 4), (0, 0)), "symmetric")
        top, left = 8 - shift % 81 // 9, 8 - shift % 9
        expected = source[top : top + shape[0], left : left + shape[1]]
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("batch_size", [7, 30, 65])
def test_epochs_do_not_depend_on_the_size_of_the_batch(batch_size):
    expected = draws(Sampler(np.zeros(30), batch_size=30, seed=0), 20)[0].ravel()
    sampler = Sampler(np.zeros(30), batch_size=batch_size, seed=0)
    steps = np.random.default_rng(0).permutation(600 // batch_size)  # In any order.
    for step in steps:
        part = expected[step * batch_size : (step + 1) * batch_size]
        np.testing.assert_array_equal(sampler.draw(step)[0], part)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"labels": []}, r"`labels`.*\(0,\)"),
        ({"seed": -1}, "`seed`.*-1"),
        ({"seed": 0.5}, "`seed`.*0.5"),
        ({"batch_size": 0}, "`batch_size`.*0"),
        ({"images_per_label": 0}, "images_per_label=0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**{"labels": GLYPHS, "batch_size": 32, "seed": 0, **arguments})


def test_refuses_a_negative_step():
    with pytest.raises(ValueError, match="step=-1"):
        Sampler(GLYPHS, 32, 0).draw(-1)


def test_needs_no_tensorflow():
    program = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "import numpy as np\n"
        "from keras_brn.paper.data.images import Images\n"
        "from keras_brn.paper.data.sampling import Sampler\n"
        "x, y = np.zeros((4, 8, 8, 1), 'uint8'), np.array([0, 0, 1, 1])\n"
        "indices, variations = Sampler(y, 4, 0, 4, 2).draw(0)\n"
        "Images('zeros', 2, x, y, x, y, True).vary(x[indices], variations)\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": "numpy"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
