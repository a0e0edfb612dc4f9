"""The gateway between clients with generated stubs and servers of the test's own."""

import concurrent.futures
import contextlib
import itertools
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.errors import InputError
from hne_tf.gateway import messages
from hne_tf.gateway.run import GatewayOptions, check_targets, gateway

PREDICT = "/tensorflow.serving.PredictionService/Predict"
READING = [
    *(f"/tensorflow.serving.PredictionService/{name}" for name in ("Predict", "Classify")),
    *(f"/tensorflow.serving.PredictionService/{name}" for name in ("Regress", "MultiInference")),
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    "/tensorflow.serving.ModelService/GetModelStatus",
    "/grpc.health.v1.Health/Check",
]
OTHERS = ["/tensorflow.serving.ModelService/HandleReloadConfigRequest", "/any.Service/Method"]


class Raw(grpc.GenericRpcHandler):
    """Answers any method of one message with bytes, and keeps what it was asked."""

    def __init__(self):
        self.calls = []
        self.answer = lambda message, context: b"answer of " + message

    def service(self, handler_call_details):
        def handle(message, context):
            pairs = dict(context.invocation_metadata())
            self.calls.append(
                (handler_call_details.method, message, pairs, context.time_remaining())
            )
            return self.answer(message, context)

        return grpc.unary_unary_rpc_method_handler(handle)


@pytest.fixture
def serve_raw():
    servers = []

    def begin():
        raw = Raw()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        server.add_generic_rpc_handlers((raw,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return raw, f"127.0.0.1:{port}"

    yield begin
    for server in servers:
        server.stop(0)


@contextlib.contextmanager
def _behind(*targets, **options):
    """A channel to a gateway in front of `targets`, and its metrics."""
    with (
        gateway(targets, options=GatewayOptions(**options), drain_s=0.0) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        yield channel, running.metrics.registry.get_sample_value


def _stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _request(images, signature="anytime", outputs=(), model="digits"):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    return request


def _arrays(response):
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def _size(response):
    (size,) = set(_arrays(response)["size"])
    return size


def _status(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("method", READING + OTHERS)
def test_other_requests_and_answers_pass_byte_for_byte(serve_raw, method):
    raw, target = serve_raw()
    odd = bytes(range(256)) * 4

    def answer(message, context):
        context.send_initial_metadata((("first", "1"), ("bytes-bin", b"\x00\xff")))
        context.set_trailing_metadata((("last", "2"),))
        return odd + message

    raw.answer = answer
    with _behind(target) as (channel, _):
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
    assert 0 < first[3] <= 60
    assert second[3] > 1e6


@pytest.mark.parametrize("method", READING + OTHERS)
def test_a_status_passes_with_its_details(serve_raw, method):
    raw, target = serve_raw()

    def refuse(message, context):
        context.set_trailing_metadata((("reason", "x"), ("grpc-status-details-bin", b"\x08\x05")))
        context.abort(grpc.StatusCode.DATA_LOSS, "só: gone")

    raw.answer = refuse
    with _behind(target) as (channel, _):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"", timeout=60)
        assert (caught.value.code(), caught.value.details()) == (
            grpc.StatusCode.DATA_LOSS,
            "só: gone",
        )
        trailing = dict(caught.value.trailing_metadata())
        assert trailing.items() >= {"reason": "x", "grpc-status-details-bin": b"\x08\x05"}.items()
    assert len(raw.calls) == 1


def test_who_hangs_up_hangs_up_behind_the_gateway_too(serve_raw):
    raw, target = serve_raw()
    begun, over = threading.Event(), threading.Event()

    def hang(message, context):
        context.add_callback(over.set)
        begun.set()
        over.wait(60)
        return b""

    raw.answer = hang
    with _behind(target) as (channel, _):
        call = channel.unary_unary(PREDICT).future(b"")
        assert begun.wait(60)
        call.cancel()
        assert over.wait(60)


def test_a_stream_passes(server):
    with _behind(server.address) as (channel, _):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


@pytest.mark.parametrize("method", READING)
def test_a_dead_or_busy_upstream_is_passed_over(serve_raw, method):
    raw, target = serve_raw()
    busy, busy_target = serve_raw()
    busy.answer = lambda _, context: context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
    with _behind("127.0.0.1:1", busy_target, target) as (channel, _):
        for _ in range(6):
            assert channel.unary_unary(method)(b"x", timeout=60) == b"answer of x"
    assert len(raw.calls) == 6


def test_what_writes_is_sent_once(serve_raw):
    raws = [serve_raw() for _ in range(2)]
    for raw, _ in raws:
        raw.answer = lambda _, context: context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
    with _behind(*(target for _, target in raws)) as (channel, _):
        assert _status(channel.unary_unary(OTHERS[0]), b"x", timeout=60)[1] == "gone"
    assert sum(len(raw.calls) for raw, _ in raws) == 1


def test_requests_spread_over_upstreams(serve_raw):
    raws = [serve_raw() for _ in range(3)]
    with _behind(*(target for _, target in raws)) as (channel, _):
        for _ in range(9):
            channel.unary_unary(PREDICT)(b"", timeout=60)
    assert [len(raw.calls) for raw, _ in raws] == [3, 3, 3]


def test_without_a_budget_it_is_the_full_ensemble(server, images):
    with _behind(server.address) as (channel, sample):
        full = _stub(channel).Predict(_request(images, "ensemble_4"))
        response = _stub(channel).Predict(_request(images))
        answer = _arrays(response)
        expected = _arrays(full)["probabilities"]
        np.testing.assert_array_equal(answer["probabilities"], expected)
        assert answer["size"].tolist() == [4] * 5
        assert (answer["size"].dtype, answer["latency_ms"].dtype) == (np.int32, np.float32)
        assert (answer["latency_ms"] > 0).all()
        assert response.model_spec.signature_name == "anytime"
        assert response.model_spec.version.value == server.version
        assert sample("hne_gateway_anytime_total", {"size": "4"}) == 1
        labels = {"signature": "anytime", "code": "OK"}
        assert sample("hne_gateway_requests_total", labels) == 1


def test_a_fake_upstream_answers_from_the_size_that_was_learned(service, address, images):
    with _behind(address) as (channel, _):
        predict = _stub(channel).Predict
        # Nothing is known: it begins with the smallest and goes on.
        assert _size(predict(_request(images[:1]), timeout=600)) == 4
        assert service.calls == ["ensemble_1", "ensemble_4"]
        assert _size(predict(_request(images[:1]), timeout=600)) == 4
        assert service.calls[2:] == ["ensemble_4"]
        metadata = [("hne-budget-ms", "600000"), ("traceparent", "00-abc")]
        assert _size(predict(_request(images[:1]), metadata=metadata)) == 4
        assert service.pairs["traceparent"] == "00-abc"
        assert set(_arrays(predict(_request(images[:1], outputs=["size"])))) == {"size"}


def test_a_prior_says_what_fits(service, address, images):
    prior = {1: {1: 60e3, 2: 120e3, 4: 6000e3}}
    with _behind(address, model_name="digits", prior=prior) as (channel, _):
        assert _size(_stub(channel).Predict(_request(images[:1]), timeout=300)) == 2
    assert service.calls == ["ensemble_2"]


def test_a_first_answer_is_not_lost_to_a_larger_that_hangs(service, address, images):
    opened = threading.Event()
    service.fault = lambda name, call: opened.wait(60) and None if name == "ensemble_4" else None
    try:
        with _behind(address) as (channel, _):
            # Returns before its deadline, or it would raise.
            assert _size(_stub(channel).Predict(_request(images[:1]), timeout=4)) == 1
            assert service.calls == ["ensemble_1", "ensemble_4"]
    finally:
        opened.set()


STALLING = """
import os, signal, sys, time
from concurrent import futures
import grpc
from hne_tf.gateway import messages

class Upstream(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(
            self.predict if details.method == messages.PREDICT else self.metadata
        )

    def metadata(self, message, context):
        found = messages.SignatureDefs()
        for size in (1, 2, 4):
            signature = found.signature_def[f"ensemble_{size}"]
            signature.inputs["images"].SetInParent()
            signature.outputs["probabilities"].SetInParent()
        response = messages.MetadataResponse()
        response.metadata["signature_def"].value = found.SerializeToString()
        return response.SerializeToString()

    def predict(self, message, context):
        if messages.model_spec(message).signature_name in sys.argv[1:]:
            os.kill(os.getpid(), signal.SIGSTOP)
            # The signal may take a moment.
            time.sleep(600)
        response = messages.PredictResponse()
        messages.set_values(response.outputs["probabilities"], [1.0], False)
        return response.SerializeToString()

server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((Upstream(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""


@pytest.fixture
def stalling():
    """Starts an upstream that stops itself when it is asked for given signatures."""
    processes = []

    def begin(*signatures):
        process = subprocess.Popen(
            [sys.executable, "-c", STALLING, *signatures], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return f"127.0.0.1:{int(process.stdout.readline())}"

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_an_upstream_that_stalls_costs_its_larger_answer_only(stalling, images):
    with _behind(stalling("ensemble_4")) as (channel, _):
        predict = _stub(channel).Predict
        assert _size(predict(_request(images[:1]), timeout=4)) == 1
        # It answers nothing any more, and that is told in time, too.
        code, _ = _status(predict, _request(images[:1]), timeout=2)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_of_two_upstreams_one_may_stall(stalling, images):
    targets = [stalling("ensemble_1", "ensemble_2", "ensemble_4"), stalling()]
    prior = {1: {1: 1.0, 2: 2.0, 4: 4.0}}
    with _behind(*targets, model_name="digits", prior=prior) as (channel, _):
        for _ in range(6):
            assert _size(_stub(channel).Predict(_request(images[:1]), timeout=4)) >= 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_one_that_is_busy_or_restarts_is_asked_again_while_time_is_left(
    service, address, images, code
):
    service.fault = lambda name, call: grpc.StatusCode[code] if call in (2, 3) else None
    with _behind(address) as (channel, _):
        predict = _stub(channel).Predict
        predict(_request(images[:1], "ensemble_1"), timeout=60)
        assert _size(predict(_request(images[:1]), timeout=60)) == 4
        service.calls.clear()
        service.fault = lambda name, call: (grpc.StatusCode[code], "as it says")
        assert _status(predict, _request(images[:1])) == (grpc.StatusCode[code], "as it says")
        assert service.calls == ["ensemble_4"]


def test_a_restarted_upstream_is_found_again(serve_fake, images):
    service, address = serve_fake()
    port = int(address.rpartition(":")[2])
    with _behind(address) as (channel, _):
        predict = _stub(channel).Predict
        assert _size(predict(_request(images[:1]), timeout=60)) == 4
        restarted = concurrent.futures.Future()

        def restart():
            server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
            prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
            server.add_insecure_port(f"127.0.0.1:{port}")
            server.start()
            restarted.set_result(server)

        serve_fake.stop(address)
        timer = threading.Timer(0.5, restart)
        timer.start()
        # Sent while nothing listens there.
        assert _size(predict(_request(images[:1]), timeout=60)) == 4
        restarted.result(60).stop(0)


def test_a_dead_upstream_costs_nothing(service, address, images):
    with _behind("127.0.0.1:1", address) as (channel, _):
        for _ in range(4):
            assert _size(_stub(channel).Predict(_request(images[:1]), timeout=60)) == 4
            assert _size(_stub(channel).Predict(_request(images[:1]))) == 4


def test_signatures_that_go_are_learned_again(service, address, images):
    with _behind(address) as (channel, _):
        predict = _stub(channel).Predict
        assert _size(predict(_request(images[:1]), timeout=60)) == 4
        service.sizes = (1, 2)
        gone = grpc.StatusCode.FAILED_PRECONDITION
        service.fault = lambda name, call: gone if name == "ensemble_4" else None
        assert _size(predict(_request(images[:1]), timeout=60)) == 2


def test_a_new_version_is_noticed(service, address, images):
    with _behind(address) as (channel, _):
        predict = _stub(channel).Predict
        predict(_request(images[:1]), timeout=60)
        service.version, service.sizes = 2, (1, 2, 4, 8)
        for _ in range(600):
            if _size(predict(_request(images[:1]), timeout=60)) == 8:
                break
            time.sleep(0.05)
        else:
            raise AssertionError("version 2 was not noticed")


def _own_anytime(message, context):
    found = get_model_metadata_pb2.SignatureDefMap()
    for name, output in (("ensemble_1", "probabilities"), ("anytime", "days")):
        found.signature_def[name].method_name = "tensorflow/serving/predict"
        found.signature_def[name].inputs["images"].dtype = types_pb2.DT_UINT8
        found.signature_def[name].outputs[output].dtype = types_pb2.DT_FLOAT
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.metadata["signature_def"].Pack(found)
    return response.SerializeToString()


def test_a_signature_of_the_models_own_is_passed_through(serve_raw, images):
    raw, target = serve_raw()
    sent = _request(images).SerializeToString()
    raw.answer = lambda message, context: (
        b"own" if message == sent else _own_anytime(message, context)
    )
    with _behind(target) as (channel, _):
        assert channel.unary_unary(PREDICT)(sent, timeout=60) == b"own"


def test_a_model_without_ensembles_is_passed_through(serve, sums_request):
    request = sums_request()
    request.model_spec.signature_name = "anytime"
    with grpc.insecure_channel("127.0.0.1:1") as _:
        serve()
    target = f"127.0.0.1:{serve.ports[-1]}"
    with _behind(target) as (channel, _):
        code, details = _status(_stub(channel).Predict, request, timeout=60)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "signature must be one of" in details


@pytest.mark.parametrize("budget", ["soon", "-1", "0", "inf"])
def test_a_budget_that_is_no_number_is_one_clear_error(address, images, budget):
    with _behind(address) as (channel, _):
        metadata = [("hne-budget-ms", budget)]
        status = _status(_stub(channel).Predict, _request(images[:1]), metadata=metadata)
        rule = f"hne-budget-ms must be a number above 0, got {budget!r}"
        assert status == (grpc.StatusCode.INVALID_ARGUMENT, rule)


def test_a_deadline_in_the_past_is_one_clear_error(address, images):
    with _behind(address) as (channel, _):
        code, _ = _status(_stub(channel).Predict, _request(images[:1]), timeout=-1.0)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_other_bad_requests_get_the_codes_of_a_server(server, images):
    cases = [
        _request(images, outputs=["logits"]),
        _request(images, outputs=["size", "size"]),
        _request(images[..., 0]),
        _request(images.astype(np.float32)),
        _request(images, model="other"),
        predict_pb2.PredictRequest(),
    ]
    with (
        _behind(server.address) as (channel, _),
        grpc.insecure_channel(server.address) as direct,
    ):
        for request in cases:
            asked = _status(_stub(channel).Predict, request, timeout=60)
            assert asked[0] is _status(_stub(direct).Predict, request, timeout=60)[0], asked
        broken = [b"\xff", b"\x0a\xff", _request(images).SerializeToString() + b"\x12\x05"]
        for message in broken:
            asked = _status(channel.unary_unary(PREDICT), message, timeout=60)
            assert asked[0] is _status(direct.unary_unary(PREDICT), message, timeout=60)[0], asked


def test_beyond_the_bound_predictions_are_refused(serve_raw):
    raw, target = serve_raw()
    opened, begun = threading.Event(), threading.Semaphore(0)

    def held(message, context):
        begun.release()
        opened.wait(60)
        return b"late"

    raw.answer = held
    with _behind(target, most_predictions=2) as (channel, _):
        call = channel.unary_unary(PREDICT)
        calls = [call.future(b"", timeout=60) for _ in range(2)]
        assert begun.acquire(timeout=60)
        assert begun.acquire(timeout=60)
        code, details = _status(call, b"", timeout=60)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "at most 2 predictions" in details
        opened.set()
        assert [each.result(60) for each in calls] == [b"late"] * 2


def test_it_drains(serve_raw):
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
        assert _status(channel.unary_unary(PREDICT), b"", timeout=60) == (
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


def test_messages_are_tf_servings(images):
    request = _request(images, outputs=["size"])
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
    read = _arrays(predict_pb2.PredictResponse.FromString(response.SerializeToString()))
    assert read["size"].tolist() == [4, 4]
    assert read["size"].dtype == np.int32
    assert read["latency_ms"].tolist() == [0.5]


def test_a_spec_in_parts_is_joined_and_a_flood_of_fields_is_left_alone(images):
    request = _request(images)
    head = predict_pb2.PredictRequest()
    head.model_spec.signature_name = "ensemble_2"
    joined = messages.model_spec(request.SerializeToString() + head.SerializeToString())
    assert (joined.name, joined.signature_name) == ("digits", "ensemble_2")
    assert messages.model_spec(b"\x12\x00" * 10**6) is None
    assert messages.model_spec(b"\xff") is None


def test_no_tensorflow_is_loaded():
    check = "import sys, hne_tf.gateway.run; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_sizes_shrink_with_the_requests_on_their_way(service, address, images):
    """The more are under way, the smaller the next: nothing is refused before."""
    opened = threading.Event()
    service.fault = lambda name, call: opened.wait(60) and None
    prior = {1: {1: 10e3, 2: 20e3, 4: 40e3}}
    with _behind(address, model_name="digits", prior=prior) as (channel, _):
        calls = []
        for count in itertools.count(1):
            calls.append(_stub(channel).Predict.future(_request(images[:1]), timeout=150))
            for _ in range(6000):
                if len(service.calls) >= count or calls[-1].done():
                    break
                time.sleep(0.01)
            if calls[-1].done() or count == 7:
                break
        asked = [int(name.removeprefix("ensemble_")) for name in service.calls]
        opened.set()
        assert asked == sorted(asked, reverse=True)
        assert asked[0] == 4
        assert asked[-1] == 1
