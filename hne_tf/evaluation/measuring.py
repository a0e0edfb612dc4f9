"""Metrics over batches, in one pass. Runs on any backend of Keras."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

# Gets labels `[batch]` and leaf logits `[batch, leaves, classes]` of each batch.
Observer = Callable[[Any, Any], None]


def measure(
    predict: Callable[[Any], Any],
    batches: Iterable[tuple[Any, Any]],
    metrics: Sequence[keras.metrics.Metric],
    observe: Observer | None = None,
) -> dict[str, float]:
    """Runs all metrics over the batches in one pass.

    Args:
      predict: images `[batch, height, width, channels]` to leaf logits.
      batches: `(images, labels)`.
      metrics: of labels and leaf logits, see `hne_tf.metrics`.
      observe: called with each batch's labels and leaf logits.

    Returns:
      The metrics' results in one dictionary.
    """
    for images, labels in batches:
        leaf_logits = predict(images)
        for metric in metrics:
            metric.update_state(labels, leaf_logits)
        if observe is not None:
            observe(labels, leaf_logits)
    return results(metrics)


def results(metrics: Sequence[keras.metrics.Metric]) -> dict[str, float]:
    """Figures of all metrics, whose results are dictionaries or one number."""
    figures = {}
    for metric in metrics:
        result = metric.result()
        figures |= result if isinstance(result, dict) else {metric.name: result}
    return {name: float(value) for name, value in figures.items()}
