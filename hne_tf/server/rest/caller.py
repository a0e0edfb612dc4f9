"""Who waits for an answer over HTTP, and for how long."""

import math
import re
import threading
from collections.abc import Callable

import grpc

from hne_tf.server.errors import RequestError

BUDGET_HEADER = "X-HNE-Budget-Ms"

_NUMBER = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class HttpCaller:
    """What `admission.Caller` is to gRPC: whether somebody still waits.

    Args:
      budget_ms: how long the caller wants to wait; None if it does not say.

    Attributes:
      budget_ms: as given.
      remaining_s: None: HTTP has no deadline.
    """

    remaining_s: float | None = None

    def __init__(self, budget_ms: float | None = None) -> None:
        self.budget_ms = budget_ms
        self._lock = threading.Lock()
        self._over = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def over(self) -> bool:
        """Whether the caller has gone."""
        return self._over

    def check(self) -> None:
        """Raises `RequestError`, CANCELLED, if the caller has gone."""
        if self.over:
            raise self.ended()

    def ended(self) -> RequestError:
        """Why a call that is over is not answered."""
        return RequestError(grpc.StatusCode.CANCELLED, "the client hung up before the work started")

    def when_over(self, callback: Callable[[], None]) -> None:
        """Calls back, from another thread or at once, when the caller has gone."""
        with self._lock:
            if not self._over:
                self._callbacks.append(callback)
                return
        callback()

    def hang_up(self) -> None:
        """The caller has gone."""
        with self._lock:
            self._over = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def budget_ms(text: str | None) -> float | None:
    """The budget that a header gives; None without a header.

    Raises:
      RequestError: INVALID_ARGUMENT for anything but a number above 0.
    """
    if text is None:
        return None
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not 0 < value < math.inf:
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"{BUDGET_HEADER} must be a number above 0, got {text[:100]!r}",
        )
    return value
