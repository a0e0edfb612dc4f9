"""Walks through the leaves of a served model: versions that change, servers that fail."""

import time

import grpc
import numpy as np
import pytest

from hne_tf.client.answers import BudgetError
from hne_tf.client.anytime_client import COMPLETE, DEADLINE, SURE, AnytimeClient
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.exported.manifest import Manifest

IMAGES = np.zeros([1, 8, 8, 1], np.uint8)
# Generous, because other tests may keep the machine busy.
BUDGET_MS = 3000.0
MIXED_BATCH = (
    grpc.StatusCode.FAILED_PRECONDITION,
    "Tensors with name 'images:0' from different tasks have different shapes and padding is "
    "turned off.",
)


@pytest.fixture
def walker(address):
    """An anytime client of three steps of the fake service."""
    manifest = Manifest.of_tree(Exits(3), "digits", [str(digit) for digit in range(10)], (8, 8, 1))
    with AnytimeClient(address, "digits", manifest) as client:
        yield client


def test_a_walk_gives_an_answer_after_each_leaf(service, walker):
    walk = walker.walk(IMAGES)
    answers = list(walk)
    assert [(a.size, a.probabilities[0, 0]) for a in answers] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert service.calls == ["step_1", "step_2", "step_3"]
    assert (walk.stopped, walk.failed) == (COMPLETE, False)


def test_a_caller_who_has_seen_enough_stops_the_walk(service, walker):
    walk = walker.walk(IMAGES)
    assert next(iter(walk)).size == 1
    assert service.calls == ["step_1"]
    assert [answer.size for answer in walk] == [2, 3]


def test_a_walk_is_over_when_all_images_are_sure(service, walker):
    walk = walker.predict(IMAGES, confidence=1.0)
    assert (walk.best.size, walk.stopped, walk.failed) == (1, SURE, False)
    assert service.calls == ["step_1"]
    # A single leaf is of no significance.
    walk = walker.predict(IMAGES, confidence=0.01, rule="significance")
    assert walk.best.size == 2
    with pytest.raises(InputError, match=r"stopping rule must be one of confidence, .* got 'luck'"):
        walker.walk(IMAGES, confidence=0.5, rule="luck")


def test_a_server_that_dies_midway_leaves_the_best_answer(service, walker):
    service.fault = lambda name, call: grpc.StatusCode.UNAVAILABLE if call == 3 else None
    walk = walker.predict(IMAGES, deadline_ms=BUDGET_MS)
    assert walk.best.size == 2
    assert walk.failed
    assert "no server can be reached" in walk.stopped
    assert list(walk) == []


def test_a_walk_without_any_answer_says_why(service, walker):
    service.fault = lambda name, call: grpc.StatusCode.UNAVAILABLE
    with pytest.raises(BudgetError, match=r"no first answer: no server can be reached"):
        walker.predict(IMAGES)


def test_a_step_that_stalls_ends_with_the_deadline(service, walker):
    service.fault = lambda name, call: time.sleep(2.0) if name == "step_2" else None
    started = time.perf_counter()
    walk = walker.predict(IMAGES, deadline_ms=400.0)
    assert time.perf_counter() - started < 0.8
    assert (walk.best.size, walk.stopped, walk.failed) == (1, DEADLINE, False)


def test_a_step_that_cannot_end_in_time_is_not_started(service, walker):
    service.fault = lambda name, call: time.sleep(0.2) if name == "step_3" else None
    walker.predict(IMAGES)
    service.calls.clear()
    walk = walker.predict(IMAGES, deadline_ms=150.0)
    assert (walk.best.size, walk.stopped) == (2, DEADLINE)
    assert service.calls == ["step_1", "step_2"]


def sums(walk):
    """Size and value of each further answer; the value tells the version by its hundreds."""
    return [(answer.size, answer.probabilities[0, 0]) for answer in walk]


def test_a_walk_whose_version_is_gone_starts_again_and_mixes_none(service, walker):
    walk = walker.walk(IMAGES)
    answers = iter(walk)
    assert [next(answers).size for _ in range(2)] == [1, 2]
    service.version = 2
    # The answer of two leaves is no better than that of before.
    assert sums(answers) == [(3, 103.0)]
    assert service.calls[2:] == ["step_3", "step_1", "step_2", "step_3"]
    assert (walk.stopped, walk.failed) == (COMPLETE, False)


def test_a_server_that_ignores_versions_is_noticed(service, walker):
    service.strict = False
    walk = walker.walk(IMAGES)
    next(iter(walk))
    service.version = 2
    assert sums(walk) == [(2, 102.0), (3, 103.0)]
    assert service.calls == ["step_1", "step_2", "step_1", "step_2", "step_3"]


def test_a_walk_without_time_to_start_again_ends_with_the_best_answer(service, walker):
    walker._times.add(1, 1, 1e6)
    walker._times.add(2, 1, 1.0)
    walk = walker.walk(IMAGES, deadline_ms=10_000.0)
    next(iter(walk))
    service.version = 2
    assert sums(walk) == []
    assert (walk.best.size, walk.best.probabilities[0, 0]) == (1, 1.0)
    assert (walk.stopped, walk.failed) == (DEADLINE, False)


def test_a_walk_among_servers_of_several_versions_ends(service, walker):
    def change(name, call):
        service.version = call

    service.fault = change
    walk = walker.walk(IMAGES)
    assert sums(walk) == [(1, 1.0)]
    assert walk.failed
    assert "version 3 is not served" in walk.stopped
    assert service.calls == ["step_1", "step_2"] * 2


def test_a_walk_that_cannot_start_again_ends_with_the_best_answer(service, walker):
    walk = walker.walk(IMAGES)
    next(iter(walk))
    service.version = 2
    service.fault = lambda name, call: grpc.StatusCode.UNAVAILABLE if name == "step_1" else None
    assert sums(walk) == []
    assert (walk.best.size, walk.failed) == (1, True)


def test_a_walk_goes_on_after_an_interrupt(service, walker, monkeypatch):
    walk = walker.walk(IMAGES)
    next(iter(walk))
    with monkeypatch.context() as patched:

        def interrupted(*arguments, **options):
            raise KeyboardInterrupt

        patched.setattr(walker._client, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(iter(walk))
    assert [answer.size for answer in walk] == [2, 3]


def test_an_interrupt_after_a_step_loses_no_answer(walker, monkeypatch):
    walk = walker.walk(IMAGES)
    answers = [next(iter(walk)).size]
    for _ in range(2):
        step = walk._step
        with monkeypatch.context() as patched:

            def interrupted(step=step):
                step()
                raise KeyboardInterrupt

            patched.setattr(walk, "_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(iter(walk))
        answers.append(next(iter(walk)).size)
    assert answers == [1, 2, 3]
    assert sums(walk) == []
    assert (walk.stopped, walk.failed) == (COMPLETE, False)


def test_a_walk_without_a_first_answer_can_be_tried_again(service, walker):
    service.fault = lambda name, call: grpc.StatusCode.UNAVAILABLE if call == 1 else None
    walk = walker.walk(IMAGES)
    with pytest.raises(BudgetError):
        next(iter(walk))
    assert [answer.size for answer in walk] == [1, 2, 3]


def test_a_step_among_neighbours_of_other_shapes_is_asked_again(service, walker):
    service.fault = lambda name, call: MIXED_BATCH if call == 2 else None
    assert [answer.size for answer in walker.walk(IMAGES)] == [1, 2, 3]
    assert service.calls == ["step_1", "step_2", "step_2", "step_3"]
    service.fault = lambda name, call: MIXED_BATCH
    with pytest.raises(BudgetError, match="different shapes"):
        walker.predict(IMAGES)


def test_a_step_of_another_model_than_the_manifest_describes_is_a_failure(service, walker):
    images = np.zeros([2, 8, 8, 1], np.uint8)
    with pytest.raises(BudgetError, match="manifest must be that of the model served: step_1"):
        walker.predict(images)


@pytest.mark.parametrize("images", [IMAGES[:0], [[1], [2, 3]], np.uint8(7)])
def test_a_walk_of_no_images_is_refused_before_anything_is_sent(service, walker, images):
    with pytest.raises(InputError, match="images must be"):
        walker.walk(images)
    assert service.calls == []


@pytest.mark.parametrize("deadline_ms", [0.0, -1.0, float("nan"), "20"])
def test_a_deadline_of_a_walk_must_be_above_0(walker, deadline_ms):
    with pytest.raises(InputError, match="deadline_ms must be a number above 0"):
        walker.walk(IMAGES, deadline_ms)
