import pytest

from hne_tf.evaluation import cost
from hne_tf.evaluation.cost import Cost
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 6, 2), tuple("abcde"), mean=(0.0, 0.0), std=(1.0, 1.0))
BASIC = ResNet("basic", (4, 6), (1, 2), (1, 2), stem_width=3)
BOTTLENECK = ResNet("bottleneck", (8, 12), (1, 2), (1, 2), stem_width=4)

every_network = pytest.mark.parametrize("network", [BASIC, BOTTLENECK], ids=lambda net: net.unit)


def build(network, branching):
    return TreeEnsemble(network, Tree(branching), IMAGES, DeployLayers())


def conv(size, inputs, outputs, positions):
    """A convolution and its bias."""
    kernel = size * size * inputs * outputs
    return Cost(kernel * positions, kernel + outputs)


def total(costs):
    return sum(costs, Cost(0, 0))


# Blocks of the two networks by hand: 8x6 positions in block 0, 4x3 in block 1.
BY_HAND = {
    "basic": (
        [conv(3, 2, 3, 48), conv(3, 3, 4, 48), conv(3, 4, 4, 48), conv(1, 3, 4, 48)],
        [
            *(conv(3, 4, 6, 12), conv(3, 6, 6, 12), conv(1, 4, 6, 12)),
            *(conv(3, 6, 6, 12), conv(3, 6, 6, 12)),
            Cost(6 * 5, 6 * 5 + 5),
        ],
    ),
    "bottleneck": (
        [
            *(conv(3, 2, 4, 48), conv(1, 4, 4, 48)),
            # Depthwise: one 3x3 kernel for each of 4 channels.
            *(Cost(9 * 4 * 48, 9 * 4 + 4), conv(1, 4, 8, 48), conv(1, 4, 8, 48)),
        ],
        [
            # The 1x1 of the first unit still sees the larger picture.
            *(conv(1, 8, 6, 48), Cost(9 * 6 * 12, 9 * 6 + 6)),
            *(conv(1, 6, 12, 12), conv(1, 8, 12, 12)),
            *(conv(1, 12, 6, 12), Cost(9 * 6 * 12, 9 * 6 + 6), conv(1, 6, 12, 12)),
            Cost(12 * 5, 12 * 5 + 5),
        ],
    ),
}


@every_network
def test_costs_equal_those_counted_by_hand(network):
    first, second = (total(block) for block in BY_HAND[network.unit])
    costs = cost.per_size(build(network, (1, 3)), (1, 2, 3))
    for size in (1, 2, 3):
        assert costs[size] == total([first] + [second] * size)
    independent = cost.per_size(build(network, (2, 1)), (1, 2))
    assert independent == {1: total([first, second]), 2: total([first, second] * 2)}


EQUAL_BLOCKS = {"widths": (4,) * 4, "units": (2,) * 4, "strides": (1,) * 4, "stem_width": 4}


@pytest.mark.parametrize(
    "branching", [(1, 2, 2, 2), (8, 1, 1, 1), (1, 1, 1, 8), (2, 3, 1, 1)], ids=str
)
@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_equal_blocks_cost_as_many_blocks_as_the_tree_counts(unit, branching):
    model = build(ResNet(unit, **EQUAL_BLOCKS), branching)
    block = {
        "basic": total([conv(3, 4, 4, 48)] * 4),
        "bottleneck": total(
            [conv(1, 4, 2, 48), Cost(9 * 2 * 48, 9 * 2 + 2), conv(1, 2, 4, 48)] * 2
        ),
    }[unit]
    stem, head = conv(3, 2, 4, 48), Cost(4 * 5, 4 * 5 + 5)
    leaves = model.tree.leaves
    for size, measured in cost.per_size(model, range(1, leaves + 1)).items():
        roots, blocks = model.tree.active_nodes(size, 0), model.tree.block_evaluations(size)
        assert measured == total([stem] * roots + [block] * blocks + [head] * size)
    if branching == (1, 2, 2, 2):
        assert measured == total([stem] + [block] * (2 * leaves - 1) + [head] * leaves)
    if branching == (8, 1, 1, 1):
        assert measured == total([stem] * leaves + [block] * 4 * leaves + [head] * leaves)


def test_an_exit_alone_does_without_the_classifiers_of_the_others():
    model = TreeEnsemble(BASIC, Exits(2), IMAGES, DeployLayers())
    first, second = BY_HAND["basic"]
    early_head = Cost(4 * 5, 4 * 5 + 5)
    assert cost.per_size(model, (1, 2), "last") == {
        1: total([*first, early_head]),
        2: total([*first, *second]),
    }
    assert cost.per_size(model, (1, 2)) == {
        1: total([*first, early_head]),
        2: total([*first, early_head, *second]),
    }
