import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.tree import Step, Tree


@st.composite
def branchings(draw):
    """One to six factors of at most 64 leaves in all."""
    factors = []
    for _ in range(draw(st.integers(1, 6))):
        factors.append(draw(st.integers(1, min(5, 64 // math.prod(factors)))))
    return tuple(factors)


def spelled_out_paths(branching):
    """Node index at every block for each leaf, found by listing and numbering all nodes.

    A network is the child taken at each block; a node is how its networks begin.
    """
    networks = sorted(itertools.product(*map(range, branching)))
    numbers = []
    for block in range(len(branching)):
        beginnings = sorted({network[: block + 1] for network in networks})
        numbers.append({beginning: number for number, beginning in enumerate(beginnings)})
    return [
        tuple(number[network[: block + 1]] for block, number in enumerate(numbers))
        for network in networks
    ]


@given(branchings())
def test_nodes_and_paths_equal_a_listing_of_all_networks(branching):
    tree = Tree(branching)
    paths = spelled_out_paths(branching)
    assert tree.blocks == len(branching)
    assert tree.leaves == len(paths)
    assert [tree.path(leaf) for leaf in range(tree.leaves)] == paths
    for block in range(tree.blocks):
        column = [path[block] for path in paths]
        assert tree.nodes(block) == len(set(column))
        for node in range(tree.nodes(block)):
            assert tree.leaves_per_node(block) == column.count(node)


@given(branchings())
def test_parents_are_the_nodes_before_on_the_path(branching):
    tree = Tree(branching)
    for path in spelled_out_paths(branching):
        for block in range(1, tree.blocks):
            assert tree.parent(block, path[block]) == path[block - 1]


@given(branchings())
def test_active_nodes_are_those_on_the_paths_of_the_first_leaves(branching):
    tree = Tree(branching)
    paths = spelled_out_paths(branching)
    for size in range(1, tree.leaves + 1):
        needed = [{path[block] for path in paths[:size]} for block in range(tree.blocks)]
        for block, nodes in enumerate(needed):
            assert nodes == set(range(tree.active_nodes(size, block)))
        assert tree.block_evaluations(size) == sum(map(len, needed))


@given(branchings())
def test_block_evaluations_equal_the_ceiling_formula(branching):
    tree = Tree(branching)
    for size in range(1, tree.leaves + 1):
        assert tree.block_evaluations(size) == sum(
            math.ceil(size / math.prod(branching[block + 1 :])) for block in range(tree.blocks)
        )


@pytest.mark.parametrize("splits", range(6))
def test_a_binary_tree_costs_2n_minus_1_blocks(splits):
    tree = Tree((1,) + (2,) * splits)
    assert tree.leaves == 2**splits
    assert tree.block_evaluations(tree.leaves) == 2 * tree.leaves - 1


@pytest.mark.parametrize(("networks", "blocks"), [(1, 1), (1, 5), (16, 1), (16, 5), (7, 3)])
def test_independent_networks_share_no_block(networks, blocks):
    tree = Tree((networks,) + (1,) * (blocks - 1))
    for size in range(1, networks + 1):
        assert tree.block_evaluations(size) == size * blocks


@given(branchings())
def test_sizes_are_the_powers_of_two_below_all_leaves_then_all(branching):
    tree = Tree(branching)
    expected = [n for n in range(1, tree.leaves) if n.bit_count() == 1] + [tree.leaves]
    assert list(tree.sizes) == expected


@pytest.mark.parametrize(
    ("branching", "sizes"),
    [
        ((1, 1, 1), (1,)),
        ((1, 2), (1, 2)),
        ((3,), (1, 2, 3)),
        ((1, 2, 2, 2, 2), (1, 2, 4, 8, 16)),
        ((2, 3, 3), (1, 2, 4, 8, 16, 18)),
    ],
)
def test_sizes_of_some_trees(branching, sizes):
    assert Tree(branching).sizes == sizes


@given(branchings())
def test_steps_compute_each_node_of_a_prefix_once(branching):
    tree = Tree(branching)
    paths = spelled_out_paths(branching)
    assert [step.size for step in tree.steps] == list(range(1, tree.leaves + 1))
    computed = []
    for step in tree.steps:
        computed += enumerate(step.nodes, start=step.branch_block)
        assert len(set(computed)) == len(computed)
        assert set(computed) == {node for path in paths[: step.size] for node in enumerate(path)}
        # A step ends in its own leaf.
        assert computed[-1] == (tree.blocks - 1, step.size - 1)


@given(branchings())
def test_steps_continue_from_caches_and_no_cache_is_idle(branching):
    tree = Tree(branching)
    paths = spelled_out_paths(branching)
    newest = {}  # block: the step that last left its activation, and of which node
    left, used = set(), set()
    for step, path in zip(tree.steps, paths, strict=True):
        if step.branch_block > 0:
            giver, node = newest[step.branch_block - 1]
            assert node == path[step.branch_block - 1]
            used.add((giver, step.branch_block - 1))
        for block in step.cached_blocks:
            newest[block] = step.size, step.nodes[block - step.branch_block]
            left.add((step.size, block))
    assert used == left


@given(branchings())
def test_a_node_s_share_is_that_of_its_parent_s_leaves(branching):
    tree = Tree(branching)
    for block, node in tree.nodes_of(range(tree.leaves)):
        assert tree.share(block, node) == (1 / branching[block] if block else 1)


def test_steps_of_a_small_tree():
    assert Tree((1, 2, 2)).steps == (
        Step(size=1, branch_block=0, nodes=(0, 0, 0), cached_blocks=(0, 1)),
        Step(size=2, branch_block=2, nodes=(1,), cached_blocks=()),
        Step(size=3, branch_block=1, nodes=(1, 2), cached_blocks=(1,)),
        Step(size=4, branch_block=2, nodes=(3,), cached_blocks=()),
    )


def test_steps_of_independent_networks_start_from_the_images():
    assert Tree((2, 1)).steps == (
        Step(size=1, branch_block=0, nodes=(0, 0), cached_blocks=()),
        Step(size=2, branch_block=0, nodes=(1, 1), cached_blocks=()),
    )


def test_a_list_of_factors_is_the_same_tree_as_a_tuple():
    assert Tree([1, 2]) == Tree((1, 2))
    assert hash(Tree([1, 2])) == hash(Tree((1, 2)))
    assert Tree((1, 2)) != Tree((2, 1))


@pytest.mark.parametrize(
    ("branching", "received"),
    [
        ((), r"\(\)"),
        ((0,), r"\(0,\)"),
        ((2, -1), r"\(2, -1\)"),
        ((True,), r"\(True,\)"),
        ((1.5,), r"\(1\.5,\)"),
        ((1, 2.0), r"\(1, 2\.0\)"),
        (("2",), r"\('2',\)"),
        ((1, None), r"\(1, None\)"),
    ],
)
def test_bad_branching_is_named(branching, received):
    with pytest.raises(InputError, match=f"tuple of positive integers, got {received}$"):
        Tree(branching)


@pytest.mark.parametrize("size", [0, -1, 7, 2.0, "2", None])
@pytest.mark.parametrize(
    "ask",
    [
        Tree.check_size,
        Tree.block_evaluations,
        lambda tree, size: tree.active_nodes(size, 0),
    ],
)
def test_bad_size_is_named(ask, size):
    with pytest.raises(InputError, match=f"an integer from 1 to 6, got {size!r}$"):
        ask(Tree((1, 2, 3)), size)


@pytest.mark.parametrize("size", [1, 6])
def test_every_number_of_leaves_is_a_size(size):
    Tree((1, 2, 3)).check_size(size)


@pytest.mark.parametrize("branching", [3, "12", None])
def test_what_is_no_tuple_is_refused(branching):
    with pytest.raises(InputError, match=f"tuple of positive integers, got {branching!r}"):
        Tree(branching)


def test_a_bool_is_no_size():
    with pytest.raises(InputError, match="got True"):
        Tree((1, 2)).check_size(True)


def test_groups_are_the_nodes_that_compute_the_same_layers():
    tree = Tree((1, 2, 2))
    assert [tree.groups(block) for block in range(3)] == [[(0,)], [(0, 1)], [(0, 1, 2, 3)]]
    exits = Exits(2)
    assert [exits.groups(block) for block in range(3)] == [[(0,)], [(0,), (1,)], [(0,)]]


@given(branchings())
def test_nodes_computed_at_once_are_the_cost_of_all_networks_over_that_of_one(branching):
    tree = Tree(branching)
    ratio = tree.block_evaluations(tree.leaves) / tree.block_evaluations(1)
    assert tree.parallel_nodes == pytest.approx(ratio)


@pytest.mark.parametrize("exits", [1, 2, 5])
def test_the_blocks_of_a_network_with_exits_are_computed_one_after_the_other(exits):
    assert Exits(exits).parallel_nodes == 1
