"""Open-loop load in numbers: arrivals, outcomes, the knee and the bars. No server needed."""

import collections
import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hne_tf.client.policy import percentile
from hne_tf.errors import InputError

MISSES_AT_KNEE = 0.05
_RECOVERED_ANSWERS = 20
# Of the whole fall in mean size, what may happen between two neighbouring loads.
_MOST_IN_ONE_STEP = 2 / 3


class Outcome(enum.Enum):
    """What became of a request; every arrival has just one."""

    INSIDE = "inside"  # answered within its budget
    LATE = "late"  # answered after its budget, or given up when it was spent
    REJECTED = "rejected"  # refused by the server or the client for want of capacity
    FAILED = "failed"  # anything else


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """A request and what became of it.

    Attributes:
      scheduled_s: when it was to be sent, from the start of the run.
      latency_ms: from then until its answer, or until it was given up.
      outcome: what became of it.
      size: ensemble size of the answer; None without one.
      lag_ms: how late the generator sent it; part of `latency_ms`.
    """

    scheduled_s: float
    latency_ms: float
    outcome: Outcome
    size: int | None = None
    lag_ms: float = 0.0


@dataclasses.dataclass(frozen=True)
class Point:
    """One client at one load.

    Attributes:
      client: `"fixed"` or `"adaptive"`.
      load: requests offered per second.
      arrivals: requests that were sent.
      outcomes: how many of them ended how.
      goodput: answers inside the budget per second.
      p50_ms: median latency from scheduled arrival, of all requests.
      p99_ms: its 99th percentile.
      mean_size: of the answers inside the budget; NaN without any, as below.
      full_share: share of these that are of the full ensemble.
      accuracy: expected of these, from the accuracy of each size.
      lag_p99_ms: 99th percentile of the generator's own lateness.
    """

    client: str
    load: float
    arrivals: int
    outcomes: Mapping[Outcome, int]
    goodput: float
    p50_ms: float
    p99_ms: float
    mean_size: float
    full_share: float
    accuracy: float
    lag_p99_ms: float

    @property
    def inside(self) -> float:
        """Share of all requests that were answered inside the budget."""
        return self.outcomes[Outcome.INSIDE] / self.arrivals

    @property
    def right_in_time(self) -> float:
        """Share of all requests that are expected to have a right answer inside the budget."""
        return self.inside * self.accuracy if self.outcomes[Outcome.INSIDE] else 0.0


@dataclasses.dataclass(frozen=True)
class Bar:
    """A number beside the least that it should be; `met` is None where it was not measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None


def arrivals(load: float, seconds: float, seed: int) -> np.ndarray:
    """Times in seconds of a Poisson process of `load` events per second, drawn in advance."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(load * seconds)
    return np.sort(generator.uniform(0.0, seconds, count))


def summarise(
    client: str,
    load: float,
    requests: Sequence[Request],
    arrivals: int,
    seconds: float,
    accuracy: Mapping[int, float],
) -> Point:
    """Adds up what became of the requests of one run.

    Args:
      client: `"fixed"` or `"adaptive"`.
      load: requests offered per second.
      requests: all that arrived within `seconds`.
      arrivals: how many were scheduled then: no request may be lost.
      seconds: what the rates are over.
      accuracy: of each ensemble size on held-out data.
    """
    counted = collections.Counter(request.outcome for request in requests)
    outcomes = {outcome: counted[outcome] for outcome in Outcome}
    # Not an assert statement: this also has to hold under python -O.
    if not sum(outcomes.values()) == len(requests) == arrivals:
        raise AssertionError(f"{arrivals} arrivals have the outcomes {outcomes}")
    if not requests:
        raise InputError(f"a load must bring at least one request in its time, got {load:g}/s")
    sizes = [request.size for request in requests if request.outcome is Outcome.INSIDE]
    latencies = [request.latency_ms for request in requests]
    answered = np.array(sizes, float) if sizes else np.array([math.nan])
    return Point(
        client=client,
        load=load,
        arrivals=arrivals,
        outcomes=outcomes,
        goodput=outcomes[Outcome.INSIDE] / seconds,
        p50_ms=percentile(latencies, 0.5),
        p99_ms=percentile(latencies, 0.99),
        mean_size=float(answered.mean()),
        full_share=sizes.count(max(accuracy)) / len(sizes) if sizes else math.nan,
        accuracy=float(np.mean([accuracy[size] for size in sizes])) if sizes else math.nan,
        lag_p99_ms=percentile([request.lag_ms for request in requests], 0.99),
    )


def find_knee(
    misses: Callable[[float], float], start: float, growth: float = 1.5, bisections: int = 4
) -> float:
    """The load at which misses first reach 5%.

    Args:
      misses: runs a load, in requests per second, and returns the share of misses.
      start: a load to start with.
      growth: factor between loads until the knee is between two of them.
      bisections: how often that interval is halved.

    Raises:
      InputError: if no load within a factor of 1,000 of `start` is on either side.
    """
    low, high = 0.0, start
    while misses(high) < MISSES_AT_KNEE:
        low, high = high, high * growth
        if high > 1000 * start:
            raise InputError(f"--budget_ms must be missed at some load, got none up to {low:g}/s")
    while low == 0.0:
        below = high / growth
        if misses(below) < MISSES_AT_KNEE:
            low = below
        else:
            high = below
        if high < start / 1000:
            raise InputError("--budget_ms must allow the full ensemble on an idle server")
    for _ in range(bisections):
        middle = math.sqrt(low * high)
        if misses(middle) < MISSES_AT_KNEE:
            low = middle
        else:
            high = middle
    return high


def knee_between(points: Sequence[Point]) -> float | None:
    """The load at which the fixed client's misses reach 5%, between the measured loads."""
    fixed = sorted((p for p in points if p.client == "fixed"), key=lambda point: point.load)
    for before, after in zip([None, *fixed[:-1]], fixed, strict=True):
        if 1 - after.inside < MISSES_AT_KNEE:
            continue
        if before is None:
            return None
        rise = before.inside - after.inside
        part = (before.inside - (1 - MISSES_AT_KNEE)) / rise
        return before.load + part * (after.load - before.load)
    return None


def recovery_s(requests: Sequence[Request], switch_s: float, full: int) -> float:
    """Seconds from the fall of the load until answers come from the full ensemble again.

    That is the arrival of the first of twenty answers in a row of which nineteen
    are of the full size.

    Args:
      requests: of the whole run, in order of arrival.
      switch_s: when the load fell.
      full: the full size.

    Returns:
      The seconds, infinite if it did not happen.
    """
    after = [r for r in requests if r.scheduled_s >= switch_s and r.outcome is Outcome.INSIDE]
    for first in range(len(after) - _RECOVERED_ANSWERS + 1):
        window = after[first : first + _RECOVERED_ANSWERS]
        if after[first].size == full and sum(r.size == full for r in window) >= 19:
            return after[first].scheduled_s - switch_s
    return math.inf


def bars(
    points: Sequence[Point], knee: float | None, recovered_s: float | None, times_as_long: float
) -> list[Bar]:
    """What the model and the adaptive client should reach, beside what they did.

    Args:
      points: of both clients.
      knee: the load where the fixed client begins to miss; None if it did not.
      recovered_s: see `recovery_s`; None if that was not measured.
      times_as_long: what the full ensemble takes on an idle server, in times of the smallest.
    """
    adaptive = sorted((p for p in points if p.client == "adaptive"), key=lambda point: point.load)

    def at(factor: float) -> Point | None:
        for point in adaptive:
            if knee and math.isclose(point.load, factor * knee, rel_tol=0.02):
                return point
        return None

    twice, half = at(2.0), at(0.5)
    return [
        Bar(
            "time of the full ensemble against the smallest",
            "5 times or more",
            f"{times_as_long:.1f} times",
            times_as_long >= 5.0,
        ),
        Bar(
            "answers inside the budget at 2 x knee",
            "99% or more",
            f"{twice.inside:.2%}" if twice else "not measured",
            twice.inside >= 0.99 if twice else None,
        ),
        Bar(
            "answers of the full ensemble at 0.5 x knee",
            "95% or more",
            f"{half.full_share:.2%}" if half else "not measured",
            half.full_share >= 0.95 if half else None,
        ),
        _smooth_fall([p for p in adaptive if knee and 0.49 * knee <= p.load <= 2.04 * knee]),
        Bar(
            "back at the full ensemble after 2 x knee",
            "within 10 s",
            "not measured" if recovered_s is None else f"{recovered_s:.1f} s",
            None if recovered_s is None else recovered_s <= 10.0,
        ),
    ]


def _smooth_fall(falling: Sequence[Point]) -> Bar:
    """Whether mean size and accuracy fall from load to load, the size in more than one step."""
    what, wanted = "mean size and accuracy from 0.5 to 2 x knee", "fall smoothly"
    pairs = list(itertools.pairwise(falling))
    if len(pairs) < 2:
        return Bar(what, wanted, "not measured", None)
    # A request more or less of another size is no rise.
    rises = [
        f"{before.load:.1f} to {after.load:.1f}/s"
        for before, after in pairs
        if not after.mean_size <= 1.03 * before.mean_size
        or not after.accuracy <= before.accuracy + 0.001
    ]
    if rises:
        return Bar(what, wanted, f"rise from {', '.join(rises)}", False)
    fall = falling[0].mean_size - falling[-1].mean_size
    steepest = max(before.mean_size - after.mean_size for before, after in pairs)
    part = steepest / fall if fall > 0 else 0.0
    measured = f"fall, at most {part:.0%} of it from one load to the next"
    return Bar(what, wanted, measured, part <= _MOST_IN_ONE_STEP)
