"""From the body of a POST to TF Serving's PredictRequest."""

import json
import math
import reprlib
import zlib
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2

from hne_tf.server.errors import RequestError
from hne_tf.server.rest import tensors
from hne_tf.server.rest.bounds import Bounds

ROWS = "instances"
COLUMNS = "inputs"
SIGNATURE = "signature_name"

_GZIP = 31
_Infos = Mapping[str, meta_graph_pb2.TensorInfo]


def gunzip(body: bytes, most: int) -> bytes:
    """Uncompresses a body.

    Raises:
      RequestError: INVALID_ARGUMENT for what is not gzip or has more than `most` bytes.
    """
    stream = zlib.decompressobj(_GZIP)
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error as error:
        raise _invalid(f"the body must be gzip, as its header says: {error}") from None
    if len(content) > most:
        raise _invalid(f"the body must have at most {most} bytes uncompressed, got more")
    if not stream.eof or stream.unused_data:
        raise _invalid("the body must be gzip, as its header says: it ends early or late")
    return content


def parse(body: bytes, bounds: Bounds | None) -> dict[str, Any]:
    """The JSON object of a body; `NaN`, `Infinity` and `-Infinity` are numbers.

    Raises:
      RequestError: INVALID_ARGUMENT for anything else, and for what is beyond the bounds.
    """
    if bounds is not None:
        bounds.check(body)
    content = _loads(body)
    if not isinstance(content, dict):
        raise _invalid(f"the body must be a JSON object, got {reprlib.repr(content)}")
    return content


def signature_name(content: Mapping[str, Any]) -> str:
    """The signature that a body asks for; "" for the default one.

    Raises:
      RequestError: INVALID_ARGUMENT if it is no text.
    """
    name = content.get(SIGNATURE, "")
    if not isinstance(name, str):
        raise _invalid(f"{SIGNATURE!r} must be a string, got {reprlib.repr(name)}")
    return _text(name)


def predict_request(
    body: bytes, content: Mapping[str, Any], spec: model_pb2.ModelSpec, inputs: _Infos
) -> predict_pb2.PredictRequest:
    """The request that a body stands for.

    Args:
      body: as it came.
      content: of the body, from `parse`.
      spec: model, version and signature.
      inputs: of the signature.

    Raises:
      RequestError: INVALID_ARGUMENT for what has not TF Serving's form.
    """
    if (ROWS in content) == (COLUMNS in content):
        given = "both" if ROWS in content else "neither"
        raise _invalid(f"the body must have one of {ROWS!r} and {COLUMNS!r}, got {given}")
    if not inputs:
        raise _invalid("a signature must have inputs to be asked over REST, got none")
    found = (
        _of_rows(content[ROWS], inputs)
        if ROWS in content
        else _of_columns(content[COLUMNS], inputs)
    )
    request = predict_pb2.PredictRequest(model_spec=spec)
    for name, value in found.items():
        request.inputs[name].CopyFrom(tensors.tensor(name, inputs[name], value))
    _check_finite(body, request)
    return request


def _of_rows(rows: Any, inputs: _Infos) -> dict[str, Any]:
    if not isinstance(rows, list):
        raise _invalid(f"{ROWS!r} must be a list, got {reprlib.repr(rows)}")
    if not rows:
        raise _invalid(f"{ROWS!r} must have at least 1 row, got none")
    named = [isinstance(row, dict) and not tensors.is_b64(row) for row in rows]
    if not any(named):
        return {_only(ROWS, inputs): rows}
    for row, is_named in zip(rows, named, strict=True):
        if not is_named or row.keys() != inputs.keys():
            raise _invalid(
                f"every one of {ROWS!r} must be an object with {sorted(inputs)}, "
                f"got {reprlib.repr(row)}"
            )
    return {name: [row[name] for row in rows] for name in inputs}


def _of_columns(columns: Any, inputs: _Infos) -> dict[str, Any]:
    if not isinstance(columns, dict) or tensors.is_b64(columns):
        return {_only(COLUMNS, inputs): columns}
    missing = sorted(inputs.keys() - columns.keys())
    if missing:
        raise _invalid(f"{COLUMNS!r} must have {sorted(inputs)}, got none of {missing}")
    # TF Serving, too, does not look at others.
    return {name: columns[name] for name in inputs}


def _only(key: str, inputs: _Infos) -> str:
    """The name of the one input, which need not be given."""
    if len(inputs) > 1:
        raise _invalid(f"{key!r} must name the inputs {sorted(inputs)}, got values without names")
    (name,) = inputs
    return name


def _check_finite(body: bytes, request: predict_pb2.PredictRequest) -> None:
    """Refuses numbers that are beyond any float, which Python reads as infinite."""
    kinds = {types_pb2.DT_FLOAT: np.float32, types_pb2.DT_DOUBLE: np.float64}
    for proto in request.inputs.values():
        if (
            proto.dtype in kinds
            and np.isinf(np.frombuffer(proto.tensor_content, kinds[proto.dtype])).any()
        ):
            _loads(body, parse_float=_finite)
            return


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:50]} is too large a number")
    return value


def _loads(body: bytes, **options: Any) -> Any:
    try:
        # Only UTF-8, where Python would look for other encodings.
        return json.loads(body.decode(), **options)
    except RecursionError:
        raise _invalid("the body must be JSON, got lists nested too deeply") from None
    except ValueError as error:
        raise _invalid(f"the body must be JSON: {error}") from None


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _invalid(f"{SIGNATURE!r} must be valid Unicode, got half a character") from None
    return value


def _invalid(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)
