import numpy as np
import pytest
from scipy import special

from hne_tf.errors import InputError
from hne_tf.exported import typed_json
from hne_tf.exported.uncertainty.calibration import Calibration

CALIBRATION = Calibration(
    "validation", 100, (1.0, 2.0, 0.5), 0.9, {"lac": (0.4, 0.6, 0.9), "aps": (0.0, 0.5, 0.9)}
)
LOGITS = np.random.default_rng(0).normal(0, 2, (4, 5))
ANSWERS = special.softmax(LOGITS, axis=-1)


def test_temperatures_divide_logits():
    np.testing.assert_allclose(CALIBRATION.probabilities(ANSWERS, 1), ANSWERS)
    expected = special.softmax(LOGITS / 2, axis=-1)
    np.testing.assert_allclose(CALIBRATION.probabilities(ANSWERS, 2), expected)


def test_each_image_has_the_temperature_of_its_size():
    sizes = np.array([1, 2, 3, 2])
    temperatures = np.array([1.0, 2.0, 0.5, 2.0])[:, None]
    expected = special.softmax(LOGITS / temperatures, axis=-1)
    np.testing.assert_allclose(CALIBRATION.probabilities(ANSWERS, sizes), expected)
    expected = np.array([0.4, 0.6, 0.9, 0.6])[:, None] >= 1 - ANSWERS
    np.testing.assert_array_equal(CALIBRATION.sets(ANSWERS, sizes), expected)


def test_improbable_classes_stay_finite():
    answers = np.array([[1.0, 0.0, 1e-40]], np.float32)
    found = CALIBRATION.probabilities(answers, 3)
    np.testing.assert_allclose(found, [[1, 0, 0]], atol=1e-30)


def test_json_keeps_it():
    values = typed_json.encode(CALIBRATION)
    assert typed_json.decode(Calibration, values, "calibration") == CALIBRATION


def test_a_method_without_limits_is_named():
    with pytest.raises(InputError, match="prediction sets must be lac or aps, got 'raps'"):
        CALIBRATION.sets(ANSWERS, 1, "raps")


def test_every_size_has_its_numbers():
    CALIBRATION.check(3)
    message = "temperatures must have 4 numbers, one for each size, got 3"
    with pytest.raises(InputError, match=message):
        CALIBRATION.check(4)
