import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from hne_tf import cost
from hne_tf.cost import Cost
from hne_tf.image_spec import ImageSpec
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers import DeployLayers, TrainingLayers
from hne_tf.models.resnet import ResNet
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 6, 2), tuple("abcde"), mean=(0.0, 0.0), std=(1.0, 1.0))
BASIC = ResNet("basic", (4, 6), (1, 2), (1, 2), stem_width=3)
BOTTLENECK = ResNet("bottleneck", (8, 12), (1, 2), (1, 2), stem_width=4)

every_network = pytest.mark.parametrize("network", [BASIC, BOTTLENECK], ids=lambda net: net.unit)


def build(network, branching, layers=None):
    return TreeEnsemble(network, Tree(branching), layers or DeployLayers(), IMAGES)


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


@pytest.mark.parametrize("branching", [(1, 3), (2, 1), (1, 1)], ids=str)
@every_network
def test_training_and_deploy_models_cost_the_same(network, branching):
    sizes = range(1, Tree(branching).leaves + 1)
    trained = cost.per_size(build(network, branching, TrainingLayers()), sizes)
    deployed = build(network, branching)
    assert trained == cost.per_size(deployed, sizes)
    assert trained[sizes[-1]].parameters == deployed.count_params()


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


def profiled_multiply_adds(model):
    """Half the floating point operations that TensorFlow finds in the frozen graph."""
    spec = tf.TensorSpec((1, *IMAGES.shape), tf.uint8)
    function = tf.function(lambda images: model(images, training=False))
    graph = convert_variables_to_constants_v2(function.get_concrete_function(spec)).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = (
        builder(builder.float_operation())
        .with_accounted_types(["Conv2D", "DepthwiseConv2dNative", "MatMul"])
        .with_empty_output()
        .build()
    )
    profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    return profile.total_float_ops / 2


@pytest.mark.parametrize("layers", [TrainingLayers(), DeployLayers()], ids=["training", "deploy"])
@every_network
def test_multiply_adds_agree_with_the_profiler_of_tensorflow(network, layers):
    model = build(network, (1, 3), layers)
    costs = cost.per_size(model, (1, 2, 3))
    for size in (1, 3):
        profiled = profiled_multiply_adds(model.prefix(size))
        assert costs[size].multiply_adds == pytest.approx(profiled, rel=0.01)
    # A shared node is counted once in the whole model, too.
    assert costs[3].multiply_adds == pytest.approx(profiled_multiply_adds(model), rel=0.01)
