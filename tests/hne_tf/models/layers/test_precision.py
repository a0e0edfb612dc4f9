"""Training factories in bfloat16 against the same in float32."""

import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.fused import FusedGroupedLayers, FusedTrainingLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 8, 3), ("ant", "bee"), (128.0,) * 3, (64.0,) * 3)
BATCH = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)

every_factory = pytest.mark.parametrize(
    "factory", [TrainingLayers, FusedTrainingLayers, GroupedLayers, FusedGroupedLayers]
)


def build(factory, precision):
    resnet = ResNet("bottleneck", (4, 6), (1, 1), (1, 2), stem_width=4)
    ensemble = GroupedEnsemble if issubclass(factory, GroupedLayers) else TreeEnsemble
    return ensemble(resnet, Tree((1, 2)), IMAGES, factory(precision=precision))


@every_factory
def test_blocks_compute_in_bfloat16_with_float32_weights_and_logits(factory):
    rounded, exact = build(factory, "bfloat16"), build(factory, "float32")
    (_, trunk), *leaves = rounded.networks
    assert trunk.output.dtype == "bfloat16"
    assert {network.output.dtype for _, network in leaves} == {"float32"}
    assert {weight.dtype for weight in rounded.weights} == {"float32"}
    random = np.random.default_rng(0)
    values = {name: random.uniform(0.2, 1, v.shape) for name, v in weights.read(exact).items()}
    for model in (rounded, exact):
        weights.load(model, values)
    for training in (False, True):
        got, expected = (model(BATCH, training=training) for model in (rounded, exact))
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        difference = np.abs(got - expected).max() / np.abs(expected).max()
        assert 1e-5 < difference < 0.03


def test_unknown_precisions_are_refused():
    with pytest.raises(InputError, match="precision must be one of float32, bfloat16, got 'half'"):
        TrainingLayers(precision="half")
