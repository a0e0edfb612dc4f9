"""Groups of a sweep against each other: by a reference, and at equal computation."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hne_tf.evaluation.tables import aligned

# Budgets of the table of accuracy at matched computation.
_BUDGETS = 5

# What a run gets right, by what it computes: `(multiply_adds, accuracy)` per size.
Curve = Sequence[tuple[int, float]]


def against_reference(summary: Mapping[str, Any], reference: str) -> str:
    """A Markdown table of how far each group is ahead of a reference group.

    A difference is of means over seeds, in percentage points, with the deviation
    of one run beside it: the root of the mean of both groups' variances. It is
    bold where it exceeds that deviation.

    Args:
      summary: see `report.summarise`.
      reference: name of the group that the others are held against.
    """
    base = next(group for group in summary["groups"] if group["name"] == reference)
    sizes = list(base["multiply_adds"])
    others = [
        group
        for group in summary["groups"]
        if group is not base and group["deviation"] and list(group["multiply_adds"]) == sizes
    ]
    if not base["deviation"] or not others:
        return ""
    rows = [
        [
            group["name"],
            *(_difference(group, base, lambda f, size=size: f["accuracy"][size]) for size in sizes),
            *(
                _difference(group, base, lambda f, name=name: f[name])
                for name in ("mean_leaf_accuracy", "gain", "disagreement")
            ),
        ]
        for group in others
    ]
    header = ["group", *sizes, "mean leaf", "gain", "disagreement"]
    return "\n".join(
        [
            aligned(header, rows, words={"group"}),
            "",
            f"Percentage points ahead of {reference}, ± the deviation of a single run; bold beyond "
            "that deviation.",
        ]
    )


def _difference(group: Mapping[str, Any], base: Mapping[str, Any], figure: Any) -> str:
    difference = 100 * (figure(group["mean"]) - figure(base["mean"]))
    variances = [figure(each["deviation"]) ** 2 for each in (group, base)]
    deviation = 100 * math.sqrt(statistics.fmean(variances))
    cell = f"{difference:+.1f} ± {deviation:.1f}"
    return f"**{cell}**" if abs(difference) > deviation else cell


def at_equal_computation(summary: Mapping[str, Any]) -> str:
    """A Markdown table of each group's accuracy within the same budgets of multiply-adds.

    Budgets are evenly spaced on a log scale from where every group has an answer to where
    every group has given its last. The last column is `area`, over that range.

    Args:
      summary: see `report.summarise`.
    """
    groups = [group for group in summary["groups"] if group["runs"]]
    curves = {group["name"]: [curve(group, run) for run in group["runs"]] for group in groups}
    low = max(run[0][0] for runs in curves.values() for run in runs)
    high = max(run[-1][0] for runs in curves.values() for run in runs)
    budgets = [round(low * (high / low) ** (i / (_BUDGETS - 1))) for i in range(_BUDGETS)]
    rows = [
        [
            name,
            f"{runs[0][0][0] / 1e6:.1f}",
            *(_percent([within(run, budget) for run in runs]) for budget in budgets),
            _percent([area(run, low, high) for run in runs]),
        ]
        for name, runs in curves.items()
    ]
    header = ["group", "first answer (M)", *(f"{b / 1e6:.1f} M" for b in budgets), "area"]
    return "\n".join(
        [
            aligned(header, rows, words={"group"}),
            "",
            "Accuracy in percent of the largest answer within a budget of multiply-adds per image "
            "(M: millions), and its mean over all budgets between the first and the last column's "
            "(area). first answer: what the smallest one costs. Mean ± sample standard deviation "
            "over seeds.",
        ]
    )


def curve(group: Mapping[str, Any], run: Mapping[str, Any]) -> Curve:
    """What a run of a group gets right, by what it computes."""
    return [(cost, run["accuracy"][size]) for size, cost in group["multiply_adds"].items()]


def within(points: Curve, budget: float) -> float:
    """Accuracy of the largest answer that costs at most `budget` multiply-adds.

    Raises:
      ValueError: if there is none.
    """
    return max((cost, accuracy) for cost, accuracy in points if cost <= budget)[1]


def area(points: Curve, low: float, high: float) -> float:
    """Mean of `within` over budgets spread evenly over the logarithm of `low` to `high`.

    The area under the curve of accuracy against the log of computation, as the staircase that
    anytime inference is: between two answers there is the smaller one.
    """
    if low == high:
        return within(points, low)
    edges = [low, *sorted(cost for cost, _ in points if low < cost < high), high]
    steps = [
        math.log(right / left) * within(points, left) for left, right in itertools.pairwise(edges)
    ]
    return sum(steps) / math.log(high / low)


def _percent(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean
