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

from hne_tf.client.latency_profile import Choice, Prior, Profile, Ticket
from hne_tf.client.windows import Window, isotonic

_HIGH, _SHARED_HIGH, _TYPICAL, _LOW = 0.9, 0.8, 0.5, 0.25
# Up to this much work in flight, for its own, a request counts as alone: then the time
# that it took does not depend on what is believed of the pace.
_ALONE = 0.25
# Service times: as many as show a 90th percentile, and not older than lets a client
# find out within seconds that a disturbance is over.
_COUNT, _AGE_MS = 64, 4000.0
# Disturbance: fewer and younger, because it has to follow the load.
_SHARED_COUNT, _SHARED_AGE_MS = 16, 2000.0
# What is ahead may take longer than it should, the more so the more it is.
_CAUTION = 1.4
# Weight, in measurements, of what is not sure.
_UNSURE = 0.5
_REFRESH_MS = 50.0
_PROBE_AFTER_MS = 1000.0
# Time for the smallest size that a probe has to leave, and how much too slow a size may seem.
PROBE_ROOM, _PROBE_REACH = 1.5, 4.0
_MOST_PACE, _LEAST_PACE = 4.0, 0.05
# Weight of what is believed of the pace at first, in answers; and how fast answers are forgotten.
_PACE_PRIOR, _PACE_MEMORY = 4.0, 0.98


class _Service:
    """Service times of one ensemble size and batch size."""

    def __init__(self) -> None:
        self.recent = Window(_COUNT, _AGE_MS)
        self.alone = Window(_COUNT)
        self.crowded = Window(_COUNT)
        self.tried_ms = -math.inf

    def add(self, now_ms: float, value: float, alone: bool) -> None:
        """Takes in a service time, which is sure if the request was `alone`."""
        self.recent.add(now_ms, value)
        (self.alone if alone else self.crowded).add(now_ms, value)

    @property
    def measured(self) -> bool:
        """Whether there is any service time."""
        return bool(self.alone or self.crowded)

    @property
    def low_ms(self) -> float:
        """What it takes undisturbed; infinite if it was never measured."""
        if self.alone:
            return self.alone.percentile(_LOW)
        return self.crowded.percentile(_TYPICAL) if self.crowded else math.inf


class _Row:
    """All ensemble sizes at one batch size; `low` and `high` are kept for quick choices."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.services = {size: _Service() for size in sizes}
        self.low: list[float] = []
        self.high: list[float] = []
        self.expiry_ms = -math.inf


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
        self._profile = Profile(prior or {})
        self._clock = clock
        self._headroom = headroom
        self._lock = threading.Lock()
        self._sizes: tuple[int, ...] = ()
        self._rows: dict[int, _Row] = {}
        self._disturbance = Window(_SHARED_COUNT, _SHARED_AGE_MS)
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
        """Sets the ensemble sizes on offer; what is known of those that stay is kept."""
        with self._lock:
            self._sizes = tuple(sorted(sizes))
            for row in self._rows.values():
                row.services = {size: row.services.get(size) or _Service() for size in self._sizes}
                row.expiry_ms = -math.inf

    def estimates_ms(self, batch_size: int) -> dict[int, float]:
        """Estimated latency of each size now; infinite where nothing is known."""
        with self._lock:
            row, waiting_ms, disturbance_ms = self._now(batch_size)
            return {
                size: waiting_ms + max(high, low + disturbance_ms)
                for size, low, high in zip(self._sizes, row.low, row.high, strict=True)
            }

    def choose(self, batch_size: int, budget_ms: float, below: int | None = None) -> Choice:
        """Returns the largest size that fits, or the smallest if none does.

        Args:
          batch_size: images of the request.
          budget_ms: what is left of its budget.
          below: only smaller sizes than this, if there are any.
        """
        with self._lock:
            row, waiting_ms, disturbance_ms = self._now(batch_size)
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
                fits=fits,
                estimate_ms=waiting_ms + estimate_ms,
                smallest_ms=waiting_ms + smallest_ms,
                fastest_ms=low[0],
                waiting_ms=waiting_ms,
                in_flight=len(self._in_flight),
                asked_ago_ms=1000 * self._clock() - row.services[self._sizes[0]].tried_ms,
                probe=probe,
            )

    def sent(self, size: int, batch_size: int) -> Ticket:
        """Takes note of a request that is sent now; `answered` or `failed` must follow."""
        with self._lock:
            row, waiting_ms, disturbance_ms = self._now(batch_size)
            position = bisect.bisect_left(self._sizes, size)
            known = position < len(self._sizes) and row.low[position] < math.inf
            work_ms = row.low[position] if known else 0.0
            now_ms = 1000 * self._clock()
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
        """Takes note of an answer; returns its latency in milliseconds."""
        with self._lock:
            now_ms, latency_ms = self._ended(ticket)
            row = self._row(ticket.batch_size)
            service = row.services.get(ticket.size)
            if service is None:
                return latency_ms
            net_ms = max(0.0, latency_ms - self._pace * ticket.ahead_ms)
            low_ms = row.low[self._sizes.index(ticket.size)]
            if service.measured:
                self._disturbance.add(now_ms, net_ms - low_ms)
            if service.alone:
                self._learn_pace(ticket.ahead_ms, latency_ms - low_ms, low_ms)
            service.add(now_ms, net_ms, ticket.ahead_ms <= _ALONE * ticket.work_ms)
            self._refresh(row, ticket.batch_size, now_ms)
            return latency_ms

    def failed(self, ticket: Ticket, late: bool = False) -> float:
        """Takes note of a request that ended without an answer.

        Args:
          ticket: of the request.
          late: whether it was given up for the time that it took, so that its
            latency is at least what has passed.

        Returns:
          Milliseconds since it was sent.
        """
        with self._lock:
            now_ms, waited_ms = self._ended(ticket)
            if late:
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
        done_ms = (now_ms - self._drained_ms) / self._pace
        self._abandoned_ms = max(0.0, self._abandoned_ms - done_ms)
        self._drained_ms = now_ms

    def _ended(self, ticket: Ticket) -> tuple[float, float]:
        del self._in_flight[ticket]
        # Rounding must not leave work where nothing is in flight.
        self._work_ms = self._work_ms - ticket.work_ms if self._in_flight else 0.0
        now_ms = 1000 * self._clock()
        return now_ms, now_ms - ticket.sent_ms

    @property
    def _pace(self) -> float:
        if self._moments is None:
            return 1.0
        return min(_MOST_PACE, max(_LEAST_PACE, self._moments[0] / self._moments[1]))

    def _learn_pace(self, ahead_ms: float, wait_ms: float, low_ms: float) -> None:
        if self._moments is None:
            self._moments = (_PACE_PRIOR * low_ms**2, _PACE_PRIOR * low_ms**2)
        if ahead_ms > 0 and low_ms > 0:
            # A stalled server says nothing about its pace.
            wait_ms = min(max(0.0, wait_ms), _MOST_PACE * ahead_ms)
            product, square = self._moments
            self._moments = (
                _PACE_MEMORY * product + ahead_ms * wait_ms,
                _PACE_MEMORY * square + ahead_ms**2,
            )

    def _now(self, batch_size: int) -> tuple[_Row, float, float]:
        """The row of a batch size, the wait for own work and the disturbance, up to date."""
        now_ms = 1000 * self._clock()
        row = self._row(batch_size)
        if row.expiry_ms <= now_ms:
            self._refresh(row, batch_size, now_ms)
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

    def _row(self, batch_size: int) -> _Row:
        if batch_size not in self._rows:
            self._rows[batch_size] = _Row(self._sizes)
        return self._rows[batch_size]

    def _refresh(self, row: _Row, batch_size: int, now_ms: float) -> None:
        """Recomputes a row's percentiles so that larger sizes never count as faster."""
        low: list[float] = []
        high: list[float] = []
        low_weights, high_weights = [], []
        row.expiry_ms = math.inf
        for size, service in row.services.items():
            service.recent.expire(now_ms)
            row.expiry_ms = min(row.expiry_ms, service.recent.expiry_ms)
            low.append(self._low_ms(row, batch_size, size))
            high.append(service.recent.percentile(_HIGH) if service.recent else low[-1])
            low_weights.append(len(service.alone) or _UNSURE)
            high_weights.append(len(service.recent) or _UNSURE)
        # A choice must not pay for every number that leaves a window.
        row.expiry_ms = max(row.expiry_ms, now_ms + _REFRESH_MS)
        row.low = isotonic(low, low_weights)
        row.high = list(map(max, isotonic(high, high_weights), row.low))

    def _low_ms(self, row: _Row, batch_size: int, size: int) -> float:
        """Service time of a size undisturbed; infinite if unknown."""
        service = row.services[size]
        if not service.measured:
            return self._guess(row, batch_size, size)
        if service.alone:
            return service.low_ms
        # Behind others its time is only what is left of a latency, which may be anything.
        # But k times the leaves cost at least as much, and at most k times as much.
        sure = [(other, known.low_ms) for other, known in row.services.items() if known.alone]
        least_ms = max((low * min(1.0, size / other) for other, low in sure), default=0.0)
        most_ms = min((low * max(1.0, size / other) for other, low in sure), default=math.inf)
        return max(least_ms, min(most_ms, service.low_ms))

    def _guess(self, row: _Row, batch_size: int, size: int) -> float:
        """Service time of a size that was not measured at this batch size; infinite if unknown."""
        measured = [other for other, service in row.services.items() if service.measured]
        if measured:
            # The nearest smaller size, whose cost bounds that of a larger; or the smallest.
            other = max((m for m in measured if m < size), default=measured[0])
            known_ms = row.services[other].low_ms
            return known_ms * self._profile.ratio(batch_size, other, size)
        if size in (profile := self._profile.row(batch_size)):
            return profile[size]
        # The nearest batch size that says something of this size, smaller ones first.
        for other in sorted(
            self._rows, key=lambda rows: (rows > batch_size, abs(rows - batch_size))
        ):
            service = self._rows[other].services.get(size)
            if service and service.measured:
                return service.low_ms * max(1.0, batch_size / other)
        return math.inf

    def _probes(self, row: _Row, position: int, room_ms: float, smallest_ms: float) -> bool:
        """Whether to ask the size above `position`, which does not fit by its estimate.

        Only if it was not asked for a while, nothing else is in flight, and there
        is room to answer from the smallest size after all.
        """
        if self._in_flight or row.high[position] + PROBE_ROOM * smallest_ms > room_ms:
            return False
        if row.low[position + 1] > _PROBE_REACH * room_ms:
            return False
        above = row.services[self._sizes[position + 1]]
        return 1000 * self._clock() - above.tried_ms >= _PROBE_AFTER_MS
