"""Leaves that are kept from knowing the same beyond the class, and the network that finds it."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.objectives import Dice, Independent
from hne_tf.objectives.adversary import Discriminator, next_of_class
from hne_tf.training import trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir
from hne_tf.tree import Tree

CLASSES, LEAVES = 3, 3
# Class 0 is there once.
LABELS = np.array([2, 0, 1, 2, 1, 2])
RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, 1.5, (len(LABELS), LEAVES, CLASSES)).astype(np.float32)
PARTNERS = {0: 3, 3: 5, 5: 0, 2: 4, 4: 2}


def built(loss, logits=LOGITS):
    keras.utils.set_random_seed(2)
    loss.adversary.build(keras.KerasTensor((None, *logits.shape[1:])))
    return loss


def log_ratio(loss, first, second, label, i, j):
    """A discriminator's answer for one pair, from its weights alone."""
    x = np.concatenate(
        [first, second, np.eye(CLASSES)[label], np.eye(LEAVES)[i], np.eye(LEAVES)[j]]
    )
    kernels = [variable.numpy() for variable in loss.adversary.trainable_variables]
    for kernel, bias in zip(kernels[:4:2], kernels[1:4:2], strict=True):
        x = x @ kernel + bias
        x = np.where(x > 0, x, 0.2 * x)
    return (x @ kernels[4] + kernels[5]).item()


def log_ratios(loss, logits, pairs):
    """Of each pair, those of one image and of two."""
    for i, j in pairs:
        same = [log_ratio(loss, logits[r, i], logits[r, j], LABELS[r], i, j) for r in PARTNERS]
        other = [
            log_ratio(loss, logits[r, i], logits[partner, j], LABELS[r], i, j)
            for r, partner in PARTNERS.items()
        ]
        yield np.array(same), np.array(other)


def redundancy(loss, logits=LOGITS, pairs=None):
    pairs = pairs or list(itertools.combinations(range(LEAVES), 2))
    estimates = [
        np.clip(same, -10, 10).mean() - np.log(np.exp(np.clip(other, -10, 10)).mean())
        for same, other in log_ratios(loss, logits, pairs)
    ]
    # Of all pairs, for those that a step takes.
    return LEAVES / 2 * np.mean(estimates)


def test_partners_are_the_next_of_the_class():
    partners, counted = next_of_class(LABELS)
    np.testing.assert_array_equal(counted, [1, 0, 1, 1, 1, 1])
    for row, partner in PARTNERS.items():
        assert partners[row] == partner


def test_values_are_those_of_a_plain_loop():
    loss = built(Dice(weight=0.7))
    learnt = -special.log_softmax(LOGITS, axis=-1)[np.arange(len(LABELS)), :, LABELS].sum(axis=1)
    expected = learnt + 0.7 * redundancy(loss)
    np.testing.assert_allclose(loss.call(LABELS, LOGITS), expected, rtol=1e-5)


def test_the_discriminator_learns_to_tell_one_image_from_two():
    loss = built(Dice())
    pairs = itertools.combinations(range(LEAVES), 2)
    wrong = np.mean(
        [
            np.logaddexp(0, -same) + np.logaddexp(0, other)
            for same, other in log_ratios(loss, LOGITS, pairs)
        ],
        axis=0,
    )
    expected = np.zeros(len(LABELS))
    expected[list(PARTNERS)] = wrong
    np.testing.assert_allclose(loss.adversary.loss(LABELS, LOGITS), expected, rtol=1e-5)


def test_gradients_are_those_of_small_differences_and_of_nobody_else():
    loss = built(Dice(weight=0.7))
    adversary = loss.adversary
    logits = tf.constant(LOGITS)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        total = tf.reduce_mean(loss.call(LABELS, logits))
        told = tf.reduce_sum(adversary.loss(LABELS, logits))
    assert tape.gradient(total, adversary.trainable_variables) == [None] * 6
    assert tape.gradient(told, logits) is None
    gradients = tape.gradient(told, adversary.trainable_variables)
    assert all(np.abs(each).max() > 0 for each in gradients)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        independent = tf.reduce_mean(Independent().call(LABELS, logits))
    of_leaves = tape.gradient(independent, logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_mean(loss.call(LABELS, logits))
    of_redundancy = (tape.gradient(total, logits) - of_leaves).numpy()
    for row, leaf, kind in [(0, 0, 1), (3, 2, 0), (4, 1, 2), (1, 0, 0)]:
        step = np.zeros_like(LOGITS, np.float64)
        step[row, leaf, kind] = 1e-4
        slope = redundancy(loss, LOGITS + step) - redundancy(loss, LOGITS - step)
        assert of_redundancy[row, leaf, kind] == pytest.approx(0.7 * slope / 2e-4, abs=2e-4)


def test_features_that_go_together_are_found_and_others_not():
    labels = np.arange(120) % CLASSES
    found = []
    for shared in (False, True):

        def features(step, shared=shared):
            drawn = np.random.default_rng(step).normal(0, 1, (120, 2, CLASSES))
            return (drawn[:, [0, 0]] if shared else drawn).astype(np.float32)

        keras.utils.set_random_seed(0)
        adversary = Discriminator((), 0, 64, 3e-3)
        adversary.build(keras.KerasTensor((None, 2, CLASSES)))

        @tf.function(autograph=False)
        def learn(batch, adversary=adversary):
            with tf.GradientTape() as tape:
                told = tf.reduce_mean(adversary.loss(labels, batch))
            variables = adversary.trainable_variables
            adversary.optimizer.apply(tape.gradient(told, variables), variables)

        for step in range(150):
            learn(features(step))
        found.append(float(adversary.redundancy(labels, features(1000))))
    assert found[0] < 0.3 < 1.0 < found[1]


def test_pairs_are_taken_in_turn():
    loss = built(Dice(weight=1.0, pairs=1))
    pairs = list(itertools.combinations(range(LEAVES), 2))
    taken = set()
    for step in range(len(pairs)):
        loss.adversary.optimizer.iterations.assign(step)
        value = float(loss.adversary.redundancy(LABELS, LOGITS))
        (pair,) = [
            pair for pair in pairs if redundancy(loss, pairs=[pair]) == pytest.approx(value, 1e-4)
        ]
        taken.add(pair)
    assert taken == set(pairs)


def test_a_batch_without_two_of_a_class_has_no_redundancy():
    loss = built(Dice(weight=1.0))
    labels, logits = np.array([0, 1, 2]), LOGITS[:3]
    np.testing.assert_allclose(loss.call(labels, logits), Independent().call(labels, logits))
    np.testing.assert_array_equal(loss.adversary.loss(labels, logits), np.zeros(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "weight must be 0 or more, got -1.0"),
        ({"pairs": -1}, "pairs must be 0 for all or more, got -1"),
        ({"width": 0}, "width must be 1 or more, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"ramp_steps": -1}, "ramp_steps must be 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Dice(**settings)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"pairs": 4}, (None, 3, 2), "pairs must be at most the 3 there are, got 4"),
        ({}, (None, 1, 2), "must have two features to pair or more, got 1"),
    ],
)
def test_what_cannot_be_paired_is_refused(settings, shape, message):
    with pytest.raises(InputError, match=message):
        Dice(**settings).adversary.build(keras.KerasTensor(shape))


def tree():
    resnet = ResNet("basic", widths=(4, 8), units=(1, 1), strides=(1, 2))
    spec = ImageSpec((8, 8, 1), ("a", "b", "c"), (100.0,), (50.0,))
    return TreeEnsemble(resnet, Tree((2, 2)), spec)


def test_features_are_the_means_of_feature_maps():
    loss = Dice(weight=1.0, nodes=("block0.node0", "block0.node1"))
    model = tree()
    model.build_adversary(loss)
    answer = model.answering(loss)(RNG.integers(0, 256, (6, 8, 8, 1), np.uint8))
    pooled = {name: np.mean(answer[name], axis=(1, 2)) for name in loss.activations}
    value = loss.adversary.redundancy(LABELS, answer)
    assert value != 0
    assert value == loss.adversary.redundancy(LABELS, {**answer, **pooled})


def test_features_of_different_widths_are_refused():
    loss = Dice(nodes=("block0.node0", "block1.node0"))
    with pytest.raises(InputError, match="must have features of one width, got 4, 3"):
        tree().build_adversary(loss)


def test_a_loss_before_its_discriminator_is_built_is_refused():
    with pytest.raises(InputError, match=r"must be built by `Ensemble\.build_adversary`"):
        Dice()(np.zeros((2,), np.int32), np.zeros((2, 3, 4), np.float32))


def test_fit_refuses_what_needs_two_optimisers():
    with pytest.raises(InputError, match=r"fit has one optimiser and dice needs two"):
        tree().compile("sgd", loss=Dice())


def weights_after(config, path, workdir=None):
    """Weights of a run of a few steps."""
    workdir = workdir or Workdir(path)
    train(config, workdir, report=str)
    return trained.restore(workdir, report=str).model.get_weights()


def run_config(tiny_config, weight, **fields):
    config = tiny_config(training__epochs=1.0, model__branching=(1, 2, 2), **fields)
    config.training.deterministic = True
    config.objective.name = "dice"
    config.objective.dice.update(weight=weight, pairs=2, width=8)
    return config


@pytest.mark.slow
def test_a_run_with_no_part_of_it_trains_as_without(tiny_config, tmp_path):
    without = run_config(tiny_config, 0.0)
    without.objective.name = "independent"
    expected = weights_after(without, tmp_path / "independent")
    ignored = weights_after(run_config(tiny_config, 0.0), tmp_path / "ignored")
    for value, other in zip(ignored, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)
    counted = weights_after(run_config(tiny_config, 1.0), tmp_path / "counted")
    assert max(np.abs(a - b).max() for a, b in zip(counted, expected, strict=True)) > 1e-3


@pytest.mark.slow
def test_a_run_goes_on_with_the_discriminator_that_it_had(tiny_config, tmp_path):
    config = run_config(tiny_config, 1.0, training__checkpoint_every_epochs=0.5)
    workdir = Workdir(tmp_path / "run")
    expected = weights_after(config, None, workdir)
    for file in workdir.checkpoints.glob("ckpt-10.*"):
        file.unlink()
    resumed = weights_after(config, None, workdir)
    for value, other in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["branched", "grouped"])
def test_both_forms_train_on_features_of_nodes(tiny_config, tmp_path, factory):
    config = run_config(tiny_config, 1.0, training__factory=factory, training__accumulate_steps=2)
    config.objective.dice.update(nodes=("block2.node0", "block2.node3"), pairs=1)
    assert train(config, Workdir(tmp_path / "run"), report=str) == 10


def test_settings_are_kept():
    loss = Dice(0.2, ("block0.node0", "block0.node1"), 1, 16, 0.01, 5, 0.1)
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    loaded = keras.saving.deserialize_keras_object(saved)
    assert loaded.get_config() == loss.get_config()
