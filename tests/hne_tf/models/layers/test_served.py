"""The served factory against the deploy factory, on the same weights and images."""

import numpy as np
import pytest

from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.served import ServedLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 8, 1), ("ant", "bee"), (128.0,), (64.0,))


def build(layers, unit="basic"):
    resnet = ResNet(unit, (4, 4, 6), (1, 1, 1), (1, 1, 2), stem_width=4)
    return TreeEnsemble(resnet, Tree((1, 2, 2)), IMAGES, layers)


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_the_answers_are_the_same(unit):
    deployed, served = build(DeployLayers(), unit), build(ServedLayers(), unit)
    rng = np.random.default_rng(0)
    shapes = {name: value.shape for name, value in weights.read(deployed).items()}
    values = {name: rng.normal(0, 0.2, shape) for name, shape in shapes.items()}
    weights.load(deployed, values)
    weights.load(served, values)
    images = rng.integers(0, 256, (3, *IMAGES.shape), np.uint8)
    np.testing.assert_allclose(served(images).numpy(), deployed(images).numpy(), atol=1e-5)


def test_a_model_comes_back_from_its_settings():
    model = build(ServedLayers())
    copy = TreeEnsemble.from_config(model.get_config())
    assert copy.factory == ServedLayers()
    assert weights.read(copy).keys() == weights.read(model).keys()
