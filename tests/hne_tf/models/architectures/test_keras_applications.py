import re

import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import MobileNetV2, ResNet
from hne_tf.models.architectures.keras_applications import load_keras_applications
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

pytestmark = pytest.mark.slow

MULTIPLIER = 0.35
SINGLE, SPLIT = (1, 1, 1, 1), (1, 2, 1, 2)


def build(branching, side=32, layers=None, architecture=None, mean=127.5, classes="abcde"):
    images = ImageSpec((side, side, 3), tuple(classes), (mean,) * 3, (127.5,) * 3)
    network = architecture or MobileNetV2(MULTIPLIER)
    return TreeEnsemble(network, Tree(branching), images, layers or TrainingLayers())


def keras_network(side=32, multiplier=MULTIPLIER, **options):
    """Their network with every weight moved, and with averages that fit some pictures."""
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNetV2(
        (side, side, 3),
        multiplier,
        weights=None,
        **{"classes": 5, "classifier_activation": None, **options},
    )
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.5, layer.beta.shape))
            # Random averages would let no picture through to the end.
            layer.momentum = 0.0
    network(normalised(random_images(side, batch=32)), training=True)
    return network


def random_images(side=32, batch=4):
    return np.random.default_rng(1).integers(0, 256, (batch, side, side, 3), np.uint8)


def normalised(images):
    return keras.applications.mobilenet_v2.preprocess_input(images.astype(np.float32))


@pytest.fixture(scope="module")
def theirs():
    return keras_network()


# Odd sizes, of the picture and on the way, are padded on both sides.
@pytest.mark.parametrize(("multiplier", "side"), [(1.0, 32), (MULTIPLIER, 41)])
def test_a_single_network_answers_as_theirs(multiplier, side):
    theirs, images = keras_network(side, multiplier), random_images(side)
    ours = build(SINGLE, side, architecture=MobileNetV2(multiplier))
    load_keras_applications(ours, theirs)
    expected = theirs(normalised(images), training=False)
    np.testing.assert_allclose(ours(images)[:, 0], expected, rtol=1e-4, atol=1e-4)
    # Pictures matter, far more than the tolerance.
    assert np.ptp(expected, axis=0).min() > 0.05


def test_every_leaf_of_a_tree_starts_from_the_same_network(theirs):
    images = random_images()
    ours = build(SPLIT)
    load_keras_applications(ours, theirs)
    expected = np.repeat(np.asarray(theirs(normalised(images)))[:, None], 4, axis=1)
    np.testing.assert_allclose(ours(images), expected, rtol=1e-4, atol=1e-4)


def test_without_a_top_the_leaves_keep_their_classifiers():
    theirs = keras_network(include_top=False)
    ours = build(SPLIT)
    before = weights.read(ours)
    load_keras_applications(ours, theirs)
    after = weights.read(ours)
    heads = {name for name in before if "/head/" in name}
    assert len(heads) == 8
    for name in heads:
        np.testing.assert_array_equal(after[name], before[name])
    for block, nodes in enumerate((1, 2, 2, 4)):
        for node in range(1, nodes):
            first = f"block{block}/node0/"
            names = [n for n in after if n.startswith(first) and n not in heads]
            for name in names:
                other = name.replace("node0", f"node{node}")
                np.testing.assert_array_equal(after[name], after[other])
    assert np.ptp(np.asarray(ours(random_images())), axis=1).max() > 1e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": 120.0}, "normalised with mean and std 127.5, got mean (120.0, 120.0, 120.0)"),
        ({"layers": DeployLayers()}, "weights must have the model's names"),
        ({"architecture": MobileNetV2(0.5)}, "block0/node0/stage1/unit0/project/kernel must"),
        ({"classes": "abcd"}, "block3/node0/head/kernel must have shape (1280, 4), got (1280, 5)"),
        (
            {"architecture": MobileNetV2(MULTIPLIER, (1, 2, 3, 4, 3, 3, 2))},
            "differ, first block3/node0/stage6/unit1/",
        ),
        (
            {"architecture": ResNet("basic", (4,) * 4, (1,) * 4, (1,) * 4)},
            "the tree must be of MobileNetV2, got ResNet(",
        ),
    ],
)
def test_other_models_are_refused_and_nothing_is_set(theirs, settings, message):
    ours = build(SINGLE, **settings)
    before = weights.read(ours)
    with pytest.raises(InputError, match=re.escape(message)):
        load_keras_applications(ours, theirs)
    for name, value in weights.read(ours).items():
        np.testing.assert_array_equal(value, before[name])
