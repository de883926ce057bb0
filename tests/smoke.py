"""What an installed keras-brn must do, with nothing but Keras and its backend beside it."""

import tempfile
from importlib.metadata import version

import keras
import numpy as np

import keras_brn

rng = np.random.default_rng(0)
x, y = rng.normal(size=(24, 8)).astype("float32"), rng.integers(0, 3, 24)
layers = [keras.layers.Dense(5), keras_brn.BatchRenormalization(), keras.layers.Dense(3)]
model = keras.Sequential([keras.Input((8,)), *layers])
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
start = model.get_weights()
schedule = keras_brn.RenormSchedule(warmup_steps=0, r_max_steps=4, d_max_steps=4)
model.fit(x, y, batch_size=8, callbacks=[schedule], verbose=0)
assert not np.array_equal(start[0], model.get_weights()[0])
assert 1 < layers[1].r_max < 3

predicted = model.predict(x, verbose=0)
with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/model.keras")
    loaded = keras.models.load_model(f"{folder}/model.keras")
for copy in (loaded, keras_brn.to_batch_normalization(model)):
    np.testing.assert_allclose(copy.predict(x, verbose=0), predicted, rtol=1e-5, atol=1e-6)
back = keras_brn.renormalize(copy)
assert [type(layer) for layer in back.layers] == [type(layer) for layer in model.layers]
print(keras_brn.__version__, version("keras-brn"))
