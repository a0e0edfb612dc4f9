"""How the gateway answers `anytime`, whatever becomes of the servers behind it."""

import concurrent.futures
import itertools
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.gateway import messages

PREDICT = messages.PREDICT


def test_without_a_budget_it_is_the_full_ensemble(server, images, behind, ask):
    with behind(server.address) as (channel, sample):
        full = ask.stub(channel).Predict(ask.request(images, "ensemble_4"))
        response = ask.stub(channel).Predict(ask.request(images))
        answer = ask.arrays(response)
        expected = ask.arrays(full)["probabilities"]
        np.testing.assert_array_equal(answer["probabilities"], expected)
        assert answer["size"].tolist() == [4] * 5
        assert (answer["size"].dtype, answer["latency_ms"].dtype) == (np.int32, np.float32)
        assert (answer["latency_ms"] > 0).all()
        assert response.model_spec.signature_name == "anytime"
        assert response.model_spec.version.value == server.version
        assert sample("hne_gateway_anytime_total", {"size": "4"}) == 1
        labels = {"signature": "anytime", "code": "OK"}
        assert sample("hne_gateway_requests_total", labels) == 1


def test_a_fake_upstream_answers_from_the_size_that_was_learned(
    service, address, images, behind, ask
):
    with behind(address) as (channel, _):
        predict = ask.stub(channel).Predict
        # Nothing is known: it begins with the smallest and goes on.
        assert ask.size(predict(ask.request(images[:1]), timeout=600)) == 4
        assert service.calls == ["ensemble_1", "ensemble_4"]
        assert ask.size(predict(ask.request(images[:1]), timeout=600)) == 4
        assert service.calls[2:] == ["ensemble_4"]
        metadata = [("hne-budget-ms", "600000"), ("traceparent", "00-abc")]
        assert ask.size(predict(ask.request(images[:1]), metadata=metadata)) == 4
        assert service.pairs["traceparent"] == "00-abc"
        assert set(ask.arrays(predict(ask.request(images[:1], outputs=["size"])))) == {"size"}


def test_a_prior_says_what_fits(service, address, images, behind, ask):
    prior = {1: {1: 60e3, 2: 120e3, 4: 6000e3}}
    with behind(address, model_name="digits", prior=prior) as (channel, _):
        assert ask.size(ask.stub(channel).Predict(ask.request(images[:1]), timeout=300)) == 2
    assert service.calls == ["ensemble_2"]


def test_a_first_answer_is_not_lost_to_a_larger_that_hangs(service, address, images, behind, ask):
    opened = threading.Event()
    service.fault = lambda name, call: opened.wait(60) and None if name == "ensemble_4" else None
    try:
        with behind(address) as (channel, _):
            # Returns before its deadline, or it would raise.
            assert ask.size(ask.stub(channel).Predict(ask.request(images[:1]), timeout=4)) == 1
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
        if sys.argv[1] == "served":
            found.signature_def["anytime"].inputs["images"].SetInParent()
            for output in ("probabilities", "size", "latency_ms"):
                found.signature_def["anytime"].outputs[output].SetInParent()
        response = messages.MetadataResponse()
        response.metadata["signature_def"].value = found.SerializeToString()
        return response.SerializeToString()

    def predict(self, message, context):
        if messages.model_spec(message).signature_name in sys.argv[2:]:
            os.kill(os.getpid(), signal.SIGSTOP)
            # The signal may take a moment.
            time.sleep(600)
        response = messages.PredictResponse()
        messages.set_values(response.outputs["probabilities"], [1.0], False)
        messages.set_values(response.outputs["size"], [3], True)
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

    def begin(*signatures, kind="plain"):
        process = subprocess.Popen(
            [sys.executable, "-c", STALLING, kind, *signatures], stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return f"127.0.0.1:{int(process.stdout.readline())}"

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_an_upstream_that_stalls_costs_its_larger_answer_only(stalling, images, behind, ask):
    with behind(stalling("ensemble_4")) as (channel, _):
        predict = ask.stub(channel).Predict
        assert ask.size(predict(ask.request(images[:1]), timeout=4)) == 1
        # It answers nothing any more, and that is told in time, too.
        code, _ = ask.status(predict, ask.request(images[:1]), timeout=2)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_of_two_upstreams_one_may_stall(stalling, images, behind, ask):
    targets = [stalling("ensemble_1", "ensemble_2", "ensemble_4"), stalling()]
    prior = {1: {1: 1.0, 2: 2.0, 4: 4.0}}
    with behind(*targets, model_name="digits", prior=prior) as (channel, _):
        for _ in range(6):
            assert ask.size(ask.stub(channel).Predict(ask.request(images[:1]), timeout=4)) >= 1


def test_of_two_that_choose_themselves_one_may_stall(stalling, images, behind, ask):
    targets = [stalling("anytime", kind="served"), stalling(kind="served")]
    with behind(*targets) as (channel, _):
        predict = ask.stub(channel).Predict
        sizes = [ask.size(predict(ask.request(images[:1]), timeout=4)) for _ in range(6)]
    # The size is what they say.
    assert sizes == [3] * 6


def test_a_server_that_chooses_itself_is_asked_to(server, images, behind, ask):
    sample = server._catalog.metrics.registry.get_sample_value
    before = sample("hne_server_anytime_total", {"size": "4"}) or 0
    with behind(server.address) as (channel, _):
        assert ask.size(ask.stub(channel).Predict(ask.request(images), timeout=60)) == 4
    assert sample("hne_server_anytime_total", {"size": "4"}) == before + 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED"])
def test_one_that_is_busy_or_restarts_is_asked_again_while_time_is_left(
    service, address, images, code, behind, ask
):
    service.fault = lambda name, call: grpc.StatusCode[code] if call in (2, 3) else None
    with behind(address) as (channel, _):
        predict = ask.stub(channel).Predict
        predict(ask.request(images[:1], "ensemble_1"), timeout=60)
        assert ask.size(predict(ask.request(images[:1]), timeout=60)) == 4
        service.calls.clear()
        service.fault = lambda name, call: (grpc.StatusCode[code], "as it says")
        assert ask.status(predict, ask.request(images[:1])) == (grpc.StatusCode[code], "as it says")
        assert service.calls == ["ensemble_4"]


def test_a_restarted_upstream_is_found_again(serve_fake, images, behind, ask):
    service, address = serve_fake()
    port = int(address.rpartition(":")[2])
    with behind(address) as (channel, _):
        predict = ask.stub(channel).Predict
        assert ask.size(predict(ask.request(images[:1]), timeout=60)) == 4
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
        assert ask.size(predict(ask.request(images[:1]), timeout=60)) == 4
        restarted.result(60).stop(0)


def test_a_dead_upstream_costs_nothing(service, address, images, behind, ask):
    with behind("127.0.0.1:1", address) as (channel, _):
        for _ in range(4):
            assert ask.size(ask.stub(channel).Predict(ask.request(images[:1]), timeout=60)) == 4
            assert ask.size(ask.stub(channel).Predict(ask.request(images[:1]))) == 4


def test_signatures_that_go_are_learned_again(service, address, images, behind, ask):
    with behind(address) as (channel, _):
        predict = ask.stub(channel).Predict
        assert ask.size(predict(ask.request(images[:1]), timeout=60)) == 4
        service.sizes = (1, 2)
        gone = grpc.StatusCode.FAILED_PRECONDITION
        service.fault = lambda name, call: gone if name == "ensemble_4" else None
        assert ask.size(predict(ask.request(images[:1]), timeout=60)) == 2


def test_a_new_version_is_noticed(service, address, images, behind, ask):
    with behind(address) as (channel, _):
        predict = ask.stub(channel).Predict
        predict(ask.request(images[:1]), timeout=60)
        service.version, service.sizes = 2, (1, 2, 4, 8)
        for _ in range(600):
            if ask.size(predict(ask.request(images[:1]), timeout=60)) == 8:
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


def test_a_signature_of_the_models_own_is_passed_through(serve_raw, images, behind, ask):
    raw, target = serve_raw()
    sent = ask.request(images).SerializeToString()
    raw.answer = lambda message, context: (
        b"own" if message == sent else _own_anytime(message, context)
    )
    with behind(target) as (channel, _):
        assert channel.unary_unary(PREDICT)(sent, timeout=60) == b"own"


def test_a_model_without_ensembles_is_passed_through(serve, sums_request, behind, ask):
    request = sums_request()
    request.model_spec.signature_name = "anytime"
    serve()
    target = f"127.0.0.1:{serve.ports[-1]}"
    with behind(target) as (channel, _):
        code, details = ask.status(ask.stub(channel).Predict, request, timeout=60)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "signature must be one of" in details


@pytest.mark.parametrize("budget", ["soon", "-1", "0", "inf"])
def test_a_budget_that_is_no_number_is_one_clear_error(address, images, budget, behind, ask):
    with behind(address) as (channel, _):
        metadata = [("hne-budget-ms", budget)]
        status = ask.status(ask.stub(channel).Predict, ask.request(images[:1]), metadata=metadata)
        rule = f"hne-budget-ms must be a number above 0, got {budget!r}"
        assert status == (grpc.StatusCode.INVALID_ARGUMENT, rule)


def test_a_deadline_in_the_past_is_one_clear_error(address, images, behind, ask):
    with behind(address) as (channel, _):
        code, _ = ask.status(ask.stub(channel).Predict, ask.request(images[:1]), timeout=-1.0)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_other_bad_requests_get_the_codes_of_a_server(server, images, behind, ask):
    cases = [
        ask.request(images, outputs=["logits"]),
        ask.request(images, outputs=["size", "size"]),
        ask.request(images[..., 0]),
        ask.request(images.astype(np.float32)),
        ask.request(images, model="other"),
        predict_pb2.PredictRequest(),
    ]
    with (
        behind(server.address) as (channel, _),
        grpc.insecure_channel(server.address) as direct,
    ):
        for request in cases:
            asked = ask.status(ask.stub(channel).Predict, request, timeout=60)
            assert asked[0] is ask.status(ask.stub(direct).Predict, request, timeout=60)[0], asked
        broken = [b"\xff", b"\x0a\xff", ask.request(images).SerializeToString() + b"\x12\x05"]
        for message in broken:
            asked = ask.status(channel.unary_unary(PREDICT), message, timeout=60)
            assert asked[0] is ask.status(direct.unary_unary(PREDICT), message, timeout=60)[0], (
                asked
            )


def test_sizes_shrink_with_the_requests_on_their_way(service, address, images, behind, ask):
    """The more are under way, the smaller the next: nothing is refused before."""
    opened = threading.Event()
    service.fault = lambda name, call: opened.wait(60) and None
    prior = {1: {1: 10e3, 2: 20e3, 4: 40e3}}
    with behind(address, model_name="digits", prior=prior) as (channel, _):
        calls = []
        for count in itertools.count(1):
            calls.append(ask.stub(channel).Predict.future(ask.request(images[:1]), timeout=150))
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
