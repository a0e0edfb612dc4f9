"""Cross-entropy of labels, which every family of objectives begins with."""

from typing import Any

from keras import ops


def cross_entropy(labels: Any, log_probabilities: Any) -> Any:
    """Sum over axis 1 of the cross-entropies of `[batch, k, classes]`: `[batch]`."""
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    targets = ops.one_hot(labels, log_probabilities.shape[-1], dtype=log_probabilities.dtype)
    return -ops.einsum("bkc,bc->b", log_probabilities, targets)
