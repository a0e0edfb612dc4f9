"""Cross-entropy of labels, which every family of objectives begins with."""

from typing import Any

from keras import ops

from hne_tf.objectives.labels import targets


def cross_entropy(labels: Any, log_probabilities: Any) -> Any:
    """Sum over axis 1 of the cross-entropies of `[batch, k, classes]`: `[batch]`.

    Args:
      labels: see `labels.targets`.
      log_probabilities: `[batch, k, classes]`.
    """
    return -ops.einsum("bkc,bc->b", log_probabilities, targets(labels, log_probabilities))
