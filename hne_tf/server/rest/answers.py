"""What goes back over HTTP: JSON of TF Serving's form, and its statuses."""

import json
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import json_format, message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from hne_tf.server.errors import RequestError
from hne_tf.server.rest import tensors

SIGNATURE_DEF = "signature_def"

_MOST_DETAILS = 2000
# TF Serving's `http_server.cc`; what is not here is 500.
_STATUSES = {
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNIMPLEMENTED: 501,
}


class HttpError(RequestError):
    """A request that fails in a way that HTTP has a status of its own for.

    Attributes:
      status: HTTP's.
    """

    def __init__(self, status: int, code: grpc.StatusCode, text: str) -> None:
        super().__init__(code, text)
        self.status = status


def status(error: RequestError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, HttpError) else _STATUSES.get(error.code, 500)


def failure(text: str) -> bytes:
    """The body of any answer that is an error."""
    return _dumps({"error": text[:_MOST_DETAILS]})


def predictions(response: predict_pb2.PredictResponse, by_row: bool) -> bytes:
    """The body of an answer to a prediction.

    Args:
      response: gRPC's answer to the same request.
      by_row: whether the request had rows: so has the answer then, and columns otherwise.

    Raises:
      RequestError: INVALID_ARGUMENT if rows are asked for and outputs have no equal
        number of them. An output without dimensions is the same in every row.
    """
    found = {name: tensors.values(name, proto) for name, proto in sorted(response.outputs.items())}
    if not by_row:
        return _dumps({"outputs": _bare(found)})
    counts = {
        name: proto.tensor_shape.dim[0].size
        for name, proto in response.outputs.items()
        if proto.tensor_shape.dim
    }
    if len(set(counts.values())) != 1:
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"outputs must have equal first dimensions to be given by rows, got {counts}: "
            "ask with 'inputs'",
        )
    columns = {
        name: value if name in counts else [value] * max(counts.values())
        for name, value in found.items()
    }
    rows = [
        _bare(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
    ]
    return _dumps({"predictions": rows})


def model_status(statuses: Sequence[get_model_status_pb2.ModelVersionStatus]) -> bytes:
    """The body of an answer on the state of versions."""
    return _dumps(
        _as_json(get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses))
    )


def model_metadata(response: get_model_metadata_pb2.GetModelMetadataResponse) -> bytes:
    """The body of an answer on the signatures of a version, from gRPC's."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata[SIGNATURE_DEF].Unpack(signatures)
    return _dumps(
        {
            "model_spec": _as_json(response.model_spec),
            "metadata": {SIGNATURE_DEF: _as_json(signatures)},
        }
    )


def _bare(named: dict[str, Any]) -> Any:
    """Values by name, or the value itself if there is one."""
    return named if len(named) != 1 else next(iter(named.values()))


def _as_json(of: message.Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        of, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _dumps(content: dict[str, Any]) -> bytes:
    # The line ends where a terminal goes on.
    return json.dumps(content).encode() + b"\n"
