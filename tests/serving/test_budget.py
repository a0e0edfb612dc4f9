"""The budget policy's numbers."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hne_tf.errors import InputError
from serving import budget
from serving.budget import BudgetPolicy, measured_policy, percentile, profiled_policy

_LATENCIES = st.dictionaries(
    st.integers(1, 64), st.floats(1e-3, 1e3, allow_nan=False), min_size=1, max_size=8
)


@pytest.mark.parametrize(
    ("budget_ms", "size"),
    [(1.0, 1), (1.99, 1), (2.0, 2), (3.9, 2), (4.0, 4), (1e9, 4)],
)
def test_chooses_the_largest_size_that_fits(budget_ms, size):
    assert BudgetPolicy({4: 4.0, 1: 1.0, 2: 2.0}).choose(budget_ms) == size


def test_a_budget_below_the_smallest_is_refused_with_both_numbers():
    with pytest.raises(InputError, match=r"size 2, estimated at 1\.25 ms\), got 0\.5 ms"):
        BudgetPolicy({2: 1.25, 4: 3.0}).choose(0.5)


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, math.nan])
def test_a_budget_must_be_positive(budget_ms):
    with pytest.raises(InputError, match="more than 0 ms"):
        BudgetPolicy({1: 1.0}).choose(budget_ms)


def test_no_sizes_are_refused():
    with pytest.raises(InputError, match="at least one ensemble size"):
        BudgetPolicy({})


def test_a_larger_size_never_counts_as_faster():
    policy = BudgetPolicy({1: 2.0, 2: 5.0, 4: 3.0})
    assert policy.latency_ms == {1: 2.0, 2: 5.0, 4: 5.0}
    assert policy.choose(3.0) == 1
    assert policy.choose(5.0) == 4


@given(_LATENCIES, st.floats(1e-3, 2e3), st.floats(1e-3, 2e3))
def test_a_larger_budget_never_chooses_a_smaller_size(latency_ms, first, second):
    policy = BudgetPolicy(latency_ms)
    small, large = sorted((first, second))
    if small >= min(policy.latency_ms.values()):
        assert policy.choose(small) <= policy.choose(large)


def test_percentile_is_the_nearest_rank():
    values = [float(value) for value in range(20, 0, -1)]
    assert percentile(values, 0.95) == 19.0
    assert percentile(values, 0.5) == 10.0
    assert percentile([3.0], 0.95) == 3.0


class _Server:
    """A clock that calls move on, each size at its own pace."""

    def __init__(self, monkeypatch, milliseconds, warm_up_ms=0.0):
        self.now = 0.0
        self.calls = []
        self._milliseconds = milliseconds
        self._warm_up_ms = warm_up_ms
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def __call__(self, size):
        slow = self.calls.count(size) < budget.WARM_UP_CALLS
        self.calls.append(size)
        self.now += (self._milliseconds[size] + (self._warm_up_ms if slow else 0.0)) / 1000


def test_measured_policy_times_every_size_after_warm_up(monkeypatch):
    server = _Server(monkeypatch, {1: 1.5, 2: 2.5, 4: 4.5}, warm_up_ms=100.0)
    policy = measured_policy(server, (1, 2, 4))
    assert policy.latency_ms == pytest.approx({1: 1.5, 2: 2.5, 4: 4.5})
    calls = budget.WARM_UP_CALLS + budget.TIMED_CALLS
    assert server.calls == [1, 2, 4] * calls


def test_one_hiccup_does_not_count(monkeypatch):
    server = _Server(monkeypatch, {1: 1.5})
    hiccup_at = budget.WARM_UP_CALLS + 5

    def call(size):
        server(size)
        if len(server.calls) == hiccup_at:
            server.now += 1.0

    assert measured_policy(call, (1,)).latency_ms == pytest.approx({1: 1.5})


def test_profiled_policy_adds_transport_and_calls_only_the_smallest(monkeypatch):
    server = _Server(monkeypatch, {1: 1.8})
    policy = profiled_policy(server, {4: 4.0, 1: 1.0, 2: 2.0})
    assert policy.latency_ms == pytest.approx({1: 1.8, 2: 2.8, 4: 4.8})
    assert set(server.calls) == {1}


def test_a_server_faster_than_the_profile_earns_no_discount(monkeypatch):
    policy = profiled_policy(_Server(monkeypatch, {1: 0.4}), {1: 1.0, 2: 2.0})
    assert policy.latency_ms == {1: 1.0, 2: 2.0}
