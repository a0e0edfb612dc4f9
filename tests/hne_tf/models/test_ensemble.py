import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((6, 8, 2), ("ant", "bee", "cow"), mean=(120.0, 60.0), std=(70.0, 40.0))
UNITS = ("bottleneck", "basic")
BRANCHINGS = ((1, 2, 2), (4, 1, 1), (1, 1, 4), (1, 1, 1), (2, 3), (3, 1, 2))

every_branching = pytest.mark.parametrize("branching", BRANCHINGS, ids=str)
every_unit = pytest.mark.parametrize("unit", UNITS)


def build(branching, unit="basic", layers=None):
    """A small network with a width, a stride and a number of units for each block."""
    blocks = len(branching)
    resnet = ResNet(unit, (4, 6, 6)[:blocks], (1, 2, 1)[:blocks], (1, 2, 1)[:blocks], stem_width=3)
    return TreeEnsemble(resnet, Tree(branching), IMAGES, layers or TrainingLayers())


def randomised(model, seed=0):
    """The model with every weight moved, so that none is idle."""
    rng = np.random.default_rng(seed)
    moved = {
        name: value + rng.normal(0, 0.2, value.shape) for name, value in weights.read(model).items()
    }
    weights.load(model, moved)
    return model


def random_images(batch=3):
    return np.random.default_rng(5).integers(0, 256, (batch, *IMAGES.shape), np.uint8)


def leaf_logits(model, images, training=False):
    return keras.ops.convert_to_numpy(model(images, training=training))


def on_the_path(values, path):
    """Those of a tree's weights that one leaf's network has, named as a single network's."""
    single = {}
    for name, value in values.items():
        block, node, rest = name.split("/", 2)
        if node == f"node{path[int(block.removeprefix('block'))]}":
            single[f"{block}/node0/{rest}"] = value
    return single


@pytest.mark.parametrize(
    ("branching", "unit", "layers"),
    [
        *((branching, "basic", TrainingLayers()) for branching in BRANCHINGS),
        ((1, 2, 2), "basic", DeployLayers()),
        ((2, 3), "bottleneck", TrainingLayers()),
        ((3, 1, 2), "bottleneck", DeployLayers()),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_tree_equals_a_loop_of_independent_networks(branching, unit, layers):
    model = randomised(build(branching, unit, layers))
    images, values = random_images(), weights.read(model)
    network = build((1,) * len(branching), unit, layers)
    expected = []
    for leaf in range(model.tree.leaves):
        weights.load(network, on_the_path(values, model.tree.path(leaf)))
        expected.append(leaf_logits(network, images)[:, 0])
    got = leaf_logits(model, images)
    assert got.shape == (3, model.tree.leaves, 3)
    np.testing.assert_allclose(got, np.stack(expected, axis=1), rtol=1e-5, atol=1e-5)
    # Leaves that were all alike would prove little.
    assert all(np.ptp(got, axis=1).min(axis=0) > 1e-3) or model.tree.leaves == 1


@every_unit
def test_shared_nodes_get_the_sum_of_their_networks_gradients(unit):
    model = randomised(build((1, 2, 2), unit))
    images, values = random_images(8), weights.read(model)
    # Each leaf's logits weigh differently in the loss.
    factors = np.random.default_rng(1).normal(0, 1, (8, 4, 3)).astype(np.float32)
    expected = {}
    network = build((1, 1, 1), unit)
    for leaf in range(4):
        path = model.tree.path(leaf)
        weights.load(network, on_the_path(values, path))
        for name, gradient in gradients(network, images, factors[:, leaf : leaf + 1]).items():
            block, _, rest = name.split("/", 2)
            shared = f"{block}/node{path[int(block.removeprefix('block'))]}/{rest}"
            expected[shared] = expected.get(shared, 0.0) + gradient
    got = gradients(model, images, factors)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-3, atol=1e-3, err_msg=name)


def gradients(model, images, factors):
    """Gradients by canonical name of the weighted sum of leaf logits, in training mode."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=True) * factors)
    trained = {name: v for name, v in weights.variables(model).items() if v.trainable}
    values = tape.gradient(loss, [v.value for v in trained.values()])
    return dict(zip(trained, map(np.asarray, values), strict=True))


@every_branching
def test_prefixes_are_the_first_leaves_of_the_same_weights(branching):
    model = randomised(build(branching))
    images = random_images()
    whole = leaf_logits(model, images)
    for size in range(1, model.tree.leaves + 1):
        prefix = model.prefix(size)
        assert prefix.output_shape == (None, size, 3)
        np.testing.assert_allclose(leaf_logits(prefix, images), whole[:, :size], atol=1e-5)
        held = {layer.name for layer in prefix.layers if isinstance(layer, keras.Model)}
        paths = [model.tree.path(leaf) for leaf in range(size)]
        assert held == {f"block{b}.node{n}" for path in paths for b, n in enumerate(path)}
    # The weights are the tree's own, not copies.
    model.node_models[0][0].weights[0].assign_add(np.ones(model.node_models[0][0].weights[0].shape))
    after = leaf_logits(prefix, images)
    np.testing.assert_allclose(after, leaf_logits(model, images), atol=1e-5)
    assert np.abs(after - whole).max() > 1e-3


@pytest.mark.parametrize("size", [0, 5, 1.0])
def test_bad_prefix_is_named(size):
    with pytest.raises(InputError, match=f"an integer from 1 to 4, got {size}"):
        build((1, 2, 2)).prefix(size)


def test_images_are_uint8_and_normalised_per_channel():
    model = build((1,))
    assert model.input.dtype == "uint8"
    assert model.input_shape == (None, 6, 8, 2)
    images = random_images()
    expected = (images.astype(np.float64) - [120.0, 60.0]) / [70.0, 40.0]
    np.testing.assert_allclose(model.normalise(images), expected, rtol=1e-5, atol=1e-5)
    # The nodes see the normalised pictures.
    logits = model.node_models[0][0](expected.astype(np.float32), training=False)
    np.testing.assert_allclose(leaf_logits(model, images)[:, 0], logits, atol=1e-5)


def test_nodes_start_from_different_kernels():
    model = build((2, 2, 2), "bottleneck")
    for row in model.node_models:
        first, *others = ([w for w in node.weights if w.name == "kernel"] for node in row)
        for other in others:
            for a, b in zip(first, other, strict=True):
                assert np.abs(np.asarray(a) - np.asarray(b)).max() > 0


@every_unit
def test_fresh_units_add_nothing_to_their_shortcuts(unit):
    """All but the shortcuts' path can change without a fresh network noticing."""
    model = build((1, 2, 2), unit)
    images = random_images()
    before = leaf_logits(model, images)
    branches = [
        variable
        for name, variable in weights.variables(model).items()
        if "/unit" in name and name.endswith("kernel") and "shortcut" not in name
    ]
    assert branches
    for variable in branches:
        variable.assign(3.0 * variable + 1.0)
    np.testing.assert_array_equal(leaf_logits(model, images), before)


@every_unit
def test_weight_decay_is_on_all_kernels_and_nothing_else(unit):
    model = randomised(build((1, 2, 2), unit, TrainingLayers(weight_decay=0.02)))
    squares = {
        name: np.square(value.astype(np.float64)).sum()
        for name, value in weights.read(model).items()
        if name.endswith("kernel")
    }
    assert sum(map(float, model.losses)) == pytest.approx(0.01 * sum(squares.values()), rel=1e-5)
    assert build((1, 2, 2), unit).losses == []


@pytest.mark.parametrize("branching", [(1,), (1, 2), (1, 2, 2, 2)])
def test_tree_and_architecture_must_have_as_many_blocks(branching):
    resnet = ResNet("basic", (4, 4, 4), (1, 1, 1), (1, 1, 1))
    with pytest.raises(InputError, match="each of the 3 blocks, got ") as error:
        TreeEnsemble(resnet, Tree(branching), IMAGES, TrainingLayers())
    assert str(error.value).endswith(str(branching))


@pytest.mark.parametrize(
    ("unit", "layers"), [("basic", TrainingLayers()), ("bottleneck", DeployLayers())]
)
def test_keras_files_keep_architecture_and_weights(unit, layers, tmp_path):
    model = randomised(build((2, 1, 2), unit, layers))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, TreeEnsemble)
    assert (loaded.architecture, loaded.tree, loaded.factory, loaded.images) == (
        model.architecture,
        model.tree,
        model.factory,
        model.images,
    )
    images = random_images()
    np.testing.assert_allclose(leaf_logits(loaded, images), leaf_logits(model, images), atol=1e-6)
    np.testing.assert_allclose(
        leaf_logits(loaded.prefix(3), images), leaf_logits(model, images)[:, :3], atol=1e-5
    )


def test_settings_survive_json():
    layers = TrainingLayers(weight_decay=0.25, norm_momentum=0.5, synchronized=True)
    model = build((1, 2), layers=layers)
    rebuilt = TreeEnsemble.from_config(json.loads(json.dumps(model.get_config())))
    assert rebuilt.get_config() == model.get_config()
    assert rebuilt.factory == layers
    assert weights.read(rebuilt).keys() == weights.read(model).keys()


def test_weight_files_load_into_another_model(tmp_path):
    model, other = randomised(build((1, 2, 2))), build((1, 2, 2))
    images = random_images()
    assert np.abs(leaf_logits(other, images) - leaf_logits(model, images)).max() > 1e-3
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(leaf_logits(other, images), leaf_logits(model, images), atol=1e-6)


def test_a_prefix_is_built_once():
    model = build((1, 2, 2))
    assert model.prefix(3) is model.prefix(3)
    assert model.prefix(4) is model


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_probabilities_of_any_size_are_the_average_of_its_leaves(average):
    images = random_images()
    resnet = ResNet("basic", widths=(4, 8), units=(1, 1), strides=(1, 2), stem_width=4)
    model = TreeEnsemble(resnet, Tree((1, 3)), IMAGES, average=average)
    leaves = np.asarray(model(images, training=False))
    for size in (1, 2, 3):
        first = leaves[:, :size]
        if average == "logits":
            expected = softmax(first.mean(axis=1))
        else:
            expected = softmax(first).mean(axis=1)
        np.testing.assert_allclose(model.probabilities(images, size), expected, atol=1e-5)
    np.testing.assert_allclose(model.probabilities(images), expected, atol=1e-5)
    with pytest.raises(InputError, match="1 to 3, got 4"):
        model.probabilities(images, 4)
    with pytest.raises(InputError, match=r"average must be one of .*, got 'votes'"):
        TreeEnsemble(resnet, Tree((1, 3)), IMAGES, average="votes")


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)
