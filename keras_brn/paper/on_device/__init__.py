"""Several runs at once, as one program of JAX: a small network alone leaves an accelerator idle."""

from keras_brn.paper.on_device.runs import Runs, programs, train_on_device

__all__ = ["Runs", "programs", "train_on_device"]
