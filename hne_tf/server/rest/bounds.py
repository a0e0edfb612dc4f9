"""What the JSON of a request may hold, before anything of it is expanded.

An empty list is three bytes in JSON and sixty in memory. Whoever counts brackets and
commas first bounds that, as `wire` bounds a message's fields.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable

import grpc
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from hne_tf.server.checks import declared_shape
from hne_tf.server.errors import RequestError

# Of names, and of lists around the rows.
_MOST_OTHER = 10_000
_MOST_OTHER_BYTES = 256 * 1024
# Of a number with its share of indentation.
_MOST_NUMBER_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The most of each that a request may have.

    Attributes:
      lists: opening brackets of lists and objects.
      values: commas, which stand between values.
      bytes: of the body, once it is not compressed.
    """

    lists: int
    values: int
    bytes: int

    @classmethod
    def of(
        cls, definitions: Iterable[meta_graph_pb2.SignatureDef], max_rows: int
    ) -> "Bounds | None":
        """What the largest request of any signature takes; None if a row may have any size."""
        lists = values = 0
        for definition in definitions:
            counts = [_row(info) for info in definition.inputs.values()]
            if None in counts:
                return None
            # In the row format each row can be an object, whose members have names.
            lists = max(lists, 1 + sum(count[0] for count in counts))
            values = max(values, sum(1 + sum(count) for count in counts))
        return cls(
            _MOST_OTHER + max_rows * lists,
            _MOST_OTHER + max_rows * values,
            _MOST_OTHER_BYTES + max_rows * values * _MOST_NUMBER_BYTES,
        )

    def check(self, body: bytes) -> None:
        """Raises `RequestError`, INVALID_ARGUMENT, for a body with too many lists or values."""
        lists = body.count(b"[") + body.count(b"{")
        values = body.count(b",")
        if lists > self.lists or values > self.values:
            raise RequestError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"a request must have at most {self.lists} lists and {self.values} values, "
                f"got {lists} and {values + 1}",
            )


def _row(info: meta_graph_pb2.TensorInfo) -> tuple[int, int] | None:
    """Lists and values of a row; None if there is no limit."""
    shape = declared_shape(info)
    if shape is None or -1 in shape[1:] or info.dtype == types_pb2.DT_STRING:
        return None
    inner = shape[1:]
    return sum(itertools.accumulate(inner[:-1], int.__mul__, initial=1)), math.prod(inner)
