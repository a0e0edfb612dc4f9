import numpy as np
import pytest
from scipy import special, stats

from hne_tf.errors import InputError
from hne_tf.exported.uncertainty import stopping

LEAVES, CLASSES = 5, 4
LOGITS = np.random.default_rng(0).normal(0, 2, (40, LEAVES, CLASSES)).astype(np.float32)


def answer(leaves, size):
    return special.softmax(leaves[:size].mean(axis=0))


def by_hand(rule, leaves, size):
    """The score of one image, `leaves` `[leaves, classes]`."""
    probabilities = answer(leaves, size)
    *_, second, best = np.argsort(probabilities)
    if rule == "confidence":
        return probabilities[best]
    if rule == "margin":
        return probabilities[best] - probabilities[second]
    if rule == "entropy":
        return 1 - stats.entropy(probabilities, base=CLASSES)
    if rule == "agreement":
        return sum(leaf.argmax() == best for leaf in leaves[:size]) / (size + 1)
    if size == 1:
        return 0.0
    gaps = [leaf[best] - leaf[second] for leaf in leaves[:size].astype(np.float64)]
    return 1 - stats.ttest_1samp(gaps, 0.0, alternative="greater").pvalue


def scores(rule, logits, size):
    probabilities = np.stack([answer(leaves, size) for leaves in logits])
    return stopping.scores(rule, probabilities, logits[:, :size])


@pytest.mark.parametrize("size", range(1, LEAVES + 1))
@pytest.mark.parametrize("rule", stopping.RULES)
def test_scores_equal_those_by_hand(rule, size):
    found = scores(rule, LOGITS, size)
    expected = [by_hand(rule, leaves, size) for leaves in LOGITS]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("rule", stopping.RULES)
def test_a_sure_image_has_a_higher_score(rule):
    """The first image is plain to all leaves; they toss a coin over the second."""
    plain = np.tile([4.0, 0.0, 0.0, 0.1], (LEAVES, 1)) + LOGITS[0] / 100
    doubtful = np.array([[0.2, 0, 0, 0], [0, 0.2, 0, 0]] * LEAVES)[:LEAVES] + LOGITS[0] / 100
    sure, unsure = scores(rule, np.stack([plain, doubtful]), LEAVES)
    assert sure > unsure + 0.1


def test_leaves_that_are_all_alike_are_certain_or_know_nothing():
    alike = np.repeat(np.array([[[3.0, 1.0]], [[0.0, 0.0]]]), 3, axis=1)
    found = stopping.scores("significance", special.softmax(alike[:, 0], axis=-1), alike)
    np.testing.assert_allclose(found, [1.0, 0.5])


@pytest.mark.parametrize("rule", stopping.RULES)
def test_a_model_of_one_class_is_certain(rule):
    assert stopping.scores(rule, np.ones((2, 1)), np.zeros((2, 3, 1))).tolist() == [1, 1]


def test_an_unknown_rule_is_named():
    with pytest.raises(InputError, match=r"one of confidence, margin, .*, got 'luck'"):
        stopping.scores("luck", LOGITS[:, 0], LOGITS)
