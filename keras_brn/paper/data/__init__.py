"""Images, and how minibatches are drawn from them: by NumPy, and TensorFlow's input pipelines."""
