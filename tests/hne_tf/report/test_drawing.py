import pytest

from hne_tf.exits import Exits
from hne_tf.report import drawing
from hne_tf.tree import Tree


def places(described):
    return {node["name"]: (node["column"], node["row"]) for node in described["nodes"]}


def names(described, indices):
    return [described["nodes"][index]["name"] for index in indices]


def test_nodes_stand_in_the_column_of_their_block_amid_their_leaves():
    described = drawing.describe(Tree((1, 2, 2)), [1, 2, 4], "logits")
    assert described["columns"] == ["block 0", "block 1", "block 2"]
    assert places(described) == {
        "block0.node0": (0, 1.5),
        "block1.node0": (1, 0.5),
        "block1.node1": (1, 2.5),
        **{f"block2.node{leaf}": (2, leaf) for leaf in range(4)},
    }


def test_exits_stand_beside_their_blocks():
    described = drawing.describe(Exits(3), [1, 2, 3], "last")
    assert described["columns"] == ["blocks", "exits"]
    assert places(described) == {
        "block0.node0": (0, 0),
        "block1.node1": (0, 1),
        "block2.node1": (0, 2),
        "block1.node0": (1, 0),
        "block2.node0": (1, 1),
        "block3.node0": (1, 2),
    }


@pytest.mark.parametrize("tree", [Tree((1, 2, 3)), Tree((2, 1)), Tree((1,)), Exits(1), Exits(4)])
def test_going_up_from_a_leaf_is_its_path(tree):
    nodes = drawing.describe(tree, tree.sizes, "logits")["nodes"]
    leaves = {node["leaf"]: node for node in nodes if node["leaf"] is not None}
    assert leaves.keys() == set(range(tree.leaves))
    for leaf, node in leaves.items():
        found = [node]
        while found[0]["parent"] is not None:
            found.insert(0, nodes[found[0]["parent"]])
        path = [f"block{block}.node{index}" for block, index in enumerate(tree.path(leaf))]
        assert [each["name"] for each in found] == path
        assert node["row"] == leaf


def test_a_prefix_needs_the_nodes_of_its_leaves():
    described = drawing.describe(Tree((1, 2, 2)), [1, 2, 3], "logits")
    first = ["block0.node0", "block1.node0", "block2.node0"]
    assert names(described, described["active"]["1"]) == first
    assert names(described, described["active"]["2"]) == [*first, "block2.node1"]
    assert set(names(described, described["active"]["3"])) == {
        *first,
        "block1.node1",
        "block2.node1",
        "block2.node2",
    }


def test_an_exit_that_answers_alone_does_without_those_before():
    alone = drawing.describe(Exits(3), [2], "last")
    assert names(alone, alone["active"]["2"]) == ["block0.node0", "block1.node1", "block2.node0"]
    together = drawing.describe(Exits(3), [2], "logits")
    assert "block1.node0" in names(together, together["active"]["2"])
