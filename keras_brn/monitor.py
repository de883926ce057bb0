"""What Batch Renorm corrects, seen in training: how far minibatches are from the averages."""

import csv
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_brn.kernels import compiled
from keras_brn.layer import renorm_layers
from keras_brn.statistics import StatisticsScope

QUANTITIES = {
    "r_clipped": "share of r at its bounds",
    "d_clipped": "share of d at its bounds",
    "r": "mean |r - 1|",
    "d": "mean |d|",
    "distance": "minibatch to moving average, in sigma",
    "lag": "part of it that is no noise, in sigma",
}


def measure_correction(model, inputs, batch_size):
    """Measures what each `BatchRenormalization` would correct if `model` trained on `inputs`.

    The inputs pass through the model as in training, minibatch by minibatch; nothing is updated.

    Args:
        model: A built `keras.Model`.
        inputs: What the model is called with in training, an array or a structure of arrays
            (examples, ...) in the order of training. The examples beyond a multiple of
            `batch_size` are left out; several minibatches are needed to tell lag from noise.
        batch_size: Number of examples per training step on a device.

    Returns:
        Dict from the path of a layer to a dict of floats, means over its groups (minibatches, or
        microbatches) and channels: `r_clipped` and `d_clipped`, the shares of r and d that the
        bounds hold back (section 4); `r`, the mean of |r - 1|; `d`, that of |d|; `distance`,
        the root mean square of (mu_B - mu) / sigma; `lag`, the part of it that all groups share,
        and that is not the noise of groups drawn from one distribution (NaN for a single group).

    Raises:
        ValueError: If the model has no `BatchRenormalization` that is built and trainable, or there
            are fewer examples than `batch_size`.
    """
    minibatches = split_into_minibatches(inputs, batch_size)
    return Probe(model).measure(minibatches)


class RenormMonitor(keras.callbacks.Callback):
    """Measures the correction of every `BatchRenormalization` while `fit` runs.

    Every `interval` training steps it passes `inputs` through the model, as `measure_correction`
    does: about a forward pass for each minibatch in them. The means over the layers appear in the
    logs of the epoch as `renorm_r_clipped` and so on, in `History` and in the `CSVLogger` or
    `TensorBoard` listed after the monitor.

    When training ends, it warns if in at least half of the measurements (of all layers, after the
    first) the moving averages lagged behind the network by more than a minibatch was off by
    chance: then `momentum` is too close to 1 for the learning rate.

    Args:
        inputs: Some training minibatches (examples, ...), such as four of them.
        batch_size: Number of examples per training step on a device.
        interval: Number of training steps from one measurement to the next, >= 1.
        path: Where a CSV file with a line per measurement and layer shall be written, or `None`.
        per_layer: Whether the logs hold the values of each layer as well.

    Attributes:
        layers: List of the layers' paths.
        steps: List of the training steps after which was measured, counted in this `fit`.
        history: Dict from the name of a quantity to a list, with a list over the layers for each
            of `steps`.

    Raises:
        ValueError: If `interval` is below 1; in `fit`, as `measure_correction`.
    """

    def __init__(self, inputs, batch_size, interval=100, path=None, per_layer=False):
        super().__init__()
        if interval < 1:
            raise ValueError(f"`interval` must be at least 1. Received: interval={interval}")
        self.inputs, self.batch_size, self.interval = inputs, batch_size, interval
        self.path, self.per_layer = path, per_layer

    def on_train_begin(self, logs=None):
        self._probe = None
        self._done = self._epoch_start = 0
        self.layers, self.steps = [], []
        self.history = {name: [] for name in QUANTITIES}
        if self.path is not None:
            with Path(self.path).open("w", newline="") as file:
                csv.writer(file).writerow(["step", "layer", *QUANTITIES])

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = self._done

    def on_train_batch_end(self, batch, logs=None):
        before, self._done = self._done, self._epoch_start + batch + 1
        if self._done // self.interval > before // self.interval:
            self._measure()

    def _measure(self):
        model = self.model  # On JAX this puts the state of the training into its layers.
        if self._probe is None:
            self._minibatches = split_into_minibatches(self.inputs, self.batch_size)
            self._probe = Probe(model)
        measured = self._probe.measure(self._minibatches)
        self.layers = list(measured)
        self.steps.append(self._done)
        for name, values in self.history.items():
            values.append([measures[name] for measures in measured.values()])
        if self.path is not None:
            with Path(self.path).open("a", newline="") as file:
                for layer, values in measured.items():
                    csv.writer(file).writerow([self._done, layer, *values.values()])

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        if not self.steps:
            self._measure()  # The logs of all epochs have the same keys.
        for name, values in self.history.items():
            logs[f"renorm_{name}"] = float(np.mean(values[-1]))
            if self.per_layer:
                for layer, value in zip(self.layers, values[-1], strict=True):
                    logs[f"renorm_{name}/{layer}"] = value

    def on_train_end(self, logs=None):
        if not self.steps:
            return
        # The first measurement may see averages that have only begun.
        values = [np.array(self.history[name]) for name in ("lag", "distance")]
        lag, distance = (value[1:] if len(value) > 1 else value for value in values)
        lags = lag**2 > distance**2 / 2
        if lags.mean() >= 0.5:
            warnings.warn(
                f"mu lagged behind the network, by {np.median(lag[lags]):.2f} sigma (median), in "
                f"{100 * lags.mean():.0f} % of the measurements: by more than a minibatch is off "
                "by chance. Try a smaller `momentum` of the layers, or a smaller learning rate.",
                stacklevel=2,
            )


def split_into_minibatches(inputs, batch_size):
    """List of structures of tensors; the examples beyond a multiple of `batch_size` are left out.

    Args and errors: as of `measure_correction`.
    """
    examples = len(keras.tree.flatten(inputs)[0])
    if not 1 <= batch_size <= examples:
        raise ValueError(
            "`batch_size` must be from 1 to the number of `inputs`. "
            f"Received: batch_size={batch_size}, inputs of length {examples}"
        )
    starts = range(0, examples - batch_size + 1, batch_size)
    parts = [slice(start, start + batch_size) for start in starts]
    return [
        keras.tree.map_structure(lambda x, part=part: ops.convert_to_tensor(x[part]), inputs)
        for part in parts
    ]


class Probe:
    """The compiled function behind `measure_correction`, for one model and any minibatches."""

    def __init__(self, model):
        self.layers = [layer for layer in renorm_layers(model) if layer.built and layer.trainable]
        if not self.layers:
            raise ValueError(
                "The correction can be measured where a BatchRenormalization is built and "
                f"trainable. Received: model={model.name!r}, which has none"
            )
        self.variables = [*model.trainable_variables, *model.non_trainable_variables]

        def errors(values, x):
            state = list(zip(self.variables, values, strict=True))
            with keras.StatelessScope(state), _ErrorsOfGroups(self.layers) as errors:
                model(x, training=True)
            return errors.by_path

        self.errors = compiled(errors)

    def measure(self, minibatches):
        values = [ops.convert_to_tensor(variable) for variable in self.variables]
        records = [self.errors(values, x) for x in minibatches]
        result = {}
        for layer in self.layers:
            pairs = [pair for record in records for pair in record.get(layer.path, [])]
            if pairs:  # Else the layer was not called.
                mu_error, sigma_error = (
                    np.concatenate([ops.convert_to_numpy(pair[k]) for pair in pairs])
                    for k in (0, 1)
                )
                sigma = ops.convert_to_numpy(layer.moving_stddev)
                d = mu_error / sigma
                r = 1 + sigma_error / sigma
                result[layer.path] = _summary(r, d, layer.r_max, layer.d_max)
        return result


def _summary(r, d, r_max, d_max):
    """From r and d before clipping, arrays (groups, channels)."""
    tolerance = 1e-6  # Float32: at r_max = 1, d_max = 0 a value is not held back by its last digit.
    r, d = np.asarray(r, "float64"), np.asarray(d, "float64")
    groups = np.isfinite(d).sum(axis=0)
    several = groups > 1
    lag = np.nan
    if several.any():
        distances = d[:, several]
        noise = np.nanvar(distances, axis=0, ddof=1) / groups[several]
        lag = np.sqrt(max(0.0, np.mean(np.nanmean(distances, axis=0) ** 2 - noise)))
    r, d = r[np.isfinite(r)], d[np.isfinite(d)]
    return {
        "r_clipped": float(np.mean((r > r_max + tolerance) | (r < 1 / r_max - tolerance))),
        "d_clipped": float(np.mean(np.abs(d) > d_max + tolerance)),
        "r": float(np.mean(np.abs(np.clip(r, 1 / r_max, r_max) - 1))),
        "d": float(np.mean(np.abs(np.clip(d, -d_max, d_max)))),
        "distance": float(np.sqrt(np.mean(d**2))),
        "lag": float(lag),
    }


class _ErrorsOfGroups(StatisticsScope):
    """Collects, by the path of a layer, how far its averages are from each group of examples."""

    def __init__(self, layers):
        self.by_path = {}
        self._layer_of = {id(layer.moving_mean): layer for layer in layers}

    def receive(self, averages, errors, valid, momentum):
        layer = self._layer_of.get(id(averages[0]))
        if layer is not None:
            errors = [ops.where(valid, error, np.nan) for error in errors]
            errors = [ops.reshape(error, (-1, averages[0].shape[0])) for error in errors]
            self.by_path.setdefault(layer.path, []).append(errors)
