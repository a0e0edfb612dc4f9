"""Live latency estimates on a clock of the test's own."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.latency.windows import SlidingWindow, isotonic
from hne_tf.errors import InputError


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def latencies(clock):
    made = Latencies(clock=clock)
    made.set_sizes((1, 2, 4))
    return made


def answer(latencies, clock, size, milliseconds, batch_size=1):
    ticket = latencies.sent(size, batch_size)
    clock.now += milliseconds / 1000
    latencies.answered(ticket)


def test_a_window_is_limited_by_count_and_age():
    window = SlidingWindow(count=3, age_ms=100.0)
    for now_ms, value in ((0, 9.0), (10, 1.0), (20, 3.0), (30, 2.0)):
        window.add(now_ms, value)
    assert [window.percentile(fraction) for fraction in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    window.expire(110)
    assert len(window) == 2
    assert window.percentile(0.0) == 2.0
    assert window.expiry_ms == 120
    window.expire(1000)
    assert len(window) == 0
    assert window.expiry_ms == math.inf


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0.1, 64)), min_size=1, max_size=16))
def test_isotonic_never_falls_and_keeps_the_mean(pairs):
    values, weights = zip(*pairs, strict=True)
    smooth = isotonic(values, weights)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(smooth))
    total = sum(v * w for v, w in pairs)
    assert sum(s * w for s, w in zip(smooth, weights, strict=True)) == pytest.approx(total)


def test_a_sequence_that_rises_is_left_alone():
    assert isotonic([1.0, 2.0, 2.0, 5.0], [1, 1, 1, 1]) == [1.0, 2.0, 2.0, 5.0]
    assert isotonic([1.0, 9.0, 4.0], [1, 1, 4]) == [1.0, 5.0, 5.0]


def test_nothing_is_known_at_first(latencies):
    assert latencies.estimates_ms(1) == {1: math.inf, 2: math.inf, 4: math.inf}
    choice = latencies.choose(1, 1e9)
    assert (choice.size, choice.fits) == (1, False)


def test_a_measured_size_bounds_the_larger_ones(latencies, clock):
    answer(latencies, clock, 1, 10.0)
    assert latencies.estimates_ms(1) == pytest.approx({1: 10.0, 2: 20.0, 4: 40.0})
    answer(latencies, clock, 2, 15.0)
    assert latencies.estimates_ms(1) == pytest.approx({1: 10.0, 2: 15.0, 4: 30.0})


def test_a_profile_is_scaled_by_what_was_measured(clock):
    latencies = Latencies({1: {1: 1.0, 2: 1.5, 4: 3.0}}, clock)
    latencies.set_sizes((1, 2, 4))
    assert latencies.estimates_ms(1) == {1: 1.0, 2: 1.5, 4: 3.0}
    assert latencies.estimates_ms(8) == {1: 8.0, 2: 12.0, 4: 24.0}
    answer(latencies, clock, 2, 6.0)
    assert latencies.estimates_ms(1) == pytest.approx({1: 4.0, 2: 6.0, 4: 12.0}, rel=0.6)
    assert latencies.estimates_ms(1)[4] == pytest.approx(12.0)


def test_another_batch_size_is_bounded_by_what_is_known(latencies, clock):
    answer(latencies, clock, 1, 10.0, batch_size=2)
    estimates = latencies.estimates_ms(8)
    assert estimates[1] == pytest.approx(40.0)
    assert latencies.estimates_ms(1)[1] == pytest.approx(10.0)


def test_an_estimate_is_a_high_percentile_not_a_mean(latencies, clock):
    for milliseconds in [10.0] * 40 + [30.0] * 6 + [500.0]:
        answer(latencies, clock, 4, milliseconds)
    # Only the last seconds count; the outlier is above the percentile.
    assert latencies.estimates_ms(1)[4] == pytest.approx(30.0)


def test_work_in_flight_counts_without_any_answer(latencies, clock):
    for _ in range(10):
        answer(latencies, clock, 4, 40.0)
    alone = latencies.choose(1, 100.0)
    assert alone.size == 4
    tickets = [latencies.sent(4, 1) for _ in range(2)]
    busy = latencies.choose(1, 100.0)
    assert busy.size < 4
    assert busy.waiting_ms > 60.0
    for ticket in tickets:
        latencies.failed(ticket)
    assert latencies.choose(1, 100.0) == alone


def test_slow_answers_of_one_size_count_for_all_and_are_forgotten_within_seconds(latencies, clock):
    for _ in range(20):
        for size in (1, 2, 4):
            answer(latencies, clock, size, 10.0 * size)
    assert latencies.choose(1, 60.0).size == 4
    for _ in range(4):
        answer(latencies, clock, 1, 60.0)
    assert latencies.choose(1, 60.0).size == 1
    clock.now += 2.5
    assert latencies.estimates_ms(1)[4] < 50.0


def test_an_overdue_answer_counts_before_it_comes(latencies, clock):
    for _ in range(10):
        answer(latencies, clock, 1, 10.0)
    before = latencies.estimates_ms(1)[1]
    latencies.sent(1, 1)
    clock.now += 0.2
    assert latencies.estimates_ms(1)[1] > before + 150.0


def test_what_was_given_up_may_still_be_computed(latencies, clock):
    for _ in range(10):
        answer(latencies, clock, 4, 40.0)
    ticket = latencies.sent(4, 1)
    clock.now += 0.01
    latencies.failed(ticket, late=True)
    first = latencies.choose(1, 100.0).waiting_ms
    clock.now += 0.02
    assert first > latencies.choose(1, 100.0).waiting_ms > 0
    clock.now += 1.0
    assert latencies.choose(1, 100.0).waiting_ms == 0


def test_sizes_can_change(latencies, clock):
    for size in (1, 2, 4):
        answer(latencies, clock, size, 10.0 * size)
    latencies.set_sizes((2, 4, 8))
    assert list(latencies.estimates_ms(1)) == [2, 4, 8]
    assert latencies.estimates_ms(1)[8] == pytest.approx(80.0)
    ticket = latencies.sent(8, 1)
    latencies.set_sizes((2, 4))
    latencies.answered(ticket)
    assert latencies.choose(1, 1e6).size == 4


def test_a_smaller_size_is_chosen_after_a_failure(latencies, clock):
    for size in (1, 2, 4):
        answer(latencies, clock, size, 10.0)
    assert [latencies.choose(1, 1e6, below).size for below in (4, 2, 1)] == [2, 1, 1]


def test_a_first_request_that_is_given_up_leaves_estimates_that_work(latencies, clock):
    ticket = latencies.sent(1, 1)
    clock.now += 0.1
    assert latencies.failed(ticket, late=True) == pytest.approx(100.0)
    assert latencies.choose(1, 100.0).size == 1
    clock.now += 10.0
    answer(latencies, clock, 1, 10.0)
    assert latencies.estimates_ms(1) == pytest.approx({1: 10.0, 2: 20.0, 4: 40.0})


def test_requests_that_take_no_time_leave_estimates_that_work(latencies, clock):
    for _ in range(3):
        answer(latencies, clock, 1, 0.0)
    tickets = [latencies.sent(1, 1) for _ in range(2)]
    for ticket in tickets:
        latencies.answered(ticket)
    assert latencies.choose(1, 1.0).size == 4


@pytest.mark.parametrize("sizes", [(1, 2, 4, 8, 16), (4,), (2, 4, 8), ()])
def test_answers_that_come_after_the_sizes_have_changed_count_as_before(latencies, clock, sizes):
    for size in (1, 2, 4):
        answer(latencies, clock, size, 10.0 * size)
    ticket = latencies.sent(4, 1)
    latencies.set_sizes(sizes)
    clock.now += 0.04
    assert latencies.answered(ticket) == pytest.approx(40.0)
    if 4 in sizes:
        # Not disturbed: it took what size 4 takes, not what another size takes.
        assert latencies.estimates_ms(1)[4] == pytest.approx(40.0)


def test_answers_of_new_sizes_count_at_once(latencies, clock):
    answer(latencies, clock, 1, 10.0)
    ticket = latencies.sent(16, 1)
    latencies.set_sizes((1, 2, 4, 8, 16))
    clock.now += 0.08
    latencies.answered(ticket)
    assert latencies.estimates_ms(1)[16] == pytest.approx(80.0)


def test_without_sizes_there_is_no_choice(latencies, clock):
    answer(latencies, clock, 1, 10.0)
    latencies.set_sizes(())
    assert latencies.choose(1, 100.0) is None
    assert latencies.estimates_ms(1) == {}
    latencies.set_sizes((1, 2))
    assert latencies.choose(1, 100.0).size == 1


def test_a_request_ends_once(latencies, clock):
    for _ in range(3):
        answer(latencies, clock, 1, 10.0)
    ticket = latencies.sent(1, 1)
    clock.now += 0.01
    latencies.answered(ticket)
    before = latencies.choose(1, 100.0)
    latencies.failed(ticket, late=True)
    latencies.answered(ticket)
    assert latencies.choose(1, 100.0) == before


def test_a_batch_size_that_knew_nothing_learns_from_others(latencies, clock):
    assert latencies.estimates_ms(8)[1] == math.inf
    answer(latencies, clock, 1, 10.0)
    clock.now += 0.1
    assert latencies.estimates_ms(8)[1] == pytest.approx(80.0)


def test_a_clock_that_goes_back_adds_no_work(latencies, clock):
    for _ in range(3):
        answer(latencies, clock, 4, 40.0)
    ticket = latencies.sent(4, 1)
    clock.now += 0.01
    latencies.failed(ticket, late=True)
    before = latencies.choose(1, 100.0).waiting_ms
    clock.now -= 1000.0
    assert latencies.choose(1, 100.0).waiting_ms <= before


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_must_hold_an_image(latencies, batch_size):
    for ask in (
        latencies.estimates_ms,
        lambda batch_size: latencies.choose(batch_size, 10.0),
        lambda batch_size: latencies.sent(1, batch_size),
    ):
        with pytest.raises(InputError, match=f"batch size must be 1 or more, got {batch_size}"):
            ask(batch_size)


def test_sizes_must_be_positive_and_count_once(latencies):
    with pytest.raises(InputError, match=r"1 or more, got \[0, 2\]"):
        latencies.set_sizes((2, 0))
    latencies.set_sizes((2, 1, 2))
    assert latencies.sizes == (1, 2)
