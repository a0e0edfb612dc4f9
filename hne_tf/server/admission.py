"""Which predictions a server takes on, and which of them may still run."""

import collections
import concurrent.futures
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from hne_tf.server.anytime import budgets
from hne_tf.server.errors import RequestError

# A caller gives up at its own deadline, a little before the same deadline here.
_DEADLINE_TOLERANCE_S = 0.05


# What those who wait may count on, as a part of the time that is left to them. Under a lasting
# load it sets how long the queue becomes, not how large the ensembles are.
_FAIR_SHARE = 0.5


class Caller:
    """Whether somebody still waits for an answer, and until when.

    Args:
      context: the gRPC call's.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the call's deadline, not below 0; None if it has none."""
        return budgets.seconds_left(self._context.time_remaining())

    @property
    def budget_ms(self) -> float | None:
        """Milliseconds from the call's arrival that its answer may take, if it says so.

        Raises:
          RequestError: INVALID_ARGUMENT for a budget that is not a number above 0.
        """
        return budgets.from_metadata(self._context.invocation_metadata())

    @property
    def over(self) -> bool:
        """Whether the deadline has passed or the caller has cancelled or gone."""
        return not self._context.is_active() or self._context.time_remaining() <= 0

    def check(self) -> None:
        """Raises `RequestError`, DEADLINE_EXCEEDED or CANCELLED, if the call is over."""
        if self.over:
            raise self.ended()

    def ended(self) -> RequestError:
        """Why a call that is over is not answered."""
        if self._context.time_remaining() <= _DEADLINE_TOLERANCE_S:
            return RequestError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the work started"
            )
        return RequestError(
            grpc.StatusCode.CANCELLED, "the request was cancelled before the work started"
        )

    def when_over(self, callback: Callable[[], None]) -> None:
        """Calls back, from another thread or at once, when the call is over."""
        if not self._context.add_callback(callback):
            callback()


class PredictionThreads(concurrent.futures.ThreadPoolExecutor):
    """A thread for each prediction that is taken on, and never a queue before them.

    gRPC submits each call when its headers arrive. Its own bound,
    `maximum_concurrent_rpcs`, counts health checks and metadata too and would
    refuse those of a server that is merely busy.

    Args:
      most: predictions taken on at a time.
    """

    def __init__(self, most: int) -> None:
        # One more: gRPC asks and submits in two steps, between which `take` can come.
        super().__init__(max_workers=most + 1, thread_name_prefix="predict")
        self._most = most
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def most(self) -> int:
        """Predictions taken on at a time."""
        return self._most

    @property
    def held(self) -> int:
        """Predictions taken on and not yet answered."""
        return self._held

    def refusal(self) -> RequestError | None:
        """Why the next prediction is refused, or None."""
        if self._closed:
            return RequestError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        if self._held >= self._most:
            return RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the server is busy: it holds at most {self._most} predictions, queued or running",
            )
        return None

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future:
        """Takes a prediction on without a look at the bound; only gRPC calls this."""
        with self._changed:
            self._held += 1
        future = super().submit(fn, *args, **kwargs)
        # Also runs for calls that end before their handler is reached.
        future.add_done_callback(self._release)
        return future

    def take(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future:
        """Takes a prediction on that did not come by gRPC.

        Raises:
          RequestError: if it is refused.
        """
        with self._changed:
            refusal = self.refusal()
            if refusal is not None:
                raise refusal
            return self.submit(fn, *args, **kwargs)

    def drain(self, timeout_s: float) -> bool:
        """Refuses further predictions and waits for those held; False if some are left."""
        with self._changed:
            self._closed = True
            return self._changed.wait_for(lambda: not self._held, timeout_s)

    def _release(self, future: concurrent.futures.Future) -> None:
        del future
        with self._changed:
            self._held -= 1
            self._changed.notify_all()


class Slots:
    """Bounds the graphs that are computed at a time; whoever came first goes first.

    Args:
      count: the bound.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._count = count
        self._free = count
        self._waiting: collections.deque[_Waiter] = collections.deque()

    def share_s(self) -> float:
        """How long each may compute if all who wait are to be answered in time.

        Infinite if nobody waits who has to be answered by a certain time.
        """
        now_s = time.perf_counter()
        with self._lock:
            ends = [waiter.end_s for waiter in self._waiting]
        # Whoever asks computes before all of them.
        shares = (
            self._count * _FAIR_SHARE * (end_s - now_s) / (ahead + 1)
            for ahead, end_s in enumerate(ends, start=1)
            # Those whose time is over are past help.
            if end_s > now_s
        )
        return min(shares, default=math.inf)

    @contextlib.contextmanager
    def hold(self, call: Caller | None, end_s: float = math.inf) -> Iterator[None]:
        """Waits for a slot and holds it.

        Args:
          call: gives its place up as soon as it is over; None never does.
          end_s: when the answer must be there, on the clock of `time.perf_counter`.

        Raises:
          RequestError: if the call is over before its turn.
        """
        self._acquire(call, end_s)
        try:
            if call is not None:
                call.check()
            yield
        finally:
            self._release()

    def _acquire(self, call: Caller | None, end_s: float) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            waiter = _Waiter(end_s)
            self._waiting.append(waiter)
        if call is not None:
            call.when_over(waiter.set)
        waiter.wait()
        with self._lock:
            if waiter.granted:
                return
            self._waiting.remove(waiter)
        raise call.ended()

    def _release(self) -> None:
        with self._lock:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.granted = True
                waiter.set()
            else:
                self._free += 1


class _Waiter(threading.Event):
    def __init__(self, end_s: float) -> None:
        super().__init__()
        self.end_s = end_s
        self.granted = False
