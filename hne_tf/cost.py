"""Multiply-adds and parameters of the first n leaves, counted from the layers."""

import dataclasses
import math
from collections.abc import Sequence

import keras

from hne_tf.averaging import leaves
from hne_tf.models.ensemble import TreeEnsemble


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an answer costs.

    Attributes:
      multiply_adds: of convolutions and classifiers, for one image.
      parameters: numbers that a device holds once batch norms are folded.
    """

    multiply_adds: int
    parameters: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.multiply_adds + other.multiply_adds, self.parameters + other.parameters)


def per_size(model: TreeEnsemble, sizes: Sequence[int], average: str = "logits") -> dict[int, Cost]:
    """Cost of the answer of each size in one call; any factory gives the same.

    Args:
      model: counted.
      sizes: ensemble sizes.
      average: one of `averaging.AVERAGES`. Where the last leaf answers alone, what
        only the leaves before need, such as the classifiers of earlier exits, is
        not in its cost. Walking from size to size computes them, and costs what
        the other averages do.
    """
    return {
        size: sum(map(node_cost, model.nodes_of(leaves(size, average))), Cost(0, 0))
        for size in sizes
    }


def node_cost(node: keras.Model) -> Cost:
    """Cost of one node of the tree."""
    return sum((_layer_cost(layer) for layer in node.layers), Cost(0, 0))


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
