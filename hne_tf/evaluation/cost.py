"""Multiply-adds and parameters of the first n leaves, counted from the layers."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

from hne_tf.exported.measurements import Cost
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.averaging import leaves
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.functional import graph, multiply_adds, norms


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

    Raises:
      InputError: for a kind of layer whose multiply-adds are not known.
    """
    average = average or model.average
    return {
        size: sum(
            (part_cost(part, model.architecture) for part in _needed(model, leaves(size, average))),
            Cost(0, 0),
        )
        for size in sizes
    }


def per_size_walked(model: TreeEnsemble) -> dict[int, Cost]:
    """Cost of having walked through the steps to each size, whatever the average.

    A step computes all that later ones go on from, so that size n of a network with
    several scales can cost more than in one call; that of a tree costs the same.
    """
    return {
        size: sum(
            (part_cost(node, model.architecture) for node in model.nodes_of(range(size))),
            Cost(0, 0),
        )
        for size in range(1, model.tree.leaves + 1)
    }


def per_node(model: TreeEnsemble) -> list[list[Cost]]:
    """Cost of each node by block."""
    return [[part_cost(node, model.architecture) for node in row] for row in model.node_models]


def part_cost(part: keras.Model, architecture: Architecture) -> Cost:
    """Cost of a functional model for one example.

    Args:
      part: of known shapes.
      architecture: that it is a part of, which says whether norms are folded.

    Raises:
      InputError: for a kind of layer whose multiply-adds are not known.
    """
    by_factory = architecture.foldable and not architecture.brings_layers
    parameters = sum(_parameters(operation, by_factory) for operation in part.operations)
    parameters -= norms.saved_parameters(part, architecture.norms)
    return Cost(multiply_adds.of_model(part), parameters)


def _needed(model: TreeEnsemble, answering: Iterable[int]) -> Iterator[keras.Model]:
    """The parts of nodes that the logits of some leaves depend on."""
    tree = model.tree
    # Positions of the outputs of a node that others need; a leaf has one.
    needed: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
    for block, node in reversed(tree.nodes_of(answering)):
        whole = model.node_models[block][node]
        outputs = [whole.outputs[index] for index in sorted(needed[block, node] or {0})]
        part = whole if len(outputs) == len(whole.outputs) else keras.Model(whole.inputs, outputs)
        if block > 0:
            read = {id(x) for call in graph.calls(part) for x in call.inputs}
            needed[block - 1, tree.parent(block, node)].update(
                index for index, x in enumerate(whole.inputs) if id(x) in read
            )
        yield part


def _parameters(operation: Any, folds: bool) -> int:
    """Numbers that a device holds for a layer."""
    weights = getattr(operation, "weights", ())
    # Folding leaves the kernel and one bias, the norm's beta.
    kept = [w for w in weights if not folds or w.name in ("kernel", "bias", "beta")]
    return sum(math.prod(w.shape) for w in kept)
