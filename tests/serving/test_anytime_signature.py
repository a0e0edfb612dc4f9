"""Signature `anytime` of the embedded server, asked with the generated stubs alone."""

import contextlib
import math
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.client.latency.latencies import Latencies
from hne_tf.exported.versions import latest_version_path
from hne_tf.server.admission import Slots
from hne_tf.server.anytime import budgets
from hne_tf.server.catalog import Catalog
from hne_tf.server.errors import RequestError
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import LoadedSignature, Servable
from hne_tf.server.service import Options, start

PRIOR = {1: {1: 10.0, 2: 20.0, 4: 40.0}}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def known(clock):
    latencies = Latencies(PRIOR, clock)
    latencies.set_sizes((1, 2, 4))
    return latencies


@pytest.mark.parametrize(
    ("left_ms", "share_ms", "size"),
    [
        (math.inf, math.inf, 4),
        (100.0, math.inf, 4),
        (40.0, math.inf, 2),
        (15.0, math.inf, 1),
        (100.0, 30.0, 2),
        (100.0, 1.0, 1),
        (15.0, 100.0, 1),
    ],
)
def test_the_largest_size_that_its_time_and_the_others_allow(known, left_ms, share_ms, size):
    assert budgets.plan(known, 1, left_ms, share_ms).size == size


def test_a_reserve_is_asked_when_the_first_is_overdue_and_time_is_left(known):
    plan = budgets.plan(known, 1, 100.0)
    assert (plan.size, plan.sure) == (4, True)
    # Not before the first is expected, and early enough for the smallest twice.
    assert plan.reserve_ms == 80.0
    assert budgets.plan(known, 1, 50.0).reserve_ms == 40.0
    assert budgets.plan(known, 1, math.inf).reserve_ms == math.inf
    assert budgets.plan(known, 1, 15.0).reserve_ms == math.inf


def test_it_begins_small_while_nothing_is_known_and_goes_on_when_it_is(clock):
    latencies = Latencies(clock=clock)
    latencies.set_sizes((1, 2, 4))
    plan = budgets.plan(latencies, 1, 100.0)
    assert (plan.size, plan.sure) == (1, False)
    ticket = latencies.sent(1, 1)
    clock.now += 0.010
    latencies.answered(ticket)
    assert budgets.larger(latencies, 1, 90.0, 1) == 4
    assert budgets.larger(latencies, 1, 30.0, 1) == 2
    assert budgets.larger(latencies, 1, 15.0, 1) is None


def test_no_time_for_the_smallest_is_refused_unless_estimates_are_old(known, clock):
    with pytest.raises(RequestError, match=r"no time for the smallest ensemble \(size 1\)") as none:
        budgets.plan(known, 1, 0.0)
    assert none.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    # Nothing was asked yet: the estimate is only the profile's.
    assert budgets.plan(known, 1, 5.0).size == 1
    ticket = known.sent(1, 1)
    clock.now += 0.010
    known.answered(ticket)
    with pytest.raises(RequestError, match=r"at least 10 ms .* 5 ms are left"):
        budgets.plan(known, 1, 5.0)
    clock.now += 60.0
    assert budgets.plan(known, 1, 5.0).size == 1


def test_the_end_is_the_nearer_of_deadline_and_budget_less_a_margin():
    started_s = time.perf_counter()
    assert budgets.end_s(started_s, None, None) == math.inf
    assert budgets.end_s(started_s, None, 100.0) == pytest.approx(started_s + 0.095)
    assert budgets.end_s(started_s, 1e6, 100.0) == pytest.approx(started_s + 0.095)
    assert budgets.end_s(started_s, 0.1, 1e6) < started_s + 0.1 + (time.perf_counter() - started_s)
    # Half of a tiny budget is for the answer all the same.
    assert budgets.end_s(started_s, None, 1.0) == pytest.approx(started_s + 0.0005)


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-1", "0", b"\xff", "1,5", "9" * 400])
def test_a_budget_must_be_a_number_above_0(text):
    with pytest.raises(RequestError, match="hne-budget-ms must be a number above 0, got") as caught:
        budgets.from_metadata([("hne-budget-ms", text)])
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.message) < 100


def test_the_smallest_stated_budget_counts():
    pairs = [("other", "x"), ("hne-budget-ms", "7"), ("hne-budget-ms", "3.5")]
    assert budgets.from_metadata(pairs) == 3.5
    assert budgets.from_metadata([("other", "x")]) is None


def test_time_is_shared_among_those_who_wait_and_have_an_end():
    slots = Slots(1)
    assert slots.share_s() == math.inf
    waiting = []
    with slots.hold(None):
        for end_s in (math.inf, time.perf_counter() + 600.0):
            waiting.append(threading.Thread(target=lambda end_s=end_s: _pass(slots, end_s)))
            waiting[-1].start()
            _until(lambda: len(slots._waiting) == len(waiting))
        # Three compute until the last one's end, of which half is counted on.
        assert 0.4 * 600 / 3 < slots.share_s() <= 0.5 * 600 / 3
    for thread in waiting:
        thread.join()


def _pass(slots, end_s):
    with slots.hold(None, end_s):
        pass


def _until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _request(images, signature="anytime", outputs=()):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = "digits"
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    return request


@contextlib.contextmanager
def _serving(path, **options):
    """A stub and the metrics of a server of its own."""
    catalog = Catalog("digits", ServerMetrics())
    catalog.publish(Servable("digits", path))
    running = start(catalog, options=Options(**options))
    with grpc.insecure_channel(running.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield stub, catalog.metrics.registry.get_sample_value
    running.stop(grace_s=0)


@pytest.fixture(params=[{}, {"max_batch_size": 8}], ids=["alone", "batched"])
def serving(base_path, request):
    with _serving(latest_version_path(base_path), **request.param) as served:
        yield served


def _arrays(response):
    return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def test_without_a_budget_it_is_the_full_ensemble(serving, images):
    stub, sample = serving
    full = _arrays(stub.Predict(_request(images, "ensemble_4")))
    response = stub.Predict(_request(images))
    answer = _arrays(response)
    np.testing.assert_array_equal(answer["probabilities"], full["probabilities"])
    assert answer["size"].tolist() == [4] * 5
    assert answer["size"].dtype == np.int32
    assert answer["latency_ms"].dtype == np.float32
    assert answer["latency_ms"].shape == (5,)
    assert (answer["latency_ms"] > 0).all()
    assert response.model_spec.signature_name == "anytime"
    assert sample("hne_server_anytime_total", {"size": "4"}) == 1
    labels = {"door": "grpc", "signature": "anytime", "code": "OK"}
    assert sample("hne_server_requests_total", labels) == 1


@pytest.mark.parametrize("by", ["deadline", "metadata"])
def test_with_time_enough_it_goes_on_to_the_full_ensemble(serving, images, by):
    stub, _ = serving
    limit = {"timeout": 60.0} if by == "deadline" else {"metadata": [("hne-budget-ms", "60000")]}
    for _ in range(2):
        # The first begins with the smallest, because nothing was measured.
        answer = _arrays(stub.Predict(_request(images), **limit))
        assert set(answer["size"]) == {4}
    assert set(_arrays(stub.Predict(_request(images, outputs=["size"]), **limit))) == {"size"}


class Held:
    """Holds runs of a signature from its `after`-th on."""

    def __init__(self, monkeypatch, name, after=0):
        self.opened, self.entered = threading.Event(), threading.Event()
        self.names = []
        run = LoadedSignature.run

        def held(signature, arrays):
            self.names.append(signature.name)
            if signature.name == name and self.names.count(name) > after:
                self.entered.set()
                assert self.opened.wait(60)
            return run(signature, arrays)

        monkeypatch.setattr(LoadedSignature, "run", held)


@pytest.mark.parametrize("after", [0, 1], ids=["a second answer", "a late first"])
def test_a_first_answer_is_not_lost_to_a_larger_that_hangs(serving, images, monkeypatch, after):
    stub, sample = serving
    held = Held(monkeypatch, "ensemble_4", after)
    try:
        small = _arrays(stub.Predict(_request(images, "ensemble_1")))["probabilities"]
        for _ in range(after):
            stub.Predict(_request(images), timeout=60.0)
        # Returns before its deadline, or it would raise.
        answer = _arrays(stub.Predict(_request(images), timeout=6.0))
        assert held.entered.is_set()
        assert set(answer["size"]) == {1}
        np.testing.assert_array_equal(answer["probabilities"], small)
        assert sample("hne_server_anytime_total", {"size": "1"}) == 1
    finally:
        held.opened.set()


def test_under_load_sizes_shrink_before_anything_is_refused(base_path, images, monkeypatch):
    held = Held(monkeypatch, "serving_default")
    # Whatever the speed of this machine, a leaf is said to take ten minutes.
    minutes = {1: {size: 600e3 * size for size in (1, 2, 4)}}
    monkeypatch.setattr("hne_tf.server.anytime.signature._measured", lambda servable: minutes)
    with _serving(latest_version_path(base_path), threads=1) as (stub, sample):
        running = stub.Predict.future(_request(images[:1], "serving_default"))
        assert held.entered.wait(60)
        hour = [("hne-budget-ms", "3600000")]
        waiting = [stub.Predict.future(_request(images[:1]), metadata=hour) for _ in range(3)]
        _until(lambda: sample("hne_server_queue_length") == 3)
        # From there it takes a moment into the queue.
        time.sleep(0.5)
        held.opened.set()
        running.result(60)
        sizes = [int(_arrays(call.result(60))["size"][0]) for call in waiting]
    # An hour is enough for 4 leaves. The first has to leave time to two others; after it
    # the server knows better.
    assert sorted(sizes) == [1, 4, 4]


@pytest.mark.parametrize("budget", ["soon", "-1", "0"])
def test_a_budget_that_is_no_number_is_one_clear_error(serving, images, budget):
    stub, _ = serving
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(_request(images), metadata=[("hne-budget-ms", budget)])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == f"hne-budget-ms must be a number above 0, got {budget!r}"


def test_a_deadline_in_the_past_is_one_clear_error(serving, images):
    stub, _ = serving
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(_request(images), timeout=-1.0)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_images_and_filters_are_checked_as_of_any_signature(serving, images):
    stub, _ = serving
    for request in (_request(images[..., 0]), _request(images, outputs=["logits"])):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request, timeout=60.0)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_metadata_tell_of_it(serving):
    stub, _ = serving
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "digits"
    told = get_model_metadata_pb2.SignatureDefMap()
    stub.GetModelMetadata(request).metadata["signature_def"].Unpack(told)
    signature = told.signature_def["anytime"]
    assert set(signature.inputs) == {"images"}
    dtypes = {name: info.dtype for name, info in signature.outputs.items()}
    floats, integers = tf.float32.as_datatype_enum, tf.int32.as_datatype_enum
    assert dtypes == {"probabilities": floats, "latency_ms": floats, "size": integers}


@pytest.fixture(scope="module")
def own_path(tmp_path_factory):
    """A model with ensembles and a signature `anytime` of its own."""
    path = tmp_path_factory.mktemp("models") / "digits" / "1"

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 1], tf.uint8, name="images")])
        def predict(self, images):
            return {"probabilities": tf.ones([tf.shape(images)[0], 10])}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="hours")])
        def anytime(self, hours):
            return {"days": hours / 24.0}

    model = Model()
    signatures = {"ensemble_1": model.predict, "anytime": model.anytime}
    tf.saved_model.save(model, str(path), signatures=signatures)
    return path


def test_a_signature_of_the_models_own_stays(own_path):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "anytime"
    request.inputs["hours"].CopyFrom(tf.make_tensor_proto(np.array([48.0], np.float32)))
    with _serving(own_path) as (stub, _):
        assert _arrays(stub.Predict(request))["days"].tolist() == [2.0]


def test_a_model_without_ensembles_has_none(serve, sums_request):
    request = sums_request()
    request.model_spec.signature_name = "anytime"
    with pytest.raises(grpc.RpcError) as caught:
        prediction_service_pb2_grpc.PredictionServiceStub(serve()).Predict(request)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
