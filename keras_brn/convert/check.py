"""One forward pass that tells whether two models predict the same."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_brn.averaging import AveragedModel
from keras_brn.convert.sublayers import is_graph
from keras_brn.keras_internals import flatten_layers
from keras_brn.kernels import compiled


def difference_in_inference(model, copy):
    """Largest difference between the outputs of two models, by the largest output.

    On random inputs of the shapes that the model was built for, two examples of them. The state
    of the models does not change.

    Returns:
        Float, the maximum over the examples and the outputs, if rounding does not explain it.
        `None` if it does, or if there is nothing to compare: the model fails on such inputs, has
        no outputs of floats, or predicts differently each time itself.

    Raises:
        ValueError: If only the copy fails.
    """
    for dtype in ("float32", "int32"):  # What subclassed models take is not recorded.
        inputs = _inputs(model, dtype)
        expected = None if inputs is None else _tried(model, inputs)
        if expected is not None:
            break
    else:
        return None
    try:
        difference = _difference(_outputs(copy, inputs), expected)
    except Exception as error:
        raise ValueError(
            f"The copy of '{model.name}' fails on inputs that the model accepts: {error}"
        ) from error
    dtypes = {layer.compute_dtype for layer in flatten_layers(model)}
    rounding = 0.1 if dtypes & {"float16", "bfloat16"} else 1e-3
    if difference <= rounding or _difference(_tried(model, inputs), expected) > rounding:
        return None
    return difference


def _tried(model, inputs):
    try:
        return _outputs(model, inputs)
    except Exception:  # Random inputs need not be what the model accepts.
        return None


def _outputs(model, inputs):
    """List of the outputs that are floats, as arrays."""

    def infer(weights, arguments, named):
        outputs, _ = model.stateless_call(*weights, *arguments, **named, training=False)
        tensors = [y for y in keras.tree.flatten(outputs) if ops.is_tensor(y)]
        return [y for y in tensors if keras.backend.is_float_dtype(y.dtype)]

    variables = model.trainable_variables, model.non_trainable_variables
    weights = [[variable.value for variable in each] for each in variables]
    outputs = None
    if keras.backend.backend() == "jax":  # Which compiles an operation for each shape by itself.
        with contextlib.suppress(Exception):  # What JAX cannot trace, Keras may run all the same.
            outputs = compiled(infer)(weights, *inputs)
    if outputs is None:
        outputs = infer(weights, *inputs)
    return [ops.convert_to_numpy(y).astype("float64") for y in outputs]


def _difference(outputs, expected):
    errors = []
    for y, other in zip(outputs, expected, strict=True):
        if other.ndim == 0:
            y, other = y[None], other[None]
        for example, wanted in zip(y, other, strict=True):  # They are of different sizes.
            finite = np.isfinite(wanted)
            largest = np.abs(wanted[finite]).max(initial=0.0)
            errors.append(np.abs(example - wanted)[finite].max(initial=0.0) / (largest or 1.0))
    return float(max(errors, default=0.0))


def _inputs(model, dtype):
    """Positional and keyword arguments for a call of the model, or `None`."""
    if isinstance(model, AveragedModel):
        model = model.network
    rng = np.random.default_rng(0)
    if is_graph(model) and hasattr(model, "inputs"):
        structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        sample = keras.tree.map_structure(lambda x: _sample(x.shape, x.dtype, rng), structure)
        known = all(each is not None for each in keras.tree.flatten(sample))
        return ((sample,), {}) if known else None
    config = model.get_build_config() or {}
    if config.get("input_shape"):
        return (_samples(config["input_shape"], dtype, rng),), {}
    shapes = config.get("shapes_dict") or {}
    named = {
        name.removesuffix("_shape"): _samples(shape, dtype, rng) for name, shape in shapes.items()
    }
    return ((), named) if named else None


def _samples(shapes, dtype, rng):
    """Arrays for a structure of shapes, as a layer records them."""
    if shapes is None:
        return None
    if isinstance(shapes, dict):
        return {key: _samples(shape, dtype, rng) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return _sample((None, *shapes[1:]), dtype, rng)
    return [_samples(shape, dtype, rng) for shape in shapes]


def _sample(shape, dtype, rng):
    """Two examples, the one of the size of normalized data and the other of that of pixels."""
    shape = [size or (96 if axis else 2) for axis, size in enumerate(shape)]
    if keras.backend.is_float_dtype(dtype):
        x = rng.normal(size=shape)
        x[1:] = 128 + 64 * x[1:]
        return x.astype("float32" if dtype == "bfloat16" else dtype)
    if "int" in dtype or dtype == "bool":
        return rng.integers(0, 2, shape).astype(dtype)
    return None
