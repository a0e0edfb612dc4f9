"""Where the nodes of a tree are drawn, and which of them an answer needs."""

from collections.abc import Sequence
from typing import Any

from hne_tf.exits import Exits
from hne_tf.models import averaging
from hne_tf.tree import Paths


def describe(tree: Paths, sizes: Sequence[int], average: str) -> dict[str, Any]:
    """A tree to be drawn from left to right, a row per leaf.

    Args:
      tree: of networks, or of exits.
      sizes: ensemble sizes whose nodes are wanted.
      average: one of `averaging.AVERAGES`.

    Returns:
      `columns`: their headings; `nodes`: in the order of blocks, each with its
      `name`, its `column` and `row` (from 0; between two rows for an inner node of
      a tree), its `parent`, an index among the nodes or None, and the `leaf` that it
      is or None; `active`: by size, the indices of the nodes that its answer needs.
    """
    rows = _rows(tree)
    places = list(rows)
    index = {place: number for number, place in enumerate(places)}
    leaf_of = {_end(tree, leaf): leaf for leaf in range(tree.leaves)}
    nodes = [
        {
            "name": f"block{block}.node{node}",
            "column": _column(tree, block, node),
            "row": rows[block, node],
            "parent": index[block - 1, tree.parent(block, node)] if block else None,
            "leaf": leaf_of.get((block, node)),
        }
        for block, node in places
    ]
    active = {
        str(size): [index[place] for place in tree.nodes_of(averaging.leaves(size, average))]
        for size in sizes
    }
    return {"columns": _columns(tree), "nodes": nodes, "active": active}


def _end(tree: Paths, leaf: int) -> tuple[int, int]:
    path = tree.path(leaf)
    return len(path) - 1, path[-1]


def _rows(tree: Paths) -> dict[tuple[int, int], float]:
    """Rows by `(block, node)`: a leaf's own; a node's in the middle of the leaves below it.

    A network with exits runs down its first column, each block beside its exit.
    """
    below: dict[tuple[int, int], list[int]] = {}
    for leaf in range(tree.leaves):
        for place in enumerate(tree.path(leaf)):
            below.setdefault(place, []).append(leaf)
    chain = isinstance(tree, Exits)
    return {
        place: leaves[0] if chain else (leaves[0] + leaves[-1]) / 2
        for place, leaves in sorted(below.items())
    }


def _column(tree: Paths, block: int, node: int) -> int:
    return int(tree.is_leaf(block, node)) if isinstance(tree, Exits) else block


def _columns(tree: Paths) -> list[str]:
    if isinstance(tree, Exits):
        return ["blocks", "exits"]
    return [f"block {block}" for block in range(tree.blocks)]
