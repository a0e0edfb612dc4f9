"""Servers that fail: every request ends in an answer or in an exception that says why."""

import asyncio
import concurrent.futures
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.client.answers import Answer, BudgetError
from hne_tf.client.anytime_client import COMPLETE, DEADLINE, AnytimeClient
from hne_tf.client.async_client import AsyncBudgetClient
from hne_tf.client.budget_client import BudgetClient
from hne_tf.client.manifest import read_manifest

IMAGES = np.zeros([1, 8, 8, 1], np.uint8)
SIZES = (1, 2, 4)
# Generous, because other tests may keep the machine busy.
BUDGET_MS = 3000.0


class FakeService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers at once, unless a fault says otherwise.

    Attributes:
      calls: signature names of the Predict calls so far.
      pairs: metadata of the last.
      version: of the model.
      sizes: ensembles that GetModelMetadata tells of.
      fault: called with the signature's name and the number of the call, from 1;
        may return a status code to fail with, or sleep.
    """

    def __init__(self):
        self.calls = []
        self.pairs = {}
        self.version = 1
        self.sizes = SIZES
        self.learned = 0
        self.fault = lambda name, call: None

    def Predict(self, request, context):  # noqa: N802
        name = request.model_spec.signature_name
        self.calls.append(name)
        self.pairs = dict(context.invocation_metadata())
        code = self.fault(name, len(self.calls))
        if code is not None:
            context.abort(code, "a fault of the test")
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        for output in ("probabilities", "running_sum", "cache_0", "cache_1"):
            value = np.full([1, 10], int(name.split("_")[1]), np.float32)
            response.outputs[output].CopyFrom(tf.make_tensor_proto(value))
        return response

    def GetModelMetadata(self, request, context):  # noqa: N802
        self.learned += 1
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for size in self.sizes:
            signature = signatures.signature_def[f"ensemble_{size}"]
            signature.method_name = "tensorflow/serving/predict"
            signature.inputs["images"].dtype = types_pb2.DT_UINT8
            for length in (-1, 8, 8, 1):
                signature.inputs["images"].tensor_shape.dim.add(size=length)
            signature.outputs["probabilities"].dtype = types_pb2.DT_FLOAT
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.version
        response.metadata["signature_def"].Pack(signatures)
        return response


@pytest.fixture
def service():
    return FakeService()


@contextlib.contextmanager
def serving(service):
    """The address of a server of `service`."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def address(service):
    with serving(service) as address:
        yield address


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
    with pytest.raises(BudgetError, match=r"no answer of 'digits' within 300 ms \(size 4 RES") as e:
        predict(IMAGES, 300.0)
    assert time.perf_counter() - started < 0.4
    assert len(e.value.attempts) > 2
    assert e.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
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
    service.fault = lambda name, call: time.sleep(2.0) if call == first else None
    answer = predict(IMAGES, 800.0)
    codes = [(attempt.size, attempt.code) for attempt in answer.attempts]
    assert codes[0] == (4, "DEADLINE_EXCEEDED")
    assert codes[-1] == (answer.size, "OK")
    assert answer.size < 4
    assert answer.latency_ms < 800.0


def test_a_server_that_stalls_for_good_is_given_up_when_the_budget_is_spent(service, predict):
    warm(predict)
    service.fault = lambda name, call: time.sleep(1.0)
    started = time.perf_counter()
    with pytest.raises(BudgetError, match="DEADLINE_EXCEEDED") as e:
        predict(IMAGES, 300.0)
    assert time.perf_counter() - started < 0.6
    assert e.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


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


def test_requests_go_to_all_servers_behind_one_name():
    services = [FakeService(), FakeService()]
    with contextlib.ExitStack() as stack:
        addresses = [stack.enter_context(serving(service)) for service in services]
        client = stack.enter_context(BudgetClient(f"ipv4:{','.join(addresses)}", "digits"))
        end = time.monotonic() + 30
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


@pytest.fixture
def walker(address, manifest_path, manifest_content):
    """An anytime client of three steps of the fake service."""
    content = {**manifest_content, "steps": _steps()}
    manifest_path.write_text(json.dumps(content))
    with AnytimeClient(address, "digits", read_manifest(manifest_path)) as client:
        yield client


def _steps():
    origins = ["images", "cache_1", "cache_0"]
    return [
        {
            "signature": f"step_{size}",
            "size": size,
            "branch_block": 0 if size == 1 else int(origin[-1]) + 1,
            "input": "images" if size == 1 else "cache",
            "starts_from": origin,
            "caches": ["cache_0", "cache_1"] if size == 1 else [],
        }
        for size, origin in enumerate(origins, start=1)
    ]


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
