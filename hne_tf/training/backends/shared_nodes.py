"""A tree's nodes as TensorFlow functions that are traced once for all nodes alike.

The nodes of a block are the same operations on weights of their own. Traced one by one, they
and their gradients took most of the time until the first step.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.models.ensemble import TreeEnsemble, activations_of, leaf_logits_of
from hne_tf.models.nodes import node_name

# A call stays one, of a graph that is made ready once.
CALL = {"_noinline": True}


class SharedNodes:
    """A tree in training on one device: called like its model, it computes the same.

    Gradients need `tape.watch`: a tape does not see what functions read.

    Args:
      model: whose weights, and moving statistics, are used.

    Attributes:
      losses: of the last call, as a Keras model has them.
    """

    def __init__(self, model: TreeEnsemble) -> None:
        self.losses: list[tf.Tensor] = []
        self._model = model
        functions: dict[Hashable, Callable[..., Any]] = {}
        self._functions = [
            [functions.setdefault(_kind(block, node), _function(node)) for node in row]
            for block, row in enumerate(model.node_models)
        ]

    def __call__(self, images: Any, training: bool = True) -> Any:
        """Leaf logits of images."""
        return self.with_activations(())(images, training)["leaf_logits"]

    def with_activations(self, names: Sequence[str]) -> Callable[..., dict[str, Any]]:
        """What maps images to what `TreeEnsemble.with_activations(names)` gives."""

        def compute(images: Any, training: bool = True) -> dict[str, Any]:
            if not training:
                raise ValueError("functions of nodes are traced for training")
            tree, leaves = self._model.tree, range(self._model.tree.leaves)
            self.losses = []
            activations = activations_of(tree, self._nodes, self._model.normalise(images), leaves)
            named = {node_name(place): x for place, x in activations.items()}
            leaf_logits = leaf_logits_of(tree, activations, leaves)
            return {"leaf_logits": leaf_logits, **{name: named[name] for name in names}}

        return compute

    @property
    def _nodes(self) -> list[list[Callable[[Any], Any]]]:
        """What computes each node."""
        rows = zip(self._functions, self._model.node_models, strict=True)
        return [list(map(self._node, *row)) for row in rows]

    def _node(self, function: Callable[..., Any], network: keras.Model) -> Callable[[Any], Any]:
        def compute(x: Any) -> Any:
            trainable = handles(network.trainable_variables)
            y, losses = function(trainable, handles(network.non_trainable_variables), x)
            self.losses += losses
            return y

        return compute


def handles(variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    """What TensorFlow knows variables by, on the device that asks."""
    return [variable.value.handle for variable in variables]


def _function(network: keras.Model) -> Callable[..., Any]:
    """A network as a function of its variables; it is traced when it is first called."""

    def read(handle: tf.Tensor, variable: keras.Variable) -> tf.Tensor:
        value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable.value.dtype)
        return tf.ensure_shape(value, variable.shape)

    def call(trainable: list[tf.Tensor], others: list[tf.Tensor], x: Any) -> tuple[Any, Any]:
        y, updated, losses = network.stateless_call(
            list(map(read, trainable, network.trainable_variables)),
            list(map(read, others, network.non_trainable_variables)),
            x,
            training=True,
            return_losses=True,
        )
        for handle, value in zip(others, updated, strict=True):
            tf.raw_ops.AssignVariableOp(resource=handle, value=value)
        captured = tf.compat.v1.get_default_graph().captures
        if any(outside.dtype == tf.resource for outside, _ in captured):
            raise InputError(
                "layers must keep what they know in Keras's variables, got a tf.Variable or a "
                f"table in {network.name!r}"
            )
        return y, [tf.add_n(losses)] if losses else []

    return tf.function(call, autograph=False, experimental_attributes=CALL)


def _kind(block: int, network: keras.Model) -> Hashable:
    """Equal for networks that compute the same from their weights."""
    # Keras has no public view of layers inside layers.
    flags = tuple(layer.trainable for layer in network._flatten_layers())
    try:
        config = network.get_config()
        text = json.dumps(config, sort_keys=True)
    except (NotImplementedError, TypeError, ValueError):
        return (block, id(network), flags)
    # Layers of different nodes differ in name.
    for index, layer in enumerate(config["layers"]):
        text = text.replace(json.dumps(layer["name"]), f'"{index}"')
    return (block, text.replace(json.dumps(network.name), '""'), flags)
