"""The server's answers, asked with the generated stubs alone."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from hne_tf.errors import InputError
from hne_tf.exported.versions import latest_version_path
from hne_tf.server.servable import Servable
from hne_tf.server.service import start

_SIGNATURES = ("ensemble_1", "ensemble_2", "ensemble_4", "serving_default")


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def any_stub(server_address):
    with grpc.insecure_channel(server_address) as opened:
        yield prediction_service_pb2_grpc.PredictionServiceStub(opened)


def _assert_same(received, expected, server_kind):
    assert received.dtype == expected.dtype
    # Another build of the same kernels may round in another way.
    tolerance = 0 if server_kind == "embedded" else 1e-5
    np.testing.assert_allclose(received, expected, rtol=0, atol=tolerance)


def _request(images, signature="", **model_spec):
    """A request written field by field, as a client in any language would."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = signature
    for field, value in model_spec.items():
        getattr(request.model_spec, field).value = value
    tensor = request.inputs["images"]
    tensor.dtype = types_pb2.DT_UINT8
    for size in images.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = images.tobytes()
    return request


@pytest.mark.parametrize("signature", _SIGNATURES)
def test_predict_equals_the_saved_model(any_stub, server_kind, saved_model, images, signature):
    response = any_stub.Predict(_request(images, signature))
    expected = saved_model.signatures[signature](images=tf.constant(images))
    assert set(response.outputs) == {"logits", "probabilities"}
    for name, proto in response.outputs.items():
        _assert_same(tf.make_ndarray(proto), expected[name].numpy(), server_kind)


def test_a_signature_of_two_inputs_equals_the_saved_model(any_stub, server_kind, saved_model):
    random = np.random.default_rng(2)
    inputs = {
        "cache": random.normal(size=(3, 6)).astype(np.float32),
        "running_sum": random.normal(size=(3, 10)).astype(np.float32),
    }
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "step_2"
    for name, array in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    outputs = any_stub.Predict(request).outputs
    expected = saved_model.signatures["step_2"](
        **{name: tf.constant(array) for name, array in inputs.items()}
    )
    for name in ("running_sum", "probabilities"):
        _assert_same(tf.make_ndarray(outputs[name]), expected[name].numpy(), server_kind)


def test_ensembles_differ(stub, images):
    answers = [
        tf.make_ndarray(stub.Predict(_request(images, signature)).outputs["logits"])
        for signature in ("ensemble_1", "ensemble_2", "ensemble_4")
    ]
    assert not np.allclose(answers[0], answers[1])
    assert not np.allclose(answers[1], answers[2])


def test_predict_without_a_signature_takes_serving_default(stub, images):
    response = stub.Predict(_request(images))
    assert response.model_spec.signature_name == "serving_default"
    assert response.outputs == stub.Predict(_request(images, "ensemble_4")).outputs


def test_predict_names_the_version_that_answered(stub, images):
    for request in (_request(images), _request(images, version=7)):
        response = stub.Predict(request)
        assert response.model_spec.name == "digits"
        assert response.model_spec.version.value == 7


def test_output_filter_limits_the_answer(stub, images):
    request = _request(images, "ensemble_2")
    request.output_filter.append("probabilities")
    assert list(stub.Predict(request).outputs) == ["probabilities"]


def test_values_listed_one_by_one_are_read_too(stub, images):
    request = _request(images)
    content = request.inputs["images"]
    content.tensor_content = b""
    content.int_val.extend(int(pixel) for pixel in images.ravel())
    assert stub.Predict(request).outputs == stub.Predict(_request(images)).outputs


def test_messages_beyond_grpcs_own_limit_are_taken(serve, sums_request):
    rows = 600_000
    stub = prediction_service_pb2_grpc.PredictionServiceStub(serve(max_rows=rows))
    request = sums_request(1.0, rows=rows)
    assert request.ByteSize() > 4 * 1024 * 1024
    assert stub.Predict(request).outputs["sums"].tensor_shape.dim[0].size == rows


def test_metadata_holds_every_signature(stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "digits"
    response = stub.GetModelMetadata(request)
    assert response.model_spec.version.value == 7
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(_SIGNATURES) <= set(signatures.signature_def)
    taken = signatures.signature_def["ensemble_2"].inputs["images"]
    assert taken.dtype == types_pb2.DT_UINT8
    assert [dim.size for dim in taken.tensor_shape.dim] == [-1, 8, 8, 1]


@pytest.mark.parametrize("version", [None, 7])
def test_status_is_available(channel, version):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "digits"
    if version:
        request.model_spec.version.value = version
    (status,) = (
        model_service_pb2_grpc.ModelServiceStub(channel)
        .GetModelStatus(request)
        .model_version_status
    )
    assert status.version == 7
    assert status.state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
    assert status.HasField("status")
    assert status.status.error_code == 0


def test_health_is_serving(channel):
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(channel):
    request = health_pb2.HealthCheckRequest(service="unknown")
    with pytest.raises(grpc.RpcError) as caught:
        health_pb2_grpc.HealthStub(channel).Check(request)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_port_in_use_is_refused(server, base_path):
    servable = Servable("digits", latest_version_path(base_path))
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        start(servable, port=server.port)


def test_listens_on_loopback_unless_told_otherwise(server):
    assert server.address == f"127.0.0.1:{server.port}"
    assert server.port > 0


def test_health_says_so_before_the_server_stops(base_path):
    running = start(Servable("digits", latest_version_path(base_path)))
    with grpc.insecure_channel(running.address) as opened:
        states = health_pb2_grpc.HealthStub(opened).Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        running.stop(grace_s=0.3)
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_stop_refuses_further_calls(base_path, images):
    running = start(Servable("digits", latest_version_path(base_path)))
    with grpc.insecure_channel(running.address) as opened:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(opened)
        stub.Predict(_request(images))
        running.stop(grace_s=0)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(_request(images))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
