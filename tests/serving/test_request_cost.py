"""What one request may cost: rows, bytes and fields, bounded before anything is expanded."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import wrappers_pb2
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from hne_tf.server import checks, servicers, wire
from hne_tf.server.checks import SignatureChecks
from hne_tf.server.errors import RequestError
from hne_tf.server.service import Health, Options

_MOST_ROWS = Options().max_rows
_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_CONTROL = (
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    "/tensorflow.serving.PredictionService/MultiInference",
    "/tensorflow.serving.ModelService/GetModelStatus",
    "/tensorflow.serving.ModelService/HandleReloadConfigRequest",
    "/grpc.health.v1.Health/Check",
)


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.address) as opened:
        yield opened


@pytest.fixture
def stub(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def _request(shape, content=b"", listed=()):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "ensemble_1"
    tensor = request.inputs["images"]
    tensor.dtype = types_pb2.DT_UINT8
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = content
    tensor.int_val.extend(listed)
    return request


def _refused(call, request, *words):
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    assert caught.value.code() == StatusCode.INVALID_ARGUMENT, caught.value.details()
    for word in words:
        assert word in caught.value.details()


def test_a_listed_value_does_not_stand_for_thousands(stub):
    request = _request([300_000, 8, 8, 1], listed=[1])
    assert request.ByteSize() < 80
    _refused(stub.Predict, request, "must have at least 1 and at most 128 rows, got 300000")
    _refused(stub.Predict, _request([128, 8, 8, 1], listed=[1]), "must hold 8192 int_val, got 1")


def test_rows_are_bounded(stub):
    most = _request([_MOST_ROWS, 8, 8, 1], bytes(_MOST_ROWS * 64))
    assert stub.Predict(most).outputs["logits"].tensor_shape.dim[0].size == _MOST_ROWS
    above = _request([_MOST_ROWS + 1, 8, 8, 1], bytes((_MOST_ROWS + 1) * 64))
    _refused(stub.Predict, above, "must have at least 1 and at most 128 rows, got 129")


def test_the_bound_of_rows_can_be_chosen(serve, sums_request):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(serve(max_rows=3))
    assert len(tf.make_ndarray(stub.Predict(sums_request(rows=3)).outputs["sums"])) == 3
    _refused(stub.Predict, sums_request(rows=4), "must have at least 1 and at most 3 rows, got 4")


@pytest.mark.parametrize("options", [{}, {"max_batch_size": 8}], ids=["alone", "in batches"])
def test_no_rows_are_refused(serve, sums_request, options):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(serve(**options))
    _refused(stub.Predict, sums_request(rows=0), "rows, got 0")


@pytest.mark.parametrize("limit", ["bytes", "fields"])
def test_what_is_too_large_is_refused_unparsed(channel, monkeypatch, limit):
    parsed = []
    monkeypatch.setattr(servicers, "_parse", parsed.append)
    if limit == "fields":
        monkeypatch.undo()
        monkeypatch.setattr(predict_pb2.PredictRequest, "FromString", parsed.append, raising=False)
    # Empty entries of `inputs`, which parsing makes 86 times as large.
    count = {"bytes": 2_000_000, "fields": wire.MOST_FIELDS + 1}[limit]
    message = b"\x12\x00" * count
    words = {"bytes": "at most 128 rows must have", "fields": "at most 10000 fields"}[limit]
    _refused(channel.unary_unary(_PREDICT), message, words)
    assert parsed == []


def test_the_largest_request_is_taken_however_it_is_sent(channel):
    # Values above 127 take two bytes, and unpacked as here a tag each.
    tensor = _request([_MOST_ROWS, 8, 8, 1]).inputs["images"].SerializeToString()
    tensor += b"\x38\xff\x01" * (_MOST_ROWS * 64)
    entry = predict_pb2.PredictRequest.InputsEntry(key="images").SerializeToString()
    entry += b"\x12" + _varint(len(tensor)) + tensor
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "digits"
    unpacked = message.SerializeToString() + b"\x12" + _varint(len(entry)) + entry
    packed = _request([_MOST_ROWS, 8, 8, 1], listed=[255] * (_MOST_ROWS * 64))
    content = _request([_MOST_ROWS, 8, 8, 1], b"\xff" * (_MOST_ROWS * 64))
    for message in (unpacked, packed.SerializeToString(), content.SerializeToString()):
        answer = channel.unary_unary(_PREDICT)(message, timeout=60)
        assert predict_pb2.PredictResponse.FromString(answer).outputs


def _varint(number):
    # The encoding of a message whose only field is the number, without its tag.
    return wrappers_pb2.UInt64Value(value=number).SerializeToString()[1:]


@pytest.mark.parametrize("method", _CONTROL)
def test_other_requests_are_parsed_only_if_they_are_short(channel, method):
    # Unknown fields, which parsers keep.
    message = b"\xf8\x06\x01" * 200_000
    _refused(channel.unary_unary(method), message, "at most 262144 bytes, got 600000")


def test_names_that_are_watched_are_not_kept():
    servicer = Health()
    (told,) = servicer.Watch(health_pb2.HealthCheckRequest(service="x"), None)
    assert told.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert servicer._send_response_callbacks == {}


def test_watchers_that_leave_at_once_do_not_hang_the_server(channel, stub):
    watch = health_pb2_grpc.HealthStub(channel).Watch
    # Without the threads for watchers it hung after 10 to 300 of them.
    for _ in range(1000):
        call = watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(call).status == health_pb2.HealthCheckResponse.SERVING
        call.cancel()
    assert stub.Predict(_request([1, 8, 8, 1], bytes(64)), timeout=60).outputs


# Every type that is listed somewhere, with its field: two values of each.
_TYPES = {
    tf.bfloat16: ("half_val", [1, 2]),
    tf.bool: ("bool_val", [True, False]),
    tf.complex64: ("scomplex_val", [1.0, 2.0, 3.0, 4.0]),
    tf.complex128: ("dcomplex_val", [1.0, 2.0, 3.0, 4.0]),
    tf.float16: ("half_val", [1, 2]),
    tf.float32: ("float_val", [1.0, 2.0]),
    tf.float64: ("double_val", [1.0, 2.0]),
    tf.int8: ("int_val", [-1, 2]),
    tf.int16: ("int_val", [-1, 2]),
    tf.int32: ("int_val", [-1, 2]),
    tf.int64: ("int64_val", [-1, 2]),
    tf.string: ("string_val", [b"a", b"b"]),
    tf.uint8: ("int_val", [1, 2]),
    tf.uint16: ("int_val", [1, 2]),
    tf.uint32: ("uint32_val", [1, 2]),
    tf.uint64: ("uint64_val", [1, 2]),
}


def _checks(dtype, shape=(-1, 1)):
    signature = meta_graph_pb2.SignatureDef()
    info = signature.inputs["x"]
    info.dtype = dtype.as_datatype_enum
    if shape is None:
        info.tensor_shape.unknown_rank = True
    for size in shape or ():
        info.tensor_shape.dim.add(size=size)
    return SignatureChecks(signature)


def _tensor(dtype, shape=(2, 1)):
    tensor = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


@pytest.mark.parametrize("dtype", _TYPES, ids=lambda dtype: dtype.name)
def test_lists_have_a_value_for_each_element(dtype):
    field, values = _TYPES[dtype]
    checked = _checks(dtype)
    tensor = _tensor(dtype)
    getattr(tensor, field).extend(values)
    np.testing.assert_array_equal(checked.inputs({"x": tensor})["x"], tf.make_ndarray(tensor))
    for wrong in (values[:1], [*values, values[0]], []):
        del getattr(tensor, field)[:]
        getattr(tensor, field).extend(wrong)
        with pytest.raises(RequestError, match=f"must hold {len(values)} {field}, got"):
            checked.inputs({"x": tensor})


def test_values_in_the_field_of_another_type_do_not_count():
    tensor = _tensor(tf.uint8)
    tensor.float_val.extend([1.0, 2.0])
    with pytest.raises(RequestError, match="must hold 2 int_val, got 0"):
        _checks(tf.uint8).inputs({"x": tensor})


@pytest.mark.parametrize("value", [256, -1, 2**31 - 1])
def test_a_value_that_its_type_does_not_hold_is_refused(value):
    tensor = _tensor(tf.uint8)
    tensor.int_val.extend([1, value])
    with pytest.raises(RequestError, match="cannot be parsed as a tensor"):
        _checks(tf.uint8).inputs({"x": tensor})


def test_a_tensor_of_any_rank_has_few_dimensions():
    checked = _checks(tf.uint8, shape=None)
    tensor = _tensor(tf.uint8, [1] * 32)
    tensor.int_val.append(7)
    assert checked.inputs({"x": tensor})["x"].shape == (1,) * 32
    tensor = _tensor(tf.uint8, [2**62] * 10_000)
    with pytest.raises(RequestError, match="must have shape of known sizes"):
        checked.inputs({"x": tensor})


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        (tf.uint8, (-1, 8, 8, 1), 3 * 64),
        (tf.float32, (-1, 10), 11 * 10),
        (tf.complex128, (-1, 2), 16 * 2),
        (tf.float32, (4, 10), 11 * 10),
        (tf.uint8, (-1, -1), None),
        (tf.uint8, None, None),
        (tf.string, (-1, 1), None),
    ],
)
def test_what_a_row_takes_on_the_wire(dtype, shape, expected):
    assert _checks(dtype, shape).row_bytes == expected


_BROKEN = {
    "a group": b"\x13\x14",
    "cut in a tag": b"\x80",
    "cut in a length": b"\x12\x80",
    "a length beyond the end": b"\x12\x05\x00",
    "a length beyond its message": b"\x12\x02\x12\x05",
    "an endless number": b"\x08" + b"\xff" * 20,
    "cut in eight bytes": b"\x09\x01",
}


@pytest.mark.parametrize("message", _BROKEN.values(), ids=list(_BROKEN))
def test_what_is_no_message_is_no_request(message):
    with pytest.raises(RequestError) as caught:
        wire.check_fields(message)
    assert caught.value.code == StatusCode.INTERNAL


@pytest.mark.parametrize("field", ["resource_handle_val", "variant_val"])
def test_values_that_hold_messages_are_refused(field):
    request = _request([1, 8, 8, 1], bytes(64))
    wire.check_fields(request.SerializeToString())
    getattr(request.inputs["images"], field).add()
    with pytest.raises(RequestError, match="got resources or variants"):
        wire.check_fields(request.SerializeToString())


@pytest.mark.parametrize("place", ["output_filter", "inputs", "dim", "string_val"])
def test_fields_are_counted_wherever_they_repeat(place):
    request = _request([])
    tensor = request.inputs["images"]
    for number in range(wire.MOST_FIELDS):
        if place == "output_filter":
            request.output_filter.append("")
        elif place == "inputs":
            request.inputs[str(number)].SetInParent()
        elif place == "dim":
            tensor.tensor_shape.dim.add()
        else:
            tensor.string_val.append(b"")
    with pytest.raises(RequestError, match="at most 10000 fields"):
        wire.check_fields(request.SerializeToString())


def test_numbers_listed_are_one_field():
    request = _request([1, 8, 8, 1], listed=[1] * (2 * wire.MOST_FIELDS))
    wire.check_fields(request.SerializeToString())


def test_every_type_that_tensorflow_lists_is_known():
    fields = {field.name for field in tensor_pb2.TensorProto.DESCRIPTOR.fields}
    listed = {name for name in fields if name.endswith("_val")}
    assert listed - set(checks._LISTED.values()) == {
        "float8_val",
        "resource_handle_val",
        "variant_val",
    }
