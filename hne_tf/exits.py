"""Networks with exits: a chain of blocks with a classifier after each, in pure Python."""

import dataclasses

from hne_tf.errors import InputError
from hne_tf.tree import Paths, is_positive_integer


@dataclasses.dataclass(frozen=True)
class Exits(Paths):
    """A tree that is a chain of blocks with a leaf, the exit, hanging from each.

    Network `k` (from 0) is the first `k + 1` blocks and exit `k`. An exit is a node
    of its own, the classifier alone, so that a deeper network can do without those
    before it: block 0 has one node; in the blocks after it node 0 is the exit of the
    block before and node 1 goes on; the last block has only the last exit.

        block0.node0 -- block1.node1 -- block2.node1
             |               |               |
        block1.node0    block2.node0    block3.node0      Exits(3)

    Attributes:
      exits: number of blocks of the network, each with an exit.

    Raises:
      InputError: unless `exits` is a positive integer.
    """

    exits: int

    def __post_init__(self) -> None:
        if not is_positive_integer(self.exits):
            raise InputError(f"exits must be a positive integer, got {self.exits!r}")

    @property
    def blocks(self) -> int:
        return self.exits + 1

    @property
    def leaves(self) -> int:
        return self.exits

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every exit counts: there are few."""
        return tuple(range(1, self.exits + 1))

    def nodes(self, block: int) -> int:
        return 1 if block in (0, self.exits) else 2

    def parent(self, block: int, node: int) -> int:
        del node
        return 0 if block == 1 else 1

    def path(self, leaf: int) -> tuple[int, ...]:
        return (0, *(1,) * leaf, 0)

    def is_leaf(self, block: int, node: int) -> bool:
        return block > 0 and node == 0

    def has_layers(self, block: int, node: int) -> bool:
        return not self.is_leaf(block, node)
