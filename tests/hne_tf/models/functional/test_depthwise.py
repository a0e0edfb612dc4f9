import keras
import numpy as np
import pytest
from keras import layers

from hne_tf.models.functional import depthwise

IMAGES = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)


def with_groups(**options):
    """A model with a grouped convolution of its three channels, and its like in a nested model."""
    inner_inputs = keras.Input((None, None, 6))
    inner = keras.Model(inner_inputs, layers.Conv2D(6, 3, groups=6, name="deep")(inner_inputs))
    inputs = keras.Input((7, 6, 3))
    x = layers.Conv2D(6, 3, groups=3, bias_initializer="ones", name="grouped", **options)(inputs)
    x = layers.Conv2D(6, 1, name="plain")(inner(x))
    return keras.Model(inputs, layers.Flatten()(x), name="with_groups")


def kinds(model):
    return {layer.name: type(layer) for layer in model._flatten_layers() if layer.weights}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "same", "strides": 2, "activation": "relu"},
        {"use_bias": False, "dilation_rate": (1, 2), "padding": "same"},
    ],
)
def test_the_model_answers_as_before(options):
    model = with_groups(**options)
    replaced = depthwise.replaced(model)
    assert kinds(model)["grouped"] is layers.Conv2D
    assert kinds(replaced)["grouped"] is kinds(replaced)["deep"] is layers.DepthwiseConv2D
    assert kinds(replaced)["plain"] is layers.Conv2D
    assert replaced.inputs[0].name == model.inputs[0].name
    for weight, new in zip(model.weights, replaced.weights, strict=True):
        new.assign(depthwise.kernel(weight.numpy(), tuple(new.shape)))
    np.testing.assert_allclose(replaced(IMAGES), model(IMAGES), atol=1e-5)


def test_other_models_stay_what_they_are():
    inputs = keras.Input((7, 6, 4))
    # Two channels in each of two groups; and a plain convolution of one channel.
    x = layers.Conv2D(4, 3, groups=2)(inputs)
    x = layers.Conv2D(4, 3)(layers.Conv2D(1, 1)(x))
    model = keras.Model(inputs, x)
    assert depthwise.replaced(model) is model
