import math
import threading

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


class _Interrupting(int):
    """A batch size during whose comparison another thread adds a time."""

    def __new__(cls, value, times):
        size = super().__new__(cls, value)
        size.times, size.threads = times, []
        return size

    def __ge__(self, other):
        if not self.threads:
            add = threading.Thread(target=self.times.add, args=(1, 64, 64.0))
            self.threads.append(add)
            add.start()
            # Without a lock it ends at once; with one it waits for the estimate.
            add.join(0.2)
        return super().__ge__(other)

    __hash__ = int.__hash__


def test_sessions_in_several_threads_share_times():
    times = StepTimes()
    for batch_size in (1, 2):
        times.add(1, batch_size, 10.0 * batch_size)
    batch_size = _Interrupting(8, times)
    assert times.estimate_ms(1, batch_size) == pytest.approx(80.0)
    batch_size.threads[0].join()
    assert times.estimate_ms(1, 64) == pytest.approx(64.0)
