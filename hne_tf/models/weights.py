"""Canonical weight names: `block2/node3/unit0/conv1/kernel`, whichever factory built the model.

The name is the node's and the layer's name, dots turned into slashes, and the
weight's own name, or its number in the layer if it has none. Weights of layers inside a
layer, such as attention or a nested model, have the inner layers' names before theirs. A
depthwise kernel is called `depthwise_kernel`, so that a name tells how its channels lie.
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from hne_tf.errors import InputError
from hne_tf.files import replacing
from hne_tf.models.ensemble import Ensemble, TreeEnsemble

# What Keras calls a variable without a name.
_NUMBERED = re.compile(r"variable(_\d+)?")

CanonicalWeights = Mapping[str, np.ndarray]


def parts(model: Ensemble) -> list[tuple[tuple[str, ...], keras.Variable]]:
    """The model's weights, each with the canonical names of what it holds.

    A weight of a grouped model has a name for each of its nodes and holds theirs,
    as many as there are names, one after the other along the first axis.
    """
    return [
        (tuple(canonical_name(f"block{b}.node{n}", layer, variable) for b, n in places), variable)
        for places, network in model.networks
        for layer in network.layers
        for variable in layer.weights
    ]


def split(value: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What each name of a weight, see `parts`, stands for in its value or gradient."""
    values = [value] if len(names) == 1 else np.split(value, len(names))
    return dict(zip(names, values, strict=True))


def variables(model: TreeEnsemble) -> dict[str, keras.Variable]:
    """The weights of a model that is not grouped by canonical name, in the tree's order."""
    return {name: variable for (name,), variable in parts(model)}


def canonical_name(node: str, layer: keras.Layer, variable: keras.Variable) -> str:
    """Name of a `variable` of a `layer` in the sub-network called `node`."""
    kind = _own_path(layer, variable).removeprefix(f"{layer.name}/")
    if isinstance(layer, keras.layers.DepthwiseConv2D) and kind == "kernel":
        kind = "depthwise_kernel"
    return f"{node}.{layer.name}".replace(".", "/") + f"/{kind}"


def _own_path(layer: keras.Layer, variable: keras.Variable) -> str:
    """Path of a variable; one without a name is numbered within its layer."""
    owner, _, name = variable.path.rpartition("/")
    if not _NUMBERED.fullmatch(name):
        return variable.path
    # Keras counts variables without a name over all models.
    siblings = [
        each
        for each in layer.weights
        if each.path.rpartition("/")[0] == owner and _NUMBERED.fullmatch(each.name)
    ]
    number = [each is variable for each in siblings].index(True)
    return f"{owner}/variable_{number}"


def read(model: Ensemble) -> dict[str, np.ndarray]:
    """Copies of the model's weights by canonical name."""
    return {
        name: value
        for names, variable in parts(model)
        for name, value in split(keras.ops.convert_to_numpy(variable), names).items()
    }


def load(model: Ensemble, weights: CanonicalWeights) -> None:
    """Sets all weights of `model`.

    Raises:
      InputError: if names or shapes differ from the model's; nothing is set then.
    """
    targets = parts(model)
    odd = sorted({name for names, _ in targets for name in names} ^ weights.keys())
    if odd:
        raise InputError(f"weights must have the model's names; {len(odd)} differ, first {odd[0]}")
    for names, variable in targets:
        shape = tuple(variable.shape)
        if len(names) > 1:
            shape = (shape[0] // len(names), *shape[1:])
        for name in names:
            if weights[name].shape != shape:
                raise InputError(f"{name} must have shape {shape}, got {weights[name].shape}")
    for names, variable in targets:
        values = [weights[name] for name in names]
        variable.assign(values[0] if len(names) == 1 else np.concatenate(values))


def save_npz(path: pathlib.Path, weights: CanonicalWeights) -> None:
    """Writes weights to a `.npz` file, complete or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **weights)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads what `save_npz` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
