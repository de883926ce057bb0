"""Building a layer as another was built."""

import contextlib
import warnings

import keras


def build_like(layer, copy):
    """Builds the copy with the shapes that the layer was built with."""
    if copy.built or not layer.built:
        return
    adds_scope = type(layer).build is not keras.Layer.build
    with name_scopes(layer, inside=not adds_scope), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What could not be built, the sublayers then do.
        try:
            copy.build_from_config(layer.get_build_config())
        except Exception as error:  # Whatever `build` raises: it is the user's.
            raise ValueError(
                f"The copy of layer '{layer.name}' of class {type(layer).__name__} can't be "
                f"built: {type(error).__name__}: {error}"
            ) from error


@contextlib.contextmanager
def name_scopes(layer, inside=False):
    """The scopes of names that a layer was built in, for the paths of its weights."""
    names = (layer.path or layer.name).split("/")
    with contextlib.ExitStack() as stack:
        for name in names if inside else names[:-1]:
            stack.enter_context(keras.name_scope(name))
        yield
