"""Each grouped layer against the same layer of the branched factory, node by node."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.models.layers.factory import Convolution
from hne_tf.models.layers.fused import FusedGroupedLayers
from hne_tf.models.layers.grouped import (
    GroupedConv2D,
    GroupedDense,
    GroupedDepthwiseConv2D,
    GroupedLayers,
)
from hne_tf.models.layers.training import TrainingLayers

# Height and width are odd, so that strides have something to round.
HEIGHT, WIDTH, CHANNELS = 5, 7, 3
NODES = 4

every_parents = pytest.mark.parametrize("parents", [1, 2, 4])


def activation(nodes, seed=0, channels=CHANNELS):
    random = np.random.default_rng(seed)
    return random.normal(0, 1, (2, HEIGHT, WIDTH, nodes, channels)).astype(np.float32)


def of_parent(x, node):
    """What a node sees of its parents' activation."""
    return x[..., node // (NODES // x.shape[-2]), :]


def kernels(layer):
    """A grouped layer's kernel, node by node."""
    return np.split(np.asarray(layer.kernel), NODES)


def gradients(call, x):
    """Output of a call and the gradient of its weighted sum by the input."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(x)
        total = tf.reduce_sum(y * np.random.default_rng(1).normal(0, 1, y.shape))
    return np.asarray(y), np.asarray(tape.gradient(total, x))


def assert_equal_node_by_node(layer, x, of_node):
    """Compares a layer with one function per node, outputs and gradients."""

    def together(x):
        return tf.stack([of_node(of_parent(x, node), node) for node in range(NODES)], axis=-2)

    for got, expected in zip(gradients(layer, x), gradients(together, x), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@every_parents
@pytest.mark.parametrize(("size", "strides"), [(1, 1), (1, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("split", [True, False])
def test_convolutions(parents, size, strides, split):
    layer = GroupedConv2D(NODES, 6, size, strides, split, None)
    x = activation(parents)
    layer(x)

    def of_node(x, node):
        return tf.nn.conv2d(x, kernels(layer)[node], strides, "SAME")

    assert_equal_node_by_node(layer, x, of_node)


@every_parents
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("shifted", [True, False])
def test_depthwise_convolutions(parents, strides, shifted):
    layer = GroupedDepthwiseConv2D(NODES, 3, strides, None, shifted)
    x = activation(parents)
    layer(x)

    def of_node(x, node):
        return tf.nn.depthwise_conv2d(
            x, kernels(layer)[node], (1, strides, strides, 1), padding="SAME"
        )

    assert_equal_node_by_node(layer, x, of_node)


@every_parents
def test_classifiers(parents):
    layer = GroupedDense(NODES, 5, None)
    x = activation(parents)[:, 0, 0]
    layer(x)
    layer.bias.assign(np.arange(NODES * 5))

    def of_node(x, node):
        return x @ kernels(layer)[node] + np.arange(5 * node, 5 * node + 5, dtype=np.float32)

    assert_equal_node_by_node(layer, x, of_node)


def built(unit, *shapes):
    """A unit of a factory as a model of inputs of these shapes."""
    inputs = [keras.Input(shape[1:]) for shape in shapes]
    return keras.Model(inputs, unit(inputs))


@every_parents
def test_sums_broadcast_what_comes_from_the_parents(parents):
    layers = GroupedLayers(nodes=NODES)
    own, above = activation(NODES), activation(parents, seed=1)
    model = built(lambda x: layers.add(x, "add", activation="relu"), above.shape, own.shape)
    expected = np.maximum(own + np.repeat(above, NODES // parents, axis=3), 0)
    np.testing.assert_allclose(model([above, own]), expected, rtol=1e-6)


@every_parents
def test_concatenations_keep_each_node_s_channels_together(parents):
    layers = GroupedLayers(nodes=NODES)
    own, above = activation(NODES, channels=2), activation(parents, seed=1)
    model = built(lambda x: layers.concat(x, "concat"), above.shape, own.shape)
    expected = np.concatenate([np.repeat(above, NODES // parents, axis=3), own], axis=-1)
    np.testing.assert_array_equal(model([above, own]), expected)


def test_pools_average_each_node():
    x = activation(NODES)
    model = built(lambda x: GroupedLayers(nodes=NODES).pool(x[0], "pool"), x.shape)
    np.testing.assert_allclose(model(x), x.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("factory", [GroupedLayers, FusedGroupedLayers])
def test_norms_are_of_each_branch(factory):
    x = activation(NODES) * np.arange(1, NODES + 1)[:, None] + np.arange(NODES)[:, None]
    x = x.astype(np.float32)
    layers = factory(norm_momentum=0.5, nodes=NODES)
    convolution = Convolution(1, activation=None)
    model = built(lambda x: layers._normalise(x[0], "unit", convolution), x.shape)
    got = model(x, training=True)
    np.testing.assert_allclose(np.mean(got, axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(got, axis=(0, 1, 2)), 1, atol=1e-2)
    mean = np.split(np.asarray(model.get_layer("unit.norm").moving_mean), NODES)
    np.testing.assert_allclose(mean, x.mean(axis=(0, 1, 2)) / 2, rtol=1e-3, atol=1e-4)


def kernel_of(layers, unit, x):
    return np.asarray(built(lambda x: unit(layers, x[0]), x).layers[1].kernel)


@pytest.mark.parametrize(
    "unit",
    [
        lambda layers, x: layers.conv(x, "unit", Convolution(16, kernel_size=3)),
        lambda layers, x: layers.conv(x, "unit", Convolution(64)),
        lambda layers, x: layers.conv(x, "unit", Convolution.depthwise()),
    ],
    ids=["3x3", "1x1", "depthwise"],
)
def test_each_branch_s_kernels_start_like_a_network_s_own(unit):
    keras.utils.set_random_seed(0)
    plain = kernel_of(TrainingLayers(), unit, (2, 8, 8, 64))
    grouped = kernel_of(GroupedLayers(nodes=NODES), unit, (2, 8, 8, NODES, 64))
    first, *others = np.split(grouped, NODES)
    for kernel in (first, *others):
        assert kernel.shape == plain.shape
        assert kernel.std() == pytest.approx(plain.std(), rel=0.15)
        assert abs(kernel.mean()) < 0.15 * plain.std()
    assert all(np.abs(first - other).max() > 0 for other in others)


def test_classifiers_start_like_a_network_s_own():
    keras.utils.set_random_seed(0)
    layer = GroupedDense(NODES, 32, None)
    layer(activation(NODES, channels=64)[:, 0, 0])
    for kernel in kernels(layer):
        assert kernel.std() == pytest.approx((2 / 64) ** 0.5, rel=0.1)


def test_a_unit_can_start_at_zero():
    model = built(
        lambda x: GroupedLayers(nodes=2).conv(x[0], "unit", Convolution(3, zero_gamma=True)),
        (2, HEIGHT, WIDTH, 2, CHANNELS),
    )
    assert np.abs(model(activation(2))).max() == 0
