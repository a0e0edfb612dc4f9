"""Trees of blocks: which networks share what, in pure Python.

The leaves of a tree are networks, numbered depth-first from 0; a network is the
path of nodes from block 0 to its leaf, and networks whose paths share a node share
its weights and computation. `Tree`, whose leaves all lie in the last block, is a
tuple of branching factors, one per block. `Exits` has a leaf after every block.
"""

import abc
import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Iterable

from hne_tf.errors import InputError


def is_positive_integer(value: object) -> bool:
    """Whether `value` is an integer of at least 1; a bool does not count."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def ensemble_sizes(leaves: int) -> tuple[int, ...]:
    """Ensemble sizes of a tree with so many leaves: powers of two below them, then all."""
    powers = (2**b for b in range(leaves.bit_length()))
    return (*(p for p in powers if p < leaves), leaves)


@dataclasses.dataclass(frozen=True)
class Step:
    """What going from `size - 1` to `size` leaves computes.

    Attributes:
      size: number of leaves evaluated after this step, from 1.
      branch_block: first block whose node is not yet computed. The step
        continues from the activation of block `branch_block - 1`, or from the
        images where it is 0.
      nodes: node index to compute at each block from `branch_block` on.
      cached_blocks: blocks computed here whose activation a later step
        continues from.
    """

    size: int
    branch_block: int
    nodes: tuple[int, ...]
    cached_blocks: tuple[int, ...]


class Paths(abc.ABC):
    """What holds for trees of every shape, by the paths to their leaves."""

    @property
    @abc.abstractmethod
    def blocks(self) -> int:
        """Number of blocks on the longest path."""

    @property
    @abc.abstractmethod
    def leaves(self) -> int:
        """Number of networks, `N`."""

    @property
    @abc.abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Ensemble sizes of objectives and export, increasing; the last one is N."""

    @abc.abstractmethod
    def nodes(self, block: int) -> int:
        """Number of nodes in `block`."""

    @abc.abstractmethod
    def parent(self, block: int, node: int) -> int:
        """Index in block `block - 1` of the node that `node` of `block` hangs from."""

    @abc.abstractmethod
    def path(self, leaf: int) -> tuple[int, ...]:
        """Node index at every block on the way to `leaf` (from 0)."""

    @abc.abstractmethod
    def is_leaf(self, block: int, node: int) -> bool:
        """Whether a path ends in this node, in a classifier."""

    @abc.abstractmethod
    def has_layers(self, block: int, node: int) -> bool:
        """Whether the node computes block number `block` of a network, not its classifier alone."""

    def share(self, block: int, node: int) -> float:
        """The part of the leaves below a node's parent that lie below the node; 1 for a root."""
        if block == 0:
            return 1.0
        below = self._leaves_below(block, node)
        return below / self._leaves_below(block - 1, self.parent(block, node))

    def _leaves_below(self, block: int, node: int) -> int:
        """Number of leaves whose paths go through a node."""
        paths = map(self.path, range(self.leaves))
        return sum(path[block : block + 1] == (node,) for path in paths)

    def groups(self, block: int) -> list[tuple[int, ...]]:
        """The nodes of `block`, those together that compute the same layers."""
        alike: dict[tuple[bool, bool], list[int]] = {}
        for node in range(self.nodes(block)):
            kind = (self.is_leaf(block, node), self.has_layers(block, node))
            alike.setdefault(kind, []).append(node)
        return [tuple(nodes) for nodes in alike.values()]

    @property
    def parallel_nodes(self) -> float:
        """Nodes that can be computed at the same time, on average over the blocks of a path.

        With equal blocks it is the cost of all networks over that of one.
        """
        nodes = [
            sum(self.has_layers(block, node) for node in range(self.nodes(block)))
            for block in range(self.blocks)
        ]
        return statistics.mean(filter(None, nodes))

    def check_size(self, size: int) -> None:
        """Raises `InputError` unless `size` is a number of leaves of this tree."""
        if not is_positive_integer(size) or size > self.leaves:
            raise InputError(
                f"ensemble size must be an integer from 1 to {self.leaves}, got {size!r}"
            )

    def nodes_of(self, leaves: Iterable[int]) -> list[tuple[int, int]]:
        """The nodes that some leaves need, as `(block, node)`, one block after the other."""
        return sorted({place for leaf in leaves for place in enumerate(self.path(leaf))})

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The depth-first steps; step `n` computes exactly the nodes new to size `n`."""
        paths = [self.path(leaf) for leaf in range(self.leaves)]
        # Paths of different lengths part before the shorter one ends.
        branch_blocks = [0] + [
            next(b for b, (old, new) in enumerate(zip(a, c, strict=False)) if old != new)
            for a, c in itertools.pairwise(paths)
        ]
        continued = {
            (first - 1, path[first - 1])
            for path, first in zip(paths, branch_blocks, strict=True)
            if first > 0
        }
        return tuple(
            Step(
                size=leaf + 1,
                branch_block=first,
                nodes=path[first:],
                cached_blocks=tuple(
                    block for block in range(first, len(path)) if (block, path[block]) in continued
                ),
            )
            for leaf, (path, first) in enumerate(zip(paths, branch_blocks, strict=True))
        )


@dataclasses.dataclass(frozen=True)
class Tree(Paths):
    """A tree of blocks, e.g. `Tree((1, 2, 2, 2, 2))` with 16 leaves.

    Attributes:
      branching: factor of each block. Block 0 has `branching[0]` roots; every
        node of block `b - 1` has `branching[b]` children in block `b`.

    Raises:
      InputError: if a factor is not a positive integer or there is none.
    """

    branching: tuple[int, ...]

    def __post_init__(self) -> None:
        listed = isinstance(self.branching, (tuple, list))
        branching = tuple(self.branching) if listed else ()
        if not branching or not all(is_positive_integer(factor) for factor in branching):
            raise InputError(
                f"branching must be a non-empty tuple of positive integers, got {self.branching!r}"
            )
        object.__setattr__(self, "branching", branching)

    @property
    def blocks(self) -> int:
        """Number of blocks on every path, `B + 1` in the paper."""
        return len(self.branching)

    @property
    def leaves(self) -> int:
        """Number of networks, `N`."""
        return math.prod(self.branching)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Ensemble sizes of objectives and export: powers of two below N, then N."""
        return ensemble_sizes(self.leaves)

    def nodes(self, block: int) -> int:
        """Number of nodes in `block`."""
        return math.prod(self.branching[: block + 1])

    def leaves_per_node(self, block: int) -> int:
        """Number of leaves below each node of `block`."""
        return math.prod(self.branching[block + 1 :])

    def parent(self, block: int, node: int) -> int:
        """Index in block `block - 1` of the node that `node` of `block` hangs from."""
        return node // self.branching[block]

    def path(self, leaf: int) -> tuple[int, ...]:
        """Node index at every block on the way to `leaf` (from 0)."""
        return tuple(leaf // self.leaves_per_node(block) for block in range(self.blocks))

    def active_nodes(self, size: int, block: int) -> int:
        """Number of nodes of `block` that the first `size` leaves need.

        Depth-first order makes them the first ones: nodes `0 .. active_nodes - 1`.
        """
        self.check_size(size)
        return -(-size // self.leaves_per_node(block))

    def is_leaf(self, block: int, node: int) -> bool:
        """All leaves lie in the last block."""
        del node
        return block == self.blocks - 1

    def has_layers(self, block: int, node: int) -> bool:
        """Every node has; a leaf has its classifier too."""
        del block, node
        return True

    def block_evaluations(self, size: int) -> int:
        """Blocks computed for the first `size` leaves: their cost in equal blocks."""
        return sum(self.active_nodes(size, block) for block in range(self.blocks))
