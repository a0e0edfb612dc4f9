import keras
import numpy as np
import pytest
from keras import layers

import hne_tf as hne
from hne_tf.evaluation import cost
from hne_tf.models import folding, weights
from hne_tf.models.functional import norms

SHAPE = (8, 8, 3)
IMAGES = hne.ImageSpec(SHAPE, ("ant", "bee", "cow"), mean=(120.0,) * 3, std=(70.0,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8)


def norm(name, **options):
    return layers.BatchNormalization(name=name, **options)


def network():
    """Norms after layers of each kind, and norms that must stay."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(6, 3, name="conv", use_bias=False)(inputs)
    x = layers.ReLU()(norm("conv_norm", epsilon=0.1)(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = norm("depthwise_norm", scale=False)(x)
    x = layers.SeparableConv2D(6, 1, name="separable")(x)
    x = norm("separable_norm", center=False)(x)
    active = layers.Conv2D(6, 1, activation="relu", name="active")(x)
    x = layers.Add()([x, norm("after_activation")(active)])
    twice = layers.Conv2D(6, 1, name="read_twice")(x)
    x = layers.Add()([twice, norm("of_read_twice")(twice)])
    shared = layers.Conv2D(6, 1, name="shared")
    x = layers.Add()([norm("first_shared")(shared(x)), shared(x)])
    x = norm("other_axis", axis=1)(layers.Conv2D(6, 1, name="by_rows")(x))
    halves = layers.Conv2D(6, 1, dtype="mixed_bfloat16", name="halves")(x)
    x = layers.Add(name="sum")([x, norm("of_halves", dtype="float32")(halves)])
    inner_inputs = keras.Input((6, 6, 6))
    # Names of layers outside.
    inner = norm("conv_norm")(layers.Conv2D(6, 1, name="conv")(inner_inputs))
    x = keras.Model(inner_inputs, inner, name="inner")(x)
    x = layers.Conv2D(8, 3, name="last")(x)
    x = layers.GlobalAveragePooling2D()(norm("last_norm")(x))
    x = norm("dense_norm")(layers.Dense(5, name="dense")(x))
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


FOLDED = {
    "conv": "conv_norm",
    "depthwise": "depthwise_norm",
    "separable": "separable_norm",
    "last": "last_norm",
    "dense": "dense_norm",
}


def moved(model):
    """The model with norms as training could leave them."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        draw = rng.uniform(0.5, 2, weight.shape)
        if "norm" in weight.path or "bias" in weight.name:
            weight.assign(draw if "variance" in weight.name else draw - 1)
    return model


def tree_of(cut_at, branching=(1, 2)):
    perturb = {len(branching) - 1: 0.2}
    return hne.TreeEnsemble.from_keras(
        moved(network()), branching, IMAGES, cut_at=[cut_at], perturb=perturb
    )


def names(tree):
    return {name.split("/", 2)[2].split("/")[0] for name in weights.read(tree)}


def test_norms_right_after_a_layer_that_nothing_else_reads_are_found():
    assert norms.pairs(network()) == FOLDED


def test_a_norm_that_gives_an_output_is_found_and_a_layer_that_does_so_keeps_its_norm():
    model = network()
    conv, normed = (model.get_layer(name).output for name in ("conv", "conv_norm"))
    assert norms.pairs(keras.Model(model.inputs, normed)) == {"conv": "conv_norm"}
    assert norms.pairs(keras.Model(model.inputs, [normed, conv])) == {}


@pytest.mark.parametrize("cut_at", ["sum", "separable_norm", "last"])
def test_the_folded_tree_answers_as_the_trained_one(cut_at):
    tree = tree_of(cut_at)
    folded = folding.deployed(tree)
    # A norm is no longer with the layer before when a cut comes between them.
    gone = set(FOLDED.values()) - ({"last_norm"} if cut_at == "last" else set())
    assert names(tree) - names(folded) == gone
    assert folded.architecture.cut_at == ("separable" if "norm" in cut_at else cut_at,)
    expected = np.asarray(tree(PIXELS))
    assert expected.std() > 0.1
    assert np.abs(expected[:, 0] - expected[:, 1]).max() > 0.01
    np.testing.assert_allclose(folded(PIXELS), expected, rtol=1e-4, atol=1e-4)
    assert folding.deployed(folded) is folded


def test_the_cost_is_that_of_the_folded_tree():
    tree = tree_of("sum")
    folded = folding.deployed(tree)
    found = cost.per_size(tree, [1, 2])
    assert found == cost.per_size(folded, [1, 2])
    # The nodes of two leaves are the whole tree.
    assert found[2].parameters == folded.count_params()


def test_a_network_without_norms_stays_as_it_is():
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.Dense(3)(layers.Flatten()(layers.Conv2D(4, 3)(x)))
    tree = hne.TreeEnsemble.from_keras(keras.Model(inputs, x), (1, 2), IMAGES)
    folded = folding.deployed(tree)
    assert folded.architecture is tree.architecture
    np.testing.assert_array_equal(folded(PIXELS), tree(PIXELS))
