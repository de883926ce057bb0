"""Images, and how minibatches are drawn from them: by TensorFlow, whatever Keras runs on."""

from keras_brn.extras import extra

with extra("paper"):
    import tensorflow  # noqa: F401
