import numpy as np
import pytest

from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import fold
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((8, 8, 3), ("ant", "bee", "cow"), mean=(120.0,) * 3, std=(70.0,) * 3)


def build(unit, layers):
    resnet = ResNet(unit, (8, 12), (2, 1), (1, 2), stem_width=6)
    return TreeEnsemble(resnet, Tree((1, 3)), IMAGES, layers)


def trained_values(model):
    """The model's weights with norms as training could leave them, none at its start."""
    rng = np.random.default_rng(0)
    draws = {
        "gamma": lambda shape: rng.normal(0, 1, shape),
        "beta": lambda shape: rng.normal(0, 0.5, shape),
        "moving_mean": lambda shape: rng.normal(0, 0.5, shape),
        "moving_variance": lambda shape: rng.uniform(0.1, 2, shape),
        "bias": lambda shape: rng.normal(0, 0.5, shape),
    }
    values = {}
    for name, value in weights.read(model).items():
        draw = draws.get(name.rsplit("/", 1)[1])
        values[name] = value if draw is None else draw(value.shape).astype(np.float32)
    return values


@pytest.mark.parametrize("unit", ["basic", "bottleneck"])
def test_the_folded_model_equals_the_trained_one(unit):
    trained, deployed = build(unit, TrainingLayers()), build(unit, DeployLayers())
    values = trained_values(trained)
    weights.load(trained, values)
    weights.load(deployed, fold(values))
    images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), np.uint8)
    expected = np.asarray(trained(images, training=False))
    assert expected.std() > 0.1
    np.testing.assert_allclose(deployed(images, training=False), expected, rtol=1e-4, atol=1e-4)


def test_folding_scales_output_channels_and_shifts_them():
    """Two output channels, scaled by 2 and -1, from a variance that the epsilon completes."""
    norm = {
        "norm/gamma": np.array([4.0, -3.0]),
        "norm/beta": np.array([10.0, 20.0]),
        "norm/moving_mean": np.array([1.0, 2.0]),
        "norm/moving_variance": np.array([4.0, 9.0]) - 1e-3,
    }
    kernel = np.array([[[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]])
    depthwise = np.arange(18.0).reshape(3, 3, 2, 1)
    folded = fold(
        {
            "a/kernel": kernel,
            **{f"a/{name}": value for name, value in norm.items()},
            "b/depthwise_kernel": depthwise,
            **{f"b/{name}": value for name, value in norm.items()},
            "head/kernel": np.ones((2, 2)),
            "head/bias": np.full(2, 7.0),
        }
    )
    assert folded.keys() == {
        *("a/kernel", "a/bias"),
        *("b/depthwise_kernel", "b/bias"),
        *("head/kernel", "head/bias"),
    }
    np.testing.assert_allclose(folded["a/kernel"], [[[[2, -2], [6, -4], [10, -6]]]])
    for channel, scale in enumerate((2, -1)):
        expected = scale * depthwise[:, :, channel, 0]
        np.testing.assert_allclose(folded["b/depthwise_kernel"][:, :, channel, 0], expected)
    for unit in "ab":
        np.testing.assert_allclose(folded[f"{unit}/bias"], [10 - 1 * 2, 20 + 2 * 1])
        assert folded[f"{unit}/bias"].dtype == np.float32
    np.testing.assert_array_equal(folded["head/kernel"], np.ones((2, 2)))
    np.testing.assert_array_equal(folded["head/bias"], np.full(2, 7.0))


def test_folding_leaves_its_input_alone():
    values = trained_values(build("bottleneck", TrainingLayers()))
    copies = {name: value.copy() for name, value in values.items()}
    fold(values)
    assert values.keys() == copies.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(value, copies[name])
