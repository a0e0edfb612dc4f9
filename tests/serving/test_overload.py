"""A full server refuses at once, answers what it took on, and runs nothing in vain."""

import time

import grpc
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc


def _stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _code(call):
    with pytest.raises(grpc.RpcError) as caught:
        call.result(timeout=20)
    return caught.value.code()


def _sample(catalog, name, **labels):
    return catalog.metrics.registry.get_sample_value(f"hne_server_{name}", labels) or 0


def _until(condition):
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 1, "batch_timeout_micros": 0}])
def test_beyond_the_bound_requests_are_refused_at_once(catalog, serve, sums_request, gate, options):
    channel = serve(threads=1, max_queued_requests=3, **options)
    stub = _stub(channel)
    held = [stub.Predict.future(sums_request(float(value))) for value in range(4)]
    _until(lambda: _sample(catalog, "queue_length") == 3)
    # The gate is closed: who is answered now has not waited for a graph.
    refused = [stub.Predict.future(sums_request()) for _ in range(20)]
    assert {_code(call) for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert "at most 4 predictions" in refused[0].details()
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "sums"
    assert stub.GetModelMetadata(metadata, timeout=20).model_spec.version.value == 1
    health = health_pb2_grpc.HealthStub(channel)
    status = health.Check(health_pb2.HealthCheckRequest(), timeout=20).status
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert not any(call.done() for call in held)
    gate.opened.set()
    sums = [tf.make_ndarray(call.result(timeout=20).outputs["sums"])[0] for call in held]
    assert sums == [1.0, 2.0, 3.0, 4.0]
    assert len(gate.runs) == 4
    _until(lambda: _sample(catalog, "queue_length") == 0)
    assert (
        _sample(catalog, "requests_total", door="grpc", signature="", code="RESOURCE_EXHAUSTED")
        == 20
    )
    assert (
        _sample(catalog, "requests_total", door="grpc", signature="serving_default", code="OK") == 4
    )
    assert _sample(catalog, "latency_seconds_count", signature="serving_default") == 4
    stub.Predict(sums_request())


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 1, "batch_timeout_micros": 0}])
def test_what_expires_or_is_cancelled_while_it_waits_is_never_run(
    catalog, serve, sums_request, gate, in_service, options
):
    channel = serve(threads=1, max_queued_requests=2, **options)
    stub = _stub(channel)
    running = stub.Predict.future(sums_request(1.0))
    assert gate.entered.acquire(timeout=20)
    expired = stub.Predict.future(sums_request(2.0), timeout=1.0)
    cancelled = stub.Predict.future(sums_request(3.0))
    in_service(3)
    cancelled.cancel()
    assert _code(expired) == grpc.StatusCode.DEADLINE_EXCEEDED
    if not options:
        # Their places are free before the graph that runs is done.
        _until(lambda: _sample(catalog, "queue_length") == 0)
    gate.opened.set()
    assert tf.make_ndarray(running.result(timeout=20).outputs["sums"]) == [2.0]
    _until(
        lambda: (
            _sample(catalog, "abandoned_total", reason="expired")
            + _sample(catalog, "abandoned_total", reason="cancelled")
            == 2
        )
    )
    assert _sample(catalog, "abandoned_total", reason="cancelled") == 1
    assert len(gate.runs) == 1


def test_waiting_requests_run_in_the_order_they_came(
    serve, sums_request, gate, catalog, in_service
):
    stub = _stub(serve(threads=1, max_queued_requests=8))
    calls = [stub.Predict.future(sums_request(0.0))]
    assert gate.entered.acquire(timeout=20)
    for value in range(1, 6):
        calls.append(stub.Predict.future(sums_request(float(value))))
        _until(lambda count=value: _sample(catalog, "queue_length") == count)
        in_service(value + 1)
        # From there it takes a moment into the queue.
        time.sleep(0.02)
    gate.opened.set()
    for call in calls:
        call.result(timeout=20)
    assert [arrays["values"][0, 0] for arrays in gate.runs] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_request_without_a_deadline_is_served(serve, sums_request):
    assert _stub(serve()).Predict(sums_request()).model_spec.version.value == 1
