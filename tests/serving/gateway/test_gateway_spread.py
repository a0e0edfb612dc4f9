"""`anytime` from leaves of several servers, asked by the generated stub alone."""

import concurrent.futures
import contextlib
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2

from hne_tf.gateway import messages
from hne_tf.server.servable import Servable
from hne_tf.server.service import start
from tests.serving.leaf_host import HALVES, IMAGES, Host, expected, serve

# Generous, because other tests may keep the machine busy.
LONG_S = 60.0
# What is meant to pass.
SHORT = (("hne-budget-ms", "2000"),)


@pytest.fixture
def begin(behind, ask):
    """Starts hosts and a gateway that spreads over them; returns what asks it for `anytime`."""
    servers = []
    with contextlib.ExitStack() as opened:

        def run(*hosts, also=()):
            started = [serve(host) for host in hosts]
            servers.extend(server for server, _ in started)
            addresses = [address for _, address in started]
            channel, sample = opened.enter_context(behind(*addresses, *also, spread=True))

            def predict(timeout=LONG_S, metadata=(), **options):
                request = ask.request(IMAGES, **options)
                return ask.stub(channel).Predict(request, timeout=timeout, metadata=metadata)

            predict.channel, predict.sample, predict.addresses = channel, sample, addresses
            return predict

        yield run
    for server in servers:
        server.stop(0)


@pytest.fixture
def check(ask):
    """Checks that an answer is of just some leaves."""

    def compare(response, *leaves, version=1):
        answer = ask.arrays(response)
        assert answer["leaves"].tolist() == [[list(part) for part in leaves]]
        assert answer["size"].tolist() == [sum(stop - first for first, stop in leaves)]
        assert (answer["leaves"].dtype, answer["size"].dtype) == (np.int32, np.int32)
        assert response.model_spec.version.value == version
        np.testing.assert_allclose(answer["probabilities"], expected(version, *leaves), rtol=1e-6)

    return compare


def until_all_leaves(predict, ask):
    """Sizes of answers, up to the first of all leaves."""
    sizes = []
    while 16 not in sizes:
        sizes.append(ask.size(predict()))
        threading.Event().wait(0.05)
        assert len(sizes) < 500
    return sizes


def test_three_servers_answer_as_one_does(parted_path, images, behind, ask):
    one = tf.saved_model.load(str(parted_path)).signatures["ensemble_8"]
    alone = one(images=tf.constant(images))["probabilities"].numpy()
    servers = [start(Servable("parted", parted_path)) for _ in range(3)]
    with behind(*(server.address for server in servers), spread=True) as (channel, sample):
        predict = ask.stub(channel).Predict
        request = ask.request(images, model="parted")
        response = predict(request, timeout=LONG_S)
        answer = ask.arrays(response)
        np.testing.assert_allclose(answer["probabilities"], alone, atol=1e-5)
        assert answer["leaves"].tolist() == [[[0, 2], [2, 5], [5, 8]]] * 5
        assert answer["size"].tolist() == [8] * 5
        assert (answer["latency_ms"] > 0).all()
        spec = response.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("parted", 1, "anytime")
        assert sample("hne_gateway_leaves_share_sum") == 1
        counts = [_asked(server, part) for server in servers for part in ("0_2", "2_5", "5_8")]
        assert sorted(counts) == [0] * 6 + [1] * 3
        for server in servers[1:]:
            server.stop(grace_s=0)
        # The one that is left has time to take over.
        answer = ask.arrays(predict(request, timeout=LONG_S))
        np.testing.assert_allclose(answer["probabilities"], alone, atol=1e-5)
        assert sample("hne_gateway_anytime_total", {"size": "8"}) == 2
        code, details = ask.status(
            predict, ask.request(images[:, :4], model="parted"), timeout=LONG_S
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "images" in details
    servers[0].stop(grace_s=0)


def _asked(server, part):
    labels = {"signature": f"leaves_{part}", "code": "OK"}
    registry = server._catalog.metrics.registry
    return sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "hne_server_requests_total" and labels.items() <= sample.labels.items()
    )


def test_leaves_of_all_hosts_are_summed(begin, check, ask):
    hosts = [Host(HALVES), Host(HALVES)]
    predict = begin(*hosts)
    check(predict(), *HALVES)
    check(predict(timeout=None), *HALVES)
    assert sorted(hosts[0].calls + hosts[1].calls) == 2 * ["leaves_0_8"] + 2 * ["leaves_8_16"]
    assert len(hosts[0].calls) == 2
    assert set(ask.arrays(predict(outputs=["leaves"]))) == {"leaves"}
    assert ask.status(predict, outputs=["logits"]) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "output_filter must name ['latency_ms', 'leaves', 'probabilities', 'size'], got 'logits'",
    )


def test_a_dead_host_costs_its_leaves_not_the_answer(begin, check, ask):
    alive, dead = Host(HALVES[:1]), Host(HALVES[1:])
    dead.fault = lambda name: grpc.StatusCode.UNAVAILABLE
    # And nobody listens on port 1.
    predict = begin(alive, dead, also=["127.0.0.1:1"])
    check(predict(), HALVES[0])
    assert predict.sample("hne_gateway_leaves_share_bucket", {"le": "0.4"}) == 0
    assert predict.sample("hne_gateway_leaves_share_bucket", {"le": "0.5"}) == 1
    dead.fault = lambda name: None
    assert set(until_all_leaves(predict, ask)) <= {8, 16}
    assert predict.sample("hne_gateway_leaves_share_bucket", {"le": "1.0"}) > predict.sample(
        "hne_gateway_leaves_share_bucket", {"le": "0.999"}
    )


def test_a_stalled_host_costs_its_leaves_once(begin, check, ask, opened):
    alive, stalled = Host(HALVES[:1]), Host(HALVES[1:])
    predict = begin(alive, stalled)
    check(predict(), *HALVES)
    stalled.fault = lambda name: opened.wait(LONG_S) and None
    check(predict(metadata=SHORT), HALVES[0])
    asked = len(stalled.calls)
    # Nobody waits for it now, however long the deadline is.
    response = predict()
    check(response, HALVES[0])
    assert ask.arrays(response)["latency_ms"].max() < 1000 * LONG_S / 2
    assert len(stalled.calls) == asked
    opened.set()
    stalled.fault = lambda name: None
    until_all_leaves(predict, ask)


def test_a_host_that_tells_nothing_does_not_hold_up_the_answer(begin, check, ask, opened):
    silent = Host(HALVES[1:])
    silent.GetModelMetadata = lambda request, context: opened.wait(LONG_S) and None
    predict = begin(Host(HALVES[:1]), silent)
    check(predict(metadata=SHORT), HALVES[0])


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "CANCELLED", "INTERNAL"])
def test_another_host_takes_over_while_there_is_time(begin, check, code):
    hosts = [Host(HALVES), Host(HALVES)]
    hosts[0].fault = lambda name: grpc.StatusCode[code]
    check(begin(*hosts)(), *HALVES)
    assert sorted(hosts[1].calls) == ["leaves_0_8", "leaves_8_16"]


def test_nothing_in_time_is_an_error_that_says_so(begin, check, ask, opened):
    host = Host(HALVES)
    predict = begin(host)
    check(predict(), *HALVES)
    host.fault = lambda name: opened.wait(LONG_S) and None
    code, details = ask.status(predict, metadata=SHORT)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "no leaves of 'digits' in" in details
    # Nobody was better: it is asked again at once.
    opened.set()
    host.fault = lambda name: None
    check(predict(), *HALVES)


def test_no_server_at_all_has_its_own_code(behind, ask):
    with behind("127.0.0.1:1", spread=True) as (channel, _):
        predict = ask.stub(channel).Predict
        code, details = ask.status(predict, ask.request(IMAGES), timeout=LONG_S, metadata=SHORT)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "no leaves of 'digits' in" in details


def test_what_no_host_would_answer_passes_as_it_is(begin, check, ask):
    hosts = [Host(HALVES), Host(HALVES)]
    for host in hosts:
        host.fault = lambda name: grpc.StatusCode.INVALID_ARGUMENT
    predict = begin(*hosts)
    status = ask.status(predict)
    assert status == (grpc.StatusCode.INVALID_ARGUMENT, "a fault of the test")
    for host in hosts:
        host.fault = lambda name: None
    check(predict(), *HALVES)


def test_leaves_of_two_versions_are_never_in_one_answer(begin, check):
    old, new = Host(HALVES), Host(HALVES, version=2)
    predict = begin(old, new)
    check(predict(), *HALVES, version=2)
    assert old.calls == []
    # Both go on to the next: whom an answer pinned is asked what it serves now.
    new.version = old.version = 3
    check(predict(), *HALVES, version=3)


def test_a_host_that_changes_its_version_is_asked_what_it_serves(begin, check, ask):
    hosts = [Host(HALVES[:1]), Host(HALVES[1:])]
    predict = begin(*hosts)
    check(predict(), *HALVES)
    hosts[0].version = 2
    for _ in range(5):
        response = predict()
        version = response.model_spec.version.value
        check(response, HALVES[version == 1], version=version)
    hosts[1].version = 2
    until_all_leaves(predict, ask)
    check(predict(), *HALVES, version=2)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (((0, 8), (10, 16)), "got none for 8, 9"),
        (((0, 8), (6, 16)), "without an overlap, got leaves 0 to 7, 6 to 15"),
        ((), "must have signatures leaves_<a>_<b> (hne-export --spread) to be spread, got none"),
    ],
)
def test_hosts_that_cannot_answer_together_are_one_clear_status(begin, check, ask, parts, reason):
    hosts = [Host((part,)) for part in parts] or [Host(()), Host(())]
    predict = begin(*hosts)
    code, details = ask.status(predict)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert reason in details
    # Models that are exported anew are found.
    for host, part in zip(hosts, HALVES, strict=True):
        host.parts = (part,)
    for _ in range(500):
        if _code(predict) is None:
            break
        threading.Event().wait(0.05)
    until_all_leaves(predict, ask)
    check(predict(), *HALVES)


def _code(call):
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return None


def test_a_model_that_nobody_has_is_not_found(server, images, behind, ask):
    with behind(server.address, "127.0.0.1:1", spread=True) as (channel, _):
        request = ask.request(images, model="other")
        code, details = ask.status(ask.stub(channel).Predict, request, timeout=LONG_S)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "other" in details


def test_a_signature_of_the_models_own_stays_what_it_is(serve_raw, behind, ask):
    raw, target = serve_raw()
    found = messages.SignatureDefs()
    for name in ("anytime", "leaves_0_1"):
        found.signature_def[name].inputs["values"].SetInParent()
        found.signature_def[name].outputs["running_sum_logits"].SetInParent()
    told = messages.MetadataResponse()
    told.metadata["signature_def"].value = found.SerializeToString()

    def answer(message, context):
        read = get_model_metadata_pb2.GetModelMetadataRequest.FromString(message)
        asks = list(read.metadata_field) == ["signature_def"]
        return told.SerializeToString() if asks else b"its own"

    raw.answer = answer
    with behind(target, spread=True) as (channel, _):
        request = ask.request(IMAGES).SerializeToString()
        assert channel.unary_unary(messages.PREDICT)(request, timeout=LONG_S) == b"its own"


def test_all_else_passes_through(server, images, behind, ask):
    with behind(server.address, spread=True) as (channel, _):
        predict = ask.stub(channel).Predict
        response = predict(ask.request(images, "ensemble_2"), timeout=LONG_S)
        with grpc.insecure_channel(server.address) as direct:
            alone = ask.stub(direct).Predict(ask.request(images, "ensemble_2"), timeout=LONG_S)
        assert response == alone
        # The model has no leaves by themselves.
        code, details = ask.status(predict, ask.request(images), timeout=LONG_S)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "got none of 'digits'" in details
        assert server.address in details


def test_signatures_are_counted_by_name_once_the_model_is_known(begin, check):
    host = Host(HALVES)
    predict = begin(host)
    check(predict(), *HALVES)
    labels = {"signature": "leaves_0_8", "code": "OK"}
    for _ in range(500):
        predict(signature="leaves_0_8")
        if predict.sample("hne_gateway_requests_total", labels):
            break
        threading.Event().wait(0.05)
    assert predict.sample("hne_gateway_requests_total", labels) == 1


def test_many_requests_at_once_are_all_answered(begin, check):
    predict = begin(*(Host(HALVES) for _ in range(3)))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for response in threads.map(lambda _: predict(), range(48)):
            check(response, *HALVES)


@pytest.mark.parametrize("listed", [False, True])
def test_arrays_are_read_as_servers_send_them(ask, listed):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    proto = tf.make_tensor_proto(array)
    if listed:
        proto.float_val.extend(array.ravel())
        proto.ClearField("tensor_content")
    response = messages.PredictResponse()
    tensor = response.outputs["sums"]
    tensor.MergeFromString(proto.SerializeToString())
    np.testing.assert_array_equal(messages.floats(tensor), array)
    tensor.tensor_shape.dim[0].size = 3
    with pytest.raises(messages.DecodeError, match=r"no float32 values of shape \[3, 3\]"):
        messages.floats(tensor)
    tensor.tensor_shape.dim[0].size = 2
    tensor.dtype = 2
    with pytest.raises(messages.DecodeError):
        messages.floats(tensor)
