"""What a request does next, with a clock of the test's own and no server."""

import contextlib
import math

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from hne_tf.client.answers import BudgetError
from hne_tf.client.latency.latencies import Latencies
from hne_tf.client.messages import CallError, ModelInfo, Outputs, Signature, TensorSpec
from hne_tf.client.metrics import ClientMetrics
from hne_tf.client.policy import BudgetPolicy, Call, Learn, Wait, percentile
from hne_tf.errors import InputError

IMAGES = np.zeros([1, 8, 8, 1], np.uint8)
_SPEC = Signature(
    {"images": TensorSpec("uint8", (None, 8, 8, 1))},
    {"probabilities": TensorSpec("float32", (None, 10))},
)
_PRIOR = {1: {1: 10.0, 2: 20.0, 4: 40.0}}
_OUTPUTS = Outputs(1, {"probabilities": np.zeros([1, 10], np.float32)})


class World:
    """A policy on a clock; answers take what the test says."""

    def __init__(self, prior=None, **options):
        self.now = 1000.0
        self.registry = CollectorRegistry()
        self.latencies = Latencies(prior, clock=lambda: self.now)
        metrics = ClientMetrics(self.registry)
        clock = {"clock": lambda: self.now, "seed": 0}
        self.policy = BudgetPolicy("digits", self.latencies, metrics, **clock, **options)
        self.actions = []

    def learn(self, sizes=(1, 2, 4), version=1):
        self.policy.learned(ModelInfo(version, {f"ensemble_{size}": _SPEC for size in sizes}))
        return self

    def ask(self, budget_ms, *outcomes, images=IMAGES):
        """Runs a request; outcomes are `(milliseconds, result or code)` for Learn and Call."""
        outcomes = iter(outcomes)
        steps = self.policy.answer(images, budget_ms)
        move, value = steps.send, None
        try:
            while True:
                action = move(value)
                self.actions.append(action)
                if isinstance(action, Wait):
                    self.now += action.seconds
                    move, value = steps.send, None
                    continue
                milliseconds, value = next(outcomes)
                self.now += min(milliseconds / 1000, action.timeout_s)
                move = steps.send
                if isinstance(value, grpc.StatusCode):
                    move, value = steps.throw, CallError("a failure", value)
        except StopIteration as finished:
            return finished.value

    def metric(self, name, **labels):
        return self.registry.get_sample_value(name, {"model": "digits", **labels})


def calls(world):
    return [action.size for action in world.actions if isinstance(action, Call)]


@pytest.mark.parametrize(("budget_ms", "size"), [(12, 1), (23, 1), (24, 2), (35, 2), (48, 4)])
def test_a_profile_chooses_the_largest_size_that_fits_with_some_room(budget_ms, size):
    world = World(_PRIOR).learn()
    assert world.ask(budget_ms, (5.0, _OUTPUTS)).size == size


def test_a_size_that_just_does_not_fit_is_tried_where_a_failure_can_be_made_good():
    world = World(_PRIOR).learn()
    answer = world.ask(45.0, (math.inf, grpc.StatusCode.DEADLINE_EXCEEDED), (10.0, _OUTPUTS))
    assert calls(world) == [4, 1]
    assert world.actions[0].timeout_s == pytest.approx(0.025)
    assert answer.latency_ms == pytest.approx(35.0)
    # Not again so soon.
    world.now += 0.9
    assert world.ask(45.0, (20.0, _OUTPUTS)).size < 4


def test_without_a_profile_the_smallest_size_is_asked_first_and_then_larger_ones():
    world = World().learn()
    for milliseconds in (10.0, 20.0, 25.0):
        world.ask(50.0, (milliseconds, _OUTPUTS))
    # Four times a leaf of 10 ms might not fit; what two leaves take says that it may.
    assert calls(world)[:2] == [1, 4] or calls(world)[:2] == [1, 2]
    assert world.ask(50.0, (25.0, _OUTPUTS)).size == 4


def test_the_signatures_are_learned_by_the_first_request_within_its_budget():
    world = World(_PRIOR)
    info = ModelInfo(1, {f"ensemble_{size}": _SPEC for size in (1, 2, 4)})
    answer = world.ask(100.0, (30.0, info), (20.0, _OUTPUTS))
    assert world.actions[0] == Learn(pytest.approx(0.1))
    assert world.actions[1].timeout_s <= 0.07 + 1e-9
    assert answer.latency_ms == pytest.approx(50.0)
    assert [(attempt.size, attempt.code) for attempt in answer.attempts] == [
        (None, "OK"),
        (4, "OK"),
    ]
    world.ask(100.0, (20.0, _OUTPUTS))
    assert not any(isinstance(action, Learn) for action in world.actions[1:])


def test_a_model_that_is_not_there_is_said_at_once():
    world = World()
    with pytest.raises(BudgetError, match="signatures NOT_FOUND") as caught:
        world.ask(100.0, (1.0, grpc.StatusCode.NOT_FOUND))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


def test_retries_back_off_get_smaller_and_end_with_the_budget():
    world = World(_PRIOR).learn()
    started = world.now
    with pytest.raises(BudgetError) as caught:
        world.ask(100.0, *[(2.0, grpc.StatusCode.UNAVAILABLE)] * 50)
    assert calls(world)[:3] == [4, 2, 1]
    assert set(calls(world)[3:]) <= {1}
    waits = [action.seconds for action in world.actions if isinstance(action, Wait)]
    assert waits[1] > waits[0] > 0
    assert world.now - started <= 0.1
    assert [attempt.size for attempt in caught.value.attempts] == calls(world)
    assert "100 ms" in str(caught.value)


def test_a_call_that_takes_too_long_leaves_room_for_the_smallest_size():
    world = World(_PRIOR).learn()
    answer = world.ask(200.0, (math.inf, grpc.StatusCode.DEADLINE_EXCEEDED), (10.0, _OUTPUTS))
    assert [attempt.size for attempt in answer.attempts] == [4, answer.size]
    assert answer.size < 4
    assert answer.latency_ms <= 200.0


def test_with_grace_a_late_answer_is_an_answer():
    world = World(_PRIOR, grace_ms=1000.0).learn()
    answer = world.ask(20.0, (300.0, _OUTPUTS))
    assert (answer.size, answer.latency_ms) == (1, pytest.approx(300.0))
    assert world.metric("hne_client_budget_missed_total") == 1


def test_a_budget_below_the_smallest_is_refused_with_both_numbers():
    world = World(_PRIOR).learn()
    world.ask(15.0, (9.0, _OUTPUTS))
    with pytest.raises(BudgetError, match=r"size 1, at best 9 ms\), got 0\.5 ms") as caught:
        world.ask(0.5)
    assert caught.value.attempts == ()
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # What was measured can be outdated.
    world.now += 60.0
    assert world.ask(0.5, (0.4, _OUTPUTS)).size == 1


@pytest.mark.parametrize("budget_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_must_be_positive_and_finite(budget_ms):
    with pytest.raises(InputError, match="more than 0 ms and finite"):
        World(_PRIOR).learn().ask(budget_ms)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros([1, 8, 8, 1], np.float32),
        np.zeros([1, 8, 8, 3], np.uint8),
        np.zeros([8, 8, 1], np.uint8),
        np.zeros([0, 8, 8, 1], np.uint8),
    ],
)
def test_other_images_are_refused(images):
    with pytest.raises(InputError, match=r"images must be uint8 \[batch, 8, 8, 1\]"):
        World(_PRIOR).learn().ask(100.0, images=images)


def test_a_model_without_ensembles_is_refused():
    with pytest.raises(InputError, match="must have signatures ensemble_<size>"):
        World().learn(sizes=())


def test_everything_is_counted():
    world = World(_PRIOR).learn()
    world.ask(200.0, (5.0, grpc.StatusCode.RESOURCE_EXHAUSTED), (10.0, _OUTPUTS))
    with pytest.raises(BudgetError):
        world.ask(200.0, (5.0, grpc.StatusCode.INVALID_ARGUMENT))
    count = "hne_client_requests_total"
    assert world.metric(count, signature="ensemble_4", code="RESOURCE_EXHAUSTED") == 1
    assert world.metric(count, signature="ensemble_2", code="OK") == 1
    assert world.metric("hne_client_latency_seconds_count", signature="ensemble_2") == 1
    assert world.metric("hne_client_latency_seconds_sum", signature="ensemble_2") == (
        pytest.approx(0.01)
    )
    assert world.metric("hne_client_answers_total", size="2") == 1
    assert world.metric("hne_client_retries_total") == 1
    assert world.metric("hne_client_budget_missed_total") == 1


@given(st.lists(st.sampled_from(["late", "busy", "down", "ok"]), max_size=30), st.floats(1, 500))
def test_no_request_is_lost_or_past_its_budget(fates, budget_ms):
    world = World(_PRIOR).learn()
    outcomes = {
        "late": (math.inf, grpc.StatusCode.DEADLINE_EXCEEDED),
        "busy": (1.0, grpc.StatusCode.RESOURCE_EXHAUSTED),
        "down": (1.0, grpc.StatusCode.UNAVAILABLE),
        "ok": (0.5, _OUTPUTS),
    }
    started = world.now
    # Anything else that is raised fails the test.
    with contextlib.suppress(BudgetError):
        answer = world.ask(budget_ms, *(outcomes[fate] for fate in fates), *[outcomes["late"]] * 99)
        assert answer.attempts[-1].code == "OK"
    assert 1000 * (world.now - started) <= budget_ms + 1e-6


def test_a_first_call_that_comes_too_late_does_not_break_the_client():
    world = World().learn()
    with pytest.raises(BudgetError, match="size 1 DEADLINE_EXCEEDED"):
        world.ask(100.0, (math.inf, grpc.StatusCode.DEADLINE_EXCEEDED))
    assert world.ask(100.0, (10.0, _OUTPUTS)).size == 1
    assert world.latencies.choose(1, 100.0).in_flight == 0


def test_the_last_signature_can_be_lost_while_others_are_on_their_way():
    world = World().learn(sizes=(1,))
    waiting = world.policy.answer(IMAGES, 100.0)
    assert isinstance(next(waiting), Call)
    with pytest.raises(BudgetError, match="FAILED_PRECONDITION"):
        world.ask(100.0, (1.0, grpc.StatusCode.FAILED_PRECONDITION))
    busy = CallError("a failure", grpc.StatusCode.UNAVAILABLE)
    assert isinstance(waiting.throw(busy), Wait)
    # There is nothing left to ask, so it finds out what there is now.
    assert isinstance(waiting.send(None), Learn)
    call = waiting.send(ModelInfo(2, {"ensemble_2": _SPEC}))
    assert call.size == 2
    with pytest.raises(StopIteration) as finished:
        waiting.send(Outputs(2, _OUTPUTS.arrays))
    assert finished.value.value.size == 2


def test_an_interrupt_leaves_nothing_on_its_way_and_what_is_outdated_outdated():
    world = World(_PRIOR).learn()
    for _ in range(2):
        steps = world.policy.answer(IMAGES, 100.0)
        assert isinstance(next(steps), Call)
        steps.close()
        assert world.latencies.choose(1, 100.0).in_flight == 0
    world.ask(100.0, (10.0, Outputs(2, _OUTPUTS.arrays)))
    for _ in range(2):
        steps = world.policy.answer(IMAGES, 100.0)
        assert isinstance(next(steps), Learn)
        steps.close()


def test_percentile_is_the_nearest_rank():
    values = [float(value) for value in range(20, 0, -1)]
    assert percentile(values, 0.95) == 19.0
    assert percentile(values, 0.5) == 10.0
    assert percentile([3.0], 0.95) == 3.0
