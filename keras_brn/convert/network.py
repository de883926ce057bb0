"""A copy of a network, layer by layer, with other layers in the place of some."""

import keras

from keras_brn.averaging import AveragedModel
from keras_brn.convert import sublayers
from keras_brn.convert.building import build_like
from keras_brn.convert.configuration import (
    copied_by_configuration,
    same_configuration,
    unknown_arguments,
)
from keras_brn.convert.graphs import copied_graph, has_class_of_graph, what_is_lost
from keras_brn.convert.sublayers import is_graph
from keras_brn.keras_internals import flatten_layers

_WAY_OUT = (
    "Give its class a `get_config` that returns the arguments of its `__init__`, or make the copy "
    "yourself, in `clone_function`."
)


class NetworkCopy:
    """A network of the same structure, without its state, with other layers in it.

    A graph is built anew from copies of its layers. Any other layer is made by its configuration,
    with the sublayers that its constructor makes; only those that it makes otherwise than they
    are now, or that hold one to be replaced, give way to copies of their own.

    Args:
        replacements: Dict from the id of a layer to the layer in its place.
        clone_function: Function of a layer that returns its copy, the layer itself if the copy
            is to share it, or `None` to leave it to this class. `None`: for no layer.

    Attributes:
        pairs: Dict from the id of a layer to a pair: the layer and its copy. What is shared in
            the network is shared in its copy.
        warnings: List of sentences about what could not be copied.
    """

    def __init__(self, replacements, clone_function=None):
        self.replacements = replacements
        self.clone_function = clone_function or (lambda layer: None)
        self.pairs = {}
        self.warnings = []
        self._copies = set()  # The ids of the copies.
        self._complete = set()  # The ids of the layers whose copies are complete.

    def of(self, model):
        """The copy of a model, with as much of it built as of the model."""
        copy = self.copy(model)
        self.complete(model)
        return copy

    def copy(self, layer):
        """The copy of a layer or operation; it need not be built."""
        if id(layer) not in self.pairs:
            copy = self._new(layer)
            self._pair(layer, copy)
            if not is_graph(layer) and isinstance(layer, keras.Layer):
                self._adopt_sublayers(layer, copy)
        return self.pairs[id(layer)][1]

    def complete(self, layer):
        """Builds the copy of a layer where the layer is built, and copies what that added."""
        copy = self.copy(layer)
        if id(layer) in self._complete or copy is layer:
            return
        self._complete.add(id(layer))
        makes_own = isinstance(layer, keras.Model) or type(layer).build is not keras.Layer.build
        if makes_own:
            build_like(layer, copy)
        self._adopt_sublayers(layer, copy)
        self._add_attributes(layer, copy)
        for each in sublayers.sublayers(layer).values():
            if id(each) in self.pairs:
                self.complete(each)
            elif each.weights and type(copy) is type(layer):
                raise ValueError(
                    f"Layer '{layer.name}' holds '{each.name}', which a new "
                    f"{type(layer).__name__} of its configuration does not make. {_WAY_OUT}"
                )
        if not makes_own:
            build_like(layer, copy)
        if layer.built:
            copy.built = True

    def _pair(self, layer, copy):
        self.pairs[id(layer)] = layer, copy
        self._copies.add(id(copy))

    def _new(self, layer):
        if id(layer) in self.replacements:
            return self.replacements[id(layer)]
        if not isinstance(layer, keras.Layer):
            return _copied_operation(layer)
        if isinstance(layer, keras.layers.InputLayer):
            return keras.layers.InputLayer.from_config(layer.get_config())
        if is_graph(layer) and self._holds_replaced(layer):
            return self._graph(layer)
        copy = self.clone_function(layer)
        if copy is not None:
            return self._checked(layer, copy)
        if is_graph(layer):
            return self._graph(layer)
        if type(layer) is AveragedModel:
            network = self.of(layer.network)
            return AveragedModel(network, layer.decay, name=layer.name, dtype=layer.dtype_policy)
        copy = self._by_configuration(layer)
        if copy is not layer:
            copy.name = layer.name
        return copy

    def _by_configuration(self, layer):
        try:
            copy = copied_by_configuration(layer)
        except ValueError as error:
            if not layer.variables and not self._holds_replaced(layer):
                return layer  # It has nothing of its own, such as a Lambda: both may hold it.
            raise ValueError(f"{error} {_WAY_OUT}") from error
        differing, unknown = unknown_arguments(layer, copy)
        if differing:
            raise ValueError(
                f"Model '{layer.name}' of class {type(layer).__name__} has no `get_config`, and "
                f"its {differing} are not the defaults of its `__init__`. {_WAY_OUT}"
            )
        if unknown:
            self.warnings.append(
                f"The class {type(layer).__name__} has no `get_config`: {unknown} of its "
                "`__init__` are taken to be the defaults."
            )
        return copy

    def _checked(self, layer, copy):
        if not isinstance(copy, keras.Layer):
            raise ValueError(
                "`clone_function` must return a layer or None. "
                f"Received: {copy!r} for layer '{layer.name}'"
            )
        if copy is layer and self._holds_replaced(layer):
            raise ValueError(
                f"`clone_function` returned layer '{layer.name}' itself, in which there are "
                "layers to convert."
            )
        return copy

    def _holds_replaced(self, layer):
        return any(id(each) in self.replacements for each in flatten_layers(layer))

    def _graph(self, model):
        copy = self._any_graph(model)
        if copy.dtype_policy != model.dtype_policy:
            copy.dtype_policy = model.dtype_policy  # Of which its configuration says nothing.
        return copy

    def _any_graph(self, model):
        """The copy of a Sequential or functional model."""
        if has_class_of_graph(model):
            return copied_graph(model, self.copy)
        if not self._holds_replaced(model):
            try:
                copy = copied_by_configuration(model)
                if not self._differs(model, copy):
                    self._adopt_sublayers(model, copy)
                    return copy
            except ValueError:
                pass  # Then as a graph.
        copy = copied_graph(model, self.copy)
        self.warnings.append(what_is_lost(model, copy))
        return copy

    def _adopt_sublayers(self, layer, copy):
        """Pairs the sublayers of a layer with those of its copy, replaced where they must be."""
        made = sublayers.sublayers(copy)
        for place, each in sublayers.sublayers(layer).items():
            if place not in made or (place[0] == "layers" and id(each) in self.pairs):
                continue
            other = made[place]
            if id(each) in self.pairs or self._differs(each, other) or id(other) in self._copies:
                if self.copy(each) is not other:
                    sublayers.replace(copy, other, self.copy(each))
            else:
                other.name = each.name
                self._pair(each, other)
                self._adopt_sublayers(each, other)

    def _differs(self, layer, made):
        """Whether a sublayer that a constructor made can't stand for `layer`."""
        if id(layer) in self.replacements or type(layer) is not type(made):
            return True
        if not is_graph(layer):
            return not same_configuration(layer, made)
        if self._holds_replaced(layer):
            return True
        old, new = sublayers.sublayers(layer), sublayers.sublayers(made)
        return old.keys() != new.keys() or any(self._differs(old[k], new[k]) for k in old)

    def _add_attributes(self, layer, copy):
        """Sets the attributes with layers or variables that the constructor leaves out."""
        if type(copy) is not type(layer):
            return
        held, made = (dict.fromkeys(p[0] for p in sublayers.sublayers(x)) for x in (layer, copy))
        values, present = sublayers.attributes(layer), sublayers.attributes(copy)
        # In the order in which the layer was given them, which is that of its weights.
        for name in [*(n for n in held if n in values and n not in made), *values]:
            if name not in present or (name in held and name not in made):
                copied = sublayers.mapped(values[name], self._copied_state)
                if copied is not values[name]:
                    sublayers.set_attribute(copy, name, copied)
                    made[name] = present[name] = None

    def _copied_state(self, leaf):
        if isinstance(leaf, keras.Layer):
            return self.copy(leaf)
        if isinstance(leaf, keras.Variable):
            return keras.Variable(
                keras.ops.convert_to_numpy(leaf),
                dtype=leaf.dtype,
                trainable=leaf.trainable,
                name=leaf.name,
            )
        return leaf


def _copied_operation(operation):
    """Of an operation such as `x + 1` in a graph, which has no state."""
    try:
        return type(operation).from_config(operation.get_config())
    except Exception:  # Some have arguments that no configuration can hold.
        return operation
