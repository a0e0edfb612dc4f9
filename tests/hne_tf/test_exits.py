import pytest

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.tree import Step


def test_three_exits_hang_from_a_chain_of_three_blocks():
    exits = Exits(3)
    assert (exits.leaves, exits.sizes, exits.blocks) == (3, (1, 2, 3), 4)
    assert [exits.nodes(block) for block in range(4)] == [1, 2, 2, 1]
    # Each network: the blocks before its exit, and the exit.
    assert [exits.path(leaf) for leaf in range(3)] == [(0, 0), (0, 1, 0), (0, 1, 1, 0)]
    assert exits.steps == (
        Step(size=1, branch_block=0, nodes=(0, 0), cached_blocks=(0,)),
        Step(size=2, branch_block=1, nodes=(1, 0), cached_blocks=(1,)),
        Step(size=3, branch_block=2, nodes=(1, 0), cached_blocks=()),
    )


def test_a_single_exit_is_a_network():
    assert Exits(1).path(0) == (0, 0)
    assert Exits(1).steps == (Step(size=1, branch_block=0, nodes=(0, 0), cached_blocks=()),)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nodes_are_those_on_the_paths_each_below_its_parent(count):
    exits = Exits(count)
    every = [(b, node) for b in range(exits.blocks) for node in range(exits.nodes(b))]
    assert exits.nodes_of(range(count)) == every
    for path in map(exits.path, range(count)):
        for block in range(1, len(path)):
            assert exits.parent(block, path[block]) == path[block - 1]
        ends = [exits.is_leaf(block, node) for block, node in enumerate(path)]
        assert ends == [False] * (len(path) - 1) + [True]
        assert [exits.has_layers(block, node) for block, node in enumerate(path)] == [
            not end for end in ends
        ]


def test_an_exit_alone_needs_no_exit_before_it():
    assert Exits(3).nodes_of([2]) == [(0, 0), (1, 1), (2, 1), (3, 0)]


def test_an_exit_has_one_leaf_of_its_parent_s():
    shares = [Exits(3).share(*place) for place in Exits(3).nodes_of(range(3))]
    assert shares == [1, 1 / 3, 2 / 3, 1 / 2, 1 / 2, 1]


@pytest.mark.parametrize("count", [0, -1, 1.0, True, "2", None])
def test_bad_number_of_exits_is_named(count):
    with pytest.raises(InputError, match=f"exits must be a positive integer, got {count!r}"):
        Exits(count)


@pytest.mark.parametrize("size", [0, 4, 1.0])
def test_bad_size_is_named(size):
    with pytest.raises(InputError, match=f"an integer from 1 to 3, got {size!r}"):
        Exits(3).check_size(size)
