"""Cross-entropy of labels, which every family of objectives begins with."""

from typing import Any

from keras import ops

from hne_tf.errors import InputError
from hne_tf.objectives.labels import targets


def cross_entropy(
    labels: Any, log_probabilities: Any, smoothing: float = 0.0, views: int = 1
) -> Any:
    """Sum over axis 1 of the cross-entropies of `[batch, k, classes]`: `[batch]`.

    With several views, leaf n learns from the rows r with `r mod views = n mod views`
    alone, `views` times as strongly: each has pictures of its own preprocessing (Hirose et
    al., "Selective Fine-Tuning on a Classifier Ensemble", IEEE Access 2021).

    Args:
      labels: see `labels.targets`.
      log_probabilities: `[batch, k, classes]`.
      smoothing: of the labels, see `labels.targets`.
      views: number of views that the rows of the batch belong to in turn.
    """
    rows = targets(labels, log_probabilities, smoothing)
    if views == 1:
        return -ops.einsum("bkc,bc->b", log_probabilities, rows)
    batch, leaves = ops.shape(log_probabilities)[:2]
    view_of_row, view_of_leaf = (ops.arange(count) % views for count in (batch, leaves))
    learns = ops.cast(view_of_row[:, None] == view_of_leaf, log_probabilities.dtype)
    return -views * ops.einsum("bkc,bc,bk->b", log_probabilities, rows, learns)


def check_views(views: int) -> int:
    """Returns `views`; raises `InputError` unless it is 1 or more."""
    if not views >= 1:
        raise InputError(f"views must be 1 or more, got {views}")
    return views
