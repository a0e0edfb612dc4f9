"""Who waits for an answer over HTTP, and for how long."""

import math
import re
import threading
import time
from collections.abc import Callable

import grpc

from hne_tf.server.errors import RequestError

BUDGET_HEADER = "X-HNE-Budget-Ms"

# A budget stays a number above 0 when it has been spent.
_LEAST_BUDGET_MS = 1e-6
_NUMBER = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class HttpCaller:
    """What `admission.Caller` is to gRPC: whether somebody still waits.

    Args:
      budget_ms: how long the caller wants to wait; None if it does not say.
      clock: seconds; the request arrives when this is made.

    Attributes:
      remaining_s: None: HTTP has no deadline.
    """

    remaining_s: float | None = None

    def __init__(
        self, budget_ms: float | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._budget_ms = budget_ms
        self._clock = clock
        self._arrived_s = self._parsed_s = clock()
        self._lock = threading.Lock()
        self._over = False
        self._callbacks: list[Callable[[], None]] = []

    @property
    def budget_ms(self) -> float | None:
        """Milliseconds from `parsed` on that the answer may take; None for no budget."""
        if self._budget_ms is None:
            return None
        spent_ms = 1000 * (self._parsed_s - self._arrived_s)
        return max(self._budget_ms - spent_ms, _LEAST_BUDGET_MS)

    def parsed(self) -> None:
        """The request has been read: the budget is what is left of it now."""
        self._parsed_s = self._clock()

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
