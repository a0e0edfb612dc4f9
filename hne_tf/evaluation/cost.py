"""Multiply-adds and parameters of the first n leaves, counted from the layers."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence

import keras

from hne_tf.exported.measurements import Cost
from hne_tf.models.averaging import leaves
from hne_tf.models.ensemble import TreeEnsemble


def per_size(
    model: TreeEnsemble, sizes: Sequence[int], average: str | None = None
) -> dict[int, Cost]:
    """Cost of the answer of each size in one call; any factory gives the same.

    Counted are the layers that the answer depends on: TensorFlow computes no others.

    Args:
      model: counted.
      sizes: ensemble sizes.
      average: one of `averaging.AVERAGES`, the model's own by default. Where the last
        leaf answers alone, what only the leaves before need, such as the classifiers
        of earlier exits, is not in its cost.
    """
    average = average or model.average
    return {
        size: _total(layer for part in _needed(model, leaves(size, average)) for layer in part)
        for size in sizes
    }


def per_size_walked(model: TreeEnsemble) -> dict[int, Cost]:
    """Cost of having walked through the steps to each size, whatever the average.

    A step computes all that later ones go on from, so that size n of a network with
    several scales can cost more than in one call; that of a tree costs the same.
    """
    return {
        size: sum(map(node_cost, model.nodes_of(range(size))), Cost(0, 0))
        for size in range(1, model.tree.leaves + 1)
    }


def node_cost(node: keras.Model) -> Cost:
    """Cost of one node of the tree, for all that go on from it."""
    return _total(node.layers)


def _needed(model: TreeEnsemble, answering: Iterable[int]) -> Iterator[list[keras.Layer]]:
    """The layers, node by node, that the logits of some leaves depend on."""
    tree = model.tree
    # Positions of the outputs of a node that others need; a leaf has one.
    needed: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
    for block, node in reversed(tree.nodes_of(answering)):
        whole = model.node_models[block][node]
        outputs = [whole.outputs[index] for index in sorted(needed[block, node] or {0})]
        part = whole if len(outputs) == len(whole.outputs) else keras.Model(whole.inputs, outputs)
        layers = [layer for layer in part.layers if not isinstance(layer, keras.layers.InputLayer)]
        if block > 0:
            read = {id(x) for layer in layers for x in keras.tree.flatten(layer.input)}
            needed[block - 1, tree.parent(block, node)].update(
                index for index, x in enumerate(whole.inputs) if id(x) in read
            )
        yield layers


def _total(layers: Iterable[keras.Layer]) -> Cost:
    return sum(map(_layer_cost, layers), Cost(0, 0))


def _layer_cost(layer: keras.Layer) -> Cost:
    kernel = getattr(layer, "kernel", None)
    multiply_adds = 0
    if kernel is not None:
        # A kernel is applied once per output position; a classifier has one.
        multiply_adds = math.prod(kernel.shape) * math.prod(layer.output.shape[1:-1])
    # Folding leaves the kernel and one bias, the norm's beta.
    kept = ("kernel", "bias", "beta")
    parameters = sum(math.prod(w.shape) for w in layer.weights if w.name in kept)
    return Cost(multiply_adds, parameters)
