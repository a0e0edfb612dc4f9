"""Malformed requests: each gets TF Serving's code and the server goes on."""

import random

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc import StatusCode
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_COUNT = 2000
_SHAPE = (2, 8, 8, 1)


def _valid(images, signature="ensemble_2"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = signature
    tensor = request.inputs["images"]
    tensor.dtype = types_pb2.DT_UINT8
    for size in images.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = images.tobytes()
    return request


def _name(random_):
    return "".join(random_.choices("abcxyz_/\\ \t0é", k=random_.randint(1, 40)))


def _wrong_dtype(request, random_):
    others = [number for number in types_pb2.DataType.values() if number != types_pb2.DT_UINT8]
    request.inputs["images"].dtype = random_.choice([*others, 64, 99, 2**30])


def _truncated(request, random_):
    tensor = request.inputs["images"]
    tensor.tensor_content = tensor.tensor_content[: random_.randint(1, 127)]


def _too_long(request, random_):
    request.inputs["images"].tensor_content += random_.randbytes(random_.randint(1, 300))


def _wrong_input_name(request, random_):
    request.inputs[_name(random_)].CopyFrom(request.inputs["images"])
    if random_.random() < 0.5:
        del request.inputs["images"]


def _no_input(request, random_):
    del random_
    request.inputs.clear()


def _wrong_signature(request, random_):
    request.model_spec.signature_name = _name(random_)


def _wrong_model(request, random_):
    request.model_spec.name = _name(random_)


def _no_model(request, random_):
    del random_
    request.ClearField("model_spec")


def _wrong_version(request, random_):
    request.model_spec.version.value = random_.choice([0, 3, 8, 2**63 - 1, -1])


def _label(request, random_):
    request.model_spec.version_label = _name(random_)


def _wrong_filter(request, random_):
    request.output_filter.extend(["logits", _name(random_)])


def _wrong_shape(request, random_):
    shape = request.inputs["images"].tensor_shape
    del shape.dim[:]
    for _ in range(random_.choice([0, 1, 2, 3, 5, 9])):
        shape.dim.add(size=random_.randint(0, 9))


def _negative_shape(request, random_):
    dim = random_.choice(request.inputs["images"].tensor_shape.dim)
    dim.size = -random_.randint(1, 2**40)


def _unknown_rank(request, random_):
    del random_
    request.inputs["images"].tensor_shape.unknown_rank = True


def _huge(request, random_):
    tensor = request.inputs["images"]
    tensor.tensor_content = b""
    tensor.int_val.append(1)
    tensor.tensor_shape.dim[0].size = 2 ** random_.randint(26, 62)


_FAULTS = [
    (_wrong_dtype, StatusCode.INVALID_ARGUMENT),
    (_truncated, StatusCode.INVALID_ARGUMENT),
    (_too_long, StatusCode.INVALID_ARGUMENT),
    (_wrong_input_name, StatusCode.INVALID_ARGUMENT),
    (_no_input, StatusCode.INVALID_ARGUMENT),
    (_wrong_signature, StatusCode.FAILED_PRECONDITION),
    (_wrong_model, StatusCode.NOT_FOUND),
    (_no_model, StatusCode.INVALID_ARGUMENT),
    (_wrong_version, StatusCode.NOT_FOUND),
    (_label, StatusCode.INVALID_ARGUMENT),
    (_wrong_filter, StatusCode.INVALID_ARGUMENT),
]
# TF Serving leaves these to kernels and the allocator, which may end the process.
_FAULTS_OF_SHAPE = [
    (_wrong_shape, StatusCode.INVALID_ARGUMENT),
    (_negative_shape, StatusCode.INVALID_ARGUMENT),
    (_unknown_rank, StatusCode.INVALID_ARGUMENT),
    (_huge, StatusCode.INVALID_ARGUMENT),
]


def _garbage(random_):
    """Bytes that are no message: field 0 does not exist."""
    return b"\x00" + random_.randbytes(random_.randint(0, 200))


def test_malformed_requests_get_their_codes_and_leave_it_serving(
    server_address, server_kind, saved_model
):
    random_ = random.Random(20)
    images = np.random.default_rng(20).integers(0, 256, _SHAPE, dtype=np.uint8)
    expected = saved_model.signatures["ensemble_2"](images=tf.constant(images))["logits"].numpy()
    faults = _FAULTS + (_FAULTS_OF_SHAPE if server_kind != "tensorflow_model_server" else [])
    with grpc.insecure_channel(server_address) as channel:
        # Bytes in, bytes out: the stub would not send garbage.
        call = channel.unary_unary(_PREDICT)
        valid = _valid(images).SerializeToString()
        for number in range(_COUNT):
            fault, code = random_.choice([*faults, (None, StatusCode.INTERNAL)])
            if fault is None:
                message = _garbage(random_)
            else:
                request = _valid(images)
                fault(request, random_)
                message = request.SerializeToString()
            with pytest.raises(grpc.RpcError) as caught:
                call(message, timeout=30)
            assert caught.value.code() == code, (number, fault, caught.value.details())
            assert "Traceback" not in (caught.value.details() or "")
            if number % 100 == 0:
                response = predict_pb2.PredictResponse.FromString(call(valid, timeout=30))
                received = tf.make_ndarray(response.outputs["logits"])
                np.testing.assert_allclose(received, expected, rtol=0, atol=1e-5)


def test_an_empty_message_has_no_model_spec(server):
    with (
        grpc.insecure_channel(server.address) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary(_PREDICT)(b"")
    assert caught.value.code() == StatusCode.INVALID_ARGUMENT
