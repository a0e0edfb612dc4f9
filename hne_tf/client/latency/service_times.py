"""What the ensemble sizes take by themselves, by batch size: windows and their percentiles."""

import math
from collections.abc import Iterable

from hne_tf.client.latency.profile import Profile
from hne_tf.client.latency.windows import SlidingWindow, isotonic
from hne_tf.errors import InputError

_HIGH, _TYPICAL, _LOW = 0.9, 0.5, 0.25
# Service times: as many as show a 90th percentile, and not older than lets a client
# find out within seconds that a disturbance is over.
_COUNT, _AGE_MS = 64, 4000.0
# Weight, in measurements, of what is not sure.
_UNSURE = 0.5
_REFRESH_MS = 50.0


class _Service:
    """Service times of one ensemble size and batch size."""

    def __init__(self) -> None:
        self.recent = SlidingWindow(_COUNT, _AGE_MS)
        self.alone = SlidingWindow(_COUNT)
        self.crowded = SlidingWindow(_COUNT)
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


class Row:
    """All ensemble sizes at one batch size; `low` and `high`, one each, are for quick choices."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self.services = {size: _Service() for size in sizes}
        self.low: list[float] = []
        self.high: list[float] = []
        self.expiry_ms = -math.inf


class ServiceTimes:
    """Service times of all ensemble sizes, a row for each batch size; not thread-safe.

    Args:
      profile: where to start from.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._sizes: tuple[int, ...] = ()
        self._rows: dict[int, Row] = {}

    def set_sizes(self, sizes: tuple[int, ...], now_ms: float) -> None:
        """Sets the ensemble sizes, in order; what is known of those that stay is kept."""
        self._sizes = sizes
        for row in self._rows.values():
            row.services = {size: row.services.get(size) or _Service() for size in sizes}
        # Only now, because a guess looks at the other rows.
        for batch_size in self._rows:
            self.refresh(batch_size, now_ms)

    def row(self, batch_size: int, now_ms: float) -> Row:
        """The row of a batch size, up to date.

        Raises:
          InputError: for a batch size below 1.
        """
        row = self._rows.get(batch_size)
        if row is None:
            if not batch_size >= 1:
                raise InputError(f"batch size must be 1 or more, got {batch_size}")
            row = self._rows[batch_size] = Row(self._sizes)
        if row.expiry_ms <= now_ms:
            self.refresh(batch_size, now_ms)
        return row

    def refresh(self, batch_size: int, now_ms: float) -> None:
        """Recomputes a row's percentiles so that larger sizes never count as faster."""
        row = self._rows[batch_size]
        low: list[float] = []
        high: list[float] = []
        low_weights, high_weights = [], []
        # Until a row has measurements of its own, those of others are news to it.
        measured = any(service.measured for service in row.services.values())
        row.expiry_ms = math.inf if measured else now_ms
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

    def _low_ms(self, row: Row, batch_size: int, size: int) -> float:
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

    def _guess(self, row: Row, batch_size: int, size: int) -> float:
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
