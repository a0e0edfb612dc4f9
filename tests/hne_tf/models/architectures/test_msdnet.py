import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import MSDNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((16, 16, 3), tuple("abcde"), mean=(120.0,) * 3, std=(60.0,) * 3)
# Three scales, and in the second block two and then one.
SMALL = MSDNet(
    (1, 2), growth=2, scale_factors=(1, 2, 4), bottlenecks=(0, 2, 1), stem_width=3, head_width=7
)


def build(network, tree=None):
    return TreeEnsemble(network, tree or Exits(network.blocks), IMAGES, DeployLayers())


def kernels(node):
    return {
        layer.name: tuple(layer.kernel.shape) for layer in node.layers if hasattr(layer, "kernel")
    }


def randomised(model):
    rng = np.random.default_rng(0)
    values = weights.read(model).items()
    weights.load(model, {name: rng.normal(0, 0.3, value.shape) for name, value in values})
    return model


def test_every_convolution_of_a_small_network():
    model = build(SMALL)
    (first,), (exit_one, second), (exit_two,) = model.node_models
    assert kernels(first) == {
        "stem.scale0": (3, 3, 3, 3),
        "stem.scale1": (3, 3, 3, 6),
        "stem.scale2": (3, 3, 6, 12),
        # The finest scale has no finer one; its features come without a bottleneck.
        "unit0.scale0.same.conv2": (3, 3, 3, 2),
        "unit0.scale1.down.conv2": (3, 3, 3, 2),
        "unit0.scale1.same.conv1": (1, 1, 6, 4),
        "unit0.scale1.same.conv2": (3, 3, 4, 2),
        "unit0.scale2.down.conv1": (1, 1, 6, 6),
        "unit0.scale2.down.conv2": (3, 3, 6, 4),
        "unit0.scale2.same.conv1": (1, 1, 12, 4),
        "unit0.scale2.same.conv2": (3, 3, 4, 4),
    }
    assert [x.shape[1:] for x in first.output] == [(16, 16, 5), (8, 8, 10), (4, 4, 20)]
    assert kernels(second) == {
        # Drops the finest scale, from which it still takes features.
        "unit0.scale1.down.conv2": (3, 3, 5, 2),
        "unit0.scale1.same.conv1": (1, 1, 10, 4),
        "unit0.scale1.same.conv2": (3, 3, 4, 2),
        "unit0.scale1.transition": (1, 1, 14, 6),
        "unit0.scale2.down.conv1": (1, 1, 10, 8),
        "unit0.scale2.down.conv2": (3, 3, 8, 4),
        "unit0.scale2.same.conv1": (1, 1, 20, 4),
        "unit0.scale2.same.conv2": (3, 3, 4, 4),
        "unit0.scale2.transition": (1, 1, 28, 12),
        "unit1.scale2.down.conv1": (1, 1, 6, 6),
        "unit1.scale2.down.conv2": (3, 3, 6, 4),
        "unit1.scale2.same.conv1": (1, 1, 12, 4),
        "unit1.scale2.same.conv2": (3, 3, 4, 4),
        "unit1.scale2.transition": (1, 1, 20, 8),
    }
    assert [x.shape[1:] for x in second.output] == [(4, 4, 8)]
    for node, channels in ((exit_one, 20), (exit_two, 8)):
        assert kernels(node) == {
            "exit.conv1": (3, 3, channels, 7),
            "exit.conv2": (3, 3, 7, 7),
            "head": (7, 5),
        }


def test_features_are_all_before_side_by_side():
    node = randomised(build(SMALL)).node_models[0][0]
    pictures = np.random.default_rng(1).normal(0, 1, (2, 16, 16, 3)).astype(np.float32)
    taps = {layer.name: layer.output for layer in node.layers}
    got = keras.Model(node.input, {**taps, "given": list(node.output)})(pictures)
    for scale, given in enumerate(got["given"]):
        unit = f"unit0.scale{scale}"
        parts = [got[f"stem.scale{scale}"]]
        parts += [got[f"{unit}.down.conv2"]] if scale else []
        parts += [got[f"{unit}.same.conv2"]]
        np.testing.assert_array_equal(given, np.concatenate(parts, axis=-1))


@pytest.mark.parametrize(
    ("units", "scales"),
    [
        ((3, 3, 3), [3, 3, 3, 2, 2, 2, 1, 1, 1]),
        ((4, 2, 2, 2), [3, 3, 3, 3, 2, 2, 2, 2, 1, 1]),
        # The last layers leave what still reaches the last exit.
        ((4,), [3, 3, 2, 1]),
        ((1, 1, 1), [3, 2, 1]),
    ],
)
def test_scales_fall_away_from_fine_to_coarse(units, scales):
    network = MSDNet(units)
    assert [network.scales(layer) for layer in range(sum(units))] == scales


def test_exits_are_those_of_shorter_networks():
    model = randomised(build(SMALL))
    images = np.random.default_rng(2).integers(0, 256, (3, *IMAGES.shape), np.uint8)
    whole = np.asarray(model(images, training=False))
    assert whole.shape == (3, 2, 5)
    assert np.abs(whole[:, 0] - whole[:, 1]).max() > 1e-2
    np.testing.assert_allclose(model.prefix(1)(images), whole[:, :1], atol=1e-5)
    np.testing.assert_allclose(model.of_leaves(range(1, 2))(images), whole[:, 1:], atol=1e-5)
    # By hand: the blocks one after the other, then an exit.
    (first,), (exit_one, second), (exit_two,) = model.node_models
    features = first(model.normalise(images))
    np.testing.assert_allclose(exit_one(features), whole[:, 0], atol=1e-5)
    np.testing.assert_allclose(exit_two(second(features)), whole[:, 1], atol=1e-5)


def test_a_tree_of_dense_networks_is_a_loop_of_them():
    tree, single = build(SMALL, Tree((1, 2))), build(SMALL, Tree((1, 1)))
    values = weights.read(randomised(tree))
    images = np.random.default_rng(3).integers(0, 256, (2, *IMAGES.shape), np.uint8)
    got = np.asarray(tree(images))
    for leaf in range(2):
        own = {
            name.replace(f"block1/node{leaf}", "block1/node0"): value
            for name, value in values.items()
            if name.startswith(("block0", f"block1/node{leaf}/"))
        }
        weights.load(single, own)
        np.testing.assert_allclose(got[:, leaf], np.asarray(single(images))[:, 0], atol=1e-5)


@pytest.mark.parametrize(("preset", "exits"), [("small", 5), ("large", 11)])
def test_presets_have_an_exit_after_four_layers_and_every_two(preset, exits):
    network = MSDNet.presets[preset]
    assert network.units == (4,) + (2,) * (exits - 1)
    settings = (network.growth, network.scale_factors, network.bottlenecks, network.stem_width)
    assert settings == (6, (1, 2, 4), (1, 2, 4), 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"units": ()}, r"units must be integers of 1 or more, got \(\)"),
        ({"units": 3}, "units must be integers of 1 or more, got 3"),
        ({"units": (3, 0)}, r"units must be integers of 1 or more, got \(3, 0\)"),
        ({"units": (1, 1)}, r"as there are scales, 3, or more, got \(1, 1\)"),
        ({"bottlenecks": (1, -1, 1)}, "bottlenecks must be integers of 0 or more"),
        ({"bottlenecks": (1, 2)}, "one entry per scale"),
        ({"growth": 3, "scale_factors": (1, 1, 2)}, "must be even"),
        ({"growth": 0}, "growth must be a positive integer, got 0"),
        ({"stem_width": 1.5}, "stem_width must be a positive integer, got 1.5"),
        ({"head_width": -1}, "head_width must be a positive integer, got -1"),
        ({"reduction": 0.0}, "reduction must be above 0 and at most 1, got 0.0"),
        ({"reduction": 1.5}, "reduction must be above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        MSDNet(**{"units": (2, 2), **settings})


def test_lists_are_tuples():
    network = MSDNet([2, 2], scale_factors=[1, 2], bottlenecks=[0, 0])
    assert network == MSDNet((2, 2), scale_factors=(1, 2), bottlenecks=(0, 0))


@pytest.mark.parametrize("exits", [1, 3])
def test_exits_are_as_many_as_blocks(exits):
    with pytest.raises(InputError, match=f"exits must be the number of blocks, 2, got {exits}"):
        build(SMALL, Exits(exits))
