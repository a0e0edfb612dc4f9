"""One request over several hosts from its plan to its answer, without sending anything itself."""

import functools
import time
from collections.abc import Mapping
from typing import Protocol

import grpc
import numpy as np

from hne_tf.client.spread import sums
from hne_tf.client.spread.answers import PartAttempt, SpreadAnswer
from hne_tf.client.spread.gathering import Gathering, PartCall
from hne_tf.client.spread.hosts import SpreadHosts
from hne_tf.client.spread.plan import Plan
from hne_tf.exported.interface import TEMPERATURES, sum_output

# What says that the host serves something else than it told.
_OUTDATED = frozenset({grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION})
# What no host would answer otherwise.
_FINAL = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED})


class Coded(Protocol):
    """Why a call has failed: its text says it, and `code` is the gRPC status."""

    code: grpc.StatusCode


class Spreading:
    """A request, until when it is to be answered, and what has become of its calls.

    Whoever drives it, with threads or asyncio, calls `begin` with a plan. While it
    `is_waiting`, the driver sends what `calls` gives, and says of each call that ends
    whether its part was `computed` or it has `failed`. Then comes `give_up`. If nothing
    `came`, there may be time for another plan.

    Args:
      hosts: of the model; they are told what becomes of the calls.
      rows: images of the request, or what stands for so many, for latencies.
      started_s: when the request came, on the clock of `time.perf_counter`.
      end_s: when it is to be answered, on the same clock.

    Attributes:
      attempts: calls that have ended.
      error: of the call that failed last.
    """

    def __init__(self, hosts: SpreadHosts, rows: int, started_s: float, end_s: float) -> None:
        self._hosts = hosts
        self._rows = rows
        self._started_s = started_s
        self._end_s = end_s
        self._began_s: dict[PartCall, float] = {}
        self._plan: Plan | None = None
        self._gathering: Gathering[Mapping[str, np.ndarray]] | None = None
        self.attempts: list[PartAttempt] = []
        self.error: Coded | None = None

    @property
    def left_s(self) -> float:
        """Seconds until it is to be answered."""
        return self._end_s - time.perf_counter()

    @property
    def is_hopeless(self) -> bool:
        """Whether no host would answer it."""
        return self.error is not None and self.error.code in _FINAL

    @property
    def came(self) -> bool:
        """Whether there is a part to answer with."""
        return self._gathering is not None and bool(self._gathering.came)

    @property
    def is_waiting(self) -> bool:
        """Whether calls are under way that the answer is to wait for."""
        under_way = self._gathering is not None and bool(self._gathering.under_way)
        return under_way and (self.came or not self.is_hopeless)

    def begin(self, plan: Plan) -> None:
        """Begins to gather the parts of a plan."""
        self._plan = plan
        self._gathering = Gathering(
            plan,
            self._hosts.up(),
            self._hosts.loads(),
            functools.partial(self._hosts.expected_s, self._rows),
        )

    def calls(self) -> list[PartCall]:
        """The calls to send now."""
        found = self._gathering.calls(self.left_s)
        for call in found:
            self._began_s[call] = time.perf_counter()
            self._hosts.sent(call.address)
        return found

    def computed(self, call: PartCall, arrays: Mapping[str, np.ndarray]) -> None:
        """A call has brought the outputs of its part."""
        latency_s = self._end(call, "OK")
        self._gathering.computed(call, arrays)
        self._hosts.computed(self._rows, call.address, call.part, latency_s)

    def failed(self, call: PartCall, error: Coded) -> None:
        """A call has failed."""
        self.error = error
        self._end(call, error.code.name)
        self._gathering.failed(call)
        if error.code in _OUTDATED:
            self._hosts.outdated(call.address)
        elif error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._late(call)
        elif error.code not in _FINAL:
            self._hosts.failed(call.address)

    def give_up(self) -> None:
        """Nobody waits any more for the calls that are under way."""
        late = self.left_s <= 0
        for call in self._gathering.under_way if self._gathering else ():
            self._end(call, "DEADLINE_EXCEEDED" if late else "CANCELLED")
            if late:
                self._late(call)

    def answer(self) -> SpreadAnswer:
        """The answer of the parts that came, at least one."""
        plan, came = self._plan, self._gathering.came
        parts = sorted(came)
        size = sum(part.size for part in parts)
        totals = [came[part][sum_output(plan.average)] for part in parts]
        temperatures = came[parts[0]].get(TEMPERATURES)
        return SpreadAnswer(
            sums.probabilities(totals, size, plan.average, temperatures),
            tuple((part.first, part.stop) for part in parts),
            plan.leaves,
            plan.version,
            1000 * (time.perf_counter() - self._started_s),
            tuple(self.attempts),
        )

    def _end(self, call: PartCall, code: str) -> float:
        """Takes note of a call that has ended; returns the seconds that it took."""
        latency_s = time.perf_counter() - self._began_s.pop(call)
        self._hosts.ended(call.address)
        leaves = (call.part.first, call.part.stop)
        self.attempts.append(PartAttempt(call.address, leaves, code, 1000 * latency_s))
        return latency_s

    def _late(self, call: PartCall) -> None:
        # If nobody was in time, the deadline was short or all are busy: none is worse.
        if self.came:
            self._hosts.failed(call.address)


def part_fault(
    plan: Plan, call: PartCall, rows: int, version: int, arrays: Mapping[str, np.ndarray]
) -> tuple[str, grpc.StatusCode] | None:
    """Why the outputs of a part cannot be in an answer; None if they can.

    Args:
      plan: that the call is of.
      call: that brought them.
      rows: images of the request.
      version: of the model that computed them.
      arrays: the outputs.
    """
    if version != plan.version:
        return (
            f"all leaves must be of version {plan.version}, got some of version "
            f"{version} from {call.address}",
            grpc.StatusCode.NOT_FOUND,
        )
    shape = arrays[sum_output(plan.average)].shape
    if len(shape) != 2 or shape[0] != rows:
        return (
            f"{call.part.signature} must give sums [{rows}, classes], "
            f"got {list(shape)} from {call.address}",
            grpc.StatusCode.INTERNAL,
        )
    return None
