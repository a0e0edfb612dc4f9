"""How sure an ensemble is of its answer: rules by which each image stops at a size of its own.

A rule gives each image a score from 0 to 1, from the answer of the first n leaves and from what
each of them has added to it. The image stops at the first size whose threshold its score reaches.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hne_tf.errors import InputError

# No score is lower but that of a single leaf's significance: as a threshold it stops all images.
LEAST = 1e-6

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
Confidence = float | Sequence[float]


def _confidence(probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The highest probability."""
    del outputs
    return probabilities.max(axis=-1)


def _margin(probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The highest probability less the second highest."""
    del outputs
    second, best = np.partition(probabilities, -2, axis=-1)[:, -2:].T
    return np.maximum(best - second, LEAST)


def _entropy(probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """1 less the entropy as a part of that of an answer that knows nothing."""
    # Only here, as commands have the rules for a flag.
    from scipy import special

    del outputs
    entropy = special.entr(probabilities).sum(axis=-1)
    return np.maximum(1 - entropy / np.log(probabilities.shape[-1]), LEAST)


def _agreement(probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """The leaves that by themselves give the answer's class, as a part of all and one more.

    The one more is doubt: two leaves that agree are surer than a single one.
    """
    votes = outputs.argmax(axis=-1) == probabilities.argmax(axis=-1)[:, None]
    return votes.sum(axis=1) / (outputs.shape[1] + 1)


def _significance(probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """1 less the p-value of a t-test that leaves prefer the best class to the second best.

    One-sided, paired by leaf; 0 for a single leaf, whose deviation is not known.
    """
    from scipy import special

    leaves = outputs.shape[1]
    if leaves < 2:
        return np.zeros(len(outputs))
    second, best = np.argpartition(probabilities, -2, axis=-1)[:, -2:].T
    images = np.arange(len(outputs))
    gaps = (outputs[images, :, best] - outputs[images, :, second]).astype(np.float64)
    deviation = gaps.std(axis=1, ddof=1) / np.sqrt(leaves)
    # Leaves that are all alike are certain.
    statistic = gaps.mean(axis=1) / np.maximum(deviation, np.finfo(np.float64).tiny)
    return np.maximum(special.stdtr(leaves - 1, statistic), LEAST)


RULES: Mapping[str, Score] = {
    "confidence": _confidence,
    "margin": _margin,
    "entropy": _entropy,
    "agreement": _agreement,
    "significance": _significance,
}


def check_rule(rule: str) -> str:
    """Returns `rule`; raises `InputError` unless it is one of `RULES`."""
    if rule not in RULES:
        raise InputError(f"stopping rule must be one of {', '.join(RULES)}, got {rule!r}")
    return rule


def scores(rule: str, probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """How sure the ensemble of the first n leaves is of each image, float `[images]`.

    Args:
      rule: one of `RULES`: `"confidence"`, the highest probability; `"margin"`, its lead
        over the second; `"entropy"`; `"agreement"`, a quorum of leaves; `"significance"`, a
        test over leaves.
      probabilities: the ensemble's answer, `[images, classes]`.
      outputs: of each leaf by itself, logits or probabilities, `[images, n, classes]`.

    Raises:
      InputError: for an unknown rule.
    """
    score = RULES[check_rule(rule)]
    if probabilities.shape[-1] == 1:
        # There is no second class to prefer.
        return np.ones(len(probabilities))
    return score(np.asarray(probabilities, np.float64), outputs)


@dataclasses.dataclass(frozen=True)
class Limit:
    """How sure an image has to be to stop.

    Attributes:
      rule: one of `RULES`.
      thresholds: one for each size from 1 to N - 1.
    """

    rule: str
    thresholds: Sequence[float]

    @classmethod
    def of(cls, confidence: Confidence | None, rule: str, leaves: int) -> "Limit | None":
        """The limit of a call; None where there is none.

        Args:
          confidence: one threshold, or one for each size from 1 to N - 1.
          rule: one of `RULES`.
          leaves: N.

        Raises:
          InputError: for a threshold that does not lie in (0, 1], other numbers of them,
            or an unknown rule.
        """
        check_rule(rule)
        return None if confidence is None else cls(rule, _thresholds(confidence, leaves))

    def stops(self, probabilities: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Which images stop, bool `[images]`; see `scores` for the arguments."""
        found = scores(self.rule, probabilities, outputs)
        return found >= self.thresholds[outputs.shape[1] - 1]


def _thresholds(confidence: Confidence, leaves: int) -> Sequence[float]:
    """One threshold per size from 1 to N - 1."""
    thresholds = np.atleast_1d(confidence)
    if np.ndim(confidence) and thresholds.shape != (leaves - 1,):
        raise InputError(
            f"confidence must be one threshold, or one for each size from 1 to {leaves - 1}, "
            f"got {confidence!r}"
        )
    if not all(is_number(value) and 0 < value <= 1 for value in thresholds.tolist()):
        raise InputError(f"confidence must lie above 0 and be at most 1, got {confidence!r}")
    return thresholds.tolist() if np.ndim(confidence) else thresholds.tolist() * (leaves - 1)


def is_number(value: object) -> bool:
    """Whether `value` is a real number; a bool does not count."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
