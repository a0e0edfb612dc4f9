"""Cross-entropy of labels, which every family of objectives begins with."""

from typing import Any

from keras import ops

from hne_tf.objectives.labels import targets


def cross_entropy(labels: Any, log_probabilities: Any, smoothing: float = 0.0) -> Any:
    """Sum over axis 1 of the cross-entropies of `[batch, k, classes]`: `[batch]`.

    Args:
      labels: see `labels.targets`.
      log_probabilities: `[batch, k, classes]`.
      smoothing: of the labels, see `labels.targets`.
    """
    return -ops.einsum(
        "bkc,bc->b", log_probabilities, targets(labels, log_probabilities, smoothing)
    )
