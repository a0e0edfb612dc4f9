import math

import pytest

from hne_tf.exported.session import StepTimes


def test_an_estimate_is_the_median_of_a_sliding_window():
    times = StepTimes(window=5)
    for time_ms in (1, 1, 2, 3, 4, 500, 600):
        times.add(1, 1, time_ms)
    assert times.estimate_ms(1, 1) == 4


@pytest.mark.parametrize(
    ("batch_size", "time_ms"), [(1, 10), (2, 10), (3, 12), (4, 14), (6, 20), (8, 26), (16, 52)]
)
def test_batch_sizes_never_measured(batch_size, time_ms):
    times = StepTimes()
    for measured_size, measured_ms in ((2, 10), (4, 14), (8, 26)):
        times.add(1, measured_size, measured_ms)
    assert times.estimate_ms(1, batch_size) == pytest.approx(time_ms)


def test_without_any_time_nothing_is_promised():
    assert StepTimes().estimate_ms(1, 1) == math.inf
