"""Whether probabilities mean what they say, for every ensemble size.

A temperature for each size is fitted on held-out images (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017), and limits of prediction sets that hold the label with a stated
probability (split conformal prediction: Vovk et al., "Algorithmic Learning in a Random World",
2005). Both are judged on other images.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from hne_tf.errors import InputError
from hne_tf.exported.uncertainty import prediction_sets
from hne_tf.exported.uncertainty.calibration import Calibration

# Bins of calibration errors.
_BINS = 15
# Logarithms of the lowest and the highest temperature.
_LOG_TEMPERATURES = (-4.0, 4.0)
# Log-probabilities of a split are kept up to so many numbers; of more images, the first.
_MOST_NUMBERS = 50_000_000
# Parts of the images, the surest ones, that selective accuracy is of.
SELECTED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclasses.dataclass(frozen=True)
class SplitAnswers:
    """What the ensembles of the first 1 to N leaves answer on a split.

    Attributes:
      labels: class numbers, int `[examples]`.
      log_probabilities: float32 `[examples, N, classes]`.
    """

    labels: np.ndarray
    log_probabilities: np.ndarray


class SplitGatherer:
    """Makes `SplitAnswers` of the batches of a split, of as many images as can be kept."""

    def __init__(self) -> None:
        self._labels: list[np.ndarray] = []
        self._log_probabilities: list[np.ndarray] = []
        self._numbers = 0

    def add(self, labels: np.ndarray, log_probabilities: np.ndarray) -> None:
        """Takes a batch: class numbers and `[batch, N, classes]`."""
        if self._numbers < _MOST_NUMBERS:
            self._labels.append(labels.reshape(-1))
            self._log_probabilities.append(log_probabilities)
            self._numbers += log_probabilities.size

    def result(self) -> SplitAnswers:
        """What all batches together are."""
        return SplitAnswers(np.concatenate(self._labels), np.concatenate(self._log_probabilities))


def fit_temperatures(fitted_on: SplitAnswers) -> np.ndarray:
    """The temperature of each size from 1 to N with the least negative log-likelihood."""
    logs = fitted_on.log_probabilities

    def best(column: int) -> float:
        def loss(log_temperature: float) -> float:
            return _nll(_rescaled(logs[:, column], np.exp(log_temperature)), fitted_on.labels)

        return float(np.exp(optimize.minimize_scalar(loss, bounds=_LOG_TEMPERATURES).x))

    return np.array([best(column) for column in range(logs.shape[1])])


def rescaled(split: SplitAnswers, temperatures: Sequence[float]) -> SplitAnswers:
    """The answers with the logits of each size divided by its temperature."""
    return SplitAnswers(split.labels, with_temperatures(split.log_probabilities, temperatures))


def with_temperatures(log_probabilities: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """`[examples, N, classes]` with the logits of each size divided by its temperature."""
    return _rescaled(log_probabilities, np.asarray(temperatures)[:, None])


def _rescaled(log_probabilities: np.ndarray, temperature: Any) -> np.ndarray:
    return special.log_softmax(log_probabilities / temperature, axis=-1)


def fit_limits(fitted_on: SplitAnswers, coverage: float, method: str) -> np.ndarray:
    """The limit of each size from 1 to N for prediction sets of a stated coverage.

    Args:
      fitted_on: images that are not judged on.
      coverage: probability that a set holds the label, in (0, 1).
      method: one of `prediction_sets.METHODS`.

    Raises:
      InputError: for a coverage outside (0, 1), or an unknown method.
    """
    check_coverage(coverage)
    scores = prediction_sets.scores(method, np.exp(fitted_on.log_probabilities))
    of_labels = np.take_along_axis(scores, fitted_on.labels[:, None, None], axis=-1)[..., 0]
    # The next image is as likely in any place among these.
    place = int(np.ceil((len(of_labels) + 1) * coverage)) - 1
    if place >= len(of_labels):
        return np.ones(of_labels.shape[1])
    return np.sort(of_labels, axis=0)[place]


def all_limits(fitted_on: SplitAnswers, coverage: float) -> dict[str, np.ndarray]:
    """The limits by method, see `fit_limits`."""
    return {method: fit_limits(fitted_on, coverage, method) for method in prediction_sets.METHODS}


def for_manifest(
    fitted_on: SplitAnswers,
    coverage: float,
    temperatures: Sequence[float] | None = None,
) -> Calibration:
    """What a manifest holds of calibration.

    Args:
      fitted_on: the published model's answers to the validation split.
      coverage: of prediction sets.
      temperatures: those that the answers have; without them they are fitted, and left
        to the clients.
    """
    applied = temperatures is not None
    limits = all_limits(fitted_on, coverage)
    return Calibration(
        "validation",
        len(fitted_on.labels),
        tuple(map(float, temperatures if applied else fit_temperatures(fitted_on))),
        coverage,
        {method: tuple(row.tolist()) for method, row in limits.items()},
        applied,
    )


def check_coverage(coverage: float) -> float:
    """Returns `coverage`; raises `InputError` unless it lies in (0, 1)."""
    if not 0 < coverage < 1:
        raise InputError(f"coverage must lie between 0 and 1, got {coverage}")
    return coverage


def figures(split: SplitAnswers, size: int) -> dict[str, float]:
    """How well calibrated a size is.

    Args:
      split: answers, of any temperature.
      size: from 1 to N.

    Returns:
      `nll` in nats; `brier`; `ece` over bins of equal width and `adaptive_ece` over bins of
      as many images each (Nguyen and O'Connor, "Posterior calibration and exploratory
      analysis for natural language processing models", EMNLP 2015).
    """
    logs = split.log_probabilities[:, size - 1]
    probabilities = np.exp(logs)
    onehot = np.eye(logs.shape[-1])[split.labels]
    confidence = probabilities.max(axis=-1)
    right = logs.argmax(axis=-1) == split.labels
    edges = np.linspace(0, 1, _BINS + 1)
    widths = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, _BINS - 1)
    order = np.argsort(confidence, kind="stable")
    masses = np.empty(len(order), int)
    masses[order] = np.arange(len(order)) * _BINS // len(order)
    return {
        "nll": _nll(logs, split.labels),
        "brier": float(((probabilities - onehot) ** 2).sum(axis=-1).mean()),
        "ece": _gap(confidence, right, widths),
        "adaptive_ece": _gap(confidence, right, masses),
    }


def _nll(log_probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_probabilities[np.arange(len(labels)), labels].mean(dtype=np.float64))


def _gap(confidence: np.ndarray, right: np.ndarray, bins: np.ndarray) -> float:
    """The gap between confidence and accuracy of each bin, weighed by its images."""
    gaps = np.bincount(bins, confidence - right, _BINS)
    return float(np.abs(gaps).sum() / len(right))


def selective_accuracy(split: SplitAnswers, size: int) -> dict[str, float]:
    """Accuracy on the surest images, by their part of all; and the area under risk by coverage.

    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS 2017.
    """
    logs = split.log_probabilities[:, size - 1]
    order = np.argsort(-logs.max(axis=-1), kind="stable")
    right = (logs.argmax(axis=-1) == split.labels)[order]
    risks = 1 - np.cumsum(right) / np.arange(1, len(right) + 1)
    counts = {part: max(1, round(part * len(right))) for part in SELECTED}
    found = {f"{part:g}": float(right[:count].mean()) for part, count in counts.items()}
    return {**found, "area": float(risks.mean())}


def measured(
    fitted_on: SplitAnswers, judged_on: SplitAnswers, sizes: Sequence[int], coverage: float
) -> dict[str, Any]:
    """What an evaluation holds of calibration.

    Args:
      fitted_on: answers of the validation split.
      judged_on: answers that temperatures and sets are judged on.
      sizes: from 1 to N.
      coverage: of prediction sets.

    Returns:
      JSON values: `split` and `examples` of the fit, `coverage`; `temperatures`, and by
      method of prediction sets `limits`, of each size from 1 to N; and `sizes`: a row per
      size with its `temperature`; the figures `before` and `after` it; `selective`, see
      `selective_accuracy`; and by method of prediction sets, `sets`: the `limit`, and the
      `coverage` and mean `size` of the sets.
    """
    temperatures = fit_temperatures(fitted_on)
    after = rescaled(judged_on, temperatures)
    limits = all_limits(fitted_on, coverage)
    return {
        "split": "validation",
        "examples": len(fitted_on.labels),
        "coverage": coverage,
        "temperatures": temperatures.tolist(),
        "limits": {method: found.tolist() for method, found in limits.items()},
        "sizes": [
            {
                "size": size,
                "temperature": float(temperatures[size - 1]),
                "before": figures(judged_on, size),
                "after": figures(after, size),
                "selective": selective_accuracy(judged_on, size),
                "sets": {
                    method: _judged(judged_on, size, method, found[size - 1])
                    for method, found in limits.items()
                },
            }
            for size in sizes
        ],
    }


def _judged(split: SplitAnswers, size: int, method: str, limit: float) -> dict[str, float]:
    probabilities = np.exp(split.log_probabilities[:, size - 1])
    sets = prediction_sets.sets(method, probabilities, limit)
    held = sets[np.arange(len(sets)), split.labels]
    return {
        "limit": float(limit),
        "coverage": float(held.mean()),
        "size": float(sets.sum(axis=-1).mean()),
    }
