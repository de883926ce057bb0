"""How the images of a training step are drawn, as TensorFlow data sets."""

import numpy as np
import pytest

from keras_brn.paper.data.images import Images
from keras_brn.paper.data.sampling import Sampler, batches, in_order


def numbered(labels, size=4, flip=False):
    """Images of which number `i` is `i` everywhere."""
    labels = np.asarray(labels)
    pixels = np.arange(len(labels), dtype="uint8")[:, None, None, None]
    pixels = np.tile(pixels, (1, size, size, 1))
    return Images("numbered", int(labels.max()) + 1, pixels, labels, pixels, labels, flip)


def shown(images, batch_size=7, steps=12, seed=0, **kwargs):
    """The numbers and the labels of the images of each step, (steps, batch_size)."""
    pairs = [
        (x.numpy()[:, 2, 2, 0] * 127.5 + 127.5, y.numpy().argmax(1))
        for x, y in batches(images, batch_size, steps, seed, **kwargs)
    ]
    numbers, labels = (np.array(part) for part in zip(*pairs, strict=True))
    return numbers.round().astype(int), labels


def test_every_epoch_shows_every_image_once_in_its_own_order():
    epochs = shown(numbered(range(30)), batch_size=10)[0].reshape(4, 30)
    assert (np.sort(epochs) == np.arange(30)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert abs(np.corrcoef(epochs[0], np.arange(30))[0, 1]) < 0.5


@pytest.mark.parametrize("kwargs", [{}, {"group": 6, "images_per_label": 2}])
def test_a_batch_depends_on_seed_and_step_alone(kwargs):
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 8, 8, 3), "uint8"), np.arange(20) % 5
    images = Images("noise", 5, pixels, labels, pixels, labels, flip=True)

    def draw(seed, first_step):
        return [x for x, _ in batches(images, 6, 9, seed, first_step=first_step, **kwargs)]

    np.testing.assert_array_equal(draw(0, 0)[4:], draw(0, 4))
    assert (np.array(draw(0, 0)) != np.array(draw(1, 0))).any()


@pytest.mark.parametrize("images_per_label", [1, 2, 4])
def test_groups_of_few_labels(rng, images_per_label):
    of_label = rng.permutation(np.arange(60) % 10)  # 6 images of each of 10 labels.
    numbers, labels = shown(
        numbered(of_label), batch_size=16, steps=200, group=8, images_per_label=images_per_label
    )
    np.testing.assert_array_equal(labels, of_label[numbers])
    groups = labels.reshape(-1, images_per_label, 8 // images_per_label)
    assert (groups == groups[:, :1]).all()  # Each part of the group has the same labels.
    of_a_label = np.sort(numbers.reshape(groups.shape), axis=1)
    assert (np.diff(of_a_label, axis=1) > 0).all()  # And other images of them.
    # Labels are drawn with replacement, and all images alike.
    assert any(len(set(group[0])) < len(group[0]) for group in groups)
    assert np.bincount(numbers.ravel(), minlength=60).min() > 20  # 53 in the mean.


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"group": 5}, "group=5"),
        ({"group": 8, "images_per_label": 3}, "images_per_label=3"),
        ({"group": 8, "images_per_label": 8}, "fewest images 6"),
    ],
)
def test_groups_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(np.arange(60) % 10), 16, 1, 0, **{"images_per_label": 2, **arguments})


def test_without_augmentation_images_stay_as_they_are():
    images = numbered(range(9), flip=True)
    x, y = next(iter(batches(images, 9, 1, seed=0, augment=False)))
    expected = images.train_images[y.numpy().argmax(1)] / 127.5 - 1
    np.testing.assert_allclose(x, expected, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{}, {"group": 6, "images_per_label": 2}])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_workers_see_the_shares_of_one(rng, kwargs, part):
    train, validation = (rng.integers(0, 256, (n, 8, 8, 3), "uint8") for n in (20, 40))
    labels = np.arange(40) % 5
    images = Images("noise", 5, train, labels[:20], validation, labels, flip=True)

    def draw(**worker):
        return [
            np.concatenate([part.numpy().reshape(len(part), -1) for part in pair], axis=1)
            for pair in batches(images, 12, 5, 0, part=part, **kwargs, **worker)
        ]

    alone = draw()
    shares = [draw(worker=worker, workers=4) for worker in range(4)]
    for step, expected in enumerate(alone):
        np.testing.assert_array_equal(np.concatenate([share[step] for share in shares]), expected)


@pytest.mark.parametrize("arguments", [{"workers": 5}, {"worker": 2, "workers": 2}])
def test_shares_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError, match=f"batch_size=16.*workers={arguments['workers']}"):
        batches(numbered(range(9)), 16, 1, 0, **arguments)


def test_in_order():
    images = numbered([0, 1, 2, 1, 0, 2, 1])
    shown = list(in_order(images, 3))
    assert [len(x) for x, _ in shown] == [3, 3, 1]
    x, y = (np.concatenate(part) for part in zip(*shown, strict=True))
    np.testing.assert_allclose(x[:, 0, 0, 0] * 127.5 + 127.5, range(7), atol=1e-4)
    np.testing.assert_array_equal(y.argmax(1), images.validation_labels)


@pytest.mark.parametrize("kwargs", [{}, {"group": 8, "images_per_label": 2}])
def test_static_shapes_and_cardinality(kwargs):
    dataset = batches(numbered(np.arange(60) % 10), 16, 9, 0, first_step=2, workers=2, **kwargs)
    assert [tuple(spec.shape) for spec in dataset.element_spec] == [(8, 4, 4, 1), (8, 10)]
    assert dataset.cardinality() == 7 and len(list(dataset.repeat(2))) == 14
    assert in_order(numbered(range(7)), 3).cardinality() == 3


def test_what_is_read_is_what_the_sampler_draws(rng):
    pixels, labels = rng.integers(0, 256, (20, 8, 8, 3), "uint8"), np.arange(20) % 5
    images = Images("noise", 5, pixels, labels, pixels, labels, flip=True)
    (x, y) = next(iter(batches(images, 12, 9, seed=3, first_step=6)))
    indices, variations = Sampler(labels, 12, seed=3).draw(6)
    np.testing.assert_array_equal(y.numpy().argmax(1), labels[indices])
    expected = images.vary(pixels[indices], variations)
    np.testing.assert_allclose(x, expected / 127.5 - 1, atol=1e-6)
