"""TF Serving's messages as far as the gateway looks into them; no TensorFlow is loaded.

The generated classes of `tensorflow-serving-api` import all of TensorFlow. Here are
the fields that are read or written. Others are kept as they are, as protocol buffers
keep what they do not know.
"""

import math
import struct
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from hne_tf.server import wire
from hne_tf.server.errors import RequestError

PREDICT = "/tensorflow.serving.PredictionService/Predict"
GET_MODEL_METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"

_PACKAGE = "hne.gateway"
_Field = descriptor_pb2.FieldDescriptorProto
_Described = Mapping[str, Mapping[str, tuple[int, str]]]

# Field by field: its number, and its type: `*` begins a list and `%` a map from strings.
_MESSAGES: _Described = {
    "Version": {"value": (1, "int64")},
    "ModelSpec": {
        "name": (1, "string"),
        "version": (2, "Version"),
        "signature_name": (3, "string"),
        "version_label": (4, "string"),
    },
    "Dimension": {"size": (1, "int64")},
    "Shape": {"dim": (2, "*Dimension")},
    "Tensor": {
        "dtype": (1, "int64"),
        "tensor_shape": (2, "Shape"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, "*float"),
    },
    "PredictRequest": {
        "model_spec": (1, "ModelSpec"),
        "inputs": (2, "%Tensor"),
        "output_filter": (3, "*string"),
    },
    "PredictResponse": {"outputs": (1, "%Tensor"), "model_spec": (2, "ModelSpec")},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "MetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, "*string")},
    "MetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, "%Any")},
    "TensorInfo": {"dtype": (2, "int64"), "tensor_shape": (3, "Shape")},
    "SignatureDef": {
        "inputs": (1, "%TensorInfo"),
        "outputs": (2, "%TensorInfo"),
        "method_name": (3, "string"),
    },
    "SignatureDefs": {"signature_def": (1, "%SignatureDef")},
}
# Fields of the outermost message that are looked at for its model; a request has five.
_MOST_FIELDS = 1000
_MODEL_SPEC = 1
_DT_FLOAT, _DT_INT32 = 1, 3
# As they are sent, whatever this machine's own order of bytes is.
_FLOAT, _WHOLE = np.dtype("<f4"), np.dtype("<i4")


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    label = _Field.LABEL_OPTIONAL
    if kind[0] in "*%":
        label = _Field.LABEL_REPEATED
    field = message.field.add(name=name, number=number, label=label)
    if kind[0] == "%":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind[1:])
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
    elif (kind := kind.removeprefix("*")) in _MESSAGES:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")


def _classes() -> dict[str, type[Message]]:
    file = descriptor_pb2.FileDescriptorProto(
        name="hne_gateway.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(described, field, number, kind)
    # A pool of its own, because other modules may have the real ones.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
ModelSpec = _CLASSES["ModelSpec"]
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
MetadataRequest = _CLASSES["MetadataRequest"]
MetadataResponse = _CLASSES["MetadataResponse"]
SignatureDefs = _CLASSES["SignatureDefs"]


def model_spec(message: bytes) -> Message | None:
    """The `model_spec` of a serialised PredictRequest; None if it has none that can be read."""
    found, position = [], 0
    try:
        for _ in range(_MOST_FIELDS):
            if position >= len(message):
                break
            number, start, position = wire.field(message, position)
            if number == _MODEL_SPEC:
                found.append(message[start:position])
        # Of one that is sent in parts the parts are joined, as protocol buffers have it.
        return ModelSpec.FromString(b"".join(found)) if found else None
    except (RequestError, DecodeError):
        return None


def predict_request(message: bytes) -> Message:
    """A serialised PredictRequest, parsed.

    Raises:
      RequestError: INTERNAL, gRPC's code, for what is none; INVALID_ARGUMENT for what
        would take too much memory, see `wire.check_fields`.
    """
    wire.check_fields(message)
    try:
        return PredictRequest.FromString(message)
    except DecodeError as error:
        raise RequestError(
            grpc.StatusCode.INTERNAL, f"the message must be a PredictRequest: {error}"
        ) from error


def rows(request: Message) -> int:
    """How many images a request has by its shape; at least 1, whatever it says."""
    dimensions = request.inputs["images"].tensor_shape.dim if "images" in request.inputs else ()
    return max(1, dimensions[0].size) if dimensions else 1


def metadata_request(spec: Message) -> bytes:
    """Asks for the signatures of a model."""
    request = MetadataRequest(metadata_field=["signature_def"])
    request.model_spec.CopyFrom(spec)
    request.model_spec.signature_name = ""
    return request.SerializeToString()


def signatures(message: bytes) -> tuple[int, Mapping[str, Message]]:
    """The version and the signatures by name that the answer to `metadata_request` tells of.

    Raises:
      DecodeError: if it cannot be read.
    """
    response = MetadataResponse.FromString(message)
    found = SignatureDefs.FromString(response.metadata["signature_def"].value)
    return response.model_spec.version.value, dict(found.signature_def)


def first_whole(tensor: Message) -> int:
    """The first number of an int32 tensor as the embedded server sends it.

    Raises:
      DecodeError: if there is none.
    """
    if tensor.dtype != _DT_INT32 or len(tensor.tensor_content) < 4:
        raise DecodeError("no whole number")
    return struct.unpack_from("<i", tensor.tensor_content)[0]


def floats(tensor: Message) -> np.ndarray:
    """The float32 array that a tensor holds.

    Raises:
      DecodeError: if it is of another type, or holds another number of values than its shape.
    """
    shape = [dimension.size for dimension in tensor.tensor_shape.dim]
    content = tensor.tensor_content
    # TF Serving lists the numbers instead.
    held = len(content) / _FLOAT.itemsize if content else len(tensor.float_val)
    if tensor.dtype != _DT_FLOAT or min(shape, default=0) < 0 or held != math.prod(shape):
        raise DecodeError(f"no float32 values of shape {shape}")
    values = np.frombuffer(content, _FLOAT) if content else np.array(tensor.float_val, _FLOAT)
    return values.astype(np.float32).reshape(shape)


def set_array(tensor: Message, array: np.ndarray) -> None:
    """Makes a tensor hold an array, int32 if its numbers are whole, float32 otherwise."""
    whole = np.issubdtype(array.dtype, np.integer)
    tensor.Clear()
    tensor.dtype = _DT_INT32 if whole else _DT_FLOAT
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = array.astype(_WHOLE if whole else _FLOAT).tobytes()


def set_values(tensor: Message, values: Sequence[float], whole: bool) -> None:
    """Makes a tensor hold a list of numbers, int32 if they are whole, float32 otherwise."""
    set_array(tensor, np.array(values, _WHOLE if whole else _FLOAT))
