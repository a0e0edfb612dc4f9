"""What TF Serving checks of a Predict request before it runs the graph.

Codes follow TF Serving's `predict_util.cc` and TensorFlow's
`cc/saved_model/util.cc`; the order does too, so that a request with two faults
gets the same answer from both servers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from hne_tf.client.messages import PLAIN_KINDS
from hne_tf.server.errors import RequestError

# Of any tensor; NumPy's own limit is 64.
_MOST_DIMENSIONS = 32

# The field that lists the values of a type where they are not in tensor_content.
_LISTED = {
    types_pb2.DT_BFLOAT16: "half_val",
    types_pb2.DT_BOOL: "bool_val",
    types_pb2.DT_COMPLEX128: "dcomplex_val",
    types_pb2.DT_COMPLEX64: "scomplex_val",
    types_pb2.DT_DOUBLE: "double_val",
    types_pb2.DT_FLOAT: "float_val",
    types_pb2.DT_HALF: "half_val",
    types_pb2.DT_INT16: "int_val",
    types_pb2.DT_INT32: "int_val",
    types_pb2.DT_INT64: "int64_val",
    types_pb2.DT_INT8: "int_val",
    types_pb2.DT_STRING: "string_val",
    types_pb2.DT_UINT16: "int_val",
    types_pb2.DT_UINT32: "uint32_val",
    types_pb2.DT_UINT64: "uint64_val",
    types_pb2.DT_UINT8: "int_val",
}
# A number takes this much on the wire at most, in whichever way it is sent.
_MOST_NUMBER_BYTES = 11


class SignatureChecks:
    """Holds requests against one signature, whose definition is read once.

    Args:
      signature: the SavedModel's definition of it.
    """

    def __init__(self, signature: meta_graph_pb2.SignatureDef) -> None:
        self._inputs = {name: _InputSpec.of(name, info) for name, info in signature.inputs.items()}
        self._outputs = tuple(sorted(signature.outputs))

    @property
    def row_bytes(self) -> int | None:
        """What a row of all inputs takes on the wire at most; None if there is no limit."""
        rows = [spec.row_bytes() for spec in self._inputs.values()]
        return None if None in rows else sum(rows)

    def inputs(
        self, tensors: Mapping[str, tensor_pb2.TensorProto], most_rows: int | None = None
    ) -> dict[str, np.ndarray]:
        """Returns the request's tensors by input name; arrays may be read-only.

        TF Serving leaves dtype and shape to the graph, whose kernels mostly answer
        INVALID_ARGUMENT. Here both are held against the signature first: a tensor of
        the wrong rank that reaches a oneDNN convolution ends the whole process.

        No array is larger than what was sent of it: a list of fewer values than the
        shape has, which stands for a tensor of any size, is refused.

        Args:
          tensors: the request's inputs.
          most_rows: bound of the first dimension, where that is free.

        Raises:
          RequestError: INVALID_ARGUMENT for names, dtypes, shapes or contents that
            do not fit the signature.
        """
        if tensors.keys() != self._inputs.keys():
            missing = sorted(set(self._inputs) - set(tensors))
            extra = sorted(set(tensors) - set(self._inputs))
            raise _invalid(
                f"inputs must be {sorted(self._inputs)}, got {sorted(tensors)}: "
                f"missing {missing}, unknown {extra}"
            )
        return {name: spec.array(tensors[name], most_rows) for name, spec in self._inputs.items()}

    def outputs(self, output_filter: Sequence[str]) -> Sequence[str]:
        """Returns the output names to answer with: those asked for, or all.

        Raises:
          RequestError: INVALID_ARGUMENT for an unknown or repeated name.
        """
        for position, name in enumerate(output_filter):
            if name not in self._outputs:
                raise _invalid(f"output_filter must name {list(self._outputs)}, got {name!r}")
            if name in output_filter[:position]:
                raise _invalid(f"output_filter must not repeat a name, got {name!r} twice")
        return output_filter or self._outputs


@dataclasses.dataclass(frozen=True)
class _InputSpec:
    """One input: `dtype` as in the request; `shape` with -1 where free, None for any rank."""

    name: str
    dtype: int
    numpy_dtype: np.dtype
    shape: tuple[int, ...] | None

    @classmethod
    def of(cls, name: str, info: meta_graph_pb2.TensorInfo) -> "_InputSpec":
        numpy_dtype = np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype)
        return cls(name, info.dtype, numpy_dtype, declared_shape(info))

    def row_bytes(self) -> int | None:
        """What a row takes on the wire at most; None if a row may have any size."""
        if self.shape is None or -1 in self.shape[1:] or self.numpy_dtype.kind == "O":
            return None
        # A byte is listed in three: two of the number, one of its tag.
        number = 3 if self.numpy_dtype.itemsize == 1 else _MOST_NUMBER_BYTES
        return math.prod(self.shape[1:]) * max(number, self.numpy_dtype.itemsize)

    def array(self, tensor: tensor_pb2.TensorProto, most_rows: int | None) -> np.ndarray:
        if tensor.dtype != self.dtype:
            raise _invalid(
                f"input {self.name!r} must be {_dtype_name(self.dtype)}, "
                f"got {_dtype_name(tensor.dtype)}"
            )
        sizes = [dimension.size for dimension in tensor.tensor_shape.dim]
        if not self._fits(sizes) or tensor.tensor_shape.unknown_rank:
            raise _invalid(f"input {self.name!r} must have shape {self._shape_name()}, got {sizes}")
        self._check_rows(sizes, most_rows)
        self._check_given(tensor, sizes)
        content = tensor.tensor_content
        try:
            if content and self.numpy_dtype.kind in PLAIN_KINDS:
                return np.frombuffer(content, self.numpy_dtype).reshape(sizes)
            return tf.make_ndarray(tensor)
        except (TypeError, ValueError, OverflowError) as error:
            raise _invalid(f"input {self.name!r} cannot be parsed as a tensor: {error}") from error

    def _check_rows(self, sizes: list[int], most: int | None) -> None:
        """Holds the first dimension against its bounds, where the signature leaves it free."""
        if not sizes or (self.shape is not None and self.shape[0] != -1):
            return
        # TF Serving takes 0 rows, and with batching never answers that queue again.
        if sizes[0] < 1 or (most is not None and sizes[0] > most):
            rule = "at least 1 row" if most is None else f"at least 1 and at most {most} rows"
            raise _invalid(f"input {self.name!r} must have {rule}, got {sizes[0]}")

    def _check_given(self, tensor: tensor_pb2.TensorProto, sizes: list[int]) -> None:
        """Holds what was sent against the size that the shape declares."""
        values = math.prod(sizes)
        if tensor.tensor_content:
            declared, given = values * self.numpy_dtype.itemsize, len(tensor.tensor_content)
            what = "bytes"
        else:
            field = _LISTED.get(self.dtype)
            # Of a complex number both parts are listed.
            declared = 2 * values if self.numpy_dtype.kind == "c" else values
            given = len(getattr(tensor, field)) if field else 0
            what = field or "values in tensor_content"
        if given != declared:
            raise _invalid(
                f"input {self.name!r} of shape {sizes} must hold {declared} {what}, got {given}"
            )

    def _fits(self, sizes: list[int]) -> bool:
        if any(size < 0 for size in sizes) or len(sizes) > _MOST_DIMENSIONS:
            return False
        if self.shape is None:
            return True
        return len(sizes) == len(self.shape) and all(
            wanted in (-1, size) for wanted, size in zip(self.shape, sizes, strict=True)
        )

    def _shape_name(self) -> str:
        if self.shape is None:
            return "of known sizes"
        return str(tuple(None if size < 0 else size for size in self.shape))


def declared_shape(info: meta_graph_pb2.TensorInfo) -> tuple[int, ...] | None:
    """The shape of an input or output as its signature declares it: see `_InputSpec`."""
    if info.tensor_shape.unknown_rank:
        return None
    return tuple(dimension.size for dimension in info.tensor_shape.dim)


def _dtype_name(number: int) -> str:
    try:
        return tf.dtypes.as_dtype(number).name
    except TypeError:
        return f"dtype number {number}"


def _invalid(message: str) -> RequestError:
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)
