"""What an answer of each ensemble size would take now: live estimates, in pure Python.

A latency has two parts. The *service* part belongs to the ensemble size and the
batch size and changes slowly. The *waiting* part, time in queues, is common to all
sizes and changes within a few requests. So they are estimated apart:

- Waiting for this client's own requests is `pace` x the service time of those in
  flight, which is known without any lag; `pace` is learned (about 1 for a server
  that takes one request at a time, less for one that takes several).
- What else delays answers of any size, such as other clients, is the *disturbance*:
  a high percentile of how much longer the latest answers took than explained.
- What is left of a latency after the wait is the service time. Its low percentile
  is what the size takes when nothing disturbs it, its high percentile over the last
  seconds what it takes now.

    estimate = pace x work in flight + max(high percentile, low percentile + disturbance)
"""

import bisect
import math
import threading
import time
from collections.abc import Callable, Iterable

from hne_tf.client.latency.profile import Choice, Prior, Profile, Ticket
from hne_tf.client.latency.service_times import Row, ServiceTimes
from hne_tf.client.latency.windows import SlidingWindow
from hne_tf.errors import InputError

_SHARED_HIGH = 0.8
# Up to this much work in flight, for its own, a request counts as alone: then the time
# that it took does not depend on what is believed of the pace.
_ALONE = 0.25
# Disturbance: fewer and younger than service times, because it has to follow the load.
_SHARED_COUNT, _SHARED_AGE_MS = 16, 2000.0
# What is ahead may take longer than it should, the more so the more it is.
_CAUTION = 1.4
_PROBE_AFTER_MS = 1000.0
# Time for the smallest size that a probe has to leave, and how much too slow a size may seem.
PROBE_ROOM, _PROBE_REACH = 1.5, 4.0
_MOST_PACE, _LEAST_PACE = 4.0, 0.05
# Clocks cannot tell shorter work from none, so it says nothing of the pace.
_LEAST_WORK_MS = 1e-6
# Weight of what is believed of the pace at first, in answers; and how fast answers are forgotten.
_PACE_PRIOR, _PACE_MEMORY = 4.0, 0.98


class Latencies:
    """Live latency estimates of one model behind one address; thread-safe.

    Args:
      prior: where to start from. Without it nothing is known of a size before
        the smallest was measured; then k times a measured size is taken to cost
        at most k times as much, which is true of trees.
      clock: seconds.
      headroom: share of a budget that an estimate may fill. The rest is for what
        no estimate foresees: the answers of the near future.
    """

    def __init__(
        self,
        prior: Prior | None = None,
        clock: Callable[[], float] = time.perf_counter,
        headroom: float = 0.85,
    ) -> None:
        self._services = ServiceTimes(Profile(prior or {}))
        self._clock = clock
        self._headroom = headroom
        self._lock = threading.Lock()
        self._sizes: tuple[int, ...] = ()
        self._disturbance = SlidingWindow(_SHARED_COUNT, _SHARED_AGE_MS)
        self._in_flight: dict[Ticket, None] = {}
        self._work_ms = 0.0
        self._abandoned_ms = 0.0
        self._drained_ms = 0.0
        # Sums of work x wait and work x work, of which the quotient is the pace.
        self._moments: tuple[float, float] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The ensemble sizes on offer, in order; empty until they are set."""
        return self._sizes

    def set_sizes(self, sizes: Iterable[int]) -> None:
        """Sets the ensemble sizes on offer; what is known of those that stay is kept.

        Raises:
          InputError: unless sizes are 1 or more.
        """
        ordered = tuple(sorted(set(sizes)))
        if ordered and ordered[0] < 1:
            raise InputError(f"ensemble sizes must be 1 or more, got {list(ordered)}")
        with self._lock:
            self._sizes = ordered
            self._services.set_sizes(ordered, self._now_ms())

    def estimates_ms(self, batch_size: int) -> dict[int, float]:
        """Estimated latency of each size now; infinite where nothing is known.

        Raises:
          InputError: for a batch size below 1.
        """
        with self._lock:
            row, waiting_ms, disturbance_ms = self._now(batch_size)
            return {
                size: waiting_ms + max(high, low + disturbance_ms)
                for size, low, high in zip(self._sizes, row.low, row.high, strict=True)
            }

    def choose(self, batch_size: int, budget_ms: float, below: int | None = None) -> Choice | None:
        """Returns the largest size that fits, or the smallest if none does; None without sizes.

        Args:
          batch_size: images of the request.
          budget_ms: what is left of its budget.
          below: only smaller sizes than this, if there are any.

        Raises:
          InputError: for a batch size below 1.
        """
        with self._lock:
            row, waiting_ms, disturbance_ms = self._now(batch_size)
            if not self._sizes:
                return None
            low, high = row.low, row.high
            room_ms = self._headroom * budget_ms - waiting_ms
            last = len(low) - 1
            if below is not None:
                last = max(0, bisect.bisect_left(self._sizes, below) - 1)
            position = last
            while position and not max(high[position], low[position] + disturbance_ms) <= room_ms:
                position -= 1
            smallest_ms = max(high[0], low[0] + disturbance_ms)
            estimate_ms = max(high[position], low[position] + disturbance_ms)
            fits = estimate_ms <= room_ms
            probe = (
                fits
                and below is None
                and position < last
                and self._probes(row, position, room_ms, smallest_ms)
            )
            return Choice(
                size=self._sizes[position + probe],
                is_smallest=position + probe == 0,
                fits=fits,
                estimate_ms=waiting_ms + estimate_ms,
                smallest_ms=waiting_ms + smallest_ms,
                fastest_ms=low[0],
                waiting_ms=waiting_ms,
                in_flight=len(self._in_flight),
                asked_ago_ms=self._now_ms() - row.services[self._sizes[0]].tried_ms,
                probe=probe,
            )

    def sent(self, size: int, batch_size: int) -> Ticket:
        """Takes note of a request that is sent now; `answered` or `failed` must follow.

        Raises:
          InputError: for a batch size below 1.
        """
        with self._lock:
            row, waiting_ms, disturbance_ms = self._now(batch_size)
            position = bisect.bisect_left(self._sizes, size)
            known = position < len(self._sizes) and row.low[position] < math.inf
            work_ms = row.low[position] if known else 0.0
            now_ms = self._now_ms()
            ticket = Ticket(
                size,
                batch_size,
                now_ms,
                work_ms,
                self._work_ms,
                waiting_ms + work_ms + disturbance_ms,
            )
            self._in_flight[ticket] = None
            self._work_ms += work_ms
            if size in row.services:
                row.services[size].tried_ms = now_ms
            return ticket

    def answered(self, ticket: Ticket) -> float:
        """Takes note of an answer; returns its latency in milliseconds.

        Of a request that has ended before it takes no note.
        """
        with self._lock:
            now_ms, latency_ms, first = self._ended(ticket)
            row = self._services.row(ticket.batch_size, now_ms)
            service = row.services.get(ticket.size)
            if not first or service is None:
                return latency_ms
            net_ms = max(0.0, latency_ms - self._pace * ticket.ahead_ms)
            low_ms = row.low[self._sizes.index(ticket.size)]
            if service.measured:
                self._disturbance.add(now_ms, net_ms - low_ms)
            if service.alone:
                self._learn_pace(ticket.ahead_ms, latency_ms - low_ms, low_ms)
            service.add(now_ms, net_ms, ticket.ahead_ms <= _ALONE * ticket.work_ms)
            self._services.refresh(ticket.batch_size, now_ms)
            return latency_ms

    def failed(self, ticket: Ticket, late: bool = False) -> float:
        """Takes note of a request that ended without an answer.

        Of a request that has ended before it takes no note, so that a `finally`
        can end whatever is still in flight.

        Args:
          ticket: of the request.
          late: whether it was given up for the time that it took, so that its
            latency is at least what has passed.

        Returns:
          Milliseconds since it was sent.
        """
        with self._lock:
            now_ms, waited_ms, first = self._ended(ticket)
            if first and late:
                # The server may well compute what nobody waits for any more.
                self._drain(now_ms)
                self._abandoned_ms += ticket.work_ms
                wait_ms = waited_ms - ticket.work_ms
                beyond_ms = wait_ms - self._pace * ticket.ahead_ms
                self._disturbance.add(now_ms, max(0.0, beyond_ms))
                if beyond_ms > 0:
                    self._learn_pace(ticket.ahead_ms, wait_ms, ticket.work_ms)
            return waited_ms

    def _drain(self, now_ms: float) -> None:
        """Lets the server get on with abandoned requests."""
        done_ms = max(0.0, now_ms - self._drained_ms) / self._pace
        self._abandoned_ms = max(0.0, self._abandoned_ms - done_ms)
        self._drained_ms = now_ms

    def _ended(self, ticket: Ticket) -> tuple[float, float, bool]:
        """Now, the time since the ticket's request was sent, and whether it ends now."""
        now_ms = self._now_ms()
        first = ticket in self._in_flight
        if first:
            del self._in_flight[ticket]
            # Rounding must not leave work where nothing is in flight.
            work_ms = self._work_ms - ticket.work_ms if self._in_flight else 0.0
            self._work_ms = max(0.0, work_ms)
        return now_ms, max(0.0, now_ms - ticket.sent_ms), first

    @property
    def _pace(self) -> float:
        if self._moments is None:
            return 1.0
        return min(_MOST_PACE, max(_LEAST_PACE, self._moments[0] / self._moments[1]))

    def _learn_pace(self, ahead_ms: float, wait_ms: float, low_ms: float) -> None:
        if min(ahead_ms, low_ms) < _LEAST_WORK_MS:
            return
        prior = _PACE_PRIOR * low_ms**2
        product, square = self._moments or (prior, prior)
        # A stalled server says nothing about its pace.
        wait_ms = min(max(0.0, wait_ms), _MOST_PACE * ahead_ms)
        self._moments = (
            _PACE_MEMORY * product + ahead_ms * wait_ms,
            _PACE_MEMORY * square + ahead_ms**2,
        )

    def _now(self, batch_size: int) -> tuple[Row, float, float]:
        """The row of a batch size, the wait for own work and the disturbance, up to date."""
        now_ms = self._now_ms()
        row = self._services.row(batch_size, now_ms)
        self._disturbance.expire(now_ms)
        disturbance_ms = (
            max(0.0, self._disturbance.percentile(_SHARED_HIGH)) if self._disturbance else 0.0
        )
        if self._in_flight:
            oldest = next(iter(self._in_flight))
            # An answer that is overdue says already what it will say when it comes.
            overdue_ms = now_ms - oldest.sent_ms - oldest.expected_ms
            if oldest.work_ms and overdue_ms > 0:
                disturbance_ms = max(disturbance_ms, overdue_ms)
        if self._abandoned_ms:
            self._drain(now_ms)
        ahead_ms = self._work_ms + self._abandoned_ms
        return row, _CAUTION * self._pace * ahead_ms, disturbance_ms

    def _now_ms(self) -> float:
        return 1000 * self._clock()

    def _probes(self, row: Row, position: int, room_ms: float, smallest_ms: float) -> bool:
        """Whether to ask the size above `position`, which does not fit by its estimate.

        Only if it was not asked for a while, nothing else is in flight, and there
        is room to answer from the smallest size after all.
        """
        if self._in_flight or row.high[position] + PROBE_ROOM * smallest_ms > room_ms:
            return False
        if row.low[position + 1] > _PROBE_REACH * room_ms:
            return False
        above = row.services[self._sizes[position + 1]]
        return self._now_ms() - above.tried_ms >= _PROBE_AFTER_MS
