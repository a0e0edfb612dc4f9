"""The models that every conformance check runs on; a new architecture is one more entry."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import MobileNetV2, MSDNet, ResNet
from hne_tf.models.ensemble import Architecture, TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.factory import LayerFactory
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Paths, Tree

IMAGES = ImageSpec((8, 8, 3), ("ant", "bee", "cow"), (120.0, 110.0, 100.0), (70.0, 60.0, 50.0))

BASIC = ResNet("basic", (4, 6, 8), (1, 1, 1), (1, 2, 1), stem_width=3)
BOTTLENECK = ResNet("bottleneck", (4, 6), (1, 1), (1, 2), stem_width=3)
# Two scales between its blocks, and one in the end.
DENSE = MSDNet((1, 2), 2, (1, 2), (2, 1), stem_width=3, reduction=0.5, head_width=4)

# Each architecture with a tree, splits in different places, and how it answers.
ARCHITECTURES = {
    "resnet_basic": (BASIC, Tree((1, 3, 1)), "probabilities"),
    "resnet_bottleneck": (BOTTLENECK, Tree((2, 1)), "cached_sum"),
    "multi_exit": (BASIC, Exits(3), "cached_last"),
    "msdnet": (DENSE, Exits(2), "last"),
    # As small as it gets; where widths are equal, units add their input.
    "mobilenet_v2": (
        MobileNetV2(0.1, (1,) * 7, (1, 2, 1, 1, 1, 2, 1), stem_stride=1),
        Tree((1, 1, 2, 1)),
        "product",
    ),
}
FACTORIES = {"training": TrainingLayers(), "deploy": DeployLayers()}


@dataclasses.dataclass(frozen=True)
class Case:
    """One model under test, and how to build it again."""

    architecture: Architecture
    tree: Paths
    average: str
    layers: LayerFactory

    def build(self, layers: LayerFactory | None = None) -> TreeEnsemble | GroupedEnsemble:
        """The model with fresh weights, by another factory if one is given."""
        layers = layers or self.layers
        form = GroupedEnsemble if isinstance(layers, GroupedLayers) else TreeEnsemble
        return form(self.architecture, self.tree, IMAGES, layers, self.average)


CASES = {
    f"{name}-{factory}": Case(*described, layers)
    for name, described in ARCHITECTURES.items()
    for factory, layers in FACTORIES.items()
}
# Those that are also trained, on one device and on two.
TRAINED_CASES = {
    name: Case(*described, TrainingLayers(synchronized=True))
    for name, described in ARCHITECTURES.items()
}
TRAINED_CASES["grouped"] = dataclasses.replace(
    TRAINED_CASES["resnet_basic"], layers=GroupedLayers(synchronized=True, split=True)
)


@pytest.fixture(params=TRAINED_CASES.values(), ids=TRAINED_CASES)
def trained_case(request):
    return request.param


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def pytest_collection_modifyitems(items):
    """Leaves out cases of another factory where a test asks for `deployed_model`."""
    items[:] = [item for item in items if not _is_of_another_factory(item)]


def _is_of_another_factory(item):
    if "deployed_model" not in getattr(item, "fixturenames", ()):
        return False
    return not isinstance(item.callspec.params["case"].layers, DeployLayers)


def randomised(case):
    """The case's model with every weight moved, so that none is idle."""
    keras.utils.set_random_seed(0)
    model = case.build()
    rng = np.random.default_rng(0)
    values = weights.read(model).items()
    weights.load(model, {name: value + noise(rng, value.shape) for name, value in values})
    return model


def noise(rng, shape):
    """Less of it for classifiers with many inputs, whose answers would be certain at once."""
    inputs = shape[0] if len(shape) == 2 else 1
    return rng.normal(0, min(0.2, 20 / inputs), shape)


@pytest.fixture(scope="module")
def model(case):
    """A model that no test changes."""
    return randomised(case)


@pytest.fixture(scope="module")
def deployed_model(model):
    """A model of the deploy factory, the form that is exported."""
    return model


@pytest.fixture(scope="module")
def average(case):
    """How the model answers."""
    return case.average


@pytest.fixture(scope="module")
def numpy_answer(average):
    """Gives logits, probabilities and running sum of a size from leaf logits, in NumPy."""

    def answer(leaf_logits, size):
        plain = average.removeprefix("cached_")
        first = leaf_logits[:, :size].astype(np.float64)
        if plain == "probabilities":
            contributions = special.softmax(first, axis=-1)
            probabilities = contributions.mean(axis=1)
            logits = np.log(probabilities)
        else:
            contributions = first[:, -1:] if plain == "last" else first
            if plain == "product":
                contributions = np.log(np.maximum(first, 1e-3))
            together = np.sum if plain in ("sum", "product") else np.mean
            logits = together(contributions, axis=1)
            probabilities = special.softmax(logits, axis=-1)
        running_sum = contributions.sum(axis=1)
        if plain != average:
            if size > 1:
                before = answer(leaf_logits, size - 1)
                surer = probabilities.max(axis=-1) >= before["probabilities"].max(axis=-1)
                logits = np.where(surer[:, None], logits, before["logits"])
                probabilities = special.softmax(logits, axis=-1)
            running_sum = np.concatenate([running_sum, logits], axis=1)
        return {"logits": logits, "probabilities": probabilities, "running_sum": running_sum}

    return answer


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


@pytest.fixture(scope="session")
def kernels():
    """Operations with kernels, whose multiply-adds are counted."""
    return {"Conv2D", "DepthwiseConv2dNative", "MatMul"}


@pytest.fixture(scope="session")
def float_operations():
    """Gives what TensorFlow's profiler finds in a graph, by type of operation."""

    def found_in(graph):
        builder = tf.compat.v1.profiler.ProfileOptionBuilder
        options = builder(builder.float_operation()).with_empty_output().build()
        nodes = [tf.compat.v1.profiler.profile(graph, cmd="op", options=options)]
        found = {}
        while nodes:
            node = nodes.pop()
            nodes.extend(node.children)
            if node.float_ops:
                found[node.name] = node.float_ops
        return found

    return found_in
