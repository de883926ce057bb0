"""Where the statistics of a training step go: into the averages, or to a scope that takes them."""

import math
import threading

import keras

from keras_brn.kernels import add_share, cast, known_to_hold, reshaped, sum_over, zero_unless

_local = threading.local()


class StatisticsScope:
    """Receives what the layers called in its block would move their averages by.

    Within `with scope:`, in the same thread, normalization layers of this package do not move
    their averages, but call `scope.receive`. Scopes may be nested: the innermost receives.
    """

    def receive(self, averages, errors, valid, momentum):
        """What one call of a layer in training has measured.

        Args:
            averages: List of the layer's variables, (channels,).
            errors: List of tensors, how far the averages are from the statistics of each group of
                examples: (channels,), or with an axis of groups first and axes of length 1 besides.
                To be ignored where `valid` is `False`.
            valid: Boolean tensor of the shape of an error: where the statistics are finite and
                there were examples to compute them from.
            momentum: Float; the layer would add `(1 - momentum)` of the `mean_over_groups`.
        """
        raise NotImplementedError

    def flush(self):
        """Brings the averages up to date, for what comes after them within a training step."""

    def __enter__(self):
        _scopes().append(self)
        return self
        return self

    def __exit__(self, *_):
        _scopes().pop()


def _scopes():
    if not hasattr(_local, "scopes"):
        _local.scopes = []
    return _local.scopes


def move_averages(averages, errors, valid, momentum):
    """Moves averages towards the statistics of a minibatch, or hands on what would; arguments as
    of `StatisticsScope.receive`."""
    if _scopes():
        _scopes()[-1].receive(averages, errors, valid, momentum)
        return
    channels = averages[0].shape[0]
    for average, error in zip(averages, mean_over_groups(errors, valid, channels), strict=True):
        add_share(average, error, 1.0 - momentum)


def flush_statistics():
    """Brings the averages up to date where an enclosing scope holds back what moves them."""
    for scope in _scopes():
        scope.flush()


def mean_over_groups(errors, valid, channels):
    """The means (channels,) of errors over the groups where they are valid; 0 if it is in none."""
    all_valid = known_to_hold(valid)
    if not all_valid:
        errors = [zero_unless(valid, error) for error in errors]
    if math.prod([size or 0 for size in valid.shape]) != channels:  # Several groups, in axis 0.
        if all_valid:
            divisor = valid.shape[0]
        else:
            dtype = keras.backend.standardize_dtype(errors[0].dtype)
            groups = sum_over(cast(valid, dtype), 0)
            divisor = groups + cast(groups == 0, dtype)
        errors = [sum_over(error, 0) / divisor for error in errors]
    if tuple(errors[0].shape) != (channels,):
        errors = [reshaped(error, (channels,)) for error in errors]
    return errors
