"""The grouped form of a tree against the branched one, with the same weights."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import MSDNet, ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.fused import FusedGroupedLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((6, 8, 2), ("ant", "bee", "cow"), mean=(120.0, 60.0), std=(70.0, 40.0))
BATCH = np.random.default_rng(5).integers(0, 256, (5, *IMAGES.shape), np.uint8)

# Blocks two and three change no shape, so that a shortcut crosses a branch point.
RESNETS = {
    unit: ResNet(unit, (4, 6, 6), (1, 2, 1), (1, 2, 1), stem_width=3)
    for unit in ("basic", "bottleneck")
}
MSDNETS = MSDNet((1, 2), growth=2, scale_factors=(1, 2), bottlenecks=(0, 1), stem_width=2)
TREES = [Tree(branching) for branching in ((4, 1, 1), (1, 1, 3), (1, 2, 2), (2, 1, 2))]
CASES = [
    *((RESNETS["basic"], tree) for tree in TREES),
    (RESNETS["bottleneck"], Tree((2, 1, 2))),
    (RESNETS["basic"], Exits(3)),
    (MSDNETS, Exits(2)),
    # Concatenations of what parents and nodes give.
    (MSDNETS, Tree((1, 2))),
]


def pair(architecture, tree, layers=None, decay=0.1, **options):
    """The branched and the grouped form with the same weights, none of them idle."""
    branched = TreeEnsemble(architecture, tree, IMAGES, TrainingLayers(decay, 0.75, **options))
    layers = layers or GroupedLayers(decay, 0.75, split=True, **options)
    grouped = GroupedEnsemble(architecture, tree, IMAGES, layers)
    random = np.random.default_rng(0)
    values = {name: random.uniform(0.2, 1, v.shape) for name, v in weights.read(branched).items()}
    # Of both signs, so that activations have something to cut.
    values |= {
        name: random.normal(0, 0.4, value.shape)
        for name, value in values.items()
        if name.endswith(("kernel", "beta"))
    }
    for model in (branched, grouped):
        weights.load(model, values)
    return branched, grouped


def trained(model):
    """Leaf logits in training mode, and gradients by canonical name."""
    factors = np.random.default_rng(1).normal(0, 1, (len(BATCH), model.tree.leaves, 3))
    with tf.GradientTape() as tape:
        logits = model(BATCH, training=True)
        loss = tf.reduce_mean(logits * factors) + sum(model.losses)
    parts = [(names, variable) for names, variable in weights.parts(model) if variable.trainable]
    found = tape.gradient(loss, [variable.value for _, variable in parts])
    gradients = {}
    for (names, _), gradient in zip(parts, found, strict=True):
        gradients |= weights.split(np.asarray(gradient), names)
    return logits, gradients


def assert_same(branched, grouped):
    """Compares outputs, gradients and moving statistics within 1e-4."""

    def assert_close(got, expected, name=""):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=name)

    leaf_logits = branched(BATCH, training=False)
    assert np.abs(leaf_logits).max() > 0.1
    assert_close(grouped(BATCH, training=False), leaf_logits)
    before = weights.read(branched)
    (logits, gradients), (expected_logits, expected) = trained(grouped), trained(branched)
    assert_close(logits, expected_logits)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], name)
    after = weights.read(branched)
    for name, value in weights.read(grouped).items():
        assert_close(value, after[name], name)
        assert ("moving" in name) == (np.abs(value - before[name]).max() > 1e-6), name


@pytest.mark.parametrize(("architecture", "tree"), CASES, ids=lambda value: str(value)[:60])
def test_outputs_gradients_and_statistics_equal_the_branched_form(architecture, tree):
    assert_same(*pair(architecture, tree))


def test_grouped_convolutions_and_fused_norms_change_nothing():
    layers = FusedGroupedLayers(0.1, 0.75, split=False)
    assert_same(*pair(RESNETS["basic"], Tree((1, 2, 2)), layers))


@pytest.mark.parametrize(
    ("architecture", "tree"),
    [(RESNETS["basic"], Tree((1, 2, 3))), (RESNETS["basic"], Exits(3)), (MSDNETS, Exits(2))],
    ids=lambda value: str(value)[:60],
)
def test_mean_gradients_are_those_of_each_leaf_alone_averaged(architecture, tree):
    """A node's gradient is the sum's over the number of leaves below, in both forms."""
    summed = pair(architecture, tree, decay=0.0)
    averaged = pair(architecture, tree, decay=0.0, branch_gradients="mean")
    for plain, scaled in zip(summed, averaged, strict=True):
        np.testing.assert_array_equal(scaled(BATCH, training=False), plain(BATCH, training=False))
    _, gradients = trained(summed[0])
    paths = [tree.path(leaf) for leaf in range(tree.leaves)]
    for scaled in averaged:
        _, found = trained(scaled)
        assert found.keys() == gradients.keys()
        for name, gradient in found.items():
            block, node = map(int, re.match(r"block(\d+)/node(\d+)/", name).groups())
            below = sum(path[block : block + 1] == (node,) for path in paths)
            expected = gradients[name] / below
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert averaged[1].branched().factory.branch_gradients == "mean"


def test_a_block_is_one_network_and_a_weight_holds_its_nodes():
    _, grouped = pair(RESNETS["bottleneck"], Tree((1, 2, 2)))
    assert [len(places) for places, _ in grouped.networks] == [1, 2, 4]
    depthwise = {names: v.shape for names, v in weights.parts(grouped) if "depthwise" in names[0]}
    names = tuple(f"block2/node{node}/unit0/conv2/depthwise_kernel" for node in range(4))
    assert depthwise[names] == (4 * 3, 3, 3, 1)


def test_exits_are_computed_apart_from_what_goes_on():
    _, grouped = pair(RESNETS["basic"], Exits(3))
    assert [places for places, _ in grouped.networks] == [
        ((0, 0),),
        ((1, 0),),
        ((1, 1),),
        ((2, 0),),
        ((2, 1),),
        ((3, 0),),
    ]


def test_weights_of_other_shapes_are_refused_and_nothing_is_set():
    _, grouped = pair(RESNETS["basic"], Tree((1, 2, 2)))
    before = weights.read(grouped)
    kernel = "block2/node3/unit0/conv1/kernel"
    spoilt = {name: value + 1 for name, value in before.items()} | {kernel: before[kernel][:1]}
    with pytest.raises(InputError, match=rf"{kernel} must have shape \(3, 3, 6, 6\), got \(1, "):
        weights.load(grouped, spoilt)
    for name, value in weights.read(grouped).items():
        np.testing.assert_array_equal(value, before[name])


def test_keras_files_and_checkpoints_keep_the_model(tmp_path):
    _, grouped = pair(RESNETS["bottleneck"], Tree((1, 2, 2)), FusedGroupedLayers(split=True))
    grouped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, GroupedEnsemble)
    assert loaded.get_config() == grouped.get_config()
    assert loaded.factory == grouped.factory
    expected = grouped(BATCH, training=False)
    np.testing.assert_allclose(loaded(BATCH, training=False), expected, atol=1e-6)
    path = tf.train.Checkpoint(model=grouped).write(str(tmp_path / "checkpoint"))
    other = GroupedEnsemble.from_config(grouped.get_config())
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    np.testing.assert_allclose(other(BATCH, training=False), expected, atol=1e-6)


def test_tree_and_architecture_must_have_as_many_blocks():
    with pytest.raises(InputError, match="each of the 3 blocks, got"):
        GroupedEnsemble(RESNETS["basic"], Tree((1, 2)), IMAGES, GroupedLayers())
