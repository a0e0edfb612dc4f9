import re

import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import MobileNetV2
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

CLASSES = 7
ONES = (1,) * 7


def block_models(network, shape, layers=None):
    """The network's blocks, each a model of its own, fed by the one before."""
    models = []
    for block in range(network.blocks):
        x = keras.Input(shape)
        layers = layers or DeployLayers()
        y = network.block(layers, block, x)
        if block == network.blocks - 1:
            y = network.head(layers, y, CLASSES)
        models.append(keras.Model(x, y))
        shape = models[-1].output.shape[1:]
    return models


def kernels(model):
    """Shape of each kernel by layer name."""
    return {
        layer.name: tuple(layer.kernel.shape) for layer in model.layers if hasattr(layer, "kernel")
    }


def convolutions(models):
    """Shapes of kernels and outputs of all convolutions, in order."""
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    return [
        (type(layer), tuple(layer.kernel.shape), layer.output.shape)
        for model in models
        for layer in model.layers
        if isinstance(layer, kinds)
    ]


def test_a_single_network_is_mobilenet_v2():
    images = ImageSpec((224, 224, 3), tuple(map(str, range(1000))), (127.5,) * 3, (127.5,) * 3)
    tree = TreeEnsemble(MobileNetV2(), Tree((1, 1, 1, 1)), images, TrainingLayers())
    theirs = keras.applications.MobileNetV2(weights=None)
    assert tree.count_params() == theirs.count_params() == 3_538_984
    trainable = sum(np.prod(weight.shape) for weight in tree.trainable_weights)
    assert trainable == 3_504_872
    assert convolutions(row[0] for row in tree.node_models) == convolutions([theirs])
    assert [w.shape for w in tree.weights] == [w.shape for w in theirs.weights]


@pytest.mark.parametrize("multiplier", [0.35, 1.4])
def test_widths_are_those_of_keras_applications(multiplier):
    ours = block_models(MobileNetV2(multiplier), (32, 32, 3), TrainingLayers())
    theirs = keras.applications.MobileNetV2((32, 32, 3), multiplier, weights=None)
    assert convolutions(ours) == convolutions([theirs])


def test_the_tree_splits_after_stages_32_64_and_96():
    models = block_models(MobileNetV2.presets["large"], (64, 64, 3))
    shapes = [model.output.shape[1:] for model in models]
    assert shapes == [(8, 8, 32), (4, 4, 64), (4, 4, 96), (CLASSES,)]
    stages = [
        sorted({name.split(".")[0] for name in kernels(model) if "." in name}) for model in models
    ]
    assert stages == [["stage0", "stage1", "stage2"], ["stage3"], ["stage4"], ["stage5", "stage6"]]
    assert kernels(models[0])["stem"] == (3, 3, 3, 32)
    assert kernels(models[3])["last"] == (1, 1, 320, 1280)
    assert kernels(models[3])["head"] == (1280, CLASSES)


def test_small_is_half_as_wide_as_large():
    small, large = (
        block_models(MobileNetV2.presets[preset], (32, 32, 3)) for preset in ("small", "large")
    )
    for narrow, wide in zip(small[:3], large[:3], strict=True):
        assert 2 * narrow.output.shape[-1] == wide.output.shape[-1]
    assert kernels(small[3])["last"] == (1, 1, 160, 1280)


def test_units_invert_the_bottleneck_and_add_their_input_where_it_fits():
    network = MobileNetV2(units=(2, 2, 1, 1, 1, 1, 1), strides=ONES, stem_stride=1)
    first, *_ = block_models(network, (8, 8, 3))
    assert kernels(first) == {
        "stem": (3, 3, 3, 32),
        "stage0.unit0.depthwise": (3, 3, 32, 1),
        "stage0.unit0.project": (1, 1, 32, 16),
        "stage0.unit1.depthwise": (3, 3, 16, 1),
        "stage0.unit1.project": (1, 1, 16, 16),
        "stage1.unit0.expand": (1, 1, 16, 96),
        "stage1.unit0.depthwise": (3, 3, 96, 1),
        "stage1.unit0.project": (1, 1, 96, 24),
        "stage1.unit1.expand": (1, 1, 24, 144),
        "stage1.unit1.depthwise": (3, 3, 144, 1),
        "stage1.unit1.project": (1, 1, 144, 24),
        "stage2.unit0.expand": (1, 1, 24, 144),
        "stage2.unit0.depthwise": (3, 3, 144, 1),
        "stage2.unit0.project": (1, 1, 144, 32),
    }
    adds = [layer.name for layer in first.layers if isinstance(layer, keras.layers.Add)]
    assert adds == ["stage0.unit1.add", "stage1.unit1.add"]


def test_units_that_stride_add_nothing():
    network = MobileNetV2(0.1, strides=(1, 1, 2, 2, 1, 1, 1))
    # All of 8 channels, so that only the stride is in the way.
    for block in block_models(network, (16, 16, 3))[:2]:
        adds = {layer.name for layer in block.layers if isinstance(layer, keras.layers.Add)}
        assert adds.isdisjoint({"stage2.unit0.add", "stage3.unit0.add"})
        assert block.output.shape[-1] == 8


def test_strides_are_those_of_the_first_units():
    sides = {}
    for settings in ({}, {"stem_stride": 1, "strides": (1, 1, 3, 1, 2, 1, 1)}):
        models = block_models(MobileNetV2(0.1, **settings), (24, 24, 3))
        for model in models:
            for layer in model.layers:
                if layer.name in ("stem", "last") or layer.name.endswith("project"):
                    sides.setdefault(layer.name, []).append(layer.output.shape[1])
    assert sides["stem"] == [12, 24]
    first = [sides[f"stage{stage}.unit0.project"] for stage in range(7)]
    assert first == [[12, 24], [6, 24], [3, 8], [2, 8], [2, 4], [1, 4], [1, 4]]
    assert sides["stage3.unit3.project"] == [2, 8]
    assert sides["last"] == [1, 4]


def test_activations_end_at_6_and_projections_have_none():
    first, *_ = block_models(MobileNetV2(), (16, 16, 3))
    images = np.random.default_rng(0).normal(0, 300, (2, 16, 16, 3)).astype(np.float32)

    def values(name):
        return np.asarray(keras.Model(first.input, first.get_layer(name).output)(images))

    for name in ("stem", "stage0.unit0.depthwise", "stage1.unit0.expand"):
        assert values(name).min() == 0
        assert values(name).max() <= 6
    assert values("stem").max() == 6
    assert values("stage0.unit0.project").min() < 0


def test_lists_become_tuples():
    assert MobileNetV2(units=list(ONES), strides=list(ONES)) == MobileNetV2(1.0, ONES, ONES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width_multiplier": 0.0}, "width_multiplier must be a positive number, got 0.0"),
        ({"width_multiplier": float("nan")}, "must be a positive number, got nan"),
        ({"width_multiplier": float("inf")}, "must be a positive number, got inf"),
        ({"width_multiplier": "1"}, "must be a positive number, got 1"),
        ({"width_multiplier": True}, "must be a positive number, got True"),
        ({"units": (1, 2)}, "units must have one entry for each of 7 stages, got (1, 2)"),
        ({"strides": (1,) * 8}, "strides must have one entry for each of 7 stages"),
        ({"units": (0, *ONES[1:])}, "units must be positive integers, got (0, 1,"),
        ({"stem_stride": 0}, "stem_stride must be a positive integer, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        MobileNetV2(**settings)
