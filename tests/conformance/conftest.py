"""The models that every conformance check runs on; a new architecture is one more entry."""

import dataclasses

import keras
import numpy as np
import pytest

from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers import DeployLayers, LayerFactory, TrainingLayers
from hne_tf.models.resnet import ResNet
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 8, 3), ("ant", "bee", "cow"), (120.0, 110.0, 100.0), (70.0, 60.0, 50.0))

# Each architecture with the trees that it is checked on, splits in different
# places; the first tree is also trained on two devices.
ARCHITECTURES = {
    "resnet_basic": (
        ResNet("basic", (4, 6, 8), (1, 1, 1), (1, 2, 1), stem_width=3),
        [(1, 1, 2), (1, 2, 3)],
    ),
    "resnet_bottleneck": (
        ResNet("bottleneck", (4, 6, 8), (1, 2, 1), (1, 2, 1), stem_width=3),
        [(1, 2, 1), (2, 1, 2)],
    ),
}
FACTORIES = {"training": TrainingLayers(), "deploy": DeployLayers()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model under test, and how to build it again."""

    architecture: ResNet
    branching: tuple[int, ...]
    layers: LayerFactory

    def build(self, layers: LayerFactory | None = None) -> TreeEnsemble:
        """The model with fresh weights, by another factory if one is given."""
        return TreeEnsemble(self.architecture, Tree(self.branching), layers or self.layers, IMAGES)


CASES = {
    f"{name}-{'x'.join(map(str, branching))}-{factory}": Case(architecture, branching, layers)
    for name, (architecture, branchings) in ARCHITECTURES.items()
    for branching in branchings
    for factory, layers in FACTORIES.items()
}


TRAINED_CASES = {
    # Synchronized norms make two replicas comparable with the whole batch.
    name: Case(architecture, branchings[0], TrainingLayers(synchronized=True))
    for name, (architecture, branchings) in ARCHITECTURES.items()
}


@pytest.fixture(params=TRAINED_CASES.values(), ids=TRAINED_CASES)
def trained_case(request):
    return request.param


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def randomised(case):
    """The case's model with every weight moved, so that none is idle."""
    keras.utils.set_random_seed(0)
    model = case.build()
    rng = np.random.default_rng(0)
    values = weights.read(model).items()
    weights.load(model, {name: value + rng.normal(0, 0.2, value.shape) for name, value in values})
    return model


@pytest.fixture(scope="module")
def model(case):
    """A model that no test changes."""
    return randomised(case)


@pytest.fixture
def trained_model(trained_case):
    """A model that its test trains."""
    return randomised(trained_case)


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(5).integers(0, 256, (4, *IMAGES.shape), np.uint8)


@pytest.fixture(scope="module")
def leaf_logits(model, images):
    """The live model's answer, whose leaves differ."""
    logits = keras.ops.convert_to_numpy(model(images, training=False))
    assert logits.shape == (len(images), model.tree.leaves, len(IMAGES.class_names))
    assert np.ptp(logits, axis=1).max() > 1e-2
    return logits
