"""Follows predictions through the server, whichever door they came by."""

import contextlib
import time
from collections.abc import Iterable, Iterator

import grpc

from hne_tf.server.tracing.access_log import AccessLog
from hne_tf.server.tracing.trace import Trace


class Tracer:
    """Gives ids back to callers, and writes the access log if there is one.

    Args:
      log: the access log; None for none. With it, a prediction without an id gets one.
    """

    def __init__(self, log: AccessLog | None = None) -> None:
        self._log = log

    def begin(self, pairs: Iterable[tuple[str, str | bytes]], door: str, peer: str) -> Trace:
        """The trace of a prediction that has arrived; see `Trace.of`."""
        return Trace.of(pairs, door, peer, always=self._log is not None)

    def end(self, trace: Trace, code: grpc.StatusCode, seconds: float) -> None:
        """A prediction has been answered or refused."""
        if self._log is not None:
            self._log.write(trace, code, seconds)

    @contextlib.contextmanager
    def call(self, context: grpc.ServicerContext) -> Iterator[Trace]:
        """Follows a gRPC call while the block answers it; ids go back as trailing metadata."""
        started = time.perf_counter()
        trace = self.begin(context.invocation_metadata(), "grpc", context.peer())
        if given := trace.pairs():
            context.set_trailing_metadata(given)
        # What grpc makes of an exception that is not the call's own end.
        code = grpc.StatusCode.UNKNOWN
        try:
            yield trace
            code = grpc.StatusCode.OK
        finally:
            self.end(trace, context.code() or code, time.perf_counter() - started)
