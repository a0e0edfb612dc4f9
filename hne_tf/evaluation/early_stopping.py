"""Stopping at the first ensemble that is sure, for a mean cost per image.

Each image of a batch stops at the first size n whose score, by one of the rules of
`exported.uncertainty.stopping`, is at least the threshold of size n; the last size answers
whatever is left. Thresholds
are fitted on one split so that the mean cost per image meets a target, and judged
on another: the "budgeted batch classification" of Huang et al., "Multi-Scale Dense
Networks for Resource Efficient Image Classification", ICLR 2018, section 4.2.

Costs are those of all leaves up to a size, as in `cost.per_size_walked`: increasing,
in any unit, here multiply-adds.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hne_tf.errors import InputError
from hne_tf.exported.uncertainty import stopping

# A threshold that stops all images, and one that stops those only that are certain. Clients
# take thresholds above 0 and up to 1.
_ALL, _CERTAIN = stopping.LEAST, 1.0

# Ratios of this logarithm send, to double precision, all images to one size.
_EXTREME = 50.0
_BISECTIONS = 60


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the ensembles of the first 1 to N leaves answer on a split.

    Attributes:
      scores: by stopping rule, how sure each size is, float `[examples, N]`.
      correct: bool `[examples, N]`, whether the most probable class is the label.
    """

    scores: Mapping[str, np.ndarray]
    correct: np.ndarray


class AnswerGatherer:
    """Makes `Answers` of the batches of a split; keeps no outputs, which could be many."""

    def __init__(self) -> None:
        self._scores: dict[str, list[np.ndarray]] = {rule: [] for rule in stopping.RULES}
        self._correct: list[np.ndarray] = []

    def add(self, labels: np.ndarray, probabilities: np.ndarray, outputs: np.ndarray) -> None:
        """Takes a batch.

        Args:
          labels: class numbers `[batch]`.
          probabilities: of the ensembles of the first 1 to N leaves, `[batch, N, classes]`.
          outputs: of each leaf by itself, see `stopping.scores`, of the same shape.
        """
        sizes = range(probabilities.shape[1])
        for rule, gathered in self._scores.items():
            columns = [
                stopping.scores(rule, probabilities[:, n], outputs[:, : n + 1]) for n in sizes
            ]
            gathered.append(np.stack(columns, axis=1))
        self._correct.append(probabilities.argmax(axis=-1) == labels.reshape(-1, 1))

    def result(self) -> Answers:
        """What all batches together are."""
        scores = {rule: np.concatenate(gathered) for rule, gathered in self._scores.items()}
        return Answers(scores, np.concatenate(self._correct))


def fit(scores: np.ndarray, costs: Sequence[float], target_cost: float) -> list[float]:
    """Thresholds for which these images cost the target on average, or a little less.

    As in MSDNet, the share of images that stop at size k is proportional to `q^k`,
    and among the images still in, the surest stop. The greatest `q` that keeps to the
    target is found by bisection. Equal scores stop together, so that many of them can
    leave the mean below the target.

    Args:
      scores: of one rule, `[examples, N]`.
      costs: of the sizes 1 to N.
      target_cost: from the cost of one leaf to that of all.

    Returns:
      A threshold for each size from 1 to N - 1, above 0 and at most 1.

    Raises:
      InputError: for a target that cannot be met, or arrays of other shapes.
    """
    costs = _checked_costs(scores, costs)
    least = least_cost(scores, costs)
    if not least <= target_cost <= costs[-1]:
        raise InputError(
            f"target cost must be from {least:,.10g} (as soon as possible) to {costs[-1]:,.10g} "
            f"(all {len(costs)} leaves), got {target_cost:,.10g}"
        )

    def fitting(log_ratio: float) -> list[float] | None:
        thresholds = _thresholds(scores, _stopped(log_ratio, *scores.shape))
        mean = costs[apply(scores, thresholds) - 1].mean()
        return thresholds if mean <= target_cost else None

    low, high = -_EXTREME, _EXTREME
    best = [_ALL] * (scores.shape[1] - 1)
    if (everything := fitting(high)) is not None:
        return everything
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if (thresholds := fitting(middle)) is None:
            high = middle
        else:
            low, best = middle, thresholds
    return best


def least_cost(scores: np.ndarray, costs: Sequence[float]) -> float:
    """The mean cost where each image stops as soon as it can, at its first score above 0."""
    costs = _checked_costs(scores, costs)
    return float(costs[apply(scores, [_ALL] * (scores.shape[1] - 1)) - 1].mean())


def _stopped(log_ratio: float, examples: int, sizes: int) -> np.ndarray:
    """How many images are to have stopped by each size below N, `[N - 1]`.

    Rounding the sums instead of the shares lets the mean cost grow with the ratio.
    """
    exponents = log_ratio * np.arange(sizes)
    shares = np.exp(exponents - exponents.max())
    return np.rint(np.cumsum(shares)[:-1] / shares.sum() * examples).astype(int)


def _thresholds(scores: np.ndarray, stopped: np.ndarray) -> list[float]:
    """Thresholds by which at least so many images have stopped by each size."""
    remaining = np.arange(len(scores))
    thresholds = []
    for column, count in enumerate(stopped):
        here = scores[remaining, column]
        missing = count - (len(scores) - len(remaining))
        if missing >= len(remaining):
            threshold = _ALL
        elif missing <= 0:
            threshold = _CERTAIN
        else:
            least = np.partition(here, len(here) - missing)[len(here) - missing]
            # A rule can give 0 to many images, which stop nowhere.
            threshold = min(max(float(least), _ALL), _CERTAIN)
        thresholds.append(threshold)
        remaining = remaining[here < threshold]
    return thresholds


def apply(scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The size at which each image stops.

    Args:
      scores: of one rule, `[examples, N]`.
      thresholds: `[N - 1]`.

    Returns:
      int `[examples]`, from 1 to N.
    """
    last = np.ones([len(scores), 1], bool)
    return 1 + np.argmax(np.hstack([scores[:, :-1] >= thresholds, last]), axis=1)


def curve(
    validation: Answers,
    test: Answers,
    costs: Sequence[float],
    targets: Sequence[float],
    rule: str = "confidence",
) -> list[dict[str, Any]]:
    """What early stopping gives at each target cost.

    Args:
      validation: answers that the thresholds are fitted on; its labels don't count.
      test: answers that they are judged on.
      costs: multiply-adds of the sizes 1 to N.
      targets: mean multiply-adds per image.
      rule: one of `stopping.RULES`.

    Returns:
      A row per target that the rule can meet, JSON values: `target_multiply_adds`;
      `thresholds`; and on the test answers the mean `multiply_adds` and `mean_size` per image, the
      `accuracy`, and `anytime_accuracy`: that of all images stopping at one size,
      interpolated to the same mean cost.

    Raises:
      InputError: as `fit` does.
    """
    fitted_on, judged_on = validation.scores[rule], test.scores[rule]
    checked = _checked_costs(judged_on, costs)
    least = least_cost(fitted_on, costs)
    anytime = test.correct.mean(axis=0)
    rows = []
    for target in targets:
        # A single leaf has nobody to agree with.
        if least > target >= costs[0]:
            continue
        thresholds = fit(fitted_on, costs, target)
        sizes = apply(judged_on, thresholds)
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
    validation: Answers,
    test: Answers,
    costs: Sequence[int],
    sizes: Sequence[int],
    rule: str = "confidence",
) -> dict[str, Any]:
    """What a manifest and an evaluation hold: `curve` at the default targets.

    Args:
      validation: answers of the validation split, which the thresholds are fitted on.
      test: answers that they are judged on.
      costs: multiply-adds of the sizes 1 to N.
      sizes: `tree.sizes`.
      rule: one of `stopping.RULES`.

    Returns:
      JSON values: `rule`; `split` and `examples` of the fit; and `curve`. A manifest holds them as
      `exported.measurements.EarlyStopping`.
    """
    targets = default_targets(costs, sizes)
    return {
        "rule": stopping.check_rule(rule),
        "split": "validation",
        "examples": len(validation.correct),
        "curve": curve(validation, test, costs, targets, rule),
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


def _checked_costs(scores: np.ndarray, costs: Sequence[float]) -> np.ndarray:
    """The costs as an array, `[N]`."""
    if scores.ndim != 2 or 0 in scores.shape or len(costs) != scores.shape[1]:
        raise InputError(
            "scores must be [examples, sizes] and costs one per size, got shape "
            f"{list(scores.shape)} and {len(costs)} costs"
        )
    if not all(a < b < math.inf for a, b in itertools.pairwise([0, *costs])):
        raise InputError(f"costs must be above 0 and grow with the size, got {list(costs)}")
    return np.asarray(costs, np.float64)
