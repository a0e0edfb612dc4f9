"""Sliding windows and what makes sequences of their percentiles sound, in pure Python."""

import bisect
import collections
import math
from collections.abc import Sequence


class SlidingWindow:
    """A sliding window of numbers, sorted all the time.

    Args:
      count: the most it holds.
      age_ms: how long it holds each.
    """

    def __init__(self, count: int, age_ms: float = math.inf) -> None:
        self._count = count
        self._age_ms = age_ms
        self._entries: collections.deque[tuple[float, float]] = collections.deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def expiry_ms(self) -> float:
        """When the oldest number leaves; infinite if there is none."""
        return self._entries[0][0] + self._age_ms if self._entries else math.inf

    def add(self, now_ms: float, value: float) -> None:
        """Takes a number in; the oldest leaves if the window is full."""
        if len(self._entries) == self._count:
            self._drop()
        self._entries.append((now_ms, value))
        bisect.insort(self._sorted, value)

    def expire(self, now_ms: float) -> None:
        """Lets go of what is too old."""
        while self._entries and self._entries[0][0] + self._age_ms <= now_ms:
            self._drop()

    def percentile(self, fraction: float) -> float:
        """The nearest-rank percentile; the window must hold something."""
        return self._sorted[max(0, math.ceil(fraction * len(self._sorted)) - 1)]

    def _drop(self) -> None:
        _, value = self._entries.popleft()
        del self._sorted[bisect.bisect_left(self._sorted, value)]


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls: neighbours that do are averaged by weight.

    A few measurements of one size then cannot raise what many say of a larger one.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        count = 1
        while blocks and blocks[-1][0] > value:
            mean, total, members = blocks.pop()
            value = (mean * total + value * weight) / (total + weight)
            weight += total
            count += members
        blocks.append((value, weight, count))
    return [value for value, _, count in blocks for _ in range(count)]
