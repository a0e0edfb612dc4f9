"""Batches give the answers of single requests, and one request cannot spoil another's."""

import concurrent.futures
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.exported.versions import latest_version_path
from hne_tf.server.catalog import Catalog
from hne_tf.server.metrics import ServerMetrics
from hne_tf.server.servable import Servable
from hne_tf.server.service import Options, start

_MAX = 16


@pytest.fixture(scope="module")
def batching(base_path):
    """A batching server of the digits: the stub and the metrics."""
    catalog = Catalog("digits", ServerMetrics())
    catalog.publish(Servable("digits", latest_version_path(base_path)))
    running = start(catalog, options=Options(max_batch_size=_MAX, batch_timeout_micros=20_000))
    with grpc.insecure_channel(running.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel), catalog.metrics.registry
    running.stop(grace_s=0)


def _request(model, signature, **inputs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


def _inputs(signature, rows, generator):
    if signature == "step_2":
        return {
            "cache": generator.normal(size=(rows, 6)).astype(np.float32),
            "running_sum": generator.normal(size=(rows, 10)).astype(np.float32),
        }
    return {"images": generator.integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8)}


def test_answers_equal_those_of_the_saved_model(batching, saved_model):
    stub, registry = batching
    generator = np.random.default_rng(3)
    signatures = ("ensemble_1", "ensemble_4", "step_2")
    asked = [
        (signature, _inputs(signature, rows, generator))
        for rows in (1, 2, 3, 5, 7, _MAX)
        for signature in signatures
        for _ in range(3)
    ]
    calls = [stub.Predict.future(_request("digits", name, **inputs)) for name, inputs in asked]
    for call, (name, inputs) in zip(calls, asked, strict=True):
        expected = saved_model.signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})
        outputs = call.result(timeout=30).outputs
        assert set(outputs) == set(expected)
        for key, tensor in outputs.items():
            received = tf.make_ndarray(tensor)
            np.testing.assert_allclose(received, expected[key].numpy(), rtol=0, atol=1e-5)
    for signature in signatures:
        runs = registry.get_sample_value("hne_server_batch_rows_count", {"signature": signature})
        rows = registry.get_sample_value("hne_server_batch_rows_sum", {"signature": signature})
        assert rows == 3 * (1 + 2 + 3 + 5 + 7 + _MAX)
        # Six sizes, three of each: without batches there were 18 runs.
        assert runs < 18


def test_more_rows_than_a_batch_are_refused(batching, images):
    stub, _ = batching
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(_request("digits", "ensemble_1", images=np.repeat(images, 4, axis=0)))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "must have at least 1 and at most 16 rows, got 20" in caught.value.details()


def test_inputs_of_unequal_rows_are_refused(batching):
    stub, _ = batching
    request = _request(
        "digits",
        "step_2",
        cache=np.zeros((2, 6), np.float32),
        running_sum=np.zeros((3, 10), np.float32),
    )
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "equal first dimensions" in caught.value.details()


def test_a_request_that_fails_in_the_graph_fails_alone(serve, catalog, sums_request):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        serve(max_batch_size=8, batch_timeout_micros=300_000)
    )
    values = [1.0, 2.0, -3.0, 4.0]
    calls = [stub.Predict.future(sums_request(value, rows=2)) for value in values]
    concurrent.futures.wait([_future(call) for call in calls], timeout=30)
    for value, call in zip(values, calls, strict=True):
        if value < 0:
            assert call.code() == grpc.StatusCode.INVALID_ARGUMENT
        else:
            sums = tf.make_ndarray(call.result().outputs["sums"])
            np.testing.assert_array_equal(sums, [value + 1.0] * 2)
    sample = catalog.metrics.registry.get_sample_value
    # The batch of all, then each by itself.
    assert sample("hne_server_batch_rows_count", {"signature": "serving_default"}) == 5


def _future(call):
    done = concurrent.futures.Future()
    call.add_done_callback(done.set_result)
    return done


def test_a_full_batch_does_not_wait_for_the_timeout(serve, sums_request):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        serve(max_batch_size=4, batch_timeout_micros=60_000_000)
    )
    calls = [stub.Predict.future(sums_request(float(value), rows=2)) for value in range(4)]
    for value, call in enumerate(calls):
        np.testing.assert_array_equal(
            tf.make_ndarray(call.result(timeout=20).outputs["sums"]), [value + 1.0] * 2
        )


def test_who_does_not_fit_starts_the_next_batch(serve, in_service, sums_request):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        serve(max_batch_size=4, batch_timeout_micros=60_000_000)
    )
    first = stub.Predict.future(sums_request(1.0, rows=3))
    in_service(1)
    # From there it takes a moment into its batch.
    time.sleep(0.1)
    second = stub.Predict.future(sums_request(2.0, rows=4))
    for call, value in ((first, 2.0), (second, 3.0)):
        assert tf.make_ndarray(call.result(timeout=20).outputs["sums"])[0] == value
