"""From sums over leaves to probabilities, as `models.averaging` has it, in NumPy alone."""

from collections.abc import Sequence

import numpy as np

# The smallest normal float32 keeps the log of a vanished probability finite.
_SMALLEST_FLOAT32 = 1.18e-38


def probabilities(
    sums: Sequence[np.ndarray], size: int, average: str, temperatures: np.ndarray | None = None
) -> np.ndarray:
    """The answer of some leaves together.

    Args:
      sums: what parts add to the running sum, each `[batch, classes]`.
      size: number of leaves in them.
      average: one of `interface.SUMS`.
      temperatures: `[batch, N]`, what the logits of 1 to N leaves are divided by.

    Returns:
      float32 `[batch, classes]`.
    """
    total = np.sum([each.astype(np.float64) for each in sums], axis=0)
    mean = total if average in ("sum", "product") else total / size
    if average == "probabilities":
        if temperatures is None:
            return mean.astype(np.float32)
        mean = np.log(np.maximum(mean, _SMALLEST_FLOAT32))
    if temperatures is not None:
        mean = mean / temperatures[:, size - 1 : size]
    odds = np.exp(mean - mean.max(axis=-1, keepdims=True))
    return (odds / odds.sum(axis=-1, keepdims=True)).astype(np.float32)
