"""The access log: a line of JSON per prediction, written by a thread of its own."""

import contextlib
import datetime
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
import urllib.parse
from collections.abc import Callable

import grpc

from hne_tf.errors import InputError
from hne_tf.server.tracing.trace import Trace

STANDARD_OUTPUT = "-"
# A disk that is full or slow costs lines, never predictions or memory.
_MOST_WAITING = 10_000
# How long lines have to be written when the log is closed.
_LAST_LINES_S = 5.0


class AccessLog:
    """Appends a line per prediction to a file or to standard output.

    A file that has been moved away, as logrotate does, is opened again. No line holds
    headers other than ids, inputs or outputs.

    Args:
      path: the file; `-` for standard output.
      lost: called for each line that could not be written.

    Raises:
      InputError: if the file cannot be appended to.
    """

    def __init__(self, path: str | os.PathLike, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._handler = _handler(path)
        self._handler.handleError = lambda record: lost()
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def write(self, trace: Trace, code: grpc.StatusCode, seconds: float) -> None:
        """Adds the line of a prediction that has ended; never waits."""
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "trace_id": trace.trace_id,
            "traceparent": trace.traceparent or None,
            "door": trace.door,
            "peer": urllib.parse.unquote(trace.peer),
            "signature": trace.signature or None,
            "version": trace.version,
            "rows": trace.rows,
            "size": trace.size,
            "code": code.name,
            "ms": round(seconds * 1000, 3),
        }
        text = json.dumps({key: value for key, value in line.items() if value is not None})
        record = logging.LogRecord("hne_tf.access", logging.INFO, "", 0, text, None, None)
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self._lost()

    def close(self) -> None:
        """Writes what waits and closes the file; gives up on a reader that stands still."""
        try:
            self._waiting.put(None, timeout=_LAST_LINES_S)
        except queue.Full:
            return
        self._thread.join(_LAST_LINES_S)

    def _run(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._handler.handle(record)
        # A full disk may have left something to be written, which is counted already.
        with contextlib.suppress(OSError):
            self._handler.close()


def _handler(path: str | os.PathLike) -> logging.Handler:
    if path == STANDARD_OUTPUT:
        return logging.StreamHandler(sys.stdout)
    try:
        return logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"the access log must be a file that can be written, got {str(path)!r}: "
            f"{error.strerror}"
        ) from None
