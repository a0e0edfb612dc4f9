"""What TF Serving checks of a Predict request before it runs the graph.

Codes follow TF Serving's `predict_util.cc` and TensorFlow's
`cc/saved_model/util.cc`; the order does too, so that a request with two faults
gets the same answer from both servers.
"""

from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.errors import RequestError


def check_inputs(
    signature: meta_graph_pb2.SignatureDef, inputs: Mapping[str, tensor_pb2.TensorProto]
) -> dict[str, np.ndarray]:
    """Returns the request's tensors by input name.

    TF Serving leaves dtype and shape to the graph, whose kernels mostly answer
    INVALID_ARGUMENT. Here both are held against the signature first: a tensor of
    the wrong rank that reaches a oneDNN convolution ends the whole process.

    Raises:
      RequestError: INVALID_ARGUMENT for names, dtypes, shapes or contents that
        do not fit the signature.
    """
    missing = sorted(set(signature.inputs) - set(inputs))
    extra = sorted(set(inputs) - set(signature.inputs))
    if missing or extra:
        raise _invalid(
            f"inputs must be {sorted(signature.inputs)}, got {sorted(inputs)}: "
            f"missing {missing}, unknown {extra}"
        )
    return {name: _tensor(name, signature.inputs[name], inputs[name]) for name in inputs}


def check_output_filter(
    signature: meta_graph_pb2.SignatureDef, output_filter: Sequence[str]
) -> list[str]:
    """Returns the output names to answer with: those asked for, or all.

    Raises:
      RequestError: INVALID_ARGUMENT for an unknown or repeated name.
    """
    for position, name in enumerate(output_filter):
        if name not in signature.outputs:
            raise _invalid(f"output_filter must name {sorted(signature.outputs)}, got {name!r}")
        if name in output_filter[:position]:
            raise _invalid(f"output_filter must not repeat a name, got {name!r} twice")
    return list(output_filter) or sorted(signature.outputs)


def _tensor(
    name: str, info: meta_graph_pb2.TensorInfo, proto: tensor_pb2.TensorProto
) -> np.ndarray:
    if proto.dtype != info.dtype:
        raise _invalid(
            f"input {name!r} must be {_dtype_name(info.dtype)}, got {_dtype_name(proto.dtype)}"
        )
    wanted = tf.TensorShape(info.tensor_shape)
    try:
        received = tf.TensorShape(proto.tensor_shape)
        fits = received.is_fully_defined() and wanted.is_compatible_with(received)
    except ValueError:
        fits = False
    if not fits:
        sizes = [dimension.size for dimension in proto.tensor_shape.dim]
        raise _invalid(f"input {name!r} must have shape {wanted}, got {sizes}")
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise _invalid(f"input {name!r} cannot be parsed as a tensor: {error}") from error


def _dtype_name(number: int) -> str:
    try:
        return tf.dtypes.as_dtype(number).name
    except TypeError:
        return f"dtype number {number}"


def _invalid(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)
