import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from hne_tf.errors import InputError
from hne_tf.objectives import Boosting, Independent

LABELS = np.array([0, 2, 1, 1, 2])
LEAF_LOGITS = np.random.default_rng(1).normal(0, 1.5, (5, 4, 3)).astype(np.float32)
ONE_HOT = np.eye(3)[LABELS]


def test_each_leaf_is_added_to_those_before():
    expected = [
        -sum(special.log_softmax(leaves[: n + 1].sum(axis=0))[label] for n in range(4))
        for label, leaves in zip(LABELS, LEAF_LOGITS.astype(np.float64), strict=True)
    ]
    np.testing.assert_allclose(Boosting().call(LABELS, LEAF_LOGITS), expected, rtol=1e-5)
    np.testing.assert_allclose(Boosting().call(ONE_HOT, LEAF_LOGITS), expected, rtol=1e-5)


def test_a_leaf_learns_from_its_own_answer_and_not_from_later_ones():
    leaf_logits = tf.constant(LEAF_LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(leaf_logits)
        values = Boosting().call(LABELS, leaf_logits)
    answers = special.softmax(np.cumsum(LEAF_LOGITS, axis=1), axis=-1)
    expected = answers - ONE_HOT[:, None]
    np.testing.assert_allclose(tape.gradient(values, leaf_logits), expected, atol=1e-6)


def test_a_single_network_learns_as_always():
    single = LEAF_LOGITS[:, :1]
    expected = Independent().call(LABELS, single)
    np.testing.assert_allclose(Boosting().call(LABELS, single), expected, rtol=1e-6)


def test_labels_are_smoothed_and_settings_kept():
    loss = Boosting(label_smoothing=0.3)
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    smoothed = (0.7 * ONE_HOT + 0.1).astype(np.float32)
    expected = Boosting().call(smoothed, LEAF_LOGITS)
    for each in (loss, keras.saving.deserialize_keras_object(saved)):
        np.testing.assert_allclose(each.call(LABELS, LEAF_LOGITS), expected, rtol=1e-5)


def test_another_average_is_refused():
    with pytest.raises(InputError, match="average must be sum for boosting, got 'logits'"):
        Boosting("logits")
