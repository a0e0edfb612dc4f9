import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.factory import Convolution
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers

FACTORIES = (TrainingLayers(), DeployLayers())

both_factories = pytest.mark.parametrize(
    "layers", FACTORIES, ids=lambda layers: type(layers).__name__
)


def model_of(build, shape):
    x = keras.Input(shape)
    return keras.Model(x, build(x))


def random_images(shape, batch=4):
    return np.random.default_rng(0).normal(0, 1, (batch, *shape)).astype(np.float32)


def randomise(model):
    """Gives every weight a value that shows in the output; returns them by layer and name."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape) * rng.choice([-1, 1], variable.shape))
        if variable.name == "moving_variance":
            variable.assign(np.abs(variable))
    return {
        f"{layer.name}/{variable.name}": np.asarray(variable)
        for layer in model.layers
        for variable in layer.weights
    }


def normalised_or_biased(y, weights):
    """What the unit called `conv` does between its convolution and its activation."""
    if "conv/bias" in weights:
        return y + weights["conv/bias"]
    gamma, beta, mean, variance = (
        weights[f"conv.norm/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    return gamma * (y - mean) / np.sqrt(variance + 1e-3) + beta


def activated(y, activation):
    return np.maximum(y, 0) if activation == "relu" else y


@both_factories
@pytest.mark.parametrize("activation", ["relu", None])
@pytest.mark.parametrize(("kernel_size", "strides"), [(1, 1), (3, 1), (3, 2), (1, 2)])
def test_conv_is_convolution_norm_and_activation(layers, kernel_size, strides, activation):
    model = model_of(
        lambda x: layers.conv(x, "conv", Convolution(5, kernel_size, strides, activation)),
        (7, 6, 3),
    )
    weights, images = randomise(model), random_images((7, 6, 3))
    assert weights["conv/kernel"].shape == (kernel_size, kernel_size, 3, 5)
    y = tf.nn.conv2d(images, weights["conv/kernel"], strides, "SAME").numpy()
    expected = activated(normalised_or_biased(y, weights), activation)
    np.testing.assert_allclose(model(images, training=False), expected, rtol=1e-4, atol=1e-4)


@both_factories
@pytest.mark.parametrize("activation", ["relu", None])
@pytest.mark.parametrize(("kernel_size", "strides"), [(3, 1), (3, 2), (5, 1)])
def test_depthwise_is_convolution_per_channel(layers, kernel_size, strides, activation):
    model = model_of(
        lambda x: layers.conv(x, "conv", Convolution.depthwise(kernel_size, strides, activation)),
        (7, 6, 3),
    )
    weights, images = randomise(model), random_images((7, 6, 3))
    kernel = weights["conv/kernel"]
    assert kernel.shape == (kernel_size, kernel_size, 3, 1)
    y = tf.concat(
        [
            tf.nn.conv2d(images[..., c : c + 1], kernel[:, :, c : c + 1], strides, "SAME")
            for c in range(3)
        ],
        axis=-1,
    ).numpy()
    expected = activated(normalised_or_biased(y, weights), activation)
    np.testing.assert_allclose(model(images, training=False), expected, rtol=1e-4, atol=1e-4)


@both_factories
def test_units_end_in_relu_unless_told(layers):
    for convolution in (Convolution(8), Convolution.depthwise()):
        model = model_of(lambda x, c=convolution: layers.conv(x, "conv", c), (4, 4, 8))
        randomise(model)
        assert np.min(model(random_images((4, 4, 8)), training=False)) == 0


@both_factories
@pytest.mark.parametrize("activation", ["relu", None])
def test_add_sums_then_activates(layers, activation):
    model = model_of(lambda x: layers.add([x, x], "add", activation), (4, 4, 3))
    images = random_images((4, 4, 3))
    np.testing.assert_allclose(model(images), activated(2 * images, activation), atol=1e-6)


@both_factories
def test_concat_puts_channels_side_by_side(layers):
    model = model_of(lambda x: layers.concat([x, 2 * x], "concat"), (4, 4, 3))
    images = random_images((4, 4, 3))
    np.testing.assert_allclose(model(images), np.concatenate([images, 2 * images], axis=-1))


@both_factories
def test_pool_averages_over_positions(layers):
    model = model_of(lambda x: layers.pool(x, "pool"), (4, 5, 3))
    images = random_images((4, 5, 3))
    np.testing.assert_allclose(model(images), images.mean(axis=(1, 2)), atol=1e-6)


@both_factories
def test_head_is_linear(layers):
    model = model_of(lambda x: layers.head(x, "head", 4), (3,))
    weights, features = randomise(model), random_images((3,))
    expected = features @ weights["head/kernel"] + weights["head/bias"]
    np.testing.assert_allclose(model(features), expected, rtol=1e-5, atol=1e-5)


def test_training_normalises_over_the_batch_and_moves_statistics():
    layers = TrainingLayers(norm_momentum=0.75)
    model = model_of(lambda x: layers.conv(x, "conv", Convolution(4, activation=None)), (5, 5, 3))
    images = random_images((5, 5, 3), batch=8)
    kernel = np.asarray(model.get_layer("conv").kernel)
    y = images @ kernel[0, 0]
    mean, variance = y.mean(axis=(0, 1, 2)), y.var(axis=(0, 1, 2))
    expected = (y - mean) / np.sqrt(variance + 1e-3)
    np.testing.assert_allclose(model(images, training=True), expected, rtol=1e-4, atol=1e-4)
    norm = model.get_layer("conv.norm")
    np.testing.assert_allclose(norm.moving_mean, 0.25 * mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, 0.75 + 0.25 * variance, rtol=1e-4)


@pytest.mark.parametrize("synchronized", [False, True])
def test_norms_are_synchronized_when_told(synchronized):
    layers = TrainingLayers(synchronized=synchronized)
    for convolution in (Convolution(4), Convolution.depthwise()):
        model = model_of(lambda x, c=convolution: layers.conv(x, "conv", c), (4, 4, 3))
        assert model.get_layer("conv.norm").synchronized is synchronized


@pytest.mark.parametrize(
    ("build", "shape", "fan_in"),
    [
        (
            lambda x: TrainingLayers().conv(x, "layer", Convolution(128, kernel_size=3)),
            (4, 4, 32),
            9 * 32,
        ),
        (lambda x: TrainingLayers().conv(x, "layer", Convolution(256)), (4, 4, 64), 64),
        (lambda x: TrainingLayers().conv(x, "layer", Convolution.depthwise()), (4, 4, 2048), 9),
        (
            lambda x: TrainingLayers().conv(x, "layer", Convolution.depthwise(kernel_size=5)),
            (4, 4, 1024),
            25,
        ),
        (lambda x: TrainingLayers().head(x, "layer", 256), (64,), 64),
    ],
    ids=["conv3x3", "conv1x1", "depthwise3x3", "depthwise5x5", "head"],
)
def test_kernels_start_with_variance_two_over_fan_in(build, shape, fan_in):
    keras.utils.set_random_seed(0)
    kernel = np.asarray(model_of(build, shape).get_layer("layer").kernel)
    assert kernel.size > 15_000
    assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.03)
    assert abs(kernel.mean()) < 0.03 * kernel.std()


@pytest.mark.parametrize(("zero_gamma", "gamma"), [(False, 1.0), (True, 0.0)])
def test_gamma_starts_at_one_or_at_zero_when_told(zero_gamma, gamma):
    model = model_of(
        lambda x: TrainingLayers().conv(x, "conv", Convolution(4, zero_gamma=zero_gamma)), (4, 4, 3)
    )
    np.testing.assert_array_equal(model.get_layer("conv.norm").gamma, np.full(4, gamma))


@pytest.mark.parametrize(
    "build",
    [
        lambda layers, x: layers.conv(x, "layer", Convolution(4, kernel_size=3)),
        lambda layers, x: layers.conv(x, "layer", Convolution.depthwise()),
        lambda layers, x: layers.head(layers.pool(x, "pool"), "layer", 4),
    ],
    ids=["conv", "depthwise", "head"],
)
def test_the_penalty_has_weight_decay_times_kernel_as_gradient(build):
    model = model_of(lambda x: build(TrainingLayers(weight_decay=0.3), x), (4, 4, 3))
    randomise(model)
    with tf.GradientTape() as tape:
        penalty = tf.add_n(model.losses)
    kernel = model.get_layer("layer").kernel
    others = [v for v in model.trainable_variables if v is not kernel]
    gradient, *rest = tape.gradient(penalty, [kernel.value, *(v.value for v in others)])
    np.testing.assert_allclose(gradient, 0.3 * np.asarray(kernel), rtol=1e-5)
    assert others
    assert rest == [None] * len(others)


def test_no_weight_decay_leaves_no_penalty():
    assert (
        model_of(lambda x: TrainingLayers().conv(x, "conv", Convolution(4)), (4, 4, 3)).losses == []
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
        ({"norm_momentum": 0.0}, "norm_momentum must lie between 0 and 1, got 0.0"),
        ({"norm_momentum": 1.0}, "norm_momentum must lie between 0 and 1, got 1.0"),
        ({"norm_momentum": -2}, "norm_momentum must lie between 0 and 1, got -2"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        TrainingLayers(**settings)


@pytest.mark.parametrize("channels", [1, 3, 7, 8])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_strided_1x1_convolution_of_few_channels_has_the_right_gradient(channels, grouped):
    # oneDNN's kernel for it is wrong on CPUs with AVX2.
    images = random_images((8, 8, channels), batch=32)
    layers = GroupedLayers(nodes=1) if grouped else TrainingLayers()
    shape = (8, 8, 1, channels) if grouped else (8, 8, channels)
    model = model_of(lambda x: layers.conv(x, "conv", Convolution(4, 1, 2, None)), shape)
    layer = model.get_layer("conv")
    convolve = keras.Model(model.input, layer.output)
    weighting = np.random.default_rng(1).normal(0, 1, (32, 4, 4, 4)).astype(np.float32)

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            y = tf.reshape(convolve(x), weighting.shape)
            total = tf.reduce_sum(y * weighting)
        return tape.gradient(total, layer.kernel.value)

    got = gradient(images.reshape(32, *shape))
    expected = np.einsum("bhwi,bhwo->io", images[:, ::2, ::2], weighting)
    np.testing.assert_allclose(np.reshape(got, expected.shape), expected, rtol=1e-3, atol=1e-3)
