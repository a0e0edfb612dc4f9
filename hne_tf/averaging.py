"""The answer of the first n leaves: an average of logits or of probabilities.

Inference adds up one contribution per leaf (`contribution`) and turns the sum
into an answer (`answer`), so that it can stop and go on between leaves;
training and metrics take all sizes at once (`ensemble_log_probabilities`).
"""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from hne_tf.errors import InputError

# The smallest normal float32 keeps the log of a vanished probability finite.
_SMALLEST_FLOAT32 = 1.18e-38

AVERAGES = ("logits", "probabilities")


def check_average(average: str) -> str:
    """Returns `average`; raises `InputError` unless it is one of `AVERAGES`."""
    if average not in AVERAGES:
        raise InputError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    return average


def contribution(leaf_logits: Any, average: str = "logits") -> Any:
    """What each leaf adds to the running sum: its logits or its probabilities.

    Args:
      leaf_logits: `[..., classes]`.
      average: one of `AVERAGES`.

    Returns:
      The same shape.
    """
    return leaf_logits if check_average(average) == "logits" else ops.softmax(leaf_logits, axis=-1)


def answer(running_sum: Any, size: int, average: str = "logits") -> tuple[Any, Any]:
    """The ensemble's answer from the sum of `size` contributions.

    Args:
      running_sum: `[batch, classes]`.
      size: number of leaves in the sum.
      average: one of `AVERAGES`.

    Returns:
      `(logits, probabilities)`, each `[batch, classes]`; when probabilities are
      averaged, the logits are the log of their mean.
    """
    mean = running_sum / size
    if check_average(average) == "logits":
        return mean, ops.softmax(mean, axis=-1)
    return ops.log(ops.maximum(mean, _SMALLEST_FLOAT32)), mean


def ensemble_log_probabilities(
    leaf_logits: Any, sizes: Sequence[int], average: str = "logits", temperature: float = 1.0
) -> Any:
    """Log-probabilities of the ensembles of the first leaves.

    Args:
      leaf_logits: `[batch, leaves, classes]`.
      sizes: ensemble sizes, each at most `leaves`.
      average: `"logits"`: softmax of the mean logits; `"probabilities"`: mean
        of the leaves' softmax.
      temperature: divides the logits before the softmax.

    Returns:
      `[batch, len(sizes), classes]`.
    """
    if check_average(average) == "logits":
        means = [ops.mean(leaf_logits[:, :size], axis=1) for size in sizes]
        return ops.log_softmax(ops.stack(means, axis=1) / temperature, axis=-1)
    leaves = ops.log_softmax(leaf_logits / temperature, axis=-1)
    return ops.stack(
        [ops.logsumexp(leaves[:, :size], axis=1) - math.log(size) for size in sizes], axis=1
    )
