"""Which ensemble size a time budget allows, in pure Python."""

import dataclasses
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from hne_tf.errors import InputError

# An ensemble's latency is the nearest-rank 95th percentile of this many calls, so
# the worst of them is left out: one hiccup must not cost every later answer a size.
TIMED_CALLS = 20
WARM_UP_CALLS = 3


@dataclasses.dataclass(frozen=True)
class BudgetPolicy:
    """Estimated latency per ensemble size, from call to answer.

    Attributes:
      latency_ms: milliseconds by size, in order of size. Given in any order and
        with noise; kept as the running maximum, so that a larger size never
        counts as faster than a smaller one.

    Raises:
      InputError: if there is no size.
    """

    latency_ms: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.latency_ms:
            raise InputError("a budget needs at least one ensemble size, got none")
        sizes = sorted(self.latency_ms)
        estimates = itertools.accumulate((self.latency_ms[size] for size in sizes), max)
        object.__setattr__(self, "latency_ms", dict(zip(sizes, estimates, strict=True)))

    def choose(self, budget_ms: float) -> int:
        """Returns the largest size whose estimated latency is within `budget_ms`.

        Raises:
          InputError: if the budget is not positive or no size fits.
        """
        if not budget_ms > 0:
            raise InputError(f"budget must be more than 0 ms, got {budget_ms:g} ms")
        fitting = [size for size, estimate in self.latency_ms.items() if estimate <= budget_ms]
        if not fitting:
            smallest, estimate = next(iter(self.latency_ms.items()))
            raise InputError(
                f"budget must allow the smallest ensemble (size {smallest}, estimated at "
                f"{estimate:.3g} ms), got {budget_ms:g} ms"
            )
        return max(fitting)


def measured_policy(call: Callable[[int], object], sizes: Iterable[int]) -> BudgetPolicy:
    """Estimates latencies by calling every size.

    Args:
      call: asks the server for one image with the given ensemble size.
      sizes: the ensemble sizes on offer.
    """
    return BudgetPolicy(measure_latencies_ms(call, sizes))


def profiled_policy(call: Callable[[int], object], p95_ms: Mapping[int, float]) -> BudgetPolicy:
    """Estimates latencies from a profile and the transport of the smallest size.

    What the smallest size takes on the wire beyond its profile is transport and
    is added to every size. A server faster than the profile earns no discount.

    Args:
      call: asks the server for one image with the given ensemble size.
      p95_ms: profiled milliseconds by size, without transport.
    """
    smallest = min(p95_ms)
    measured_ms = measure_latencies_ms(call, [smallest])[smallest]
    transport_ms = max(0.0, measured_ms - p95_ms[smallest])
    return BudgetPolicy({size: latency + transport_ms for size, latency in p95_ms.items()})


def read_policy(path: str | pathlib.Path, sizes: Iterable[int]) -> BudgetPolicy:
    """Reads estimates that were measured before: JSON of milliseconds by ensemble size.

    Raises:
      InputError: if the file is not that, or is of other sizes than those on offer.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        latency_ms = {int(size): float(latency) for size, latency in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"estimates must be JSON of milliseconds by size, got {str(path)!r}: {error}"
        ) from error
    if latency_ms.keys() != set(sizes):
        raise InputError(
            f"estimates must be of the sizes {sorted(sizes)}, got {sorted(latency_ms)}"
        )
    return BudgetPolicy(latency_ms)


def measure_latencies_ms(call: Callable[[int], object], sizes: Iterable[int]) -> dict[int, float]:
    """Returns the 95th percentile, in milliseconds, of some warm calls of each size.

    Sizes take turns, so that a busy moment of the machine is shared by all
    rather than charged to one.
    """
    durations: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(-WARM_UP_CALLS, TIMED_CALLS):
        for size, values in durations.items():
            start = time.perf_counter()
            call(size)
            if turn >= 0:
                values.append(1000.0 * (time.perf_counter() - start))
    return {size: percentile(values, 0.95) for size, values in durations.items()}


def percentile(values: Sequence[float], fraction: float) -> float:
    """Returns the nearest-rank percentile: the least value that `fraction` do not exceed."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]
