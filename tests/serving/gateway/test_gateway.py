"""What passes through the gateway, and what it says itself, with upstreams of the test's own."""

import contextlib
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    predict_pb2,
)

from hne_tf.errors import InputError
from hne_tf.gateway import messages
from hne_tf.gateway.run import check_targets, gateway

PREDICT = "/tensorflow.serving.PredictionService/Predict"


READING = [
    *(f"/tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify")),
    *(f"/tensorflow.serving.PredictionService/{name}" for name in ("Regress", "MultiInference")),
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    "/tensorflow.serving.ModelService/GetModelStatus",
    "/grpc.health.v1.Health/Check",
]


OTHERS = ["/tensorflow.serving.ModelService/HandleReloadConfigRequest", "/any.Service/Method"]


@pytest.mark.parametrize("method", READING + OTHERS)
def test_other_requests_and_answers_pass_byte_for_byte(serve_raw, method, behind):
    raw, target = serve_raw()
    odd = bytes(range(256)) * 4

    def answer(message, context):
        context.send_initial_metadata((("first", "1"), ("bytes-bin", b"\x00\xff")))
        context.set_trailing_metadata((("last", "2"),))
        return odd + message

    raw.answer = answer
    with behind(target) as (channel, _):
        call = channel.unary_unary(method)
        sent = (("traceparent", "00-abc"), ("key-bin", b"\x01\x02"))
        answered, done = call.with_call(odd, timeout=60, metadata=sent)
        assert answered == odd + odd
        assert {("first", "1"), ("bytes-bin", b"\x00\xff")} <= set(done.initial_metadata())
        assert ("last", "2") in set(done.trailing_metadata())
        call(odd)
    (first, second) = raw.calls
    assert first[:2] == (method, odd)
    assert first[2].items() >= dict(sent).items()
    # On each leg gRPC rounds what is left of the 60 seconds up.
    assert 0 < first[3] < 120
    assert second[3] > 1e6


@pytest.mark.parametrize("method", READING + OTHERS)
def test_a_status_passes_with_its_details(serve_raw, method, behind):
    raw, target = serve_raw()

    def refuse(message, context):
        context.set_trailing_metadata((("reason", "x"), ("grpc-status-details-bin", b"\x08\x05")))
        context.abort(grpc.StatusCode.DATA_LOSS, "só: gone")

    raw.answer = refuse
    with behind(target) as (channel, _):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=60)
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.DATA_LOSS,
            "só: gone",
        )
        trailing = dict(caught.value.trailing_metadata())
        assert trailing.items() >= {"reason": "x", "grpc-status-details-bin": b"\x08\x05"}.items()
    assert len(raw.calls) == 1


def test_who_hangs_up_hangs_up_behind_the_gateway_too(serve_raw, behind):
    raw, target = serve_raw()
    begun, over = threading.Event(), threading.Event()

    def hang(message, context):
        context.add_callback(over.set)
        begun.set()
        over.wait(60)
        return b""

    raw.answer = hang
    with behind(target) as (channel, _):
        call = channel.unary_unary(PREDICT).future(b"")
        assert begun.wait(60)
        call.cancel()
        assert over.wait(60)


def test_a_stream_passes(server, behind):
    with behind(server.address) as (channel, _):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize("method", READING)
def test_a_dead_or_busy_upstream_is_passed_over(serve_raw, method, behind):
    raw, target = serve_raw()
    busy, busy_target = serve_raw()
    busy.answer = lambda _, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
    with behind("127.0.0.1:1", busy_target, target) as (channel, _):
        for _ in range(6):
            assert channel.unary_unary(method)(b"x", timeout=60) == b"answer of x"
    assert len(raw.calls) == 6


def test_what_writes_is_sent_once(serve_raw, behind, ask):
    raws = [serve_raw() for _ in range(2)]
    for raw, _ in raws:
        raw.answer = lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
    with behind(*(target for _, target in raws)) as (channel, _):
        assert ask.status(channel.unary_unary(OTHERS[0]), b"x", timeout=60)[1] == "gone"
    assert sum(len(raw.calls) for raw, _ in raws) == 1


def test_requests_spread_over_upstreams(serve_raw, behind):
    raws = [serve_raw() for _ in range(3)]
    with behind(*(target for _, target in raws)) as (channel, _):
        for _ in range(9):
            channel.unary_unary(PREDICT)(b"", timeout=60)
    assert [len(raw.calls) for raw, _ in raws] == [3, 3, 3]


def test_beyond_the_bound_predictions_are_refused(serve_raw, behind, ask):
    raw, target = serve_raw()
    opened, begun = threading.Event(), threading.Semaphore(0)

    def held(message, context):
        begun.release()
        opened.wait(60)
        return b"late"

    raw.answer = held
    with behind(target, most_predictions=2) as (channel, _):
        call = channel.unary_unary(PREDICT)
        calls = [call.future(b"", timeout=60) for _ in range(2)]
        assert begun.acquire(timeout=60)
        assert begun.acquire(timeout=60)
        code, details = ask.status(call, b"", timeout=60)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "at most 2 predictions" in details
        opened.set()
        assert [each.result(60) for each in calls] == [b"late"] * 2


def test_it_drains(serve_raw, ask):
    raw, target = serve_raw()
    opened, begun = threading.Event(), threading.Event()

    def held(message, context):
        begun.set()
        opened.wait(60)
        return b"kept"

    ends = contextlib.ExitStack()
    running = ends.enter_context(gateway([target], drain_s=60.0))
    with grpc.insecure_channel(running.address) as channel:
        raw.answer = lambda message, context: b"\x08\x01"
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        raw.answer = held
        call = channel.unary_unary(PREDICT).future(b"", timeout=60)
        assert begun.wait(60)
        stopping = threading.Thread(target=ends.close)
        stopping.start()
        for _ in range(600):
            if health.Check(request).status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
            time.sleep(0.05)
        assert ask.status(channel.unary_unary(PREDICT), b"", timeout=60) == (
            grpc.StatusCode.UNAVAILABLE,
            "the gateway is shutting down",
        )
        opened.set()
        assert call.result(60) == b"kept"
        stopping.join(60)


@pytest.mark.parametrize("targets", [[], ["host"], ["host:"], [":1"], ["a:0"], ["a:70000"]])
def test_upstreams_must_be_addresses(targets):
    with pytest.raises(InputError, match="upstream"), gateway(targets):
        pass


def test_upstreams_must_differ():
    with pytest.raises(InputError, match="must be different"):
        check_targets(["a:1", "b:2", "a:1"])


def test_a_port_that_is_taken_is_told(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(InputError, match="cannot listen on"), gateway(["a:1"], port=port):
        pass


def test_messages_are_tf_servings(images, ask):
    request = ask.request(images, outputs=["size"])
    request.model_spec.version.value = 7
    request.inputs["images"].version_number = 3
    written = messages.predict_request(request.SerializeToString())
    assert written.model_spec.version.value == 7
    assert messages.rows(written) == 5
    written.model_spec.signature_name = "ensemble_2"
    back = predict_pb2.PredictRequest.FromString(written.SerializeToString())
    request.model_spec.signature_name = "ensemble_2"
    assert back == request
    response = messages.PredictResponse()
    messages.set_values(response.outputs["size"], [4, 4], True)
    messages.set_values(response.outputs["latency_ms"], [0.5], False)
    read = ask.arrays(predict_pb2.PredictResponse.FromString(response.SerializeToString()))
    assert read["size"].tolist() == [4, 4]
    assert read["size"].dtype == np.int32
    assert read["latency_ms"].tolist() == [0.5]


def test_a_spec_in_parts_is_joined_and_a_flood_of_fields_is_left_alone(images, ask):
    request = ask.request(images)
    head = predict_pb2.PredictRequest()
    head.model_spec.signature_name = "ensemble_2"
    joined = messages.model_spec(request.SerializeToString() + head.SerializeToString())
    assert (joined.name, joined.signature_name) == ("digits", "ensemble_2")
    assert messages.model_spec(b"\x12\x00" * 10**6) is None
    assert messages.model_spec(b"\xff") is None


def test_no_tensorflow_is_loaded():
    check = "import sys, hne_tf.gateway.run; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
