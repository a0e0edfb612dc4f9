"""Stopping at the first ensemble that is sure, for a mean cost per image.

Each image of a batch stops at the first size n whose highest probability is at
least the threshold of size n; the last size answers whatever is left. Thresholds
are fitted on one split so that the mean cost per image meets a target, and judged
on another: the "budgeted batch classification" of Huang et al., "Multi-Scale Dense
Networks for Resource Efficient Image Classification", ICLR 2018, section 4.2.

Costs are those of all leaves up to a size, as in `cost.per_size_walked`: increasing,
in any unit, here multiply-adds.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hne_tf.errors import InputError

# A threshold that stops all images, since the highest probability of up to a million
# classes is above it, and one that stops those only that are certain. Clients take
# thresholds above 0 and up to 1.
_ALL, _CERTAIN = 1e-6, 1.0

# Ratios of this logarithm send, to double precision, all images to one size.
_EXTREME = 50.0
_BISECTIONS = 60


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the ensembles of the first 1 to N leaves answer on a split.

    Attributes:
      confidences: float `[examples, N]`, the highest probability of each size.
      correct: bool `[examples, N]`, whether the most probable class is the label.
    """

    confidences: np.ndarray
    correct: np.ndarray


def fit(confidences: np.ndarray, costs: Sequence[float], target_cost: float) -> list[float]:
    """Thresholds for which these images cost the target on average, or a little less.

    As in MSDNet, the share of images that stop at size k is proportional to `q^k`,
    and among the images still in, the most confident stop. The greatest `q` that
    keeps to the target is found by bisection. Equal confidences stop together, so
    that many of them can leave the mean below the target.

    Args:
      confidences: `[examples, N]`.
      costs: of the sizes 1 to N.
      target_cost: from the cost of one leaf to that of all.

    Returns:
      A threshold for each size from 1 to N - 1, above 0 and at most 1.

    Raises:
      InputError: for a target that cannot be met, or arrays of other shapes.
    """
    costs = _checked_costs(confidences, costs)
    if not costs[0] <= target_cost <= costs[-1]:
        raise InputError(
            f"target cost must be from {costs[0]:,.10g} (one leaf) to {costs[-1]:,.10g} "
            f"(all {len(costs)}), got {target_cost:,.10g}"
        )

    def fitting(log_ratio: float) -> list[float] | None:
        thresholds = _thresholds(confidences, _stopped(log_ratio, *confidences.shape))
        mean = costs[apply(confidences, thresholds) - 1].mean()
        return thresholds if mean <= target_cost else None

    # All images stop at once at the low end, which meets every target.
    low, high = -_EXTREME, _EXTREME
    best = _thresholds(confidences, _stopped(low, *confidences.shape))
    if (everything := fitting(high)) is not None:
        return everything
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if (thresholds := fitting(middle)) is None:
            high = middle
        else:
            low, best = middle, thresholds
    return best


def _stopped(log_ratio: float, examples: int, sizes: int) -> np.ndarray:
    """How many images are to have stopped by each size below N, `[N - 1]`.

    Rounding the sums instead of the shares lets the mean cost grow with the ratio.
    """
    exponents = log_ratio * np.arange(sizes)
    shares = np.exp(exponents - exponents.max())
    return np.rint(np.cumsum(shares)[:-1] / shares.sum() * examples).astype(int)


def _thresholds(confidences: np.ndarray, stopped: np.ndarray) -> list[float]:
    """Thresholds by which at least so many images have stopped by each size."""
    remaining = np.arange(len(confidences))
    thresholds = []
    for column, count in enumerate(stopped):
        here = confidences[remaining, column]
        missing = count - (len(confidences) - len(remaining))
        if missing >= len(remaining):
            threshold = _ALL
        elif missing <= 0:
            threshold = _CERTAIN
        else:
            least = np.partition(here, len(here) - missing)[len(here) - missing]
            threshold = min(float(least), _CERTAIN)
        thresholds.append(threshold)
        remaining = remaining[here < threshold]
    return thresholds


def apply(confidences: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The size at which each image stops.

    Args:
      confidences: `[examples, N]`.
      thresholds: `[N - 1]`.

    Returns:
      int `[examples]`, from 1 to N.
    """
    last = np.ones([len(confidences), 1], bool)
    return 1 + np.argmax(np.hstack([confidences[:, :-1] >= thresholds, last]), axis=1)


def curve(
    validation: Answers, test: Answers, costs: Sequence[float], targets: Sequence[float]
) -> list[dict[str, Any]]:
    """What early stopping gives at each target cost.

    Args:
      validation: answers that the thresholds are fitted on; its labels don't count.
      test: answers that they are judged on.
      costs: multiply-adds of the sizes 1 to N.
      targets: mean multiply-adds per image.

    Returns:
      A row per target, JSON values: `target_multiply_adds`; `thresholds`; and on
      the test answers the mean `multiply_adds` and `mean_size` per image, the
      `accuracy`, and `anytime_accuracy`: that of all images stopping at one size,
      interpolated to the same mean cost.

    Raises:
      InputError: as `fit` does.
    """
    checked = _checked_costs(test.confidences, costs)
    anytime = test.correct.mean(axis=0)
    rows = []
    for target in targets:
        thresholds = fit(validation.confidences, costs, target)
        sizes = apply(test.confidences, thresholds)
        mean_cost = float(checked[sizes - 1].mean())
        rows.append(
            {
                "target_multiply_adds": target,
                "thresholds": thresholds,
                "multiply_adds": round(mean_cost),
                "mean_size": float(sizes.mean()),
                "accuracy": float(test.correct[np.arange(len(sizes)), sizes - 1].mean()),
                "anytime_accuracy": float(np.interp(mean_cost, checked, anytime)),
            }
        )
    return rows


def calibrated(
    validation: Answers, test: Answers, costs: Sequence[int], sizes: Sequence[int]
) -> dict[str, Any]:
    """What a manifest and an evaluation hold: `curve` at the default targets.

    Args:
      validation: answers of the validation split, which the thresholds are fitted on.
      test: answers that they are judged on.
      costs: multiply-adds of the sizes 1 to N.
      sizes: `tree.sizes`.

    Returns:
      JSON values: `split` and `examples` of the fit, and `curve`. A manifest holds them as
      `exported.measurements.EarlyStopping`.
    """
    return {
        "split": "validation",
        "examples": len(validation.confidences),
        "curve": curve(validation, test, costs, default_targets(costs, sizes)),
    }


def default_targets(costs: Sequence[int], sizes: Sequence[int], parts: int = 8) -> list[int]:
    """Targets of a curve: the costs of the sizes below N, and points at even distances.

    Args:
      costs: of the sizes 1 to N.
      sizes: `tree.sizes`.
      parts: into which the points divide what lies between one leaf and all.
    """
    inner = (costs[0] + (costs[-1] - costs[0]) * part // parts for part in range(1, parts))
    below = (costs[size - 1] for size in sizes if size < len(costs))
    return sorted({*below, *inner} - {costs[-1]})


def _checked_costs(confidences: np.ndarray, costs: Sequence[float]) -> np.ndarray:
    """The costs as an array, `[N]`."""
    if confidences.ndim != 2 or 0 in confidences.shape or len(costs) != confidences.shape[1]:
        raise InputError(
            "confidences must be [examples, sizes] and costs one per size, got shape "
            f"{list(confidences.shape)} and {len(costs)} costs"
        )
    if not all(a < b < math.inf for a, b in itertools.pairwise([0, *costs])):
        raise InputError(f"costs must be above 0 and grow with the size, got {list(costs)}")
    return np.asarray(costs, np.float64)
