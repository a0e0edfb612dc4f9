import re

import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.models.architectures import ResNet
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers

CLASSES = 7
UNITS = ("bottleneck", "basic")


def block_models(resnet, shape, layers=None):
    """The network's blocks, each a model of its own, fed by the one before."""
    models = []
    for block in range(resnet.blocks):
        x, layers = keras.Input(shape), layers or DeployLayers()
        y = resnet.block(layers, block, x)
        if block == resnet.blocks - 1:
            y = resnet.head(layers, y, CLASSES)
        models.append(keras.Model(x, y))
        shape = models[-1].output.shape[1:]
    return models


def kernels(model):
    """Shape of each kernel by layer name."""
    return {
        layer.name: tuple(layer.kernel.shape) for layer in model.layers if hasattr(layer, "kernel")
    }


@pytest.mark.parametrize(
    ("preset", "shapes"),
    [
        ("small", [(32, 32, 16), (16, 16, 32), (8, 8, 64), (8, 8, 64), (CLASSES,)]),
        ("large", [(32, 32, 32), (16, 16, 64), (8, 8, 128), (8, 8, 128), (CLASSES,)]),
    ],
)
def test_presets_halve_the_picture_twice_and_end_in_logits(preset, shapes):
    models = block_models(ResNet.presets[preset], (32, 32, 3))
    assert [model.output.shape[1:] for model in models] == shapes


@pytest.mark.parametrize(("preset", "stem_width"), [("small", 16), ("large", 32)])
def test_presets_have_three_bottleneck_units_per_block(preset, stem_width):
    resnet = ResNet.presets[preset]
    assert (resnet.blocks, resnet.unit, resnet.stem_width) == (5, "bottleneck", stem_width)
    models = block_models(resnet, (32, 32, 3))
    assert kernels(models[0])["stem"] == (3, 3, 3, stem_width)
    for model in models:
        units = {name.split(".")[0] for name in kernels(model)} - {"stem", "head"}
        assert units == {"unit0", "unit1", "unit2"}


def test_bottleneck_is_half_as_wide_and_depthwise_in_the_middle():
    first, second = block_models(
        ResNet("bottleneck", (8, 12), (2, 1), (1, 2), stem_width=6), (8, 8, 3)
    )
    assert kernels(first) == {
        "stem": (3, 3, 3, 6),
        "unit0.conv1": (1, 1, 6, 4),
        "unit0.conv2": (3, 3, 4, 1),
        "unit0.conv3": (1, 1, 4, 8),
        "unit0.shortcut": (1, 1, 6, 8),
        "unit1.conv1": (1, 1, 8, 4),
        "unit1.conv2": (3, 3, 4, 1),
        "unit1.conv3": (1, 1, 4, 8),
    }
    assert kernels(second) == {
        "unit0.conv1": (1, 1, 8, 6),
        "unit0.conv2": (3, 3, 6, 1),
        "unit0.conv3": (1, 1, 6, 12),
        "unit0.shortcut": (1, 1, 8, 12),
        "head": (12, CLASSES),
    }
    assert isinstance(first.get_layer("unit0.conv2"), keras.layers.DepthwiseConv2D)
    # The picture shrinks in the 3x3, so that the 1x1 before it drops no pixel.
    strided = [
        name for name in kernels(second) if getattr(second.get_layer(name), "strides", 0) == (2, 2)
    ]
    assert sorted(strided) == ["unit0.conv2", "unit0.shortcut"]


def test_basic_unit_is_two_full_convolutions():
    first, second = block_models(ResNet("basic", (4, 4), (2, 1), (1, 2), stem_width=4), (8, 8, 3))
    assert kernels(first) == {
        "stem": (3, 3, 3, 4),
        "unit0.conv1": (3, 3, 4, 4),
        "unit0.conv2": (3, 3, 4, 4),
        "unit1.conv1": (3, 3, 4, 4),
        "unit1.conv2": (3, 3, 4, 4),
    }
    # Equal widths, but a stride: the shortcut needs its own convolution.
    assert kernels(second) == {
        "unit0.conv1": (3, 3, 4, 4),
        "unit0.conv2": (3, 3, 4, 4),
        "unit0.shortcut": (1, 1, 4, 4),
        "head": (4, CLASSES),
    }


def test_a_width_of_one_has_a_middle_of_one():
    (model,) = block_models(ResNet("bottleneck", (1,), (1,), (1,)), (4, 4, 3))
    assert kernels(model)["unit0.conv1"] == (1, 1, 16, 1)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_only_the_first_unit_of_a_block_strides(unit, stride):
    resnet = ResNet(unit, (4, 4, 4), (1, 3, 1), (1, stride, 1), stem_width=4)
    shapes = [model.output.shape[1:] for model in block_models(resnet, (9, 9, 3))]
    side = -(-9 // stride)
    assert shapes == [(9, 9, 4), (side, side, 4), (CLASSES,)]


def test_parameters_of_a_small_network_counted_by_hand():
    resnet = ResNet("basic", (4, 6), (1, 1), (1, 2), stem_width=3)
    first = (9 * 2 * 3 + 3) + (9 * 3 * 4 + 4) + (9 * 4 * 4 + 4) + (3 * 4 + 4)
    second = (9 * 4 * 6 + 6) + (9 * 6 * 6 + 6) + (4 * 6 + 6) + (6 * CLASSES + CLASSES)
    models = block_models(resnet, (8, 8, 2))
    assert [model.count_params() for model in models] == [first, second]


@pytest.mark.parametrize("unit", UNITS)
def test_a_fresh_unit_is_the_identity_behind_its_shortcut(unit):
    """The last norm of a unit starts with gamma zero."""
    resnet = ResNet(unit, (4, 4, 4), (1, 2, 1), (1, 1, 1), stem_width=4)
    model = block_models(resnet, (6, 6, 3), TrainingLayers())[1]
    activation = np.random.default_rng(0).uniform(0, 3, (2, 6, 6, 4)).astype(np.float32)
    np.testing.assert_array_equal(model(activation, training=False), activation)
    for norm in (
        model.get_layer(f"unit{index}.conv{2 if unit == 'basic' else 3}.norm") for index in (0, 1)
    ):
        norm.gamma.assign(np.ones(4))
    assert np.abs(model(activation, training=False) - activation).max() > 0.1


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_ends_in_relu(unit):
    (first, _) = block_models(ResNet(unit, (4, 4), (1, 1), (1, 1), stem_width=3), (6, 6, 3))
    images = np.random.default_rng(0).normal(0, 1, (2, 6, 6, 3)).astype(np.float32)
    sums = np.asarray(keras.Model(first.input, first.get_layer("unit0.add").output)(images))
    assert sums.min() < -0.01
    np.testing.assert_array_equal(first(images), np.maximum(sums, 0))


def test_lists_become_tuples():
    assert ResNet("basic", [4], [1], [1]) == ResNet("basic", (4,), (1,), (1,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "wide"}, "unit must be one of bottleneck, basic, got 'wide'"),
        ({"widths": (4,)}, "one entry per block, got (4,), (1, 1) and (1, 2)"),
        ({"units": (1, 1, 1)}, "one entry per block, got (4, 8), (1, 1, 1) and (1, 2)"),
        ({"strides": ()}, "strides must be positive integers, got ()"),
        ({"widths": (), "units": (), "strides": ()}, "widths must be positive integers, got ()"),
        ({"widths": (4, 0)}, "widths must be positive integers, got (4, 0)"),
        ({"widths": (4, 8.0)}, "widths must be positive integers, got (4, 8.0)"),
        ({"units": (1, -1)}, "units must be positive integers, got (1, -1)"),
        ({"strides": (1, "2")}, "strides must be positive integers, got (1, '2')"),
        ({"stem_width": 0}, "stem_width must be a positive integer, got 0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    sound = {"unit": "basic", "widths": (4, 8), "units": (1, 1), "strides": (1, 2)}
    with pytest.raises(InputError, match=re.escape(message)):
        ResNet(**{**sound, **settings})


@pytest.mark.parametrize(
    "settings", [{"widths": 4}, {"widths": (True,)}, {"units": ()}, {"stem_width": 2.5}]
)
def test_settings_must_be_whole_and_positive(settings):
    good = {"unit": "basic", "widths": (4,), "units": (1,), "strides": (1,)}
    with pytest.raises(InputError, match=f"{next(iter(settings))} must be"):
        ResNet(**{**good, **settings})
