import keras
import numpy as np
import pytest

from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.factory import Convolution
from hne_tf.models.layers.quantized import (
    QuantizedLayers,
    quantize,
    quantize_depthwise_kernel,
    quantize_kernel,
)
from hne_tf.tree import Tree

LAYERS = QuantizedLayers()


def rounded_kernel(kernel):
    """NumPy's rounding to -127..127 steps per output channel, the last axis."""
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    return np.round(kernel / step) * step


def rounded(x, minimum, maximum):
    """NumPy's rounding to 256 levels of which 0 is one."""
    step = (maximum - minimum) / 255
    zero = np.round(-minimum / step)
    return (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def model_of(build, *shapes, layers=LAYERS):
    inputs = [keras.Input(shape) for shape in shapes]
    return keras.Model(inputs, build(layers, *inputs))


def set_range(model, name, minimum, maximum):
    layer = model.get_layer(f"{name}.range")
    layer.min.assign(minimum)
    layer.max.assign(maximum)


def test_a_kernel_has_a_step_per_output_channel():
    kernel = random((3, 3, 4, 5)) * np.float32([1, 0.5, 10, 0.1, 2])
    got = quantize_kernel(kernel).numpy()
    np.testing.assert_allclose(got, rounded_kernel(kernel), rtol=1e-5, atol=1e-6)
    assert all(len(np.unique(got[..., channel])) <= 255 for channel in range(5))


def test_a_depthwise_kernel_has_a_step_per_channel():
    kernel = random((3, 3, 4, 1)) * np.float32([1, 0.5, 10, 0.1])[:, None]
    expected = rounded_kernel(kernel.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    np.testing.assert_allclose(quantize_depthwise_kernel(kernel), expected, rtol=1e-5, atol=1e-6)


def test_nearly_empty_channels_share_a_thousandth_of_the_largest_scale():
    kernel = random((3, 3, 4, 3)) * np.float32([1, 1e-9, 0])
    step = np.abs(kernel).max() * 1e-3 / 127
    got = quantize_kernel(kernel).numpy()
    np.testing.assert_allclose(got[..., 1:], np.round(kernel[..., 1:] / step) * step)
    assert np.all(quantize_kernel(np.zeros((1, 1, 2, 2), np.float32)) == 0)


@pytest.mark.parametrize(("minimum", "maximum"), [(0.0, 2.0), (-1.0, 3.0), (-4.0, 0.0)])
def test_activations_have_256_levels(minimum, maximum):
    x = 3 * random((2000,))
    got = quantize(x, np.float32(minimum), np.float32(maximum)).numpy()
    np.testing.assert_allclose(got, rounded(x, minimum, maximum), atol=1e-5)
    assert len(np.unique(got)) <= 256
    assert 0 in got


@pytest.mark.parametrize(("minimum", "maximum"), [(1.0, 3.0), (-3.0, -1.0), (0.0, 0.0)])
def test_a_range_holds_0_and_has_a_width(minimum, maximum):
    got = quantize(np.float32([0, minimum, maximum]), np.float32(minimum), np.float32(maximum))
    step = max(abs(minimum), abs(maximum)) / 255
    np.testing.assert_allclose(got, [0, minimum, maximum], atol=step)
    assert got[0] == 0


def test_conv_rounds_its_kernel_and_its_output():
    model = model_of(lambda layers, x: layers.conv(x, "conv", Convolution(4)), (5, 5, 3))
    set_range(model, "conv", 0.0, 1.5)
    kernel, images = np.asarray(model.get_layer("conv").kernel), random((2, 5, 5, 3))
    expected = rounded(np.maximum(images @ rounded_kernel(kernel)[0, 0], 0), 0, 1.5)
    # A value in the middle between two levels may go either way.
    difference = np.abs(model(images) - expected)
    assert difference.max() <= 1.5 / 255 + 1e-6
    assert (difference > 1e-5).mean() < 0.02


def test_depthwise_is_the_deploy_factorys_with_a_rounded_kernel():
    def build(layers, x):
        return layers.conv(x, "conv", Convolution.depthwise(strides=2))

    model, plain = (
        model_of(build, (6, 6, 3), layers=layers) for layers in (LAYERS, DeployLayers())
    )
    set_range(model, "conv", 0.0, 2.0)
    kernel, bias = random((3, 3, 3, 1)), random((3,), seed=1)
    model.get_layer("conv").set_weights([kernel, bias])
    plain.get_layer("conv").set_weights([quantize_depthwise_kernel(kernel).numpy(), bias])
    images = random((2, 6, 6, 3))
    np.testing.assert_allclose(model(images), rounded(plain(images).numpy(), 0, 2), atol=2 / 255)


@pytest.mark.parametrize(
    ("build", "plain"),
    [
        (lambda layers, x, y: layers.add([x, y], "unit"), lambda x, y: x + y),
        (
            lambda layers, x, y: layers.add([x, y], "unit", "relu"),
            lambda x, y: np.maximum(x + y, 0),
        ),
        (
            lambda layers, x, y: layers.concat([x, y], "unit"),
            lambda x, y: np.concatenate([x, y], axis=-1),
        ),
        (lambda layers, x, y: layers.pool(x, "unit"), lambda x, y: x.mean(axis=(1, 2))),
        (lambda layers, x, y: layers.entry(x, "unit"), lambda x, y: x),
    ],
    ids=["add", "add_relu", "concat", "pool", "entry"],
)
def test_what_leaves_a_unit_is_rounded(build, plain):
    model = model_of(build, (4, 4, 3), (4, 4, 3))
    set_range(model, "unit", -1.0, 2.0)
    x, y = random((2, 4, 4, 3)), random((2, 4, 4, 3), seed=1)
    got, expected = model([x, y]).numpy(), plain(x, y)
    np.testing.assert_allclose(got, rounded(expected, -1, 2), atol=3 / 255 + 1e-6)
    assert not np.allclose(got, expected, atol=1e-4)


def test_head_stays_in_floating_point():
    model, plain = (
        model_of(lambda layers, x: layers.head(x, "head", 4), (3,), layers=layers)
        for layers in (LAYERS, DeployLayers())
    )
    plain.set_weights(model.get_weights())
    np.testing.assert_array_equal(model(random((5, 3))), plain(random((5, 3))))


def test_observing_computes_in_floating_point_and_widens_the_range():
    observing = QuantizedLayers(observe=True)
    model, plain = (
        model_of(
            lambda layers, x: layers.conv(x, "conv", Convolution(4, activation=None)),
            (4, 4, 3),
            layers=factory,
        )
        for factory in (observing, DeployLayers())
    )
    plain.set_weights(model.get_layer("conv").get_weights())
    layer, seen = model.get_layer("conv.range"), []
    for seed in range(3):
        images = random((2, 4, 4, 3), seed)
        seen.append(plain(images).numpy())
        np.testing.assert_array_equal(model(images), seen[-1])
        np.testing.assert_allclose(layer.min, min(np.min(seen), 0))
        np.testing.assert_allclose(layer.max, max(np.max(seen), 0))


def test_a_model_comes_back_from_its_config():
    images = ImageSpec((8, 8, 1), ("a", "b"), mean=(100.0,), std=(50.0,))
    resnet = ResNet("bottleneck", (4, 4), (1, 1), (1, 2), stem_width=2)
    model = TreeEnsemble(resnet, Tree((1, 2)), images, LAYERS)
    again = TreeEnsemble.from_config(model.get_config())
    assert again.factory == LAYERS
    assert weights.read(again).keys() == weights.read(model).keys()
