"""The weights that the nodes of a tree start from."""

from collections.abc import Collection, Mapping, Sequence

import keras
import numpy as np

from hne_tf.errors import InputError
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.functional import depthwise, graph


def start(
    tree: TreeEnsemble,
    model: keras.Model,
    *,
    copy_weights: bool = True,
    reinitialise: Collection[int] = (),
    perturb: Mapping[int, float] | None = None,
    seed: int = 0,
) -> None:
    """Sets the weights of the nodes of a tree that is cut from a model.

    Args:
      tree: of clones of the model's layers.
      model: whose weights all nodes of a block start from.
      copy_weights: False leaves all nodes with fresh weights.
      reinitialise: blocks whose nodes keep fresh weights.
      perturb: by block, the standard deviation of noise in the trainable weights of its
        nodes, as a part of each weight's own.
      seed: of the noise.

    Raises:
      InputError: for blocks that the tree does not have, scales below 0 or weights of
        other shapes; nothing is set then.
    """
    _check_blocks("reinitialise", tree, reinitialise)
    _check_blocks("perturb", tree, perturb or ())
    fresh = weights.read(tree)
    values = copied(tree, graph.functional(model)) if copy_weights else fresh
    values = {
        name: fresh[name] if _block(name) in reinitialise else value
        for name, value in values.items()
    }
    weights.load(tree, perturbed(tree, values, perturb or {}, seed))


def copied(tree: TreeEnsemble, source: keras.Model) -> dict[str, np.ndarray]:
    """The weights of a model for each node of a tree, by canonical name.

    A layer of the tree that the source lacks keeps what it has, such as a new classifier.

    Args:
      tree: the `TreeEnsemble`; it stays as it is.
      source: a functional Keras model whose layers have the names of the tree's.

    Raises:
      InputError: for a layer with other weights.
    """
    given = {layer.name: layer for layer in source.layers}
    values = weights.read(tree)
    for ((block, node),), network in tree.networks:
        for layer in network.layers:
            if layer.name not in given or not layer.weights:
                continue
            expected = [tuple(weight.shape) for weight in layer.weights]
            theirs = _read(given[layer.name], expected)
            shapes = [value.shape for value in theirs]
            if shapes != expected:
                raise InputError(
                    f"weights of {layer.name!r} must have shapes {expected}, got {shapes}"
                )
            for variable, value in zip(layer.weights, theirs, strict=True):
                name = weights.canonical_name(f"block{block}.node{node}", layer, variable)
                values[name] = value
    return values


def _read(layer: keras.Layer, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """The weights of a layer, for one whose weights have some shapes."""
    values = [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
    if len(values) != len(shapes):
        return values
    return [depthwise.kernel(*pair) for pair in zip(values, shapes, strict=True)]


def perturbed(
    tree: TreeEnsemble, values: Mapping[str, np.ndarray], scales: Mapping[int, float], seed: int
) -> dict[str, np.ndarray]:
    """Weights with noise in the trainable ones of all nodes of some blocks.

    Args:
      tree: whose weights they are.
      values: by canonical name.
      scales: by block, the noise's standard deviation as a part of each weight's own.
      seed: of the noise.

    Raises:
      InputError: for a scale below 0.
    """
    random, result = np.random.default_rng(seed), dict(values)
    for (name,), variable in weights.parts(tree):
        scale = scales.get(_block(name), 0.0)
        if not scale >= 0:
            raise InputError(f"perturb must have scales of 0 or more, got {scale}")
        if scale and variable.trainable:
            value = values[name]
            noise = random.standard_normal(value.shape) * scale * value.std()
            result[name] = (value + noise).astype(value.dtype)
    return result


def _check_blocks(option: str, tree: TreeEnsemble, blocks: Collection[int]) -> None:
    """Raises `InputError` for a block that a tree does not have."""
    for block in blocks:
        if block not in range(tree.tree.blocks):
            raise InputError(
                f"{option} must name blocks from 0 to {tree.tree.blocks - 1}, got {block!r}"
            )


def _block(name: str) -> int:
    """The block of a canonical name."""
    return int(name.partition("/")[0].removeprefix("block"))
