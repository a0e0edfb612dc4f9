import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.training.weight_average import WeightAverage


def model():
    """With moving statistics among its weights."""
    inputs = keras.Input((3,))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(2)(inputs))
    return keras.Model(inputs, x)


def test_the_average_of_all_weights_equals_one_by_hand():
    source, random = model(), np.random.default_rng(0)
    average = WeightAverage(source, model(), momentum=0.4)
    expected = source.get_weights()
    for update, kept in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4], start=1):
        source.set_weights([random.normal(0, 1, w.shape) for w in source.get_weights()])
        average.update(np.int64(update))
        pairs = zip(expected, source.get_weights(), strict=True)
        expected = [kept * mean + (1 - kept) * weight for mean, weight in pairs]
    for got, mean in zip(average.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(got, mean, rtol=1e-5)
        assert np.abs(mean).min() > 0


def test_it_begins_with_the_source_s_weights():
    source = model()
    average = WeightAverage(source, model(), momentum=0.9)
    for got, weight in zip(average.model.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(got, weight)


@pytest.mark.parametrize("momentum", [0.0, 1.0, -0.5])
def test_a_momentum_lies_between_0_and_1(momentum):
    with pytest.raises(InputError, match=f"between 0 and 1, got {momentum}"):
        WeightAverage(model(), model(), momentum)
