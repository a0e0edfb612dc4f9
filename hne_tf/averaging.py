"""The answer of the first n leaves: an average of logits or of probabilities."""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from hne_tf.errors import InputError

AVERAGES = ("logits", "probabilities")


def check_average(average: str) -> str:
    """Returns `average`; raises `InputError` unless it is one of `AVERAGES`."""
    if average not in AVERAGES:
        raise InputError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    return average


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
