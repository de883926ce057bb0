"""What is saved or exported computes the same elsewhere: in its own runtime, without keras_brn."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_brn import BatchRenormalization, RenormSchedule, to_batch_normalization

KERAS = """
import keras
def run(path, x):
    return keras.saving.load_model(path).predict(x, verbose=0)
"""
RUNTIMES = {
    "tf_saved_model": """
import tensorflow as tf
def run(path, x):
    model = tf.saved_model.load(path)
    return model.serve(x).numpy()
""",
    "onnx": """
import onnxruntime
def run(path, x):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x})[0]
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
def run(path, x):
    model = Interpreter(path)
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], x)
    model.invoke()
    return model.get_tensor(model.get_output_details()[0]["index"])
""",
    "openvino": """
import openvino
def run(path, x):
    return openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
""",
}
SUFFIXES = {"tf_saved_model": "", "onnx": ".onnx", "litert": ".tflite", "openvino": ".xml"}
# OpenVINO rounds to bfloat16 on processors that have it, unless told not to.
OTHER_BACKENDS = {
    "numpy": "",
    "openvino": """
import functools, openvino
hint = {"INFERENCE_PRECISION_HINT": "f32"}
openvino.compile_model = functools.partial(openvino.compile_model, config=hint)
""",
}
WITHOUT_US = "import sys; sys.modules['keras_brn'] = None"  # Makes importing it an error.
NOT_SUPPORTED = {
    ("jax", "litert"): "Keras exports LiteRT on TensorFlow and PyTorch only",
    ("jax", "openvino"): "OpenVINO can't read the XlaCallModule that jax2tf makes",
    ("torch", "tf_saved_model"): "Keras needs torch_xla, which ends at PyTorch 2.9",
}
NEEDED = {("jax", "onnx"): "jax2onnx", ("torch", "litert"): "litert_torch"}


def normalized(**options):
    return BatchRenormalization(
        momentum=0.5,
        beta_initializer="random_normal",
        gamma_initializer=keras.initializers.RandomUniform(0.5, 1.5),
        **options,
    )


@pytest.fixture(scope="module")
def trained():
    """A small network after eight steps."""
    y = inputs = keras.Input((8, 8, 3))
    y = layers.ReLU()(normalized()(layers.Conv2D(4, 3, use_bias=False)(y)))
    z = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.add([y, normalized(scale=False, epsilon=1e-5)(z)])
    y = layers.Dense(5)(layers.Flatten()(normalized(axis=1, microbatch_size=4)(y)))
    model = keras.Model(inputs, normalized(center=False)(y))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8, 8, 3)), rng.normal(size=(64, 5))
    model.fit(x, y, batch_size=8, callbacks=[RenormSchedule(2, 8, 6)], verbose=0)
    return model


@pytest.fixture
def x(rng):
    return rng.normal(size=(3, 8, 8, 3)).astype("float32")


def elsewhere(code, paths, x, **environment):
    """The outputs of each path by the function `run` that `code` defines, in a new process."""
    folder = paths[0].parent
    np.save(folder / "x.npy", x)
    code += """
import sys
import numpy as np
for path in sys.argv[1:]:
    np.save(path + ".npy", run(path, np.load("x.npy")))
"""
    command = [sys.executable, "-c", code, *(path.name for path in paths)]
    subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True)
    return [np.load(f"{path}.npy") for path in paths]


@pytest.mark.parametrize("form", RUNTIMES)
def test_exported(trained, x, backend, form, tmp_path):
    if (backend, form) in NOT_SUPPORTED:
        pytest.skip(NOT_SUPPORTED[backend, form])
    if (backend, form) in NEEDED:
        pytest.importorskip(NEEDED[backend, form])
    models = {"converted": to_batch_normalization(trained), "trained": trained}
    paths = [tmp_path / f"{name}{SUFFIXES[form]}" for name in models]
    signature = [keras.InputSpec(shape=x.shape, dtype="float32")] if form == "litert" else None
    for model, path in zip(models.values(), paths, strict=True):
        model(x)  # Keras exports to ONNX only what was called; `predict` on JAX does not count.
        model.export(str(path), format=form, input_signature=signature, verbose=False)
    expected = trained.predict(x, verbose=0)
    for name, y in zip(models, elsewhere(WITHOUT_US + RUNTIMES[form], paths, x), strict=True):
        print(f"| {form} | {backend} | {name} | {np.abs(y - expected).max():.1e} |")
        np.testing.assert_allclose(y, expected, atol=1e-5, rtol=1e-5, err_msg=name)


def test_converted_model_of_keras_needs_only_keras(trained, x, tmp_path):
    path = tmp_path / "converted.keras"
    to_batch_normalization(trained).save(path)
    (y,) = elsewhere(WITHOUT_US + KERAS, [path], x)
    np.testing.assert_allclose(y, trained.predict(x, verbose=0), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the same file from any")
@pytest.mark.parametrize("other", OTHER_BACKENDS)
def test_inference_on_backends_that_do_not_train(trained, x, backend, other, tmp_path):
    path = tmp_path / "trained.keras"
    trained.save(path)
    code = OTHER_BACKENDS[other] + "import keras_brn" + KERAS
    (y,) = elsewhere(code, [path], x, KERAS_BACKEND=other)
    expected = trained.predict(x, verbose=0)
    print(f"| backend {other} | {backend} | trained | {np.abs(y - expected).max():.1e} |")
    np.testing.assert_allclose(y, expected, atol=1e-5, rtol=1e-5)


def operations(model, folder):
    """What ONNX Runtime makes of the exported model."""
    import onnx
    import onnxruntime

    model(np.zeros((1, 8, 8, 3)))
    model.export(str(folder / "exported.onnx"), format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(folder / "exported.onnx", options)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="it folds TensorFlow's export")
@pytest.mark.parametrize("convert", [to_batch_normalization, lambda model: model])
def test_folded_into_the_convolution(convert, tmp_path):
    plain = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.ReLU()])
    model = keras.Sequential([plain.layers[0], normalized(), layers.ReLU()])
    model.build((None, 8, 8, 3))
    assert operations(convert(model), tmp_path) == operations(plain, tmp_path)
