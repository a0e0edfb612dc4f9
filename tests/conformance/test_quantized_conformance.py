"""What holds for every architecture and tree once it is quantised.

Its file in integers is one of those of `test_tflite_conformance`.
"""

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.compression import flat
from hne_tf.export import signatures
from hne_tf.export.post_training import post_training
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble

# Equal but for sums that fall on the other side of a rounding.
ONE_STEP = 0.05


@pytest.fixture(scope="module")
def quantized(deployed_model):
    images = np.random.default_rng(6).integers(0, 256, (64, *deployed_model.images.shape), np.uint8)
    model = post_training(deployed_model, [images[:32], images[32:]])
    model.average = "logits"
    return model


@pytest.fixture(scope="module")
def quantized_logits(quantized, images):
    return quantized(images, training=False).numpy()


def test_the_flat_graph_equals_the_tree(deployed_model, images, leaf_logits):
    flattened = flat.flat_model(deployed_model)
    assert flat.read(flattened).keys() == weights.read(deployed_model).keys()
    flat.load(flattened, weights.read(deployed_model))
    np.testing.assert_allclose(flattened(images), leaf_logits, rtol=1e-5, atol=1e-5)


def test_quantised_answers_are_near_the_float_ones(leaf_logits, quantized_logits):
    assert 0 < np.abs(quantized_logits - leaf_logits).max() < 0.1 * np.abs(leaf_logits).max()


def test_quantised_weights_are_the_float_ones_and_a_range_per_unit(deployed_model, quantized):
    values = weights.read(quantized)
    ranges = {name for name in values if "/range/" in name}
    for name, value in weights.read(deployed_model).items():
        np.testing.assert_array_equal(values.pop(name), value)
    assert values.keys() == ranges
    for name in ranges:
        assert values[name] <= 0 if name.endswith("/min") else values[name] >= 0


def test_a_quantised_model_comes_back_from_its_config_and_weights(
    quantized, images, quantized_logits
):
    again = TreeEnsemble.from_config(quantized.get_config())
    weights.load(again, weights.read(quantized))
    np.testing.assert_array_equal(again(images, training=False), quantized_logits)


def test_quantised_prefixes_and_steps_are_the_ensembles(quantized, images, quantized_logits):
    for size in range(1, quantized.tree.leaves + 1):
        np.testing.assert_allclose(
            quantized.prefix(size)(images, training=False),
            quantized_logits[:, :size],
            atol=ONE_STEP,
        )
    newest = {"images": tf.constant(images)}
    for step in quantized.tree.steps:
        start = f"cache_{step.branch_block - 1}" if step.branch_block else "images"
        inputs = [newest[start]] + ([newest["running_sum"]] if step.size > 1 else [])
        newest |= signatures.step_signature(quantized, step)(*inputs)
        expected = quantized_logits[:, : step.size].sum(axis=1)
        np.testing.assert_allclose(newest["running_sum"], expected, atol=step.size * ONE_STEP)
