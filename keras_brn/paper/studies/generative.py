"""A generative adversarial network of characters, in steps of few images.

    python -m keras_brn.paper.studies.generative [--results results] [--out figures]

In training, batchnorm makes the picture of a noise depend on the others of its minibatch; what is
used afterwards is the generator in inference. The loop is one's own: a generator and a
discriminator, whose layers are called several times in a training step. It is of TensorFlow
(`KERAS_BACKEND=tensorflow`, Keras' default).
"""

import dataclasses
import functools

import keras
import numpy as np
from keras import layers, ops

from keras_brn.extras import extra
from keras_brn.layer import BatchRenormalization
from keras_brn.paper.data.glyphs import load_glyphs
from keras_brn.paper.data.images import as_floats
from keras_brn.paper.data.sampling import Sampler
from keras_brn.paper.studies.study import (
    SEARCH_SEED,
    CountedByImages,
    base_network,
    check_method,
    search_and_report,
    study_parser,
)
from keras_brn.schedule import RenormSchedule

METHODS = {
    "batchnorm": "batchnorm",
    "batch_renorm": "Batch Renorm",
    "batch_renorm_generator": "Batch Renorm in the generator, batchnorm in the discriminator",
    "plain": "no normalization",
}
LEARNING_RATES = (6e-5, 2e-4, 6e-4, 2e-3, 6e-3)
NOISE = 32  # Numbers from which a picture is made.
_LABELS, _TRAIN, _TEST = 50, 100, 80


@dataclasses.dataclass(frozen=True)
class GenerativeRun(CountedByImages):
    """One training run, by Adam (Radford et al. 2016: beta_1 = .5) with a constant rate.

    Attributes:
        method: One of `METHODS`.
        learning_rate: Of both networks.
        seed: Integer that fixes weights, images and noise.
        images_per_step: Number of images of a step, which are normalized together; as many are
            generated.
        images_seen: Number of images of the whole run.
        width: Number of channels of the largest maps.
        penalty: Factor of the gradient penalty on real images (Mescheder et al. 2018, equation 9).
    """

    method: str
    learning_rate: float
    seed: int = 0
    images_per_step: int = 8
    images_seen: int = 32_000
    width: int = 16
    penalty: float = 0.0

    def __post_init__(self):
        check_method(self.method, METHODS)


def normalization_makers(run):
    """Two functions that return a layer, of the generator and of the discriminator."""
    renorm = functools.partial(BatchRenormalization, momentum=run.momentum)
    batchnorm = functools.partial(renorm, r_max=1, d_max=0)
    plain = functools.partial(layers.Activation, "linear")
    return {
        "batchnorm": (batchnorm, batchnorm),
        "batch_renorm": (renorm, renorm),
        "batch_renorm_generator": (renorm, batchnorm),
        "plain": (plain, plain),
    }[run.method]


def generator_network(normalization, width):
    """From noise (batch, NOISE) to pictures (batch, 32, 32, 1) in [-1, 1]."""
    model = keras.Sequential([keras.Input((NOISE,)), layers.Dense(4 * 4 * 4 * width)])
    model.add(layers.Reshape((4, 4, 4 * width)))
    for channels in (2 * width, width):
        model.add(normalization())
        model.add(layers.ReLU())
        model.add(layers.Conv2DTranspose(channels, 4, 2, padding="same"))
    model.add(normalization())
    model.add(layers.ReLU())
    model.add(layers.Conv2DTranspose(1, 4, 2, padding="same", activation="tanh"))
    return model


def discriminator_network(normalization, width):
    """From pictures to logits (batch, 1), positive for real ones. The first convolution is not
    normalized (Radford et al. 2016)."""
    model = keras.Sequential([keras.Input((32, 32, 1))])
    for channels in (width, 2 * width, 4 * width):
        model.add(layers.Conv2D(channels, 4, 2, padding="same"))
        if channels > width:
            model.add(normalization())
        model.add(layers.LeakyReLU(0.2))
    model.add(layers.Flatten())
    model.add(layers.Dense(1))
    return model


class Adversaries(keras.Model):
    """A generator and a discriminator that are trained in turns. It needs TensorFlow.

    Real and generated pictures pass the discriminator separately, so that batchnorm normalizes them
    separately. In a step the generator is called twice and the discriminator three times:
    `RenormSchedule` finds that out.

    Args:
        run: `GenerativeRun`.
    """

    def __init__(self, run):
        super().__init__()
        of_generator, of_discriminator = normalization_makers(run)
        self.generator = generator_network(of_generator, run.width)
        self.discriminator = discriminator_network(of_discriminator, run.width)
        self.penalty = run.penalty
        self.noise_seed = keras.random.SeedGenerator(run.seed)
        # XLA makes TensorFlow slower on a CPU.
        self.compile(self._adam(run, self.generator), jit_compile=False)
        self.discriminator_optimizer = self._adam(run, self.discriminator)
        self.built = True

    @staticmethod
    def _adam(run, network):
        optimizer = keras.optimizers.Adam(run.learning_rate, beta_1=0.5)
        optimizer.build(network.trainable_variables)
        return optimizer

    def call(self, noise, training=None):
        return self.generator(noise, training=training)

    def train_step(self, data):
        with extra("tensorflow"):
            import tensorflow as tf

        (real,) = data
        with tf.GradientTape() as tape:
            pictures = self.generator(self._noise(real), training=True)
            loss = ops.mean(ops.softplus(self.discriminator(pictures, training=True)))
            loss += self._loss_of_real(tf, real)
        self._apply(self.discriminator_optimizer, self.discriminator, tape, loss)
        with tf.GradientTape() as tape:
            pictures = self.generator(self._noise(real), training=True)
            of_generator = ops.mean(ops.softplus(-self.discriminator(pictures, training=True)))
        self._apply(self.optimizer, self.generator, tape, of_generator)
        return {"discriminator_loss": loss, "generator_loss": of_generator}

    def _loss_of_real(self, tf, real):
        if not self.penalty:
            return ops.mean(ops.softplus(-self.discriminator(real, training=True)))
        with tf.GradientTape() as tape:
            tape.watch(real)
            logits = self.discriminator(real, training=True)
        gradient = tape.gradient(logits, real)
        penalty = self.penalty / 2 * ops.mean(ops.sum(gradient**2, axis=(1, 2, 3)))
        return ops.mean(ops.softplus(-logits)) + penalty

    def _noise(self, real):
        return keras.random.normal((ops.shape(real)[0], NOISE), seed=self.noise_seed)

    @staticmethod
    def _apply(optimizer, network, tape, loss):
        weights = network.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)


class _Pictures(keras.utils.PyDataset):
    def __init__(self, data, run):
        super().__init__()
        self.images, self.steps = data.train_images, run.steps
        self.sampler = Sampler(data.train_labels, run.images_per_step, run.seed)

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        indices, _ = self.sampler.draw(step)
        return (as_floats(self.images[indices]),)


def train_adversaries(run, data):
    """The trained `Adversaries` of a run, on `Images` of 32x32x1."""
    keras.utils.set_random_seed(run.seed)
    model = Adversaries(run)
    # A layer that is held at r_max=1, d_max=0 stays there.
    ramp = [] if run.method == "plain" else [RenormSchedule.for_run(run.steps)]
    model.fit(_Pictures(data, run), verbose=0, shuffle=False, callbacks=ramp)
    return model


def noise(count, seed):
    """Float32 (count, NOISE)."""
    return np.random.default_rng(seed).normal(size=(count, NOISE)).astype("float32")


def pictures_in_training(generator, batches):
    """The pictures of minibatches of noise as training makes them, each normalized by its minibatch
    (and corrected with Batch Renorm). The generator is left as it was.

    Args:
        generator: `keras.Model`.
        batches: Float (minibatches, images, NOISE).

    Returns:
        Array (minibatches, images, 32, 32, 1).
    """
    weights = generator.get_weights()
    pictures = [ops.convert_to_numpy(generator(batch, training=True)) for batch in batches]
    generator.set_weights(weights)
    return np.stack(pictures)


def companions_change(generator, images, count=32):
    """How much a picture in training depends on the others of its minibatch: the root mean square
    change of its pixels when all others are exchanged, in shares of that between two pictures.

    Args:
        generator: `keras.Model`.
        images: Number of images of a minibatch.
        count: Number of minibatches.
    """
    batches = noise(count * images, seed=1).reshape(count, images, NOISE)
    batches[:, 0] = batches[0, 0]
    others = noise(count, seed=2)
    same = pictures_in_training(generator, batches)[:, 0]
    batches[:, 0] = others
    different = pictures_in_training(generator, batches)[:, 0]
    return round(float(np.sqrt(_spread(same) / _spread(different))), 5)


def _spread(pictures):
    return np.mean(np.var(pictures, axis=0))


def frechet_distance(x, y):
    """Between normal distributions with the means and covariances of two sets of features.

    Args:
        x: Array (images, features).
        y: As `x`.

    Source: Heusel et al. 2017, equation 6.
    """
    means = np.sum((x.mean(0) - y.mean(0)) ** 2)
    of_x, of_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # The eigenvalues of a product of covariances are not negative, but for rounding.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(of_x @ of_y).real, 0))
    return float(means + np.trace(of_x) + np.trace(of_y) - 2 * roots.sum())


class Quality:
    """Fréchet distances to real pictures, in the features of a network that classifies them.

    Args:
        data: `Images`: its training images train the classifier; to the first half of its
            validation images distances are for choices, to the second for the test.
        steps: Number of training steps of the classifier.
    """

    def __init__(self, data, steps=1_000):
        classifier = base_network(data, 0, steps)
        self._network = keras.Model(classifier.input, classifier.layers[-2].output)
        real = self._features(as_floats(data.validation_images))
        self._real = dict(zip(("choices", "test"), np.split(real, 2), strict=True))
        self.of_real = frechet_distance(*self._real.values())

    def _features(self, pictures):
        return self._network.predict(pictures, batch_size=500, verbose=0).astype("float64")

    def distance(self, pictures, part="test"):
        """To the real pictures of "choices" or "test", as many or more."""
        return frechet_distance(self._features(pictures), self._real[part])


def train_generative(run, data, quality, pictures=2_000):
    """The result of a run.

    Args:
        run: `GenerativeRun`.
        data: `Images`.
        quality: `Quality`.
        pictures: Number of generated pictures that are compared with real ones.

    Returns:
        Dict of Fréchet distances of pictures: `test`, in inference, `training`, as training makes
        them, and `real`, of other real ones; `choices`, a negative distance in inference; and
        `companions`, as `companions_change` returns it.
    """
    generator = train_adversaries(run, data).generator
    of_choices, of_test = (noise(pictures, seed) for seed in (3, 4))
    batches = of_test.reshape(-1, run.images_per_step, NOISE)
    in_training = pictures_in_training(generator, batches).reshape(-1, 32, 32, 1)
    generated = generator.predict(of_choices, batch_size=500, verbose=0)
    return {
        "choices": -quality.distance(generated, "choices"),
        "test": quality.distance(generator.predict(of_test, batch_size=500, verbose=0)),
        "training": quality.distance(in_training),
        "real": quality.of_real,
        "companions": companions_change(generator, run.images_per_step),
    }


def generative_data():
    """50 characters, 100 images of each to train on and 80 to compare with: `Images`."""
    return load_glyphs(_TRAIN, _TEST, labels=_LABELS)


def search_runs():
    """The runs that choose the learning rate of each method."""
    return [
        GenerativeRun(method, rate, SEARCH_SEED) for method in METHODS for rate in LEARNING_RATES
    ]


def main(arguments=None):
    options = study_parser("generative").parse_args(arguments)
    data = generative_data()
    quality = Quality(data)

    def train(run):
        return train_generative(run, data, quality)

    search_and_report("generative", options, search_runs(), ("method",), range(5), train, data)


if __name__ == "__main__":
    main()
