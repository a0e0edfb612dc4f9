"""Servers that fail: every request ends in an answer or in an exception that says why."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest

from hne_tf.client.answers import Answer, BudgetError
from hne_tf.client.async_client import AsyncBudgetClient
from hne_tf.client.budget_client import BudgetClient
from hne_tf.errors import InputError

IMAGES = np.zeros([1, 8, 8, 1], np.uint8)
SIZES = (1, 2, 4)
# Generous, because other tests may keep the machine busy.
BUDGET_MS = 3000.0
MIXED_BATCH = (
    grpc.StatusCode.FAILED_PRECONDITION,
    "Tensors with name 'images:0' from different tasks have different shapes and padding is "
    "turned off.",
)


@pytest.fixture(params=["blocking", "asyncio"])
def predict(request, address):
    """Asks the fake service with a budget, through either client, which stays the same."""
    if request.param == "blocking":
        with BudgetClient(address, "digits") as client:
            yield client.predict
        return
    with asyncio.Runner() as runner:

        async def make():
            return AsyncBudgetClient(address, "digits")

        client = runner.run(make())
        yield lambda *arguments: runner.run(client.predict(*arguments))
        runner.run(client.close())


def warm(predict):
    """Lets the client find out that the full ensemble fits."""
    for _ in range(5):
        answer = predict(IMAGES, BUDGET_MS)
    assert answer.size == 4


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNAVAILABLE"])
def test_a_refusal_is_answered_from_a_smaller_ensemble(service, predict, code):
    warm(predict)
    first = len(service.calls) + 1
    service.fault = lambda name, call: getattr(grpc.StatusCode, code) if call == first else None
    answer = predict(IMAGES, BUDGET_MS)
    assert [(attempt.size, attempt.code) for attempt in answer.attempts] == [(4, code), (2, "OK")]
    assert answer.size == 2
    np.testing.assert_array_equal(answer.probabilities, np.full([1, 10], 2.0))
    assert predict(IMAGES, BUDGET_MS).size == 4


def test_a_server_that_only_refuses_is_given_up_inside_the_budget(service, predict):
    warm(predict)
    service.fault = lambda name, call: grpc.StatusCode.RESOURCE_EXHAUSTED
    started = time.perf_counter()
    match = r"no answer of 'digits' within 1000 ms \(size 4 RES"
    with pytest.raises(BudgetError, match=match) as e:
        predict(IMAGES, 1000.0)
    # Without the budget it would never end; the margin is for a busy machine.
    assert time.perf_counter() - started < 10.0
    assert len(e.value.attempts) > 2
    # A busy machine may not come to the last refusal in time.
    assert e.value.attempts[-1].code in ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
    assert e.value.code.name == e.value.attempts[-1].code
    assert service.calls[-1] == "ensemble_1"


def test_what_would_fail_again_is_not_tried_again(service, predict):
    warm(predict)
    service.fault = lambda name, call: grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(BudgetError, match="a fault of the test") as e:
        predict(IMAGES, BUDGET_MS)
    assert [attempt.code for attempt in e.value.attempts] == ["INVALID_ARGUMENT"]


def test_a_stalled_call_leaves_room_for_the_smallest_ensemble(service, predict):
    warm(predict)
    first = len(service.calls) + 1
    service.fault = lambda name, call: time.sleep(5.0) if call == first else None
    answer = predict(IMAGES, 3000.0)
    codes = [(attempt.size, attempt.code) for attempt in answer.attempts]
    assert codes[0] == (4, "DEADLINE_EXCEEDED")
    assert codes[-1] == (answer.size, "OK")
    assert answer.size < 4
    assert answer.latency_ms < 3000.0


def test_a_server_that_stalls_for_good_is_given_up_when_the_budget_is_spent(service, predict):
    warm(predict)
    service.fault = lambda name, call: time.sleep(1.0)
    with pytest.raises(BudgetError, match="DEADLINE_EXCEEDED") as e:
        predict(IMAGES, 300.0)
    assert e.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_neighbours_of_other_shapes_cost_no_leaves(service, predict):
    warm(predict)
    first = len(service.calls) + 1
    service.fault = lambda name, call: MIXED_BATCH if call == first else None
    answer = predict(IMAGES, BUDGET_MS)
    codes = [(attempt.size, attempt.code) for attempt in answer.attempts]
    assert codes == [(4, "FAILED_PRECONDITION"), (4, "OK")]
    assert service.learned == 1


def test_the_largest_batch_of_the_server_is_said(service, predict, address):
    details = "Task size 128 is larger than maximum input batch size 32"
    service.fault = lambda name, call: (grpc.StatusCode.INVALID_ARGUMENT, details)
    rule = f"at most 32 images, the largest batch of the server at {address}, got 128"
    with pytest.raises(BudgetError, match=rule):
        predict(IMAGES, BUDGET_MS)


def test_answers_without_what_was_asked_for_are_failures(service, predict):
    service.outputs = ()
    with pytest.raises(BudgetError, match=r"must hold the outputs \['probabilities'\], got \[\]"):
        predict(IMAGES, BUDGET_MS)


@pytest.mark.parametrize("images", [IMAGES[:0], [[1], [2, 3]], np.uint8(7), "picture"])
def test_images_that_no_model_takes_are_refused_before_anything_is_sent(service, predict, images):
    with pytest.raises(InputError, match="images must be"):
        predict(images, BUDGET_MS)
    assert (service.learned, service.calls) == (0, [])


def test_a_signature_that_has_vanished_is_done_without(service, predict):
    warm(predict)
    service.sizes = (1, 2)
    service.fault = lambda name, call: (
        grpc.StatusCode.FAILED_PRECONDITION if name == "ensemble_4" else None
    )
    learned = service.learned
    answer = predict(IMAGES, BUDGET_MS)
    codes = [(attempt.size, attempt.code) for attempt in answer.attempts]
    assert codes == [(4, "FAILED_PRECONDITION"), (2, "OK")]
    assert predict(IMAGES, BUDGET_MS).size == 2
    assert service.learned == learned + 1
    assert service.calls.count("ensemble_4") == service.calls[:-2].count("ensemble_4")


def test_a_first_call_that_is_given_up_does_not_break_the_client(service, predict):
    over = threading.Event()
    service.fault = lambda name, call: None if call > 1 else over.wait(30) and None
    with pytest.raises(BudgetError, match=r"size 1 DEADLINE_EXCEEDED"):
        predict(IMAGES, 500.0)
    over.set()
    assert predict(IMAGES, BUDGET_MS).size == 1
    warm(predict)


def test_an_interrupt_of_a_measurement_leaves_nothing_in_flight(address, monkeypatch):
    with BudgetClient(address, "digits") as client:
        client.measure(IMAGES, rounds=1)
        before = client.estimates_ms()

        def interrupted(*arguments):
            # Python raises it in the main thread while a call waits.
            if client._latencies.choose(1, 1.0).in_flight:
                raise KeyboardInterrupt

        monkeypatch.setattr(client, "_perform", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.measure(IMAGES, rounds=1)
        assert client._latencies.choose(1, 1.0).in_flight == 0
        time.sleep(0.1)
        assert client.estimates_ms() == pytest.approx(before)


def test_a_new_version_is_learned(service, predict):
    warm(predict)
    service.version, service.sizes = 2, (1, 2, 4, 8)
    sizes = [predict(IMAGES, BUDGET_MS).size for _ in range(4)]
    assert service.learned == 2
    assert sizes[-1] == 8


def test_a_server_that_hangs_from_the_start_is_given_up(images):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with (
            BudgetClient(f"127.0.0.1:{listener.getsockname()[1]}", "digits") as client,
            pytest.raises(BudgetError, match=r"signatures DEADLINE_EXCEEDED"),
        ):
            client.predict(images, 200.0)


def test_requests_go_to_all_servers_behind_one_name(serve_fake):
    services, addresses = zip(*(serve_fake() for _ in range(2)), strict=True)
    with BudgetClient(f"ipv4:{','.join(addresses)}", "digits") as client:
        end = time.monotonic() + 600
        while not all(service.calls for service in services) and time.monotonic() < end:
            client.predict(IMAGES, BUDGET_MS)
    assert all(service.calls for service in services)


@contextlib.contextmanager
def _server_process(base_path, port):
    """Runs the embedded server in a process of its own; yields it once it listens."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hne_tf.bin.serve",
            f"--model_base_path={base_path}",
            f"--port={port}",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert "address=" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_no_request_is_lost_when_the_server_is_killed_and_restarted(base_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    outcomes, lock, over = [], threading.Lock(), threading.Event()
    sent = 0

    def ask():
        nonlocal sent
        while not over.is_set():
            with lock:
                sent += 1
            started = time.perf_counter()
            try:
                outcome = client.predict(IMAGES, 1000.0)
            except Exception as error:
                outcome = error
            with lock:
                outcomes.append((started, time.perf_counter() - started, outcome))
            time.sleep(0.02)

    with BudgetClient(f"127.0.0.1:{port}", "digits") as client:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        with _server_process(base_path, port) as server:
            client.learn()
            for thread in threads:
                thread.start()
            time.sleep(1.0)
            server.send_signal(signal.SIGKILL)
            killed = time.perf_counter()
            server.wait()
        with _server_process(base_path, port):
            restarted = time.perf_counter()
            time.sleep(3.0)
            over.set()
            for thread in threads:
                thread.join()
    assert len(outcomes) == sent
    assert all(isinstance(outcome, Answer | BudgetError) for _, _, outcome in outcomes)
    # Between the two servers there is nobody to answer, and that is said.
    down = [o for at, _, o in outcomes if killed < at < restarted - 1.1]
    assert down
    assert all(isinstance(outcome, BudgetError) and outcome.attempts for outcome in down)
    # Never far past the budget; the margin is for a busy machine.
    assert max(taken for _, taken, _ in outcomes) < 2.0
    after = [o for at, _, o in outcomes if at > restarted + 1.5]
    assert sum(isinstance(outcome, Answer) for outcome in after) > 0.8 * len(after) > 0
