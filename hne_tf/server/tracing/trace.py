"""The ids that a caller gives its prediction, and what becomes known of the prediction."""

import dataclasses
import re
import secrets
from collections.abc import Iterable

import numpy as np

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"

# Visible ASCII, so that an id can go back in a header and stand in a line of a log.
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# Of W3C's Trace Context: version, trace id, parent id and flags.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


@dataclasses.dataclass
class Trace:
    """A prediction, from its arrival on.

    Attributes:
      door: `grpc` or `rest`.
      peer: the caller's address.
      request_id: the caller's `x-request-id`, or one that was made here; "" for none.
      traceparent: the caller's, of W3C's Trace Context; "" for none.
      signature: the signature that answers; "" until one is found.
      version: the version that answers; None until one is found.
      rows: rows of the request; None until it has been checked.
      size: leaves that answered, where the signature chooses them.
    """

    door: str = "grpc"
    peer: str = ""
    request_id: str = ""
    traceparent: str = ""
    signature: str = ""
    version: int | None = None
    rows: int | None = None
    size: int | None = None

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[str, str | bytes]], door: str, peer: str, always: bool = False
    ) -> "Trace":
        """The trace of a call with these headers.

        An id that is no visible ASCII of at most 128 characters, or a traceparent that
        is none, is treated as if it were missing: a prediction is not refused for it.

        Args:
          pairs: lower-case names and values of metadata or headers.
          door: see above.
          peer: see above.
          always: whether to make an id where the caller gives none.
        """
        trace = cls(door, peer)
        for key, value in pairs:
            if not isinstance(value, str):
                continue
            if key == REQUEST_ID and _REQUEST_ID.fullmatch(value):
                trace.request_id = value
            elif key == TRACEPARENT and _TRACEPARENT.fullmatch(value):
                trace.traceparent = value
        if always and not trace.trace_id:
            trace.request_id = secrets.token_hex(16)
        return trace

    @property
    def trace_id(self) -> str:
        """What the logs of caller and server have in common; "" for nothing."""
        if self.request_id or not self.traceparent:
            return self.request_id
        return _TRACEPARENT.fullmatch(self.traceparent)[1]

    def found(self, signature: str, version: int) -> None:
        """What answers is known."""
        self.signature, self.version = signature, version

    def took(self, inputs: Iterable[np.ndarray]) -> None:
        """The inputs have been checked."""
        self.rows = next((len(array) for array in inputs if array.ndim), 1)

    def pairs(self) -> list[tuple[str, str]]:
        """Lower-case names and values to give back with the answer."""
        found = ((REQUEST_ID, self.request_id), (TRACEPARENT, self.traceparent))
        return [(key, value) for key, value in found if value]
