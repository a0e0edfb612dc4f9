import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.exported.uncertainty import prediction_sets

PROBABILITIES = np.array([[0.5, 0.1, 0.4], [0.2, 0.7, 0.1]])


def test_least_ambiguous_sets_are_of_the_probable_classes():
    found = prediction_sets.sets("lac", PROBABILITIES, 0.65)
    assert found.tolist() == [[True, False, True], [False, True, False]]
    # Nothing is as probable as that.
    assert not prediction_sets.sets("lac", PROBABILITIES, 0.1).any()


def test_adaptive_sets_take_classes_until_the_limit_is_passed():
    likelier = [[0.0, 0.9, 0.5], [0.7, 0.0, 0.9]]
    np.testing.assert_allclose(prediction_sets.scores("aps", PROBABILITIES), likelier)
    assert prediction_sets.sets("aps", PROBABILITIES, 0.6).tolist() == [
        [True, False, True],
        [False, True, False],
    ]
    assert prediction_sets.sets("aps", PROBABILITIES, 0.0).sum(axis=1).tolist() == [1, 1]
    assert prediction_sets.sets("aps", PROBABILITIES, 1.0).all()


def test_each_image_can_have_a_limit_of_its_own():
    found = prediction_sets.sets("aps", PROBABILITIES, np.array([0.5, 0.9]))
    assert found.sum(axis=1).tolist() == [2, 3]


def test_an_unknown_method_is_named():
    with pytest.raises(InputError, match="must be lac or aps, got 'raps'"):
        prediction_sets.scores("raps", PROBABILITIES)
