"""TF Serving's status codes, row by row, against the local server and, where it is, TF Serving.

The codes were read in TF Serving's source; `source` says in which function of
which file. "Stock behaviour" rows at the end of `PREDICT` are where TF Serving
itself only guarantees what the graph's kernels answer.
"""

import dataclasses

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc import StatusCode
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

_ZEROS = np.zeros((1, 8, 8, 1), np.uint8)


def _tensor_of(array, **fields):
    proto = tf.make_tensor_proto(array)
    for field, value in fields.items():
        setattr(proto, field, value)
    return proto


@dataclasses.dataclass(frozen=True)
class Row:
    """A faulty request, the code it gets, and where TF Serving decides so."""

    fault: str
    code: StatusCode
    source: str
    spec: dict | None = dataclasses.field(default_factory=lambda: {"name": "digits"})
    inputs: dict = dataclasses.field(default_factory=lambda: {"images": _ZEROS})
    output_filter: tuple = ()
    fields: tuple = ("signature_def",)


def _spec(**fields):
    return {"name": "digits", **fields}


PREDICT = [
    Row(
        "missing model_spec",
        StatusCode.INVALID_ARGUMENT,
        "predict_impl.cc TensorflowPredictor::Predict",
        spec=None,
    ),
    Row(
        "model_spec without a name",
        StatusCode.INVALID_ARGUMENT,
        "server_core.cc ServerCore::ServableRequestFromModelSpec",
        spec={"version": 7},
    ),
    Row(
        "unknown model",
        StatusCode.NOT_FOUND,
        "basic_manager.cc ServingMap::GetUntypedServableHandle",
        spec={"name": "unknown"},
    ),
    Row(
        "unknown version",
        StatusCode.NOT_FOUND,
        "basic_manager.cc ServingMap::GetUntypedServableHandle",
        spec=_spec(version=8),
    ),
    Row(
        "older version, on disk but not served",
        StatusCode.NOT_FOUND,
        "basic_manager.cc ServingMap::GetUntypedServableHandle",
        spec=_spec(version=3),
    ),
    Row(
        "unknown version label",
        StatusCode.INVALID_ARGUMENT,
        "server_core.cc ServerCore::GetModelVersionForLabel",
        spec=_spec(version_label="stable"),
    ),
    Row(
        "version label of an unknown model: the label is looked up first",
        StatusCode.INVALID_ARGUMENT,
        "server_core.cc ServerCore::ServableRequestFromModelSpec",
        spec={"name": "unknown", "version_label": "stable"},
    ),
    Row(
        "unknown signature",
        StatusCode.FAILED_PRECONDITION,
        "predict_util.cc RunPredict",
        spec=_spec(signature_name="ensemble_3"),
    ),
    Row(
        "unknown signature and wrong inputs: the signature is looked up first",
        StatusCode.FAILED_PRECONDITION,
        "predict_util.cc RunPredict",
        spec=_spec(signature_name="ensemble_3"),
        inputs={},
    ),
    Row(
        "unknown signature of an unknown model: the model is looked up first",
        StatusCode.NOT_FOUND,
        "predict_impl.cc TensorflowPredictor::PredictWithModelSpec",
        spec={"name": "unknown", "signature_name": "ensemble_3"},
    ),
    Row(
        "missing input",
        StatusCode.INVALID_ARGUMENT,
        "predict_util.cc VerifyRequestInputsSize",
        inputs={},
    ),
    Row(
        "one of two inputs missing",
        StatusCode.INVALID_ARGUMENT,
        "predict_util.cc VerifyRequestInputsSize",
        spec=_spec(signature_name="step_2"),
        inputs={"cache": np.zeros((1, 6), np.float32)},
    ),
    Row(
        "extra input",
        StatusCode.INVALID_ARGUMENT,
        "predict_util.cc VerifyRequestInputsSize",
        inputs={"images": _ZEROS, "labels": _ZEROS},
    ),
    Row(
        "wrong input name",
        StatusCode.INVALID_ARGUMENT,
        "tensorflow cc/saved_model/util.cc GetInputValues",
        inputs={"pictures": _ZEROS},
    ),
    Row(
        "tensor whose content does not fill its shape",
        StatusCode.INVALID_ARGUMENT,
        "tensorflow cc/saved_model/util.cc GetInputValues",
        inputs={"images": _tensor_of(_ZEROS, tensor_content=b"123")},
    ),
    Row(
        "tensor without a dtype",
        StatusCode.INVALID_ARGUMENT,
        "tensorflow cc/saved_model/util.cc GetInputValues",
        inputs={"images": _tensor_of(_ZEROS, dtype=0)},
    ),
    Row(
        "tensor of a dtype that does not exist",
        StatusCode.INVALID_ARGUMENT,
        "tensorflow cc/saved_model/util.cc GetInputValues",
        inputs={"images": _tensor_of(_ZEROS, dtype=99)},
    ),
    Row(
        "unknown output filter",
        StatusCode.INVALID_ARGUMENT,
        "predict_util.cc PreProcessPrediction",
        output_filter=("scores",),
    ),
    Row(
        "repeated output filter",
        StatusCode.INVALID_ARGUMENT,
        "predict_util.cc PreProcessPrediction",
        output_filter=("logits", "logits"),
    ),
    Row(
        "wrong dtype",
        StatusCode.INVALID_ARGUMENT,
        "tensorflow core/framework/function.cc FunctionCallFrame::SetArgs",
        inputs={"images": _ZEROS.astype(np.float32)},
    ),
    # Stock behaviour: shapes are not checked, kernels answer. The local server
    # checks, because a wrong rank can end the process inside a kernel.
    Row(
        "wrong number of channels",
        StatusCode.INVALID_ARGUMENT,
        "kernels; predict_util.cc checks no shape",
        inputs={"images": np.zeros((1, 8, 8, 3), np.uint8)},
    ),
    Row(
        "wrong picture size",
        StatusCode.INVALID_ARGUMENT,
        "kernels; predict_util.cc checks no shape",
        inputs={"images": np.zeros((1, 9, 8, 1), np.uint8)},
    ),
    Row(
        "no batch dimension",
        StatusCode.INVALID_ARGUMENT,
        "kernels; predict_util.cc checks no shape",
        inputs={"images": np.zeros((8, 8, 1), np.uint8)},
    ),
    Row(
        "flat pictures",
        StatusCode.INVALID_ARGUMENT,
        "kernels; predict_util.cc checks no shape",
        inputs={"images": np.zeros((1, 64), np.uint8)},
    ),
]

METADATA = [
    Row(
        "missing model_spec",
        StatusCode.INVALID_ARGUMENT,
        "get_model_metadata_impl.cc GetModelMetadata",
        spec=None,
    ),
    Row(
        "no metadata field",
        StatusCode.INVALID_ARGUMENT,
        "get_model_metadata_impl.cc ValidateGetModelMetadataRequest",
        fields=(),
    ),
    Row(
        "unknown metadata field",
        StatusCode.INVALID_ARGUMENT,
        "get_model_metadata_impl.cc ValidateGetModelMetadataRequest",
        fields=("signature_def", "graph_def"),
    ),
    Row(
        "no metadata field of an unknown model: fields are checked first",
        StatusCode.INVALID_ARGUMENT,
        "get_model_metadata_impl.cc GetModelMetadataWithModelSpec",
        spec={"name": "unknown"},
        fields=(),
    ),
    Row(
        "model_spec without a name",
        StatusCode.INVALID_ARGUMENT,
        "server_core.cc ServerCore::ServableRequestFromModelSpec",
        spec={"version": 7},
    ),
    Row(
        "unknown model",
        StatusCode.NOT_FOUND,
        "basic_manager.cc ServingMap::GetUntypedServableHandle",
        spec={"name": "unknown"},
    ),
    Row(
        "unknown version",
        StatusCode.NOT_FOUND,
        "basic_manager.cc ServingMap::GetUntypedServableHandle",
        spec=_spec(version=8),
    ),
    Row(
        "unknown version label",
        StatusCode.INVALID_ARGUMENT,
        "server_core.cc ServerCore::GetModelVersionForLabel",
        spec=_spec(version_label="stable"),
    ),
]

STATUS = [
    Row(
        "missing model_spec",
        StatusCode.INVALID_ARGUMENT,
        "get_model_status_impl.cc GetModelStatus",
        spec=None,
    ),
    Row(
        "model_spec without a name",
        StatusCode.NOT_FOUND,
        "get_model_status_impl.cc GetModelStatusWithModelSpec",
        spec={"version": 7},
    ),
    Row(
        "unknown model",
        StatusCode.NOT_FOUND,
        "get_model_status_impl.cc GetModelStatusWithModelSpec",
        spec={"name": "unknown"},
    ),
    Row(
        "unknown version",
        StatusCode.NOT_FOUND,
        "get_model_status_impl.cc GetModelStatusWithModelSpec",
        spec=_spec(version=8),
    ),
]


@pytest.fixture(scope="module")
def channel(server_address):
    with grpc.insecure_channel(server_address) as opened:
        yield opened


def _fill_spec(model_spec, spec):
    model_spec.SetInParent()
    for field, value in spec.items():
        if field == "version":
            model_spec.version.value = value
        else:
            setattr(model_spec, field, value)


def _predict_request(row):
    request = predict_pb2.PredictRequest(output_filter=row.output_filter)
    if row.spec is not None:
        _fill_spec(request.model_spec, row.spec)
    for name, value in row.inputs.items():
        proto = value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        request.inputs[name].CopyFrom(proto)
    return request


def _check_code(method, request, row):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=10)
    assert caught.value.code() == row.code, caught.value.details()
    assert caught.value.details()
    assert "Traceback" not in caught.value.details()


@pytest.mark.parametrize("row", PREDICT, ids=lambda row: row.fault)
def test_predict(channel, server_kind, row):
    if server_kind == "tensorflow_model_server" and row.source.startswith("kernels"):
        pytest.skip("kernels answer as they like, or end the process")
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    _check_code(stub.Predict, _predict_request(row), row)


@pytest.mark.parametrize("row", METADATA, ids=lambda row: row.fault)
def test_get_model_metadata(channel, row):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=row.fields)
    if row.spec is not None:
        _fill_spec(request.model_spec, row.spec)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    _check_code(stub.GetModelMetadata, request, row)


@pytest.mark.parametrize("row", STATUS, ids=lambda row: row.fault)
def test_get_model_status(channel, row):
    request = get_model_status_pb2.GetModelStatusRequest()
    if row.spec is not None:
        _fill_spec(request.model_spec, row.spec)
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    _check_code(stub.GetModelStatus, request, row)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (_ZEROS.astype(np.float32), "input 'images' must be uint8, got float32"),
        (_ZEROS[0], "input 'images' must have shape (None, 8, 8, 1), got [8, 8, 1]"),
    ],
)
def test_details_state_the_rule_and_what_came(server, tensor, reason):
    request = _predict_request(Row("", StatusCode.OK, "", inputs={"images": tensor}))
    with (
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
    assert caught.value.details() == reason


def test_status_does_not_look_at_version_labels(channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    _fill_spec(request.model_spec, _spec(version_label="stable"))
    response = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request)
    assert [status.version for status in response.model_version_status] == [7]


def test_a_long_name_still_gets_its_code(server):
    """Details that overflow a header would reach the client as another error."""
    row = Row("", StatusCode.FAILED_PRECONDITION, "", spec=_spec(signature_name="x" * 100_000))
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        _check_code(stub.Predict, _predict_request(row), row)


def test_the_rest_of_the_api_is_unimplemented(server):
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Classify(classification_pb2.ClassificationRequest())
    assert caught.value.code() == StatusCode.UNIMPLEMENTED


def test_the_server_answers_after_every_fault(channel):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.Predict(_predict_request(Row("none", StatusCode.OK, "")))
    assert set(response.outputs) == {"logits", "probabilities"}
