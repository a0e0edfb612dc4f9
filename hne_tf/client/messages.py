"""Requests to TF Serving and its answers as Python values, for blocking and asyncio clients."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from hne_tf.errors import InputError

# Types whose tensor_content is the array's memory: bool, integers, floats, complex.
PLAIN_KINDS = "biufc"
# Protocol buffers hold less; with more, TensorFlow's own function says why.
_LARGEST_CONTENT = 2**31 - 1

_PREDICT_METHOD = "tensorflow/serving/predict"

# TF Serving's words for a request of more rows than a batch takes, from TensorFlow's
# batch_scheduler_utils and shared_batch_scheduler.h.
_TOO_MANY_ROWS = re.compile(r"Task size (\d+) is larger than maximum input batch size (\d+)")
# And for requests that do not fit together in one, from batching_session.cc.
_MIXED_BATCH = "from different tasks have different shapes"


class CallError(InputError):
    """A call that the server did not answer, or answered with an error.

    Attributes:
      code: the gRPC status.
    """

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


class MixedBatchError(CallError):
    """A call that failed for its neighbours: the server batched it with other shapes.

    The same call can succeed the next time.
    """


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output of a signature.

    Attributes:
      dtype: name of the element type, e.g. `"uint8"`.
      shape: size per dimension, None where it is free; None if the rank is.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a server says of a model: the version that answers and its signatures by name."""

    version: int
    signatures: dict[str, Signature]


@dataclasses.dataclass(frozen=True)
class Outputs:
    """An answer: the version that gave it and arrays by output name."""

    version: int
    arrays: dict[str, np.ndarray]


def info_request(model: str) -> get_model_metadata_pb2.GetModelMetadataRequest:
    """Asks for a model's signatures."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = model
    return request


def read_info(response: get_model_metadata_pb2.GetModelMetadataResponse) -> ModelInfo:
    """Reads the answer to `info_request`.

    Raises:
      CallError: if the answer cannot be read.
    """
    signatures = get_model_metadata_pb2.SignatureDefMap()
    try:
        response.metadata["signature_def"].Unpack(signatures)
    except DecodeError as error:
        _unreadable(f"signatures: {error}")
    return ModelInfo(
        response.model_spec.version.value,
        # The map also holds TensorFlow's own initialisation function.
        {
            name: Signature(
                inputs={key: _spec(info) for key, info in signature.inputs.items()},
                outputs={key: _spec(info) for key, info in signature.outputs.items()},
            )
            for name, signature in signatures.signature_def.items()
            if signature.method_name == _PREDICT_METHOD
        },
    )


def predict_request(
    model: str,
    signature: str,
    inputs: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    version: int | None,
) -> predict_pb2.PredictRequest:
    """Asks a signature, of the newest version by default, for some outputs, all if none are named.

    Raises:
      InputError: for an input that is no tensor, or has no rows: some of those stop
        a batch queue of TF Serving for good.
    """
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        array = as_array(name, value)
        if array.ndim and not len(array):
            raise InputError(
                f"{name} must have at least one row, got an array of shape {list(array.shape)}"
            )
        try:
            write_tensor(request.inputs[name], array)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name} must be a tensor of at most 2 GiB, "
                f"got {array.dtype} {list(array.shape)}: {error}"
            ) from error
    return request


def as_array(name: str, value: Any) -> np.ndarray:
    """The value as an array; raises `InputError` if its rows have different lengths."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be an array, got {type(value).__name__}: {error}") from error


def check_images(images: np.ndarray, shape: tuple[int, ...] | None) -> None:
    """Raises `InputError` for images that a model of a shape, None if unknown, does not take."""
    fits = images.dtype == np.uint8 and images.ndim == 4 and len(images)
    if not fits or shape not in (None, images.shape[1:]):
        sizes = shape or ("height", "width", "channels")
        raise InputError(
            f"images must be uint8 [batch, {', '.join(map(str, sizes))}], at least one, "
            f"got {images.dtype} {list(images.shape)}"
        )


def read_outputs(response: predict_pb2.PredictResponse, outputs: Sequence[str]) -> Outputs:
    """Reads the answer to `predict_request` for `outputs`.

    Raises:
      CallError: if the answer cannot be read or lacks one of them.
    """
    for name, proto in response.outputs.items():
        # A list of one value stands for a tensor of any size.
        values, given = math.prod(dim.size for dim in proto.tensor_shape.dim), proto.ByteSize()
        if values > given:
            _unreadable(f"all values of tensors, got {given} bytes for the {values} of {name!r}")
    try:
        arrays = {name: _read_tensor(proto) for name, proto in response.outputs.items()}
    except (TypeError, ValueError) as error:
        _unreadable(f"tensors: {error}")
    missing = sorted(set(outputs) - set(arrays))
    if missing:
        _unreadable(f"the outputs {list(outputs)}, got {sorted(arrays)}: missing {missing}")
    return Outputs(response.model_spec.version.value, arrays)


def write_tensor(proto: tensor_pb2.TensorProto, array: np.ndarray) -> None:
    """Writes an array into an empty message.

    Raises:
      TypeError: if an array of this type is no tensor.
      ValueError: if it is too large.
    """
    plain = array.dtype.kind in PLAIN_KINDS and array.dtype.isnative
    if not plain or array.nbytes > _LARGEST_CONTENT:
        proto.CopyFrom(tf.make_tensor_proto(array))
        return
    # What tf.make_tensor_proto ends in, after steps that need not be taken here.
    proto.dtype = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_content = array.tobytes()


def _read_tensor(proto: tensor_pb2.TensorProto) -> np.ndarray:
    dtype = np.dtype(tf.dtypes.as_dtype(proto.dtype).as_numpy_dtype)
    if not proto.tensor_content or dtype.kind not in PLAIN_KINDS:
        return tf.make_ndarray(proto)
    shape = [dimension.size for dimension in proto.tensor_shape.dim]
    return np.frombuffer(proto.tensor_content, dtype).copy().reshape(shape)


def _unreadable(rule: str) -> NoReturn:
    raise CallError(f"an answer must hold {rule}", grpc.StatusCode.INTERNAL)


def call_error(error: grpc.RpcError, target: str, model: str, timeout_s: float) -> CallError:
    """Says in one line why a call has failed."""
    code = error.code()
    details = " ".join((error.details() or "").split())
    if code is grpc.StatusCode.UNAVAILABLE:
        message = f"no server can be reached at {target}: {details}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"the server at {target} gave no answer within {timeout_s:.4g} s"
    elif match := _TOO_MANY_ROWS.search(details):
        rows, most = match.groups()
        message = (
            f"a request must have at most {most} images, the largest batch of the server "
            f"at {target}, got {rows}"
        )
    else:
        message = (
            f"the server at {target} refused the request for model {model!r}: "
            f"{code.name}: {details}"
        )
    mixed = code is grpc.StatusCode.FAILED_PRECONDITION and _MIXED_BATCH in details
    return (MixedBatchError if mixed else CallError)(message, code)


def closed_error(target: str) -> CallError:
    """Says that the client's connection is closed."""
    message = f"a client must be open, got a call to {target} after close()"
    return CallError(message, grpc.StatusCode.CANCELLED)


def ensembles(
    signatures: Mapping[str, Signature], model: str
) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """Returns the ensemble sizes on offer and the height, width and channels they take.

    Raises:
      InputError: unless there are signatures `ensemble_<size>` from uint8 images
        to probabilities.
    """
    found = (re.fullmatch(r"ensemble_([1-9][0-9]{0,8})", name) for name in signatures)
    sizes = tuple(sorted(int(match.group(1)) for match in found if match))
    if not sizes:
        raise InputError(
            f"a model must have signatures ensemble_<size>, got {sorted(signatures)} of {model!r}"
        )
    signature = signatures[f"ensemble_{sizes[0]}"]
    spec = signature.inputs.get("images")
    if (
        len(signature.inputs) != 1
        or "probabilities" not in signature.outputs
        or spec is None
        or spec.dtype != "uint8"
        or spec.shape is None
        or len(spec.shape) != 4
        or None in spec.shape[1:]
    ):
        raise InputError(
            "a model must take images, uint8 [batch, height, width, channels] of a fixed size, "
            f"and give probabilities, got {signature} of {model!r}"
        )
    return sizes, spec.shape[1:]


def _spec(info: meta_graph_pb2.TensorInfo) -> TensorSpec:
    sizes = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(
        dtype=_dtype_name(info.dtype),
        shape=None if info.tensor_shape.unknown_rank else sizes,
    )


def _dtype_name(number: int) -> str:
    try:
        return tf.dtypes.as_dtype(number).name
    except TypeError:
        # An output that is not a plain tensor has none.
        return f"dtype number {number}"
