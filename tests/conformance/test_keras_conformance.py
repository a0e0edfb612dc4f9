"""Models of keras.applications, made small, as trees: they answer as the models do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

# The families' general functions, of which the public ones are too large for a test.
from keras.src.applications import convnext, densenet, efficientnet_v2, mobilenet_v3, resnet

import hne_tf as hne
from hne_tf.evaluation import cost
from hne_tf.models import weights
from hne_tf.models.functional import preprocessing

SHAPE, CLASSES = (32, 32, 3), 3
PIXELS = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)
OPTIONS = {"include_top": True, "weights": None, "classes": CLASSES, "input_shape": SHAPE}


def mobilenet():
    """MobileNetV3Small with two of its eleven units."""

    def stack(x, kernel, activation, squeeze_ratio):
        del kernel
        unit = mobilenet_v3._inverted_res_block
        x = unit(x, 1, 8, 3, 2, squeeze_ratio, mobilenet_v3.relu, 0)
        return unit(x, 2, 8, 5, 1, squeeze_ratio, activation, 1)

    return mobilenet_v3.MobileNetV3(stack, 16, alpha=1.0, **OPTIONS)


def efficientnet():
    """EfficientNetV2 of the narrowest layers, one unit a stage."""
    stages = [
        {**stage, "input_filters": 8, "output_filters": 8, "num_repeat": 1 + (index == 4)}
        for index, stage in enumerate(efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"])
    ]
    return efficientnet_v2.EfficientNetV2(
        1.0, 1.0, SHAPE[0], blocks_args=stages, name="efficientnetv2-b0", **OPTIONS
    )


def resnet_v2():
    """ResNetV2 of two stacks, with the convolutions before the sums."""

    def stack(x):
        x = resnet.stack_residual_blocks_v2(x, 4, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 8, 2, stride1=1, name="conv3")

    return resnet.ResNet(stack, True, True, name="resnet", **OPTIONS)


def convnext_tiny():
    """ConvNeXt with a unit or two a stage."""
    return convnext.ConvNeXt((1, 1, 2, 1), (4, 4, 8, 8), name="convnext", **OPTIONS)


def densenet_121():
    """DenseNet with two layers a block."""
    return densenet.DenseNet([2, 2, 2, 2], **OPTIONS)


def with_attention():
    """Patches, two units of attention, and a model inside the model."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(6, 8, 8, name="patches")(inputs)
    x = layers.Reshape((16, 6))(x)
    for unit in range(2):
        y = layers.LayerNormalization(name=f"norm{unit}")(x)
        x = x + layers.MultiHeadAttention(2, 3, name=f"attention{unit}")(y, y)
        inner = keras.Input((16, 6))
        y = layers.Dense(6, activation="gelu", name="dense")(inner)
        x = keras.Model(inner, layers.Add()([y, inner]), name=f"mlp{unit}")(x)
    x = layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, x, name="with_attention")


# With the name that its images are preprocessed by, if it needs that.
MODELS = {
    mobilenet: "MobileNetV3Small",
    efficientnet: "EfficientNetV2B0",
    resnet_v2: "ResNet50V2",
    convnext_tiny: "ConvNeXtTiny",
    densenet_121: "DenseNet121",
    with_attention: None,
}


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def given(request):
    """A model with every weight moved, and the normalisation of its images."""
    keras.utils.set_random_seed(0)
    model, family = request.param(), MODELS[request.param]
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "variance" not in weight.name and weight.dtype == "float32":
            weight.assign(weight + rng.normal(0, 0.1, weight.shape))
    mean, std = (100.0,) * 3, (50.0,) * 3
    if family:
        mean, std, _ = preprocessing.normalisation(f"keras.applications.{family}")
    return model, hne.ImageSpec(SHAPE, tuple("abc"), mean, std)


def logits_of(model, images):
    """Of the given model, whose classifier may apply a softmax."""
    normalised = (PIXELS.astype(np.float32) - images.mean) / images.std
    answer = np.asarray(model(normalised.astype(np.float32), training=False))
    return np.log(answer) if answer.min() >= 0 else answer


def centred(logits):
    return logits - logits.mean(axis=-1, keepdims=True)


def test_a_single_network_answers_as_the_model(given):
    model, images = given
    tree = hne.TreeEnsemble.from_keras(model, (1, 1, 1, 1), images)
    assert len(weights.read(tree)) == len(model.weights)
    expected = centred(logits_of(model, images))
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(centred(np.asarray(tree(PIXELS))[:, 0]), expected, atol=1e-5)


# Not those in which a Dense layer is called on sequences: the profiler leaves it out.
@pytest.mark.parametrize("given", [mobilenet, efficientnet, resnet_v2, densenet_121], indirect=True)
def test_multiply_adds_are_those_of_tensorflow_s_profiler(given, float_operations, kernels):
    model, images = given
    tree = hne.TreeEnsemble.from_keras(model, (1, 1), images)
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec([1, *SHAPE])).graph
    found = float_operations(graph)
    # A multiplication and an addition are two.
    profiled = sum(found.get(kind, 0) for kind in kernels) / 2
    assert cost.per_size(tree, [1])[1].multiply_adds == pytest.approx(profiled, rel=0.01)


@pytest.mark.slow
def test_a_tree_goes_the_whole_way(given, tmp_path):
    """To a file of Keras's, a server and a file for phones."""
    model, images = given
    tree = hne.TreeEnsemble.from_keras(model, (1, 2), images, perturb={1: 0.1})
    tree.save(tmp_path / "tree.keras")
    loaded = keras.models.load_model(tmp_path / "tree.keras")
    expected = tree.probabilities(PIXELS)
    np.testing.assert_allclose(loaded.probabilities(PIXELS), expected, atol=1e-6)
    # Both compare every signature and step with the live model.
    base = tmp_path / "small"
    exported = hne.load(hne.export(tree, base, report=str))
    assert exported.manifest.cost == cost.per_size(tree, [1, 2])
    hne.convert_tflite(tree, tmp_path / "small.tflite", report=str)
    answer = hne.load(tmp_path / "small.tflite").session(PIXELS).run()
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)
    with (
        hne.serve(base, report=str) as server,
        hne.BudgetClient(server.address, "small") as client,
    ):
        answer = client.predict(PIXELS, budget_ms=60_000)
    expected = tree.probabilities(PIXELS, answer.size)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)
