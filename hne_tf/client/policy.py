"""How a request is answered within its budget: what to ask next, without asking it.

`BudgetPolicy.answer` is a generator: it yields what is to be done (`Learn`, `Call`,
`Wait`), is sent the result or thrown the `CallError`, and returns the answer. So
clients with blocking and with asyncio transport, and simulations without any, share
one logic.
"""

import dataclasses
import math
import numbers
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import grpc
import numpy as np

from hne_tf.client.answers import Answer, Attempt, BudgetError
from hne_tf.client.latency.latencies import PROBE_ROOM, Choice, Latencies
from hne_tf.client.messages import (
    CallError,
    MixedBatchError,
    ModelInfo,
    Outputs,
    as_array,
    check_images,
    ensembles,
)
from hne_tf.client.metrics import ClientMetrics
from hne_tf.errors import InputError

# Another attempt may help, but not at once.
_BUSY = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})
# Another attempt may help; every other status would come again.
_RETRIED = _BUSY | {grpc.StatusCode.DEADLINE_EXCEEDED}
_LEAST_PAUSE_MS, _MOST_PAUSE_MS = 1.0, 1000.0
# Time kept for another attempt: a multiple of what the smallest ensemble takes undisturbed, or
# a share of the budget.
_RETRY_ROOM, _RETRY_SHARE = 2.0, 0.1
# As many may be on their way before anything is known of the server.
_FIRST_REQUESTS = 4
# A refusal without asking rests on an answer or a failure that is not older.
_REFUSAL_MS = 2000.0


@dataclasses.dataclass(frozen=True)
class Learn:
    """Ask for the signatures; the result is a `ModelInfo`."""

    timeout_s: float


@dataclasses.dataclass(frozen=True)
class Call:
    """Ask `ensemble_<size>`; the result is its `Outputs`."""

    size: int
    timeout_s: float


@dataclasses.dataclass(frozen=True)
class Wait:
    """Wait; there is no result."""

    seconds: float


Action = Learn | Call | Wait


@dataclasses.dataclass
class _Request:
    """A request on its way.

    Attributes:
      started_ms: when it began.
      budget_ms: what its answer may take.
      batch_size: number of images.
      attempts: calls made.
      below: only smaller ensembles than this.
      error: of the last attempt.
    """

    started_ms: float
    budget_ms: float
    batch_size: int
    attempts: list[Attempt] = dataclasses.field(default_factory=list)
    below: int | None = None
    error: CallError | None = None


class BudgetPolicy:
    """Answers requests with the largest ensemble that fits, or a smaller one if that fails.

    Thread-safe; one per model and server.

    Args:
      model: its name, for messages and metrics.
      latencies: what answers take.
      metrics: counts what happens.
      grace_ms: by how much an answer may be late. Sizes are chosen for the budget
        alone; with 0 a call is given up when the budget is spent.
      clock: seconds.
      seed: of the jitter.
    """

    def __init__(
        self,
        model: str,
        latencies: Latencies,
        metrics: ClientMetrics,
        grace_ms: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
        seed: int | None = None,
    ) -> None:
        if not grace_ms >= 0:
            raise InputError(f"grace_ms must be 0 or more, got {grace_ms!r}")
        self._model = model
        self._latencies = latencies
        self._metrics = metrics
        self._grace_ms = grace_ms
        self._clock = clock
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._image_shape: tuple[int, int, int] | None = None
        self._version = 0
        self._outdated = False

    def learned(self, info: ModelInfo) -> None:
        """Takes the sizes on offer from what the server says.

        Raises:
          InputError: if the model has no ensembles.
        """
        sizes, image_shape = ensembles(info.signatures, self._model)
        with self._lock:
            self._image_shape = image_shape
            self._version = info.version
            self._outdated = False
            self._latencies.set_sizes(sizes)

    def answer(self, images: np.ndarray, budget_ms: float) -> Generator[Action, Any, Answer]:
        """What to do to answer for `images` within `budget_ms`, which runs from now.

        Raises:
          InputError: for a budget that is not above 0, images that the model does
            not take, or a model that has no ensembles any more.
          BudgetError: if there is no answer.
        """
        if not isinstance(budget_ms, numbers.Real) or not 0 < budget_ms < math.inf:
            raise InputError(f"budget must be more than 0 ms and finite, got {budget_ms!r} ms")
        started_ms = self._now_ms()
        images = as_array("images", images)
        check_images(images, self._image_shape)
        request = _Request(started_ms, budget_ms, len(images))
        try:
            yield from self._learn(request)
            check_images(images, self._image_shape)
            while True:
                yield from self._await_first(request)
                choice = yield from self._choose(request)
                answer = yield from self._attempt(request, choice)
                if answer is not None:
                    return answer
                yield from self._pause(request)
        except BudgetError:
            self._metrics.missed(self._model)
            raise

    def _learn(self, request: _Request) -> Generator[Action, Any, None]:
        """Learns the signatures if they are not known, or known to have changed."""
        with self._lock:
            known, outdated = bool(self._latencies.sizes), self._outdated
            # One request is enough to find out; the others go on with what there is.
            self._outdated = False
        while not known or outdated:
            # A request that could do without leaves itself half of its budget.
            timeout_ms = self._left_ms(request) / (2 if known else 1)
            started_ms = self._now_ms()
            code, learned = "OK", False
            try:
                self.learned((yield Learn(timeout_ms / 1000)))
                learned = True
                return
            except CallError as error:
                code = error.code.name
                request.error = error
            finally:
                attempt = Attempt(None, code, self._now_ms() - started_ms)
                request.attempts.append(attempt)
                if not learned:
                    # Also after an interrupt: the next request finds out.
                    with self._lock:
                        self._outdated = True
            if known:
                return
            if request.error.code not in _RETRIED:
                raise self._failure(request)
            yield from self._pause(request)

    def _await_first(self, request: _Request) -> Generator[Action, Any, None]:
        """Lets the first requests of all find out what answers take before others follow.

        Otherwise a rush at a client that knows nothing could bury the server, and
        nothing would be answered in time to learn from.
        """
        while True:
            choice = self._latencies.choose(request.batch_size, request.budget_ms)
            if choice is None or choice.fastest_ms < math.inf or choice.in_flight < _FIRST_REQUESTS:
                return
            left_ms = self._left_ms(request)
            if left_ms < 0.5 * request.budget_ms:
                raise BudgetError(
                    f"no answer of {self._model!r} within {request.budget_ms:g} ms: "
                    f"{choice.in_flight} requests on their way, and none was answered yet",
                    request.attempts,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                )
            yield Wait(min(0.02 * request.budget_ms, _MOST_PAUSE_MS) / 1000)

    def _choose(self, request: _Request) -> Generator[Action, Any, Choice]:
        """Chooses a size, or raises if none can be answered in time."""
        while True:
            budget_ms = request.started_ms + request.budget_ms - self._now_ms()
            choice = self._latencies.choose(request.batch_size, budget_ms, request.below)
            if choice is not None:
                break
            # Another request has found the last signature gone.
            yield from self._learn(request)
        if choice.fits or request.attempts:
            return choice
        if choice.fastest_ms == math.inf:
            return choice
        # Once in a while it is tried all the same, because estimates can be wrong.
        if choice.asked_ago_ms < _REFUSAL_MS and choice.fastest_ms > budget_ms:
            raise BudgetError(
                f"budget must allow the smallest ensemble (size {choice.size}, at best "
                f"{choice.fastest_ms:.3g} ms), got {request.budget_ms:g} ms",
                request.attempts,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        queued_ms = choice.waiting_ms + choice.fastest_ms
        if choice.in_flight > 1 and queued_ms > budget_ms + self._grace_ms:
            raise BudgetError(
                f"no time for the smallest ensemble (size {choice.size}): behind "
                f"{choice.in_flight} requests on their way it would take at least "
                f"{queued_ms:.3g} ms of {request.budget_ms:g} ms",
                request.attempts,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        return choice

    def _attempt(self, request: _Request, choice: Choice) -> Generator[Action, Any, Answer | None]:
        left_ms = self._left_ms(request)
        # A call is given up early enough for another of the smallest ensemble. If it
        # stands in a queue the other would stand behind it: so not before it has to be,
        # unless nothing is sure of the call and the queue is empty.
        least_ms = max(_RETRY_ROOM * choice.fastest_ms, _RETRY_SHARE * request.budget_ms)
        room_ms = max(least_ms, PROBE_ROOM * choice.smallest_ms) if choice.probe else least_ms
        retry_fits = not choice.is_smallest and choice.estimate_ms + room_ms <= left_ms
        timeout_ms = left_ms - room_ms if retry_fits else left_ms
        if request.attempts and request.attempts[-1].size is not None:
            self._metrics.retry(self._model)
        ticket = self._latencies.sent(choice.size, request.batch_size)
        try:
            outputs: Outputs = yield Call(choice.size, timeout_ms / 1000)
            latency_ms = self._latencies.answered(ticket)
        except CallError as error:
            late = error.code is grpc.StatusCode.DEADLINE_EXCEEDED
            latency_ms = self._latencies.failed(ticket, late)
            self._note(request, choice.size, error.code.name, latency_ms)
            self._failed(request, choice.size, error)
            return None
        finally:
            # Ends what an interrupt has left in flight.
            self._latencies.failed(ticket)
        self._note(request, choice.size, "OK", latency_ms)
        if outputs.version != self._version:
            self._outdated = True
        total_ms = self._now_ms() - request.started_ms
        self._metrics.answer(self._model, choice.size)
        if total_ms > request.budget_ms:
            self._metrics.missed(self._model)
        return Answer(
            outputs.arrays["probabilities"], choice.size, total_ms, tuple(request.attempts)
        )

    def _note(self, request: _Request, size: int, code: str, latency_ms: float) -> None:
        request.attempts.append(Attempt(size, code, latency_ms))
        self._metrics.call(self._model, f"ensemble_{size}", code, latency_ms)

    def _failed(self, request: _Request, size: int, error: CallError) -> None:
        """Decides where to go on after a failure, or raises."""
        request.error = error
        if isinstance(error, MixedBatchError):
            # Nothing is wrong with this size: only another batch is needed.
            return
        request.below = size
        if error.code is grpc.StatusCode.FAILED_PRECONDITION:
            with self._lock:
                self._outdated = True
                others = [other for other in self._latencies.sizes if other != size]
                self._latencies.set_sizes(others)
            request.below = None
            if others:
                return
        elif error.code in _RETRIED:
            return
        raise self._failure(request)

    def _pause(self, request: _Request) -> Generator[Action, Any, None]:
        """Backs off before another attempt; raises if there is no time for one."""
        left_ms = self._left_ms(request)
        pause_ms = 0.0
        error = request.error
        if error.code in _BUSY or isinstance(error, MixedBatchError):
            tries = len(request.attempts) - 1
            longest_ms = min(
                _MOST_PAUSE_MS, max(_LEAST_PAUSE_MS, 0.02 * request.budget_ms * 2**tries)
            )
            pause_ms = self._random.uniform(0.5, 1.0) * longest_ms
        fastest_ms = self._fastest_ms(request.batch_size)
        pause_ms = max(min(pause_ms, left_ms - 2 * fastest_ms), _LEAST_PAUSE_MS if pause_ms else 0)
        if left_ms - pause_ms <= fastest_ms:
            raise self._failure(request)
        if pause_ms:
            yield Wait(pause_ms / 1000)

    def _fastest_ms(self, batch_size: int) -> float:
        """Below this there is no use in asking."""
        choice = self._latencies.choose(batch_size, math.inf)
        return choice.fastest_ms if choice and choice.fastest_ms < math.inf else 0.0

    def _left_ms(self, request: _Request) -> float:
        return request.started_ms + request.budget_ms + self._grace_ms - self._now_ms()

    def _now_ms(self) -> float:
        return 1000 * self._clock()

    def _failure(self, request: _Request) -> BudgetError:
        tried = ", ".join(
            f"{'signatures' if a.size is None else f'size {a.size}'} {a.code} after "
            f"{a.latency_ms:.3g} ms"
            for a in request.attempts
        )
        error = BudgetError(
            f"no answer of {self._model!r} within {request.budget_ms:g} ms ({tried}): "
            f"{request.error}",
            request.attempts,
            request.error.code,
        )
        error.__cause__ = request.error
        return error


def percentile(values: Sequence[float], fraction: float) -> float:
    """Returns the nearest-rank percentile: the least value that `fraction` do not exceed."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]
