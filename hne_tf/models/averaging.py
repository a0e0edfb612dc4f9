"""The answer of size n: an average over the first n leaves, their sum, or the n-th leaf alone.

The average is of logits or of probabilities. `"sum"` adds up logits, for leaves that are
trained to correct those before them. `"last"` is for networks with exits, where each leaf
is better than the one before.

Inference adds up one contribution per leaf (`contribution`, `add`) and turns the
sum into an answer (`answer`), so that it can stop and go on between leaves;
training and metrics take all sizes at once (`ensemble_log_probabilities`).
"""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from hne_tf.errors import InputError

# The smallest normal float32 keeps the log of a vanished probability finite.
_SMALLEST_FLOAT32 = 1.18e-38

AVERAGES = ("logits", "probabilities", "last", "sum")


def check_average(average: str) -> str:
    """Returns `average`; raises `InputError` unless it is one of `AVERAGES`."""
    if average not in AVERAGES:
        raise InputError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    return average


def leaves(size: int, average: str = "logits") -> range:
    """The leaves (from 0) whose outputs the answer of `size` is made of."""
    return range(size - 1 if check_average(average) == "last" else 0, size)


def contribution(leaf_logits: Any, average: str = "logits") -> Any:
    """What each leaf adds to the running sum: its logits or its probabilities.

    Args:
      leaf_logits: `[..., classes]`.
      average: one of `AVERAGES`.

    Returns:
      The same shape.
    """
    averaged = check_average(average) == "probabilities"
    return ops.softmax(leaf_logits, axis=-1) if averaged else leaf_logits


def add(running_sum: Any, leaf_contribution: Any, average: str = "logits") -> Any:
    """The running sum after one more leaf; where the last leaf answers, it is that leaf's alone.

    Args:
      running_sum: `[batch, classes]`.
      leaf_contribution: of the next leaf, the same shape.
      average: one of `AVERAGES`.
    """
    if check_average(average) == "last":
        return leaf_contribution
    return running_sum + leaf_contribution


def answer(
    running_sum: Any, size: int, average: str = "logits", temperature: float = 1.0
) -> tuple[Any, Any]:
    """The ensemble's answer from the sum of `size` contributions.

    Args:
      running_sum: `[batch, classes]`.
      size: number of leaves evaluated.
      average: one of `AVERAGES`.
      temperature: divides the logits.

    Returns:
      `(logits, probabilities)`, each `[batch, classes]`; when probabilities are
      averaged, the logits are the log of their mean.
    """
    mean = running_sum / (1 if average == "sum" else len(leaves(size, average)))
    averaged = average == "probabilities"
    logits = ops.log(ops.maximum(mean, _SMALLEST_FLOAT32)) if averaged else mean
    if temperature == 1.0:
        return logits, mean if averaged else ops.softmax(logits, axis=-1)
    logits = logits / temperature
    return logits, ops.softmax(logits, axis=-1)


def ensemble_log_probabilities(
    leaf_logits: Any, sizes: Sequence[int], average: str = "logits", temperature: float = 1.0
) -> Any:
    """Log-probabilities of the ensembles of the first leaves.

    Args:
      leaf_logits: `[batch, leaves, classes]`.
      sizes: ensemble sizes, each at most `leaves`.
      average: `"logits"`: softmax of the mean logits; `"probabilities"`: mean
        of the leaves' softmax; `"last"`: softmax of the last leaf's logits; `"sum"`:
        softmax of the sum of the logits.
      temperature: divides the logits before the softmax.

    Returns:
      `[batch, len(sizes), classes]`.
    """
    if check_average(average) == "probabilities":
        scores = ops.log_softmax(leaf_logits / temperature, axis=-1)
        return ops.stack(
            [ops.logsumexp(scores[:, :size], axis=1) - math.log(size) for size in sizes], axis=1
        )
    spans = [leaves(size, average) for size in sizes]
    together = ops.sum if average == "sum" else ops.mean
    logits = [together(leaf_logits[:, span.start : span.stop], axis=1) for span in spans]
    return ops.log_softmax(ops.stack(logits, axis=1) / temperature, axis=-1)
