"""Nodes that are traced once for all alike compute what each computes by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data import load
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.objectives import Independent
from hne_tf.training import run as runs
from hne_tf.training.backends.shared_nodes import SharedNodes
from hne_tf.training.schedule import Schedule
from hne_tf.tree import Tree

SPEC = ImageSpec((8, 8, 1), ("a", "b", "c"), (100.0,), (50.0,))
RNG = np.random.default_rng(7)
IMAGES = RNG.integers(0, 256, (12, *SPEC.shape), np.uint8)
LABELS = RNG.integers(0, 3, 12)


def tree(branching=(2, 2)):
    keras.utils.set_random_seed(1)
    widths, units = (4, 6)[: len(branching)], (1, 1)[: len(branching)]
    resnet = ResNet("basic", widths=widths, units=units, strides=(1, 2)[: len(branching)])
    return TreeEnsemble(resnet, Tree(branching), SPEC, TrainingLayers(weight_decay=0.1))


def gradients(network, model, names=()):
    """Gradients of a loss with penalties, and what the network gives."""

    @tf.function(autograph=False)
    def traced(images):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in model.trainable_variables:
                tape.watch(variable.value)
            answer = network.with_activations(names)(images, training=True)
            loss = tf.reduce_mean(Independent().call(LABELS, answer["leaf_logits"]))
            loss += sum(network.losses)
        return tape.gradient(loss, [v.value for v in model.trainable_variables]), answer

    return traced(IMAGES)


def test_gradients_statistics_and_activations_are_those_of_the_model():
    names = ("block0.node1", "block1.node2")
    plain, model = tree(), tree()
    expected, answer = gradients(plain, plain, names)
    found, given = gradients(SharedNodes(model), model, names)
    assert given.keys() == answer.keys() == {"leaf_logits", *names}
    for name, value in answer.items():
        np.testing.assert_allclose(given[name], value, rtol=1e-4, atol=1e-5)
    assert len(found) == len(model.trainable_variables)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    moved = 0
    for one, other in zip(model.variables, plain.variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-5, atol=1e-6)
        moved += bool("moving" in one.path and np.abs(one.numpy() - tree_value(one)).max() > 0)
    # Statistics of six nodes with three norms each, and three in trunk and shortcuts besides.
    assert moved >= 2 * 6 * 2


def tree_value(variable):
    """What a moving statistic starts with."""
    return 1.0 if "variance" in variable.path else 0.0


def test_nodes_alike_are_one_function_and_others_are_not():
    model = tree()
    functions = SharedNodes(model)._functions
    assert [len(set(map(id, row))) for row in functions] == [1, 1]
    assert functions[0][0] is not functions[1][0]
    model.node_models[1][3].get_layer("unit0.conv1").trainable = False
    frozen = SharedNodes(model)._functions[1]
    assert frozen[0] is frozen[1] is frozen[2]
    assert frozen[0] is not frozen[3]


@keras.saving.register_keras_serializable("test_shared_nodes")
class Hidden(keras.layers.Layer):
    """Keeps what it learns where Keras does not see it."""

    def build(self, shape):
        self.hidden = tf.Variable(np.ones(shape[-1], np.float32), name="hidden")

    def call(self, x):
        return x * self.hidden


def test_variables_that_are_not_keras_own_are_refused():
    x = inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(Hidden()(x))
    network = keras.Model(inputs, keras.layers.Dense(3)(x))
    spec = ImageSpec((8, 8, 1), ("a", "b", "c"), (0.0,), (1.0,))
    model = TreeEnsemble.from_keras(network, (2,), spec)
    with pytest.raises(InputError, match=r"variables, got a tf.Variable or .* in 'block0.node0'"):
        gradients(SharedNodes(model), model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"training__ema_momentum": 0.9, "training__accumulate_steps": 2},
        {"optimizer__frozen_norms": True, "optimizer__block_rates": (0.5, 1.0, 1.0)},
        {"optimizer__name": "adamw", "training__precision": "bfloat16"},
        {"objective__name": "boosting", "objective__average": "sum"},
    ],
)
def test_steps_are_those_of_nodes_by_themselves(tiny_config, monkeypatch, settings):
    config = tiny_config(model__branching=(2, 2, 2), **settings)
    data_set = load(config.data)
    batches = data_set.train_batches(batch_size=32, start_step=0, total_steps=4, seed=1)
    taken = []
    for many in (8, 1000):
        monkeypatch.setattr(runs, "_MANY_NODES", many)
        keras.utils.set_random_seed(3)
        strategy = tf.distribute.get_strategy()
        run = runs.TrainingRun(config, data_set.spec, Schedule.of(config, 320), strategy)
        assert isinstance(run._network, SharedNodes) == (many == 8)
        steps = iter(batches)
        records = [run.take_steps(steps, 1) for _ in range(4)]
        taken.append((records, [variable.numpy() for variable in run.model.variables]))
    (records, values), (expected, others) = taken
    losses = [record["loss"] for record in records]
    rtol = 2e-2 if config.training.precision == "bfloat16" else 1e-3
    np.testing.assert_allclose(losses, [record["loss"] for record in expected], rtol=rtol)
    if config.training.precision == "float32":
        for one, other in zip(values, others, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-3)
