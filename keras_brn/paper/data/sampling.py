"""Which images a training step draws, and how they vary."""

import functools

import numpy as np

from keras_brn.extras import extra

# Each use of random numbers has a stream of its own.
_LABELS, _IMAGES, _VARIATIONS = range(3)


class Sampler:
    """Draws the images of each step: a pure function of the seed, the step and the position in the
    batch, so that a run that starts again at step 1000 draws what it would have drawn there. It
    needs NumPy alone.

    The random numbers are those of `numpy.random.default_rng`, whose `SeedSequence` mixes all bits
    of the seed and the step. NumPy may change them in a new version, but documents it.

    Args:
        labels: Integers (images,): the label of each image.
        batch_size: Number of images per step.
        seed: Integer, not negative.
        group: Number of consecutive images whose labels are drawn together; it matters with
            `images_per_label` only.
        images_per_label: `None` for images drawn independently, all of them in each epoch; a batch
            may contain the end of one epoch and the beginning of the next. Else each group has
            `group // images_per_label` labels, drawn with replacement, and that many different
            images of each (section 4.3: groups of 32, 2 images per label). The second images of
            the labels follow all the first, and so on, so that consecutive parts of a group share
            its labels evenly. A label that is drawn twice in a group has its images drawn twice,
            so that an image can occur twice.

    Raises:
        ValueError: If there are no images, the seed is negative, the groups do not divide the
            batch, the images per label do not divide the group, or a label has too few images.

    Example:

    >>> sampler = Sampler(labels=[0, 0, 0, 1, 1, 1], batch_size=4, seed=0)
    >>> indices, variations = sampler.draw(step=1000)
    >>> indices.shape, variations.shape
    ((4,), (4, 2))
    """

    def __init__(self, labels, batch_size, seed, group=32, images_per_label=None):
        labels = np.asarray(labels)
        if labels.ndim != 1 or not len(labels):
            raise ValueError(
                "`labels` must be one integer per image, of one image at least. "
                f"Received: shape {labels.shape}"
            )
        for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"`{name}` must be an integer from {least}. Received: {value!r}")
        self.batch_size, self.seed = int(batch_size), int(seed)
        if images_per_label is None:
            self._images = _Epochs(len(labels), self.batch_size, self.seed)
        else:
            self._images = _LabelGroups(labels, self.batch_size, self.seed, group, images_per_label)

    def draw(self, step):
        """The images of a step.

        Args:
            step: Integer, not negative.

        Returns:
            `indices`, int64 (batch_size,): which images; and `variations`, int64 (batch_size, 2):
            two random integers for each, of which all 64 bits are random. What `read` or `vary` of
            a data set does with an image depends on these.

        Raises:
            ValueError: If the step is negative.
        """
        if step < 0:
            raise ValueError(f"`step` must not be negative. Received: step={step}")
        step = int(step)
        ends = np.iinfo("int64")
        variations = _generator(self.seed, _VARIATIONS, step).integers(
            ends.min, ends.max, (self.batch_size, 2), endpoint=True
        )
        return self._images.draw(step), variations


class _Epochs:
    """All images once in each epoch, in an order of its own."""

    def __init__(self, count, batch_size, seed):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        # Of the current epoch and the next: an order of all of ImageNet takes a moment.
        self._order = functools.lru_cache(maxsize=2)(self._new_order)

    def _new_order(self, epoch):
        return _generator(self.seed, _IMAGES, epoch).permutation(self.count)

    def draw(self, step):
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            epoch, first = divmod(start, self.count)
            parts.append(self._order(epoch)[first : first + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts)


class _LabelGroups:
    """Groups of a few labels, and a few images of each label."""

    def __init__(self, labels, batch_size, seed, group, images_per_label):
        self.by_label = np.argsort(labels, kind="stable")
        _, self.starts, self.counts = np.unique(
            labels[self.by_label], return_index=True, return_counts=True
        )
        if (
            min(group, images_per_label) < 1
            or batch_size % group
            or group % images_per_label
            or self.counts.min() < images_per_label
        ):
            raise ValueError(
                "`group` must divide `batch_size`, and `images_per_label` divide `group`; each "
                f"label needs that many images. Received: batch_size={batch_size}, group={group}, "
                f"images_per_label={images_per_label}, fewest images {self.counts.min()}"
            )
        self.seed, self.images_per_label = seed, images_per_label
        self.groups, self.labels_per_group = batch_size // group, group // images_per_label

    def draw(self, step):
        drawn_labels = _generator(self.seed, _LABELS, step).integers(
            len(self.counts), size=self.groups * self.labels_per_group
        )
        generator = _generator(self.seed, _IMAGES, step)
        ranks = _different(generator, self.counts[drawn_labels], self.images_per_label)
        indices = self.by_label[self.starts[drawn_labels] + ranks]
        indices = indices.reshape(self.images_per_label, self.groups, self.labels_per_group)
        return indices.transpose(1, 0, 2).reshape(-1)


def _generator(seed, purpose, number):
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, number)))


def _different(generator, counts, size):
    """For each `n` of the counts, `size` different integers below `n`, in random order:
    (size, *counts.shape)."""
    chosen = np.empty((size, *counts.shape), "int64")
    for k in range(size):
        rank = generator.integers(counts - k)  # Among those that are not chosen yet:
        for earlier in np.sort(chosen[:k], axis=0):
            rank += rank >= earlier
        chosen[k] = rank
    return chosen


def batches(
    images,
    batch_size,
    steps,
    seed,
    group=32,
    images_per_label=None,
    first_step=0,
    part="train",
    augment=True,
    worker=0,
    workers=1,
):
    """Batches of images, as a `Sampler` draws them: each image is a function of the seed, the step
    and the position in the batch alone, so that a run that starts again at step 1000 sees what it
    would have seen there, and several workers see what one would.

    Args:
        images: `Images` or `ImageNet`.
        batch_size: Number of images per step, of all workers together.
        steps: Number of steps of the whole run.
        seed: Integer, not negative.
        group: As for `Sampler`.
        images_per_label: As for `Sampler`.
        first_step: Step to begin with.
        part: "train" or "validation".
        augment: Whether to vary the images, as `Images` or `ImageNet` says.
        worker: Which of the consecutive shares of every batch to return, from 0.
        workers: Number of shares.

    Returns:
        `tf.data.Dataset` of `steps - first_step` pairs: float32 images in [-1, 1] (batch_size /
        workers, height, width, channels) and one-hot labels (batch_size / workers, classes).

    Raises:
        ValueError: If the workers do not divide the batch, or for what `Sampler` refuses.
    """
    with extra("paper"):
        import tensorflow as tf

    if not 0 <= worker < workers or batch_size % workers:
        raise ValueError(
            "`workers` must divide `batch_size`, and `worker` be from 0 to `workers - 1`. "
            f"Received: batch_size={batch_size}, worker={worker}, workers={workers}"
        )
    sampler = Sampler(images.labels[part], batch_size, seed, group, images_per_label)
    share = batch_size // workers

    def share_of_worker(step):
        return [array[worker * share : (worker + 1) * share] for array in sampler.draw(step)]

    def draw(step):
        types = ["int64", "int64"]
        indices, variations = tf.numpy_function(share_of_worker, [step], types, stateful=False)
        return tf.ensure_shape(indices, [share]), tf.ensure_shape(variations, [share, 2])

    return _read(images, tf.data.Dataset.range(first_step, steps).map(draw), share, part, augment)


def in_order(images, batch_size, part="validation", worker=0, workers=1, indices=None):
    """Images of a part as they are, or every `workers`-th of them, as `tf.data.Dataset` like that
    of `batches`; the last batch may be smaller.

    `indices` are integers: which of the images, `None` for all.
    """
    with extra("paper"):
        import tensorflow as tf

    indices = np.arange(len(images.labels[part])) if indices is None else np.asarray(indices)
    indices = tf.constant(indices[worker::workers], "int64")
    draws = tf.data.Dataset.from_tensor_slices(indices).batch(batch_size)
    draws = draws.map(lambda indices: (indices, tf.stack([indices, indices], 1)))
    return _read(images, draws, batch_size, part, augment=False)


def _read(images, draws, batch_size, part, augment):
    import tensorflow as tf

    def one_hot(x, label):
        return x, tf.one_hot(label, images.classes)

    return images.read(draws, batch_size, part, augment).map(one_hot).prefetch(2)
