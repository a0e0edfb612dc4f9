import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from hne_tf.compression import flat, treatments
from hne_tf.compression.report import kernel_report
from hne_tf.exits import Exits
from hne_tf.export.post_training import post_training
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import MSDNet, ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.tree import Tree

pytestmark = pytest.mark.slow

STEPS = 9
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), np.uint8)
CLASSES = ("a", "b", "c", "d", "e")


@pytest.fixture(scope="module")
def model():
    """A small tree with every kind of layer; no weight is 0."""
    spec = ImageSpec((6, 6, 3), CLASSES, mean=(120.0,) * 3, std=(60.0,) * 3)
    resnet = ResNet("bottleneck", (8, 10), (1, 1), (1, 2), stem_width=5)
    model = TreeEnsemble(resnet, Tree((1, 2)), spec, DeployLayers())
    rng = np.random.default_rng(1)
    values = {name: rng.normal(0, 0.3, v.shape) for name, v in weights.read(model).items()}
    weights.load(model, values)
    return model


def flattened(model, weight_decay=0.0):
    result = flat.flat_model(model, weight_decay)
    flat.load(result, weights.read(model))
    return result


def train(treatment):
    """A few steps in one graph, as the fine-tuning takes them."""
    optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(treatment.model.trainable_variables)

    @tf.function
    def steps():
        for _ in tf.range(STEPS):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(treatment.model(IMAGES, training=True) ** 2)
            variables = treatment.model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    steps()
    return treatment


def trained_form(model, values, layers):
    result = TreeEnsemble(model.architecture, model.tree, model.images, layers)
    weights.load(result, values)
    return result


def kernels(values):
    return {name: value for name, value in values.items() if name.endswith("kernel")}


def assert_depthwise_untreated(model, values, treated):
    assert {name for name in kernels(values) if "depthwise" in name} == kernels(
        values
    ).keys() - treated
    rows = {
        r["kind"]: r for r in kernel_report(trained_form(model, values, DeployLayers()), treated)
    }
    assert rows["depthwise"] == {
        "kind": "depthwise",
        "kernels": 3,
        "treated": 0,
        "parameters": 9 * (4 + 5 + 5),
        "zeros": 0.0,
        "distinct": rows["depthwise"]["distinct"],
    }
    assert rows["depthwise"]["distinct"] > 16
    for kind in ("conv", "head"):
        assert rows[kind]["treated"] == rows[kind]["kernels"] > 0
    return rows


def test_weight_decay_is_the_training_factorys_penalty(model):
    values = kernels(weights.read(model))
    expected = 0.3 / 2 * sum(np.sum(value**2) for value in values.values())
    np.testing.assert_allclose(tf.add_n(flattened(model, 0.3).losses), expected, rtol=1e-5)
    assert flattened(model).losses == []


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_pruned_kernels_have_just_the_sparsity(model, sparsity):
    treatment = train(treatments.prune(flattened(model), STEPS, sparsity))
    values = treatment.strip()
    for name in treatment.treated:
        kept = max(1, round(values[name].size * (1 - sparsity)))
        assert np.count_nonzero(values[name]) == kept, name
    rows = assert_depthwise_untreated(model, values, treatment.treated)
    assert rows["conv"]["zeros"] == pytest.approx(sparsity, abs=0.02)


def test_structured_pruning_leaves_two_of_every_four_inputs(model):
    treatment = train(treatments.prune(flattened(model), STEPS, structure="2:4"))
    values = treatment.strip()
    for name in treatment.treated:
        inputs_last = np.moveaxis(values[name], -2, -1)
        for start in range(0, inputs_last.shape[-1], 4):
            group = inputs_last[..., start : start + 4]
            assert np.count_nonzero(group, axis=-1).max() <= 2, name
    assert_depthwise_untreated(model, values, treatment.treated)


def test_clustered_kernels_have_few_values(model):
    treatment = train(treatments.cluster(flattened(model), clusters=6))
    values = treatment.strip()
    assert all(len(np.unique(values[name])) <= 6 for name in treatment.treated)
    rows = assert_depthwise_untreated(model, values, treatment.treated)
    assert rows["conv"]["distinct"] <= 6
    # The values are trained, and so is what is not clustered.
    before = weights.read(model)
    assert all(not np.array_equal(values[name], before[name]) for name in values)


def test_a_kernel_of_fewer_weights_than_clusters_is_left_alone(model):
    treatment = treatments.cluster(flattened(model), clusters=45)
    small = {n for n, v in kernels(weights.read(model)).items() if v.size <= 45}
    assert small
    assert not treatment.treated & small


@pytest.fixture(scope="module")
def quantized(model):
    return post_training(model, [IMAGES])


@pytest.fixture(scope="module")
def quantisation_aware(model, quantized):
    treatment = treatments.train_quantized(flattened(model), quantized)
    before = treatment.model(IMAGES, training=False).numpy()
    values = treatment.strip()
    return before, values, train(treatment)


def test_training_starts_from_the_quantised_model(quantized, quantisation_aware):
    before, values, _ = quantisation_aware
    np.testing.assert_allclose(before, quantized(IMAGES), atol=1e-5)
    expected = weights.read(quantized)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_the_trained_model_equals_the_quantised_factorys(model, quantized, quantisation_aware):
    before, _, treatment = quantisation_aware
    live = treatment.model(IMAGES, training=False).numpy()
    result = trained_form(model, treatment.strip(), QuantizedLayers())
    np.testing.assert_allclose(result(IMAGES), live, atol=1e-5)
    assert np.abs(live - before).max() > 1e-2
    rows = {r["kind"]: r for r in kernel_report(result, treatment.treated)}
    assert rows["depthwise"]["treated"] == rows["depthwise"]["kernels"] == 3
    assert rows["head"]["treated"] == 0


def test_a_node_starts_in_the_range_that_its_parent_ends_in(quantisation_aware):
    _, _, treatment = quantisation_aware
    values = treatment.strip()
    for end in ("min", "max"):
        parent = values[f"block0/node0/unit0/add/range/{end}"]
        for node in range(2):
            assert values[f"block1/node{node}/entry/range/{end}"] == parent


def test_each_of_several_features_starts_in_its_own_range():
    spec = ImageSpec((6, 6, 3), CLASSES, mean=(120.0,) * 3, std=(60.0,) * 3)
    dense = MSDNet((1, 1), 2, (1, 2), (0, 0), stem_width=3, head_width=4)
    quantized = post_training(TreeEnsemble(dense, Exits(2), spec, DeployLayers()), [IMAGES])
    treatment = treatments.train_quantized(flattened(quantized), quantized)
    live = treatment.model(IMAGES, training=False)
    np.testing.assert_allclose(live, quantized(IMAGES), atol=1e-5)
    values = train(treatment).strip()
    assert values.keys() == weights.read(quantized).keys()
    for end in ("min", "max"):
        features = [
            values[f"block0/node0/unit0/scale{scale}/concat/range/{end}"] for scale in range(2)
        ]
        for scale in range(2):
            assert values[f"block1/node1/entry{scale}/range/{end}"] == features[scale]
        # An exit sees the coarsest scale alone.
        assert values[f"block1/node0/entry1/range/{end}"] == features[1]
        assert f"block1/node0/entry0/range/{end}" not in values
    assert values["block0/node0/unit0/scale0/concat/range/max"] != features[1]
