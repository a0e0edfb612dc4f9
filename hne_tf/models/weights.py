"""Canonical weight names: `block2/node3/unit0/conv1/kernel`, whichever factory built the model.

The name is the node's and the layer's name, dots turned into slashes, and the
weight's own name. A depthwise kernel is called `depthwise_kernel`, so that a
name tells how its channels lie.
"""

import pathlib
from collections.abc import Mapping

import keras
import numpy as np

from hne_tf.errors import InputError
from hne_tf.files import replacing
from hne_tf.models.ensemble import TreeEnsemble

CanonicalWeights = Mapping[str, np.ndarray]


def variables(model: TreeEnsemble) -> dict[str, keras.Variable]:
    """The model's weights by canonical name, in the tree's order."""
    return {
        canonical_name(node.name, layer, variable): variable
        for row in model.node_models
        for node in row
        for layer in node.layers
        for variable in layer.weights
    }


def canonical_name(node: str, layer: keras.Layer, variable: keras.Variable) -> str:
    """Name of a `variable` of a `layer` in the sub-network called `node`."""
    kind = variable.name
    if isinstance(layer, keras.layers.DepthwiseConv2D) and kind == "kernel":
        kind = "depthwise_kernel"
    return f"{node}.{layer.name}".replace(".", "/") + f"/{kind}"


def read(model: TreeEnsemble) -> dict[str, np.ndarray]:
    """Copies of the model's weights by canonical name."""
    return {
        name: keras.ops.convert_to_numpy(variable) for name, variable in variables(model).items()
    }


def load(model: TreeEnsemble, weights: CanonicalWeights) -> None:
    """Sets all weights of `model`.

    Raises:
      InputError: if names or shapes differ from the model's; nothing is set then.
    """
    targets = variables(model)
    odd = sorted(targets.keys() ^ weights.keys())
    if odd:
        raise InputError(f"weights must have the model's names; {len(odd)} differ, first {odd[0]}")
    for name, variable in targets.items():
        if tuple(variable.shape) != weights[name].shape:
            raise InputError(
                f"{name} must have shape {tuple(variable.shape)}, got {weights[name].shape}"
            )
    for name, variable in targets.items():
        variable.assign(weights[name])


def save_npz(path: pathlib.Path, weights: CanonicalWeights) -> None:
    """Writes weights to a `.npz` file, complete or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **weights)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what `save_npz` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
