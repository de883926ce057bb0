"""Models there and back: the same outputs, weights and names, and the original untouched."""

import keras
import numpy as np
import pytest
from convert_models import (
    KINDS,
    BatchNormalization,
    call,
    count,
    functional,
    largest_error,
    outputs,
    randomize,
    sequential,
    trained,
)
from keras import ops

from keras_brn import BatchRenormalization, renormalize, to_batch_normalization

pytestmark = pytest.mark.filterwarnings("ignore:The optimizer of the copy")


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind):
    model, x = trained(kind)
    expected = outputs(model, x)
    renormalized = renormalize(model)
    back = to_batch_normalization(renormalized)
    for copy, of, without in (
        (renormalized, BatchRenormalization, BatchNormalization),
        (back, BatchNormalization, BatchRenormalization),
    ):
        assert count(copy, of) == count(model, BatchNormalization) and count(copy, without) == 0
        assert largest_error(copy, x, expected) < 1e-5
    for weight, before in zip(back.weights, model.weights, strict=True):
        assert (weight.name, weight.trainable) == (before.name, before.trainable)
        np.testing.assert_allclose(*map(ops.convert_to_numpy, (weight, before)), 1e-5, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_does_not_change_when_its_copy_does(kind):
    model, x = trained(kind)
    expected, weights = outputs(model, x), model.get_weights()
    copy = renormalize(model)
    call(copy, x, training=True)
    assert largest_error(copy, x, expected) > 1e-4
    assert largest_error(model, x, expected) == 0
    for value, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, before)
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.variables}


@pytest.mark.parametrize("kind", ["sequential", "subclassed", "averaged"])
def test_training_the_copy_leaves_the_model_alone(kind):
    model, x = trained(kind)
    expected = outputs(model, x)
    renormalize(model).fit(x, np.zeros_like(expected[0]), verbose=0)  # JAX deletes what it updates.
    assert largest_error(model, x, expected) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_structure_names_and_flags_are_kept(kind):
    model = KINDS[kind]()
    copy = renormalize(model)
    assert type(copy) is type(model) and copy.name == model.name
    old, new = (
        [layer for layer in m._flatten_layers() if not isinstance(layer, keras.layers.InputLayer)]
        for m in (model, copy)
    )
    for layer, other in zip(old, new, strict=True):
        for name in ("name", "trainable", "built", "dtype_policy"):
            assert getattr(layer, name) == getattr(other, name)
        if isinstance(layer, BatchNormalization):
            for name in ("axis", "epsilon", "momentum", "scale", "center"):
                assert getattr(layer, name) == getattr(other, name)


def test_weights_keep_their_paths():
    model, _ = trained("subclassed")
    paths = [weight.path for weight in model.weights]
    assert [weight.path for weight in to_batch_normalization(renormalize(model)).weights] == paths


def test_dtype_policy_is_kept():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = sequential()
    keras.config.set_dtype_policy("float32")
    copy = renormalize(model)
    assert copy.dtype_policy.name == "mixed_bfloat16"
    assert (copy.layers[1].compute_dtype, copy.layers[1].variable_dtype) == ("bfloat16", "float32")


def test_options_and_filters():
    model = functional()
    by_name = renormalize(model, layers=["shared"], r_max=2.0, microbatch_size=4, momentum=0.5)
    assert count(by_name, BatchRenormalization) == 1 and count(by_name, BatchNormalization) == 2
    layer = by_name.get_layer("shared")
    assert (layer.r_max, layer.microbatch_size, layer.momentum) == (2.0, 4, 0.5)
    by_function = renormalize(model, layers=lambda layer: layer.trainable)
    assert count(by_function, BatchRenormalization) == 2
    part = to_batch_normalization(renormalize(model), layers="first")
    assert count(part, BatchNormalization) == 1 and count(part, BatchRenormalization) == 2


@pytest.mark.parametrize("unusual", [{"momentum": 1.0}, {"epsilon": 0.0}])
def test_what_a_layer_can_not_take_over_an_option_replaces(unusual):
    layer = BatchNormalization(name="the_one", **unusual)
    model = keras.Sequential([keras.Input((3,)), layer])
    randomize(model)
    (name,) = unusual
    with pytest.raises(ValueError, match=f"'the_one'.*`{name}`"):
        renormalize(model)
    x = np.ones((2, 3), "float32")
    for copy in (other := renormalize(model, **{name: 0.5}), to_batch_normalization(other)):
        assert largest_error(copy, x, outputs(model, x)) < 1e-5


def test_renorm_layers_of_keras_keep_their_bounds(rng):
    clipping = {"rmax": 2.0, "rmin": 0.5, "dmax": 1.5}
    try:
        layer = BatchNormalization(renorm=True, renorm_clipping=clipping, renorm_momentum=0.8)
    except (TypeError, ValueError):
        pytest.skip("Keras has renorm since 3.14.")
    model = keras.Sequential([keras.Input((3,)), layer])
    x = rng.normal(2, 3, size=(64, 3)).astype("float32")
    model(x, training=True)
    ours = renormalize(model)
    layer = ours.layers[0]
    assert (layer.r_max, layer.d_max, layer.momentum) == (2.0, 1.5, 0.8)
    assert largest_error(ours, x, outputs(model, x)) < 1e-5
    model.layers[0].renorm_clipping = clipping | {"rmin": 0.1}
    with pytest.raises(ValueError, match="rmin=0.1"):
        renormalize(model)
    assert renormalize(model, r_max=4.0).layers[0].r_max == 4
