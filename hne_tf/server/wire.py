"""A serialised PredictRequest, looked at before it is parsed.

Parsing can take far more memory than the message: an empty entry of `inputs` is two
bytes on the wire and 170 in memory. Whoever counts the fields first bounds that.
"""

import grpc

from hne_tf.server.errors import RequestError

# A request of two inputs has about thirty. Values that are listed one by one are one
# field, as protocol buffers pack numbers.
MOST_FIELDS = 10_000

# Numbers of the fields that hold messages in which fields can be repeated:
# PredictRequest.inputs, its entries' value, TensorProto.tensor_shape and its dimensions.
_SHAPE = {2: {}}
_TENSOR = {2: _SHAPE}
_REQUEST = {2: {2: _TENSOR}}
# TensorProto's resource_handle_val and variant_val hold further messages. No signature
# that can be called from outside takes them.
_REFUSED = frozenset({14, 15})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_VARINT_BYTES = 10


def check_fields(message: bytes) -> None:
    """Raises `RequestError` for a message whose parsing could take too much memory.

    Raises:
      RequestError: INVALID_ARGUMENT for more than `MOST_FIELDS` fields, or for values
        of resources or variants; INTERNAL, gRPC's code, for what is no message.
    """
    left = MOST_FIELDS
    pending = [(0, len(message), _REQUEST)]
    while pending:
        position, end, known = pending.pop()
        while position < end:
            left -= 1
            if left < 0:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"a request must have at most {MOST_FIELDS} fields, got more",
                )
            number, start, position = field(message, position)
            if position > end:
                raise _broken()
            if known is _TENSOR and number in _REFUSED:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "inputs must be numbers or strings, got resources or variants",
                )
            if number in known:
                pending.append((start, position, known[number]))


def field(message: bytes, position: int) -> tuple[int, int, int]:
    """A field's number, and where its bytes start and end; nothing of a number."""
    if position + 1 < len(message):
        tag, size = message[position], message[position + 1]
        # Most are as short as this.
        if tag < 128 and size < 128 and tag & 7 in (_VARINT, _BYTES):
            start = position + 2
            return tag >> 3, start, start + (size if tag & 7 == _BYTES else 0)
    tag, position = _varint(message, position)
    kind = tag & 7
    if kind == _BYTES:
        size, position = _varint(message, position)
        return tag >> 3, position, position + size
    if kind == _VARINT:
        _, end = _varint(message, position)
    elif kind in (_FIXED64, _FIXED32):
        end = position + (8 if kind == _FIXED64 else 4)
    else:
        # Groups, which no proto3 message has.
        raise _broken()
    return tag >> 3, end, end


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    # Most are one byte.
    if position < len(message) and message[position] < 128:
        return message[position], position + 1
    value = 0
    for index, byte in enumerate(message[position : position + _MOST_VARINT_BYTES]):
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, position + index + 1
    raise _broken()


def _broken() -> RequestError:
    # gRPC's own code for this, in every language.
    return RequestError(grpc.StatusCode.INTERNAL, "the message must be a PredictRequest")
