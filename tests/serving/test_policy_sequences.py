"""Random sequences of every public call of a client's policy and its latencies.

Whatever servers, clocks and callers do, only documented exceptions come out, nothing
stays in flight, and a server that answers again is used again.
"""

import math

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hne_tf.client.answers import Answer, BudgetError
from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.messages import (
    CallError,
    MixedBatchError,
    ModelInfo,
    Outputs,
    Signature,
    TensorSpec,
)
from hne_tf.client.metrics import ClientMetrics
from hne_tf.client.policy import BudgetPolicy, Call, Learn, Wait
from hne_tf.errors import InputError

_BATCHES = (1, 2, 8)
_IMAGES = {batch_size: np.zeros([batch_size, 8, 8, 1], np.uint8) for batch_size in _BATCHES}
_WRONG_IMAGES = [np.zeros(shape, np.uint8) for shape in [(0, 8, 8, 1), (1, 8, 8, 3), (8, 8), ()]]
_PROBABILITIES = {"probabilities": np.zeros([1, 10], np.float32)}
_SPEC = Signature(
    {"images": TensorSpec("uint8", (None, 8, 8, 1))},
    {"probabilities": TensorSpec("float32", (None, 10))},
)
_ERRORS = [CallError("a failure", code) for code in grpc.StatusCode]
_ERRORS.append(MixedBatchError("a failure", grpc.StatusCode.FAILED_PRECONDITION))
# What is done with one of those on their way, by position.
_positions = st.integers(0, 15)
_sizes = st.sampled_from([1, 2, 3, 4, 8, 16])
_batches = st.sampled_from(_BATCHES)
_sets_of_sizes = st.sampled_from(
    [(), (1,), (4,), (1, 2), (2, 2, 1), (1, 2, 4), (2, 4, 8), (1, 2, 4, 8, 16)]
)
_budgets_ms = st.sampled_from([1e-6, 1.0, 20.0, 100.0, 5000.0])
# The clock may stand still, jump and go back.
_steps_ms = st.sampled_from(
    [0.0, 1e-9, 0.5, 1.0, 7.0, 10.0, 30.0, 100.0, 1100.0, 2500.0, 5000.0, 1e9, -1.0, -1e5]
)
_priors = st.sampled_from(
    [None, {1: {1: 5.0, 2: 9.0, 4: 16.0}}, {2: {2: 3.0}, 8: {1: 1e-9, 16: 1e9}}]
)


def sequences(**operations):
    """Lists of `(name, arguments)`, from the strategies of each operation's arguments."""
    return st.lists(
        st.one_of(
            [st.tuples(st.just(name), st.tuples(*each)) for name, each in operations.items()]
        ),
        max_size=40,
    )


class Clock:
    """In seconds, moved by the test."""

    def __init__(self):
        self.now = 1e4

    def __call__(self):
        return self.now

    def passes(self, step_ms):
        self.now += step_ms / 1000


class LatencyCalls:
    """`Latencies`: tickets end once, twice or never, while sizes and the clock change."""

    def __init__(self, prior):
        self.clock = Clock()
        self.latencies = Latencies(prior, self.clock)
        self.sizes = []
        self.tickets = []
        self.flying = set()

    def time_passes(self, step_ms):
        self.clock.passes(step_ms)

    def set_sizes(self, sizes):
        self.latencies.set_sizes(sizes)
        self.sizes = sorted(set(sizes))
        assert list(self.latencies.sizes) == self.sizes

    def sent(self, size, batch_size):
        self.tickets.append(self.latencies.sent(size, batch_size))
        self.flying.add(self.tickets[-1])

    def answered(self, position):
        if self.tickets:
            ticket = self.tickets[position % len(self.tickets)]
            assert self.latencies.answered(ticket) >= 0
            self.flying.discard(ticket)

    def failed(self, position, late):
        if self.tickets:
            ticket = self.tickets[position % len(self.tickets)]
            assert self.latencies.failed(ticket, late) >= 0
            self.flying.discard(ticket)

    def refuses(self, size, batch_size):
        for ask in (
            lambda: self.latencies.sent(size, batch_size),
            lambda: self.latencies.choose(batch_size, 10.0),
            lambda: self.latencies.estimates_ms(batch_size),
            lambda: self.latencies.set_sizes([batch_size]),
        ):
            with pytest.raises(InputError, match="1 or more"):
                ask()

    def choose(self, batch_size, budget_ms, below):
        choice = self.latencies.choose(batch_size, budget_ms, below)
        if not self.sizes:
            assert choice is None
            return
        assert choice.size in self.sizes
        assert choice.is_smallest == (choice.size == self.sizes[0])
        assert below is None or choice.size < below or choice.is_smallest
        assert choice.in_flight == len(self.flying)
        assert 0 <= choice.waiting_ms < math.inf
        assert choice.fastest_ms <= choice.smallest_ms <= choice.estimate_ms

    def check(self):
        """Estimates are numbers that do not fall with the size."""
        for batch_size in _BATCHES:
            estimates = self.latencies.estimates_ms(batch_size)
            assert list(estimates) == self.sizes
            values = list(estimates.values())
            assert not any(math.isnan(value) or value < 0 for value in values)
            assert values == sorted(values)

    def end(self):
        """When all have ended and time has passed, nothing is waited for."""
        for ticket in self.flying:
            self.latencies.failed(ticket)
        self.latencies.set_sizes([1, 2])
        self.clock.passes(1e13)
        choice = self.latencies.choose(1, 10.0)
        assert (choice.in_flight, choice.waiting_ms) == (0, 0.0)


@given(
    _priors,
    sequences(
        time_passes=[_steps_ms],
        set_sizes=[_sets_of_sizes],
        sent=[_sizes, _batches],
        answered=[_positions],
        failed=[_positions, st.booleans()],
        choose=[
            _batches,
            _budgets_ms | st.sampled_from([math.inf, 0.0, -5.0]),
            st.none() | _sizes,
        ],
        refuses=[_sizes, st.sampled_from([0, -1])],
    ),
)
def test_latencies_survive_any_sequence_of_calls(bounded, prior, operations):
    with bounded():
        calls = LatencyCalls(prior)
        for name, arguments in operations:
            getattr(calls, name)(*arguments)
            calls.check()
        calls.end()


class PolicyCalls:
    """`BudgetPolicy`: requests at once, whose calls are answered, refused or interrupted."""

    def __init__(self, prior, grace_ms):
        self.clock = Clock()
        self.latencies = Latencies(prior, self.clock)
        metrics = ClientMetrics(CollectorRegistry())
        self.policy = BudgetPolicy(
            "digits", self.latencies, metrics, grace_ms, clock=self.clock, seed=0
        )
        # Those on their way: the generator and what it waits for.
        self.requests = []

    def time_passes(self, step_ms):
        self.clock.passes(step_ms)

    def learned(self, sizes, version):
        if sizes:
            self.policy.learned(_info(sizes, version))
            assert list(self.latencies.sizes) == sorted(set(sizes))
        else:
            with pytest.raises(InputError, match="must have signatures"):
                self.policy.learned(_info(sizes, version))

    def ask(self, batch_size, budget_ms):
        steps = self.policy.answer(_IMAGES[batch_size], budget_ms)
        self._move(steps, lambda: next(steps))

    def ask_for_wrong_images(self, images, budget_ms):
        steps = self.policy.answer(images, budget_ms)
        self._move(steps, lambda: next(steps), wrong_images=True)

    def ask_without_a_budget(self, budget_ms):
        with pytest.raises(InputError, match="budget must be"):
            next(self.policy.answer(_IMAGES[1], budget_ms))

    def answer(self, position, sizes, version):
        """Gives a request what it waits for."""
        if not self.requests:
            return
        steps, action, wrong = self.requests.pop(position % len(self.requests))
        if isinstance(action, Wait):
            self.clock.passes(1000 * action.seconds)
            self._move(steps, lambda: steps.send(None), wrong)
        elif isinstance(action, Call):
            self._move(steps, lambda: steps.send(Outputs(version, _PROBABILITIES)), wrong)
        else:
            info = _info(sizes, version)
            self._move(steps, lambda: steps.send(info), wrong, no_ensembles=not sizes)

    def refuse(self, position, error, at_once):
        """Fails a call, at once or when its time is up."""
        asked = [request for request in self.requests if not isinstance(request[1], Wait)]
        if not asked:
            return
        request = asked[position % len(asked)]
        self.requests.remove(request)
        steps, action, wrong = request
        if not at_once:
            self.clock.passes(1000 * max(0.0, action.timeout_s))
        self._move(steps, lambda: steps.throw(error), wrong)

    def interrupt(self, position):
        if self.requests:
            steps, _, _ = self.requests.pop(position % len(self.requests))
            steps.close()

    def check(self):
        """In flight are the calls that have not ended."""
        if self.latencies.sizes:
            calls = sum(isinstance(action, Call) for _, action, _ in self.requests)
            assert self.latencies.choose(1, 1.0).in_flight == calls

    def end(self):
        """A server that answers at last is used again, whatever came before."""
        for steps, _, _ in self.requests:
            steps.close()
        self.requests = []
        assert isinstance(self._ask_sound_server(1e6), Answer)
        # Whatever was believed of it, answers within the budget soon count for more.
        outcomes = [self._ask_sound_server(100.0) for _ in range(30)]
        assert all(isinstance(outcome, Answer | BudgetError) for outcome in outcomes)
        assert isinstance(outcomes[-1], Answer)
        self.check()

    def _ask_sound_server(self, budget_ms):
        """Asks a server that answers everything within 5 ms, some seconds later."""
        self.clock.passes(2100.0)
        steps = self.policy.answer(_IMAGES[1], budget_ms)
        action = _outcome(lambda: next(steps))
        while isinstance(action, Call | Learn | Wait):
            self.clock.passes(1000 * action.seconds if isinstance(action, Wait) else 5.0)
            result = None
            if not isinstance(action, Wait):
                sound = Outputs(4, _PROBABILITIES)
                result = sound if isinstance(action, Call) else _info([1, 2, 4], 4)
            action = _outcome(lambda: steps.send(result))  # noqa: B023
        return action

    def _move(self, steps, move, wrong_images=False, no_ensembles=False):
        """Takes a request to its next action, its answer or a documented exception."""
        outcome = _outcome(move)
        if isinstance(outcome, Answer):
            assert not wrong_images
            assert outcome.attempts[-1].code == "OK"
        elif isinstance(outcome, BudgetError):
            assert outcome.code in grpc.StatusCode
        elif isinstance(outcome, InputError):
            assert wrong_images or no_ensembles
            assert str(outcome).startswith(("images must be uint8", "a model must have signatures"))
        else:
            seconds = outcome.seconds if isinstance(outcome, Wait) else outcome.timeout_s
            assert not math.isnan(seconds)
            assert seconds >= 0 or not isinstance(outcome, Wait)
            assert not (isinstance(outcome, Call) and wrong_images)
            self.requests.append((steps, outcome, wrong_images))


def _outcome(move):
    """The next action, the answer, or the documented exception."""
    try:
        return move()
    except StopIteration as finished:
        return finished.value
    except InputError as error:
        return error


def _info(sizes, version):
    return ModelInfo(version, {f"ensemble_{size}": _SPEC for size in sizes})


@given(
    _priors,
    st.sampled_from([0.0, 50.0]),
    sequences(
        time_passes=[_steps_ms],
        learned=[_sets_of_sizes, st.integers(1, 3)],
        ask=[_batches, _budgets_ms],
        ask_for_wrong_images=[st.sampled_from(_WRONG_IMAGES), _budgets_ms],
        ask_without_a_budget=[st.sampled_from([0.0, -1.0, math.nan, math.inf, "20", None])],
        answer=[_positions, _sets_of_sizes, st.integers(1, 3)],
        refuse=[_positions, st.sampled_from(_ERRORS), st.booleans()],
        interrupt=[_positions],
    ),
)
def test_a_policy_survives_any_sequence_of_calls(bounded, prior, grace_ms, operations):
    with bounded():
        calls = PolicyCalls(prior, grace_ms)
        for name, arguments in operations:
            getattr(calls, name)(*arguments)
            calls.check()
        calls.end()
