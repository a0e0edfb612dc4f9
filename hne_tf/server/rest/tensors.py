"""JSON values to tensors and back, with TF Serving's mapping of types."""

import base64
import binascii
import itertools
import math
import reprlib
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from hne_tf.server.checks import declared_shape
from hne_tf.server.errors import RequestError

B64 = "b64"
# Outputs of such names are bytes, others of strings are text.
_BYTES_SUFFIX = "_bytes"

# Types of JSON that a type of tensor takes; TF Serving converts to no others.
_TAKEN = {
    types_pb2.DT_BOOL: (bool,),
    types_pb2.DT_STRING: (str, dict),
    **dict.fromkeys((types_pb2.DT_FLOAT, types_pb2.DT_DOUBLE), (int, float)),
    **dict.fromkeys(
        (
            *(types_pb2.DT_INT8, types_pb2.DT_INT16, types_pb2.DT_INT32, types_pb2.DT_INT64),
            *(types_pb2.DT_UINT8, types_pb2.DT_UINT16, types_pb2.DT_UINT32, types_pb2.DT_UINT64),
        ),
        (int,),
    ),
}
_JSON_NAMES = {
    bool: "true or false",
    str: "a string",
    dict: "an object",
    int: "a whole number",
    float: "a number with a decimal point or an exponent",
    type(None): "null",
    list: "a list",
}


def is_b64(value: Any) -> bool:
    """Whether a JSON value is an object that stands for bytes."""
    return isinstance(value, dict) and value.keys() == {B64} and isinstance(value[B64], str)


def tensor(name: str, info: meta_graph_pb2.TensorInfo, value: Any) -> tensor_pb2.TensorProto:
    """The tensor of a value.

    Numbers come as nested lists. Beyond what TF Serving takes, a row of numbers may be
    `{"b64": ...}`, the bytes of its values in order, the least significant first.

    Args:
      name: of the input, for messages.
      info: the input, as its signature has it.
      value: what JSON held.

    Raises:
      RequestError: INVALID_ARGUMENT for a value that does not become a tensor of this
        type; UNIMPLEMENTED for a type of tensor that TF Serving's REST does not know.
        Whether the shape fits is left to the signature's checks.
    """
    if info.dtype not in _TAKEN:
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED,
            f"input {name!r} must not be {_dtype_name(info)} over REST; gRPC takes it",
        )
    if info.dtype == types_pb2.DT_STRING:
        return _strings(name, info, value)
    dtype = np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
    if isinstance(value, list) and any(map(is_b64, value)):
        shape, content = _rows_of_bytes(name, declared_shape(info), dtype, value)
    else:
        shape, content = _numbers(name, info, dtype, value)
    proto = tensor_pb2.TensorProto(dtype=info.dtype, tensor_content=content)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def values(name: str, proto: tensor_pb2.TensorProto) -> Any:
    """The JSON value of an output: nested lists, or one value for a tensor of no dimensions."""
    array = tf.make_ndarray(proto)
    if proto.dtype != types_pb2.DT_STRING:
        return array.tolist()
    as_json = _as_b64 if name.endswith(_BYTES_SUFFIX) else _as_text
    texts = np.empty(array.shape, object)
    for index in np.ndindex(array.shape):
        texts[index] = as_json(array[index])
    return texts.tolist()


def _numbers(
    name: str, info: meta_graph_pb2.TensorInfo, dtype: np.dtype, value: Any
) -> tuple[tuple[int, ...], bytes]:
    shape, found = _flat(name, info, value)
    # By way of the widest, which tells what the narrower one makes infinite.
    wide = np.dtype(np.float64) if dtype.kind == "f" else dtype
    try:
        array = np.array(found, wide)
    except OverflowError as error:
        raise _invalid(f"input {name!r} must be {_dtype_name(info)}, got: {error}") from None
    with np.errstate(over="ignore"):
        narrow = array.astype(dtype)
    if dtype != wide and (large := np.isinf(narrow) & np.isfinite(array)).any():
        raise _invalid(f"input {name!r} must be {_dtype_name(info)}, got {array[large][0]}")
    return shape, narrow.tobytes()


def _flat(
    name: str, info: meta_graph_pb2.TensorInfo, value: Any
) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and values of nested lists, all of types that the tensor takes."""
    shape, found = [], [value]
    while found and isinstance(found[0], list):
        lengths = {len(each) if isinstance(each, list) else None for each in found}
        if len(lengths) > 1:
            raise _unequal(name, value)
        shape.append(lengths.pop())
        found = list(itertools.chain.from_iterable(found))
    kinds = set(map(type, found))
    if list in kinds:
        raise _unequal(name, value)
    for kind in kinds - set(_TAKEN[info.dtype]):
        raise _invalid(
            f"input {name!r} must be {_dtype_name(info)}, got {_JSON_NAMES[kind]} in "
            f"{_shown(value)}"
        )
    return tuple(shape), found


def _unequal(name: str, value: Any) -> RequestError:
    return _invalid(
        f"input {name!r} must be lists of equal lengths and depths, got {_shown(value)}"
    )


def _strings(name: str, info: meta_graph_pb2.TensorInfo, value: Any) -> tensor_pb2.TensorProto:
    shape, found = _flat(name, info, value)
    try:
        contents = [
            _decoded(name, each) if isinstance(each, dict) else each.encode() for each in found
        ]
    except UnicodeEncodeError:
        raise _invalid(f"input {name!r} must be valid Unicode, got half a character") from None
    proto = tensor_pb2.TensorProto(dtype=info.dtype, string_val=contents)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def _rows_of_bytes(
    name: str, shape: tuple[int, ...] | None, dtype: np.dtype, rows: list
) -> tuple[tuple[int, ...], bytes]:
    if shape is None or len(shape) == 0 or -1 in shape[1:]:
        raise _invalid(f"input {name!r} must be lists: its rows have no fixed shape")
    most = math.prod(shape[1:]) * dtype.itemsize
    contents = []
    for row in rows:
        if not is_b64(row):
            raise _invalid(
                f"input {name!r} must have {{{B64!r}: ...}} for every row or for none, "
                f"got {_shown(row)}"
            )
        contents.append(_decoded(name, row))
        if len(contents[-1]) != most:
            raise _invalid(
                f"a row of input {name!r} must have {most} bytes, got {len(contents[-1])}"
            )
    return (len(rows), *shape[1:]), b"".join(contents)


def _decoded(name: str, value: dict) -> bytes:
    if not is_b64(value):
        raise _invalid(f"input {name!r} must be {{{B64!r}: <string>}}, got {_shown(value)}")
    text = value[B64]
    try:
        # Padding may be missing, as in TF Serving.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(f"input {name!r} must be base64, got {_shown(text)}") from None


def _as_b64(content: bytes) -> dict[str, str]:
    return {B64: base64.b64encode(content).decode()}


def _as_text(content: bytes) -> str:
    return content.decode(errors="replace")


def _dtype_name(info: meta_graph_pb2.TensorInfo) -> str:
    return tf.dtypes.as_dtype(info.dtype).name


def _shown(value: Any) -> str:
    return reprlib.repr(value)


def _invalid(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)
