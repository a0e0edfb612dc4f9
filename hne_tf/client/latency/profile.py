"""What latency estimates take in and give out, and the profile that they start from."""

import dataclasses
from collections.abc import Mapping

# Milliseconds by batch size and ensemble size, as a profile gives them.
Prior = Mapping[int, Mapping[int, float]]


class Profile:
    """Latencies that were measured elsewhere: good for ratios, and better than nothing.

    Args:
      prior: the measurements; may be empty.
    """

    def __init__(self, prior: Prior) -> None:
        self._prior = prior

    def row(self, batch_size: int) -> Mapping[int, float]:
        """Milliseconds by ensemble size, scaled from the nearest smaller batch or the smallest."""
        if batch_size in self._prior or not self._prior:
            return self._prior.get(batch_size, {})
        nearest = max((b for b in self._prior if b < batch_size), default=min(self._prior))
        factor = max(1.0, batch_size / nearest)
        return {size: factor * value for size, value in self._prior[nearest].items()}

    def ratio(self, batch_size: int, known: int, size: int) -> float:
        """How many times as long as size `known` another takes; without a profile, at most."""
        row = self.row(batch_size)
        if known in row and size in row:
            return row[size] / row[known]
        return max(1.0, size / known)


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """A request in flight.

    Attributes:
      size: its ensemble size.
      batch_size: its number of images.
      sent_ms: when it was sent.
      work_ms: service time that it is expected to take.
      ahead_ms: service time of the requests that were in flight when it was sent.
      expected_ms: the latency that was expected of it.
    """

    size: int
    batch_size: int
    sent_ms: float
    work_ms: float
    ahead_ms: float
    expected_ms: float


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The ensemble size for a budget.

    Attributes:
      size: the size.
      is_smallest: whether there is no smaller size.
      fits: whether its estimate is within the budget.
      estimate_ms: estimated latency of the largest size that fits, or of the smallest.
      smallest_ms: estimated latency of the smallest size.
      fastest_ms: what the smallest size takes when nothing disturbs it.
      waiting_ms: wait for the requests in flight.
      in_flight: this client's requests that were sent and have not ended.
      asked_ago_ms: time since the smallest size was last asked for; may be infinite.
      probe: whether `size` is the one above what fits, to find out whether it would.
    """

    size: int
    is_smallest: bool
    fits: bool
    estimate_ms: float
    smallest_ms: float
    fastest_ms: float
    waiting_ms: float
    in_flight: int
    asked_ago_ms: float
    probe: bool
