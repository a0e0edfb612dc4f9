"""Fused batch norms against Keras's own, on the same weights and images."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.fused import FusedBatchNormalization, FusedL2, FusedTrainingLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((7, 7, 3), ("ant", "bee"), (128.0,) * 3, (64.0,) * 3)
BATCH = np.random.default_rng(0).integers(0, 256, (5, 7, 7, 3)).astype(np.uint8)


def build(unit, layers):
    resnet = ResNet(unit, (4, 6), (1, 1), (1, 2), stem_width=3)
    return TreeEnsemble(resnet, Tree((1, 2)), IMAGES, layers)


def normalised_layers(model):
    return [
        layer
        for row in model.node_models
        for node in row
        for layer in node.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]


@pytest.fixture(params=["basic", "bottleneck"])
def pair(request):
    """Two models with the same weights, the first one's norms fused."""
    fused = build(request.param, FusedTrainingLayers(0.01, norm_momentum=0.75))
    plain = build(request.param, TrainingLayers(0.01, norm_momentum=0.75))
    random = np.random.default_rng(1)
    values = {name: random.uniform(0.5, 1.5, v.shape) for name, v in weights.read(plain).items()}
    for model in (fused, plain):
        weights.load(model, values)
    return fused, plain


def gradients(model):
    """Leaf logits in training mode and the gradients of their mean square."""
    with tf.GradientTape() as tape:
        logits = model(BATCH, training=True)
        loss = tf.reduce_mean(logits**2) + tf.add_n(model.losses)
    return [logits, *tape.gradient(loss, model.trainable_variables)]


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_outputs_gradients_and_statistics_equal_keras(pair):
    fused, plain = pair
    assert all(type(layer) is FusedBatchNormalization for layer in normalised_layers(fused))
    for got, expected in zip(gradients(fused), gradients(plain), strict=True):
        assert_close(got, expected)
    moved = weights.read(plain)
    for name, value in weights.read(fused).items():
        assert_close(value, moved[name])
    assert_close(fused(BATCH, training=False), plain(BATCH, training=False))


def test_frozen_norms_use_their_moving_statistics(pair):
    fused, plain = pair
    for model in pair:
        for layer in normalised_layers(model):
            layer.trainable = False
    before = weights.read(fused)
    assert_close(fused(BATCH, training=True), plain(BATCH, training=True))
    for name, value in weights.read(fused).items():
        np.testing.assert_array_equal(value, before[name])


def test_saved_models_keep_their_factory(pair, tmp_path):
    fused, _ = pair
    fused.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.factory == fused.factory
    assert_close(loaded(BATCH, training=False), fused(BATCH, training=False))


def test_fused_norms_cannot_be_synchronised():
    with pytest.raises(InputError, match="cannot be synchronised"):
        FusedTrainingLayers(synchronized=True)


def test_a_penalty_and_its_gradient_equal_keras():
    weight = tf.constant(np.random.default_rng(3).normal(size=(3, 3, 4, 5)).astype(np.float32))
    found = []
    for kind in (FusedL2, keras.regularizers.L2):
        with tf.GradientTape() as tape:
            tape.watch(weight)
            value = kind(0.3)(weight)
        found.append((value, tape.gradient(value, weight)))
    for got, expected in zip(*found, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)
